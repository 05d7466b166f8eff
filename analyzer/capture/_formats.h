/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: a buffer in, whole records to the meter. This file opens nothing and keeps no byte of its input: consume() says
 * how much of the buffer was whole records. What is wrong with a file is said once, in reader.fault.
 *
 * Formats: pcap (https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html) and its nanosecond and Kuznetzov
 * variants, pcapng (draft-ietf-opsawg-pcapng-02).
 */
#ifndef RKE2_FLOWS_FORMATS_H
#define RKE2_FLOWS_FORMATS_H

#include <stdarg.h>
#include <stdio.h>

#include "_meter.h"

#define TIME_MAX       0x7fffffffffffffffULL /* what datetime64[ns] can hold */
#define RECORD_MAX     (256u << 10)          /* libpcap's MAXIMUM_SNAPLEN; a header's larger snaplen lifts it */
#define SNAPLEN_MAX    (16u << 20)
#define BLOCK_MAX      (64u << 20)
#define INTERFACES_MAX (1u << 16)

/* ---- what the file has said so far ---- */

enum format { FORMAT_NONE, FORMAT_PCAP, FORMAT_PCAPNG };

struct interface {
    __u64 units;   /* per second; 0: 2 to the power of `shift` */
    __u64 dropped; /* as the latest statistics block says */
    __s64 offset;  /* seconds */
    __u32 link, snaplen, shift;
    char name[64];
};

struct reader {
    struct meter meter;
    __u64 offset; /* of the next record, in bytes of the (decompressed) file */
    struct interface *interfaces;
    __u64 interface_count, interface_room, section_base;
    __u64 packet_drops; /* drop counts of packet blocks */
    enum format format;
    bool swapped, nanoseconds;
    __u32 record_header, link, record_max;
    char fault[200];
};

static void fault(struct reader *r, const char *text, ...) __attribute__((format(printf, 2, 3)));

static void fault(struct reader *r, const char *text, ...)
{
    va_list arguments;

    va_start(arguments, text);
    vsnprintf(r->fault, sizeof(r->fault), text, arguments);
    va_end(arguments);
}

static inline __u16 get16(const struct reader *r, const __u8 *p)
{
    __u16 value;

    memcpy(&value, p, 2);
    return r->swapped ? __builtin_bswap16(value) : value;
}

static inline __u32 get32(const struct reader *r, const __u8 *p)
{
    __u32 value;

    memcpy(&value, p, 4);
    return r->swapped ? __builtin_bswap32(value) : value;
}

static inline __u64 get64(const struct reader *r, const __u8 *p)
{
    __u64 value = load64(p);

    return r->swapped ? __builtin_bswap64(value) : value;
}

/* ---- one frame, of any format ---- */

enum block_type {
    BLOCK_INTERFACE = 1,
    BLOCK_PACKET = 2,
    BLOCK_SIMPLE = 3,
    BLOCK_STATISTICS = 5,
    BLOCK_ENHANCED = 6,
    BLOCK_SECTION = 0x0a0d0d0a,
};

/* The frame as an enhanced packet block in this machine's byte order; times are ns. */
static void keep_frame(struct cut *cut, const struct frame *f, __u32 interface)
{
    __u64 time = f->time == FLOW_NO_TIME ? 0 : f->time, padded = (f->captured + 3) & ~3ULL;
    __u32 total = (__u32)(padded + 32);
    __u32 head[] = {BLOCK_ENHANCED,     total,         interface, (__u32)(time >> 32), (__u32)time,
                    (__u32)f->captured, (__u32)f->wire};
    __u8 *at = cut_keep(cut, f->time, total);

    if (!at)
        return;
    memcpy(at, head, sizeof(head));
    memcpy(at + sizeof(head), f->bytes, f->captured);
    memset(at + sizeof(head) + f->captured, 0, padded - f->captured);
    memcpy(at + sizeof(head) + padded, &total, sizeof(total));
}

