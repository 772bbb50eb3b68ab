/* test_sparse.c - clients that train and send only some pairs of the server's adapter: fslora,
 * fed_plora, hafl. (flasc is in test_flasc.c, dylora in test_dylora.c.) */
#include "sparse_bed.h"

/* ---- the verbs that they share ---- */
/* the k largest by sorting: how many are larger, or equal with a lower index */
static void largest(void **state)
{
    enum { M = 300 };
    double x[M];
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fslora"));
    for (int kind = 0; kind < 4; kind++) { /* few ties, many ties, all equal, falling */
        for (int i = 0; i < M; i++) {
            double u = bed_normal(3, kind, (uint64_t)i);

            x[i] = kind == 0 ? u : kind == 1 ? floor(u) : kind == 2 ? 1 : -i;
        }
        for (size_t k = 0; k <= M; k += k < 5 ? 1 : 59) {
            uint64_t *bits = fl_bits(&b.rt->run, M + 70);
            size_t n = 0;

            fl_top(&b.rt->run, M, x, k, bits, 67);
            for (size_t i = 0; i < M + 70; i++) {
                size_t before = 0;

                for (size_t j = 0; i >= 67 && i < 67 + M && j < M; j++) {
                    before += x[j] > x[i - 67] || (x[j] == x[i - 67] && j < i - 67);
                }
                assert_true(fl_bit(bits, i) == (i >= 67 && i < 67 + M && before < k));
                n += fl_bit(bits, i);
            }
            assert_int_equal(n, k);
        }
    }
    bed_close(&b);
}

/* random pairs: as many as asked for at every site, each equally often, E[S] = identity */
static void random_pairs(void **state)
{
    enum { DRAWS = 3000, KEEP = 3 };
    double often[64] = {0};
    int alike = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fslora", "adapter.r=7"));
    const fl_space *sp = b.rt->run.space;
    int all = fl_pair_first(sp, sp->nsites);

    assert_true(all <= 64);
    for (int t = 0; t < DRAWS; t++) {
        fl_mark mark = fl_arena_mark(b.rt->round);
        const uint64_t *own = fl_random_pairs(&b.rt->run, 0, sp, t % 7, t, KEEP, true),
                       *one = fl_random_pairs(&b.rt->run, 0, sp, t % 7, t, KEEP, false);

        for (int j = 0, n = 0, m = 0; j < sp->nsites; j++, n = m = 0) {
            for (int i = 0, at = fl_pair_first(sp, j); i < sp->r[j]; i++, at++) {
                n += fl_bit(own, (size_t)at);
                m += fl_bit(one, (size_t)at);
                often[at] += fl_bit(own, (size_t)at);
                assert_true(fl_bit(one, (size_t)at) == fl_bit(one, (size_t)i));
            }
            assert_true(sp->r[j] == 0 || (n == KEEP && m == KEEP));
        }
        alike += own[0] == one[0];
        fl_arena_reset(b.rt->round, mark);
    }
    for (int i = 0; i < all; i++) { /* (r / k) P(i in I) = 1, five standard deviations */
        assert_below(fabs(7.0 / KEEP * often[i] / DRAWS - 1), 5 * sqrt((7.0 / KEEP - 1) / DRAWS));
    }
    assert_true(alike < DRAWS / 100);
    bed_close(&b);
}

/* ---- training by decree: every element that the client holds moves by delta_of ---- */
static double fslora_share;
static bool fslora_each;

/* fslora's client holds the pairs of I only, in their order */
static fl_err move_sketch(fl_run *run, fl_client *c)
{
    const fl_space *sp = run->space;
    const uint64_t *pairs =
        fl_random_pairs(run, 0, sp, c->id, run->round.t, budget(fslora_share, c->r), fslora_each);

    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        fl_mat x = fl_at(c->ad[0], s->site, s->factor);
        int k = 0;

        for (int pair = 0; pair < sp->r[s->site]; pair++) {
            if (!fl_bit(pairs, (size_t)(fl_pair_first(sp, s->site) + pair))) {
                continue;
            }
            for (int l = 0; l < (s->factor == FL_A ? s->cols : s->rows); l++) {
                size_t e =
                    s->at + (size_t)(s->factor == FL_A ? pair * s->cols + l : l * s->cols + pair);
                size_t at = (size_t)(s->factor == FL_A ? k * x.cols + l : l * x.cols + k);

                FL_REQUIRE(x.x[at] == run->global->v[e]); /* what was sent is the server's */
                x.x[at] += (fl_real)delta_of(c->id, e);
            }
            k++;
        }
        FL_REQUIRE(k == (s->factor == FL_A ? x.rows : x.cols));
    }
    return FL_OK;
}

