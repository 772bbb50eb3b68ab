/* pick.c - sets of elements: which ones of an adapter train, travel or are summed. */
#include "fed_internal.h"

#include <string.h>

uint64_t *fl_bits(fl_run *run, size_t n)
{
    return fl_scratch(run, n / 64 + 1, sizeof(uint64_t));
}

bool pick_factor(fl_pick pick, fl_factor f)
{
    return pick.factors == 0 || (pick.factors != FL_NONE && (pick.factors & FL_BIT(f)) != 0);
}

/* elements [from, to) of one row-major slot belong to pairs: of A a row each, of B a column each */
bool fl_picked(const fl_space *sp, fl_pick pick, int slot, size_t i)
{
    const fl_slot *s = &sp->slot[slot];

    if (!pick_factor(pick, s->factor)) {
        return false;
    }
    if (pick.elems != NULL && !fl_bit(pick.elems, s->at + i)) {
        return false;
    }
    if (pick.pairs == NULL || sp->nsites == 0) {
        return true;
    }
    size_t pair = s->factor == FL_A ? i / (size_t)s->cols : i % (size_t)s->cols;

    return fl_bit(pick.pairs, (size_t)fl_pair_first(sp, s->site) + pair);
}

/* Maximal runs of picked elements of a slot: offsets in the adapter's vector. out NULL = only
 * counts. */
int pick_runs(const fl_space *sp, fl_pick pick, int slot, fl_range *out)
{
    const fl_slot *s = &sp->slot[slot];
    size_t n = (size_t)s->rows * (size_t)s->cols, cols = (size_t)s->cols;
    bool by_pair = pick.pairs != NULL && sp->nsites > 0;
    size_t first = by_pair ? (size_t)fl_pair_first(sp, s->site) : 0;
    int runs = 0;
    bool open = false;

    if (!pick_factor(pick, s->factor)) {
        return 0;
    }
    if (!by_pair && pick.elems == NULL) {
        if (out != NULL) {
            *out = (fl_range){s->at, n};
        }
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        bool in =
            (pick.elems == NULL || fl_bit(pick.elems, s->at + i)) &&
            (!by_pair || fl_bit(pick.pairs, first + (s->factor == FL_A ? i / cols : i % cols)));

        if (in && !open) {
            if (out != NULL) {
                out[runs] = (fl_range){s->at + i, 0};
            }
            runs++;
        }
        if (in && out != NULL) {
            out[runs - 1].n++;
        }
        open = in;
    }
    return runs;
}

/* number of picked elements of a slot */
size_t pick_count(const fl_space *sp, fl_pick pick, int slot)
{
    const fl_slot *s = &sp->slot[slot];
    size_t n = 0, pairs = 0;

    if (!pick_factor(pick, s->factor)) {
        return 0;
    }
    if (pick.elems != NULL) {
        for (size_t i = 0; i < (size_t)s->rows * (size_t)s->cols; i++) {
            n += fl_picked(sp, pick, slot, i);
        }
        return n;
    }
    if (pick.pairs == NULL || sp->nsites == 0) {
        return (size_t)s->rows * (size_t)s->cols;
    }
    int first = fl_pair_first(sp, s->site);

    for (int i = 0; i < sp->r[s->site]; i++) {
        pairs += fl_bit(pick.pairs, (size_t)(first + i));
    }
    return pairs * (size_t)(s->factor == FL_A ? s->cols : s->rows);
}

/* what telling the set costs: 4 bytes an index or one bit for each that could be picked, whichever
 * is smaller */
double pick_bytes(const fl_space *sp, fl_pick pick)
{
    double n = 0, of = 0;

    if (pick.factors == FL_NONE || (pick.pairs == NULL && pick.elems == NULL)) {
        return 0;
    }
    if (pick.elems != NULL) {
        for (int i = 0; i < sp->nslots; i++) {
            if (pick_factor(pick, sp->slot[i].factor)) {
                n += (double)pick_count(sp, pick, i);
                of += (double)sp->slot[i].rows * sp->slot[i].cols;
            }
        }
    } else {
        of = fl_pair_first(sp, sp->nsites);
        for (int i = 0; i < (int)of; i++) {
            n += fl_bit(pick.pairs, (size_t)i);
        }
    }
    double map = (double)(((size_t)of + 7) / 8);

    return FL_MIN(4 * n, map);
}

/* ---- the largest, the random ---- */
/* the k-th largest of x [n], 1 <= k <= n; x is reordered (Hoare's selection) */
static double kth_largest(size_t n, double *x, size_t k)
{
    int64_t lo = 0, hi = (int64_t)n - 1, at = (int64_t)k - 1;

    while (lo < hi) {
        double pivot = x[at];
        int64_t i = lo, j = hi;

        while (i <= j) {
            for (; x[i] > pivot; i++) {
            }
            for (; x[j] < pivot; j--) {
            }
            if (i <= j) {
                double swap = x[i];

                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        lo = j < at ? i : lo;
        hi = i > at ? j : hi;
    }
    return x[at];
}

void fl_top(fl_run *run, size_t n, const double *x, size_t k, uint64_t *bits, size_t first)
{
    k = FL_MIN(k, n);
    if (k == 0) {
        return;
    }
    double *copy = fl_alloc("selection", n, sizeof *copy), least;
    size_t above = 0;

    (void)run;
    memcpy(copy, x, n * sizeof *copy);
    least = kth_largest(n, copy, k);
    fl_free(copy);
    for (size_t i = 0; i < n; i++) {
        above += x[i] > least;
    }
    for (size_t i = 0, equal = k - above; i < n; i++) {
        if (x[i] > least || (x[i] == least && equal > 0)) {
            equal -= x[i] == least;
            fl_bit_set(bits, first + i);
        }
    }
}

uint64_t *fl_random_pairs(
    fl_run *run, int what, const fl_space *sp, int id, int t, int k, bool each)
{
    uint64_t *bits = fl_bits(run, (size_t)fl_pair_first(sp, sp->nsites));
    double *u = fl_alloc("draws", (size_t)sp->rmax, sizeof *u);
    size_t first = 0;

    for (int j = 0; j < sp->nsites; j++) {
        size_t r = (size_t)sp->r[j], from = each ? (size_t)j << 24 : 0;

        for (size_t i = 0; i < r; i++) {
            u[i] = fl_rng_uniform(run->seed, FL_RNG_METHOD + what, id, t, from + i);
        }
        fl_top(run, r, u, (size_t)k, bits, first);
        first += r;
    }
    fl_free(u);
    return bits;
}
