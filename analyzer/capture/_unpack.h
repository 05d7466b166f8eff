/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: packed bytes in, what was packed out, by the libraries of the formats. This file knows no capture, and not
 * where bytes come from.
 *
 * Parts that were packed one by one and joined are one file. How bytes are cut into pieces changes nothing, where a
 * part is damaged neither: what comes before that is handed out. zstd and LZ4 forget what they made in a call that
 * fails, so that each call is given one block or what tells of the next one, never both, and nothing before the last
 * one is out.
 */
#ifndef RKE2_FLOWS_UNPACK_H
#define RKE2_FLOWS_UNPACK_H

#include <lz4frame.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <linux/types.h>

struct unpacker {
    const struct packing *packing; /* NULL: nothing is packed */
    union {
        z_stream *gzip;
        ZSTD_DStream *zstd;
        LZ4F_dctx *lz4;
    } state;
    const __u8 *next; /* packed bytes, and how many there are */
    size_t rest;
    size_t wanted; /* of them, until more can be unpacked */
    bool pending;  /* there may be more than there was room for */
    bool whole;    /* a part has just ended */
    bool no_memory;
    bool too_large;    /* nothing is wrong but that it takes more memory than the library spends */
    const char *fault; /* NULL so far */
};

/* `step` unpacks `length` bytes at most, into so much room; how many it made. */
struct packing {
    const char *name;
    int (*begin)(struct unpacker *u); /* -1 when memory is out */
    size_t (*step)(struct unpacker *u, size_t length, __u8 *to, size_t room);
    void (*end)(struct unpacker *u);
};

static void unpacker_took(struct unpacker *u, size_t length)
{
    u->next += length;
    u->rest -= length;
}

/* Of the bytes that a library would have next those of a block, without those `next` that tell of the one behind it. */
static size_t alone(size_t hint, size_t first, size_t next)
{
    if (!hint)
        return first;
    return hint > next ? hint - next : hint;
}

/* ---- gzip (RFC 1952) ---- */

static int gzip_begin(struct unpacker *u)
{
    u->state.gzip = calloc(1, sizeof(*u->state.gzip));
    if (u->state.gzip && inflateInit2(u->state.gzip, 16 + MAX_WBITS) == Z_OK)
        return 0;
    free(u->state.gzip);
    u->state.gzip = NULL;
    return -1;
}

static void gzip_end(struct unpacker *u)
{
    inflateEnd(u->state.gzip);
    free(u->state.gzip);
}

/* gzip lets zeros follow a part, as tapes have them. */
static void gzip_skip_zeros(struct unpacker *u)
{
    while (u->whole && u->rest && !*u->next)
        unpacker_took(u, 1);
}

static size_t gzip_step(struct unpacker *u, size_t length, __u8 *to, size_t room)
{
    z_stream *z = u->state.gzip;
    size_t before = u->rest;
    int result;

    gzip_skip_zeros(u);
    length -= before - u->rest;
    if (!length && !u->pending)
        return 0;
    z->next_in = (z_const Bytef *)u->next;
    z->avail_in = (uInt)length;
    z->next_out = to;
    z->avail_out = (uInt)room;
    result = inflate(z, Z_NO_FLUSH);
    unpacker_took(u, length - z->avail_in);
    u->whole = result == Z_STREAM_END && inflateReset(z) == Z_OK;
    u->no_memory = result == Z_MEM_ERROR;
    if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
        u->fault = z->msg ? z->msg : zError(result);
    return room - z->avail_out;
}

/* ---- zstd (RFC 8878) ---- */

#define ZSTD_FIRST 5 /* bytes that say how long a part's header is */
#define ZSTD_NEXT  3 /* bytes that say how long the next block is */

static int zstd_begin(struct unpacker *u)
{
    u->state.zstd = ZSTD_createDStream();
    u->wanted = ZSTD_FIRST;
    return u->state.zstd ? 0 : -1;
}

static void zstd_end(struct unpacker *u)
{
    ZSTD_freeDStream(u->state.zstd);
}

static size_t zstd_step(struct unpacker *u, size_t length, __u8 *to, size_t room)
{
    ZSTD_inBuffer in = {u->next, length, 0};
    ZSTD_outBuffer out = {to, room, 0};
    size_t result = ZSTD_decompressStream(u->state.zstd, &out, &in);

    unpacker_took(u, in.pos);
    if (ZSTD_isError(result)) {
        u->no_memory = ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation;
        u->too_large = ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge;
        u->fault = ZSTD_getErrorName(result);
        return 0;
    }
    u->whole = !result;
    u->wanted = alone(result, ZSTD_FIRST, ZSTD_NEXT);
    return out.pos;
}

/* ---- LZ4, its frame format ---- */

#define LZ4_FIRST 7
#define LZ4_NEXT  4

static int lz4_begin(struct unpacker *u)
{
    u->wanted = LZ4_FIRST;
    return LZ4F_isError(LZ4F_createDecompressionContext(&u->state.lz4, LZ4F_VERSION)) ? -1 : 0;
}

static void lz4_end(struct unpacker *u)
{
    LZ4F_freeDecompressionContext(u->state.lz4);
}

static size_t lz4_step(struct unpacker *u, size_t length, __u8 *to, size_t room)
{
    size_t taken = length, made = room, result;

    result = LZ4F_decompress(u->state.lz4, to, &made, u->next, &taken, NULL);
    if (LZ4F_isError(result)) {
        u->fault = LZ4F_getErrorName(result);
        u->no_memory = !strcmp(u->fault, "ERROR_allocation_failed");
        return 0;
    }
    unpacker_took(u, taken);
    u->whole = !result;
    u->wanted = alone(result, LZ4_FIRST, LZ4_NEXT);
    return made;
}

/* ---- all of them ---- */

static const struct packing PACKINGS[] = {
    {"gzip", gzip_begin, gzip_step, gzip_end},
    {"zstd", zstd_begin, zstd_step, zstd_end},
    {"lz4", lz4_begin, lz4_step, lz4_end},
};

static const struct packing *packing_named(const char *name)
{
    for (size_t i = 0; i < sizeof(PACKINGS) / sizeof(*PACKINGS); i++)
        if (!strcmp(PACKINGS[i].name, name))
            return &PACKINGS[i];
    return NULL;
}

/* -1 when memory is out */
static int unpacker_init(struct unpacker *u, const struct packing *packing)
{
    *u = (struct unpacker){.wanted = UINT32_MAX};
    if (packing->begin(u))
        return -1;
    u->packing = packing;
    return 0;
}

static void unpacker_free(struct unpacker *u)
{
    if (u->packing)
        u->packing->end(u);
    *u = (struct unpacker){0};
}

static bool unpacker_has_failed(const struct unpacker *u)
{
    return u->fault || u->no_memory;
}

/* Unpacks what is there until there is no more, or no more room; how many bytes it made. */
static size_t unpack(struct unpacker *u, __u8 *to, size_t room)
{
    size_t made = 0;

    while (made < room && (u->rest || u->pending) && !unpacker_has_failed(u)) {
        size_t length = u->rest < u->wanted ? u->rest : u->wanted;

        made += u->packing->step(u, u->pending ? 0 : length, to + made, room - made);
        u->pending = made == room && !u->whole;
    }
    return made;
}

#endif
