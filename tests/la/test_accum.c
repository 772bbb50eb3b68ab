/* test_accum.c - the sum of products, product after product: the bits of the whole stack, however
 * the products come, and the SVD of what the plain sum is; memory as promised. */
#include "la_check.h"

static const fl_solver solvers[] = {
    FL_SOLVE_AUTO, FL_SOLVE_FACTORED, FL_SOLVE_DENSE, FL_SOLVE_RANDOMIZED};

/* columns at .. at + r - 1 of bs */
static double *columns(const la_problem *p, int at, int r)
{
    double *b = fl_alloc("test: columns", (size_t)p->m * (size_t)r, sizeof *b);

    for (int i = 0; i < p->m; i++) {
        for (int j = 0; j < r; j++) {
            b[i * r + j] = p->bs[(size_t)i * (size_t)p->nstack + (size_t)(at + j)];
        }
    }
    return b;
}

/* hash of the top r, added in pieces of at most `piece` pairs */
static uint64_t in_pieces(
    const la_problem *p, fl_solver solver, int r, int piece, fl_svd_report *report)
{
    double *u = fl_alloc("test: u", (size_t)p->m * (size_t)r, sizeof *u);
    double *sv = fl_alloc("test: sv", (size_t)r, sizeof *sv);
    double *vt = fl_alloc("test: vt", (size_t)r * (size_t)p->n, sizeof *vt);
    fl_accum *acc = NULL;
    uint64_t hash;

    assert_int_equal(fl_accum_create(solver, FL_SVD_TOL, p->m, p->n, p->nstack, r, &acc), FL_OK);
    for (int at = 0, k = 0; at < p->nstack; k++) {
        const int count = FL_MIN(p->nstack - at, 1 + (piece - 1) * (k % 3) / 2);
        double *b = columns(p, at, count);

        fl_accum_add_double(acc, count, b, p->as + (size_t)at * (size_t)p->n);
        fl_accum_add_double(acc, 0, NULL, NULL); /* a client that brings nothing */
        at += count;
        fl_free(b);
    }
    assert_int_equal(fl_accum_svd(acc, u, sv, vt, true, report), FL_OK);
    la_judge(p, r, u, sv, vt);
    hash = la_hash(p->m, p->n, r, u, sv, vt);
    fl_accum_destroy(&acc);
    assert_null(acc);
    fl_accum_destroy(&acc); /* nothing left: no harm */
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    return hash;
}

static uint64_t at_once(const la_problem *p, fl_solver solver, int r, fl_svd_report *report)
{
    double *u = fl_alloc("test: u", (size_t)p->m * (size_t)r, sizeof *u);
    double *sv = fl_alloc("test: sv", (size_t)r, sizeof *sv);
    double *vt = fl_alloc("test: vt", (size_t)r * (size_t)p->n, sizeof *vt);
    uint64_t hash;

    assert_int_equal(
        fl_svd_factors(solver, p->m, p->n, p->nstack, p->bs, p->as, r, u, sv, vt, true, report),
        FL_OK);
    hash = la_hash(p->m, p->n, r, u, sv, vt);
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    return hash;
}

static void test_pieces(void **state)
{
    /* R below, between, at and above the sides, around blocks of 256, many blocks; R = 1 and 0 */
    static const int shape[][4] = {{61, 47, 20, 9}, {61, 47, 50, 9}, {61, 47, 61, 9},
        {37, 41, 255, 6}, {37, 41, 256, 6}, {37, 41, 257, 6}, {41, 37, 1300, 41}, {5, 3, 900, 1},
        {13, 17, 1, 1}, {13, 17, 0, 0}, {1, 1, 300, 9}};
    uint64_t h[2] = {0, 0};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(shape); i++) {
        la_problem p = la_problem_make(shape[i][0], shape[i][1], shape[i][2], shape[i][3]);
        const int r = FL_MIN(5, FL_MIN(p.m, p.n));

        for (size_t s = 0; s < FL_COUNT(solvers); s++) {
            fl_svd_report whole = {0}, part = {0};
            const uint64_t hash = at_once(&p, solvers[s], r, &whole);

            for (int piece = 1; piece <= 600; piece = piece * 9 + 4) {
                assert_true(in_pieces(&p, solvers[s], r, piece, &part) == hash);
                assert_string_equal(part.solver, whole.solver);
                assert_true(part.residual == whole.residual);
                assert_true(part.orthogonality == whole.orthogonality);
                assert_true(part.discarded == whole.discarded);
            }
            h[0] = h[0] * 31 + hash;
        }
        la_problem_free(&p);
    }
    h[1] = ~h[0];
    MPI_Allreduce(MPI_IN_PLACE, h, 2, MPI_UINT64_T, MPI_MAX, test_ctx->world);
    assert_true(h[0] == ~h[1]);
}

