/* site.c - verbs that need single messages, site by site at the site's owner: fl_sites, stacks,
 * SVDs, merges into the base. The unit of every product and factorisation is a whole site, so bits
 * do not depend on how sites are spread. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

static bool owns(const fl_runtime *rt, int site)
{
    return rt->owner[site] == rt->ctx->rank;
}

/* ---- spread results back to everybody ---- */
static size_t site_pack(const fl_adapter *ad, int site, fl_real *x, bool unpack)
{
    size_t at = 0;

    for (int f = FL_A; f <= FL_B; f++) {
        fl_mat m = fl_at(ad, site, (fl_factor)f);
        size_t n = m.x != NULL ? (size_t)m.rows * (size_t)m.cols : 0;

        if (n > 0 && x != NULL) {
            memcpy(unpack ? m.x : x + at, unpack ? x + at : m.x, n * sizeof *x);
        }
        at += n;
    }
    return at;
}

/* sites of a replicated adapter from their owners to all ranks */
static void replicate(fl_runtime *rt, fl_adapter *ad)
{
    for (int rank = 0; rank < rt->ctx->size; rank++) {
        size_t n = 0, at = 0;

        for (int j = 0; j < ad->space->nsites; j++) {
            n += rt->owner[j] == rank ? site_pack(ad, j, NULL, false) : 0;
        }
        fl_real *x = fl_alloc("sites of one owner", n, sizeof *x);

        for (int j = 0; rank == rt->ctx->rank && j < ad->space->nsites; j++) {
            at += rt->owner[j] == rank ? site_pack(ad, j, x + at, false) : 0;
        }
        fl_bcast(rt->ctx, rank, x, n * sizeof *x);
        at = 0;
        for (int j = 0; rank != rt->ctx->rank && j < ad->space->nsites; j++) {
            at += rt->owner[j] == rank ? site_pack(ad, j, x + at, true) : 0;
        }
        fl_free(x);
    }
}

fl_err fl_sites(fl_run *run, fl_pile *in, fl_site_fn *fn, void *arg, int nout, fl_adapter **out,
    int nrow, double *rows)
{
    fl_runtime *rt = run->rt;
    fl_err err = FL_OK;

    FL_REQUIRE(rt->aggregating && (rt->method->needs & FL_EACH) != 0);
    FL_TRY(pile_by_site(rt));
    fl_pile complete = {in->n, rt->inbox.bysite};
    size_t nrows = (size_t)run->nsites * (size_t)nrow;

    if (nrows > 0) {
        memset(rows, 0, nrows * sizeof *rows);
    }
    for (int j = 0; j < run->nsites && err == FL_OK; j++) {
        if (owns(rt, j) && run->space->r[j] > 0) {
            fl_mark mark = fl_arena_mark(rt->round);

            err = fn(
                run, j, &complete, out, rows != NULL ? rows + (size_t)j * (size_t)nrow : NULL, arg);
            fl_arena_reset(rt->round, mark);
        }
    }
    FL_TRY_ALL(rt->ctx, err);
    for (int i = 0; i < nout; i++) {
        if (out[i]->at == NULL) {
            replicate(rt, out[i]);
        }
    }
    if (nrows > 0) {
        fl_fill_in(rt->ctx, nrows, rows);
    }
    return FL_OK;
}

/* ---- stacks ---- */
int64_t site_stack_r(const fl_pile *in, int site)
{
    int64_t r = 0;

    for (int i = 0; i < in->n; i++) {
        r += in->item[i].space->r[site];
    }
    return r;
}

/* bs (m x R) = [B_1 ..], as (R x n) = [w_1 s_1 A_1; ..] from column / row *at on; R = nstack is the
 * leading dimension of bs */
