/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: which rows answer each other, who asked, and how it went. One-way rows in, numbers out; no observer, no text.
 *
 * A tuple is all rows of one direction of one 5-tuple, whoever saw them and whenever. A connection is a tuple and the
 * one that answers it. `low` and `high` name a connection's ends by the order of their addresses and ports, until it is
 * known who asked. Of an ICMP request and its reply it is known at once: the lower end asks, so that two hosts that ask
 * each other have a connection each.
 */
#ifndef RKE2_FLOWS_CONNECTIONS_H
#define RKE2_FLOWS_CONNECTIONS_H

#include "_index.h"
#include "flow.h"

#define ICMP   1
#define TCP    6
#define UDP    17
#define ICMPV6 58
#define SCTP   132

#define NO_CLIENTS   512   /* below it are no clients' ports: rresvport(), for NFS and others, begins here */
#define UNPRIVILEGED 1024  /* the first port that anybody may take, and resolvers do; bpf/live.c has these as well */
#define EPHEMERAL    32768 /* the first port that Linux gives to clients (net.ipv4.ip_local_port_range) */

#define TCP_RST              0x04
#define TCP_ACK              0x10
#define FRAGMENTATION_NEEDED (1u << 4) /* RFC 792 code 4 is path MTU discovery: the flow goes on */

/* The indices of OUTCOMES and DIRECTION_BY in _pairing.py */
enum outcome { ANSWERED, REFUSED, UNREACHABLE, UNANSWERED, ONE_WAY };
enum direction_by { BY_SYN, BY_LISTENER, BY_SPEC, BY_PORT };

/* Of a tuple: what decides most connections, in a byte, where rows would have to be waited for. */
enum mark {
    MARK_REVERSE = 1, /* sent by the connection's higher end */
    MARK_CARRIER = 2,
    MARK_ASKS = 4,       /* a SYN or an ICMP request */
    MARK_REPLIES = 8,    /* an ICMP reply */
    MARK_ACCEPTS = 16,   /* a SYN with ACK */
    MARK_TUNNELLED = 32, /* seen inside a tunnel */
    MARK_SENT = 64,      /* packets of it were counted */
    MARK_RESETS = 128,   /* resets and nothing else */
};

/* A socket that is known to listen, as Python hands it over. */
struct endpoint {
    __u8 address[16];
    __u16 port;
    __u8 protocol;
    __u8 reserved[5];
};
_Static_assert(sizeof(struct endpoint) == 24, "endpoint");

struct pairing {
    const struct flow_row *rows;
    __u32 row_count;
    __u64 seed;
    /* what one look at each row told */
    bool has_intervals, has_tunnels;
    __u64 interfaces;   /* the greatest number of one, + 1 */
    __u64 *starts;      /* of each row; NULL once flows have theirs */
    __u32 *ends_hashes; /* of each tuple; NULL once it is connected */
    /* tuples; where each row is one of its own the next three are NULL */
    __u32 tuple_count;
    __u32 *tuple_of; /* of each row */
    __u32 *first;    /* row of each tuple */
    struct flow_counters *sums;
    __u8 *marks;
    /* connections */
    __u32 connection_count;
    __u32 *connection_of;   /* of each tuple */
    __u32 *client, *server; /* tuple; until it is known who asked the one of the lower and of the higher end */
    __u8 *outcome, *direction_by, *low_asks;
    __u32 *quoted[2]; /* of each, what ICMP said of what the lower and the higher end sent; NULL where tuples have it */
    /* who listens */
    const struct endpoint *listeners;
    __u32 listener_count;
    __u8 *named; /* bit for each protocol and port that a specification names */
};

#define NAMED_BYTES (256u * 65536 / 8)

/* RFC 792, 950, 4443, 4861: the two directions of one flow */
static const struct {
    __u8 protocol, reply, request;
} REQUESTS[] = {
    {ICMP, 0, 8},       {ICMP, 14, 13},     {ICMP, 16, 15},     {ICMP, 18, 17},
    {ICMPV6, 129, 128}, {ICMPV6, 134, 133}, {ICMPV6, 136, 135},
};

static inline bool is_icmp(__u8 protocol)
{
    return protocol == ICMP || protocol == ICMPV6;
}

/* The marks of an ICMP type; `type` becomes the request's where it is a reply's. */
static __u8 request_type(__u8 protocol, __u16 *type)
{
    for (size_t i = 0; i < sizeof(REQUESTS) / sizeof(*REQUESTS); i++) {
        if (REQUESTS[i].protocol != protocol)
            continue;
        if (*type == REQUESTS[i].request)
            return MARK_ASKS;
        if (*type == REQUESTS[i].reply) {
            *type = REQUESTS[i].request;
            return MARK_REPLIES;
        }
    }
    return 0;
}

static inline __u32 tuple_of(const struct pairing *p, __u32 row)
{
    return p->tuple_of ? p->tuple_of[row] : row;
}

static inline const struct flow_key *key_of(const struct pairing *p, __u32 tuple)
{
    return &p->rows[p->first ? p->first[tuple] : tuple].key;
}

static inline const struct flow_counters *sum_of(const struct pairing *p, __u32 tuple)
{
    return p->sums ? &p->sums[tuple] : &p->rows[tuple].counters;
}

static inline bool is_tunnelled(const struct pairing *p, __u32 tuple)
{
    return p->marks[tuple] & MARK_TUNNELLED;
}

/* ---- what rows and tuples are told apart by ---- */

