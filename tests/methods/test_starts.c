/* test_starts.c - where a round starts from: Re-Initial (a new draw) and Local-Initial (one
 * client's factors), against plain sums and SVDs in double, and against each other. */
#include "method_run.h"

enum { R = 3, K = 3 };
/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values and inner width 40 */
static const double sum_n = 2 * (24 + 24 + 24 + 40), sum_m = 2 * (24 + 12 + 40 + 24);
static const char *const weighted[] = {"partition.kind=dirichlet", "partition.alpha=0.7"};

static void open_with(bed *b, const char *method, const char *one, const char *two)
{
    char name[64];

    snprintf(name, sizeof name, "method.name=%s", method);
    bed_open(b, test_ctx, BED_SET(name, weighted[0], weighted[1], one, two));
}

/* x (m x n) = the site of the base as it is now, in double; returns m n */
static size_t base_site(const bed *b, int site, double *x)
{
    const fl_site *st = &b->rt->base.model.site[site];
    int tensor, row0;
    size_t n = (size_t)st->m * (size_t)st->n;

    fl_model_site_tensor(&b->rt->base.model, site, &tensor, &row0);
    for (size_t i = 0; i < n; i++) {
        x[i] = b->rt->base.w[tensor][(size_t)row0 * (size_t)st->n + i];
    }
    return n;
}

static size_t model_site(const bed *b, int site, double *x)
{
    size_t n = base_site(b, site, x);

    fl_product(b->rt->run.global, site, 1, 1, x);
    return n;
}

/* ---- the three starts of LoRA-FAIR's study ---- */
/* by factors all three install W + s B A, B and A the means */
static void starts_give_one_function(void **state)
{
    static double x[BED_SITES][BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    static const char *const name[] = {"fedavg", "re_initial", "local_initial"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;
        double gap = 0, size = 0, grain = 0;

        open_with(
            &b, name[i], "re_initial.aggregation=factors", "local_initial.aggregation=factors");
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            memset(y, 0, sizeof y);
            bed_installed(&b, j, y, &grain);
            if (i == 0) {
                memcpy(x[j], y, sizeof y);
            }
            size += bed_norm2(FL_COUNT(y), y);
            for (size_t e = 0; e < FL_COUNT(y); e++) {
                gap += pow(x[j][e] - y[e], 2);
            }
        }
        assert_true(size > 1 && (grain > 0) == (i > 0));
        assert_below(
            sqrt(gap), 1e-6 * sqrt(size) + 2 * sqrt(grain)); /* merged in two steps at most */
        bed_close(&b);
    }
}

/* by product both install the mean of the products, round after round */
static void product_is_exact(void **state)
{
    static const char *const name[] = {"re_initial", "local_initial"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        bed b;

        open_with(&b, name[i], NULL, NULL);
        for (int t = 1; t <= 3; t++) {
            bed_begin(&b, t, NULL);
            bed_end(&b);
            assert_true(b.p[0] != b.p[1] && b.p[1] != b.p[2]);
            bed_gap g = bed_measure(&b);

            assert_true(g.ideal > 1);
            assert_below(g.gap, 1e-6 * g.ideal + 2 * g.grain);
            assert_below(bed_discordance(&b), 1e-6);
        }
        bed_close(&b);
    }
    bed b;

    open_with(&b, "re_initial", "adapter.r=8", NULL);
    bed_begin(&b, 1, (const int[]){1, 4, 8});
    bed_end(&b);
    bed_check_exact(&b);
    bed_close(&b);
}

static void re_initial_draws(void **state)
{
    enum { T = 4 };
    uint64_t seen[T + 1];
    bed b;

    (void)state;
    open_with(&b, "re_initial", NULL, NULL);
    seen[0] = bed_hash(&b);
    for (int t = 1; t <= T; t++) {
        double sum2 = 0, n = 0;

        bed_ok(round_run(b.rt, t));
        seen[t] = bed_hash(&b);
        assert_true(fl_same_everywhere(test_ctx, seen[t]) && b.rt->base_revision == t);
        for (int u = 0; u < t; u++) {
            assert_true(seen[u] != seen[t]);
        }
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat fa = fl_at(b.rt->run.global, j, FL_A), fb = fl_at(b.rt->run.global, j, FL_B);

            for (int i = 0; i < fb.rows * fb.cols; i++) {
                assert_true(fb.x[i] == 0);
            }
            for (int i = 0; i < fa.rows * fa.cols; i++, n++) {
                assert_below(fabs(fa.x[i]) * sqrt(fa.cols), 1 + 1e-6);
                sum2 += pow(fa.x[i], 2) * fa.cols;
            }
        }
        assert_below(fabs(sum2 / n - 1.0 / 3), 0.05); /* uniform on +-1/sqrt(n): variance 1/(3n) */
    }
    bed_close(&b);
    /* factors of unequal rank have no mean */
    bed_open(&b, test_ctx,
        BED_SET("method.name=re_initial", "re_initial.aggregation=factors", "clients.r=[1, 3]",
            "clients.r_share=[0.5, 0.5]"));
    fl_client c = {.id = 0, .r = 1};

    assert_int_equal(b.rt->method->enroll(&b.rt->run, &c), FL_EDECK);
    bed_says("use product");
    fl_error_clear();
    c.r = 3;
    bed_ok(b.rt->method->enroll(&b.rt->run, &c));
    bed_close(&b);
}

