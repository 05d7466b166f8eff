/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: one frame's bytes in, rows and a ledger out. This file knows layers, fragments and tunnels, as packet.h tells
 * them, and that every frame ends in exactly one count of the ledger; it knows no file format.
 */
#ifndef RKE2_FLOWS_METER_H
#define RKE2_FLOWS_METER_H

#include "_cut.h"
#include "_queue.h"
#include "packet.h"

#define NS              1000000000ULL
#define BY_IFINDEX      0x80000000u /* key.interface is a kernel's ifindex, not a number within the file */
#define FRAGMENT_SETS   512u
#define FRAGMENT_WAYS   8u
#define FRAGMENT_MAX_NS (60 * NS) /* RFC 791's and RFC 8200's longest reassembly time */

/* ---- fragments: which flow a later one belongs to ---- */

/* One datagram of which not all fragments have come. Exported too: merging two parts of a capture goes on with it. */
struct fragment_row {
    struct flow_key key; /* ports 0 until the first fragment came; protocol as the IPv4 header says, 0 in IPv6 */
    __u64 time;          /* of the latest fragment, ns */
    __u64 seen;          /* payload bytes */
    __u64 expected;      /* payload bytes of the whole datagram, 0 until its last fragment came */
    struct flow_counters waiting; /* later fragments that came before the first one */
    __u32 id;
    __u16 src_port, dst_port;
    __u8 protocol; /* the flow's */
    __u8 has_first;
    __u8 used;
    __u8 reserved[5];
};
_Static_assert(sizeof(struct fragment_row) == 168, "fragment_row");

struct ledger {
    __u64 frames;
    __u64 results[PARSE_RESULTS]; /* [PARSED] counts frames that ended in a flow row, or found the table full */
    __u64 fragments;              /* later fragments whose first one never came and which were given up */
    __u64 inner[PARSE_RESULTS];   /* packets in tunnels; [PARSED] not used */
    __u64 inner_fragments;
    __u64 start, end;
};

struct meter {
    struct table table;
    struct queue queue;
    struct fragment_row *fragments;
    struct ledger ledger;
    __u64 interval;  /* ns, 0 for none */
    __u64 passed;    /* records that are no frames, and that Wireshark numbers among them */
    struct cut *cut; /* where frames are to be found again: then no row is counted */
    bool no_memory;
};

static int meter_init(struct meter *m, __u64 seed, __u64 interval, __u64 max_rows)
{
    m->interval = interval;
    m->ledger.start = FLOW_NO_TIME;
    m->fragments = calloc(FRAGMENT_SETS * FRAGMENT_WAYS, sizeof(*m->fragments));
    queue_init(&m->queue, &m->table);
    return table_init(&m->table, seed, max_rows) || !m->fragments ? -1 : 0;
}

static void meter_free(struct meter *m)
{
    queue_free(&m->queue);
    table_free(&m->table);
    free(m->fragments);
    m->fragments = NULL;
    cut_free(m->cut);
    m->cut = NULL;
}

/* ---- one frame ---- */

struct frame {
    const __u8 *bytes;
    __u64 captured, wire, time; /* time FLOW_NO_TIME where the record has none */
    __u32 link, interface;
    __u8 direction;
};

static __u64 interval_of(const struct meter *m, __u64 time)
{
    return m->interval && time != FLOW_NO_TIME ? time - time % m->interval : 0;
}

static void count_packet(struct meter *m, const struct flow_key *key, const struct flow_counters *more)
{
    struct queued *one;
    int failed;

    if (m->cut) {
        cut_take(m->cut, key);
        return;
    }
    one = queue_add(&m->queue, &failed);
    one->key = *key;
    one->more = *more;
    one->interval = interval_of(m, more->start);
    if (failed)
        m->no_memory = true;
}

/* Of the frame that is being counted, from 1, as Wireshark counts. */
static inline __u64 frame_number(const struct meter *m)
{
    return m->ledger.frames + m->passed;
}

