/* nn_internal.h - what the files of src/nn share: the map of a block's tensors, the workspace, the
 * layers. Symbols: nt tokens (rows), nd width, nff inner width, L length of a sequence, R sum of
 * the LoRA ranks at an input. All arrays are row-major and contiguous unless a leading dimension is
 * named. */
#ifndef FL_NN_INTERNAL_H
#define FL_NN_INTERNAL_H
#include "fedlora/nn.h"

enum {
    NN_QUERIES = 64,   /* rows of an attention tile: fixed, bits depend on it */
    NN_DROP_BLOCK = 8, /* mask elements per block of random bits */
    NN_GROUP_SITES = 3,
    NN_PARTS = NN_GROUP_SITES * FL_MAX_ADAPTERS
};

/* the four frozen products of a block; q k v share an input and a product, gate and up too */
enum { NN_QKV, NN_O, NN_UP, NN_DOWN, NN_GROUPS };

/* where in a block something trains; position = block * NN_STAGES + stage, embeddings are at
 * NN_BOTTOM */
enum {
    NN_STAGE_NORM1,
    NN_STAGE_QKV,
    NN_STAGE_O,
    NN_STAGE_NORM2,
    NN_STAGE_UP,
    NN_STAGE_DOWN,
    NN_STAGES
};
enum { NN_BOTTOM = -1 };

typedef struct nn_group {
    int tensor, bias; /* indices of tensors; bias -1 = none */
    int m, n;         /* the whole product: out, in */
    int nsites;
    int site[NN_GROUP_SITES]; /* indices of sites */
    int row0[NN_GROUP_SITES]; /* first output column of the site */
} nn_group;

typedef struct nn_block {
    int norm1, norm1_bias, norm2, norm2_bias; /* indices of tensors, -1 = none */
    nn_group g[NN_GROUPS];
} nn_block;

typedef struct nn_shape {
    nn_block *block;                         /* owned [nlayers] */
    int embed, pos, normf, normf_bias, head; /* indices of tensors, -1 = none; tied: head = embed */
} nn_shape;
void nn_shape_create(const fl_model *m, nn_shape *shape);
void nn_shape_destroy(nn_shape *shape);

/* what forward leaves for backward, one per block (without training all blocks share one) */
typedef struct nn_saved {
    fl_real *x1, *n1;     /* [nt][nd] input of the block, after norm1 */
    fl_real *qkv;         /* [nt][(nheads + 2 nkv) hd] after rotary */
    fl_real *smax, *sinv; /* [nheads][nt] largest score of the row, 1 / sum of its exponentials */
    fl_real *att;         /* [nt][nheads hd] */
    fl_real *x2, *n2;     /* [nt][nd] after attention, after norm2 */
    fl_real *up;          /* [nt][nff or 2 nff] before the activation */
    fl_real *act;         /* [nt][nff] after it */
    fl_real *mean1, *rstd1, *mean2, *rstd2; /* [nt] */
    fl_real *h[NN_GROUPS];                  /* [nt][R] LoRA's inner vectors */
} nn_saved;

/* shares of a step, for the benchmark */
enum { NN_T_GEMM, NN_T_ADAPTER, NN_T_ATTENTION, NN_T_POINTWISE, NN_T_LOSS, NN_T_OPTIM, NN_TIMES };

struct fl_work {
    const fl_model *m; /* borrowed */
    nn_shape shape;    /* owned */
    int ntokens, nseq, length, rmax;
    bool train;
    int nsaved;                  /* nlayers or 1 */
    nn_saved *saved;             /* owned [nsaved]; pointers into room */
    void *room;                  /* owned, all below point into it */
    fl_real *cosine, *sine;      /* [length][hd / 2] */
    fl_real *last;               /* [nt][nd] output of the last block */
    fl_real *xf, *meanf, *rstdf; /* [nt][nd] after the last norm, [nt] */
    fl_real *logits;             /* [chunk][vocab] */
    fl_real *prob, *dprob;       /* [NN_QUERIES][length rounded up] */
    fl_real *d, *dn;             /* [nt][nd] gradient of the residual stream; of a normed input */
    fl_real *dqkv, *datt, *dup, *dact; /* as qkv, att, up, act */
    fl_real *dh;                       /* [nt][R] */
    fl_real *pack, *dpack;             /* [R][n] factors A of an input, stacked; their gradients */
    fl_real *dropped, *back; /* [nt][largest n] input under the mask; gradient under the mask */
    uint8_t *mask;           /* [nt][largest n] 1 = kept */
    /* of the last forward, for fl_nn_logits */
    int last_rows;
    const fl_real *last_head; /* borrowed from the caller of the last pass */
    fl_real *all_logits;      /* owned, made on first use */
    size_t all_logits_n;
    bool clocked; /* the benchmark only */
    double lap, seconds[NN_TIMES];
};

