/* local.c - a client's own work: local training on its samples with a stack of adapters (fl_train).
 * Batches, dropout and schedules are functions of (seed, client, round, stream, step); moments
 * start at zero. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

enum { MAX_GROUPS = FL_MAX_ADAPTERS * FL_NFACTORS };
typedef struct group { /* entries and factors that share a learning rate: one optimiser each */
    int entry;
    double lr;
    int nranges;
    fl_range *range; /* turn arena; offsets in the entry's vector */
    fl_optim optim;
} group;

typedef struct local {
    fl_runtime *rt;
    fl_client *c;
    fl_job *job;
    int ngroups;
    group groups[MAX_GROUPS];
    fl_pass pass;
    int entry[FL_MAX_ADAPTERS]; /* of the stack, for every adapter of the pass */
    fl_adapter grad[FL_MAX_ADAPTERS];
    size_t at[FL_MAX_ADAPTERS]; /* offset of entry's gradient in g */
    size_t ng;                  /* elements of g */
    fl_real *g; /* turn arena [ng]: gradients of all trained and watched entries, contiguous */
    int nclip;
    fl_range *clip; /* turn arena: the ranges that train, in g */
    int dense;      /* entry in a DENSE space, -1 = none */
    fl_real *own;   /* it trains: private weights [space->n], else NULL */
} local;

fl_job fl_job_of(const fl_run *run, fl_client *c)
{
    fl_job job = run->job;

    job.stack = (fl_stack){.n = 1, .ad = {c->ad[0]}, .coef = {1}};
    job.data = (fl_data){.client = c->id, .split = FL_TRAIN};
    return job;
}

static bool trains(const fl_job *job, int entry)
{
    return job->train[entry].factors != FL_NONE;
}

/* has a gradient: trains or is watched */
static bool counts(const fl_job *job, int entry)
{
    return trains(job, entry) || (job->watch & FL_BIT(entry)) != 0;
}

/* the ranges of one factor of an entry that train; out NULL = only counts */
static int entry_ranges(const local *lo, int entry, int f, fl_range *out)
{
    const fl_space *sp = lo->job->stack.ad[entry]->space;
    fl_pick pick = lo->job->train[entry];
    int n = 0;

    for (int i = 0; i < sp->nslots; i++) {
        if (sp->slot[i].factor == (fl_factor)f && trains(lo->job, entry)) {
            n += pick_runs(sp, pick, i, out != NULL ? out + n : NULL);
        }
    }
    return n;
}

static int all_ranges(const local *lo, int entry)
{
    int n = 0;

    for (int f = 0; f < FL_NFACTORS; f++) {
        n += entry_ranges(lo, entry, f, NULL);
    }
    return n;
}

/* one group per factor with a learning rate of its own; equal rates share one */
static void local_groups(local *lo, int entry)
{
    const fl_space *sp = lo->job->stack.ad[entry]->space;
    fl_run *run = &lo->rt->run;
    int first = lo->ngroups;
    size_t most = (size_t)all_ranges(lo, entry);

    for (int f = 0; f < FL_NFACTORS; f++) {
        if (entry_ranges(lo, entry, f, NULL) == 0) {
            continue;
        }
        double lr = lo->job->lr[f] > 0 ? lo->job->lr[f] : 1;
        int at = first;

        while (at < lo->ngroups && lo->groups[at].lr != lr) {
            at++;
        }
        group *gr = &lo->groups[at];

        if (at == lo->ngroups) {
            *gr =
                (group){.entry = entry, .lr = lr, .range = fl_scratch(run, most, sizeof(fl_range))};
            lo->ngroups++;
        }
        fl_range *r = gr->range + gr->nranges;
        int n = entry_ranges(lo, entry, f, r);

        gr->nranges += n;
        for (int i = 0; i < n; i++) {
            lo->clip[lo->nclip++] = (fl_range){lo->at[entry] + r[i].at, r[i].n};
        }
    }
    for (int i = first; i < lo->ngroups; i++) {
        const fl_deck_train *d = &lo->rt->deck->train;

        fl_optim_create(&lo->groups[i].optim, d->optimizer, d->beta1, d->beta2, d->eps,
            d->weight_decay, d->momentum, sp->n);
    }
}

