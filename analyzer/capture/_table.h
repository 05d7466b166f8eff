/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: one-way rows by their key, in order of appearance. This file knows how to find a row fast, not what was in the
 * packet that is counted there.
 */
#ifndef RKE2_FLOWS_TABLE_H
#define RKE2_FLOWS_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "_hash.h"
#include "flow.h"

/* ---- the table: rows in order of appearance, and an open-addressed index of them ---- */

struct index_slot {
    __u32 hash;
    __u32 row; /* row number + 1; 0 is empty */
};

#define ROWS_MAX 0xfffffffeULL /* what index_slot.row can number */

struct table {
    struct flow_row *rows;
    struct index_slot *index;
    __u64 count, room, mask, seed;
    __u64 limit;      /* of rows */
    __u64 no_room[2]; /* packets that found the table full: of plain rows, and of rows in tunnels */
};

/* `limit`: of rows, 0 for as many as can be numbered */
static int table_init(struct table *t, __u64 seed, __u64 limit)
{
    t->room = 1024;
    t->mask = 4095;
    t->seed = seed;
    t->limit = limit && limit < ROWS_MAX ? limit : ROWS_MAX;
    t->rows = malloc(t->room * sizeof(*t->rows));
    t->index = calloc(t->mask + 1, sizeof(*t->index));
    return t->rows && t->index ? 0 : -1;
}

static void table_free(struct table *t)
{
    free(t->rows);
    free(t->index);
    t->rows = NULL;
    t->index = NULL;
    t->count = t->room = 0;
}

/* Addresses of a plain flow's tunnel are zero and tell nothing. */
static inline __u32 key_hash(const struct table *t, const struct flow_key *key, __u64 interval)
{
    const __u8 *at = (const __u8 *)key;
    __u64 a = mix(load64(at) ^ t->seed, load64(at + 8) ^ 0x2d358dccaa6c78a5ULL);
    __u64 b = mix(load64(at + 16) ^ 0x8bb84b93962eacc9ULL, load64(at + 24) ^ t->seed);
    __u64 c = mix(load64(at + 64) ^ 0x4b33a62ed433d4a3ULL, load64(at + 72) ^ interval);
    __u64 hash = mix(a ^ c, b ^ 0x9e3779b97f4a7c15ULL);

    if (key->tunnel)
        hash = hash_words(at + 32, 4, hash);
    return (__u32)(hash >> 32);
}

/* Ten words, compared without a branch: nearly always all are alike, and a call of memcmp costs more. */
static inline bool same_key(const struct flow_row *row, const struct flow_key *key, __u64 interval)
{
    __u64 differ = row->interval ^ interval;

    for (size_t i = 0; i < sizeof(*key); i += 8)
        differ |= load64((const __u8 *)&row->key + i) ^ load64((const __u8 *)key + i);
    return !differ;
}

static int index_grow(struct table *t)
{
    __u64 mask = t->mask * 2 + 1;
    struct index_slot *index = calloc(mask + 1, sizeof(*index));

    if (!index)
        return -1;
    for (__u64 i = 0; i <= t->mask; i++) {
        struct index_slot slot = t->index[i];
        __u64 at = slot.hash & mask;

        if (!slot.row)
            continue;
        while (index[at].row)
            at = (at + 1) & mask;
        index[at] = slot;
    }
    free(t->index);
    t->index = index;
    t->mask = mask;
    return 0;
}

static int rows_grow(struct table *t)
{
    __u64 room = t->room + t->room / 2;
    struct flow_row *rows = realloc(t->rows, room * sizeof(*rows));

    if (!rows)
        return -1;
    t->rows = rows;
    t->room = room;
    return 0;
}

static inline bool table_is_full(const struct table *t)
{
    return t->count >= t->limit;
}

static struct flow_row *row_add(struct table *t, const struct flow_key *key, __u64 interval)
{
    struct flow_row *row;

    if (table_is_full(t) || (t->count == t->room && rows_grow(t)))
        return NULL;
    row = &t->rows[t->count++];
    row->key = *key;
    row->interval = interval;
    row->counters = (struct flow_counters){.start = FLOW_NO_TIME};
    return row;
}

/* The row of a key, made where there is none; NULL when the table is full or memory is out. */
static struct flow_row *table_row(struct table *t, const struct flow_key *key, __u64 interval, __u32 hash)
{
    struct flow_row *row;
    __u64 at;

    if (t->count * 2 > t->mask && !table_is_full(t) && index_grow(t))
        return NULL;
    for (at = hash & t->mask; t->index[at].row; at = (at + 1) & t->mask) {
        row = &t->rows[t->index[at].row - 1];
        if (t->index[at].hash == hash && same_key(row, key, interval))
            return row;
    }
    row = row_add(t, key, interval);
    if (row)
        t->index[at] = (struct index_slot){hash, (__u32)t->count};
    return row;
}

#endif
