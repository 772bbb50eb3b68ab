/* svd_mix.c - SVDs on the server: of the weighted sum of products (fl_svd_mix), of any product at a
 * site, of the base or a dense update (fl_svd_of). Every factorisation is certified against
 * svd.tol. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

typedef struct svd_arg {
    const double *w;
    int label;
    fl_grid *grid;
} svd_arg;

/* what every site reports: squared norms kept and discarded, the certificate, which solver ran */
enum { SVD_KEPT, SVD_LOST, SVD_RESIDUAL, SVD_ORTHOGONALITY, SVD_DENSE, SVD_SCALAPACK, SVD_ROW };

/* s B = U S, A = V' into out's site */
static void svd_split(
    fl_adapter *out, int site, const double *u, const double *sv, const double *vt)
{
    fl_mat a = fl_at(out, site, FL_A), b = fl_at(out, site, FL_B);
    double s = out->space->scale[site];
    int r = a.rows;

    for (int i = 0; i < b.rows * r; i++) {
        b.x[i] = (fl_real)(u[i] * sv[i % r] / s);
    }
    for (int i = 0; i < r * a.cols; i++) {
        a.x[i] = (fl_real)vt[i];
    }
}

static fl_err judge(const fl_runtime *rt, int site, const fl_svd_report *report)
{
    return report->residual <= rt->deck->svd.tol
               ? FL_OK
               : fl_fail(FL_ENUM,
                     "round %d: the SVD of %s by solver %s has a relative residual of %.1e, more "
                     "than svd.tol: %.1e; try svd.solver: dense",
                     rt->run.round.t, rt->base.model.site[site].name, report->solver,
                     report->residual, rt->deck->svd.tol);
}

fl_err fl_site_svd(fl_run *run, int site, int64_t nstack, const double *bs, const double *as, int r,
    double *u, double *sv, double *vt)
{
    const fl_site *st = &run->rt->base.model.site[site];
    int solver = run->rt->deck->svd.solver;
    fl_svd_report report;

    FL_TRY(fl_svd_factors((fl_solver)(solver == FL_SVD_SCALAPACK ? FL_SVD_AUTO : solver), st->m,
        st->n, nstack, bs, as, r, u, sv, vt, true, &report));
    return judge(run->rt, site, &report);
}

static fl_err svd_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_runtime *rt = run->rt;
    const svd_arg *sa = arg;
    const fl_site *st = &rt->base.model.site[site];
    int r = out[0]->space->r[site];
    int64_t nstack = site_stack_r(in, sa->label, site);
    bool here = rt->owner[site] == rt->ctx->rank;
    double *bs = NULL, *as = NULL, *u = NULL, *sv = NULL, *vt = NULL, kept = 0;
    fl_svd_report report = {0};

    if (here) {
        u = fl_scratch(run, (size_t)st->m * (size_t)r, sizeof *u);
        sv = fl_scratch(run, (size_t)r, sizeof *sv);
        vt = fl_scratch(run, (size_t)r * (size_t)st->n, sizeof *vt);
        fl_site_stack(run, site, in, sa->label, sa->w, &nstack, &bs, &as);
    }
    if (sa->grid != NULL) {
        FL_TRY(fl_grid_svd(
            sa->grid, rt->owner[site], st->m, st->n, nstack, bs, as, r, u, sv, vt, true, &report));
    } else {
        FL_TRY(fl_svd_factors((fl_solver)rt->deck->svd.solver, st->m, st->n, nstack, bs, as, r, u,
            sv, vt, true, &report));
    }
    if (!here) {
        return FL_OK;
    }
    svd_split(out[0], site, u, sv, vt);
    for (int i = 0; i < r; i++) {
        kept += sv[i] * sv[i];
    }
    row[SVD_KEPT] = kept;
    row[SVD_LOST] = report.discarded < 1 ? kept * report.discarded / (1 - report.discarded) : 0;
    row[SVD_RESIDUAL] = report.residual;
    row[SVD_ORTHOGONALITY] = report.orthogonality;
    row[SVD_DENSE] = strcmp(report.solver, "dense") == 0;
    row[SVD_SCALAPACK] = strcmp(report.solver, "scalapack") == 0;
    return judge(rt, site, &report);
}

/* the choice and its certificate, once at the start and then whenever it is the worst so far */
static void svd_log(fl_runtime *rt, const double *rows)
{
    int n = 0, dense = 0, scalapack = 0;
    double residual = 0, orthogonality = 0;

    for (int j = 0; j < rt->run.nsites; j++) {
        const double *row = rows + (size_t)SVD_ROW * (size_t)j;

        n += rt->run.space->r[j] > 0;
        dense += row[SVD_DENSE] != 0;
        scalapack += row[SVD_SCALAPACK] != 0;
        residual = fmax(residual, row[SVD_RESIDUAL]);
        orthogonality = fmax(orthogonality, row[SVD_ORTHOGONALITY]);
    }
    if (rt->svd_worst == 0 || residual > 10 * rt->svd_worst) {
        fl_log(rt->ctx,
            "svd       %d sites: %d factored, %d dense, %d scalapack; ||X - USV'|| / ||X|| %.1e, "
            "orthogonality %.1e",
            n, n - dense - scalapack, dense, scalapack, residual, orthogonality);
        rt->svd_worst = fmax(residual, 1e-300);
    }
}

