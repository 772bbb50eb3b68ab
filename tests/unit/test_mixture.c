/* test_mixture.c - Gaussian mixtures by EM against what holds for every fit and against planted
 * ones; their transport distance against a permutation search; the k-th smallest against sorting.
 */
#include "../harness.h"
#include "fedlora/la.h"
#include <math.h>
#include <string.h>

static double normal(int what, uint64_t i)
{
    return fl_rng_normal(11, FL_RNG_TEST, what, 0, i);
}

enum { D = 4, N = 600 };
static double x[N * D], weight[8], mu[8 * D], var[8 * D];

/* part i % 3 of weight 1/3: centre 4 (part + 1) e_part, deviations 0.2, 0.4, 0.6 */
static void plant(void)
{
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < D; j++) {
            x[i * D + j] = (i % 3 == j ? 4 * (i % 3 + 1) : 0) +
                           0.2 * (i % 3 + 1) * normal(0, (uint64_t)(i * D + j));
        }
    }
}

static void planted(void **state)
{
    (void)state;
    plant();
    fl_mixture_fit(3, N, D, x, 3, 200, 1e-5, weight, mu, var);
    for (int part = 0; part < 3; part++) {
        int found = -1;

        for (int g = 0; g < 3; g++) {
            found = fabs(mu[g * D + part] - 4 * (part + 1)) < 0.5 ? g : found;
        }
        assert_true(found >= 0);
        assert_true(fabs(weight[found] - 1.0 / 3) < 1e-6);
        for (int j = 0; j < D; j++) { /* 200 samples: 5 standard errors */
            double s = 0.2 * (part + 1);

            assert_true(
                fabs(mu[found * D + j] - (j == part ? 4 * (part + 1) : 0)) < 5 * s / sqrt(200));
            assert_true(fabs(sqrt(var[found * D + j]) - s) < 5 * s / sqrt(400));
        }
    }
}

/* after any number of steps: weights sum to 1, the mixture's first two moments are the samples' */
static void moments(void **state)
{
    (void)state;
    for (int i = 0; i < N * D; i++) { /* parts that overlap, so that shares are fractions */
        x[i] = normal(1, (uint64_t)i) * (i % 7 == 0 ? 3 : 1) + (i / D % 2);
    }
    for (int steps = 1; steps < 40; steps *= 3) {
        for (int parts = 1; parts <= 5; parts += 2) {
            double sum = 0;

            fl_mixture_fit(9, N, D, x, parts, steps, 1e-5, weight, mu, var);
            for (int g = 0; g < parts; g++) {
                sum += weight[g];
            }
            assert_true(fabs(sum - 1) < 1e-12);
            for (int j = 0; j < D; j++) {
                double m1 = 0, m2 = 0, s1 = 0, s2 = 0;

                for (int g = 0; g < parts; g++) {
                    m1 += weight[g] * mu[g * D + j];
                    m2 += weight[g] * (var[g * D + j] - 1e-5 + pow(mu[g * D + j], 2));
                }
                for (int i = 0; i < N; i++) {
                    s1 += x[i * D + j] / N;
                    s2 += pow(x[i * D + j], 2) / N;
                }
                assert_true(fabs(m1 - s1) < 1e-12 && fabs(m2 - s2) < 1e-11);
            }
        }
    }
}

/* a step never lowers the likelihood (but for the floor, which is tiny here) */
static void likelihood_rises(void **state)
{
    double last = -INFINITY, first = 0;

    (void)state;
    for (int i = 0; i < N * D; i++) {
        x[i] = normal(2, (uint64_t)i) + (i / D % 4 == 0 ? 2.5 : 0);
    }
    for (int steps = 1; steps < 30; steps++) {
        double now = fl_mixture_fit(4, N, D, x, 4, steps, 1e-9, weight, mu, var);

        assert_true(now >= last - 1e-9);
        first = steps == 1 ? now : first;
        last = now;
    }
    assert_true(last > first + 1e-3);
}

