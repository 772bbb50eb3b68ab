/* test_small.c - the small mathematics of methods: linear systems, eigenvalues, k-means, transport,
 * kernel alignment. References are plain loops, enumeration and duality. Every rank does the same
 * and all must find the same bits. */
#include "la_check.h"

static void same_on_all_ranks(const void *x, size_t bytes)
{
    uint64_t h[2] = {fl_hash(x, bytes, 0), 0};

    h[1] = ~h[0];
    MPI_Allreduce(MPI_IN_PLACE, h, 2, MPI_UINT64_T, MPI_MAX, test_ctx->world);
    assert_true(h[0] == ~h[1]);
}

static double *random_array(int id, size_t n)
{
    double *x = fl_alloc("test: random", n, sizeof *x);

    for (size_t i = 0; i < n; i++) {
        x[i] = la_random(id, i);
    }
    return x;
}

/* ---- symmetric matrices ---- */

/* y' y + ridge I, y (n + extra) x n */
static double *gram(int id, int n, int extra, double ridge)
{
    double *y = random_array(id, (size_t)(n + extra) * (size_t)n);
    double *turned = fl_alloc("test: turned", (size_t)(n + extra) * (size_t)n, sizeof *turned);
    double *a = fl_alloc("test: gram", (size_t)n * (size_t)n, sizeof *a);

    la_transposed(n + extra, n, y, turned);
    la_multiply(n, n, n + extra, turned, y, a);
    for (int i = 0; i < n; i++) {
        a[i * n + i] += ridge;
    }
    fl_free(turned);
    fl_free(y);
    return a;
}

static void test_solve(void **state)
{
    static const int sizes[] = {1, 2, 3, 7, 31, 64};

    (void)state;
    for (size_t s = 0; s < FL_COUNT(sizes); s++) {
        for (int nrhs = 0; nrhs <= 5; nrhs += 5) {
            const int n = sizes[s];
            const size_t count = (size_t)n * (size_t)nrhs;
            double *a = gram(1, n, 4, 1), *x = random_array(2, count);
            double *b = fl_alloc("test: b", count, sizeof *b);

            la_multiply(n, nrhs, n, a, x, b);
            for (int i = 0; i < n; i++) { /* what is above the diagonal is not read */
                for (int j = i + 1; j < n; j++) {
                    a[i * n + j] = NAN;
                }
            }
            assert_int_equal(fl_solve(n, nrhs, a, b), FL_OK);
            for (size_t i = 0; i < count; i++) { /* condition below n + 4 + n: the ridge is 1 */
                assert_true(fabs(b[i] - x[i]) < 100 * LA_EPS * (2 * n + 4));
            }
            same_on_all_ranks(b, count * sizeof *b);
            fl_free(b);
            fl_free(x);
            fl_free(a);
        }
    }
}

static void test_solve_refuses(void **state)
{
    double indefinite[] = {1, 0, 2, 1}, singular[] = {1, 0, 1, 1}, nan[] = {1, 0, NAN, 1};
    double good[] = {2, 0, 1, 2}, b[] = {3, 4}, bad[] = {1, INFINITY}, zero = 0;

    (void)state;
    fl_error_clear();
    assert_int_equal(fl_solve(2, 1, indefinite, b), FL_ENUM);
    assert_non_null(strstr(fl_error_text(), "ridge"));
    assert_int_equal(fl_solve(2, 1, singular, b), FL_ENUM);
    assert_int_equal(fl_solve(2, 1, nan, b), FL_ENUM);
    assert_int_equal(fl_solve(1, 1, &zero, b), FL_ENUM);
    assert_int_equal(fl_solve(2, 1, good, bad), FL_ENUM);
    assert_true(b[0] == 3 && b[1] == 4);
    assert_int_equal(fl_solve(2, 1, good, b), FL_OK); /* [2 1; 1 2]^-1 [3; 4] = [2/3; 5/3] */
    assert_true(fabs(b[0] - 2.0 / 3) < 1e-15 && fabs(b[1] - 5.0 / 3) < 1e-15);
    assert_int_equal(fl_solve(0, 3, NULL, NULL), FL_OK);
    fl_error_clear();
}

