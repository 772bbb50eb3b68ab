/* test_svd.c - QR and SVD on one rank, dense and factored. Every rank does the same and all must
 * find the same bits. References are plain loops and matrices whose singular values are known. */
#include "la_check.h"
#include <limits.h>

static const int sizes[] = {1, 2, 3, 7, 31, 64, 97};

/* ---- QR and SVD of a dense matrix ---- */

static void qr_case(int m, int n, int rank)
{
    const int k = FL_MIN(m, n);
    la_problem p = la_problem_make(m, n, k, rank);
    double *x = fl_alloc("test: copy", (size_t)m * (size_t)n, sizeof *x);
    double *q = fl_alloc("test: q", (size_t)m * (size_t)k, sizeof *q);
    double *r = fl_alloc("test: r", (size_t)k * (size_t)n, sizeof *r);
    double *y = fl_alloc("test: y", (size_t)m * (size_t)n, sizeof *y);

    memcpy(x, p.x, (size_t)m * (size_t)n * sizeof *x);
    assert_int_equal(fl_qr(m, n, x, q, r), FL_OK);
    la_multiply(m, n, k, q, r, y);
    for (size_t i = 0; i < (size_t)m * (size_t)n; i++) {
        y[i] -= p.x[i];
    }
    assert_true(la_frobenius((size_t)m * (size_t)n, y) < LA_BOUND * LA_EPS * FL_MAX(m, n) * 4);
    assert_true(la_departure(m, k, k, q) < LA_BOUND * LA_EPS * FL_MAX(m, n));
    for (int i = 0; i < k; i++) {
        for (int j = 0; j < FL_MIN(i, n); j++) {
            assert_true(r[(size_t)i * (size_t)n + (size_t)j] == 0);
        }
    }
    fl_free(y);
    fl_free(r);
    fl_free(q);
    fl_free(x);
    la_problem_free(&p);
}

static void test_qr(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        for (size_t j = 0; j < FL_COUNT(sizes); j++) {
            qr_case(sizes[i], sizes[j], INT_MAX);
            qr_case(sizes[i], sizes[j], 2);
            qr_case(sizes[i], sizes[j], 0);
        }
    }
    qr_case(293, 150, 100);
}

static void svd_case(int m, int n, int rank)
{
    const int k = FL_MIN(m, n);
    la_problem p = la_problem_make(m, n, k, rank);
    double *u = fl_alloc("test: u", (size_t)m * (size_t)k, sizeof *u);
    double *sv = fl_alloc("test: sv", (size_t)k, sizeof *sv);
    double *vt = fl_alloc("test: vt", (size_t)k * (size_t)n, sizeof *vt);
    const uint64_t before = fl_hash(p.x, (size_t)m * (size_t)n * sizeof *p.x, 0);

    assert_int_equal(fl_svd(m, n, p.x, u, sv, vt), FL_OK);
    assert_true(fl_hash(p.x, (size_t)m * (size_t)n * sizeof *p.x, 0) == before);
    la_judge(&p, k, u, sv, vt);
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    la_problem_free(&p);
}

static void test_svd(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        for (size_t j = 0; j < FL_COUNT(sizes); j++) {
            svd_case(sizes[i], sizes[j], INT_MAX);
            svd_case(sizes[i], sizes[j], 2);
            svd_case(sizes[i], sizes[j], 0);
        }
    }
    svd_case(300, 211, 150);
}

/* ---- the sum of products ---- */

