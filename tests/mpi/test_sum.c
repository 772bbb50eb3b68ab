/* test_sum.c - the order-free sum on 1-4 ranks against 128-bit integers: the same bits for any
 * dealing of the terms, the error of a term, carries, units, refusals. */
#include "../../src/comm/comm_internal.h"
#include "harness.h"
#include <math.h>
#include <string.h>

enum { SUM_N = 257, SUM_CLIENTS = 150 };

/* element i of the message of client c: signs and magnitudes over 17 decades, 2^-28 to 2^28 and
 * some zeros */
static fl_real sum_element(int c, size_t i)
{
    double z = fl_rng_normal(11, FL_RNG_TEST, c, 1, i),
           e = fl_rng_uniform(11, FL_RNG_TEST, c, 2, i);

    return e < 0.02 ? 0 : (fl_real)(z * pow(10.0, 17.0 * e - 8.5));
}

static double sum_weight(int c)
{
    return (c + 1.0) / (0.5 * SUM_CLIENTS * (SUM_CLIENTS + 1));
}

/* the integer that one term is on the grid, by another road: 80-bit product, one rounding, 128-bit
 * integer */
static __int128 grid_of(double y)
{
    return (__int128)rintl(ldexpl((long double)y, 78));
}

/* The digits of a sum: h 2^50 + l */
static __int128 limbs_of(const fl_sum *s, size_t i)
{
    int64_t h, l;

    fl_sum_limbs(s, i, &h, &l);
    assert_true(l >= -(INT64_C(1) << 49) && l < INT64_C(1) << 49); /* normalised: unique */
    return (__int128)h * ((__int128)1 << 50) + l;
}

/* Adds the terms of this rank, clients dealt by `deal` and visited in an order drawn by it,
 * messages cut at `cut`. */
static fl_sum *sum_of_all(int deal, size_t cut)
{
    int order[SUM_CLIENTS];
    fl_real x[SUM_N];
    fl_sum *s = fl_sum_create(SUM_N, 0);

    for (int c = 0; c < SUM_CLIENTS; c++) {
        order[c] = c;
    }
    fl_rng_shuffle((uint64_t)deal, FL_RNG_TEST, 0, 0, SUM_CLIENTS, order);
    for (int k = 0; k < SUM_CLIENTS; k++) {
        int c = order[k];
        uint32_t b[4];
        fl_rng_block((uint64_t)deal, FL_RNG_TEST, c, 9, 0, b);
        if ((int)(b[0] % (uint32_t)test_ctx->size) != test_ctx->rank) {
            continue;
        }
        for (size_t i = 0; i < SUM_N; i++) {
            x[i] = sum_element(c, i);
        }
        assert_int_equal(fl_sum_add(s, 0, cut, x, sum_weight(c)), FL_OK);
        assert_int_equal(fl_sum_add(s, cut, SUM_N - cut, x + cut, sum_weight(c)), FL_OK);
    }
    return s;
}

static void sum_invariant_and_exact(void **state)
{
    static const size_t cut[] = {0, 1, 100, SUM_N};
    __int128 want[SUM_N] = {0};
    long double exact[SUM_N] = {0}, weight[SUM_N] = {0};

    (void)state;
    for (int c = 0; c < SUM_CLIENTS; c++) {
        for (size_t i = 0; i < SUM_N; i++) {
            double y = sum_weight(c) * (double)sum_element(c, i);
            want[i] += grid_of(y);
            exact[i] += (long double)y;
            weight[i] += fabsl((long double)y);
        }
    }
    uint64_t hash = fl_hash(want, sizeof want, 0);
    for (int deal = 0; deal < 8; deal++) {
        fl_sum *s = sum_of_all(deal, cut[deal % 4]);
        __int128 got[SUM_N];
        double y[SUM_N];
        assert_int_equal(fl_sum_reduce(test_ctx, s), FL_OK);
        fl_sum_get(s, 0, SUM_N, y);
        for (size_t i = 0; i < SUM_N; i++) {
            got[i] = limbs_of(s, i);
            /* 2^-79 a term, one rounding to double, and the reference's own 2^-63 a term */
            long double bound = SUM_CLIENTS * 0x1p-79L + 0x1p-52L * fabsl(exact[i]) +
                                SUM_CLIENTS * 0x1p-63L * weight[i];
            assert_true(fabsl((long double)y[i] - exact[i]) <= bound);
        }
        assert_true(fl_hash(got, sizeof got, 0) == hash);
        fl_sum_destroy(&s);
        assert_null(s);
    }
}

