/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rule: what the kernel counts, judges and tells on a live node. Every tc program here ends in TC_ACT_UNSPEC and no
 * helper that writes, drops or redirects a packet is called: it watches. What a packet is, packet.h says; what a row
 * is, flow.h. Whoever reads these maps takes their layouts from here, and analyzer/capture/_program.py compares them.
 *
 * BCC compiles this file. Macros: FLOWS (rows that fit a table); ETHERNET_LINKS and RAW_LINKS, which of them there are
 * to watch; OWNERS_SEEN where there is a tracefs, with OFFSET_TASK_ macros where there is BTF; DROPS with the other
 * OFFSET_ macros of the running kernel's BTF and NETWORK_NAMESPACE, where it publishes any and kfree_skb has a reason.
 *
 * There are two flow tables, two of drops and two ledgers, and time says which one counts: before `boundary` the one,
 * from then on the other. So an interval ends at an exact time, and what user space reads is at rest. None of them
 * evicts: what finds no room is counted.
 */
#include <uapi/linux/bpf.h>

#define PACKET_WINDOW 192
#include "packet.h"

#ifndef FLOWS
#define FLOWS 131072
#endif
#define OWNER_ROWS  65536
#define CONNECTING  16384
#define FRAGMENTS   4096
#define ALERT_KEYS  16384
#define HEARD       16384
#define ALERT_PAGES 256
#define ALERT_BYTES 128
#define DROP_ROWS   32768
#define MEMBERS     65536
#define RANGES      16384
#define CLASSES     1024

#define PROTOCOL_ROWS 5 /* analyzer/spec.py's PROTOCOLS */
#define ROLE_MASKS    16
#define GENERATIONS   2

#define NS               1000000000ULL
#define FRAGMENT_MAX_NS  (60 * NS)
#define ALERT_QUIET_NS   (60 * NS)
#define TC_ACT_UNSPEC    (-1)
#define SS_SYN_SENT      2 /* include/net/tcp_states.h */
#define PORT_WIREGUARD   51820
#define PORT_WIREGUARD_6 51821
#define PORT_WIREGUARD_C 51871 /* Cilium's */
#define NO_CLIENTS       512   /* analyzer/_connections.h has these three as well */
#define UNPRIVILEGED     1024
#define EPHEMERAL        32768

/* ---- what user space sets ---- */

struct config {
    __u64 boundary;   /* ns of bpf_ktime_get_ns, the lowest bit is the table that counts before it; 0: not begun */
    __u32 generation; /* of the verdict tables; the lowest bit is the half that holds */
    __u32 judging;    /* 0: there is no cluster file, so nothing is judged */
};

struct place_key {
    __u32 generation;
    __u8 address[16];
};

struct place {
    __u32 member; /* index in Cluster.members */
    __u32 roles;  /* mask of ROLE_BITS */
};

struct range_key {
    __u32 prefix_length;
    __u32 generation;
    __u8 address[16];
};

struct port_class {
    __u16 own;   /* class of the port under its own protocol */
    __u16 other; /* and under another one that carries ports */
};

/* ---- what user space reads ---- */

struct live_key {
    struct flow_key flow;
    __u64 cpu; /* each CPU has rows of its own: no lock, no atomic, and no value for CPUs that never saw the flow */
};

/* Coverage of analyzer/rows.py, by CPU */
struct ledger {
    __u64 frames;
    __u64 results[PARSE_RESULTS]; /* [PARSED]: frames that ended in a flow row */
    __u64 fragment;
    __u64 overflow;
    __u64 inner[PARSE_RESULTS]; /* [PARSED] not used */
    __u64 inner_fragment;
    __u64 inner_overflow;
    __u64 bytes;       /* of all frames, link header included */
    __u64 other_bytes; /* of the frames that ended in no row */
    __u64 rows;        /* made in this table since it was emptied */
    __u64 alerts;
    __u64 alerts_lost;
    __u64 drops_lost; /* dropped packets for which there was no row; written by kfree_skb's program alone, as is: */
    __u64 drop_rows;
};

struct owner_key {
    __u8 src[16];
    __u8 dst[16];
    __u16 src_port;
    __u16 dst_port;
    __u32 reserved;
};

struct owner {
    __u64 cgroup;
    __u32 pid;
    __u32 reserved;
    char process[16];
};

enum alert_verdict {
    ALERT_WRONG_PAIR = 1,
    ALERT_WRONG_PROTOCOL = 2,
    ALERT_UNLISTED = 3,
    ALERT_FOREIGN_TUNNEL = 4,
};

