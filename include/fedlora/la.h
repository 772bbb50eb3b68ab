/* la.h - dense linear algebra of the server and the GEMMs of the engine: OpenBLAS, LAPACK, BLACS, ScaLAPACK.
 * The same call (shape, leading dimensions, threads) gives the same bits; the unit of every call is fixed by deck and data
 * (design 2.4). Matrices are row-major unless said otherwise. Sizes are computed in 64 bit; what exceeds the 32-bit
 * interface of the libraries is refused with a sentence (FL_ESHAPE). NaN and Inf are refused before any factorisation (FL_ENUM). */
#ifndef FL_LA_H
#define FL_LA_H
#include "fedlora/base.h"

void fl_blas_threads(int threads);       /* sets OpenBLAS's count, over the environment */
const char *fl_blas_name(void);          /* "OpenBLAS 0.3.21, kernel SkylakeX, 1 thread" */
const char *fl_blas_kernel(void);        /* "SkylakeX": ranks compare it at start */

/* ---- GEMM, row-major: C (m x n) = al op(A) op(B) + be C; ta, tb 'n' | 't'; op(A) m x k, op(B) k x n; be = 0 never reads C ---- */
void fl_gemm_ld(char ta, char tb, int m, int n, int k, fl_real al, const fl_real *a, int lda, const fl_real *b, int ldb,
    fl_real be, fl_real *c, int ldc);
void fl_gemm(char ta, char tb, int m, int n, int k, double al, const fl_real *a, const fl_real *b, double be, fl_real *c); /* contiguous */
void fl_dgemm(char ta, char tb, int m, int n, int k, double al, const double *a, const double *b, double be, double *c);   /* contiguous */

bool fl_finite(size_t n, const double *x);

/* ---- thin QR: x (m x n) = q (m x k) r (k x n), k = min(m, n); x is overwritten ---- */
fl_err fl_qr(int m, int n, double *x, double *q, double *r);
/* ---- thin SVD of a dense x (m x n), k = min(m, n): u (m x k), sv[k] descending, vt (k x n). DGESDD (DGESVD if it fails to
 * converge). Signs: the largest-magnitude entry of every left vector is positive (the first of equals). x is kept. ---- */
fl_err fl_svd(int m, int n, const double *x, double *u, double *sv, double *vt);

/* ---- the sum of products, X = sum over columns j of bs (m x R) times rows of as (R x n), never formed unless cheaper ---- */
typedef struct fl_svd_report {
    const char *solver;      /* the one that ran: "factored", "dense", "scalapack", "randomized" */
    double residual;         /* relative to ||X||_F, 0 if X = 0. Exact solvers: ||X - U S V'||_F of the whole (untruncated) factorisation, on one
                                rank measured on 8 Gaussian vectors. randomized: the root of an upper bound of ||X - U S V'||_F^2 minus the least
                                that r pairs can reach; never above tol, see fl_svd_factors_tol */
    double orthogonality;    /* max(||U'U - I||, ||V'V - I||)_F; on one rank of the vectors handed out */
    double discarded;        /* share of ||X||_F^2 beyond r_out */
} fl_svd_report;
typedef enum fl_solver {
    FL_SOLVE_AUTO, FL_SOLVE_FACTORED, FL_SOLVE_DENSE, FL_SOLVE_SCALAPACK, FL_SOLVE_RANDOMIZED
} fl_solver; /* order of deck svd.solver */
extern const char *const fl_solver_name[5];
#define FL_SVD_TOL 1e-6 /* tol of those who do not say */
/* auto's choice for the top r of R = nstack products: the least by a model of operations whose constants `fedlora bench svd` measured. From
 * the arguments only. FACTORED, DENSE, or RANDOMIZED where tol is reachable by it and r is far below R. */
