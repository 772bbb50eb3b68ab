/* test_randomized.c - the randomized solver and its certificate: the answer is as good as the
 * report says for every spectrum, and where no certificate is possible the exact solver's bits come
 * out. */
#include "la_check.h"
#include <limits.h>

enum { PURPOSE_SKETCH = 253 }; /* of the solver's Gaussian rows */

typedef struct answer {
    double *u, *sv, *vt; /* owned [m][r], [r], [r][n] */
    fl_svd_report report;
} answer;

static answer solve(fl_solver solver, double tol, bool certify, const la_problem *p, int r)
{
    answer a = {.u = fl_alloc("test: u", (size_t)p->m * (size_t)r, sizeof(double)),
        .sv = fl_alloc("test: sv", (size_t)r, sizeof(double)),
        .vt = fl_alloc("test: vt", (size_t)r * (size_t)p->n, sizeof(double))};

    memset(a.u, 0xff, (size_t)p->m * (size_t)r * sizeof(double));
    memset(a.vt, 0xff, (size_t)r * (size_t)p->n * sizeof(double));
    assert_int_equal(fl_svd_factors_tol(solver, tol, p->m, p->n, p->nstack, p->bs, p->as, r, a.u,
                         a.sv, a.vt, certify, &a.report),
        FL_OK);
    return a;
}

static void answer_free(answer *a)
{
    fl_free(a->u);
    fl_free(a->sv);
    fl_free(a->vt);
}

static uint64_t answer_hash(const la_problem *p, int r, const answer *a)
{
    return la_hash(p->m, p->n, r, a->u, a->sv, a->vt);
}

/* X with the singular values s[k], k = min(m, n, R), from an ordinary problem: its own are 2^(-i/4)
 */
static la_problem spectrum(int m, int n, int nstack, double (*value)(int))
{
    la_problem p = la_problem_make(m, n, nstack, INT_MAX);
    const int k = p.k;
    double *u = fl_alloc("test: u", (size_t)m * (size_t)k, sizeof *u);
    double *sv = fl_alloc("test: sv", (size_t)k, sizeof *sv);
    double *vt = fl_alloc("test: vt", (size_t)k * (size_t)n, sizeof *vt);

    assert_int_equal(
        fl_svd_factors(FL_SOLVE_FACTORED, m, n, nstack, p.bs, p.as, k, u, sv, vt, false, NULL),
        FL_OK);
    memset(p.bs, 0, (size_t)m * (size_t)nstack * sizeof *p.bs);
    memset(p.as, 0, (size_t)nstack * (size_t)n * sizeof *p.as);
    for (int j = 0; j < k; j++) {
        p.s[j] = value(j);
        for (int i = 0; i < m; i++) {
            p.bs[(size_t)i * (size_t)nstack + (size_t)j] = u[(size_t)i * (size_t)k + (size_t)j];
        }
        for (int i = 0; i < n; i++) {
            const size_t at = (size_t)j * (size_t)n + (size_t)i;

            p.as[at] = value(j) * vt[at];
        }
    }
    la_multiply(m, n, nstack, p.bs, p.as, p.x);
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    return p;
}

static double fast(int i)
{
    return exp2(-i / 2.0);
}

static double slow(int i)
{
    return 1 / sqrt(1.0 + i);
}

static double steps(int i) /* six equal values across every cut of 8 */
{
    return exp2(-(i / 6));
}

static double equal(int i)
{
    (void)i;
    return 3;
}

static double deficient(int i)
{
    return i < 5 ? 5 - i : 0;
}

static double plateau(int i) /* a head and a flat tail that holds most of the energy */
{
    return i < 8 ? 10 : 2 - i * 1e-3;
}

static double tiny(int i) /* squares near the end of the range of double */
{
    return 0x1p-300 * fast(i);
}

/* what the report says is true: of X itself, by plain loops */
static void judge(const la_problem *p, int r, const answer *a)
{
    double all = 0, beyond = 0, excess;
    const double far = la_residual(p->m, p->n, r, p->x, a->u, a->sv, a->vt);

    for (int i = 0; i < p->k; i++) {
        all += p->s[i] * p->s[i];
        beyond += i >= r ? p->s[i] * p->s[i] : 0;
    }
    excess = far * far - beyond;
    assert_true(a->report.residual <= FL_SVD_TOL);
    assert_true(excess <= a->report.residual * a->report.residual * all + 1e-14 * all);
    assert_true(fabs(a->report.discarded - beyond / all) < 1e-12);
    assert_true(a->report.orthogonality < 1e-13);
    for (int i = 0; i < r; i++) { /* a Ritz value is never above, and the sum is certified */
        assert_true(a->sv[i] <= p->s[i] * (1 + 1e-13) + 1e-15 * p->s[0]);
        assert_true(a->sv[i] * a->sv[i] >= p->s[i] * p->s[i] - 1.01e-12 * all);
    }
}