struct alert {
    __u64 time; /* ns of bpf_ktime_get_ns */
    struct flow_key key;
    struct owner owner; /* of the connecting side, where it is on this node and known; else zero */
    __u32 length;       /* of the frame */
    __u32 captured;     /* of `bytes` */
    __u16 port;         /* the server's port, for ICMP the request's type */
    __u8 verdict;
    __u8 reversed; /* the packet went from server to client */
    __u8 link;
    __u8 reserved[3];
    __u8 bytes[ALERT_BYTES];
};

struct drop_key {
    __u8 src[16];
    __u8 dst[16];
    __u16 src_port;
    __u16 dst_port;
    __u32 reason;
    __u8 protocol;
    __u8 reserved[7];
    __u64 cpu; /* as in live_key */
};

struct drop {
    __u64 packets;
    __u64 start;
    __u64 end;
};

/* analyzer/capture/_program.py has the same numbers */
FLOW_OFFSET(live_key, cpu, 80);
FLOW_OFFSET(config, generation, 8);
FLOW_OFFSET(owner_key, src_port, 32);
FLOW_OFFSET(owner, pid, 8);
FLOW_OFFSET(owner, process, 16);
FLOW_OFFSET(alert, key, 8);
FLOW_OFFSET(alert, owner, 88);
FLOW_OFFSET(alert, length, 120);
FLOW_OFFSET(alert, port, 128);
FLOW_OFFSET(alert, verdict, 130);
FLOW_OFFSET(alert, reversed, 131);
FLOW_OFFSET(alert, link, 132);
FLOW_OFFSET(alert, bytes, 136);
FLOW_OFFSET(drop_key, src_port, 32);
FLOW_OFFSET(drop_key, reason, 36);
FLOW_OFFSET(drop_key, protocol, 40);
FLOW_OFFSET(drop_key, cpu, 48);
FLOW_OFFSET(drop, end, 16);
_Static_assert(sizeof(struct alert) == 264, "alert");

/* ---- what stays in the kernel ---- */

struct fragment_key {
    struct flow_key flow; /* without ports, the protocol as the IPv4 header says, 0 in IPv6 */
    __u64 id;
};

struct fragment_flow {
    __u64 time;
    __u64 seen;
    __u64 expected;
    __u16 src_port;
    __u16 dst_port;
    __u8 protocol;
    __u8 reserved[3];
};

struct alert_key {
    __u8 client[16];
    __u8 server[16];
    __u16 port;
    __u8 protocol;
    __u8 reserved;
    __u32 generation; /* what was told by other tables is told anew */
};

struct work {
    __u8 bytes[PACKET_WINDOW];
    __u64 scratch[2];
    struct packet layers[PACKET_LAYERS];
    struct flow_counters more;
    struct fragment_key fragment;
    struct alert_key asked;
    struct alert_key answered;
    struct owner_key ends;
    __u32 direction;
    __u32 reserved;
};

BPF_ARRAY(configs, struct config, 1);
BPF_HASH(members, struct place_key, struct place, MEMBERS);
BPF_LPM_TRIE(ranges, struct range_key, __u32, RANGES);
BPF_ARRAY(port_classes, struct port_class, GENERATIONS *PROTOCOL_ROWS * 65536);
BPF_ARRAY(pairs_allowed, __u32, GENERATIONS *CLASSES *ROLE_MASKS *ROLE_MASKS);

BPF_TABLE("hash", struct live_key, struct flow_counters, flows_0, FLOWS);
BPF_TABLE("hash", struct live_key, struct flow_counters, flows_1, FLOWS);
BPF_PERCPU_ARRAY(ledgers, struct ledger, 2);
BPF_TABLE("lru_hash", struct owner_key, struct owner, owners, OWNER_ROWS);
BPF_RINGBUF_OUTPUT(alerts, ALERT_PAGES);

BPF_TABLE("lru_hash", __u64, struct owner, connecting, CONNECTING);
BPF_TABLE("lru_hash", struct fragment_key, struct fragment_flow, fragments, FRAGMENTS);
BPF_TABLE("lru_hash", struct alert_key, __u64, alerted, ALERT_KEYS);
BPF_TABLE("lru_hash", struct owner_key, __u32, heard, HEARD); /* 1: the source was heard before the other end */
BPF_PERCPU_ARRAY(works, struct work, 1);

/* Which of the two tables counts at a time */
static __always_inline __u32 slot_at(const struct config *config, __u64 now)
{
    __u64 boundary = *(volatile __u64 *)&config->boundary;

    return (boundary & 1) ^ (now >= (boundary & ~1ULL));
}

