/* test_unequal.c - clients of unequal rank whose pairs are averaged factor by factor: rbla,
 * replication, fedilora (the rules of hetlora are in test_hetlora.c); and what every method does to
 * a server's adapter that nobody trains. */
#include "unequal_bed.h"

/* ---- 18.1: redistribution without training ---- */
static fl_err rest(fl_run *run, fl_client *c)
{
    (void)run;
    (void)c;
    return FL_OK;
}

typedef enum drift_kind { ZERO_PADDED, SINGULAR, NONE } drift_kind;
typedef struct drift {
    const char *method, *set, *set2;
    drift_kind kind;
} drift;

static const drift drifts[] = {
    {"hetlora", "hetlora.weights=samples", NULL, ZERO_PADDED},
    {"hetlora", "hetlora.weights=samples", "hetlora.scale=absorb", ZERO_PADDED},
    {"flexlora", NULL, NULL, SINGULAR},
    {"rbla", NULL, NULL, NONE},
    {"replication", "replication.promote=false", NULL, NONE},
    {"replication", "replication.r_low=2", NULL, NONE},
    {"fedilora", NULL, NULL, NONE},
    {"fslora", "fslora.share=0.5", NULL, NONE},
    {"hafl", "hafl.share=0.5", NULL, NONE},
    {"hafl", "hafl.scheme=truncate", NULL, NONE},
    {"fed_plora", "fed_plora.share=0.5", NULL, NONE},
    {"dylora", NULL, NULL, NONE},
};

/* q_i: weight of the clients that have pair i, of the whole population */
static void holders(const bed *b, double *q)
{
    const fl_runtime *rt = b->rt;
    double all = 0;

    memset(q, 0, 4 * sizeof *q);
    for (int k = 0; k < K; k++) {
        double n = (double)fl_partition_count(&rt->part, k, FL_TRAIN);

        all += n;
        for (int i = 0; i < rt->client_r[k]; i++) {
            q[i] += n;
        }
    }
    for (int i = 0; i < 4; i++) {
        q[i] /= all;
    }
    assert_true(q[0] > q[1] && q[1] > q[2] && q[3] > 0.05); /* all three ranks are there */
}

static void norms_of_pairs(const fl_adapter *g, int site, double *x)
{
    fl_mat c = fl_at(g, site, FL_B);

    memset(x, 0, 4 * sizeof *x);
    for (int e = 0; e < c.rows * c.cols; e++) {
        x[e % c.cols] += (double)c.x[e] * c.x[e];
    }
}

static void check_singular(const bed *b, const fl_adapter *before, const double *q, int rounds)
{
    for (int j = 0; j < b->rt->run.nsites; j++) {
        double x[4], y[4];

        if (b->rt->run.space->r[j] == 0) {
            continue;
        }
        norms_of_pairs(before, j, x);
        norms_of_pairs(b->rt->run.global, j, y);
        for (int i = 0; i < 4; i++) {
            assert_below(fabs(sqrt(y[i] / x[i]) - pow(q[i], rounds)), 1e-5);
        }
    }
}

static void check_drift(const drift *d)
{
    enum { ROUNDS = 3 };
    double q[4];
    fl_adapter *before;
    fl_method still;
    bed b;

    open_method(&b, d->method, d->set, d->set2);
    still = *b.rt->method;
    still.train = rest;
    b.rt->method = &still;
    fill_global(&b);
    holders(&b, q);
    if (d->kind == SINGULAR) {
        bed_run(&b, 1); /* into singular vectors and values */
    }
    before = fl_adapter_create(b.rt->run.space);
    fl_fit(before, b.rt->run.global);
    for (int t = 2; t < 2 + ROUNDS; t++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        assert_int_equal(b.rt->pile.n, K);
    }
    if (d->kind == SINGULAR) {
        check_singular(&b, before, q, ROUNDS);
    }
    for (int i = 0; i < before->space->nslots && d->kind != SINGULAR; i++) {
        const fl_slot *s = &before->space->slot[i];

        for (size_t e = 0; e < slot_size(s); e++) {
            double f = d->kind == NONE ? 1 : pow(q[pair_of(before->space, i, e)], ROUNDS);
            double old = before->v[s->at + e];

            assert_below(fabs(b.rt->run.global->v[s->at + e] - f * old), 1e-6 * fabs(old));
        }
    }
    fl_adapter_destroy(&before);
    bed_close(&b);
}

