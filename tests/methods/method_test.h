/* method_test.h - a bed for tests of federated methods: a tiny Llama in a temporary folder, a run on it, and the server's part of a
 * round driven by hand with adapters that the test chose. Adapters depend on the client's number only and are made on every rank, so
 * that every rank knows the whole truth: T = sum_k p_k s_k B_k A_k in double, by plain loops. */
#ifndef METHOD_TEST_H
#define METHOD_TEST_H
#include "../../src/fed/fed_internal.h"
#include "../harness.h"
#include <ftw.h>
#include <math.h>
#include <string.h>

enum { BED_CLIENTS = 6, BED_SETS = 48, BED_SITES = 14, BED_SIDE = 40 /* largest m and n */ };

static char bed_dir[200]; /* of this test, the same on all ranks */

typedef struct bed {
    fl_ctx *ctx;                      /* borrowed */
    fl_deck *deck;                    /* owned */
    fl_options opt;
    fl_runtime *rt;                   /* owned */
    int n;                            /* cohort: clients 0 .. n - 1 */
    fl_adapter *client[BED_CLIENTS];  /* owned [n]: complete, on every rank */
    bool lost[BED_CLIENTS];
    double p[BED_CLIENTS];            /* weights over those that are not lost, computed here; sum 1 */
    fl_real *w0;                      /* owned: the base before this round */
} bed;