/* returns the hash of the answer, which is judged */
static uint64_t factors_case(const la_problem *p, fl_solver solver, int r, bool certify)
{
    const int m = p->m, n = p->n;
    double *u = fl_alloc("test: u", (size_t)m * (size_t)r, sizeof *u);
    double *sv = fl_alloc("test: sv", (size_t)r, sizeof *sv);
    double *vt = fl_alloc("test: vt", (size_t)r * (size_t)n, sizeof *vt);
    const double weight = la_frobenius((size_t)m * (size_t)p->nstack, p->bs) *
                          la_frobenius((size_t)p->nstack * (size_t)n, p->as);
    double all = 0, beyond = 0;
    fl_svd_report report = {0};
    uint64_t hash;

    memset(u, 0xff, (size_t)m * (size_t)r * sizeof *u); /* NaN: everything must be written */
    memset(sv, 0xff, (size_t)r * sizeof *sv);
    memset(vt, 0xff, (size_t)r * (size_t)n * sizeof *vt);
    assert_int_equal(fl_svd_factors(solver, m, n, p->nstack, p->bs, p->as, r, u, sv, vt, certify,
                         certify ? &report : NULL),
        FL_OK);
    la_judge(p, r, u, sv, vt);
    if (certify) {
        for (int i = 0; i < p->k; i++) {
            all += p->s[i] * p->s[i];
            beyond += i >= r ? p->s[i] * p->s[i] : 0;
        }
        if (all > 0) {
            assert_true(fabs(report.discarded - beyond / all) < 1e-12);
            assert_true(
                report.residual < LA_BOUND * LA_EPS * FL_MAX(m, n) * FL_MAX(1, weight / sqrt(all)));
            assert_true(report.residual > 0 || FL_MIN(m, n) == 1);
        }
        assert_true(report.orthogonality < LA_BOUND * LA_EPS * FL_MAX(m, n));
        if (solver == FL_SOLVE_DENSE || p->nstack >= FL_MAX(m, n)) {
            assert_string_equal(report.solver, "dense");
        } else if (solver == FL_SOLVE_FACTORED) {
            assert_string_equal(report.solver, "factored");
        }
    }
    hash = la_hash(m, n, r, u, sv, vt);
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    return hash;
}

static void test_factors(void **state)
{
    static const fl_solver solvers[] = {FL_SOLVE_AUTO, FL_SOLVE_FACTORED, FL_SOLVE_DENSE};
    uint64_t h[3] = {0, 0, 0}, low[3], high[3];

    (void)state;
    for (size_t i = 0; i < FL_COUNT(sizes); i++) {
        for (size_t j = 0; j < FL_COUNT(sizes); j++) {
            const int m = sizes[i], n = sizes[j], k = FL_MIN(m, n);
            const int stack[] = {1, FL_MAX(1, k / 3), k, (m + n + 1) / 2, m + n + 5};

            for (size_t l = 0; l < FL_COUNT(stack); l++) {
                const int rank = l % 2 ? FL_MAX(1, stack[l] / 2) : INT_MAX; /* deficient, full */
                la_problem p = la_problem_make(m, n, stack[l], rank);

                for (size_t s = 0; s < FL_COUNT(solvers); s++) {
                    h[s] ^= factors_case(&p, solvers[s], k, true);
                    h[s] = h[s] * 31 + factors_case(&p, solvers[s], (k + 1) / 2, false);
                }
                la_problem_free(&p);
            }
        }
    }
    MPI_Allreduce(h, low, 3, MPI_UINT64_T, MPI_MIN, test_ctx->world);
    MPI_Allreduce(h, high, 3, MPI_UINT64_T, MPI_MAX, test_ctx->world);
    assert_memory_equal(low, high, sizeof low);
}

/* larger primes, and both branches of every choice by shape */
static void test_factors_large(void **state)
{
    static const int shape[][4] = {{293, 211, 17, 17}, {211, 293, 40, 23}, {293, 67, 120, 60},
        {67, 293, 250, 67}, {283, 300, 310, 5}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(shape); i++) {
        la_problem p = la_problem_make(shape[i][0], shape[i][1], shape[i][2], shape[i][3]);

        factors_case(&p, FL_SOLVE_FACTORED, 16, true);
        factors_case(&p, FL_SOLVE_DENSE, 16, true);
        la_problem_free(&p);
    }
}

/* the certificate changes no bit of the answer, nor does the place of the data in memory */
static void test_bits(void **state)
{
    static const int shape[][3] = {{97, 61, 13}, {61, 97, 70}, {40, 40, 90}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(shape); i++) {
        for (int solver = FL_SOLVE_FACTORED; solver <= FL_SOLVE_DENSE; solver++) {
            la_problem p = la_problem_make(shape[i][0], shape[i][1], shape[i][2], INT_MAX);
            const size_t nb = (size_t)p.m * (size_t)p.nstack, na = (size_t)p.nstack * (size_t)p.n;
            double *shifted = fl_alloc("test: shifted", nb + na + 2, sizeof *shifted);
            la_problem q = p;
            const uint64_t first = factors_case(&p, (fl_solver)solver, 9, false);

            assert_true(factors_case(&p, (fl_solver)solver, 9, true) == first);
            q.bs = memcpy(shifted + 1, p.bs, nb * sizeof *p.bs);
            q.as = memcpy(shifted + 1 + nb, p.as, na * sizeof *p.as);
            assert_true(factors_case(&q, (fl_solver)solver, 9, false) == first);
            fl_free(shifted);
            la_problem_free(&p);
        }
    }
}

