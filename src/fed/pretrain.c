/* pretrain.c - `fedlora pretrain`: full-weight training of a small base from deck sections
 * pretrain, data, train. Data parallel and still the same bits on any number of ranks: a step's
 * batch is cut into train.shards parts, every part's gradient goes through the order-free sum,
 * every rank makes the same update. Up to train.shards ranks have work. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

typedef struct pretrain {
    fl_ctx *ctx;
    const fl_deck *deck;
    fl_model model;
    fl_dataset data;
    fl_batcher batcher;
    fl_work *work;
    fl_real *w, *g;     /* owned [segment elements]: weights, gradient, replicated */
    const fl_real **wp; /* owned [ntensors] */
    fl_real **gp;
    size_t n;
    fl_optim optim;
    fl_sum *sum;
    double *y; /* owned [n] the summed gradient */
    uint32_t *train, *valid, *picked;
    int64_t ntrain, nvalid;
    int *first; /* owned [size + 1] shards by rank */
} pretrain;

/* the shape from deck section pretrain, with its defaults by family */
static fl_err model_shape(const fl_deck *deck, int vocab, fl_model *m)
{
    const fl_deck_pretrain *d = &deck->pretrain;
    bool gpt2 = d->family == FL_FAMILY_GPT2;

    *m = (fl_model){.family = d->family,
        .nlayers = d->layers,
        .nd = d->width,
        .nheads = d->heads,
        .nkv = d->kv_heads > 0 ? d->kv_heads : d->heads,
        .hd = d->heads > 0 ? d->width / d->heads : 0,
        .nff = d->ff > 0 ? d->ff
               : gpt2    ? 4 * d->width
                         : (8 * d->width / 3 + 15) / 16 * 16,
        .vocab = vocab,
        .nctx = d->context,
        .rms = !gpt2,
        .rotary = !gpt2,
        .gated = !gpt2,
        .bias = gpt2,
        .tied = gpt2 || d->tied,
        .eps = 1e-5,
        .rope_theta = d->rope_theta,
        .init_range = 0.02};
    if (d->heads > 0 && d->width % d->heads != 0) {
        return fl_fail(FL_EDECK, "pretrain.width: %d is not a multiple of pretrain.heads: %d",
            d->width, d->heads);
    }
    if (deck->model.max_length > d->context) {
        return fl_fail(FL_EDECK, "model.max_length: %d is more than pretrain.context: %d",
            deck->model.max_length, d->context);
    }
    return fl_model_complete(m);
}

static uint32_t *samples_of(const fl_dataset *d, fl_split split, int64_t *n)
{
    uint32_t *list = fl_alloc("samples", (size_t)d->nsamples, sizeof *list);

    *n = 0;
    for (int64_t i = 0; i < d->nsamples; i++) {
        if (d->split[i] == split) {
            list[(*n)++] = (uint32_t)i;
        }
    }
    return list;
}

static void pretrain_create(pretrain *p)
{
    const fl_deck_train *t = &p->deck->train;
    int length = p->deck->model.max_length, batch = FL_MAX(t->batch, p->deck->eval.batch),
        nshards = FL_MIN(t->shards, t->batch);
    double *cost = fl_alloc("shards", (size_t)nshards, sizeof *cost);

    p->n = fl_model_bytes(&p->model) / sizeof(fl_real);
    p->w = fl_alloc("weights", p->n, sizeof *p->w);
    p->g = fl_alloc("gradient", p->n, sizeof *p->g);
    p->y = fl_alloc("summed gradient", p->n, sizeof *p->y);
    p->wp = fl_alloc("tensors", (size_t)p->model.ntensors, sizeof *p->wp);
    p->gp = fl_alloc("tensors", (size_t)p->model.ntensors, sizeof *p->gp);
    for (int i = 0; i < p->model.ntensors; i++) {
        p->wp[i] = p->w + p->model.tensor[i].at;
        p->gp[i] = p->g + p->model.tensor[i].at;
    }
    fl_model_init(&p->model, p->deck->run.seed, p->w);
    fl_optim_create(
        &p->optim, t->optimizer, t->beta1, t->beta2, t->eps, t->weight_decay, t->momentum, p->n);
    p->work = fl_work_create(&p->model, batch * length, batch, length, 0, true);
    fl_batcher_create(&p->batcher, batch, batch * length);
    p->picked = fl_alloc("batch", (size_t)batch, sizeof *p->picked);
    p->sum = fl_sum_create(p->n, 0);
    p->first = fl_alloc("shards of ranks", (size_t)p->ctx->size + 1, sizeof *p->first);
    for (int i = 0; i < nshards; i++) {
        cost[i] = 1;
    }
    fl_layout(nshards, cost, p->ctx->size, p->first);
    fl_free(cost);
}

