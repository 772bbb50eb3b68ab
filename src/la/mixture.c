/* mixture.c - mixtures of Gaussians with diagonal covariances: fitted by EM (Dempster et al. 1977),
 * compared by optimal transport between their parts; the k-th smallest of some numbers. */
#include "fedlora/la.h"
#include <math.h>
#include <string.h>

typedef struct fit {
    int n, d, parts;
    const double *x;           /* [n][d] */
    double *weight, *mu, *var; /* [parts], [parts][d], [parts][d] */
    double *share;             /* [n][parts]: of part g in sample i; rows sum to 1 */
    double floor;
} fit;

/* weight, mean and variance of part g from its shares; nobody: weight 0 */
static void maximise(fit *e, int g)
{
    size_t d = (size_t)e->d, parts = (size_t)e->parts;
    double *mu = e->mu + (size_t)g * d, *var = e->var + (size_t)g * d, n = 0;

    memset(mu, 0, d * sizeof *mu);
    memset(var, 0, d * sizeof *var);
    for (size_t i = 0; i < (size_t)e->n; i++) {
        double p = e->share[i * parts + (size_t)g];

        n += p;
        for (size_t j = 0; p > 0 && j < d; j++) {
            mu[j] += p * e->x[i * d + j];
        }
    }
    for (size_t j = 0; n > 0 && j < d; j++) {
        mu[j] /= n;
    }
    for (size_t i = 0; i < (size_t)e->n; i++) {
        double p = e->share[i * parts + (size_t)g];

        for (size_t j = 0; p > 0 && j < d; j++) {
            double z = e->x[i * d + j] - mu[j];

            var[j] += p * z * z;
        }
    }
    for (size_t j = 0; j < d; j++) {
        var[j] = (n > 0 ? var[j] / n : 0) + e->floor;
    }
    e->weight[g] = n / e->n;
}

/* shares of one sample; its log-likelihood but for a constant */
static double expect(fit *e, size_t i)
{
    size_t d = (size_t)e->d, parts = (size_t)e->parts;
    double *p = e->share + i * parts, most = -INFINITY, all = 0;

    for (size_t g = 0; g < parts; g++) {
        p[g] = e->weight[g] > 0 ? log(e->weight[g]) : -INFINITY;
        for (size_t j = 0; e->weight[g] > 0 && j < d; j++) {
            double z = e->x[i * d + j] - e->mu[g * d + j], v = e->var[g * d + j];

            p[g] -= 0.5 * (log(v) + z * z / v);
        }
        most = fmax(most, p[g]);
    }
    for (size_t g = 0; g < parts; g++) {
        p[g] = exp(p[g] - most);
        all += p[g];
    }
    for (size_t g = 0; g < parts; g++) {
        p[g] /= all;
    }
    return most + log(all);
}

double fl_mixture_fit(uint64_t seed, int n, int d, const double *x, int parts, int iterations,
    double floor, double *weight, double *mu, double *var)
{
    fit e = {n, d, parts, x, weight, mu, var, NULL, floor};
    int *group = fl_alloc("groups of a mixture", (size_t)n, sizeof *group);
    double last = -INFINITY;

    FL_REQUIRE(n > 0 && d > 0 && parts > 0 && floor > 0);
    e.share = fl_alloc("shares of a mixture", (size_t)n * (size_t)parts, sizeof *e.share);
    fl_kmeans(seed, n, d, x, NULL, parts, 1, 100, group, mu);
    for (int i = 0; i < n; i++) {
        e.share[(size_t)i * (size_t)parts + (size_t)group[i]] = 1;
    }
    for (int t = 0; t <= iterations; t++) {
        double now = 0;

        for (int g = 0; g < parts; g++) {
            maximise(&e, g);
        }
        for (int i = 0; t < iterations && i < n; i++) {
            now += expect(&e, (size_t)i) / n;
        }
        if (t == iterations || !(now - last > 1e-3)) {
            break; /* what is returned is the last maximum: its moments are those of x */
        }
        last = now;
    }
    fl_free(e.share);
    fl_free(group);
    return last;
}

fl_err fl_mixture_distance(int parts, int d, const double *weight_x, const double *mu_x,
    const double *var_x, const double *weight_y, const double *mu_y, const double *var_y,
    double *distance)
{
    size_t n = (size_t)parts, width = (size_t)d;
    double *cost = fl_alloc("costs of a transport", 2 * n * n, sizeof *cost), sum_x = 0, sum_y = 0;
    double *a = fl_alloc("masses of a transport", 2 * n, sizeof *a);

    for (size_t i = 0; i < n; i++) {
        sum_x += weight_x[i];
        sum_y += weight_y[i];
    }
    for (size_t i = 0; i < n; i++) {
        a[i] = weight_x[i] / sum_x;
        a[n + i] = weight_y[i] / sum_y;
        for (size_t j = 0; j < n; j++) {
            for (size_t k = 0; k < width; k++) {
                double m = mu_x[i * width + k] - mu_y[j * width + k];
                double s = sqrt(var_x[i * width + k]) - sqrt(var_y[j * width + k]);

                cost[i * n + j] += m * m + s * s;
            }
        }
    }
    fl_err err = fl_transport(parts, parts, a, a + n, cost, cost + n * n, distance);

    fl_free(cost);
    fl_free(a);
    return err;
}

double fl_select(size_t n, double *x, size_t k)
{
    size_t low = 0, high = n - 1;

    FL_REQUIRE(k < n);
    while (low < high) { /* Hoare: x[low..j] <= pivot <= x[j + 1..high] */
        double pivot = x[low + (high - low) / 2];
        size_t i = low, j = high;

        for (;; i++, j--) {
            while (x[i] < pivot) {
                i++;
            }
            while (x[j] > pivot) {
                j--;
            }
            if (i >= j) {
                break;
            }
            double swap = x[i];

            x[i] = x[j];
            x[j] = swap;
        }
        *(k <= j ? &high : &low) = k <= j ? j : j + 1;
    }
    return x[k];
}