/* `interface`: its number in this file, where that is not the frame's own. */
static void read_frame(struct reader *r, const struct frame *f, __u32 interface)
{
    struct cut *cut = r->meter.cut;

    if (cut)
        cut_begin(cut, frame_number(&r->meter) + 1);
    count_frame(&r->meter, f);
    if (!cut)
        return;
    if (cut->taken)
        keep_frame(cut, f, interface);
    if (cut->no_memory)
        r->meter.no_memory = true;
}

/* ---- pcap ---- */

struct magic {
    __u8 bytes[4];
    bool nanoseconds;
    __u8 record_header;
    bool big_endian;
};

static const struct magic MAGICS[] = {
    {{0xd4, 0xc3, 0xb2, 0xa1}, false, 16, false}, {{0xa1, 0xb2, 0xc3, 0xd4}, false, 16, true},
    {{0x4d, 0x3c, 0xb2, 0xa1}, true, 16, false},  {{0xa1, 0xb2, 0x3c, 0x4d}, true, 16, true},
    {{0x34, 0xcd, 0xb2, 0xa1}, false, 24, false}, {{0xa1, 0xb2, 0xcd, 0x34}, false, 24, true},
};
static const __u8 SECTION_MAGIC[4] = {0x0a, 0x0d, 0x0d, 0x0a};

static bool host_is_big_endian(void)
{
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
}

static size_t pcap_header(struct reader *r, const struct magic *magic, const __u8 *p, size_t length)
{
    __u32 snaplen;

    if (length < 24)
        return 0;
    r->swapped = magic->big_endian != host_is_big_endian();
    r->nanoseconds = magic->nanoseconds;
    r->record_header = magic->record_header;
    r->link = get32(r, p + 20) & 0x03ffffff; /* above: whether frames end with a check sequence, and its length */
    snaplen = get32(r, p + 16);
    r->record_max = snaplen > RECORD_MAX && snaplen <= SNAPLEN_MAX ? snaplen : RECORD_MAX;
    if (get16(r, p + 4) != 2) {
        fault(r, "pcap version %u is not known, only 2", get16(r, p + 4));
        return 0;
    }
    r->format = FORMAT_PCAP;
    return 24;
}

static void pcap_frame(struct reader *r, const __u8 *p, __u32 captured)
{
    __u64 fraction = get32(r, p + 4);
    struct frame f = {
        .bytes = p + r->record_header,
        .captured = captured,
        .wire = get32(r, p + 12),
        .time = get32(r, p) * NS + (r->nanoseconds ? fraction : fraction * 1000),
        .link = r->link,
    };

    if (r->record_header == 24) {
        f.interface = get32(r, p + 16) | BY_IFINDEX;
        f.direction = sll_direction(p[22]);
    }
    read_frame(r, &f, 0);
}

static size_t pcap_record(struct reader *r, const __u8 *p, size_t length)
{
    __u32 captured;

    if (length < r->record_header)
        return 0;
    captured = get32(r, p + 8);
    if (captured > r->record_max) {
        fault(r, "the record says it holds %u bytes, more than the limit of %u", captured, r->record_max);
        return 0;
    }
    if (length - r->record_header < captured)
        return 0;
    pcap_frame(r, p, captured);
    return r->record_header + (size_t)captured;
}

/* ---- pcapng ---- */

enum option_code {
    OPTION_END = 0,
    OPTION_IF_NAME = 2,
    OPTION_EPB_DROPS = 4,
    OPTION_ISB_IFDROP = 5,
    OPTION_ISB_OSDROP = 7,
    OPTION_IF_TSRESOL = 9,
    OPTION_IF_TSOFFSET = 14,
};

struct body {
    const __u8 *at;
    size_t length;
};

struct option {
    __u32 code, length;
    const __u8 *value;
};

