/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: numbers of things by what tells them apart. What the things are, where they stand and when two are alike is for
 * who asks.
 */
#ifndef RKE2_FLOWS_INDEX_H
#define RKE2_FLOWS_INDEX_H

#include <stdbool.h>
#include <stdlib.h>

#include "capture/_hash.h"

#define NONE 0xffffffffu /* no number */

struct slot {
    __u32 hash;
    __u32 number; /* + 1; 0 is empty */
};

struct index {
    struct slot *slots;
    __u64 mask, used;
};

typedef bool is_alike(const void *all, __u32 number, const void *wanted);

/* -1 when memory is out. `most`: things that it will hold without growing. */
static inline int index_init(struct index *x, __u64 most)
{
    x->mask = 1023;
    x->used = 0;
    while (x->mask < most + most / 2)
        x->mask = x->mask * 2 + 1;
    x->slots = calloc(x->mask + 1, sizeof(*x->slots));
    return x->slots ? 0 : -1;
}

static inline void index_free(struct index *x)
{
    free(x->slots);
    *x = (struct index){0};
}

/* How far ahead memory is asked for: what is kept of many things does not fit the cache. */
#define AHEAD 16u

/* `size` bytes; those of a cache line at its end may be missing. */
static __always_inline void ask_for(const void *memory, size_t size)
{
    for (size_t at = 0; at < size; at += 64)
        __builtin_prefetch((const char *)memory + at);
}

typedef const void *thing_of(const void *all, __u32 number);

/*
 * Before the thing at `at` of `count` is looked for: asks for a later one's slot, and for what a nearer one's slot
 * numbers.
 */
static __always_inline void index_ahead(const struct index *x, const __u32 *hashes, __u32 at, __u32 count,
                                        thing_of *thing, const void *all, size_t size)
{
    if (at + AHEAD < count)
        __builtin_prefetch(&x->slots[hashes[at + AHEAD] & x->mask], 1);
    if (at + AHEAD / 2 < count) {
        __u32 hash = hashes[at + AHEAD / 2];
        const struct slot *slot = &x->slots[hash & x->mask];

        if (slot->number && slot->hash == hash)
            ask_for(thing(all, slot->number - 1), size);
    }
}

/* The slot of what is wanted: its own, or an empty one. */
static __always_inline struct slot *index_find(const struct index *x, __u32 hash, is_alike *alike, const void *all,
                                               const void *wanted)
{
    __u64 at = hash & x->mask;

    while (x->slots[at].number && (x->slots[at].hash != hash || !alike(all, x->slots[at].number - 1, wanted)))
        at = (at + 1) & x->mask;
    return &x->slots[at];
}

static inline void index_put(struct index *x, struct slot *empty, __u32 hash, __u32 number)
{
    *empty = (struct slot){hash, number + 1};
    x->used++;
}

/* Makes room for one more; -1 when memory is out. */
static inline int index_grow(struct index *x)
{
    struct index more;

    if (x->used * 3 < x->mask * 2)
        return 0;
    if (index_init(&more, x->mask))
        return -1;
    for (__u64 i = 0; i <= x->mask; i++) {
        __u64 at = x->slots[i].hash & more.mask;

        if (!x->slots[i].number)
            continue;
        while (more.slots[at].number)
            at = (at + 1) & more.mask;
        more.slots[at] = x->slots[i];
    }
    more.used = x->used;
    free(x->slots);
    *x = more;
    return 0;
}

#endif
