/* hash.c - XXH3, 64 bits: for digests and checks of equality, not for security. */
#include "fedlora/base.h"
#include <string.h>
#include <xxhash.h>

uint64_t fl_hash(const void *x, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(n > 0 ? x : "", n, seed);
}

uint64_t fl_hash_text(const char *s)
{
    return fl_hash(s, strlen(s), 0);
}