static inline __u64 ports_and_vni(const struct flow_key *key)
{
    return (__u64)key->vni << 32 | (__u32)key->src_port << 16 | key->dst_port;
}

static inline __u64 protocol_and_tunnel(const struct flow_key *key)
{
    return (__u64)key->protocol << 8 | key->tunnel;
}

static inline __u64 hash_pair(const __u8 *one, const __u8 *other, __u64 a, __u64 b, __u64 seed)
{
    __u64 x = mix(load64(one) ^ seed, load64(one + 8) ^ 0x2d358dccaa6c78a5ULL);
    __u64 y = mix(load64(other) ^ 0x8bb84b93962eacc9ULL, load64(other + 8) ^ seed);
    __u64 z = mix(a ^ 0x4b33a62ed433d4a3ULL, b ^ seed);

    return mix(x ^ z, y ^ 0x9e3779b97f4a7c15ULL);
}

static inline __u32 tuple_hash(const struct pairing *p, __u32 row)
{
    const struct flow_key *key = &p->rows[row].key;

    return (__u32)(hash_pair(key->src, key->dst, ports_and_vni(key), protocol_and_tunnel(key), p->seed) >> 32);
}

static inline bool same_address(const __u8 *a, const __u8 *b)
{
    return !((load64(a) ^ load64(b)) | (load64(a + 8) ^ load64(b + 8)));
}

static bool is_same_tuple(const void *all, __u32 number, const void *wanted)
{
    const struct pairing *p = all;
    const struct flow_key *a = &p->rows[p->first[number]].key, *b = wanted;

    return same_address(a->src, b->src) && same_address(a->dst, b->dst) && ports_and_vni(a) == ports_and_vni(b) &&
           protocol_and_tunnel(a) == protocol_and_tunnel(b);
}

static const void *tuple_named(const void *all, __u32 number)
{
    const struct pairing *p = all;

    return &p->rows[p->first[number]].key;
}

static inline int address_order(const __u8 *a, const __u8 *b)
{
    for (int i = 0; i < 16; i += 8) {
        __u64 x = load64(a + i), y = load64(b + i);

        if (x != y)
            return memcmp(&x, &y, sizeof(x));
    }
    return 0;
}

/* Whether a tuple's destination is the lower end. `says`: the marks of its ICMP type. */
static bool is_reverse(const struct flow_key *key, __u8 says)
{
    int order;

    if (says)
        return says & MARK_REPLIES;
    order = address_order(key->dst, key->src);
    return order < 0 || (!order && !is_icmp(key->protocol) && key->dst_port < key->src_port);
}

static bool only_resets(const struct flow_key *key, const struct flow_counters *sum)
{
    return key->protocol == TCP && sum->tcp_flags & TCP_RST && !(sum->tcp_flags & ~(TCP_RST | TCP_ACK));
}

static __u8 marks_of(const struct flow_key *key, const struct flow_counters *sum)
{
    bool carrier = sum->events & EVENT_CARRIER;
    __u16 type = key->src_port;
    __u8 says = is_icmp(key->protocol) ? request_type(key->protocol, &type) : 0;

    return says | (carrier ? MARK_CARRIER : 0) | (!carrier && is_reverse(key, says) ? MARK_REVERSE : 0) |
           (sum->events & EVENT_SYN ? MARK_ASKS : 0) | (sum->events & EVENT_SYN_ACK ? MARK_ACCEPTS : 0) |
           (key->tunnel != TUNNEL_NONE ? MARK_TUNNELLED : 0) | (sum->packets ? MARK_SENT : 0) |
           (only_resets(key, sum) ? MARK_RESETS : 0);
}

/* What both directions of a connection have in common, whatever it was carried in. */
struct ends {
    const __u8 *low, *high;
    __u64 ports;  /* of low and high, and for ICMP the request's type and the code */
    __u64 nature; /* protocol, and whether it carries a tunnel */
};

static struct ends ends_between(const struct flow_key *key, __u8 marks)
{
    bool reverse = marks & MARK_REVERSE;
    __u16 type = key->src_port, code = key->dst_port;
    struct ends e = {.low = reverse ? key->dst : key->src, .high = reverse ? key->src : key->dst};

    e.nature = (__u64)key->protocol << 1 | !!(marks & MARK_CARRIER);
    if (!is_icmp(key->protocol)) {
        e.ports = reverse ? (__u32)key->dst_port << 16 | key->src_port : (__u32)key->src_port << 16 | key->dst_port;
        return e;
    }
    request_type(key->protocol, &type);
    e.ports = (__u64)type << 48 | (__u64)code << 32;
    return e;
}

static struct ends ends_of(const struct pairing *p, __u32 tuple)
{
    return ends_between(key_of(p, tuple), p->marks[tuple]);
}

static inline bool same_ends(const struct ends *a, const struct ends *b)
{
    return a->ports == b->ports && a->nature == b->nature && same_address(a->low, b->low) &&
           same_address(a->high, b->high);
}

static __u32 ends_hash(const struct pairing *p, const struct ends *e)
{
    return (__u32)(hash_pair(e->low, e->high, e->ports, e->nature, p->seed) >> 32);
}

/* ---- one look at each row ---- */

/* What stages to come would have to wait for again, where each row is a tuple of its own. `hashes`: of its tuple. */
static void look_at_rows(struct pairing *p, __u32 *hashes)
{
    for (__u32 i = 0; i < p->row_count; i++) {
        const struct flow_row *row = &p->rows[i];
        struct ends ends;

        hashes[i] = tuple_hash(p, i);
        p->marks[i] = marks_of(&row->key, &row->counters);
        ends = ends_between(&row->key, p->marks[i]);
        p->ends_hashes[i] = ends_hash(p, &ends);
        p->starts[i] = row->counters.start;
        p->has_intervals |= !!row->interval;
        p->has_tunnels |= row->key.tunnel != TUNNEL_NONE;
        if (row->key.interface >= p->interfaces)
            p->interfaces = (__u64)row->key.interface + 1;
    }
}

