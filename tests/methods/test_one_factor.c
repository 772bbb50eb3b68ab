/* test_one_factor.c - FedSA-LoRA: both factors train, A travels, every client keeps its B. */
#include "method_run.h"

/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values and inner width 40 */
enum { R = 3, K = 3, ROOM = 4000 };
static const double sum_n = 2 * (24 + 24 + 24 + 40);

static size_t factor(const fl_adapter *ad, fl_factor f, fl_real *x)
{
    size_t n = 0;

    for (int i = 0; i < ad->space->nslots; i++) {
        const fl_slot *s = &ad->space->slot[i];
        size_t size = (size_t)s->rows * (size_t)s->cols;

        if (s->factor == f) {
            assert_true(n + size <= ROOM);
            memcpy(x + n, ad->v + s->at, size * sizeof *x);
            n += size;
        }
    }
    return n;
}

static bool same_factor(const fl_adapter *x, const fl_adapter *y, fl_factor f)
{
    static fl_real a[ROOM], b[ROOM];
    size_t n = factor(x, f, a);

    assert_int_equal(factor(y, f, b), n);
    return n > 0 && memcmp(a, b, n * sizeof *a) == 0;
}

/* what client id keeps, copied to out on every rank; false: nothing yet */
static bool kept_of(const bed *b, int id, fl_adapter *out)
{
    fl_runtime *rt = b->rt;
    int have = fl_store_mine(rt->store, -1, NULL, NULL, NULL);
    double *x = fl_alloc("kept", out->space->n + 1, sizeof *x);

    for (int i = 0; i < have; i++) {
        const void *blob;
        size_t bytes;
        int at;

        fl_store_mine(rt->store, i, &at, &blob, &bytes);
        if (at == id && bytes > 0) {
            fl_kept_list list = {0};

            bed_ok(kept_unpack(rt, blob, bytes, &list));
            fl_kept *k = kept_find(&list, "own", 0);

            assert_true(k != NULL && k->ad->space == out->space);
            for (size_t e = 0; e < out->space->n; e++) {
                x[e] = k->ad->v[e];
            }
            x[out->space->n] = 1;
            kept_free(&list);
        }
    }
    for (size_t e = 0; e <= out->space->n; e++) {
        x[e] = fl_total(test_ctx, x[e]);
    }
    for (size_t e = 0; e < out->space->n; e++) {
        out->v[e] = (fl_real)x[e];
    }
    bool found = x[out->space->n] > 0;

    fl_free(x);
    return found;
}

static bool all_zero(const fl_adapter *ad, fl_factor f)
{
    static fl_real x[ROOM];
    size_t n = factor(ad, f, x);
    bool zero = true;

    for (size_t i = 0; i < n; i++) {
        zero = zero && x[i] == 0;
    }
    return zero;
}

/* B is in no message and not at the server; every client that trained has its own, the others have
 * none */
