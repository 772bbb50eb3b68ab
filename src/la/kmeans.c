/* kmeans.c - weighted k-means: k-means++ seeding (Arthur and Vassilvitskii 2007), Lloyd's steps,
 * the best of several starts. Every sum runs in the order of the rows and every tie goes to the
 * lowest index, so the answer is a function of the arguments alone. */
#include "la_internal.h"
#include <math.h>
#include <string.h>

enum { KMEANS_RNG = 255 }; /* purpose of the seeding's numbers: the last one, no method's */

typedef struct kmeans_job {
    int n, d, ngroups;
    const double *x, *w; /* borrowed [n][d], [n] or NULL */
    int *group;          /* owned [n] */
    double *centre;      /* owned [ngroups][d] */
    double *far;         /* owned [n]: squared distance to the own centre */
    double *mass;        /* owned [ngroups] */
} kmeans_job;

static double kmeans_weight(const kmeans_job *k, int i)
{
    return k->w != NULL ? k->w[i] : 1;
}

static double kmeans_distance2(int d, const double *x, const double *y)
{
    double sum = 0;

    for (int j = 0; j < d; j++) {
        sum += (x[j] - y[j]) * (x[j] - y[j]);
    }
    return sum;
}

static const double *kmeans_row(const kmeans_job *k, int i)
{
    return k->x + (size_t)i * (size_t)k->d;
}

/* row with probability in proportion to share[i] >= 0; the first row if all are 0 */
static int kmeans_draw(int n, const double *share, double uniform)
{
    double total = 0, below = 0;
    int last = 0;

    for (int i = 0; i < n; i++) {
        total += share[i];
    }
    for (int i = 0; i < n; i++) {
        below += share[i];
        last = share[i] > 0 ? i : last; /* rounding may leave the sum short of the total */
        if (share[i] > 0 && uniform * total < below) {
            return i;
        }
    }
    return last;
}

static void kmeans_seed(kmeans_job *k, uint64_t seed, int start)
{
    double *share = fl_alloc("kmeans: chances", (size_t)k->n, sizeof *share); /* owned [n] */

    for (int i = 0; i < k->n; i++) {
        k->far[i] = 1;
    }
    for (int g = 0; g < k->ngroups; g++) {
        double *centre = k->centre + (size_t)g * (size_t)k->d;
        int row;

        for (int i = 0; i < k->n; i++) {
            share[i] = kmeans_weight(k, i) * k->far[i];
        }
        row = kmeans_draw(k->n, share, fl_rng_uniform(seed, KMEANS_RNG, start, 0, (uint64_t)g));
        memcpy(centre, kmeans_row(k, row), (size_t)k->d * sizeof *centre);
        for (int i = 0; i < k->n; i++) {
            const double far = kmeans_distance2(k->d, kmeans_row(k, i), centre);

            k->far[i] = g == 0 ? far : FL_MIN(k->far[i], far);
        }
    }
    fl_free(share);
}

/* nearest centre of every row; returns whether any row moved */
static bool kmeans_assign(kmeans_job *k)
{
    bool moved = false;

    for (int i = 0; i < k->n; i++) {
        int best = 0;
        double least = INFINITY;

        for (int g = 0; g < k->ngroups; g++) {
            const double far =
                kmeans_distance2(k->d, kmeans_row(k, i), k->centre + (size_t)g * (size_t)k->d);

            if (far < least) {
                least = far;
                best = g;
            }
        }
        moved = moved || k->group[i] != best;
        k->group[i] = best;
        k->far[i] = least;
    }
    return moved;
}

/* groups without weight take the row that costs most, one each; returns whether any did */
static bool kmeans_fill(kmeans_job *k)
{
    bool filled = false;

    memset(k->mass, 0, (size_t)k->ngroups * sizeof *k->mass);
    for (int i = 0; i < k->n; i++) {
        k->mass[k->group[i]] += kmeans_weight(k, i);
    }
    for (int g = 0; g < k->ngroups; g++) {
        int row = -1;
        double most = 0;

        for (int i = 0; k->mass[g] == 0 && i < k->n; i++) {
            const double cost = kmeans_weight(k, i) * k->far[i];

            if (cost > most) {
                most = cost;
                row = i;
            }
        }
        if (row >= 0) {
            /* the row is not the only one there: it would be its own centre, at distance 0 */
            k->mass[k->group[row]] -= kmeans_weight(k, row);
            k->mass[g] = kmeans_weight(k, row);
            k->group[row] = g;
            k->far[row] = 0;
            filled = true;
        }
    }
    return filled;
}

