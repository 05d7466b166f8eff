/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: the flows of connections, their order, and what stands for each of them, however many saw it. Numbers in,
 * numbers out; no text.
 *
 * Two observers whose captures overlap in time may have seen the same datagrams: of them the fullest one's counts
 * stand. Two whose captures do not overlap cannot have: they add up. When each watched is told by _witness.py.
 */
#ifndef RKE2_FLOWS_FLOWS_H
#define RKE2_FLOWS_FLOWS_H

#include "_connections.h"

#define NOT_A_TIME INT64_MIN

/* When one watched, ns. */
struct window {
    __u64 begin, end;
};

/* Observers by their number; `turn` orders them by name, `by_turn` is the observer of each turn. */
struct observers {
    __u32 count;
    __u32 *turn, *chain, *by_turn;
    struct window *window; /* of a chain all have the same */
};

struct flows {
    struct pairing *p;
    struct observers observers;
    __u32 count;
    __u32 *connection; /* of each flow */
    __u32 *rows;       /* those of one flow side by side */
    __u32 *begin;      /* of each flow in `rows`; one more for the end */
    __s64 *start;      /* ns, NOT_A_TIME where none has a time */
    __u32 *order;      /* flows by start */
};

static void flows_free(struct flows *f)
{
    void *owned[] = {f->observers.turn,
                     f->observers.chain,
                     f->observers.by_turn,
                     f->observers.window,
                     f->connection,
                     f->rows,
                     f->begin,
                     f->start,
                     f->order};

    for (size_t i = 0; i < sizeof(owned) / sizeof(*owned); i++)
        free(owned[i]);
}

/* ---- flows: one for each connection and interval ---- */

static inline __u32 connection_of_row(const struct pairing *p, __u32 row)
{
    return p->connection_of[tuple_of(p, row)];
}

struct first_rows {
    const struct pairing *p;
    const __u32 *rows; /* the first of each flow */
};

static bool is_same_flow(const void *all, __u32 number, const void *wanted)
{
    const struct first_rows *firsts = all;
    __u32 one = firsts->rows[number], other = *(const __u32 *)wanted;

    return firsts->p->rows[one].interval == firsts->p->rows[other].interval &&
           connection_of_row(firsts->p, one) == connection_of_row(firsts->p, other);
}

static int number_flows(struct flows *f, __u32 *of, __u32 *firsts)
{
    const struct pairing *p = f->p;
    struct first_rows all = {p, firsts};
    struct index index;

    if (index_init(&index, p->row_count))
        return -1;
    for (__u32 row = 0; row < p->row_count; row++) {
        __u32 hash = (__u32)(mix(connection_of_row(p, row) ^ p->seed, p->rows[row].interval ^ p->seed) >> 32);
        struct slot *slot = index_find(&index, hash, is_same_flow, &all, &row);

        if (!slot->number) {
            firsts[f->count] = row;
            index_put(&index, slot, hash, f->count++);
        }
        of[row] = slot->number - 1;
    }
    index_free(&index);
    return 0;
}

/* The same where no row has an interval. */
static void number_connected(struct flows *f, __u32 *of, __u32 *firsts, __u32 *flow_of)
{
    for (__u32 i = 0; i < f->p->connection_count; i++)
        flow_of[i] = NONE;
    for (__u32 row = 0; row < f->p->row_count; row++) {
        __u32 *flow = &flow_of[connection_of_row(f->p, row)];

        if (*flow == NONE) {
            firsts[f->count] = row;
            *flow = f->count++;
        }
        of[row] = *flow;
    }
}

/* Rows by flow, in their order; `of` is the flow of each. */
static int gather_rows(struct flows *f, const __u32 *of)
{
    __u32 rows = f->p->row_count;

    f->begin = calloc((size_t)f->count + 2, sizeof(*f->begin));
    f->rows = malloc(rows * sizeof(*f->rows) + 1);
    if (!f->begin || !f->rows)
        return -1;
    for (__u32 row = 0; row < rows; row++)
        f->begin[of[row] + 2]++;
    for (__u32 flow = 2; flow <= f->count; flow++)
        f->begin[flow] += f->begin[flow - 1];
    for (__u32 row = 0; row < rows; row++)
        f->rows[f->begin[of[row] + 1]++] = row;
    return 0;
}

