/* test_grid.c - SVD by ScaLAPACK on every grid that the number of ranks allows: judged against
 * known singular values, residuals and orthogonality, and against LAPACK; the same bits in every
 * run of the same grid. */
#include "la_check.h"
#include <limits.h>

typedef struct answer {
    double *u, *sv, *vt; /* owned [m][r], [r], [r][n]; NULL away from the owner */
    fl_svd_report report;
} answer;

static answer grid_answer(fl_grid *grid, int owner, const la_problem *p, int r, bool certify)
{
    const bool mine = test_ctx->rank == owner;
    answer a = {0};

    if (mine) {
        a.u = fl_alloc("test: u", (size_t)p->m * (size_t)r, sizeof *a.u);
        a.sv = fl_alloc("test: sv", (size_t)r, sizeof *a.sv);
        a.vt = fl_alloc("test: vt", (size_t)r * (size_t)p->n, sizeof *a.vt);
        memset(a.u, 0xff, (size_t)p->m * (size_t)r * sizeof *a.u); /* NaN */
        memset(a.vt, 0xff, (size_t)r * (size_t)p->n * sizeof *a.vt);
    }
    assert_int_equal(fl_grid_svd(grid, owner, p->m, p->n, p->nstack, mine ? p->bs : NULL,
                         mine ? p->as : NULL, r, a.u, a.sv, a.vt, certify, &a.report),
        FL_OK);
    return a;
}

static void answer_free(answer *a)
{
    fl_free(a->u);
    fl_free(a->sv);
    fl_free(a->vt);
}

/* values of LAPACK's dense SVD of the same X */
static void compare_lapack(const la_problem *p, int r, const double *sv)
{
    const int k = FL_MIN(p->m, p->n);
    double *u = fl_alloc("test: u", (size_t)p->m * (size_t)k, sizeof *u);
    double *s = fl_alloc("test: s", (size_t)k, sizeof *s);
    double *vt = fl_alloc("test: vt", (size_t)k * (size_t)p->n, sizeof *vt);

    assert_int_equal(fl_svd(p->m, p->n, p->x, u, s, vt), FL_OK);
    for (int i = 0; i < r; i++) {
        assert_true(fabs(sv[i] - s[i]) < LA_BOUND * LA_EPS * FL_MAX(p->m, p->n) * 4);
    }
    fl_free(vt);
    fl_free(s);
    fl_free(u);
}

static void grid_case(fl_grid *grid, int nb, int owner, int m, int n, int nstack, int rank)
{
    const int k = FL_MIN(m, n), r = (k + 1) / 2, side = FL_MAX(m, n);
    la_problem p = la_problem_make(m, n, nstack, rank);
    answer whole = grid_answer(grid, owner, &p, k, true);
    answer top = grid_answer(grid, owner, &p, r, false);
    const bool spread = k >= nb * FL_MAX(fl_grid_rows(grid), fl_grid_cols(grid)) && nstack > 0;
    double all = 0, beyond = 0;

    /* the report is known on every rank */
    for (int i = 0; i < p.k; i++) {
        all += p.s[i] * p.s[i];
        beyond += i >= r ? p.s[i] * p.s[i] : 0;
    }
    assert_string_equal(whole.report.solver, spread ? "scalapack" : "dense");
    assert_true(
        whole.report.residual < LA_BOUND * LA_EPS * side * FL_MAX(1, 4 / sqrt(all + 1e-300)) ||
        all == 0);
    assert_true(whole.report.residual > 0 || all == 0 || k == 1);
    assert_true(whole.report.orthogonality < LA_BOUND * LA_EPS * side);
    assert_true(fabs(top.report.discarded - (all > 0 ? beyond / all : 0)) < 1e-12 || all == 0);
    if (test_ctx->rank == owner) {
        la_judge(&p, k, whole.u, whole.sv, whole.vt);
        la_judge(&p, r, top.u, top.sv, top.vt);
        compare_lapack(&p, FL_MIN(k, p.k), whole.sv);
        for (int i = 0; i < r; i++) { /* neither r nor the certificate changes a bit */
            assert_true(whole.sv[i] == top.sv[i]);
            for (int j = 0; j < m; j++) {
                assert_true(whole.u[(size_t)j * (size_t)k + (size_t)i] ==
                            top.u[(size_t)j * (size_t)r + (size_t)i]);
            }
        }
        assert_memory_equal(whole.vt, top.vt, (size_t)r * (size_t)n * sizeof *top.vt);
    }
    answer_free(&top);
    answer_free(&whole);
    la_problem_free(&p);
}

