/* update - inner products of adapters, the update s B A of one site, and initial values.
 * Products are formed in double from the stored factors; the unit of every BLAS call is one whole
 * site (same bits anywhere). */
#include "fedlora/adapter.h"
#include "fedlora/deck.h"
#include <math.h>
#include <string.h>

/* owned copy in double (fl_free) */
static double *update_widen(fl_mat mat)
{
    size_t n = (size_t)mat.rows * (size_t)mat.cols;
    double *y = fl_alloc("factor in double", n, sizeof *y);

    for (size_t i = 0; i < n; i++) {
        y[i] = (double)mat.x[i];
    }
    return y;
}

/* over the common upper left part: with unequal r, the shorter one counts as padded with zeros */
static double update_flat(fl_mat x, fl_mat y)
{
    int rows = FL_MIN(x.rows, y.rows), cols = FL_MIN(x.cols, y.cols);
    double sum = 0;

    if (x.x == NULL || y.x == NULL) {
        return 0;
    }
    for (int i = 0; i < rows; i++) {
        const fl_real *a = x.x + (size_t)i * (size_t)x.cols, *b = y.x + (size_t)i * (size_t)y.cols;

        for (int j = 0; j < cols; j++) {
            sum += (double)a[j] * (double)b[j];
        }
    }
    return sum;
}

/* <B A, B' A'> = sum over a, b of (B^T B')_ab (A A'^T)_ab, both Grams r x r' */
static double update_gram(fl_mat a, fl_mat b, fl_mat a2, fl_mat b2)
{
    int r = a.rows, r2 = a2.rows;
    size_t n = (size_t)r * (size_t)r2;
    double *wa = update_widen(a), *wb = update_widen(b), *wa2 = update_widen(a2),
           *wb2 = update_widen(b2), *ga = fl_alloc("Gram of A", n, sizeof *ga),
           *gb = fl_alloc("Gram of B", n, sizeof *gb), sum = 0;

    fl_dgemm('n', 't', r, r2, a.cols, 1, wa, wa2, 0, ga);
    fl_dgemm('t', 'n', r, r2, b.rows, 1, wb, wb2, 0, gb);
    for (size_t i = 0; i < n; i++) {
        sum += ga[i] * gb[i];
    }
    fl_free(gb);
    fl_free(ga);
    fl_free(wb2);
    fl_free(wa2);
    fl_free(wb);
    fl_free(wa);
    return sum;
}

double fl_dot(const fl_adapter *x, const fl_adapter *y, int site, fl_inner kind)
{
    fl_mat a = fl_at(x, site, FL_A), b = fl_at(x, site, FL_B);
    fl_mat a2 = fl_at(y, site, FL_A), b2 = fl_at(y, site, FL_B);

    FL_REQUIRE(fl_space_is_valid(x->space) && fl_space_is_valid(y->space));
    FL_REQUIRE(x->space->nsites == y->space->nsites);
    if (kind == FL_FLAT) {
        return update_flat(a, a2) + update_flat(b, b2) +
               update_flat(fl_at(x, site, FL_DENSE), fl_at(y, site, FL_DENSE));
    }
    FL_REQUIRE(kind == FL_PRODUCT && x->space->nsites > 0);
    if (a.x == NULL || a2.x == NULL) {
        return 0;
    }
    FL_REQUIRE(a.cols == a2.cols && b.rows == b2.rows);
    return x->space->scale[site] * y->space->scale[site] * update_gram(a, b, a2, b2);
}

void fl_product(const fl_adapter *ad, int site, double coef, double be, double *x)
{
    fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);
    double *wa, *wb;

    FL_REQUIRE(fl_space_is_valid(ad->space) && site < ad->space->nsites);
    if (a.x == NULL) {
        size_t n = (size_t)ad->space->m[site] * (size_t)ad->space->n_in[site];

        for (size_t i = 0; i < n; i++) {
            x[i] = be == 0 ? 0 : be * x[i]; /* be = 0 never reads x */
        }
        return;
    }
    wa = update_widen(a);
    wb = update_widen(b);
    fl_dgemm('n', 'n', b.rows, a.cols, a.rows, coef * ad->space->scale[site], wb, wa, be, x);
    fl_free(wb);
    fl_free(wa);
}

/* Element (i, j) of A is draw (stream, i n + j) of the site: the first rows of a larger r are the
 * rows of a smaller one. Choice: a gaussian std of 0 stands for 1/r as in PEFT, the only place
 * where r enters. */
void fl_init_site(uint64_t seed, int stream, int kind, double std, int site, fl_adapter *ad)
{
    fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);
    uint64_t n = (uint64_t)a.rows * (uint64_t)a.cols, base = (uint64_t)stream << 40;

    FL_REQUIRE(kind == FL_INIT_KAIMING || kind == FL_INIT_GAUSSIAN);
    FL_REQUIRE(stream >= 0 && stream < 1 << 24 && n <= (uint64_t)1 << 40);
    if (a.x == NULL) {
        return;
    }
    memset(b.x, 0, (size_t)b.rows * (size_t)b.cols * sizeof *b.x);
    if (kind == FL_INIT_KAIMING) {
        double bound = 1 / sqrt((double)a.cols);

        for (uint64_t i = 0; i < n; i++) {
            a.x[i] =
                (fl_real)(bound * (2 * fl_rng_uniform(seed, FL_RNG_INIT, site, 0, base | i) - 1));
        }
        return;
    }
    std = std > 0 ? std : 1.0 / a.rows;
    for (uint64_t i = 0; i < n; i++) {
        a.x[i] = (fl_real)(std * fl_rng_normal(seed, FL_RNG_INIT, site, 0, base | i));
    }
}