static int note_flows(struct flows *f, const __u32 *firsts)
{
    f->connection = malloc(f->count * sizeof(*f->connection) + 1);
    f->start = malloc(f->count * sizeof(*f->start) + 1);
    if (!f->connection || !f->start)
        return -1;
    for (__u32 flow = 0; flow < f->count; flow++) {
        __u64 start = FLOW_NO_TIME;

        f->connection[flow] = connection_of_row(f->p, firsts[flow]);
        for (__u32 i = f->begin[flow]; i < f->begin[flow + 1]; i++)
            if (f->p->starts[f->rows[i]] < start)
                start = f->p->starts[f->rows[i]];
        f->start[flow] = start == FLOW_NO_TIME ? NOT_A_TIME : (__s64)start;
    }
    return 0;
}

/* Of a flow that has many the first ones: those to come are asked for while these are looked at. */
static void ask_for_rows(const struct flows *f, __u32 flow)
{
    __u32 begin = f->begin[flow], count = f->begin[flow + 1] - begin;

    for (__u32 i = 0; i < count && i < 4; i++)
        ask_for(&f->p->rows[f->rows[begin + i]], sizeof(struct flow_row));
}

/* ---- their order ---- */

/* The two ends of a flow, the client first, and the key of a tuple that has them. */
struct flow_ends {
    const struct flow_key *key;
    const __u8 *client, *server;
    __u16 client_port, server_port; /* for ICMP the request's type and the code */
};

static struct flow_ends flow_ends(const struct flows *f, __u32 flow)
{
    const struct pairing *p = f->p;
    __u32 client = p->client[f->connection[flow]], server = p->server[f->connection[flow]];
    const struct flow_key *key = key_of(p, client != NONE ? client : server);
    __u16 type = key->src_port;

    if (is_icmp(key->protocol)) {
        request_type(key->protocol, &type);
        return (struct flow_ends){key, client != NONE ? key->src : key->dst, client != NONE ? key->dst : key->src, type,
                                  key->dst_port};
    }
    if (client != NONE)
        return (struct flow_ends){key, key->src, key->dst, key->src_port, key->dst_port};
    return (struct flow_ends){key, key->dst, key->src, key->dst_port, key->src_port};
}

static inline __u64 interval_of(const struct flows *f, __u32 flow)
{
    return f->p->rows[f->rows[f->begin[flow]]].interval;
}

static bool is_carrier(const struct flows *f, __u32 flow)
{
    __u32 client = f->p->client[f->connection[flow]], server = f->p->server[f->connection[flow]];

    return f->p->marks[client != NONE ? client : server] & MARK_CARRIER;
}

#define ORDER(a, b) ((a) < (b) ? -1 : (a) > (b))

/* By start, and where that is equal by what tells flows apart. */
static int flow_order(const struct flows *f, __u32 one, __u32 other)
{
    struct flow_ends a, b;
    int order = ORDER(f->start[one], f->start[other]);

    if (order)
        return order;
    a = flow_ends(f, one);
    b = flow_ends(f, other);
    if ((order = ORDER(a.key->protocol, b.key->protocol)) || (order = ORDER(a.key->tunnel, b.key->tunnel)) ||
        (order = ORDER(a.key->vni, b.key->vni)) || (order = address_order(a.client, b.client)) ||
        (order = address_order(a.server, b.server)) || (order = ORDER(a.client_port, b.client_port)) ||
        (order = ORDER(a.server_port, b.server_port)))
        return order;
    order = ORDER(interval_of(f, one), interval_of(f, other)); /* where none of its packets has a time */
    return order ? order : ORDER(is_carrier(f, one), is_carrier(f, other));
}

static __u64 middle(__u64 begin, __u64 width, __u64 count)
{
    return begin + width < count ? begin + width : count;
}

/* Stable. Rows come nearly in order of time, so that most runs stand in order already: then nothing is moved. */
static void merge_runs(const struct flows *f, __u32 *from, __u32 *to, __u64 begin, __u64 mid, __u64 end)
{
    __u64 a = begin, b = mid;

    if (mid == end || flow_order(f, from[mid - 1], from[mid]) <= 0) {
        memcpy(to + begin, from + begin, (end - begin) * sizeof(*to));
        return;
    }
    for (__u64 at = begin; at < end; at++)
        to[at] = b == end || (a < mid && flow_order(f, from[a], from[b]) <= 0) ? from[a++] : from[b++];
}