/* One packet on its way through the functions below. */
struct sight {
    struct work *work;
    struct ledger *ledger;
    struct config *config;
    __u64 now;
    __u64 length;  /* of the frame */
    __u64 packets; /* that it is on the wire */
    __u64 payload; /* where what the innermost transport carries begins */
    __u32 slot;
    __u32 link;
    __u32 captured;
    __u32 begins; /* the packet that was recorded last was no row's */
};

/* ---- verdict: of the first packet of a row ---- */

static __always_inline int protocol_row(__u8 protocol)
{
    switch (protocol) {
    case IP_TCP:
        return 0;
    case IP_UDP:
        return 1;
    case IP_SCTP:
        return 2;
    case IP_ICMP:
        return 3;
    case IP_ICMPV6:
        return 4;
    default:
        return -1;
    }
}

/* ICMP errors belong to the flow that they quote, neighbour discovery to the link: analyzer/verdict.py */
static __always_inline int is_control(__u8 protocol, __u16 type)
{
    if (protocol == IP_ICMP)
        return type == 3 || type == 4 || type == 5 || (type >= 9 && type <= 12);
    if (protocol == IP_ICMPV6)
        return (type >= 1 && type <= 4) || (type >= 130 && type <= 137) || type == 143;
    return 0;
}

/* The request that an ICMP reply answers, else 0 (RFC 792, 950, 4443) */
static __always_inline __u16 request_of(__u8 protocol, __u16 type)
{
    if (protocol == IP_ICMP)
        return type == 0 ? 8 : type == 14 || type == 16 || type == 18 ? type - 1 : 0;
    return protocol == IP_ICMPV6 && type == 129 ? 128 : 0;
}

static __always_inline struct port_class class_of(const struct sight *s, int row, __u16 port)
{
    struct port_class none = {}, *found;
    __u32 index;

    if (row < 0)
        return none;
    index = (((s->config->generation & 1) * PROTOCOL_ROWS + row) << 16) + port;
    found = port_classes.lookup(&index);
    return found ? *found : none;
}

static __always_inline struct place *place_of(const struct sight *s, const __u8 *address)
{
    struct place_key key = {.generation = s->config->generation & 1};

    __builtin_memcpy(key.address, address, 16);
    return members.lookup(&key);
}

static __always_inline int is_inside(const struct sight *s, const __u8 *address)
{
    struct range_key key = {.prefix_length = 32 + 128, .generation = s->config->generation & 1};

    __builtin_memcpy(key.address, address, 16);
    return ranges.lookup(&key) != 0;
}

static __always_inline int is_tunnel_port(__u8 protocol, __u16 port)
{
    return protocol == IP_UDP && (port == PORT_VXLAN || port == PORT_VXLAN_LINUX || port == PORT_GENEVE ||
                                  port == PORT_WIREGUARD || port == PORT_WIREGUARD_6 || port == PORT_WIREGUARD_C);
}

static __always_inline int verdict_of(const struct sight *s, struct port_class class, __u32 client, __u32 server)
{
    __u32 index, *allowed;

    if (!class.own)
        return class.other ? ALERT_WRONG_PROTOCOL : ALERT_UNLISTED;
    index = (s->config->generation & 1) * CLASSES + (class.own & (CLASSES - 1));
    index = (index * ROLE_MASKS + (client & (ROLE_MASKS - 1))) * ROLE_MASKS + (server & (ROLE_MASKS - 1));
    allowed = pairs_allowed.lookup(&index);
    return allowed && *allowed ? 0 : ALERT_WRONG_PAIR;
}

static __always_inline void name_pair(struct alert_key *key, const struct flow_key *flow, int reversed, __u16 port,
                                      __u32 generation)
{
    __builtin_memcpy(key->client, reversed ? flow->dst : flow->src, 16);
    __builtin_memcpy(key->server, reversed ? flow->src : flow->dst, 16);
    key->port = port;
    key->protocol = flow->protocol;
    key->reserved = 0;
    key->generation = generation;
}