static void test_edges(void **state)
{
    static const fl_solver solvers[] = {FL_SOLVE_AUTO, FL_SOLVE_FACTORED, FL_SOLVE_DENSE};

    (void)state;
    for (size_t s = 0; s < FL_COUNT(solvers); s++) {
        for (int m = 1; m <= 9; m += 4) {
            la_problem none = la_problem_make(m, 5, 0, 0);    /* R = 0: X = 0 */
            la_problem zero = la_problem_make(m, 5, 3, 0);    /* X = 0 by cancellation */
            la_problem many = la_problem_make(m, 5, 400, 99); /* R >> min(m, n) */
            fl_svd_report report = {0};

            factors_case(&none, solvers[s], FL_MIN(m, 5), true);
            factors_case(&zero, solvers[s], FL_MIN(m, 5), true);
            factors_case(&many, solvers[s], FL_MIN(m, 5), true);
            factors_case(&many, solvers[s], 0, true); /* r = 0: all is discarded */
            memset(zero.bs, 0, (size_t)m * 3 * sizeof *zero.bs);
            factors_case(&zero, solvers[s], FL_MIN(m, 5), true);
            /* nothing needs to be there when there is nothing to read or write */
            assert_int_equal(
                fl_svd_factors(solvers[s], m, 5, 0, NULL, NULL, 0, NULL, NULL, NULL, true, &report),
                FL_OK);
            assert_true(report.residual == 0 && report.discarded == 0);
            la_problem_free(&none);
            la_problem_free(&zero);
            la_problem_free(&many);
        }
    }
}

/* factors of very unlike size whose product is ordinary; entries near the ends of the range of
 * float */
static void test_scales(void **state)
{
    la_problem p = la_problem_make(40, 31, 8, INT_MAX);
    double u[40 * 8], sv[8], vt[8 * 31];
    const double up = 0x1p+120;

    (void)state;
    for (size_t i = 0; i < 40 * 8; i++) {
        p.bs[i] *= up;
    }
    for (size_t i = 0; i < 8 * 31; i++) {
        p.as[i] /= up;
    }
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_FACTORED, 40, 31, 8, p.bs, p.as, 8, u, sv, vt, false, NULL), FL_OK);
    la_judge(&p, 8, u, sv, vt);
    for (size_t i = 0; i < 40 * 8; i++) {
        p.bs[i] /= up;
    }
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_FACTORED, 40, 31, 8, p.bs, p.as, 8, u, sv, vt, false, NULL), FL_OK);
    for (int i = 0; i < 8; i++) {
        assert_true(fabs(sv[i] * up - p.s[i]) < 1e-13);
    }
    la_problem_free(&p);
}

static void test_choose(void **state)
{
    const double tol = FL_SVD_TOL;

    (void)state;
    /* small R: the stacks; R from max(m, n) on: the sum; nothing overflows */
    assert_int_equal(fl_svd_choose(1, 1, 0, 1, tol), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(768, 768, 1, 1, tol), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(768, 768, 64, 8, tol), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(4096, 4096, 320, 16, tol), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(300, 200, 300, 200, tol), FL_SOLVE_DENSE);
    assert_int_equal(fl_svd_choose(64, 64, 16000, 8, tol), FL_SOLVE_DENSE);
    assert_int_equal(fl_svd_choose(INT_MAX, INT_MAX, INT64_MAX, INT_MAX, tol), FL_SOLVE_DENSE);
    /* few pairs of many: a sketch, unless it cannot be certified to tol */
    assert_int_equal(fl_svd_choose(4096, 4096, 1600, 16, tol), FL_SOLVE_RANDOMIZED);
    assert_int_equal(fl_svd_choose(2048, 4096, 9000, 16, tol), FL_SOLVE_RANDOMIZED);
    assert_int_equal(fl_svd_choose(4096, 4096, 1600, 400, tol), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(4096, 4096, 1600, 16, 1e-9), FL_SOLVE_FACTORED);
    assert_int_equal(fl_svd_choose(2048, 4096, 9000, 16, 1e-9), FL_SOLVE_DENSE);
    /* the sides are equal before it, and once dense is chosen it stays so as R grows */
    for (int n = 1; n < 3000; n += 217) {
        bool dense = false;

        for (int nstack = 1; nstack < 4000; nstack += 37) {
            const fl_solver solver = fl_svd_choose(500, n, nstack, 1, 1e-15);

            assert_int_equal(solver, fl_svd_choose(n, 500, nstack, 1, 1e-15));
            assert_true(!dense || solver == FL_SOLVE_DENSE);
            dense = solver == FL_SOLVE_DENSE;
            assert_true(dense || nstack < FL_MAX(500, n));
        }
        assert_true(dense);
    }
}

