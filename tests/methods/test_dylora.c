/* test_dylora.c - a random prefix of the pairs at every step: what the step hook makes of adapter,
 * scale and gradient, against the official layer and by itself. */
#include "sparse_bed.h"

/* columns of B that are not all zero, which must be the first ones */
static int prefix_of(const fl_adapter *ad)
{
    int site = 0, b = 0;

    while (ad->space->r[site] == 0) {
        site++;
    }
    fl_mat x = fl_at(ad, site, FL_B);

    for (int i = 0; i < x.rows * x.cols; i++) {
        b = x.x[i] != 0 ? FL_MAX(b, i % x.cols + 1) : b;
    }
    return b;
}

/* ---- the official layer ---- */
typedef struct layer { /* y = W x + coef s B A x of one site */
    fl_real w[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE], gy[BED_SIDE * BED_SIDE];
    int m, n;
} layer;

enum { ROWS = 3 };

static void read_layer(const bed *b, int j, layer *la)
{
    const fl_site *st =
        &b->rt->base.model.site[fl_model_site_named(&b->rt->base.model, 0, golden_site[j])];

    la->m = st->m;
    la->n = st->n;
    golden_read(golden_name("before.site%d.W", j), (size_t)(la->m * la->n), la->w);
    golden_read(golden_name("x.site%d", j), (size_t)(ROWS * la->n), la->x);
    golden_read(golden_name("gy.site%d", j), (size_t)(ROWS * la->m), la->gy);
}

/* x (W + coef s B A)' against b*.y */
static void check_output(const bed *b, int rank, const fl_adapter *ad, double coef)
{
    for (int j = 0; j < 2; j++) {
        static double delta[BED_SIDE * BED_SIDE];
        static fl_real want[BED_SIDE * BED_SIDE];
        static layer la;
        int site = fl_model_site_named(&b->rt->base.model, 0, golden_site[j]);

        read_layer(b, j, &la);
        golden_read(golden_name("b%d.y.site%d", rank, j), (size_t)(ROWS * la.m), want);
        fl_product(ad, site, coef, 0, delta);
        for (int i = 0; i < ROWS * la.m; i++) {
            double y = 0;

            for (int l = 0; l < la.n; l++) {
                int at = i % la.m * la.n + l;

                y += la.x[i / la.m * la.n + l] * (la.w[at] + delta[at]);
            }
            assert_below(fabs(y - want[i]), 1e-5);
        }
    }
}

/* dL/dA = coef s B' gy' x, dL/dB = coef s gy' x A' of the adapter in force, as backpropagation
 * gives them, into grad */
static void backward(const bed *b, const fl_adapter *ad, double coef, fl_adapter *grad)
{
    for (int j = 0; j < 2; j++) {
        static layer la;
        int site = fl_model_site_named(&b->rt->base.model, 0, golden_site[j]);
        fl_mat a = fl_at(ad, site, FL_A), c = fl_at(ad, site, FL_B);
        fl_mat ga = fl_at(grad, site, FL_A), gc = fl_at(grad, site, FL_B);

        read_layer(b, j, &la);
        memset(ga.x, 0, (size_t)(ga.rows * ga.cols) * sizeof *ga.x);
        memset(gc.x, 0, (size_t)(gc.rows * gc.cols) * sizeof *gc.x);
        for (int e = 0; e < ROWS * la.m * la.n; e++) {
            int row = e / (la.m * la.n), i = e / la.n % la.m, l = e % la.n;
            double g = coef * ad->space->scale[site] * la.gy[row * la.m + i] * la.x[row * la.n + l];

            for (int k = 0; k < a.rows; k++) {
                ga.x[k * a.cols + l] += (fl_real)(g * c.x[i * c.cols + k]);
                gc.x[i * c.cols + k] += (fl_real)(g * a.x[k * a.cols + l]);
            }
        }
    }
}

