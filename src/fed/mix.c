/* mix.c - weighted sums over clients, the same bits in any order on any number of ranks (comm.h,
 * fl_sum). */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

const double *mixing_weights(fl_run *run, const fl_pile *in, const fl_mixing *how)
{
    double *w;
    int n = 0;

    if (how->w != NULL) {
        return how->w;
    }
    for (int i = 0; i < in->n; i++) {
        n += in->item[i].label == how->label;
    }
    w = fl_scratch(run, (size_t)in->n, sizeof *w);
    for (int i = 0; i < in->n; i++) {
        w[i] = how->even ? 1.0 / FL_MAX(n, 1) : in->item[i].p;
    }
    return w;
}

/* the slots of out that are written: picked, and of a factor that travelled from somebody */
static bool is_mixed(const fl_pile *in, const fl_mixing *how, const fl_slot *s)
{
    for (int i = 0; pick_factor(how->pick, s->factor) && i < in->n; i++) {
        if (in->item[i].label == how->label && pick_factor(in->item[i].pick, s->factor)) {
            return true;
        }
    }
    return false;
}

/* 1 where the item holds the element of out's slot i, else 0; x [rows * cols] */
static void holds(const fl_space *out, int slot, const fl_space *sp, fl_pick pick, fl_real *x)
{
    const fl_slot *s = &out->slot[slot];
    int own = -1;

    for (int i = 0; i < sp->nslots && own < 0; i++) {
        own = sp->slot[i].site == s->site && sp->slot[i].factor == s->factor ? i : -1;
    }
    memset(x, 0, (size_t)s->rows * (size_t)s->cols * sizeof *x);
    if (own < 0) {
        return;
    }
    const fl_slot *o = &sp->slot[own];
    int n = pick_runs(sp, pick, own, NULL);
    fl_range *run = fl_alloc("runs", (size_t)n, sizeof *run);

    pick_runs(sp, pick, own, run);
    for (int k = 0; k < n; k++) {
        for (size_t e = run[k].at - o->at; e < run[k].at - o->at + run[k].n; e++) {
            size_t row = e / (size_t)o->cols, col = e % (size_t)o->cols;

            if (row < (size_t)s->rows && col < (size_t)s->cols) {
                x[row * (size_t)s->cols + col] = 1;
            }
        }
    }
    fl_free(run);
}

/* one item into the sum, and, if asked for, its weight into the sum of weights */
static fl_err add_item(fl_runtime *rt, fl_sum *sum, fl_sum *weight, const fl_space *out, int item,
    double w, const fl_pile *in, const fl_mixing *how)
{
    const fl_item *it = &in->item[item];
    fl_mark mark = fl_arena_mark(rt->round);
    const fl_adapter *ad;
    fl_err err = pile_item(rt, item, &ad);
    fl_pick pick = rt->inbox.part != NULL && rt->inbox.part[item] != NULL
                       ? rt->inbox.part[item]->pick
                       : it->pick;

    if (err == FL_OK && ad->space != out) {
        fl_adapter *fit = fl_scratch_adapter(&rt->run, out);

        fl_fit(fit, ad);
        ad = fit;
    }
    for (int i = 0; i < out->nslots && err == FL_OK; i++) {
        const fl_slot *s = &out->slot[i];
        size_t n = (size_t)s->rows * (size_t)s->cols;

        if (!is_mixed(in, how, s) || !pick_factor(it->pick, s->factor)) {
            continue;
        }
        const fl_real *x = ad->v + s->at;

        if (weight != NULL) {
            fl_real *own = fl_scratch(&rt->run, 2 * n, sizeof *own), *masked = own + n;

            holds(out, i, it->space, pick, own);
            for (size_t e = 0; e < n; e++) {
                masked[e] = own[e] > 0 ? x[e] : 0;
            }
            x = masked;
            err = fl_sum_add(weight, s->at, n, own, w);
        }
        if (err == FL_OK) {
            err = fl_sum_add(sum, s->at, n, x, w);
        }
        if (err != FL_OK) {
            fl_fail(err, "round %d, client %d, %s: the sum over clients is out of range",
                rt->run.round.t, it->client, s->name);
        }
    }
    fl_arena_reset(rt->round, mark);
    return err;
}

