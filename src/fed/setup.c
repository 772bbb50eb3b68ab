/* setup.c - from a deck to a run: base, data, clients, spaces, workspace. Everything here is equal
 * on all ranks. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

/* rank of client id: clients.r by clients.r_share, drawn once per client from the seed; else
 * adapter.r */
int setup_client_r(const fl_deck *deck, uint64_t seed, int id)
{
    const fl_deck_clients *d = &deck->clients;
    double u = fl_rng_uniform(seed, FL_RNG_CLIENT_R, id, 0, 0), upto = 0;

    if (d->r.n == 0) {
        return deck->adapter.r;
    }
    for (int i = 0; i < d->r.n - 1; i++) {
        upto += d->r_share.n > 0 ? d->r_share.x[i] : 1.0 / d->r.n;
        if (u < upto) {
            return d->r.x[i];
        }
    }
    return d->r.x[d->r.n - 1];
}

static int largest_r(const fl_deck *deck, bool *unequal)
{
    int r = deck->clients.r.n > 0 ? deck->clients.r.x[0] : deck->adapter.r;

    *unequal = false;
    for (int i = 1; i < deck->clients.r.n; i++) {
        *unequal = *unequal || deck->clients.r.x[i] != deck->clients.r.x[0];
        r = FL_MAX(r, deck->clients.r.x[i]);
    }
    return r;
}

/* adapter.targets on this model: r per site */
static fl_err target_ranks(const fl_deck *deck, const fl_model *m, int rmax, int *r)
{
    for (int i = 0; i < deck->adapter.targets.n; i++) {
        const char *name = deck->adapter.targets.x[i];

        for (int b = 0; b < m->nlayers; b++) {
            int site = fl_model_site_named(m, b, name);

            if (site < 0) {
                return fl_fail(FL_EDECK,
                    "adapter.targets: this model has no '%s' (its blocks have q k v o%s up down)",
                    name, m->gated ? " gate" : "");
            }
            if (rmax > FL_MIN(m->site[site].m, m->site[site].n)) {
                return fl_fail(FL_EDECK,
                    "adapter.r, clients.r: rank %d is more than %s allows, which is %d x %d", rmax,
                    m->site[site].name, m->site[site].m, m->site[site].n);
            }
            r[site] = rmax;
        }
    }
    return deck->adapter.targets.n > 0
               ? FL_OK
               : fl_fail(FL_EDECK, "adapter.targets: empty; give some of q k v o gate up down");
}

static fl_err make_space(fl_runtime *rt)
{
    const fl_deck *deck = rt->deck;
    const fl_model *m = &rt->base.model;
    bool unequal;
    int rmax = largest_r(deck, &unequal),
        *r = fl_arena_take(rt->round, (size_t)m->nsites, sizeof *r);

    if (unequal && (rt->method->needs & FL_HETERO) == 0) {
        return fl_fail(FL_EDECK,
            "clients.r: %s cannot serve clients of unequal rank; use one rank, or flora or "
            "flexlora",
            rt->method->name);
    }
    if (deck->train.what == FL_WHAT_FULL) {
        if ((rt->method->needs & FL_LORA_ONLY) != 0) {
            return fl_fail(FL_EDECK,
                "train.what: full does not go with %s, which needs factors; use fedavg",
                rt->method->name);
        }
        rt->run.space = space_full(rt);
        return FL_OK;
    }
    if (deck->adapter.init == FL_INIT_SVD && (rt->method->needs & FL_OWN_START) != 0) {
        return fl_fail(FL_EDECK,
            "adapter.init: svd does not go with %s, which has a start of its own; use kaiming",
            rt->method->name);
    }
    FL_TRY(target_ranks(deck, m, rmax, r));
    rt->run.space = space_of_deck(rt, r);
    return FL_OK;
}

void setup_workspace(fl_runtime *rt, int batch)
{
    const fl_deck *deck = rt->deck;
    int nseq = FL_MAX(batch, deck->eval.batch), length = deck->model.max_length;

    rt->work_r = rt->run.space != NULL ? rt->run.space->rmax : 0;
    rt->work = fl_work_create(&rt->base.model, nseq * length, nseq, length, rt->work_r, true);
    fl_batcher_create(&rt->batcher, nseq, nseq * length);
    rt->picked = fl_alloc("batch", (size_t)nseq, sizeof *rt->picked);
}