void site_stack(const fl_item *item, int n, const double *w, int site, double *bs, double *as,
    int64_t nstack, int64_t *at)
{
    for (int i = 0; i < n; i++) {
        fl_mat a = fl_at(item[i].ad, site, FL_A), b = fl_at(item[i].ad, site, FL_B);
        double ws = item[i].space->scale[site] * w[i];

        if (a.x == NULL) {
            continue;
        }
        for (int row = 0; row < b.rows; row++) {
            for (int col = 0; col < b.cols; col++) {
                bs[row * nstack + *at + col] = b.x[(size_t)row * b.cols + col];
            }
        }
        for (size_t e = 0; e < (size_t)a.rows * (size_t)a.cols; e++) {
            as[(size_t)*at * a.cols + e] = ws * a.x[e];
        }
        *at += a.rows;
    }
}

static fl_err stack_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const double *w = arg;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    double *as = fl_scratch(run, (size_t)a.rows * (size_t)a.cols, sizeof *as);
    double *bs = fl_scratch(run, (size_t)b.rows * (size_t)b.cols, sizeof *bs);
    int64_t at = 0;

    (void)row;
    site_stack(in->item, in->n, w, site, bs, as, b.cols, &at);
    for (size_t i = 0; i < (size_t)a.rows * (size_t)a.cols; i++) {
        a.x[i] = (fl_real)as[i];
    }
    for (size_t i = 0; i < (size_t)b.rows * (size_t)b.cols; i++) {
        b.x[i] = (fl_real)bs[i];
    }
    return FL_OK;
}

fl_err fl_stack_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out)
{
    const double *w = mixing_weights(run, in, how);
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);

    for (int j = 0; j < run->nsites; j++) {
        int64_t total = site_stack_r(in, j);

        if (total > (1 << 24)) {
            return fl_fail(FL_ESHAPE,
                "round %d: a stack of rank %lld is more than 2^24; lower cohort.size or adapter.r",
                run->round.t, (long long)total);
        }
        r[j] = (int)total;
    }
    if (*out == NULL) {
        *out = fl_scratch_spread(run, fl_space_stack(run, r));
    }
    return fl_sites(run, in, stack_site, (void *)w, 1, out, 0, NULL);
}

