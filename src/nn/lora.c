/* lora.c - the adapters of one product: y_site += c h B', h = x A', c = coef s;  x [rows][n], A
 * [r][n], B [m][r], h [rows][r]. dB = c dy' h,  dh = c dy B,  dA = dh' x,  dx += dh A. Several
 * adapters add. All those that read the same x (the adapters of q, k, v; of gate, up) are stacked:
 * one thin product for their h, one for their dA, one for their part of dx. With dropout each has
 * its own x (mask * x / (1 - p)), so each its own product. The mask is a function of a counter and
 * is drawn again in backward. */
#include "nn_internal.h"
#include <math.h>
#include <string.h>

typedef struct lora_part {
    int adapter, site;
    int r, col;           /* its columns of h: col .. col + r - 1 */
    int m, row0;          /* its columns of y */
    fl_real c;            /* coef s */
    const fl_real *a, *b; /* borrowed [r][n], [m][r] */
    fl_real *da, *db;     /* borrowed; NULL = not wanted */
} lora_part;

bool nn_lora_trains(const fl_pass *p, int adapter, int site, fl_factor f)
{
    const fl_adapter *grad = p->grad[adapter];

    if (!grad || grad->space->r[site] == 0) {
        return false;
    }
    return p->factors[adapter] == 0 || (p->factors[adapter] & FL_BIT(f)) != 0;
}

/* the adapters at this product in the order of h's columns: by site, then by place in the stack.
 * Returns their number. */
static int lora_parts(
    const fl_work *k, const fl_pass *p, const nn_group *g, lora_part *part, int *stack)
{
    int n = 0, col = 0;

    for (int i = 0; i < g->nsites; i++) {
        int site = g->site[i];
        for (int j = 0; j < p->n; j++) {
            const fl_space *space = p->ad[j]->space;
            int r = space->r[site];
            if (r == 0) {
                continue;
            }
            lora_part *one = &part[n++];
            *one = (lora_part){.adapter = j, .site = site, .r = r, .col = col, .row0 = g->row0[i]};
            one->m = k->m->site[site].m;
            one->c = (fl_real)(p->coef[j] * space->scale[site]);
            one->a = fl_at(p->ad[j], site, FL_A).x;
            one->b = fl_at(p->ad[j], site, FL_B).x;
            FL_REQUIRE(one->a && one->b && space->n_in[site] == g->n && space->m[site] == one->m);
            one->da = nn_lora_trains(p, j, site, FL_A) ? fl_at(p->grad[j], site, FL_A).x : NULL;
            one->db = nn_lora_trains(p, j, site, FL_B) ? fl_at(p->grad[j], site, FL_B).x : NULL;
            col += r;
        }
    }
    FL_REQUIRE(col <= k->rmax * g->nsites);
    *stack = col;
    return n;
}

/* factors A of all parts, one below the other [stack][n] */
static const fl_real *lora_pack(fl_work *k, const lora_part *part, int nparts, int n)
{
    if (nparts == 1) {
        return part->a;
    }
    for (int i = 0; i < nparts; i++) {
        memcpy(k->pack + (size_t)part[i].col * (size_t)n, part[i].a,
            (size_t)part[i].r * (size_t)n * sizeof(fl_real));
    }
    return k->pack;
}

/* 16 random bits against this: an element is dropped if below. The share is rounded to 1/65536, the
 * scale is exact for it. */
static uint32_t lora_cut(double dropout)
{
    return (uint32_t)FL_MIN(65535.0, rint(dropout * 65536.0));
}

static fl_real lora_keep_scale(double dropout)
{
    return (fl_real)(65536.0 / (65536.0 - lora_cut(dropout)));
}

/* the mask of one adapter at one site, [rows][n] in rows of whole blocks; f(seed, id, round, step,
 * adapter, site, row, column) */
static void lora_draw_mask(fl_work *k, const fl_pass *p, const lora_part *one, int rows, int n)
{
    const uint32_t who[3] = {(uint32_t)p->step, (uint32_t)one->adapter, (uint32_t)one->site};
    uint64_t seed = fl_hash(who, sizeof who, p->seed),
             blocks = ((uint64_t)n + NN_DROP_BLOCK - 1) / NN_DROP_BLOCK;
    uint32_t limit = lora_cut(p->dropout), bits[4];
    uint8_t *at = k->mask;

    for (uint64_t i = 0; i < (uint64_t)rows * blocks; i++) {
        fl_rng_block(seed, FL_RNG_DROPOUT, p->id, p->round, i, bits);
        for (int j = 0; j < 4; j++) {
            *at++ = (bits[j] & 0xffffu) >= limit;
            *at++ = (bits[j] >> 16) >= limit;
        }
    }
}

