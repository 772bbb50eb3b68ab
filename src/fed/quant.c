/* quant.c - quantised copies of the base, one per node: what a client with little memory would
 * train over. Values are quantised and dequantised; the arithmetic stays float. Blocks of 64
 * elements share a scale, the largest magnitude: 8 bits: x = scale q / 127; 4 bits: NormalFloat
 * (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, appendix E), the nearest of 16 levels. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 64 };

static const double nf4[16] = {-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534,
    0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434,
    0.5626170039176941, 0.7229568362236023, 1.0};

static double nearest_nf4(double x)
{
    int best = 0;

    for (int i = 1; i < 16; i++) {
        best = fabs(x - nf4[i]) < fabs(x - nf4[best]) ? i : best;
    }
    return nf4[best];
}

static void quantise_tensor(int bits, size_t n, const fl_real *x, fl_real *y)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t end = FL_MIN(at + BLOCK, n);
        double scale = 0;

        for (size_t i = at; i < end; i++) {
            scale = FL_MAX(scale, fabs((double)x[i]));
        }
        for (size_t i = at; i < end; i++) {
            double u = scale > 0 ? (double)x[i] / scale : 0;

            y[i] = (fl_real)(scale * (bits == 4 ? nearest_nf4(u) : rint(u * 127) / 127));
        }
    }
}

int fl_base_bits(fl_run *run, int bits)
{
    fl_runtime *rt = run->rt;
    const fl_model *m = &rt->base.model;
    int at = rt->nbases;

    FL_REQUIRE(rt->in_setup && at < (int)FL_COUNT(rt->base_w) && (bits == 4 || bits == 8));
    if (fl_share_create(rt->ctx, rt->deck->model.share_dir, "quantised base", fl_model_bytes(m),
            &rt->base_share[at]) != FL_OK) {
        return -1;
    }
    bool *quantised = fl_scratch(run, (size_t)m->ntensors, sizeof *quantised);
    fl_real *to = rt->base_share[at].x;

    for (int j = 0; j < m->nsites; j++) {
        int tensor, row0;

        fl_model_site_tensor(m, j, &tensor, &row0);
        quantised[tensor] = true;
    }
    rt->base_w[at] = fl_alloc("quantised base pointers", (size_t)m->ntensors, sizeof(fl_real *));
    for (int i = 0; i < m->ntensors; i++) {
        const fl_tensor *t = &m->tensor[i];
        size_t n = (size_t)t->rows * (size_t)t->cols;

        if (i % rt->ctx->node_size == rt->ctx->node_rank) {
            if (quantised[i]) {
                quantise_tensor(bits, n, rt->base.w[i], to + t->at);
            } else {
                memcpy(to + t->at, rt->base.w[i], n * sizeof *to);
            }
        }
        rt->base_w[at][i] = to + t->at;
    }
    fl_share_fence(rt->ctx);
    rt->nbases++;
    return rt->nbases;
}

void base_bits_free(fl_runtime *rt)
{
    for (int i = 0; i < rt->nbases; i++) {
        fl_share_destroy(&rt->base_share[i]);
        fl_free(rt->base_w[i]);
    }
    rt->nbases = 0;
}