/* a = H diag(values) H with known values, H a product of reflections */
static void eigh_case(int n, const double *values)
{
    const size_t side = (size_t)n;
    double *a = fl_alloc("test: a", side * side, sizeof *a);
    double *turned = fl_alloc("test: turned", side * side, sizeof *turned);
    double *w = fl_alloc("test: w", side, sizeof *w), *only = fl_alloc("test: w", side, sizeof *w);
    double *v = fl_alloc("test: v", side * side, sizeof *v), norm = 0;

    for (int i = 0; i < n; i++) {
        a[i * n + i] = values[i];
        norm = FL_MAX(norm, fabs(values[i]));
    }
    for (int id = 40; id < 43; id++) {
        la_reflect_rows(id, n, n, a);
        la_transposed(n, n, a, turned);
        la_reflect_rows(id, n, n, turned);
        memcpy(a, turned, side * side * sizeof *a);
    }
    assert_int_equal(fl_eigh(n, a, w, v), FL_OK);
    assert_int_equal(fl_eigh(n, a, only, NULL), FL_OK);
    assert_true(la_departure(n, n, n, v) < LA_BOUND * LA_EPS * n);
    for (int j = 0; j < n; j++) {
        double top = 0;

        assert_true(j == 0 || w[j] <= w[j - 1]);
        assert_true(fabs(w[j] - values[j]) <= LA_BOUND * LA_EPS * n * norm);
        assert_true(fabs(only[j] - values[j]) <= LA_BOUND * LA_EPS * n * norm);
        for (int i = 0; i < n; i++) {
            double av = 0;

            for (int l = 0; l < n; l++) {
                av += a[i * n + l] * v[l * n + j];
            }
            assert_true(fabs(av - w[j] * v[i * n + j]) <= LA_BOUND * LA_EPS * n * norm);
            top = fabs(v[i * n + j]) > fabs(top) ? v[i * n + j] : top;
        }
        assert_true(top > 0);
    }
    same_on_all_ranks(v, side * side * sizeof *v);
    fl_free(v);
    fl_free(only);
    fl_free(w);
    fl_free(turned);
    fl_free(a);
}

static void test_eigh(void **state)
{
    double values[61];
    double bad[] = {1, 0, NAN, 1}, w[2];

    (void)state;
    for (int n = 1; n <= 61; n += 12) {
        for (int kind = 0; kind < 4; kind++) {
            for (int i = 0; i < n; i++) { /* distinct of both signs, repeated, deficient, zero */
                values[i] = kind == 0 ? n / 2.0 - i : kind == 1 ? 3 - i / 4 : kind == 2 && i < 2;
            }
            eigh_case(n, values);
        }
    }
    assert_int_equal(fl_eigh(2, bad, w, NULL), FL_ENUM);
    bad[2] = 0;
    bad[1] = NAN; /* not read */
    assert_int_equal(fl_eigh(2, bad, w, NULL), FL_OK);
    assert_int_equal(fl_eigh(1 << 20, NULL, NULL, NULL), FL_ESHAPE);
    assert_int_equal(fl_eigh(0, NULL, NULL, NULL), FL_OK);
    fl_error_clear();
}

/* ---- k-means ---- */

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
        double *x = random_array(id, N * D), w[N], centre[3 * D];
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
                same_on_all_ranks(centre, (size_t)g * D * sizeof *centre);
            }
        }
        fl_free(x);
    }
}

/* clusters far apart are found whatever their order; another seed changes nothing then */
static void test_kmeans_clusters(void **state)
{
    enum { N = 120, D = 5, G = 6 };
    double *x = random_array(60, N * D), centre[G * D];
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

/* ---- transport ---- */

static void transport_marginals(
    int n, int m, const double *a, const double *b, const double *plan)
{
    for (int i = 0; i < n; i++) {
        double sum = 0;

        for (int j = 0; j < m; j++) {
            assert_true(plan[i * m + j] >= 0);
            sum += plan[i * m + j];
        }
        assert_true(fabs(sum - a[i]) < 1e-12);
    }
    for (int j = 0; j < m; j++) {
        double sum = 0;

        for (int i = 0; i < n; i++) {
            sum += plan[i * m + j];
        }
        assert_true(fabs(sum - b[j]) < 1e-12);
    }
}

/* Optimal if and only if no cycle of the residual graph is negative: sources and sinks as nodes,
 * cost forward, -cost back where something flows. All pairs by Floyd and Warshall. */
static void transport_optimal(int n, int m, const double *cost, const double *plan)
{
    const int nodes = n + m;
    double *far = fl_alloc("test: far", (size_t)nodes * (size_t)nodes, sizeof *far);

    for (int i = 0; i < nodes * nodes; i++) {
        far[i] = i / nodes == i % nodes ? 0 : INFINITY;
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < m; j++) {
            far[i * nodes + n + j] = cost[i * m + j];
            if (plan[i * m + j] > 1e-14) {
                far[(n + j) * nodes + i] = -cost[i * m + j];
            }
        }
    }
    for (int k = 0; k < nodes; k++) {
        for (int i = 0; i < nodes; i++) {
            for (int j = 0; j < nodes; j++) {
                far[i * nodes + j] =
                    FL_MIN(far[i * nodes + j], far[i * nodes + k] + far[k * nodes + j]);
            }
        }
    }
    for (int i = 0; i < nodes; i++) {
        assert_true(far[i * nodes + i] > -1e-11);
    }
    fl_free(far);
}

