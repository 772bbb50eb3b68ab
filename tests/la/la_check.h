/* la_check.h - what the tests of la share: problems whose singular values are known, and judges
 * that use plain loops instead of the library under test. */
#ifndef FL_LA_CHECK_H
#define FL_LA_CHECK_H
#include "fedlora/la.h"
#include "harness.h"
#include <float.h>
#include <math.h>
#include <string.h>

#define LA_EPS (DBL_EPSILON / 2)
#define LA_BOUND 30.0 /* errors in units of eps times the longer side */

/* X = bs as with singular values s[k], k = min(m, n, R), and zeros beyond */
typedef struct la_problem {
    int m, n, nstack, k;
    double *bs, *as; /* owned [m][R], [R][n] */
    double *x;       /* owned [m][n] */
    double *s;       /* owned [min(m, n)], descending */
} la_problem;

static inline double la_random(int id, size_t i)
{
    return 2 * fl_rng_uniform(7, FL_RNG_TEST, id, 0, i) - 1;
}

static inline double *la_random_array(int id, size_t n)
{
    double *x = fl_alloc("test: random", n, sizeof *x);

    for (size_t i = 0; i < n; i++) {
        x[i] = la_random(id, i);
    }
    return x;
}

/* c (m x n) = a (m x k) b (k x n), row-major, plain loops */
static inline void la_multiply(int m, int n, int k, const double *a, const double *b, double *c)
{
    memset(c, 0, (size_t)m * (size_t)n * sizeof *c);
    for (int i = 0; i < m; i++) {
        for (int l = 0; l < k; l++) {
            const double x = a[(size_t)i * (size_t)k + (size_t)l];

            for (int j = 0; j < n; j++) {
                c[(size_t)i * (size_t)n + (size_t)j] += x * b[(size_t)l * (size_t)n + (size_t)j];
            }
        }
    }
}

static inline double la_frobenius(size_t n, const double *x)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    return sqrt(sum);
}

/* x (m x n) = (I - 2 w w' / w'w) x, w random: multiplies by an orthogonal matrix */
static inline void la_reflect_rows(int id, int m, int n, double *x)
{
    double *w = fl_alloc("test: w", (size_t)m, sizeof *w), ww = 0;

    for (int i = 0; i < m; i++) {
        w[i] = la_random(id, (size_t)i) + 1e-3;
        ww += w[i] * w[i];
    }
    for (int j = 0; j < n; j++) {
        double wx = 0;

        for (int i = 0; i < m; i++) {
            wx += w[i] * x[(size_t)i * (size_t)n + (size_t)j];
        }
        for (int i = 0; i < m; i++) {
            x[(size_t)i * (size_t)n + (size_t)j] -= 2 * wx / ww * w[i];
        }
    }
    fl_free(w);
}

static inline void la_transposed(int m, int n, const double *x, double *y)
{
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            y[(size_t)j * (size_t)m + (size_t)i] = x[(size_t)i * (size_t)n + (size_t)j];
        }
    }
}

/* The first `rank` of the k possible singular values are 2^(-i/4), the others zero. bs = H D and as
 * = D' G with H, G orthogonal and D the root of the values on the diagonal; for R > k the columns
 * that are not needed hold numbers that meet zero rows. A last reflection Q, bs Q and Q as, mixes
 * the stack. */
static inline la_problem la_problem_make(int m, int n, int nstack, int rank)
{
    const size_t nm = (size_t)m, nn = (size_t)n, nr = (size_t)nstack;
    la_problem p = {.m = m, .n = n, .nstack = nstack, .k = FL_MIN(FL_MIN(m, n), nstack)};
    double *turned = fl_alloc("test: turned", FL_MAX(nm, nn) * nr, sizeof *turned);

    p.bs = fl_alloc("test: bs", nm * nr, sizeof *p.bs);
    p.as = fl_alloc("test: as", nr * nn, sizeof *p.as);
    p.x = fl_alloc("test: x", nm * nn, sizeof *p.x);
    p.s = fl_alloc("test: s", (size_t)FL_MIN(m, n), sizeof *p.s);
    for (int i = 0; i < FL_MIN(p.k, rank); i++) {
        p.s[i] = exp2(-i / 4.0);
        p.bs[(size_t)i * nr + (size_t)i] = sqrt(p.s[i]);
        p.as[(size_t)i * nn + (size_t)i] = sqrt(p.s[i]);
    }
    for (int j = FL_MIN(p.k, rank); j < nstack; j++) {
        for (int i = 0; i < m; i++) {
            p.bs[(size_t)i * nr + (size_t)j] = la_random(9, (size_t)i * nr + (size_t)j) / m;
        }
    }
    for (int id = 0; id < 3; id++) {
        la_reflect_rows(id, m, nstack, p.bs);
        la_transposed(nstack, n, p.as, turned);
        la_reflect_rows(10 + id, n, nstack, turned);
        la_transposed(n, nstack, turned, p.as);
        if (nstack > 0) {
            la_reflect_rows(20 + id, nstack, n, p.as);
            la_transposed(m, nstack, p.bs, turned);
            la_reflect_rows(20 + id, nstack, m, turned);
            la_transposed(nstack, m, turned, p.bs);
        }
    }
    la_multiply(m, n, nstack, p.bs, p.as, p.x);
    fl_free(turned);
    return p;
}