/* Each flow to its place among those before it, unless that is far to go for many; whether all are in order. */
static bool insert_flows(const struct flows *f, __u32 *order)
{
    __u64 steps = 0;

    for (__u32 i = 1; i < f->count; i++) {
        __u32 flow = order[i], at = i;

        for (; at && flow_order(f, order[at - 1], flow) > 0; at--)
            order[at] = order[at - 1];
        order[at] = flow;
        steps += i - at;
        if (steps > f->count)
            return false;
    }
    return true;
}

static int order_flows(struct flows *f)
{
    __u32 *from = malloc(f->count * sizeof(*from) + 1), *to;

    f->order = from;
    if (!from)
        return -1;
    for (__u32 i = 0; i < f->count; i++)
        from[i] = i;
    if (insert_flows(f, from))
        return 0;
    to = malloc(f->count * sizeof(*to));
    if (!to)
        return -1;
    for (__u64 width = 1; width < f->count; width *= 2) {
        __u32 *done = to;

        for (__u64 begin = 0; begin < f->count; begin += 2 * width)
            merge_runs(f, from, to, begin, middle(begin, width, f->count), middle(begin, 2 * width, f->count));
        to = from;
        from = done;
    }
    f->order = from;
    free(to);
    return 0;
}

/* -1 when memory is out */
static int find_flows(struct flows *f)
{
    __u32 rows = f->p->row_count, connections = f->p->connection_count;
    __u32 *of = malloc(rows * sizeof(*of) + 1), *firsts = malloc(rows * sizeof(*firsts) + 1), *flow_of = NULL;
    int failed = !of || !firsts;

    if (!failed && f->p->has_intervals) {
        failed = number_flows(f, of, firsts);
    } else if (!failed && (flow_of = malloc(connections * sizeof(*flow_of) + 1))) {
        number_connected(f, of, firsts, flow_of);
    } else {
        failed = -1;
    }
    free(flow_of);
    failed = failed || gather_rows(f, of);
    free(of);
    failed = failed || note_flows(f, firsts);
    free(firsts);
    free(f->p->starts);
    f->p->starts = NULL;
    return failed || order_flows(f) ? -1 : 0;
}

/* ---- the fullest witness ---- */

/*
 * What one observer counted of a flow, one way, in one place: the same datagram inside and outside of a tunnel, or
 * coming in and going out, was seen twice by one observer.
 */
struct unit {
    __u64 packets, bytes;
    struct window window;
    __u32 number, turn; /* `turn`: the least of those that counted any, else the least */
    bool inward, counted;
};

static int unit_order(const void *one, const void *other)
{
    const struct unit *a = one, *b = other;
    int order = ORDER(a->inward, b->inward);

    if (!order)
        order = ORDER(a->window.begin, b->window.begin);
    return order ? order : ORDER(a->number, b->number);
}

static struct unit unit_of(const struct flows *f, __u32 row)
{
    const struct flow_row *r = &f->p->rows[row];
    __u32 observer = r->key.interface;

    return (struct unit){
        .packets = r->counters.packets,
        .bytes = r->counters.bytes,
        .window = f->observers.window[observer],
        .number = (f->observers.chain[observer] * 4 + r->key.direction) * 2 + (r->key.tunnel != TUNNEL_NONE),
        .turn = f->observers.turn[observer],
        .inward = is_inward(f->p, row),
        .counted = r->counters.packets,
    };
}

static void unit_add(struct unit *all, const struct unit *more)
{
    all->packets += more->packets;
    all->bytes += more->bytes;
    if (all->counted == more->counted ? more->turn < all->turn : more->counted)
        all->turn = more->turn;
    all->counted |= more->counted;
}

/* Few are the rule, and they are nearly in order. */
static void sort_units(struct unit *units, __u32 count)
{
    if (count > 16) {
        qsort(units, count, sizeof(*units), unit_order);
        return;
    }
    for (__u32 i = 1; i < count; i++) {
        struct unit one = units[i];
        __u32 at = i;

        for (; at && unit_order(&units[at - 1], &one) > 0; at--)
            units[at] = units[at - 1];
        units[at] = one;
    }
}

