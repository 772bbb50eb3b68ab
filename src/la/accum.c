/* accum.c - the sum of products X = sum_k w_k b_k a_k added up as the products come, and the SVD of
 * the dense X. Pairs (a column of b, a row of a) are gathered in blocks of 256, whichever call
 * brought them, and each full block is one DGEMM: the bits of X depend on the order of the pairs
 * alone. Where the solver works on the stacks the block is as wide as the stack and X is never
 * formed. */
#include "la_internal.h"
#include <math.h>
#include <string.h>

enum { ACCUM_PAIRS = 256 }; /* part of the result: another width gives other bits */

struct fl_accum {
    fl_la_want want;
    bool summed;
    int width, filled; /* pairs that the block can hold, and does hold */
    int64_t have;      /* pairs so far */
    int64_t bad;       /* the first that holds NaN or Inf, or -1 */
    double *bs, *as;   /* owned [m][width], [width][n]: the block, or the stacks */
    double *x;         /* owned [m][n] if summed */
};

fl_err fl_accum_create(
    fl_solver solver, double tol, int m, int n, int64_t nstack, int r, fl_accum **acc)
{
    fl_la_want want;
    fl_accum *a;
    bool summed;

    *acc = NULL;
    FL_TRY(fl_la_want_make(solver, tol, m, n, nstack, r, false, &want, &summed));
    a = fl_alloc("accumulator", 1, sizeof *a);
    *a = (fl_accum){.want = want,
        .summed = summed,
        .width = (int)(summed ? FL_MIN(nstack, ACCUM_PAIRS) : nstack),
        .bad = -1};
    a->bs = fl_alloc("accumulator: B", (size_t)m * (size_t)a->width, sizeof *a->bs);
    a->as = fl_alloc("accumulator: A", (size_t)a->width * (size_t)n, sizeof *a->as);
    if (summed) {
        a->x = fl_alloc("accumulator: sum", (size_t)m * (size_t)n, sizeof *a->x);
    }
    *acc = a;
    return FL_OK;
}

void fl_accum_destroy(fl_accum **acc)
{
    fl_accum *a = *acc;

    if (a != NULL) {
        fl_free(a->x);
        fl_free(a->as);
        fl_free(a->bs);
        fl_free(a);
    }
    *acc = NULL;
}

double fl_accum_bytes(fl_solver solver, double tol, int m, int n, int64_t nstack, int r)
{
    fl_la_want want;
    bool summed;

    if (fl_la_want_make(solver, tol, m, n, nstack, r, false, &want, &summed) != FL_OK) {
        return 0; /* refused; the sentence stays */
    }
    return sizeof(double) *
           (((double)m + n) * (double)(summed ? FL_MIN(nstack, ACCUM_PAIRS) : nstack) +
               (summed ? (double)m * n : 0));
}

/* X += block; the last block may be narrower */
static void accum_flush(fl_accum *a)
{
    const fl_la_want *w = &a->want;

    if (!a->summed || a->filled == 0) {
        return;
    }
    fl_la_dgemm('n', 'n', w->m, w->n, a->filled, 1, a->bs, a->width, a->as, w->n, 1, a->x, w->n);
    a->filled = 0;
}

/* pairs `at` .. `at + count - 1` of the caller's r, as many as the block still holds */
static void accum_take(fl_accum *a, int r, int at, int count, const double *bs, const double *as)
{
    const size_t width = (size_t)a->width, filled = (size_t)a->filled, n = (size_t)a->want.n;

    for (size_t i = 0; i < (size_t)a->want.m; i++) {
        memcpy(a->bs + i * width + filled, bs + i * (size_t)r + (size_t)at,
            (size_t)count * sizeof *bs);
    }
    memcpy(a->as + filled * n, as + (size_t)at * n, (size_t)count * n * sizeof *as);
    a->filled += count;
}

void fl_accum_add_double(fl_accum *a, int r, const double *bs, const double *as)
{
    FL_REQUIRE(r >= 0 && a->have + r <= a->want.nstack);
    if (a->bad < 0 && !(fl_finite((size_t)a->want.m * (size_t)r, bs) &&
                          fl_finite((size_t)r * (size_t)a->want.n, as))) {
        a->bad = a->have;
    }
    a->have += r;
    for (int at = 0; at < r;) {
        const int count = FL_MIN(r - at, a->width - a->filled);

        accum_take(a, r, at, count, bs, as);
        at += count;
        if (a->filled == a->width) {
            accum_flush(a);
        }
    }
}

void fl_accum_add(fl_accum *a, int r, double w, const fl_real *b, const fl_real *as)
{
    const size_t nb = (size_t)a->want.m * (size_t)r, na = (size_t)r * (size_t)a->want.n;
    double *wide = fl_alloc("accumulator: one product", nb + na, sizeof *wide);

    for (size_t i = 0; i < nb; i++) {
        wide[i] = b[i];
    }
    for (size_t i = 0; i < na; i++) {
        wide[nb + i] = w * as[i];
    }
    fl_accum_add_double(a, r, wide, wide + nb);
    fl_free(wide);
}

fl_err fl_accum_svd(
    fl_accum *a, double *u, double *sv, double *vt, bool certify, fl_svd_report *report)
{
    fl_svd_report made = {0};
    const fl_la_answer out = {u, sv, vt, &made};

    FL_REQUIRE(a->have == a->want.nstack);
    if (a->bad >= 0) {
        return fl_fail(FL_ENUM,
            "SVD of m = %d x n = %d, a sum of R = %lld products: the one that starts at pair %lld "
            "holds NaN or Inf",
            a->want.m, a->want.n, (long long)a->want.nstack, (long long)a->bad);
    }
    accum_flush(a);
    a->want.certify = certify;
    FL_TRY(a->summed ? fl_la_svd_sum(&a->want, a->x, &out)
                     : fl_la_svd_stack(&a->want, a->bs, a->as, &out));
    if (report != NULL) {
        *report = made;
    }
    return FL_OK;
}