/* ---- tuples ---- */

/* `hashes`: of each row's tuple */
static int number_tuples(struct pairing *p, const __u32 *hashes)
{
    struct index index = {0};
    int failed;

    p->tuple_of = malloc(p->row_count * sizeof(*p->tuple_of) + 1);
    p->first = malloc(p->row_count * sizeof(*p->first) + 1);
    failed = !p->tuple_of || !p->first || index_init(&index, p->row_count);
    for (__u32 row = 0; !failed && row < p->row_count; row++) {
        struct slot *slot;

        index_ahead(&index, hashes, row, p->row_count, tuple_named, p, sizeof(struct flow_key));
        slot = index_find(&index, hashes[row], is_same_tuple, p, &p->rows[row].key);
        if (!slot->number) {
            p->first[p->tuple_count] = row;
            index_put(&index, slot, hashes[row], p->tuple_count++);
        }
        p->tuple_of[row] = slot->number - 1;
    }
    index_free(&index);
    return failed ? -1 : 0;
}

static int sum_tuples(struct pairing *p)
{
    if (p->tuple_count == p->row_count) {
        free(p->tuple_of);
        free(p->first);
        p->tuple_of = p->first = NULL;
        return 0;
    }
    p->sums = malloc(p->tuple_count * sizeof(*p->sums));
    if (!p->sums)
        return -1;
    for (__u32 i = 0; i < p->tuple_count; i++)
        p->sums[i] = (struct flow_counters){.start = FLOW_NO_TIME};
    for (__u32 i = 0; i < p->row_count; i++)
        count(&p->sums[p->tuple_of[i]], &p->rows[i].counters);
    for (__u32 i = 0; i < p->tuple_count; i++) {
        struct ends ends;

        p->marks[i] = marks_of(key_of(p, i), &p->sums[i]);
        ends = ends_of(p, i);
        p->ends_hashes[i] = ends_hash(p, &ends);
    }
    return 0;
}

static int find_tuples(struct pairing *p)
{
    __u32 *hashes = malloc(p->row_count * sizeof(*hashes) + 1);
    int failed;

    p->marks = malloc(p->row_count + 1);
    p->starts = malloc(p->row_count * sizeof(*p->starts) + 1);
    p->ends_hashes = malloc(p->row_count * sizeof(*p->ends_hashes) + 1);
    failed = !hashes || !p->marks || !p->starts || !p->ends_hashes;
    if (!failed)
        look_at_rows(p, hashes);
    failed = failed || number_tuples(p, hashes);
    free(hashes);
    return failed || sum_tuples(p) ? -1 : 0;
}

/* ---- connections ---- */

/* A tuple that looks for its connection. `firsts`: a tuple of each connection. */
struct seeker {
    const struct pairing *p;
    const __u32 *firsts;
    struct ends ends;
    const struct flow_key *key;
};

static bool has_same_ends(const void *all, __u32 number, const void *wanted)
{
    const struct seeker *seeker = all;
    struct ends ends = ends_of(seeker->p, seeker->firsts[number]);

    return same_ends(&ends, wanted);
}

static bool is_same_connection(const void *all, __u32 number, const void *wanted)
{
    const struct seeker *seeker = all;
    const struct flow_key *key = key_of(seeker->p, seeker->firsts[number]);

    return key->vni == seeker->key->vni && key->tunnel == seeker->key->tunnel && has_same_ends(all, number, wanted);
}

static const void *first_named(const void *all, __u32 number)
{
    const struct seeker *seeker = all;

    return key_of(seeker->p, seeker->firsts[number]);
}

/* `firsts` has room for as many as there are tuples; hashes are of each connection's ends at the end. */
static int number_connections(struct pairing *p, __u32 *firsts)
{
    struct seeker seeker = {.p = p, .firsts = firsts};
    __u32 *hashes = p->ends_hashes;
    struct index index;

    if (index_init(&index, p->tuple_count))
        return -1;
    for (__u32 tuple = 0; tuple < p->tuple_count; tuple++) {
        struct slot *slot;

        index_ahead(&index, hashes, tuple, p->tuple_count, first_named, &seeker, sizeof(struct flow_key));
        seeker.ends = ends_of(p, tuple);
        seeker.key = key_of(p, tuple);
        slot = index_find(&index, hashes[tuple], is_same_connection, &seeker, &seeker.ends);
        if (!slot->number) {
            firsts[p->connection_count] = tuple;
            index_put(&index, slot, hashes[tuple], p->connection_count++);
        }
        p->connection_of[tuple] = slot->number - 1;
    }
    for (__u32 i = 0; i < p->connection_count; i++)
        hashes[i] = hashes[firsts[i]];
    index_free(&index);
    return 0;
}

/* ---- one flow under two network identifiers ---- */

#define SEVERAL (NONE - 1) /* more than one number */

/* Of each connection: which ends sent. */
enum side { SIDE_LOW = 1, SIDE_HIGH = 2, SIDE_BOTH = 3 };

/* The connections inside one kind of tunnel that have the same ends, whatever their VNI: each NONE, one, or SEVERAL. */
struct halves {
    __u32 low, high; /* that only this end sent */
    __u32 whole;     /* that both ends sent */
};

