/* attention.c - causal attention of every sequence and head: P = softmax(Q K' / sqrt(hd)) below the
 * diagonal, O = P V. Backward: dV = P' dO, dP = dO V', dS = P (dP - rowsum(dO O)) / sqrt(hd), dQ =
 * dS K, dK = dS' Q. Query rows go in tiles of NN_QUERIES against the keys up to the tile's end, so
 * half of the square is skipped and the scratch is NN_QUERIES x length. P is not stored: backward
 * forms it again from the row's maximum and sum. Heads h of a group of nheads / nkv share keys and
 * values; their dK, dV add in ascending order of h. */
#include "nn_internal.h"
#include "vec.h"

typedef struct attention_tile {
    int nq, nk, ld;           /* queries, keys, leading dimension of qkv */
    int ldp;                  /* of P: from nk only, so that bits do not depend on the workspace */
    int i0;                   /* place of the first query in its sequence */
    const fl_real *q, *k, *v; /* borrowed: first query of the tile, first key, first value */
} attention_tile;

/* scores of a tile, [nq][ldp] */
static void attention_scores(const attention_tile *t, int hd, fl_real *p)
{
    fl_real scale = 1 / nn_sqrt((fl_real)hd);

    fl_gemm_ld('n', 't', t->nq, t->nk, hd, scale, t->q, t->ld, t->k, t->ld, 0, p, t->ldp);
}

static void attention_zero_above(const attention_tile *t, int i, fl_real *row)
{
    int seen = t->i0 + i + 1;

    memset(row + seen, 0, (size_t)(t->nk - seen) * sizeof *row);
}

/* p: scores in, probabilities out; keeps the maximum and 1 / sum of every row */
static void attention_softmax(const attention_tile *t, fl_real *p, fl_real *smax, fl_real *sinv)
{
    for (int i = 0; i < t->nq; i++) {
        fl_real *restrict row = p + (size_t)i * (size_t)t->ldp;
        int seen = t->i0 + i + 1;
        fl_real most = nn_max(seen, row), inv;

        for (int j = 0; j < seen; j++) {
            row[j] = nn_exp(row[j] - most);
        }
        inv = 1 / nn_sum(seen, row);
        for (int j = 0; j < seen; j++) {
            row[j] *= inv;
        }
        attention_zero_above(t, i, row);
        smax[i] = most;
        sinv[i] = inv;
    }
}

/* the same probabilities from what was kept */
static void attention_softmax_again(
    const attention_tile *t, fl_real *p, const fl_real *smax, const fl_real *sinv)
{
    for (int i = 0; i < t->nq; i++) {
        fl_real *restrict row = p + (size_t)i * (size_t)t->ldp;
        int seen = t->i0 + i + 1;
        fl_real most = smax[i], inv = sinv[i];

        for (int j = 0; j < seen; j++) {
            row[j] = nn_exp(row[j] - most) * inv;
        }
        attention_zero_above(t, i, row);
    }
}

/* tile from query i0 of the sequence [from, to) at head h; at: query's row in the batch */
static attention_tile attention_at(
    const fl_model *m, const fl_real *qkv, int from, int to, int h, int i0)
{
    int ld = (m->nheads + 2 * m->nkv) * m->hd, kv = h / (m->nheads / m->nkv);
    attention_tile t = {.nq = FL_MIN(NN_QUERIES, to - from - i0), .ld = ld, .i0 = i0};
    const fl_real *base = qkv + (size_t)from * (size_t)ld;

    t.nk = i0 + t.nq;
    t.ldp = (t.nk + 15) / 16 * 16;
    t.q = base + (size_t)i0 * (size_t)ld + (size_t)h * (size_t)m->hd;
    t.k = base + (size_t)(m->nheads + kv) * (size_t)m->hd;
    t.v = base + (size_t)(m->nheads + m->nkv + kv) * (size_t)m->hd;
    return t;
}

