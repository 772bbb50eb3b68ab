/* test_slora.c - SLoRA's two stages: nothing off the mask ever moves, stage 1 is masked training,
 * the hand-over is the best approximation of what it changed, and the second stage is FedAvg on the
 * base as it was loaded. */
#include "method_run.h"

enum { R = 3, K = 3 };
static const double sum_n = 2 * (24 + 24 + 24 + 40), sum_m = 2 * (24 + 12 + 40 + 24),
                    sum_mn = 2 * (24 * 24 + 12 * 24 + 2 * 40 * 24);

static fl_adapter *change_of(const bed *b)
{
    fl_kept *k = kept_find(&b->rt->server, "change", 0);

    return k != NULL ? k->ad : NULL;
}

/* which elements of D train, as the plan of this round said */
static bool in_mask(const bed *b, size_t i)
{
    return fl_bit(b->rt->run.job.train[0].elems, i);
}

/* elements of D that belong to adapted matrices; rows of others may lie in the same tensors */
static bool *adapted(const bed *b, const fl_space *dense)
{
    bool *is = fl_alloc("adapted", dense->n, sizeof *is);
    fl_adapter whole = {.space = dense};
    fl_real *v = fl_alloc("whole", dense->n, sizeof *v);

    whole.v = v;
    for (int j = 0; j < b->rt->run.nsites; j++) {
        const fl_site *st = &b->rt->base.model.site[j];
        int tensor, row0;

        fl_model_site_tensor(&b->rt->base.model, j, &tensor, &row0);
        fl_mat w = fl_at(&whole, tensor, FL_DENSE);

        for (int i = 0; b->rt->run.space->r[j] > 0 && i < st->m * st->n; i++) {
            is[(size_t)(w.x - v) + (size_t)row0 * (size_t)st->n + (size_t)i] = true;
        }
    }
    fl_free(v);
    return is;
}

/* x (m x n) = D at a site */
static size_t change_site(const bed *b, const fl_adapter *change, int site, double *x)
{
    const fl_site *st = &b->rt->base.model.site[site];
    int tensor, row0;
    size_t n = (size_t)st->m * (size_t)st->n;

    fl_model_site_tensor(&b->rt->base.model, site, &tensor, &row0);
    for (size_t i = 0; i < n; i++) {
        x[i] = fl_at(change, tensor, FL_DENSE).x[(size_t)row0 * (size_t)st->n + i];
    }
    return n;
}

/* ---- stage 1 ---- */
static void off_mask_nothing_moves(void **state)
{
    uint64_t mask = 0;
    double size = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=slora", "slora.density=0.2", "slora.sparse_rounds=3",
            "train.weight_decay=0.1"));
    uint64_t base = fl_base_hash(test_ctx, &b.rt->base), global = bed_hash(&b);
    fl_adapter *d = change_of(&b);
    bool *is = adapted(&b, d->space);

    for (int t = 1; t <= 3; t++) {
        double picked = 0, moved = 0;

        bed_ok(round_run(b.rt, t));
        uint64_t now =
            fl_hash(b.rt->run.job.train[0].elems, d->space->n / 64 * sizeof(uint64_t), 0);

        assert_true(t == 1 || now == mask); /* one mask for all rounds */
        mask = now;
        for (size_t i = 0; i < d->space->n; i++) {
            assert_true(!in_mask(&b, i) || is[i]);
            assert_true(in_mask(&b, i) || d->v[i] == 0);
            picked += in_mask(&b, i);
            moved += d->v[i] != 0;
        }
        assert_below(fabs(picked - 0.2 * sum_mn), 5 * sqrt(0.16 * sum_mn));
        assert_true(moved > 0.95 * picked);
        assert_true(fl_adapter_norm(d) > size);
        size = fl_adapter_norm(d);
        for (int i = 0; i < b.rt->pile.n; i++) { /* nor did it travel */
            const fl_adapter *ad = b.rt->inbox.mine[i];

            for (size_t e = 0; ad != NULL && e < ad->space->n; e++) {
                assert_true(in_mask(&b, e) || ad->v[e] == 0);
            }
        }
    }
    fl_view v = {0};

    bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
    assert_true(v.name != NULL && v.stack.n == 1 && v.stack.ad[0] == d);
    assert_true(fl_base_hash(test_ctx, &b.rt->base) == base && bed_hash(&b) == global);
    fl_free(is);
    bed_close(&b);
}

/* one client: D is what AdamW on the masked gradient of those matrices does, moments off the mask
 * never written */
