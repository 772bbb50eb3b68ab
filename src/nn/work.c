/* work.c - the workspace: what forward leaves for backward and the scratch of a step, one
 * allocation cut into 64-byte aligned pieces. The same function measures and cuts, so fl_work_bytes
 * cannot disagree with fl_work_create. */
#include "nn_internal.h"

typedef struct cut {
    char *base; /* NULL = only measures */
    size_t at;
} cut;

static void *cut_bytes(cut *c, size_t n, size_t each)
{
    void *x = c->base ? c->base + c->at : NULL;

    FL_REQUIRE(each == 0 || n <= (SIZE_MAX / 2 - c->at) / each);
    c->at += (n * each + 63) / 64 * 64;
    return x;
}

static fl_real *cut_reals(cut *c, size_t rows, size_t cols)
{
    FL_REQUIRE(cols == 0 || rows <= SIZE_MAX / sizeof(fl_real) / cols);
    return cut_bytes(c, rows * cols, sizeof(fl_real));
}

static void work_cut_saved(fl_work *k, cut *c, nn_saved *s)
{
    const fl_model *m = k->m;
    size_t nt = (size_t)k->ntokens, nd = (size_t)m->nd, nh = (size_t)m->nheads, hd = (size_t)m->hd;

    s->x1 = cut_reals(c, nt, nd);
    s->n1 = cut_reals(c, nt, nd);
    s->qkv = cut_reals(c, nt, (nh + 2 * (size_t)m->nkv) * hd);
    s->smax = cut_reals(c, nh, nt);
    s->sinv = cut_reals(c, nh, nt);
    s->att = cut_reals(c, nt, nh * hd);
    s->x2 = cut_reals(c, nt, nd);
    s->n2 = cut_reals(c, nt, nd);
    s->up = cut_reals(c, nt, (size_t)m->nff * (m->gated ? 2 : 1));
    s->act = cut_reals(c, nt, (size_t)m->nff);
    s->mean1 = cut_reals(c, nt, 1);
    s->rstd1 = cut_reals(c, nt, 1);
    s->mean2 = cut_reals(c, nt, 1);
    s->rstd2 = cut_reals(c, nt, 1);
    for (int j = 0; j < NN_GROUPS; j++) {
        s->h[j] = cut_reals(c, nt, (size_t)k->rmax * (size_t)k->shape.block[0].g[j].nsites);
    }
}

static void work_cut_backward(fl_work *k, cut *c, size_t wide)
{
    const fl_model *m = k->m;
    size_t nt = (size_t)k->ntokens, nd = (size_t)m->nd, nh = (size_t)m->nheads, hd = (size_t)m->hd;
    size_t stack = (size_t)k->rmax * NN_GROUP_SITES, up = (size_t)m->nff * (m->gated ? 2 : 1);

    k->d = cut_reals(c, nt, nd);
    k->dn = cut_reals(c, nt, nd);
    k->dqkv = cut_reals(c, nt, (nh + 2 * (size_t)m->nkv) * hd);
    k->datt = cut_reals(c, nt, nh * hd);
    k->dup = cut_reals(c, nt, up);
    k->dact = cut_reals(c, nt, (size_t)m->nff);
    k->dprob = cut_reals(c, NN_QUERIES, ((size_t)k->length + 15) / 16 * 16);
    k->dh = cut_reals(c, nt, stack);
    k->dpack = cut_reals(c, stack, wide);
    k->back = cut_reals(c, k->rmax > 0 ? nt : 0, wide);
}

static void work_cut(fl_work *k, cut *c)
{
    const fl_model *m = k->m;
    size_t nt = (size_t)k->ntokens, nd = (size_t)m->nd, half = m->rotary ? (size_t)m->hd / 2 : 0;
    size_t inner = (size_t)m->nheads * (size_t)m->hd,
           wide = FL_MAX(FL_MAX(nd, inner), (size_t)m->nff);
    size_t adapted = k->rmax > 0 ? nt : 0;

    k->saved = cut_bytes(c, (size_t)k->nsaved, sizeof *k->saved);
    for (int i = 0; i < k->nsaved; i++) {
        nn_saved unused, *s = k->saved ? &k->saved[i] : &unused;
        work_cut_saved(k, c, s);
    }
    k->cosine = cut_reals(c, (size_t)k->length, half);
    k->sine = cut_reals(c, (size_t)k->length, half);
    k->last = cut_reals(c, nt, nd);
    k->xf = cut_reals(c, nt, nd);
    k->meanf = cut_reals(c, nt, 1);
    k->rstdf = cut_reals(c, nt, 1);
    k->logits = cut_reals(c, (size_t)FL_MIN(nn_chunk(m), FL_MAX(k->ntokens, 1)), (size_t)m->vocab);
    k->prob = cut_reals(c, NN_QUERIES, ((size_t)k->length + 15) / 16 * 16);
    k->pack = cut_reals(c, (size_t)k->rmax * NN_GROUP_SITES, wide);
    k->dropped = cut_reals(c, adapted, wide);
    k->mask = cut_bytes(c, adapted, (wide + NN_DROP_BLOCK - 1) / NN_DROP_BLOCK * NN_DROP_BLOCK);
    if (k->train) {
        work_cut_backward(k, c, wide);
    }
}

static void work_describe(
    fl_work *k, const fl_model *m, int ntokens, int nseq, int length, int rmax, bool train)
{
    FL_REQUIRE(m->ntensors > 0 && ntokens >= 0 && nseq >= 0 && length >= 0 && rmax >= 0);
    *k = (fl_work){.m = m,
        .ntokens = ntokens,
        .nseq = nseq,
        .length = length,
        .rmax = rmax,
        .train = train,
        .nsaved = train ? m->nlayers : 1};
    nn_shape_create(m, &k->shape);
}

fl_work *fl_work_create(const fl_model *m, int ntokens, int nseq, int length, int rmax, bool train)
{
    fl_work *k = fl_alloc("engine workspace", 1, sizeof *k);
    cut c = {0};

    work_describe(k, m, ntokens, nseq, length, rmax, train);
    work_cut(k, &c);
    k->room = fl_alloc("engine workspace", c.at, 1);
    c = (cut){.base = k->room};
    work_cut(k, &c);
    if (m->rotary) {
        nn_rotary_table(length, m->hd, m->rope_theta, k->cosine, k->sine);
    }
    return k;
}

size_t fl_work_bytes(const fl_model *m, int ntokens, int nseq, int length, int rmax, bool train)
{
    fl_work k;
    cut c = {0};

    work_describe(&k, m, ntokens, nseq, length, rmax, train);
    work_cut(&k, &c);
    nn_shape_destroy(&k.shape);
    return c.at;
}

void fl_work_destroy(fl_work **work)
{
    if (!*work) {
        return;
    }
    nn_shape_destroy(&(*work)->shape);
    fl_free((*work)->room);
    fl_free((*work)->all_logits);
    fl_free(*work);
    *work = NULL;
}
