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
enum {
    SVD_KEPT,
    SVD_LOST,
    SVD_RESIDUAL,
    SVD_ORTHOGONALITY,
    SVD_SOLVER, /* + solver: 1 where it ran */
    SVD_ROW = SVD_SOLVER + 5
};

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

/* the fewest pairs that hold the share `energy` of the squared norm; the others become zero */
static void cut_energy(double energy, int r, double *sv, double *kept, double *lost)
{
    double all = *kept + *lost, upto = 0;

    for (int i = 0; energy > 0 && i < r; i++) {
        if (upto >= energy * all) {
            sv[i] = 0;
        }
        upto += sv[i] * sv[i];
    }
    if (energy > 0) {
        *lost = FL_MAX(all - upto, 0);
        *kept = upto;
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

static fl_solver solver_of(const fl_runtime *rt)
{
    int solver = rt->deck->svd.solver;

    return (fl_solver)(solver == FL_SVD_SCALAPACK ? FL_SVD_AUTO : solver);
}

fl_err fl_site_svd(fl_run *run, int site, int64_t nstack, const double *bs, const double *as, int r,
    double *u, double *sv, double *vt)
{
    const fl_site *st = &run->rt->base.model.site[site];
    fl_svd_report report;

    FL_TRY(fl_svd_factors_tol(solver_of(run->rt), run->rt->deck->svd.tol, st->m, st->n, nstack, bs,
        as, r, u, sv, vt, true, &report));
    return judge(run->rt, site, &report);
}

/* A and B of an item at a site: as they arrived, or read now */
static fl_err item_at(fl_runtime *rt, int i, const fl_item *it, int site, fl_mat *a, fl_mat *b)
{
    const fl_site *st = &rt->base.model.site[site];

    if (rt->source == NULL) {
        *a = fl_at(it->ad, site, FL_A);
        *b = fl_at(it->ad, site, FL_B);
        return FL_OK;
    }
    size_t r = (size_t)it->space->r[site];

    *a = (fl_mat){fl_scratch(&rt->run, r * (size_t)st->n, sizeof(fl_real)), (int)r, st->n};
    *b = (fl_mat){fl_scratch(&rt->run, (size_t)st->m * r, sizeof(fl_real)), st->m, (int)r};
    return rt->source->site(rt->source->of, i, site, a->x, b->x);
}

/* item after item into the sum, so that thousands of clients are never stacked */
static fl_err svd_accumulate(fl_run *run, int site, const fl_pile *in, const svd_arg *sa, int r,
    double *u, double *sv, double *vt, fl_svd_report *report)
{
    fl_runtime *rt = run->rt;
    const fl_site *st = &rt->base.model.site[site];
    fl_accum *acc;
    fl_err err = fl_accum_create(
        solver_of(rt), rt->deck->svd.tol, st->m, st->n, site_stack_r(in, sa->label, site), r, &acc);

    FL_TRY(err);
    for (int i = 0; i < in->n && err == FL_OK; i++) {
        const fl_item *it = &in->item[i];
        fl_mark mark = fl_arena_mark(rt->round);
        fl_mat a, b;

        if (it->label == sa->label && it->space->nsites > 0 && it->space->r[site] > 0) {
            err = item_at(rt, i, it, site, &a, &b);
            if (err == FL_OK) {
                fl_accum_add(acc, a.rows, sa->w[i] * it->space->scale[site], b.x, a.x);
            }
        }
        fl_arena_reset(rt->round, mark);
    }
    if (err == FL_OK) {
        err = fl_accum_svd(acc, u, sv, vt, true, report);
    }
    fl_accum_destroy(&acc);
    return err;
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
    }
    if (here && sa->grid != NULL) {
        fl_site_stack(run, site, in, sa->label, sa->w, &nstack, &bs, &as);
    }
    if (sa->grid != NULL) {
        FL_TRY(fl_grid_svd(
            sa->grid, rt->owner[site], st->m, st->n, nstack, bs, as, r, u, sv, vt, true, &report));
    } else {
        FL_TRY(svd_accumulate(run, site, in, sa, r, u, sv, vt, &report));
    }
    if (!here) {
        return FL_OK;
    }
    for (int i = 0; i < r; i++) {
        kept += sv[i] * sv[i];
    }
    double lost = report.discarded < 1 ? kept * report.discarded / (1 - report.discarded) : 0;

    cut_energy(rt->svd_energy, r, sv, &kept, &lost);
    svd_split(out[0], site, u, sv, vt);
    row[SVD_KEPT] = kept;
    row[SVD_LOST] = lost;
    row[SVD_RESIDUAL] = report.residual;
    row[SVD_ORTHOGONALITY] = report.orthogonality;
    for (int i = 0; i < 5; i++) {
        row[SVD_SOLVER + i] = strcmp(report.solver, fl_solver_name[i]) == 0;
    }
    return judge(rt, site, &report);
}

/* the choice and its certificate, once at the start and then whenever it is the worst so far */
static void svd_log(fl_runtime *rt, const double *rows)
{
    double residual = 0, orthogonality = 0;
    int n[5] = {0}, sites = 0;
    fl_text t = {0};

    for (int j = 0; j < rt->run.nsites; j++) {
        const double *row = rows + (size_t)SVD_ROW * (size_t)j;

        sites += rt->run.space->r[j] > 0;
        for (int i = 0; i < 5; i++) {
            n[i] += row[SVD_SOLVER + i] != 0;
        }
        residual = fmax(residual, row[SVD_RESIDUAL]);
        orthogonality = fmax(orthogonality, row[SVD_ORTHOGONALITY]);
    }
    if (rt->svd_worst == 0 || residual > 10 * rt->svd_worst) {
        for (int i = 0; i < 5; i++) {
            if (n[i] > 0) {
                fl_text_add(&t, "%s%d %s", t.n > 0 ? ", " : "", n[i], fl_solver_name[i]);
            }
        }
        fl_log(rt->ctx, "svd       %d sites: %s; ||X - USV'|| / ||X|| %.1e, orthogonality %.1e",
            sites, t.n > 0 ? t.s : "none", residual, orthogonality);
        rt->svd_worst = fmax(residual, 1e-300);
        fl_text_free(&t);
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

/* adapters in files are read item by item; messages are exchanged first */
static fl_err svd_by_sites(fl_run *run, fl_pile *in, svd_arg *arg, fl_adapter **out, double *rows)
{
    fl_runtime *rt = run->rt;
    fl_err err = FL_OK;

    if (rt->source == NULL) {
        return fl_sites(run, in, svd_site, arg, 1, out, SVD_ROW, rows);
    }
    for (int j = 0; j < run->nsites && err == FL_OK; j++) {
        if (rt->owner[j] == rt->ctx->rank && run->space->r[j] > 0) {
            fl_mark mark = fl_arena_mark(rt->round);

            err = svd_site(run, j, in, out, rows + (size_t)SVD_ROW * (size_t)j, arg);
            fl_arena_reset(rt->round, mark);
        }
    }
    FL_TRY_ALL(rt->ctx, err);
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
    fl_err err = rt->deck->svd.solver == FL_SVD_SCALAPACK ? svd_on_grid(run, in, &arg, out, rows)
                                                          : svd_by_sites(run, in, &arg, out, rows);

    fl_phase_end(rt->ctx, FL_PHASE_svd);
    FL_TRY(err);
    for (int j = 0; j < run->nsites; j++) {
        kept += rows[(size_t)SVD_ROW * (size_t)j + SVD_KEPT];
        lost += rows[(size_t)SVD_ROW * (size_t)j + SVD_LOST];
        if (rt->site_discarded != NULL) {
            const double *row = rows + (size_t)SVD_ROW * (size_t)j;

            rt->site_discarded[j] = row[SVD_KEPT] + row[SVD_LOST] > 0
                                        ? row[SVD_LOST] / (row[SVD_KEPT] + row[SVD_LOST])
                                        : 0;
        }
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
