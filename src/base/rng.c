/* rng.c - random numbers without state: value = f(seed, purpose, id, round, index).
 * Philox4x32-10, Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
 * Key (64 bits): the seed. Counter (128 bits): index 64 | id 32 | purpose 8, round + 2^23 24.
 * Distinct arguments give distinct counters, so no two draws ever share a block. */
#include "fedlora/base.h"
#include <Random123/philox.h>
#include <math.h>
#include <stdlib.h>

static const double rng_ulp = 0x1p-53;

void fl_rng_block(uint64_t seed, int purpose, int id, int round, uint64_t index, uint32_t out[4])
{
    const int bias = 1 << 23;

    FL_REQUIRE(purpose >= 0 && purpose < 256 && id >= 0 && round > -bias && round < bias);
    philox4x32_key_t key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
    philox4x32_ctr_t counter = {{(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)id,
        (uint32_t)purpose << 24 | (uint32_t)(round + bias)}};
    philox4x32_ctr_t x = philox4x32(counter, key);

    for (int i = 0; i < 4; i++) {
        out[i] = x.v[i];
    }
}

/* 53 bits of two words, an integer in [0, 2^53) */
static double rng_53(uint32_t high, uint32_t low)
{
    return (double)(((uint64_t)high << 32 | low) >> 11);
}

double fl_rng_uniform(uint64_t seed, int purpose, int id, int round, uint64_t index)
{
    uint32_t x[4];

    fl_rng_block(seed, purpose, id, round, index, x);
    return rng_53(x[0], x[1]) * rng_ulp;
}

double fl_rng_normal(uint64_t seed, int purpose, int id, int round, uint64_t index)
{
    const double two_pi = 6.283185307179586476925;
    uint32_t x[4];

    fl_rng_block(seed, purpose, id, round, index, x);
    double u = (rng_53(x[0], x[1]) + 1.0) * rng_ulp; /* (0, 1]: the logarithm is finite */
    double v = rng_53(x[2], x[3]) * rng_ulp;
    return sqrt(-2.0 * log(u)) * cos(two_pi * v);
}

/* 0..n-1, uniform to 2^-33: the high half of 64 random bits times n */
static int rng_below(uint64_t seed, int purpose, int id, int round, uint64_t index, int n)
{
    uint32_t b[4];

    fl_rng_block(seed, purpose, id, round, index, b);
    uint64_t bits = (uint64_t)b[0] << 32 | b[1];

    return (int)(((unsigned __int128)bits * (uint64_t)n) >> 64);
}

void fl_rng_shuffle(uint64_t seed, int purpose, int id, int round, int n, int *x)
{
    for (int i = n - 1; i > 0; i--) {
        int j = rng_below(seed, purpose, id, round, (uint64_t)i, i + 1);
        int t = x[i];
        x[i] = x[j];
        x[j] = t;
    }
}

/* open addressing; slots hold value + 1, 0 = free. False: it was there already. */
static bool set_insert(int *slot, int bits, int value)
{
    size_t mask = ((size_t)1 << bits) - 1,
           at = (size_t)(((uint64_t)value * 0x9e3779b97f4a7c15u) >> (64 - bits));

    while (slot[at] != 0 && slot[at] != value + 1) {
        at = (at + 1) & mask;
    }
    bool is_new = slot[at] == 0;

    slot[at] = value + 1;
    return is_new;
}

static int rng_by_value(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;

    return (x > y) - (x < y);
}

/* Floyd's algorithm, in Bentley, Programming Pearls: a sample of brilliance, CACM 1987 */
void fl_rng_subset(uint64_t seed, int purpose, int id, int round, int n, int k, int *x)
{
    int bits = 1, *slot;

    FL_REQUIRE(k >= 0 && k <= n);
    while (((size_t)1 << bits) < 2 * (size_t)k) {
        bits++;
    }
    slot = fl_alloc("set of draws", (size_t)1 << bits, sizeof *slot);
    for (int i = 0; i < k; i++) {
        int last = n - k + i;

        x[i] = rng_below(seed, purpose, id, round, (uint64_t)last, last + 1);
        if (!set_insert(slot, bits, x[i])) {
            x[i] = last;
            set_insert(slot, bits, last);
        }
    }
    fl_free(slot);
    if (k > 0) {
        qsort(x, (size_t)k, sizeof *x, rng_by_value);
    }
}
