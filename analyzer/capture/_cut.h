/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: which frames belong to a set of 5-tuples. This file knows keys and frame numbers; it knows no layer and no file
 * format, and what is kept of a frame it only stores.
 *
 * A later fragment that comes before the first one, which has the ports, cannot be told at once: its number is among
 * `late` once its flow is known, and a second reading takes it by number.
 */
#ifndef RKE2_FLOWS_CUT_H
#define RKE2_FLOWS_CUT_H

#include "_table.h"

/* Records of one size or none, one after the other. */
struct bytes {
    __u8 *at;
    size_t length, room;
};

/* Room for n more bytes; NULL when memory is out. */
static void *bytes_add(struct bytes *b, size_t n)
{
    if (b->room - b->length < n) {
        size_t room = (b->room ? b->room * 2 : 4096) + n;
        __u8 *at = realloc(b->at, room);

        if (!at)
            return NULL;
        b->at = at;
        b->room = room;
    }
    b->length += n;
    return b->at + b->length - n;
}

/* A later fragment whose flow is not known yet; those of one datagram are a chain. */
struct waiting {
    __u64 frame;
    __u64 next; /* number of the one before, from 1; 0 for none */
};

/* What a reader of the kept frames must know of each. */
struct kept {
    __u64 time; /* ns, FLOW_NO_TIME where the record has none */
    __u64 frame;
    __u64 length; /* bytes in `frames` */
};

struct cut {
    struct table keys;
    __u64 limit; /* frames of each key, 0 for all */
    __u64 frame; /* the one being read, from 1 */
    __u64 *also; /* frames to take whatever is in them, ascending */
    size_t also_count, also_at;
    __u64 *chains;        /* by fragment entry: its latest waiting one, from 1 */
    struct bytes waiting; /* struct waiting */
    struct bytes late;    /* __u64 */
    struct bytes frames, index;
    bool taken, no_memory;
};

/* Who captured it, and between which hosts the tunnel went, tells no 5-tuple apart. */
static struct flow_key cut_key(const struct flow_key *key)
{
    struct flow_key plain = *key;

    plain.interface = 0;
    plain.direction = 0;
    memset(plain.outer_src, 0, sizeof(plain.outer_src));
    memset(plain.outer_dst, 0, sizeof(plain.outer_dst));
    return plain;
}

static void cut_free(struct cut *cut)
{
    if (!cut)
        return;
    table_free(&cut->keys);
    free(cut->also);
    free(cut->chains);
    free(cut->waiting.at);
    free(cut->late.at);
    free(cut->frames.at);
    free(cut->index.at);
    free(cut);
}

static int cut_add(struct cut *cut, const struct flow_key *key)
{
    struct flow_key plain = cut_key(key);

    return table_row(&cut->keys, &plain, 0, key_hash(&cut->keys, &plain, 0)) ? 0 : -1;
}

/* `entries`: how many datagrams the meter follows. NULL when memory is out. */
static struct cut *cut_new(const struct flow_key *keys, size_t count, const __u64 *also, size_t also_count,
                           size_t entries, __u64 seed)
{
    struct cut *cut = calloc(1, sizeof(*cut));
    int failed = !cut;

    if (!failed) {
        cut->also = malloc(also_count * sizeof(*also) + 1);
        cut->chains = calloc(entries, sizeof(*cut->chains));
        failed = table_init(&cut->keys, seed, 0) || !cut->also || !cut->chains;
    }
    for (size_t i = 0; !failed && i < count; i++)
        failed = cut_add(cut, &keys[i]);
    if (failed) {
        cut_free(cut);
        return NULL;
    }
    if (also_count)
        memcpy(cut->also, also, also_count * sizeof(*also));
    cut->also_count = also_count;
    return cut;
}

static void cut_begin(struct cut *cut, __u64 frame)
{
    while (cut->also_at < cut->also_count && cut->also[cut->also_at] < frame)
        cut->also_at++;
    cut->frame = frame;
    cut->taken = cut->also_at < cut->also_count && cut->also[cut->also_at] == frame;
}

static struct flow_row *cut_find(const struct cut *cut, const struct flow_key *key)
{
    const struct table *t = &cut->keys;
    struct flow_key plain = cut_key(key);
    __u32 hash = key_hash(t, &plain, 0);

    for (__u64 at = hash & t->mask; t->index[at].row; at = (at + 1) & t->mask) {
        struct flow_row *row = &t->rows[t->index[at].row - 1];

        if (t->index[at].hash == hash && same_key(row, &plain, 0))
            return row;
    }
    return NULL;
}

/* The frame being read holds a packet of this key, or an ICMP message that quotes one. */
static void cut_take(struct cut *cut, const struct flow_key *key)
{
    struct flow_row *row = cut_find(cut, key);

    if (!row || (cut->limit && row->counters.packets >= cut->limit))
        return;
    row->counters.packets++;
    cut->taken = true;
}

/* A datagram's entry begins anew. */
static void cut_forget(struct cut *cut, size_t entry)
{
    cut->chains[entry] = 0;
}

static void cut_wait(struct cut *cut, size_t entry)
{
    struct waiting *one = bytes_add(&cut->waiting, sizeof(*one));

    if (!one) {
        cut->no_memory = true;
        return;
    }
    *one = (struct waiting){cut->frame, cut->chains[entry]};
    cut->chains[entry] = cut->waiting.length / sizeof(*one);
}

/* The key of all that waits at an entry is known now. */
static void cut_resolve(struct cut *cut, size_t entry, const struct flow_key *key)
{
    const struct waiting *all = (const struct waiting *)(const void *)cut->waiting.at;
    bool wanted = cut_find(cut, key) != NULL;

    for (__u64 i = cut->chains[entry]; wanted && i; i = all[i - 1].next) {
        __u64 *late = bytes_add(&cut->late, sizeof(*late));

        if (late)
            *late = all[i - 1].frame;
        else
            cut->no_memory = true;
    }
    cut->chains[entry] = 0;
}

/* Room for what is kept of the frame being read; NULL when memory is out. */
static __u8 *cut_keep(struct cut *cut, __u64 time, size_t length)
{
    struct kept *kept = bytes_add(&cut->index, sizeof(*kept));
    __u8 *at = kept ? bytes_add(&cut->frames, length) : NULL;

    if (at)
        *kept = (struct kept){time, cut->frame, length};
    else
        cut->no_memory = true;
    return at;
}

#endif
