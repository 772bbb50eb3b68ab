/* test_angle.c - the rank-1 linear model of RoLoRA's analysis, under the plan and the averaging of
 * the real methods. Client k holds X_k (N x n, normal) and Y_k = X_k a* b*'. The model is Y = X a
 * b' with a = A' and b = s B at one site, so s = 1. A client that trains B takes the least-squares
 * b for the common a, one that trains A goes one step down the gradient of |X_k (a b' - a* b*')|^2
 * / N for the common b. RoLoRA alternates the two, FFA-LoRA only has the first. Prints: data METHOD
 * SEED ROUND sin-angle(a, a*) loss, loss = |a b' - a* b*'|^2, its expected value over new rows of
 * X. */
#include "effect.h"

enum { K = 4, N = 96, ROUNDS = 200 };
static const double rate = 0.125; /* of the gradient steps */

typedef struct linear {
    int m, n, site;
    double a[BED_SIDE], b[BED_SIDE];       /* a*, b*: unit vectors */
    double second[K][BED_SIDE * BED_SIDE]; /* X_k' X_k / N */
} linear;

static double dot(int n, const double *x, const double *y)
{
    double s = 0;

    for (int i = 0; i < n; i++) {
        s += x[i] * y[i];
    }
    return s;
}

static void unit(int n, double *x)
{
    double size = sqrt(dot(n, x, x));

    for (int i = 0; i < n; i++) {
        x[i] /= size;
    }
}

static double normal(int seed, int what, int i)
{
    return fl_rng_normal((uint64_t)seed, FL_RNG_TEST, what, 0, (uint64_t)i);
}

/* a* leans from the common start of A by an angle between 20 and 80 degrees, which the seed draws
 */
static void linear_make(linear *p, const bed *b, int seed)
{
    fl_mat a0 = fl_at(b->rt->run.global, p->site, FL_A);
    double start[BED_SIDE], aside[BED_SIDE];
    double angle = (20 + 60 * fl_rng_uniform((uint64_t)seed, FL_RNG_TEST, 1, 0, 0)) * M_PI / 180;

    for (int i = 0; i < p->n; i++) {
        start[i] = a0.x[i];
        aside[i] = normal(seed, 2, i);
    }
    unit(p->n, start);
    double along = dot(p->n, start, aside);
    for (int i = 0; i < p->n; i++) {
        aside[i] -= along * start[i];
    }
    unit(p->n, aside);
    for (int i = 0; i < p->n; i++) {
        p->a[i] = cos(angle) * start[i] + sin(angle) * aside[i];
    }
    for (int i = 0; i < p->m; i++) {
        p->b[i] = normal(seed, 3, i);
    }
    unit(p->m, p->b);
    for (int k = 0; k < K; k++) {
        memset(p->second[k], 0, sizeof p->second[k]);
        for (int row = 0; row < N; row++) {
            double x[BED_SIDE] = {0};

            for (int i = 0; i < p->n; i++) {
                x[i] = normal(seed, 10 + k, row * p->n + i);
            }
            for (int i = 0; i < p->n * p->n; i++) {
                p->second[k][i] += x[i / p->n] * x[i % p->n] / N;
            }
        }
    }
}

/* y = X_k' X_k x / N */
static void second(const linear *p, int k, const double *x, double *y)
{
    for (int i = 0; i < p->n; i++) {
        y[i] = dot(p->n, p->second[k] + i * p->n, x);
    }
}

/* client k's local work on its copy of the server's factors */
static void local_step(const linear *p, int k, unsigned factors, fl_adapter *ad)
{
    fl_mat ma = fl_at(ad, p->site, FL_A), mb = fl_at(ad, p->site, FL_B);
    double a[BED_SIDE], b[BED_SIDE], sa[BED_SIDE], sstar[BED_SIDE];

    for (int i = 0; i < p->n; i++) {
        a[i] = ma.x[i];
    }
    for (int i = 0; i < p->m; i++) {
        b[i] = mb.x[i];
    }
    second(p, k, a, sa);
    second(p, k, p->a, sstar);
    if ((factors & FL_BIT(FL_B)) != 0) {
        double c = dot(p->n, a, sstar) / dot(p->n, a, sa); /* argmin_b |X (a b' - a* b*')| = c b* */

        for (int i = 0; i < p->m; i++) {
            mb.x[i] = (fl_real)(c * p->b[i]);
        }
        return;
    }
    double bb = dot(p->m, b, b), bstar = dot(p->m, b, p->b);
    for (int i = 0; i < p->n; i++) {
        ma.x[i] = (fl_real)(a[i] - 2 * rate * (sa[i] * bb - sstar[i] * bstar));
    }
}

static void show(const linear *p, const bed *b, const char *method, int seed, int t)
{
    fl_mat ma = fl_at(b->rt->run.global, p->site, FL_A),
           mb = fl_at(b->rt->run.global, p->site, FL_B);
    double a[BED_SIDE], rest[BED_SIDE], along, loss = 0;

    for (int i = 0; i < p->n; i++) {
        a[i] = ma.x[i];
    }
    for (int i = 0; i < p->m; i++) {
        for (int j = 0; j < p->n; j++) {
            loss += pow((double)mb.x[i] * a[j] - p->b[i] * p->a[j], 2);
        }
    }
    unit(p->n, a);
    along = dot(p->n, a, p->a);
    for (int i = 0; i < p->n; i++) {
        rest[i] = a[i] - along * p->a[i];
    }
    printf("data %s %d %d %.9e %.9e\n", method, seed, t, sqrt(dot(p->n, rest, rest)), loss);
}

static void federation(const char *method, int seed)
{
    static linear p;
    char name[64], number[64];
    bed b;

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(number, sizeof number, "run.seed=%d", seed);
    bed_open(&b, test_ctx,
        BED_SET(name, number, "cohort.weights=uniform", "adapter.r=1", "adapter.alpha=1",
            "adapter.targets=[q]", "cohort.size=4", "run.rounds=200"));
    while (b.rt->run.space->r[p.site] == 0) {
        p.site++;
    }
    p.m = b.rt->base.model.site[p.site].m;
    p.n = b.rt->base.model.site[p.site].n;
    linear_make(&p, &b, seed);
    show(&p, &b, method, seed, 0);
    for (int t = 1; t <= ROUNDS; t++) {
        bed_begin(&b, t, NULL);
        for (int k = 0; k < K; k++) {
            fl_fit(b.client[k], b.rt->run.global);
            local_step(&p, k, b.rt->run.job.train[0].factors, b.client[k]);
        }
        bed_end(&b);
        show(&p, &b, method, seed, t);
    }
    bed_close(&b);
}

static void rank_one(void **state)
{
    (void)state;
    for (int seed = 1; seed <= effect_seeds(); seed++) {
        federation("rolora", seed);
        federation("ffa_lora", seed);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rank_one, bed_folder, bed_remove)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