/* Per-term error: the grid is 2^-78, so a term is off by half of that at most, and numbers on the
 * grid are exact. */
static void sum_term_error(void **state)
{
    (void)state;
    for (int k = 0; k < 3000; k++) {
        double z = fl_rng_normal(5, FL_RNG_TEST, k, 0, 0),
               x = ldexp(z, (int)(80 * fl_rng_uniform(5, FL_RNG_TEST, k, 1, 0)) - 49);
        fl_sum *s = fl_sum_create(1, 0);
        assert_int_equal(fl_sum_add_double(s, 0, 1, &x, 1.0), FL_OK);
        long double error = (long double)limbs_of(s, 0) - ldexpl((long double)x, 78);
        assert_true(limbs_of(s, 0) == grid_of(x));
        assert_true(fabsl(error) <= 0.5L + ldexpl(fabsl((long double)x), 78 - 64));
        fl_sum_destroy(&s);
    }
}

/* Many more terms than one carry interval, all of one sign and with the largest possible low limb.
 */
static void sum_carries(void **state)
{
    enum { TERMS = 30000 };
    const double x[3] = {ldexp(0.5 - 0x1p-30, -28), -ldexp(0.5 - 0x1p-30, -28), 0x1p33};
    fl_sum *s = fl_sum_create(3, 0);

    (void)state;
    for (int k = 0; k < TERMS; k++) {
        assert_int_equal(fl_sum_add_double(s, 0, 2, x, 1.0), FL_OK);
        assert_int_equal(fl_sum_add_double(s, 2, 1, x + 2, 1.0 / TERMS), FL_OK);
    }
    assert_true(limbs_of(s, 0) == TERMS * grid_of(x[0]));
    assert_true(limbs_of(s, 1) == TERMS * grid_of(x[1]));
    assert_true(limbs_of(s, 2) == TERMS * grid_of(x[2] * (1.0 / TERMS)));
    assert_int_equal(fl_sum_reduce(test_ctx, s), FL_OK);
    assert_true(limbs_of(s, 0) == test_ctx->size * (TERMS * grid_of(x[0])));
    assert_true(limbs_of(s, 1) == test_ctx->size * (TERMS * grid_of(x[1])));
    fl_sum_destroy(&s);
}

/* A unit moves the grid: sums of x in unit 0 and of x 2^u in unit u have the same limbs, their
 * values differ by 2^u. */
static void sum_units(void **state)
{
    static const int unit[] = {-300, -40, 20, 400};

    (void)state;
    for (size_t k = 0; k < FL_COUNT(unit); k++) {
        fl_sum *s = fl_sum_create(50, 0), *t = fl_sum_create(50, unit[k]);
        double x[50], moved[50], y[50], z[50];
        for (size_t i = 0; i < 50; i++) {
            x[i] = (double)sum_element(3, i);
            moved[i] = ldexp(x[i], unit[k]);
        }
        assert_int_equal(fl_sum_add_double(s, 0, 50, x, 0.3), FL_OK);
        assert_int_equal(fl_sum_add_double(t, 0, 50, moved, 0.3), FL_OK);
        fl_sum_get(s, 0, 50, y);
        fl_sum_get(t, 0, 50, z);
        for (size_t i = 0; i < 50; i++) {
            assert_true(limbs_of(s, i) == limbs_of(t, i));
            assert_true(z[i] == ldexp(y[i], unit[k]));
        }
        fl_sum_destroy(&s);
        fl_sum_destroy(&t);
    }
}

