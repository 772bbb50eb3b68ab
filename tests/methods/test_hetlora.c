/* test_hetlora.c - zero padding with weights by norm, the scale, the penalty on the tail and what
 * pruning gives up. */
#include "sparse_bed.h"

/* ---- hetlora: weights ---- */
/* || B_k A_k || of one site by plain loops */
static double product_norm(const bed *b, int k, int site)
{
    static double x[BED_SIDE * BED_SIDE];

    memset(x, 0, sizeof x);
    bed_add(1, fl_at(b->client[k], site, FL_B), NULL, fl_at(b->client[k], site, FL_A), NULL, x);
    return sqrt(bed_norm2(BED_SIDE * BED_SIDE, x));
}

static void check_padded(const bed *b, int site, const double *w)
{
    const fl_adapter *g = b->rt->run.global;

    for (int i = 0; i < g->space->nslots; i++) {
        for (size_t e = 0, at = g->space->slot[i].at; e < slot_size(&g->space->slot[i]); e++) {
            double sum = 0;
            bool has;

            for (int k = 0; k < K; k++) {
                sum += w[k] * held(b, k, i, e, &has);
            }
            if (g->space->slot[i].site == site) {
                assert_below(fabs(g->v[at + e] - sum), 1e-6 * fabs(sum) + 1e-7);
            }
        }
    }
}

static void check_weights(bool by_matrix, double all, double one)
{
    bed b;

    open_method(&b, "hetlora", by_matrix ? "hetlora.weights=matrix" : NULL, NULL);
    bed_begin(&b, 1, mixed);
    for (int k = 0; k < K; k++) { /* sizes apart; B_k times one constant must not matter */
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat x = fl_at(b.client[k], j, FL_B);

            for (int e = 0; e < x.rows * x.cols; e++) {
                x.x[e] *= (fl_real)(all * (k == 1 ? one : 1) * (1 + (j * 7 + k * 3) % 5));
            }
        }
    }
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        double w[K], z = 0;

        for (int k = 0; k < K; k++) {
            w[k] = 0;
            for (int l = 0; l < b.rt->run.nsites; l++) {
                w[k] += by_matrix && l != j ? 0 : product_norm(&b, k, l);
            }
            z += w[k];
        }
        for (int k = 0; k < K; k++) {
            w[k] /= z;
        }
        check_padded(&b, j, w);
    }
    bed_close(&b);
}

static void norm_weights(void **state)
{
    (void)state;
    for (int by_matrix = 0; by_matrix < 2; by_matrix++) {
        check_weights(by_matrix, 1, 1);
        check_weights(by_matrix, 16, 1);
        check_weights(by_matrix, 1, 2);
    }
}

/* equal ranks and equal norms: the plain mean. Norms are made equal by flipping signs of pairs */
static void equal_norms(void **state)
{
    double w[K];
    bed b;

    (void)state;
    open_method(&b, "hetlora", "hetlora.gamma=1", NULL);
    bed_begin(&b, 1, top);
    for (int k = 0; k < K; k++) {
        fl_fit(b.client[k], b.client[0]);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat a = fl_at(b.client[k], j, FL_A), c = fl_at(b.client[k], j, FL_B);

            for (int e = 0; e < a.rows * a.cols; e++) {
                a.x[e] *= (k >> e / a.cols & 1) ? -1 : 1;
            }
            for (int e = 0; e < c.rows * c.cols; e++) {
                c.x[e] *= (k >> e % c.cols & 1) ? -1 : 1;
            }
        }
        w[k] = 1.0 / K;
    }
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        check_padded(&b, j, w);
    }
    bed_close(&b);
}

/* nobody trained: all products are 0, and the deck's weights take over */
static void zero_norms(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "hetlora", NULL, NULL);
    bed_begin(&b, 1, mixed);
    for (int k = 0; k < K; k++) {
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat x = fl_at(b.client[k], j, FL_B);

            for (int e = 0; e < x.rows * x.cols; e++) {
                x.x[e] = 0;
            }
        }
    }
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        check_padded(&b, j, b.p);
    }
    bed_close(&b);
}

/* scale: absorb: clients train at s_k = alpha / r_k; cuts keep the product of their pairs, and the
 * server adds sqrt(s_k / s) times the factors */
