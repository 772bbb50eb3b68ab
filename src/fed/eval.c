/* eval.c - evaluation: a fixed subset of the pooled validation or test samples under the server's
 * model, and every client's own samples under the model that the method shows for it. Work is cut
 * into units fixed by the deck (a batch, a client), so sums have one order on any number of ranks.
 */
#include "fed_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* targets whose most likely token (the first of equals) is right */
static int count_right(const fl_real *logits, const fl_batch *b, int vocab)
{
    int right = 0;

    for (int i = 0; i < b->ntokens; i++) {
        const fl_real *row = logits + (size_t)i * vocab;
        int best = 0;

        if (b->target[i] < 0) {
            continue;
        }
        for (int v = 1; v < vocab; v++) {
            best = row[v] > row[best] ? v : best;
        }
        right += best == b->target[i];
    }
    return right;
}

eval_sum eval_samples(fl_work *work, fl_batcher *b, const fl_dataset *d, const fl_real *const *w,
    const fl_stack *stack, int max_length, int vocab, int n, const uint32_t *sample)
{
    fl_pass pass = {.w = w};
    eval_sum sum;
    int targets;

    for (int j = 0; j < stack->n; j++) {
        if (stack->ad[j]->space->nsites > 0) { /* not PLAIN */
            pass.ad[pass.n] = stack->ad[j];
            pass.coef[pass.n++] = stack->coef[j];
        }
    }
    fl_batch_fill(b, d, n, sample, max_length);
    sum.loss = fl_nn_loss(work, &pass, &b->batch, &targets);
    sum.n = targets;
    sum.right = count_right(fl_nn_logits(work), &b->batch, vocab);
    return sum;
}

/* a DENSE entry (full training, a sparse stage): base plus adapter, as private weights in the
 * arena; the entry leaves the stack */
const fl_real *const *eval_weights(fl_runtime *rt, fl_stack *stack)
{
    const fl_real *const *base = base_weights(rt, stack);
    size_t ntensors = (size_t)rt->base.model.ntensors;
    int at = 0;

    setup_work(rt, stack);
    while (at < stack->n && space_kind_of(rt, stack->ad[at]->space) != SPACE_DENSE) {
        at++;
    }
    if (at == stack->n) {
        return base;
    }
    const fl_adapter *ad = stack->ad[at];
    const fl_real **w = fl_scratch(&rt->run, ntensors, sizeof *w);
    fl_real *own = fl_scratch(&rt->run, ad->space->n, sizeof *own);

    memcpy(w, base, ntensors * sizeof *w);
    for (int i = 0; i < ad->space->nslots; i++) {
        const fl_slot *s = &ad->space->slot[i];

        for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
            own[s->at + j] = base[s->site][j] + ad->v[s->at + j];
        }
        w[s->site] = own + s->at;
    }
    for (stack->n--; at < stack->n; at++) {
        stack->ad[at] = stack->ad[at + 1];
        stack->coef[at] = stack->coef[at + 1];
    }
    return w;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* a fixed subset of all clients' samples of the split, ascending; round arena */
static uint32_t *pooled(fl_runtime *rt, fl_split split, int *n)
{
    const fl_partition *p = &rt->part;
    uint64_t all = p->first[split][rt->run.nclients];
    int most = rt->deck->eval.max_samples;
    uint32_t *list;

    *n = most > 0 ? (int)FL_MIN((uint64_t)most, all) : (int)all;
    list = fl_scratch(&rt->run, (size_t)*n, sizeof *list);
    for (int i = 0; i < *n;
         i++) { /* evenly spaced over the clients: the same in every round and at every cohort */
        list[i] = p->list[split][(size_t)((double)i * (double)all / *n)];
    }
    qsort(list, (size_t)*n, sizeof *list, by_value);
    return list;
}