/* adds the time since the last lap to one share */
static inline void nn_lap(fl_work *k, int share)
{
    if (k->clocked) {
        double now = fl_now();
        k->seconds[share] += now - k->lap;
        k->lap = now;
    }
}

/* rows of logits held at once: by the vocabulary only, so that the products do not depend on the
 * batch or on memory */
static inline int nn_chunk(const fl_model *m)
{
    int rows = (1 << 21) / m->vocab;

    return FL_MAX(64, FL_MIN(rows, 512)) / 16 * 16;
}

/* ---- linear.c: y = resid + x W' + bias + adapters ---- resid [rows][m] or NULL, h [rows][R] */
void nn_linear_forward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *resid, fl_real *y, fl_real *h);
/* weight and adapter gradients as the pass asks; dx only if need_dx (else not touched) */
void nn_linear_backward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *dy, const fl_real *h, bool need_dx, fl_real *dx);

/* ---- lora.c ---- */
bool nn_lora_trains(const fl_pass *p, int adapter, int site, fl_factor f);
void nn_lora_forward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    fl_real *y, fl_real *h);
void nn_lora_backward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *dy, const fl_real *h, bool need_dx, fl_real *dx);

/* ---- embed.c ---- pos NULL = none; starts [nseq + 1] */
void nn_embed_forward(
    const fl_batch *batch, int nd, const fl_real *embed, const fl_real *pos, fl_real *x);
void nn_embed_add(const fl_batch *batch, int nd, const fl_real *dx, fl_real *dembed);  /* adds */
void nn_pos_backward(const fl_batch *batch, int nd, const fl_real *dx, fl_real *dpos); /* adds */

/* ---- norm.c ---- b NULL = RMSNorm; mean [rows] (LayerNorm only), rstd [rows] */
void nn_norm_forward(int rows, int n, double eps, const fl_real *x, const fl_real *w,
    const fl_real *b, fl_real *y, fl_real *mean, fl_real *rstd);
/* dx += gradient by x; layer: LayerNorm, else RMSNorm */
void nn_norm_backward(bool layer, int rows, int n, const fl_real *x, const fl_real *w,
    const fl_real *mean, const fl_real *rstd, const fl_real *dy, fl_real *dx);
void nn_norm_weights(bool layer, int rows, int n, const fl_real *x, const fl_real *mean,
    const fl_real *rstd, const fl_real *dy, fl_real *dw,
    fl_real *db); /* overwritten; NULL = not wanted */

/* ---- rotary.c ---- */
void nn_rotary_table(int length, int hd, double theta, fl_real *cosine, fl_real *sine);
/* turns heads first .. first + n - 1 of every row (ld apart) by the angle of its position; sign -1
 * turns back */
void nn_rotary(const fl_batch *batch, int n, int hd, int ld, int sign, const fl_real *cosine,
    const fl_real *sine, fl_real *x);

/* ---- attention.c ---- */
void nn_attention_forward(fl_work *k, const fl_batch *batch, nn_saved *s);
void nn_attention_backward(
    fl_work *k, const fl_batch *batch, const nn_saved *s, const fl_real *datt, fl_real *dqkv);

/* ---- activation.c ---- up [rows][nff], gated [rows][2 nff] (gate, up); y [rows][nff] */
void nn_activation_forward(bool gated, int rows, int nff, const fl_real *up, fl_real *y);
void nn_activation_backward(
    bool gated, int rows, int nff, const fl_real *up, const fl_real *dy, fl_real *dup);

/* ---- loss.c ---- the output head and the cross-entropy, in chunks of rows.
 * dxf NULL = not wanted; dhead NULL = not wanted, else overwritten; grad false = loss only. inv: 1
 * / number of targets */
double nn_loss(fl_work *k, const fl_real *head, const fl_batch *batch, bool grad, double inv,
    fl_real *dxf, fl_real *dhead);

/* ---- transformer.c ---- */
void nn_forward(fl_work *k, const fl_pass *p, const fl_batch *batch);
int nn_lowest(const fl_work *k,
    const fl_pass *p); /* position of the lowest thing that trains, INT_MAX = nothing */

/* ---- small ones of linear.c ---- y[i] = resid[i] + bias, either NULL */
void nn_fill(int rows, int m, const fl_real *resid, const fl_real *bias, fl_real *y);
void nn_column_sum(int rows, int m, const fl_real *x, fl_real *y);
#endif