/* 1: an option; 0: no more; -1: it does not fit */
static int next_option(struct reader *r, struct body *rest, struct option *option)
{
    size_t padded;

    if (rest->length < 4)
        return 0;
    option->code = get16(r, rest->at);
    option->length = get16(r, rest->at + 2);
    option->value = rest->at + 4;
    if (option->code == OPTION_END)
        return 0;
    padded = (option->length + 3u) & ~3u;
    if (rest->length - 4 < padded) {
        fault(r, "option %u says it holds %u bytes, its block has %zu", option->code, option->length, rest->length - 4);
        return -1;
    }
    rest->at += 4 + padded;
    rest->length -= 4 + padded;
    return 1;
}

static struct body body_rest(struct body body, size_t used)
{
    return used < body.length ? (struct body){body.at + used, body.length - used} : (struct body){body.at, 0};
}

static void section_block(struct reader *r, struct body body)
{
    struct body rest;
    struct option option;

    if (body.length < 16) {
        fault(r, "section header block of %zu bytes is too short", body.length + 12);
        return;
    }
    if (get16(r, body.at + 4) != 1) {
        fault(r, "pcapng version %u.%u is not known, only 1.x", get16(r, body.at + 4), get16(r, body.at + 6));
        return;
    }
    rest = body_rest(body, 16);
    while (next_option(r, &rest, &option) > 0)
        continue;
    r->section_base = r->interface_count;
}

/* if_tsresol: a power of ten, or with the high bit one of two, to which a second is divided */
static void set_resolution(struct interface *i, __u8 value)
{
    i->shift = value & 0x7f;
    i->units = 0;
    if (value & 0x80)
        return;
    i->units = 1;
    for (__u32 n = 0; n < i->shift && n < 19; n++)
        i->units *= 10;
}

static void interface_option(struct reader *r, struct interface *i, const struct option *option)
{
    if (option->code == OPTION_IF_NAME)
        snprintf(i->name, sizeof(i->name), "%.*s", (int)option->length, (const char *)option->value);
    else if (option->code == OPTION_IF_TSRESOL && option->length >= 1)
        set_resolution(i, option->value[0]);
    else if (option->code == OPTION_IF_TSOFFSET && option->length >= 8)
        i->offset = (__s64)get64(r, option->value);
}

static struct interface *interface_add(struct reader *r)
{
    if (r->interface_count == INTERFACES_MAX) {
        fault(r, "more than %u interfaces", INTERFACES_MAX);
        return NULL;
    }
    if (r->interface_count == r->interface_room) {
        __u64 room = r->interface_room ? r->interface_room * 2 : 8;
        struct interface *all = realloc(r->interfaces, room * sizeof(*all));

        if (!all) {
            r->meter.no_memory = true;
            return NULL;
        }
        r->interfaces = all;
        r->interface_room = room;
    }
    return memset(&r->interfaces[r->interface_count++], 0, sizeof(struct interface));
}

static void interface_block(struct reader *r, struct body body)
{
    struct interface *interface;
    struct option option;
    struct body rest;

    if (body.length < 8) {
        fault(r, "interface block of %zu bytes is too short", body.length + 12);
        return;
    }
    interface = interface_add(r);
    if (!interface)
        return;
    interface->link = get16(r, body.at);
    interface->snaplen = get32(r, body.at + 4);
    set_resolution(interface, 6);
    rest = body_rest(body, 8);
    while (next_option(r, &rest, &option) > 0)
        interface_option(r, interface, &option);
}

static struct interface *interface_of(struct reader *r, __u64 number)
{
    if (number < r->interface_count - r->section_base)
        return &r->interfaces[r->section_base + number];
    fault(r, "interface %llu was not described before", (unsigned long long)number);
    return NULL;
}

static __u64 time_of(const struct interface *i, __u64 stamp)
{
    unsigned __int128 ns;
    __int128 sum;

    if (i->units)
        ns = (unsigned __int128)stamp * NS / i->units;
    else
        ns = (unsigned __int128)stamp * NS >> i->shift;
    sum = (__int128)ns + (__int128)i->offset * (__int128)NS;
    return sum < 0 ? 0 : sum > (__int128)TIME_MAX ? TIME_MAX : (__u64)sum;
}