static void eval_pooled(fl_runtime *rt, fl_stack stack, fl_split split, double out[4])
{
    int nsamples, nb = rt->deck->eval.batch, size = rt->ctx->size;
    uint32_t *list = pooled(rt, split, &nsamples);
    int nunits = (nsamples + nb - 1) / nb,
        *first = fl_scratch(&rt->run, (size_t)size + 1, sizeof *first);
    double *cost = fl_scratch(&rt->run, (size_t)nunits, sizeof *cost);
    double *sums = fl_scratch(&rt->run, 3 * (size_t)nunits, sizeof *sums), loss = 0, n = 0,
           right = 0;
    const fl_real *const *w = eval_weights(rt, &stack);

    for (int u = 0; u < nunits; u++) {
        for (int i = u * nb; i < FL_MIN((u + 1) * nb, nsamples); i++) {
            cost[u] += (double)(rt->data.offset[list[i] + 1] - rt->data.offset[list[i]]);
        }
    }
    fl_layout(nunits, cost, size, first);
    for (int u = first[rt->ctx->rank]; u < first[rt->ctx->rank + 1] && fl_stop_poll() < 2; u++) {
        eval_sum s =
            eval_samples(rt->work, &rt->batcher, &rt->data, w, &stack, rt->deck->model.max_length,
                rt->base.model.vocab, FL_MIN(nb, nsamples - u * nb), list + (size_t)u * nb);

        sums[3 * u] = s.loss;
        sums[3 * u + 1] = s.n;
        sums[3 * u + 2] = s.right;
    }
    fl_fill_in(rt->ctx, 3 * (size_t)nunits, sums);
    for (int u = 0; u < nunits; u++) {
        loss += sums[3 * u];
        n += sums[3 * u + 1];
        right += sums[3 * u + 2];
    }
    out[0] = n > 0 ? loss / n : NAN;
    out[1] = n > 0 ? right / n : NAN;
}

/* ---- clients ---- */
static fl_err eval_client(
    fl_runtime *rt, int id, const void *blob, size_t bytes, fl_split split, double sum[3])
{
    fl_client c;
    fl_turn turn;
    fl_err err = turn_enrol(rt, id, blob, bytes, &c, &turn);
    fl_view view = {.name = "global",
        .stack = {.n = 1, .ad = {rt->run.global}, .coef = {1}},
        .data = {.client = id, .split = split}};
    int64_t n = fl_partition_count(&rt->part, id, split);
    const uint32_t *list = rt->part.list[split] + rt->part.first[split][id];
    int nb = rt->deck->eval.batch;

    if (err == FL_OK && rt->method->view != NULL) {
        view.name = NULL;
        err = rt->method->view(&rt->run, &c, 0, &view);
        if (err == FL_OK && view.name == NULL) { /* as the server's */
            err = rt->method->view(&rt->run, NULL, 0, &view);
        }
    }
    if (err == FL_OK && view.name != NULL) {
        const fl_real *const *w = eval_weights(rt, &view.stack);

        for (int64_t i = 0; i < n; i += nb) {
            eval_sum s = eval_samples(rt->work, &rt->batcher, &rt->data, w, &view.stack,
                rt->deck->model.max_length, rt->base.model.vocab, (int)FL_MIN(nb, n - i), list + i);

            sum[0] += s.loss;
            sum[1] += s.n;
            sum[2] += s.right;
        }
    }
    turn_end(rt, &turn);
    return err;
}