/* B <- B + (1/N) sum dB_i, A alike; the others of the round's N count with 0 */
static void check_fslora(const char *share, bool each, bool adam)
{
    int untouched = 0;
    fl_adapter *before;
    bed b;

    bed_open(&b, test_ctx,
        BED_SET("method.name=fslora", "partition.clients=5", "cohort.size=5", "clients.r=[1, 2, 4]",
            "clients.r_share=[0.4, 0.3, 0.3]", "cohort.weights=samples", "clients.lost=0.3", share,
            each ? "run.name=a" : "fslora.per_matrix=false",
            adam ? "fslora.server=fedadam" : "fslora.server=mean", "fslora.server_lr=0.01"));
    spy_on(&b);
    spy.train = move_sketch;
    fslora_share = strtod(strchr(share, '=') + 1, NULL);
    fslora_each = each;
    fill_global(&b);
    before = fl_adapter_create(b.rt->run.space);
    fl_fit(before, b.rt->run.global);
    one_round(&b, 1);
    const fl_space *sp = before->space;
    const fl_pile *in = &b.rt->pile;

    const uint64_t *pairs[K];

    assert_true(in->n >= 2 && in->n < K);
    for (int k = 0; k < in->n; k++) {
        int id = in->item[k].client;

        pairs[k] = fl_random_pairs(
            &b.rt->run, 0, sp, id, 1, budget(fslora_share, b.rt->client_r[id]), each);
    }
    for (int i = 0; i < sp->nslots; i++) {
        for (size_t e = 0, at = sp->slot[i].at; e < slot_size(&sp->slot[i]); e++) {
            double sum = 0, now = b.rt->run.global->v[at + e];
            int holders = 0;

            for (int k = 0; k < in->n; k++) {
                if (fl_bit(pairs[k], pair_number(sp, i, e))) {
                    sum += delta_of(in->item[k].client, at + e) / in->n;
                    holders++;
                }
            }
            if (holders == 0) {
                assert_true(now == before->v[at + e]);
                untouched++;
            } else if (adam) { /* the first step of Adam: lr g / (|g| + eps) */
                assert_below(fabs(now - before->v[at + e] - 0.01 * sum / (fabs(sum) + 1e-8)), 2e-5);
            } else {
                assert_below(fabs(now - before->v[at + e] - sum), 1e-6);
            }
        }
    }
    assert_true(untouched > 0);
    assert_true(isnan(bed_discordance(&b))); /* changes are not the clients' models */
    fl_adapter_destroy(&before);
    bed_close(&b);
}

static void fslora_server(void **state)
{
    (void)state;
    check_fslora("fslora.share=0.5", true, false);
    check_fslora("fslora.share=0.5", false, false);
    check_fslora("fslora.share=0.75", true, true);
}

/* the small form of a client's training against the masked one, which holds all r pairs, runs with
 * r / k times those of I, and freezes the others: the same under SGD */
static double gap[N], moved[N];

static fl_err masked_training(fl_run *run, fl_client *c)
{
    const fl_space *sp = run->space;
    int k = budget(0.5, c->r);
    const uint64_t *pairs = fl_random_pairs(run, 0, sp, c->id, run->round.t, k, true);
    fl_adapter *full = fl_scratch_copy(run, run->global);
    fl_job job = fl_job_of(run, c);

    for (int i = 0; i < sp->nslots; i++) {
        for (size_t e = 0; e < slot_size(&sp->slot[i]); e++) {
            if (!fl_bit(pairs, pair_number(sp, i, e))) {
                full->v[sp->slot[i].at + e] = 0;
            }
        }
    }
    job.stack.ad[0] = full;
    job.stack.coef[0] = (double)sp->rmax / k;
    job.train[0].pairs = pairs;
    FL_TRY(fl_train(run, c, &job));
    job = fl_job_of(run, c);
    FL_TRY(fl_train(run, c, &job));
    for (int j = 0; j < sp->nsites; j++) {
        fl_mat a = fl_at(full, j, FL_A), small = fl_at(c->ad[0], j, FL_A),
               got = fl_at(c->got[0], j, FL_A);

        for (int i = 0, at = 0; i < a.rows; i++) {
            if (!fl_bit(pairs, (size_t)(fl_pair_first(sp, j) + i))) {
                continue;
            }
            for (int l = 0; l < a.cols; l++) {
                double now = small.x[at * a.cols + l];

                gap[c->id] = FL_MAX(gap[c->id], fabs(now - a.x[i * a.cols + l]));
                moved[c->id] = FL_MAX(moved[c->id], fabs(now - got.x[at * a.cols + l]));
            }
            at++;
        }
    }
    return FL_OK;
}

