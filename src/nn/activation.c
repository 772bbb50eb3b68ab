/* activation.c - the inner function of the MLP, sigma(x) = 1 / (1 + e^-x).
 *   plain: y = gelu_new(x) = x/2 (1 + tanh u) = x sigma(2u),  u = sqrt(2/pi) (x + 0.044715 x^3)
 *          dy/dx = s + x s (1 - s) 2 u',  s = sigma(2u)
 *   gated: y = silu(g) u, silu(g) = g sigma(g);  dg = dy u s (1 + g (1 - s)), du = dy g s
 * The sigmoid form of gelu has no cancellation for negative x. */
#include "nn_internal.h"
#include "vec.h"

#define ACT_SLOPE ((fl_real)1.5957691216057307117597842397375) /* 2 sqrt(2/pi) */
#define ACT_CUBE ((fl_real)0.044715)

static void activation_gelu(size_t n, const fl_real *restrict x, fl_real *restrict y)
{
    for (size_t i = 0; i < n; i++) {
        fl_real v = x[i];
        y[i] = v * nn_sigmoid(ACT_SLOPE * (v + ACT_CUBE * v * v * v));
    }
}

static void activation_gelu_backward(
    size_t n, const fl_real *restrict x, const fl_real *restrict dy, fl_real *restrict dx)
{
    for (size_t i = 0; i < n; i++) {
        fl_real v = x[i], s = nn_sigmoid(ACT_SLOPE * (v + ACT_CUBE * v * v * v));
        fl_real slope = ACT_SLOPE * (1 + 3 * ACT_CUBE * v * v);
        dx[i] = dy[i] * (s + v * s * (1 - s) * slope);
    }
}

static void activation_gate(
    int n, const fl_real *restrict g, const fl_real *restrict u, fl_real *restrict y)
{
    for (int j = 0; j < n; j++) {
        y[j] = g[j] * nn_sigmoid(g[j]) * u[j];
    }
}

static void activation_gate_backward(int n, const fl_real *restrict g, const fl_real *restrict u,
    const fl_real *restrict dy, fl_real *restrict dg, fl_real *restrict du)
{
    for (int j = 0; j < n; j++) {
        fl_real s = nn_sigmoid(g[j]);
        dg[j] = dy[j] * u[j] * s * (1 + g[j] * (1 - s));
        du[j] = dy[j] * g[j] * s;
    }
}

void nn_activation_forward(bool gated, int rows, int nff, const fl_real *up, fl_real *y)
{
    size_t n = (size_t)nff;

    if (!gated) {
        activation_gelu((size_t)rows * n, up, y);
        return;
    }
    for (size_t i = 0; i < (size_t)rows; i++) {
        activation_gate(nff, up + 2 * i * n, up + 2 * i * n + n, y + i * n);
    }
}

void nn_activation_backward(
    bool gated, int rows, int nff, const fl_real *up, const fl_real *dy, fl_real *dup)
{
    size_t n = (size_t)nff;

    if (!gated) {
        activation_gelu_backward((size_t)rows * n, up, dy, dup);
        return;
    }
    for (size_t i = 0; i < (size_t)rows; i++) {
        size_t at = 2 * i * n;
        activation_gate_backward(nff, up + at, up + at + n, dy + i * n, dup + at, dup + at + n);
    }
}
