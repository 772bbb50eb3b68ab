/* aggregate_write.c - the result of `fedlora aggregate` as PEFT folders: OUT, and OUT/residual for
 * what the method would merge into the base, or both in one. Sites are assembled by their owners,
 * one at a time each, and written by rank 0. */
#include "aggregate.h"

#include <math.h>
#include <string.h>

/* ---- parts ---- */
static const fl_adapter *part_adapter(const aggregation *g, int part)
{
    const fl_run *run = &g->rt->run;

    return part > 0                 ? g->rt->merged[part - 1].ad
           : run->installed != NULL ? run->installed
                                    : run->global;
}

int aggregate_parts(const aggregation *g)
{
    return 1 + g->rt->nmerges;
}

int64_t aggregate_r(const aggregation *g, int part, int site)
{
    const fl_adapter *ad = part_adapter(g, part);
    int r = ad->space->r[site];
    fl_mat b = fl_at(ad, site, FL_B);

    if (part > 0) {
        return r;
    }
    while (r > 0) { /* an SVD of less than full rank, or cut by its energy, ends with zeros */
        for (int i = 0; i < b.rows; i++) {
            if (b.x[(size_t)i * (size_t)b.cols + (size_t)(r - 1)] != 0) {
                return r;
            }
        }
        r--;
    }
    return r;
}

double aggregate_scale(const aggregation *g, int part, int site)
{
    const fl_adapter *ad = part_adapter(g, part);

    return ad->space->scale[site] * (part > 0 ? g->rt->merged[part - 1].coef : 1);
}

void aggregate_part(
    aggregation *g, int part, int site, const fl_pile *in, const fl_real **a, const fl_real **b)
{
    fl_runtime *rt = g->rt;
    const fl_adapter *ad = part_adapter(g, part);
    const fl_site *st = &rt->base.model.site[site];
    size_t r = (size_t)aggregate_r(g, part, site), na = r * (size_t)st->n, nb = (size_t)st->m * r;
    fl_real *x = fl_scratch(&rt->run, na, sizeof *x), *y = fl_scratch(&rt->run, nb, sizeof *y);

    if (ad == rt->lazy) {
        double *bs, *as;
        int64_t nstack;

        fl_site_stack(&rt->run, site, in, rt->lazy_label, rt->lazy_w, &nstack, &bs, &as);
        for (size_t i = 0; i < na; i++) {
            x[i] = (fl_real)as[i];
        }
        for (size_t i = 0; i < nb; i++) {
            y[i] = (fl_real)bs[i];
        }
    } else {
        fl_mat from = fl_at(ad, site, FL_A), to = fl_at(ad, site, FL_B);

        memcpy(x, from.x, na * sizeof *x);
        for (size_t i = 0; i < (size_t)st->m; i++) {
            memcpy(y + i * r, to.x + i * (size_t)to.cols, r * sizeof *y);
        }
    }
    *a = x;
    *b = y;
}

/* ---- one folder: parts from .. to - 1 ---- */
typedef struct folder {
    int from, to;
    int *r;        /* round arena [nsites] */
    double *scale; /* round arena [nsites] */
    fl_peft_out *out;
} folder;

static void folder_ranks(const aggregation *g, folder *f)
{
    size_t n = (size_t)g->set->nsites;

    f->r = fl_arena_take(g->rt->round, n, sizeof *f->r);
    f->scale = fl_arena_take(g->rt->round, n, sizeof *f->scale);
    for (int j = 0; j < g->set->nsites; j++) {
        for (int p = f->from; p < f->to; p++) {
            f->r[j] += (int)aggregate_r(g, p, j);
        }
        f->scale[j] = f->to - f->from == 1 ? aggregate_scale(g, f->from, j) : 1;
    }
}

/* A (R x n) then B (m x R) of a site; several parts: their scales go into A */
static fl_real *assemble(aggregation *g, const folder *f, int site, const fl_pile *in)
{
    const fl_site *st = &g->rt->base.model.site[site];
    size_t r = (size_t)f->r[site], m = (size_t)st->m, n = (size_t)st->n, at = 0;
    fl_real *x = fl_scratch(&g->rt->run, r * (m + n), sizeof *x), *y = x + r * n;

    for (int p = f->from; p < f->to; p++) {
        size_t own = (size_t)aggregate_r(g, p, site);
        double s = aggregate_scale(g, p, site) / f->scale[site];
        const fl_real *a, *b;

        if (own == 0) {
            continue;
        }
        aggregate_part(g, p, site, in, &a, &b);
        for (size_t i = 0; i < own * n; i++) {
            x[at * n + i] = (fl_real)(s * (double)a[i]);
        }
        for (size_t i = 0; i < m; i++) {
            memcpy(y + i * r + at, b + i * own, own * sizeof *y);
        }
        at += own;
    }
    return x;
}