static void pretrain_destroy(pretrain *p)
{
    fl_optim_destroy(&p->optim);
    fl_work_destroy(&p->work);
    fl_batcher_destroy(&p->batcher);
    if (p->sum != NULL) {
        fl_sum_destroy(&p->sum);
    }
    void *owned[] = {p->w, p->g, p->y, p->wp, p->gp, p->picked, p->first, p->train, p->valid};

    for (size_t i = 0; i < FL_COUNT(owned); i++) {
        fl_free(owned[i]);
    }
    fl_dataset_destroy(&p->data);
    fl_model_free(&p->model);
}

/* gradient of one shard into the sum, weighted by its targets; *loss += its summed loss */
static fl_err shard_gradient(
    pretrain *p, int step, int shard, int nshards, int npicked, double *loss, double *targets)
{
    fl_pass pass = {.w = p->wp, .dw = p->gp, .seed = p->deck->run.seed, .step = step};
    int from = (int)((int64_t)npicked * shard / nshards),
        to = (int)((int64_t)npicked * (shard + 1) / nshards), n;

    if (from == to) {
        return FL_OK;
    }
    fl_batch_fill(&p->batcher, &p->data, to - from, p->picked + from, p->deck->model.max_length);
    memset(p->g, 0, p->n * sizeof *p->g);
    double mean = fl_nn_grad(p->work, &pass, &p->batcher.batch, &n);

    if (!isfinite(mean)) {
        return fl_fail(
            FL_ENUM, "pretraining step %d: the loss is not finite; lower train.lr", step + 1);
    }
    *loss += mean * n;
    *targets += n;
    return fl_sum_add(
        p->sum, 0, p->n, p->g, n / 1048576.0); /* a power of two keeps the weight on the grid */
}

static fl_err pretrain_step(pretrain *p, int step, double *loss)
{
    const fl_deck_train *t = &p->deck->train;
    int npicked =
        fl_batch_pick(p->deck->run.seed, 0, 0, 0, step, t->batch, p->ntrain, p->train, p->picked);
    int nshards = FL_MIN(t->shards, t->batch);
    double x[2] = {0}, *all = fl_alloc("losses", 2 * (size_t)nshards, sizeof *all);
    fl_err err = FL_OK;
    fl_range whole = {0, p->n};

    fl_sum_destroy(&p->sum);
    p->sum = fl_sum_create(p->n, 0);
    for (int s = p->first[p->ctx->rank]; s < p->first[p->ctx->rank + 1] && err == FL_OK; s++) {
        err = shard_gradient(p, step, s, nshards, npicked, &all[2 * s], &all[2 * s + 1]);
    }
    err = fl_agree(p->ctx, err);
    if (err == FL_OK) {
        fl_fill_in(p->ctx, 2 * (size_t)nshards, all);
        for (int s = 0; s < nshards; s++) {
            x[0] += all[2 * s];
            x[1] += all[2 * s + 1];
        }
        err = fl_sum_reduce(p->ctx, p->sum);
    }
    fl_free(all);
    FL_TRY(err);
    fl_sum_get(p->sum, 0, p->n, p->y);
    for (size_t i = 0; i < p->n; i++) {
        p->g[i] = (fl_real)(p->y[i] * 1048576.0 / x[1]);
    }
    fl_clip(t->clip, 1, &whole, p->g);
    fl_optim_step(&p->optim, t->lr * fl_schedule(t->schedule, t->warmup, step, t->steps), 1, &whole,
        p->g, p->w);
    *loss = x[0] / x[1];
    return FL_OK;
}