static void transport_case(int id, int n, int m, bool ties)
{
    double *a = random_array(id, (size_t)n), *b = random_array(id + 1, (size_t)m), sum[2] = {0, 0};
    double *cost = random_array(id + 2, (size_t)n * (size_t)m), value, twice = 0;
    double *plan = fl_alloc("test: plan", (size_t)n * (size_t)m, sizeof *plan);

    for (int i = 0; i < n; i++) {
        a[i] = i % 5 == 3 ? 0 : fabs(a[i]) + 0.01;
        sum[0] += a[i];
    }
    for (int j = 0; j < m; j++) {
        b[j] = j % 4 == 2 ? 0 : fabs(b[j]) + 0.01;
        sum[1] += b[j];
    }
    for (int j = 0; j < m; j++) {
        b[j] *= sum[0] / sum[1];
    }
    for (int i = 0; ties && i < n * m; i++) {
        cost[i] = round(3 * cost[i]);
    }
    memset(plan, 0xff, (size_t)n * (size_t)m * sizeof *plan);
    assert_int_equal(fl_transport(n, m, a, b, cost, plan, &value), FL_OK);
    transport_marginals(n, m, a, b, plan);
    transport_optimal(n, m, cost, plan);
    for (int i = 0; i < n * m; i++) {
        twice += plan[i] * cost[i];
    }
    assert_true(fabs(twice - value) < 1e-13);
    same_on_all_ranks(plan, (size_t)n * (size_t)m * sizeof *plan);
    fl_free(plan);
    fl_free(cost);
    fl_free(b);
    fl_free(a);
}

static void test_transport(void **state)
{
    static const int sizes[] = {1, 2, 3, 5, 8, 16};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        for (size_t j = 0; j < FL_COUNT(sizes); j++) {
            for (int ties = 0; ties < 2; ties++) {
                transport_case(70 + (int)(i * 20 + j), sizes[i], sizes[j], ties);
            }
        }
    }
    transport_case(300, 40, 60, true);
}

static double assignment_least(int n, const double *cost, int row, unsigned taken)
{
    double least = row == n ? 0 : INFINITY;

    for (int j = 0; row < n && j < n; j++) {
        if (!(taken & FL_BIT(j))) {
            least = FL_MIN(
                least, cost[row * n + j] + assignment_least(n, cost, row + 1, taken | FL_BIT(j)));
        }
    }
    return least;
}

/* equal masses: the best plan is a permutation (Birkhoff), found by trying all */
static void test_transport_permutations(void **state)
{
    (void)state;
    for (int n = 1; n <= 7; n++) {
        double *cost = random_array(200 + n, (size_t)n * (size_t)n), one[7], plan[49], value;

        for (int i = 0; i < n; i++) {
            one[i] = 1;
        }
        assert_int_equal(fl_transport(n, n, one, one, cost, plan, &value), FL_OK);
        assert_true(fabs(value - assignment_least(n, cost, 0, 0)) < 1e-14 * n);
        fl_free(cost);
    }
}

/* on a line, with cost |x - y|, the value is the area between the distribution functions */
static void test_transport_line(void **state)
{
    enum { N = 12 };
    double *a = random_array(220, N), *b = random_array(221, N), cost[N * N], plan[N * N], value;
    double sum[2] = {0, 0}, area = 0, ahead = 0;

    (void)state;
    for (int i = 0; i < N; i++) {
        sum[0] += a[i] = fabs(a[i]);
        sum[1] += b[i] = fabs(b[i]);
    }
    for (int i = 0; i < N; i++) {
        b[i] *= sum[0] / sum[1];
        for (int j = 0; j < N; j++) {
            cost[i * N + j] = abs(i - j);
        }
    }
    for (int i = 0; i < N; i++) {
        ahead += a[i] - b[i];
        area += fabs(ahead);
    }
    assert_int_equal(fl_transport(N, N, a, b, cost, plan, &value), FL_OK);
    assert_true(fabs(value - area) < 1e-13);
    fl_free(b);
    fl_free(a);
}

