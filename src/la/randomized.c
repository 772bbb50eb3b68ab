/* randomized.c - top r of the SVD of X by a randomized block Krylov sketch, with a certificate.
 * Sources: Musco and Musco 2015 (block Krylov: the basis Omega, M Omega, M^2 Omega, .. of all
 * powers instead of the last one); Halko, Martinsson and Tropp 2011 (range finder); Ky Fan's
 * inequality for the certificate.
 *
 * M = X X' in few coordinates (operator.c). The sketch starts from r + 8 Gaussian rows of the
 * counter RNG with a fixed seed and grows by one block M (last block), orthonormal to all before.
 * Rayleigh and Ritz give theta_1 >= theta_2 >= .. with vectors W, and C_i = W_i M - theta_i W_i.
 *
 * Certificate. With mu = theta_r + s and Z = sum_{i<=l} (max(theta_i - mu, 0) + s) W_i' W_i,
 * Cholesky of mu I + Z - M succeeds only if M <= mu I + Z; then, by Ky Fan, the r largest
 * eigenvalues of M sum to at most r mu + trace Z = sum_{i<=r} theta_i + at most 2 s l. Nothing is
 * assumed about the spectrum, the sketch or the gap behind r (equal singular values at the cut are
 * covered by l > r). Rounding counts as 8 eps ||Gb||_F ||Ga||_F for each of r values, the size of
 * what the Gram matrices lose. s is what the residuals ask for, sum_{i<=r} ||C_i||^2 / (mu -
 * theta_{l+1}), doubled.
 *
 * Then one exact step with X itself: V' = the rows W' X orthonormalised, X V by two products, its
 * thin SVD. U S V' is the best approximation of X on span V, so ||X - U S V'||_F^2 = ||X||_F^2 -
 * sum sv^2, and the excess over the best rank r error is at most the certified sum less sum sv^2.
 */
#include "la_internal.h"
#include <math.h>
#include <string.h>

typedef struct sketch {
    const fl_la_operator *op; /* borrowed */
    int r, block, room, have; /* pairs wanted; rows of a block, of the basis at most, so far */
    double *basis, *image;    /* owned [room][side]: orthonormal rows; times M */
    double *theta, *z;        /* owned [have], [have][have]: Ritz values, vectors in columns */
    double bound;             /* certified: at least the sum of the r largest eigenvalues */
} sketch;

static sketch sketch_make(const fl_la_operator *op, int r)
{
    /* half of the dimensions: beyond it the exact solver is the faster one */
    sketch k = {.op = op, .r = r, .block = r + 8, .room = op->side / 2};
    const size_t count = (size_t)FL_MAX(k.room, 1) * (size_t)op->side;

    k.basis = fl_alloc("sketch: basis", count, sizeof *k.basis);
    k.image = fl_alloc("sketch: image", count, sizeof *k.image);
    return k;
}

static void sketch_free(sketch *k)
{
    fl_free(k->basis);
    fl_free(k->image);
    fl_free(k->theta);
    fl_free(k->z);
}

/* y (block x side): orthonormal, and orthogonal to the basis. Three times: once does it for rows in
 * general position, each further time mends what cancellation left of rows nearly in the span. */
static void sketch_orthogonalise(const sketch *k, double *y)
{
    const int side = k->op->side;
    double *c = fl_alloc("sketch: coefficients", (size_t)k->block * (size_t)k->have, sizeof *c);
    double *t = fl_alloc("sketch: triangle", (size_t)k->block * (size_t)k->block, sizeof *t);

    for (int pass = 0; pass < 3; pass++) {
        fl_err err;

        if (k->have > 0) {
            fl_dgemm('n', 't', k->block, k->have, side, 1, y, k->basis, 0, c);
            fl_dgemm('n', 'n', k->block, side, k->have, -1, c, k->basis, 1, y);
        }
        err = fl_la_lq(k->block, side, y, t, true);
        FL_REQUIRE(err == FL_OK);
    }
    fl_free(t);
    fl_free(c);
}

/* one more block at the end of the basis, and its image */
static void sketch_grow(sketch *k)
{
    const int side = k->op->side;
    const size_t count = (size_t)k->block * (size_t)side;
    double *y = k->basis + (size_t)k->have * (size_t)side;

    if (k->have == 0) {
        for (size_t i = 0; i < count; i++) {
            y[i] = fl_rng_normal(0, FL_LA_RNG_SKETCH, 0, 0, i);
        }
    } else {
        memcpy(y, k->image + (size_t)(k->have - k->block) * (size_t)side, count * sizeof *y);
    }
    sketch_orthogonalise(k, y);
    fl_dgemm('n', 'n', k->block, side, side, 1, y, k->op->a, 0,
        k->image + (size_t)k->have * (size_t)side);
    k->have += k->block;
}