/* y = sum / norm of n elements from s->at on; old: what out holds */
static void finish(const fl_mixing *how, const fl_sum *weight, size_t at, size_t n, double *y,
    double *w, fl_real *out)
{
    fl_sum_get(weight, at, n, w);
    for (size_t e = 0; e < n; e++) {
        double have = w[e];

        if (how->norm == FL_HOLDERS) {
            y[e] = have > 0 ? y[e] / have : (double)out[e];
        } else if (have == 0) {
            y[e] = (double)out[e];
        } else {
            y[e] += (1 - have) * (double)out[e];
        }
    }
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
    fl_sum *weight = how->norm != FL_SUM ? fl_sum_create(sp->n, 0) : NULL;

    for (int i = box->first_item[rt->ctx->rank];
         i < box->first_item[rt->ctx->rank + 1] && err == FL_OK; i++) {
        if (in->item[i].label == how->label) {
            err = add_item(rt, sum, weight, sp, i, w[i], in, how);
        }
    }
    err = fl_agree(rt->ctx, err);
    if (err == FL_OK) {
        err = fl_sum_reduce(rt->ctx, sum);
    }
    if (err == FL_OK && weight != NULL) {
        err = fl_sum_reduce(rt->ctx, weight);
    }
    for (int i = 0; i < sp->nslots && err == FL_OK; i++) {
        const fl_slot *s = &sp->slot[i];
        size_t n = (size_t)s->rows * (size_t)s->cols;

        if (is_mixed(in, how, s)) {
            fl_mark mark = fl_arena_mark(rt->round);
            double *y = fl_scratch(run, 2 * n, sizeof *y);

            fl_sum_get(sum, s->at, n, y);
            if (weight != NULL) {
                finish(how, weight, s->at, n, y, y + n, (*out)->v + s->at);
            }
            for (size_t j = 0; j < n; j++) {
                (*out)->v[s->at + j] = (fl_real)y[j];
            }
            fl_arena_reset(rt->round, mark);
        }
    }
    fl_sum_destroy(&sum);
    fl_sum_destroy(&weight);
    fl_phase_end(rt->ctx, FL_PHASE_sum);
    return err;
}

/* ---- small numbers of single clients, on every rank ---- */
fl_err fl_numbers(fl_run *run, fl_pile *in, const char *name, int nrow, double *rows)
{
    fl_runtime *rt = run->rt;
    const fl_inbox *box = &rt->inbox;
    double *has = fl_scratch(run, (size_t)in->n, sizeof *has);

    FL_REQUIRE(rt->aggregating && (rt->method->needs & FL_NUMBERS) != 0);
    memset(rows, 0, (size_t)in->n * (size_t)nrow * sizeof *rows);
    for (int i = box->first_item[rt->ctx->rank]; i < box->first_item[rt->ctx->rank + 1]; i++) {
        size_t n = 0;
        const double *x = rt->sent != NULL ? fl_get(rt->sent[box->position[i]], name, &n) : NULL;

        if (x != NULL) {
            for (size_t e = 0; e < FL_MIN(n, (size_t)nrow); e++) {
                rows[(size_t)i * (size_t)nrow + e] =
                    x[e] + 0.0; /* no -0: sums over ranks lose it */
            }
            has[i] = 1;
        }
    }
    fl_fill_in(rt->ctx, (size_t)in->n * (size_t)nrow, rows);
    fl_fill_in(rt->ctx, (size_t)in->n, has);
    for (int i = 0; i < in->n; i++) {
        for (int j = 0; has[i] == 0 && j < nrow; j++) {
            rows[(size_t)i * (size_t)nrow + (size_t)j] = NAN;
        }
    }
    return FL_OK;
}

fl_err fl_values(fl_run *run, fl_pile *in, int label, int nrow, double *rows)
{
    fl_runtime *rt = run->rt;
    const fl_inbox *box = &rt->inbox;
    fl_err err = FL_OK;

    FL_REQUIRE(rt->aggregating && (rt->method->needs & FL_EACH) != 0);
    memset(rows, 0, (size_t)in->n * (size_t)nrow * sizeof *rows);
    for (int i = box->first_item[rt->ctx->rank];
         i < box->first_item[rt->ctx->rank + 1] && err == FL_OK; i++) {
        const fl_adapter *ad;

        if (in->item[i].label != label) {
            continue;
        }
        err = pile_item(rt, i, &ad);
        for (size_t e = 0; err == FL_OK && e < FL_MIN((size_t)nrow, ad->space->n); e++) {
            rows[(size_t)i * (size_t)nrow + e] = (double)ad->v[e] + 0.0;
        }
    }
    FL_TRY_ALL(rt->ctx, err);
    fl_fill_in(rt->ctx, (size_t)in->n * (size_t)nrow, rows);
    for (int i = 0; i < in->n; i++) {
        for (int j = 0; in->item[i].label != label && j < nrow; j++) {
            rows[(size_t)i * (size_t)nrow + (size_t)j] = NAN;
        }
    }
    return FL_OK;
}
