/* test_codec.c - codecs of messages against their definitions: which elements top-k keeps, that
 * quantisation is unbiased and stays on its grid, the bytes, that nothing is lost but only late
 * (error feedback up, the client's copy down), and whole runs. */
#include "method_run.h"

static void normals(int id, size_t n, fl_real *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (fl_real)bed_normal(id, 1, i);
    }
}

/* ---- codec_seal against naive references ---- */
static bool before(const fl_real *x, size_t j, size_t i) /* j is chosen before i */
{
    return fabs(x[j]) > fabs(x[i]) || (fabs(x[j]) == fabs(x[i]) && j < i);
}

static void topk_exact(void **state)
{
    static const struct {
        size_t n, k;
        double density;
    } c[] = {{1, 1, 0.01}, {10, 1, 0.1}, {100, 29, 0.29}, {100, 57, 0.57}, {97, 9, 0.1},
        {1000, 1, 1e-6}, {1000, 700, 0.7}, {64, 64, 1}, {300, 3, 0.0133}};

    (void)state;
    for (size_t which = 0; which < 2 * FL_COUNT(c); which++) {
        size_t n = c[which / 2].n, k = c[which / 2].k, kept = 0;
        const fl_deck_codec d = {.density = c[which / 2].density};
        fl_real *x = fl_alloc("x", n, sizeof *x), *y = fl_alloc("y", n, sizeof *y);

        normals((int)which, n, x);
        for (size_t i = 0; which % 2 == 1 && i < n; i++) { /* many of one size, of either sign */
            x[i] = (fl_real)(rint(2 * x[i]) / 2 * (i % 3 == 0 ? -1 : 1));
        }
        memcpy(y, x, n * sizeof *x);
        double bytes = codec_seal(&d, FL_CODEC_TOPK, 1, 2, 3, n, y);

        for (size_t i = 0; i < n; i++) {
            size_t ahead = 0;

            for (size_t j = 0; j < n; j++) {
                ahead += before(x, j, i);
            }
            kept += ahead < k;
            assert_true(y[i] == (ahead < k ? x[i] : 0));
        }
        assert_int_equal(kept, k);
        assert_true(bytes == 4.0 * (double)k + FL_MIN(4.0 * (double)k, (double)((n + 7) / 8)));
        fl_free(x);
        fl_free(y);
    }
}

enum { Q = 600, DRAWS = 4000 };

static void quantise_unbiased(void **state)
{
    static fl_real x[Q], y[Q], z[Q];
    static double mean[Q];

    (void)state;
    normals(5, Q, x);
    for (int i = 0; i < 256; i++) {
        x[i] *= 1000; /* a block of another size must not coarsen its neighbours */
    }
    x[300] = 0;
    for (int bits = 2; bits <= 16; bits += bits < 4 ? 1 : 4) {
        const fl_deck_codec d = {.bits = bits};
        double levels = (1 << (bits - 1)) - 1;

        memset(mean, 0, sizeof mean);
        for (int t = 0; t < DRAWS; t++) {
            memcpy(y, x, sizeof x);
            double bytes = codec_seal(&d, FL_CODEC_QUANTISE, 9, 4, t, Q, y);

            assert_true(bytes == ceil(Q * bits / 8.0) + 4 * 3); /* three blocks */
            for (int i = 0; i < Q; i++) {
                mean[i] += (double)y[i] / DRAWS;
            }
        }
        memcpy(z, x, sizeof x);
        codec_seal(&d, FL_CODEC_QUANTISE, 9, 4, DRAWS - 1, Q, z);
        assert_memory_equal(y, z, sizeof y); /* a function of seed, client and round */
        codec_seal(&d, FL_CODEC_QUANTISE, 9, 5, DRAWS - 1, Q, memcpy(z, x, sizeof x));
        assert_memory_not_equal(y, z, sizeof y);
        for (int at = 0; at < Q; at += 256) {
            double scale = 0, worst = 0;

            for (int i = at; i < FL_MIN(at + 256, Q); i++) {
                scale = fmax(scale, fabs((double)x[i]));
            }
            for (int i = at; i < FL_MIN(at + 256, Q); i++) {
                double q = y[i] / scale * levels, f = fabs((double)x[i]) / scale * levels;

                f -= floor(f);
                assert_below(fabs(q - rint(q)), 1e-6 * levels);          /* on the grid .. */
                assert_below(fabs((double)y[i] - x[i]), scale / levels); /* .. at a neighbour */
                /* mean of DRAWS draws: standard error step sqrt(f (1 - f) / DRAWS) */
                assert_below(fabs(mean[i] - x[i]),
                    scale / levels * 5 * sqrt(f * (1 - f) / DRAWS) + 1e-6 * scale);
                worst = fmax(worst, fabs((double)y[i] - x[i]));
            }
            assert_true(worst > 0.2 * scale / levels); /* and it does round */
        }
    }
}

