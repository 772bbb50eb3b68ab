/* product.c - the sum of products X = bs as, bs m x R, as R x n: checks and the Frobenius norm.
 * Callers take norms of differences, [B1 B2] [A1; -A2], where almost everything cancels. A Gram
 * matrix squares the condition: relative differences below 1e-8 would drown in rounding. With thin
 * LQs bs' = tb qb and as = ta qa,
 * ||bs as|| = ||tb' ta||, whose error is a few eps ||bs|| ||as||, as that of the dense product is.
 */
#include "la_internal.h"
#include <limits.h>
#include <math.h>
#include <string.h>

fl_err fl_la_check_shapes(int m, int n, int64_t nstack, int r)
{
    /* R + min(m, n) is the stack of the certificate */
    if (m >= 1 && n >= 1 && nstack >= 0 && nstack <= INT_MAX - FL_MIN(m, n) && r >= 0 &&
        r <= FL_MIN(m, n)) {
        return FL_OK;
    }
    return fl_fail(FL_ESHAPE,
        "SVD of m = %d x n = %d, a sum of R = %lld products, to rank r = %d: needs m, n >= 1, "
        "0 <= r <= min(m, n) and 0 <= R < 2^31 - min(m, n), the libraries' 32-bit limit",
        m, n, (long long)nstack, r);
}

fl_err fl_la_check_finite(int m, int n, int64_t nstack, const double *bs, const double *as)
{
    const bool b_good = fl_finite((size_t)m * (size_t)nstack, bs);
    const bool a_good = fl_finite((size_t)nstack * (size_t)n, as);

    if (b_good && a_good) {
        return FL_OK;
    }
    return fl_fail(FL_ENUM,
        "SVD of m = %d x n = %d, a sum of R = %lld products: the stacked %s hold NaN or Inf", m, n,
        (long long)nstack,
        b_good   ? "A"
        : a_good ? "B"
                 : "A and B");
}

/* row panels of the product, so that it is never held whole */
static double product_norm_dense(int m, int n, int nstack, const double *bs, const double *as)
{
    enum { PANEL = 256 }; /* fixed: another height could give other bits */
    const size_t cols = (size_t)n;
    double *x = fl_alloc("product: panel", (size_t)FL_MIN(PANEL, m) * cols, sizeof *x);
    double *norm = fl_alloc("product: norms", (size_t)m / PANEL + 1, sizeof *norm), total;
    size_t panels = 0;

    for (int left = m; left > 0; left -= FL_MIN(PANEL, left)) {
        const int rows = FL_MIN(PANEL, left);

        fl_dgemm('n', 'n', rows, n, nstack, 1, bs + (size_t)(m - left) * (size_t)nstack, as, 0, x);
        norm[panels++] = fl_la_norm((size_t)rows * cols, x);
    }
    total = fl_la_norm(panels, norm);
    fl_free(norm);
    fl_free(x);
    return total;
}

static double product_norm_factored(int m, int n, int nstack, const double *bs, const double *as)
{
    const size_t nr = (size_t)nstack, most = (size_t)FL_MAX(m, n);
    double *y = fl_alloc("product: factor", most * nr, sizeof *y);
    double *tb = fl_alloc("product: B triangle", nr * nr, sizeof *tb);
    double *ta = fl_alloc("product: A triangle", nr * nr, sizeof *ta);
    double *core = fl_alloc("product: core", nr * nr, sizeof *core), norm;
    fl_err err;

    fl_la_transpose(m, nstack, bs, y);
    err = fl_la_lq(nstack, m, y, tb, false);
    FL_REQUIRE(err == FL_OK);
    memcpy(y, as, nr * (size_t)n * sizeof *y);
    err = fl_la_lq(nstack, n, y, ta, false);
    FL_REQUIRE(err == FL_OK);
    fl_dgemm('t', 'n', nstack, nstack, nstack, 1, tb, ta, 0, core);
    norm = fl_la_norm(nr * nr, core);
    fl_free(core);
    fl_free(ta);
    fl_free(tb);
    fl_free(y);
    return norm;
}

/* By shape only. Two QRs of 2 (m + n) R^2 operations at about a third of the speed of a product of
 * 2 m n R. The limit on R is the QR's 32-bit workspace. */
static bool product_is_factored(int m, int n, int nstack)
{
    return nstack <= INT_MAX / 256 && nstack < FL_MIN(m, n) &&
           3 * ((double)m + n) * nstack < (double)m * n;
}

double fl_la_product_norm(int m, int n, int nstack, const double *bs, const double *as)
{
    if (m == 0 || n == 0 || nstack == 0) {
        return 0;
    }
    return product_is_factored(m, n, nstack) ? product_norm_factored(m, n, nstack, bs, as)
                                             : product_norm_dense(m, n, nstack, bs, as);
}

double fl_product_norm2(int m, int n, int64_t nstack, const double *bs, const double *as)
{
    double norm;

    FL_REQUIRE(m >= 0 && n >= 0 && nstack >= 0 && nstack <= INT_MAX);
    if (!fl_finite((size_t)m * (size_t)nstack, bs) || !fl_finite((size_t)nstack * (size_t)n, as)) {
        return NAN; /* LAPACK need not return from NaN with NaN */
    }
    norm = fl_la_product_norm(m, n, (int)nstack, bs, as);
    return norm * norm;
}

double fl_la_discarded(int k, const double *sv, int r)
{
    double all = 0, beyond = 0;

    if (k == 0 || sv[0] == 0) {
        return 0;
    }
    for (int i = k - 1; i >= 0;
         i--) { /* from the smallest up; relative to the largest: no underflow */
        const double x = sv[i] / sv[0];

        all += x * x;
        beyond += i >= r ? x * x : 0;
    }
    return beyond / all;
}