/* every p x q with p q <= size, and block sizes that leave ragged ends */
static void test_every_grid(void **state)
{
    static const int shape[][4] = {/* m, n, R, rank */
        {1, 1, 1, 1}, {1, 130, 3, 9}, {130, 1, 2, 9}, {2, 3, 5, 9}, {7, 7, 3, 9}, {13, 17, 4, 2},
        {31, 29, 40, 99}, {61, 61, 61, 30}, {97, 53, 13, 99}, {53, 97, 13, 99}, {53, 97, 110, 20},
        {64, 64, 10, 0}, {130, 64, 64, 99}, {130, 65, 7, 3}, {127, 31, 20, 99}, {31, 127, 150, 99},
        {64, 128, 3, 3}, {24, 24, 0, 0}};
    static const int block[] = {8, 5, 2};

    (void)state;
    for (int p = 1; p <= test_ctx->size; p++) {
        for (int q = 1; p * q <= test_ctx->size; q++) {
            for (size_t b = 0; b < FL_COUNT(block); b++) {
                fl_grid *grid = NULL;

                assert_int_equal(fl_grid_create(test_ctx, p, q, block[b], &grid), FL_OK);
                assert_int_equal(fl_grid_rows(grid), p);
                assert_int_equal(fl_grid_cols(grid), q);
                /* the first block size meets every shape, the others a part */
                for (size_t i = b; i < FL_COUNT(shape); i += b == 0 ? 1 : 5) {
                    grid_case(grid, block[b], (int)i % test_ctx->size, shape[i][0], shape[i][1],
                        shape[i][2], shape[i][3]);
                }
                fl_grid_destroy(&grid);
                assert_null(grid);
            }
        }
    }
}

/* five runs, each on a grid of its own */
static void same_bits(int p, int q, int m, int n, int nstack)
{
    la_problem x = la_problem_make(m, n, nstack, 40);
    uint64_t first = 0;

    for (int run = 0; run < 5; run++) {
        fl_grid *grid = NULL;
        answer a;

        assert_int_equal(fl_grid_create(test_ctx, p, q, 8, &grid), FL_OK);
        a = grid_answer(grid, 0, &x, 40, run % 2 == 1);
        assert_string_equal(a.report.solver, "scalapack");
        if (test_ctx->rank == 0) {
            const uint64_t hash = la_hash(m, n, 40, a.u, a.sv, a.vt);

            first = run == 0 ? hash : first;
            assert_true(hash == first);
        }
        answer_free(&a);
        fl_grid_destroy(&grid);
    }
    la_problem_free(&x);
}

static void test_same_bits(void **state)
{
    static const int grid[][2] = {{1, 1}, {2, 1}, {1, 2}, {3, 1}, {1, 3}, {2, 2}, {4, 1}, {2, 3}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(grid); i++) {
        if (grid[i][0] * grid[i][1] <= test_ctx->size) {
            same_bits(grid[i][0], grid[i][1], 67, 61, 60);  /* PDGESVD of X */
            same_bits(grid[i][0], grid[i][1], 103, 41, 50); /* PDGEQRF first */
        }
    }
}

/* nearly square over all ranks when nothing is asked */
static void test_default_grid(void **state)
{
    static const int want[][2] = {{1, 1}, {1, 2}, {1, 3}, {2, 2}, {2, 2}, {2, 3}, {2, 3}, {2, 4}};
    fl_grid *grid = NULL;

    (void)state;
    assert_int_equal(fl_grid_create(test_ctx, 0, 0, 64, &grid), FL_OK);
    assert_true(fl_grid_rows(grid) * fl_grid_cols(grid) <= test_ctx->size);
    if (test_ctx->size <= (int)FL_COUNT(want)) {
        assert_int_equal(fl_grid_rows(grid), want[test_ctx->size - 1][0]);
        assert_int_equal(fl_grid_cols(grid), want[test_ctx->size - 1][1]);
    }
    fl_grid_destroy(&grid);
    fl_grid_destroy(&grid); /* nothing left: no harm */
}