static void kmeans_centres(kmeans_job *k)
{
    double *sum = fl_alloc("kmeans: sums", (size_t)k->ngroups * (size_t)k->d, sizeof *sum);
    double *mass = fl_alloc("kmeans: weights", (size_t)k->ngroups, sizeof *mass);

    for (int i = 0; i < k->n; i++) {
        double *to = sum + (size_t)k->group[i] * (size_t)k->d;

        mass[k->group[i]] += kmeans_weight(k, i);
        for (int j = 0; j < k->d; j++) {
            to[j] += kmeans_weight(k, i) * kmeans_row(k, i)[j];
        }
    }
    for (int g = 0; g < k->ngroups; g++) {
        for (int j = 0; mass[g] > 0 && j < k->d; j++) {
            const size_t at = (size_t)g * (size_t)k->d + (size_t)j;

            k->centre[at] = sum[at] / mass[g];
        }
    }
    fl_free(mass);
    fl_free(sum);
}

static double kmeans_start(kmeans_job *k, uint64_t seed, int start, int iterations)
{
    double inertia = 0;

    kmeans_seed(k, seed, start);
    kmeans_assign(k);
    for (int step = 0; step < iterations; step++) {
        const bool filled = kmeans_fill(k);

        kmeans_centres(k);
        if (!kmeans_assign(k) && !filled) {
            break;
        }
    }
    for (int i = 0; i < k->n; i++) {
        inertia += kmeans_weight(k, i) * k->far[i];
    }
    return inertia;
}

/* groups in the order of their first rows */
static void kmeans_write(const kmeans_job *k, int *group, double *centre)
{
    int *name = fl_alloc("kmeans: names", (size_t)k->ngroups, sizeof *name), named = 0;

    memset(name, 0xff, (size_t)k->ngroups * sizeof *name);
    for (int g = 0; g < k->ngroups; g++) { /* for groups that stay empty */
        memcpy(centre + (size_t)g * (size_t)k->d, k->x, (size_t)k->d * sizeof *centre);
    }
    for (int i = 0; i < k->n; i++) {
        const int g = k->group[i];

        if (name[g] < 0) {
            name[g] = named++;
            memcpy(centre + (size_t)name[g] * (size_t)k->d, k->centre + (size_t)g * (size_t)k->d,
                (size_t)k->d * sizeof *centre);
        }
        group[i] = name[g];
    }
    fl_free(name);
}

double fl_kmeans(uint64_t seed, int n, int d, const double *x, const double *w, int ngroups,
    int restarts, int iterations, int *group, double *centre)
{
    kmeans_job k = {.n = n, .d = d, .ngroups = ngroups, .x = x, .w = w};
    double best = NAN;

    FL_REQUIRE(n >= 1 && d >= 1 && ngroups >= 1 && restarts >= 1 && iterations >= 0);
    if (!fl_finite((size_t)n * (size_t)d, x) || (w != NULL && !fl_finite((size_t)n, w))) {
        return NAN;
    }
    for (int i = 0; w != NULL && i < n; i++) {
        FL_REQUIRE(w[i] >= 0);
    }
    k.group = fl_alloc("kmeans: groups", (size_t)n, sizeof *k.group);
    k.centre = fl_alloc("kmeans: centres", (size_t)ngroups * (size_t)d, sizeof *k.centre);
    k.far = fl_alloc("kmeans: distances", (size_t)n, sizeof *k.far);
    k.mass = fl_alloc("kmeans: masses", (size_t)ngroups, sizeof *k.mass);
    for (int start = 0; start < restarts; start++) {
        const double inertia = kmeans_start(&k, seed, start, iterations);

        if (start == 0 || inertia < best) {
            best = inertia;
            kmeans_write(&k, group, centre);
        }
    }
    fl_free(k.mass);
    fl_free(k.far);
    fl_free(k.centre);
    fl_free(k.group);
    return best;
}
