/* mix.c - weighted sums over clients, the same bits in any order on any number of ranks (comm.h,
 * fl_sum). */
#include "fed_internal.h"

const double *mixing_weights(fl_run *run, const fl_pile *in, const fl_mixing *how)
{
    double *w;

    if (how->w != NULL) {
        return how->w;
    }
    w = fl_scratch(run, (size_t)in->n, sizeof *w);
    for (int i = 0; i < in->n; i++) {
        w[i] = how->even ? 1.0 / in->n : in->item[i].p;
    }
    return w;
}

static bool in_pick(fl_pick pick, fl_factor f)
{
    return pick.factors == 0 || (pick.factors != FL_NONE && (pick.factors & FL_BIT(f)) != 0);
}

/* the slots of out that are written: picked, and of a factor that travelled from somebody */
static bool is_mixed(const fl_pile *in, const fl_mixing *how, const fl_slot *s)
{
    for (int i = 0; in_pick(how->pick, s->factor) && i < in->n; i++) {
        if (in_pick(in->item[i].pick, s->factor)) {
            return true;
        }
    }
    return false;
}

static fl_err add_item(fl_runtime *rt, fl_sum *sum, const fl_space *out, const fl_item *it,
    const fl_adapter *ad, double w, const fl_pile *in, const fl_mixing *how)
{
    fl_mark mark = fl_arena_mark(rt->round);
    fl_err err = FL_OK;

    if (ad->space != out) {
        fl_adapter *fit = fl_scratch_adapter(&rt->run, out);

        fl_fit(fit, ad);
        ad = fit;
    }
    for (int i = 0; i < out->nslots && err == FL_OK; i++) {
        const fl_slot *s = &out->slot[i];

        if (is_mixed(in, how, s) && in_pick(it->pick, s->factor)) {
            err = fl_sum_add(sum, s->at, (size_t)s->rows * (size_t)s->cols, ad->v + s->at, w);
            if (err != FL_OK) {
                fl_fail(err, "round %d, client %d, %s: the sum over clients is out of range",
                    rt->run.round.t, it->client, s->name);
            }
        }
    }
    fl_arena_reset(rt->round, mark);
    return err;
}

fl_err fl_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out)
{
    fl_runtime *rt = run->rt;
    const double *w = mixing_weights(run, in, how);
    const fl_space *sp = (*out)->space;
    const fl_inbox *box = &rt->inbox;
    fl_err err = FL_OK;

    FL_REQUIRE(rt->aggregating && (*out)->at == NULL);
    fl_phase_begin(rt->ctx, FL_PHASE_sum);
    fl_sum *sum = fl_sum_create(sp->n, 0);

    for (int i = box->first_item[rt->ctx->rank];
         i < box->first_item[rt->ctx->rank + 1] && err == FL_OK; i++) {
        err = add_item(rt, sum, sp, &in->item[i], box->mine[i], w[i], in, how);
    }
    err = fl_agree(rt->ctx, err);
    if (err == FL_OK) {
        err = fl_sum_reduce(rt->ctx, sum);
    }
    for (int i = 0; i < sp->nslots && err == FL_OK; i++) {
        const fl_slot *s = &sp->slot[i];
        size_t n = (size_t)s->rows * (size_t)s->cols;

        if (is_mixed(in, how, s)) {
            fl_mark mark = fl_arena_mark(rt->round);
            double *y = fl_scratch(run, n, sizeof *y);

            fl_sum_get(sum, s->at, n, y);
            for (size_t j = 0; j < n; j++) {
                (*out)->v[s->at + j] = (fl_real)y[j];
            }
            fl_arena_reset(rt->round, mark);
        }
    }
    fl_sum_destroy(&sum);
    fl_phase_end(rt->ctx, FL_PHASE_sum);
    return err;
}
