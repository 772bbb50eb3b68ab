/* test_golden_rebase.c - methods that merge into the base, on numbers that their official code was
 * run on (tests/golden, README.md there): colr_rows, fedloru, frlora. Compared is the base itself,
 * to 1e-6 of its change and one rounding; test_golden.c has the methods that need no more than a
 * row. */
#include "rebase_test.h"

/* site j of the files is site[j] of a one-block Llama of width 12: m x n = 12 x 20, 20 x 12 */
static const char *const site_name[] = {"down", "up"};
enum { NSITES = 2, MN = 12 * 20 };

static fl_st st;

/* tensor of n elements into v; 0 if the file has none */
static bool read_into(size_t n, fl_real *v, const char *format, ...)
{
    char name[80];
    va_list list;

    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    int at = fl_st_find(&st, name);

    if (at >= 0) {
        bed_ok(fl_st_read(&st, at, n, v));
    }
    return at >= 0;
}

static int site_of(const bed *b, int j)
{
    return fl_model_site_named(&b->rt->base.model, 0, site_name[j]);
}

/* WHOSE.site*.A, B */
static void read_pair(const bed *b, const char *whose, fl_adapter *ad)
{
    for (int j = 0; j < NSITES; j++) {
        fl_mat a = fl_at(ad, site_of(b, j), FL_A), f = fl_at(ad, site_of(b, j), FL_B);

        assert_true(read_into((size_t)(a.rows * a.cols), a.x, "%s.site%d.A", whose, j));
        assert_true(read_into((size_t)(f.rows * f.cols), f.x, "%s.site%d.B", whose, j));
    }
}

/* the base before this round becomes WHAT.site*.W */
static void set_base(const bed *b, const char *what)
{
    fl_share_fence(b->ctx);
    for (int j = 0; j < NSITES && b->ctx->node_rank == 0; j++) {
        fl_real *to = base_at(b, b->rt->base.share.x, site_of(b, j));

        assert_true(read_into(MN, to, "%s.site%d.W", what, j));
    }
    fl_share_fence(b->ctx);
}

/* W now - WAS.W is the file's NOW.W - WAS.W */
static void assert_base(const bed *b, const char *was, const char *now)
{
    for (int j = 0; j < NSITES; j++) {
        const fl_real *w = base_at(b, b->rt->base.share.x, site_of(b, j));
        fl_real before[MN], after[MN];
        double gap = 0, size = 0, grain = 0;

        assert_true(read_into(MN, before, "%s.site%d.W", was, j));
        assert_true(read_into(MN, after, "%s.site%d.W", now, j));
        for (int e = 0; e < MN; e++) {
            gap += pow((double)w[e] - after[e], 2);
            size += pow((double)after[e] - before[e], 2);
            grain += 2 * pow(0x1p-24 * after[e], 2); /* both were rounded */
        }
        assert_true(size > 0);
        assert_below(sqrt(gap), 1e-6 * sqrt(size) + sqrt(grain));
    }
}

static fl_err save_model(const char *dir)
{
    fl_model m = {.family = FL_FAMILY_LLAMA,
        .nlayers = 1,
        .nd = 12,
        .nheads = 2,
        .nkv = 1,
        .nff = 20,
        .vocab = 256,
        .nctx = 32,
        .rms = true,
        .rotary = true,
        .gated = true,
        .tied = true,
        .eps = 1e-5,
        .rope_theta = 10000,
        .init_range = 0.05};

    FL_TRY(fl_model_complete(&m));
    fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
    const fl_real **w = fl_alloc("tensors", (size_t)m.ntensors, sizeof *w);

    fl_model_init(&m, 7, base);
    for (int i = 0; i < m.ntensors; i++) {
        w[i] = base + m.tensor[i].at;
    }
    for (int j = 0; j < NSITES; j++) {
        int site = fl_model_site_named(&m, 0, site_name[j]), tensor, row0;

        fl_model_site_tensor(&m, site, &tensor, &row0);
        read_into(MN, base + m.tensor[tensor].at + row0 * m.site[site].n, "before.site%d.W", j);
    }
    fl_err err = fl_hf_save(dir, &m, w);

    fl_free(w);
    fl_free(base);
    fl_model_free(&m);
    return err;
}

/* opens the file, makes the model, opens the bed; counts [n + 1] is borrowed by the run */
static void open_golden(
    bed *b, const char *file, int n, const char *key, const char *other, uint64_t *counts)
{
    char path[300], method[64], clients[64], size[64], scale[64];
    fl_real alpha = 4, count[BED_CLIENTS];

    snprintf(path, sizeof path, "tests/golden/%s.safetensors", file);
    bed_ok(fl_st_open(path, &st));
    snprintf(path, sizeof path, "%s/model", bed_dir);
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? save_model(path) : FL_OK));
    read_into(1, &alpha, "alpha");
    assert_true(read_into((size_t)n, count, "client.n"));
    snprintf(method, sizeof method, "method.name=%.*s", (int)strcspn(file, "_"), file);
    snprintf(clients, sizeof clients, "partition.clients=%d", n);
    snprintf(size, sizeof size, "cohort.size=%d", n);
    snprintf(scale, sizeof scale, "adapter.alpha=%.9g", (double)alpha);
    bed_open(b, test_ctx,
        BED_SET(
            method, clients, size, scale, "adapter.r=4", "adapter.targets=[up, down]", key, other));
    counts[0] = 0;
    for (int i = 0; i < n; i++) {
        counts[i + 1] = counts[i] + (uint64_t)count[i];
    }
    b->rt->part.first[FL_TRAIN] = counts;
}