/* rank(W_T - W_0): T K r by products, T r by factors */
static void re_initial_rank(void **state)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], u[BED_SIDE * BED_SIDE],
        vt[BED_SIDE * BED_SIDE];

    (void)state;
    for (int factors = 0; factors < 2; factors++) {
        double sv[BED_SIDE];
        int most = factors ? 2 : 2 * K;
        bed w, b;

        open_with(&w, "fedavg", NULL, NULL);
        open_with(
            &b, "re_initial", "adapter.r=1", factors ? "re_initial.aggregation=factors" : NULL);
        for (int t = 1; t <= 2; t++) {
            bed_begin(&b, t, NULL);
            bed_end(&b);
        }
        for (int j = 0; j < b.rt->run.nsites; j++) {
            const fl_site *st = &b.rt->base.model.site[j];

            if (b.rt->run.space->r[j] > 0) {
                size_t n = base_site(&b, j, x);

                base_site(&w, j, y);
                for (size_t i = 0; i < n; i++) {
                    x[i] -= y[i];
                }
                bed_ok(fl_svd(st->m, st->n, x, u, sv, vt));
                assert_true(sv[most - 1] > 1e-3 * sv[0]);
                assert_below(sv[most], 1e-6 * sv[0]);
            }
        }
        bed_close(&w);
        bed_close(&b);
    }
}

/* the start is one client's factors, bit for bit; over the rounds every client's turn comes */
static void local_initial_chooses(void **state)
{
    int chosen[BED_CLIENTS] = {0};
    bed b;

    (void)state;
    open_with(&b, "local_initial", "local_initial.fold_residual=false", NULL);
    uint64_t base = fl_base_hash(test_ctx, &b.rt->base);

    for (int t = 1; t <= 16; t++) {
        bed_begin(&b, t % 8 + 1, NULL); /* the ledger has rounds 1 .. 8 */
        b.rt->run.round.t = t;
        b.lost[0] = t > 12;
        bed_end(&b);
        int c = (int)bed_metric(&b, "start_client");

        assert_true(c >= 0 && c < K && !b.lost[c]);
        assert_memory_equal(
            b.rt->run.global->v, b.client[c]->v, b.rt->run.space->n * sizeof(fl_real));
        chosen[c]++;
    }
    for (int i = 0; i < K; i++) {
        assert_true(chosen[i] > 1);
    }
    assert_true(fl_base_hash(test_ctx, &b.rt->base) == base);
    bed_close(&b);
}

/* one client: Avg and Local are the same run, Re the same function after one round */
static void one_client(void **state)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    static const char *const name[] = {"fedavg", "local_initial", "re_initial"};
    bed b[3];

    (void)state;
    for (int i = 0; i < 3; i++) {
        char method[64];

        snprintf(method, sizeof method, "method.name=%s", name[i]);
        bed_open(&b[i], test_ctx, BED_SET(method, "partition.clients=1", "cohort.size=1"));
        bed_run(&b[i], 1);
    }
    for (int j = 0; j < b[0].rt->run.nsites; j++) {
        size_t n = model_site(&b[0], j, x);

        model_site(&b[2], j, y);
        for (size_t i = 0; i < n; i++) {
            assert_below(fabs(x[i] - y[i]), 0x1p-23 * fabs(x[i]) + 1e-9);
        }
    }
    for (int i = 0; i < 2; i++) {
        bed_ok(round_run(b[i].rt, 2));
        bed_ok(round_run(b[i].rt, 3));
    }
    assert_true(bed_hash(&b[0]) == bed_hash(&b[1]));
    assert_true(b[1].rt->base_revision == 0);
    for (int i = 0; i < 3; i++) {
        bed_close(&b[i]);
    }
}

/* ---- traffic: K clients that take part in every round ---- */
/* bytes down in rounds 1 .. 3: the seed, then the same each time */
static const double *downs(double each)
{
    static double x[3];

    x[0] = K * 8;
    x[1] = x[2] = K * each;
    return x;
}

static void fresh_folder(void)
{
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
}

static void traffic(void **state)
{
    const double both = 4 * R * (sum_n + sum_m), seed = 8, up[] = {K * both, K * both, K * both};
#define SETS(set) BED_SET("partition.clients=3", "train.steps=1", set)

    (void)state;
    bed_traffic("re_initial", SETS("run.name=product"), 3, up, downs(K * both + seed));
    bed_traffic("local_initial", SETS("run.name=product"), 3, up, downs(both + (K - 1) * both));
    fresh_folder();
    bed_traffic("re_initial", SETS("re_initial.aggregation=factors"), 3, up, downs(both + seed));
    bed_traffic(
        "local_initial", SETS("local_initial.aggregation=factors"), 3, up, downs(both + both));
    fresh_folder();
    bed_traffic("local_initial", SETS("local_initial.fold_residual=false"), 3, up, downs(both));
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(starts_give_one_function), T(product_is_exact),
        T(re_initial_draws), T(re_initial_rank), T(local_initial_chooses), T(one_client),
        T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
