/* test_kmeans.c - weighted k-means against the enumeration of all partitions, clusters that are
 * known, and rows that are equal, few or without weight. */
#include "la_check.h"

static double inertia_of(
    int n, int d, const double *x, const double *w, const int *group, const double *centre)
{
    double sum = 0;

    for (int i = 0; i < n; i++) {
        for (int j = 0; j < d; j++) {
            const double far = x[i * d + j] - centre[group[i] * d + j];

            sum += (w ? w[i] : 1) * far * far;
        }
    }
    return sum;
}

/* the least inertia of all partitions of n <= 10 rows into at most g groups */
static double inertia_least(int n, int d, const double *x, const double *w, int g)
{
    int group[10] = {0};
    double least = INFINITY;

    for (;;) {
        double centre[10 * 3] = {0}, mass[10] = {0};
        int i = 0;

        for (int k = 0; k < n; k++) {
            mass[group[k]] += w ? w[k] : 1;
            for (int j = 0; j < d; j++) {
                centre[group[k] * d + j] += (w ? w[k] : 1) * x[k * d + j];
            }
        }
        for (int k = 0; k < g * d; k++) {
            centre[k] /= mass[k / d] > 0 ? mass[k / d] : 1;
        }
        least = FL_MIN(least, inertia_of(n, d, x, w, group, centre));
        while (i < n && ++group[i] == g) {
            group[i++] = 0;
        }
        if (i == n) {
            return least;
        }
    }
}

static void test_kmeans_least(void **state)
{
    enum { N = 9, D = 2 };

    (void)state;
    for (int id = 50; id < 56; id++) {
        double *x = la_random_array(id, N * D), w[N], centre[3 * D];
        int group[N], again[N];

        for (int i = 0; i < N; i++) {
            w[i] = 0.1 + (i * 7 % 5);
        }
        for (int g = 1; g <= 3; g++) {
            for (int weighted = 0; weighted < 2; weighted++) {
                const double *weight = weighted ? w : NULL;
                const double least = inertia_least(N, D, x, weight, g);
                const double found = fl_kmeans(3, N, D, x, weight, g, 20, 100, group, centre);
                int named = 0;

                /* of 9 rows, 20 starts find the best partition; the value is what it says */
                assert_true(fabs(found - least) < 1e-12);
                assert_true(fabs(inertia_of(N, D, x, weight, group, centre) - found) < 1e-12);
                for (int i = 0; i < N; i++) {
                    assert_true(group[i] <= named);
                    named += group[i] == named;
                }
                assert_true(fl_kmeans(3, N, D, x, weight, g, 20, 100, again, centre) == found);
                assert_memory_equal(group, again, sizeof group);
                la_same_on_all_ranks(centre, (size_t)g * D * sizeof *centre);
            }
        }
        fl_free(x);
    }
}

/* clusters far apart are found whatever their order; another seed changes nothing then */
static void test_kmeans_clusters(void **state)
{
    enum { N = 120, D = 5, G = 6 };
    double *x = la_random_array(60, N * D), centre[G * D];
    int group[N];

    (void)state;
    for (int i = 0; i < N; i++) {
        x[i * D + i % G % D] += 40 * (1 + i % G / D);
    }
    for (uint64_t seed = 0; seed < 5; seed++) {
        assert_true(fl_kmeans(seed, N, D, x, NULL, G, 10, 50, group, centre) < N * D);
        for (int i = 0; i < N; i++) {
            assert_int_equal(group[i], i % G);
        }
    }
    fl_free(x);
}

static void test_kmeans_edges(void **state)
{
    const double same[] = {2, 2, 2, 2}, two[] = {0, 5, 0, 5}, w[] = {1, 0, 3, 0}, zero[4] = {0};
    double centre[6], bad[] = {1, NAN};
    int group[4];

    (void)state;
    /* equal rows: one group, and the others are copies */
    assert_true(fl_kmeans(1, 4, 1, same, NULL, 3, 2, 10, group, centre) == 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(group[i], 0);
        assert_true(centre[FL_MIN(i, 2)] == 2);
    }
    /* more groups than distinct rows, then than rows */
    assert_true(fl_kmeans(1, 4, 1, two, NULL, 3, 1, 10, group, centre) == 0);
    assert_true(group[0] == 0 && group[1] == 1 && group[2] == 0 && group[3] == 1);
    assert_true(centre[0] == 0 && centre[1] == 5 && centre[2] == 0);
    assert_true(fl_kmeans(1, 2, 1, two, NULL, 6, 1, 10, group, centre) == 0);
    assert_true(group[0] == 0 && group[1] == 1);
    /* rows without weight do not count */
    assert_true(fl_kmeans(1, 4, 1, two, w, 1, 1, 10, group, centre) == 0);
    assert_true(centre[0] == 0);
    assert_true(fl_kmeans(1, 4, 1, two, zero, 2, 1, 10, group, centre) == 0);
    assert_true(isnan(fl_kmeans(1, 2, 1, bad, NULL, 1, 1, 10, group, centre)));
    assert_true(isnan(fl_kmeans(1, 2, 1, two, bad, 1, 1, 10, group, centre)));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kmeans_least),
        cmocka_unit_test(test_kmeans_clusters),
        cmocka_unit_test(test_kmeans_edges),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