/* Rayleigh and Ritz on the whole basis */
static bool sketch_ritz(sketch *k)
{
    const size_t count = (size_t)k->have * (size_t)k->have;
    double *h = fl_alloc("sketch: projection", count, sizeof *h); /* owned [have][have] */
    fl_err err;

    fl_free(k->theta);
    fl_free(k->z);
    k->theta = fl_alloc("sketch: ritz values", (size_t)k->have, sizeof *k->theta);
    k->z = fl_alloc("sketch: ritz vectors", count, sizeof *k->z);
    fl_dgemm('n', 't', k->have, k->have, k->op->side, 1, k->image, k->basis, 0, h);
    err = fl_eigh(k->have, h, k->theta, k->z);
    fl_free(h);
    return err == FL_OK;
}

/* w (l x side) = the first l Ritz vectors of rows = basis, or their images of rows = image */
static double *sketch_rows(const sketch *k, int l, const double *rows)
{
    double *w = fl_alloc("sketch: ritz rows", (size_t)l * (size_t)k->op->side, sizeof *w);

    fl_la_dgemm(
        't', 'n', l, k->op->side, k->have, 1, k->z, k->have, rows, k->op->side, 0, w, k->op->side);
    return w;
}

/* How many vectors l shall carry Z, and with what s? Schur's complement of mu I + Z - M on span W
 * is positive if sum_i ||C_i||^2 / (what stands on the diagonal of i) is below mu - theta_{l+1}.
 * Only an estimate: theta_{l+1} is a lower bound of what lies beyond. Returns l, or 0 if there is
 * no hope. */
static int sketch_plan(const sketch *k, int most, const double *c2, double s_most, double *s)
{
    const double mu = k->theta[k->r - 1];
    double top = 0, best = INFINITY;
    int l_best = 0;

    for (int i = 0; i < k->r; i++) {
        top += c2[i];
    }
    for (int l = k->r; l < most; l++) {
        const double gap = mu + s_most - k->theta[l];
        const double need = FL_MAX(2 * top / gap, k->op->error);
        double weight = top / need;

        for (int i = k->r; i < l; i++) {
            weight += c2[i] / (mu - k->theta[i] + 2 * need);
        }
        if (gap > 0 && need <= s_most && 1.5 * weight < gap && need < best) {
            best = need;
            l_best = l;
        }
    }
    *s = best;
    return l_best;
}

/* is M <= mu I + Z? */
static bool sketch_dominates(const sketch *k, int l, const double *w, double mu, double s)
{
    const int side = k->op->side;
    const size_t count = (size_t)side * (size_t)side;
    double *a = fl_alloc("sketch: mu I + Z - M", count, sizeof *a);
    double *zw = fl_alloc("sketch: Z", (size_t)l * (size_t)side, sizeof *zw);
    bool positive;

    for (size_t i = 0; i < count; i++) {
        a[i] = -k->op->a[i];
    }
    for (size_t i = 0; i < (size_t)l * (size_t)side; i++) {
        zw[i] = (FL_MAX(k->theta[i / (size_t)side] - mu, 0) + s) * w[i];
    }
    fl_dgemm('t', 'n', side, side, l, 1, w, zw, 1, a);
    for (int i = 0; i < side; i++) {
        a[(size_t)i * (size_t)side + (size_t)i] += mu;
    }
    positive = fl_la_cholesky(side, a);
    fl_free(zw);
    fl_free(a);
    return positive;
}

/* tries to certify within s_most; sets k->bound */
static bool sketch_certify(sketch *k, double s_most)
{
    const int side = k->op->side, most = FL_MIN(k->have - 1, k->r + k->block);
    double *w = sketch_rows(k, most, k->basis), *c = sketch_rows(k, most, k->image);
    double *c2 = fl_alloc("sketch: residuals", (size_t)most, sizeof *c2), s = 0;
    bool certified = false;
    int l;

    for (int i = 0; i < most; i++) {
        for (int j = 0; j < side; j++) {
            const size_t at = (size_t)i * (size_t)side + (size_t)j;
            const double x = c[at] - k->theta[i] * w[at];

            c2[i] += x * x;
        }
    }
    l = sketch_plan(k, most, c2, s_most, &s);
    if (l > 0) {
        const double mu = k->theta[k->r - 1] + s;

        certified = sketch_dominates(k, l, w, mu, s);
        k->bound = k->op->lost;
        for (int i = 0; i < k->r; i++) { /* the r largest eigenvalues of mu I + Z, and rounding */
            k->bound += FL_MAX(k->theta[i], mu) + s + k->op->error;
        }
    }
    fl_free(c2);
    fl_free(c);
    fl_free(w);
    return certified;
}

/* grows the sketch until it is certified within `allowed` of the sum of the r largest eigenvalues
 */
static bool sketch_run(sketch *k, double allowed)
{
    /* the bound exceeds the sum of r Ritz values by at most r (2 s + error); twice that is allowed
     */
    const double s_most = (allowed / k->r - k->op->error) / 4;
    int next = 2;

    if (s_most < 2 * k->op->error) {
        return false;
    }
    for (int blocks = 1; k->have + k->block <= k->room; blocks++) {
        sketch_grow(k);
        if (blocks == next || (blocks > 1 && k->have + k->block > k->room)) {
            next += FL_MAX(1, next / 3); /* 2 3 4 5 6 8 10 13 ..: its cost grows with the basis */
            if (!sketch_ritz(k)) {
                return false;
            }
            if (sketch_certify(k, s_most)) {
                return true;
            }
        }
    }
    return false;
}

