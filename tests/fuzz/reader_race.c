/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: the reader without Python, its rows counted beside and asked for after each piece, and what is packed unpacked
 * ahead. ThreadSanitizer watches what the threads share.
 *
 * Arguments: a capture, how many packets are handed over at a time, and how it is packed, if it is. Prints the rows and
 * packets that were counted.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "_stream.h"

#define PIECE 20000

static __u64 packets_of(const struct table *t)
{
    __u64 sum = 0;

    for (__u64 i = 0; i < t->count; i++)
        sum += t->rows[i].counters.packets;
    return sum;
}

int main(int count, char **arguments)
{
    int file = count >= 3 ? open(arguments[1], O_RDONLY) : -1;
    struct reader reader = {0};
    struct stream stream = {0};
    struct meter *m = &reader.meter;
    __u64 packets = 0, bytes;

    if (file < 0 || meter_init(m, 1, 0, 0))
        return 2;
    if (count == 4 && stream_unpack(&stream, packing_named(arguments[3]), PIECE, true))
        return 2;
    if (stream_make_room(&stream, PIECE))
        return 2;
    queue_count_beside(&m->queue, (unsigned)atoi(arguments[2]));
    while (stream_read(&stream, &reader, file, 0, &bytes) > 0) {
        if (queue_settle(&m->queue))
            return 2;
        packets = packets_of(&m->table);
    }
    printf("%llu %llu\n", (unsigned long long)m->table.count, (unsigned long long)packets);
    stream_free(&stream);
    meter_free(m);
    free(reader.interfaces);
    close(file);
    return 0;
}
