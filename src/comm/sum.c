/* sum.c - the order-free sum. Floating-point addition depends on order, integer addition does not:
 * each term goes onto a fixed grid as two integers, t = p x 2^(28 - unit),  h = rint(t),  l =
 * rint((t - h) 2^50),   |t| < 2^62,  |l| <= 2^49, which are added separately; the value is (h + l
 * 2^-50) 2^(unit - 28). The rounding of a term, 2^-51 in t, is 2^-79 in units of 2^unit. Limbs are
 * normalised to -2^49 <= l < 2^49, which makes (h, l) a unique name of the integer h 2^50 + l: when
 * and how often carries are made cannot be seen in the result. Additions are unsigned: a wrapped
 * intermediate sum is harmless as long as the total fits. */
#include "comm_internal.h"
#include "fedlora/comm.h"
#include <math.h>
#include <string.h>

enum {
    SUM_HIGH_BITS = 28,
    SUM_LOW_BITS = 50,
    SUM_TERMS =
        4096, /* 2^12 terms of 2^49 and a carry fit into 63 bits with a factor of 2 to spare */
    SUM_RANKS = 1 << 13, /* as many normalised low limbs are added by MPI_SUM */
    SUM_UNIT_LIMIT = 512 /* p 2^(28 - unit) stays a normal double for every sensible p */
};

struct fl_sum {
    size_t n;
    uint64_t *h, *l; /* owned [n], two's complement */
    int unit;
    int terms;    /* since the last carry, at most SUM_TERMS on any element */
    bool reduced; /* holds the sum of all ranks already */
    double bound; /* sum over calls of max |t|: no high limb is larger */
};

static const double sum_term_limit = 0x1p62; /* = 2^34 on the grid of 2^-28 */
static const double sum_safe = 0x1p63;

fl_sum *fl_sum_create(size_t n, int unit)
{
    fl_sum *s = fl_alloc("order-free sum", 1, sizeof *s);

    FL_REQUIRE(unit >= -SUM_UNIT_LIMIT && unit <= SUM_UNIT_LIMIT);
    s->n = n;
    s->unit = unit;
    s->h = fl_alloc("order-free sum", n, sizeof *s->h);
    s->l = fl_alloc("order-free sum", n, sizeof *s->l);
    return s;
}

void fl_sum_destroy(fl_sum **sum)
{
    fl_sum *s = *sum;

    if (s != NULL) {
        fl_free(s->h);
        fl_free(s->l);
        fl_free(s);
        *sum = NULL;
    }
}

/* what the low limb has beyond [-2^49, 2^49), in units of the high limb */
static inline int64_t sum_carry(uint64_t l)
{
    return ((int64_t)l + (INT64_C(1) << (SUM_LOW_BITS - 1))) >> SUM_LOW_BITS;
}

static void sum_normalise(fl_sum *s)
{
    uint64_t *restrict h = s->h, *restrict l = s->l;

    for (size_t i = 0; i < s->n; i++) {
        uint64_t c = (uint64_t)sum_carry(l[i]);
        h[i] += c;
        l[i] -= c << SUM_LOW_BITS;
    }
    s->terms = 0;
}

/* One term onto the grid. The low limb is rounded and converted by adding 1.5 2^52, whose last bit
 * is worth 1. */
static inline void sum_split(double t, uint64_t *h, uint64_t *l)
{
    const double magic = 0x1.8p52;
    double whole = rint(t);
    double low = (t - whole) * 0x1p50 + magic; /* t - whole is exact */
    uint64_t a, b;

    memcpy(&a, &low, sizeof a);
    memcpy(&b, &magic, sizeof b);
    *h = (uint64_t)(int64_t)whole;
    *l = a - b;
}

/* The bit pattern of |x|, read as an integer, orders numbers by size, Inf and NaN above all others;
 * unlike a maximum of floating-point numbers it needs no branch and loses no NaN. */