/* rows v (l x n), orthonormal, that span X' of the first l Ritz vectors */
static double *randomized_rows(
    const sketch *k, int l, int m, int n, int nstack, const double *as, const double *x)
{
    double *w = sketch_rows(k, l, k->basis), *v, *t;
    fl_err err;

    if (x != NULL && n < m) {
        v = w; /* the coordinates are R^n */
    } else {
        v = fl_alloc("sketch: v", (size_t)l * (size_t)n, sizeof *v);
        if (x != NULL) {
            fl_dgemm('n', 'n', l, n, m, 1, w, x, 0, v);
        } else {
            double *c = fl_alloc("sketch: c", (size_t)l * (size_t)nstack, sizeof *c);

            fl_dgemm('n', 'n', l, nstack, k->op->side, 1, w, k->op->up, 0, c);
            fl_dgemm('n', 'n', l, n, nstack, 1, c, as, 0, v);
            fl_free(c);
        }
        fl_free(w);
    }
    t = fl_alloc("sketch: triangle", (size_t)l * (size_t)l, sizeof *t);
    err = fl_la_lq(l, n, v, t, true);
    FL_REQUIRE(err == FL_OK);
    fl_free(t);
    return v;
}

/* the exact step: the SVD of X on span v */
static bool randomized_step(const fl_la_want *want, int l, const double *v, const double *bs,
    const double *as, const double *x, const fl_la_answer *out)
{
    const int m = want->m, n = want->n, r = want->r;
    double *y = fl_alloc("sketch: (X V)'", (size_t)l * (size_t)m, sizeof *y);
    double *u = fl_alloc("sketch: u", (size_t)l * (size_t)m, sizeof *u);
    double *z = fl_alloc("sketch: z", (size_t)l * (size_t)l, sizeof *z);
    double *sv = fl_alloc("sketch: sv", (size_t)l, sizeof *sv);
    bool good;

    fl_la_apply(l, m, n, (int)want->nstack, bs, as, x, v, y);
    good = fl_svd(l, m, y, z, sv, u) == FL_OK; /* (X V')' = z sv u': u comes by rows */
    for (int j = 0; good && j < r; j++) {
        out->sv[j] = sv[j];
        for (int i = 0; i < m; i++) {
            out->u[(size_t)i * (size_t)r + (size_t)j] = u[(size_t)j * (size_t)m + (size_t)i];
        }
    }
    if (good) {
        fl_la_dgemm('t', 'n', r, n, l, 1, z, l, v, n, 0, out->vt, n);
        fl_la_signs(m, n, r, out->u, out->vt);
    }
    fl_free(sv);
    fl_free(z);
    fl_free(u);
    fl_free(y);
    return good;
}

/* what is known of the answer, from the certified bound */
static bool randomized_report(const fl_la_want *want, const sketch *k, const fl_la_answer *out)
{
    const double norm2 = k->op->norm2;
    double kept = 0, excess;

    for (int i = want->r - 1; i >= 0; i--) {
        kept += out->sv[i] * out->sv[i];
    }
    excess = FL_MAX(k->bound - kept, want->r * k->op->error);
    *out->report = (fl_svd_report){.solver = "randomized",
        .residual = sqrt(excess / norm2),
        .orthogonality = fl_la_orthogonality(want->m, want->n, want->r, want->r, out->u, out->vt),
        .discarded = FL_MAX(0, (norm2 - kept) / norm2)};
    return out->report->residual <= want->tol;
}

bool fl_la_randomized(const fl_la_want *want, const double *bs, const double *as, const double *x,
    const fl_la_answer *out)
{
    enum { MOST = 30000 }; /* side^2 beyond 32 bit is nothing that a sketch should be made of */
    const int side = (int)FL_MIN(want->nstack, FL_MIN(want->m, want->n)), r = want->r;
    fl_la_operator op;
    sketch k;
    bool certified = false;

    if (r == 0 || side > MOST || side < 4 * (r + 8) ||
        want->tol * want->tol < FL_LA_SKETCH_LEAST * r) {
        return false;
    }
    op = fl_la_operator_make(want->m, want->n, (int)want->nstack, bs, as, x);
    if (op.side > 0) {
        k = sketch_make(&op, r);
        if (sketch_run(&k, want->tol * want->tol * op.norm2)) {
            const int l = FL_MIN(k.have, r + 8);
            double *v = randomized_rows(&k, l, want->m, want->n, (int)want->nstack, as, x);

            certified =
                randomized_step(want, l, v, bs, as, x, out) && randomized_report(want, &k, out);
            fl_free(v);
        }
        sketch_free(&k);
    }
    fl_la_operator_free(&op);
    return certified;
}