static void sum_refuses(void **state)
{
    static const double bad[] = {NAN, -NAN, INFINITY, -INFINITY, 0x1p34, -0x1p34, 1e30};
    fl_real x[70];

    (void)state;
    for (size_t k = 0; k < FL_COUNT(bad); k++) {
        for (size_t where = 0; where < 70; where += 23) {
            fl_sum *s = fl_sum_create(100, 0);
            char name[32];
            for (size_t i = 0; i < 70; i++) {
                x[i] = (fl_real)i;
            }
            x[where] = (fl_real)bad[k];
            fl_error_clear();
            assert_int_equal(fl_sum_add(s, 30, 70, x, 1.0), FL_ENUM);
            snprintf(name, sizeof name, "element %zu ", where + 30);
            assert_non_null(strstr(fl_error_text(), name));
            for (size_t i = 0; i < 100; i++) { /* nothing was added */
                assert_true(limbs_of(s, i) == 0);
            }
            x[where] = (fl_real)nextafterf(0x1p34f, 0.0f); /* the largest that is taken */
            assert_int_equal(fl_sum_add(s, 30, 70, x, 1.0), FL_OK);
            assert_true(limbs_of(s, 30 + where) == grid_of((double)x[where]));
            fl_sum_destroy(&s);
        }
    }
    fl_sum *s = fl_sum_create(2, 0);
    double zero[2] = {0, 0}, one[2] = {1, INFINITY};
    assert_int_equal(
        fl_sum_add_double(s, 0, 2, one, 0.0), FL_ENUM); /* 0 x Inf is no number either */
    assert_int_equal(fl_sum_add_double(s, 0, 2, zero, NAN), FL_ENUM);
    assert_int_equal(fl_sum_add_double(s, 0, 2, zero, INFINITY), FL_ENUM);
    assert_int_equal(fl_sum_add_double(s, 2, 0, NULL, 1.0), FL_OK);
    fl_sum_destroy(&s);
    fl_error_clear();
}

/* Weights that do not add up to 1: the total leaves the range, locally or over the ranks; never a
 * silent wrap. */
static void sum_overflow(void **state)
{
    const double x[2] = {1.0, 0x1.8p33}; /* 1.5 2^33: two fit below 2^35, three do not */
    fl_err err = FL_OK;
    int taken = 0;

    (void)state;
    fl_sum *s = fl_sum_create(2, 0);
    while (err == FL_OK && taken < 10) {
        err = fl_sum_add_double(s, 0, 2, x, 1.0);
        taken += err == FL_OK;
    }
    assert_int_equal(err, FL_ENUM);
    assert_int_equal(taken, 2);
    assert_true(limbs_of(s, 1) == 2 * grid_of(x[1]));
    fl_sum_destroy(&s);

    s = fl_sum_create(5000, 0); /* each rank holds 0.9 2^35 at one place */
    double big = 0.45 * 0x1p35;
    assert_int_equal(fl_sum_add_double(s, 4321, 1, &big, 1.0), FL_OK);
    assert_int_equal(fl_sum_add_double(s, 4321, 1, &big, 1.0), FL_OK);
    assert_int_equal(fl_sum_reduce(test_ctx, s), test_ctx->size == 1 ? FL_OK : FL_ENUM);
    fl_sum_destroy(&s);

    s = fl_sum_create(
        5000, 0); /* the same at places of their own: bounds overflow, the sum does not */
    size_t at = (size_t)test_ctx->rank * 1000;
    assert_int_equal(fl_sum_add_double(s, at, 1, &big, 1.0), FL_OK);
    assert_int_equal(fl_sum_add_double(s, at, 1, &big, 1.0), FL_OK);
    assert_int_equal(fl_sum_reduce(test_ctx, s), FL_OK);
    for (int r = 0; r < test_ctx->size; r++) {
        assert_true(limbs_of(s, (size_t)r * 1000) == 2 * grid_of(big));
    }
    fl_sum_destroy(&s);
    fl_error_clear();
}

/* little data through the many-calls path of large data */
static int cut_small(void **state)
{
    (void)state;
    fl_comm_chunk = 64;
    return 0;
}

static int cut_large(void **state)
{
    (void)state;
    fl_comm_chunk = (size_t)1 << 28;
    return 0;
}

#define CUT(f) cmocka_unit_test_setup_teardown(f, cut_small, cut_large)
int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_invariant_and_exact),
        cmocka_unit_test(sum_term_error),
        cmocka_unit_test(sum_carries),
        cmocka_unit_test(sum_units),
        cmocka_unit_test(sum_refuses),
        cmocka_unit_test(sum_overflow),
        CUT(sum_invariant_and_exact),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