#define SUM_DEFINE(name, real, bits, mask)                                                         \
    static double sum_largest_##name(size_t n, const real *x)                                      \
    {                                                                                              \
        bits largest = 0;                                                                          \
        real value;                                                                                \
                                                                                                   \
        for (size_t i = 0; i < n; i++) {                                                           \
            bits b;                                                                                \
            memcpy(&b, &x[i], sizeof b);                                                           \
            b &= mask;                                                                             \
            largest = b > largest ? b : largest;                                                   \
        }                                                                                          \
        memcpy(&value, &largest, sizeof value);                                                    \
        return (double)value;                                                                      \
    }                                                                                              \
    static void sum_terms_##name(                                                                  \
        size_t n, const real *restrict x, double q, uint64_t *restrict h, uint64_t *restrict l)    \
    {                                                                                              \
        for (size_t i = 0; i < n; i++) {                                                           \
            uint64_t a, b;                                                                         \
            sum_split(q *(double)x[i], &a, &b);                                                    \
            h[i] += a;                                                                             \
            l[i] += b;                                                                             \
        }                                                                                          \
    }
SUM_DEFINE(float, float, int32_t, INT32_MAX)
SUM_DEFINE(double, double, int64_t, INT64_MAX)

/* The terms of one call, of either type. */
typedef struct sum_source {
    const float *f;  /* borrowed [n], or NULL */
    const double *d; /* borrowed [n], or NULL */
} sum_source;

static double sum_value(sum_source x, size_t i)
{
    return x.f != NULL ? (double)x.f[i] : x.d[i];
}

static fl_err sum_refuse_term(
    const fl_sum *s, size_t at, size_t n, sum_source x, double p, double q)
{
    size_t i = 0;

    while (i < n && fabs(q * sum_value(x, i)) < sum_term_limit) {
        i++;
    }
    FL_REQUIRE(i < n);
    return fl_fail(FL_ENUM,
        "element %zu of a sum over clients: %g x %g is not a number below 2^%d in magnitude; the "
        "training of this "
        "client has diverged: lower train.lr or set train.clip",
        at + i, p, sum_value(x, i), 34 + s->unit);
}

/* Only for sums whose weights do not add up to 1: would this call leave the range of the high limb?
 */
static fl_err sum_check_room(const fl_sum *s, size_t at, size_t n, sum_source x, double q)
{
    for (size_t i = 0; i < n; i++) {
        double h = (double)((int64_t)s->h[at + i] + sum_carry(s->l[at + i]));
        if (!(fabs(h + q * sum_value(x, i)) < sum_safe * (1.0 - 1e-9))) {
            return fl_fail(FL_ENUM,
                "element %zu of a sum over clients reaches 2^%d in magnitude: the training has "
                "diverged, or the "
                "weights do not add up to 1",
                at + i, 35 + s->unit);
        }
    }
    return FL_OK;
}

static fl_err sum_add(fl_sum *s, size_t at, size_t n, sum_source x, double p)
{
    FL_REQUIRE(at <= s->n && n <= s->n - at);
    if (n == 0) {
        return FL_OK;
    }
    double q = ldexp(p, SUM_HIGH_BITS - s->unit);
    double largest =
        fabs(q * (x.f != NULL ? sum_largest_float(n, x.f) : sum_largest_double(n, x.d)));

    if (!(largest < sum_term_limit)) {
        return sum_refuse_term(s, at, n, x, p, q);
    }
    if (s->bound + largest >= sum_safe) {
        FL_TRY(sum_check_room(s, at, n, x, q));
    }
    s->bound += largest;
    if (s->terms == SUM_TERMS) {
        sum_normalise(s);
    }
    s->terms++;
    if (x.f != NULL) {
        sum_terms_float(n, x.f, q, s->h + at, s->l + at);
    } else {
        sum_terms_double(n, x.d, q, s->h + at, s->l + at);
    }
    return FL_OK;
}