static struct flow_counters counters_of(const struct meter *m, const struct frame *f, const struct packet *p)
{
    return (struct flow_counters){
        .packets = 1,
        .bytes = p->bytes,
        .start = f->time,
        .end = f->time == FLOW_NO_TIME ? 0 : f->time,
        .first_frame = frame_number(m),
        .tcp_flags = p->tcp_flags,
        .events = p->events,
    };
}

static bool same_datagram(const struct fragment_row *row, const struct flow_key *key, __u32 id)
{
    return row->used && row->id == id && !memcmp(&row->key, key, sizeof(*key));
}

/* RFC 791: source, destination, protocol and identification tell datagrams apart; so do tunnel and interface here. */
static struct flow_key datagram_key(const struct packet *p)
{
    struct flow_key key = p->key;

    key.src_port = 0;
    key.dst_port = 0;
    key.protocol = p->fragment_protocol;
    return key;
}

static void give_up(struct meter *m, struct fragment_row *row)
{
    if (row->key.tunnel)
        m->ledger.inner_fragments += row->waiting.packets;
    else
        m->ledger.fragments += row->waiting.packets;
    row->used = 0;
}

static bool expired(const struct fragment_row *row, __u64 time)
{
    return row->time != FLOW_NO_TIME && time != FLOW_NO_TIME && time > row->time + FRAGMENT_MAX_NS;
}

static struct fragment_row *fragment_set(const struct meter *m, const struct flow_key *key, __u32 id)
{
    __u64 hash = hash_words((const __u8 *)key, sizeof(*key) / 8, m->table.seed ^ id);

    return m->fragments + (hash >> 32) % FRAGMENT_SETS * FRAGMENT_WAYS;
}

/* Later fragments wait together only within one interval, so that each is counted in its own. */
static bool waits_apart(const struct meter *m, const struct fragment_row *row, __u64 time)
{
    return row->waiting.packets && interval_of(m, row->waiting.start) != interval_of(m, time);
}

/* The datagram's entry, or a fresh one in the place of its set's oldest. */
static struct fragment_row *fragment_find(struct meter *m, const struct flow_key *key, __u32 id, __u64 time)
{
    struct fragment_row *set = fragment_set(m, key, id);
    struct fragment_row *oldest = set;

    for (unsigned i = 0; i < FRAGMENT_WAYS; i++) {
        if (same_datagram(&set[i], key, id) && !expired(&set[i], time) && !waits_apart(m, &set[i], time))
            return &set[i];
        if (oldest->used && (!set[i].used || set[i].time < oldest->time))
            oldest = &set[i];
    }
    if (oldest->used)
        give_up(m, oldest);
    *oldest = (struct fragment_row){.key = *key, .id = id, .used = 1};
    oldest->waiting.start = FLOW_NO_TIME;
    if (m->cut)
        cut_forget(m->cut, (size_t)(oldest - m->fragments));
    return oldest;
}

static struct flow_key resolved_key(const struct fragment_row *row)
{
    struct flow_key key = row->key;

    key.src_port = row->src_port;
    key.dst_port = row->dst_port;
    key.protocol = row->protocol;
    return key;
}

static void resolve_waiting(struct meter *m, struct fragment_row *row)
{
    struct flow_key key = resolved_key(row);

    if (!row->waiting.packets)
        return;
    if (m->cut)
        cut_resolve(m->cut, (size_t)(row - m->fragments), &key);
    else
        count_packet(m, &key, &row->waiting);
    if (!row->key.tunnel)
        m->ledger.results[PARSED] += row->waiting.packets;
    row->waiting = (struct flow_counters){.start = FLOW_NO_TIME};
}

/* What waited in other intervals finds its first fragment too. */
static void resolve_apart(struct meter *m, struct fragment_row *row)
{
    struct fragment_row *set = fragment_set(m, &row->key, row->id);

    for (unsigned i = 0; i < FRAGMENT_WAYS; i++) {
        struct fragment_row *other = &set[i];

        if (other == row || !same_datagram(other, &row->key, row->id) || expired(other, row->time))
            continue;
        other->src_port = row->src_port;
        other->dst_port = row->dst_port;
        other->protocol = row->protocol;
        resolve_waiting(m, other);
        row->seen += other->seen;
        if (other->expected)
            row->expected = other->expected;
        other->used = 0;
    }
}