/* What was quoted and not sent: its VNI is of who quoted it. A witness that counted nothing has no quote either. */
static bool is_quote(const struct pairing *p, __u32 tuple)
{
    return is_tunnelled(p, tuple) && !(p->marks[tuple] & MARK_SENT) && sum_of(p, tuple)->unreachable;
}

static bool has_same_tunnel(const void *all, __u32 number, const void *wanted)
{
    const struct seeker *seeker = all;

    return key_of(seeker->p, seeker->firsts[number])->tunnel == seeker->key->tunnel &&
           has_same_ends(all, number, wanted);
}

static void note_half(struct halves *h, __u32 connection, __u8 sides)
{
    __u32 *half = sides == SIDE_LOW ? &h->low : sides == SIDE_HIGH ? &h->high : &h->whole;

    if (sides)
        *half = *half == NONE ? connection : SEVERAL;
}

/* `halves`: of the first connection of each kind of tunnel and ends; `first`: that one; `sides`, `hashes`: of each */
static int collect_halves(struct seeker *seeker, const __u32 *hashes, const __u8 *sides, struct halves *halves,
                          __u32 *first)
{
    const struct pairing *p = seeker->p;
    struct index index;

    if (index_init(&index, p->connection_count))
        return -1;
    for (__u32 i = 0; i < p->connection_count; i++) {
        struct slot *slot;
        struct ends ends;

        halves[i] = (struct halves){NONE, NONE, NONE};
        first[i] = NONE;
        if (!is_tunnelled(p, seeker->firsts[i]))
            continue;
        ends = ends_of(p, seeker->firsts[i]);
        seeker->key = key_of(p, seeker->firsts[i]);
        slot = index_find(&index, hashes[i], has_same_tunnel, seeker, &ends);
        if (!slot->number)
            index_put(&index, slot, hashes[i], i);
        first[i] = slot->number - 1;
        note_half(&halves[first[i]], i, sides[i]);
    }
    index_free(&index);
    return 0;
}

/* The one connection that all of these are, as the one of its halves that was numbered first; NONE. */
static __u32 one_of(const struct halves *h)
{
    if (h->whole != NONE)
        return h->whole != SEVERAL && h->low == NONE && h->high == NONE ? h->whole : NONE;
    if (h->low == SEVERAL || h->high == SEVERAL)
        return NONE;
    return h->low < h->high ? h->low : h->high;
}

/* Halves that belong together, and what was quoted of them, become the connection that was numbered first. */
static void join_halves(struct pairing *p, __u32 *firsts, const struct halves *halves, const __u32 *first)
{
    for (__u32 i = p->connection_count; i-- > 0;) { /* the first one after all others */
        __u32 one = first[i] == NONE ? NONE : one_of(&halves[first[i]]);

        if (one != NONE && i != one)
            firsts[i] = firsts[one];
    }
    for (__u32 i = 0; i < p->tuple_count; i++) {
        __u32 *connection = &p->connection_of[i], into = first[*connection];

        if (into != NONE && one_of(&halves[into]) != NONE)
            *connection = into;
    }
}

/*
 * Cilium writes who sent a packet where the VNI stands (the sender's security identity), so that a flow's directions
 * differ in it. Of all that was seen between two ends exactly two halves, one each way, are taken for one connection:
 * of a network's own both would have been seen under one VNI. What ICMP quotes stands under the VNI of who quotes it,
 * and is of that connection where there is one alone.
 */
static int connect_halves(struct pairing *p, __u32 *firsts, const __u32 *hashes)
{
    struct seeker seeker = {.p = p, .firsts = firsts};
    struct halves *halves = malloc(p->connection_count * sizeof(*halves) + 1);
    __u32 *first = malloc(p->connection_count * sizeof(*first) + 1);
    __u8 *sides = calloc(p->connection_count + 1, sizeof(*sides));
    int failed = !halves || !first || !sides;

    for (__u32 i = 0; !failed && i < p->tuple_count; i++)
        if (!is_quote(p, i))
            sides[p->connection_of[i]] |= p->marks[i] & MARK_REVERSE ? SIDE_HIGH : SIDE_LOW;
    failed = failed || collect_halves(&seeker, hashes, sides, halves, first);
    if (!failed)
        join_halves(p, firsts, halves, first);
    free(halves);
    free(first);
    free(sides);
    return failed ? -1 : 0;
}

/* ---- what was seen inside a tunnel and outside of it ---- */

static inline const __u8 *tunnel_end(const struct pairing *p, __u32 number)
{
    const struct flow_key *key = &p->rows[number / 2].key;

    return number % 2 ? key->outer_dst : key->outer_src;
}

static bool is_same_tunnel_end(const void *all, __u32 number, const void *wanted)
{
    return same_address(tunnel_end(all, number), wanted);
}

static inline __u32 address_hash(const __u8 *address, __u64 seed)
{
    return (__u32)(hash_words(address, 2, seed) >> 32);
}

static int add_tunnel_end(const struct pairing *p, struct index *ends, __u32 number)
{
    const __u8 *address = tunnel_end(p, number);
    __u32 hash = address_hash(address, p->seed);
    struct slot *slot = index_find(ends, hash, is_same_tunnel_end, p, address);

    if (slot->number)
        return 0;
    index_put(ends, slot, hash, number);
    return index_grow(ends);
}

