/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: flows to columns, and addresses to text, each distinct one once. It decides nothing.
 */
#ifndef RKE2_FLOWS_COLUMNS_H
#define RKE2_FLOWS_COLUMNS_H

#include <arpa/inet.h>

#include "_flows.h"

/* A column's name, which is one of struct columns too, and its element. */
/* clang-format off */
#define COLUMNS(X)                                                                                                     \
    X(flow, __u32) X(observer, __u32)                                                                                  \
    X(client, __s32) X(server, __s32) X(outer_client, __s32) X(outer_server, __s32)                                    \
    X(client_port, __u16) X(server_port, __u16) X(protocol, __u8) X(tunnel, __u8) X(vni, __u32)                        \
    X(start, __s64) X(end, __s64) X(interval, __u64) X(first_frame, __u64)                                             \
    X(packets_out, __u64) X(packets_in, __u64) X(bytes_out, __u64) X(bytes_in, __u64)                                  \
    X(tcp_flags_out, __u16) X(tcp_flags_in, __u16) X(outcome, __u8) X(direction_by, __u8) X(carrier, __u8)
/* clang-format on */

struct columns {
#define MEMBER(name, type) type *name;
    COLUMNS(MEMBER)
#undef MEMBER
};

/* ---- addresses: the first text is empty, then each distinct address ---- */

struct addresses {
    struct index index;
    __u8 (*at)[16];
    __u32 count, room;
    __u64 seed;
};

static bool is_same_address(const void *all, __u32 number, const void *wanted)
{
    return same_address(((const struct addresses *)all)->at[number], wanted);
}

/* The number of an address's text, NONE when memory is out. */
static __u32 text_of(struct addresses *a, const __u8 *address)
{
    __u32 hash = address_hash(address, a->seed);
    struct slot *slot = index_find(&a->index, hash, is_same_address, a, address);
    __u32 number;

    if (slot->number)
        return slot->number;
    if (a->count == a->room) {
        __u32 room = a->room ? a->room * 2 : 1024;
        void *at = realloc(a->at, room * sizeof(*a->at));

        if (!at)
            return NONE;
        a->at = at;
        a->room = room;
    }
    memcpy(a->at[a->count], address, sizeof(*a->at));
    number = ++a->count;
    index_put(&a->index, slot, hash, number - 1);
    return index_grow(&a->index) ? NONE : number;
}

static void addresses_free(struct addresses *a)
{
    index_free(&a->index);
    free(a->at);
    a->at = NULL;
}

struct ranked {
    __u8 address[16];
    __u32 number;
};

static int ranked_order(const void *one, const void *other)
{
    return memcmp(one, other, 16);
}

/* Puts the addresses in numerical order. `columns`: of text numbers, which are changed to fit; -1 without memory. */
static int sort_addresses(struct addresses *a, __s32 *const *columns, size_t column_count, __u64 length)
{
    struct ranked *ranked = malloc(a->count * sizeof(*ranked) + 1);
    __u32 *rank = malloc(((size_t)a->count + 1) * sizeof(*rank));

    for (__u32 i = 0; ranked && i < a->count; i++) {
        memcpy(ranked[i].address, a->at[i], 16);
        ranked[i].number = i;
    }
    if (ranked && rank) {
        qsort(ranked, a->count, sizeof(*ranked), ranked_order);
        rank[0] = 0;
        for (__u32 i = 0; i < a->count; i++) {
            memcpy(a->at[i], ranked[i].address, 16);
            rank[ranked[i].number + 1] = i + 1;
        }
        for (size_t column = 0; column < column_count; column++)
            for (__u64 i = 0; i < length; i++)
                columns[column][i] = (__s32)rank[columns[column][i]];
    }
    free(ranked);
    free(rank);
    return ranked && rank ? 0 : -1;
}

static char *write_byte(char *to, __u8 number)
{
    if (number >= 100)
        *to++ = (char)('0' + number / 100);
    if (number >= 10)
        *to++ = (char)('0' + number / 10 % 10);
    *to++ = (char)('0' + number % 10);
    return to;
}

/* IPv4 where it is ::ffff:a.b.c.d, without a zero at its end; its length. */
static size_t write_address(char to[INET6_ADDRSTRLEN], const __u8 *address)
{
    static const __u8 MAPPED[12] = {[10] = 0xff, [11] = 0xff};
    char *at = to;

    if (memcmp(address, MAPPED, sizeof(MAPPED)))
        return strlen(inet_ntop(AF_INET6, address, to, INET6_ADDRSTRLEN));
    for (int i = 12; i < 16; i++) {
        at = write_byte(at, address[i]);
        *at++ = '.';
    }
    return (size_t)(at - 1 - to);
}

/* Texts one after the other, and where each begins: one offset more than there are texts. */
struct texts {
    char *bytes;
    __s32 *offsets;
    __u32 count;
};

