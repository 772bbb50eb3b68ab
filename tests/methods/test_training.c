/* test_training.c - rounds in which clients really train: against a plain loop, against a single
 * client, against other scalings; factors that must keep their bits; lost uploads. */
#include "method_test.h"

/* `records` copies of one sentence for each of `keys` clients */
static void write_same_data(int keys, int records)
{
    fl_text t = {0};
    char path[300];

    snprintf(path, sizeof path, "%s/same.jsonl", bed_dir);
    for (int k = 0; k < keys; k++) {
        for (int i = 0; i < records; i++) {
            fl_text_add(&t, "{\"user\": \"user-%d\", \"text\": \"round and round we go\"}\n", k);
        }
    }
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? fl_file_write(path, t.s, t.n) : FL_OK));
    fl_text_free(&t);
}

static void open_same_data(bed *b, int clients, const char *method, const char *what)
{
    char source[300], n[64], size[64];

    snprintf(source, sizeof source, "data.source=%s/same.jsonl", bed_dir);
    snprintf(n, sizeof n, "partition.clients=%d", clients);
    snprintf(size, sizeof size, "cohort.size=%d", clients);
    bed_open(b, test_ctx,
        BED_SET(source, n, size, method, what, "data.key=user", "data.valid=0", "data.test=0",
            "partition.kind=natural"));
    assert_int_equal(b->rt->run.nclients, clients);
}

/* ---- one client is plain training ---- */
typedef struct plain { /* a training loop without a federation */
    bed *b;
    fl_work *work;
    fl_batcher batcher;
    fl_pass pass;
    fl_optim optim;
    fl_real *x, *g; /* owned [n] */
    size_t n;
} plain;

static void plain_create(plain *p, bed *b, size_t n)
{
    const fl_deck_train *d = &b->deck->train;
    const fl_model *m = &b->rt->base.model;
    int length = b->deck->model.max_length;

    *p = (plain){.b = b, .n = n};
    p->work = fl_work_create(m, d->batch * length, d->batch, length, b->deck->adapter.r, true);
    fl_batcher_create(&p->batcher, d->batch, d->batch * length);
    fl_optim_create(
        &p->optim, d->optimizer, d->beta1, d->beta2, d->eps, d->weight_decay, d->momentum, n);
    p->x = fl_alloc("parameters", n, sizeof *p->x);
    p->g = fl_alloc("gradient", n, sizeof *p->g);
    p->pass = (fl_pass){.w = b->rt->base.w,
        .dropout = b->deck->adapter.dropout,
        .seed = b->deck->run.seed,
        .round = 1};
}

static void plain_train(plain *p)
{
    const fl_deck_train *d = &p->b->deck->train;
    const fl_partition *part = &p->b->rt->part;
    int64_t n = fl_partition_count(part, 0, FL_TRAIN);
    const fl_range all = {0, p->n};
    uint32_t sample[16];

    assert_true(d->batch <= (int)FL_COUNT(sample));
    for (int step = 0; step < d->steps; step++) {
        int targets, picked = fl_batch_pick(
                         p->pass.seed, 0, 1, 0, step, d->batch, n, part->list[FL_TRAIN], sample);

        fl_batch_fill(&p->batcher, &p->b->rt->data, picked, sample, p->b->deck->model.max_length);
        p->pass.step = step;
        fl_nn_grad(p->work, &p->pass, &p->batcher.batch, &targets);
        fl_clip(d->clip, 1, &all, p->g);
        fl_optim_step(&p->optim, d->lr * fl_schedule(d->schedule, d->warmup, step, d->steps), 1,
            &all, p->g, p->x);
    }
}

static void plain_destroy(plain *p)
{
    fl_optim_destroy(&p->optim);
    fl_batcher_destroy(&p->batcher);
    fl_work_destroy(&p->work);
    fl_free(p->x);
    fl_free(p->g);
}

static void one_client_is_plain_training(void **state)
{
    bed b;
    plain p;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("cohort.size=1", "partition.clients=1", "train.steps=7", "adapter.dropout=0.1",
            "train.schedule=cosine", "train.warmup=0.2", "train.clip=0.05"));
    const fl_space *sp = b.rt->run.space;

    plain_create(&p, &b, sp->n);
    fl_adapter x = {.space = sp, .v = p.x}, g = {.space = sp, .v = p.g};

    memcpy(p.x, b.rt->run.global->v, sp->n * sizeof *p.x);
    p.pass.n = 1;
    p.pass.ad[0] = &x;
    p.pass.coef[0] = 1;
    p.pass.grad[0] = &g;
    plain_train(&p);
    assert_false(memcmp(p.x, b.rt->run.global->v, sp->n * sizeof *p.x) == 0);
    bed_run(&b, 1);
    assert_memory_equal(b.rt->run.global->v, p.x, sp->n * sizeof *p.x);
    plain_destroy(&p);
    bed_close(&b);
}