/* The ends of all tunnels: nodes, not pods. A number is of a row and one of its two outer ends. */
static int collect_tunnel_ends(const struct pairing *p, struct index *ends)
{
    if (index_init(ends, 0))
        return -1;
    for (__u32 row = 0; row < p->row_count; row++) {
        if (row + AHEAD < p->row_count && is_tunnelled(p, tuple_of(p, row + AHEAD)))
            ask_for(p->rows[row + AHEAD].key.outer_src, 32);
        if (is_tunnelled(p, tuple_of(p, row)) &&
            (add_tunnel_end(p, ends, row * 2) || add_tunnel_end(p, ends, row * 2 + 1)))
            return -1;
    }
    return 0;
}

static bool is_tunnel_end(const struct pairing *p, const struct index *ends, const __u8 *address)
{
    return index_find(ends, address_hash(address, p->seed), is_same_tunnel_end, p, address)->number;
}

/*
 * `inner`: the connection inside of a tunnel, of the first of each that have the same ends; NONE of others, SEVERAL.
 * `hashes`: of each connection's ends. Two with one first tuple are one.
 */
static int collect_inner(const struct seeker *seeker, const __u32 *hashes, struct index *index, __u32 *inner)
{
    const struct pairing *p = seeker->p;

    if (index_init(index, p->connection_count))
        return -1;
    for (__u32 i = 0; i < p->connection_count; i++) {
        struct slot *slot;
        struct ends ends;

        inner[i] = NONE;
        if (!is_tunnelled(p, seeker->firsts[i]))
            continue;
        ends = ends_of(p, seeker->firsts[i]);
        slot = index_find(index, hashes[i], has_same_ends, seeker, &ends);
        if (slot->number) {
            if (seeker->firsts[slot->number - 1] != seeker->firsts[i])
                inner[slot->number - 1] = SEVERAL;
            continue;
        }
        inner[i] = i;
        index_put(index, slot, hashes[i], i);
    }
    return 0;
}

/*
 * One that was also seen inside exactly one tunnel is that inner flow, seen outside of it (`-i any` shows a pod's
 * datagram on its veth, on the bridge, and in its carrier). Not so one of a tunnel's own end: who sends a forged inner
 * packet must not hide a flow of nodes.
 */
static __u32 stand_in(const struct seeker *seeker, __u32 hash, const struct index *index,
                      const struct index *tunnel_ends, const __u32 *inner, __u32 connection)
{
    const struct pairing *p = seeker->p;
    struct ends ends = ends_of(p, seeker->firsts[connection]);
    __u32 found;

    if (is_tunnel_end(p, tunnel_ends, ends.low) || is_tunnel_end(p, tunnel_ends, ends.high))
        return connection;
    found = index_find(index, hash, has_same_ends, seeker, &ends)->number;
    return found && inner[found - 1] != SEVERAL ? found - 1 : connection;
}

static int fold_plain(struct pairing *p, const __u32 *firsts, const __u32 *hashes)
{
    struct seeker seeker = {.p = p, .firsts = firsts};
    struct index index = {0}, tunnel_ends = {0};
    __u32 *inner = malloc(p->connection_count * sizeof(*inner) + 1), *into = inner;
    int failed = !inner || collect_tunnel_ends(p, &tunnel_ends) || collect_inner(&seeker, hashes, &index, inner);

    /* what stands in for a plain one is inside a tunnel, and is not asked again: `inner` of a plain one is free */
    for (__u32 i = 0; !failed && i < p->connection_count; i++) {
        index_ahead(&index, hashes, i, p->connection_count, first_named, &seeker, sizeof(struct flow_key));
        if (!is_tunnelled(p, firsts[i]))
            into[i] = stand_in(&seeker, hashes[i], &index, &tunnel_ends, inner, i);
    }
    for (__u32 i = 0; !failed && i < p->tuple_count; i++)
        if (!is_tunnelled(p, i))
            p->connection_of[i] = into[p->connection_of[i]];
    free(inner);
    index_free(&index);
    index_free(&tunnel_ends);
    return failed ? -1 : 0;
}

/* Whether `tuple` rather than `other`, in the same tunnel or in none, stands for what an end sent. */
static bool tells_sender(const struct pairing *p, __u32 tuple, __u32 other)
{
    bool sent = p->marks[tuple] & MARK_SENT, other_sent = p->marks[other] & MARK_SENT;

    return sent != other_sent ? sent : key_of(p, tuple)->vni <= key_of(p, other)->vni;
}

/* The tuple that each end sent; inside the tunnel rather than outside of it, sent rather than quoted. */
static void note_senders(struct pairing *p)
{
    for (__u32 i = 0; i < p->connection_count; i++)
        p->client[i] = p->server[i] = NONE;
    for (int tunnelled = 0; tunnelled < 2; tunnelled++)
        for (__u32 i = 0; i < p->tuple_count; i++) {
            __u32 *sender = &(p->marks[i] & MARK_REVERSE ? p->server : p->client)[p->connection_of[i]];

            if (is_tunnelled(p, i) == tunnelled &&
                (*sender == NONE || is_tunnelled(p, *sender) != tunnelled || tells_sender(p, i, *sender)))
                *sender = i;
        }
}

/* A connection in a tunnel may have been quoted under another VNI than it was sent under, or outside of the tunnel. */
static int note_quotes(struct pairing *p)
{
    for (int side = 0; side < 2; side++)
        if (!(p->quoted[side] = calloc(p->connection_count + 1, sizeof(*p->quoted[side]))))
            return -1;
    for (__u32 i = 0; i < p->tuple_count; i++)
        p->quoted[!!(p->marks[i] & MARK_REVERSE)][p->connection_of[i]] |= sum_of(p, i)->unreachable;
    return 0;
}

