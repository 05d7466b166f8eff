/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: one capture, read by several readers, gives what one of them alone would give. This file knows who does what;
 * threads are Python's business, and what a record or a packet means stands elsewhere.
 *
 * The first reader walks the file: it reads what is no frame, counts frames, and stops where one reader would stop.
 * What it has walked over it hands to a worker, with all that the file has said before that place, and the worker
 * counts the frames into a table of its own. Two things depend on what came before in other workers' pieces:
 * - The order of rows. Each row knows in which frame, and where in it, its first packet came; the tables' rows, fed to
 * an empty table in that order as if they were packets, make the rows of one reader, and those that find it full are
 *   counted as their packets would have been.
 * - Fragments. A worker sets them aside, and the first reader follows them in the order of the pieces.
 * Hence no table may be full before the end: the caller joins them before all of them have as many rows as one may
 * have.
 */
#ifndef RKE2_FLOWS_SHARE_H
#define RKE2_FLOWS_SHARE_H

#include "_formats.h"

#define WORKERS_MAX 64

/* What the file has said so far, and how many frames came; interfaces are only ever added. -1 when memory is out. */
static int follow(struct reader *worker, const struct reader *first)
{
    worker->format = first->format;
    worker->swapped = first->swapped;
    worker->nanoseconds = first->nanoseconds;
    worker->record_header = first->record_header;
    worker->link = first->link;
    worker->record_max = first->record_max;
    worker->section_base = first->section_base;
    worker->meter.ledger.frames = first->meter.ledger.frames;
    memcpy(worker->fault, first->fault, sizeof(worker->fault));
    while (worker->interface_count < first->interface_count) {
        struct interface *interface = interface_add(worker);

        if (!interface)
            return -1;
        *interface = first->interfaces[worker->interface_count - 1];
    }
    return 0;
}

/* Makes a reader one of several; -1 when memory is out. */
static int take_part(struct reader *r)
{
    r->meter.table.limit = ROWS_MAX;
    return table_keep_order(&r->meter.table);
}

/* Bytes of whole records, which the worker will find in `p` too, with a frame in the block that is at fault. */
static size_t hand(struct reader *first, struct reader *worker, const __u8 *p, size_t length)
{
    size_t done;

    if (take_part(first) || take_part(worker) || follow(worker, first)) {
        first->meter.no_memory = true;
        return 0;
    }
    worker->meter.sets_aside = true;
    first->walks = true;
    done = consume(first, p, length);
    first->walks = false;
    return done;
}

/* Follows the fragments that a worker has set aside. */
static void replay(struct reader *first, struct reader *worker)
{
    struct meter *m = &first->meter;
    const struct aside *all = (const struct aside *)(const void *)worker->meter.aside.at;
    size_t count = worker->meter.aside.length / sizeof(*all);

    for (size_t i = 0; i < count; i++) {
        m->order = all[i].order;
        if (count_fragment(m, &all[i].packet, &all[i].more) && !all[i].packet.key.tunnel)
            m->ledger.results[PARSED]++;
    }
    if (queue_flush(&m->queue, &m->table))
        m->no_memory = true;
    worker->meter.aside.length = 0;
}

static void ledger_add(struct ledger *all, const struct ledger *more)
{
    for (int i = 0; i < PARSE_RESULTS; i++) {
        all->results[i] += more->results[i];
        all->inner[i] += more->inner[i];
    }
    note_time(all, more->start);
    if (more->end)
        note_time(all, more->end);
}

/* The table whose next row came first, or NULL. */
static struct table *earliest(struct table **tables, const __u64 *next, size_t count, size_t *which)
{
    struct table *found = NULL;

    for (size_t i = 0; i < count; i++)
        if (next[i] < tables[i]->count && (!found || tables[i]->order[next[i]] < found->order[next[*which]])) {
            found = tables[i];
            *which = i;
        }
    return found;
}

/* The rows of all tables, in order of appearance, into one; -1 when memory is out. */
static int tables_join(struct table *all, struct table **tables, __u64 *next, size_t count)
{
    struct queue queue = {.count = 0};
    struct table *from;
    size_t which = 0;

    while ((from = earliest(tables, next, count, &which))) {
        const struct flow_row *row = &from->rows[next[which]++];

        queue.at[queue.count++] = (struct queued){.key = row->key, .interval = row->interval, .more = row->counters};
        if (queue.count == QUEUE_LENGTH && queue_flush(&queue, all))
            return -1;
    }
    return queue_flush(&queue, all);
}

/* Makes the first reader what it would be had it read all; the workers have nothing more. -1 when memory is out. */
static int join(struct reader *first, struct reader **workers, size_t count)
{
    struct table *tables[WORKERS_MAX + 1], *own = &first->meter.table, all = {0};
    __u64 next[WORKERS_MAX + 1] = {0}, rows = own->count;

    for (size_t i = 0; i < count; i++) {
        tables[i] = &workers[i]->meter.table;
        rows += tables[i]->count;
    }
    tables[count] = own;
    if (table_init(&all, own->seed, first->meter.max_rows) || table_reserve(&all, rows) ||
        tables_join(&all, tables, next, count + 1)) {
        table_free(&all);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        ledger_add(&first->meter.ledger, &workers[i]->meter.ledger);
        table_free(tables[i]);
    }
    table_free(own);
    *own = all;
    return 0;
}

#endif
