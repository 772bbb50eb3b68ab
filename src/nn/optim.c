/* optim.c - AdamW and SGD with the order of operations of torch.optim (single tensor, not fused),
 * clipping, schedules. Scalars are computed in double and rounded once, as torch rounds Python
 * floats. */
#include "fedlora/deck.h"
#include "nn_internal.h"
#include "vec.h"

void fl_optim_create(fl_optim *o, int kind, double beta1, double beta2, double eps,
    double weight_decay, double momentum, size_t n)
{
    FL_REQUIRE(kind == FL_OPT_ADAMW || kind == FL_OPT_SGD);
    *o = (fl_optim){.kind = kind,
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .weight_decay = weight_decay,
        .momentum = momentum,
        .n = n};
    o->m1 = fl_alloc("optimiser", n, sizeof *o->m1);
    o->m2 = fl_alloc("optimiser", n, sizeof *o->m2);
}

void fl_optim_destroy(fl_optim *o)
{
    fl_free(o->m1);
    fl_free(o->m2);
    *o = (fl_optim){0};
}

/* x (1 - lr wd); m = lerp(m, g, 1 - b1); v = b2 v + (1 - b2) g g; x -= lr/c1 m / (sqrt(v) /
 * sqrt(c2) + eps) */
static void optim_adamw(const fl_optim *o, double lr, size_t n, const fl_real *restrict g,
    fl_real *restrict m, fl_real *restrict v, fl_real *restrict x)
{
    double c1 = 1 - pow(o->beta1, (double)o->step), c2 = 1 - pow(o->beta2, (double)o->step);
    fl_real keep = (fl_real)(1 - lr * o->weight_decay), pull = (fl_real)(1 - o->beta1),
            b1 = (fl_real)o->beta1;
    fl_real b2 = (fl_real)o->beta2, rest = (fl_real)(1 - o->beta2);
    fl_real step = (fl_real)(-lr / c1), root = (fl_real)sqrt(c2), eps = (fl_real)o->eps;
    bool near = pull < (fl_real)0.5; /* torch's lerp picks the form that loses less */

    for (size_t i = 0; i < n; i++) {
        fl_real gi = g[i], to = gi - m[i];
        fl_real mi = near ? m[i] + pull * to : gi - to * b1;
        fl_real vi = v[i] * b2 + rest * gi * gi;

        m[i] = mi;
        v[i] = vi;
        x[i] = x[i] * keep + step * mi / (nn_sqrt(vi) / root + eps);
    }
}

static void optim_sgd(const fl_optim *o, double lr, size_t n, const fl_real *restrict g,
    fl_real *restrict m, fl_real *restrict x)
{
    fl_real decay = (fl_real)o->weight_decay, mu = (fl_real)o->momentum, step = (fl_real)-lr;

    if (o->momentum == 0) {
        for (size_t i = 0; i < n; i++) {
            x[i] += step * (g[i] + decay * x[i]);
        }
        return;
    }
    for (size_t i = 0; i < n;
         i++) { /* the first step has m = 0, so m becomes g, as torch's clone of it */
        fl_real mi = mu * m[i] + (g[i] + decay * x[i]);
        m[i] = mi;
        x[i] += step * mi;
    }
}

void fl_optim_step(
    fl_optim *o, double lr, int nranges, const fl_range *range, const fl_real *grad, fl_real *x)
{
    o->step++;
    for (int i = 0; i < nranges; i++) {
        size_t at = range[i].at, n = range[i].n;
        FL_REQUIRE(at <= o->n && n <= o->n - at);
        if (o->kind == FL_OPT_ADAMW) {
            optim_adamw(o, lr, n, grad + at, o->m1 + at, o->m2 + at, x + at);
        } else {
            optim_sgd(o, lr, n, grad + at, o->m1 + at, x + at);
        }
    }
}

double fl_clip(double clip, int nranges, const fl_range *range, fl_real *grad)
{
    enum { LANES = 8 };
    double lane[LANES] = {0}, sum = 0, norm;

    for (int i = 0; i < nranges; i++) {
        const fl_real *g = grad + range[i].at;
        size_t j = 0;
        for (; j + LANES <= range[i].n; j += LANES) {
            for (int l = 0; l < LANES; l++) {
                lane[l] += (double)g[j + (size_t)l] * (double)g[j + (size_t)l];
            }
        }
        for (int l = 0; j < range[i].n; j++, l++) {
            lane[l] += (double)g[j] * (double)g[j];
        }
    }
    for (int l = 0; l < LANES; l++) {
        sum += lane[l];
    }
    norm = sqrt(sum);
    if (clip > 0 && norm > clip) {
        fl_real scale = (fl_real)(clip / norm);
        for (int i = 0; i < nranges; i++) {
            for (size_t j = 0; j < range[i].n; j++) {
                grad[range[i].at + j] *= scale;
            }
        }
    }
    return norm;
}

/* Choice: warmup takes ceil(warmup n) steps and step i has (i + 1) / (steps + 1), so that no step
 * is idle; the first step after it has 1. */
double fl_schedule(int schedule, double warmup, int i, int n)
{
    FL_REQUIRE(i >= 0 && i < n && warmup >= 0 && warmup <= 1);
    int nwarm = (int)ceil(warmup * n);

    if (i < nwarm) {
        return (i + 1.0) / (nwarm + 1.0);
    }
    double done = (double)(i - nwarm) / (n - nwarm);

    switch (schedule) {
    case FL_SCHEDULE_CONSTANT:
        return 1;
    case FL_SCHEDULE_LINEAR:
        return 1 - done;
    case FL_SCHEDULE_COSINE:
        return 0.5 * (1 + cos(3.14159265358979323846 * done));
    default:
        FL_REQUIRE(!"a schedule of the deck");
    }
    return 1;
}