fl_err fl_sum_add(fl_sum *s, size_t at, size_t n, const fl_real *x, double p)
{
#ifdef FL_REAL_DOUBLE
    return sum_add(s, at, n, (sum_source){.d = x}, p);
#else
    return sum_add(s, at, n, (sum_source){.f = x}, p);
#endif
}

fl_err fl_sum_add_double(fl_sum *s, size_t at, size_t n, const double *x, double p)
{
    return sum_add(s, at, n, (sum_source){.d = x}, p);
}

/* Only when the bounds of all ranks together allow an overflow: the high limbs added in double. */
static fl_err sum_check_total(fl_ctx *ctx, const fl_sum *s)
{
    fl_err err = FL_OK;
    double part[1024];

    for (size_t at = 0; at < s->n; at += FL_COUNT(part)) {
        size_t n = FL_MIN(FL_COUNT(part), s->n - at);
        for (size_t i = 0; i < n; i++) {
            part[i] = (double)(int64_t)s->h[at + i];
        }
        MPI_Allreduce(MPI_IN_PLACE, part, (int)n, MPI_DOUBLE, MPI_SUM, ctx->world);
        for (size_t i = 0; i < n && err == FL_OK; i++) {
            if (!(fabs(part[i]) < sum_safe * (1.0 - 1e-9))) {
                err = fl_fail(FL_ENUM,
                    "element %zu of a sum over clients reaches 2^%d in magnitude: the training has "
                    "diverged, or the "
                    "weights do not add up to 1",
                    at + i, 35 + s->unit);
            }
        }
    }
    return fl_agree(ctx, err);
}

static void sum_allreduce(fl_ctx *ctx, uint64_t *x, size_t n)
{
    const size_t limit = (size_t)1 << 28;
    size_t step = FL_MIN(limit, FL_MAX(fl_comm_chunk / sizeof *x, 1));

    for (size_t at = 0; at < n; at += step) {
        int now = (int)FL_MIN(step, n - at);
        MPI_Allreduce(MPI_IN_PLACE, x + at, now, MPI_UINT64_T, MPI_SUM, ctx->world);
    }
    fl_mpi_count(ctx, (double)n * sizeof *x);
}

fl_err fl_sum_reduce(fl_ctx *ctx, fl_sum *s)
{
    FL_REQUIRE(!s->reduced); /* a second time would count every rank's copy */
    s->reduced = true;
    sum_normalise(s);
    if (ctx->size == 1) {
        return FL_OK;
    }
    uint64_t form[2] = {s->n, (uint64_t)s->unit};
    FL_REQUIRE(ctx->size <= SUM_RANKS && fl_same_everywhere(ctx, fl_hash(form, sizeof form, 0)));
    s->bound = fl_total(ctx, s->bound);
    if (s->bound >= sum_safe) {
        FL_TRY(sum_check_total(ctx, s));
    }
    sum_allreduce(ctx, s->h, s->n);
    sum_allreduce(ctx, s->l, s->n);
    sum_normalise(s);
    return FL_OK;
}

void fl_sum_limbs(const fl_sum *s, size_t i, int64_t *h, int64_t *l)
{
    FL_REQUIRE(i < s->n);
    uint64_t c = (uint64_t)sum_carry(s->l[i]);
    *h = (int64_t)(s->h[i] + c);
    *l = (int64_t)(s->l[i] - (c << SUM_LOW_BITS));
}

void fl_sum_get(const fl_sum *s, size_t at, size_t n, double *restrict y)
{
    const uint64_t *restrict h = s->h + at, *restrict l = s->l + at;
    double scale = ldexp(1.0, s->unit - SUM_HIGH_BITS);

    FL_REQUIRE(at <= s->n && n <= s->n - at);
    for (size_t i = 0; i < n; i++) {
        uint64_t c = (uint64_t)sum_carry(l[i]);
        double high = (double)(int64_t)(h[i] + c);
        double low = (double)(int64_t)(l[i] - (c << SUM_LOW_BITS));
        y[i] = (high + low * 0x1p-50) * scale;
    }
}