static void fslora_reduced_form(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fslora", "partition.clients=5", "cohort.size=5", "adapter.r=4",
            "train.optimizer=sgd", "train.lr=0.3", "train.clip=0"));
    spy_on(&b);
    spy.train = masked_training;
    fill_global(&b);
    memset(gap, 0, sizeof gap);
    memset(moved, 0, sizeof moved);
    one_round(&b, 1);
    fl_fill_in(test_ctx, K, gap);
    fl_fill_in(test_ctx, K, moved);
    for (int k = 0; k < K; k++) {
        assert_true(moved[k] > 1e-3);
        assert_below(gap[k], 1e-3 * moved[k]);
    }
    bed_close(&b);
}

static void everything_is_fedavg(void **state)
{
    (void)state;
    check_fedavg("method.name=fslora", "fslora.share=1", "run.name=a", "cohort.weights=uniform");
    check_fedavg(
        "method.name=fed_plora", "fed_plora.share=1", "run.name=a", "cohort.weights=samples");
    check_fedavg("method.name=hafl", "hafl.scheme=freeze", "run.name=a", "cohort.weights=samples");
    check_fedavg(
        "method.name=hafl", "hafl.scheme=truncate", "run.name=a", "cohort.weights=samples");
}

/* ---- fed_plora and hafl: pairs over those that trained them ---- */
static double share_now;
static double bad[N]; /* things that should not be, by client */

/* all pairs move, also frozen ones: what is sent must be the pairs of M alone */
static fl_err move_all(fl_run *run, fl_client *c)
{
    FL_REQUIRE(c->ad[0]->space == run->space);
    for (size_t e = 0; e < run->space->n; e++) {
        c->ad[0]->v[e] += (fl_real)delta_of(c->id, e);
    }
    return FL_OK;
}

static void check_pairs(const char *method, const char *set, const char *set2)
{
    int untouched = 0;
    fl_adapter *before;
    bed b;

    open_method(&b, method, set, set2);
    spy_on(&b);
    spy.train = move_all;
    fill_global(&b);
    before = fl_adapter_create(b.rt->run.space);
    fl_fit(before, b.rt->run.global);
    one_round(&b, 1);
    bed_weights(&b);
    const fl_space *sp = before->space;
    const uint64_t *pairs[K];

    for (int k = 0; k < K; k++) {
        pairs[k] =
            fl_random_pairs(&b.rt->run, 0, sp, k, 1, budget(share_now, b.rt->client_r[k]), true);
    }

    for (int i = 0; i < sp->nslots; i++) {
        for (size_t e = 0, at = sp->slot[i].at; e < slot_size(&sp->slot[i]); e++) {
            double sum = 0, weight = 0, now = b.rt->run.global->v[at + e];

            for (int k = 0; k < K; k++) {
                if (fl_bit(pairs[k], pair_number(sp, i, e))) {
                    sum += b.p[k] * (before->v[at + e] + delta_of(k, at + e));
                    weight += b.p[k];
                }
            }
            if (weight == 0) {
                assert_true(now == before->v[at + e]);
                untouched++;
            } else {
                assert_below(fabs(now - sum / weight), 1e-6);
            }
        }
    }
    assert_true(untouched > 0);
    fl_adapter_destroy(&before);
    bed_close(&b);
}

static void holders_of_pairs(void **state)
{
    (void)state;
    share_now = 0.5;
    check_pairs("fed_plora", "fed_plora.share=0.5", NULL);
    check_pairs("hafl", "hafl.share=0.5", NULL);
}