/* train.what: full; the adapter is the difference to the base, so the sum is rounded once more */
static void one_client_is_plain_training_of_all_weights(void **state)
{
    bed b;
    plain p;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("cohort.size=1", "partition.clients=1", "train.what=full", "train.steps=6"));
    const fl_space *sp = b.rt->run.space;
    const fl_real **w = fl_alloc("weights", (size_t)sp->nslots, sizeof *w);
    fl_real **dw = fl_alloc("gradients", (size_t)sp->nslots, sizeof *dw);

    plain_create(&p, &b, sp->n);
    assert_int_equal(sp->nslots, b.rt->base.model.ntensors);
    assert_int_equal(sp->n, b.rt->base.model.nweights);
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];

        memcpy(p.x + s->at, b.rt->base.w[i], (size_t)s->rows * (size_t)s->cols * sizeof *p.x);
        w[i] = p.x + s->at;
        dw[i] = p.g + s->at;
    }
    p.pass.w = w;
    p.pass.dw = dw;
    plain_train(&p);
    bed_run(&b, 1);
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        double moved = 0;

        for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
            double base = b.rt->base.w[i][j], delta = b.rt->run.global->v[s->at + j];

            assert_below(fabs(base + delta - p.x[s->at + j]), 0x1p-24 * fabs(delta));
            moved += fabs(delta);
        }
        assert_true(moved > 0);
    }
    plain_destroy(&p);
    fl_free(w);
    fl_free(dw);
    bed_close(&b);
}

/* ---- clients with equal data are one client, bit for bit; the loss falls ---- */
static void equal_data_is_one_client(void **state)
{
    static const struct {
        const char *method, *what;
    } how[] = {{"method.name=fedavg", "train.what=lora"}, {"method.name=fedavg", "train.what=full"},
        {"method.name=ffa_lora", "train.what=lora"}, {"method.name=rolora", "train.what=lora"},
        {"method.name=fedex_lora", "train.what=lora"}};
    static const int count[] = {1, 3, 5};

    (void)state;
    write_same_data(5, 6);
    for (size_t i = 0; i < FL_COUNT(how); i++) {
        uint64_t one = 0, base = 0;

        for (size_t k = 0; k < FL_COUNT(count); k++) {
            bed b;
            double first;

            open_same_data(&b, count[k], how[i].method, how[i].what);
            bed_run(&b, 1);
            first = round_train_loss(b.rt);
            for (int t = 2; t <= 3; t++) {
                bed_ok(round_run(b.rt, t));
            }
            assert_true(round_train_loss(b.rt) < first);
            one = k == 0 ? bed_hash(&b) : one;
            base = k == 0 ? fl_base_hash(test_ctx, &b.rt->base) : base;
            assert_true(bed_hash(&b) == one);
            assert_true(fl_base_hash(test_ctx, &b.rt->base) == base);
            bed_close(&b);
        }
    }
}

/* ---- scale and learning rate ---- */

/* s B of every site, one after the other, after three rounds of FFA-LoRA by SGD */
static size_t ffa_trajectory(const char *alpha, const char *lr, double *x)
{
    size_t n = 0;
    bed b;

    bed_open(&b, test_ctx,
        BED_SET("method.name=ffa_lora", "adapter.r=4", alpha, lr, "train.optimizer=sgd",
            "train.momentum=0", "train.weight_decay=0", "train.clip=0"));
    for (int t = 1; t <= 3; t++) {
        bed_ok(round_run(b.rt, t));
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat f = fl_at(b.rt->run.global, j, FL_B);

            for (int i = 0; i < f.rows * f.cols; i++) {
                x[n++] = bed_scale(&b, b.rt->run.global, j) * f.x[i];
            }
        }
    }
    bed_close(&b);
    return n;
}

/* SGD on B alone sees s^2 lr only: (s, lr) and (c s, lr / c^2) walk the same way */
static void ffa_scale_is_learning_rate(void **state)
{
    enum { ROOM = 3 * 200 * 4 };
    static double x[ROOM], y[ROOM], z[ROOM];
    size_t n;
    double same = 0, other = 0;

    (void)state;
    n = ffa_trajectory("adapter.alpha=8", "train.lr=0.5", x);
    assert_int_equal(n, ROOM);
    assert_int_equal(ffa_trajectory("adapter.alpha=16", "train.lr=0.125", y), n);
    assert_int_equal(ffa_trajectory("adapter.alpha=16", "train.lr=0.25", z), n);
    for (size_t i = 0; i < n; i++) {
        same += pow(x[i] - y[i], 2);
        other += pow(x[i] - z[i], 2);
    }
    assert_true(bed_norm2(n, x) > 0);
    assert_below(sqrt(same), 1e-6 * sqrt(bed_norm2(n, x)));
    assert_true(other > 1e-2 * bed_norm2(n, x)); /* s lr alone is not it */
}

/* ---- factors that rest ---- */
enum { FACTOR_ROOM = 2000 };

