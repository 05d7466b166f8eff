/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: packets on their way into a table, in their order: counted by who puts them there, or by a thread beside it.
 * This file knows when a packet is counted, not what was in it.
 *
 * A table of many flows does not fit the cache, and a packet that waits for its row's memory makes the next one wait
 * too: here memory is asked for first, and counted later. It is asked for the rows of a few packets at a time: for
 * more, the processor would have to wait before it could ask.
 */
#ifndef RKE2_FLOWS_QUEUE_H
#define RKE2_FLOWS_QUEUE_H

#include "_table.h"
#include "_thread.h"

#define SLOTS_AHEAD  32
#define ROWS_AHEAD   16
#define QUEUE_LENGTH 64
#define BATCH_LENGTH 1024
#define BATCHES      8

struct queued {
    struct flow_key key;
    __u64 interval;
    struct flow_counters more;
    __u32 hash;
};

static inline void prefetch_slot(struct queued *one, const struct table *t)
{
    one->hash = key_hash(t, &one->key, one->interval);
    __builtin_prefetch(&t->index[one->hash & t->mask]);
}

/* The row is nearly always the first one with the same hash. */
static inline void prefetch_row(const struct queued *one, const struct table *t)
{
    __u64 at = one->hash & t->mask;
    const char *row;

    while (t->index[at].row && t->index[at].hash != one->hash)
        at = (at + 1) & t->mask;
    if (!t->index[at].row)
        return;
    row = (const char *)&t->rows[t->index[at].row - 1];
    __builtin_prefetch(row, 0, 2);
    __builtin_prefetch(row + 64, 0, 2);
    __builtin_prefetch(row + 128, 0, 2);
}

/* -1 when memory is out */
static inline int count_queued(const struct queued *one, struct table *t)
{
    struct flow_row *row = table_row(t, &one->key, one->interval, one->hash);

    if (row)
        count(&row->counters, &one->more);
    else if (table_is_full(t))
        t->no_room[one->key.tunnel != TUNNEL_NONE] += one->more.packets;
    else
        return -1;
    return 0;
}

/* Adds packets to their rows, in their order; -1 when memory is out. */
static int count_all(struct queued *at, unsigned length, struct table *t)
{
    for (unsigned i = 0; i < length + SLOTS_AHEAD; i++) {
        if (i < length)
            prefetch_slot(&at[i], t);
        if (i >= SLOTS_AHEAD - ROWS_AHEAD && i - (SLOTS_AHEAD - ROWS_AHEAD) < length)
            prefetch_row(&at[i - (SLOTS_AHEAD - ROWS_AHEAD)], t);
        if (i >= SLOTS_AHEAD && count_queued(&at[i - SLOTS_AHEAD], t))
            return -1;
    }
    return 0;
}

/* ---- a thread that counts ---- */

/* All of them fit where cores share memory. */
struct batch {
    struct queued at[BATCH_LENGTH];
    unsigned length;
};

/*
 * One thread puts batches, the other counts them. Who has to wait for the other waits for half of all batches: to be
 * woken for each takes a tenth of the time, and more where other threads want the cores too.
 */
struct beside {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct table *table;
    __u64 put, counted; /* batches */
    __u64 left;         /* batches not counted at which who puts them goes on */
    unsigned length;    /* packets of a batch */
    bool hurry;         /* what is put is waited for, or the last */
    bool ending, no_memory;
    struct batch batches[BATCHES];
};

/* The next batch to be counted; NULL when there will be none. */
static struct batch *batch_take(struct beside *b)
{
    struct batch *batch;

    pthread_mutex_lock(&b->lock);
    if (b->counted == b->put)
        while (b->put - b->counted < (b->hurry ? 1 : BATCHES / 2) && !b->ending)
            pthread_cond_wait(&b->changed, &b->lock);
    batch = b->counted == b->put ? NULL : &b->batches[b->counted % BATCHES];
    pthread_mutex_unlock(&b->lock);
    return batch;
}