/* hafl with random pairs in all rounds is fed_plora, bit for bit */
static void random_hafl_is_fed_plora(void **state)
{
    uint64_t hash[3];
    bed b;

    (void)state;
    for (int i = 0; i < 3; i++) {
        open_method(&b, i == 0 ? "fed_plora" : "hafl",
            i == 0 ? "fed_plora.share=0.5" : "hafl.share=0.5",
            i == 0   ? NULL
            : i == 1 ? "hafl.warmup=100"
                     : "hafl.warmup=1");
        bed_run(&b, 3);
        hash[i] = bed_hash(&b);
        bed_close(&b);
    }
    assert_true(hash[0] == hash[1] && hash[0] != hash[2]);
}

/* the method's own training moves the pairs of M and leaves the others' bits; before it, the client
 * has the server's function */
static double extra[N]; /* loss of what the client received, above the server's */

static fl_err train_and_look(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);
    double own, server, n;
    fl_msg up = {.run = run, .client = c, .up = true};

    FL_TRY(fl_loss(run, c, &job, &own, &n));
    job.stack.ad[0] = run->global;
    FL_TRY(fl_loss(run, c, &job, &server, &n));
    extra[c->id] = own - server;
    FL_TRY(good->train(run, c));
    FL_TRY(good->upload(run, c, &up));
    fl_part part = up.part[0];
    const fl_space *sp = run->space;

    FL_REQUIRE(up.n == 1 && part.ad->space == sp && part.pick.pairs != NULL);
    for (int i = 0; i < sp->nslots; i++) {
        for (size_t e = 0, at = sp->slot[i].at; e < slot_size(&sp->slot[i]); e++) {
            bool same = part.ad->v[at + e] == run->global->v[at + e];

            if (fl_bit(part.pick.pairs, pair_number(sp, i, e))) {
                moved[c->id] += !same;
            } else {
                bad[c->id] += !same || (c->ad[0]->space == sp &&
                                           c->ad[0]->v[at + e] != run->global->v[at + e]);
            }
        }
    }
    for (int j = 0, n_in = 0; j < sp->nsites; j++, n_in = 0) {
        for (int i = 0; i < sp->r[j]; i++) {
            n_in += fl_bit(part.pick.pairs, (size_t)(fl_pair_first(sp, j) + i));
        }
        bad[c->id] += sp->r[j] > 0 && n_in != c->r;
    }
    return FL_OK;
}

static void check_distribution(const char *method, const char *set, bool loses)
{
    bed b;

    bed_open(&b, test_ctx,
        BED_SET(method, set, "partition.clients=5", "cohort.size=5", "clients.r=[1, 2, 4]",
            "clients.r_share=[0.4, 0.3, 0.3]", "data.domains=1", "train.steps=8", "train.lr=0.02"));
    for (int t = 1; t <= 5; t++) { /* until all pairs do some good */
        one_round(&b, t);
    }
    spy_on(&b);
    spy.train = train_and_look;
    memset(bad, 0, sizeof bad);
    memset(moved, 0, sizeof moved);
    memset(extra, 0, sizeof extra);
    one_round(&b, 6);
    fl_fill_in(test_ctx, K, bad);
    fl_fill_in(test_ctx, K, moved);
    fl_fill_in(test_ctx, K, extra);
    for (int k = 0; k < K; k++) {
        assert_true(bad[k] == 0 && moved[k] > 100);
        assert_true(loses && b.rt->client_r[k] < 4 ? extra[k] > 1e-3 : extra[k] == 0);
    }
    bed_close(&b);
}

static void distribution(void **state)
{
    (void)state;
    check_distribution("method.name=fed_plora", "run.name=a", false);
    check_distribution("method.name=hafl", "hafl.scheme=freeze", false);
    check_distribution("method.name=hafl", "hafl.scheme=truncate", true);
}

/* hafl's scores are what its formula says, and the next choice is by them */
enum { MOST = 64 };
static double score[K][MOST], sent[K][MOST];

static fl_err follow_scores(fl_run *run, fl_client *c, fl_step *s)
{
    const fl_space *sp = run->space;

    FL_TRY(good->step(run, c, s));
    if (s->when != FL_GRAD) {
        return FL_OK;
    }
    for (int pair = 0; pair < MOST; pair++) {
        score[c->id][pair] *= 0.6;
    }
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *slot = &sp->slot[i];

        for (size_t e = 0; e < slot_size(slot); e++) {
            double x = s->job->stack.ad[0]->v[slot->at + e], g = s->grad[0]->v[slot->at + e];
            int n = slot->factor == FL_A ? slot->cols : slot->rows;

            score[c->id][pair_number(sp, i, e)] += 0.4 * fabs(x * g) / n;
        }
    }
    return FL_OK;
}