/* A stack of several adapters, or of a larger r than the deck's, needs a larger workspace. Its size
 * is only capacity: the products' shapes are those of the stack. */
void setup_work(fl_runtime *rt, const fl_stack *stack)
{
    const fl_deck *deck = rt->deck;
    int nseq = FL_MAX(deck->train.batch, deck->eval.batch), length = deck->model.max_length, r = 0;

    for (int j = 0; j < stack->n; j++) {
        r += stack->ad[j]->space->rmax;
    }
    if (r > rt->work_r) {
        fl_work_destroy(&rt->work);
        rt->work_r = r;
        rt->work = fl_work_create(&rt->base.model, nseq * length, nseq, length, rt->work_r, true);
    }
}

const fl_real *const *base_weights(fl_runtime *rt, const fl_stack *stack)
{
    FL_REQUIRE(stack->base >= 0 && stack->base <= rt->nbases);
    return stack->base > 0 ? rt->base_w[stack->base - 1] : rt->base.w;
}

static fl_err make_clients(fl_runtime *rt)
{
    const fl_deck *deck = rt->deck;
    fl_run *run = &rt->run;
    size_t n;

    run->nclients = rt->part.nclients;
    run->nclasses = rt->data.nclasses;
    run->rounds = deck->run.rounds;
    run->ncohort = deck->cohort.size;
    n = (size_t)run->nclients;
    if (run->ncohort > run->nclients) {
        return fl_fail(FL_EDECK, "cohort.size: %d is more than the %d clients of this partition",
            run->ncohort, run->nclients);
    }
    rt->client_r = fl_alloc("client ranks", n, sizeof *rt->client_r);
    rt->cost = fl_alloc("client costs", n, sizeof *rt->cost);
    rt->last_seen = fl_alloc("last rounds of clients", n, sizeof *rt->last_seen);
    rt->cohort = fl_alloc("cohort", (size_t)run->ncohort, sizeof *rt->cohort);
    rt->first = fl_alloc("blocks of the cohort", (size_t)rt->ctx->size + 1, sizeof *rt->first);
    for (int id = 0; id < run->nclients; id++) {
        int64_t have = fl_partition_count(&rt->part, id, FL_TRAIN);
        const uint32_t *list = rt->part.list[FL_TRAIN] + rt->part.first[FL_TRAIN][id];
        double tokens = 0, batch = (double)FL_MIN(have, deck->train.batch);

        for (int64_t i = 0; i < have; i++) {
            tokens += (double)(rt->data.offset[list[i] + 1] - rt->data.offset[list[i]]);
        }
        rt->client_r[id] = setup_client_r(deck, run->seed, id);
        rt->cost[id] = 1 + (deck->train.epochs > 0 ? tokens * deck->train.epochs
                               : have > 0 ? tokens / (double)have * batch * deck->train.steps
                                          : 0);
    }
    return FL_OK;
}

void setup_ledger(fl_runtime *rt)
{
    size_t nslots = (size_t)rt->run.space->nslots;

    rt->slot_changed = fl_alloc("slot changes", nslots, sizeof *rt->slot_changed);
    rt->slot_hash = fl_alloc("slot hashes", nslots, sizeof *rt->slot_hash);
    rt->revision_bytes =
        fl_alloc("revision costs", (size_t)rt->deck->run.rounds + 1, sizeof *rt->revision_bytes);
}

void setup_sites(fl_runtime *rt)
{
    const fl_model *m = &rt->base.model;
    double *cost = fl_arena_take(rt->round, (size_t)m->nsites, sizeof *cost);
    int *first = fl_arena_take(rt->round, (size_t)rt->ctx->size + 1, sizeof *first);

    rt->run.nsites = m->nsites;
    for (int j = 0; j < m->nsites; j++) {
        cost[j] = rt->deck->train.what == FL_WHAT_FULL || rt->run.space->r[j] > 0
                      ? (double)m->site[j].m + m->site[j].n
                      : 0;
    }
    fl_layout(m->nsites, cost, rt->ctx->size, first);
    rt->owner = fl_alloc("site owners", (size_t)m->nsites, sizeof *rt->owner);
    for (int j = 0; j < m->nsites; j++) {
        rt->owner[j] = fl_layout_owner(rt->ctx->size, first, j);
    }
    rt->min_node_size = (int)fl_min(rt->ctx, rt->ctx->node_size);
}

