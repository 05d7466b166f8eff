/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: a packed file in unpacked pieces: made when they are asked for, or before that by a thread of their own. This
 * file knows when a piece is made and who has it, not how it was packed nor what is in it.
 */
#ifndef RKE2_FLOWS_AHEAD_H
#define RKE2_FLOWS_AHEAD_H

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "_thread.h"
#include "_unpack.h"

#define PIECES 8
#define SECOND 1000000000ULL /* ns */

/* A descriptor's packed bytes. `read`: of them so far. `error`: of the read that failed, as errno says. */
struct packed {
    struct unpacker unpacker;
    int descriptor, error;
    bool ended;
    __u64 read;
    __u8 *bytes;
    size_t size;
};

static bool packed_has_ended(const struct packed *p)
{
    return p->ended || p->error || unpacker_has_failed(&p->unpacker);
}

/* Reads the next packed bytes, where all of those before are unpacked; false where there are none. */
static bool packed_read(struct packed *p)
{
    ssize_t got;

    if (p->unpacker.rest || p->unpacker.pending)
        return true;
    got = read(p->descriptor, p->bytes, p->size);
    p->error = got < 0 ? errno : 0;
    p->ended = !got;
    if (got <= 0)
        return false;
    p->read += (__u64)got;
    p->unpacker.next = p->bytes;
    p->unpacker.rest = (size_t)got;
    return true;
}

/* At least so many unpacked bytes, fewer at the end; how many they are. */
static size_t packed_fill(struct packed *p, __u8 *to, size_t room, size_t least)
{
    size_t made = 0;

    while (made < least && !packed_has_ended(p) && packed_read(p))
        made += unpack(&p->unpacker, to + made, room - made);
    return made;
}

/* ---- a thread that unpacks ---- */

/* `read`: packed bytes so far, when it was made */
struct piece {
    __u8 *bytes;
    size_t length;
    __u64 read;
};

/* As in _queue.h, who has to wait for the other waits for half of all pieces. */
struct ahead {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct packed *packed; /* the thread's own until it has ended */
    size_t size;
    __u64 put, taken; /* pieces */
    bool ending, ended;
    struct piece pieces[PIECES];
};

/* The next piece to be filled; NULL when there will be none. */
static struct piece *ahead_empty(struct ahead *a)
{
    struct piece *piece;

    pthread_mutex_lock(&a->lock);
    if (a->put - a->taken == PIECES)
        while (a->put - a->taken > PIECES / 2 && !a->ending)
            pthread_cond_wait(&a->changed, &a->lock);
    piece = a->ending ? NULL : &a->pieces[a->put % PIECES];
    pthread_mutex_unlock(&a->lock);
    return piece;
}

static void *unpack_pieces(void *argument)
{
    struct ahead *a = argument;
    struct piece *piece;
    bool ended = false;

    prctl(PR_SET_NAME, "unpack");
    while (!ended && (piece = ahead_empty(a))) {
        piece->length = packed_fill(a->packed, piece->bytes, a->size, a->size / 2 + 1);
        piece->read = a->packed->read;
        ended = packed_has_ended(a->packed);
        pthread_mutex_lock(&a->lock);
        a->put++;
        a->ended = ended;
        if (ended || a->put - a->taken >= PIECES / 2)
            pthread_cond_signal(&a->changed);
        pthread_mutex_unlock(&a->lock);
    }
    return NULL;
}

static struct timespec soon(__u64 ns)
{
    struct timespec at = {0};

    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += (time_t)((ns + (__u64)at.tv_nsec) / SECOND);
    at.tv_nsec = (long)((ns + (__u64)at.tv_nsec) % SECOND);
    return at;
}

/* The next piece, to be given back; NULL where there will be none, or for so long none was made. */
static struct piece *ahead_take(struct ahead *a, __u64 ns)
{
    struct timespec until = soon(ns);
    struct piece *piece;
    int late = 0;

    pthread_mutex_lock(&a->lock);
    if (a->put == a->taken)
        while (a->put - a->taken < PIECES / 2 && !a->ended && !late)
            late = pthread_cond_timedwait(&a->changed, &a->lock, &until);
    piece = a->put == a->taken ? NULL : &a->pieces[a->taken % PIECES];
    pthread_mutex_unlock(&a->lock);
    return piece;
}

static void ahead_give(struct ahead *a)
{
    pthread_mutex_lock(&a->lock);
    a->taken++;
    if (a->put - a->taken <= PIECES / 2)
        pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

/* Whether all was taken; then what is packed is the caller's again. */
static bool ahead_is_done(struct ahead *a)
{
    bool done;

    pthread_mutex_lock(&a->lock);
    done = a->ended && a->put == a->taken;
    pthread_mutex_unlock(&a->lock);
    return done;
}

static void ahead_free(struct ahead *a)
{
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a->pieces[0].bytes);
    free(a);
}

static struct ahead *ahead_alloc(struct packed *packed, size_t size)
{
    struct ahead *a = calloc(1, sizeof(*a));
    __u8 *bytes = a ? malloc(size * PIECES) : NULL;
    pthread_condattr_t monotonic;

    if (!bytes) {
        free(a);
        return NULL;
    }
    a->packed = packed;
    a->size = size;
    for (size_t i = 0; i < PIECES; i++)
        a->pieces[i].bytes = bytes + i * size;
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&a->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return a;
}

/* NULL where there is no memory or no thread to be had: then pieces are made when they are asked for. */
static struct ahead *ahead_new(struct packed *packed, size_t size)
{
    struct ahead *a = ahead_alloc(packed, size);

    if (!a)
        return NULL;
    if (!thread_start(&a->thread, unpack_pieces, a))
        return a;
    ahead_free(a);
    return NULL;
}

/* What was not taken is lost. */
static void ahead_end(struct ahead *a)
{
    pthread_mutex_lock(&a->lock);
    a->ending = true;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    ahead_free(a);
}

#endif
