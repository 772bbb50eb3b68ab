/* factors.c - top r of the SVD of a sum of products X = bs as, bs m x R, as R x n, on one rank.
 *
 * factored: thin LQs bs' = tb qb (R x R, R x m) and as = ta qa (R x R, R x n), so X = qb' (tb' ta)
 * qa, and the SVD of the core tb' ta = Uc S Vc' gives U = qb' Uc and V' = Vc' qa. A side whose
 * length is at most R is left as it is (t = the stack itself, q = I); when both are, the core is X
 * and the solver that ran is called "dense". dense:    X by one product, then its SVD.
 *
 * X has rank at most K = min(m, n, R). Vectors from K to r - 1 are zero, and so are their singular
 * values, by either solver: what LAPACK finds there is rounding. */
#include "la_internal.h"
#include <limits.h>
#include <string.h>

/* one side of the core; for the side of B: len = m, for A: len = n */
typedef struct factor_side {
    int len, k;      /* k = min(len, R) */
    const double *t; /* R x k, or, of B when q is NULL, k x R (bs itself) */
    double *made;    /* owned [R][k] or NULL; t when it had to be computed */
    double *q;       /* owned [R][len]; k orthonormal rows first; NULL = identity */
} factor_side;

/* an SVD kept while its certificate is made */
typedef struct factor_svd {
    factor_side b, a;
    int k;               /* singular values of the core: min(b.k, a.k) */
    double *u, *sv, *vt; /* owned [b.k][k], [k], [k][a.k]; of the core */
} factor_svd;

fl_solver fl_svd_choose(int m, int n, int64_t nstack)
{
    /* R < min(m, n) / 2 without a product that could overflow */
    return nstack < ((int64_t)FL_MIN(m, n) + 1) / 2 ? FL_SOLVE_FACTORED : FL_SOLVE_DENSE;
}

static fl_err factors_side(factor_side *side, bool transposed, int len, int nstack, const double *x)
{
    const size_t count = (size_t)len * (size_t)nstack;

    *side = (factor_side){.len = len, .k = FL_MIN(len, nstack), .t = x};
    if (len <= nstack) {
        return FL_OK;
    }
    side->q = fl_alloc("svd: factor", count, sizeof *side->q);
    side->made = fl_alloc("svd: triangle", (size_t)nstack * (size_t)nstack, sizeof *side->made);
    side->t = side->made;
    if (transposed) {
        fl_la_transpose(len, nstack, x, side->q);
    } else {
        memcpy(side->q, x, count * sizeof *side->q);
    }
    return fl_la_lq(nstack, len, side->q, side->made, true);
}

static void factors_free(factor_svd *f)
{
    fl_free(f->b.made);
    fl_free(f->b.q);
    fl_free(f->a.made);
    fl_free(f->a.q);
    fl_free(f->u);
    fl_free(f->sv);
    fl_free(f->vt);
}

/* leaves f to be freed also when it fails */
static fl_err factors_solve(
    factor_svd *f, bool factored, int m, int n, int nstack, const double *bs, const double *as)
{
    double *core; /* owned [b.k][a.k] */
    fl_err err;

    if (factored) {
        FL_TRY(factors_side(&f->b, true, m, nstack, bs));
        FL_TRY(factors_side(&f->a, false, n, nstack, as));
    } else {
        f->b = (factor_side){.len = m, .k = m, .t = bs};
        f->a = (factor_side){.len = n, .k = n, .t = as};
    }
    f->k = FL_MIN(f->b.k, f->a.k);
    core = fl_alloc("svd: core", (size_t)f->b.k * (size_t)f->a.k, sizeof *core);
    f->u = fl_alloc("svd: u", (size_t)f->b.k * (size_t)f->k, sizeof *f->u);
    f->sv = fl_alloc("svd: sv", (size_t)f->k, sizeof *f->sv);
    f->vt = fl_alloc("svd: vt", (size_t)f->k * (size_t)f->a.k, sizeof *f->vt);
    fl_dgemm(f->b.q ? 't' : 'n', 'n', f->b.k, f->a.k, nstack, 1, f->b.t, f->a.t, 0, core);
    err = fl_svd(f->b.k, f->a.k, core, f->u, f->sv, f->vt);
    fl_free(core);
    return err;
}

/* the first k <= f->k columns of u (m x r) and rows of vt (r x n) of X from those of the core; the
 * rest is zero */
static void factors_vectors(const factor_svd *f, int k, int r, double *u, double *vt)
{
    const int m = f->b.len, n = f->a.len;
    const size_t nr = (size_t)r, nk = (size_t)k, cols = (size_t)n;

    for (size_t i = 0; i < (size_t)m * nr; i++) {
        u[i] = 0;
    }
    for (size_t i = nk * cols; i < nr * cols; i++) {
        vt[i] = 0;
    }
    if (k == 0) {
        return;
    }
    if (f->b.q) {
        fl_la_dgemm('t', 'n', m, k, f->b.k, 1, f->b.q, m, f->u, f->k, 0, u, r);
    } else {
        for (size_t i = 0; i < (size_t)m; i++) {
            memcpy(u + i * nr, f->u + i * (size_t)f->k, nk * sizeof *u);
        }
    }
    if (f->a.q) {
        fl_la_dgemm('n', 'n', k, n, f->a.k, 1, f->vt, f->a.k, f->a.q, n, 0, vt, n);
    } else {
        memcpy(vt, f->vt, nk * cols * sizeof *vt);
    }
}

