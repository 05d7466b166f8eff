/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Rule: bytes in, struct packet out, one IP header at a time. Included by the eBPF program and by the native reader, so
 * that both see a packet alike: no maps, no helpers, no libc, no loop without a bound. take() is the only read.
 *
 * Every parse_ function keeps one contract: it stands at its header, reads it through the cursor, leaves the cursor
 * behind it, and returns PARSED or the reason why it could not.
 */
#ifndef RKE2_FLOWS_PACKET_H
#define RKE2_FLOWS_PACKET_H

#include "flow.h"

/*
 * How many bytes of a frame can be read at most. The eBPF program defines the size of its per-CPU window before it
 * includes this file; by that this file knows that a verifier will read it (under BCC, clang does not define __bpf__).
 */
#ifdef PACKET_WINDOW
#define PACKET_VERIFIED 1
#else
#define PACKET_WINDOW (1ULL << 40)
#endif

/* Headers of IP that one frame may hold: its own, a tunnel's inner one, and one more (a quote, or a tunnel in a
 * tunnel). */
#define PACKET_LAYERS      3
#define PACKET_VLAN_TAGS   4
#define PACKET_MPLS_LABELS 8
#define PACKET_EXTENSIONS  8

/* Why a frame or an inner packet is counted where it is; also the columns of the coverage ledger. */
enum parse_result {
    PARSED = 0,
    NOT_IP = 1,
    TRUNCATED = 2,   /* the capture holds less of the packet than its headers need */
    MALFORMED = 3,   /* the packet itself is shorter than its headers say, or they contradict each other */
    UNSUPPORTED = 4, /* a link type that this parser does not know */
    PARSE_RESULTS = 5,
};

/* https://www.tcpdump.org/linktypes.html, and the BSDs' and Linux' own numbers for RAW */
enum link_type {
    LINK_NULL = 0,
    LINK_ETHERNET = 1,
    LINK_PPP = 9,
    LINK_RAW_BSD = 12,
    LINK_RAW_OPENBSD = 14,
    LINK_PPP_HDLC = 50,
    LINK_PPPOE = 51,
    LINK_RAW = 101,
    LINK_LOOP = 108,
    LINK_SLL = 113,
    LINK_IPV4 = 228,
    LINK_IPV6 = 229,
    LINK_SLL2 = 276,
};

enum ether_type {
    ETHER_IPV4 = 0x0800,
    ETHER_BRIDGED = 0x6558, /* transparent Ethernet bridging, in GRE and Geneve */
    ETHER_VLAN = 0x8100,
    ETHER_IPV6 = 0x86dd,
    ETHER_MPLS = 0x8847,
    ETHER_MPLS_UPSTREAM = 0x8848,
    ETHER_PPPOE = 0x8864,
    ETHER_QINQ = 0x88a8,
    ETHER_QINQ_OLD_1 = 0x9100,
    ETHER_QINQ_OLD_2 = 0x9200,
    ETHER_QINQ_OLD_3 = 0x9300,
    ETHER_LENGTH_MAX = 0x05dc, /* up to here the field is a length (IEEE 802.3) */
};

enum ip_protocol {
    IP_HOP_BY_HOP = 0,
    IP_ICMP = 1,
    IP_IPIP = 4,
    IP_TCP = 6,
    IP_UDP = 17,
    IP_IPV6 = 41,
    IP_ROUTING = 43,
    IP_FRAGMENT = 44,
    IP_GRE = 47,
    IP_AH = 51,
    IP_ICMPV6 = 58,
    IP_NO_NEXT = 59,
    IP_DESTINATION_OPTIONS = 60,
    IP_SCTP = 132,
    IP_MOBILITY = 135,
    IP_HIP = 139,
    IP_SHIM6 = 140,
};

enum udp_port {
    PORT_VXLAN = 4789,
    PORT_VXLAN_LINUX = 8472, /* the kernel's default before IANA's number; RKE2's Canal */
    PORT_GENEVE = 6081,
};

