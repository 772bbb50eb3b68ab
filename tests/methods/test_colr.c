/* test_colr.c - CoLR and SCoLR: the basis of a round, means row by row and column by column over
 * those who sent them, the factor on the gradient, traffic. */
#include "rebase_test.h"

static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];

static void open_colr(bed *b, const char *key)
{
    bed_open(b, test_ctx,
        BED_SET("method.name=colr", "partition.kind=dirichlet", "partition.alpha=0.7",
            key != NULL ? key : "run.name=test"));
}

static void colr_basis(void **state)
{
    bed b;

    (void)state;
    open_colr(&b, NULL);
    for (int t = 1; t <= 2; t++) {
        bed_begin(&b, t, NULL);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat a = fl_at(b.rt->run.global, j, FL_A), f = fl_at(b.rt->run.global, j, FL_B);
            double p[9], values[3];

            for (int i = 0; i < 3 && a.x != NULL; i++) {
                for (int k = 0; k < 3; k++) {
                    double dot = 0; /* A A' = n / r; G A' of the draws G is symmetric .. */

                    p[3 * i + k] = 0;
                    for (int e = 0; e < a.cols; e++) {
                        dot += (double)a.x[i * a.cols + e] * a.x[k * a.cols + e];
                        p[3 * i + k] +=
                            a.x[k * a.cols + e] * fl_rng_normal(b.rt->run.seed, FL_RNG_METHOD, j, t,
                                                      (uint64_t)(i * a.cols + e));
                    }
                    assert_below(fabs(dot - (i == k ? a.cols / 3.0 : 0)), 1e-5);
                }
            }
            if (a.x != NULL) { /* .. and positive: the polar factor */
                assert_below(fabs(p[1] - p[3]) + fabs(p[2] - p[6]) + fabs(p[5] - p[7]), 1e-4);
                bed_ok(fl_eigh(3, p, values, NULL));
                assert_true(values[2] > 0.1);
            }
            for (int e = 0; e < f.rows * f.cols; e++) {
                assert_true(f.x[e] == 0);
            }
        }
    }
    bed_close(&b);
}

static void colr_other_bases(void **state)
{
    double sum = 0, n = 0;
    bed b;

    (void)state;
    open_colr(&b, "colr.basis=l2norm");
    bed_begin(&b, 1, NULL);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        fl_mat a = fl_at(b.rt->run.global, j, FL_A);

        for (int i = 0; i < a.rows; i++) {
            double length = 0;

            for (int e = 0; e < a.cols; e++) {
                length += (double)a.x[i * a.cols + e] * a.x[i * a.cols + e];
            }
            assert_below(fabs(length - 1), 1e-6);
        }
    }
    bed_close(&b);
    open_colr(&b, "colr.basis=random");
    bed_begin(&b, 1, NULL);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        fl_mat a = fl_at(b.rt->run.global, j, FL_A);

        for (int e = 0; e < a.rows * a.cols; e++, n++) {
            sum += 3 * (double)a.x[e] * a.x[e];
        }
    }
    assert_below(fabs(sum / n - 1), 5 * sqrt(2 / n));
    bed_close(&b);
}

/* sum of products = product of sums, weights 1 / K */
static void colr_is_exact(void **state)
{
    bed b;

    (void)state;
    open_colr(&b, "cohort.weights=uniform");
    for (int t = 1; t <= 2; t++) {
        bed_begin(&b, t, NULL);
        send_by_hook(&b);
        bed_ok(round_aggregate(b.rt));
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
    }
    bed_close(&b);
}

/* client k leaves row i alone where (i + k) mod 3 is 0, and all of row 5 */
static bool touches(int k, int i)
{
    return i != 5 && (i + k) % 3 != 0;
}

/* mean of what was sent of B[i][l] at a site; sent[k]: bit l is set if client k trains column l */
static double sent_mean(const bed *b, int site, int i, int l, const unsigned *sent)
{
    double sum = 0, n = 0;

    for (int k = 0; k < b->n; k++) {
        fl_mat f = fl_at(b->client[k], site, FL_B);

        if (touches(k, i) && (sent[k] & FL_BIT(l)) != 0) {
            sum += f.x[i * f.cols + l];
            n++;
        }
    }
    return n > 0 ? sum / n : 0;
}

/* rows that nobody touched keep their bits, others are means over those that did; unequal sample
 * counts do not matter */