static void absorbed_scale(void **state)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    bed b;

    (void)state;
    open_method(&b, "hetlora", "hetlora.weights=samples", "hetlora.scale=absorb");
    bed_begin(&b, 1, mixed);
    bed_end(&b);
    const fl_space *sp = b.rt->run.space;

    for (int k = 0; k < K; k++) { /* the factors as they are padded */
        for (size_t e = 0; e < b.client[k]->space->n; e++) {
            b.client[k]->v[e] = (fl_real)(b.client[k]->v[e] * sqrt(4.0 / mixed[k]));
        }
    }
    for (int j = 0; j < sp->nsites; j++) {
        check_padded(&b, j, b.p);
    }
    for (int r = 1; r <= 4; r++) {
        fl_client c = {.id = 0, .r = r};
        fl_msg down = {.run = &b.rt->run, .client = &c};
        fl_adapter *first = fl_adapter_create(fl_space_cut(&b.rt->run, sp, r));

        b.rt->method->setup(&b.rt->run);
        fl_keep(&b.rt->run, NULL, "r", 0, K, "", NULL)[0] = 0;
        fl_fit(first, b.rt->run.global);
        bed_ok(b.rt->method->download(&b.rt->run, &c, &down));
        assert_ptr_equal(down.part[0].ad->space, fl_space_at(&b.rt->run, sp, NULL, r));
        for (int j = 0; j < sp->nsites; j++) {
            size_t n = (size_t)sp->m[j] * (size_t)sp->n_in[j];

            if (sp->r[j] == 0) {
                continue;
            }
            fl_product(down.part[0].ad, j, 1, 0, x);
            fl_product(first, j, 1, 0, y);
            for (size_t e = 0; e < n; e++) {
                assert_below(fabs(x[e] - y[e]), 1e-6);
            }
        }
        fl_adapter_destroy(&first);
    }
    bed_close(&b);
}

/* FederatedScope's zero padding with the scale in the factors: its factors are at s = 1 */
static void official_absorb(void **state)
{
    fl_real count[4], r[4], alpha;
    uint64_t first[5] = {0};
    int ranks[4];
    char set[64];
    bed b;

    (void)state;
    golden_open("zero_padding_absorb");
    golden_read("client.n", 4, count);
    golden_read("client.r", 4, r);
    golden_read("alpha", 1, &alpha);
    snprintf(set, sizeof set, "adapter.alpha=%.9g", (double)alpha);
    bed_open(&b, test_ctx,
        BED_SET("method.name=hetlora", "hetlora.weights=samples", "hetlora.scale=absorb", set,
            "adapter.r=4", "adapter.targets=[up, down]", "partition.clients=4", "cohort.size=4"));
    for (int k = 0; k < 4; k++) {
        first[k + 1] = first[k] + (uint64_t)count[k];
        ranks[k] = (int)r[k];
    }
    b.rt->part.first[FL_TRAIN] = first;
    bed_begin(&b, 1, ranks);
    for (int k = 0; k < 4; k++) {
        char prefix[40];

        snprintf(prefix, sizeof prefix, "client%d", k);
        golden_adapter(&b, prefix, b.client[k]);
    }
    bed_end(&b);
    const fl_space *sp = b.rt->run.space;
    fl_adapter *out = fl_adapter_create(sp), *now = fl_adapter_create(sp);

    golden_adapter(&b, "out", out);
    for (size_t e = 0; e < sp->n; e++) {
        now->v[e] = (fl_real)(sqrt(alpha / 4) * b.rt->run.global->v[e]);
    }
    assert_same_adapter(now, out, 1e-6);
    fl_adapter_destroy(&out);
    fl_adapter_destroy(&now);
    bed_close(&b);
    fl_st_close(&golden);
}

/* ---- hetlora: the penalty and pruning ---- */
/* the step hook's loss, and its gradient if asked for, on ad */
static double penalty(bed *b, fl_adapter *ad, fl_adapter *grad)
{
    fl_run *run = &b->rt->run;
    fl_client c = {.id = 0, .r = 4};
    fl_job job = {.stack = {.n = 1, .ad = {ad}, .coef = {1}}};
    double loss = 0;
    fl_adapter *g = grad != NULL ? grad : fl_scratch_adapter(run, ad->space);

    bed_ok(b->rt->method->step(
        run, &c, &(fl_step){.when = FL_GRAD, .n = 1, .job = &job, .grad = {g}, .loss = &loss}));
    return loss;
}

static void penalty_gradient(void **state)
{
    const double h = 0x1p-7;
    int tail = 0;
    bed b;

    (void)state;
    open_method(&b, "hetlora", "hetlora.gamma=0.6", "hetlora.lambda=0.7");
    bed_begin(&b, 1, top);
    fl_adapter *x = b.client[0], *g = fl_scratch_adapter(&b.rt->run, x->space);

    penalty(&b, x, g);
    for (int i = 0; i < x->space->nslots; i++) {
        const fl_slot *s = &x->space->slot[i];

        for (size_t e = 0; e < slot_size(s); e += 13) {
            fl_real *p = &x->v[s->at + e], was = *p;
            fl_mark mark = fl_arena_mark(b.rt->round);

            *p = (fl_real)(was + h);
            double up = penalty(&b, x, NULL), width = *p;

            *p = (fl_real)(was - h);
            double down = penalty(&b, x, NULL);

            width -= *p;
            *p = was;
            fl_arena_reset(b.rt->round, mark);
            assert_below(fabs((up - down) / width - g->v[s->at + e]), 2e-4);
            if (pair_of(x->space, i, e) < 2) { /* t = floor(0.6 * 4) = 2 */
                assert_true(g->v[s->at + e] == 0);
            } else {
                tail += fabs(g->v[s->at + e]) > 1e-2;
            }
        }
    }
    assert_true(tail > 20);
    bed_close(&b);
}

