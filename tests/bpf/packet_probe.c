/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rule: packet.h in the kernel and nothing else. It does with one frame what parse() of the native reader does, so that
 * a test can lay the two answers side by side; what an answer should be is the test's business. It only reads the skb.
 */
#ifndef PACKET_WINDOW
#define PACKET_WINDOW 192
#endif
#include "packet.h"

#define TC_ACT_UNSPEC (-1)

/* What the test asks: where in the skb the frame begins, how it is to be read. */
struct probe_order {
    __u64 wire; /* the frame's length on the wire; 0: the skb's */
    __u32 link;
    __u32 offset;
};

struct probe_answer {
    struct packet layers[PACKET_LAYERS];
    __s32 results[PACKET_LAYERS];
    __u32 count; /* layers filled; 0: the window could not be */
};

struct probe_window {
    __u8 bytes[PACKET_WINDOW];
    __u64 scratch[2];
};

BPF_ARRAY(orders, struct probe_order, 1);
BPF_ARRAY(answers, struct probe_answer, 1);
BPF_PERCPU_ARRAY(windows, struct probe_window, 1);

static __always_inline void parse_layers(struct cursor *c, __u32 link, struct probe_answer *answer)
{
    int i;

    answer->results[0] = parse_frame(c, link, &answer->layers[0]);
    answer->count = 1;
#pragma unroll
    for (i = 1; i < PACKET_LAYERS; i++) {
        __u8 next = answer->layers[i - 1].next;

        if (answer->results[i - 1] != PARSED || next == NEXT_NONE || next == NEXT_CUT)
            return;
        answer->results[i] = parse_inner(c, &answer->layers[i - 1], &answer->layers[i]);
        answer->count = i + 1;
    }
}

int probe(struct __sk_buff *skb)
{
    int zero = 0;
    struct probe_order *order = orders.lookup(&zero);
    struct probe_answer *answer = answers.lookup(&zero);
    struct probe_window *window = windows.lookup(&zero);
    struct cursor c = {};
    __u64 have;

    if (!order || !answer || !window)
        return TC_ACT_UNSPEC;
    __builtin_memset(answer, 0, sizeof(*answer));
    if (order->offset > skb->len)
        return TC_ACT_UNSPEC;
    have = skb->len - order->offset;
    c.end = order->wire ? order->wire : have;
    if (have > PACKET_WINDOW)
        have = PACKET_WINDOW;
    c.base = window->bytes;
    c.scratch = window->scratch;
    c.have = have;
    if (have && bpf_skb_load_bytes(skb, order->offset, window->bytes, have))
        return TC_ACT_UNSPEC;
    parse_layers(&c, order->link, answer);
    return TC_ACT_UNSPEC;
}
