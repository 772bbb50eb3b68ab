/* test_identities.c - what the aggregation rules have to do with each other, on random adapters:
 * the cross-method identities of exact and inexact aggregation, against plain sums in double. */
#include "method_test.h"

static const char *const weighted[] = {"partition.kind=dirichlet", "partition.alpha=0.7"};

static void open_method(bed *b, const char *name, const char *r, const char *size)
{
    char method[64], rank[64], cohort[64];

    snprintf(method, sizeof method, "method.name=%s", name);
    snprintf(rank, sizeof rank, "adapter.r=%s", r);
    snprintf(cohort, sizeof cohort, "cohort.size=%s", size);
    bed_open(b, test_ctx, BED_SET(method, rank, cohort, weighted[0], weighted[1]));
}

/* of every client only the first `keep` pairs differ from 0 */
static void keep_pairs(bed *b, int keep)
{
    for (int i = 0; i < b->n; i++) {
        for (int j = 0; j < b->rt->run.nsites; j++) {
            fl_mat a = fl_at(b->client[i], j, FL_A), c = fl_at(b->client[i], j, FL_B);

            for (int e = 0; e < a.rows * a.cols; e++) {
                a.x[e] = e / a.cols < keep ? a.x[e] : 0;
            }
            for (int e = 0; e < c.rows * c.cols; e++) {
                c.x[e] = e % c.cols < keep ? c.x[e] : 0;
            }
        }
    }
}

/* factor f of all clients becomes that of client 0 */
static void make_common(bed *b, fl_factor f)
{
    for (int i = 1; i < b->n; i++) {
        for (int j = 0; j < b->rt->run.nsites; j++) {
            fl_mat from = fl_at(b->client[0], j, f), to = fl_at(b->client[i], j, f);

            if (from.x != NULL) {
                memcpy(to.x, from.x, (size_t)to.rows * (size_t)to.cols * sizeof *to.x);
            }
        }
    }
}

/* covariance x = sum_k p_k s (B_k - B)(A_k - A) of a site, means in double */
static void covariance(const bed *b, int site, double *x)
{
    static double ma[BED_SIDE * BED_SIDE], mb[BED_SIDE * BED_SIDE];

    memset(ma, 0, sizeof ma);
    memset(mb, 0, sizeof mb);
    memset(x, 0, sizeof ma);
    for (int i = 0; i < b->n; i++) {
        fl_mat a = fl_at(b->client[i], site, FL_A), c = fl_at(b->client[i], site, FL_B);

        for (int e = 0; e < a.rows * a.cols; e++) {
            ma[e] += b->p[i] * a.x[e];
        }
        for (int e = 0; e < c.rows * c.cols; e++) {
            mb[e] += b->p[i] * c.x[e];
        }
    }
    for (int i = 0; i < b->n; i++) {
        bed_add(b->p[i] * bed_scale(b, b->client[i], site), fl_at(b->client[i], site, FL_B), mb,
            fl_at(b->client[i], site, FL_A), ma, x);
    }
}

/* one client: every rule gives W + s B_1 A_1 */
static void one_client(void **state)
{
    static const char *const name[] = {"fedavg", "flora", "fedex_lora", "flexlora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;

        open_method(&b, name[i], "3", "1");
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        assert_true(b.p[0] == 1);
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
        bed_close(&b);
    }
}

/* the exact rules give W + T; FlexLoRA when its rank holds all of T */
static void exact_rules(void **state)
{
    static const char *const name[] = {"flora", "fedex_lora", "flexlora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;

        open_method(&b, name[i], "8", "3");
        bed_begin(&b, 1, NULL);
        keep_pairs(&b, 2); /* rank T <= 6 < 8 */
        bed_end(&b);
        assert_true(b.p[0] != b.p[1] && b.p[1] != b.p[2]); /* weights that could be mixed up */
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
        bed_begin(&b, 2, NULL); /* from a base and a server adapter that are not the first ones */
        keep_pairs(&b, i < 2 ? 8 : 2);
        bed_end(&b);
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
        bed_close(&b);
    }
}

static void exact_rules_unequal_ranks(void **state)
{
    static const char *const name[] = {"flora", "flexlora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;

        open_method(&b, name[i], "8", "4");
        bed_begin(&b, 1, (const int[]){1, 4, 2, 1});
        bed_end(&b);
        assert_int_equal(b.client[1]->space->rmax, 4);
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
        bed_close(&b);
    }
}

/* T - s B A of FedAvg is the covariance, of rank (K - 1) r at most; discordance is its share */
static void fedavg_error(void **state)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE], c[BED_SIDE * BED_SIDE];
    static double u[BED_SIDE * BED_SIDE], vt[BED_SIDE * BED_SIDE], sv[BED_SIDE];
    double error = 0, cov = 0, ideal = 0, grain = 0;
    enum { R = 3, K = 3 };
    bed b;

    (void)state;
    open_method(&b, "fedavg", "3", "3");
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];
        size_t n = (size_t)st->m * (size_t)st->n;

        if (b.rt->run.space->r[j] == 0) {
            continue;
        }
        bed_ideal(&b, j, t);
        bed_installed(&b, j, x, &grain);
        covariance(&b, j, c);
        cov += bed_norm2(n, c);
        ideal += bed_norm2(n, t);
        for (size_t i = 0; i < n; i++) {
            t[i] -= x[i];
            x[i] = t[i] - c[i];
        }
        error += bed_norm2(n, x);
        bed_ok(fl_svd(st->m, st->n, t, u, sv, vt));
        assert_true(sv[(K - 1) * R - 1] > 1e-2 * sv[0]);
        assert_below(sv[(K - 1) * R], 1e-6 * sv[0]);
    }
    assert_true(grain == 0 && cov > 0.1 * ideal);
    assert_below(sqrt(error), 1e-6 * sqrt(cov));
    assert_below(fabs(bed_discordance(&b) - sqrt(cov / ideal)), 1e-6 * sqrt(cov / ideal));
    bed_close(&b);
}