static void stage_one_is_masked_training(void **state)
{
    bed b;
    int targets;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=slora", "slora.density=0.3", "slora.sparse_lr=0.5",
            "partition.clients=1", "cohort.size=1", "train.steps=6", "train.clip=0",
            "train.weight_decay=0"));
    bed_ok(round_run(b.rt, 1));
    const fl_deck_train *t = &b.deck->train;
    const fl_model *m = &b.rt->base.model;
    const fl_adapter *d = change_of(&b);
    size_t n = d->space->n, ntensors = (size_t)m->ntensors;
    int length = b.deck->model.max_length;
    fl_real *x = fl_alloc("weights", n, sizeof *x), *g = fl_alloc("gradient", n, sizeof *g);
    const fl_real **w = fl_alloc("tensors", ntensors, sizeof *w);
    fl_real **dw = fl_alloc("gradients", ntensors, sizeof *dw);
    fl_work *work = fl_work_create(m, t->batch * length, t->batch, length, 0, true);
    fl_batcher batcher;
    fl_optim optim;
    uint32_t sample[16];
    double moved = 0;

    memcpy(w, b.rt->base.w, ntensors * sizeof *w);
    for (int i = 0; i < d->space->nslots; i++) {
        const fl_slot *s = &d->space->slot[i];

        memcpy(x + s->at, b.rt->base.w[s->site], (size_t)s->rows * (size_t)s->cols * sizeof *x);
        w[s->site] = x + s->at;
        dw[s->site] = g + s->at;
    }
    fl_batcher_create(&batcher, t->batch, t->batch * length);
    fl_optim_create(&optim, t->optimizer, t->beta1, t->beta2, t->eps, 0, t->momentum, n);
    fl_pass pass = {.w = w, .dw = dw, .seed = b.deck->run.seed, .round = 1};

    for (int step = 0; step < t->steps; step++) {
        int picked = fl_batch_pick(pass.seed, 0, 1, 0, step, t->batch,
            fl_partition_count(&b.rt->part, 0, FL_TRAIN), b.rt->part.list[FL_TRAIN], sample);

        fl_batch_fill(&batcher, &b.rt->data, picked, sample, length);
        pass.step = step;
        fl_nn_grad(work, &pass, &batcher.batch, &targets);
        for (size_t i = 0; i < n; i++) {
            g[i] = in_mask(&b, i) ? g[i] : 0;
        }
        fl_optim_step(&optim, 0.5 * t->lr * fl_schedule(t->schedule, t->warmup, step, t->steps), 1,
            &(fl_range){0, n}, g, x);
    }
    for (int i = 0; i < d->space->nslots; i++) {
        const fl_slot *s = &d->space->slot[i];

        for (size_t e = s->at; e < s->at + (size_t)s->rows * (size_t)s->cols; e++) {
            assert_below(fabs((double)b.rt->base.w[s->site][e - s->at] + d->v[e] - x[e]),
                0x1p-24 * fabs(d->v[e]));
            moved += d->v[e] != 0;
        }
    }
    assert_true(moved > 0.25 * sum_mn);
    fl_optim_destroy(&optim);
    fl_batcher_destroy(&batcher);
    fl_work_destroy(&work);
    fl_free(w);
    fl_free(dw);
    fl_free(x);
    fl_free(g);
    bed_close(&b);
}

/* ---- the switch ---- */
/* two rounds of stage 1, then the plan of round 3; D as it was in *before (owned by the caller) */
static void open_switched(bed *b, const char *r, const char *split, fl_adapter **before)
{
    bed_open(b, test_ctx,
        BED_SET("method.name=slora", "slora.density=0.3", "slora.sparse_rounds=2",
            "adapter.targets=[v, up, down]", r, split));
    bed_run(b, 2);
    *before = fl_adapter_create(change_of(b)->space);
    memcpy((*before)->v, change_of(b)->v, (*before)->space->n * sizeof(fl_real));
    bed_begin(b, 3, NULL);
}

static void hand_over(void **state)
{
    static const char *const how[][2] = {{"adapter.r=3", "slora.split=left"},
        {"adapter.r=3", "slora.split=balanced"}, {"adapter.r=12", "slora.split=left"}};
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], u[BED_SIDE * BED_SIDE],
        vt[BED_SIDE * BED_SIDE];

    (void)state;
    for (size_t h = 0; h < FL_COUNT(how); h++) {
        double sv[BED_SIDE], lost = 0, all = 0;
        fl_adapter *before;
        bed b;

        open_switched(&b, how[h][0], how[h][1], &before);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            const fl_site *st = &b.rt->base.model.site[j];
            int k = FL_MIN(st->m, st->n), r = b.rt->run.space->r[j];

            if (r == 0) {
                continue;
            }
            size_t n = change_site(&b, before, j, x);

            bed_ok(fl_svd(st->m, st->n, x, u, sv, vt));
            fl_product(b.rt->run.global, j, 1, 0, y);
            for (size_t i = 0; i < n; i++) {
                y[i] -= x[i];
            }
            double tail = bed_norm2((size_t)(k - r), sv + r);

            assert_true(sv[0] > 1e-3);
            assert_below(
                fabs(sqrt(bed_norm2(n, y)) - sqrt(tail)), 1e-6 * sv[0]); /* r = k: lossless */
            fl_mat a = fl_at(b.rt->run.global, j, FL_A);

            for (int i = 0; i < r; i++) { /* all of S in B, or half of it */
                double a2 = 0;

                for (int e = 0; e < a.cols; e++) {
                    a2 += pow(a.x[i * a.cols + e], 2);
                }
                assert_below(fabs(a2 - (h == 1 ? sv[i] / bed_scale(&b, b.rt->run.global, j) : 1)),
                    1e-6 * fmax(a2, 1));
            }
            lost += tail;
            all += bed_norm2((size_t)k, sv);
        }
        assert_true(h == 2 || lost > 0.05 * all);
        assert_below(fabs(bed_metric(&b, "discarded_energy") - lost / all), 1e-6);
        assert_true(
            fl_adapter_norm(change_of(&b)) == 0 && b.rt->base_revision == 0); /* W_0 again */
        assert_true(b.rt->run.job.train[0].elems == NULL);
        fl_view v = {0};

        bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
        assert_ptr_equal(v.stack.ad[0], b.rt->run.global);
        bed_end(&b); /* and from here on FedAvg */
        for (size_t i = 0; i < b.rt->run.space->n; i++) {
            double mean = 0;

            for (int k = 0; k < b.n; k++) {
                mean += b.p[k] * b.client[k]->v[i];
            }
            assert_below(fabs(b.rt->run.global->v[i] - mean), 0x1p-23 * fabs(mean) + 1e-12);
        }
        fl_adapter_destroy(&before);
        bed_close(&b);
    }
}