/* Notes a fragment; says whether it was counted on its flow (or must wait for the first one). */
static bool count_fragment(struct meter *m, const struct packet *p, const struct flow_counters *more)
{
    struct flow_key key = datagram_key(p);
    struct fragment_row *row = fragment_find(m, &key, p->fragment_id, more->start);
    bool counted = true;

    row->time = more->start;
    row->seen += p->fragment_payload;
    if (p->fragment_end)
        row->expected = p->fragment_end;
    if (p->fragment == FRAGMENT_FIRST) {
        row->has_first = 1;
        row->src_port = p->key.src_port;
        row->dst_port = p->key.dst_port;
        row->protocol = p->key.protocol;
        count_packet(m, &p->key, more);
        resolve_waiting(m, row);
        resolve_apart(m, row);
    } else if (row->has_first) {
        key = resolved_key(row);
        count_packet(m, &key, more);
    } else {
        count(&row->waiting, more);
        if (m->cut)
            cut_wait(m->cut, (size_t)(row - m->fragments));
        counted = false;
    }
    if (row->has_first && row->expected && row->seen >= row->expected)
        row->used = 0;
    return counted;
}

/* Says whether the packet ended in a flow row. */
static inline bool count_layer(struct meter *m, const struct frame *f, const struct packet *p)
{
    struct flow_counters more = counters_of(m, f, p);

    if (p->fragment != FRAGMENT_NONE)
        return count_fragment(m, p, &more);
    count_packet(m, &p->key, &more);
    return true;
}

/* The quoted flow learns what was said of it; no packet of its own was seen here. */
static void count_quote(struct meter *m, const struct frame *f, const struct packet *p)
{
    struct flow_counters more = {.start = f->time, .end = f->time == FLOW_NO_TIME ? 0 : f->time};

    more.unreachable = p->unreachable;
    if (p->fragment != FRAGMENT_LATER)
        count_packet(m, &p->key, &more);
}

/* By parts: of a whole one's zeros gcc makes `rep stos`, which takes a tenth of a frame's time. */
static inline void packet_clear(struct packet *p)
{
    __u8 *at = (__u8 *)p;

    memset(at, 0, 32);
    memset(at + 32, 0, 32);
    memset(at + 64, 0, 32);
    memset(at + 96, 0, sizeof(*p) - 96);
}

static void count_inner(struct meter *m, const struct frame *f, struct cursor *c, struct packet *outer)
{
    for (int layer = 1; layer < PACKET_LAYERS && outer->next != NEXT_NONE; layer++) {
        struct packet inner;
        bool quote = outer->next == NEXT_QUOTE;
        int result;

        packet_clear(&inner);
        result = outer->next == NEXT_CUT ? TRUNCATED : parse_inner(c, outer, &inner);
        if (result == PARSED && quote)
            count_quote(m, f, &inner);
        else if (result == PARSED)
            count_layer(m, f, &inner);
        else if (!quote)
            m->ledger.inner[result]++;
        if (result != PARSED)
            return;
        *outer = inner;
    }
}

static inline void note_time(struct ledger *ledger, __u64 time)
{
    if (time == FLOW_NO_TIME)
        return;
    if (time < ledger->start)
        ledger->start = time;
    if (time > ledger->end)
        ledger->end = time;
}

static inline void count_frame(struct meter *m, const struct frame *f)
{
    struct cursor c = {.base = f->bytes, .have = f->captured, .end = f->wire > f->captured ? f->wire : f->captured};
    struct packet p;
    int result;

    m->ledger.frames++;
    note_time(&m->ledger, f->time);
    packet_clear(&p);
    p.key.interface = f->interface;
    p.key.direction = f->direction;
    result = parse_frame(&c, f->link, &p);
    if (result != PARSED) {
        m->ledger.results[result]++;
        return;
    }
    if (f->link == LINK_SLL2)
        p.key.interface |= BY_IFINDEX;
    if (count_layer(m, f, &p))
        m->ledger.results[PARSED]++;
    if (p.next != NEXT_NONE)
        count_inner(m, f, &c, &p);
}

#endif
