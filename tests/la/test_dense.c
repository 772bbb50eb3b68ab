/* test_dense.c - products of matrices and norms of sums of products, against plain loops and known
 * values; the name of the BLAS. */
#include "la_check.h"
#include <limits.h>

/* ---- products ---- */

static void gemm_case(char ta, char tb, int m, int n, int k)
{
    const size_t na = (size_t)m * (size_t)k, nb = (size_t)k * (size_t)n, nc = (size_t)m * (size_t)n;
    double *a = fl_alloc("test: a", na, sizeof *a), *b = fl_alloc("test: b", nb, sizeof *b);
    double *c = fl_alloc("test: c", nc, sizeof *c);
    fl_real *ra = fl_alloc("test: ra", na, sizeof *ra), *rb = fl_alloc("test: rb", nb, sizeof *rb);
    fl_real *rc = fl_alloc("test: rc", nc, sizeof *rc);

    for (size_t i = 0; i < na; i++) {
        ra[i] = (fl_real)(a[i] = (float)la_random(1, i));
    }
    for (size_t i = 0; i < nb; i++) {
        rb[i] = (fl_real)(b[i] = (float)la_random(2, i));
    }
    for (int fresh = 0; fresh < 2; fresh++) { /* be = 0 must not read c, be = 0.5 must */
        const double be = fresh ? 0 : 0.5;

        for (size_t i = 0; i < nc; i++) {
            c[i] = fresh ? NAN : 1;
            rc[i] = (fl_real)c[i];
        }
        fl_dgemm(ta, tb, m, n, k, 2, a, b, be, c);
        fl_gemm(ta, tb, m, n, k, 2, ra, rb, be, rc);
        for (int i = 0; i < m; i++) {
            for (int j = 0; j < n; j++) {
                long double sum = be;

                for (int l = 0; l < k; l++) {
                    sum += 2.0L * a[ta == 'n' ? i * k + l : l * m + i] *
                           b[tb == 'n' ? l * n + j : j * k + l];
                }
                assert_true(fabsl(sum - c[i * n + j]) < (2 * k + 2) * 2 * LA_EPS);
                assert_true(fabsl(sum - rc[i * n + j]) < (2 * k + 2) * 2 * FLT_EPSILON);
            }
        }
    }
    fl_free(rc);
    fl_free(rb);
    fl_free(ra);
    fl_free(c);
    fl_free(b);
    fl_free(a);
}

static void test_gemm(void **state)
{
    static const int shape[][3] = {{1, 1, 1}, {1, 7, 5}, {7, 1, 5}, {5, 7, 1}, {3, 4, 0}, {0, 4, 3},
        {4, 0, 3}, {64, 31, 17}, {33, 65, 129}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(shape); i++) {
        for (int t = 0; t < 4; t++) {
            gemm_case(t & 1 ? 't' : 'n', t & 2 ? 't' : 'n', shape[i][0], shape[i][1], shape[i][2]);
        }
    }
}

/* a block inside larger arrays: neighbours of C stay as they were */
static void test_gemm_ld(void **state)
{
    enum { M = 5, N = 4, K = 3, LDA = 7, LDB = 9, LDC = 6 };
    fl_real a[M * LDA], b[N * LDB], c[M * LDC];

    (void)state;
    for (size_t i = 0; i < FL_COUNT(a); i++) {
        a[i] = (fl_real)(i % 5);
    }
    for (size_t i = 0; i < FL_COUNT(b); i++) {
        b[i] = (fl_real)(i % 7) - 3;
    }
    for (size_t i = 0; i < FL_COUNT(c); i++) {
        c[i] = 100;
    }
    fl_gemm_ld('n', 't', M, N, K, 1, a, LDA, b, LDB, 1, c, LDC);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < LDC; j++) {
            fl_real want = 100; /* small whole numbers: exact */

            for (int l = 0; l < K && j < N; l++) {
                want += a[i * LDA + l] * b[j * LDB + l];
            }
            assert_true(c[i * LDC + j] == want);
        }
    }
}

/* ---- norms ---- */

static void test_norm(void **state)
{
    static const int shape[][3] = {
        {1, 1, 1}, {7, 5, 3}, {300, 200, 5}, {600, 31, 40}, {31, 600, 1}, {64, 64, 64}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(shape); i++) {
        la_problem p = la_problem_make(shape[i][0], shape[i][1], shape[i][2], INT_MAX);
        double want = 0;

        for (int j = 0; j < p.k; j++) {
            want += p.s[j] * p.s[j];
        }
        assert_true(fabs(fl_product_norm2(p.m, p.n, p.nstack, p.bs, p.as) - want) < 1e-12 * want);
        la_problem_free(&p);
    }
    assert_true(fl_product_norm2(5, 5, 0, NULL, NULL) == 0);
}

/* ||[B B] [A; -(A + d C)]|| = d ||B C||, d down to 1e-10: a Gram matrix would see nothing below
 * 1e-8 */
static void norm_difference(int m, int n, int r)
{
    const size_t nr = (size_t)r, cols = (size_t)n;
    la_problem p = la_problem_make(m, n, r, INT_MAX);
    double *bs = fl_alloc("test: bs", (size_t)m * 2 * nr, sizeof *bs);
    double *as = fl_alloc("test: as", 2 * nr * cols, sizeof *as);
    double *c = fl_alloc("test: c", nr * cols, sizeof *c);
    double *bc = fl_alloc("test: bc", (size_t)m * cols, sizeof *bc), want;

    for (size_t i = 0; i < nr * cols; i++) {
        c[i] = la_random(31, i);
    }
    la_multiply(m, n, r, p.bs, c, bc);
    want = la_frobenius((size_t)m * cols, bc);
    for (double d = 1e-2; d > 0.9e-10; d /= 10) {
        for (size_t i = 0; i < (size_t)m; i++) {
            memcpy(bs + i * 2 * nr, p.bs + i * nr, nr * sizeof *bs);
            memcpy(bs + i * 2 * nr + nr, p.bs + i * nr, nr * sizeof *bs);
        }
        for (size_t i = 0; i < nr * cols; i++) {
            as[i] = p.as[i];
            as[nr * cols + i] = -(p.as[i] + d * c[i]);
        }
        assert_true(fabs(sqrt(fl_product_norm2(m, n, 2 * r, bs, as)) / (d * want) - 1) < 1e-14 / d);
    }
    fl_free(bc);
    fl_free(c);
    fl_free(as);
    fl_free(bs);
    la_problem_free(&p);
}

static void test_norm_difference(void **state)
{
    (void)state;
    norm_difference(300, 200, 4); /* by triangular factors */
    norm_difference(300, 20, 8);  /* by panels of the product */
    norm_difference(20, 300, 30);
}

/* ---- the library ---- */

static void test_names(void **state)
{
    (void)state;
    fl_blas_threads(1);
    assert_int_equal(strncmp(fl_blas_name(), "OpenBLAS ", 9), 0);
    assert_non_null(strstr(fl_blas_name(), ", kernel "));
    assert_non_null(strstr(fl_blas_name(), fl_blas_kernel()));
    assert_non_null(strstr(fl_blas_name(), ", 1 thread"));
    assert_null(strstr(fl_blas_name(), "threads"));
    fl_blas_threads(2);
    assert_non_null(strstr(fl_blas_name(), ", 2 threads"));
    assert_true(fl_gemm_peak(64, 64, 64) > 0);
    assert_non_null(strstr(fl_blas_name(), ", 2 threads")); /* the bench puts the count back */
    fl_blas_threads(1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_gemm_ld),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_norm_difference),
        cmocka_unit_test(test_names),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
