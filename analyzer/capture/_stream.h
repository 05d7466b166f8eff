/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: pieces of a file in, of any length, packed or not, whole records to consume(). This file knows where pieces
 * come from and what of them waits for the next one; it knows no format.
 */
#ifndef RKE2_FLOWS_STREAM_H
#define RKE2_FLOWS_STREAM_H

#include "_ahead.h"
#include "_formats.h"

#define STEP      4096      /* bytes by which the beginning of a record is completed at first: most are shorter */
#define PIECE_MAX (1 << 30) /* bytes */

/*
 * `kept`: the beginning of a record whose end has not come yet. `piece`: where a descriptor's bytes are read to, and
 * packed ones unpacked. `told`: packed bytes of which stream_read() has told.
 */
struct stream {
    __u8 *kept, *piece;
    size_t length, room, size;
    struct packed packed;
    bool is_ahead; /* a thread is to unpack */
    struct ahead *ahead;
    __u64 told;
};

/* Ends the thread that unpacks. */
static void stream_end(struct stream *s)
{
    if (!s->ahead)
        return;
    ahead_end(s->ahead);
    s->ahead = NULL;
    close(s->packed.descriptor);
}

/* Nothing packed is read any more. */
static void stream_stop(struct stream *s)
{
    stream_end(s);
    s->packed.ended = true;
}

static void stream_free(struct stream *s)
{
    stream_end(s);
    unpacker_free(&s->packed.unpacker);
    free(s->packed.bytes);
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

/* `size` bytes; -1 when memory is out. */
static int stream_room(__u8 **at, size_t *now, size_t size)
{
    if (*now == size)
        return 0;
    free(*at);
    *at = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    *now = *at ? size : 0;
    return *at ? 0 : -1;
}

/* ---- packed ---- */

/* From now on all bytes are packed, and unpacked `size` of them at a time; -1 when memory is out. */
static int stream_unpack(struct stream *s, const struct packing *packing, size_t size, bool is_ahead)
{
    s->is_ahead = is_ahead;
    return stream_room(&s->piece, &s->size, size) || unpacker_init(&s->packed.unpacker, packing);
}

static bool stream_is_packed(const struct stream *s)
{
    return s->packed.unpacker.packing;
}

/* Whether what was packed does not end within a part. Not known while a thread unpacks. */
static bool stream_is_whole(const struct stream *s)
{
    return !stream_is_packed(s) || s->ahead || s->packed.unpacker.whole;
}

static void note_damage(const struct stream *s, struct reader *r)
{
    const struct unpacker *u = &s->packed.unpacker;

    if (u->no_memory)
        r->meter.no_memory = true;
    else if (u->too_large && !has_ended(r))
        fault(r, "to unpack it takes more than 128 MiB: use zstd -d --long=31");
    else if (u->fault && !has_ended(r))
        fault(r, "the compressed stream is damaged: %s", u->fault);
}

/* Packed bytes, all of them. */
static void stream_put_packed(struct stream *s, struct reader *r, const __u8 *p, size_t length)
{
    struct unpacker *u = &s->packed.unpacker;
    size_t made;

    u->next = p;
    u->rest = length;
    while (!has_ended(r) && (made = unpack(u, s->piece, s->size)))
        stream_put(s, r, s->piece, made);
    u->rest = 0;
    note_damage(s, r);
}

/* Where a descriptor's bytes are read to, `size` of them at a time; -1 when memory is out. */
static int stream_make_room(struct stream *s, size_t size)
{
    if (s->ahead)
        return 0; /* the thread has its room */
    return stream_is_packed(s) ? stream_room(&s->packed.bytes, &s->packed.size, size)
                               : stream_room(&s->piece, &s->size, size);
}

/* What packed bytes were read since this was asked for; their pieces are consumed. */
static __u64 stream_tell(struct stream *s, __u64 read)
{
    __u64 more = read - s->told;

    s->told = read;
    return more;
}

/* A thread of its own reads what is to be unpacked by a descriptor of its own: the caller may close theirs. */
static void stream_begin(struct stream *s, int descriptor)
{
    s->packed.descriptor = descriptor;
    if (!s->is_ahead)
        return;
    s->is_ahead = false;
    s->packed.descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    s->ahead = s->packed.descriptor < 0 ? NULL : ahead_new(&s->packed, s->size);
    if (s->ahead)
        return;
    if (s->packed.descriptor >= 0)
        close(s->packed.descriptor);
    s->packed.descriptor = descriptor;
}

/* ---- from a descriptor ---- */

/* Those that read one piece and consume it: > 0 where that goes on, 0 at the end, -1 where reading failed. */
typedef int read_piece(struct stream *s, struct reader *r, int descriptor, __u64 *count);

static int read_plain(struct stream *s, struct reader *r, int descriptor, __u64 *count)
{
    ssize_t got = read(descriptor, s->piece, s->size);

    if (got <= 0)
        return (int)got;
    stream_put(s, r, s->piece, (size_t)got);
    *count += (__u64)got;
    return 1;
}

static int packed_end(struct stream *s, struct reader *r)
{
    int error = s->packed.error;

    note_damage(s, r);
    s->packed.error = 0;
    errno = error;
    return error ? -1 : 0;
}

static int read_packed(struct stream *s, struct reader *r, int descriptor, __u64 *count)
{
    size_t made;

    s->packed.descriptor = descriptor;
    made = packed_fill(&s->packed, s->piece, s->size, 1);
    if (made)
        stream_put(s, r, s->piece, made);
    *count += stream_tell(s, s->packed.read);
    return made ? 1 : packed_end(s, r);
}

/* How long nothing may come before the caller is heard. */
#define SILENCE (SECOND / 20)

static int read_ahead(struct stream *s, struct reader *r, int descriptor, __u64 *count)
{
    struct piece *piece = ahead_take(s->ahead, SILENCE);

    (void)descriptor;
    if (piece) {
        stream_put(s, r, piece->bytes, piece->length);
        *count += stream_tell(s, piece->read);
        ahead_give(s->ahead);
    }
    if (has_ended(r) || ahead_is_done(s->ahead))
        stream_end(s);
    return 1;
}

/*
 * Reads a descriptor for about `ns`, or to its end or a fault. `count`: bytes that were read. 0 at the end, where none
 * were; -1 where the first read failed, as errno says. One that fails later says so again at the next call.
 */
static int stream_read(struct stream *s, struct reader *r, int descriptor, __u64 ns, __u64 *count)
{
    __u64 begun = stream_clock();
    read_piece *next;
    int went = 1;

    *count = 0;
    if (stream_is_packed(s) && s->is_ahead)
        stream_begin(s, descriptor);
    while (went > 0) {
        next = s->ahead ? read_ahead : stream_is_packed(s) ? read_packed : read_plain;
        went = next(s, r, descriptor, count);
        if (has_ended(r) || stream_clock() - begun >= ns)
            break;
    }
    return *count ? 1 : went;
}

#endif