enum tcp_flag {
    TCP_SYN = 0x02,
    TCP_ACK = 0x10,
};

enum fragment {
    FRAGMENT_NONE = 0,
    FRAGMENT_FIRST = 1,
    FRAGMENT_LATER = 2, /* no ports in it */
};

/* What stands at the cursor once a packet is parsed. */
enum next {
    NEXT_NONE = 0,
    NEXT_IP = 1,
    NEXT_ETHERNET = 2,
    NEXT_QUOTE = 3, /* the datagram that an ICMP destination-unreachable is about */
    NEXT_CUT = 4,   /* a tunnel begins here, beyond what was captured */
};

struct packet {
    struct flow_key key;
    __u64 bytes;
    __u64 fragment_payload; /* bytes of the datagram's payload in this fragment */
    __u64 fragment_end;     /* of a last fragment: the datagram's payload length; else 0 */
    __u32 fragment_id;
    __u32 next_vni;
    __u32 unreachable; /* of a quote: the bit of the ICMP code that quoted it */
    __u16 tcp_flags;
    __u8 events;
    __u8 fragment;
    __u8 fragment_protocol; /* the IPv4 header's protocol, which tells datagrams of one id apart; 0 in IPv6 */
    __u8 next;
    __u8 next_tunnel;
    __u8 reserved;
    __u16 start;   /* where in the frame its IP header begins */
    __u16 payload; /* where what TCP or UDP carries begins; 0 where that is not known */
};
_Static_assert(sizeof(struct packet) == 80 + 3 * 8 + 3 * 4 + 8 + 4, "packet");

struct cursor {
    const __u8 *base;
    __u64 at;
    __u64 have; /* bytes that can be read, at most PACKET_WINDOW */
    __u64 end;  /* bytes that the packet has, by the frame's length or the enclosing header */
#ifdef PACKET_VERIFIED
    __u64 *scratch; /* two words of a map's value, for forget() */
#endif
};

/* Keeps clang from folding the bound check into a form that the verifier cannot follow. */
#define PACKET_OPAQUE(value) asm volatile("" : "+r"(value))

static __always_inline const __u8 *take(struct cursor *c, __u64 n)
{
    __u64 at = c->at;

#ifdef PACKET_VERIFIED
    PACKET_OPAQUE(at);
#endif
    if (at > PACKET_WINDOW - n || at + n > c->have || at + n > c->end)
        return 0;
    c->at = at + n;
    return c->base + at;
}

/*
 * The verifier follows each value of the offset on its own, and the ways to a header are many: it would give up at its
 * million instructions. What has been through a map's memory is one unknown number to it, so that ways which differ in
 * the offset alone become one. take() checks the offset, whatever it is.
 */
static __always_inline void forget(struct cursor *c)
{
#ifdef PACKET_VERIFIED
    c->scratch[0] = c->at;
    c->scratch[1] = c->end;
    asm volatile("" : : : "memory");
    c->at = c->scratch[0];
    c->end = c->scratch[1];
#else
    (void)c;
#endif
}

/* Steps over n bytes that need not be readable: the next take() finds out. */
static __always_inline void skip(struct cursor *c, __u64 n)
{
    c->at += n;
}

static __always_inline int lacking(const struct cursor *c, __u64 n)
{
    return c->at + n > c->end ? MALFORMED : TRUNCATED;
}

static __always_inline __u16 be16(const __u8 *p)
{
    return (__u16)(p[0] << 8 | p[1]);
}

static __always_inline __u32 be32(const __u8 *p)
{
    return (__u32)p[0] << 24 | (__u32)p[1] << 16 | (__u32)p[2] << 8 | p[3];
}

static __always_inline void set_ipv4(__u8 *address, const __u8 *from)
{
    __builtin_memset(address, 0, 10);
    address[10] = 0xff;
    address[11] = 0xff;
    __builtin_memcpy(address + 12, from, 4);
}