static void test_transport_refuses(void **state)
{
    const double a[] = {1, 2}, less[] = {1, 1}, negative[] = {4, -1}, nan[] = {NAN, 1};
    const double cost[] = {1, 2, 3, 4}, nothing[] = {0, 0};
    double plan[4], value;

    (void)state;
    fl_error_clear();
    assert_int_equal(fl_transport(2, 2, a, less, cost, plan, &value), FL_ENUM);
    assert_int_equal(fl_transport(2, 2, a, negative, cost, plan, &value), FL_ENUM);
    assert_int_equal(fl_transport(2, 2, nan, a, cost, plan, &value), FL_ENUM);
    assert_int_equal(fl_transport(2, 2, a, nothing, cost, plan, &value), FL_ENUM);
    assert_int_equal(fl_transport(2, 2, nothing, nothing, cost, plan, &value), FL_OK);
    assert_true(value == 0 && plan[0] == 0 && plan[3] == 0);
    assert_int_equal(fl_transport(2, 2, a, a, cost, plan, NULL), FL_OK);
    fl_error_clear();
}

/* ---- alignment ---- */

/* the same by sample-by-sample kernels: <Kx, Ky> / (||Kx|| ||Ky||), K = H X X' H */
static double cka_kernels(int q, int r, const double *x, const double *y)
{
    double *k[2], dot[3] = {0, 0, 0};

    for (int s = 0; s < 2; s++) {
        const double *z = s ? y : x;
        double *c = fl_alloc("test: centred", (size_t)q * (size_t)r, sizeof *c);

        k[s] = fl_alloc("test: kernel", (size_t)q * (size_t)q, sizeof *k[s]);
        for (int j = 0; j < r; j++) {
            double mean = 0;

            for (int i = 0; i < q; i++) {
                mean += z[i * r + j] / q;
            }
            for (int i = 0; i < q; i++) {
                c[i * r + j] = z[i * r + j] - mean;
            }
        }
        for (int i = 0; i < q * q; i++) {
            for (int j = 0; j < r; j++) {
                k[s][i] += c[i / q * r + j] * c[i % q * r + j];
            }
        }
        fl_free(c);
    }
    for (int i = 0; i < q * q; i++) {
        dot[0] += k[0][i] * k[0][i];
        dot[1] += k[0][i] * k[1][i];
        dot[2] += k[1][i] * k[1][i];
    }
    fl_free(k[0]);
    fl_free(k[1]);
    return dot[1] / sqrt(dot[0] * dot[2]);
}

static void test_cka(void **state)
{
    enum { Q = 17, R = 6 };
    double *x = random_array(250, Q * R), *y = random_array(251, Q * R), *turned, still[Q * R];

    (void)state;
    assert_true(fabs(fl_cka(Q, R, x, y) - cka_kernels(Q, R, x, y)) < 1e-13);
    assert_true(fabs(fl_cka(R, Q, x, y) - cka_kernels(R, Q, x, y)) < 1e-13);
    assert_true(fl_cka(Q, R, x, y) > 0 && fl_cka(Q, R, x, y) < 0.99);
    assert_true(fl_cka(Q, R, x, y) == fl_cka(Q, R, x, y));
    /* 1 for a turned, scaled and shifted copy */
    turned = fl_alloc("test: turned", Q * R, sizeof *turned);
    la_transposed(Q, R, x, turned);
    la_reflect_rows(5, R, Q, turned);
    la_reflect_rows(6, R, Q, turned);
    la_transposed(R, Q, turned, y);
    for (int i = 0; i < Q * R; i++) {
        y[i] = 1e9 * (y[i] + i % R);
        still[i] = 0.1 * (i % R); /* the same in every sample */
    }
    assert_true(fabs(fl_cka(Q, R, x, y) - 1) < 1e-13);
    assert_true(fl_cka(Q, R, x, still) == 0 && fl_cka(Q, R, still, x) == 0);
    y[7] = NAN;
    assert_true(isnan(fl_cka(Q, R, x, y)));
    fl_free(turned);
    fl_free(y);
    fl_free(x);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_solve),
        cmocka_unit_test(test_solve_refuses),
        cmocka_unit_test(test_eigh),
        cmocka_unit_test(test_kmeans_least),
        cmocka_unit_test(test_kmeans_clusters),
        cmocka_unit_test(test_kmeans_edges),
        cmocka_unit_test(test_transport),
        cmocka_unit_test(test_transport_permutations),
        cmocka_unit_test(test_transport_line),
        cmocka_unit_test(test_transport_refuses),
        cmocka_unit_test(test_cka),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
