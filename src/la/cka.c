/* cka.c - linear centred kernel alignment (Kornblith et al. 2019, equation 3) of two sets of
 * features of the same samples. */
#include "la_internal.h"
#include <math.h>

/* y = x (q x r) less the mean of every column */
static void cka_centre(int q, int r, const double *x, double *y)
{
    for (int j = 0; j < r; j++) {
        double mean = 0;

        for (int i = 0; i < q; i++) {
            mean += x[(size_t)i * (size_t)r + (size_t)j];
        }
        mean /= q;
        for (int i = 0; i < q; i++) {
            const size_t at = (size_t)i * (size_t)r + (size_t)j;

            y[at] = x[at] - mean;
        }
    }
}

/* ||x' y||_F */
static double cka_cross(int q, int r, const double *x, const double *y, double *product)
{
    fl_dgemm('t', 'n', r, r, q, 1, x, y, 0, product);
    return fl_la_norm((size_t)r * (size_t)r, product);
}

/* scaled by its largest entry, so that fourth powers neither overflow nor vanish; false if zero up
 * to the rounding of the mean, for features of the size `scale` */
static bool cka_scale(size_t n, double *y, double scale)
{
    double big = 0;

    for (size_t i = 0; i < n; i++) {
        big = FL_MAX(big, fabs(y[i]));
    }
    if (!(big > 1e-14 * scale)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        y[i] /= big;
    }
    return true;
}

static double cka_largest(size_t n, const double *x)
{
    double big = 0;

    for (size_t i = 0; i < n; i++) {
        big = FL_MAX(big, fabs(x[i]));
    }
    return big;
}

double fl_cka(int q, int r, const double *x, const double *y)
{
    const size_t n = (size_t)q * (size_t)r;
    double *xc, *yc, *product, cka = 0; /* owned [q][r], [q][r], [r][r] */

    FL_REQUIRE(q >= 1 && r >= 1);
    xc = fl_alloc("cka: x", n, sizeof *xc);
    yc = fl_alloc("cka: y", n, sizeof *yc);
    product = fl_alloc("cka: product", (size_t)r * (size_t)r, sizeof *product);
    cka_centre(q, r, x, xc);
    cka_centre(q, r, y, yc);
    if (!fl_finite(n, xc) || !fl_finite(n, yc)) {
        cka = NAN;
    } else if (cka_scale(n, xc, cka_largest(n, x)) && cka_scale(n, yc, cka_largest(n, y))) {
        const double xy = cka_cross(q, r, yc, xc, product);
        const double xx = cka_cross(q, r, xc, xc, product), yy = cka_cross(q, r, yc, yc, product);

        cka = xy / xx * (xy / yy);
    }
    fl_free(product);
    fl_free(yc);
    fl_free(xc);
    return cka;
}