/* ---- link layers: each ends at an IP header, with the EtherType of it ---- */

static __always_inline int is_vlan(__u32 type)
{
    return type == ETHER_VLAN || type == ETHER_QINQ || type == ETHER_QINQ_OLD_1 || type == ETHER_QINQ_OLD_2 ||
           type == ETHER_QINQ_OLD_3;
}

/* RFC 1332, RFC 5072. The protocol's first byte may be left out when it is 0 (RFC 1661, 6.5). */
static __always_inline int parse_ppp(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 1);
    __u32 protocol;

    if (!h)
        return lacking(c, 1);
    protocol = h[0];
    if (!(protocol & 1)) {
        h = take(c, 1);
        if (!h)
            return lacking(c, 1);
        protocol = protocol << 8 | h[0];
    }
    *type = protocol == 0x21 ? ETHER_IPV4 : protocol == 0x57 ? ETHER_IPV6 : 0;
    return *type ? PARSED : NOT_IP;
}

/* RFC 1661 in HDLC framing (RFC 1662): address and control may be negotiated away. */
static __always_inline int parse_ppp_hdlc(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 2);

    if (!h)
        return lacking(c, 2);
    if (h[0] != 0xff || h[1] != 0x03)
        c->at -= 2;
    return parse_ppp(c, type);
}

/* RFC 2516: version and type, code 0 (session), session id, length */
static __always_inline int parse_pppoe(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 6);

    if (!h)
        return lacking(c, 6);
    if (h[0] != 0x11 || h[1] != 0)
        return NOT_IP;
    return parse_ppp(c, type);
}

/* What an IP header says of itself; the byte is looked at, not taken. */
static __always_inline int parse_version(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 1);

    if (!h)
        return lacking(c, 1);
    c->at -= 1;
    *type = h[0] >> 4 == 4 ? ETHER_IPV4 : h[0] >> 4 == 6 ? ETHER_IPV6 : 0;
    return *type ? PARSED : NOT_IP;
}

/* RFC 3032: labels to the bottom of the stack, then an IP header (RFC 4928 says why its first nibble tells) */
static __always_inline int parse_mpls(struct cursor *c, __u32 *type)
{
    const __u8 *h;
    int i;

    for (i = 0; i < PACKET_MPLS_LABELS; i++) {
        h = take(c, 4);
        if (!h)
            return lacking(c, 4);
        if (h[2] & 1)
            return parse_version(c, type);
    }
    return MALFORMED;
}

/* IEEE 802.2 with SNAP: the only 802.3 frames that hold IP (RFC 1042) */
static __always_inline int parse_snap(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 8);

    if (!h)
        return lacking(c, 8) == TRUNCATED ? TRUNCATED : NOT_IP;
    if (h[0] != 0xaa || h[1] != 0xaa || h[2] != 3 || h[3] || h[4] || h[5])
        return NOT_IP;
    *type = be16(h + 6);
    return PARSED;
}

/* From an EtherType to the IP header: tags, SNAP, PPPoE, MPLS */
static __always_inline int parse_ether_type(struct cursor *c, __u32 *type)
{
    const __u8 *h;
    int i, result;

    for (i = 0; i < PACKET_VLAN_TAGS; i++) {
        if (!is_vlan(*type))
            break;
        h = take(c, 4);
        if (!h)
            return lacking(c, 4);
        *type = be16(h + 2);
    }
    if (*type <= ETHER_LENGTH_MAX) {
        result = parse_snap(c, type);
        if (result != PARSED)
            return result;
    }
    if (*type == ETHER_PPPOE)
        return parse_pppoe(c, type);
    if (*type == ETHER_MPLS || *type == ETHER_MPLS_UPSTREAM)
        return parse_mpls(c, type);
    return *type == ETHER_IPV4 || *type == ETHER_IPV6 ? PARSED : NOT_IP;
}

