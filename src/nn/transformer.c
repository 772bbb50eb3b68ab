/* transformer.c - the whole model, forward and backward. Block i, pre-norm (GPT-2, Llama):
 *   n1 = norm1(x1), qkv = n1 Wqkv', rotary(q, k), att = attention(qkv), x2 = x1 + att Wo',
 *   n2 = norm2(x2), up = n2 Wup', act = gelu(up) or silu(gate) up, next x1 = x2 + act Wdown'.
 * Backward carries d, the gradient of the residual stream, down to the lowest position that trains
 * and no further. */
#include "nn_internal.h"
#include <limits.h>
#include <string.h>

static nn_saved *transformer_saved(fl_work *k, int i)
{
    return &k->saved[k->train ? i : 0];
}

static fl_real *transformer_input(fl_work *k, int i)
{
    return i == k->m->nlayers ? k->last : transformer_saved(k, i)->x1;
}

static const fl_real *transformer_weight(const fl_pass *p, int tensor)
{
    return tensor >= 0 ? p->w[tensor] : NULL;
}

static fl_real *transformer_gradient(const fl_pass *p, int tensor)
{
    return tensor >= 0 && p->dw ? p->dw[tensor] : NULL;
}

static void transformer_turn(const fl_work *k, const fl_batch *batch, int sign, fl_real *qkv)
{
    const fl_model *m = k->m;

    if (m->rotary) { /* the heads of k follow those of q */
        int ld = (m->nheads + 2 * m->nkv) * m->hd;
        nn_rotary(batch, m->nheads + m->nkv, m->hd, ld, sign, k->cosine, k->sine, qkv);
    }
}

static void block_forward(fl_work *k, const fl_pass *p, const fl_batch *batch, int i)
{
    const fl_model *m = k->m;
    const nn_block *b = &k->shape.block[i];
    nn_saved *s = transformer_saved(k, i);
    int nt = batch->ntokens;

    nn_norm_forward(nt, m->nd, m->eps, s->x1, p->w[b->norm1], transformer_weight(p, b->norm1_bias),
        s->n1, s->mean1, s->rstd1);
    nn_linear_forward(k, p, &b->g[NN_QKV], nt, s->n1, NULL, s->qkv, s->h[NN_QKV]);
    transformer_turn(k, batch, 1, s->qkv);
    nn_lap(k, NN_T_POINTWISE);
    nn_attention_forward(k, batch, s);
    nn_lap(k, NN_T_ATTENTION);
    nn_linear_forward(k, p, &b->g[NN_O], nt, s->att, s->x1, s->x2, s->h[NN_O]);
    nn_norm_forward(nt, m->nd, m->eps, s->x2, p->w[b->norm2], transformer_weight(p, b->norm2_bias),
        s->n2, s->mean2, s->rstd2);
    nn_linear_forward(k, p, &b->g[NN_UP], nt, s->n2, NULL, s->up, s->h[NN_UP]);
    nn_activation_forward(m->gated, nt, m->nff, s->up, s->act);
    nn_linear_forward(
        k, p, &b->g[NN_DOWN], nt, s->act, s->x2, transformer_input(k, i + 1), s->h[NN_DOWN]);
}

void nn_forward(fl_work *k, const fl_pass *p, const fl_batch *batch)
{
    const fl_model *m = k->m;
    const nn_shape *sh = &k->shape;

    nn_embed_forward(
        batch, m->nd, p->w[sh->embed], transformer_weight(p, sh->pos), transformer_input(k, 0));
    for (int i = 0; i < m->nlayers; i++) {
        block_forward(k, p, batch, i);
    }
    nn_norm_forward(batch->ntokens, m->nd, m->eps, k->last, p->w[sh->normf],
        transformer_weight(p, sh->normf_bias), k->xf, k->meanf, k->rstdf);
    nn_lap(k, NN_T_POINTWISE);
    k->last_rows = batch->ntokens;
    k->last_head = p->w[sh->head];
}

static bool group_trains(const fl_pass *p, const nn_group *g)
{
    if (transformer_gradient(p, g->tensor) || transformer_gradient(p, g->bias)) {
        return true;
    }
    for (int i = 0; i < g->nsites; i++) {
        for (int j = 0; j < p->n; j++) {
            if (nn_lora_trains(p, j, g->site[i], FL_A) || nn_lora_trains(p, j, g->site[i], FL_B)) {
                return true;
            }
        }
    }
    return false;
}