static int connect_tuples(struct pairing *p)
{
    __u32 *firsts = malloc(p->tuple_count * sizeof(*firsts) + 1);
    int failed;

    p->connection_of = malloc(p->tuple_count * sizeof(*p->connection_of) + 1);
    failed = !firsts || !p->connection_of || number_connections(p, firsts) ||
             (p->has_tunnels && (connect_halves(p, firsts, p->ends_hashes) || fold_plain(p, firsts, p->ends_hashes)));
    free(firsts);
    free(p->ends_hashes);
    p->ends_hashes = NULL;
    if (failed)
        return -1;
    p->client = malloc(p->connection_count * sizeof(*p->client) + 1);
    p->server = malloc(p->connection_count * sizeof(*p->server) + 1);
    p->outcome = malloc(p->connection_count + 1);
    p->direction_by = malloc(p->connection_count + 1);
    p->low_asks = malloc(p->connection_count + 1);
    if (!p->client || !p->server || !p->outcome || !p->direction_by || !p->low_asks)
        return -1;
    note_senders(p);
    return p->has_tunnels ? note_quotes(p) : 0;
}

/* ---- who listens ---- */

static struct endpoint source_of(const struct pairing *p, __u32 tuple)
{
    const struct flow_key *key = key_of(p, tuple);
    struct endpoint e = {.port = is_icmp(key->protocol) ? 0 : key->src_port, .protocol = key->protocol};

    memcpy(e.address, key->src, sizeof(e.address));
    return e;
}

static struct endpoint listener(const struct pairing *p, __u32 number)
{
    return number < p->tuple_count ? source_of(p, number) : p->listeners[number - p->tuple_count];
}

static bool is_same_endpoint(const void *all, __u32 number, const void *wanted)
{
    struct endpoint found = listener(all, number);
    const struct endpoint *e = wanted;

    return found.port == e->port && found.protocol == e->protocol && same_address(found.address, e->address);
}

static __u32 endpoint_hash(const struct pairing *p, const struct endpoint *e)
{
    return (__u32)(hash_pair(e->address, e->address, e->port, e->protocol, p->seed) >> 32);
}

static int add_listener(const struct pairing *p, struct index *listening, __u32 number)
{
    struct endpoint e = listener(p, number);
    __u32 hash = endpoint_hash(p, &e);
    struct slot *slot = index_find(listening, hash, is_same_endpoint, p, &e);

    if (slot->number)
        return 0;
    index_put(listening, slot, hash, number);
    return index_grow(listening);
}

static bool is_listening(const struct pairing *p, const struct index *listening, const struct endpoint *e)
{
    return index_find(listening, endpoint_hash(p, e), is_same_endpoint, p, e)->number;
}

/* Whether it stands for what an end of its connection sent. */
static bool is_sender(const struct pairing *p, __u32 tuple)
{
    __u32 connection = p->connection_of[tuple];

    return p->client[connection] == tuple || p->server[connection] == tuple;
}

/* Sockets that accepted a connection, or are known to listen otherwise: tuples, and behind them listeners. */
static int collect_listening(const struct pairing *p, struct index *listening)
{
    if (index_init(listening, 0))
        return -1;
    for (__u32 i = 0; i < p->tuple_count; i++) {
        if (i + AHEAD < p->tuple_count && p->marks[i + AHEAD] & MARK_ACCEPTS)
            ask_for(key_of(p, i + AHEAD), sizeof(struct flow_key));
        if (p->marks[i] & MARK_ACCEPTS && is_sender(p, i) && add_listener(p, listening, i))
            return -1;
    }
    for (__u32 i = 0; i < p->listener_count; i++)
        if (add_listener(p, listening, p->tuple_count + i))
            return -1;
    return 0;
}

/* ---- who carries ---- */

/* Carriers are judged by address pair and destination port, since the source port is a hash. */
struct way {
    const __u8 *from, *to;
    __u16 port;
};

/* Tuples that carry. `hashes`: of the ways they went, and of the ways back. */
struct carriers {
    const struct pairing *p;
    __u32 count;
    __u32 *tuples, *hashes[2];
};

static struct way way_of(const struct carriers *c, __u32 number, int back)
{
    const struct flow_key *key = key_of(c->p, c->tuples[number]);

    return (struct way){back ? key->dst : key->src, back ? key->src : key->dst, key->dst_port};
}

static bool is_same_way(const void *all, __u32 number, const void *wanted)
{
    struct way found = way_of(all, number, 0);
    const struct way *way = wanted;

    return found.port == way->port && same_address(found.from, way->from) && same_address(found.to, way->to);
}

static const void *carrier_named(const void *all, __u32 number)
{
    const struct carriers *c = all;

    return key_of(c->p, c->tuples[number]);
}

static __u32 count_carriers(const struct pairing *p)
{
    __u32 count = 0;

    for (__u32 i = 0; i < p->tuple_count; i++)
        count += p->marks[i] & MARK_CARRIER && is_sender(p, i);
    return count;
}

static void note_carriers(struct carriers *c)
{
    const struct pairing *p = c->p;

    for (__u32 i = 0; i < p->tuple_count; i++) {
        if (i + AHEAD < p->tuple_count && p->marks[i + AHEAD] & MARK_CARRIER)
            ask_for(key_of(p, i + AHEAD), sizeof(struct flow_key));
        if (!(p->marks[i] & MARK_CARRIER) || !is_sender(p, i))
            continue;
        c->tuples[c->count] = i;
        for (int back = 0; back < 2; back++) {
            struct way way = way_of(c, c->count, back);

            c->hashes[back][c->count] = (__u32)(hash_pair(way.from, way.to, way.port, 0, p->seed) >> 32);
        }
        c->count++;
    }
}

