/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: the reader without Python, its rows counted beside and asked for after each piece. ThreadSanitizer watches what
 * the two threads share.
 *
 * Arguments: a capture, and how many packets are handed over at a time. Prints the rows and packets that were counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_formats.h"

#define PIECE 20000

static __u8 buffer[1 << 20];

static size_t read_piece(struct reader *r, FILE *file, size_t filled)
{
    size_t got = fread(buffer + filled, 1, PIECE, file), used;

    if (!got)
        return sizeof(buffer);
    filled += got;
    used = consume(r, buffer, filled);
    memmove(buffer, buffer + used, filled - used);
    return filled - used;
}

static __u64 packets_of(const struct table *t)
{
    __u64 sum = 0;

    for (__u64 i = 0; i < t->count; i++)
        sum += t->rows[i].counters.packets;
    return sum;
}

int main(int count, char **arguments)
{
    FILE *file = count == 3 ? fopen(arguments[1], "rb") : NULL;
    struct reader reader = {0};
    struct meter *m = &reader.meter;
    __u64 packets = 0;
    size_t filled = 0;

    if (!file || meter_init(m, 1, 0, 0))
        return 2;
    queue_count_beside(&m->queue, (unsigned)atoi(arguments[2]));
    while ((filled = read_piece(&reader, file, filled)) < sizeof(buffer)) {
        if (queue_settle(&m->queue))
            return 2;
        packets = packets_of(&m->table);
    }
    printf("%llu %llu\n", (unsigned long long)m->table.count, (unsigned long long)packets);
    meter_free(m);
    free(reader.interfaces);
    fclose(file);
    return 0;
}