static void check_layer(const char *frozen, const char *which)
{
    bool seen[5] = {0};
    fl_real alpha;
    char set[64];
    bed b;

    golden_open("dylora");
    golden_read("alpha", 1, &alpha);
    snprintf(set, sizeof set, "adapter.alpha=%.9g", (double)alpha);
    bed_open(&b, test_ctx,
        BED_SET("method.name=dylora", frozen, set, "adapter.r=4", "adapter.targets=[up, down]"));
    fl_run *run = &b.rt->run;
    fl_adapter *ad = fl_scratch_adapter(run, run->space),
               *grad = fl_scratch_adapter(run, ad->space),
               *want = fl_scratch_adapter(run, ad->space), *full;
    struct { /* what the method's train hook hands to its step hook */
        int b;
        fl_adapter *full;
    } memory = {0, fl_scratch_adapter(run, ad->space)};
    fl_client c = {.id = 1, .r = 4};
    fl_job job = {.stack = {.n = 1, .ad = {ad}, .coef = {1}}, .arg = &memory};
    fl_step s = {.n = 40, .job = &job, .grad = {grad}};

    golden_adapter(&b, "global", ad);
    full = fl_scratch_copy(run, ad);
    for (s.i = 0; s.i < s.n; s.i++) {
        s.when = FL_BEFORE;
        bed_ok(b.rt->method->step(run, &c, &s));
        int rank = prefix_of(ad);

        assert_true(rank >= 1 && rank <= 4);
        if (rank != 3) { /* the file has 1, 2, 4 */
            check_output(&b, rank, ad, job.stack.coef[0]);
        }
        seen[rank] = true;
        backward(&b, ad, job.stack.coef[0], grad);
        s.when = FL_GRAD;
        bed_ok(b.rt->method->step(run, &c, &s));
        if (rank == 2) {
            char prefix[40];

            snprintf(prefix, sizeof prefix, "b2.%s.grad", which);
            golden_adapter(&b, prefix, want);
            assert_same_adapter(grad, want, 1e-5);
        }
        s.when = FL_AFTER;
        bed_ok(b.rt->method->step(run, &c, &s));
        assert_memory_equal(ad->v, full->v, ad->space->n * sizeof *ad->v); /* nobody moved it */
    }
    assert_true(seen[1] && seen[2] && seen[3] && seen[4]);
    bed_close(&b);
    fl_st_close(&golden);
}

static void official_layer(void **state)
{
    (void)state;
    check_layer("dylora.frozen=false", "all");
    check_layer("dylora.frozen=true", "frozen");
}

/* ---- real training: a step moves the pairs of its prefix, or the last of them, and no other ----
 */
static bool only_last;
static double wrong[N], steps[N], seen_b[N][5];
static fl_real before[8192];

static fl_err watch(fl_run *run, fl_client *c, fl_step *s)
{
    fl_adapter *ad = s->job->stack.ad[0];
    const fl_space *sp = ad->space;
    static int b;

    FL_REQUIRE(sp->n <= FL_COUNT(before));
    if (s->when == FL_BEFORE) {
        memcpy(before, ad->v, sp->n * sizeof *before);
    }
    FL_TRY(good->step(run, c, s));
    if (s->when == FL_BEFORE) {
        b = prefix_of(ad);
        seen_b[c->id][b]++;
        /* alpha / b, whatever the scale of the client's rank */
        wrong[c->id] += fabs(s->job->stack.coef[0] * sp->scale[0] - 6.0 / b) > 1e-12;
    }
    for (int i = 0; i < sp->nslots && s->when == FL_AFTER; i++) {
        for (size_t e = 0; e < slot_size(&sp->slot[i]); e++) {
            int pair = pair_of(sp, i, e);
            bool trained = pair < b && (!only_last || pair == b - 1),
                 same = ad->v[sp->slot[i].at + e] == before[sp->slot[i].at + e];

            wrong[c->id] += !trained && !same;
            steps[c->id] += trained && !same;
        }
    }
    return FL_OK;
}

