/* factors.c - top r of the SVD of a sum of products X = bs as, bs m x R, as R x n, on one rank,
 * from the stacks.
 *
 * factored: thin LQs bs' = tb qb (R x R, R x m) and as = ta qa (R x R, R x n), so X = qb' (tb' ta)
 * qa, and the SVD of the core tb' ta = Uc S Vc' gives U = qb' Uc and V' = Vc' qa. The q are kept as
 * reflectors and meet the r rows that are wanted. A side whose length is at most R is left as it is
 * (t = the stack itself, q = I).
 *
 * X has rank at most K = min(m, n, R). Vectors from K to r - 1 are zero, and so are their singular
 * values, by every solver: what LAPACK finds there is rounding. */
#include "la_internal.h"
#include <math.h>
#include <string.h>

/* one side of the core; for the side of B: len = m, for A: len = n */
typedef struct factor_side {
    int len, k;         /* k = min(len, R) */
    const double *t;    /* R x k, or, of B when there are no reflectors, k x R (bs itself) */
    double *made;       /* owned [R][k] or NULL; t when it had to be computed */
    fl_la_reflectors q; /* q.v NULL = identity */
} factor_side;

/* an SVD kept while its certificate is made */
typedef struct factor_svd {
    factor_side b, a;
    int k;               /* singular values of the core: min(b.k, a.k) */
    double *u, *sv, *vt; /* owned [b.k][k], [k], [k][a.k]; of the core */
} factor_svd;

static fl_err factors_side(factor_side *side, bool transposed, int len, int nstack, const double *x)
{
    const size_t count = (size_t)len * (size_t)nstack;
    double *y; /* owned [R][len], then by the reflectors */

    *side = (factor_side){.len = len, .k = FL_MIN(len, nstack), .t = x};
    if (len <= nstack) {
        return FL_OK;
    }
    y = fl_alloc("svd: factor", count, sizeof *y);
    side->made = fl_alloc("svd: triangle", (size_t)nstack * (size_t)nstack, sizeof *side->made);
    side->t = side->made;
    if (transposed) {
        fl_la_transpose(len, nstack, x, y);
    } else {
        memcpy(y, x, count * sizeof *y);
    }
    return fl_la_reflectors_make(nstack, len, y, side->made, &side->q);
}

static void factors_free(factor_svd *f)
{
    fl_free(f->b.made);
    fl_la_reflectors_free(&f->b.q);
    fl_free(f->a.made);
    fl_la_reflectors_free(&f->a.q);
    fl_free(f->u);
    fl_free(f->sv);
    fl_free(f->vt);
}

/* leaves f to be freed also when it fails */
static fl_err factors_solve(
    factor_svd *f, int m, int n, int nstack, const double *bs, const double *as)
{
    double *core; /* owned [b.k][a.k] */
    fl_err err;

    FL_TRY(factors_side(&f->b, true, m, nstack, bs));
    FL_TRY(factors_side(&f->a, false, n, nstack, as));
    f->k = FL_MIN(f->b.k, f->a.k);
    core = fl_alloc("svd: core", (size_t)f->b.k * (size_t)f->a.k, sizeof *core);
    f->u = fl_alloc("svd: u", (size_t)f->b.k * (size_t)f->k, sizeof *f->u);
    f->sv = fl_alloc("svd: sv", (size_t)f->k, sizeof *f->sv);
    f->vt = fl_alloc("svd: vt", (size_t)f->k * (size_t)f->a.k, sizeof *f->vt);
    fl_dgemm(f->b.q.v ? 't' : 'n', 'n', f->b.k, f->a.k, nstack, 1, f->b.t, f->a.t, 0, core);
    err = fl_svd(f->b.k, f->a.k, core, f->u, f->sv, f->vt);
    fl_free(core);
    return err;
}

/* y (rows x side->len) = c (rows x side->k) q */
static void side_expand(const factor_side *side, int rows, const double *c, double *y)
{
    const size_t len = (size_t)side->len, k = (size_t)side->k;

    for (size_t i = 0; i < (size_t)rows; i++) {
        memcpy(y + i * len, c + i * k, k * sizeof *y);
        memset(y + i * len + k, 0, (len - k) * sizeof *y);
    }
    if (side->q.v) {
        fl_la_reflect(&side->q, false, rows, y);
    }
}

/* the first k <= f->k columns of u (m x r) and rows of vt (r x n) of X from those of the core; the
 * rest is zero */
static void factors_vectors(const factor_svd *f, int k, int r, double *u, double *vt)
{
    const size_t m = (size_t)f->b.len, n = (size_t)f->a.len, kb = (size_t)f->b.k;
    const size_t nr = (size_t)r, nk = (size_t)k;
    double *c = fl_alloc("svd: u of core", nk * kb, sizeof *c); /* owned [k][b.k] */
    double *ut = fl_alloc("svd: u'", nk * m, sizeof *ut);       /* owned [k][m] */

    for (size_t i = 0; i < kb; i++) {
        for (size_t j = 0; j < nk; j++) {
            c[j * kb + i] = f->u[i * (size_t)f->k + j];
        }
    }
    side_expand(&f->b, k, c, ut);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < nr; j++) {
            u[i * nr + j] = j < nk ? ut[j * m + i] : 0;
        }
    }
    side_expand(&f->a, k, f->vt, vt);
    fl_la_zero((nr - nk) * n, vt + nk * n);
    fl_free(ut);
    fl_free(c);
}

