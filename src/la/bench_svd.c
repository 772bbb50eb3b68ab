/* bench_svd.c - seconds of the ways to the SVD of a sum of products, by shape, on one rank: what
 * auto chooses beside what is the fastest, and the weights of its model (choose.c) as measured
 * here. */
#include "bench_internal.h"
#include <string.h>

typedef struct bench_shape {
    int m, n, nstack, r;
} bench_shape;

void fl_la_bench_factors(int site, int m, int n, int clients, int r, fl_real *b, fl_real *a)
{
    const size_t nb = (size_t)m * (size_t)r, na = (size_t)r * (size_t)n;

    for (size_t i = 0; i < (size_t)clients * nb; i++) {
        b[i] = (fl_real)(fl_rng_normal(1, FL_RNG_BENCH, 2 * site, m, i) /
                         (1 + (double)(i % (size_t)r)));
    }
    for (size_t i = 0; i < (size_t)clients * na; i++) {
        a[i] = (fl_real)fl_rng_normal(1, FL_RNG_BENCH, 2 * site + 1, n, i);
    }
}

/* one client of rank R: the same spectrum for every shape */
static void bench_stacks(const bench_shape *s, double *bs, double *as)
{
    const size_t nb = (size_t)s->m * (size_t)s->nstack, na = (size_t)s->nstack * (size_t)s->n;
    fl_real *b = fl_alloc("bench: b", nb, sizeof *b), *a = fl_alloc("bench: a", na, sizeof *a);

    fl_la_bench_factors(0, s->m, s->n, 1, s->nstack, b, a);
    for (size_t i = 0; i < nb; i++) {
        bs[i] = b[i];
    }
    for (size_t i = 0; i < na; i++) {
        as[i] = a[i];
    }
    fl_free(a);
    fl_free(b);
}

/* one line per solver, and which was the fastest */
static fl_err bench_shape_run(const bench_shape *s, fl_text *t, double *lost)
{
    static const fl_solver solver[] = {FL_SOLVE_FACTORED, FL_SOLVE_DENSE, FL_SOLVE_RANDOMIZED};
    const fl_solver chosen = fl_svd_choose(s->m, s->n, s->nstack, s->r, FL_SVD_TOL);
    const size_t nm = (size_t)s->m, nn = (size_t)s->n, nr = (size_t)s->r;
    double *bs = fl_alloc("bench: B", nm * (size_t)s->nstack, sizeof *bs);
    double *as = fl_alloc("bench: A", (size_t)s->nstack * nn, sizeof *as);
    double *u = fl_alloc("bench: u", nm * nr, sizeof *u),
           *sv = fl_alloc("bench: sv", nr, sizeof *sv);
    double *vt = fl_alloc("bench: vt", nr * nn, sizeof *vt), least = 0, of_chosen = 0;
    fl_solver fastest = solver[0];
    fl_err err = FL_OK;

    bench_stacks(s, bs, as);
    for (size_t i = 0; i < FL_COUNT(solver) && err == FL_OK; i++) {
        fl_svd_report report = {0};
        double seconds = 0;
        bool ran;

        for (double all = 0, start = fl_now(); err == FL_OK && all < 0.1; all = fl_now() - start) {
            const double before = fl_now();

            err = fl_svd_factors(
                solver[i], s->m, s->n, s->nstack, bs, as, s->r, u, sv, vt, true, &report);
            seconds = seconds == 0 ? fl_now() - before : FL_MIN(seconds, fl_now() - before);
        }
        if (err != FL_OK) {
            break;
        }
        ran = strcmp(report.solver, fl_solver_name[solver[i]]) == 0;
        fl_text_add(t, "  %4d x %-4d R %-5d top %-3d %-11s%s %9.4f   %9.1e   %9.1e   %.12f%s%s\n",
            s->m, s->n, s->nstack, s->r, fl_solver_name[solver[i]], solver[i] == chosen ? "*" : " ",
            seconds, report.residual, report.orthogonality, report.discarded,
            ran ? "" : "  not certified: was ", ran ? "" : report.solver);
        if (i == 0 || (ran && seconds < least)) {
            fastest = solver[i];
            least = seconds;
        }
        of_chosen = solver[i] == chosen ? seconds : of_chosen;
    }
    if (err == FL_OK) {
        *lost = FL_MAX(*lost, of_chosen / least);
        fl_text_add(t, "      fastest here: svd.solver: %s; auto takes %.2f times that\n",
            fl_solver_name[fastest], of_chosen / least);
    }
    fl_free(vt);
    fl_free(sv);
    fl_free(u);
    fl_free(as);
    fl_free(bs);
    return err;
}