/* every site by the whole process grid, one after the other; all ranks take part */
static fl_err svd_on_grid(fl_run *run, fl_pile *in, svd_arg *arg, fl_adapter **out, double *rows)
{
    fl_runtime *rt = run->rt;
    const fl_deck_svd *d = &rt->deck->svd;
    int nwaves = pile_waves(rt);
    fl_err err = FL_OK;

    FL_TRY(fl_grid_create(rt->ctx, d->grid.n == 2 ? d->grid.x[0] : 0,
        d->grid.n == 2 ? d->grid.x[1] : 0, d->block, &arg->grid));
    for (int wave = 0; wave < nwaves && err == FL_OK; wave++) {
        fl_mark before = fl_arena_mark(rt->round);

        err = pile_by_site(rt, wave, nwaves);
        fl_pile complete = {in->n, rt->inbox.bysite};

        for (int j = 0; j < run->nsites && err == FL_OK; j++) {
            fl_mark mark = fl_arena_mark(rt->round);

            if (run->space->r[j] > 0 && pile_in_wave(rt, j, wave, nwaves)) {
                err = fl_agree(rt->ctx,
                    svd_site(run, j, &complete, out, rows + (size_t)SVD_ROW * (size_t)j, arg));
            }
            fl_arena_reset(rt->round, mark);
        }
        if (nwaves > 1) {
            pile_forget(rt);
            fl_arena_reset(rt->round, before);
        }
    }
    fl_grid_destroy(&arg->grid);
    FL_TRY(err);
    site_replicate(rt, *out);
    fl_fill_in(rt->ctx, SVD_ROW * (size_t)run->nsites, rows);
    return FL_OK;
}

fl_err fl_svd_mix(
    fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out, double *discarded)
{
    fl_runtime *rt = run->rt;
    svd_arg arg = {.w = mixing_weights(run, in, how), .label = how->label};
    double *rows = fl_scratch(run, SVD_ROW * (size_t)run->nsites, sizeof *rows), kept = 0, lost = 0;

    FL_REQUIRE(rt->aggregating && (rt->method->needs & FL_EACH) != 0 && (*out)->at == NULL);
    fl_phase_begin(rt->ctx, FL_PHASE_svd);
    fl_err err = rt->deck->svd.solver == FL_SVD_SCALAPACK
                     ? svd_on_grid(run, in, &arg, out, rows)
                     : fl_sites(run, in, svd_site, &arg, 1, out, SVD_ROW, rows);

    fl_phase_end(rt->ctx, FL_PHASE_svd);
    FL_TRY(err);
    for (int j = 0; j < run->nsites; j++) {
        kept += rows[(size_t)SVD_ROW * (size_t)j + SVD_KEPT];
        lost += rows[(size_t)SVD_ROW * (size_t)j + SVD_LOST];
    }
    svd_log(rt, rows);
    if (discarded != NULL) {
        *discarded = kept + lost > 0 ? lost / (kept + lost) : 0;
    }
    return FL_OK;
}

/* ---- SVD of the base, or of a dense update ---- */
typedef struct svd_of_arg {
    const fl_adapter *dense;
    double split;
} svd_of_arg;

static fl_err svd_of_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_runtime *rt = run->rt;
    const svd_of_arg *of = arg;
    const fl_site *st = &rt->base.model.site[site];
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    int tensor, row0, k = FL_MIN(st->m, st->n), r = a.rows;
    size_t mn = (size_t)st->m * (size_t)st->n;
    double s = out[0]->space->scale[site];

    (void)in;
    (void)row;
    if (a.x == NULL) {
        return FL_OK;
    }
    fl_model_site_tensor(&rt->base.model, site, &tensor, &row0);
    const fl_real *w =
        of->dense != NULL ? fl_at(of->dense, tensor, FL_DENSE).x : rt->base.w[tensor];
    double *x = fl_scratch(run, mn, sizeof *x);
    double *u = fl_scratch(run, (size_t)st->m * (size_t)k, sizeof *u);
    double *sv = fl_scratch(run, (size_t)k, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)k * (size_t)st->n, sizeof *vt);

    for (size_t i = 0; i < mn; i++) {
        x[i] = (double)w[(size_t)row0 * (size_t)st->n + i];
    }
    FL_TRY(fl_svd(st->m, st->n, x, u, sv, vt));
    for (int i = 0; i < st->m; i++) {
        for (int j = 0; j < r; j++) {
            b.x[(size_t)i * (size_t)r + (size_t)j] =
                (fl_real)(u[(size_t)i * (size_t)k + (size_t)j] * sv[j] / s /
                          pow(sv[j] / s, of->split));
        }
    }
    for (int j = 0; j < r; j++) {
        for (int i = 0; i < st->n; i++) {
            a.x[(size_t)j * (size_t)st->n + (size_t)i] =
                (fl_real)(pow(sv[j] / s, of->split) * vt[(size_t)j * (size_t)st->n + (size_t)i]);
        }
    }
    for (size_t i = 0; i < (size_t)b.rows * (size_t)r;
         i++) { /* 0 / 0^split of a missing direction */
        b.x[i] = isfinite(b.x[i]) ? b.x[i] : 0;
    }
    return FL_OK;
}

fl_err fl_svd_of(fl_run *run, const fl_adapter *dense, double split, fl_adapter *ad)
{
    svd_of_arg arg = {dense, split};

    FL_REQUIRE(ad->at == NULL && ad->space->nsites > 0);
    return fl_sites(run, NULL, svd_of_site, &arg, 1, &ad, 0, NULL);
}