static void colr_means_by_row(void **state)
{
    (void)state;
    for (int subsample = 0; subsample < 2; subsample++) {
        unsigned sent[BED_CLIENTS];
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=colr", "adapter.r=4", "cohort.size=4", "partition.kind=dirichlet",
                subsample ? "colr.subsample=true" : "colr.subsample=false",
                subsample ? "clients.r=[2, 4]" : "clients.r=[]",
                subsample ? "clients.r_share=[0.5, 0.5]" : "clients.r_share=[]"));
        bed_begin(&b, 1, NULL);
        for (int k = 0; k < b.n; k++) {
            for (int j = 0; j < b.rt->run.nsites; j++) {
                fl_mat f = fl_at(b.client[k], j, FL_B);

                for (int e = 0; e < f.rows * f.cols; e++) {
                    f.x[e] = touches(k, e / f.cols) ? f.x[e] : 0;
                }
            }
        }
        send_by_hook(&b);
        for (int k = 0; k < b.n; k++) { /* what the hook picked, from the clients' own side */
            double bits = 0;

            if (k >= b.rt->first[b.ctx->rank] && k < b.rt->first[b.ctx->rank + 1]) {
                const uint64_t *pairs = b.rt->sent[k]->part[0].pick.pairs;
                int from =
                    fl_pair_first(b.rt->run.space, fl_model_site_named(&b.rt->base.model, 0, "q"));

                for (int l = 0; l < 4; l++) {
                    bits += pairs == NULL || fl_bit(pairs, (size_t)(from + l)) ? FL_BIT(l) : 0;
                }
            }
            sent[k] = (unsigned)fl_max(b.ctx, bits);
            assert_int_equal(__builtin_popcount(sent[k]), b.rt->client_r[k]);
            assert_true(subsample || sent[k] == 15);
        }
        bed_ok(round_aggregate(b.rt));
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat f = fl_at(b.rt->merged[0].ad, j, FL_B);

            for (int e = 0; e < f.rows * f.cols; e++) {
                double want = sent_mean(&b, j, e / f.cols, e % f.cols, sent);

                assert_below(fabs(f.x[e] - want), 1e-6);
            }
            if (f.x != NULL) {
                int n = b.rt->base.model.site[j].n;

                assert_memory_equal(base_at(&b, b.rt->base.share.x, j) + 5 * n,
                    base_at(&b, b.w0, j) + 5 * n, (size_t)n * sizeof(fl_real));
            }
        }
        bed_close(&b);
    }
}

/* SCoLR: over the rounds a small client trains every column */
static void colr_subsets_vary(void **state)
{
    unsigned seen = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=colr", "clients.r=[1, 4]", "clients.r_share=[0.5, 0.5]",
            "colr.subsample=true", "run.rounds=24"));
    for (int t = 1; t <= 24; t++) {
        fl_client c = {.id = 0, .r = 1};
        fl_msg up = {.run = &b.rt->run, .client = &c, .up = true};

        bed_begin(&b, t, NULL);
        c.ad[0] = b.client[0];
        bed_ok(b.rt->method->upload(&b.rt->run, &c, &up));
        unsigned mine = 0;

        for (int l = 0; l < 4; l++) {
            mine |= fl_bit(up.part[0].pick.pairs, (size_t)l) ? FL_BIT(l) : 0;
        }
        assert_int_equal(__builtin_popcount(mine), 1);
        seen |= mine;
    }
    assert_int_equal(seen, 15); /* missing one of four in 24 draws: 4e-3 at a random seed */
    bed_close(&b);
}

/* damp multiplies the gradient of B by sqrt(r / n): one step of SGD by as much */
static void colr_damp(void **state)
{
    (void)state;
    one_sgd_step(BED_SET("adapter.targets=[q]", "colr.damp=false"), "method.name=colr", x, "q");
    one_sgd_step(BED_SET("adapter.targets=[q]", "colr.damp=true"), "method.name=colr", y, "q");
    for (int e = 0; e < 24 * 24; e++) {
        x[e] *= sqrt(3.0 / 24);
    }
    assert_near(24 * 24, y, x, 1e-4);
}

static double colr_up(int r)
{
    return 4 * r * bed_sum_m + bed_sum_m / 8; /* columns of B, and a bit a row */
}

static double colr_revision(int t)
{
    (void)t;
    return 4 * 4 * bed_sum_m + 8; /* the averaged B and the seed of the next basis */
}

static void colr_traffic(void **state)
{
    double up[6], down[6];

    (void)state;
    const char *const *sets = BED_SET("method.name=colr", "partition.clients=7", "clients.r=[1, 4]",
        "clients.r_share=[0.5, 0.5]", "train.steps=1", "colr.subsample=true");

    book_run(&(book){colr_up, no_parts, colr_revision}, sets, 6, up, down);
    bed_traffic("colr", sets + 1, 6, up, down);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(colr_basis), T(colr_other_bases), T(colr_is_exact),
        T(colr_means_by_row), T(colr_subsets_vary), T(colr_damp), T(colr_traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