static void fedavg_exact_if_one_factor_is_common(void **state)
{
    (void)state;
    for (int f = FL_A; f <= FL_B; f++) {
        bed b;

        open_method(&b, "fedavg", "3", "4");
        bed_begin(&b, 1, NULL);
        make_common(&b, (fl_factor)f);
        bed_end(&b);
        bed_check_exact(&b);
        assert_below(bed_discordance(&b), 1e-6);
        bed_close(&b);
    }
}

/* one factor is common by construction: exact in every round */
static void one_factor_methods(void **state)
{
    static const char *const name[] = {"ffa_lora", "rolora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;

        open_method(&b, name[i], "3", "4");
        for (int t = 1; t <= 4; t++) {
            bed_begin(&b, t, NULL);
            bed_end(&b);
            bed_check_exact(&b);
            assert_below(bed_discordance(&b), 1e-6);
        }
        bed_close(&b);
    }
}

/* below rank T: the best approximation, so its error is what the singular values say */
static void flexlora_truncation(void **state)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE];
    static double u[BED_SIDE * BED_SIDE], vt[BED_SIDE * BED_SIDE], sv[BED_SIDE];
    double dropped = 0, all = 0, grain = 0;
    enum { R = 3 };
    bed b;

    (void)state;
    open_method(&b, "flexlora", "3", "4");
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];
        int k = FL_MIN(st->m, st->n);
        double tail = 0, error;

        if (b.rt->run.space->r[j] == 0) {
            continue;
        }
        bed_ideal(&b, j, t);
        bed_installed(&b, j, x, &grain);
        bed_ok(fl_svd(st->m, st->n, t, u, sv, vt));
        for (int i = 0; i < st->m * st->n; i++) {
            x[i] -= t[i];
        }
        error = bed_norm2((size_t)st->m * (size_t)st->n, x);
        tail = bed_norm2((size_t)(k - R), sv + R);
        assert_below(fabs(sqrt(error) - sqrt(tail)), 1e-6 * sv[0]);
        dropped += tail;
        all += bed_norm2((size_t)k, sv);
    }
    assert_true(grain == 0 && dropped > 0.05 * all);
    assert_below(fabs(bed_discordance(&b) - sqrt(dropped / all)), 1e-6);
    assert_below(fabs(bed_metric(&b, "discarded_energy") - dropped / all), 1e-12);
    bed_close(&b);
}

/* the adapter of a client of rank 4 is the first 4 pairs of that of rank 8: A as it is, s B the
 * same */
static void flexlora_nested(void **state)
{
    bed b;
    fl_adapter *got[2];
    const int r[2] = {4, 8};

    (void)state;
    open_method(&b, "flexlora", "8", "3");
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int i = 0; i < 2; i++) {
        fl_client c = {.id = i, .r = r[i]};
        fl_msg down = {.run = &b.rt->run, .client = &c};

        bed_ok(b.rt->method->download(&b.rt->run, &c, &down));
        assert_int_equal(down.n, 1);
        got[i] = down.part[0].ad;
        assert_int_equal(got[i]->space->rmax, r[i]);
    }
    for (int j = 0; j < b.rt->run.nsites; j++) {
        fl_mat a4 = fl_at(got[0], j, FL_A), a8 = fl_at(got[1], j, FL_A);
        fl_mat b4 = fl_at(got[0], j, FL_B), b8 = fl_at(got[1], j, FL_B);

        for (int e = 0; e < a4.rows * a4.cols; e++) {
            assert_true(a4.x[e] == a8.x[e]);
        }
        for (int e = 0; e < b4.rows * b4.cols; e++) {
            double s4 = b.deck->adapter.alpha / 4 * b4.x[e];
            double s8 = b.deck->adapter.alpha / 8 * b8.x[e / 4 * 8 + e % 4];

            assert_below(fabs(s4 - s8), 1e-6 * fabs(s8));
        }
        for (int e = 0; a8.x != NULL && e < 8; e++) { /* rows of A orthonormal */
            for (int f = 0; f <= e; f++) {
                double dot = 0;

                for (int i = 0; i < a8.cols; i++) {
                    dot += (double)a8.x[e * a8.cols + i] * a8.x[f * a8.cols + i];
                }
                assert_below(fabs(dot - (e == f)), 1e-6);
            }
        }
    }
    bed_close(&b);
}

/* nothing to correct: one client, or a common factor. The base keeps its bits. */
static void fedex_residual_zero(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        bed b;

        open_method(&b, "fedex_lora", "3", k == 0 ? "1" : "4");
        bed_begin(&b, 1, NULL);
        if (k > 0) {
            make_common(&b, k == 1 ? FL_A : FL_B);
        }
        bed_end(&b);
        assert_memory_equal(b.rt->base.share.x, b.w0, fl_model_bytes(&b.rt->base.model));
        bed_check_exact(&b);
        bed_close(&b);
    }
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(one_client), T(exact_rules), T(exact_rules_unequal_ranks),
        T(fedavg_error), T(fedavg_exact_if_one_factor_is_common), T(one_factor_methods),
        T(flexlora_truncation), T(flexlora_nested), T(fedex_residual_zero)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