void nn_attention_forward(fl_work *k, const fl_batch *batch, nn_saved *s)
{
    const fl_model *m = k->m;
    int ldo = m->nheads * m->hd;

    for (int b = 0; b < batch->nseq; b++) {
        int from = batch->start[b], to = batch->start[b + 1];
        for (int h = 0; h < m->nheads; h++) {
            for (int i0 = 0; i0 < to - from; i0 += NN_QUERIES) {
                attention_tile t = attention_at(m, s->qkv, from, to, h, i0);
                size_t row = (size_t)(from + i0), kept = (size_t)h * (size_t)k->ntokens + row;
                fl_real *o = s->att + row * (size_t)ldo + (size_t)h * (size_t)m->hd;

                attention_scores(&t, m->hd, k->prob);
                attention_softmax(&t, k->prob, s->smax + kept, s->sinv + kept);
                fl_gemm_ld('n', 'n', t.nq, m->hd, t.nk, 1, k->prob, t.ldp, t.v, t.ld, 0, o, ldo);
            }
        }
    }
}

/* ds: dP in, dS out */
static void attention_scores_backward(const attention_tile *t, int hd, int ldo, const fl_real *o,
    const fl_real *dout, const fl_real *p, fl_real *ds)
{
    fl_real scale = 1 / nn_sqrt((fl_real)hd);

    for (int i = 0; i < t->nq; i++) {
        const fl_real *restrict prob = p + (size_t)i * (size_t)t->ldp;
        fl_real *restrict row = ds + (size_t)i * (size_t)t->ldp;
        fl_real inner = nn_dot(hd, o + (size_t)i * (size_t)ldo, dout + (size_t)i * (size_t)ldo);
        int seen = t->i0 + i + 1;

        for (int j = 0; j < seen; j++) {
            row[j] = prob[j] * (row[j] - inner) * scale;
        }
        attention_zero_above(t, i, row);
    }
}

void nn_attention_backward(
    fl_work *k, const fl_batch *batch, const nn_saved *s, const fl_real *datt, fl_real *dqkv)
{
    const fl_model *m = k->m;
    int ldo = m->nheads * m->hd, ld = (m->nheads + 2 * m->nkv) * m->hd, hd = m->hd;

    memset(dqkv, 0,
        (size_t)batch->ntokens * (size_t)ld *
            sizeof *dqkv); /* dK, dV are sums over tiles and heads */
    for (int b = 0; b < batch->nseq; b++) {
        int from = batch->start[b], to = batch->start[b + 1];
        for (int h = 0; h < m->nheads; h++) {
            for (int i0 = 0; i0 < to - from; i0 += NN_QUERIES) {
                attention_tile t = attention_at(m, s->qkv, from, to, h, i0);
                size_t row = (size_t)(from + i0), kept = (size_t)h * (size_t)k->ntokens + row;
                size_t out = row * (size_t)ldo + (size_t)h * (size_t)hd;
                fl_real *dq = dqkv + (t.q - s->qkv), *dk = dqkv + (t.k - s->qkv),
                        *dv = dqkv + (t.v - s->qkv);
                const fl_real *dout = datt + out;

                attention_scores(&t, hd, k->prob);
                attention_softmax_again(&t, k->prob, s->smax + kept, s->sinv + kept);
                fl_gemm_ld('t', 'n', t.nk, hd, t.nq, 1, k->prob, t.ldp, dout, ldo, 1, dv, ld);
                fl_gemm_ld('n', 't', t.nq, t.nk, hd, 1, dout, ldo, t.v, ld, 0, k->dprob, t.ldp);
                attention_scores_backward(&t, hd, ldo, s->att + out, dout, k->prob, k->dprob);
                fl_gemm_ld('n', 'n', t.nq, hd, t.nk, 1, k->dprob, t.ldp, t.k, ld, 0, dq, ld);
                fl_gemm_ld('t', 'n', t.nk, hd, t.nq, 1, k->dprob, t.ldp, t.q, ld, 1, dk, ld);
            }
        }
    }
}
