/* dense.c - matrix products and norms on row-major arrays. C (m x n) = al op(A) (m x k) op(B) (k x
 * n) + be C. */
#include "la_internal.h"
#include <cblas.h>
#include <math.h>

static CBLAS_TRANSPOSE dense_op(char t)
{
    FL_REQUIRE(t == 'n' || t == 't');
    return t == 't' ? CblasTrans : CblasNoTrans;
}

/* the leading dimension of a contiguous X whose op(X) is rows x cols; BLAS wants at least 1 */
static int dense_ld(char t, int rows, int cols)
{
    return FL_MAX(1, t == 't' ? rows : cols);
}

/* BLAS only prints a line when a leading dimension is too small, and goes on */
static void dense_require(char ta, char tb, int m, int n, int k, int lda, int ldb, int ldc)
{
    FL_REQUIRE(m >= 0 && n >= 0 && k >= 0);
    FL_REQUIRE(lda >= dense_ld(ta, m, k) && ldb >= dense_ld(tb, k, n) && ldc >= FL_MAX(1, n));
}

void fl_gemm_ld(char ta, char tb, int m, int n, int k, fl_real al, const fl_real *a, int lda,
    const fl_real *b, int ldb, fl_real be, fl_real *c, int ldc)
{
    dense_require(ta, tb, m, n, k, lda, ldb, ldc);
#ifdef FL_REAL_DOUBLE
    cblas_dgemm(CblasRowMajor, dense_op(ta), dense_op(tb), m, n, k, al, a, lda, b, ldb, be, c, ldc);
#else
    cblas_sgemm(CblasRowMajor, dense_op(ta), dense_op(tb), m, n, k, al, a, lda, b, ldb, be, c, ldc);
#endif
}

void fl_gemm(char ta, char tb, int m, int n, int k, double al, const fl_real *a, const fl_real *b,
    double be, fl_real *c)
{
    fl_gemm_ld(ta, tb, m, n, k, (fl_real)al, a, dense_ld(ta, m, k), b, dense_ld(tb, k, n),
        (fl_real)be, c, FL_MAX(1, n));
}

void fl_la_dgemm(char ta, char tb, int m, int n, int k, double al, const double *a, int lda,
    const double *b, int ldb, double be, double *c, int ldc)
{
    dense_require(ta, tb, m, n, k, lda, ldb, ldc);
    cblas_dgemm(CblasRowMajor, dense_op(ta), dense_op(tb), m, n, k, al, a, lda, b, ldb, be, c, ldc);
}

void fl_dgemm(char ta, char tb, int m, int n, int k, double al, const double *a, const double *b,
    double be, double *c)
{
    fl_la_dgemm(
        ta, tb, m, n, k, al, a, dense_ld(ta, m, k), b, dense_ld(tb, k, n), be, c, FL_MAX(1, n));
}

bool fl_finite(size_t n, const double *x)
{
    int bad = 0;

    for (size_t i = 0; i < n; i++) {
        bad |= !isfinite(x[i]); /* no early leave: the loop vectorises */
    }
    return bad == 0;
}

void fl_la_zero(size_t n, double *x)
{
    for (size_t i = 0; i < n; i++) { /* not memset: x may be NULL when n is 0 */
        x[i] = 0;
    }
}

void fl_la_transpose(int m, int n, const double *x, double *y)
{
    enum { TILE = 32 }; /* a tile of both arrays stays in the first cache */
    const size_t rows = (size_t)m, cols = (size_t)n;

    for (size_t i0 = 0; i0 < rows; i0 += TILE) {
        for (size_t j0 = 0; j0 < cols; j0 += TILE) {
            const size_t i1 = FL_MIN(i0 + TILE, rows), j1 = FL_MIN(j0 + TILE, cols);

            for (size_t j = j0; j < j1; j++) {
                for (size_t i = i0; i < i1; i++) {
                    y[j * rows + i] = x[i * cols + j];
                }
            }
        }
    }
}

double fl_la_norm(size_t n, const double *x)
{
    double big = 0, sum = 0;

    for (size_t i = 0; i < n; i++) {
        const double a = fabs(x[i]);

        big = a > big || isnan(a) ? a : big;
    }
    if (big == 0 || !isfinite(big)) {
        return big;
    }
    for (size_t i = 0; i < n; i++) {
        const double a = x[i] / big;

        sum += a * a;
    }
    return big * sqrt(sum);
}

double fl_la_departure(bool rows, int k, int len, const double *w, int ld)
{
    double *g = fl_alloc("orthogonality", (size_t)k * (size_t)k, sizeof *g); /* owned [k][k] */
    double norm;

    fl_la_dgemm(rows ? 'n' : 't', rows ? 't' : 'n', k, k, len, 1, w, ld, w, ld, 0, g, FL_MAX(1, k));
    for (int i = 0; i < k; i++) {
        g[(size_t)i * (size_t)k + (size_t)i] -= 1;
    }
    norm = fl_la_norm((size_t)k * (size_t)k, g);
    fl_free(g);
    return norm;
}