static void b_is_private(void **state)
{
    enum { N = 6 };
    int seen[N] = {0}, some = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fedsa_lora", "partition.clients=6", "partition.kind=dirichlet",
            "run.rounds=8"));
    fl_adapter *own[N];

    for (int t = 1; t <= 2; t++) {
        bed_ok(round_run(b.rt, t));
        for (int i = 0; i < b.n; i++) {
            const fl_msg *sent = b.rt->sent[i];

            seen[b.rt->cohort[i]] = t;
            if (i >= b.rt->first[b.ctx->rank] && i < b.rt->first[b.ctx->rank + 1]) {
                assert_true(sent != NULL && sent->n == 1 && sent->nnumbers == 0);
                assert_true(sent->part[0].pick.factors == FL_BIT(FL_A));
                assert_true(all_zero(sent->part[0].ad, FL_B) && !all_zero(sent->part[0].ad, FL_A));
            }
        }
        assert_true(all_zero(b.rt->run.global, FL_B));
    }
    for (int id = 0; id < N; id++) {
        own[id] = fl_adapter_create(b.rt->run.space);
        assert_int_equal(kept_of(&b, id, own[id]), seen[id] > 0);
        assert_int_equal(all_zero(own[id], FL_B), seen[id] == 0);
        some += seen[id] == 0;
        for (int j = 0; j < id; j++) {
            assert_true((seen[id] == 0 && seen[j] == 0) || !same_factor(own[id], own[j], FL_B));
        }
    }
    assert_true(some > 0);
    for (int id = 0; id < N;
         id++) { /* evaluated: own B under the server's A, also after later rounds */
        fl_client c;
        fl_turn turn;
        fl_view v = {0};
        fl_text blob = {0};
        fl_kept_list list = {0};
        fl_kept k = {.name = "own", .ad = own[id]};

        list = (fl_kept_list){1, 1, &k};
        kept_pack(&list, b.rt, &blob);
        bed_ok(turn_enrol(
            b.rt, id, seen[id] > 0 ? blob.s : NULL, seen[id] > 0 ? blob.n : 0, &c, &turn));
        bed_ok(b.rt->method->view(&b.rt->run, &c, 0, &v));
        assert_true(v.name != NULL && v.stack.n == 1 && v.data.client == id);
        assert_true(same_factor(v.stack.ad[0], b.rt->run.global, FL_A) &&
                    same_factor(v.stack.ad[0], own[id], FL_B));
        turn_end(b.rt, &turn);
        fl_text_free(&blob);
    }
    fl_view v = {0};

    bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
    assert_true(v.name == NULL); /* the server has no model */
    for (int id = 0; id < N; id++) {
        fl_adapter_destroy(&own[id]);
    }
    bed_close(&b);
}

/* one client: FedAvg's only client, which is plain training; B is with the client instead of the
 * server */
static void one_client_is_local_training(void **state)
{
    bed b, c;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fedavg", "partition.clients=1", "cohort.size=1"));
    bed_open(
        &c, test_ctx, BED_SET("method.name=fedsa_lora", "partition.clients=1", "cohort.size=1"));
    bed_run(&b, 3);
    bed_run(&c, 3);
    fl_adapter *own = fl_adapter_create(c.rt->run.space);

    assert_true(kept_of(&c, 0, own));
    assert_true(same_factor(c.rt->run.global, b.rt->run.global, FL_A));
    assert_true(
        same_factor(own, b.rt->run.global, FL_A) && same_factor(own, b.rt->run.global, FL_B));
    fl_adapter_destroy(&own);
    bed_close(&b);
    bed_close(&c);
}

/* with a common B the mean of the products is B times the mean of A */
static void common_b_is_exact(void **state)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE];
    double gap = 0, ideal = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fedsa_lora", "partition.kind=dirichlet", "partition.alpha=0.7"));
    bed_begin(&b, 1, NULL);
    for (int i = 1; i < b.n; i++) {
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat from = fl_at(b.client[0], j, FL_B), to = fl_at(b.client[i], j, FL_B);

            if (to.x != NULL) {
                memcpy(to.x, from.x, (size_t)to.rows * (size_t)to.cols * sizeof *to.x);
            }
        }
    }
    b.rt->run.job.train[0].factors = FL_BIT(FL_A); /* what upload sends */
    bed_end(&b);
    assert_true(all_zero(b.rt->run.global, FL_B));
    for (int j = 0; j < b.rt->run.nsites; j++) {
        if (b.rt->run.space->r[j] == 0) {
            continue;
        }
        bed_ideal(&b, j, t);
        memset(x, 0, sizeof x);
        bed_add(bed_scale(&b, b.client[0], j), fl_at(b.client[0], j, FL_B), NULL,
            fl_at(b.rt->run.global, j, FL_A), NULL, x);
        for (size_t i = 0; i < FL_COUNT(x); i++) {
            gap += pow(x[i] - t[i], 2);
        }
        ideal += bed_norm2(FL_COUNT(t), t);
    }
    assert_true(ideal > 1);
    assert_below(sqrt(gap), 1e-6 * sqrt(ideal));
    bed_close(&b);
}

static void fedsa_traffic(void **state)
{
    const double a = K * 4 * R * sum_n, up[] = {a, a, a}, down[] = {K * 8, a, a};

    (void)state;
    bed_traffic("fedsa_lora", BED_SET("partition.clients=3", "train.steps=1"), 3, up, down);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {
        T(b_is_private), T(one_client_is_local_training), T(common_b_is_exact), T(fedsa_traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