/* Tells user space, but for what it was told within the last minute or what has gone on since. */
static __always_inline void alert(const struct sight *s, const struct packet *p, const struct alert_key *name,
                                  int reversed, int verdict)
{
    __u64 *told = alerted.lookup((struct alert_key *)name);
    __u64 before = told ? *told : 0;
    struct owner_key key = {.src_port = p->key.src_port, .dst_port = p->key.dst_port};
    struct owner *owner;
    struct alert *a;

    alerted.update((struct alert_key *)name, (__u64 *)&s->now);
    if (told && s->now - before < ALERT_QUIET_NS)
        return;
    s->ledger->alerts++;
    a = alerts.ringbuf_reserve(sizeof(struct alert));
    if (!a) {
        s->ledger->alerts_lost++;
        return;
    }
    a->time = s->now;
    a->key = p->key;
    __builtin_memcpy(key.src, p->key.src, 16);
    __builtin_memcpy(key.dst, p->key.dst, 16);
    owner = owners.lookup(&key);
    if (owner)
        a->owner = *owner;
    else
        __builtin_memset(&a->owner, 0, sizeof(a->owner));
    a->length = (__u32)s->length;
    a->captured = s->captured < ALERT_BYTES ? s->captured : ALERT_BYTES;
    a->port = name->port;
    a->verdict = (__u8)verdict;
    a->reversed = (__u8)reversed;
    a->link = (__u8)s->link;
    __builtin_memset(a->reserved, 0, sizeof(a->reserved));
    __builtin_memcpy(a->bytes, s->work->bytes, ALERT_BYTES);
    alerts.ringbuf_submit(a, 0);
}

static __always_inline void name_ends(struct owner_key *key, const struct flow_key *flow, int reversed)
{
    __builtin_memcpy(key->src, reversed ? flow->dst : flow->src, 16);
    __builtin_memcpy(key->dst, reversed ? flow->src : flow->dst, 16);
    key->src_port = reversed ? flow->dst_port : flow->src_port;
    key->dst_port = reversed ? flow->src_port : flow->dst_port;
    key->reserved = flow->protocol;
}

/* Whether the packet's source was heard before its destination; it is noted for either way. */
static __always_inline int is_heard_first(const struct sight *s, const struct packet *p)
{
    struct owner_key *key = &s->work->ends;
    __u32 first = 1, *known;

    name_ends(key, &p->key, 0);
    known = heard.lookup(key);
    if (known)
        return *known != 0;
    heard.update(key, &first);
    first = 0;
    name_ends(key, &p->key, 1);
    heard.update(key, &first);
    return 1;
}

/*
 * Whether the one end whose port the specification names has it by chance, as by_spec() of analyzer/_connections.h has
 * it: of UDP, a port that clients are given, beside one that serves rather, and it was heard first; of TCP, one above
 * 1023 beside one that no client has.
 */
static __always_inline int is_by_chance(const struct sight *s, const struct packet *p, int src_named)
{
    __u16 named = src_named ? p->key.src_port : p->key.dst_port;
    __u16 other = src_named ? p->key.dst_port : p->key.src_port;

    if (p->key.protocol != IP_UDP)
        return named >= UNPRIVILEGED && other < NO_CLIENTS;
    if (!(named >= EPHEMERAL && other < EPHEMERAL) && !(named >= UNPRIVILEGED && other < UNPRIVILEGED))
        return 0;
    return is_heard_first(s, p) == src_named;
}

/*
 * Whether the packet went from server to client: a tunnel's carrier never does; by who opened, by what was told before,
 * by the specification, and as a last resort the lower port serves, of equal ones who was heard last; as
 * analyzer/_connections.h has it.
 */
static __always_inline int is_reversed(const struct sight *s, const struct packet *p, int row)
{
    int src_named, dst_named;

    if (p->events & EVENT_CARRIER)
        return 0;
    if (p->events & (EVENT_SYN | EVENT_SYN_ACK))
        return !(p->events & EVENT_SYN);
    if (alerted.lookup(&s->work->asked))
        return 0;
    if (alerted.lookup(&s->work->answered))
        return 1;
    src_named = class_of(s, row, p->key.src_port).own != 0;
    dst_named = class_of(s, row, p->key.dst_port).own != 0;
    if (src_named != dst_named && !is_by_chance(s, p, src_named))
        return src_named;
    if (p->key.src_port == p->key.dst_port)
        return !is_heard_first(s, p);
    return p->key.src_port < p->key.dst_port;
}

static __always_inline void judge_members(const struct sight *s, const struct packet *p, const struct place *src,
                                          const struct place *dst)
{
    int row = protocol_row(p->key.protocol), icmp = row >= 3, reversed = 0, verdict;
    __u16 request = request_of(p->key.protocol, p->key.src_port);
    __u32 generation = s->config->generation;
    struct alert_key *name;

    if (is_control(p->key.protocol, p->key.src_port) && icmp)
        return;
    name_pair(&s->work->asked, &p->key, 0, icmp ? p->key.src_port : p->key.dst_port, generation);
    name_pair(&s->work->answered, &p->key, 1, icmp ? request : p->key.src_port, generation);
    if (icmp)
        reversed = request != 0;
    else if (row >= 0)
        reversed = is_reversed(s, p, row);
    name = reversed ? &s->work->answered : &s->work->asked;
    verdict = verdict_of(s, class_of(s, row, name->port), reversed ? dst->roles : src->roles,
                         reversed ? src->roles : dst->roles);
    if (verdict)
        alert(s, p, name, reversed, verdict);
}