static void test_spectra(void **state)
{
    static double (*const value[])(int) = {fast, slow, steps, equal, deficient, plateau, tiny};
    /* R below both sides; between them; above; and both orientations */
    static const int shape[][3] = {{260, 230, 200}, {230, 260, 200}, {190, 260, 230},
        {260, 190, 230}, {170, 190, 300}, {190, 170, 300}};
    const size_t before = fl_memory_now();
    uint64_t h[2] = {0, 0};

    (void)state;
    for (size_t v = 0; v < FL_COUNT(value); v++) {
        for (size_t i = 0; i < FL_COUNT(shape); i++) {
            la_problem p = spectrum(shape[i][0], shape[i][1], shape[i][2], value[v]);
            answer a = solve(FL_SOLVE_RANDOMIZED, FL_SVD_TOL, true, &p, 8);
            answer b = solve(FL_SOLVE_RANDOMIZED, FL_SVD_TOL, false, &p, 8);

            judge(&p, 8, &a);
            if (value[v] != slow) { /* at these small sizes half of X is not enough for it */
                assert_string_equal(a.report.solver, "randomized");
            }
            assert_true(answer_hash(&p, 8, &a) == answer_hash(&p, 8, &b));
            h[0] = h[0] * 31 + answer_hash(&p, 8, &a);
            answer_free(&b);
            answer_free(&a);
            la_problem_free(&p);
        }
    }
    assert_true(fl_memory_now() == before);
    h[1] = ~h[0];
    MPI_Allreduce(MPI_IN_PLACE, h, 2, MPI_UINT64_T, MPI_MAX, test_ctx->world);
    assert_true(h[0] == ~h[1]);
}

/* no certificate: the same bits as the exact solver of that form, and its name */
static void expect_exact(const la_problem *p, double tol, int r)
{
    const fl_solver solver = p->nstack < FL_MIN(p->m, p->n) ? FL_SOLVE_FACTORED : FL_SOLVE_DENSE;
    answer a = solve(FL_SOLVE_RANDOMIZED, tol, true, p, r), b = solve(solver, tol, true, p, r);

    assert_string_equal(a.report.solver, fl_solver_name[solver]);
    assert_string_equal(b.report.solver, fl_solver_name[solver]);
    assert_true(answer_hash(p, r, &a) == answer_hash(p, r, &b));
    assert_true(a.report.residual == b.report.residual);
    answer_free(&b);
    answer_free(&a);
}

static void test_not_certified(void **state)
{
    la_problem p = spectrum(150, 140, 130, fast), many = spectrum(120, 110, 200, fast);

    (void)state;
    expect_exact(&p, 1e-9, 8);        /* finer than Gram matrices can say */
    expect_exact(&p, FL_SVD_TOL, 30); /* too many pairs for a sketch */
    expect_exact(&p, FL_SVD_TOL, 0);
    expect_exact(&many, 1e-9, 8);
    expect_exact(&many, FL_SVD_TOL, 100);
    for (size_t i = 0; i < (size_t)p.m * (size_t)p.nstack; i++) {
        p.bs[i] *= 0x1p-500; /* its squares underflow, X does not */
    }
    for (size_t i = 0; i < (size_t)p.nstack * (size_t)p.n; i++) {
        p.as[i] *= 0x1p+500;
    }
    expect_exact(&p, FL_SVD_TOL, 8);
    memset(p.bs, 0, (size_t)p.m * (size_t)p.nstack * sizeof *p.bs); /* X = 0 */
    expect_exact(&p, FL_SVD_TOL, 8);
    la_problem_free(&many);
    la_problem_free(&p);
}

/* Gaussian factors: no gap anywhere, the sketch would have to be nearly as large as X */
static void test_noise(void **state)
{
    la_problem p = spectrum(150, 140, 96, fast);

    (void)state;
    for (size_t i = 0; i < (size_t)p.m * (size_t)p.nstack; i++) {
        p.bs[i] = fl_rng_normal(3, FL_RNG_TEST, 0, 0, i);
    }
    for (size_t i = 0; i < (size_t)p.nstack * (size_t)p.n; i++) {
        p.as[i] = fl_rng_normal(3, FL_RNG_TEST, 1, 0, i);
    }
    expect_exact(&p, FL_SVD_TOL, 8);
    la_problem_free(&p);
}

/* X small beside its parts: [B, B + d C] [A; -A] = -d C A. The rounding of the Gram matrices of the
 * stacks is larger than what is asked about X */