static struct slot *find_way(const struct carriers *c, const struct index *ways, __u32 number, int back)
{
    struct way way = way_of(c, number, back);

    index_ahead(ways, c->hashes[back], number, c->count, carrier_named, c, sizeof(struct flow_key));
    return index_find(ways, c->hashes[back][number], is_same_way, c, &way);
}

/* A carrier is answered where its way back has one too: the outcome of its connection. */
static int answer_carriers(const struct carriers *c, __u8 *outcome)
{
    struct index ways;

    if (index_init(&ways, c->count))
        return -1;
    for (__u32 i = 0; i < c->count; i++) {
        struct slot *slot = find_way(c, &ways, i, 0);

        if (!slot->number)
            index_put(&ways, slot, c->hashes[0][i], i);
    }
    for (__u32 i = 0; i < c->count; i++)
        outcome[c->p->connection_of[c->tuples[i]]] = find_way(c, &ways, i, 1)->number ? ANSWERED : ONE_WAY;
    index_free(&ways);
    return 0;
}

static int judge_carriers(struct pairing *p)
{
    size_t size = count_carriers(p) * sizeof(__u32) + 1;
    struct carriers c = {.p = p, .tuples = malloc(size), .hashes = {malloc(size), malloc(size)}};
    int failed = !c.tuples || !c.hashes[0] || !c.hashes[1];

    if (!failed)
        note_carriers(&c);
    failed = failed || answer_carriers(&c, p->outcome);
    free(c.tuples);
    free(c.hashes[0]);
    free(c.hashes[1]);
    return failed ? -1 : 0;
}

/* ---- direction ---- */

/* One connection while it is judged; an end that sent nothing has no tuple, and all its marks are 0. */
struct judged {
    const struct flow_key *key;  /* of one that sent */
    __u32 connection, tuples[2]; /* of the lower and the higher end */
    __u8 marks[2];
};

static struct judged judged_of(const struct pairing *p, __u32 connection)
{
    struct judged j = {.connection = connection, .tuples = {p->client[connection], p->server[connection]}};

    for (int side = 0; side < 2; side++)
        j.marks[side] = j.tuples[side] == NONE ? 0 : p->marks[j.tuples[side]];
    j.key = key_of(p, j.tuples[0] == NONE ? j.tuples[1] : j.tuples[0]);
    return j;
}

/* An end's socket, whether it sent or was sent something. */
static struct endpoint end_of(const struct judged *j, int side)
{
    bool sent = (j->tuples[0] == NONE) == side;
    struct endpoint e = {.protocol = j->key->protocol};

    if (!is_icmp(e.protocol))
        e.port = sent ? j->key->src_port : j->key->dst_port;
    memcpy(e.address, sent ? j->key->src : j->key->dst, sizeof(e.address));
    return e;
}

static __u64 start_of(const struct pairing *p, const struct judged *j, int side)
{
    return j->tuples[side] == NONE ? FLOW_NO_TIME : sum_of(p, j->tuples[side])->start;
}

static bool is_named(const struct pairing *p, const struct endpoint *e)
{
    __u32 bit = (__u32)e->protocol << 16 | e->port;

    return p->named[bit / 8] >> (bit % 8) & 1;
}

/* Each kind of evidence: above 0 where it says that the lower end asked, below where the higher one did. */
static int by_opening(const struct judged *j)
{
    int low = j->marks[0], high = j->marks[1], opened = !!(low & MARK_ASKS) - !!(high & MARK_ASKS);

    return opened ? opened : !!(high & (MARK_ACCEPTS | MARK_REPLIES)) - !!(low & (MARK_ACCEPTS | MARK_REPLIES));
}

/* Multicast (RFC 1112, RFC 4291) or the limited broadcast (RFC 919): nobody sends from there. */
static bool is_group(const __u8 *address)
{
    static const __u8 ipv4[12] = {[10] = 0xff, [11] = 0xff}, broadcast[4] = {0xff, 0xff, 0xff, 0xff};

    if (memcmp(address, ipv4, sizeof(ipv4)))
        return address[0] == 0xff;
    return address[12] >> 4 == 14 || !memcmp(address + 12, broadcast, sizeof(broadcast));
}

static int by_group(const struct endpoint ends[2])
{
    return is_group(ends[1].address) - is_group(ends[0].address);
}

/* Who is known to listen, or accepted another connection on the same address and port, is the server. */
static int by_listener(const struct pairing *p, const struct index *listening, const struct endpoint ends[2])
{
    return is_listening(p, listening, &ends[1]) - is_listening(p, listening, &ends[0]);
}

/* Whether a client may have got the one port by chance to ask the other: it is ephemeral, or a resolver took it. */
static bool is_of_client(__u16 port, __u16 other)
{
    return (port >= EPHEMERAL && other < EPHEMERAL) || (port >= UNPRIVILEGED && other < UNPRIVILEGED);
}

/*
 * Whether the one end whose port the specification names has it by chance, as one of WireGuard's or VXLAN's for a
 * question to DNS: of UDP, which has no opening, it is a client's rather than the other's, and it was heard first. Of
 * TCP without its opening, NAT gives pods' connections all ports above 1023, a NodePort's too, and who speaks first
 * says nothing; nobody's client is below. bpf/live.c judges by the same.
 */