static void topk_then_quantise(void **state)
{
    static fl_real x[Q], y[Q], z[Q];
    const fl_deck_codec d = {.density = 0.5, .bits = 4};

    (void)state;
    normals(6, Q, x);
    memcpy(y, x, sizeof x);
    memcpy(z, x, sizeof x);
    double bytes = codec_seal(&d, FL_CODEC_TOPK_QUANTISE, 1, 1, 1, Q, y);

    codec_seal(&d, FL_CODEC_TOPK, 1, 1, 1, Q, z);
    assert_true(bytes == 75 + 150 + 2 * 4); /* bit map, 300 values of 4 bits, 2 blocks of those */
    for (int i = 0; i < Q; i++) {
        assert_true(z[i] != 0 || y[i] == 0);
        assert_below(fabs((double)y[i] - z[i]), 4.0 / 7);
    }
}

/* ---- messages of one client, sealed by hand ---- */
typedef struct hand {
    bed b;
    fl_client c;
    fl_turn turn;
} hand;

static void hand_open(hand *h, const char *up, const char *down, const char *feedback)
{
    *h = (hand){.b.n = 0};
    bed_open(&h->b, test_ctx,
        BED_SET("method.name=fedavg", up, down, feedback, "codec.density=0.1", "codec.bits=4"));
    h->b.rt->run.round.t = 1;
    bed_ok(turn_enrol(h->b.rt, 2, NULL, 0, &h->c, &h->turn));
}

static void hand_close(hand *h)
{
    turn_end(h->b.rt, &h->turn);
    bed_close(&h->b);
}

static void fill(fl_adapter *ad, int id, int t)
{
    for (size_t i = 0; i < ad->space->n; i++) {
        ad->v[i] = (fl_real)bed_normal(id, t, i);
    }
}

static double sealed(hand *h, bool up, fl_part part, fl_adapter **decoded)
{
    fl_runtime *rt = h->b.rt;
    fl_msg *msg = fl_scratch(&rt->run, 1, sizeof *msg);

    *msg = (fl_msg){.run = &rt->run, .client = &h->c, .up = up};
    rt->ledger = (fl_ledger){0};
    fl_send(msg, part);
    bed_ok(message_seal(rt, msg));
    *decoded = msg->part[0].ad;
    h->c.got[part.label] = up ? h->c.got[part.label] : msg->part[0].ad;
    return up ? rt->ledger.up[TRAFFIC_adapter] : rt->ledger.down[TRAFFIC_adapter];
}

/* up: what the server decoded in T rounds and what is still kept sum to what the client meant */
static void feedback_up(void **state)
{
    static const char *const codec[] = {
        "codec.up=topk", "codec.up=quantise", "codec.up=topk_quantise"};

    (void)state;
    for (int w = 0; w < 2 * (int)FL_COUNT(codec); w++) {
        hand h;
        bool change = w % 2 == 1;

        hand_open(&h, codec[w / 2], "codec.down=none", "codec.feedback=true");
        fl_run *run = &h.b.rt->run;
        size_t n = run->space->n;
        double *meant = fl_scratch(run, n, sizeof *meant), *got = fl_scratch(run, n, sizeof *got);
        fl_adapter *ad = fl_scratch_adapter(run, run->space), *decoded,
                   *ref = fl_scratch_adapter(run, run->space);
        double loss = 0;

        for (int t = 1; t <= 12; t++) {
            run->round.t = t;
            fill(ad, 1, t);
            fill(ref, 2, t);
            sealed(&h, true, (fl_part){.ad = ad, .ref = change ? NULL : ref, .change = change},
                &decoded);
            for (size_t i = 0; i < n; i++) {
                meant[i] += (double)ad->v[i] - (change ? 0 : ref->v[i]);
                got[i] += (double)decoded->v[i] - (change ? 0 : ref->v[i]);
                loss = fmax(loss, fabs(meant[i] - got[i]));
            }
        }
        fl_kept *kept = kept_find(&h.turn.kept, "codec.up", 0);

        assert_non_null(kept);
        assert_true(loss > 0.1); /* there was something to remember */
        for (size_t i = 0; i < n; i++) {
            assert_below(fabs(got[i] + kept->ad->v[i] - meant[i]), 1e-5);
        }
        hand_close(&h);
    }
}

