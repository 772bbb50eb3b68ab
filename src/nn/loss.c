/* loss.c - output head and cross-entropy: z = H x_t, loss_t = log(sum_j e^(z_j - max z)) + max z -
 * z_target, dz = (softmax(z) - onehot) / N. In chunks of rows whose number depends on the
 * vocabulary only. The sum over rows is in double, in ascending order. */
#include "nn_internal.h"
#include "vec.h"

/* loss of one row; z becomes dz when inv > 0. target < 0: no loss, dz = 0 */
static double loss_row(int n, int target, fl_real inv, fl_real *restrict z)
{
    if (target < 0) {
        if (inv > 0) {
            memset(z, 0, (size_t)n * sizeof *z);
        }
        return 0;
    }
    fl_real most = nn_max(n, z), right = z[target], sum;

    for (int j = 0; j < n; j++) {
        z[j] = nn_exp(z[j] - most);
    }
    sum = nn_sum(n, z);
    if (inv > 0) {
        fl_real scale = inv / sum;
        for (int j = 0; j < n; j++) {
            z[j] *= scale;
        }
        z[target] -= inv;
    }
    return log((double)sum) + ((double)most - (double)right);
}

double nn_loss(fl_work *k, const fl_real *head, const fl_batch *batch, bool grad, double inv,
    fl_real *dxf, fl_real *dhead)
{
    int vocab = k->m->vocab, nd = k->m->nd, chunk = nn_chunk(k->m);
    double sum = 0;

    for (int t0 = 0; t0 < batch->ntokens; t0 += chunk) {
        int rows = FL_MIN(chunk, batch->ntokens - t0);
        const fl_real *x = k->xf + (size_t)t0 * (size_t)nd;

        fl_gemm_ld('n', 't', rows, vocab, nd, 1, x, nd, head, nd, 0, k->logits, vocab);
        nn_lap(k, NN_T_GEMM);
        for (int i = 0; i < rows; i++) {
            fl_real *z = k->logits + (size_t)i * (size_t)vocab;
            sum += loss_row(vocab, batch->target[t0 + i], grad ? (fl_real)inv : 0, z);
        }
        nn_lap(k, NN_T_LOSS);
        if (dxf) {
            fl_real *dx = dxf + (size_t)t0 * (size_t)nd;
            fl_gemm_ld('n', 'n', rows, nd, vocab, 1, k->logits, vocab, head, nd, 0, dx, nd);
        }
        if (dhead) {
            fl_gemm_ld(
                't', 'n', vocab, nd, rows, 1, k->logits, vocab, x, nd, t0 > 0 ? 1 : 0, dhead, nd);
        }
        nn_lap(k, NN_T_GEMM);
    }
    return sum;
}

/* The logits of the last forward, formed again from what it left: chunks were overwritten. Not part
 * of a training step. */
const fl_real *fl_nn_logits(fl_work *k)
{
    size_t vocab = (size_t)k->m->vocab, nd = (size_t)k->m->nd, n = (size_t)k->last_rows * vocab;
    int chunk = nn_chunk(k->m);

    FL_REQUIRE(k->last_head);
    if (n > k->all_logits_n || !k->all_logits) {
        fl_free(k->all_logits);
        k->all_logits = fl_alloc("logits", n, sizeof *k->all_logits);
        k->all_logits_n = n;
    }
    for (int t0 = 0; t0 < k->last_rows; t0 += chunk) {
        int rows = FL_MIN(chunk, k->last_rows - t0);
        fl_gemm_ld('n', 't', rows, (int)vocab, (int)nd, 1, k->xf + (size_t)t0 * nd, (int)nd,
            k->last_head, (int)nd, 0, k->all_logits + (size_t)t0 * vocab, (int)vocab);
    }
    return k->all_logits;
}
