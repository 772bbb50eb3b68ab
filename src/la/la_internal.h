/* la_internal.h - what the files of src/la share: the Fortran routines used, and small pieces on
 * row-major arrays. LAPACK is column-major: a row-major x (m x n, contiguous) is read by it as x'
 * (n x m, leading dimension n). */
#ifndef FL_LA_INTERNAL_H
#define FL_LA_INTERNAL_H
#include "fedlora/la.h"

/* gfortran passes the length of every character argument behind the others, by value */
void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s,
    double *u, const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork,
    int *iwork, int *info, size_t);
void dgesvd_(const char *jobu, const char *jobvt, const int *m, const int *n, double *a,
    const int *lda, double *s, double *u, const int *ldu, double *vt, const int *ldvt, double *work,
    const int *lwork, int *info, size_t, size_t);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work,
    const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau,
    double *work, const int *lwork, int *info);

/* al op(A) op(B) + be C with leading dimensions, in double; see fl_gemm_ld */
void fl_la_dgemm(char ta, char tb, int m, int n, int k, double al, const double *a, int lda,
    const double *b, int ldb, double be, double *c, int ldc);

/* y (n x m) = x' (m x n) */
void fl_la_transpose(int m, int n, const double *x, double *y);
/* Frobenius norm of x [n], scaled: no overflow, no underflow */
double fl_la_norm(size_t n, const double *x);
/* a (n x n) = L L': L into the lower triangle of a, what is above stays; false if a is not positive
 * definite. Only the lower triangle is read. */
bool fl_la_cholesky(int n, double *a);
/* ||W W' - I||_F for rows = true, ||W' W - I||_F for rows = false; w rows x cols */
double fl_la_departure(bool rows, int m, int n, const double *w);

/* y (m x n) = t (m x k) q (k x n), k = min(m, n), t lower trapezoidal, q with orthonormal rows in
 * the first k rows of y when want_q (else y is destroyed). t not NULL. No check for NaN. Errors:
 * FL_ESHAPE (workspace). */
fl_err fl_la_lq(int m, int n, double *y, double *t, bool want_q);

/* makes the largest-magnitude entry of every column of u positive (the first of equals) and keeps u
 * diag(sv) vt. u m x r, vt r x n, contiguous. */
void fl_la_signs(int m, int n, int r, double *u, double *vt);

/* the checks every solver of the sum of products makes first, in 64 bit; sentence names m, n, R */
fl_err fl_la_check_shapes(int m, int n, int64_t nstack, int r);
/* false if the dense SVD of an m x n matrix needs a workspace beyond 2^31 - 1 numbers */
bool fl_la_svd_fits(int64_t m, int64_t n);
/* FL_ENUM with a sentence if bs (m x R) or as (R x n) holds NaN or Inf */
fl_err fl_la_check_finite(int m, int n, int64_t nstack, const double *bs, const double *as);

/* ||bs as||_F with errors of the size eps ||bs|| ||as||: by triangular factors or by panels of the
 * product, never by Gram matrices, which lose half of the digits. */
double fl_la_product_norm(int m, int n, int nstack, const double *bs, const double *as);
/* share of sum sv^2 [k] beyond the first r */
double fl_la_discarded(int k, const double *sv, int r);
#endif