/* the wave's sites from their owners to rank 0, which writes them */
static fl_err write_wave(aggregation *g, const folder *f, int wave, int nwaves)
{
    fl_runtime *rt = g->rt;
    fl_ctx *ctx = rt->ctx;
    size_t *nsend = fl_arena_take(rt->round, (size_t)ctx->size, sizeof *nsend);
    size_t *ngot = fl_arena_take(rt->round, (size_t)ctx->size, sizeof *ngot), at = 0;
    const fl_pile in = {rt->inbox.nitems, rt->inbox.bysite};
    fl_real *send = NULL;
    void *got = NULL;
    fl_err err = FL_OK;

    for (int j = 0; j < g->set->nsites; j++) { /* at most one of a rank's sites is in a wave */
        if (rt->owner[j] == ctx->rank && pile_in_wave(rt, j, wave, nwaves) && f->r[j] > 0) {
            const fl_site *st = &rt->base.model.site[j];

            FL_REQUIRE(send == NULL);
            send = assemble(g, f, j, &in);
            nsend[0] = (size_t)f->r[j] * ((size_t)st->m + (size_t)st->n) * sizeof *send;
        }
    }
    fl_exchange(ctx, send, nsend, &got, ngot);
    for (int j = 0; ctx->rank == 0 && j < g->set->nsites && err == FL_OK; j++) {
        if (f->r[j] > 0 && pile_in_wave(rt, j, wave, nwaves)) { /* owners ascend with the sites */
            const fl_site *st = &rt->base.model.site[j];
            const fl_real *x = (const fl_real *)got + at;

            err = fl_peft_out_site(f->out, j, x, x + (size_t)f->r[j] * (size_t)st->n);
            at += (size_t)f->r[j] * ((size_t)st->m + (size_t)st->n);
        }
    }
    fl_free(got);
    return fl_agree(ctx, err);
}

/* heads and other tensors saved in full: sum_k p_k x_k */
static fl_err write_extras(aggregation *g, fl_peft_out *out)
{
    for (int e = 0; e < g->set->nextras; e++) {
        size_t n = g->set->extra[e].n;
        fl_mark mark = fl_arena_mark(g->rt->round);
        fl_real *x = fl_arena_take(g->rt->round, n, sizeof *x);
        double *sum = fl_arena_take(g->rt->round, n, sizeof *sum);

        for (int k = 0; k < g->set->nfolders; k++) {
            FL_TRY(fl_peft_set_read_extra(g->set, k, e, x));
            for (size_t i = 0; i < n; i++) {
                sum[i] += g->how->w[k] * (double)x[i];
            }
        }
        for (size_t i = 0; i < n; i++) {
            x[i] = (fl_real)sum[i];
        }
        FL_TRY(fl_peft_out_extra(out, e, x));
        fl_arena_reset(g->rt->round, mark);
    }
    return FL_OK;
}

static void progress(const aggregation *g, int wave, int nwaves)
{
    if (g->how->progress && g->rt->ctx->rank == 0) {
        fprintf(stderr, "\r%s", "");
        if (wave < nwaves) {
            fprintf(stderr, "writing: module %d of %d ", wave + 1, nwaves);
        }
        fflush(stderr);
    }
}

static fl_err write_folder(aggregation *g, const char *dir, bool extras, folder *f)
{
    fl_runtime *rt = g->rt;
    bool writes = rt->ctx->rank == 0;
    double rounding = 0;
    fl_err err = FL_OK;

    folder_ranks(g, f);
    fl_peft_how how = {.r = f->r,
        .scale = f->scale,
        .dtype = (fl_peft_dtype)g->how->dtype,
        .rslora = g->set->nrslora == g->set->nfolders,
        .no_extras = !extras};
    int nwaves = pile_waves(rt);

    FL_TRY_ALL(rt->ctx, writes ? fl_peft_out_begin(g->set, dir, &how, &f->out) : FL_OK);
    for (int wave = 0; wave < nwaves && err == FL_OK; wave++) {
        fl_mark before = fl_arena_mark(rt->round);

        progress(g, wave, nwaves);
        if (rt->lazy != NULL) {
            err = pile_by_site(rt, wave, nwaves);
        }
        if (err == FL_OK) {
            err = write_wave(g, f, wave, nwaves);
        }
        pile_forget(rt);
        fl_arena_reset(rt->round, before);
    }
    progress(g, nwaves, nwaves);
    if (err == FL_OK && extras && writes) {
        err = write_extras(g, f->out);
    }
    if (err == FL_OK && writes) {
        err = fl_peft_out_commit(&f->out, &rounding);
    } else if (writes) {
        fl_peft_out_drop(&f->out);
    }
    FL_TRY_ALL(rt->ctx, err);
    fl_log(rt->ctx, "written   %s%s", dir,
        extras && g->set->nextras > 0 ? " (with the averaged heads)" : "");
    if (rounding > 0) {
        fl_log(rt->ctx, "rounding  %.1e of the norm, by the number format", rounding);
    }
    return FL_OK;
}

fl_err aggregate_write(aggregation *g)
{
    int nparts = aggregate_parts(g), first = 1;
    fl_text dir = {0};
    fl_err err;

    for (int j = 0; j < g->set->nsites; j++) { /* a start without effect is left out */
        first = aggregate_r(g, 0, j) > 0 ? 0 : first;
    }
    if (nparts == 1 || g->how->stacked || first == 1) {
        folder f = {.from = nparts == 1 ? 0 : first, .to = nparts};

        return write_folder(g, g->how->out, true, &f);
    }
    folder f = {.from = 0, .to = 1}, residual = {.from = 1, .to = nparts};

    err = write_folder(g, g->how->out, true, &f);
    if (err == FL_OK) {
        fl_text_add(&dir, "%s/residual", g->how->out);
        err = write_folder(g, dir.s, false, &residual);
        fl_log(g->rt->ctx, "note      load both adapters with weight 1: their sum is the result "
                           "(or use --stacked)");
    }
    fl_text_free(&dir);
    return err;
}
