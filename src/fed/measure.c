/* measure.c - what a client can find out without training: the loss of a stack on its data
 * (fl_loss), and what the model makes of its samples (fl_feature). */
#include "fed_internal.h"

#include <string.h>

int fl_sample_count(const fl_run *run, int client, fl_split split)
{
    const fl_runtime *rt = run->rt;

    return rt->source == NULL ? (int)fl_partition_count(&rt->part, client, split) : 0;
}

fl_err fl_loss(fl_run *run, fl_client *c, const fl_job *job, double *mean, double *n)
{
    fl_runtime *rt = run->rt;
    int have = fl_sample_count(run, job->data.client, job->data.split), nb = rt->deck->eval.batch;
    const uint32_t *list =
        rt->part.list[job->data.split] + rt->part.first[job->data.split][job->data.client];
    fl_mark mark = fl_arena_mark(rt->turn);
    fl_stack stack = job->stack;
    const fl_real *const *w = eval_weights(rt, &stack);
    double loss = 0, targets = 0;

    (void)c;
    for (int i = 0; i < have; i += nb) {
        eval_sum s = eval_samples(rt->work, &rt->batcher, &rt->data, w, &stack,
            rt->deck->model.max_length, rt->base.model.vocab, FL_MIN(nb, have - i), list + i);

        loss += s.loss;
        targets += s.n;
    }
    fl_arena_reset(rt->turn, mark);
    *mean = targets > 0 ? loss / targets : 0;
    *n = targets;
    return FL_OK;
}

/* mean over a sample's tokens of the hidden state, in double */
static void pool(const fl_batch *b, int nd, const fl_real *hidden, fl_real *x)
{
    for (int i = 0; i < b->nseq; i++) {
        int length = b->start[i + 1] - b->start[i];

        for (int d = 0; d < nd; d++) {
            double sum = 0;

            for (int t = b->start[i]; t < b->start[i + 1]; t++) {
                sum += (double)hidden[(size_t)t * (size_t)nd + (size_t)d];
            }
            x[(size_t)i * (size_t)nd + (size_t)d] = (fl_real)(sum / FL_MAX(length, 1));
        }
    }
}

fl_err fl_feature(
    fl_run *run, fl_client *c, const fl_job *job, int *n, int *d, fl_real **x, int **label)
{
    fl_runtime *rt = run->rt;
    int nb = rt->deck->eval.batch, nd = rt->base.model.nd;
    const uint32_t *list =
        rt->part.list[job->data.split] + rt->part.first[job->data.split][job->data.client];
    fl_stack stack = job->stack;
    const fl_real *const *w = eval_weights(rt, &stack);

    (void)c;
    *n = fl_sample_count(run, job->data.client, job->data.split);
    *d = nd;
    *x = fl_scratch(run, (size_t)*n * (size_t)nd, sizeof **x);
    *label = fl_scratch(run, (size_t)*n, sizeof **label);
    for (int i = 0; i < *n; i++) {
        (*label)[i] = rt->data.label != NULL ? rt->data.label[list[i]] : -1;
    }
    for (int i = 0; i < *n; i += nb) {
        eval_samples(rt->work, &rt->batcher, &rt->data, w, &stack, rt->deck->model.max_length,
            rt->base.model.vocab, FL_MIN(nb, *n - i), list + i);
        pool(&rt->batcher.batch, nd, fl_nn_hidden(rt->work), *x + (size_t)i * (size_t)nd);
    }
    return FL_OK;
}
