/* rotary.c - rotary positions (Su et al. 2021, the half-split pairs of Llama): at place t of its
 * sequence the pair (x_j, x_{j + hd/2}) of every head is turned by the angle t theta^(-2 j / hd).
 * Backward turns back. */
#include "nn_internal.h"
#include <math.h>

void nn_rotary_table(int length, int hd, double theta, fl_real *cosine, fl_real *sine)
{
    int half = hd / 2;

    for (int j = 0; j < half; j++) {
        double speed = pow(theta, -2.0 * j / hd);
        for (int t = 0; t < length; t++) {
            cosine[(size_t)t * (size_t)half + (size_t)j] = (fl_real)cos(t * speed);
            sine[(size_t)t * (size_t)half + (size_t)j] = (fl_real)sin(t * speed);
        }
    }
}

static void rotary_head(int half, const fl_real *restrict c, const fl_real *restrict s,
    fl_real sign, fl_real *restrict lo, fl_real *restrict hi)
{
    for (int j = 0; j < half; j++) {
        fl_real a = lo[j], b = hi[j], turn = sign * s[j];
        lo[j] = a * c[j] - b * turn;
        hi[j] = b * c[j] + a * turn;
    }
}

void nn_rotary(const fl_batch *batch, int n, int hd, int ld, int sign, const fl_real *cosine,
    const fl_real *sine, fl_real *x)
{
    size_t half = (size_t)hd / 2;

    for (int s = 0; s < batch->nseq; s++) {
        for (int t = batch->start[s]; t < batch->start[s + 1]; t++) {
            size_t place = (size_t)(t - batch->start[s]) * half;
            fl_real *row = x + (size_t)t * (size_t)ld;
            for (int h = 0; h < n; h++, row += hd) {
                rotary_head(
                    (int)half, cosine + place, sine + place, (fl_real)sign, row, row + half);
            }
        }
    }
}
