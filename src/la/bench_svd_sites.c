/* bench_svd_sites.c - the server's SVDs of one round, end to end: the clients' factors of every
 * site are stacked, factored, certified, and cut to the ranks r / 4, r / 2 and r. Beside it, of one
 * site and times the sites: DGESDD of the dense sum, and PDGESVD of it on two ranks. Every rank
 * takes its share of the sites; what is compared is the sum of the ranks' seconds, one core's work.
 */
#include "bench_internal.h"
#include "fedlora/comm.h"
#include <math.h>
#include <string.h>

typedef struct sites_bench {
    fl_ctx *ctx;
    int nsites, n, clients, r;
    fl_real *b, *a;      /* owned [clients][n][r], [clients][r][n]: one site's messages */
    double *u, *sv, *vt; /* owned [n][r], [r], [r][n] */
    double share[3];     /* discarded at ranks r / 4, r / 2, r of site 0 */
} sites_bench;

enum { SITES_CUTS = 3 };

static int sites_cut(const sites_bench *s, int i)
{
    return FL_MAX(1, s->r >> (SITES_CUTS - 1 - i));
}

static void sites_make(sites_bench *s)
{
    const size_t n = (size_t)s->n, r = (size_t)s->r, each = n * r;

    s->b = fl_alloc("bench: b", (size_t)s->clients * each, sizeof *s->b);
    s->a = fl_alloc("bench: a", (size_t)s->clients * each, sizeof *s->a);
    s->u = fl_alloc("bench: u", each, sizeof *s->u);
    s->sv = fl_alloc("bench: sv", r, sizeof *s->sv);
    s->vt = fl_alloc("bench: vt", each, sizeof *s->vt);
}

static void sites_free(sites_bench *s)
{
    fl_free(s->vt);
    fl_free(s->sv);
    fl_free(s->u);
    fl_free(s->a);
    fl_free(s->b);
}

/* B = U S and A = V' of the first r pairs, in the messages' precision */
static void sites_split(const sites_bench *s, int r, fl_real *b, fl_real *a)
{
    for (int i = 0; i < s->n; i++) {
        for (int j = 0; j < r; j++) {
            b[(size_t)i * (size_t)r + (size_t)j] =
                (fl_real)(s->u[(size_t)i * (size_t)s->r + (size_t)j] * s->sv[j]);
        }
    }
    for (size_t i = 0; i < (size_t)r * (size_t)s->n; i++) {
        a[i] = (fl_real)s->vt[i];
    }
}

/* shares of the energy beyond each cut, from the values kept and the share beyond the last */
static void sites_shares(const sites_bench *s, double discarded, double *share)
{
    double kept = 0;

    for (int i = 0; i < s->r; i++) {
        kept += s->sv[i] * s->sv[i];
    }
    for (int c = 0; c < SITES_CUTS; c++) {
        double beyond = discarded / (1 - discarded) * kept;

        for (int i = sites_cut(s, c); i < s->r; i++) {
            beyond += s->sv[i] * s->sv[i];
        }
        share[c] = beyond * (1 - discarded) / kept;
    }
}

/* all that happens to one site whose messages are there */
static fl_err sites_one(sites_bench *s, fl_solver solver, fl_svd_report *report)
{
    const size_t each = (size_t)s->n * (size_t)s->r;
    fl_real *b = fl_alloc("bench: new b", each, sizeof *b),
            *a = fl_alloc("bench: new a", each, sizeof *a);
    fl_accum *acc = NULL;
    fl_err err =
        fl_accum_create(solver, FL_SVD_TOL, s->n, s->n, (int64_t)s->clients * s->r, s->r, &acc);

    for (int k = 0; k < s->clients && err == FL_OK; k++) {
        fl_accum_add(acc, s->r, 1.0 / s->clients, s->b + (size_t)k * each, s->a + (size_t)k * each);
    }
    err = err ? err : fl_accum_svd(acc, s->u, s->sv, s->vt, true, report);
    for (int c = 0; c < SITES_CUTS && err == FL_OK; c++) {
        sites_split(s, sites_cut(s, c), b, a);
    }
    fl_accum_destroy(&acc);
    fl_free(a);
    fl_free(b);
    return err;
}