static void redistribution(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(drifts); i++) {
        check_drift(&drifts[i]);
    }
}

/* ---- the rules on random adapters ---- */
/* one round by hand from a random server; keeps what the server had in *before */
static void aggregate(bed *b, const char *name, const char *set, const int *r, fl_adapter **before)
{
    open_method(b, name, set, NULL);
    fill_global(b);
    *before = fl_adapter_create(b->rt->run.space);
    fl_fit(*before, b->rt->run.global);
    bed_begin(b, 1, r);
    bed_end(b);
}

/* rbla's rule by plain loops */
static double mean_of_holders(const bed *b, int i, size_t e, double *weight)
{
    double sum = 0;

    *weight = 0;
    for (int k = 0; k < K; k++) {
        bool has;

        sum += b->p[k] * held(b, k, i, e, &has);
        *weight += has ? b->p[k] : 0;
    }
    return *weight > 0 ? sum / *weight : 0;
}

static void check_holders(const char *name, const char *set, const int *r)
{
    fl_adapter *before;
    bed b;

    aggregate(&b, name, set, r, &before);
    const fl_adapter *g = b.rt->run.global;

    for (int i = 0; i < g->space->nslots; i++) {
        for (size_t e = 0, at = g->space->slot[i].at; e < slot_size(&g->space->slot[i]); e++) {
            double weight, want = mean_of_holders(&b, i, e, &weight);

            if (weight > 0) {
                assert_below(fabs(g->v[at + e] - want), 1e-7 * fabs(want) + 1e-9);
            } else { /* nobody has the pair: its bits stay */
                assert_true(g->v[at + e] == before->v[at + e]);
            }
        }
    }
    fl_adapter_destroy(&before);
    bed_close(&b);
}

static void holders_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const int *r = i == 0 ? mixed : i == 1 ? two_levels : i == 2 ? top : low;

        check_holders("rbla", NULL, r);
        check_holders("fedilora", NULL, r);
        if (i > 0) { /* two levels at most, seen from the largest rank: the same rule */
            check_holders("replication", "replication.promote=false", i == 3 ? two_levels : r);
        }
    }
}

/* a pair that one client has is copied; pairs of all clients are FedAvg's mean */
static void single_holder(void **state)
{
    fl_adapter *before, *none;
    bed b, avg;

    (void)state;
    aggregate(&b, "rbla", NULL, mixed, &before);
    for (int i = 0; i < before->space->nslots; i++) {
        const fl_slot *s = &before->space->slot[i];

        for (size_t e = 0; e < slot_size(s); e++) {
            bool has;

            if (pair_of(before->space, i, e) >= 2) { /* only client 2 has pairs 3 and 4 */
                assert_true(b.rt->run.global->v[s->at + e] == (fl_real)held(&b, 2, i, e, &has));
            }
        }
    }
    fl_adapter_destroy(&before);
    bed_close(&b);
    aggregate(&b, "rbla", NULL, top, &before);
    aggregate(&avg, "fedavg", "clients.r=[4, 4, 4]", top, &none);
    for (size_t i = 0; i < before->space->n; i++) {
        assert_below(fabs((double)b.rt->run.global->v[i] - avg.rt->run.global->v[i]), 1e-7);
    }
    fl_adapter_destroy(&before);
    fl_adapter_destroy(&none);
    bed_close(&b);
    bed_close(&avg);
}

/* replication with three levels: what is missing is the mean of the clients of the largest rank */
static void replicated_rows(void **state)
{
    fl_adapter *before;
    bed b;
    int differs = 0;

    (void)state;
    aggregate(
        &b, "replication", "replication.promote=false", (const int[K]){2, 1, 4, 1, 4}, &before);
    const fl_adapter *g = b.rt->run.global;
    double high = b.p[2] + b.p[4];

    for (int i = 0; i < g->space->nslots; i++) {
        for (size_t e = 0, at = g->space->slot[i].at; e < slot_size(&g->space->slot[i]); e++) {
            bool has;
            double sum = 0, weight,
                   mean =
                       (b.p[2] * held(&b, 2, i, e, &has) + b.p[4] * held(&b, 4, i, e, &has)) / high;

            for (int k = 0; k < K; k++) {
                double x = held(&b, k, i, e, &has);

                sum += b.p[k] * (has ? x : mean);
            }
            assert_below(fabs(g->v[at + e] - sum), 1e-6 * fabs(sum) + 1e-8);
            differs += fabs(mean_of_holders(&b, i, e, &weight) - sum) > 1e-3;
        }
    }
    assert_true(differs > 100); /* which is not rbla's rule */
    assert_below(fabs(bed_metric(&b, "high_clients") - 2), 0);
    fl_adapter_destroy(&before);
    bed_close(&b);
}