/* a DENSE entry: w and dw of its tensors point into private copies */
static void local_full(local *lo, int entry)
{
    fl_runtime *rt = lo->rt;
    const fl_adapter *ad = lo->job->stack.ad[entry];
    const fl_space *sp = ad->space;
    size_t ntensors = (size_t)rt->base.model.ntensors;
    const fl_real *const *base = base_weights(rt, &lo->job->stack);
    const fl_real **w = fl_scratch(&rt->run, ntensors, sizeof *w);
    fl_real **dw = fl_scratch(&rt->run, ntensors, sizeof *dw);

    memcpy(w, base, ntensors * sizeof *w);
    lo->own = fl_scratch(&rt->run, sp->n, sizeof *lo->own);
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];

        for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
            lo->own[s->at + j] = base[s->site][j] + ad->v[s->at + j];
        }
        w[s->site] = lo->own + s->at;
        if (counts(lo->job, entry)) {
            dw[s->site] = lo->g + lo->at[entry] + s->at;
        }
    }
    lo->pass.w = w;
    lo->pass.dw = counts(lo->job, entry) ? dw : NULL;
    lo->dense = entry;
}

static void local_begin(local *lo, fl_client *c)
{
    fl_runtime *rt = lo->rt;
    fl_stack *st = &lo->job->stack;
    size_t total = 0, nranges = 0;

    lo->c = c;
    lo->dense = -1;
    setup_work(rt, st);
    for (int j = 0; j < st->n; j++) {
        lo->at[j] = total;
        total += counts(lo->job, j) ? st->ad[j]->space->n : 0;
        nranges += (size_t)all_ranges(lo, j);
    }
    lo->ng = total;
    lo->g = fl_scratch(&rt->run, total, sizeof *lo->g);
    lo->clip = fl_scratch(&rt->run, nranges, sizeof *lo->clip);
    lo->pass = (fl_pass){.w = base_weights(rt, st),
        .dropout = rt->deck->adapter.dropout,
        .seed = rt->run.seed,
        .id = c->id,
        .round = rt->run.round.t};
    for (int j = 0; j < st->n; j++) {
        space_kind kind = space_kind_of(rt, st->ad[j]->space);
        unsigned factors = lo->job->train[j].factors;

        if (counts(lo->job, j)) {
            lo->grad[j] = (fl_adapter){.space = st->ad[j]->space, .v = lo->g + lo->at[j]};
        }
        if (trains(lo->job, j)) {
            local_groups(lo, j);
        }
        if (kind == SPACE_DENSE) {
            FL_REQUIRE(lo->dense < 0);
            local_full(lo, j);
        } else if (kind != SPACE_PLAIN) {
            int at = lo->pass.n++;

            lo->entry[at] = j;
            lo->pass.ad[at] = st->ad[j];
            lo->pass.grad[at] = counts(lo->job, j) ? &lo->grad[j] : NULL;
            lo->pass.factors[at] = (lo->job->watch & FL_BIT(j)) != 0 ? 0 : factors;
        }
    }
}

/* after the last step: a dense entry's change of the base back into the adapter */
static void local_end(local *lo)
{
    for (int i = 0; i < lo->ngroups; i++) {
        fl_optim_destroy(&lo->groups[i].optim);
    }
    if (lo->dense >= 0 && trains(lo->job, lo->dense)) {
        fl_adapter *ad = lo->job->stack.ad[lo->dense];
        const fl_real *const *base = base_weights(lo->rt, &lo->job->stack);

        for (int i = 0; i < ad->space->nslots; i++) {
            const fl_slot *s = &ad->space->slot[i];

            for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
                if (fl_picked(ad->space, lo->job->train[lo->dense], i, j)) {
                    ad->v[s->at + j] = lo->own[s->at + j] - base[s->site][j];
                }
            }
        }
    }
}