/* ---- the dense X ---- */

/* as for the stacks, see factors.c: 8 Gaussian vectors */
static double sum_residual(
    int m, int n, int k, const double *x, const double *u, const double *sv, const double *vt)
{
    const size_t count = (size_t)FL_LA_PROBES * (size_t)m;
    const double norm = fl_la_norm((size_t)k, sv);
    double *w = fl_alloc("certificate: probes", (size_t)FL_LA_PROBES * (size_t)n, sizeof *w);
    double *wv = fl_alloc("certificate: w V", (size_t)FL_LA_PROBES * (size_t)k, sizeof *wv);
    double *y = fl_alloc("certificate: X w", count, sizeof *y), error;

    fl_la_probes(n, w);
    fl_dgemm('n', 't', FL_LA_PROBES, m, n, 1, w, x, 0, y);
    fl_dgemm('n', 't', FL_LA_PROBES, k, n, 1, w, vt, 0, wv);
    for (size_t i = 0; i < (size_t)FL_LA_PROBES * (size_t)k; i++) {
        wv[i] *= sv[i % (size_t)k];
    }
    fl_dgemm('n', 't', FL_LA_PROBES, m, k, -1, wv, u, 1, y);
    error = fl_la_norm(count, y) / sqrt(FL_LA_PROBES);
    fl_free(y);
    fl_free(wv);
    fl_free(w);
    return norm > 0 ? error / norm : 0;
}

static fl_err sum_exact(const fl_la_want *want, const double *x, const fl_la_answer *out)
{
    const int m = want->m, n = want->n, r = want->r, all = FL_MIN(m, n);
    /* those beyond R belong to rounding */
    const int k = (int)FL_MIN(FL_MIN(want->nstack, all), r);
    const size_t nr = (size_t)r, nk = (size_t)k, cols = (size_t)n;
    double *u = fl_alloc("svd: u", (size_t)m * (size_t)all, sizeof *u);
    double *sv = fl_alloc("svd: sv", (size_t)all, sizeof *sv);
    double *vt = fl_alloc("svd: vt", (size_t)all * cols, sizeof *vt);
    const fl_err err = fl_svd(m, n, x, u, sv, vt);

    if (err == FL_OK) {
        *out->report = (fl_svd_report){.solver = "dense"};
        for (size_t i = 0; i < (size_t)m; i++) {
            for (size_t j = 0; j < nr; j++) {
                out->u[i * nr + j] = j < nk ? u[i * (size_t)all + j] : 0;
            }
        }
        if (nk > 0) {
            memcpy(out->vt, vt, nk * cols * sizeof *vt);
        }
        fl_la_zero((nr - nk) * cols, out->vt + nk * cols);
        for (int i = 0; i < r; i++) {
            out->sv[i] = i < k ? sv[i] : 0;
        }
        out->report->discarded = fl_la_discarded(all, sv, r);
        if (want->certify) {
            out->report->residual = sum_residual(m, n, all, x, u, sv, vt);
            out->report->orthogonality = fl_la_orthogonality(m, n, r, k, out->u, out->vt);
        }
    }
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    return err;
}

fl_err fl_la_svd_sum(const fl_la_want *want, const double *x, const fl_la_answer *out)
{
    if (!fl_finite((size_t)want->m * (size_t)want->n, x)) {
        return fl_fail(FL_ENUM,
            "SVD of m = %d x n = %d, a sum of R = %lld products: the sum overflowed to Inf or NaN",
            want->m, want->n, (long long)want->nstack);
    }
    if (want->solver == FL_SOLVE_RANDOMIZED && fl_la_randomized(want, NULL, NULL, x, out)) {
        return FL_OK;
    }
    return sum_exact(want, x, out);
}

/* ---- all products at once ---- */

fl_err fl_svd_factors_tol(fl_solver solver, double tol, int m, int n, int64_t nstack,
    const double *bs, const double *as, int r, double *u, double *sv, double *vt, bool certify,
    fl_svd_report *report)
{
    fl_svd_report made = {0};
    const fl_la_answer out = {u, sv, vt, &made};
    fl_la_want want;
    fl_accum *acc = NULL;
    bool summed;
    fl_err err;

    FL_TRY(fl_la_want_make(solver, tol, m, n, nstack, r, certify, &want, &summed));
    if (!summed) {
        err = fl_la_svd_stack(&want, bs, as, &out);
    } else {
        FL_TRY(fl_la_check_finite(m, n, nstack, bs, as)); /* its sentence says which stack */
        FL_TRY(fl_accum_create(want.solver, tol, m, n, nstack, r, &acc));
        fl_accum_add_double(acc, (int)nstack, bs, as);
        err = fl_accum_svd(acc, u, sv, vt, certify, &made);
        fl_accum_destroy(&acc);
    }
    if (err == FL_OK && report != NULL) {
        *report = made;
    }
    return err;
}

fl_err fl_svd_factors(fl_solver solver, int m, int n, int64_t nstack, const double *bs,
    const double *as, int r, double *u, double *sv, double *vt, bool certify, fl_svd_report *report)
{
    return fl_svd_factors_tol(
        solver, FL_SVD_TOL, m, n, nstack, bs, as, r, u, sv, vt, certify, report);
}