fl_err setup_method(fl_runtime *rt)
{
    const char *name = rt->deck->method.name, *near = "";
    int best = 1 << 20;

    rt->method = fl_method_find(name);
    if (rt->method != NULL) {
        rt->run.config = fl_deck_config(rt->deck, rt->method->name);
        return FL_OK;
    }
    for (int i = 0; i < fl_method_count(); i++) {
        int d = fl_edit_distance(name, fl_method_at(i)->name);

        if (d < best) {
            best = d;
            near = fl_method_at(i)->name;
        }
    }
    return fl_fail(FL_EDECK,
        "method.name: there is no method '%s'; did you mean %s? (fedlora methods lists them)", name,
        near);
}

static void check_state_replicated(fl_runtime *rt)
{
    uint64_t h =
        fl_hash(rt->client_r, (size_t)rt->run.nclients * sizeof *rt->client_r, rt->data.hash);

    FL_REQUIRE(fl_same_everywhere(rt->ctx, h));
}

fl_err setup_runtime(fl_ctx *ctx, const fl_deck *deck, const fl_options *opt, fl_runtime *rt)
{
    *rt = (fl_runtime){.ctx = ctx, .deck = deck, .opt = opt, .started = fl_now()};
    rt->run.rt = rt;
    rt->most_at_once = 256.0 * (1 << 20);
    rt->run.seed = deck->run.seed;
    rt->round = fl_arena_create("round");
    rt->turn = fl_arena_create("client's turn");
    rt->spaces = fl_spaces_create();
    FL_TRY(setup_method(rt));
    if (deck->model.path[0] == '\0') {
        return fl_fail(FL_EDECK, "model.path: empty; give a Hugging Face folder, or make one with "
                                 "'fedlora pretrain DECK'");
    }
    fl_phase_begin(ctx, FL_PHASE_setup);
    FL_TRY(fl_base_load(ctx, deck->model.path, deck->model.share_dir, &rt->base));
    rt->base_hash = rt->base.hash;
    if (deck->model.max_length > rt->base.model.nctx) {
        return fl_fail(FL_EDECK, "model.max_length: %d is more than the %d positions of the model",
            deck->model.max_length, rt->base.model.nctx);
    }
    FL_TRY(make_space(rt));
    FL_TRY(fl_dataset_load(ctx, deck, rt->base.model.vocab, &rt->data));
    FL_TRY(fl_partition_create(ctx, deck, &rt->data, &rt->part));
    FL_TRY(make_clients(rt));
    setup_ledger(rt);
    setup_sites(rt);
    setup_workspace(rt, deck->train.batch);
    rt->store = fl_store_create(ctx, rt->run.nclients);
    FL_TRY(team_create(rt));
    check_state_replicated(rt);
    fl_phase_end(ctx, FL_PHASE_setup);
    return FL_OK;
}

/* the columns of rounds.csv that every run has */
static void make_columns(fl_runtime *rt)
{
    fl_metrics *m = &rt->metrics;

    fl_metrics_column(m, "round", "1");
    rt->col = (fl_columns){.wall = fl_metrics_column(m, "wall_s", "s"),
        .train = fl_metrics_column(m, "train_loss", "nat"),
        .eval = fl_metrics_column(m, "eval_loss", "nat"),
        .metric = fl_metrics_column(m, "eval_metric", "1"),
        .mean = fl_metrics_column(m, "eval_metric_clients_mean", "1"),
        .worst = fl_metrics_column(m, "eval_metric_clients_worst10", "1"),
        .up = fl_metrics_column(m, "up_bytes", "B"),
        .down = fl_metrics_column(m, "down_bytes", "B"),
        .clients = fl_metrics_column(m, "clients", "1"),
        .discordance = fl_metrics_column(m, "discordance", "1")};
}

/* adapter.init: svd (PiSSA, Meng et al. 2024, arXiv 2404.02948): the factors start as the top of W,
 * balanced, and W keeps the rest; every client can do it itself, so nothing is sent */