/* the method's step hook */
static fl_err local_hook(local *lo, fl_when when, int i, int n, double *loss)
{
    fl_step s = {.when = when, .i = i, .n = n, .job = lo->job, .loss = loss};

    if (lo->rt->method->step == NULL) {
        return FL_OK;
    }
    for (int j = 0; when == FL_GRAD && j < lo->job->stack.n; j++) {
        s.grad[j] = counts(lo->job, j) ? &lo->grad[j] : NULL;
    }
    return lo->rt->method->step(&lo->rt->run, lo->c, &s);
}

/* gradients that no pass writes start at zero; the hook may have changed the coefficients */
static void local_ready(local *lo)
{
    for (int j = 0; j < lo->job->stack.n; j++) {
        const fl_space *sp = lo->job->stack.ad[j]->space;

        if (counts(lo->job, j) && sp->nslots > 0 && sp->slot[0].factor == FL_PLAIN) {
            memset(lo->grad[j].v, 0, sp->n * sizeof(fl_real));
        }
    }
    for (int k = 0; k < lo->pass.n; k++) {
        lo->pass.coef[k] = lo->job->stack.coef[lo->entry[k]];
    }
}

/* one step's batch: its samples are in rt->picked */
typedef struct batch_sum {
    double loss; /* mean over the targets */
    int targets;
    bool stop; /* somebody of the team was told to stop at the next step */
} batch_sum;

static void account(local *lo, const fl_batch *b)
{
    fl_runtime *rt = lo->rt;

    rt->train_tokens += b->ntokens;
    for (int j = 0; j < lo->job->stack.n; j++) {
        const fl_space *sp = lo->job->stack.ad[j]->space;

        if (sp->nslots > 0 && sp->slot[0].factor != FL_PLAIN) {
            rt->flops +=
                fl_model_flops(&rt->base.model, sp, b->ntokens, (double)b->ntokens / b->nseq, true);
            break;
        }
    }
}

/* loss and gradient of the whole batch in one pass */
static void gradient_whole(local *lo, int step, int npicked, batch_sum *sum)
{
    fl_runtime *rt = lo->rt;

    lo->pass.step = step + (lo->job->stream << 20);
    fl_batch_fill(&rt->batcher, &rt->data, npicked, rt->picked, rt->deck->model.max_length);
    sum->loss = fl_nn_grad(rt->work, &lo->pass, &rt->batcher.batch, &sum->targets);
    sum->stop = fl_stop_poll() >= 2;
    account(lo, &rt->batcher.batch);
}

enum { SHARD_LOSS, SHARD_TARGETS, SHARD_ROW };

/* shard s of the batch into the team's sum, weighted by its targets; a power of two keeps weights
 * on the grid */
static fl_err add_shard(local *lo, int step, int shard, int npicked, fl_sum *g, double *row)
{
    fl_runtime *rt = lo->rt;
    int nshards = rt->deck->cohort.shards, targets;
    int from = (int)((int64_t)npicked * shard / nshards),
        to = (int)((int64_t)npicked * (shard + 1) / nshards);

    if (from == to) {
        return FL_OK;
    }
    lo->pass.step =
        step * nshards + shard + (lo->job->stream << 20); /* every shard drops out by itself */
    fl_batch_fill(
        &rt->batcher, &rt->data, to - from, rt->picked + from, rt->deck->model.max_length);
    row[SHARD_LOSS] = fl_nn_grad(rt->work, &lo->pass, &rt->batcher.batch, &targets) * targets;
    row[SHARD_TARGETS] = targets;
    account(lo, &rt->batcher.batch);
    if (targets == 0) {
        return FL_OK;
    }
    return fl_sum_add(g, 0, lo->ng, lo->g, targets / 1048576.0);
}

