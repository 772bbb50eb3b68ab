/* operator.c - X X' of a sum of products X = bs as (bs m x R, as R x n) in few coordinates, for the
 * certificate of the randomized solver.
 *
 * Gram matrices Gb = bs' bs and Ga = as as' (R x R), balanced. Pivoted Cholesky P' Gb P = L L' (R x
 * R, columns beyond the rank of bs zero) stands for bs P = Q L' + E, Q m x R, never formed. Then X
 * X' = Q M Q' with M = L' P' Ga P L (R x R): X X' has the eigenvalues of M and zeros. A row c of
 * coordinates means Q c' in R^m, and c L' P' as (n numbers) is its image under X'. E, what the
 * pivoting left out as rounding, is orthogonal to Q: X' X = (Q L' P' as)' (..) + (E P' as)' (..),
 * so sums of eigenvalues are short of the truth by at most ||E P' as||_F^2 = ||X||_F^2 - trace M.
 *
 * Of a dense X the coordinates are R^m or R^n, whichever is smaller: M = X X' or X' X. */
#include "la_internal.h"
#include <cblas.h>
#include <float.h>
#include <math.h>
#include <string.h>

void dpstrf_(const char *uplo, const int *n, double *a, const int *lda, int *piv, int *rank,
    const double *tol, double *work, int *info, size_t);

/* the lower triangle over the upper one */
static void operator_mirror(int n, double *a)
{
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t j = 0; j < i; j++) {
            a[j * (size_t)n + i] = a[i * (size_t)n + j];
        }
    }
}

/* x' x for a columns' Gram (x len x n), or x x' for a rows' Gram (x n x len) */
static double *operator_gram(bool columns, int n, int len, const double *x)
{
    double *g = fl_alloc("operator: gram", (size_t)n * (size_t)n, sizeof *g);

    cblas_dsyrk(CblasRowMajor, CblasLower, columns ? CblasTrans : CblasNoTrans, n, len, 1, x,
        columns ? n : len, 0, g, n);
    operator_mirror(n, g);
    return g;
}

/* g (n x n) becomes L with P' g P = L L', lower, row-major; perm[i] = the row that came to place i.
 * LAPACK's upper triangle is the row-major lower one. */
static void operator_pivot(int n, double *g, int *perm)
{
    double *work = fl_alloc("operator: work", 2 * (size_t)n, sizeof *work), most = 0, tol;
    int rank = 0, info = 0;

    for (int i = 0; i < n; i++) {
        most = FL_MAX(most, g[(size_t)i * (size_t)n + (size_t)i]);
    }
    tol = DBL_EPSILON * most; /* below it a pivot is rounding */
    if (most > 0) {
        dpstrf_("U", &n, g, &n, perm, &rank, &tol, work, &info, 1);
        FL_REQUIRE(info >= 0);
    }
    for (int i = 0; i < n; i++) {
        perm[i] = most > 0 ? perm[i] - 1 : i;
        for (int j = FL_MIN(i + 1, rank); j < n; j++) {
            g[(size_t)i * (size_t)n + (size_t)j] = 0;
        }
    }
    fl_free(work);
}

/* M = L' (P' Ga P) L and up = L' P' / d */
static void operator_core(
    fl_la_operator *op, int n, const double *l, const int *perm, const double *d, const double *ga)
{
    const size_t nr = (size_t)n;
    double *work = fl_alloc("operator: L' P' Ga", nr * nr, sizeof *work); /* owned [R][R] */

    op->up = fl_alloc("operator: up", nr * nr, sizeof *op->up);
    op->a = fl_alloc("operator: matrix", nr * nr, sizeof *op->a);
    for (size_t i = 0; i < nr; i++) {
        for (size_t j = 0; j <= i; j++) {
            op->up[j * nr + (size_t)perm[i]] = l[i * nr + j];
        }
    }
    fl_dgemm('n', 'n', n, n, n, 1, op->up, ga, 0, work);
    fl_dgemm('n', 't', n, n, n, 1, work, op->up, 0, op->a);
    operator_mirror(n, op->a); /* exactly symmetric */
    for (size_t i = 0; i < nr * nr; i++) {
        op->up[i] = d[i % nr] > 0 ? op->up[i] / d[i % nr] : 0;
    }
    fl_free(work);
}