/* all of factor f of the server's adapter; returns the number of elements */
static size_t copy_factor(const bed *b, fl_factor f, fl_real *x)
{
    size_t n = 0;

    for (int j = 0; j < b->rt->run.nsites; j++) {
        fl_mat m = fl_at(b->rt->run.global, j, f);

        for (int i = 0; i < m.rows * m.cols; i++) {
            assert_true(n < FACTOR_ROOM);
            x[n++] = m.x[i];
        }
    }
    return n;
}

static bool factor_rests(const bed *b, fl_factor f, const fl_real *before)
{
    fl_real now[FACTOR_ROOM];
    size_t n = copy_factor(b, f, now);

    assert_true(n > 0);
    return memcmp(now, before, n * sizeof *now) == 0;
}

static void rolora_alternates(void **state)
{
    fl_real a[FACTOR_ROOM], c[FACTOR_ROOM];
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=rolora"));
    for (int t = 1; t <= 4; t++) {
        copy_factor(&b, FL_A, a);
        copy_factor(&b, FL_B, c);
        bed_ok(round_run(b.rt, t));
        assert_int_equal(factor_rests(&b, FL_A, a), t % 2 == 1);
        assert_int_equal(factor_rests(&b, FL_B, c), t % 2 == 0);
        assert_below(bed_discordance(&b), 1e-6);
    }
    bed_close(&b);
}

static void ffa_keeps_a(void **state)
{
    fl_real a[FACTOR_ROOM], c[FACTOR_ROOM];
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=ffa_lora"));
    copy_factor(&b, FL_A, a);
    copy_factor(&b, FL_B, c);
    for (int t = 1; t <= 3; t++) {
        bed_ok(round_run(b.rt, t));
        assert_below(bed_discordance(&b), 1e-6);
    }
    assert_true(factor_rests(&b, FL_A, a) && !factor_rests(&b, FL_B, c));
    /* with A = 0 nothing ever trains */
    memset(b.rt->run.global->v, 0, b.rt->run.space->n * sizeof(fl_real));
    bed_ok(round_run(b.rt, 4));
    assert_true(fl_adapter_norm(b.rt->run.global) == 0);
    bed_close(&b);
}

/* after merging, fresh adapters add exactly nothing: the server's B is 0 for ever */
static void flora_merges(void **state)
{
    fl_real c[FACTOR_ROOM] = {0};
    bed b;
    uint64_t hash;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=flora"));
    for (int t = 1; t <= 3; t++) {
        hash = b.rt->base_hash;
        bed_ok(round_run(b.rt, t));
        assert_true(b.rt->base_hash != hash && b.rt->base_revision == t);
        assert_true(factor_rests(&b, FL_B, c));
        assert_below(bed_discordance(&b), 1e-6);
    }
    bed_close(&b);
}

/* ---- lost uploads ---- */
static void lost_uploads(void **state)
{
    enum { K = 8 };
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("cohort.size=8", "partition.clients=8", "clients.lost=0.5",
            "partition.kind=dirichlet"));
    fl_runtime *rt = b.rt;
    size_t n = rt->run.space->n;
    double *mean = fl_alloc("mean", n, sizeof *mean);
    int some = 0;

    for (int t = 1; t <= 3; t++) {
        double total = 0, sum = 0;
        int at = 0;

        bed_ok(round_run(rt, t));
        for (int id = 0; id < K; id++) {
            if (fl_rng_uniform(rt->run.seed, FL_RNG_LOSS, id, t, 0) < 0.5) {
                continue;
            }
            assert_true(at < rt->pile.n && rt->pile.item[at].client == id);
            sum += rt->pile.item[at++].p;
            total += (double)fl_partition_count(&rt->part, id, FL_TRAIN);
        }
        assert_int_equal(rt->pile.n, at);
        some += at > 1 && at < K;
        assert_below(fabs(sum - 1), 1e-15);
        memset(mean, 0, n * sizeof *mean);
        for (int i = 0; i < at; i++) {
            double have = (double)fl_partition_count(&rt->part, rt->pile.item[i].client, FL_TRAIN);

            for (size_t j = 0; rt->inbox.mine[i] != NULL && j < n; j++) {
                mean[j] += have / total * rt->inbox.mine[i]->v[j];
            }
        }
        for (size_t j = 0; j < n; j++) {
            mean[j] = fl_total(test_ctx, mean[j]);
            assert_below(fabs(rt->run.global->v[j] - mean[j]), 0x1p-24 * fabs(mean[j]) + 1e-16);
        }
    }
    assert_true(some > 0);
    fl_free(mean);
    uint64_t before = bed_hash(&b);

    b.deck->clients.lost = 1; /* beyond the deck's range: nobody arrives */
    bed_ok(round_run(rt, 4));
    assert_int_equal(rt->pile.n, 0);
    assert_true(bed_hash(&b) == before);
    assert_true(isfinite(round_train_loss(rt))); /* they did train */
    bed_close(&b);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(one_client_is_plain_training),
        T(one_client_is_plain_training_of_all_weights), T(equal_data_is_one_client),
        T(ffa_scale_is_learning_rate), T(rolora_alternates), T(ffa_keeps_a), T(flora_merges),
        T(lost_uploads)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