static double valid_loss(pretrain *p)
{
    int nb = p->deck->eval.batch, most = p->deck->eval.max_samples;
    int n = (int)(most > 0 ? FL_MIN(most, p->nvalid) : p->nvalid), nunits = (n + nb - 1) / nb;
    double *sums = fl_alloc("evaluation", 2 * (size_t)nunits, sizeof *sums), loss = 0, targets = 0;
    fl_stack none = {0};

    for (int u = p->ctx->rank; u < nunits; u += p->ctx->size) {
        eval_sum s =
            eval_samples(p->work, &p->batcher, &p->data, p->wp, &none, p->deck->model.max_length,
                p->model.vocab, FL_MIN(nb, n - u * nb), p->valid + (size_t)u * nb);

        sums[2 * u] = s.loss;
        sums[2 * u + 1] = s.n;
    }
    fl_fill_in(p->ctx, 2 * (size_t)nunits, sums);
    for (int u = 0; u < nunits; u++) {
        loss += sums[2 * u];
        targets += sums[2 * u + 1];
    }
    fl_free(sums);
    return targets > 0 ? loss / targets : NAN;
}

static fl_err pretrain_run(pretrain *p, const char *out)
{
    int steps = p->deck->train.epochs > 0
                    ? p->deck->train.epochs * fl_steps_per_epoch(p->ntrain, p->deck->train.batch)
                    : p->deck->train.steps;
    double loss = NAN, begin = fl_now();

    for (int i = 0; i < steps; i++) {
        FL_TRY(pretrain_step(p, i, &loss));
        if ((i + 1) % FL_MAX(1, steps / 10) == 0 || i == steps - 1) {
            fl_log(p->ctx, "step %6d of %d  loss %.4f  validation %.4f  %.0f s", i + 1, steps, loss,
                valid_loss(p), fl_now() - begin);
        }
        if (fl_max(p->ctx, fl_stop_poll()) > 0) {
            return fl_fail(FL_ESTOP,
                "pretraining was stopped at step %d of %d; nothing was written", i + 1, steps);
        }
    }
    return fl_agree(p->ctx, p->ctx->rank == 0 ? fl_hf_save(out, &p->model, p->wp) : FL_OK);
}

fl_err fl_pretrain(fl_ctx *ctx, const fl_deck *deck, const char *out)
{
    pretrain p = {.ctx = ctx, .deck = deck};
    /* byte readers make 256 tokens; an HDF5 data set says its own */
    fl_err err = fl_agree(ctx, fl_dataset_load(ctx, deck, 1 << 30, &p.data));

    if (err == FL_OK) {
        err = fl_agree(ctx, model_shape(deck, p.data.vocab, &p.model));
    }
    if (err == FL_OK) {
        p.train = samples_of(&p.data, FL_TRAIN, &p.ntrain);
        p.valid = samples_of(&p.data, FL_VALID, &p.nvalid);
        err = p.ntrain > 0 ? FL_OK : fl_fail(FL_EDECK, "data: there are no training samples");
    }
    if (err == FL_OK) {
        pretrain_create(&p);
        fl_log(ctx, "pretrain  %s, %d blocks of width %d, %zu parameters; %lld training sequences",
            deck->pretrain.family == FL_FAMILY_GPT2 ? "gpt2" : "llama", p.model.nlayers, p.model.nd,
            p.model.nweights, (long long)p.ntrain);
        err = pretrain_run(&p, out);
    }
    pretrain_destroy(&p);
    return err;
}
