/* flops.c - the work a step needs, for GFLOP/s: 2 per multiply-add of the matrix products. Not
 * counted: recomputed scores, masked halves of attention, pointwise work; so the rate is that of
 * useful work. */
#include "nn_internal.h"
#include <limits.h>

/* what of the model trains: LoRA pairs of a space, tensors of a dense space, or (space NULL)
 * everything */
static bool flops_tensor_trains(const fl_space *space, int tensor)
{
    if (!space) {
        return tensor >= 0;
    }
    for (int i = 0; i < space->nslots; i++) {
        if (space->slot[i].factor == FL_DENSE && space->slot[i].site == tensor) {
            return true;
        }
    }
    return false;
}

static int flops_rank(const fl_space *space, int site)
{
    return space && space->rmax > 0 && site < space->nsites ? space->r[site] : 0;
}

static bool flops_group_trains(const fl_space *space, const nn_group *g)
{
    bool any = flops_tensor_trains(space, g->tensor) || flops_tensor_trains(space, g->bias);

    for (int i = 0; i < g->nsites; i++) {
        any = any || flops_rank(space, g->site[i]) > 0;
    }
    return any;
}

static int flops_lowest(const fl_model *m, const nn_shape *shape, const fl_space *space)
{
    static const int stage[NN_GROUPS] = {NN_STAGE_QKV, NN_STAGE_O, NN_STAGE_UP, NN_STAGE_DOWN};

    if (flops_tensor_trains(space, shape->embed) || flops_tensor_trains(space, shape->pos)) {
        return NN_BOTTOM;
    }
    for (int i = 0; i < m->nlayers; i++) {
        const nn_block *b = &shape->block[i];
        bool at[NN_STAGES] = {false};
        at[NN_STAGE_NORM1] =
            flops_tensor_trains(space, b->norm1) || flops_tensor_trains(space, b->norm1_bias);
        at[NN_STAGE_NORM2] =
            flops_tensor_trains(space, b->norm2) || flops_tensor_trains(space, b->norm2_bias);
        for (int j = 0; j < NN_GROUPS; j++) {
            at[stage[j]] = flops_group_trains(space, &b->g[j]);
        }
        for (int j = 0; j < NN_STAGES; j++) {
            if (at[j]) {
                return i * NN_STAGES + j;
            }
        }
    }
    bool top =
        flops_tensor_trains(space, shape->normf) || flops_tensor_trains(space, shape->normf_bias);

    return top ? m->nlayers * NN_STAGES : m->nlayers * NN_STAGES + 1;
}

/* multiply-adds per token of one product with its adapters */
static double flops_group(
    const fl_model *m, const fl_space *space, const nn_group *g, bool backward, bool need_dx)
{
    double size = (double)g->m * g->n, sum = backward ? 0 : size;

    if (backward) {
        sum += (need_dx ? size : 0) + (flops_tensor_trains(space, g->tensor) ? size : 0);
    }
    for (int i = 0; i < g->nsites; i++) {
        const fl_site *s = &m->site[g->site[i]];
        double r = flops_rank(space, g->site[i]);
        sum += backward ? 2 * r * s->m + (need_dx ? 2 : 1) * r * s->n : r * (s->m + (double)s->n);
    }
    return sum;
}

double fl_model_flops(
    const fl_model *m, const fl_space *trained, double tokens, double mean_length, bool backward)
{
    static const int stage[NN_GROUPS] = {NN_STAGE_QKV, NN_STAGE_O, NN_STAGE_UP, NN_STAGE_DOWN};
    nn_shape shape;
    double keys = (mean_length + 1) / 2,
           attention = 2 * keys * m->nheads * m->hd; /* scores and their use */
    double head = (double)m->vocab * m->nd, sum = head;

    nn_shape_create(m, &shape);
    int low = flops_lowest(m, &shape, trained);
    if (backward) {
        sum += (low <= m->nlayers * NN_STAGES ? head : 0) +
               (flops_tensor_trains(trained, shape.head) ? head : 0);
    }
    for (int i = 0; i < m->nlayers; i++) {
        sum += attention;
        for (int j = 0; j < NN_GROUPS; j++) {
            int here = i * NN_STAGES + stage[j];
            sum += flops_group(m, trained, &shape.block[i].g[j], false, false);
            if (backward && here >= low) {
                sum += flops_group(m, trained, &shape.block[i].g[j], true, here > low);
            }
        }
        if (backward && i * NN_STAGES + NN_STAGE_O > low) {
            sum += 2 * attention;
        }
    }
    nn_shape_destroy(&shape);
    return 2 * sum * tokens;
}