static inline void la_problem_free(la_problem *p)
{
    fl_free(p->bs);
    fl_free(p->as);
    fl_free(p->x);
    fl_free(p->s);
}

/* ||columns' columns - I||_F of the first k columns of w (len x stride) */
static inline double la_departure(int len, int stride, int k, const double *w)
{
    double sum = 0;

    for (int a = 0; a < k; a++) {
        for (int b = 0; b < k; b++) {
            double dot = a == b ? -1 : 0;

            for (int i = 0; i < len; i++) {
                dot += w[(size_t)i * (size_t)stride + (size_t)a] *
                       w[(size_t)i * (size_t)stride + (size_t)b];
            }
            sum += dot * dot;
        }
    }
    return sqrt(sum);
}

/* ||x - u diag(sv) vt||_F, u m x r, vt r x n */
static inline double la_residual(
    int m, int n, int r, const double *x, const double *u, const double *sv, const double *vt)
{
    double *us = fl_alloc("test: us", (size_t)m * (size_t)r, sizeof *us), norm;
    double *y = fl_alloc("test: y", (size_t)m * (size_t)n, sizeof *y);

    for (size_t i = 0; i < (size_t)m * (size_t)r; i++) {
        us[i] = u[i] * sv[i % (size_t)r];
    }
    la_multiply(m, n, r, us, vt, y);
    for (size_t i = 0; i < (size_t)m * (size_t)n; i++) {
        y[i] -= x[i];
    }
    norm = la_frobenius((size_t)m * (size_t)n, y);
    fl_free(y);
    fl_free(us);
    return norm;
}

/* what every answer must be, for X of norm about 1: values, order, zeros beyond k, orthogonality,
 * signs, and a distance to X that is the best a rank r matrix can do (Eckart-Young) */
static inline void la_judge(
    const la_problem *p, int r, const double *u, const double *sv, const double *vt)
{
    const double unit = LA_EPS * FL_MAX(p->m, p->n) *
                        FL_MAX(1, la_frobenius((size_t)p->m * (size_t)p->nstack, p->bs) *
                                      la_frobenius((size_t)p->nstack * (size_t)p->n, p->as));
    const int k = FL_MIN(r, p->k);
    double *v = fl_alloc("test: v", (size_t)r * (size_t)p->n, sizeof *v), beyond = 0;

    for (int i = 0; i < r; i++) {
        assert_true(sv[i] >= 0 && (i == 0 || sv[i] <= sv[i - 1]));
        assert_true(fabs(sv[i] - p->s[i]) < LA_BOUND * unit);
    }
    for (int j = k; j < r; j++) {
        assert_true(sv[j] == 0);
        for (int i = 0; i < p->m; i++) {
            assert_true(u[(size_t)i * (size_t)r + (size_t)j] == 0);
        }
        for (int i = 0; i < p->n; i++) {
            assert_true(vt[(size_t)j * (size_t)p->n + (size_t)i] == 0);
        }
    }
    for (int i = r; i < FL_MIN(p->m, p->n); i++) {
        beyond += p->s[i] * p->s[i];
    }
    assert_true(fabs(la_residual(p->m, p->n, r, p->x, u, sv, vt) - sqrt(beyond)) < LA_BOUND * unit);
    la_transposed(r, p->n, vt, v);
    assert_true(la_departure(p->m, r, k, u) < LA_BOUND * LA_EPS * FL_MAX(p->m, p->n));
    assert_true(la_departure(p->n, r, k, v) < LA_BOUND * LA_EPS * FL_MAX(p->m, p->n));
    for (int j = 0; j < k; j++) {
        double top = 0;

        for (int i = 0; i < p->m; i++) {
            const double x = u[(size_t)i * (size_t)r + (size_t)j];

            top = fabs(x) > fabs(top) ? x : top;
        }
        assert_true(top > 0);
    }
    fl_free(v);
}

/* the same bytes on every rank? */
static inline void la_same_on_all_ranks(const void *x, size_t bytes)
{
    uint64_t h[2] = {fl_hash(x, bytes, 0), 0};

    h[1] = ~h[0];
    MPI_Allreduce(MPI_IN_PLACE, h, 2, MPI_UINT64_T, MPI_MAX, test_ctx->world);
    assert_true(h[0] == ~h[1]);
}

static inline uint64_t la_hash(
    int m, int n, int r, const double *u, const double *sv, const double *vt)
{
    uint64_t h = fl_hash(u, (size_t)m * (size_t)r * sizeof *u, 1);

    h = fl_hash(sv, (size_t)r * sizeof *sv, h);
    return fl_hash(vt, (size_t)r * (size_t)n * sizeof *vt, h);
}
#endif