/* this rank's sites; rank 0 has site 0, whose shares are kept */
static fl_err sites_ours(
    sites_bench *s, fl_solver solver, int nsites, double *seconds, fl_svd_report *worst)
{
    *seconds = 0;
    *worst = (fl_svd_report){.solver = fl_solver_name[solver]};
    for (int site = s->ctx->rank; site < nsites; site += s->ctx->size) {
        fl_svd_report report = {0};
        double start;

        fl_la_bench_factors(site, s->n, s->n, s->clients, s->r, s->b, s->a);
        start = fl_now();
        FL_TRY(sites_one(s, solver, &report));
        *seconds += fl_now() - start;
        worst->solver = report.solver;
        worst->residual = FL_MAX(worst->residual, report.residual);
        worst->orthogonality = FL_MAX(worst->orthogonality, report.orthogonality);
        if (site == 0) {
            sites_shares(s, report.discarded, s->share);
        }
    }
    return FL_OK;
}

/* largest difference of the discarded shares from ours */
static double sites_difference(const sites_bench *s, const double *share)
{
    double most = 0;

    for (int c = 0; c < SITES_CUTS; c++) {
        most = FL_MAX(most, fabs(share[c] - s->share[c]));
    }
    return most;
}

/* site 0 as stacks, bs (n x R) and as (R x n) */
static void sites_stack(sites_bench *s, double **bs, double **as)
{
    const size_t nr = (size_t)s->clients * (size_t)s->r, n = (size_t)s->n, r = (size_t)s->r;

    fl_la_bench_factors(0, s->n, s->n, s->clients, s->r, s->b, s->a);
    *bs = fl_alloc("bench: B", n * nr, sizeof **bs);
    *as = fl_alloc("bench: A", nr * n, sizeof **as);
    for (size_t i = 0; i < n * nr; i++) {
        const size_t row = i / nr, k = i % nr / r, j = i % r;

        (*bs)[i] = s->b[(k * n + row) * r + j];
        (*as)[i] = s->a[i] / (double)s->clients;
    }
}

static void sites_line(fl_text *t, const sites_bench *s, const char *what, double one, double ratio,
    double target, double difference)
{
    char wanted[32] = "";

    if (target > 0) {
        snprintf(wanted, sizeof wanted, "  (target: >= %.0f)", target);
    }
    fl_text_add(t, "  %-34s %10.4f %12.2f  x %.1f%s", what, one, one * s->nsites, ratio, wanted);
    if (difference >= 0) {
        fl_text_add(t, "  discarded differs by %.1e", difference);
    }
    fl_text_add(t, "\n");
}

