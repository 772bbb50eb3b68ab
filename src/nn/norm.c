/* norm.c - LayerNorm and RMSNorm of rows x [n], u = xhat:
 *   Layer: u = (x - mean) rstd, rstd = 1 / sqrt(mean((x - mean)^2) + eps), y = u w + b
 *   RMS:   u = x rstd,          rstd = 1 / sqrt(mean(x^2) + eps),          y = u w
 *   g = dy w;  dx = rstd (g - mean(g) [Layer only] - u mean(g u));  dw = sum dy u;  db = sum dy. */
#include "nn_internal.h"
#include "vec.h"

void nn_norm_forward(int rows, int n, double eps, const fl_real *x, const fl_real *w,
    const fl_real *b, fl_real *y, fl_real *mean, fl_real *rstd)
{
    for (size_t i = 0; i < (size_t)rows; i++) {
        const fl_real *restrict from = x + i * (size_t)n;
        fl_real *restrict to = y + i * (size_t)n;
        fl_real mu = 0, r;

        if (!b) {
            r = 1 / nn_sqrt(nn_dot(n, from, from) / (fl_real)n + (fl_real)eps);
            for (int j = 0; j < n; j++) {
                to[j] = from[j] * r * w[j];
            }
        } else {
            mu = nn_sum(n, from) / (fl_real)n;
            for (int j = 0; j < n; j++) {
                to[j] = from[j] - mu;
            }
            r = 1 / nn_sqrt(nn_dot(n, to, to) / (fl_real)n + (fl_real)eps);
            for (int j = 0; j < n; j++) {
                to[j] = to[j] * r * w[j] + b[j];
            }
            mean[i] = mu;
        }
        rstd[i] = r;
    }
}

/* sum of g and of g u over a row, in fixed lanes */
static void norm_sums(int n, const fl_real *x, const fl_real *w, const fl_real *dy, fl_real mu,
    fl_real r, fl_real *sg, fl_real *sgu)
{
    nn_lanes a = {0}, c = {0}, shift = {0};
    fl_real s[NN_LANES], u[NN_LANES];
    int j = 0;

    shift += mu;
    for (; j + NN_LANES <= n; j += NN_LANES) {
        nn_lanes g = *(const nn_lanes *)(dy + j) * *(const nn_lanes *)(w + j);
        a += g;
        c += g * (*(const nn_lanes *)(x + j) - shift);
    }
    memcpy(s, &a, sizeof s);
    memcpy(u, &c, sizeof u);
    for (int l = 0; j < n; j++, l++) {
        fl_real g = dy[j] * w[j];
        s[l] += g;
        u[l] += g * (x[j] - mu);
    }
    *sg = nn_tree_sum(s);
    *sgu = nn_tree_sum(u) * r;
}

void nn_norm_backward(bool layer, int rows, int n, const fl_real *x, const fl_real *w,
    const fl_real *mean, const fl_real *rstd, const fl_real *dy, fl_real *dx)
{
    for (size_t i = 0; i < (size_t)rows; i++) {
        const fl_real *restrict from = x + i * (size_t)n, *restrict back = dy + i * (size_t)n;
        fl_real *restrict to = dx + i * (size_t)n;
        fl_real mu = layer ? mean[i] : 0, r = rstd[i], sg, sgu;

        norm_sums(n, from, w, back, mu, r, &sg, &sgu);
        sg = layer ? sg / (fl_real)n : 0;
        sgu = sgu / (fl_real)n * r;
        for (int j = 0; j < n; j++) {
            to[j] += r * (back[j] * w[j] - sg - (from[j] - mu) * sgu);
        }
    }
}

void nn_norm_weights(bool layer, int rows, int n, const fl_real *x, const fl_real *mean,
    const fl_real *rstd, const fl_real *dy, fl_real *dw, fl_real *db)
{
    if (dw) {
        fl_real *restrict to = dw;
        memset(dw, 0, (size_t)n * sizeof *dw);
        for (size_t i = 0; i < (size_t)rows; i++) {
            const fl_real *restrict from = x + i * (size_t)n, *restrict back = dy + i * (size_t)n;
            fl_real mu = layer ? mean[i] : 0, r = rstd[i];
            for (int j = 0; j < n; j++) {
                to[j] += back[j] * ((from[j] - mu) * r);
            }
        }
    }
    if (db) {
        nn_column_sum(rows, n, dy, db);
    }
}