/* Units with equal numbers added up; how many are left. */
static __u32 sum_units(struct unit *units, __u32 count)
{
    __u32 last = 0;

    sort_units(units, count);
    for (__u32 i = 1; i < count; i++) {
        if (unit_order(&units[last], &units[i]))
            units[++last] = units[i];
        else
            unit_add(&units[last], &units[i]);
    }
    return last + 1;
}

/* Whether `a` rather than `b` stands for both. */
static bool is_fuller(const struct unit *a, const struct unit *b)
{
    if (a->packets != b->packets)
        return a->packets > b->packets;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes;
    return a->turn != b->turn ? a->turn < b->turn : a->number < b->number;
}

/* Whether both are of one chain. */
static bool is_one_chain(const struct unit *a, const struct unit *b)
{
    return a->number / 8 == b->number / 8;
}

/*
 * Behind the last of those that watched together with the one at `at`, directly or through others, and may have counted
 * the same datagrams. Who counted none brings nobody together.
 */
static __u32 together(const struct unit *units, __u32 count, __u32 at)
{
    __u64 reached = 0;
    __u32 next = at;

    do {
        if (units[next].counted && units[next].window.end > reached)
            reached = units[next].window.end;
        next++;
    } while (next < count && units[next].inward == units[at].inward &&
             (units[next].window.begin <= reached || is_one_chain(&units[next - 1], &units[next])));
    return next;
}

/* Whether `a` rather than `b` names the flow's observer. */
static bool leads(const struct unit *a, const struct unit *b)
{
    return a->packets != b->packets ? a->packets > b->packets : a->turn < b->turn;
}

struct fullest {
    __u64 packets[2], bytes[2]; /* out, in */
    __u32 observer;
};

/* `units`: room for as many as the flow has rows */
static struct fullest fullest_of(const struct flows *f, __u32 flow, struct unit *units)
{
    struct fullest all = {0};
    const struct unit *lead = NULL;
    __u32 count = f->begin[flow + 1] - f->begin[flow], next;

    for (__u32 i = 0; i < count; i++)
        units[i] = unit_of(f, f->rows[f->begin[flow] + i]);
    count = sum_units(units, count);
    for (__u32 i = 0; i < count; i = next) {
        const struct unit *best = &units[i];

        next = together(units, count, i);
        for (__u32 other = i + 1; other < next; other++)
            if (is_fuller(&units[other], best))
                best = &units[other];
        all.packets[best->inward] += best->packets;
        all.bytes[best->inward] += best->bytes;
        if (!lead || leads(best, lead))
            lead = best;
    }
    all.observer = f->observers.by_turn[lead->turn];
    return all;
}

/* What all rows of a flow show together. */
struct flow_sums {
    __u64 end, first_frame; /* of the observer's own rows, 0 for none */
    __u16 flags[2];
    const struct flow_row *tunnel; /* whose outer ends stand, NULL for none */
    bool tunnel_inward;
};

/* The client's own direction rather than the other, then the fuller one, then the one whose ends are greater. */
static bool tells_tunnel(const struct flow_row *row, bool inward, const struct flow_sums *s)
{
    if (!s->tunnel || inward != s->tunnel_inward)
        return !s->tunnel || !inward;
    if (row->counters.packets != s->tunnel->counters.packets)
        return row->counters.packets > s->tunnel->counters.packets;
    return memcmp(row->key.outer_src, s->tunnel->key.outer_src, 32) > 0;
}

static struct flow_sums sums_of(const struct flows *f, __u32 flow, __u32 observer)
{
    struct flow_sums s = {0};

    for (__u32 i = f->begin[flow]; i < f->begin[flow + 1]; i++) {
        const struct flow_row *row = &f->p->rows[f->rows[i]];
        const struct flow_counters *c = &row->counters;
        bool inward = is_inward(f->p, f->rows[i]);

        if (c->end > s.end)
            s.end = c->end;
        if (row->key.interface == observer && c->first_frame && (!s.first_frame || c->first_frame < s.first_frame))
            s.first_frame = c->first_frame;
        s.flags[inward] |= c->tcp_flags;
        if (row->key.tunnel != TUNNEL_NONE && tells_tunnel(row, inward, &s)) {
            s.tunnel = row;
            s.tunnel_inward = inward;
        }
    }
    return s;
}

#endif