/* Between a member and an address outside: what comes in may be a tunnel, what goes out says who asked. */
static __always_inline void judge_outside(const struct sight *s, const struct packet *p, int comes)
{
    if (!is_tunnel_port(p->key.protocol, comes ? p->key.dst_port : p->key.src_port))
        return;
    if (is_inside(s, comes ? p->key.src : p->key.dst))
        return;
    name_pair(&s->work->asked, &p->key, 0, p->key.dst_port, s->config->generation);
    name_pair(&s->work->answered, &p->key, 1, p->key.src_port, s->config->generation);
    if (!is_reversed(s, p, protocol_row(IP_UDP)) && comes)
        alert(s, p, &s->work->asked, 0, ALERT_FOREIGN_TUNNEL);
}

static __always_inline void judge(const struct sight *s, const struct packet *p)
{
    struct place *src, *dst;

    if (!s->config->judging)
        return;
    dst = place_of(s, p->key.dst);
    src = place_of(s, p->key.src);
    if (src && dst && src->member != dst->member)
        judge_members(s, p, src, dst);
    else if (!src != !dst)
        judge_outside(s, p, !src);
}

/* ---- rows ---- */

enum recorded {
    RECORDED = 0,
    WAITS = 1, /* a later fragment whose first one is not known */
    FULL = 2,
};

/* A packet's key and the word behind it are the row's key in place: record() puts the CPU there. */
static __always_inline struct live_key *row_key(struct packet *p)
{
    _Static_assert(__builtin_offsetof(struct packet, bytes) == __builtin_offsetof(struct live_key, cpu), "row_key");
    return (struct live_key *)p;
}

/*
 * Each table has a call of its own: clang would fold the two into one, and the kernel, not knowing which map it is for,
 * would make of it an indirect call.
 */
static __always_inline struct flow_counters *row_of(const struct sight *s, struct live_key *key)
{
    struct flow_counters *row;

    if (!s->slot)
        return flows_0.lookup(key);
    row = flows_1.lookup(key);
    asm volatile("" : "+r"(row));
    return row;
}

static __always_inline int add_row(struct sight *s, struct packet *p)
{
    struct live_key *key = row_key(p);
    struct flow_counters *row = row_of(s, key);
    struct work *w = s->work;
    int failed;

    if (row) {
        count(row, &w->more);
        return RECORDED;
    }
    failed = s->slot ? flows_1.insert(key, &w->more) : flows_0.insert(key, &w->more);
    if (!failed)
        s->ledger->rows++;
    s->begins = 1;
    return failed ? FULL : RECORDED;
}

static __always_inline void note_first(const struct sight *s, const struct packet *p)
{
    struct fragment_flow flow = {
        .time = s->now,
        .seen = p->fragment_payload,
        .expected = p->fragment_end,
        .src_port = p->key.src_port,
        .dst_port = p->key.dst_port,
        .protocol = p->key.protocol,
    };

    fragments.update(&s->work->fragment, &flow);
}

/* Gives a later fragment its flow's ports; 0 where they are not known. */
static __always_inline int find_first(const struct sight *s, struct packet *p)
{
    struct fragment_flow *flow = fragments.lookup(&s->work->fragment);

    if (!flow || s->now - flow->time > FRAGMENT_MAX_NS)
        return 0;
    p->key.src_port = flow->src_port;
    p->key.dst_port = flow->dst_port;
    p->key.protocol = flow->protocol;
    flow->time = s->now;
    flow->seen += p->fragment_payload;
    if (p->fragment_end)
        flow->expected = p->fragment_end;
    if (flow->expected && flow->seen >= flow->expected)
        fragments.delete(&s->work->fragment);
    return 1;
}

/* Whether the ports of a fragment's datagram are known. */
static __always_inline int place_fragment(const struct sight *s, struct packet *p)
{
    struct fragment_key *key = &s->work->fragment;

    key->flow = p->key;
    key->flow.src_port = 0;
    key->flow.dst_port = 0;
    key->flow.protocol = p->fragment_protocol;
    key->id = p->fragment_id;
    if (p->fragment == FRAGMENT_LATER)
        return find_first(s, p);
    note_first(s, p);
    return 1;
}