/* ---- what is refused ---- */

static void expect_words(const char *const *words)
{
    for (; *words != NULL; words++) {
        if (strstr(fl_error_text(), *words) == NULL) {
            print_message("no \"%s\" in: %s\n", *words, fl_error_text());
            fail();
        }
    }
    fl_error_clear();
}

static void test_not_finite(void **state)
{
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    double b[6] = {1, 2, 3, 4, 5, 6}, a[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    double u[9], sv[3], vt[12], q[9], r[9];

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        b[5] = bad[i];
        assert_false(fl_finite(6, b));
        assert_true(fl_finite(5, b));
        for (int s = FL_SOLVE_AUTO; s <= FL_SOLVE_DENSE; s++) {
            assert_int_equal(
                fl_svd_factors((fl_solver)s, 3, 4, 2, b, a, 2, u, sv, vt, false, NULL), FL_ENUM);
            expect_words((const char *const[]){"m = 3", "n = 4", "R = 2", "B", NULL});
        }
        assert_true(isnan(fl_product_norm2(3, 4, 2, b, a)));
        assert_int_equal(fl_svd(3, 2, b, u, sv, vt), FL_ENUM);
        assert_int_equal(fl_qr(3, 2, b, q, r), FL_ENUM);
        expect_words((const char *const[]){"3 x 2", NULL});
        b[5] = 6;
        a[7] = bad[i];
        assert_int_equal(
            fl_svd_factors(FL_SOLVE_AUTO, 3, 4, 2, b, a, 2, u, sv, vt, false, NULL), FL_ENUM);
        fl_error_clear();
        a[7] = 8;
    }
}

/* sizes are judged before anything is read */
static void test_too_large(void **state)
{
    double x = 0;

    (void)state;
    assert_int_equal(fl_svd(100000, 100000, &x, &x, &x, &x), FL_ESHAPE);
    expect_words((const char *const[]){"100000", NULL});
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_DENSE, 50000, 60000, 512, &x, &x, 8, &x, &x, &x, false, NULL),
        FL_ESHAPE);
    expect_words((const char *const[]){"m = 50000", "n = 60000", "R = 512", "factored", NULL});
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_AUTO, 90000, 90000, 40000, &x, &x, 8, &x, &x, &x, false, NULL),
        FL_ESHAPE);
    expect_words((const char *const[]){"m = 90000", "n = 90000", "R = 40000", NULL});
    assert_int_equal(fl_svd_factors(FL_SOLVE_AUTO, 4096, 4096, (int64_t)INT_MAX + 1, &x, &x, 8, &x,
                         &x, &x, false, NULL),
        FL_ESHAPE);
    expect_words((const char *const[]){"m = 4096", "n = 4096", "R = 2147483648", NULL});
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_AUTO, 4, 3, 2, &x, &x, 4, &x, &x, &x, false, NULL), FL_ESHAPE);
    expect_words((const char *const[]){"m = 4", "n = 3", "r = 4", NULL});
    assert_int_equal(
        fl_svd_factors(FL_SOLVE_AUTO, 0, 3, 2, &x, &x, 0, &x, &x, &x, false, NULL), FL_ESHAPE);
    fl_error_clear();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qr),
        cmocka_unit_test(test_svd),
        cmocka_unit_test(test_factors),
        cmocka_unit_test(test_factors_large),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_too_large),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
