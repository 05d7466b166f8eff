/*
 * Rule: puts given frames on an interface, again and again, and knows nothing of what is in them.
 *
 * blast INTERFACE FILE COUNT RATE: COUNT frames in all, the file's in rotation, RATE a second (0: as fast as it goes).
 * FILE: each frame as a 32-bit length in this machine's order, then its bytes. They pass the egress hooks, as what a
 * host sends does. Prints one line of JSON: frames, bytes, refused (what the kernel did not take), seconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

enum { BATCH = 64 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000ULL), .tv_nsec = (long)(ns % 1000000000ULL)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* The file's frames; returns how many. */
static size_t load(const char *path, struct iovec **frames)
{
    int fd = open(path, O_RDONLY);
    size_t count = 0, room = 0, at;
    struct stat info;
    uint32_t length;
    char *base;

    if (fd < 0 || fstat(fd, &info))
        fail(path);
    base = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (base == MAP_FAILED)
        fail(path);
    for (at = 0; at + sizeof(length) <= (size_t)info.st_size; at += sizeof(length) + length) {
        memcpy(&length, base + at, sizeof(length));
        if (count == room) {
            room = room ? 2 * room : 1024;
            *frames = realloc(*frames, room * sizeof(**frames));
            if (!*frames)
                fail("realloc");
        }
        (*frames)[count++] = (struct iovec){.iov_base = base + at + sizeof(length), .iov_len = length};
    }
    return count;
}

static int packet_socket(const char *interface)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), room = 1 << 20;

    if (fd < 0 || !address.sll_ifindex || bind(fd, (struct sockaddr *)&address, sizeof(address)))
        fail(interface);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)))
        fail("SO_SNDBUF");
    return fd;
}

int main(int argc, char **argv)
{
    uint64_t count, rate, sent = 0, bytes = 0, refused = 0, begin;
    struct mmsghdr batch[BATCH] = {0};
    struct iovec *frames = NULL;
    size_t loaded;
    int fd;

    if (argc != 5) {
        fprintf(stderr, "usage: %s INTERFACE FILE COUNT RATE\n", argv[0]);
        return 2;
    }
    loaded = load(argv[2], &frames);
    count = strtoull(argv[3], NULL, 10);
    rate = strtoull(argv[4], NULL, 10);
    fd = packet_socket(argv[1]);
    begin = now_ns();
    while (loaded && sent + refused < count) {
        uint64_t at = sent + refused, left = count - at;
        unsigned int wanted = left < BATCH ? (unsigned int)left : BATCH;
        int done;

        for (unsigned int i = 0; i < wanted; i++)
            batch[i].msg_hdr = (struct msghdr){.msg_iov = &frames[(at + i) % loaded], .msg_iovlen = 1};
        if (rate)
            sleep_until(begin + at * 1000000000ULL / rate);
        done = sendmmsg(fd, batch, wanted, 0);
        if (done < 0 && errno != ENOBUFS)
            fail("sendmmsg");
        if (done < 0)
            refused++;
        for (int i = 0; i < done; i++)
            bytes += batch[i].msg_len;
        sent += done < 0 ? 0 : (uint64_t)done;
    }
    printf("{\"frames\": %llu, \"bytes\": %llu, \"refused\": %llu, \"seconds\": %.3f}\n", (unsigned long long)sent,
           (unsigned long long)bytes, (unsigned long long)refused, (double)(now_ns() - begin) / 1e9);
    return 0;
}
