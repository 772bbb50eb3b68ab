/* bench_svd.c - seconds of the ways to the SVD of a sum of products: thin LQs and a small core
 * against the dense DGESDD, and PDGESVD on the ranks of the job against DGESDD of the same smaller
 * matrix. */
#include "la_internal.h"

/* X of the bench and room for what is found; on rank 0 only, NULL elsewhere */
typedef struct bench_case {
    int m, n, nstack, r;
    double *bs, *as;     /* owned [m][R], [R][n] */
    double *u, *sv, *vt; /* owned [m][r], [r], [r][n] */
} bench_case;

static bench_case bench_make(bool here, int m, int n, int nstack, int r)
{
    bench_case c = {.m = m, .n = n, .nstack = nstack, .r = r};
    const size_t nb = (size_t)m * (size_t)nstack, na = (size_t)nstack * (size_t)n;

    if (!here) {
        return c;
    }
    c.bs = fl_alloc("bench: B", nb, sizeof *c.bs);
    c.as = fl_alloc("bench: A", na, sizeof *c.as);
    c.u = fl_alloc("bench: u", (size_t)m * (size_t)r, sizeof *c.u);
    c.sv = fl_alloc("bench: sv", (size_t)r, sizeof *c.sv);
    c.vt = fl_alloc("bench: vt", (size_t)r * (size_t)n, sizeof *c.vt);
    for (size_t i = 0; i < nb; i++) {
        c.bs[i] = fl_rng_normal(1, FL_RNG_BENCH, 0, m, i);
    }
    for (size_t i = 0; i < na; i++) {
        c.as[i] = fl_rng_normal(1, FL_RNG_BENCH, 1, n, i);
    }
    return c;
}

static void bench_free(bench_case *c)
{
    fl_free(c->bs);
    fl_free(c->as);
    fl_free(c->u);
    fl_free(c->sv);
    fl_free(c->vt);
}

static void bench_line(fl_text *t, const char *what, int ranks, double seconds, double against,
    const fl_svd_report *report)
{
    fl_text_add(t, "  %-26s %5d %10.4f %9.2f   %9.1e   %9.1e\n", what, ranks, seconds,
        seconds / against, report->residual, report->orthogonality);
}

/* best of `runs`, and the certificate of one more */
static fl_err bench_local(
    fl_solver solver, int runs, bench_case *c, double *seconds, fl_svd_report *report)
{
    for (int i = 0; i < runs; i++) {
        const double start = fl_now();

        FL_TRY(fl_svd_factors(
            solver, c->m, c->n, c->nstack, c->bs, c->as, c->r, c->u, c->sv, c->vt, false, report));
        *seconds = i == 0 ? fl_now() - start : FL_MIN(*seconds, fl_now() - start);
    }
    return fl_svd_factors(
        solver, c->m, c->n, c->nstack, c->bs, c->as, c->r, c->u, c->sv, c->vt, true, report);
}

static void bench_head(fl_text *t, const bench_case *c)
{
    fl_text_add(t, "%d x %d, R = %d, top %d (auto chooses %s)\n", c->m, c->n, c->nstack, c->r,
        fl_svd_choose(c->m, c->n, c->nstack) == FL_SOLVE_FACTORED ? "factored" : "dense");
    fl_text_add(t, "  %-26s %5s %10s %9s   %9s   %9s\n", "solver", "ranks", "s", "x dense",
        "residual", "orthogon.");
}

static fl_err bench_factored(fl_ctx *ctx, fl_text *t)
{
    bench_case c = bench_make(ctx->rank == 0, 1024, 1024, 160, 32);
    double dense = 1, factored = 1;
    fl_svd_report of_dense = {0}, of_factored = {0};
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        err = bench_local(FL_SOLVE_DENSE, 1, &c, &dense, &of_dense);
        err = err ? err : bench_local(FL_SOLVE_FACTORED, 5, &c, &factored, &of_factored);
    }
    bench_free(&c);
    FL_TRY_ALL(ctx, err);
    if (ctx->rank == 0) {
        bench_head(t, &c);
        bench_line(t, "dense (DGESDD)", 1, dense, dense, &of_dense);
        bench_line(t, "factored", 1, factored, dense, &of_factored);
    }
    return FL_OK;
}

static fl_err bench_grid(fl_ctx *ctx, fl_text *t)
{
    bench_case c = bench_make(ctx->rank == 0, 512, 512, 160, 32);
    double dense = 1, spread = 1, start;
    fl_svd_report of_dense = {0}, of_spread = {0};
    fl_grid *grid = NULL;
    char what[48];
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        err = bench_local(FL_SOLVE_DENSE, 2, &c, &dense, &of_dense);
    }
    err = fl_agree(ctx, err);
    err = err ? err : fl_grid_create(ctx, 0, 0, 64, &grid);
    if (err == FL_OK) {
        start = fl_now();
        err = fl_grid_svd(
            grid, 0, c.m, c.n, c.nstack, c.bs, c.as, c.r, c.u, c.sv, c.vt, false, &of_spread);
        spread = fl_now() - start;
    }
    if (err == FL_OK) {
        err = fl_grid_svd(
            grid, 0, c.m, c.n, c.nstack, c.bs, c.as, c.r, c.u, c.sv, c.vt, true, &of_spread);
    }
    if (err == FL_OK && ctx->rank == 0) {
        fl_text_add(t, "smaller, because PDGESVD is slow: ");
        bench_head(t, &c);
        bench_line(t, "dense (DGESDD)", 1, dense, dense, &of_dense);
        /* on a grid with less than a block per process the owner does it by LAPACK */
        snprintf(what, sizeof what, "%s (%d x %d grid)",
            of_spread.solver[0] == 's' ? "PDGESVD" : "too small for", fl_grid_rows(grid),
            fl_grid_cols(grid));
        bench_line(t, what, fl_grid_rows(grid) * fl_grid_cols(grid), spread, dense, &of_spread);
    }
    fl_grid_destroy(&grid);
    bench_free(&c);
    return err;
}

fl_err fl_bench_svd(fl_ctx *ctx, fl_text *t)
{
    if (ctx->rank == 0) {
        fl_text_add(t, "SVD of a sum of products, %s; limit: SGEMM %.1f GFLOP/s on one thread\n",
            fl_blas_name(), fl_gemm_peak(1024, 1024, 1024));
    }
    FL_TRY(bench_factored(ctx, t));
    return bench_grid(ctx, t);
}