static int by_number(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void curve_add(fl_runtime *rt, int id, const double *sum)
{
    if (rt->ncurve == rt->curve_room) {
        rt->curve_room = FL_MAX(256, 2 * rt->curve_room);
        rt->curve = fl_realloc(
            "client curves", rt->curve, (size_t)rt->curve_room, CURVE_COLUMNS * sizeof *rt->curve);
    }
    double *x = rt->curve + (size_t)CURVE_COLUMNS * rt->ncurve++;

    x[0] = rt->run.round.t;
    x[1] = id;
    x[2] = sum[0] / sum[1];
    x[3] = sum[2] / sum[1];
    x[4] = sum[1];
}

/* mean accuracy over clients, mean of the worst tenth; personal methods: also the loss over all
 * targets */
static void summarise(
    fl_runtime *rt, bool personal, int n, const int *id, const double *sums, double out[4])
{
    double *acc = fl_scratch(&rt->run, (size_t)n, sizeof *acc), mean = 0, worst = 0, all[3] = {0};
    int have = 0, tenth;

    for (int i = 0; i < n; i++) {
        const double *s = sums + 3 * i;

        if (s[1] > 0) {
            acc[have++] = s[2] / s[1];
            curve_add(rt, id[i], s);
        }
        for (int j = 0; j < 3; j++) {
            all[j] += s[j];
        }
    }
    if (have == 0) {
        return;
    }
    for (int i = 0; i < have; i++) {
        mean += acc[i];
    }
    qsort(acc, (size_t)have, sizeof *acc, by_number);
    tenth = (have + 9) / 10;
    for (int i = 0; i < tenth; i++) {
        worst += acc[i];
    }
    out[2] = mean / have;
    out[3] = worst / tenth;
    if (personal) {
        out[0] = all[0] / all[1];
        out[1] = all[2] / all[1];
    }
}

static fl_err eval_clients(fl_runtime *rt, bool personal, fl_split split, double out[4])
{
    fl_run *run = &rt->run;
    int most = rt->deck->eval.max_clients,
        n = most > 0 ? FL_MIN(most, run->nclients) : run->nclients, size = rt->ctx->size;
    int *id = fl_scratch(run, (size_t)n, sizeof *id),
        *first = fl_scratch(run, (size_t)size + 1, sizeof *first);
    double *cost = fl_scratch(run, (size_t)n, sizeof *cost),
           *sums = fl_scratch(run, 3 * (size_t)n, sizeof *sums);
    void **blob = fl_scratch(run, (size_t)n, sizeof *blob);
    size_t *bytes = fl_scratch(run, (size_t)n, sizeof *bytes);
    fl_err err = FL_OK;

    for (int i = 0; i < n; i++) { /* evenly spaced ids: the same clients in every round */
        id[i] = (int)((int64_t)i * run->nclients / n);
        cost[i] = 1 + (double)fl_partition_count(&rt->part, id[i], split);
    }
    fl_layout(n, cost, size, first);
    FL_TRY_ALL(rt->ctx, fl_store_fetch(rt->store, n, id, first, blob, bytes));
    for (int i = first[rt->ctx->rank]; i < first[rt->ctx->rank + 1]; i++) {
        if (err == FL_OK && fl_stop_poll() < 2) {
            err = eval_client(rt, id[i], blob[i], bytes[i], split, sums + 3 * i);
        }
        fl_free(blob[i]);
    }
    FL_TRY_ALL(rt->ctx, err);
    fl_fill_in(rt->ctx, 3 * (size_t)n, sums);
    summarise(rt, personal, n, id, sums, out);
    return FL_OK;
}

fl_err eval_round(fl_runtime *rt, fl_split split, bool clients, double out[4])
{
    fl_view view = {.name = "global", .stack = {.n = 1, .ad = {rt->run.global}, .coef = {1}}};
    fl_err err = FL_OK;

    fl_phase_begin(rt->ctx, FL_PHASE_eval);
    out[0] = out[1] = out[2] = out[3] = NAN;
    fl_mark mark = fl_arena_mark(rt->round);

    if (rt->method->view != NULL) {
        view.name = NULL;
        err = fl_agree(rt->ctx, rt->method->view(&rt->run, NULL, 0, &view));
    }
    bool personal = view.name == NULL;

    if (err == FL_OK && !personal) {
        eval_pooled(rt, view.stack, split, out);
    }
    if (err == FL_OK && (personal || clients)) {
        err = eval_clients(rt, personal, split, out);
    }
    fl_arena_reset(rt->round, mark);
    fl_phase_end(rt->ctx, FL_PHASE_eval);
    if (err == FL_OK && fl_stop_poll() >= 2) {
        err = fl_fail(FL_ESTOP, "stopped while round %d was evaluated; the last checkpoint stands",
            rt->run.round.t);
    }
    return fl_agree(rt->ctx, err);
}