int nn_lowest(const fl_work *k, const fl_pass *p)
{
    static const int stage[NN_GROUPS] = {NN_STAGE_QKV, NN_STAGE_O, NN_STAGE_UP, NN_STAGE_DOWN};
    const nn_shape *sh = &k->shape;
    int top = k->m->nlayers * NN_STAGES;

    if (transformer_gradient(p, sh->embed) || transformer_gradient(p, sh->pos)) {
        return NN_BOTTOM;
    }
    for (int i = 0; i < k->m->nlayers; i++) {
        const nn_block *b = &sh->block[i];
        bool at[NN_STAGES] = {false};
        at[NN_STAGE_NORM1] =
            transformer_gradient(p, b->norm1) || transformer_gradient(p, b->norm1_bias);
        at[NN_STAGE_NORM2] =
            transformer_gradient(p, b->norm2) || transformer_gradient(p, b->norm2_bias);
        for (int j = 0; j < NN_GROUPS; j++) {
            at[stage[j]] = group_trains(p, &b->g[j]);
        }
        for (int j = 0; j < NN_STAGES; j++) {
            if (at[j]) {
                return i * NN_STAGES + j;
            }
        }
    }
    if (transformer_gradient(p, sh->normf) || transformer_gradient(p, sh->normf_bias)) {
        return top;
    }
    return transformer_gradient(p, sh->head) ? top + 1 : INT_MAX;
}

/* gradients of a norm's weights; then d += its gradient by x if anything below trains */
static void norm_backward(fl_work *k, const fl_pass *p, int rows, int w, int b, bool below,
    const fl_real *x, const fl_real *mean, const fl_real *rstd, const fl_real *dy)
{
    const fl_model *m = k->m;

    nn_norm_weights(!m->rms, rows, m->nd, x, mean, rstd, dy, transformer_gradient(p, w),
        transformer_gradient(p, b));
    if (below) {
        nn_norm_backward(!m->rms, rows, m->nd, x, p->w[w], mean, rstd, dy, k->d);
    }
    nn_lap(k, NN_T_POINTWISE);
}

static void block_backward(fl_work *k, const fl_pass *p, const fl_batch *batch, int i, int low)
{
    const fl_model *m = k->m;
    const nn_block *b = &k->shape.block[i];
    const nn_saved *s = transformer_saved(k, i);
    int nt = batch->ntokens, here = i * NN_STAGES;

    nn_linear_backward(
        k, p, &b->g[NN_DOWN], nt, s->act, k->d, s->h[NN_DOWN], here + NN_STAGE_DOWN > low, k->dact);
    if (here + NN_STAGE_DOWN <= low) {
        return;
    }
    nn_activation_backward(m->gated, nt, m->nff, s->up, k->dact, k->dup);
    nn_linear_backward(
        k, p, &b->g[NN_UP], nt, s->n2, k->dup, s->h[NN_UP], here + NN_STAGE_UP > low, k->dn);
    if (here + NN_STAGE_UP <= low) {
        return;
    }
    norm_backward(k, p, nt, b->norm2, b->norm2_bias, here + NN_STAGE_NORM2 > low, s->x2, s->mean2,
        s->rstd2, k->dn);
    if (here + NN_STAGE_NORM2 <= low) {
        return;
    }
    nn_linear_backward(
        k, p, &b->g[NN_O], nt, s->att, k->d, s->h[NN_O], here + NN_STAGE_O > low, k->datt);
    if (here + NN_STAGE_O <= low) {
        return;
    }
    nn_attention_backward(k, batch, s, k->datt, k->dqkv);
    nn_lap(k, NN_T_ATTENTION);
    transformer_turn(k, batch, -1, k->dqkv);
    nn_linear_backward(
        k, p, &b->g[NN_QKV], nt, s->n1, k->dqkv, s->h[NN_QKV], here + NN_STAGE_QKV > low, k->dn);
    if (here + NN_STAGE_QKV > low) {
        norm_backward(k, p, nt, b->norm1, b->norm1_bias, here + NN_STAGE_NORM1 > low, s->x1,
            s->mean1, s->rstd1, k->dn);
    }
}

