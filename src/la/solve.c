/* solve.c - symmetric matrices: linear systems by Cholesky, eigenvalues.
 * LAPACK's upper triangle of a column-major matrix is the lower triangle of the row-major one. */
#include "la_internal.h"
#include <cblas.h>
#include <float.h>
#include <math.h>
#include <string.h>

void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t);
void dpocon_(const char *uplo, const int *n, const double *a, const int *lda, const double *anorm,
    double *rcond, double *work, int *iwork, int *info, size_t);
void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w,
    double *work, const int *lwork, int *iwork, const int *liwork, int *info, size_t, size_t);

/* the lower triangle of a row by row into y, zeros above; false if it holds NaN or Inf */
static bool solve_lower(int n, const double *a, double *y)
{
    const size_t side = (size_t)n;
    bool good = true;

    for (size_t i = 0; i < side; i++) {
        memcpy(y + i * side, a + i * side, (i + 1) * sizeof *y);
        memset(y + i * side + i + 1, 0, (side - i - 1) * sizeof *y);
        good = fl_finite(i + 1, a + i * side) && good;
    }
    return good;
}

/* largest column sum of magnitudes of the symmetric matrix with lower triangle y */
static double solve_norm1(int n, const double *y, double *sum)
{
    double most = 0;

    for (int i = 0; i < n; i++) {
        sum[i] = 0;
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
            const double x = fabs(y[(size_t)i * (size_t)n + (size_t)j]);

            sum[j] += x;
            sum[i] += j < i ? x : 0;
        }
    }
    for (int i = 0; i < n; i++) {
        most = FL_MAX(most, sum[i]);
    }
    return most;
}

bool fl_la_cholesky(int n, double *a)
{
    int info = 0;

    dpotrf_("U", &n, a, &n, &info, 1);
    FL_REQUIRE(info >= 0);
    return info == 0;
}

/* factor, and 1 / condition; 0 if it is not positive definite */
static double solve_factor(int n, double *y)
{
    double *work = fl_alloc("solve: work", 3 * (size_t)n, sizeof *work);
    int *iwork = fl_alloc("solve: integers", (size_t)n, sizeof *iwork), info = 0;
    const double norm = solve_norm1(n, y, work);
    double rcond = 0;

    if (fl_la_cholesky(n, y)) {
        dpocon_("U", &n, y, &n, &norm, &rcond, work, iwork, &info, 1);
        FL_REQUIRE(info == 0);
    }
    fl_free(iwork);
    fl_free(work);
    return rcond;
}

fl_err fl_solve(int n, int nrhs, const double *a, double *b)
{
    const size_t count = (size_t)n * (size_t)nrhs;
    double *y, rcond; /* y owned [n][n] */
    bool good;

    FL_REQUIRE(n >= 0 && nrhs >= 0);
    if (n == 0) {
        return FL_OK;
    }
    y = fl_alloc("solve: triangle", (size_t)n * (size_t)n, sizeof *y);
    good = solve_lower(n, a, y);
    if (!good || !fl_finite(count, b)) {
        fl_free(y);
        return fl_fail(FL_ENUM, "linear system of %d equations: the %s NaN or Inf", n,
            good ? "right-hand sides hold" : "matrix holds");
    }
    rcond = solve_factor(n, y);
    if (rcond < DBL_EPSILON) {
        fl_free(y);
        return fl_fail(FL_ENUM,
            "linear system of %d equations: the matrix is not positive definite (1 / condition "
            "%.1e); it needs a ridge, or independent rows",
            n, rcond);
    }
    if (nrhs > 0) {
        cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, n, nrhs, 1, y,
            n, b, nrhs);
        cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, n, nrhs, 1, y,
            n, b, nrhs);
    }
    fl_free(y);
    return FL_OK;
}

/* eigenvalues ascending in w; eigenvectors in the rows of y. Returns LAPACK's info. */
static int solve_eigen(bool vectors, int n, double *y, double *w)
{
    const char *job = vectors ? "V" : "N";
    const int query = -1;
    double want = 0, *work;
    int iwant = 0, *iwork, lwork, info = 0;

    dsyevd_(job, "U", &n, y, &n, w, &want, &query, &iwant, &query, &info, 1, 1);
    FL_REQUIRE(info == 0 && want >= 1);
    lwork = (int)want;
    work = fl_alloc("eigen: work", (size_t)lwork, sizeof *work);
    iwork = fl_alloc("eigen: integers", (size_t)FL_MAX(1, iwant), sizeof *iwork);
    dsyevd_(job, "U", &n, y, &n, w, work, &lwork, iwork, &iwant, &info, 1, 1);
    FL_REQUIRE(info >= 0);
    fl_free(iwork);
    fl_free(work);
    return info;
}

/* the vector with its largest entry positive */
static double eigen_sign(int n, const double *v)
{
    double top = 0;

    for (int i = 0; i < n; i++) {
        top = fabs(v[i]) > fabs(top) ? v[i] : top;
    }
    return top < 0 ? -1 : 1;
}

fl_err fl_eigh(int n, const double *a, double *values, double *vectors)
{
    enum { MOST = 30000 }; /* 2 n^2 numbers of workspace must fit 32 bit */
    const size_t side = (size_t)n;
    double *y, *w; /* owned [n][n], [n] */
    int info = 0;

    FL_REQUIRE(n >= 0);
    if (n > MOST) {
        return fl_fail(FL_ESHAPE,
            "eigenvalues of a %d x %d matrix: the workspace does not fit LAPACK's 32-bit "
            "interface; at most %d",
            n, n, MOST);
    }
    if (n == 0) {
        return FL_OK;
    }
    y = fl_alloc("eigen: matrix", side * side, sizeof *y);
    w = fl_alloc("eigen: values", side, sizeof *w);
    if (!solve_lower(n, a, y)) {
        fl_free(w);
        fl_free(y);
        return fl_fail(FL_ENUM, "eigenvalues of a %d x %d matrix: it holds NaN or Inf", n, n);
    }
    info = solve_eigen(vectors != NULL, n, y, w);
    for (size_t j = 0; info == 0 && j < side; j++) { /* from the largest down */
        const double *v = y + (side - 1 - j) * side;
        const double sign = vectors != NULL ? eigen_sign(n, v) : 1;

        values[j] = w[side - 1 - j];
        for (size_t i = 0; vectors != NULL && i < side; i++) {
            vectors[i * side + j] = sign * v[i];
        }
    }
    fl_free(w);
    fl_free(y);
    return info == 0 ? FL_OK
                     : fl_fail(FL_ENUM, "eigenvalues of a %d x %d matrix: no convergence (info %d)",
                           n, n, info);
}