static __always_inline int parse_ethernet(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 14);

    if (!h)
        return lacking(c, 14);
    *type = be16(h + 12);
    return parse_ether_type(c, type);
}

/* packet type 4 is what the host itself sent (LINKTYPE_LINUX_SLL) */
static __always_inline __u8 sll_direction(__u32 packet_type)
{
    return packet_type == 4 ? DIRECTION_OUT : DIRECTION_IN;
}

static __always_inline int parse_sll(struct cursor *c, struct packet *p, __u32 *type)
{
    const __u8 *h = take(c, 16);

    if (!h)
        return lacking(c, 16);
    p->key.direction = sll_direction(be16(h));
    *type = be16(h + 14);
    return *type <= ETHER_LENGTH_MAX ? NOT_IP : parse_ether_type(c, type);
}

static __always_inline int parse_sll2(struct cursor *c, struct packet *p, __u32 *type)
{
    const __u8 *h = take(c, 20);

    if (!h)
        return lacking(c, 20);
    p->key.interface = be32(h + 4);
    p->key.direction = sll_direction(h[10]);
    *type = be16(h);
    return *type <= ETHER_LENGTH_MAX ? NOT_IP : parse_ether_type(c, type);
}

/* The protocol family is in the capturing host's byte order: 2 everywhere, and the 10, 24, 28, 30 of IPv6. */
static __always_inline int parse_null(struct cursor *c, __u32 *type)
{
    const __u8 *h = take(c, 4);
    __u32 family;

    if (!h)
        return lacking(c, 4);
    family = be32(h);
    if (family & 0xff000000)
        family = family >> 24;
    if (family == 2)
        *type = ETHER_IPV4;
    else if (family == 10 || family == 24 || family == 28 || family == 30)
        *type = ETHER_IPV6;
    else
        return NOT_IP;
    return PARSED;
}

static __always_inline int parse_link(struct cursor *c, __u32 link, struct packet *p, __u32 *type)
{
    switch (link) {
    case LINK_ETHERNET:
        return parse_ethernet(c, type);
    case LINK_SLL2:
        return parse_sll2(c, p, type);
    case LINK_SLL:
        return parse_sll(c, p, type);
    case LINK_RAW:
    case LINK_RAW_BSD:
    case LINK_RAW_OPENBSD:
    case LINK_IPV4:
    case LINK_IPV6:
        return parse_version(c, type);
    case LINK_NULL:
    case LINK_LOOP:
        return parse_null(c, type);
    case LINK_PPP:
    case LINK_PPP_HDLC:
        return parse_ppp_hdlc(c, type);
    case LINK_PPPOE:
        return parse_pppoe(c, type);
    default:
        return UNSUPPORTED;
    }
}

/* ---- tunnels: what stands behind a transport header ---- */

/*
 * RFC 7348: flags with the I bit, 24 bits reserved, VNI, 8 bits reserved. As Linux, which drops what has a reserved bit
 * set: an answer of DNS comes to a tunnel's port too, where NAT took that for the question. Of a group policy
 * (draft-smith-vxlan-group-policy) there are a flag, two bits and 16 for the group.
 */
static __always_inline int is_vxlan(const __u8 *h)
{
    return be32(h) == 0x08000000 ? !h[7] : h[0] == 0x88 && !(h[1] & 0xb7) && !h[7];
}

static __always_inline void find_vxlan(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 8);

    if (!h) {
        p->next = lacking(c, 8) == TRUNCATED ? NEXT_CUT : NEXT_NONE;
        return;
    }
    if (!is_vxlan(h))
        return;
    p->events |= EVENT_CARRIER;
    p->next = NEXT_ETHERNET;
    p->next_tunnel = TUNNEL_VXLAN;
    p->next_vni = be32(h + 4) >> 8;
}

