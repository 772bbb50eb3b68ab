/* test_small.c - the small mathematics of methods: linear systems, eigenvalues, kernel alignment.
 * References are plain loops and known values. Every rank does the same and all must find the same
 * bits. */
#include "la_check.h"

/* ---- symmetric matrices ---- */

/* y' y + ridge I, y (n + extra) x n */
static double *gram(int id, int n, int extra, double ridge)
{
    double *y = la_random_array(id, (size_t)(n + extra) * (size_t)n);
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
            double *a = gram(1, n, 4, 1), *x = la_random_array(2, count);
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
            la_same_on_all_ranks(b, count * sizeof *b);
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
    la_same_on_all_ranks(v, side * side * sizeof *v);
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
    double *x = la_random_array(250, Q * R), *y = la_random_array(251, Q * R), *turned,
           still[Q * R];

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
        cmocka_unit_test(test_cka),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