static void untrained_pairs_stay(void **state)
{
    (void)state;
    for (int last = 0; last < 2; last++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=dylora", "partition.clients=5", "cohort.size=5",
                "clients.r=[1, 2, 4]", "clients.r_share=[0.4, 0.3, 0.3]", "train.steps=12",
                "train.weight_decay=0.5", last ? "dylora.frozen=true" : "dylora.frozen=false",
                "adapter.targets=[q, k, v, o, up, down]"));
        spy_on(&b);
        spy.step = watch;
        only_last = last;
        fill_global(&b);
        memset(wrong, 0, sizeof wrong);
        memset(steps, 0, sizeof steps);
        memset(seen_b, 0, sizeof seen_b);
        one_round(&b, 1);
        fl_fill_in(test_ctx, N, wrong);
        fl_fill_in(test_ctx, N, steps);
        fl_fill_in(test_ctx, N * 5, &seen_b[0][0]);
        for (int k = 0; k < K; k++) {
            assert_true(wrong[k] == 0 && steps[k] > 1000);
            for (int i = 1; i <= 4; i++) { /* 12 draws: every prefix of the client's, no other */
                assert_true((seen_b[k][i] > 0) == (i <= b.rt->client_r[k]));
            }
        }
        bed_close(&b);
    }
}

/* always all pairs: LoRA at that rank */
static void whole_prefix(void **state)
{
    (void)state;
    check_fedavg("method.name=dylora", "dylora.lowest=100", "run.name=a", "cohort.weights=samples");
}

/* what a client reports at rank b is the loss of the server's first b pairs at alpha / b */
static fl_err check_report(fl_run *run, fl_client *c, fl_msg *up)
{
    static const int rank[] = {2, 1, 4};
    size_t n = 0;

    FL_TRY(good->upload(run, c, up));
    const double *x = fl_get(up, "losses", &n);

    FL_REQUIRE(x != NULL && n == 6);
    for (int i = 0; i < 3; i++) {
        fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, rank[i]));
        fl_job job = fl_job_of(run, c);
        double loss, targets;

        fl_fit(cut, run->global);
        job.stack.ad[0] = cut;
        job.data.split = FL_VALID;
        FL_TRY(fl_loss(run, c, &job, &loss, &targets));
        if (rank[i] > c->r) { /* which it does not have */
            wrong[c->id] += x[2 * i + 1] != 0;
        } else {
            wrong[c->id] += !(fabs(x[2 * i] - loss) < 1e-5) || x[2 * i + 1] != targets;
            steps[c->id] += targets > 0;
        }
    }
    return FL_OK;
}

static void reported_prefixes(void **state)
{
    double all = 0;
    bed b;

    (void)state;
    open_method(&b, "dylora", "dylora.report=[2, 1, 4]", NULL);
    spy_on(&b);
    spy.upload = check_report;
    fill_global(&b);
    memset(wrong, 0, sizeof wrong);
    memset(steps, 0, sizeof steps);
    one_round(&b, 1);
    fl_fill_in(test_ctx, N, wrong);
    fl_fill_in(test_ctx, N, steps);
    for (int k = 0; k < K; k++) {
        assert_true(wrong[k] == 0);
        all += steps[k];
    }
    assert_true(all >= 5);
    bed_close(&b);
}

/* the column of the largest rank is the loss of the server's model on all validation data */
static void reported_ranks(void **state)
{
    double whole[8], first[8], eval[8];

    (void)state;
    bed_federation(test_ctx, "report",
        BED_SET("method.name=dylora", "dylora.report=[4, 1]", "adapter.r=4", "run.rounds=4",
            "partition.clients=4", "cohort.size=4", "eval.every=1", "eval.max_samples=1000",
            "train.lr=0.03"));
    assert_int_equal(bed_column("report", "valid_loss_r4", 8, whole), 5);
    assert_int_equal(bed_column("report", "valid_loss_r1", 8, first), 5);
    assert_int_equal(bed_column("report", "eval_loss", 8, eval), 5);
    for (int t = 1; t <= 4; t++) {
        assert_below(fabs(whole[t] - eval[t - 1]), 1e-6 * eval[t - 1]);
        assert_true(t == 1 ? first[t] == whole[t] : fabs(first[t] - whole[t]) > 1e-5);
    }
}

static void traffic(void **state)
{
    double own = 4 * sum_budgets("dylora", 1) * mn;

    (void)state;
    bed_traffic("dylora", BED_SET(UNEQUAL), 2, (double[]){own, own}, (double[]){8 * K, own});
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    bed_traffic("dylora", BED_SET(UNEQUAL, "dylora.report=[1, 4]"), 2,
        (double[]){own + 16 * K, own + 16 * K}, (double[]){8 * K, own});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(official_layer), T(untrained_pairs_stay), T(whole_prefix),
        T(reported_prefixes), T(reported_ranks), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