static void test_refused_grids(void **state)
{
    const int size = test_ctx->size;
    const int bad[][3] = {{size + 1, 1, 8}, {1, size + 1, 8}, {1 << 20, 1 << 20, 8}, {0, 1, 8},
        {1, 0, 8}, {-1, -1, 8}, {1, 1, 0}};
    char words[64];

    (void)state;
    snprintf(words, sizeof words, "this job has %d", size);
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        fl_grid *grid = NULL;

        fl_error_clear();
        assert_int_equal(
            fl_grid_create(test_ctx, bad[i][0], bad[i][1], bad[i][2], &grid), FL_EDECK);
        assert_null(grid);
        assert_true(i > 2 || strstr(fl_error_text(), words) != NULL);
    }
    fl_error_clear();
}

/* grids one after the other, several alive at once, destroyed in any order */
static void test_many_grids(void **state)
{
    la_problem p = la_problem_make(40, 33, 12, 99);
    fl_grid *a = NULL, *b = NULL;

    (void)state;
    for (int i = 0; i < 30; i++) {
        assert_int_equal(fl_grid_create(test_ctx, test_ctx->size, 1, 4, &a), FL_OK);
        fl_grid_destroy(&a);
    }
    assert_int_equal(fl_grid_create(test_ctx, 1, test_ctx->size, 4, &a), FL_OK);
    assert_int_equal(fl_grid_create(test_ctx, 1, 1, 4, &b), FL_OK);
    for (int turn = 0; turn < 4; turn++) {
        answer x = grid_answer(turn % 2 ? a : b, test_ctx->size - 1, &p, 12, true);

        if (test_ctx->rank == test_ctx->size - 1) {
            la_judge(&p, 12, x.u, x.sv, x.vt);
        }
        answer_free(&x);
    }
    fl_grid_destroy(&a);
    fl_grid_destroy(&b);
    la_problem_free(&p);
}

/* only the owner sees the bad number; all ranks leave with the error and the sentence */
static void test_refused_numbers(void **state)
{
    la_problem p = la_problem_make(40, 33, 12, 99);
    const int owner = test_ctx->size - 1;
    fl_grid *grid = NULL;
    answer good;

    (void)state;
    assert_int_equal(fl_grid_create(test_ctx, 0, 0, 8, &grid), FL_OK);
    for (int i = 0; i < 2; i++) {
        const double kept = p.as[5];

        p.as[5] = i ? NAN : -INFINITY;
        fl_error_clear();
        assert_int_equal(
            fl_grid_svd(grid, owner, 40, 33, 12, p.bs, p.as, 3, NULL, NULL, NULL, false, NULL),
            FL_ENUM);
        assert_non_null(strstr(fl_error_text(), "R = 12"));
        p.as[5] = kept;
    }
    fl_error_clear();
    assert_int_equal(
        fl_grid_svd(grid, 0, 40, 33, INT64_MAX, p.bs, p.as, 3, NULL, NULL, NULL, false, NULL),
        FL_ESHAPE);
    assert_int_equal(
        fl_grid_svd(grid, 0, 2000000, 2000000, 7, p.bs, p.as, 3, NULL, NULL, NULL, false, NULL),
        FL_ESHAPE);
    assert_non_null(strstr(fl_error_text(), "m = 2000000 x n = 2000000, a sum of R = 7"));
    fl_error_clear();
    good = grid_answer(grid, owner, &p, 12, true); /* and go on */
    if (test_ctx->rank == owner) {
        la_judge(&p, 12, good.u, good.sv, good.vt);
    }
    answer_free(&good);
    fl_grid_destroy(&grid);
    la_problem_free(&p);
}

/* long form: PDGEQRF and PDGESVD over many blocks of the usual size, against LAPACK */
static void test_tall(void **state)
{
    fl_grid *grid = NULL;

    (void)state;
    if (getenv("FEDLORA_LONG") == NULL || *getenv("FEDLORA_LONG") == '\0') {
        print_message("# 2048 x 512 only with FEDLORA_LONG=1\n");
        skip();
    }
    assert_int_equal(fl_grid_create(test_ctx, 0, 0, 64, &grid), FL_OK);
    grid_case(grid, 64, test_ctx->size - 1, 2048, 512, 600, INT_MAX);
    grid_case(grid, 64, 0, 512, 2048, 300, 200); /* the transposed way, deficient */
    fl_grid_destroy(&grid);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_grid),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_default_grid),
        cmocka_unit_test(test_refused_grids),
        cmocka_unit_test(test_many_grids),
        cmocka_unit_test(test_refused_numbers),
        cmocka_unit_test(test_tall),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