/* What an EtherType inside Geneve or GRE announces. */
static __always_inline __u8 next_of(__u32 type)
{
    return type == ETHER_BRIDGED ? NEXT_ETHERNET : type == ETHER_IPV4 || type == ETHER_IPV6 ? NEXT_IP : NEXT_NONE;
}

/* RFC 8926: version and option length in words, two flags, EtherType, VNI, 8 bits reserved; see is_vxlan() */
static __always_inline void find_geneve(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 8);

    if (!h) {
        p->next = lacking(c, 8) == TRUNCATED ? NEXT_CUT : NEXT_NONE;
        return;
    }
    p->next = next_of(be16(h + 2));
    if (h[0] >> 6 || h[1] & 0x3f || h[7])
        p->next = NEXT_NONE;
    if (p->next == NEXT_NONE)
        return;
    p->events |= EVENT_CARRIER;
    p->next_tunnel = TUNNEL_GENEVE;
    p->next_vni = be32(h + 4) >> 8;
    skip(c, (h[0] & 0x3f) * 4);
}

/* RFC 2784 and 2890: checksum, key and sequence number are four bytes each where their flag says so */
static __always_inline void find_gre(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 4);

    if (!h) {
        p->next = lacking(c, 4) == TRUNCATED ? NEXT_CUT : NEXT_NONE;
        return;
    }
    if ((h[1] & 0x07) || (h[0] & 0x40)) /* version 0 only, and no source route (RFC 1701) */
        return;
    p->next = next_of(be16(h + 2));
    p->next_tunnel = TUNNEL_GRE;
    skip(c, (h[0] & 0x80 ? 4 : 0) + (h[0] & 0x20 ? 4 : 0) + (h[0] & 0x10 ? 4 : 0));
}

/* ---- transport: ports, flags, and what comes next ---- */

static __always_inline int parse_ports(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 4);

    if (!h)
        return lacking(c, 4);
    p->key.src_port = be16(h);
    p->key.dst_port = be16(h + 2);
    return PARSED;
}

/* Ports suffice for a row: flags cut off by the snaplen, or by a tiny first fragment, stay unknown. */
static __always_inline int parse_tcp(struct cursor *c, struct packet *p)
{
    int result = parse_ports(c, p);
    const __u8 *h;

    if (result != PARSED)
        return result;
    h = take(c, 10);
    if (!h)
        return PARSED;
    p->tcp_flags = (__u16)((h[8] & 1) << 8 | h[9]);
    p->payload = (__u16)(c->at - 14 + (h[8] >> 4) * 4);
    if (h[9] & TCP_SYN)
        p->events |= h[9] & TCP_ACK ? EVENT_SYN_ACK : EVENT_SYN;
    return PARSED;
}

static __always_inline int parse_udp(struct cursor *c, struct packet *p)
{
    int result = parse_ports(c, p);

    if (result != PARSED)
        return result;
    skip(c, 4);
    p->payload = (__u16)c->at;
    if (p->key.dst_port == PORT_VXLAN_LINUX || p->key.dst_port == PORT_VXLAN)
        find_vxlan(c, p);
    else if (p->key.dst_port == PORT_GENEVE)
        find_geneve(c, p);
    return PARSED;
}

/* RFC 792 type 3, RFC 4443 type 1: the datagram they are about begins 8 bytes in */
static __always_inline int parse_icmp(struct cursor *c, struct packet *p, __u32 unreachable_type, __u32 shift)
{
    const __u8 *h = take(c, 2);

    if (!h)
        return lacking(c, 2);
    p->key.src_port = h[0];
    p->key.dst_port = h[1];
    if (h[0] == unreachable_type && h[1] < 16) {
        p->next = NEXT_QUOTE;
        p->next_tunnel = p->key.tunnel;
        p->unreachable = 1u << (h[1] + shift);
        skip(c, 6);
    }
    return PARSED;
}

