/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: words to a hash. It must spread well and be quick; that nobody can choose keys which meet is for the seed.
 */
#ifndef RKE2_FLOWS_HASH_H
#define RKE2_FLOWS_HASH_H

#include <stddef.h>
#include <string.h>

#include "flow.h"

static inline __u64 load64(const void *from)
{
    __u64 value;

    memcpy(&value, from, sizeof(value));
    return value;
}

static inline __u64 mix(__u64 a, __u64 b)
{
    unsigned __int128 product = (unsigned __int128)a * b;

    return (__u64)product ^ (__u64)(product >> 64);
}

static inline __u64 hash_words(const __u8 *from, size_t words, __u64 hash)
{
    for (size_t i = 0; i < words; i++)
        hash = mix(hash ^ load64(from + 8 * i), 0x9e3779b97f4a7c15ULL);
    return hash;
}

#endif