/* seconds of the best of three */
static double bench_dgemm(int n, const double *x, double *y)
{
    double best = 0;

    for (int i = 0; i < 3; i++) {
        const double start = fl_now();

        fl_dgemm('n', 'n', n, n, n, 1, x, x, 0, y);
        best = i == 0 ? fl_now() - start : FL_MIN(best, fl_now() - start);
    }
    return best;
}

/* the model counts operations in units of DGEMM's */
static fl_err bench_weights(fl_text *t)
{
    enum { N = 768, LEN = 3072, COUNT = 256 };
    double *x = fl_alloc("bench: x", (size_t)N * N, sizeof *x);
    double *y = fl_alloc("bench: y", (size_t)N * N, sizeof *y);
    double *sv = fl_alloc("bench: sv", N, sizeof *sv);
    double *z = fl_alloc("bench: z", (size_t)N * N, sizeof *z);
    double *v = fl_alloc("bench: rows", (size_t)LEN * COUNT, sizeof *v), gemm, qr, svd;
    fl_la_reflectors f;
    fl_err err;

    for (size_t i = 0; i < (size_t)N * N; i++) {
        x[i] = fl_rng_normal(1, FL_RNG_BENCH, 0, 0, i);
    }
    for (size_t i = 0; i < (size_t)LEN * COUNT; i++) {
        v[i] = fl_rng_normal(1, FL_RNG_BENCH, 1, 0, i);
    }
    gemm = bench_dgemm(N, x, y) / (2.0 * N * N * N);
    qr = fl_now();
    err = fl_la_reflectors_make(COUNT, LEN, v, z, &f);
    qr = (fl_now() - qr) / (2.0 * LEN * COUNT * COUNT - 2.0 / 3 * COUNT * COUNT * COUNT);
    fl_la_reflectors_free(&f);
    svd = fl_now();
    err = err ? err : fl_svd(N, N, x, y, sv, z);
    svd = (fl_now() - svd) / ((double)N * N * N);
    fl_text_add(t,
        "DGEMM %.1f GFLOP/s; in its operations DGEQRT takes %.2f each (auto's model: %.1f), DGESDD "
        "%.0f n^3 (%.0f)\n",
        1e-9 / gemm, qr / gemm, FL_LA_WEIGHT_QR, svd / gemm, FL_LA_WEIGHT_SVD);
    fl_free(z);
    fl_free(sv);
    fl_free(y);
    fl_free(x);
    return err;
}

static fl_err bench_shapes(int count, const bench_shape *shape, fl_text *t)
{
    double lost = 0;

    FL_TRY(bench_weights(t));
    fl_text_add(t, "  %-28s %-12s %9s   %9s   %9s   %s\n", "shape", "solver", "s", "residual",
        "orthogon.", "discarded");
    for (int i = 0; i < count; i++) {
        FL_TRY(bench_shape_run(&shape[i], t, &lost));
    }
    fl_text_add(t, "  * = what auto chooses. Suggestion: svd.solver: auto%s\n",
        lost > 1.5 ? ", or the fastest of the shape nearest to yours" : "");
    return FL_OK;
}

static fl_err bench_run(fl_ctx *ctx, bool large, fl_text *t)
{
    static const bench_shape shape[] = {{768, 768, 64, 8}, {768, 768, 320, 8}, {768, 768, 700, 8},
        {768, 3072, 1600, 8},
        /* large only */
        {4096, 4096, 320, 16}, {4096, 4096, 960, 16}, {2048, 2048, 3000, 16}};
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        fl_text_add(t, "SVD of a sum of products, %s; limit: SGEMM %.1f GFLOP/s on one thread\n",
            fl_blas_name(), fl_gemm_peak(1024, 1024, 1024));
        err = bench_shapes(large ? 7 : 4, shape, t);
    }
    FL_TRY_ALL(ctx, err);
    return large ? fl_la_bench_sites(ctx, 64, 4096, 20, 16, true, t)
                 : fl_la_bench_sites(ctx, 16, 512, 20, 8, false, t);
}

fl_err fl_bench_svd(fl_ctx *ctx, fl_text *t)
{
    return bench_run(ctx, false, t);
}

fl_err fl_bench_svd_large(fl_ctx *ctx, fl_text *t)
{
    return bench_run(ctx, true, t);
}