/* Residual and orthogonality of the whole factorisation. X - U S V' = [bs, U S] [as; -V'], one more
 * sum of products, whose norm fl_la_product_norm takes without losing digits and without forming X
 * unless that is cheaper. */
static void factors_certify(
    const factor_svd *f, int nstack, const double *bs, const double *as, fl_svd_report *report)
{
    const int m = f->b.len, n = f->a.len, k = f->k, both = nstack + k;
    const size_t nr = (size_t)nstack, nk = (size_t)k, nboth = (size_t)both;
    double *u = fl_alloc("certificate: u", (size_t)m * nk, sizeof *u);
    double *vt = fl_alloc("certificate: vt", nk * (size_t)n, sizeof *vt);
    double *bu = fl_alloc("certificate: B, U S", (size_t)m * nboth, sizeof *bu);
    double *av = fl_alloc("certificate: A, V", nboth * (size_t)n, sizeof *av);
    const double norm = fl_la_norm(nk, f->sv);

    factors_vectors(f, k, k, u, vt);
    for (size_t i = 0; i < (size_t)m; i++) {
        memcpy(bu + i * nboth, bs + i * nr, nr * sizeof *bu);
        for (size_t j = 0; j < nk; j++) {
            bu[i * nboth + nr + j] = u[i * nk + j] * f->sv[j];
        }
    }
    memcpy(av, as, nr * (size_t)n * sizeof *av);
    for (size_t i = 0; i < nk * (size_t)n; i++) {
        av[nr * (size_t)n + i] = -vt[i];
    }
    report->residual = norm > 0 ? fl_la_product_norm(m, n, both, bu, av) / norm : 0;
    report->orthogonality =
        FL_MAX(fl_la_departure(false, m, k, u), fl_la_departure(true, k, n, vt));
    fl_free(av);
    fl_free(bu);
    fl_free(vt);
    fl_free(u);
}

/* R = 0: X = 0 */
static void factors_zero(int m, int n, int r, double *u, double *sv, double *vt)
{
    for (size_t i = 0; i < (size_t)m * (size_t)r; i++) {
        u[i] = 0;
    }
    for (size_t i = 0; i < (size_t)r * (size_t)n; i++) {
        vt[i] = 0;
    }
    for (int i = 0; i < r; i++) {
        sv[i] = 0;
    }
}

fl_err fl_svd_factors(fl_solver solver, int m, int n, int64_t nstack, const double *bs,
    const double *as, int r, double *u, double *sv, double *vt, bool certify, fl_svd_report *report)
{
    factor_svd f = {0};
    fl_svd_report made = {0};
    bool factored;
    fl_err err = FL_OK;

    FL_REQUIRE(solver != FL_SOLVE_SCALAPACK); /* that is fl_grid_svd */
    FL_TRY(fl_la_check_shapes(m, n, nstack, r));
    solver = solver == FL_SOLVE_AUTO ? fl_svd_choose(m, n, nstack) : solver;
    factored = solver == FL_SOLVE_FACTORED && nstack < FL_MAX(m, n);
    made.solver = factored ? "factored" : "dense";
    if (!fl_la_svd_fits(factored ? FL_MIN(m, nstack) : m, factored ? FL_MIN(n, nstack) : n)) {
        return fl_fail(FL_ESHAPE,
            "%s SVD of m = %d x n = %d, a sum of R = %lld products: the workspace does not fit "
            "LAPACK's 32-bit interface; use %s",
            made.solver, m, n, (long long)nstack,
            2 * nstack < FL_MIN(m, n) ? "svd.solver factored" : "smaller adapters or scalapack");
    }
    FL_TRY(fl_la_check_finite(m, n, nstack, bs, as));
    if (nstack == 0) {
        factors_zero(m, n, r, u, sv, vt);
    } else {
        err = factors_solve(&f, factored, m, n, (int)nstack, bs, as);
    }
    if (err == FL_OK && nstack > 0) {
        /* the dense core has min(m, n) values; those beyond R belong to rounding */
        const int k = (int)FL_MIN(FL_MIN(nstack, f.k), r);

        factors_vectors(&f, k, r, u, vt);
        for (int i = 0; i < r; i++) {
            sv[i] = i < k ? f.sv[i] : 0;
        }
        fl_la_signs(m, n, r, u, vt);
        made.discarded = fl_la_discarded(f.k, f.sv, r);
        if (certify) {
            factors_certify(&f, (int)nstack, bs, as, &made);
        }
    }
    if (err == FL_OK && report != NULL) {
        *report = made;
    }
    factors_free(&f);
    return err;
}
