/* vec.h - row operations that vectorise without -ffast-math. Reductions run in a fixed number of
 * lanes that are added in a fixed tree, so their bits depend on the length only: not on alignment,
 * not on the width of the machine's vectors. */
#ifndef FL_NN_VEC_H
#define FL_NN_VEC_H
#include "fedlora/base.h"
#include <math.h>
#include <string.h>

enum { NN_LANES = 64 / sizeof(fl_real) };
typedef fl_real nn_lanes __attribute__((vector_size(64), aligned(__alignof__(fl_real)), may_alias));
#ifdef FL_REAL_DOUBLE
typedef int64_t nn_bits __attribute__((vector_size(64)));
#else
typedef int32_t nn_bits __attribute__((vector_size(64)));
#endif

static inline fl_real nn_tree_sum(fl_real *s)
{
    for (int w = NN_LANES / 2; w > 0; w /= 2) {
        for (int l = 0; l < w; l++) {
            s[l] += s[l + w];
        }
    }
    return s[0];
}

static inline fl_real nn_sum(int n, const fl_real *x)
{
    nn_lanes a = {0};
    fl_real s[NN_LANES];
    int i = 0;

    for (; i + NN_LANES <= n; i += NN_LANES) {
        a += *(const nn_lanes *)(x + i);
    }
    memcpy(s, &a, sizeof s);
    for (int l = 0; i < n; i++, l++) {
        s[l] += x[i];
    }
    return nn_tree_sum(s);
}

static inline fl_real nn_dot(int n, const fl_real *x, const fl_real *y)
{
    nn_lanes a = {0};
    fl_real s[NN_LANES];
    int i = 0;

    for (; i + NN_LANES <= n; i += NN_LANES) {
        a += *(const nn_lanes *)(x + i) * *(const nn_lanes *)(y + i);
    }
    memcpy(s, &a, sizeof s);
    for (int l = 0; i < n; i++, l++) {
        s[l] += x[i] * y[i];
    }
    return nn_tree_sum(s);
}

/* largest of n >= 1 numbers; a NaN may be passed over (the exponential that follows brings it back)
 */
static inline fl_real nn_max(int n, const fl_real *x)
{
    fl_real s[NN_LANES];
    nn_lanes a = {0};
    int i = 0;

    a += x[0];
    for (; i + NN_LANES <= n; i += NN_LANES) {
        nn_lanes v = *(const nn_lanes *)(x + i);
        nn_bits more = (nn_bits)(v > a);
        a = (nn_lanes)(((nn_bits)v & more) | ((nn_bits)a & ~more));
    }
    memcpy(s, &a, sizeof s);
    for (int l = 0; i < n; i++, l++) {
        s[l] = x[i] > s[l] ? x[i] : s[l];
    }
    for (int l = 1; l < NN_LANES; l++) {
        s[0] = s[l] > s[0] ? s[l] : s[0];
    }
    return s[0];
}

#ifdef FL_REAL_DOUBLE
static inline double nn_exp(double x)
{
    return exp(x);
}
#define nn_log log
#define nn_sqrt sqrt
#else
static inline float nn_madd(float a, float b, float c)
{
#ifdef FP_FAST_FMAF
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
/* e^x to about 1 ulp, branch-free so that loops over it vectorise: x = k ln 2 + r, polynomial of
 * degree 7 in r (Cephes expf's coefficients), scaled by 2^k in two steps so that k = 128 works.
 * Below -87.33 (where results are denormal): 0. */
static inline float nn_exp(float x)
{
    const float shift =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer held in the low bits */
    float c = x < -87.33f ? -87.33f : x, t, k, r, y;
    int32_t bits;

    c = c > 89.0f ? 89.0f : c;
    t = nn_madd(c, 1.44269504088896341f, shift);
    memcpy(&bits, &t, sizeof bits);
    k = t - shift;
    r = nn_madd(k, -0.693359375f, c);
    r = nn_madd(k, 2.12194440e-4f, r);
    y = 1.9875691500e-4f;
    y = nn_madd(y, r, 1.3981999507e-3f);
    y = nn_madd(y, r, 8.3334519073e-3f);
    y = nn_madd(y, r, 4.1665795894e-2f);
    y = nn_madd(y, r, 1.6666665459e-1f);
    y = nn_madd(y, r, 5.0000001201e-1f);
    y = nn_madd(y * r, r, r) + 1.0f;
    int32_t n = (int32_t)((uint32_t)bits - 0x4b400000u), half = n >> 1;
    uint32_t one = (uint32_t)(half + 127) << 23, two = ((uint32_t)n - (uint32_t)half + 127u) << 23;
    float s1, s2;

    memcpy(&s1, &one, sizeof s1);
    memcpy(&s2, &two, sizeof s2);
    y = y * s1 * s2;
    return x < -87.33f ? 0.0f : y;
}
#define nn_log logf
#define nn_sqrt sqrtf
#endif

static inline fl_real nn_sigmoid(fl_real x)
{
    return 1 / (1 + nn_exp(-x));
}
#endif