/* loss and gradient of the batch as T parts, by whatever ranks the team has */
static fl_err gradient_shards(local *lo, int step, int npicked, batch_sum *sum)
{
    fl_runtime *rt = lo->rt;
    fl_ctx *team = rt->team;
    int nshards = rt->deck->cohort.shards;
    fl_mark mark = fl_arena_mark(rt->turn);
    size_t nrows = SHARD_ROW * (size_t)nshards;
    double *rows = fl_scratch(&rt->run, nrows + 1, sizeof *rows);
    fl_sum *g = fl_sum_create(lo->ng, 0);
    fl_err err = FL_OK;

    for (int s = team->rank; s < nshards && err == FL_OK; s += team->size) {
        err = add_shard(lo, step, s, npicked, g, rows + SHARD_ROW * s);
    }
    rows[nrows] = fl_stop_poll() >= 2;
    err = fl_agree(team, err);
    if (err == FL_OK) {
        fl_fill_in(team, nrows + 1, rows);
        err = fl_sum_reduce(team, g);
    }
    *sum = (batch_sum){.stop = rows[nrows] > 0};
    for (int s = 0; s < nshards; s++) {
        sum->loss += rows[SHARD_ROW * s + SHARD_LOSS];
        sum->targets += (int)rows[SHARD_ROW * s + SHARD_TARGETS];
    }
    if (err == FL_OK && sum->targets > 0) {
        double *y = fl_scratch(&rt->run, lo->ng, sizeof *y);

        sum->loss /= sum->targets;
        fl_sum_get(g, 0, lo->ng, y);
        for (size_t i = 0; i < lo->ng; i++) {
            lo->g[i] = (fl_real)(y[i] * 1048576.0 / sum->targets);
        }
    }
    fl_sum_destroy(&g);
    fl_arena_reset(rt->turn, mark);
    return err;
}

static void local_update(local *lo, int step, int nsteps)
{
    const fl_deck_train *d = &lo->rt->deck->train;
    double factor = fl_schedule(d->schedule, d->warmup, step, nsteps);

    fl_clip(d->clip, lo->nclip, lo->clip, lo->g);
    for (int i = 0; i < lo->ngroups; i++) {
        group *gr = &lo->groups[i];
        fl_real *x = gr->entry == lo->dense ? lo->own : lo->job->stack.ad[gr->entry]->v;

        fl_optim_step(&gr->optim, d->lr * factor * gr->lr, gr->nranges, gr->range,
            lo->g + lo->at[gr->entry], x);
    }
}

fl_err fl_train(fl_run *run, fl_client *c, fl_job *job)
{
    fl_runtime *rt = run->rt;
    const fl_deck *deck = rt->deck;
    int64_t n = fl_partition_count(&rt->part, job->data.client, job->data.split);
    const uint32_t *list =
        rt->part.list[job->data.split] + rt->part.first[job->data.split][job->data.client];
    int batch = deck->train.batch, steps = job->steps;
    local lo = {.rt = rt, .job = job};
    batch_sum sum = {0};
    fl_err err = FL_OK;
    bool finite = true;

    if (n == 0) {
        return FL_OK;
    }
    if (job->epochs > 0) {
        steps = job->epochs * fl_steps_per_epoch(n, batch);
    }
    local_begin(&lo, c);
    for (int step = 0; step < steps && !sum.stop && err == FL_OK; step++) {
        err = local_hook(&lo, FL_BEFORE, step, steps, NULL);
        local_ready(&lo);
        if (err != FL_OK) {
            break;
        }
        int picked = fl_batch_pick(run->seed, job->data.client, run->round.t, job->stream, step,
            batch, n, list, rt->picked);

        if (deck->cohort.shards > 1) {
            err = gradient_shards(&lo, step, picked, &sum);
        } else {
            gradient_whole(&lo, step, picked, &sum);
        }
        if (err == FL_OK && sum.targets > 0) {
            err = local_hook(&lo, FL_GRAD, step, steps, &sum.loss);
            if (err == FL_OK) {
                local_update(&lo, step, steps);
                err = local_hook(&lo, FL_AFTER, step, steps, NULL);
            }
        }
        c->turn->loss += sum.loss;
        c->turn->steps++;
        finite = finite && isfinite(sum.loss);
    }
    local_end(&lo);
    FL_TRY(err);
    return finite ? FL_OK
                  : fl_fail(FL_ENUM,
                        "round %d, client %d: the training loss is not finite; lower train.lr, or "
                        "set train.clip",
                        run->round.t, c->id);
}