static void *count_batches(void *argument)
{
    struct beside *b = argument;
    struct batch *batch;

    prctl(PR_SET_NAME, "count");
    while ((batch = batch_take(b))) {
        bool failed = count_all(batch->at, batch->length, b->table);

        pthread_mutex_lock(&b->lock);
        b->counted++;
        b->no_memory |= failed;
        if (b->put - b->counted <= b->left)
            pthread_cond_signal(&b->changed);
        pthread_mutex_unlock(&b->lock);
    }
    return NULL;
}

/* Waits, with the lock, until so many batches at most are not counted. */
static void batch_wait(struct beside *b, __u64 left)
{
    b->left = left;
    while (b->put - b->counted > left)
        pthread_cond_wait(&b->changed, &b->lock);
}

/* Hands a batch over and waits where there is no room for one more; -1 when memory is out. */
static int batch_put(struct beside *b)
{
    bool failed;

    pthread_mutex_lock(&b->lock);
    b->put++;
    if (b->put - b->counted >= BATCHES / 2)
        pthread_cond_signal(&b->changed);
    if (b->put - b->counted == BATCHES)
        batch_wait(b, BATCHES / 2);
    failed = b->no_memory;
    pthread_mutex_unlock(&b->lock);
    return failed ? -1 : 0;
}

/* Waits until all is counted; -1 when memory is out. */
static int batch_settle(struct beside *b)
{
    bool failed;

    pthread_mutex_lock(&b->lock);
    b->hurry = true;
    pthread_cond_signal(&b->changed);
    batch_wait(b, 0);
    b->hurry = false;
    failed = b->no_memory;
    pthread_mutex_unlock(&b->lock);
    return failed ? -1 : 0;
}

/* NULL where there is no memory or no thread to be had: counting goes on without. */
static struct beside *beside_new(struct table *table, unsigned length)
{
    struct beside *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    b->table = table;
    b->length = length;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    if (!thread_start(&b->thread, count_batches, b))
        return b;
    free(b);
    return NULL;
}

/* What was put is counted first. */
static void beside_end(struct beside *b)
{
    pthread_mutex_lock(&b->lock);
    b->ending = true;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

/* ---- the queue ---- */

struct queue {
    struct table *table;
    struct beside *beside; /* NULL: who puts a packet counts it */
    struct queued *at;     /* where the next packets are put */
    unsigned count, room;
    struct queued own[QUEUE_LENGTH];
};

static void queue_init(struct queue *q, struct table *table)
{
    q->table = table;
    q->at = q->own;
    q->room = QUEUE_LENGTH;
}

static void queue_next_batch(struct queue *q)
{
    q->at = q->beside->batches[q->beside->put % BATCHES].at;
    q->room = q->beside->length;
}

/* What is in the queue goes to who counts it; -1 when memory is out. */
static int queue_flush(struct queue *q)
{
    unsigned length = q->count;
    int failed;

    q->count = 0;
    if (!q->beside)
        return count_all(q->at, length, q->table);
    q->beside->batches[q->beside->put % BATCHES].length = length;
    failed = batch_put(q->beside);
    queue_next_batch(q);
    return failed;
}

/* Room for one packet more, which the next call may count. */
static inline struct queued *queue_add(struct queue *q, int *failed)
{
    *failed = q->count == q->room ? queue_flush(q) : 0;
    return &q->at[q->count++];
}

/* From now on a thread counts so many packets at a time, at most BATCH_LENGTH, where one is to be had. */
static void queue_count_beside(struct queue *q, unsigned length)
{
    if (q->beside || q->count)
        return;
    q->beside = beside_new(q->table, length);
    if (q->beside)
        queue_next_batch(q);
}

/* At the end of what was read now: a thread may have its batch later; -1 when memory is out. */
static int queue_rest(struct queue *q)
{
    return q->beside ? 0 : queue_flush(q);
}

/* All is in the table; -1 when memory is out. */
static int queue_settle(struct queue *q)
{
    int failed = q->count ? queue_flush(q) : 0;

    return (q->beside && batch_settle(q->beside)) || failed ? -1 : 0;
}

static void queue_free(struct queue *q)
{
    if (q->beside)
        beside_end(q->beside);
    q->beside = NULL;
    queue_init(q, q->table);
}

#endif
