/* test_covariance.c - the error of averaging the factors, against the covariance of the factors,
 * after real local training. After each round the adapters that the clients sent are taken: T =
 * sum_k p_k s B_k A_k is the ideal update, s B A what the server installed, C = sum_k p_k s (B_k -
 * Bm)(A_k - Am) with the means Bm, Am taken here. Prints: data METHOD SEED STEPS ROUND |T - s B A|
 * / |T|  |C| / |T|  |T - s B A - C| / |T|. The base is EFFECT_BASE, or the bed's. */
#include "effect.h"

enum { K = 6, ROUNDS = 4 };

/* client k's factor as the server completes it: what did not travel is the server's of before the
 * round, which nobody changed */
static fl_mat sent_factor(const bed *b, int k, int site, fl_factor f)
{
    unsigned factors = b->rt->run.job.train[0].factors;
    bool travelled = factors == 0 || (factors & FL_BIT(f)) != 0;

    return fl_at(travelled ? b->rt->sent[k]->part[0].ad : b->rt->run.global, site, f);
}

static void mean(const bed *b, int site, fl_factor f, double *x)
{
    memset(x, 0, BED_SIDE * BED_SIDE * sizeof *x);
    for (int k = 0; k < K; k++) {
        fl_mat y = sent_factor(b, k, site, f);

        for (int i = 0; i < y.rows * y.cols; i++) {
            x[i] += b->p[k] * y.x[i];
        }
    }
}

static void measure(bed *b, const char *method, int seed, int steps, int round)
{
    static double t[BED_SIDE * BED_SIDE], c[BED_SIDE * BED_SIDE], am[BED_SIDE * BED_SIDE],
        bm[BED_SIDE * BED_SIDE];
    const fl_run *run = &b->rt->run;
    double ideal = 0, error = 0, covariance = 0, rest = 0;

    bed_weights(b);
    for (int site = 0; site < run->nsites; site++) {
        size_t n = (size_t)b->rt->base.model.site[site].m * (size_t)b->rt->base.model.site[site].n;
        double s = run->space->scale[site];

        if (run->space->r[site] == 0) {
            continue;
        }
        memset(t, 0, sizeof t);
        memset(c, 0, sizeof c);
        mean(b, site, FL_A, am);
        mean(b, site, FL_B, bm);
        for (int k = 0; k < K; k++) {
            fl_mat mb = sent_factor(b, k, site, FL_B), ma = sent_factor(b, k, site, FL_A);

            bed_add(b->p[k] * s, mb, NULL, ma, NULL, t);
            bed_add(b->p[k] * s, mb, bm, ma, am, c);
        }
        ideal += bed_norm2(n, t);
        covariance += bed_norm2(n, c);
        bed_add(-s, fl_at(run->global, site, FL_B), NULL, fl_at(run->global, site, FL_A), NULL, t);
        error += bed_norm2(n, t);
        for (size_t i = 0; i < n; i++) {
            t[i] -= c[i];
        }
        rest += bed_norm2(n, t);
    }
    printf("data %s %d %d %d %.6e %.6e %.6e\n", method, seed, steps, round, sqrt(error / ideal),
        sqrt(covariance / ideal), sqrt(rest / ideal));
}

static void federation(const char *method, int seed, int steps)
{
    const char *base = getenv("EFFECT_BASE");
    char name[64], number[64], local[64], path[300];
    bed b;

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(number, sizeof number, "run.seed=%d", seed);
    snprintf(local, sizeof local, "train.steps=%d", steps);
    snprintf(path, sizeof path, "model.path=%s", base != NULL ? base : "");
    bed_open(&b, test_ctx,
        BED_SET(name, number, local, "partition.kind=dirichlet", "partition.alpha=0.3",
            "partition.clients=6", "cohort.size=6", "cohort.weights=samples", "data.sequences=240",
            "data.domains=4", "train.lr=3.0e-3", base != NULL ? path : NULL));
    for (int round = 1; round <= ROUNDS; round++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, round));
        measure(&b, method, seed, steps, round);
    }
    bed_close(&b);
}

static void covariance(void **state)
{
    (void)state;
    for (int seed = 1; seed <= effect_seeds(); seed++) {
        for (int steps = 1; steps <= 32; steps *= 2) {
            federation("fedavg", seed, steps);
        }
        federation("ffa_lora", seed, 8);
        federation("rolora", seed, 8);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(covariance, bed_folder, bed_remove)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
