/* test_still.c - unequal ranks and no training: what the server's rule alone does to a direction of
 * the update. The server starts from s B A = U S V' with random orthonormal U, V and falling
 * singular values; clients of ranks 1, 2, 4, 4, 8, 8 hold it cut to their rank and send back what
 * they got (learning rate 0, whole rounds of the real method). q_i is the weight of the clients
 * whose rank is i or more. Prints: data METHOD SEED ROUND i q_i multiplier, multiplier = u_i' (s B
 * A) v_i / S_i, the mean over the sites. */
#include "effect.h"

enum { R = 8, K = 6, ROUNDS = 5 };

typedef struct truth { /* of one site */
    double u[BED_SIDE * R], v[BED_SIDE * R], s[R];
} truth;

/* n x R, orthonormal columns, by Gram and Schmidt, twice */
static void orthonormal(int n, int seed, int what, double *x)
{
    for (int i = 0; i < n * R; i++) {
        x[i] = fl_rng_normal((uint64_t)seed, FL_RNG_TEST, what, 0, (uint64_t)i);
    }
    for (int j = 0; j < 2 * R; j++) {
        int c = j % R;
        double norm = 0;

        for (int l = 0; l < c; l++) {
            double along = 0;

            for (int i = 0; i < n; i++) {
                along += x[i * R + l] * x[i * R + c];
            }
            for (int i = 0; i < n; i++) {
                x[i * R + c] -= along * x[i * R + l];
            }
        }
        for (int i = 0; i < n; i++) {
            norm += x[i * R + c] * x[i * R + c];
        }
        for (int i = 0; i < n; i++) {
            x[i * R + c] /= sqrt(norm);
        }
    }
}

static void server_start(bed *b, int seed, truth *t)
{
    const fl_run *run = &b->rt->run;

    for (int site = 0; site < run->nsites; site++) {
        fl_mat ma = fl_at(run->global, site, FL_A), mb = fl_at(run->global, site, FL_B);

        if (run->space->r[site] == 0) {
            continue;
        }
        orthonormal(mb.rows, seed, 2 * site, t[site].u);
        orthonormal(ma.cols, seed, 2 * site + 1, t[site].v);
        for (int l = 0; l < R; l++) {
            t[site].s[l] = R - l;
            for (int i = 0; i < mb.rows; i++) {
                mb.x[i * R + l] =
                    (fl_real)(t[site].s[l] / run->space->scale[site] * t[site].u[i * R + l]);
            }
            for (int j = 0; j < ma.cols; j++) {
                ma.x[l * ma.cols + j] = (fl_real)t[site].v[j * R + l];
            }
        }
    }
}

static double multiplier(const bed *b, const truth *t, int l)
{
    const fl_run *run = &b->rt->run;
    double mean = 0, n = 0;

    for (int site = 0; site < run->nsites; site++) {
        fl_mat ma = fl_at(run->global, site, FL_A), mb = fl_at(run->global, site, FL_B);
        double x = 0;

        for (int p = 0; p < run->space->r[site]; p++) {
            double left = 0, right = 0;

            for (int i = 0; i < mb.rows; i++) {
                left += t[site].u[i * R + l] * mb.x[i * R + p];
            }
            for (int j = 0; j < ma.cols; j++) {
                right += (double)ma.x[p * ma.cols + j] * t[site].v[j * R + l];
            }
            x += run->space->scale[site] * left * right;
        }
        if (run->space->r[site] > 0) {
            mean += x / t[site].s[l];
            n++;
        }
    }
    return mean / n;
}

/* who has which rank, by the seed; q [R] */
static void ranks(bed *b, int seed, double *q)
{
    int r[K] = {1, 2, 4, 4, 8, 8}, order[K];

    for (int k = 0; k < K; k++) {
        order[k] = k;
        b->lost[k] = false;
    }
    fl_rng_shuffle((uint64_t)seed, FL_RNG_TEST, 0, 1, K, order);
    bed_weights(b);
    memset(q, 0, R * sizeof *q);
    for (int k = 0; k < K; k++) {
        b->rt->client_r[k] = r[order[k]];
        for (int l = 0; l < r[order[k]]; l++) {
            q[l] += b->p[k];
        }
    }
}

static void federation(const char *method, int seed)
{
    static truth t[BED_SITES];
    char name[64], number[64];
    double q[R];
    bed b;
    bool pads = strcmp(method, "hetlora") == 0;

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(number, sizeof number, "run.seed=%d", seed);
    bed_open(&b, test_ctx,
        BED_SET(name, number, "clients.r=[1, 2, 4, 8]", "clients.r_share=[0.25, 0.25, 0.25, 0.25]",
            "adapter.targets=[q, v]", "partition.kind=dirichlet", "partition.alpha=0.7",
            "partition.clients=6", "cohort.size=6", "cohort.weights=samples", "train.lr=0",
            "train.steps=1", pads ? "hetlora.weights=samples" : NULL));
    ranks(&b, seed, q);
    server_start(&b, seed, t);
    for (int round = 1; round <= ROUNDS; round++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, round));
        for (int l = 0; l < R; l++) {
            printf("data %s %d %d %d %.9e %.9e\n", method, seed, round, l + 1, q[l],
                multiplier(&b, t, l));
        }
    }
    bed_close(&b);
}

static void still(void **state)
{
    static const char *const method[] = {"hetlora", "flexlora", "rbla"};

    (void)state;
    for (int seed = 1; seed <= effect_seeds(); seed++) {
        for (size_t i = 0; i < FL_COUNT(method); i++) {
            federation(method[i], seed);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(still, bed_folder, bed_remove)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