/* Columns of bs scaled by d and rows of as by 1 / d, so that both Gram matrices have the same
 * diagonal: else a small column could be taken for rounding although its row is large. Products
 * that are zero are taken out, d = 0. False if squares underflow. */
static bool operator_balance(int n, double *gb, double *ga, double *d)
{
    const size_t side = (size_t)n;
    const double least = 1e-280; /* of a diagonal whose digits are all there */

    for (size_t i = 0; i < side; i++) {
        const double b = gb[i * side + i], a = ga[i * side + i];

        if ((b > 0 && b < least) || (a > 0 && a < least)) {
            return false;
        }
        d[i] = b > 0 && a > 0 ? sqrt(sqrt(a) / sqrt(b)) : 0;
    }
    for (size_t i = 0; i < side; i++) {
        for (size_t j = 0; j < side; j++) {
            const double scale = d[i] * d[j];

            gb[i * side + j] *= scale;
            ga[i * side + j] = scale > 0 ? ga[i * side + j] / scale : 0;
        }
    }
    return true;
}

/* a zero on the diagonal is a zero column or row, not one whose squares underflow */
static bool operator_zeros(int m, int n, int nstack, const double *bs, const double *as,
    const double *gb, const double *ga)
{
    const size_t nr = (size_t)nstack;

    for (size_t i = 0; i < nr; i++) {
        for (size_t j = 0; gb[i * nr + i] == 0 && j < (size_t)m; j++) {
            if (bs[j * nr + i] != 0) {
                return false;
            }
        }
        for (size_t j = 0; ga[i * nr + i] == 0 && j < (size_t)n; j++) {
            if (as[i * (size_t)n + j] != 0) {
                return false;
            }
        }
    }
    return true;
}

static double operator_trace(int n, const double *a)
{
    double sum = 0;

    for (int i = 0; i < n; i++) {
        sum += a[(size_t)i * (size_t)n + (size_t)i];
    }
    return sum;
}

/* trace of a b, both symmetric; row by row, which rounds less than one long sum */
static double operator_product_trace(int n, const double *a, const double *b)
{
    double all = 0;

    for (size_t i = 0; i < (size_t)n; i++) {
        double sum = 0;

        for (size_t j = 0; j < (size_t)n; j++) {
            sum += a[i * (size_t)n + j] * b[i * (size_t)n + j];
        }
        all += sum;
    }
    return all;
}

static void operator_stack(
    fl_la_operator *op, int m, int n, int nstack, const double *bs, const double *as)
{
    double *gb = operator_gram(true, nstack, m, bs), *ga = operator_gram(false, nstack, n, as);
    const size_t count = (size_t)nstack * (size_t)nstack;
    int *perm = fl_alloc("operator: pivots", (size_t)nstack, sizeof *perm);
    double *d = fl_alloc("operator: scales", (size_t)nstack, sizeof *d);

    if (operator_zeros(m, n, nstack, bs, as, gb, ga) && operator_balance(nstack, gb, ga, d)) {
        op->norm2 = operator_product_trace(nstack, gb, ga);
        op->error = fl_la_norm(count, gb) * fl_la_norm(count, ga);
        op->side = nstack;
        operator_pivot(nstack, gb, perm);
        operator_core(op, nstack, gb, perm, d, ga);
        op->lost = fabs(op->norm2 - operator_trace(op->side, op->a));
    }
    fl_free(d);
    fl_free(perm);
    fl_free(ga);
    fl_free(gb);
}

fl_la_operator fl_la_operator_make(
    int m, int n, int nstack, const double *bs, const double *as, const double *x)
{
    fl_la_operator op = {0};

    if (x != NULL) {
        op.side = FL_MIN(m, n);
        op.a = operator_gram(n < m, op.side, FL_MAX(m, n), x);
        op.norm2 = operator_trace(op.side, op.a);
    } else {
        operator_stack(&op, m, n, nstack, bs, as);
    }
    op.error = 4 * DBL_EPSILON * FL_MAX(op.error, op.norm2);
    if (!(op.norm2 > 1e-280 && isfinite(op.norm2 + op.error + op.lost))) {
        op.side = 0; /* X = 0, or squares that underflow or overflow */
    }
    return op;
}

void fl_la_operator_free(fl_la_operator *op)
{
    fl_free(op->up);
    fl_free(op->a);
    op->up = op->a = NULL;
}