static __always_inline void find_ip(struct packet *p)
{
    p->next = NEXT_IP;
    p->next_tunnel = TUNNEL_IPIP;
}

static __always_inline int parse_transport(struct cursor *c, struct packet *p)
{
    forget(c);
    switch (p->key.protocol) {
    case IP_TCP:
        return parse_tcp(c, p);
    case IP_UDP:
        return parse_udp(c, p);
    case IP_SCTP:
        return parse_ports(c, p);
    case IP_ICMP:
        return parse_icmp(c, p, 3, 0);
    case IP_ICMPV6:
        return parse_icmp(c, p, 1, UNREACHABLE_V6_SHIFT);
    case IP_GRE:
        find_gre(c, p);
        return PARSED;
    case IP_IPIP:
    case IP_IPV6:
        find_ip(p);
        return PARSED;
    default:
        return PARSED;
    }
}

/* ---- network: addresses, lengths, fragments ---- */

/*
 * `length` is what the IP header says, from `start` on. It is 0 where the sender's stack left it to the network card
 * (TSO, BIG TCP): then only the frame's length tells.
 */
static __always_inline void set_length(struct cursor *c, struct packet *p, __u64 start, __u64 length)
{
    p->bytes = length ? length : c->end - start;
    if (length && start + length < c->end)
        c->end = start + length;
}

static __always_inline void set_fragment(const struct cursor *c, struct packet *p, __u64 offset, int more)
{
    __u64 payload = c->end > c->at ? c->end - c->at : 0;

    p->fragment = offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
    p->fragment_payload = payload;
    p->fragment_end = more ? 0 : offset + payload;
}

/* RFC 4302: next header, length in words less 2 */
static __always_inline int parse_ah(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 2);

    if (!h)
        return lacking(c, 2);
    p->key.protocol = h[0];
    skip(c, (h[1] + 2) * 4 - 2);
    return PARSED;
}

/* RFC 791 */
static __always_inline int parse_ipv4(struct cursor *c, struct packet *p)
{
    __u64 start = c->at, header, length;
    const __u8 *h = take(c, 20);
    __u32 fragment;
    int result;

    if (!h)
        return lacking(c, 20);
    header = (h[0] & 0x0f) * 4;
    length = be16(h + 2);
    if (h[0] >> 4 != 4 || header < 20 || (length && length < header))
        return MALFORMED;
    p->start = (__u16)start;
    set_ipv4(p->key.src, h + 12);
    set_ipv4(p->key.dst, h + 16);
    p->key.protocol = h[9];
    set_length(c, p, start, length);
    skip(c, header - 20);
    fragment = be16(h + 6);
    if (fragment & 0x3fff) {
        p->fragment_id = be16(h + 4);
        p->fragment_protocol = h[9];
        set_fragment(c, p, (fragment & 0x1fff) * 8, fragment & 0x2000);
    }
    if (p->fragment == FRAGMENT_LATER)
        return PARSED;
    if (p->key.protocol == IP_AH) {
        result = parse_ah(c, p);
        if (result != PARSED)
            return result;
    }
    return parse_transport(c, p);
}

static __always_inline int is_extension(__u32 protocol)
{
    return protocol == IP_HOP_BY_HOP || protocol == IP_ROUTING || protocol == IP_DESTINATION_OPTIONS ||
           protocol == IP_MOBILITY || protocol == IP_HIP || protocol == IP_SHIM6;
}

/* RFC 8200, 4.5 */
static __always_inline int parse_ipv6_fragment(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 8);
    __u32 field;

    if (!h)
        return lacking(c, 8);
    field = be16(h + 2);
    p->key.protocol = h[0];
    if (!(field & 0xfff9)) /* an atomic fragment (RFC 6946) is a whole datagram */
        return PARSED;
    p->fragment_id = be32(h + 4);
    set_fragment(c, p, field & 0xfff8, field & 1);
    return PARSED;
}

