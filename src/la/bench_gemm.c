/* bench_gemm.c - the limit that other benches stand beside: SGEMM of one thread at a given shape.
 */
#include "la_internal.h"
#include <cblas.h>

double fl_gemm_peak(int m, int n, int k)
{
    const int threads = openblas_get_num_threads();
    const double work = 2.0 * m * n * k;
    /* about 0.2 s at 20 GFLOP/s, at least 5 runs: the first ones load the caches and wake the clock
     */
    const int runs = (int)FL_MIN(1000.0, FL_MAX(5.0, 4e9 / work));
    float *a, *b, *c; /* owned [m][k], [k][n], [m][n] */
    double best = 0;

    FL_REQUIRE(m >= 1 && n >= 1 && k >= 1);
    a = fl_alloc("bench: a", (size_t)m * (size_t)k, sizeof *a);
    b = fl_alloc("bench: b", (size_t)k * (size_t)n, sizeof *b);
    c = fl_alloc("bench: c", (size_t)m * (size_t)n, sizeof *c);
    for (size_t i = 0; i < (size_t)m * (size_t)k; i++) {
        a[i] = (float)(i % 17) - 8;
    }
    for (size_t i = 0; i < (size_t)k * (size_t)n; i++) {
        b[i] = (float)(i % 13) - 6;
    }
    openblas_set_num_threads(1);
    for (int i = 0; i < runs; i++) {
        double start = fl_now(), seconds;

        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a, k, b, n, 0, c, n);
        seconds = fl_now() - start;
        best = seconds > 0 ? FL_MAX(best, work / seconds * 1e-9) : best;
    }
    openblas_set_num_threads(threads);
    fl_free(c);
    fl_free(b);
    fl_free(a);
    return best;
}