/* y = mask * x * scale, or y += when add; x, y [rows][n] */
static void lora_apply_mask(
    const fl_work *k, int rows, int n, fl_real scale, bool add, const fl_real *x, fl_real *y)
{
    size_t nn = (size_t)n, ld = (nn + NN_DROP_BLOCK - 1) / NN_DROP_BLOCK * NN_DROP_BLOCK;

    for (size_t i = 0; i < (size_t)rows; i++) {
        const fl_real *restrict from = x + i * nn;
        const uint8_t *restrict kept = k->mask + i * ld;
        fl_real *restrict to = y + i * nn;
        for (size_t j = 0; j < nn; j++) {
            fl_real v = kept[j] ? from[j] * scale : 0;
            to[j] = add ? to[j] + v : v;
        }
    }
}

void nn_lora_forward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    fl_real *y, fl_real *h)
{
    lora_part part[NN_PARTS];
    int stack, nparts = lora_parts(k, p, g, part, &stack);

    if (nparts == 0) {
        return;
    }
    if (p->dropout == 0) {
        fl_gemm_ld('n', 't', rows, stack, g->n, 1, x, g->n, lora_pack(k, part, nparts, g->n), g->n,
            0, h, stack);
    }
    for (int i = 0; i < nparts; i++) {
        const lora_part *o = &part[i];
        if (p->dropout > 0) {
            lora_draw_mask(k, p, o, rows, g->n);
            lora_apply_mask(k, rows, g->n, lora_keep_scale(p->dropout), false, x, k->dropped);
            fl_gemm_ld(
                'n', 't', rows, o->r, g->n, 1, k->dropped, g->n, o->a, g->n, 0, h + o->col, stack);
        }
        fl_gemm_ld(
            'n', 't', rows, o->m, o->r, o->c, h + o->col, stack, o->b, o->r, 1, y + o->row0, g->m);
    }
}

/* dA of neighbouring parts that want it in one product, and dx of all */
static void lora_backward_input(fl_work *k, const lora_part *part, int nparts, int stack,
    const nn_group *g, int rows, const fl_real *x, bool need_dx, fl_real *dx)
{
    size_t n = (size_t)g->n;

    for (int i = 0, last; i < nparts; i = last) {
        last = i + 1;
        if (!part[i].da) {
            continue;
        }
        int wide = part[i].r;
        for (; last < nparts && part[last].da; last++) {
            wide += part[last].r;
        }
        fl_real *to = last == i + 1 ? part[i].da : k->dpack;
        fl_gemm_ld('t', 'n', wide, g->n, rows, 1, k->dh + part[i].col, stack, x, g->n, 0, to, g->n);
        for (int j = i; j < last && last > i + 1; j++) {
            memcpy(part[j].da, k->dpack + (size_t)(part[j].col - part[i].col) * n,
                (size_t)part[j].r * n * sizeof(fl_real));
        }
    }
    if (need_dx) {
        const fl_real *a = lora_pack(k, part, nparts, g->n);
        fl_gemm_ld('n', 'n', rows, g->n, stack, 1, k->dh, stack, a, g->n, 1, dx, g->n);
    }
}

/* the same for one part under its mask */
static void lora_backward_dropped(fl_work *k, const fl_pass *p, const lora_part *o, int stack,
    int n, int rows, const fl_real *x, bool need_dx, fl_real *dx)
{
    fl_real scale = lora_keep_scale(p->dropout);

    lora_draw_mask(k, p, o, rows, n);
    if (o->da) {
        lora_apply_mask(k, rows, n, scale, false, x, k->dropped);
        fl_gemm_ld('t', 'n', o->r, n, rows, 1, k->dh + o->col, stack, k->dropped, n, 0, o->da, n);
    }
    if (need_dx) {
        fl_gemm_ld('n', 'n', rows, n, o->r, 1, k->dh + o->col, stack, o->a, n, 0, k->back, n);
        lora_apply_mask(k, rows, n, scale, true, k->back, dx);
    }
}

void nn_lora_backward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *dy, const fl_real *h, bool need_dx, fl_real *dx)
{
    lora_part part[NN_PARTS];
    int stack, nparts = lora_parts(k, p, g, part, &stack);

    for (int i = 0; i < nparts; i++) {
        const lora_part *o = &part[i];
        if (o->db) {
            fl_gemm_ld('t', 'n', o->m, o->r, rows, o->c, dy + o->row0, g->m, h + o->col, stack, 0,
                o->db, o->r);
        }
        if (need_dx || o->da) {
            fl_gemm_ld('n', 'n', rows, o->r, o->m, o->c, dy + o->row0, g->m, o->b, o->r, 0,
                k->dh + o->col, stack);
            if (p->dropout > 0) {
                lora_backward_dropped(k, p, o, stack, g->n, rows, x, need_dx, dx);
            }
        }
    }
    if (nparts > 0 && p->dropout == 0) {
        lora_backward_input(k, part, nparts, stack, g, rows, x, need_dx, dx);
    }
}
