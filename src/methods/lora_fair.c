/* lora_fair - average A and B, then correct B so that the product comes close to the ideal update.
 * Source: Bian et al. 2024 (LoRA-FAIR, arXiv 2411.14961), as coded in a server derived from it.
 *   A = sum_k p_k A_k,  B = sum_k p_k B_k,  T = sum_k p_k B_k A_k (s is common and left out),
 *   C = argmin 1 - cos(T, (B + C) A) + lambda ||C||^2,  B <- B + C.
 * cosine: gradient descent from C = 0. With X = (B + C) A and G = A A' (r x r),
 *   flat:     gradient = -[T A' / (|T||X|) - (B + C) G <T,X> / (|T||X|^3)] + 2 lambda C
 *   columns:  the mean over columns j of 1 - cos(T_j, X_j); with c_j = 1 / (|T_j||X_j|) and
 *             d_j = <T_j,X_j> / (|T_j||X_j|^3),
 *             gradient = -[T diag(c) A' - (B + C) A diag(d) A'] / n + 2 lambda C.
 * ridge: the squared Frobenius distance instead: C = (T A' - B G)(G + lambda I)^-1.
 * T (m x n) is never formed: T = Bs As with the stacks Bs (m x R), As (R x n).
 * The paper writes argmin S + lambda ||C|| with S a similarity: the sign is a misprint.
 * Choice: C starts at 0 (a code draws it at random); a step that would raise the objective is not
 * taken and the next ones are half as long, so the result is never worse than C = 0. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { FAIR_COSINE, FAIR_RIDGE, FAIR_FLAT = 0, FAIR_COLUMNS };
typedef struct lora_fair_config {
    int objective, cosine_over;
    double lambda, lr;
    int steps;
} lora_fair_config;

static const fl_field lora_fair_fields[] = {
    FL_WORD(lora_fair_config, objective, "cosine", "cosine|ridge",
        "bring the product to the ideal update by its cosine (the paper), or the squared distance"),
    FL_WORD(lora_fair_config, cosine_over, "flat", "flat|columns",
        "cosine of the whole matrices, or the mean over their columns (as coded)"),
    FL_REAL(
        lora_fair_config, lambda, "0.01", 0, 1e12, "", "weight of the correction's squared norm"),
    FL_REAL(lora_fair_config, lr, "0.01", 1e-12, 1e6, "", "step length; cosine only"),
    FL_INT(lora_fair_config, steps, "1000", 0, 1e6, "", "steps at most; cosine only"),
    FL_END,
};

/* one site's problem, in double */
typedef struct fair {
    fl_run *run;
    const lora_fair_config *c;
    int m, n, r, stack;
    size_t mr;
    double *bs, *as;                     /* m x R, R x n: T = bs as */
    double *a, *b;                       /* the means: r x n, m x r */
    double *gram, *ta;                   /* A A' (r x r), T A' (m x r) */
    double tt, *tt_col;                  /* |T|^2; |T_j|^2 [n], columns only, as the rest: */
    double *sr, *rr, *xa, *ac, *tx, *xx; /* room: R x r, r x r, r x n twice, n twice */
} fair;

static double *fair_new(const fair *f, int rows, int cols)
{
    return fl_scratch(f->run, (size_t)rows * (size_t)cols, sizeof(double));
}

static double fair_dot(size_t n, const double *x, const double *y)
{
    double s = 0;

    for (size_t i = 0; i < n; i++) {
        s += x[i] * y[i];
    }
    return s;
}

/* <column j of x, column j of y> of two q x n matrices */
static void fair_dot_columns(int q, int n, const double *x, const double *y, double *dot)
{
    memset(dot, 0, (size_t)n * sizeof *dot);
    for (size_t e = 0; e < (size_t)q * (size_t)n; e++) {
        dot[e % (size_t)n] += x[e] * y[e];
    }
}

/* 1 - cos(T, X) at X = x A and its gradient g (m x r); 1 and 0 where T or X is 0 */
static double fair_flat(const fair *f, const double *x, double *g)
{
    fl_dgemm('n', 'n', f->m, f->r, f->r, 1, x, f->gram, 0, g);
    double xx = fair_dot(f->mr, g, x), tx = fair_dot(f->mr, f->ta, x), norm = sqrt(f->tt * xx);

    for (size_t i = 0; i < f->mr; i++) {
        g[i] = norm > 0 ? g[i] * tx / (norm * xx) - f->ta[i] / norm : 0;
    }
    return norm > 0 ? 1 - tx / norm : 1;
}

