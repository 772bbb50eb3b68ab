/* nn.h - the engine: a decoder transformer (GPT-2 and Llama blocks), forward and backward written by hand, LoRA on any of
 * q k v o up gate down, full-weight gradients when asked. No padding: a batch is concatenated sequences, every GEMM row a
 * real token. No allocation inside a step: one workspace sized up front. All pure functions of their arguments: bits depend on
 * the batch, the weights and the number of BLAS threads, never on MPI ranks. No MPI here. */
#ifndef FL_NN_H
#define FL_NN_H
#include "fedlora/adapter.h"

typedef struct fl_model {       /* the shape; filled by io (from config.json) or from deck.pretrain, completed by fl_model_complete */
    int family;                 /* FL_FAMILY_GPT2, FL_FAMILY_LLAMA (deck.h order: 0, 1) */
    int nlayers, nd;            /* blocks; width */
    int nheads, nkv, hd;        /* query heads, key/value heads (divides nheads), width of a head (even for rotary) */
    int nff, vocab, nctx;
    bool rms;                   /* RMSNorm without bias, else LayerNorm with */
    bool rotary;                /* rotary positions (pairs j, j + hd/2), else learned */
    bool gated;                 /* down(silu(gate x) * up x), else down(gelu_tanh(up x)) */
    bool bias;                  /* biases on linears (gpt2: yes; llama: no) */
    bool tied;                  /* output head = embedding */
    double eps, rope_theta, init_range;
    /* filled by fl_model_complete: */
    int ntensors;
    struct fl_tensor *tensor;   /* owned [ntensors] */
    int nsites;                 /* all possible LoRA sites: per block q k v o [gate] up down, in this order */
    fl_site *site;              /* owned [nsites] */
    size_t nweights;            /* elements, sum of the tensors' rows * cols, without alignment gaps */
} fl_model;
/* Tensors, in order: "embed" [vocab, nd]; "pos" [nctx, nd] if learned; per block i "i.norm1" [nd], "i.norm1_bias", "i.qkv"
 * [(nheads + 2 nkv) hd, nd] (rows q, k, v), "i.qkv_bias", "i.o" [nd, nheads hd], "i.o_bias", "i.norm2", "i.norm2_bias", "i.up" [nff, nd] or, gated,
 * [2 nff, nd] (rows gate then up), "i.up_bias", "i.down" [nd, nff], "i.down_bias"; "normf", "normf_bias"; "head" [vocab, nd] unless
 * tied. Bias rows exist only where the model has them. Vectors are 1 x n. Linear weights are [out, in]: y = x W'. */
typedef struct fl_tensor { char name[32]; int block, rows, cols; size_t at; } fl_tensor; /* at: element offset in the shared base, 64-byte aligned */
fl_err fl_model_complete(fl_model *m);        /* checks the shape (FL_EDECK sentence), builds tensors and sites. Local. */
void fl_model_free(fl_model *m);
size_t fl_model_bytes(const fl_model *m);     /* of the base with alignment gaps */
/* part of a tensor a site is: rows row0 .. row0 + site.m - 1 of tensor */
void fl_model_site_tensor(const fl_model *m, int site, int *tensor, int *row0);
/* random start for pretraining: normal(0, init_range), norms 1, biases 0, o and down scaled by 1/sqrt(2 nlayers) */
void fl_model_init(const fl_model *m, uint64_t seed, fl_real *base);
int fl_model_site_named(const fl_model *m, int block, const char *short_name); /* -1 = none */
double fl_model_flops(const fl_model *m, const fl_space *trained, double tokens, double mean_length, bool backward); /* for GFLOP/s: 2 per multiply-add,
    only work that is really done (no frozen weight gradients, nothing below the lowest trained site). trained: LoRA or dense space; NULL: everything */

typedef struct fl_batch {       /* borrowed arrays */
    int nseq, ntokens;
    const int *start;           /* [nseq + 1] offsets in token */
    const int *token;           /* [ntokens] inputs */
    const int *target;          /* [ntokens] next token, -1 = no loss here */
} fl_batch;

