/* adapter - a vector on a space: memory, access by site and factor, copies between unequal ranks,
 * flat algebra. A spread adapter holds only some sites (at[slot] = SIZE_MAX elsewhere); every
 * function here then works on what is held. */
#include "fedlora/adapter.h"
#include <math.h>
#include <string.h>

fl_adapter *fl_adapter_create(const fl_space *space)
{
    fl_adapter *ad;

    FL_REQUIRE(fl_space_is_valid(space));
    ad = fl_alloc("adapter", 1, sizeof *ad);
    ad->space = space;
    ad->v = fl_alloc("adapter values", space->n, sizeof *ad->v);
    return ad;
}

fl_adapter *fl_adapter_create_spread(const fl_space *space, const int *owner, int rank)
{
    fl_adapter *ad;
    size_t *at, n = 0;

    FL_REQUIRE(fl_space_is_valid(space));
    ad = fl_alloc("adapter", 1, sizeof *ad);
    at = fl_alloc("adapter offsets", (size_t)space->nslots, sizeof *at);
    for (int i = 0; i < space->nslots; i++) {
        const fl_slot *slot = &space->slot[i];

        at[i] = SIZE_MAX;
        if (owner[slot->site] == rank) {
            at[i] = n;
            n += (size_t)slot->rows * (size_t)slot->cols;
        }
    }
    ad->space = space;
    ad->at = at;
    ad->v = fl_alloc("adapter values", n, sizeof *ad->v);
    return ad;
}

void fl_adapter_destroy(fl_adapter **ad)
{
    if (*ad == NULL) {
        return;
    }
    fl_free((*ad)->v);
    fl_free((void *)(*ad)->at); /* ours since create_spread; const for everybody else */
    fl_free(*ad);
    *ad = NULL;
}

/* Slot of a site's factor, -1 = the space has none. Slots of a dense or plain space ascend in the
 * tensor's index or the slot's number. */
static int adapter_slot(const fl_space *s, int site, fl_factor f)
{
    int lo = 0, hi = s->nslots;

    if (f == FL_A || f == FL_B) {
        FL_REQUIRE(site >= 0 && (site < s->nsites || s->nsites == 0));
        return s->nsites == 0 ? -1 : s->slot_of[2 * site + (f == FL_B)];
    }
    if (s->nsites > 0) {
        return -1;
    }
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;

        if (s->slot[mid].site < site) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < s->nslots && s->slot[lo].site == site && s->slot[lo].factor == f ? lo : -1;
}

/* number of elements of slot i and where they are; NULL = not on this rank */
static size_t adapter_values(const fl_adapter *ad, int i, fl_real **x)
{
    const fl_slot *slot = &ad->space->slot[i];
    size_t at = ad->at ? ad->at[i] : slot->at;

    *x = at == SIZE_MAX ? NULL : ad->v + at;
    return (size_t)slot->rows * (size_t)slot->cols;
}

fl_mat fl_at(const fl_adapter *ad, int site, fl_factor f)
{
    fl_mat mat = {NULL, 0, 0};
    int i = adapter_slot(ad->space, site, f);

    if (i >= 0) {
        adapter_values(ad, i, &mat.x);
        mat.rows = ad->space->slot[i].rows;
        mat.cols = ad->space->slot[i].cols;
    }
    return mat;
}

/* The upper left part common to both; a row of A and a column of B are one pair, so this is "the
 * first min(r, r') pairs". */
static void adapter_fit_slot(fl_mat d, fl_mat s)
{
    size_t cols = s.x ? (size_t)FL_MIN(d.cols, s.cols) : 0;

    for (int i = 0; i < d.rows; i++) {
        fl_real *row = d.x + (size_t)i * (size_t)d.cols;
        size_t n = i < s.rows ? cols : 0;

        if (n > 0) {
            memcpy(row, s.x + (size_t)i * (size_t)s.cols, n * sizeof *row);
        }
        memset(row + n, 0, ((size_t)d.cols - n) * sizeof *row);
    }
}

