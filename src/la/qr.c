/* qr.c - thin orthogonal factorisations by LAPACK's DGEQRF and DORGQR.
 * The rows of a row-major y (m x n) are the columns of what LAPACK sees, so its QR of y' is the LQ
 * of y without any copy: y' = Q R  <=>  y = R' Q'. The QR of x is the LQ of a transposed copy:
 * DGELQF on the untransposed array would walk along strides (measured on tall arrays: 1.4 to 3
 * times slower, the copy included).
 * Where q is applied to a few rows only, DGEQRT keeps its reflectors in blocks and DGEMQRT applies
 * them: a third faster than DGEQRF and without the cost of DORGQR (4096 x 320: 24 + 3 ms for 16
 * rows against 36 + 31 ms). */
#include "la_internal.h"
#include <limits.h>
#include <string.h>

void dgeqrt_(const int *m, const int *n, const int *nb, double *a, const int *lda, double *t,
    const int *ldt, double *work, int *info);
void dgemqrt_(const char *side, const char *trans, const int *m, const int *n, const int *k,
    const int *nb, const double *v, const int *ldv, const double *t, const int *ldt, double *c,
    const int *ldc, double *work, int *info, size_t, size_t);

static bool qr_fits(int count)
{
    /* LAPACK works out NB * count in 32 bit; 256 is beyond any block size it uses */
    return (int64_t)count * 256 <= INT_MAX;
}

static fl_err qr_refuse(int count, int len)
{
    return fl_fail(FL_ESHAPE,
        "thin QR of %d vectors of length %d: the workspace does not fit LAPACK's 32-bit "
        "interface; use fewer or smaller adapters",
        count, len);
}

/* the longer of both workspaces */
static int qr_workspace(int len, int count, double *y, double *tau)
{
    const int k = FL_MIN(len, count), query = -1;
    double want = 0, most = 0;
    int info = 0;

    dgeqrf_(&len, &count, y, &len, tau, &want, &query, &info);
    FL_REQUIRE(info == 0);
    most = want;
    dorgqr_(&len, &k, &k, y, &len, tau, &want, &query, &info);
    FL_REQUIRE(info == 0);
    return (int)FL_MAX(1, FL_MAX(most, want));
}

/* t (m x k) out of what LAPACK left in y (m x n): column j of R is row j of t */
static void qr_triangle(int m, int n, const double *y, double *t)
{
    const int k = FL_MIN(m, n);

    for (int j = 0; j < m; j++) {
        double *row = t + (size_t)j * (size_t)k;
        const int filled = FL_MIN(j + 1, k);

        memcpy(row, y + (size_t)j * (size_t)n, (size_t)filled * sizeof *row);
        memset(row + filled, 0, (size_t)(k - filled) * sizeof *row);
    }
}

fl_err fl_la_lq(int m, int n, double *y, double *t, bool want_q)
{
    const int k = FL_MIN(m, n);
    int lwork, info = 0;
    double *tau, *work; /* owned [k], [lwork] */

    if (k == 0) {
        return FL_OK;
    }
    if (!qr_fits(m)) {
        return qr_refuse(m, n);
    }
    tau = fl_alloc("qr: tau", (size_t)k, sizeof *tau);
    lwork = qr_workspace(n, m, y, tau);
    work = fl_alloc("qr: work", (size_t)lwork, sizeof *work);
    dgeqrf_(&n, &m, y, &n, tau, work, &lwork, &info);
    FL_REQUIRE(info == 0);
    qr_triangle(m, n, y, t);
    if (want_q) {
        dorgqr_(&n, &k, &k, y, &n, tau, work, &lwork, &info);
        FL_REQUIRE(info == 0);
    }
    fl_free(work);
    fl_free(tau);
    return FL_OK;
}

fl_err fl_la_reflectors_make(int count, int len, double *y, double *tri, fl_la_reflectors *f)
{
    enum { BLOCK = 48 }; /* the best of 8 .. 128 for 4096 x 320; 24 .. 80 are within 5 % */
    double *work;        /* owned [block][count] */
    int info = 0;

    *f = (fl_la_reflectors){.count = count, .len = len, .k = FL_MIN(count, len), .v = y};
    if (f->k == 0) {
        return FL_OK;
    }
    if (!qr_fits(count)) {
        return qr_refuse(count, len);
    }
    f->block = FL_MIN(BLOCK, f->k);
    f->t = fl_alloc("qr: blocks", (size_t)f->k * (size_t)f->block, sizeof *f->t);
    work = fl_alloc("qr: work", (size_t)f->block * (size_t)count, sizeof *work);
    dgeqrt_(&len, &count, &f->block, y, &len, f->t, &f->block, work, &info);
    FL_REQUIRE(info == 0);
    fl_free(work);
    qr_triangle(count, len, y, tri);
    return FL_OK;
}

void fl_la_reflect(const fl_la_reflectors *f, bool back, int rows, double *w)
{
    double *work; /* owned [block][rows] */
    int info = 0;

    if (f->k == 0 || rows == 0) {
        return;
    }
    work = fl_alloc("qr: work", (size_t)f->block * (size_t)rows, sizeof *work);
    dgemqrt_("L", back ? "T" : "N", &f->len, &rows, &f->k, &f->block, f->v, &f->len, f->t,
        &f->block, w, &f->len, work, &info, 1, 1);
    FL_REQUIRE(info == 0);
    fl_free(work);
}

void fl_la_reflectors_free(fl_la_reflectors *f)
{
    fl_free(f->t);
    fl_free(f->v);
    f->t = f->v = NULL;
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
