/* codec.c - compression of messages: what the receiver decodes, and how many bytes travelled.
 * topk (Stich et al. 2018, arXiv 1809.07599): the share codec.density of largest magnitude, ties to
 * the lower index; 4 bytes a value and the cheaper of 4 bytes an index and a bit map.
 * quantise (QSGD, Alistarh et al. 2017, arXiv 1610.02132, by blocks): x = scale * q / L with q in
 * -L..L, L = 2^(bits - 1) - 1, scale = max |x| of 256 elements, rounded up with the probability of
 * the remainder (unbiased); bits a value and 4 bytes a block. topk_quantise: first the one, then
 * the other on what is left. */
#include "fed_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 256 };

typedef struct entry {
    fl_real size;
    size_t i;
} entry;

static int by_size(const void *a, const void *b)
{
    const entry *x = a, *y = b;

    return x->size != y->size ? (x->size < y->size) - (x->size > y->size)
                              : (x->i > y->i) - (x->i < y->i);
}

/* zeroes all but the k = max(1, floor(density n)) largest; returns k */
static size_t topk(double density, size_t n, fl_real *x)
{
    size_t k = FL_MAX((size_t)(density * (double)n), 1);
    entry *e = fl_alloc("top-k", n, sizeof *e);

    for (size_t i = 0; i < n; i++) {
        e[i] = (entry){(fl_real)fabs((double)x[i]), i};
    }
    qsort(e, n, sizeof *e, by_size);
    for (size_t j = k; j < n; j++) {
        x[e[j].i] = 0;
    }
    fl_free(e);
    return FL_MIN(k, n);
}

/* one block of elements, in the order of their indices; the draw of element i is f(seed, id, t, i)
 */
static void quantise_block(
    int bits, uint64_t seed, int id, int t, int n, const size_t *index, fl_real *x)
{
    double levels = (double)((1 << (bits - 1)) - 1), scale = 0;

    for (int j = 0; j < n; j++) {
        scale = FL_MAX(scale, fabs((double)x[index[j]]));
    }
    for (int j = 0; scale > 0 && j < n; j++) {
        double y = (double)x[index[j]] / scale * levels, low = floor(y);
        double u = fl_rng_uniform(seed, FL_RNG_METHOD, id, t, index[j]);

        x[index[j]] = (fl_real)((low + (u < y - low)) / levels * scale);
    }
}

static double quantise(int bits, uint64_t seed, int id, int t, size_t n, bool sparse, fl_real *x)
{
    size_t index[BLOCK], sent = 0;
    int have = 0, blocks = 0;

    for (size_t i = 0; i < n; i++) {
        if (!sparse || x[i] != 0) {
            index[have++] = i;
            sent++;
        }
        if (have == BLOCK || (i + 1 == n && have > 0)) {
            quantise_block(bits, seed, id, t, have, index, x);
            have = 0;
            blocks++;
        }
    }
    return ceil((double)sent * bits / 8) + 4.0 * blocks;
}

double codec_seal(
    const fl_deck_codec *d, int kind, uint64_t seed, int id, int t, size_t n, fl_real *x)
{
    bool sparse = kind == FL_CODEC_TOPK || kind == FL_CODEC_TOPK_QUANTISE;
    double bytes = 0, k = (double)n;

    if (n == 0) {
        return 0;
    }
    if (sparse) {
        k = (double)topk(d->density, n, x);
        bytes = FL_MIN(4 * k, ceil((double)n / 8));
    }
    return bytes + (kind == FL_CODEC_TOPK ? 4 * k : quantise(d->bits, seed, id, t, n, sparse, x));
}
