/* evaluate.c - `fedlora eval`: loss and accuracy of a model, with an optional PEFT adapter, on one
 * split of a data set. */
#include "fed_internal.h"

#include <math.h>

typedef struct evaluation {
    fl_base base;
    fl_dataset data;
    fl_spaces *spaces;
    fl_adapter *adapter;
    fl_work *work;
    fl_batcher batcher;
} evaluation;

static void evaluation_destroy(evaluation *e)
{
    fl_work_destroy(&e->work);
    fl_batcher_destroy(&e->batcher);
    fl_adapter_destroy(&e->adapter);
    fl_spaces_destroy(&e->spaces);
    fl_dataset_destroy(&e->data);
    fl_base_destroy(&e->base);
}

static fl_err evaluation_run(
    fl_ctx *ctx, const fl_deck *deck, evaluation *e, fl_split split, double sum[3])
{
    int length = FL_MIN(deck->model.max_length, e->base.model.nctx), nb = deck->eval.batch, n = 0;
    uint32_t *list = fl_alloc("samples", (size_t)e->data.nsamples, sizeof *list);
    fl_stack stack = {.n = e->adapter != NULL, .ad = {e->adapter}, .coef = {1}};

    for (int64_t i = 0; i < e->data.nsamples; i++) {
        if (e->data.split[i] == split) {
            list[n++] = (uint32_t)i;
        }
    }
    int nunits = (n + nb - 1) / nb;
    double *sums = fl_alloc("evaluation", 3 * (size_t)nunits, sizeof *sums);

    e->work = fl_work_create(&e->base.model, nb * length, nb, length,
        e->adapter != NULL ? e->adapter->space->rmax : 0, false);
    fl_batcher_create(&e->batcher, nb, nb * length);
    for (int u = ctx->rank; u < nunits; u += ctx->size) {
        eval_sum s = eval_samples(e->work, &e->batcher, &e->data, e->base.w, &stack, length,
            e->base.model.vocab, FL_MIN(nb, n - u * nb), list + (size_t)u * nb);

        sums[3 * u] = s.loss;
        sums[3 * u + 1] = s.n;
        sums[3 * u + 2] = s.right;
    }
    fl_fill_in(ctx, 3 * (size_t)nunits, sums);
    for (int u = 0; u < nunits; u++) {
        for (int j = 0; j < 3; j++) {
            sum[j] += sums[3 * u + j];
        }
    }
    fl_free(sums);
    fl_free(list);
    return n > 0 ? FL_OK
                 : fl_fail(FL_EDECK,
                       "the data set has no samples in that split; choose another with --split");
}

fl_err fl_evaluate(fl_ctx *ctx, const fl_deck *deck, const char *model, const char *adapter,
    fl_split split, double *loss, double *accuracy, int64_t *targets)
{
    evaluation e = {0};
    double sum[3] = {0};
    fl_err err = fl_base_load(ctx, model, deck->model.share_dir, &e.base);

    e.spaces = fl_spaces_create();
    if (err == FL_OK) {
        err = fl_dataset_load(ctx, deck, e.base.model.vocab, &e.data);
    }
    if (err == FL_OK && adapter != NULL) {
        err = fl_agree(ctx, fl_peft_load(adapter, &e.base.model, e.spaces, &e.adapter));
    }
    if (err == FL_OK) {
        err = fl_agree(ctx, evaluation_run(ctx, deck, &e, split, sum));
    }
    *loss = sum[1] > 0 ? sum[0] / sum[1] : NAN;
    *accuracy = sum[1] > 0 ? sum[2] / sum[1] : NAN;
    *targets = (int64_t)sum[1];
    evaluation_destroy(&e);
    return err;
}