/* without feedback nothing is kept; where the server holds nothing there is none to give */
static void no_feedback(void **state)
{
    (void)state;
    for (int w = 0; w < 2; w++) {
        hand h;

        hand_open(&h, "codec.up=topk", "codec.down=none",
            w == 0 ? "codec.feedback=false" : "codec.feedback=true");
        fl_run *run = &h.b.rt->run;
        fl_adapter *ad = fl_scratch_adapter(run, run->space), *decoded,
                   *ref = fl_scratch_adapter(run, run->space);

        for (int t = 1; t <= 3; t++) {
            fl_real *x = fl_scratch(run, run->space->n, sizeof *x);

            run->round.t = t;
            fill(ad, 1, t);
            sealed(&h, true, (fl_part){.ad = ad, .ref = w == 0 ? ref : NULL}, &decoded);
            memcpy(x, ad->v, run->space->n * sizeof *x);
            codec_seal(&h.b.deck->codec, FL_CODEC_TOPK, 0, 0, t, run->space->n, x);
            assert_memory_equal(x, decoded->v, run->space->n * sizeof *x);
        }
        assert_int_equal(h.turn.kept.n, 0);
        hand_close(&h);
    }
}

/* only what is picked goes through the codec; the rest is what the server holds */
static void picked_only(void **state)
{
    hand h;

    (void)state;
    hand_open(&h, "codec.up=topk", "codec.down=none", "codec.feedback=true");
    fl_run *run = &h.b.rt->run;
    const fl_space *sp = run->space;
    fl_adapter *ad = fl_scratch_adapter(run, sp), *decoded, *ref = fl_scratch_adapter(run, sp);
    uint64_t *elems = fl_bits(run, sp->n);
    size_t npicked = 0, nchanged = 0;

    for (size_t i = 0; i < sp->n; i += 3) {
        fl_bit_set(elems, i);
        npicked++;
    }
    fill(ad, 1, 1);
    fill(ref, 2, 1);
    double bytes = sealed(&h, true, (fl_part){.ad = ad, .ref = ref, .pick.elems = elems}, &decoded);
    size_t k = (size_t)(0.1 * (double)npicked);

    for (size_t i = 0; i < sp->n; i++) {
        assert_true(i % 3 == 0 || decoded->v[i] == ref->v[i]);
        nchanged += decoded->v[i] != ref->v[i];
    }
    assert_int_equal(nchanged, k);
    /* which could change (a bit map of all, or indices), values, which of those did */
    assert_true(bytes == FL_MIN(4.0 * (double)npicked, (double)((sp->n + 7) / 8)) +
                             4.0 * (double)k +
                             FL_MIN(4.0 * (double)k, (double)((npicked + 7) / 8)));
    hand_close(&h);
}

/* down: the client's copy comes nearer in every round, to the bit for top-k; a slot as the seed
 * made it is exact and free */
static void feedback_down(void **state)
{
    hand h;

    (void)state;
    hand_open(&h, "codec.up=none", "codec.down=topk", "codec.feedback=true");
    fl_run *run = &h.b.rt->run;
    const fl_space *sp = run->space;
    fl_adapter *decoded;
    size_t n = sp->n, nother = 0;
    double last = INFINITY;

    assert_true(sealed(&h, false, (fl_part){.ad = run->global}, &decoded) == 0);
    assert_memory_equal(decoded->v, run->global->v, n * sizeof *decoded->v);
    for (size_t i = 0; i < n; i++) {
        run->global->v[i] += (fl_real)(0.01 * bed_normal(3, 1, i));
    }
    ledger_changed(h.b.rt, 1);
    for (int t = 2; t <= 12; t++) {
        double distance = 0;

        run->round.t = t;
        double bytes = sealed(&h, false, (fl_part){.ad = run->global}, &decoded);
        size_t k = (size_t)(0.1 * (double)n);

        assert_true(bytes == 4.0 * (double)k + (double)((n + 7) / 8));
        nother = 0;
        for (size_t i = 0; i < n; i++) {
            distance += pow(decoded->v[i] - run->global->v[i], 2);
            nother += fabs((double)decoded->v[i] - run->global->v[i]) > 1e-6;
        }
        assert_true(nother <= n - (size_t)(t - 1) * k || nother == 0);
        assert_true(distance < last || nother == 0);
        last = distance;
    }
    assert_int_equal(nother, 0); /* ten tenths, and the rest */
    hand_close(&h);
}

