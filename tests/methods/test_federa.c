/* test_federa.c - FeDeRA: the factors start as the top of W, the base keeps the rest; and
 * adapter.init: svd, which is the same start for any method. */
#include "method_run.h"

enum { R = 3, K = 3 };
/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values and inner width 40 */
static const double sum_n = 2 * (24 + 24 + 24 + 40), sum_m = 2 * (24 + 12 + 40 + 24);

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

/* of one site: base + s B A is W, the base has the singular values that W has beyond r, the factors
 * share the others as said */
static void check_split(const bed *w, const bed *b, int site, bool left)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], u[BED_SIDE * BED_SIDE],
        vt[BED_SIDE * BED_SIDE];
    double all[BED_SIDE], rest[BED_SIDE], s = bed_scale(b, b->rt->run.global, site);
    const fl_site *st = &b->rt->base.model.site[site];
    size_t n = base_site(w, site, x);
    fl_mat fa = fl_at(b->rt->run.global, site, FL_A), fb = fl_at(b->rt->run.global, site, FL_B);
    int k = FL_MIN(st->m, st->n);

    bed_ok(fl_svd(st->m, st->n, x, u, all, vt));
    model_site(b, site, y);
    for (size_t i = 0; i < n; i++) {
        assert_below(fabs(x[i] - y[i]), 0x1p-24 * fabs(x[i]) + 0x1p-23 * all[0]);
    }
    base_site(b, site, y);
    bed_ok(fl_svd(st->m, st->n, y, u, rest, vt));
    for (int i = 0; i < k; i++) {
        assert_below(fabs(rest[i] - (i < k - fa.rows ? all[i + fa.rows] : 0)), 1e-6 * all[0]);
    }
    for (int i = 0; i < fa.rows; i++) {
        double a2 = 0, b2 = 0;

        for (int j = 0; j < fa.cols; j++) {
            a2 += pow(fa.x[i * fa.cols + j], 2);
        }
        for (int j = 0; j < fb.rows; j++) {
            b2 += pow(fb.x[j * fb.cols + i], 2);
        }
        assert_below(fabs(a2 - (left ? 1 : all[i] / s)), 1e-6 * a2);
        assert_below(fabs(b2 - (left ? pow(all[i] / s, 2) : all[i] / s)), 1e-6 * b2);
    }
}

static void federa_splits_w(void **state)
{
    static const struct {
        const char *split, *r, *alpha;
    } how[] = {
        {"balanced", "3", "6"}, {"left", "3", "6"}, {"balanced", "4", "1"}, {"left", "12", "30"}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(how); i++) {
        char split[64], r[32], alpha[32];
        bed w, b;

        snprintf(split, sizeof split, "federa.split=%s", how[i].split);
        snprintf(r, sizeof r, "adapter.r=%s", how[i].r);
        snprintf(alpha, sizeof alpha, "adapter.alpha=%s", how[i].alpha);
        bed_open(&w, test_ctx, BED_SET("method.name=fedavg", r, alpha));
        bed_open(&b, test_ctx, BED_SET("method.name=federa", r, alpha, split));
        for (int site = 0; site < b.rt->run.nsites; site++) {
            if (b.rt->run.space->r[site] > 0) {
                check_split(&w, &b, site, strcmp(how[i].split, "left") == 0);
            }
        }
        bed_close(&w);
        bed_close(&b);
    }
}

/* adapter.init: svd is the same start for any method, bit for bit */
static void svd_start_is_federa(void **state)
{
    static const char *const how[][2] = {
        {"method.name=federa", "adapter.init=kaiming"}, {"method.name=fedavg", "adapter.init=svd"}};
    uint64_t hash[2], base[2];
    bed b;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(how); i++) {
        bed_open(&b, test_ctx, BED_SET(how[i][0], how[i][1]));
        bed_run(&b, 2);
        hash[i] = bed_hash(&b);
        base[i] = fl_base_hash(test_ctx, &b.rt->base);
        bed_close(&b);
    }
    assert_true(hash[0] == hash[1] && base[0] == base[1]);
    bed_open(&b, test_ctx, BED_SET("method.name=fedavg"));
    assert_true(fl_base_hash(test_ctx, &b.rt->base) != base[0]);
    bed_close(&b);
}

/* methods that make factors of their own refuse it: W would miss the deck's */
static void svd_start_is_not_for_own_starts(void **state)
{
    static const char *const name[] = {"method.name=federa", "method.name=slora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(name); i++) {
        fl_deck *deck = bed_deck(BED_SET(name[i], "adapter.init=svd"));
        fl_options opt = {.out = bed_dir, .resume = "none", .versions = ""};
        fl_runtime *rt = fl_alloc("runtime", 1, sizeof *rt);

        assert_int_equal(setup_runtime(test_ctx, deck, &opt, rt), FL_EDECK);
        bed_says("use kaiming");
        fl_error_clear();
        setup_destroy(rt);
        fl_free(rt);
        fl_deck_destroy(&deck);
    }
}

/* clients that return what they got leave everything as it is; a round that does move is FedAvg's
 */
static void federa_averages(void **state)
{
    bed b;
    uint64_t hash, base;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=federa", "partition.kind=dirichlet", "partition.alpha=0.7"));
    bed_begin(&b, 1, NULL);
    hash = bed_hash(&b);
    base = fl_base_hash(test_ctx, &b.rt->base);
    for (int i = 0; i < b.n; i++) {
        fl_fit(b.client[i], b.rt->run.global);
    }
    bed_end(&b);
    assert_true(bed_hash(&b) == hash && fl_base_hash(test_ctx, &b.rt->base) == base);
    bed_begin(&b, 2, NULL);
    bed_end(&b);
    for (size_t i = 0; i < b.rt->run.space->n; i++) {
        double mean = 0;

        for (int k = 0; k < b.n; k++) {
            mean += b.p[k] * b.client[k]->v[i];
        }
        assert_below(fabs(b.rt->run.global->v[i] - mean), 0x1p-23 * fabs(mean) + 1e-12);
    }
    assert_true(fl_base_hash(test_ctx, &b.rt->base) == base);
    bed_close(&b);
}

/* ---- traffic: K clients in every round; the start costs nothing ---- */
static void traffic(void **state)
{
    const double both = 4 * R * (sum_n + sum_m), up[] = {K * both, K * both, K * both};
    const double down[] = {K * 8, K * both, K * both};

    (void)state;
    bed_traffic("federa", BED_SET("partition.clients=3", "train.steps=1"), 3, up, down);
    bed_traffic(
        "fedavg", BED_SET("partition.clients=3", "train.steps=1", "adapter.init=svd"), 3, up, down);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(federa_splits_w), T(svd_start_is_federa),
        T(svd_start_is_not_for_own_starts), T(federa_averages), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
