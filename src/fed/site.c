/* site.c - verbs that need single messages, site by site at the site's owner: fl_sites and stacks.
 * The unit of every product and factorisation is a whole site, so bits do not depend on how sites
 * are spread. */
#include "fed_internal.h"

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
void site_replicate(fl_runtime *rt, fl_adapter *ad)
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

/* without messages: all sites in one go */
static fl_err walk_alone(fl_runtime *rt,
    fl_err (*visit)(fl_runtime *rt, int site, const fl_pile *in, void *arg), void *arg)
{
    const fl_pile none = {0, NULL};
    fl_err err = FL_OK;

    for (int j = 0; j < rt->base.model.nsites && err == FL_OK; j++) {
        if (owns(rt, j)) {
            fl_mark mark = fl_arena_mark(rt->round);

            err = visit(rt, j, &none, arg);
            fl_arena_reset(rt->round, mark);
        }
    }
    return fl_agree(rt->ctx, err);
}

fl_err site_walk(fl_runtime *rt,
    fl_err (*visit)(fl_runtime *rt, int site, const fl_pile *in, void *arg), void *arg)
{
    int nwaves = pile_waves(rt);
    fl_err err = FL_OK;

    for (int wave = 0; wave < nwaves && err == FL_OK; wave++) {
        fl_mark before = fl_arena_mark(rt->round);

        FL_TRY(pile_by_site(rt, wave, nwaves));
        fl_pile complete = {rt->inbox.nitems, rt->inbox.bysite};

        for (int j = 0; j < rt->base.model.nsites && err == FL_OK; j++) {
            if (owns(rt, j) && pile_in_wave(rt, j, wave, nwaves)) {
                fl_mark mark = fl_arena_mark(rt->round);

                err = visit(rt, j, &complete, arg);
                fl_arena_reset(rt->round, mark);
            }
        }
        if (nwaves > 1) {
            pile_forget(rt);
            fl_arena_reset(rt->round, before);
        }
        err = fl_agree(rt->ctx, err);
    }
    return err;
}

typedef struct sites_arg {
    fl_site_fn *fn;
    void *arg;
    fl_adapter **out;
    int nrow;
    double *rows;
} sites_arg;

static fl_err sites_visit(fl_runtime *rt, int site, const fl_pile *in, void *arg)
{
    const sites_arg *a = arg;

    if (rt->run.space->nsites == 0 || rt->run.space->r[site] == 0) {
        return FL_OK;
    }
    rt->in_sites = true;
    fl_err err = a->fn(&rt->run, site, in, a->out,
        a->rows != NULL ? a->rows + (size_t)site * (size_t)a->nrow : NULL, a->arg);

    rt->in_sites = false;
    return err;
}

fl_err fl_sites(fl_run *run, fl_pile *in, fl_site_fn *fn, void *arg, int nout, fl_adapter **out,
    int nrow, double *rows)
{
    fl_runtime *rt = run->rt;
    sites_arg a = {fn, arg, out, nrow, rows};
    size_t nrows = (size_t)run->nsites * (size_t)nrow;

    FL_REQUIRE(in == NULL || (rt->aggregating && (rt->method->needs & FL_EACH) != 0));
    if (nrows > 0) {
        memset(rows, 0, nrows * sizeof *rows);
    }
    FL_TRY(in != NULL ? site_walk(rt, sites_visit, &a) : walk_alone(rt, sites_visit, &a));
    for (int i = 0; i < nout; i++) {
        if (out[i]->at == NULL) {
            site_replicate(rt, out[i]);
        }
    }
    if (nrows > 0) {
        for (size_t i = 0; i < nrows; i++) {
            rows[i] += 0.0; /* no -0: sums over ranks lose it */
        }
        fl_fill_in(rt->ctx, nrows, rows);
    }
    return FL_OK;
}

/* ---- stacks ---- */
static bool stacks(const fl_item *it, int label)
{
    return it->label == label && it->space->nsites > 0;
}

int64_t site_stack_r(const fl_pile *in, int label, int site)
{
    int64_t r = 0;

    for (int i = 0; i < in->n; i++) {
        r += stacks(&in->item[i], label) ? in->item[i].space->r[site] : 0;
    }
    return r;
}

/* bs (m x R) = [B_1 ..], as (R x n) = [w_1 s_1 A_1; ..] from column / row *at on; R = nstack is the
 * leading dimension of bs */
void site_stack(const fl_item *item, int n, int label, const double *w, int site, double *bs,
    double *as, int64_t nstack, int64_t *at)
{
    for (int i = 0; i < n; i++) {
        if (!stacks(&item[i], label)) {
            continue;
        }
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

void fl_site_stack(fl_run *run, int site, const fl_pile *in, int label, const double *w,
    int64_t *nstack, double **bs, double **as)
{
    const fl_site *st = &run->rt->base.model.site[site];
    int64_t at = 0;

    *nstack = site_stack_r(in, label, site);
    *bs = fl_scratch(run, (size_t)st->m * (size_t)*nstack, sizeof **bs);
    *as = fl_scratch(run, (size_t)*nstack * (size_t)st->n, sizeof **as);
    if (w == NULL) {
        w = mixing_weights(run, in, &(fl_mixing){.label = label});
    }
    site_stack(in->item, in->n, label, w, site, *bs, *as, *nstack, &at);
}

typedef struct stack_arg {
    const double *w;
    int label;
} stack_arg;

static fl_err stack_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const stack_arg *sa = arg;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    double *as, *bs;
    int64_t nstack;

    (void)row;
    fl_site_stack(run, site, in, sa->label, sa->w, &nstack, &bs, &as);
    for (size_t i = 0; i < (size_t)a.rows * (size_t)a.cols; i++) {
        a.x[i] = (fl_real)as[i];
    }
    for (size_t i = 0; i < (size_t)b.rows * (size_t)b.cols; i++) {
        b.x[i] = (fl_real)bs[i];
    }
    return FL_OK;
}

/* adapters in files: the stack would be as large as all of them, so it is read again where it is
 * needed */
static fl_err remember_stack(fl_run *run, stack_arg arg, const fl_space *sp, fl_adapter **out)
{
    fl_adapter *ad = fl_scratch(run, 1, sizeof *ad);
    size_t *at = fl_scratch(run, (size_t)sp->nslots, sizeof *at);

    memset(at, 0xff, (size_t)sp->nslots * sizeof *at); /* SIZE_MAX: not here */
    *ad = (fl_adapter){.space = sp, .at = at};
    run->rt->lazy = *out = ad;
    run->rt->lazy_w = arg.w;
    run->rt->lazy_label = arg.label;
    return FL_OK;
}

fl_err fl_stack_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out)
{
    stack_arg arg = {mixing_weights(run, in, how), how->label};
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);

    for (int j = 0; j < run->nsites; j++) {
        int64_t total = site_stack_r(in, how->label, j);

        if (total > (1 << 24)) {
            return fl_fail(FL_ESHAPE,
                "round %d: a stack of rank %lld is more than 2^24; lower cohort.size or adapter.r",
                run->round.t, (long long)total);
        }
        r[j] = (int)total;
    }
    if (*out == NULL && run->rt->source != NULL) {
        return remember_stack(run, arg, fl_space_stack(run, r), out);
    }
    if (*out == NULL) {
        *out = fl_scratch_spread(run, fl_space_stack(run, r));
    }
    return fl_sites(run, in, stack_site, &arg, 1, out, 0, NULL);
}