/* what is lost on the way down does not come back up: a client that learned nothing changes nothing
 */
static void lossy_download_alone(void **state)
{
    static const char *const up[] = {"codec.up=none", "codec.up=topk", "codec.up=quantise"};

    (void)state;
    for (int w = 0; w < 2 * (int)FL_COUNT(up); w++) {
        hand h;

        hand_open(&h, up[w / 2], "codec.down=topk_quantise",
            w % 2 == 0 ? "codec.feedback=true" : "codec.feedback=false");
        fl_run *run = &h.b.rt->run;
        size_t n = run->space->n, bytes = n * sizeof(fl_real);
        fl_adapter *received, *learned, *decoded;

        fill(run->global, 8, 1);
        ledger_changed(h.b.rt, 1);
        sealed(&h, false, (fl_part){.ad = run->global}, &received);
        assert_memory_not_equal(received->v, run->global->v, bytes);
        sealed(&h, true, (fl_part){.ad = received, .ref = h.c.got[0]}, &decoded);
        assert_memory_equal(decoded->v, run->global->v, bytes);
        /* and what it did learn is added to the server's copy */
        learned = fl_scratch_copy(run, received);
        learned->v[7] += 1;
        sealed(&h, true, (fl_part){.ad = learned, .ref = h.c.got[0]}, &decoded);
        assert_below(fabs((double)decoded->v[7] - run->global->v[7] - 1), 1e-6);
        assert_memory_equal(decoded->v, run->global->v, 7 * sizeof(fl_real));
        hand_close(&h);
    }
}

/* ---- whole runs ---- */
static double count_of(const fl_space *sp, fl_factor f)
{
    size_t n = 0;

    for (int i = 0; i < sp->nslots; i++) {
        n += sp->slot[i].factor == f ? (size_t)sp->slot[i].rows * (size_t)sp->slot[i].cols : 0;
    }
    return (double)n;
}

static void bytes_of_runs(void **state)
{
    bed b;
    double na, nb, up[3], down[3];

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fedavg"));
    na = count_of(b.rt->run.space, FL_A);
    nb = count_of(b.rt->run.space, FL_B);
    assert_true(na + nb == (double)b.rt->run.space->n);
    bed_close(&b);

    double n = na + nb, k = floor(0.25 * n), kb = floor(0.25 * nb);

    for (int t = 0; t < 3; t++) { /* after a round of changes everywhere all slots travel */
        up[t] = 4 * (ceil(n * 5 / 8) + 4 * ceil(n / 256));
        down[t] = t == 0 ? 4 * 8 : 4 * (4 * k + ceil(n / 8));
    }
    bed_traffic("fedavg",
        BED_SET("cohort.size=4", "codec.up=quantise", "codec.down=topk", "codec.density=0.25",
            "codec.bits=5"),
        3, up, down);
    for (int t = 0; t < 3; t++) { /* A is still as the seed made it: never sent, never lossy */
        up[t] = 4 * (4 * kb + ceil(nb / 8));
        down[t] = t == 0 ? 4 * 8 : 4 * (4 * kb + ceil(nb / 8));
    }
    bed_traffic("ffa_lora",
        BED_SET("cohort.size=4", "codec.up=topk", "codec.down=topk", "codec.density=0.25"), 3, up,
        down);
}

