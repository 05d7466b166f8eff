/* The least that any reader of a capture must do. Rule: no check that a real reader needs, no format but one.
 *
 * pcap, microseconds, this machine's byte order, Ethernet without tags, IPv4 without options, IPv6 without extension
 * headers, ports at fixed offsets; one hash table of one-way 5-tuples. Never a reader to rely on: a lower bound of
 * time. Prints one line of JSON: frames, tuples, ip_bytes, and the seconds that the walk took.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum { FILE_HEADER = 24, RECORD_HEADER = 16, ETHERNET = 14, SLOTS = 1 << 20 };

struct slot {
    uint64_t key[5]; /* source, destination (IPv4 in the first half of each), ports and protocol */
    uint64_t bytes;
    uint32_t packets, first, last; /* times: seconds */
    uint32_t fill;                 /* one cache line */
};

_Static_assert(sizeof(struct slot) == 64, "a slot is one cache line");

static uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint16_t load16be(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* The key of a frame and its IP length; 0 for a frame that is no IP. */
static uint32_t read_frame(const uint8_t *frame, uint64_t key[5])
{
    const uint8_t *ip = frame + ETHERNET;
    switch (load16be(frame + 12)) {
    case 0x0800:
        key[0] = load32(ip + 12), key[1] = 0, key[2] = load32(ip + 16), key[3] = 0;
        key[4] = (uint64_t)load32(ip + 20) << 8 | ip[9];
        return load16be(ip + 2);
    case 0x86DD:
        key[0] = load64(ip + 8), key[1] = load64(ip + 16), key[2] = load64(ip + 24), key[3] = load64(ip + 32);
        key[4] = (uint64_t)load32(ip + 40) << 8 | ip[6];
        return load16be(ip + 4) + 40u;
    default:
        return 0;
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct slot *find(struct slot *table, const uint64_t key[5], uint64_t *tuples)
{
    uint64_t hash = 0;
    for (int i = 0; i < 5; i++)
        hash = (hash ^ key[i]) * 0x9E3779B97F4A7C15u, hash ^= hash >> 32;
    for (uint64_t at = hash & (SLOTS - 1);; at = (at + 1) & (SLOTS - 1)) {
        struct slot *slot = &table[at];
        if (!slot->packets) {
            if (++*tuples == SLOTS)
                fputs("floor: more tuples than its table holds\n", stderr), exit(2);
            memcpy(slot->key, key, sizeof slot->key);
            return slot;
        }
        if (!memcmp(slot->key, key, sizeof slot->key))
            return slot;
    }
}

int main(int argc, char **argv)
{
    struct stat status;
    int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &status) || status.st_size < FILE_HEADER)
        return fputs("usage: floor CAPTURE\n", stderr), 2;
    const uint8_t *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    struct slot *table = mmap(NULL, SLOTS * sizeof *table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (file == MAP_FAILED || table == MAP_FAILED || load32(file) != 0xA1B2C3D4)
        return fputs("floor: cannot map the file, or it is no pcap of this machine\n", stderr), 2;
    madvise(table, SLOTS * sizeof *table, MADV_HUGEPAGE);
    double begin = now();
    uint64_t frames = 0, tuples = 0, bytes = 0, key[5];
    for (const uint8_t *p = file + FILE_HEADER, *end = file + status.st_size; p < end; frames++) {
        uint32_t length = read_frame(p + RECORD_HEADER, key);
        if (length) {
            struct slot *slot = find(table, key, &tuples);
            if (!slot->packets++)
                slot->first = load32(p);
            slot->last = load32(p);
            slot->bytes += length, bytes += length;
        }
        p += RECORD_HEADER + load32(p + 8);
    }
    printf("{\"frames\": %lu, \"tuples\": %lu, \"ip_bytes\": %lu, \"seconds\": %.6f}\n", frames, tuples, bytes,
           now() - begin);
    return 0;
}