static bool is_by_chance(const struct pairing *p, const struct judged *j, const struct endpoint ends[2], int server)
{
    __u16 port = ends[server].port, other = ends[!server].port;

    if (ends[0].protocol != UDP)
        return port >= UNPRIVILEGED && other < NO_CLIENTS;
    return is_of_client(port, other) && start_of(p, j, server) < start_of(p, j, !server);
}

/* The end whose port the specification names is the server. */
static int by_spec(const struct pairing *p, const struct judged *j, const struct endpoint ends[2])
{
    int says = is_named(p, &ends[1]) - is_named(p, &ends[0]);

    return says && is_by_chance(p, j, ends, says > 0) ? 0 : says;
}

/* The lower port answers; with equal ports, who was heard first asked. Never 0: the last resort decides. */
static int by_port(const struct pairing *p, const struct judged *j, const struct endpoint ends[2])
{
    if (ends[0].port == ends[1].port)
        return start_of(p, j, 0) <= start_of(p, j, 1) ? 1 : -1;
    return ends[0].port > ends[1].port ? 1 : -1;
}

static bool low_asks(const struct pairing *p, const struct index *listening, const struct judged *j, __u8 *by)
{
    /* a carrier's client is its sender: the source port is a hash and tells nothing */
    bool carrier = j->marks[0] & MARK_CARRIER;
    int says = carrier ? 0 : by_opening(j);
    struct endpoint ends[2];

    if (says) {
        *by = BY_SYN;
        return says > 0;
    }
    ends[0] = end_of(j, 0);
    ends[1] = end_of(j, 1);
    if (carrier)
        *by = is_named(p, &ends[1]) ? BY_SPEC : BY_PORT;
    else if ((says = by_group(ends)))
        *by = BY_PORT;
    else if ((says = by_listener(p, listening, ends)))
        *by = BY_LISTENER;
    else if ((says = by_spec(p, j, ends)))
        *by = BY_SPEC;
    else if ((says = by_port(p, j, ends)))
        *by = BY_PORT;
    return carrier || says > 0;
}

/* ---- outcome ---- */

/* The cases are tried in the order written; the first that holds stands. */
static enum outcome outcome_of(const struct pairing *p, const struct judged *j, int client)
{
    bool asked = j->marks[client] & MARK_SENT, replied = j->marks[!client] & MARK_SENT;
    bool opened = asked && j->marks[client] & MARK_ASKS;
    const struct flow_counters *sum;
    __u32 quoted = 0;

    if (j->marks[client] & MARK_CARRIER && p->outcome[j->connection] == ANSWERED)
        return ANSWERED;
    if (asked && replied)
        return opened && j->marks[!client] & MARK_RESETS ? REFUSED : ANSWERED;
    sum = j->tuples[client] == NONE ? NULL : sum_of(p, j->tuples[client]);
    if (sum)
        quoted = p->quoted[client] ? p->quoted[client][j->connection] : sum->unreachable;
    /* an ICMP destination-unreachable quoted what the client sent */
    if (!replied && quoted & ~FRAGMENTATION_NEEDED)
        return UNREACHABLE;
    /* the client acknowledged what the capture does not hold: it was answered out of sight */
    if (!replied && sum && j->key->protocol == TCP && sum->tcp_flags & TCP_ACK)
        return ONE_WAY;
    return opened || (asked && (j->key->protocol == UDP || j->key->protocol == SCTP)) ? UNANSWERED : ONE_WAY;
}

static void judge(struct pairing *p, const struct index *listening, __u32 connection)
{
    struct judged j = judged_of(p, connection);
    bool low = low_asks(p, listening, &j, &p->direction_by[connection]);

    p->outcome[connection] = (__u8)outcome_of(p, &j, low ? 0 : 1);
    p->low_asks[connection] = low;
    p->client[connection] = j.tuples[!low];
    p->server[connection] = j.tuples[low];
}

static void ask_for_client(const struct pairing *p, __u64 connection)
{
    if (connection < p->connection_count && p->client[connection] != NONE)
        ask_for(key_of(p, p->client[connection]), sizeof(struct flow_key));
}

static int judge_all(struct pairing *p)
{
    struct index listening = {0};
    int failed = judge_carriers(p) || collect_listening(p, &listening);

    for (__u32 i = 0; !failed && i < p->connection_count; i++) {
        ask_for_client(p, i + AHEAD);
        if (p->client[i] != NONE || p->server[i] != NONE)
            judge(p, &listening, i);
    }
    index_free(&listening);
    return failed ? -1 : 0;
}

/* ---- all of it ---- */

/* -1 when memory is out */
static int pair_rows(struct pairing *p)
{
    return find_tuples(p) || connect_tuples(p) || judge_all(p) ? -1 : 0;
}

static void pairing_free(struct pairing *p)
{
    void *owned[] = {p->starts,       p->ends_hashes,   p->tuple_of, p->first,     p->sums,
                     p->marks,        p->connection_of, p->client,   p->server,    p->outcome,
                     p->direction_by, p->low_asks,      p->named,    p->quoted[0], p->quoted[1]};

    for (size_t i = 0; i < sizeof(owned) / sizeof(*owned); i++)
        free(owned[i]);
}

/* Whether a row went from the server to the client. */
static inline bool is_inward(const struct pairing *p, __u32 row)
{
    __u32 tuple = tuple_of(p, row);

    return !!(p->marks[tuple] & MARK_REVERSE) == p->low_asks[p->connection_of[tuple]];
}

#endif
