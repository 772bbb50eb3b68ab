/* la_internal.h - what the files of src/la share: the Fortran routines used, and small pieces on
 * row-major arrays. LAPACK is column-major: a row-major x (m x n, contiguous) is read by it as x'
 * (n x m, leading dimension n). */
#ifndef FL_LA_INTERNAL_H
#define FL_LA_INTERNAL_H
#include "fedlora/la.h"
#include <float.h>

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

void fl_la_zero(size_t n, double *x); /* x may be NULL when n = 0 */
/* y (n x m) = x' (m x n) */
void fl_la_transpose(int m, int n, const double *x, double *y);
/* Frobenius norm of x [n], scaled: no overflow, no underflow */
double fl_la_norm(size_t n, const double *x);
/* a (n x n) = L L': L into the lower triangle of a, what is above stays; false if a is not positive
 * definite. Only the lower triangle is read. */
bool fl_la_cholesky(int n, double *a);
/* ||W W' - I||_F of the k rows of w (k x len), or ||W' W - I||_F of the first k columns (len x k);
 * ld: distance of two rows in memory */
double fl_la_departure(bool rows, int k, int len, const double *w, int ld);

/* y (m x n) = t (m x k) q (k x n), k = min(m, n), t lower trapezoidal, q with orthonormal rows in
 * the first k rows of y when want_q (else y is destroyed). t not NULL. No check for NaN. Errors:
 * FL_ESHAPE (workspace). */
fl_err fl_la_lq(int m, int n, double *y, double *t, bool want_q);

/* The same LQ with q kept as reflectors (compact WY form, DGEQRT), for when it meets a few rows only:
 * q is the first k rows of an orthogonal matrix Q, len x len, that is never formed. */
typedef struct fl_la_reflectors {
    int count, len, k, block;
    double *v, *t; /* owned [count][len], [k][block]; v NULL: there are none */
} fl_la_reflectors;
/* y (count x len) is taken over and destroyed; tri (count x k) receives t. Same errors. */
fl_err fl_la_reflectors_make(int count, int len, double *y, double *tri, fl_la_reflectors *f);
/* w (rows x len) = w Q, or w Q' when back. [c, 0] Q = c q; the first k columns of w Q' are w q'. */
void fl_la_reflect(const fl_la_reflectors *f, bool back, int rows, double *w);
void fl_la_reflectors_free(fl_la_reflectors *f);

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
/* operations of DGEMM that one of DGEQRT costs, and n^3 of DGESDD with all vectors: measured, fixed */
#define FL_LA_WEIGHT_QR 1.4
#define FL_LA_WEIGHT_SVD 24.0
/* Below tol^2 = r times this no sketch is certified: each of r values counts an error of 4 DBL_EPSILON
 * ||X||_F^2 at least, and the test needs 9 times that. */
#define FL_LA_SKETCH_LEAST (36 * DBL_EPSILON)

/* ---- solvers of the sum of products, all local ---- */

/* what is asked: the top r of X (m x n), a sum of nstack products; how exactly when randomized */
typedef struct fl_la_want {
    fl_solver solver; /* resolved: not AUTO, not SCALAPACK */
    double tol;
    int m, n, r;
    int64_t nstack;
    bool certify;
} fl_la_want;
/* where the answer goes */
typedef struct fl_la_answer {
    double *u, *sv, *vt;   /* borrowed [m][r], [r], [r][n] */
    fl_svd_report *report; /* borrowed, not NULL */
} fl_la_answer;
/* Shapes checked, AUTO resolved, sizes of exact solvers against LAPACK's limits. summed: the solver
 * wants X itself, not the stacks. */
fl_err fl_la_want_make(fl_solver solver, double tol, int m, int n, int64_t nstack, int r,
    bool certify, fl_la_want *want, bool *summed);
/* by the solver or, when the randomized one is not certified, by the exact one of the same form */
fl_err fl_la_svd_stack(
    const fl_la_want *want, const double *bs, const double *as, const fl_la_answer *out);
fl_err fl_la_svd_sum(const fl_la_want *want, const double *x, const fl_la_answer *out);
/* X = x, or bs as when x is NULL. False, with nothing of use written: no certificate below want->tol. */
bool fl_la_randomized(const fl_la_want *want, const double *bs, const double *as, const double *x,
    const fl_la_answer *out);

/* y (rows x m) = w (rows x n) X' with X as above */
void fl_la_apply(int rows, int m, int n, int nstack, const double *bs, const double *as,
    const double *x, const double *w, double *y);
/* X X' in coordinates of at most as many dimensions as X has, symmetric with the same non-zero
 * eigenvalues sigma^2. Coordinates c (a row of `side` numbers) belong to the row c up of R^R, or of
 * R^m or R^n itself. */
typedef struct fl_la_operator {
    int side;     /* dimensions; 0 where double cannot say, or X = 0 */
    double *a;    /* owned [side][side], symmetric, both triangles */
    double *up;   /* owned [side][R]: coordinates to multipliers of the rows of as; NULL for x */
    double norm2; /* ||X||_F^2 */
    double error; /* of any eigenvalue: the rounding of the Gram matrices */
    double lost;  /* what sums of eigenvalues may lack besides */
} fl_la_operator;
fl_la_operator fl_la_operator_make(
    int m, int n, int nstack, const double *bs, const double *as, const double *x);
void fl_la_operator_free(fl_la_operator *op);

enum { FL_LA_PROBES = 8, FL_LA_RNG_PROBE = 254, FL_LA_RNG_SKETCH = 253 };
/* w (FL_LA_PROBES x n): Gaussian, the same in every call */
void fl_la_probes(int n, double *w);
/* orthogonality of the first k vectors of the answer */
double fl_la_orthogonality(int m, int n, int r, int k, const double *u, const double *vt);

/* share of sum sv^2 [k] beyond the first r */
double fl_la_discarded(int k, const double *sv, int r);
#endif