/* y (rows x m) = w (rows x n) (U S V')', the whole factorisation */
static void factors_apply(const factor_svd *f, int rows, const double *w, double *y)
{
    const size_t count = (size_t)rows, k = (size_t)f->k;
    const size_t n = (size_t)f->a.len, ka = (size_t)f->a.k, kb = (size_t)f->b.k;
    double *wide = fl_alloc("certificate: w", count * n, sizeof *wide);
    double *wq = fl_alloc("certificate: w q'", count * ka, sizeof *wq);
    double *wv = fl_alloc("certificate: w V", count * k, sizeof *wv);
    double *wu = fl_alloc("certificate: w V S Uc'", count * kb, sizeof *wu);

    memcpy(wide, w, count * n * sizeof *wide);
    if (f->a.q.v) {
        fl_la_reflect(&f->a.q, true, rows, wide);
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(wq + i * ka, wide + i * n, ka * sizeof *wq);
    }
    fl_dgemm('n', 't', rows, f->k, f->a.k, 1, wq, f->vt, 0, wv);
    for (size_t i = 0; i < count * k; i++) {
        wv[i] *= f->sv[i % k];
    }
    fl_dgemm('n', 't', rows, f->b.k, f->k, 1, wv, f->u, 0, wu);
    side_expand(&f->b, rows, wu, y);
    fl_free(wu);
    fl_free(wv);
    fl_free(wq);
    fl_free(wide);
}

void fl_la_probes(int n, double *w)
{
    for (size_t i = 0; i < (size_t)FL_LA_PROBES * (size_t)n; i++) {
        w[i] = fl_rng_normal(0, FL_LA_RNG_PROBE, 0, 0, i);
    }
}

void fl_la_apply(int rows, int m, int n, int nstack, const double *bs, const double *as,
    const double *x, const double *w, double *y)
{
    double *p; /* owned [rows][R] */

    if (x != NULL) {
        fl_dgemm('n', 't', rows, m, n, 1, w, x, 0, y);
        return;
    }
    p = fl_alloc("svd: w A'", (size_t)rows * (size_t)nstack, sizeof *p);
    fl_dgemm('n', 't', rows, nstack, n, 1, w, as, 0, p);
    fl_dgemm('n', 't', rows, m, nstack, 1, p, bs, 0, y);
    fl_free(p);
}

double fl_la_orthogonality(int m, int n, int r, int k, const double *u, const double *vt)
{
    return FL_MAX(
        fl_la_departure(false, k, m, u, FL_MAX(1, r)), fl_la_departure(true, k, n, vt, n));
}

/* E = X - U S V' of the whole factorisation: ||E||_F^2 is the mean of ||E w||^2 over Gaussian w. Of
 * 8 vectors the mean is below a hundredth of the truth with a probability under 1e-6, whatever E.
 */
static double factors_residual(const factor_svd *f, int nstack, const double *bs, const double *as)
{
    const int m = f->b.len, n = f->a.len;
    const size_t count = (size_t)FL_LA_PROBES * (size_t)m;
    const double norm = fl_la_norm((size_t)f->k, f->sv);
    double *w = fl_alloc("certificate: probes", (size_t)FL_LA_PROBES * (size_t)n, sizeof *w);
    double *y = fl_alloc("certificate: X w", count, sizeof *y);
    double *z = fl_alloc("certificate: U S V' w", count, sizeof *z), error;

    fl_la_probes(n, w);
    fl_la_apply(FL_LA_PROBES, m, n, nstack, bs, as, NULL, w, y);
    factors_apply(f, FL_LA_PROBES, w, z);
    for (size_t i = 0; i < count; i++) {
        y[i] -= z[i];
    }
    error = fl_la_norm(count, y) / sqrt(FL_LA_PROBES);
    fl_free(z);
    fl_free(y);
    fl_free(w);
    return norm > 0 ? error / norm : 0;
}

/* R = 0: X = 0 */
static void factors_nothing(const fl_la_want *want, const fl_la_answer *out)
{
    fl_la_zero((size_t)want->m * (size_t)want->r, out->u);
    fl_la_zero((size_t)want->r, out->sv);
    fl_la_zero((size_t)want->r * (size_t)want->n, out->vt);
}

static fl_err factors_exact(
    const fl_la_want *want, const double *bs, const double *as, const fl_la_answer *out)
{
    const int nstack = (int)want->nstack, r = want->r;
    factor_svd f = {0};
    fl_err err = factors_solve(&f, want->m, want->n, nstack, bs, as);

    if (err == FL_OK) {
        const int k = FL_MIN(f.k, r);

        *out->report = (fl_svd_report){.solver = "factored"};
        factors_vectors(&f, k, r, out->u, out->vt);
        for (int i = 0; i < r; i++) {
            out->sv[i] = i < k ? f.sv[i] : 0;
        }
        fl_la_signs(want->m, want->n, r, out->u, out->vt);
        out->report->discarded = fl_la_discarded(f.k, f.sv, r);
        if (want->certify) {
            out->report->residual = factors_residual(&f, nstack, bs, as);
            out->report->orthogonality =
                fl_la_orthogonality(want->m, want->n, r, k, out->u, out->vt);
        }
    }
    factors_free(&f);
    return err;
}

fl_err fl_la_svd_stack(
    const fl_la_want *want, const double *bs, const double *as, const fl_la_answer *out)
{
    FL_TRY(fl_la_check_finite(want->m, want->n, want->nstack, bs, as));
    if (want->nstack == 0) {
        *out->report = (fl_svd_report){.solver = fl_solver_name[want->solver]};
        factors_nothing(want, out);
        return FL_OK;
    }
    if (want->solver == FL_SOLVE_RANDOMIZED && fl_la_randomized(want, bs, as, NULL, out)) {
        return FL_OK;
    }
    return factors_exact(want, bs, as, out);
}