static void packet_of(struct reader *r, const struct interface *i, struct frame f)
{
    f.link = i->link;
    f.interface = (__u32)(i - r->interfaces);
    read_frame(r, &f, f.interface);
}

/* `head` bytes of fields, then the frame; captured and original length stand last among the fields. */
static void packet_block(struct reader *r, struct body body, __u64 number, __u32 drops)
{
    struct interface *interface;
    struct option option;
    struct body rest;
    __u32 captured;

    if (body.length < 20) {
        fault(r, "packet block of %zu bytes is too short", body.length + 12);
        return;
    }
    captured = get32(r, body.at + 12);
    if (captured > body.length - 20) {
        fault(r, "the packet block says it holds %u bytes, it has %zu", captured, body.length - 20);
        return;
    }
    interface = interface_of(r, number);
    if (!interface)
        return;
    r->packet_drops += drops;
    packet_of(r, interface,
              (struct frame){
                  .bytes = body.at + 20,
                  .captured = captured,
                  .wire = get32(r, body.at + 16),
                  .time = time_of(interface, (__u64)get32(r, body.at + 4) << 32 | get32(r, body.at + 8)),
              });
    rest = body_rest(body, 20 + (((size_t)captured + 3) & ~(size_t)3));
    while (rest.length && next_option(r, &rest, &option) > 0)
        if (option.code == OPTION_EPB_DROPS && option.length >= 8)
            r->packet_drops += get64(r, option.value);
}

/* No captured length and no time: the interface's snaplen and the block's end tell the one, nothing the other. */
static void simple_block(struct reader *r, struct body body)
{
    struct interface *interface;
    __u64 captured;
    __u32 wire;

    if (body.length < 4) {
        fault(r, "simple packet block of %zu bytes is too short", body.length + 12);
        return;
    }
    interface = interface_of(r, 0);
    if (!interface)
        return;
    wire = get32(r, body.at);
    captured = wire;
    if (interface->snaplen && captured > interface->snaplen)
        captured = interface->snaplen;
    if (captured > body.length - 4) {
        fault(r, "the simple packet block says it holds %llu bytes, it has %zu", (unsigned long long)captured,
              body.length - 4);
        return;
    }
    packet_of(r, interface,
              (struct frame){.bytes = body.at + 4, .captured = captured, .wire = wire, .time = FLOW_NO_TIME});
}

/* Counts run from the start of the capture, so that the latest block says all. */
static void statistics_block(struct reader *r, struct body body)
{
    struct interface *interface;
    struct option option;
    struct body rest;
    __u64 dropped = 0;

    if (body.length < 12) {
        fault(r, "statistics block of %zu bytes is too short", body.length + 12);
        return;
    }
    interface = interface_of(r, get32(r, body.at));
    if (!interface)
        return;
    rest = body_rest(body, 12);
    while (next_option(r, &rest, &option) > 0)
        if ((option.code == OPTION_ISB_IFDROP || option.code == OPTION_ISB_OSDROP) && option.length >= 8)
            dropped += get64(r, option.value);
    if (dropped > interface->dropped)
        interface->dropped = dropped;
}

/* The drop count of an obsolete packet block, 0xffff where the writer did not know it */
static __u32 known_drops(struct reader *r, struct body body)
{
    __u32 drops = body.length < 4 ? 0 : get16(r, body.at + 2);

    return drops == 0xffff ? 0 : drops;
}

/* What is no packet, and a line in Wireshark: a journal's entry, custom blocks, sysdig's events */
static bool is_numbered(__u32 type)
{
    static const __u32 TYPES[] = {0x9, 0xbad, 0x40000bad, 0x204, 0x208, 0x216, 0x217, 0x221, 0x222};

    for (size_t i = 0; i < sizeof(TYPES) / sizeof(TYPES[0]); i++)
        if (TYPES[i] == type)
            return true;
    return false;
}