/* A quote is no packet: the quoted flow learns what was said of it. */
static __always_inline int record(struct sight *s, struct packet *p, int quote)
{
    struct work *w = s->work;
    __u64 bytes = p->bytes;
    __u64 headers = s->payload > p->start ? s->payload - p->start : 0;

    if (quote && p->fragment == FRAGMENT_LATER)
        return RECORDED;
    row_key(p)->cpu = bpf_get_smp_processor_id();
    __builtin_memset(&w->more, 0, sizeof(w->more));
    w->more.start = s->now;
    w->more.end = s->now;
    if (quote) {
        w->more.unreachable = p->unreachable;
        return add_row(s, p);
    }
    w->more.packets = s->packets;
    w->more.bytes = bytes + (s->packets - 1) * headers;
    w->more.tcp_flags = p->tcp_flags;
    w->more.events = p->events;
    if (p->fragment != FRAGMENT_NONE && !place_fragment(s, p))
        return WAITS;
    return add_row(s, p);
}

/* ---- one frame ---- */

static __always_inline int record_outer(struct sight *s, struct packet *p)
{
    int recorded = record(s, p, 0);

    if (recorded == RECORDED)
        s->ledger->results[PARSED] += s->packets;
    else if (recorded == WAITS)
        s->ledger->fragment += s->packets;
    else
        s->ledger->overflow += s->packets;
    return recorded;
}

static __always_inline void record_inner(struct sight *s, struct packet *p, int result, int quote)
{
    int recorded;

    if (result != PARSED) {
        if (!quote)
            s->ledger->inner[result & 7] += s->packets;
        return;
    }
    recorded = record(s, p, quote);
    if (recorded == WAITS)
        s->ledger->inner_fragment += s->packets;
    else if (recorded == FULL && !quote)
        s->ledger->inner_overflow += s->packets;
}

/* Segmentation and receive offload: one skb is many packets, each with all the headers (__sk_buff, linux/bpf.h). */
static __always_inline void set_packets(struct sight *s, struct __sk_buff *skb)
{
    __u64 carried = s->length > s->payload ? s->length - s->payload : 0;

    s->packets = 1;
    if (!skb->gso_size || !s->payload)
        return;
    if (skb->gso_segs)
        s->packets = skb->gso_segs;
    else if (carried)
        s->packets = (carried + skb->gso_size - 1) / skb->gso_size;
    s->length += (s->packets - 1) * s->payload;
}

/* Says who opened the connection whose SYN leaves here: the socket is the one that the tracepoint saw. */
static __always_inline void note_owner(struct __sk_buff *skb, const struct packet *p)
{
    struct owner_key key = {.src_port = p->key.src_port, .dst_port = p->key.dst_port};
    __u64 sk = (__u64)(unsigned long)skb->sk;
    struct owner *owner;

    if (!sk)
        return;
    owner = connecting.lookup(&sk);
    if (!owner)
        return;
    __builtin_memcpy(key.src, p->key.src, 16);
    __builtin_memcpy(key.dst, p->key.dst, 16);
    owners.update(&key, owner);
}

static __always_inline void watch_frame(struct sight *s, struct __sk_buff *skb, __u8 direction)
{
    struct packet *layers = s->work->layers;
    struct cursor c = {
        .base = s->work->bytes,
        .have = s->captured,
        .end = s->length,
        .scratch = s->work->scratch,
    };
    int results[PACKET_LAYERS] = {}, found = 1, begins, i;

    __builtin_memset(&layers[0], 0, sizeof(layers[0]));
    layers[0].key.interface = skb->ifindex;
    layers[0].key.direction = direction;
    results[0] = parse_frame(&c, s->link, &layers[0]);
    if (results[0] != PARSED) {
        s->ledger->frames++;
        s->ledger->results[results[0] & 7]++;
        s->ledger->bytes += s->length;
        s->ledger->other_bytes += s->length;
        return;
    }
    s->payload = layers[0].payload;
#pragma unroll
    for (i = 1; i < PACKET_LAYERS; i++) {
        if (found != i || layers[i - 1].next == NEXT_NONE)
            continue;
        __builtin_memset(&layers[i], 0, sizeof(layers[i]));
        results[i] = layers[i - 1].next == NEXT_CUT ? TRUNCATED : parse_inner(&c, &layers[i - 1], &layers[i]);
        if (results[i] == PARSED && layers[i].payload && layers[i - 1].next != NEXT_QUOTE)
            s->payload = layers[i].payload;
        found = results[i] == PARSED ? i + 1 : -i - 1;
    }
    set_packets(s, skb);
    s->ledger->frames += s->packets;
    s->ledger->bytes += s->length;
    if (direction == DIRECTION_OUT && (layers[0].events & EVENT_SYN))
        note_owner(skb, &layers[0]);
    if (record_outer(s, &layers[0]) != RECORDED)
        s->ledger->other_bytes += s->length;
    begins = s->begins && layers[0].fragment != FRAGMENT_LATER;
#pragma unroll
    for (i = 1; i < PACKET_LAYERS; i++)
        if (found > i || found == -i - 1)
            record_inner(s, &layers[i], results[i], layers[i - 1].next == NEXT_QUOTE);
    if (begins) /* last, since what follows multiplies with its many ways for the verifier */
        judge(s, &layers[0]);
}