static void test_cancellation(void **state)
{
    la_problem p = spectrum(200, 190, 160, fast);
    const size_t nr = (size_t)p.nstack;

    (void)state;
    for (size_t j = 0; j < nr / 2; j++) {
        for (size_t i = 0; i < (size_t)p.m; i++) {
            p.bs[i * nr + nr / 2 + j] = p.bs[i * nr + j] + 1e-4 * la_random(3, i * nr + j);
        }
        for (size_t i = 0; i < (size_t)p.n; i++) {
            p.as[(nr / 2 + j) * (size_t)p.n + i] = -p.as[j * (size_t)p.n + i];
        }
    }
    expect_exact(&p, FL_SVD_TOL, 8);
    la_problem_free(&p);
}

/* The largest singular vector is orthogonal to all Gaussian rows the sketch starts from, so no
 * power of X X' shows it, except by rounding: the sketch alone would be content with the others. */
static void test_hidden_direction(void **state)
{
    enum { M = 128, R = 8, BLOCK = R + 8 };
    la_problem p = spectrum(M, M, M, fast);
    double *rows = fl_alloc("test: rows", (BLOCK + 1) * M, sizeof *rows), v[M], norm = 0;

    (void)state;
    for (size_t i = 0; i < BLOCK * M; i++) {
        rows[i] = fl_rng_normal(0, PURPOSE_SKETCH, 0, 0, i);
    }
    for (size_t i = 0; i < M; i++) {
        rows[BLOCK * M + i] = la_random(5, i);
    }
    for (int i = 0; i <= BLOCK; i++) { /* Gram and Schmidt, twice; the last row is the direction */
        for (int twice = 0; twice < 2; twice++) {
            for (int j = 0; j < i; j++) {
                double dot = 0;

                for (int l = 0; l < M; l++) {
                    dot += rows[i * M + l] * rows[j * M + l];
                }
                for (int l = 0; l < M; l++) {
                    rows[i * M + l] -= dot * rows[j * M + l];
                }
            }
            norm = la_frobenius(M, rows + i * M);
            for (int l = 0; l < M; l++) {
                rows[i * M + l] /= norm;
            }
        }
    }
    for (size_t i = 0; i < M; i++) {
        v[i] = la_random(6, i);
    }
    /* X = (I - w w') X + w v', w the last row: the others stay a little below 2^(-i/2) */
    for (size_t j = 0; j < M; j++) {
        const double *w = rows + (size_t)BLOCK * M;
        double dot = 0;

        for (size_t i = 0; i < M; i++) {
            dot += w[i] * p.x[i * M + j];
        }
        for (size_t i = 0; i < M; i++) {
            p.x[i * M + j] += w[i] * (v[j] - dot);
        }
    }
    memcpy(p.bs, p.x, sizeof(double) * M * M);
    memset(p.as, 0, sizeof(double) * M * M);
    for (size_t i = 0; i < M; i++) {
        p.as[i * M + i] = 1;
    }
    {
        answer a = solve(FL_SOLVE_RANDOMIZED, FL_SVD_TOL, true, &p, R);
        answer b = solve(FL_SOLVE_DENSE, FL_SVD_TOL, true, &p, R);

        assert_true(fabs(a.sv[0] - b.sv[0]) < 1e-10 && b.sv[0] > la_frobenius(M, v) * 0.999);
        assert_true(fabs(a.report.discarded - b.report.discarded) < 1e-12);
        answer_free(&b);
        answer_free(&a);
    }
    fl_free(rows);
    la_problem_free(&p);
}

/* a pair scaled up in bs and down in as is the same product, and stays certified */
static void test_balance(void **state)
{
    la_problem p = spectrum(150, 140, 130, fast);
    answer a = solve(FL_SOLVE_RANDOMIZED, FL_SVD_TOL, true, &p, 8), b;

    (void)state;
    for (int j = 0; j < p.nstack; j++) {
        for (int i = 0; i < p.m; i++) {
            p.bs[i * p.nstack + j] *= exp2(10 * (j % 20));
        }
        for (int i = 0; i < p.n; i++) {
            p.as[j * p.n + i] *= exp2(-10 * (j % 20));
        }
    }
    b = solve(FL_SOLVE_RANDOMIZED, FL_SVD_TOL, true, &p, 8);
    judge(&p, 8, &a);
    judge(&p, 8, &b);
    assert_string_equal(b.report.solver, "randomized");
    answer_free(&b);
    answer_free(&a);
    la_problem_free(&p);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spectra),
        cmocka_unit_test(test_not_certified),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_cancellation),
        cmocka_unit_test(test_hidden_direction),
        cmocka_unit_test(test_balance),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
