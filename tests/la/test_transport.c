/* test_transport.c - optimal transport: marginals, optimality by the residual graph (no negative
 * cycle), the enumeration of permutations, and the closed form on a line. */
#include "la_check.h"

static void transport_marginals(int n, int m, const double *a, const double *b, const double *plan)
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
    double *a = la_random_array(id, (size_t)n), *b = la_random_array(id + 1, (size_t)m),
           sum[2] = {0, 0};
    double *cost = la_random_array(id + 2, (size_t)n * (size_t)m), value, twice = 0;
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
    la_same_on_all_ranks(plan, (size_t)n * (size_t)m * sizeof *plan);
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
        double *cost = la_random_array(200 + n, (size_t)n * (size_t)n), one[7], plan[49], value;

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
    double *a = la_random_array(220, N), *b = la_random_array(221, N), cost[N * N], plan[N * N],
           value;
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transport),
        cmocka_unit_test(test_transport_permutations),
        cmocka_unit_test(test_transport_line),
        cmocka_unit_test(test_transport_refuses),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