static double pruned[K], kept[K], worst[K]; /* on the host's rank */

/* sum over sites of ||B[:, t:]|| ||A[t:, :]||, t = floor(gamma r) */
static double tail_of(const fl_adapter *ad, double gamma)
{
    double sum = 0;

    for (int j = 0; j < ad->space->nsites; j++) {
        fl_mat a = fl_at(ad, j, FL_A), b = fl_at(ad, j, FL_B);
        int t = (int)floor(gamma * a.rows + 1e-9);
        double aa = 0, bb = 0;

        for (int e = 0; e < a.rows * a.cols; e++) {
            aa += e / a.cols >= t ? (double)a.x[e] * a.x[e] : 0;
        }
        for (int e = 0; e < b.rows * b.cols; e++) {
            bb += e % b.cols >= t ? (double)b.x[e] * b.x[e] : 0;
        }
        sum += sqrt(aa * bb);
    }
    return sum;
}

/* hetlora's training, then the same training again without pruning */
static fl_err train_twice(fl_run *run, fl_client *c)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    fl_adapter *copy = fl_scratch_copy(run, c->ad[0]);
    fl_job job = fl_job_of(run, c);
    double before = tail_of(copy, 0.6);
    int r;

    FL_TRY(good->train(run, c));
    job.stack.ad[0] = copy;
    FL_TRY(fl_train(run, c, &job));
    r = c->ad[0]->space->rmax;
    pruned[c->id] += r < copy->space->rmax;
    kept[c->id] += r == copy->space->rmax && r > 3;
    bool shrank = copy->space->rmax > 3 && tail_of(copy, 0.6) < before;

    worst[c->id] += (r < copy->space->rmax) != shrank;
    for (int j = 0; j < run->nsites; j++) {
        fl_mat b = fl_at(copy, j, FL_B);

        for (int e = 0; e < b.rows * b.cols; e++) {
            b.x[e] = e % b.cols < r ? b.x[e] : 0;
        }
        memset(x, 0, sizeof x);
        memset(y, 0, sizeof y);
        if (copy->space->r[j] > 0) {
            fl_product(copy, j, 1, 0, x);
            fl_product(c->ad[0], j, 1, 0, y);
        }
        for (int e = 0; e < BED_SIDE * BED_SIDE; e++) {
            worst[c->id] = FL_MAX(worst[c->id], fabs(x[e] - y[e]));
        }
    }
    return FL_OK;
}

static void check_pruning(const char *scale, const char *decay, bool most)
{
    int before[K], after[K];
    double fell = 0, npruned = 0, nkept = 0;
    bed b;

    bed_open(&b, test_ctx,
        BED_SET("method.name=hetlora", "hetlora.gamma=0.6", "hetlora.r_min=3", scale, decay,
            "hetlora.lambda=0.01", "partition.clients=5", "cohort.size=5", "clients.r=[1, 4, 7]",
            "clients.r_share=[0.2, 0.4, 0.4]", "train.steps=3"));
    spy_on(&b);
    spy.train = train_twice;
    memset(pruned, 0, sizeof pruned);
    memset(kept, 0, sizeof kept);
    memset(worst, 0, sizeof worst);
    if (most) { /* else B = 0, from where tails grow */
        fill_global(&b);
    }
    for (int k = 0; k < K; k++) {
        before[k] = b.rt->client_r[k];
    }
    for (int t = 1; t <= 4; t++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        for (int k = 0; k < K; k++) { /* 7 -> 4 -> 3, 4 -> 3; 1 is below r_min and stays */
            int next = before[k] == 7 ? 4 : FL_MIN(before[k], 3);

            after[k] = rank_sent(&b, k);
            assert_true(after[k] == before[k] || after[k] == next);
            fell += after[k] < before[k];
            before[k] = after[k];
        }
    }
    fl_fill_in(test_ctx, K, pruned);
    fl_fill_in(test_ctx, K, kept);
    fl_fill_in(test_ctx, K, worst);
    for (int k = 0; k < K; k++) {
        assert_below(worst[k], 1e-6);
        npruned += pruned[k];
        nkept += kept[k];
    }
    assert_true(fell == npruned); /* the server knows */
    assert_true(most ? npruned >= 4 : nkept >= 4);
    bed_close(&b);
}

static void pruning(void **state)
{
    (void)state;
    check_pruning("hetlora.scale=common", "train.weight_decay=10", true);
    check_pruning("hetlora.scale=absorb", "train.weight_decay=10", true);
    check_pruning("hetlora.scale=common", "train.weight_decay=0", false);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(norm_weights), T(equal_norms), T(zero_norms),
        T(absorbed_scale), T(official_absorb), T(penalty_gradient), T(pruning)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