/* x <= bound, false for NaN; the test says both */
#define assert_below(x, bound)                                                                \
    do {                                                                                      \
        double x_ = (x), bound_ = (bound);                                                    \
        if (!(x_ <= bound_)) {                                                                \
            fail_msg("%s = %.4e is above %s = %.4e", #x, x_, #bound, bound_);                 \
        }                                                                                     \
    } while (0)

static inline void bed_ok(fl_err err)
{
    if (err != FL_OK) {
        fail_msg("error %d: %s", (int)err, fl_error_text());
    }
}

static inline void bed_says(const char *what)
{
    if (strstr(fl_error_text(), what) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", fl_error_text(), what);
    }
}

/* ---- the folder: cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove) ---- */
static inline fl_err bed_save_model(const char *dir)
{
    fl_model m = { .family = FL_FAMILY_LLAMA, .nlayers = 2, .nd = 24, .nheads = 4, .nkv = 2, .nff = 40, .vocab = 256, .nctx = 32,
        .rms = true, .rotary = true, .gated = true, .tied = true, .eps = 1e-5, .rope_theta = 10000, .init_range = 0.05 };

    FL_TRY(fl_model_complete(&m));
    fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
    const fl_real **w = fl_alloc("tensors", (size_t)m.ntensors, sizeof *w);

    fl_model_init(&m, 7, base);
    for (int i = 0; i < m.ntensors; i++) {
        w[i] = base + m.tensor[i].at;
    }
    fl_err err = fl_hf_save(dir, &m, w);

    fl_free(w);
    fl_free(base);
    fl_model_free(&m);
    return err;
}

static inline int bed_folder(void **state)
{
    /* in memory if possible: a run waits for the disk many times */
    const char *tmp = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : P_tmpdir;
    int ok = 1;

    (void)state;
    fl_error_clear();
    if (test_ctx->rank == 0) {
        char model[256];

        snprintf(bed_dir, sizeof bed_dir, "%s/fedlora-method-XXXXXX", tmp);
        ok = mkdtemp(bed_dir) != NULL;
        snprintf(model, sizeof model, "%s/model", bed_dir);
        ok = ok && fl_make_dirs(model) == FL_OK && bed_save_model(model) == FL_OK;
    }
    fl_bcast(test_ctx, 0, bed_dir, sizeof bed_dir);
    fl_bcast(test_ctx, 0, &ok, sizeof ok);
    return ok ? 0 : -1;
}

static inline int bed_remove_one(const char *path, const struct stat *st, int flag, struct FTW *at)
{
    (void)st;
    (void)flag;
    (void)at;
    return remove(path);
}

static inline int bed_remove(void **state)
{
    (void)state;
    fl_max(test_ctx, 0); /* nobody is reading any more */
    return test_ctx->rank == 0 ? nftw(bed_dir, bed_remove_one, 16, FTW_DEPTH | FTW_PHYS) : 0;
}

/* ---- decks, runs ---- sets: "section.key=value" after the defaults, ending with NULL */
static inline fl_deck *bed_deck(const char *const *sets)
{
    char model[300];
    const char *all[BED_SETS] = { model, "model.max_length=24", "adapter.r=3", "adapter.alpha=6", "adapter.targets=[q, v, up, down]",
        "data.sequences=96", "data.length=25", "data.domains=3", "partition.kind=iid", "partition.clients=4", "cohort.size=3",
        "train.steps=4", "train.batch=4", "train.lr=0.01", "eval.every=0", "eval.max_samples=8", "checkpoint.every=1000000",
        "checkpoint.keep=1", "run.rounds=8" };
    int n = 19, nextra;
    const fl_section *extra = fl_method_sections(&nextra);
    fl_deck *deck = NULL;

    snprintf(model, sizeof model, "model.path=%s/model", bed_dir);
    for (int i = 0; sets[i] != NULL; i++) {
        FL_REQUIRE(n < BED_SETS);
        all[n++] = sets[i];
    }
    bed_ok(fl_deck_parse(NULL, 0, "test", n, all, extra, nextra, &deck));
    return deck;
}

#define BED_SET(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* collective over ctx */
static inline void bed_open(bed *b, fl_ctx *ctx, const char *const *sets)
{
    *b = (bed){ .ctx = ctx, .deck = bed_deck(sets), .opt = { .out = bed_dir, .resume = "none", .versions = "" } };
    b->rt = fl_alloc("runtime", 1, sizeof *b->rt);
    bed_ok(fl_agree(ctx, setup_runtime(ctx, b->deck, &b->opt, b->rt)));
    bed_ok(fl_agree(ctx, setup_fresh(b->rt)));
    b->n = b->deck->cohort.size;
    b->w0 = fl_alloc("base before", fl_model_bytes(&b->rt->base.model), 1);
    assert_true(b->rt->base.model.nsites <= BED_SITES);
}

static inline void bed_close(bed *b)
{
    for (int i = 0; i < BED_CLIENTS; i++) {
        fl_adapter_destroy(&b->client[i]);
    }
    setup_destroy(b->rt);
    fl_free(b->rt);
    fl_free(b->w0);
    fl_deck_destroy(&b->deck);
}

/* whole rounds 1 .. T with clients that train */
static inline void bed_run(bed *b, int rounds)
{
    for (int t = 1; t <= rounds; t++) {
        fl_metrics_row(&b->rt->metrics);
        bed_ok(round_run(b->rt, t));
    }
}

/* ---- a round by hand: bed_begin, then change client[], then bed_end ---- */
static inline double bed_normal(int id, int t, size_t i)
{
    return fl_rng_normal(17, FL_RNG_TEST, id, t, i);
}

/* factors that train are normal numbers of (id, t, place); the others are the server's */
static inline void bed_fill(bed *b, int id, int t, fl_adapter *ad)
{
    unsigned factors = b->rt->run.job.train[0].factors;

    fl_fit(ad, b->rt->run.global);
    for (int i = 0; i < ad->space->nslots; i++) {
        const fl_slot *s = &ad->space->slot[i];

        for (size_t j = 0; (factors == 0 || (factors & FL_BIT(s->factor)) != 0) && j < (size_t)s->rows * (size_t)s->cols; j++) {
            ad->v[s->at + j] = (fl_real)(0.3 * bed_normal(id, t, s->at + j));
        }
    }
}

static inline void bed_weights(bed *b)
{
    double sum = 0;

    for (int i = 0; i < b->n; i++) {
        bool samples = b->deck->cohort.weights == FL_WEIGHTS_SAMPLES;

        b->p[i] = b->lost[i] ? 0 : samples ? (double)fl_partition_count(&b->rt->part, i, FL_TRAIN) : 1;
        sum += b->p[i];
    }
    for (int i = 0; i < b->n && sum > 0; i++) {
        b->p[i] /= sum;
    }
}

/* round t as the server sees it; r [n]: ranks of the clients, NULL = the deck's largest */
static inline void bed_begin(bed *b, int t, const int *r)
{
    fl_runtime *rt = b->rt;
    fl_run *run = &rt->run;
    double cost[BED_CLIENTS];

    assert_true(b->n <= BED_CLIENTS && b->n == run->ncohort);
    fl_arena_reset(rt->round, (fl_mark){ 0 });
    rt->pile = (fl_pile){ 0 };
    rt->nmerges = 0;
    run->round = (fl_round){ .t = t, .trains = true, .returns = true };
    run->job = (fl_job){ .steps = b->deck->train.steps };
    run->turn = NULL;
    rt->revision_bytes[t] = rt->revision_bytes[t - 1];
    fl_metrics_row(&rt->metrics);
    if (rt->method->plan != NULL) {
        bed_ok(rt->method->plan(run));
    }
    for (int i = 0; i < b->n; i++) {
        rt->cohort[i] = i;
        cost[i] = 1 + i % 3;
        b->lost[i] = false;
        fl_adapter_destroy(&b->client[i]);
        b->client[i] = fl_adapter_create(r != NULL ? fl_space_at(run, run->space, NULL, r[i]) : run->space);
        bed_fill(b, i, t, b->client[i]);
    }
    run->cohort = rt->cohort;
    fl_layout(b->n, cost, b->ctx->size, rt->first);
    fl_share_fence(b->ctx);
    memcpy(b->w0, rt->base.share.x, fl_model_bytes(&rt->base.model));
    fl_share_fence(b->ctx);
}

/* a sealed upload: only the factors that travel */
static inline fl_msg *bed_message(bed *b, const fl_adapter *ad)
{
    fl_run *run = &b->rt->run;
    fl_msg *msg = fl_scratch(run, 1, sizeof *msg);
    fl_pick pick = run->job.train[0];
    fl_adapter *copy = fl_scratch_adapter(run, ad->space);

    for (int i = 0; i < ad->space->nslots; i++) {
        const fl_slot *s = &ad->space->slot[i];

        if (pick.factors == 0 || (pick.factors & FL_BIT(s->factor)) != 0) {
            memcpy(copy->v + s->at, ad->v + s->at, (size_t)s->rows * (size_t)s->cols * sizeof *copy->v);
        }
    }
    *msg = (fl_msg){ .run = run, .up = true, .n = 1, .part = { { .ad = copy, .pick = pick } } };
    return msg;
}

/* hands the clients' adapters in, on the ranks that host them */
static inline void bed_send(bed *b)
{
    fl_runtime *rt = b->rt;

    bed_weights(b);
    rt->sent = fl_scratch(&rt->run, (size_t)b->n, sizeof *rt->sent);
    for (int i = rt->first[b->ctx->rank]; i < rt->first[b->ctx->rank + 1]; i++) {
        rt->sent[i] = b->lost[i] ? NULL : bed_message(b, b->client[i]);
    }
}

static inline void bed_end(bed *b)
{
    bed_send(b);
    bed_ok(round_aggregate(b->rt));
}

/* ---- the mathematics, plain loops in double ---- */
static inline double bed_norm2(size_t n, const double *x)
{
    double s = 0;

    for (size_t i = 0; i < n; i++) {
        s += x[i] * x[i];
    }
    return s;
}

/* x (m x n) += coef (B - B0) (A - A0); zero: NULL */
static inline void bed_add(double coef, fl_mat b, const double *b0, fl_mat a, const double *a0, double *x)
{
    for (int i = 0; i < b.rows; i++) {
        for (int l = 0; l < a.rows; l++) {
            double f = coef * ((double)b.x[i * b.cols + l] - (b0 != NULL ? b0[i * b.cols + l] : 0));

            for (int j = 0; j < a.cols; j++) {
                x[i * a.cols + j] += f * ((double)a.x[l * a.cols + j] - (a0 != NULL ? a0[l * a.cols + j] : 0));
            }
        }
    }
}

static inline double bed_scale(const bed *b, const fl_adapter *ad, int site)
{
    return b->deck->adapter.alpha / ad->space->r[site];
}

/* x = T = sum_k p_k s_k B_k A_k */
static inline void bed_ideal(const bed *b, int site, double *x)
{
    memset(x, 0, BED_SIDE * BED_SIDE * sizeof *x);
    for (int i = 0; i < b->n; i++) {
        const fl_adapter *ad = b->client[i];

        bed_add(b->p[i] * bed_scale(b, ad, site), fl_at(ad, site, FL_B), NULL, fl_at(ad, site, FL_A), NULL, x);
    }
}

/* x = W now - W before + s B A; *grain: what rounding W to storage once can change at most, squared norm */
static inline void bed_installed(const bed *b, int site, double *x, double *grain)
{
    const fl_runtime *rt = b->rt;
    const fl_site *st = &rt->base.model.site[site];
    const fl_adapter *ad = rt->run.global;
    int tensor, row0;

    fl_model_site_tensor(&rt->base.model, site, &tensor, &row0);
    const fl_real *now = rt->base.w[tensor] + (size_t)row0 * (size_t)st->n;
    const fl_real *before = b->w0 + (now - (const fl_real *)rt->base.share.x);

    for (int i = 0; i < st->m * st->n; i++) {
        x[i] = (double)now[i] - before[i];
        if (now[i] != before[i]) {
            *grain += pow(0x1p-24 * now[i], 2);
        }
    }
    bed_add(bed_scale(b, ad, site), fl_at(ad, site, FL_B), NULL, fl_at(ad, site, FL_A), NULL, x);
}

typedef struct bed_gap { double gap, ideal, grain; } bed_gap; /* Frobenius norms over all sites */

/* || installed - T ||, || T ||, and the rounding of the base */
static inline bed_gap bed_measure(const bed *b)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE];
    bed_gap g = { 0 };

    for (int j = 0; j < b->rt->run.nsites; j++) {
        size_t n = (size_t)b->rt->base.model.site[j].m * (size_t)b->rt->base.model.site[j].n;

        if (b->rt->run.space->r[j] == 0) {
            continue;
        }
        bed_ideal(b, j, t);
        bed_installed(b, j, x, &g.grain);
        for (size_t i = 0; i < n; i++) {
            x[i] -= t[i];
        }
        g.gap += bed_norm2(n, x);
        g.ideal += bed_norm2(n, t);
    }
    return (bed_gap){ sqrt(g.gap), sqrt(g.ideal), sqrt(g.grain) };
}

/* what the server installed is T, to the rounding of the factors and of the base */
static inline void bed_check_exact(const bed *b)
{
    bed_gap g = bed_measure(b);

    assert_true(g.ideal > 1);
    assert_below(g.gap, 1e-6 * g.ideal + g.grain);
}

static inline double bed_discordance(bed *b)
{
    double x;

    bed_ok(discordance_measure(b->rt, &x));
    return x;
}

static inline uint64_t bed_hash(const bed *b)
{
    return fl_adapter_hash(b->rt->run.global, 0);
}

/* value of a column in the last row of the metrics */
static inline double bed_metric(bed *b, const char *name)
{
    fl_metrics *m = &b->rt->metrics;
    int c = fl_metrics_column(m, name, "1");

    return m->x[(size_t)(m->nrows - 1) * (size_t)m->ncolumns + (size_t)c];
}
#endif