/* without a first stage, or with one that changed nothing, it is FedAvg from its start, bit for bit
 */
static void nothing_to_hand_over(void **state)
{
    static const char *const split[] = {"slora.split=left", "slora.split=balanced"};
    uint64_t start, second;
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fedavg"));
    start = bed_hash(&b);
    bed_run(&b, 3);
    second = bed_hash(&b);
    bed_close(&b);
    bed_open(&b, test_ctx, BED_SET("method.name=slora", "slora.sparse_rounds=0"));
    bed_run(&b, 3);
    assert_true(bed_hash(&b) == second);
    bed_close(&b);
    for (int i = 0; i < 2; i++) {
        bed_open(&b, test_ctx,
            BED_SET("method.name=slora", "slora.sparse_rounds=2", "slora.density=1e-6", split[i]));
        bed_run(&b, 2);
        assert_true(fl_adapter_norm(change_of(&b)) == 0);
        bed_begin(&b, 3, NULL);
        assert_true(bed_hash(&b) == start && bed_metric(&b, "discarded_energy") == 0);
        bed_close(&b);
    }
}

/* ---- traffic: three clients in every round, stage 1 in rounds 1 and 2 ---- */
static void traffic(void **state)
{
    const double both = 4 * R * (sum_n + sum_m);
    double nnz = 0;
    bed b;

    (void)state;
    bed_open(
        &b, test_ctx, BED_SET("method.name=slora", "slora.density=0.1", "partition.clients=3"));
    bed_begin(&b, 1, NULL);
    for (size_t i = 0; i < change_of(&b)->space->n; i++) {
        nnz += in_mask(&b, i);
    }
    bed_close(&b);
    assert_true(nnz > 0.05 * sum_mn && nnz < 0.15 * sum_mn);
    const double up[] = {K * 4 * nnz, K * 4 * nnz, K * both, K * both},
                 down[] = {K * 8, K * 4 * nnz, K * both, K * both};

    bed_traffic("slora",
        BED_SET(
            "slora.density=0.1", "slora.sparse_rounds=2", "partition.clients=3", "train.steps=1"),
        4, up, down);
}

/* codecs with feedback keep what they lost for each client; at the switch that begins anew */
static void codecs_across_the_switch(void **state)
{
    static const char *const how[][2] = {
        {"codec.up=topk", "codec.down=none"}, {"codec.up=quantise", "codec.down=quantise"}};

    (void)state;
    for (int i = 0; i < 2; i++) {
        double eval[6];

        bed_federation(test_ctx, how[i][0],
            BED_SET("method.name=slora", "slora.sparse_rounds=2", "slora.density=0.2",
                "run.rounds=4", "eval.every=1", "codec.density=0.25", how[i][0], how[i][1]));
        assert_int_equal(bed_column(how[i][0], "eval_loss", 6, eval), 5);
        for (int t = 1; t <= 4; t++) {
            assert_true(isfinite(eval[t]) && eval[t] < eval[0]);
        }
    }
}

/* OUT/adapter is the server's model, or there is none: a sparse change is no adapter */
static void adapter_is_written_after_the_switch(void **state)
{
    static const char *const rounds[] = {"run.rounds=2", "run.rounds=3"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        char path[300];

        bed_federation(test_ctx, rounds[i],
            BED_SET("method.name=slora", "slora.sparse_rounds=2", "train.steps=1", rounds[i]));
        snprintf(path, sizeof path, "%s/%s/adapter", bed_dir, rounds[i]);
        assert_int_equal(
            test_ctx->rank != 0 || access(path, R_OK) == 0, test_ctx->rank != 0 || i == 1);
    }
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(off_mask_nothing_moves), T(stage_one_is_masked_training),
        T(hand_over), T(nothing_to_hand_over), T(traffic), T(codecs_across_the_switch),
        T(adapter_is_written_after_the_switch)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