/* under a codec ffa_lora's A stays that of the seed on both sides */
static void frozen_factor_exact(void **state)
{
    bed b;

    (void)state;
    bed_open(
        &b, test_ctx, BED_SET("method.name=ffa_lora", "codec.up=topk_quantise", "codec.down=topk"));
    fl_adapter *start = fl_adapter_create(b.rt->run.space);

    fl_fit(start, b.rt->run.global);
    bed_run(&b, 3);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        fl_mat a = fl_at(start, j, FL_A), now = fl_at(b.rt->run.global, j, FL_A),
               m = fl_at(b.rt->run.global, j, FL_B);
        double norm = 0;

        for (int i = 0; i < a.rows * a.cols; i++) {
            assert_true(a.x[i] == now.x[i]);
        }
        for (int i = 0; i < m.rows * m.cols; i++) {
            norm += fabs((double)m.x[i]);
        }
        assert_true(a.x == NULL || norm > 0);
    }
    fl_adapter_destroy(&start);
    bed_close(&b);
}

enum { ROUNDS = 6 };
static void codec_sets(const char *method, const char *rounds, const char **sets)
{
    const char *const all[] = {method, rounds, "codec.up=topk_quantise", "codec.down=quantise",
        "codec.density=0.5", "codec.bits=8", "adapter.targets=[q, k, v, o, gate, up, down]",
        "adapter.r=4", "train.steps=5", "train.batch=6", "data.domains=1", "partition.clients=5",
        "cohort.size=4", "clients.lost=0.1", "eval.every=3", NULL};

    memcpy(sets, all, sizeof all);
}

static uint64_t alone(const char *const *sets)
{
    uint64_t state = 0;

    if (test_ctx->rank == 0) {
        fl_ctx *self;

        fl_ctx_create(MPI_COMM_SELF, &self);
        self->quiet = true;
        state = bed_federation(self, "alone", sets);
        fl_ctx_destroy(&self);
    }
    fl_bcast(test_ctx, 0, &state, sizeof state);
    return state;
}

/* residuals and copies are the clients' state: they go through checkpoints and to other ranks */
static void methods_learn_and_restart(void **state)
{
    static const char *const method[] = {
        "method.name=fedavg", "method.name=ffa_lora", "method.name=flora", "method.name=flexlora"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(method); i++) {
        const char *sets[20];
        double eval[ROUNDS + 2];
        uint64_t whole, parts;

        codec_sets(method[i], "run.rounds=6", sets);
        whole = bed_federation(test_ctx, "world", sets);
        assert_true(alone(sets) == whole);
        assert_int_equal(bed_column("world", "eval_loss", ROUNDS + 2, eval), ROUNDS + 1);
        assert_true(eval[ROUNDS] < 0.98 * eval[0]);
        codec_sets(method[i], "run.rounds=3", sets);
        bed_federation(test_ctx, "parts", sets);
        codec_sets(method[i], "run.rounds=6", sets);
        fl_deck *deck = bed_deck(sets);
        char out[300];

        snprintf(out, sizeof out, "%s/parts", bed_dir);
        bed_ok(fl_federation(
            test_ctx, deck, &(fl_options){.out = out, .resume = "auto", .versions = ""}, &parts));
        fl_deck_destroy(&deck);
        assert_true(parts == whole);
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
    }
}

/* what a codec remembers is not the client's adapter */
static void residual_is_not_exported(void **state)
{
    char path[320], out[320];

    (void)state;
    bed_federation(test_ctx, "export",
        BED_SET("method.name=fedavg", "run.rounds=1", "cohort.size=4", "codec.up=topk",
            "checkpoint.every=1"));
    snprintf(path, sizeof path, "%s/export/checkpoints/round-000001.h5", bed_dir);
    snprintf(out, sizeof out, "%s/export/client", bed_dir);
    if (test_ctx->rank == 0) {
        fl_ctx *self;

        fl_ctx_create(MPI_COMM_SELF, &self);
        self->quiet = true;
        assert_int_equal(fl_export(self, path, out, 0, false), FL_EUSAGE);
        bed_says("keeps no adapter");
        fl_error_clear();
        fl_ctx_destroy(&self);
    }
    fl_max(test_ctx, 0);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {cmocka_unit_test(topk_exact),
        cmocka_unit_test(quantise_unbiased), cmocka_unit_test(topk_then_quantise), T(feedback_up),
        T(no_feedback), T(picked_only), T(feedback_down), T(lossy_download_alone), T(bytes_of_runs),
        T(frozen_factor_exact), T(methods_learn_and_restart), T(residual_is_not_exported)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