fl_solver fl_svd_choose(int m, int n, int64_t nstack, int r, double tol);
/* Local. Top r of bs as: u (m x r), sv[r], vt (r x n); r <= min(m, n); beyond the rank: zeros in sv, orthonormal or zero vectors.
 * solver: AUTO, FACTORED (exact: two thin QRs and the SVD of the small core; reduced forms when R > m or R > n), DENSE, or RANDOMIZED: a
 * Gaussian block Krylov sketch of X, grown until it is certified that ||X - U S V'||_F^2 exceeds the best rank r error by at most
 * tol^2 ||X||_F^2; the exact solver runs instead, and the report says so, when no certificate is found before the sketch is half as large
 * as X, or when tol is below what double arithmetic can certify (9e-8 sqrt(r)). tol is used by AUTO and RANDOMIZED only.
 * report may be NULL; residual and orthogonality of exact solvers are computed only when certify. No bit depends on certify. */
fl_err fl_svd_factors_tol(fl_solver solver, double tol, int m, int n, int64_t nstack, const double *bs, const double *as, int r,
    double *u, double *sv, double *vt, bool certify, fl_svd_report *report);
/* the same with FL_SVD_TOL */
fl_err fl_svd_factors(fl_solver solver, int m, int n, int64_t nstack, const double *bs, const double *as, int r,
    double *u, double *sv, double *vt, bool certify, fl_svd_report *report);

/* ---- the same, product after product: thousands of clients with R above min(m, n) are never stacked ----
 * fl_svd_factors_tol is made of these calls: the same answer, bit for bit. The order of the products decides the bits, not how many are added
 * in one call; add them in ascending client. Local. Holds (m + n) min(R, 256) numbers and m x n, or (m + n) R where the solver works on the
 * stacks (factored, R < max(m, n); randomized, R < min(m, n)): fl_accum_bytes, before anything is allocated. */
typedef struct fl_accum fl_accum;
fl_err fl_accum_create(fl_solver solver, double tol, int m, int n, int64_t nstack, int r, fl_accum **acc); /* FL_ESHAPE */
/* X += w b a, b (m x r), a (r x n), r >= 0; in all exactly nstack products */
void fl_accum_add(fl_accum *acc, int r, double w, const fl_real *b, const fl_real *a);
void fl_accum_add_double(fl_accum *acc, int r, const double *bs, const double *as); /* already weighted */
/* Once, after all products. FL_ENUM names the first product that holds NaN or Inf. */
fl_err fl_accum_svd(fl_accum *acc, double *u, double *sv, double *vt, bool certify, fl_svd_report *report);
void fl_accum_destroy(fl_accum **acc);
double fl_accum_bytes(fl_solver solver, double tol, int m, int n, int64_t nstack, int r);

/* ||sum of products||_F^2 with bs (m x R), as (R x n), dense or by Gram matrices, whichever is cheaper by shape */
double fl_product_norm2(int m, int n, int64_t nstack, const double *bs, const double *as);

/* ---- small mathematics for methods, on doubles ---- Local; no state, one order of every sum: the same call gives the same bits. */
/* b (n x nrhs) = a^-1 b, a (n x n) symmetric positive definite, only its lower triangle is read. By Cholesky. FL_ENUM, b kept: not
 * positive definite, singular to working precision (a ridge on the diagonal is the caller's choice), NaN or Inf. */
fl_err fl_solve(int n, int nrhs, const double *a, double *b);
/* a (n x n) symmetric (its lower triangle is read) = vectors diag(values) vectors'; values [n] descending; vectors n x n, eigenvector j is
 * column j, its largest-magnitude entry (the first of equals) positive; NULL = values only. FL_ENUM: NaN, Inf, no convergence. */
fl_err fl_eigh(int n, const double *a, double *values, double *vectors);
/* Weighted k-means of the n rows of x (n x d), w[n] >= 0 (NULL = all 1): k-means++ seeding by Philox (seed), then at most `iterations` Lloyd
 * steps, the best of `restarts`. Ties go to the lowest index; an empty group takes the row farthest from its centre. Writes group[n], numbered
 * in order of their first rows, and centre (ngroups x d); groups beyond the number of distinct rows stay empty, theirs is a copy of row 0.
 * Returns sum_i w_i ||x_i - centre||^2; NaN, with nothing written, if x or w hold NaN or Inf. */
double fl_kmeans(uint64_t seed, int n, int d, const double *x, const double *w, int ngroups, int restarts, int iterations, int *group,
    double *centre);