/* ---- SVD of the weighted sum of products ---- */
typedef struct svd_arg {
    const double *w;
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

static fl_err svd_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_runtime *rt = run->rt;
    const svd_arg *sa = arg;
    const fl_site *st = &rt->base.model.site[site];
    int r = out[0]->space->r[site];
    int64_t nstack = site_stack_r(in, site), at = 0;
    bool here = owns(rt, site);
    double *bs = NULL, *as = NULL, *u = NULL, *sv = NULL, *vt = NULL, kept = 0;
    fl_svd_report report = {0};

    if (here) {
        bs = fl_scratch(run, (size_t)st->m * (size_t)nstack, sizeof *bs);
        as = fl_scratch(run, (size_t)nstack * (size_t)st->n, sizeof *as);
        u = fl_scratch(run, (size_t)st->m * (size_t)r, sizeof *u);
        sv = fl_scratch(run, (size_t)r, sizeof *sv);
        vt = fl_scratch(run, (size_t)r * (size_t)st->n, sizeof *vt);
        site_stack(in->item, in->n, sa->w, site, bs, as, nstack, &at);
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
    return report.residual <= rt->deck->svd.tol
               ? FL_OK
               : fl_fail(FL_ENUM,
                     "round %d: the SVD of %s by solver %s has a relative residual of %.1e, more "
                     "than svd.tol: %.1e; try svd.solver: dense",
                     run->round.t, st->name, report.solver, report.residual, rt->deck->svd.tol);
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
    fl_err err = FL_OK;

    FL_TRY(pile_by_site(rt));
    FL_TRY(fl_grid_create(rt->ctx, d->grid.n == 2 ? d->grid.x[0] : 0,
        d->grid.n == 2 ? d->grid.x[1] : 0, d->block, &arg->grid));
    fl_pile complete = {in->n, rt->inbox.bysite};

    for (int j = 0; j < run->nsites && err == FL_OK; j++) {
        fl_mark mark = fl_arena_mark(rt->round);

        if (run->space->r[j] > 0) {
            err = fl_agree(
                rt->ctx, svd_site(run, j, &complete, out, rows + (size_t)SVD_ROW * (size_t)j, arg));
        }
        fl_arena_reset(rt->round, mark);
    }
    fl_grid_destroy(&arg->grid);
    FL_TRY(err);
    replicate(rt, *out);
    fl_fill_in(rt->ctx, SVD_ROW * (size_t)run->nsites, rows);
    return FL_OK;
}

fl_err fl_svd_mix(
    fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out, double *discarded)
{
    fl_runtime *rt = run->rt;
    svd_arg arg = {.w = mixing_weights(run, in, how)};
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

/* ---- merges ---- */
/* the site's factors go to one rank of every node, which adds them to the node's copy of the base
 */
static void merge_site(fl_runtime *rt, const fl_adapter *ad, int site, double coef)
{
    const fl_model *m = &rt->base.model;
    int r = ad->space->r[site], tensor, row0, i[2];
    size_t n = (size_t)r * ((size_t)m->site[site].m + (size_t)m->site[site].n), at[2];
    bool spread = ad->at != NULL, one = rt->ctx->nnodes == 1;
    fl_real *x = NULL;

    fl_model_site_tensor(m, site, &tensor, &row0);
    for (int f = FL_A; f <= FL_B; f++) {
        i[f] = ad->space->slot_of[2 * site + f];
    }
    if (spread && !one) {
        x = fl_alloc("factors to merge", n, sizeof *x);
        if (owns(rt, site)) {
            site_pack(ad, site, x, false);
        }
        if (!fl_to_nodes(rt->ctx, rt->owner[site], site % rt->min_node_size, x, n * sizeof *x)) {
            fl_free(x);
            return;
        }
    } else if (one ? !owns(rt, site) : rt->ctx->node_rank != site % rt->min_node_size) {
        return;
    }
    size_t *slot_at = fl_alloc("slot offsets", (size_t)ad->space->nslots, sizeof *slot_at);

    memset(slot_at, 0xff, (size_t)ad->space->nslots * sizeof *slot_at);
    at[FL_A] = 0;
    at[FL_B] = (size_t)r * (size_t)m->site[site].n;
    for (int f = FL_A; f <= FL_B; f++) {
        slot_at[i[f]] = x != NULL ? at[f] : spread ? ad->at[i[f]] : ad->space->slot[i[f]].at;
    }
    fl_adapter view = {.space = ad->space, .v = x != NULL ? x : ad->v, .at = slot_at};

    fl_linear_merge(m, site, (fl_real *)(uintptr_t)rt->base.w[tensor], &view, coef);
    fl_free(slot_at);
    fl_free(x);
}

fl_err fl_merge(fl_run *run, const fl_adapter *ad, double coef, fl_told told)
{
    fl_runtime *rt = run->rt;
    double bytes = 0;

    FL_REQUIRE(rt->aggregating && (rt->method->needs & FL_MERGES) != 0 && rt->nmerges < MAX_MERGES);
    fl_phase_begin(rt->ctx, FL_PHASE_merge);
    fl_share_fence(rt->ctx); /* nobody of the node still trains on the old base */
    for (int j = 0; j < ad->space->nsites; j++) {
        if (ad->space->r[j] > 0) {
            merge_site(rt, ad, j, coef);
            bytes += 4.0 * ad->space->r[j] * ((double)ad->space->m[j] + ad->space->n_in[j]);
        }
    }
    fl_share_fence(rt->ctx);
    fl_phase_end(rt->ctx, FL_PHASE_merge);
    rt->base_revision++;
    rt->revision_bytes[run->round.t] += told == FL_SENT ? bytes : 0;
    if (ad->at ==
        NULL) { /* the method may change it afterwards; the discordance needs it as it was */
        fl_adapter *copy = fl_scratch_adapter(run, ad->space);

        memcpy(copy->v, ad->v, ad->space->n * sizeof *copy->v);
        ad = copy;
    }
    rt->merged[rt->nmerges++] = (fl_merged){ad, coef};
    return FL_OK;
}