static void read_block(struct reader *r, __u32 type, struct body body)
{
    switch (type) {
    case BLOCK_SECTION:
        section_block(r, body);
        break;
    case BLOCK_INTERFACE:
        interface_block(r, body);
        break;
    case BLOCK_ENHANCED:
        packet_block(r, body, body.length < 4 ? 0 : get32(r, body.at), 0);
        break;
    case BLOCK_PACKET:
        packet_block(r, body, body.length < 4 ? 0 : get16(r, body.at), known_drops(r, body));
        break;
    case BLOCK_SIMPLE:
        simple_block(r, body);
        break;
    case BLOCK_STATISTICS:
        statistics_block(r, body);
        break;
    default: /* names, secrets, custom blocks: nothing that was on the wire */
        r->meter.passed += is_numbered(type);
        break;
    }
}

/* A section's byte order stands in its first block, 8 bytes in. */
static bool section_order(struct reader *r, const __u8 *p)
{
    static const __u8 little[4] = {0x4d, 0x3c, 0x2b, 0x1a}, big[4] = {0x1a, 0x2b, 0x3c, 0x4d};

    if (memcmp(p + 8, little, 4) && memcmp(p + 8, big, 4)) {
        fault(r, "the section header block has no byte-order mark");
        return false;
    }
    r->swapped = !memcmp(p + 8, big, 4) != host_is_big_endian();
    return true;
}

static size_t pcapng_block(struct reader *r, const __u8 *p, size_t length)
{
    __u32 total;

    if (length < 12)
        return 0;
    if (!memcmp(p, SECTION_MAGIC, 4) && !section_order(r, p))
        return 0;
    total = get32(r, p + 4);
    if (total < 12 || total % 4 || total > BLOCK_MAX) {
        fault(r, "a block of %u bytes cannot be", total);
        return 0;
    }
    if (length < total)
        return 0;
    if (get32(r, p + total - 4) != total) {
        fault(r, "a block begins with %u and ends with %u as its length", total, get32(r, p + total - 4));
        return 0;
    }
    read_block(r, get32(r, p), (struct body){p + 8, total - 12});
    return r->fault[0] ? 0 : total;
}

/* ---- any format ---- */

static size_t first_record(struct reader *r, const __u8 *p, size_t length)
{
    if (length < 4)
        return 0;
    for (size_t i = 0; i < sizeof(MAGICS) / sizeof(MAGICS[0]); i++)
        if (!memcmp(p, MAGICS[i].bytes, 4))
            return pcap_header(r, &MAGICS[i], p, length);
    if (memcmp(p, SECTION_MAGIC, 4)) {
        fault(r, "neither pcap nor pcapng: it begins with %02x %02x %02x %02x", p[0], p[1], p[2], p[3]);
        return 0;
    }
    r->format = FORMAT_PCAPNG;
    return pcapng_block(r, p, length);
}

static size_t next_record(struct reader *r, const __u8 *p, size_t length)
{
    return r->format == FORMAT_PCAP     ? pcap_record(r, p, length)
           : r->format == FORMAT_PCAPNG ? pcapng_block(r, p, length)
                                        : first_record(r, p, length);
}

static size_t consume(struct reader *r, const __u8 *p, size_t length)
{
    size_t done = 0, used;

    while (!r->fault[0] && !r->meter.no_memory && done < length) {
        used = next_record(r, p + done, length - done);
        if (!used)
            break;
        done += used;
        r->offset += used;
        /* records are often alike in length: what will be the headers of one a few ahead */
        __builtin_prefetch(p + done + 4 * used);
        __builtin_prefetch(p + done + 4 * used + 64);
    }
    if (queue_rest(&r->meter.queue))
        r->meter.no_memory = true;
    return done;
}

#endif
