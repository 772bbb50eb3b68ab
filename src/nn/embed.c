/* embed.c - x[t] = E[token_t] (+ P[place of t in its sequence]) and the gradients by E and P.
 * Rows are added in ascending order of t. */
#include "nn_internal.h"
#include <string.h>

static void embed_add_row(size_t nd, const fl_real *from, fl_real *to)
{
    const fl_real *restrict x = from;
    fl_real *restrict y = to;

    for (size_t j = 0; j < nd; j++) {
        y[j] += x[j];
    }
}

void nn_embed_forward(
    const fl_batch *batch, int nd, const fl_real *embed, const fl_real *pos, fl_real *x)
{
    size_t n = (size_t)nd;

    for (int s = 0; s < batch->nseq; s++) {
        for (int t = batch->start[s]; t < batch->start[s + 1]; t++) {
            fl_real *to = x + (size_t)t * n;
            memcpy(to, embed + (size_t)batch->token[t] * n, n * sizeof *to);
            if (pos) {
                embed_add_row(n, pos + (size_t)(t - batch->start[s]) * n, to);
            }
        }
    }
}

void nn_embed_add(const fl_batch *batch, int nd, const fl_real *dx, fl_real *dembed)
{
    for (int t = 0; t < batch->ntokens; t++) {
        embed_add_row(
            (size_t)nd, dx + (size_t)t * (size_t)nd, dembed + (size_t)batch->token[t] * (size_t)nd);
    }
}

void nn_pos_backward(const fl_batch *batch, int nd, const fl_real *dx, fl_real *dpos)
{
    for (int s = 0; s < batch->nseq; s++) {
        for (int t = batch->start[s]; t < batch->start[s + 1]; t++) {
            embed_add_row((size_t)nd, dx + (size_t)t * (size_t)nd,
                dpos + (size_t)(t - batch->start[s]) * (size_t)nd);
        }
    }
}