static int write_texts(const struct addresses *a, struct texts *t)
{
    size_t length = 0;

    t->count = a->count + 1;
    t->bytes = malloc((size_t)a->count * INET6_ADDRSTRLEN + 1);
    t->offsets = malloc(((size_t)t->count + 1) * sizeof(*t->offsets));
    if (!t->bytes || !t->offsets || (__u64)a->count * INET6_ADDRSTRLEN > INT32_MAX)
        return -1;
    t->offsets[0] = t->offsets[1] = 0;
    for (__u32 i = 0; i < a->count; i++) {
        length += write_address(t->bytes + length, a->at[i]);
        t->offsets[i + 2] = (__s32)length;
    }
    return 0;
}

/* ---- one flow's place in each column ---- */

struct emission {
    const struct flows *flows;
    struct columns columns;
    struct addresses addresses;
    struct texts texts;
    struct unit *units; /* room for the rows of any one flow */
};

static bool is_zero(const __u8 *address)
{
    return !(load64(address) | load64(address + 8));
}

static bool emit_addresses(struct emission *e, __u64 at, const struct flow_ends *ends, const struct flow_sums *sums)
{
    static const __u8 NOWHERE[16];
    const __u8 *outer[2] = {NOWHERE, NOWHERE};
    __u32 numbers[4];

    if (sums->tunnel) {
        outer[sums->tunnel_inward] = sums->tunnel->key.outer_src;
        outer[!sums->tunnel_inward] = sums->tunnel->key.outer_dst;
    }
    numbers[0] = text_of(&e->addresses, ends->client);
    numbers[1] = text_of(&e->addresses, ends->server);
    for (int i = 0; i < 2; i++)
        numbers[2 + i] = is_zero(outer[i]) ? 0 : text_of(&e->addresses, outer[i]);
    e->columns.client[at] = (__s32)numbers[0];
    e->columns.server[at] = (__s32)numbers[1];
    e->columns.outer_client[at] = (__s32)numbers[2];
    e->columns.outer_server[at] = (__s32)numbers[3];
    return numbers[0] != NONE && numbers[1] != NONE && numbers[2] != NONE && numbers[3] != NONE;
}

/* False when memory is out. */
static bool emit_flow(struct emission *e, __u64 at, __u32 flow)
{
    const struct flows *f = e->flows;
    const struct pairing *p = f->p;
    struct columns *c = &e->columns;
    __u32 connection = f->connection[flow];
    struct flow_ends ends = flow_ends(f, flow);
    struct fullest fullest = fullest_of(f, flow, e->units);
    struct flow_sums sums = sums_of(f, flow, fullest.observer);

    c->flow[at] = flow;
    c->observer[at] = fullest.observer;
    c->client_port[at] = ends.client_port;
    c->server_port[at] = ends.server_port;
    c->protocol[at] = ends.key->protocol;
    c->tunnel[at] = ends.key->tunnel;
    c->vni[at] = ends.key->vni;
    c->start[at] = f->start[flow];
    c->end[at] = f->start[flow] == NOT_A_TIME ? NOT_A_TIME : (__s64)sums.end;
    c->packets_out[at] = fullest.packets[0];
    c->packets_in[at] = fullest.packets[1];
    c->bytes_out[at] = fullest.bytes[0];
    c->bytes_in[at] = fullest.bytes[1];
    c->tcp_flags_out[at] = sums.flags[0];
    c->tcp_flags_in[at] = sums.flags[1];
    c->outcome[at] = p->outcome[connection];
    c->direction_by[at] = p->direction_by[connection];
    c->first_frame[at] = sums.first_frame;
    c->interval[at] = interval_of(f, flow);
    c->carrier[at] = is_carrier(f, flow);
    return emit_addresses(e, at, &ends, &sums);
}

static __u32 most_rows(const struct flows *f)
{
    __u32 most = 1;

    for (__u32 i = 0; i < f->count; i++)
        if (f->begin[i + 1] - f->begin[i] > most)
            most = f->begin[i + 1] - f->begin[i];
    return most;
}

static void emission_free(struct emission *e)
{
    addresses_free(&e->addresses);
    free(e->texts.bytes);
    free(e->texts.offsets);
    free(e->units);
}

/* Fills the columns with the flows from `begin` to `end` in their order; -1 when memory is out. */
static int emit(struct emission *e, __u64 begin, __u64 end, bool sorted)
{
    __s32 *texts[] = {e->columns.client, e->columns.server, e->columns.outer_client, e->columns.outer_server};

    e->addresses.seed = e->flows->p->seed;
    e->units = malloc(most_rows(e->flows) * sizeof(*e->units));
    if (!e->units || index_init(&e->addresses.index, 0))
        return -1;
    for (__u64 i = begin; i < end; i++) {
        if (i + AHEAD / 2 < end)
            ask_for_rows(e->flows, e->flows->order[i + AHEAD / 2]);
        if (!emit_flow(e, i - begin, e->flows->order[i]))
            return -1;
    }
    if (sorted && sort_addresses(&e->addresses, texts, 4, end - begin))
        return -1;
    return write_texts(&e->addresses, &e->texts);
}

#endif
