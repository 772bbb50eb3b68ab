/* nn_bed.h - a small random model with adapters, a batch and a workspace: what the tests of the
 * engine stand on. */
#ifndef NN_BED_H
#define NN_BED_H
#include "fedlora/deck.h"
#include "fedlora/nn.h"
#include "harness.h"
#include <math.h>
#include <string.h>

enum { BED_ADAPTERS = 2 };

typedef struct bed {
    fl_model m;        /* owned */
    fl_real *base;     /* owned: the weights */
    fl_real *dbase;    /* owned: their gradients, laid out as base */
    const fl_real **w; /* owned [ntensors] into base */
    fl_real **dw;      /* owned [ntensors] into dbase */
    fl_spaces *reg;    /* owned */
    fl_adapter *ad[BED_ADAPTERS], *grad[BED_ADAPTERS]; /* owned */
    int *start, *token, *target;                       /* owned */
    fl_batch batch;                                    /* borrows them */
    fl_pass pass;
    fl_work *work; /* owned */
} bed;

static inline fl_model bed_shape(int family)
{
    fl_model m = {.family = family,
        .nlayers = 2,
        .nd = 16,
        .nheads = 4,
        .nkv = 4,
        .nff = 20,
        .vocab = 13,
        .nctx = 90,
        .bias = true,
        .tied = true,
        .eps = 1e-5,
        .rope_theta = 10000,
        .init_range = 0.02};

    if (family == FL_FAMILY_LLAMA) {
        m.nkv = 2;
        m.rms = m.rotary = m.gated = true;
        m.bias = m.tied = false;
    }
    return m;
}

static inline double bed_random(int stream, size_t i)
{
    return fl_rng_normal(11, FL_RNG_TEST, stream, 0, i);
}

static inline void bed_fill(int stream, double std, double mean, size_t n, fl_real *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (fl_real)(mean + std * bed_random(stream, i));
    }
}

/* sequences of the given lengths; every fifth target does not count */
static inline void bed_batch(bed *b, int nseq, const int *length)
{
    int nt = 0;

    fl_free(b->start);
    fl_free(b->token);
    fl_free(b->target);
    b->start = fl_alloc("bed", (size_t)nseq + 1, sizeof *b->start);
    for (int s = 0; s < nseq; s++) {
        b->start[s + 1] = nt += length[s];
    }
    b->token = fl_alloc("bed", (size_t)nt, sizeof *b->token);
    b->target = fl_alloc("bed", (size_t)nt, sizeof *b->target);
    for (int t = 0; t < nt; t++) {
        b->token[t] = (int)(fl_rng_uniform(12, FL_RNG_TEST, 0, 0, (uint64_t)t) * b->m.vocab);
        b->target[t] = t % 5 == 3
                           ? -1
                           : (int)(fl_rng_uniform(12, FL_RNG_TEST, 1, 0, (uint64_t)t) * b->m.vocab);
    }
    b->batch = (fl_batch){nseq, nt, b->start, b->token, b->target};
}

/* weights of order 0.3, norms near 1; adapters with r[j] + site % 2 at every site of a bit in
 * `sites[j]` of its place in the block */
static inline void bed_create(
    bed *b, fl_model m, int nadapters, const int *r, const unsigned *sites)
{
    memset(b, 0, sizeof *b);
    b->m = m;
    assert_int_equal(fl_model_complete(&b->m), FL_OK);
    b->base = fl_alloc("bed", fl_model_bytes(&b->m), 1);
    b->dbase = fl_alloc("bed", fl_model_bytes(&b->m), 1);
    b->w = fl_alloc("bed", (size_t)b->m.ntensors, sizeof *b->w);
    b->dw = fl_alloc("bed", (size_t)b->m.ntensors, sizeof *b->dw);
    for (int i = 0; i < b->m.ntensors; i++) {
        const fl_tensor *t = &b->m.tensor[i];
        bool norm = strstr(t->name, "norm") && !strstr(t->name, "bias");
        bed_fill(i, 0.3, norm ? 1 : 0, (size_t)t->rows * (size_t)t->cols, b->base + t->at);
        b->w[i] = b->base + t->at;
        b->dw[i] = b->dbase + t->at;
    }
    b->reg = fl_spaces_create();
    int rank[64] = {0}, per = b->m.nsites / b->m.nlayers, rmax = 0;
    b->pass = (fl_pass){.w = b->w, .n = nadapters, .seed = 5, .id = 3, .round = 2, .step = 7};
    for (int j = 0; j < nadapters; j++) {
        int most = 0;
        for (int i = 0; i < b->m.nsites; i++) {
            rank[i] = sites[j] & FL_BIT(i % per) ? r[j] + i % 2 : 0;
            most = FL_MAX(most, rank[i]);
        }
        rmax += most;
        const fl_space *space = fl_space_lora(b->reg, b->m.nsites, b->m.site, rank, 3, false);
        b->pass.ad[j] = b->ad[j] = fl_adapter_create(space);
        b->grad[j] = fl_adapter_create(space);
        bed_fill(100 + j, 0.3, 0, space->n, b->ad[j]->v);
        b->pass.coef[j] = 1 - 0.4 * j;
    }
    b->work = fl_work_create(&b->m, 200, 8, 90, rmax, true);
    bed_batch(b, 3, (const int[]){5, 1, 9});
}

static inline void bed_destroy(bed *b)
{
    fl_work_destroy(&b->work);
    for (int j = 0; j < BED_ADAPTERS; j++) {
        fl_adapter_destroy(&b->ad[j]);
        fl_adapter_destroy(&b->grad[j]);
    }
    fl_spaces_destroy(&b->reg);
    fl_free(b->base);
    fl_free(b->dbase);
    fl_free(b->w);
    fl_free(b->dw);
    fl_free(b->start);
    fl_free(b->token);
    fl_free(b->target);
    fl_model_free(&b->m);
}

/* ||x - y|| / ||y||; 0 if both are 0 */
static inline double bed_error(size_t n, const fl_real *x, const fl_real *y)
{
    double d = 0, s = 0;

    for (size_t i = 0; i < n; i++) {
        d += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        s += (double)y[i] * (double)y[i];
    }
    if (d != d || s != s) {
        return INFINITY;
    }
    return d == 0 ? 0 : sqrt(d / s);
}

#ifdef FL_REAL_DOUBLE
/* ---- gradients against central differences ---- error of (f(x + h) - f(x - h)) / 2h with h =
 * 1e-5: h^2 f'''/6 + eps f / h, about 1e-10; relative to the norm of the array */
#define STEP 1e-5
#define LIMIT 1e-7
typedef double scalar(void *what);

static inline void differences(scalar *f, void *what, size_t n, double *x, double *d)
{
    for (size_t i = 0; i < n; i++) {
        double keep = x[i], up, down;
        x[i] = keep + STEP;
        up = f(what);
        x[i] = keep - STEP;
        down = f(what);
        x[i] = keep;
        d[i] = (up - down) / (2 * STEP);
    }
}

static inline void expect_gradient(
    scalar *f, void *what, size_t n, double *x, const double *g, const char *name)
{
    double *d = fl_alloc("differences", n, sizeof *d), norm = 0, error;

    differences(f, what, n, x, d);
    for (size_t i = 0; i < n; i++) {
        norm += d[i] * d[i];
    }
    error = bed_error(n, g, d);
    if (!(norm > 0) || !(error < LIMIT)) {
        fail_msg("%s: gradient off by %.3g (norm %.3g)", name, error, sqrt(norm));
    }
    fl_free(d);
}
#endif
#endif
