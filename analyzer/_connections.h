/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: which rows answer each other, who asked, and how it went. One-way rows in, numbers out; no observer, no text.
 *
 * A tuple is all rows of one direction of one 5-tuple, whoever saw them and whenever. A connection is a tuple and the
 * one that answers it. `low` and `high` name a connection's ends by the order of their addresses and ports, until it is
 * known who asked.
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

/* ---- tuples ---- */

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

static int number_tuples(struct pairing *p)
{
    __u32 *hashes = malloc(p->row_count * sizeof(*hashes) + 1);
    struct index index = {0};
    int failed;

    p->tuple_of = malloc(p->row_count * sizeof(*p->tuple_of) + 1);
    p->first = malloc(p->row_count * sizeof(*p->first) + 1);
    failed = !hashes || !p->tuple_of || !p->first || index_init(&index, p->row_count);
    for (__u32 row = 0; !failed && row < p->row_count; row++)
        hashes[row] = tuple_hash(p, row);
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
    free(hashes);
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
    return 0;
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

/* Whether a tuple's destination is the lower end. */
static bool is_reverse(const struct flow_key *key)
{
    int order = address_order(key->dst, key->src);

    return order < 0 || (!order && !is_icmp(key->protocol) && key->dst_port < key->src_port);
}

static bool only_resets(const struct flow_key *key, const struct flow_counters *sum)
{
    return key->protocol == TCP && sum->tcp_flags & TCP_RST && !(sum->tcp_flags & ~(TCP_RST | TCP_ACK));
}

static int mark_tuples(struct pairing *p)
{
    p->marks = malloc(p->tuple_count + 1);
    if (!p->marks)
        return -1;
    for (__u32 i = 0; i < p->tuple_count; i++) {
        const struct flow_counters *sum = sum_of(p, i);
        const struct flow_key *key = key_of(p, i);
        bool carrier = sum->events & EVENT_CARRIER;
        __u16 type = key->src_port;

        p->marks[i] = (is_icmp(key->protocol) ? request_type(key->protocol, &type) : 0) | (carrier ? MARK_CARRIER : 0) |
                      (!carrier && is_reverse(key) ? MARK_REVERSE : 0) | (sum->events & EVENT_SYN ? MARK_ASKS : 0) |
                      (sum->events & EVENT_SYN_ACK ? MARK_ACCEPTS : 0) |
                      (key->tunnel != TUNNEL_NONE ? MARK_TUNNELLED : 0) | (sum->packets ? MARK_SENT : 0) |
                      (only_resets(key, sum) ? MARK_RESETS : 0);
    }
    return 0;
}

/* ---- connections ---- */

/* What both directions of a connection have in common, whatever it was carried in. */
struct ends {
    const __u8 *low, *high;
    __u64 ports;  /* of low and high, and for ICMP the request's type and the code */
    __u64 nature; /* protocol, and whether it carries a tunnel */
};

static struct ends ends_of(const struct pairing *p, __u32 tuple)
{
    const struct flow_key *key = key_of(p, tuple);
    bool reverse = p->marks[tuple] & MARK_REVERSE;
    __u16 type = key->src_port, code = key->dst_port;
    struct ends e = {.low = reverse ? key->dst : key->src, .high = reverse ? key->src : key->dst};

    e.nature = (__u64)key->protocol << 1 | !!(p->marks[tuple] & MARK_CARRIER);
    if (!is_icmp(key->protocol)) {
        e.ports = reverse ? (__u32)key->dst_port << 16 | key->src_port : (__u32)key->src_port << 16 | key->dst_port;
        return e;
    }
    request_type(key->protocol, &type);
    e.ports = (__u64)type << 48 | (__u64)code << 32;
    return e;
}

static inline bool same_ends(const struct ends *a, const struct ends *b)
{
    return a->ports == b->ports && a->nature == b->nature && same_address(a->low, b->low) &&
           same_address(a->high, b->high);
}

/* A tuple that looks for its connection. `firsts`: a tuple of each connection. */
struct seeker {
    const struct pairing *p;
    const __u32 *firsts;
    struct ends ends;
    const struct flow_key *key;
};

static __u32 ends_hash(const struct pairing *p, const struct ends *e)
{
    return (__u32)(hash_pair(e->low, e->high, e->ports, e->nature, p->seed) >> 32);
}

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

/* `firsts` and `hashes` have room for as many as there are tuples; hashes are of each connection's ends at the end. */
static int number_connections(struct pairing *p, __u32 *firsts, __u32 *hashes)
{
    struct seeker seeker = {.p = p, .firsts = firsts};
    struct index index;

    if (index_init(&index, p->tuple_count))
        return -1;
    for (__u32 tuple = 0; tuple < p->tuple_count; tuple++) {
        struct ends ends = ends_of(p, tuple);

        hashes[tuple] = ends_hash(p, &ends);
    }
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

/* The ends of all tunnels: nodes, not pods. A number is of a row and one of its two outer ends. */
static int collect_tunnel_ends(const struct pairing *p, struct index *ends)
{
    if (index_init(ends, 0))
        return -1;
    for (__u64 i = 0; i < 2ULL * p->row_count; i++) {
        const __u8 *address;
        struct slot *slot;
        __u32 hash;

        if (!is_tunnelled(p, tuple_of(p, (__u32)(i / 2))))
            continue;
        address = tunnel_end(p, (__u32)i);
        hash = address_hash(address, p->seed);
        slot = index_find(ends, hash, is_same_tunnel_end, p, address);
        if (slot->number)
            continue;
        index_put(ends, slot, hash, (__u32)i);
        if (index_grow(ends))
            return -1;
    }
    return 0;
}

static bool is_tunnel_end(const struct pairing *p, const struct index *ends, const __u8 *address)
{
    return index_find(ends, address_hash(address, p->seed), is_same_tunnel_end, p, address)->number;
}

/* The connections inside of tunnels that have the same ends; NONE where there are none, SEVERAL. */
#define SEVERAL (NONE - 1)

/* `hashes`: of each connection's ends */
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

static bool has_tunnels(const struct pairing *p)
{
    for (__u32 i = 0; i < p->tuple_count; i++)
        if (is_tunnelled(p, i))
            return true;
    return false;
}

/* The tuple that each end sent; inside the tunnel rather than outside of it. */
static void note_senders(struct pairing *p)
{
    for (__u32 i = 0; i < p->connection_count; i++)
        p->client[i] = p->server[i] = NONE;
    for (int tunnelled = 0; tunnelled < 2; tunnelled++)
        for (__u32 i = 0; i < p->tuple_count; i++)
            if (is_tunnelled(p, i) == tunnelled)
                (p->marks[i] & MARK_REVERSE ? p->server : p->client)[p->connection_of[i]] = i;
}

static int connect_tuples(struct pairing *p)
{
    __u32 *firsts = malloc(p->tuple_count * sizeof(*firsts) + 1);
    __u32 *hashes = malloc(p->tuple_count * sizeof(*hashes) + 1);
    int failed;

    p->connection_of = malloc(p->tuple_count * sizeof(*p->connection_of) + 1);
    failed = !firsts || !hashes || !p->connection_of || number_connections(p, firsts, hashes) ||
             (has_tunnels(p) && fold_plain(p, firsts, hashes));
    free(firsts);
    free(hashes);
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
    return 0;
}

/* ---- who listens, and who carries ---- */

/* Two sets: sockets that accepted a connection, or are known to listen otherwise; and what carriers were sent. */
struct known {
    struct index listening; /* numbers: tuples that accepted, and behind them listeners */
    struct index carriers;  /* numbers: tuples */
};

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

static bool is_listening(const struct pairing *p, const struct known *known, const struct endpoint *e)
{
    return index_find(&known->listening, endpoint_hash(p, e), is_same_endpoint, p, e)->number;
}

/* Carriers are judged by address pair and destination port, since the source port is a hash. */
struct way {
    const __u8 *from, *to;
    __u16 port;
};

static bool is_same_way(const void *all, __u32 number, const void *wanted)
{
    const struct flow_key *key = key_of(all, number);
    const struct way *way = wanted;

    return key->dst_port == way->port && same_address(key->src, way->from) && same_address(key->dst, way->to);
}

static struct slot *find_way(const struct pairing *p, const struct index *carriers, const struct way *way, __u32 *hash)
{
    *hash = (__u32)(hash_pair(way->from, way->to, way->port, 0, p->seed) >> 32);
    return index_find(carriers, *hash, is_same_way, p, way);
}

static int add_carrier(const struct pairing *p, struct index *carriers, __u32 tuple)
{
    const struct flow_key *key = key_of(p, tuple);
    __u32 hash;
    struct slot *slot = find_way(p, carriers, &(struct way){key->src, key->dst, key->dst_port}, &hash);

    if (slot->number)
        return 0;
    index_put(carriers, slot, hash, tuple);
    return index_grow(carriers);
}

static bool other_end_carries(const struct pairing *p, const struct known *known, __u32 tuple)
{
    const struct flow_key *key = key_of(p, tuple);
    __u32 hash;

    return find_way(p, &known->carriers, &(struct way){key->dst, key->src, key->dst_port}, &hash)->number;
}

/* Whether it stands for what an end of its connection sent. */
static bool is_sender(const struct pairing *p, __u32 tuple)
{
    __u32 connection = p->connection_of[tuple];

    return p->client[connection] == tuple || p->server[connection] == tuple;
}

static int collect_known(const struct pairing *p, struct known *known)
{
    if (index_init(&known->listening, 0) || index_init(&known->carriers, 0))
        return -1;
    for (__u32 i = 0; i < p->tuple_count; i++) {
        if (i + AHEAD < p->tuple_count && p->marks[i + AHEAD] & (MARK_ACCEPTS | MARK_CARRIER))
            ask_for(key_of(p, i + AHEAD), sizeof(struct flow_key));
        if (!(p->marks[i] & (MARK_ACCEPTS | MARK_CARRIER)) || !is_sender(p, i))
            continue;
        if (p->marks[i] & MARK_ACCEPTS && add_listener(p, &known->listening, i))
            return -1;
        if (p->marks[i] & MARK_CARRIER && add_carrier(p, &known->carriers, i))
            return -1;
    }
    for (__u32 i = 0; i < p->listener_count; i++)
        if (add_listener(p, &known->listening, p->tuple_count + i))
            return -1;
    return 0;
}

/* ---- direction ---- */

/* One connection while it is judged; an end that sent nothing has no tuple, and all its marks are 0. */
struct judged {
    const struct flow_key *key; /* of `any` */
    __u32 tuples[2], any;       /* of the lower and the higher end; of one that sent */
    __u8 marks[2];
};

static struct judged judged_of(const struct pairing *p, __u32 connection)
{
    struct judged j = {.tuples = {p->client[connection], p->server[connection]}};

    for (int side = 0; side < 2; side++)
        j.marks[side] = j.tuples[side] == NONE ? 0 : p->marks[j.tuples[side]];
    j.any = j.tuples[0] == NONE ? j.tuples[1] : j.tuples[0];
    j.key = key_of(p, j.any);
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

/* Who is known to listen, or accepted another connection on the same address and port, is the server. */
static int by_listener(const struct pairing *p, const struct known *known, const struct endpoint ends[2])
{
    return is_listening(p, known, &ends[1]) - is_listening(p, known, &ends[0]);
}

static int by_spec(const struct pairing *p, const struct endpoint ends[2])
{
    return is_named(p, &ends[1]) - is_named(p, &ends[0]);
}

/* The lower port answers; with equal ports, who was heard first asked. Never 0: the last resort decides. */
static int by_port(const struct pairing *p, const struct judged *j, const struct endpoint ends[2])
{
    if (ends[0].port == ends[1].port)
        return start_of(p, j, 0) <= start_of(p, j, 1) ? 1 : -1;
    return ends[0].port > ends[1].port ? 1 : -1;
}

static bool low_asks(const struct pairing *p, const struct known *known, const struct judged *j, __u8 *by)
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
    else if ((says = by_listener(p, known, ends)))
        *by = BY_LISTENER;
    else if ((says = by_spec(p, ends)))
        *by = BY_SPEC;
    else if ((says = by_port(p, j, ends)))
        *by = BY_PORT;
    return carrier || says > 0;
}

/* ---- outcome ---- */

/* The cases are tried in the order written; the first that holds stands. */
static enum outcome outcome_of(const struct pairing *p, const struct known *known, const struct judged *j, int client)
{
    bool asked = j->marks[client] & MARK_SENT, replied = j->marks[!client] & MARK_SENT;
    bool opened = asked && j->marks[client] & MARK_ASKS;
    const struct flow_counters *sum;

    if (j->marks[client] & MARK_CARRIER && other_end_carries(p, known, j->any))
        return ANSWERED;
    if (asked && replied)
        return opened && j->marks[!client] & MARK_RESETS ? REFUSED : ANSWERED;
    sum = j->tuples[client] == NONE ? NULL : sum_of(p, j->tuples[client]);
    /* an ICMP destination-unreachable quoted what the client sent */
    if (!replied && sum && sum->unreachable & ~FRAGMENTATION_NEEDED)
        return UNREACHABLE;
    /* the client acknowledged what the capture does not hold: it was answered out of sight */
    if (!replied && sum && j->key->protocol == TCP && sum->tcp_flags & TCP_ACK)
        return ONE_WAY;
    return opened || (asked && (j->key->protocol == UDP || j->key->protocol == SCTP)) ? UNANSWERED : ONE_WAY;
}

static void judge(struct pairing *p, const struct known *known, __u32 connection)
{
    struct judged j = judged_of(p, connection);
    bool low = low_asks(p, known, &j, &p->direction_by[connection]);

    p->outcome[connection] = (__u8)outcome_of(p, known, &j, low ? 0 : 1);
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
    struct known known = {0};
    int failed = collect_known(p, &known);

    for (__u32 i = 0; !failed && i < p->connection_count; i++) {
        ask_for_client(p, i + AHEAD);
        if (p->client[i] != NONE || p->server[i] != NONE)
            judge(p, &known, i);
    }
    index_free(&known.listening);
    index_free(&known.carriers);
    return failed;
}

/* ---- all of it ---- */

/* -1 when memory is out */
static int pair_rows(struct pairing *p)
{
    return number_tuples(p) || sum_tuples(p) || mark_tuples(p) || connect_tuples(p) || judge_all(p) ? -1 : 0;
}

static void pairing_free(struct pairing *p)
{
    void *owned[] = {p->tuple_of, p->first,   p->sums,         p->marks,    p->connection_of, p->client,
                     p->server,   p->outcome, p->direction_by, p->low_asks, p->named};

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
