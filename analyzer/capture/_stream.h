/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: pieces of a file in, of any length, whole records to consume(). This file knows where pieces come from and what
 * of them waits for the next one; it knows no format.
 */
#ifndef RKE2_FLOWS_STREAM_H
#define RKE2_FLOWS_STREAM_H

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "_formats.h"

#define STEP 4096 /* bytes by which the beginning of a record is completed at first: most are shorter */

/* `kept`: the beginning of a record whose end has not come yet. `piece`: where a descriptor's bytes are read to. */
struct stream {
    __u8 *kept, *piece;
    size_t length, room, size;
};

static void stream_free(struct stream *s)
{
    free(s->kept);
    free(s->piece);
    *s = (struct stream){0};
}

/* -1 when memory is out */
static int stream_keep(struct stream *s, const __u8 *p, size_t length)
{
    size_t room = s->room;
    __u8 *kept = s->kept;

    while (room < s->length + length)
        room = room ? room * 2 : STEP;
    if (room != s->room)
        kept = realloc(s->kept, room);
    if (!kept)
        return -1;
    s->kept = kept;
    s->room = room;
    memcpy(s->kept + s->length, p, length);
    s->length += length;
    return 0;
}

static bool has_ended(const struct reader *r)
{
    return r->fault[0] || r->meter.no_memory;
}

/* Completes the record that began in an earlier piece; says how many bytes of this one belong to it, or are kept. */
static size_t stream_complete(struct stream *s, struct reader *r, const __u8 *p, size_t length)
{
    size_t done = 0, step = STEP, before = s->length, used = 0;

    while (!used && done < length && !has_ended(r)) {
        if (step > length - done)
            step = length - done;
        if (stream_keep(s, p + done, step)) {
            r->meter.no_memory = true;
            break;
        }
        done += step;
        step *= 2;
        used = consume(r, s->kept, s->length);
    }
    if (!used)
        return done;
    s->length = 0;
    return used - before;
}

/* All of a piece: records that end in it are read, and what is left is kept. */
static void stream_put(struct stream *s, struct reader *r, const __u8 *p, size_t length)
{
    size_t done = s->length ? stream_complete(s, r, p, length) : 0;

    if (done < length && !has_ended(r))
        done += consume(r, p + done, length - done);
    if (done < length && !has_ended(r) && stream_keep(s, p + done, length - done))
        r->meter.no_memory = true;
}

static __u64 stream_clock(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (__u64)now.tv_sec * NS + (__u64)now.tv_nsec;
}

/* Where a descriptor's bytes are read to, `size` of them at a time; -1 when memory is out. */
static int stream_piece(struct stream *s, size_t size)
{
    if (s->size == size)
        return 0;
    free(s->piece);
    s->piece = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    s->size = s->piece ? size : 0;
    return s->piece ? 0 : -1;
}

/*
 * Reads a descriptor for about `ns`, or to its end or a fault. Bytes that were read: 0 at the end; -1 where the first
 * read failed, as errno says. One that fails later says so again at the next call.
 */
static long long stream_read(struct stream *s, struct reader *r, int descriptor, __u64 ns)
{
    __u64 begun = stream_clock();
    long long sum = 0;
    ssize_t got;

    do {
        got = read(descriptor, s->piece, s->size);
        if (got <= 0)
            return sum ? sum : got;
        stream_put(s, r, s->piece, (size_t)got);
        sum += got;
    } while (!has_ended(r) && stream_clock() - begun < ns);
    return sum;
}

#endif