/* the mean of the same over columns */
static double fair_columns(const fair *f, const double *x, double *g)
{
    int m = f->m, n = f->n, r = f->r;
    double sum = 0;

    fl_dgemm('t', 'n', f->stack, r, m, 1, f->bs, x, 0, f->sr); /* T' x = As' (Bs' x) */
    fl_dgemm('t', 'n', r, n, f->stack, 1, f->sr, f->as, 0, f->xa);
    fair_dot_columns(r, n, f->xa, f->a, f->tx);
    fl_dgemm('t', 'n', r, r, m, 1, x, x, 0, f->rr);
    fl_dgemm('n', 'n', r, n, r, 1, f->rr, f->a, 0, f->xa);
    fair_dot_columns(r, n, f->xa, f->a, f->xx);
    for (int j = 0; j < n; j++) {
        double norm = sqrt(f->tt_col[j] * f->xx[j]);

        sum += norm > 0 ? f->tx[j] / norm : 0;
        f->tx[j] = norm > 0 ? f->tx[j] / (norm * f->xx[j]) : 0; /* d_j */
        f->xx[j] = norm > 0 ? 1 / norm : 0;                     /* c_j */
    }
    for (size_t e = 0; e < (size_t)r * (size_t)n; e++) {
        f->ac[e] = f->a[e] * f->xx[e % (size_t)n];
        f->xa[e] = f->a[e] * f->tx[e % (size_t)n];
    }
    fl_dgemm('n', 't', f->stack, r, n, 1, f->as, f->ac, 0, f->sr);
    fl_dgemm('n', 'n', m, r, f->stack, -1.0 / n, f->bs, f->sr, 0, g);
    fl_dgemm('n', 't', r, r, n, 1, f->xa, f->a, 0, f->rr);
    fl_dgemm('n', 'n', m, r, r, 1.0 / n, x, f->rr, 1, g);
    return 1 - sum / n;
}

/* the whole objective at x = B + C, and its gradient */
static double fair_value(const fair *f, const double *x, double *g)
{
    double value = f->c->cosine_over == FAIR_FLAT ? fair_flat(f, x, g) : fair_columns(f, x, g);

    for (size_t i = 0; i < f->mr; i++) {
        double c = x[i] - f->b[i];

        value += f->c->lambda * c * c;
        g[i] += 2 * f->c->lambda * c;
    }
    return value;
}

/* x: from B to B + C; before and after: the objective there. Ends as coded: five steps in a row
 * that gain less than 1e-6 */
static void fair_descend(const fair *f, double *x, double *before, double *after)
{
    enum { CALM = 5 };
    double *g = fair_new(f, f->m, f->r), *y = fair_new(f, f->m, f->r),
           *gy = fair_new(f, f->m, f->r), lr = f->c->lr;

    *before = *after = fair_value(f, x, g);
    for (int i = 0, calm = 0; i < f->c->steps && calm < CALM; i++) {
        for (size_t e = 0; e < f->mr; e++) {
            y[e] = x[e] - lr * g[e];
        }
        double value = fair_value(f, y, gy);

        if (!(value <= *after)) {
            lr /= 2;
            continue;
        }
        calm = *after - value < 1e-6 ? calm + 1 : 0;
        *after = value;
        memcpy(x, y, f->mr * sizeof *x);
        memcpy(g, gy, f->mr * sizeof *g);
    }
}

/* ||T - x A||^2 + lambda ||x - B||^2; xg (m x r): room */
static double fair_distance(const fair *f, const double *x, double *xg)
{
    fl_dgemm('n', 'n', f->m, f->r, f->r, 1, x, f->gram, 0, xg);
    double value = f->tt - 2 * fair_dot(f->mr, f->ta, x) + fair_dot(f->mr, xg, x);

    for (size_t i = 0; i < f->mr; i++) {
        value += f->c->lambda * (x[i] - f->b[i]) * (x[i] - f->b[i]);
    }
    return value;
}

/* x = B + (T A' - B G)(G + lambda I)^-1 */
static fl_err fair_ridge(const fair *f, double *x, double *before, double *after)
{
    size_t m = (size_t)f->m, r = (size_t)f->r;
    double *h = fair_new(f, f->r, f->r), *rhs = fair_new(f, f->r, f->m);
    double *xg = fair_new(f, f->m, f->r), trace = 0;

    *before = *after = fair_distance(f, x, xg);
    memcpy(h, f->gram, r * r * sizeof *h);
    for (size_t i = 0; i < r; i++) {
        trace += h[i * r + i];
    }
    if (trace == 0) {
        return FL_OK; /* A = 0: nothing that B could do */
    }
    for (size_t i = 0; i < r; i++) { /* lambda 0 and dependent rows of A: the shortest C, nearly */
        h[i * r + i] += fmax(f->c->lambda, 1e-12 * trace / f->r);
    }
    for (size_t i = 0; i < m * r; i++) {
        rhs[i % r * m + i / r] = f->ta[i] - xg[i];
    }
    FL_TRY(fl_solve(f->r, f->m, h, rhs));
    for (size_t i = 0; i < m * r; i++) {
        x[i] = f->b[i] + rhs[i % r * m + i / r];
    }
    *after = fair_distance(f, x, xg);
    return FL_OK;
}