/* RFC 8200, 4: one header; its length is in units of 8 bytes, less 1 */
static __always_inline int parse_extension(struct cursor *c, struct packet *p)
{
    const __u8 *h = take(c, 2);

    if (!h)
        return lacking(c, 2);
    p->key.protocol = h[0];
    skip(c, (h[1] + 1) * 8 - 2);
    return PARSED;
}

/* RFC 8200 */
static __always_inline int parse_ipv6(struct cursor *c, struct packet *p)
{
    __u64 start = c->at, length;
    const __u8 *h = take(c, 40);
    int i, result;

    if (!h)
        return lacking(c, 40);
    if (h[0] >> 4 != 6)
        return MALFORMED;
    p->start = (__u16)start;
    __builtin_memcpy(p->key.src, h + 8, 16);
    __builtin_memcpy(p->key.dst, h + 24, 16);
    p->key.protocol = h[6];
    length = be16(h + 4);
    if (length || h[6] == IP_NO_NEXT)
        length += 40;
    set_length(c, p, start, length);
    for (i = 0; i <= PACKET_EXTENSIONS; i++) { /* the last round is the transport header's */
        if (p->key.protocol == IP_FRAGMENT)
            result = parse_ipv6_fragment(c, p);
        else if (p->key.protocol == IP_AH)
            result = parse_ah(c, p);
        else if (is_extension(p->key.protocol))
            result = parse_extension(c, p);
        else
            return parse_transport(c, p);
        if (result != PARSED)
            return result;
        if (p->fragment == FRAGMENT_LATER)
            return PARSED;
        forget(c);
    }
    return MALFORMED;
}

static __always_inline int parse_ip(struct cursor *c, __u32 type, struct packet *p)
{
    forget(c);
    return type == ETHER_IPV6 ? parse_ipv6(c, p) : parse_ipv4(c, p);
}

/* ---- the two ways in ---- */

/* The frame's own IP packet. `p` must be zero but for key.interface and key.direction. */
static __always_inline int parse_frame(struct cursor *c, __u32 link, struct packet *p)
{
    __u32 type = 0;
    int result = parse_link(c, link, p, &type);

    return result == PARSED ? parse_ip(c, type, p) : result;
}

/* An inner packet's key begins as its carrier's end points; a quoted one travelled the other way. */
static __always_inline void inherit(struct packet *p, const struct packet *outer)
{
    p->key.interface = outer->key.interface;
    p->key.direction = outer->key.direction;
    p->key.tunnel = outer->next_tunnel;
    if (outer->next == NEXT_QUOTE) {
        p->key.vni = outer->key.vni;
        p->unreachable = outer->unreachable;
        __builtin_memcpy(p->key.outer_src, outer->key.outer_dst, 16);
        __builtin_memcpy(p->key.outer_dst, outer->key.outer_src, 16);
    } else {
        p->key.vni = outer->next_vni;
        __builtin_memcpy(p->key.outer_src, outer->key.src, 16);
        __builtin_memcpy(p->key.outer_dst, outer->key.dst, 16);
    }
}

/*
 * What stands behind `outer`, whose `next` is NEXT_IP, NEXT_ETHERNET or NEXT_QUOTE. `p` must be zero.
 * A quote is no packet: it has no bytes, no flags and nothing behind it.
 */
static __always_inline int parse_inner(struct cursor *c, const struct packet *outer, struct packet *p)
{
    __u32 type = 0;
    int result;

    inherit(p, outer);
    forget(c);
    result = outer->next == NEXT_ETHERNET ? parse_ethernet(c, &type) : parse_version(c, &type);
    if (result != PARSED)
        return result;
    result = parse_ip(c, type, p);
    if (outer->next == NEXT_QUOTE) {
        p->unreachable = outer->unreachable;
        p->bytes = 0;
        p->tcp_flags = 0;
        p->events = 0;
        p->next = NEXT_NONE;
    }
    return result;
}

#endif