enum { FL_MAX_ADAPTERS = 16 };
typedef struct fl_pass {        /* one forward or forward + backward */
    const fl_real *const *w;    /* [ntensors] weights: the shared base, or a private copy when they train */
    int n;                      /* adapters in the stack: y = W x + sum_j coef_j s_j B_j A_j dropout(x) */
    const fl_adapter *ad[FL_MAX_ADAPTERS];
    double coef[FL_MAX_ADAPTERS];
    /* what gets a gradient; all NULL = forward only */
    fl_adapter *grad[FL_MAX_ADAPTERS]; /* same space as ad[j]; overwritten; NULL = frozen */
    unsigned factors[FL_MAX_ADAPTERS]; /* FL_BIT mask of factors to compute in grad[j] (others set to 0); 0 = all */
    fl_real *const *dw;         /* [ntensors] full-weight gradients, overwritten; NULL or entry NULL = frozen, never formed */
    /* LoRA dropout by counter: mask element = f(seed, id, round, step, adapter, site, token row, column); 0 = off */
    double dropout;
    uint64_t seed; int id, round, step;
} fl_pass;

typedef struct fl_work fl_work; /* activations and scratch */
/* sized for batches of at most ntokens tokens, nseq sequences, sequences of at most length tokens; rmax: sum over adapters of
 * the largest r; full: weight gradients of everything will be asked for; train: backward at all */
fl_work *fl_work_create(const fl_model *m, int ntokens, int nseq, int length, int rmax, bool train);
size_t fl_work_bytes(const fl_model *m, int ntokens, int nseq, int length, int rmax, bool train); /* what create takes */
void fl_work_destroy(fl_work **work);

/* Sum of the cross-entropy (nats) over the *n targets that count. Order of summation fixed. Local. */
double fl_nn_loss(fl_work *work, const fl_pass *pass, const fl_batch *batch, int *n);
/* Mean loss and the gradients of the mean. Backward stops below the lowest trainable site; never forms weight gradients of frozen
 * weights. *n = 0: no target, loss 0, gradients 0. */
double fl_nn_grad(fl_work *work, const fl_pass *pass, const fl_batch *batch, int *n);
/* logits [ntokens][vocab] of the last fl_nn_loss / fl_nn_grad call's forward, borrowed until the next call; formed again on demand
 * (first use allocates) with the weights that pass pointed to, which must not have changed */
const fl_real *fl_nn_logits(fl_work *work);

/* hidden states [ntokens][nd] after the last norm, of the last call's forward, borrowed until the next call */
const fl_real *fl_nn_hidden(const fl_work *work);

/* ---- the frozen product with its adapters: the one door to the base weights (fl_linear) ---- */
/* W += coef * s B A of one site, computed in double per row block of fixed size, rounded once to storage. w: the tensor of the site. */
void fl_linear_merge(const fl_model *m, int site, fl_real *tensor, const fl_adapter *ad, double coef);

/* ---- optimisers on a flat vector ---- masks: ranges that train */
typedef struct fl_range { size_t at, n; } fl_range;
typedef struct fl_optim { int kind; double beta1, beta2, eps, weight_decay, momentum; int64_t step; size_t n; fl_real *m1, *m2; } fl_optim; /* kind: FL_OPT_* order; m1, m2 owned [n] */
void fl_optim_create(fl_optim *o, int kind, double beta1, double beta2, double eps, double weight_decay, double momentum, size_t n);
void fl_optim_destroy(fl_optim *o);
/* AdamW: decoupled decay, bias-corrected, torch's order of operations; SGD: torch's (momentum without dampening, L2 decay). */
void fl_optim_step(fl_optim *o, double lr, int nranges, const fl_range *range, const fl_real *grad, fl_real *x);
/* global norm over the ranges; scales the gradient by clip / norm if above (clip 0 = only measures). Returns the norm. */
double fl_clip(double clip, int nranges, const fl_range *range, fl_real *grad);
/* schedule: constant | linear to 0 | cosine to 0 (FL_SCHEDULE_* order), after warmup share of n steps; factor of step i of n */
double fl_schedule(int schedule, double warmup, int i, int n);

/* ---- bench ---- Adds to t: tokens/s, GFLOP/s, the SGEMM peak of the same run, the fraction, and the share of each operation, of LoRA
 * training steps (r 8 on q, v; 512 tokens in unequal sequences; one thread's peak). m NULL: a Llama of width 384 with 6 blocks. base NULL:
 * random weights. Local. */
fl_err fl_bench_train(const fl_model *m, const fl_real *base, fl_text *t);
#endif