/* fewer samples than parts, samples that are all the same */
static void degenerate(void **state)
{
    static const double same[3 * D] = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4};

    (void)state;
    for (int n = 1; n <= 3; n++) {
        double sum = 0;

        fl_mixture_fit(1, n, D, same, 4, 50, 1e-5, weight, mu, var);
        for (int g = 0; g < 4; g++) {
            sum += weight[g];
            for (int j = 0; j < D; j++) {
                assert_true(isfinite(mu[g * D + j]) && var[g * D + j] >= 1e-5);
                assert_true(weight[g] == 0 || fabs(mu[g * D + j] - (j + 1)) < 1e-12);
            }
        }
        assert_true(fabs(sum - 1) < 1e-12);
    }
}

/* equal weights: the best of the six permutations */
static void distance(void **state)
{
    static const int permutation[6][3] = {
        {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    const double third[3] = {1, 1, 1};
    double m[2][3 * D], v[2][3 * D], best = INFINITY, got, back, self;

    (void)state;
    for (int w = 0; w < 2; w++) {
        for (int i = 0; i < 3 * D; i++) {
            m[w][i] = normal(3 + w, (uint64_t)i);
            v[w][i] = exp(normal(5 + w, (uint64_t)i));
        }
    }
    for (int p = 0; p < 6; p++) {
        double sum = 0;

        for (int g = 0; g < 3; g++) {
            for (int j = 0; j < D; j++) {
                int a = g * D + j, b = permutation[p][g] * D + j;

                sum += (pow(m[0][a] - m[1][b], 2) + pow(sqrt(v[0][a]) - sqrt(v[1][b]), 2)) / 3;
            }
        }
        best = fmin(best, sum);
    }
    assert_int_equal(fl_mixture_distance(3, D, third, m[0], v[0], third, m[1], v[1], &got), FL_OK);
    assert_int_equal(fl_mixture_distance(3, D, third, m[1], v[1], third, m[0], v[0], &back), FL_OK);
    assert_int_equal(fl_mixture_distance(3, D, third, m[0], v[0], third, m[0], v[0], &self), FL_OK);
    assert_true(fabs(got - best) < 1e-12 && fabs(back - best) < 1e-12 && fabs(self) < 1e-12);
    /* one part each (an empty part counts for nothing): the distance of two Gaussians */
    const double one[3] = {0, 2, 0};
    double w2 = 0;

    for (int j = D; j < 2 * D; j++) {
        w2 += pow(m[0][j] - m[1][j], 2) + pow(sqrt(v[0][j]) - sqrt(v[1][j]), 2);
    }
    assert_int_equal(fl_mixture_distance(3, D, one, m[0], v[0], one, m[1], v[1], &got), FL_OK);
    assert_true(fabs(got - w2) < 1e-12);
}

static int by_value(const void *a, const void *b)
{
    double p = *(const double *)a, q = *(const double *)b;

    return (p > q) - (p < q);
}

static void kth_smallest(void **state)
{
    double a[50], sorted[50], work[50];

    (void)state;
    for (int kind = 0; kind < 3; kind++) { /* all different, many equal, all equal */
        for (size_t n = 1; n <= 50; n += 7) {
            for (size_t i = 0; i < n; i++) {
                a[i] = kind == 0 ? normal(9, i) : kind == 1 ? floor(2 * normal(9, i)) : 1;
            }
            memcpy(sorted, a, sizeof a);
            qsort(sorted, n, sizeof *sorted, by_value);
            for (size_t k = 0; k < n; k++) {
                memcpy(work, a, sizeof a);
                assert_true(fl_select(n, work, k) == sorted[k]);
            }
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(planted), cmocka_unit_test(moments),
        cmocka_unit_test(likelihood_rises), cmocka_unit_test(degenerate),
        cmocka_unit_test(distance), cmocka_unit_test(kth_smallest)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