static __always_inline int watch(struct __sk_buff *skb, __u32 link)
{
    struct sight s = {.now = bpf_ktime_get_ns(), .length = skb->len, .link = link, .packets = 1};
    __u32 zero = 0;

    s.config = configs.lookup(&zero);
    s.work = works.lookup(&zero);
    if (!s.config || !s.work)
        return TC_ACT_UNSPEC;
    s.slot = slot_at(s.config, s.now);
    s.ledger = ledgers.lookup(&s.slot);
    if (!s.ledger)
        return TC_ACT_UNSPEC;
    s.captured = skb->len < PACKET_WINDOW ? skb->len : PACKET_WINDOW;
    if (!s.captured || bpf_skb_load_bytes(skb, 0, s.work->bytes, s.captured))
        s.captured = 0;
    watch_frame(&s, skb, (__u8)s.work->direction);
    return TC_ACT_UNSPEC;
}

/*
 * What watches a kind of link is compiled and verified once, for both ways: an entrance says which way it is, and hands
 * over. User space fills the places before it attaches an entrance. The kernel empties them when nobody holds the map
 * any more, so that a filter left by a killed run does nothing at all.
 */
enum watcher {
    WATCHER_ETHERNET,
    WATCHER_RAW,
    WATCHERS,
};
BPF_PROG_ARRAY(watchers, WATCHERS);

static __always_inline int enter(struct __sk_buff *skb, __u32 watcher, __u32 direction)
{
    __u32 zero = 0;
    struct work *work = works.lookup(&zero);

    if (!work)
        return TC_ACT_UNSPEC;
    work->direction = direction;
    watchers.call(skb, watcher);
    return TC_ACT_UNSPEC;
}

#ifdef ETHERNET_LINKS
int ethernet(struct __sk_buff *skb)
{
    return watch(skb, LINK_ETHERNET);
}

int ethernet_in(struct __sk_buff *skb)
{
    return enter(skb, WATCHER_ETHERNET, DIRECTION_IN);
}

int ethernet_out(struct __sk_buff *skb)
{
    return enter(skb, WATCHER_ETHERNET, DIRECTION_OUT);
}
#endif

#ifdef RAW_LINKS
int raw(struct __sk_buff *skb)
{
    return watch(skb, LINK_RAW);
}

int raw_in(struct __sk_buff *skb)
{
    return enter(skb, WATCHER_RAW, DIRECTION_IN);
}

int raw_out(struct __sk_buff *skb)
{
    return enter(skb, WATCHER_RAW, DIRECTION_OUT);
}
#endif

/* ---- who connects ---- */

#ifdef OWNERS_SEEN

/*
 * What the process is called: its first thread's name, as /proc/PID/comm has it, since worker threads bear names of
 * their own. Without the offsets, the connecting thread's.
 */
static __always_inline void name_process(struct owner *owner)
{
#ifdef OFFSET_TASK_LEADER
    __u64 task = bpf_get_current_task(), leader = 0;
    const void *comm;

    bpf_probe_read_kernel(&leader, sizeof(leader), (const void *)(unsigned long)(task + OFFSET_TASK_LEADER));
    comm = (const void *)(unsigned long)(leader + OFFSET_TASK_COMM);
    if (leader && bpf_probe_read_kernel_str(owner->process, sizeof(owner->process), comm) > 0)
        return;
#endif
    bpf_get_current_comm(owner->process, sizeof(owner->process));
}