/* without high participants the upper pairs keep their bits */
static void replication_without_high(void **state)
{
    fl_adapter *before;
    bed b;

    (void)state;
    aggregate(&b, "replication", "replication.promote=false", low, &before);
    for (int i = 0; i < before->space->nslots; i++) {
        const fl_slot *s = &before->space->slot[i];

        for (size_t e = 0; e < slot_size(s); e++) {
            bool upper = pair_of(before->space, i, e) >= 2;

            assert_true((b.rt->run.global->v[s->at + e] == before->v[s->at + e]) == upper);
        }
    }
    fl_adapter_destroy(&before);
    bed_close(&b);
}

/* ---- replication: who is promoted ---- */
static const fl_method *good;
static double said[N]; /* losses that were sent, on the rank that hosts the client; + 1 */

static fl_err listen(fl_run *run, fl_client *c, fl_msg *up)
{
    size_t n = 0;
    double loss, targets;

    FL_TRY(good->upload(run, c, up));
    const double *x = fl_get(up, "loss", &n);

    if (x != NULL) {
        fl_job job = fl_job_of(run, c);

        job.data.split = FL_VALID;
        FL_TRY(fl_loss(run, c, &job, &loss, &targets));
        FL_REQUIRE(n == 1 && x[0] == (double)(float)loss && targets > 0);
        said[c->id] = 1 + x[0];
    }
    return FL_OK;
}

/* four of six clients are heard of, the best two of them promoted, and nobody is asked again */
static void promotion(void **state)
{
    int heard = 0;
    fl_method spy;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=replication", "replication.r_low=2", "replication.share=0.4",
            "partition.clients=6", "cohort.size=4", "adapter.r=4"));
    good = b.rt->method;
    spy = *good;
    spy.upload = listen;
    b.rt->method = &spy;
    memset(said, 0, sizeof said);
    for (int k = 0; k < N; k++) {
        assert_int_equal(rank_sent(&b, k), 2);
    }
    bed_run(&b, 1);
    fl_fill_in(test_ctx, N, said);
    for (int k = 0; k < N; k++) {
        int better = 0;

        heard += said[k] > 0;
        for (int j = 0; j < N; j++) {
            better += said[j] > 0 && said[j] < said[k];
        }
        assert_int_equal(rank_sent(&b, k), said[k] > 0 && better < 2 ? 4 : 2);
    }
    assert_int_equal(heard, 4);
    memset(said, 0, sizeof said);
    for (int t = 2; t <= 4; t++) {
        double high = 0;

        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        for (int i = 0; i < 4; i++) {
            high += rank_sent(&b, b.rt->cohort[i]) == 4;
        }
        assert_true(bed_metric(&b, "high_clients") == high);
    }
    fl_fill_in(test_ctx, N, said);
    for (int k = 0; k < N; k++) {
        assert_true(said[k] == 0);
    }
    bed_close(&b);
}

/* ---- fedilora: editing ---- */
static double edited[K], wrong[K];

static double cosine(fl_mat x, fl_mat y)
{
    double xy = 0, xx = 0, yy = 0;

    for (int i = 0; i < x.rows * x.cols; i++) {
        xy += (double)x.x[i] * y.x[i];
        xx += (double)x.x[i] * x.x[i];
        yy += (double)y.x[i] * y.x[i];
    }
    return xy / sqrt(xx * yy);
}

/* fedilora's training, then the same training again without editing */
static fl_err train_and_compare(fl_run *run, fl_client *c)
{
    fl_adapter *plain = fl_scratch_copy(run, c->ad[0]);
    fl_job job = fl_job_of(run, c);
    double least_kept = 2, most_edited = -2;

    FL_TRY(good->train(run, c));
    job.stack.ad[0] = plain;
    FL_TRY(fl_train(run, c, &job));
    for (int i = 0; i < plain->space->nslots; i++) {
        const fl_slot *s = &plain->space->slot[i];
        fl_mat own = fl_at(plain, s->site, s->factor), got = fl_at(c->got[0], s->site, s->factor),
               now = fl_at(c->ad[0], s->site, s->factor);
        bool same = memcmp(own.x, now.x, slot_size(s) * sizeof *own.x) == 0;
        double cos = s->factor == FL_A ? cosine(own, got) : 2;

        edited[c->id] += !same;
        wrong[c->id] += !same && s->factor != FL_A;
        least_kept = same ? FL_MIN(least_kept, cos) : least_kept;
        most_edited = same ? most_edited : FL_MAX(most_edited, cos);
        for (size_t e = 0; e < slot_size(s) && !same; e++) {
            double want = (1 - cos) * got.x[e] + cos * own.x[e];

            wrong[c->id] += fabs(now.x[e] - want) > 1e-6 * fabs(want) + 1e-8;
        }
    }
    wrong[c->id] += most_edited > least_kept;
    return FL_OK;
}