void fl_fit(fl_adapter *dst, const fl_adapter *src)
{
    const fl_space *s = dst->space;

    FL_REQUIRE(fl_space_is_valid(s) && fl_space_is_valid(src->space));
    FL_REQUIRE(s->nsites == src->space->nsites);
    for (int j = 0; j < s->nsites; j++) {
        FL_REQUIRE(s->m[j] == src->space->m[j] && s->n_in[j] == src->space->n_in[j]);
    }
    for (int i = 0; i < s->nslots; i++) {
        const fl_slot *slot = &s->slot[i];
        fl_mat d = fl_at(dst, slot->site, slot->factor);
        fl_mat from = fl_at(src, slot->site, slot->factor);

        if (d.x == NULL) {
            continue;
        }
        FL_REQUIRE(
            from.x != NULL || from.rows == 0); /* in src's space but on another rank: a bug */
        FL_REQUIRE(slot->factor != FL_DENSE || from.x == NULL ||
                   (from.rows == d.rows && from.cols == d.cols));
        adapter_fit_slot(d, from);
    }
}

void fl_fit_product(fl_adapter *dst, const fl_adapter *src)
{
    fl_fit(dst, src);
    for (int j = 0; j < dst->space->nsites; j++) {
        fl_mat b = fl_at(dst, j, FL_B);
        size_t n = (size_t)b.rows * (size_t)b.cols;
        double to = dst->space->scale[j], from = src->space->scale[j];

        if (b.x == NULL || src->space->r[j] == 0 || to == from) {
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            b.x[i] = (fl_real)((double)b.x[i] * from / to);
        }
    }
}

void fl_adapter_axpy(fl_adapter *y, double a, const fl_adapter *x)
{
    FL_REQUIRE(y->space == x->space && fl_space_is_valid(y->space));
    for (int i = 0; i < y->space->nslots; i++) {
        fl_real *to, *from;
        size_t n = adapter_values(y, i, &to);

        adapter_values(x, i, &from);
        if (to == NULL) {
            continue;
        }
        FL_REQUIRE(from != NULL);
        for (size_t k = 0; k < n; k++) {
            to[k] = (fl_real)((double)to[k] + a * (double)from[k]);
        }
    }
}

bool fl_adapter_finite(const fl_adapter *ad, int *slot)
{
    FL_REQUIRE(fl_space_is_valid(ad->space));
    for (int i = 0; i < ad->space->nslots; i++) {
        fl_real *x;
        size_t n = adapter_values(ad, i, &x);

        for (size_t k = 0; x && k < n; k++) {
            if (!isfinite(x[k])) {
                if (slot) {
                    *slot = i;
                }
                return false;
            }
        }
    }
    return true;
}

/* Sum mod 2^64 of one hash per slot held, keyed by space, slot and seed: the sum over ranks of a
 * spread adapter's hashes is the hash of the whole one. */
uint64_t fl_adapter_hash(const fl_adapter *ad, uint64_t seed)
{
    uint64_t sum = 0;

    FL_REQUIRE(fl_space_is_valid(ad->space));
    if (ad->space->nslots == 0 && ad->at == NULL) {
        return fl_hash(&ad->space->hash, sizeof ad->space->hash, seed);
    }
    for (int i = 0; i < ad->space->nslots; i++) {
        const uint64_t key[2] = {ad->space->hash, (uint64_t)i};
        fl_real *x;
        size_t n = adapter_values(ad, i, &x);

        if (x) {
            sum += fl_hash(x, n * sizeof *x, fl_hash(key, sizeof key, seed));
        }
    }
    return sum;
}

double fl_adapter_norm(const fl_adapter *ad)
{
    double sum = 0;

    FL_REQUIRE(fl_space_is_valid(ad->space));
    for (int i = 0; i < ad->space->nslots; i++) {
        fl_real *x;
        size_t n = adapter_values(ad, i, &x);

        for (size_t k = 0; x && k < n; k++) {
            sum += (double)x[k] * (double)x[k];
        }
    }
    return sqrt(sum);
}