static void close_golden(bed *b)
{
    bed_close(b);
    fl_st_close(&st);
}

static void read_clients(bed *b, const char *prefix)
{
    for (int i = 0; i < b->n; i++) {
        char whose[40];

        snprintf(whose, sizeof whose, "%sclient%d", prefix, i);
        read_pair(b, whose, b->client[i]);
    }
}

static void fedloru_merges(void **state)
{
    static const char *const reset[] = {
        "fedloru.reset=merge_and_reinit", "fedloru.reset=merge_keep"};

    (void)state;
    for (int k = 0; k < 2; k++) {
        uint64_t counts[BED_CLIENTS + 1];
        bed b;

        open_golden(&b, "fedloru", 3, "fedloru.tau=1", reset[k], counts);
        read_pair(&b, "global", b.rt->run.global);
        bed_begin(&b, 1, NULL);
        read_clients(&b, "");
        bed_end(&b);
        assert_base(&b, "before", "merge");
        fl_adapter *out = fl_adapter_create(b.rt->run.space);

        read_pair(&b, "out", out);
        for (size_t i = 0; i < out->space->n && k == 1; i++) { /* keep: the means stay */
            assert_below(fabs((double)out->v[i] - b.rt->run.global->v[i]), 1e-6);
        }
        fl_adapter_destroy(&out);
        close_golden(&b);
    }
}

/* the split of the base, then two rounds from the file's factors (LAPACK's signs are its own) */
static void frlora_rounds(void **state)
{
    static const char *const name[] = {"init", "round1.out", "round2.out"};
    static const char *const prefix[] = {"", "round1.", "round2."};
    uint64_t counts[BED_CLIENTS + 1];
    bool fresh;
    bed b;

    (void)state;
    open_golden(&b, "frlora", 3, "cohort.weights=uniform", "run.name=golden", counts);
    assert_base(&b, "before", "init");
    fl_adapter *start = fl_keep_adapter(&b.rt->run, NULL, "start", 0, b.rt->run.space, &fresh);

    assert_false(fresh);
    read_pair(&b, "init", start);
    read_pair(&b, "init", b.rt->run.global);
    for (int t = 1; t <= 2; t++) {
        set_base(&b, name[t - 1]);
        bed_begin(&b, t, NULL);
        read_clients(&b, prefix[t]);
        bed_end(&b);
        assert_base(&b, name[t - 1], name[t]);
        assert_memory_equal(start->v, b.rt->run.global->v, start->space->n * sizeof(fl_real));
    }
    close_golden(&b);
}

/* rows by mask, sample counts ignored; the hook finds the mask itself */
static void colr_rows(void **state)
{
    uint64_t counts[BED_CLIENTS + 1];
    bed b;

    (void)state;
    open_golden(&b, "colr_rows", 4, "run.name=golden", "run.name=golden", counts);
    bed_begin(&b, 1, NULL);
    read_pair(&b, "global", b.rt->run.global);
    for (int j = 0; j < NSITES; j++) {
        fl_mat f = fl_at(b.rt->run.global, site_of(&b, j), FL_B);

        memset(f.x, 0, (size_t)(f.rows * f.cols) * sizeof *f.x);
    }
    read_clients(&b, "");
    send_by_hook(&b);
    for (int i = b.rt->first[b.ctx->rank]; i < b.rt->first[b.ctx->rank + 1]; i++) {
        const double *mask = fl_get(b.rt->sent[i], "touched", NULL);
        fl_real want[20];

        for (int j = NSITES - 1; j >= 0; j--) { /* sites in the model's order: up, down */
            int m = b.rt->base.model.site[site_of(&b, j)].m;

            assert_true(read_into((size_t)m, want, "client%d.site%d.mask", i, j));
            for (int e = 0; e < m; e++) {
                assert_true(*mask++ == (double)want[e]);
            }
        }
    }
    bed_ok(round_aggregate(b.rt));
    assert_base(&b, "before", "merge");
    fl_adapter *out = fl_adapter_create(b.rt->run.space);

    read_pair(&b, "out", out);
    for (size_t i = 0; i < out->space->n; i++) {
        assert_below(fabs((double)out->v[i] - b.rt->merged[0].ad->v[i]), 1e-6);
    }
    fl_adapter_destroy(&out);
    close_golden(&b);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(fedloru_merges), T(frlora_rounds), T(colr_rows)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
