/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: packet.h natively, on any bytes, and what must hold whatever they are. libFuzzer brings the bytes, ASan and
 * UBSan watch the reads; the frame stands at the end of its allocation, so that one byte beyond it is seen.
 *
 * Input: which link type; 16 bits by which the wire was longer; a share of the frame to keep; the frame.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "packet.h"

#define HEAD 4

static const __u32 LINKS[] = {
    LINK_ETHERNET, LINK_NULL, LINK_PPP, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_PPP_HDLC, LINK_PPPOE,
    LINK_RAW,      LINK_LOOP, LINK_SLL, LINK_IPV4,    LINK_IPV6,        LINK_SLL2,     105,
};

struct answer {
    struct packet layers[PACKET_LAYERS];
    int results[PACKET_LAYERS];
    int count;
};

static void demand(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

static void parse(struct answer *a, const __u8 *frame, __u64 have, __u64 wire, __u32 link)
{
    __u8 *exact = malloc(have ? have : 1);
    struct cursor c = {.base = exact, .have = have, .end = wire};

    demand(exact != NULL, "memory");
    if (have)
        memcpy(exact, frame, have);
    memset(a, 0, sizeof(*a));
    a->results[0] = parse_frame(&c, link, &a->layers[0]);
    a->count = 1;
    while (a->count < PACKET_LAYERS && a->results[a->count - 1] == PARSED) {
        struct packet *outer = &a->layers[a->count - 1];

        if (outer->next == NEXT_NONE || outer->next == NEXT_CUT)
            break;
        a->results[a->count] = parse_inner(&c, outer, &a->layers[a->count]);
        a->count++;
    }
    free(exact);
}

static void check(const struct answer *a, __u64 have, __u64 wire)
{
    for (int i = 0; i < a->count; i++) {
        const struct packet *p = &a->layers[i];
        int quote = i && a->layers[i - 1].next == NEXT_QUOTE;

        demand(a->results[i] >= PARSED && a->results[i] < PARSE_RESULTS, "a result is one of parse_result");
        demand(a->results[i] != TRUNCATED || have < wire, "only a cut frame is truncated");
        demand(!p->reserved && !p->key.reserved, "reserved fields are zero");
        demand(p->next <= NEXT_CUT && p->next_tunnel <= TUNNEL_IPIP, "what comes next is known");
        if (a->results[i] != PARSED)
            continue;
        demand(quote == !p->bytes, "a packet has bytes, a quote has none");
        demand(p->fragment <= FRAGMENT_LATER, "a fragment is one of three");
        demand(p->fragment != FRAGMENT_LATER || (!p->key.src_port && !p->key.dst_port), "a later one has no ports");
        demand(p->fragment_payload <= wire, "a fragment is no longer than its frame");
        demand(!quote || p->next == NEXT_NONE, "nothing stands behind a quote");
    }
}

/* What is cut off makes a layer truncated; what is left means what it meant. */
static void check_cut(const struct answer *cut, const struct answer *whole)
{
    demand(cut->count <= whole->count, "a cut adds no layer");
    for (int i = 0; i < cut->count; i++) {
        if (cut->results[i] == TRUNCATED)
            return;
        demand(cut->results[i] == whole->results[i], "a cut makes a layer truncated and nothing else");
        if (cut->results[i] != PARSED)
            return;
        demand(!memcmp(&cut->layers[i].key, &whole->layers[i].key, sizeof(cut->layers[i].key)), "a cut moves no flow");
        demand(cut->layers[i].bytes == whole->layers[i].bytes, "a cut takes no bytes");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct answer whole, cut;
    __u64 have, wire, keep;
    __u32 link;

    if (size < HEAD)
        return 0;
    link = LINKS[data[0] % (sizeof(LINKS) / sizeof(LINKS[0]))];
    have = size - HEAD;
    wire = have + data[1] + data[2] * 256u;
    keep = have * data[3] / 256;
    parse(&whole, data + HEAD, have, wire, link);
    check(&whole, have, wire);
    parse(&cut, data + HEAD, keep, wire, link);
    check(&cut, keep, wire);
    check_cut(&cut, &whole);
    return 0;
}
