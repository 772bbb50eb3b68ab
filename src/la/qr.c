/* qr.c - thin orthogonal factorisations by LAPACK's DGEQRF and DORGQR.
 * The rows of a row-major y (m x n) are the columns of what LAPACK sees, so its QR of y' is the LQ
 * of y without any copy: y' = Q R  <=>  y = R' Q'. The QR of x is the LQ of a transposed copy:
 * DGELQF on the untransposed array would walk along strides (measured on tall arrays: 1.4 to 3
 * times slower, the copy included). */
#include "la_internal.h"
#include <limits.h>
#include <string.h>

/* the longer of both workspaces; 0 if it does not fit into a Fortran integer */
static int qr_workspace(int len, int count, double *y, double *tau)
{
    const int k = FL_MIN(len, count), query = -1;
    double want = 0, most = 0;
    int info = 0;

    /* LAPACK works out NB * count in 32 bit; 256 is beyond any block size it uses */
    if ((int64_t)count * 256 > INT_MAX) {
        return 0;
    }
    dgeqrf_(&len, &count, y, &len, tau, &want, &query, &info);
    FL_REQUIRE(info == 0);
    most = want;
    dorgqr_(&len, &k, &k, y, &len, tau, &want, &query, &info);
    FL_REQUIRE(info == 0);
    return (int)FL_MAX(1, FL_MAX(most, want));
}

fl_err fl_la_lq(int m, int n, double *y, double *t, bool want_q)
{
    const int k = FL_MIN(m, n);
    int lwork, info = 0;
    double *tau, *work; /* owned [k], [lwork] */

    if (k == 0) {
        return FL_OK;
    }
    tau = fl_alloc("qr: tau", (size_t)k, sizeof *tau);
    lwork = qr_workspace(n, m, y, tau);
    if (lwork == 0) {
        fl_free(tau);
        return fl_fail(FL_ESHAPE,
            "thin QR of %d vectors of length %d: the workspace does not fit LAPACK's 32-bit "
            "interface; use fewer or smaller adapters",
            m, n);
    }
    work = fl_alloc("qr: work", (size_t)lwork, sizeof *work);
    dgeqrf_(&n, &m, y, &n, tau, work, &lwork, &info);
    FL_REQUIRE(info == 0);
    for (int j = 0; j < m; j++) { /* column j of R is row j of t */
        double *row = t + (size_t)j * (size_t)k;
        const int filled = FL_MIN(j + 1, k);

        memcpy(row, y + (size_t)j * (size_t)n, (size_t)filled * sizeof *row);
        memset(row + filled, 0, (size_t)(k - filled) * sizeof *row);
    }
    if (want_q) {
        dorgqr_(&n, &k, &k, y, &n, tau, work, &lwork, &info);
        FL_REQUIRE(info == 0);
    }
    fl_free(work);
    fl_free(tau);
    return FL_OK;
}

fl_err fl_qr(int m, int n, double *x, double *q, double *r)
{
    const int k = FL_MIN(m, n);
    double *y, *t; /* owned [n][m], [n][k] */
    fl_err err;

    FL_REQUIRE(m >= 0 && n >= 0);
    if (!fl_finite((size_t)m * (size_t)n, x)) {
        return fl_fail(FL_ENUM, "QR of a %d x %d matrix: it holds NaN or Inf", m, n);
    }
    y = fl_alloc("qr: transposed", (size_t)m * (size_t)n, sizeof *y);
    t = fl_alloc("qr: triangle", (size_t)n * (size_t)k, sizeof *t);
    fl_la_transpose(m, n, x, y);
    err = fl_la_lq(n, m, y, t, true);
    if (err == FL_OK) {
        fl_la_transpose(k, m, y, q);
        fl_la_transpose(n, k, t, r);
    }
    fl_free(t);
    fl_free(y);
    return err;
}