/* from k->dn, the gradient by the last norm's output, down to low */
static void transformer_backward(fl_work *k, const fl_pass *p, const fl_batch *batch, int low)
{
    const nn_shape *sh = &k->shape;
    int top = k->m->nlayers * NN_STAGES;
    fl_real *dembed = transformer_gradient(p, sh->embed), *dpos = transformer_gradient(p, sh->pos);

    memset(k->d, 0, (size_t)batch->ntokens * (size_t)k->m->nd * sizeof *k->d);
    norm_backward(k, p, batch->ntokens, sh->normf, sh->normf_bias, top > low, k->last, k->meanf,
        k->rstdf, k->dn);
    for (int i = k->m->nlayers - 1; i >= 0 && i * NN_STAGES + NN_STAGE_DOWN >= low; i--) {
        block_backward(k, p, batch, i, low);
    }
    if (dembed) { /* tied: the head's part is there already */
        nn_embed_add(batch, k->m->nd, k->d, dembed);
    }
    if (dpos) {
        nn_pos_backward(batch, k->m->nd, k->d, dpos);
    }
    nn_lap(k, NN_T_POINTWISE);
}

/* bugs of the caller stop here, before anything is written; returns the number of targets */
static int transformer_check(const fl_work *k, const fl_pass *p, const fl_batch *batch)
{
    const fl_model *m = k->m;
    int n = 0;

    FL_REQUIRE(p->n >= 0 && p->n <= FL_MAX_ADAPTERS && p->dropout >= 0 && p->dropout < 1);
    FL_REQUIRE(batch->ntokens <= k->ntokens && batch->nseq <= k->nseq && batch->nseq >= 0);
    FL_REQUIRE(batch->ntokens == 0 || batch->start[0] == 0);
    FL_REQUIRE(batch->ntokens == 0 || batch->start[batch->nseq] == batch->ntokens);
    for (int s = 0; s < batch->nseq; s++) {
        int length = batch->start[s + 1] - batch->start[s];
        FL_REQUIRE(length >= 0 && length <= k->length && (m->rotary || length <= m->nctx));
    }
    for (int t = 0; t < batch->ntokens; t++) {
        FL_REQUIRE(batch->token[t] >= 0 && batch->token[t] < m->vocab);
        FL_REQUIRE(batch->target[t] < m->vocab);
        n += batch->target[t] >= 0;
    }
    for (int j = 0; j < p->n; j++) {
        FL_REQUIRE(p->ad[j]->space->nsites == m->nsites);
        FL_REQUIRE(!p->grad[j] || (p->grad[j]->space == p->ad[j]->space && !p->grad[j]->at));
    }
    return n;
}

/* what no product overwrites starts at zero: skipped factors, lookups, everything when there is no
 * target */
static void transformer_zero(const fl_work *k, const fl_pass *p, bool all)
{
    const fl_model *m = k->m;

    for (int j = 0; j < p->n; j++) {
        if (p->grad[j]) {
            memset(p->grad[j]->v, 0, p->grad[j]->space->n * sizeof(fl_real));
        }
    }
    for (int i = 0; p->dw && i < m->ntensors; i++) {
        if (p->dw[i] && (all || i == k->shape.embed || i == k->shape.pos)) {
            memset(p->dw[i], 0,
                (size_t)m->tensor[i].rows * (size_t)m->tensor[i].cols * sizeof(fl_real));
        }
    }
}

/* no forward was run: there are no logits */
static void transformer_forget(fl_work *k, const fl_pass *p)
{
    k->last_rows = 0;
    k->last_head = p->w[k->shape.head];
}

double fl_nn_loss(fl_work *k, const fl_pass *pass, const fl_batch *batch, int *n)
{
    *n = transformer_check(k, pass, batch);
    k->lap = k->clocked ? fl_now() : 0;
    if (batch->ntokens == 0) {
        transformer_forget(k, pass);
        return 0;
    }
    nn_forward(k, pass, batch);
    return *n > 0 ? nn_loss(k, pass->w[k->shape.head], batch, false, 0, NULL, NULL) : 0;
}

double fl_nn_grad(fl_work *k, const fl_pass *pass, const fl_batch *batch, int *n)
{
    FL_REQUIRE(k->train);
    *n = transformer_check(k, pass, batch);
    transformer_zero(k, pass, *n == 0);
    if (*n == 0) {
        transformer_forget(k, pass);
        return 0;
    }
    k->lap = k->clocked ? fl_now() : 0;
    int low = nn_lowest(k, pass);
    bool any = low != INT_MAX, below = any && low <= k->m->nlayers * NN_STAGES;
    double inv = 1.0 / *n, sum;

    nn_forward(k, pass, batch);
    sum = nn_loss(k, pass->w[k->shape.head], batch, any, inv, below ? k->dn : NULL,
        transformer_gradient(pass, k->shape.head));
    if (below) {
        transformer_backward(k, pass, batch, low);
    }
    return sum * inv;
}

const fl_real *fl_nn_hidden(const fl_work *k)
{
    return k->xf;
}