/* Discrete optimal transport, exact (successive shortest paths): plan (n x m) >= 0 with row sums a[n] and column sums b[m] (b is scaled to the
 * sum of a) that minimises value = sum plan cost. For small n, m (up to a few hundred). value may be NULL. FL_ENUM: a negative mass, NaN or
 * Inf, sums that differ by more than 1e-9 of themselves. */
fl_err fl_transport(int n, int m, const double *a, const double *b, const double *cost, double *plan, double *value);
/* Linear centred kernel alignment of x and y, both q samples (rows) x r features: ||Yc' Xc||^2 / (||Xc' Xc|| ||Yc' Yc||) in Frobenius norms,
 * where every column (feature) is centred over the samples. In [0, 1]; 1 for y = c x Q, Q orthogonal; 0 if x or y does not vary. */
double fl_cka(int q, int r, const double *x, const double *y);
/* Mixture of `parts` Gaussians with diagonal covariances of the n > 0 rows of x (n x d), all finite, by EM from fl_kmeans(seed): at most
 * `iterations` steps, until the mean log-likelihood gains 1e-3 or less; floor > 0 is added to every variance. weight [parts] (sum 1; an
 * empty part: 0), mu, var [parts][d]. Returns the last mean log-likelihood, without the constant. */
double fl_mixture_fit(uint64_t seed, int n, int d, const double *x, int parts, int iterations, double floor, double *weight, double *mu,
    double *var);
/* Optimal transport between the parts of two such mixtures: cost ||mu - mu'||^2 + ||sigma - sigma'||^2, the squared Wasserstein-2 distance of
 * two diagonal Gaussians. Weights are scaled to sum 1. */
fl_err fl_mixture_distance(int parts, int d, const double *weight_x, const double *mu_x, const double *var_x, const double *weight_y,
    const double *mu_y, const double *var_y, double *distance);
double fl_select(size_t n, double *x, size_t k); /* the k-th smallest (k from 0) of x [n], which is permuted; no NaN */

/* ---- ScaLAPACK: a near-square (or given) process grid on a sub-communicator of ctx->world ---- */
typedef struct fl_grid fl_grid;
/* Collective over ctx->world. p x q processes, the first p*q ranks; block nb. p = q = 0: nearly square over all ranks.
 * FL_EDECK on all ranks if p*q > size. Cblacs_set(ctx, 15, 1) right after gridinit: repeatable combines. */
fl_err fl_grid_create(fl_ctx *ctx, int p, int q, int nb, fl_grid **grid);
void fl_grid_destroy(fl_grid **grid); /* collective */
int fl_grid_rows(const fl_grid *grid);
int fl_grid_cols(const fl_grid *grid);
/* Collective over ctx->world. Rank `owner` holds bs, as (others may pass NULL); X = bs as is formed block-cyclically by PDGEMM,
 * PDGEQRF first when m >= 2 n (or of X' when n >= 2 m), then PDGESVD; u, sv, vt (top r) arrive on owner. Same bits for the same
 * grid and block; below one block per process LAPACK is used on the owner (report->solver says so). */
fl_err fl_grid_svd(fl_grid *grid, int owner, int m, int n, int64_t nstack, const double *bs, const double *as, int r,
    double *u, double *sv, double *vt, bool certify, fl_svd_report *report);

/* ---- benches ---- */
double fl_gemm_peak(int m, int n, int k); /* GFLOP/s of the best of several single-thread SGEMMs of that shape; local */
/* Collective over ctx->world. Adds to t on rank 0: seconds and certificates of the solvers by shape with auto's choice beside the fastest and a
 * deck value as suggestion; then the server's work on many sites (20 clients, one SVD a site, redistributed to three ranks) against DGESDD and
 * PDGESVD of one site, times the sites. Small: some seconds. Large: 64 sites of 4096 x 4096, r = 16, beside the targets of 100 and
 * 1000; on 2 ranks PDGESVD alone takes ten minutes. */
fl_err fl_bench_svd(fl_ctx *ctx, fl_text *t); /* small */
fl_err fl_bench_svd_large(fl_ctx *ctx, fl_text *t);
#endif