static void editing(void **state)
{
    fl_method spy;
    bed b;

    (void)state;
    open_method(&b, "fedilora", "fedilora.edit=3", "train.lr=0.1");
    good = b.rt->method;
    spy = *good;
    spy.train = train_and_compare;
    b.rt->method = &spy;
    for (int t = 1; t <= 3; t++) {
        memset(edited, 0, sizeof edited);
        memset(wrong, 0, sizeof wrong);
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        fl_fill_in(test_ctx, K, edited);
        fl_fill_in(test_ctx, K, wrong);
        for (int k = 0; k < K; k++) {
            assert_true(edited[k] == (t == 1 ? 0 : 3));
            assert_true(wrong[k] == 0);
        }
    }
    bed_close(&b);
}

static const char *const unequal[] = {"partition.kind=dirichlet", "partition.alpha=0.7",
    "partition.clients=5", "cohort.size=5", "clients.r=[1, 2, 4]",
    "clients.r_share=[0.4, 0.3, 0.3]"};
#define UNEQUAL unequal[0], unequal[1], unequal[2], unequal[3], unequal[4], unequal[5]

/* without editing the server's model is rbla's; the clients' own are not the server's */
static void fedilora_without_editing(void **state)
{
    double x[2][8], mean[2][8];

    (void)state;
    for (int i = 0; i < 2; i++) {
        bed_federation(test_ctx, i == 0 ? "rbla" : "fedilora",
            BED_SET(i == 0 ? "method.name=rbla" : "method.name=fedilora", UNEQUAL, "run.rounds=3",
                "fedilora.edit=0", "eval.per_client=true", "train.lr=0.03"));
        const char *name = i == 0 ? "rbla" : "fedilora";

        assert_int_equal(bed_column(name, "eval_loss", 8, x[i]), 4);
        assert_int_equal(bed_column(name, "eval_metric_clients_mean", 8, mean[i]), 4);
    }
    assert_true(x[0][3] == x[1][3] && x[0][3] < x[0][0]);
    assert_true(mean[0][0] == mean[1][0] && mean[0][3] != mean[1][3]);
}

/* ---- traffic: 4 r_k (m + n) each way; the start comes from the seed ---- */
static double ranks_of_all(const char *method)
{
    double sum = 0;
    bed b;

    bed_open(&b, test_ctx, BED_SET(method, UNEQUAL));
    for (int k = 0; k < K; k++) {
        sum += b.rt->client_r[k];
    }
    bed_close(&b);
    return sum;
}

static void traffic(void **state)
{
    double r = ranks_of_all("method.name=rbla"), all = 4 * r * mn, rank = 4 * K;
    double up[3] = {all, all, all}, down[3] = {8 * K, all, all};

    (void)state;
    bed_traffic("rbla", BED_SET(UNEQUAL), 3, up, down);
    bed_traffic("fedilora", BED_SET(UNEQUAL), 3, up, down);
    bed_traffic("hetlora", BED_SET(UNEQUAL, "hetlora.gamma=1"), 3,
        (double[]){all + rank, all + rank, all + rank}, down);
    /* replication: five clients of rank 2, from the second round on one of them of rank 4; each
     * sends its loss once */
    double start = 4 * 2 * K * mn, later = 4 * (2 * K + 2) * mn;

    bed_traffic("replication",
        BED_SET("partition.clients=5", "cohort.size=5", "adapter.r=4", "replication.r_low=2",
            "replication.share=0.2"),
        3, (double[]){start + 4 * K, later, later}, (double[]){8 * K, later, later});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(redistribution), T(holders_rule), T(single_holder),
        T(replicated_rows), T(replication_without_high), T(promotion), T(editing),
        T(fedilora_without_editing), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
