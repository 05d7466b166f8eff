/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Rule: this file says what a one-way flow row is and how one packet is added to it. It is included by the eBPF
 * program and by the native reader, so it knows no map, no helper, no libc and no file.
 *
 * Every offset is asserted here and compared with the NumPy dtype by analyzer/flows.py at import.
 */
#ifndef RKE2_FLOWS_FLOW_H
#define RKE2_FLOWS_FLOW_H

#ifdef __linux__
#include <linux/types.h>
#else
#include <stdint.h>
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef uint64_t __u64;
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* flow_key.tunnel: what the row's packets were carried in */
enum flow_tunnel {
    TUNNEL_NONE = 0,
    TUNNEL_VXLAN = 1,
    TUNNEL_GENEVE = 2,
    TUNNEL_GRE = 3,
    TUNNEL_IPIP = 4,
};

/* flow_key.direction: as the capturing host saw it, where it says (SLL, SLL2, tc) */
enum flow_direction {
    DIRECTION_UNKNOWN = 0,
    DIRECTION_IN = 1,
    DIRECTION_OUT = 2,
};

/* flow_counters.events: what the OR of TCP flags cannot tell */
enum flow_event {
    EVENT_SYN = 1,     /* a SYN without ACK: this side opened */
    EVENT_SYN_ACK = 2, /* a SYN with ACK: this side answered an opening */
    EVENT_CARRIER = 4, /* a VXLAN or Geneve header followed: the row carries a tunnel */
};

/* flow_counters.unreachable: bit per ICMP code; ICMPv6 codes stand 16 bits higher */
#define UNREACHABLE_V6_SHIFT 16

/* flow_counters.start of a row none of whose packets carried a time */
#define FLOW_NO_TIME (~0ULL)

/* Addresses: 16 bytes, IPv4 as ::ffff:a.b.c.d; all else in host order. ICMP: type and code stand as ports. */
struct flow_key {
    __u8 src[16];
    __u8 dst[16];
    __u8 outer_src[16]; /* the tunnel's end points for an inner flow, else zero */
    __u8 outer_dst[16];
    __u32 vni;
    __u32 interface; /* as the capture numbers them: ifindex or pcapng interface */
    __u16 src_port;
    __u16 dst_port;
    __u8 protocol;
    __u8 tunnel;
    __u8 direction;
    __u8 reserved;
};

struct flow_counters {
    __u64 packets;
    __u64 bytes;       /* IP header and payload, whatever the link layer and the snaplen */
    __u64 start;       /* ns since the epoch */
    __u64 end;         /* ns since the epoch */
    __u64 first_frame; /* from 1, as Wireshark counts; 0 for live */
    __u32 unreachable;
    __u16 tcp_flags; /* OR, with the ninth bit of RFC 3540 */
    __u8 events;
    __u8 reserved;
};

/* A row of the reader's table, and of every one-way table. */
struct flow_row {
    struct flow_key key;
    __u64 interval; /* ns since the epoch at which the row's interval begins; 0 where none was asked for */
    struct flow_counters counters;
};

#define FLOW_OFFSET(type, field, at) _Static_assert(__builtin_offsetof(struct type, field) == (at), #type "." #field)
FLOW_OFFSET(flow_key, src, 0);
FLOW_OFFSET(flow_key, dst, 16);
FLOW_OFFSET(flow_key, outer_src, 32);
FLOW_OFFSET(flow_key, outer_dst, 48);
FLOW_OFFSET(flow_key, vni, 64);
FLOW_OFFSET(flow_key, interface, 68);
FLOW_OFFSET(flow_key, src_port, 72);
FLOW_OFFSET(flow_key, dst_port, 74);
FLOW_OFFSET(flow_key, protocol, 76);
FLOW_OFFSET(flow_key, tunnel, 77);
FLOW_OFFSET(flow_key, direction, 78);
FLOW_OFFSET(flow_key, reserved, 79);
_Static_assert(sizeof(struct flow_key) == 80, "flow_key");
FLOW_OFFSET(flow_counters, packets, 0);
FLOW_OFFSET(flow_counters, bytes, 8);
FLOW_OFFSET(flow_counters, start, 16);
FLOW_OFFSET(flow_counters, end, 24);
FLOW_OFFSET(flow_counters, first_frame, 32);
FLOW_OFFSET(flow_counters, unreachable, 40);
FLOW_OFFSET(flow_counters, tcp_flags, 44);
FLOW_OFFSET(flow_counters, events, 46);
FLOW_OFFSET(flow_counters, reserved, 47);
_Static_assert(sizeof(struct flow_counters) == 48, "flow_counters");
FLOW_OFFSET(flow_row, key, 0);
FLOW_OFFSET(flow_row, interval, 80);
FLOW_OFFSET(flow_row, counters, 88);
_Static_assert(sizeof(struct flow_row) == 136, "flow_row");

/*
 * Adds what `more` counted to `all`: sums, least start, greatest end, ORs, least frame number.
 * Associative and commutative; {start = FLOW_NO_TIME, rest 0} is neutral. first_frame 0 means "none".
 */
static __always_inline void count(struct flow_counters *all, const struct flow_counters *more)
{
    all->packets += more->packets;
    all->bytes += more->bytes;
    if (more->start < all->start)
        all->start = more->start;
    if (more->end > all->end)
        all->end = more->end;
    if (more->first_frame && (!all->first_frame || more->first_frame < all->first_frame))
        all->first_frame = more->first_frame;
    all->unreachable |= more->unreachable;
    all->tcp_flags |= more->tcp_flags;
    all->events |= more->events;
}

#endif