static double *fair_double(fl_run *run, fl_mat x)
{
    size_t n = (size_t)x.rows * (size_t)x.cols;
    double *y = fl_scratch(run, n, sizeof *y);

    for (size_t i = 0; i < n; i++) {
        y[i] = (double)x.x[i];
    }
    return y;
}

static fair fair_open(fl_run *run, int site, const fl_pile *in)
{
    fl_mat a = fl_at(run->global, site, FL_A), b = fl_at(run->global, site, FL_B);
    fair f = {run, run->config, .m = b.rows, .n = a.cols, .r = a.rows};
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w);
    int64_t stack;

    for (int i = 0; i < in->n; i++) {
        w[i] = in->item[i].p / run->space->scale[site];
    }
    fl_site_stack(run, site, in, 0, w, &stack, &f.bs, &f.as);
    f.stack = (int)stack;
    f.mr = (size_t)f.m * (size_t)f.r;
    f.a = fair_double(run, a);
    f.b = fair_double(run, b);
    f.gram = fair_new(&f, f.r, f.r);
    f.ta = fair_new(&f, f.m, f.r);
    f.sr = fair_new(&f, f.stack, f.r);
    fl_dgemm('n', 't', f.r, f.r, f.n, 1, f.a, f.a, 0, f.gram);
    fl_dgemm('n', 't', f.stack, f.r, f.n, 1, f.as, f.a, 0, f.sr);
    fl_dgemm('n', 'n', f.m, f.r, f.stack, 1, f.bs, f.sr, 0, f.ta);
    f.tt = fl_product_norm2(f.m, f.n, stack, f.bs, f.as);
    if (f.c->cosine_over == FAIR_COLUMNS) {
        double *ss = fair_new(&f, f.stack, f.stack), *sn = fair_new(&f, f.stack, f.n);

        f.tt_col = fair_new(&f, 1, f.n);
        f.tx = fair_new(&f, 1, f.n);
        f.xx = fair_new(&f, 1, f.n);
        f.xa = fair_new(&f, f.r, f.n);
        f.ac = fair_new(&f, f.r, f.n);
        f.rr = fair_new(&f, f.r, f.r);
        fl_dgemm('t', 'n', f.stack, f.stack, f.m, 1, f.bs, f.bs, 0, ss);
        fl_dgemm('n', 'n', f.stack, f.n, f.stack, 1, ss, f.as, 0, sn);
        fair_dot_columns(f.stack, f.n, sn, f.as, f.tt_col);
    }
    return f;
}

/* row: objective before and after, ||C||^2, ||B||^2 */
static fl_err fair_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fair f = fair_open(run, site, in);
    fl_mat b = fl_at(out[0], site, FL_B);
    double *x = fair_double(run, b);

    (void)arg;
    if (f.c->objective == FAIR_COSINE) {
        fair_descend(&f, x, &row[0], &row[1]);
    } else {
        FL_TRY(fair_ridge(&f, x, &row[0], &row[1]));
    }
    for (size_t i = 0; i < f.mr; i++) {
        row[2] += (x[i] - f.b[i]) * (x[i] - f.b[i]);
        row[3] += f.b[i] * f.b[i];
        b.x[i] = (fl_real)x[i];
    }
    return FL_OK;
}

static fl_err lora_fair_aggregate(fl_run *run, fl_pile *in)
{
    enum { ROW = 4 };
    double *rows = fl_scratch(run, ROW * (size_t)run->nsites, sizeof *rows), sum[ROW] = {0};
    int n = 0;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    FL_TRY(fl_sites(run, in, fair_site, NULL, 1, &run->global, ROW, rows));
    for (int j = 0; j < run->nsites; j++) {
        n += run->space->r[j] > 0;
        for (int i = 0; i < ROW; i++) {
            sum[i] += rows[ROW * j + i];
        }
    }
    fl_metric(run, "objective_before", sum[0] / n);
    fl_metric(run, "objective_after", sum[1] / n);
    fl_metric(run, "correction", sum[3] > 0 ? sqrt(sum[2] / sum[3]) : 0);
    return FL_OK;
}

const fl_method fl_method_lora_fair = {
    .name = "lora_fair",
    .title = "average A and B, correct B towards the ideal update",
    .source = "Bian et al. 2024, arXiv 2411.14961",
    .choice = "the correction starts at 0, not at random; no step is taken that would raise the "
              "objective; the cosine is of whole matrices, or as coded (cosine_over: columns). "
              "objective: ridge is ours. Clients start from the corrected mean (Avg-Initial).",
    .needs = FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(lora_fair_config),
    .config = lora_fair_fields,
    .aggregate = lora_fair_aggregate,
};
