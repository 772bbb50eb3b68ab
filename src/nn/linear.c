/* linear.c - the frozen product with its adapters, forward and backward, and the merge.
 *   y = resid + x W' + bias + sum_j coef_j s_j dropout(x) A_j' B_j';  x [rows][n], W [m][n], y
 * [rows][m] dx = dy W + (adapters);  dW = dy' x and dbias = column sums of dy only when asked for.
 */
#include "nn_internal.h"
#include <string.h>

enum {
    LINEAR_MERGE_ROWS = 64
}; /* rows of W merged at once: fixed, so that bits do not depend on who merges */

void nn_fill(int rows, int m, const fl_real *resid, const fl_real *bias, fl_real *y)
{
    size_t n = (size_t)m;

    for (size_t i = 0; i < (size_t)rows; i++) {
        fl_real *restrict to = y + i * n;
        if (resid && bias) {
            const fl_real *from = resid + i * n;
            for (size_t j = 0; j < n; j++) {
                to[j] = from[j] + bias[j];
            }
        } else {
            memcpy(to, resid ? resid + i * n : bias, n * sizeof *to);
        }
    }
}

/* y[j] = sum_i x[i][j], rows in ascending order */
void nn_column_sum(int rows, int m, const fl_real *x, fl_real *y)
{
    size_t n = (size_t)m;
    fl_real *restrict sum = y;

    memset(y, 0, n * sizeof *y);
    for (size_t i = 0; i < (size_t)rows; i++) {
        const fl_real *row = x + i * n;
        for (size_t j = 0; j < n; j++) {
            sum[j] += row[j];
        }
    }
}

void nn_linear_forward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *resid, fl_real *y, fl_real *h)
{
    const fl_real *bias = g->bias >= 0 ? p->w[g->bias] : NULL;
    bool start = resid || bias;

    if (start) {
        nn_fill(rows, g->m, resid, bias, y);
    }
    nn_lap(k, NN_T_POINTWISE);
    fl_gemm_ld(
        'n', 't', rows, g->m, g->n, 1, x, g->n, p->w[g->tensor], g->n, start ? 1 : 0, y, g->m);
    nn_lap(k, NN_T_GEMM);
    nn_lora_forward(k, p, g, rows, x, y, h);
    nn_lap(k, NN_T_ADAPTER);
}

void nn_linear_backward(fl_work *k, const fl_pass *p, const nn_group *g, int rows, const fl_real *x,
    const fl_real *dy, const fl_real *h, bool need_dx, fl_real *dx)
{
    fl_real *dw = p->dw ? p->dw[g->tensor] : NULL,
            *dbias = p->dw && g->bias >= 0 ? p->dw[g->bias] : NULL;

    if (dbias) {
        nn_column_sum(rows, g->m, dy, dbias);
    }
    nn_lap(k, NN_T_POINTWISE);
    if (dw) {
        fl_gemm_ld('t', 'n', g->m, g->n, rows, 1, dy, g->m, x, g->n, 0, dw, g->n);
    }
    if (need_dx) {
        fl_gemm_ld('n', 'n', rows, g->n, g->m, 1, dy, g->m, p->w[g->tensor], g->n, 0, dx, g->n);
    }
    nn_lap(k, NN_T_GEMM);
    nn_lora_backward(k, p, g, rows, x, dy, h, need_dx, dx);
    nn_lap(k, NN_T_ADAPTER);
}

void fl_linear_merge(
    const fl_model *m, int site, fl_real *tensor, const fl_adapter *ad, double coef)
{
    FL_REQUIRE(site >= 0 && site < m->nsites && ad->space->nsites == m->nsites);
    const fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);
    int which = -1, row0 = 0, n = m->site[site].n, rows = m->site[site].m, r = ad->space->r[site];

    if (r == 0) {
        return;
    }
    FL_REQUIRE(a.x && b.x && a.cols == n && b.rows == rows);
    fl_model_site_tensor(m, site, &which, &row0);
    double *ax = fl_alloc("merge", (size_t)r * (size_t)n, sizeof *ax);
    double *bx = fl_alloc("merge", (size_t)LINEAR_MERGE_ROWS * (size_t)r, sizeof *bx);
    double *ba = fl_alloc("merge", (size_t)LINEAR_MERGE_ROWS * (size_t)n, sizeof *ba);

    for (size_t i = 0; i < (size_t)r * (size_t)n; i++) {
        ax[i] = a.x[i];
    }
    for (int i0 = 0; i0 < rows; i0 += LINEAR_MERGE_ROWS) {
        int some = FL_MIN(LINEAR_MERGE_ROWS, rows - i0);
        fl_real *w = tensor + (size_t)(row0 + i0) * (size_t)n;
        for (size_t i = 0; i < (size_t)some * (size_t)r; i++) {
            bx[i] = b.x[(size_t)i0 * (size_t)r + i];
        }
        fl_dgemm('n', 'n', some, n, r, coef * ad->space->scale[site], bx, ax, 0, ba);
        for (size_t i = 0; i < (size_t)some * (size_t)n; i++) {
            w[i] = (fl_real)(w[i] + ba[i]);
        }
    }
    fl_free(ax);
    fl_free(bx);
    fl_free(ba);
}