static fl_err start_from_base(fl_runtime *rt)
{
    FL_TRY(fl_svd_of(&rt->run, NULL, 0.5, rt->run.global));
    return fl_merge(&rt->run, rt->run.global, -1, (fl_pick){FL_NONE, NULL, NULL});
}

fl_err setup_fresh(fl_runtime *rt)
{
    fl_run *run = &rt->run;

    make_columns(rt);
    run->global = fl_adapter_create(run->space);
    rt->in_setup = true;
    if (rt->deck->train.what != FL_WHAT_FULL && rt->source == NULL) {
        FL_TRY(fl_fill(run, run->global, -1, 0));
        if (rt->deck->adapter.init == FL_INIT_SVD) {
            FL_TRY_ALL(rt->ctx, start_from_base(rt));
        }
    }
    if (rt->method->setup != NULL) {
        FL_TRY_ALL(rt->ctx, rt->method->setup(run));
    }
    rt->in_setup = false;
    if (rt->nmerges > 0 && rt->source == NULL) {
        rt->base_hash = fl_base_hash(rt->ctx, &rt->base);
        rt->nmerges = 0;
    }
    ledger_changed(rt, -1);
    if (rt->deck->codec.down != FL_CODEC_NONE) {
        rt->start = fl_adapter_create(run->space);
        memcpy(rt->start->v, run->global->v, run->space->n * sizeof(fl_real));
    }
    return FL_OK;
}

void setup_destroy(fl_runtime *rt)
{
    fl_checkpoint_join(&rt->saving); /* there is one only when the run failed: what it has begun is
                                        finished, what fails is said with the rest */
    fl_work_destroy(&rt->work);
    fl_batcher_destroy(&rt->batcher);
    fl_free(rt->picked);
    fl_adapter_destroy(&rt->run.global);
    fl_adapter_destroy(&rt->start);
    kept_free(&rt->server);
    if (rt->store != NULL) {
        fl_store_destroy(&rt->store);
    }
    if (rt->team != NULL) {
        fl_ctx_destroy(&rt->team);
    }
    base_bits_free(rt);
    fl_partition_destroy(&rt->part);
    fl_dataset_destroy(&rt->data);
    fl_base_destroy(&rt->base);
    fl_spaces_destroy(&rt->spaces);
    fl_metrics_free(&rt->metrics);
    void *owned[] = {rt->team_first, rt->leader, rt->client_r, rt->cost, rt->last_seen, rt->cohort,
        rt->first, rt->owner, rt->slot_changed, rt->slot_hash, rt->revision_bytes, rt->curve,
        rt->by_round};

    for (size_t i = 0; i < FL_COUNT(owned); i++) {
        fl_free(owned[i]);
    }
    fl_arena_destroy(&rt->turn);
    fl_arena_destroy(&rt->round);
}

/* ---- verbs that need no more than the seed ---- */
fl_err fl_fill(fl_run *run, fl_adapter *ad, int id, int t)
{
    const fl_deck_adapter *d = &run->rt->deck->adapter;
    uint64_t who[3] = {run->seed, (uint64_t)(int64_t)id, (uint64_t)(int64_t)t};
    uint64_t seed = id < 0 && t == 0 ? run->seed : fl_hash(who, sizeof who, 0);

    for (int j = 0; j < ad->space->nsites; j++) {
        if (ad->space->r[j] > 0) {
            fl_init_site(
                seed, 0, d->init == FL_INIT_SVD ? FL_INIT_KAIMING : d->init, d->init_std, j, ad);
        }
    }
    return FL_OK;
}

double fl_uniform(const fl_run *run, int what, int id, int t, uint64_t i)
{
    return fl_rng_uniform(run->seed, FL_RNG_METHOD + what, id, t, i);
}

double fl_normal(const fl_run *run, int what, int id, int t, uint64_t i)
{
    return fl_rng_normal(run->seed, FL_RNG_METHOD + what, id, t, i);
}

void fl_shuffle(const fl_run *run, int what, int id, int t, int n, int *x)
{
    fl_rng_shuffle(run->seed, FL_RNG_METHOD + what, id, t, n, x);
}

void fl_metric(fl_run *run, const char *name, double value)
{
    fl_metrics *m = &run->rt->metrics;

    fl_metrics_set(m, fl_metrics_column(m, name, "1"), value);
}