/* On the way to SYN_SENT the connecting task runs, and the port is not chosen yet: the socket's address is the key. */
TRACEPOINT_PROBE(sock, inet_sock_set_state)
{
    struct owner owner = {};
    __u64 sk = (__u64)(unsigned long)args->skaddr;

    if (args->newstate != SS_SYN_SENT || args->protocol != IP_TCP)
        return 0;
    owner.pid = bpf_get_current_pid_tgid() >> 32;
    owner.cgroup = bpf_get_current_cgroup_id();
    name_process(&owner);
    connecting.update(&sk, &owner);
    return 0;
}
#endif

/* ---- who drops ---- */

#ifdef DROPS
enum skb_drop_reason { SKB_DROP_REASON_ANY = 0x7fffffff }; /* for the tracepoint's arguments, which BCC writes */

BPF_TABLE("hash", struct drop_key, struct drop, drops_0, DROP_ROWS);
BPF_TABLE("hash", struct drop_key, struct drop, drops_1, DROP_ROWS);
BPF_PERCPU_ARRAY(drop_works, struct work, 1);

static __always_inline __u64 word_at(__u64 base, __u32 offset)
{
    __u64 value = 0;

    bpf_probe_read_kernel(&value, sizeof(value), (const void *)(unsigned long)(base + offset));
    return value;
}

/* The network namespace of the device, else of the socket; 0 where neither is known. */
static __always_inline __u32 namespace_of(__u64 skb)
{
    __u64 device = word_at(skb, OFFSET_SKB_DEV), socket = word_at(skb, OFFSET_SKB_SK);
    __u64 net = device ? word_at(device, OFFSET_DEVICE_NET) : socket ? word_at(socket, OFFSET_SOCK_NET) : 0;

    return net ? (__u32)word_at(net, OFFSET_NET_INUM) : 0;
}

/* As row_of() has it */
static __always_inline struct drop *drop_of(__u32 slot, struct drop_key *key)
{
    struct drop *row;

    if (!slot)
        return drops_0.lookup(key);
    row = drops_1.lookup(key);
    asm volatile("" : "+r"(row));
    return row;
}

/* No tracepoint's program interrupts another one on a CPU, so a row needs no atomic. */
static __always_inline void count_drop(const struct packet *p, __u32 reason, const struct config *config)
{
    struct drop_key key = {.src_port = p->key.src_port, .dst_port = p->key.dst_port, .reason = reason};
    struct drop more = {.packets = 1}, *row;
    struct ledger *ledger;
    __u32 slot;

    more.start = more.end = bpf_ktime_get_ns();
    slot = slot_at(config, more.start);
    ledger = ledgers.lookup(&slot);
    if (!ledger)
        return;
    key.protocol = p->key.protocol;
    key.cpu = bpf_get_smp_processor_id();
    __builtin_memcpy(key.src, p->key.src, 16);
    __builtin_memcpy(key.dst, p->key.dst, 16);
    row = drop_of(slot, &key);
    if (row) {
        row->packets++;
        row->end = more.end;
    } else if (slot ? drops_1.insert(&key, &more) : drops_0.insert(&key, &more)) {
        ledger->drops_lost++;
    } else {
        ledger->drop_rows++;
    }
}

TRACEPOINT_PROBE(skb, kfree_skb)
{
    __u64 skb = (__u64)(unsigned long)args->skbaddr, head, have;
    __u32 zero = 0, tail, reason = (__u32)args->reason;
    struct work *w = drop_works.lookup(&zero);
    struct config *config = configs.lookup(&zero);
    struct cursor c = {};
    __u16 at;

    if (!w || !config || !config->boundary || namespace_of(skb) != NETWORK_NAMESPACE)
        return 0;
    head = word_at(skb, OFFSET_SKB_HEAD);
    at = (__u16)word_at(skb, OFFSET_SKB_NETWORK_HEADER);
    tail = (__u32)word_at(skb, OFFSET_SKB_TAIL);
    if (at == 0xffff || tail <= at)
        return 0;
    c.base = w->bytes;
    c.scratch = w->scratch;
    have = tail - at < PACKET_WINDOW ? tail - at : PACKET_WINDOW;
    PACKET_OPAQUE(have);
    if (have > PACKET_WINDOW || bpf_probe_read_kernel(w->bytes, have, (const void *)(unsigned long)(head + at)))
        return 0;
    c.have = have;
    c.end = 65535;
    __builtin_memset(&w->layers[0], 0, sizeof(w->layers[0]));
    if (parse_frame(&c, LINK_RAW, &w->layers[0]) == PARSED && w->layers[0].fragment != FRAGMENT_LATER)
        count_drop(&w->layers[0], reason, config);
    return 0;
}
#endif