/* Collective: DGESDD on rank 0, then PDGESVD on the first two ranks, of site 0 */
static fl_err sites_dense(sites_bench *s, double ours, bool targets, fl_text *t)
{
    fl_ctx *ctx = s->ctx;
    const int q = FL_MIN(2, ctx->size), nstack = s->clients * s->r;
    double *bs = NULL, *as = NULL, seconds[2] = {0, 0}, share[2][SITES_CUTS];
    fl_svd_report report = {0};
    fl_grid *grid = NULL;
    char what[64];
    fl_err err = FL_OK;

    fl_log(ctx, "bench svd: DGESDD of %d x %d", s->n, s->n);
    if (ctx->rank == 0) {
        sites_stack(s, &bs, &as);
        seconds[0] = fl_now();
        err = fl_svd_factors(
            FL_SOLVE_DENSE, s->n, s->n, nstack, bs, as, s->r, s->u, s->sv, s->vt, false, &report);
        seconds[0] = fl_now() - seconds[0];
        sites_shares(s, report.discarded, share[0]);
    }
    err = fl_agree(ctx, err);
    fl_log(ctx, "bench svd: PDGESVD of %d x %d on %d rank%s", s->n, s->n, q, q > 1 ? "s" : "");
    err = err ? err : fl_grid_create(ctx, 1, q, 64, &grid);
    seconds[1] = fl_now();
    err = err ? err
              : fl_grid_svd(
                    grid, 0, s->n, s->n, nstack, bs, as, s->r, s->u, s->sv, s->vt, false, &report);
    seconds[1] = fl_now() - seconds[1];
    fl_grid_destroy(&grid);
    if (err == FL_OK && ctx->rank == 0) {
        sites_shares(s, report.discarded, share[1]);
        sites_line(t, s, "DGESDD", seconds[0], seconds[0] / ours, targets ? 100 : 0,
            sites_difference(s, share[0]));
        snprintf(what, sizeof what, "PDGESVD on %d rank%s", q, q > 1 ? "s" : "");
        sites_line(t, s, what, seconds[1], seconds[1] / ours, targets && q == 2 ? 1000 : 0,
            sites_difference(s, share[1]));
        if (q < 2) {
            fl_text_add(t, "  (start on 2 ranks for PDGESVD on 2)\n");
        }
    }
    fl_free(as);
    fl_free(bs);
    return err;
}

/* one solver on nsites sites: seconds of a site on one core, and of all on the ranks of the job */
static fl_err sites_measure(sites_bench *s, fl_solver solver, int nsites, double *one, fl_text *t)
{
    double seconds, sum, most;
    fl_svd_report report;
    char what[64];

    FL_TRY_ALL(s->ctx, sites_ours(s, solver, nsites, &seconds, &report));
    sum = fl_total(s->ctx, seconds);
    most = fl_max(s->ctx, seconds);
    report.residual = fl_max(s->ctx, report.residual);
    report.orthogonality = fl_max(s->ctx, report.orthogonality);
    *one = sum / nsites;
    if (s->ctx->rank == 0) {
        const bool ran = strcmp(report.solver, fl_solver_name[solver]) == 0;

        snprintf(what, sizeof what, "%s%s%s", fl_solver_name[solver],
            ran ? "" : ", not certified: ", ran ? "" : report.solver);
        fl_text_add(t,
            "  %-34s %10.4f %12.2f  residual %.1e, orthogonality %.1e; %d sites measured, %.2f s "
            "on %d rank%s\n",
            what, *one, *one * s->nsites, report.residual, report.orthogonality, nsites, most,
            s->ctx->size, s->ctx->size > 1 ? "s" : "");
    }
    return FL_OK;
}

fl_err fl_la_bench_sites(
    fl_ctx *ctx, int nsites, int n, int clients, int r, bool targets, fl_text *t)
{
    sites_bench s = {.ctx = ctx, .nsites = nsites, .n = n, .clients = clients, .r = r};
    double ours = 0, sketched = 0;
    fl_err err;

    sites_make(&s);
    if (ctx->rank == 0) {
        fl_text_add(t,
            "%d sites of %d x %d, %d clients of r = %d (R = %d), redistributed to ranks %d, %d, "
            "%d\n"
            "  %-34s %10s %12s  x ours (factored)\n",
            nsites, n, n, clients, r, clients * r, sites_cut(&s, 0), sites_cut(&s, 1),
            sites_cut(&s, 2), "one core", "s a site", "s all sites");
    }
    fl_log(ctx, "bench svd: %d sites of %d x %d", nsites, n, n);
    err = sites_measure(&s, FL_SOLVE_RANDOMIZED, FL_MIN(nsites, 2 * ctx->size), &sketched, t);
    err = err ? err : sites_measure(&s, FL_SOLVE_FACTORED, nsites, &ours, t);
    err = err ? err : sites_dense(&s, ours, targets, t);
    sites_free(&s);
    return err;
}