static fl_err follow_choice(fl_run *run, fl_client *c, fl_msg *up)
{
    FL_TRY(good->upload(run, c, up));
    for (int i = 0; i < fl_pair_first(run->space, run->nsites); i++) {
        sent[c->id][i] = fl_bit(up->part[0].pick.pairs, (size_t)i);
    }
    return FL_OK;
}

static void check_scores(const char *warmup, int random_rounds)
{
    bed b;

    open_method(&b, "hafl", "hafl.beta=0.6", warmup);
    spy_on(&b);
    spy.step = follow_scores;
    spy.upload = follow_choice;
    const fl_space *sp = b.rt->run.space;

    assert_true(fl_pair_first(sp, sp->nsites) <= MOST);
    memset(score, 0, sizeof score);
    for (int t = 1; t <= 4; t++) {
        static double before[K][MOST];

        memcpy(before, score, sizeof score);
        memset(sent, 0, sizeof sent);
        one_round(&b, t);
        fl_fill_in(test_ctx, (size_t)K * MOST, &sent[0][0]);
        for (int i = 0; i < K * MOST; i++) { /* only the host went on counting */
            double *x = &score[0][0];

            x[i] = x[i] != (&before[0][0])[i] ? x[i] : 0;
        }
        fl_fill_in(test_ctx, (size_t)K * MOST, &score[0][0]);
        for (int k = 0; k < K; k++) {
            if (t <= random_rounds) {
                const uint64_t *pairs =
                    fl_random_pairs(&b.rt->run, 0, sp, k, t, b.rt->client_r[k], true);

                for (int i = 0; i < fl_pair_first(sp, sp->nsites); i++) {
                    assert_true((sent[k][i] > 0) == fl_bit(pairs, (size_t)i));
                }
                continue;
            }
            for (int j = 0; j < sp->nsites; j++) {
                int first = fl_pair_first(sp, j);

                for (int i = 0; i < sp->r[j]; i++) {
                    int better = 0;

                    for (int l = 0; l < sp->r[j]; l++) {
                        better += before[k][first + l] > before[k][first + i];
                    }
                    assert_true((sent[k][first + i] > 0) == (better < b.rt->client_r[k]));
                }
            }
        }
    }
    bed_close(&b);
}

/* a client without scores draws its pairs, also after the rounds in which everybody does */
static void hafl_scores(void **state)
{
    (void)state;
    check_scores("hafl.warmup=2", 2);
    check_scores("hafl.warmup=0", 1);
}

/* ---- traffic ---- */
static void traffic(void **state)
{
    double half = 4 * sum_budgets("fslora", 0.5) * mn, own = 4 * sum_budgets("hafl", 1) * mn;
    double whole = 4 * 4 * K * mn, which = 0;
    bed b;

    (void)state;
    /* the sketch's pairs and a seed each way down; the run's seed once */
    bed_traffic("fslora", BED_SET(UNEQUAL), 2, (double[]){half, half},
        (double[]){half + 16 * K, half + 8 * K});
    bed_traffic("fed_plora", BED_SET(UNEQUAL), 2, (double[]){own, own}, (double[]){8 * K, whole});
    /* hafl: which pairs, as an index of 4 bytes or one bit for each of 8 matrices' 4 pairs */
    open_method(&b, "hafl", NULL, NULL);
    for (int i = 0; i < K; i++) {
        which += fmin(4 * 8 * b.rt->client_r[i], 4);
    }
    bed_close(&b);
    bed_traffic("hafl", BED_SET(UNEQUAL), 2, (double[]){own + which, own + which},
        (double[]){8 * K, whole});
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    bed_traffic("hafl", BED_SET(UNEQUAL, "hafl.scheme=truncate"), 2,
        (double[]){own + which, own + which}, (double[]){own + 8 * K, own});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(largest), T(random_pairs), T(fslora_server),
        T(fslora_reduced_form), T(everything_is_fedavg), T(holders_of_pairs),
        T(random_hafl_is_fed_plora), T(distribution), T(hafl_scores), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