/* messages as they are: floats and a weight */
static void test_weighted(void **state)
{
    enum { M = 23, N = 19, CLIENTS = 70, R = 7 };
    double x[M * N] = {0}, u[M * R], sv[R], vt[R * N], top[M * N], all[N], right[N * N];
    fl_accum *acc = NULL;
    fl_svd_report report;

    (void)state;
    assert_int_equal(fl_accum_create(FL_SOLVE_AUTO, FL_SVD_TOL, M, N,
                         CLIENTS * (CLIENTS - 1) / 2 % 97 + 0, R, &acc),
        FL_OK);
    fl_accum_destroy(&acc);
    assert_int_equal(fl_accum_create(FL_SOLVE_AUTO, FL_SVD_TOL, M, N, CLIENTS * 4, R, &acc), FL_OK);
    for (int k = 0; k < CLIENTS; k++) { /* ranks 3, 4, 5, 4 */
        const int r = 4 + (k % 4 == 2) - (k % 4 == 0);
        const double w = 1.0 / (3 + k);
        fl_real b[M * 5], a[5 * N];

        for (int i = 0; i < M * r; i++) {
            b[i] = (fl_real)la_random(100 + k, (size_t)i);
        }
        for (int i = 0; i < r * N; i++) {
            a[i] = (fl_real)la_random(200 + k, (size_t)i);
        }
        for (int i = 0; i < M * N; i++) {
            for (int j = 0; j < r; j++) {
                x[i] += w * b[i / N * r + j] * a[j * N + i % N];
            }
        }
        if (k == CLIENTS - 1) { /* 17 whole cycles and ranks 3, 4: one pair is missing */
            const fl_real none[M + N] = {0};

            fl_accum_add(acc, 1, 1, none, none);
        }
        fl_accum_add(acc, r, w, b, a);
    }
    assert_int_equal(fl_accum_svd(acc, u, sv, vt, true, &report), FL_OK);
    assert_int_equal(fl_svd(M, N, x, top, all, right), FL_OK);
    for (int i = 0; i < R; i++) {
        assert_true(fabs(sv[i] - all[i]) < 1e-13 * all[0]);
    }
    assert_true(report.residual < 1e-14 && report.orthogonality < 1e-14);
    fl_accum_destroy(&acc);
}

/* thousands of clients: the block and the sum, whatever R; below the sides: the stacks */
static void test_memory(void **state)
{
    const double sum = 8.0 * (768.0 * 768 + 2 * 768 * 256), stack = 8.0 * 2 * 768 * 160;
    const size_t before = fl_memory_now();
    fl_accum *acc = NULL;

    (void)state;
    assert_true(fl_accum_bytes(FL_SOLVE_AUTO, FL_SVD_TOL, 768, 768, 16000, 8) == sum);
    assert_true(fl_accum_bytes(FL_SOLVE_AUTO, FL_SVD_TOL, 768, 768, 1600000000, 8) == sum);
    assert_true(fl_accum_bytes(FL_SOLVE_AUTO, FL_SVD_TOL, 768, 768, 160, 8) == stack);
    assert_int_equal(fl_accum_create(FL_SOLVE_AUTO, FL_SVD_TOL, 768, 768, 16000, 8, &acc), FL_OK);
    assert_true((double)(fl_memory_now() - before) < sum + 4096);
    fl_accum_destroy(&acc);
    assert_true(fl_memory_now() == before);
}

static void test_refused(void **state)
{
    const double b[] = {1, 2, 3}, good[] = {1, 2}, bad[] = {1, NAN}, huge[] = {1e308, 1e308};
    double u[3], sv[1], vt[2];

    (void)state;
    fl_error_clear();
    for (size_t s = 0; s < FL_COUNT(solvers); s++) {
        fl_accum *acc = NULL;

        for (int nstack = 2; nstack <= 5; nstack += 3) {
            assert_int_equal(fl_accum_create(solvers[s], FL_SVD_TOL, 3, 2, nstack, 1, &acc), FL_OK);
            for (int i = 0; i < nstack; i++) {
                fl_accum_add_double(acc, 1, b, i == 1 ? bad : good);
            }
            fl_error_clear();
            assert_int_equal(fl_accum_svd(acc, u, sv, vt, false, NULL), FL_ENUM);
            assert_non_null(strstr(fl_error_text(), "pair 1 "));
            fl_accum_destroy(&acc);
        }
        /* every product is finite, their sum is not */
        assert_int_equal(fl_accum_create(solvers[s], FL_SVD_TOL, 3, 2, 5, 1, &acc), FL_OK);
        for (int i = 0; i < 5; i++) {
            fl_accum_add_double(acc, 1, b, huge);
        }
        assert_int_equal(fl_accum_svd(acc, u, sv, vt, false, NULL), FL_ENUM);
        fl_accum_destroy(&acc);
        assert_int_equal(
            fl_accum_create(solvers[s], FL_SVD_TOL, 3, 2, INT64_MAX, 1, &acc), FL_ESHAPE);
        assert_null(acc);
        assert_int_equal(fl_accum_create(solvers[s], FL_SVD_TOL, 3, 2, 5, 3, &acc), FL_ESHAPE);
    }
    fl_error_clear();
    assert_true(fl_accum_bytes(FL_SOLVE_AUTO, FL_SVD_TOL, 0, 2, 5, 1) == 0);
    fl_error_clear();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_weighted),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_refused),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
