/* svd.c - thin SVD of a dense matrix by LAPACK, and the convention of signs.
 * LAPACK reads the row-major x (m x n) as x' (n x m) = V S U', so its left factor, column-major n x
 * k, is vt row by row, and its right factor is u: nothing is transposed. */
#include "la_internal.h"
#include <limits.h>
#include <math.h>
#include <string.h>

bool fl_la_svd_fits(int64_t m, int64_t n)
{
    const double k = (double)FL_MIN(m, n), big = (double)FL_MAX(m, n);

    /* DGESDD wants at least 4 k^2 + 7 k and, for its blocked steps, a few blocks of both sides */
    return big <= INT_MAX && 4 * k * k + 7 * k + 256 * (k + big) <= INT_MAX;
}

void fl_la_signs(int m, int n, int r, double *u, double *vt)
{
    for (int j = 0; j < r; j++) {
        double top = 0;

        for (int i = 0; i < m; i++) {
            const double x = u[(size_t)i * (size_t)r + (size_t)j];

            top = fabs(x) > fabs(top) ? x : top;
        }
        if (top >= 0) {
            continue;
        }
        for (int i = 0; i < m; i++) {
            double *x = &u[(size_t)i * (size_t)r + (size_t)j];

            *x = -*x;
        }
        for (int i = 0; i < n; i++) {
            double *x = &vt[(size_t)j * (size_t)n + (size_t)i];

            *x = -*x;
        }
    }
}

/* both return LAPACK's info: 0, or > 0 if there was no convergence; x is destroyed */
static int svd_divide(int m, int n, double *x, double *u, double *sv, double *vt)
{
    const int k = FL_MIN(m, n), query = -1;
    int *iwork = fl_alloc("svd: integers", 8 * (size_t)k, sizeof *iwork); /* owned [8 k] */
    double want = 0, *work;                                               /* owned [lwork] */
    int lwork, info = 0;

    dgesdd_("S", &n, &m, x, &n, sv, vt, &n, u, &k, &want, &query, iwork, &info, 1);
    FL_REQUIRE(info == 0 && want >= 1 && want <= INT_MAX);
    lwork = (int)want;
    work = fl_alloc("svd: work", (size_t)lwork, sizeof *work);
    dgesdd_("S", &n, &m, x, &n, sv, vt, &n, u, &k, work, &lwork, iwork, &info, 1);
    FL_REQUIRE(info >= 0);
    fl_free(work);
    fl_free(iwork);
    return info;
}

static int svd_iterate(int m, int n, double *x, double *u, double *sv, double *vt)
{
    const int k = FL_MIN(m, n), query = -1;
    double want = 0, *work; /* owned [lwork] */
    int lwork, info = 0;

    dgesvd_("S", "S", &n, &m, x, &n, sv, vt, &n, u, &k, &want, &query, &info, 1, 1);
    FL_REQUIRE(info == 0 && want >= 1 && want <= INT_MAX);
    lwork = (int)want;
    work = fl_alloc("svd: work", (size_t)lwork, sizeof *work);
    dgesvd_("S", "S", &n, &m, x, &n, sv, vt, &n, u, &k, work, &lwork, &info, 1, 1);
    FL_REQUIRE(info >= 0);
    fl_free(work);
    return info;
}

fl_err fl_svd(int m, int n, const double *x, double *u, double *sv, double *vt)
{
    const int k = FL_MIN(m, n);
    const size_t count = (size_t)m * (size_t)n;
    double *copy; /* owned [m][n] */
    int info;

    FL_REQUIRE(m >= 0 && n >= 0);
    if (k == 0) {
        return FL_OK;
    }
    if (!fl_la_svd_fits(m, n)) {
        return fl_fail(FL_ESHAPE,
            "SVD of a dense m = %d x n = %d matrix: its workspace does not fit LAPACK's 32-bit "
            "interface",
            m, n);
    }
    if (!fl_finite(count, x)) {
        return fl_fail(FL_ENUM, "SVD of a %d x %d matrix: it holds NaN or Inf", m, n);
    }
    copy = fl_alloc("svd: matrix", count, sizeof *copy);
    memcpy(copy, x, count * sizeof *copy);
    info = svd_divide(m, n, copy, u, sv, vt);
    if (info > 0) { /* divide and conquer may fail where the QR iteration does not */
        memcpy(copy, x, count * sizeof *copy);
        info = svd_iterate(m, n, copy, u, sv, vt);
    }
    fl_free(copy);
    if (info > 0) {
        return fl_fail(FL_ENUM,
            "SVD of a %d x %d matrix: neither DGESDD nor DGESVD converged (info %d)", m, n, info);
    }
    fl_la_signs(m, n, k, u, vt);
    return FL_OK;
}
