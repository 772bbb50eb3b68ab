/* test_rng.c - random numbers: known answers, packing of the arguments, moments, shuffles. */
#include "harness.h"
#include <math.h>
#include <string.h>

/* Philox4x32-10 written down again from Salmon et al. 2011, section 3.3: the reference for the
 * library's. */
static void philox_by_hand(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t x[4], k0 = key[0], k1 = key[1];

    memcpy(x, counter, sizeof x);
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * x[0], b = UINT64_C(0xCD9E8D57) * x[2];
        uint32_t y[4] = {(uint32_t)(b >> 32) ^ x[1] ^ k0, (uint32_t)b,
            (uint32_t)(a >> 32) ^ x[3] ^ k1, (uint32_t)a};
        memcpy(x, y, sizeof x);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    memcpy(out, x, sizeof x);
}

static void rng_known_answers(void **state)
{
    /* kat_vectors of Random123: philox4x32 10 */
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
            0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
            0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    uint32_t x[4];

    (void)state;
    for (size_t i = 0; i < FL_COUNT(known); i++) {
        philox_by_hand(known[i], known[i] + 4, x);
        assert_memory_equal(x, known[i] + 6, sizeof x);
    }
    /* the third vector, reached through the packing: index, id, purpose 3, round 0x707344 - 2^23 */
    fl_rng_block(UINT64_C(0x299f31d0a4093822), 3, 0x13198a2e, 0x707344 - (1 << 23),
        UINT64_C(0x85a308d3243f6a88), x);
    assert_memory_equal(x, known[2] + 6, sizeof x);
}

/* every argument, at the ends of its range, reaches the counter or the key and nothing overlaps */
static void rng_packing(void **state)
{
    static const struct {
        uint64_t seed, index;
        int purpose, id, round;
        uint32_t key[2], counter[4];
    } c[] = {
        {0, 0, 0, 0, 0, {0, 0}, {0, 0, 0, 0x00800000}},
        {UINT64_MAX, UINT64_MAX, 255, INT32_MAX, 0x7fffff, {0xffffffff, 0xffffffff},
            {0xffffffff, 0xffffffff, 0x7fffffff, 0xffffffff}},
        {UINT64_C(1) << 32, UINT64_C(1) << 32, 1, 1, -0x7fffff, {0, 1}, {0, 1, 1, 0x01000001}},
        {5, 6, 64, 7, -1, {5, 0}, {6, 0, 7, 0x407fffff}},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(c); i++) {
        uint32_t got[4], want[4];
        fl_rng_block(c[i].seed, c[i].purpose, c[i].id, c[i].round, c[i].index, got);
        philox_by_hand(c[i].counter, c[i].key, want);
        assert_memory_equal(got, want, sizeof got);
    }
}

/* Moments of n draws lie within 5 standard errors of those of the distribution (fixed seed: passes
 * always or never). */
static void rng_moments(void **state)
{
    enum { N = 200000 };
    double u1 = 0, u2 = 0, lag = 0, z1 = 0, z2 = 0, z3 = 0, z4 = 0, last = 0.5;
    int tail = 0;

    (void)state;
    for (int i = 0; i < N; i++) {
        double u = fl_rng_uniform(7, FL_RNG_TEST, 3, 5, (uint64_t)i),
               z = fl_rng_normal(7, FL_RNG_TEST, 4, 5, (uint64_t)i);
        assert_true(u >= 0.0 && u < 1.0);
        assert_true(isfinite(z));
        u1 += u;
        u2 += u * u;
        lag += (u - 0.5) * (last - 0.5);
        last = u;
        z1 += z;
        z2 += z * z;
        z3 += z * z * z;
        z4 += z * z * z * z;
        tail += fabs(z) > 2.0;
    }
    double root = sqrt((double)N);
    assert_true(fabs(u1 / N - 1.0 / 2) < 5 * sqrt(1.0 / 12) / root);
    assert_true(fabs(u2 / N - 1.0 / 3) < 5 * sqrt(4.0 / 45) / root);
    assert_true(fabs(lag / N) < 5 * (1.0 / 12) / root);
    assert_true(fabs(z1 / N) < 5 / root);
    assert_true(fabs(z2 / N - 1) < 5 * sqrt(2.0) / root);
    assert_true(fabs(z3 / N) < 5 * sqrt(15.0) / root);
    assert_true(fabs(z4 / N - 3) < 5 * sqrt(96.0) / root);
    double beyond = erfc(sqrt(2.0)); /* P(|z| > 2) */
    assert_true(fabs((double)tail / N - beyond) < 5 * sqrt(beyond) / root);
}

/* A shuffle is a permutation, and all 4! orders are equally frequent: chi-square of 23 degrees
 * below its 0.9999 point. */
static void rng_shuffle(void **state)
{
    enum { N = 24000 };
    int count[256] = {0}, orders = 0, big[1000];
    double chi = 0;

    (void)state;
    for (int id = 0; id < N; id++) {
        int x[4] = {0, 1, 2, 3};
        fl_rng_shuffle(1, FL_RNG_TEST, id, 0, 4, x);
        assert_int_equal((1 << x[0]) | (1 << x[1]) | (1 << x[2]) | (1 << x[3]), 15);
        count[x[0] * 64 + x[1] * 16 + x[2] * 4 + x[3]]++;
    }
    for (int i = 0; i < 256; i++) {
        if (count[i] > 0) {
            orders++;
            chi += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000.0;
        }
    }
    assert_int_equal(orders, 24);
    assert_true(chi < 58.6);

    char seen[1000] = {0};
    for (int i = 0; i < 1000; i++) {
        big[i] = i;
    }
    fl_rng_shuffle(2, FL_RNG_TEST, 0, 0, 1000, big);
    for (int i = 0; i < 1000; i++) {
        assert_true(big[i] >= 0 && big[i] < 1000 && !seen[big[i]]);
        seen[big[i]] = 1;
    }
    fl_rng_shuffle(2, FL_RNG_TEST, 0, 0, 0, NULL);
}

/* A subset is ascending and in range, and all 20 subsets of 3 of 6 are equally frequent: chi-square
 * of 19 degrees below its 0.9999 point. All of n is all of n, none is none. */
static void rng_subset(void **state)
{
    enum { N = 20000 };
    int count[64] = {0}, sets = 0, all[500];
    double chi = 0;

    (void)state;
    for (int round = 0; round < N; round++) {
        int x[3];

        fl_rng_subset(1, FL_RNG_TEST, 0, round, 6, 3, x);
        assert_true(0 <= x[0] && x[0] < x[1] && x[1] < x[2] && x[2] < 6);
        count[1 << x[0] | 1 << x[1] | 1 << x[2]]++;
    }
    for (int i = 0; i < 64; i++) {
        if (count[i] > 0) {
            sets++;
            chi += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000.0;
        }
    }
    assert_int_equal(sets, 20);
    assert_true(chi < 52.4);
    fl_rng_subset(2, FL_RNG_TEST, 0, 0, 500, 500, all);
    for (int i = 0; i < 500; i++) {
        assert_int_equal(all[i], i);
    }
    fl_rng_subset(2, FL_RNG_TEST, 0, 0, INT32_MAX, 500, all);
    for (int i = 1; i < 500; i++) {
        assert_true(all[i - 1] >= 0 && all[i - 1] < all[i]);
    }
    fl_rng_subset(2, FL_RNG_TEST, 0, 0, 0, 0, NULL);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(rng_known_answers),
        cmocka_unit_test(rng_packing),
        cmocka_unit_test(rng_moments),
        cmocka_unit_test(rng_shuffle),
        cmocka_unit_test(rng_subset),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
