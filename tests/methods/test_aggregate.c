/* test_aggregate.c - `fedlora aggregate` from inside: PEFT folders in, one out, judged against T =
 * sum_k p_k s_k B_k A_k by plain loops: unequal ranks and alphas, missing modules, the same bytes
 * on any number of ranks, waves, ranks and energies asked for, refusals. */
#include "method_test.h"

enum { K = 4 };
static const int rank_of[K] = {2, 3, 1, 4};
static const double alpha_of[K] = {4, 12, 1, 6}, weight_of[K] = {0.4, 0.3, 0.2, 0.1};

typedef struct files {
    bed b;
    fl_adapter *ad[K]; /* owned; spaces with the adapters' own r and s */
    char dir[K][320];
    fl_peft_set *set;
} files;

/* adapter k on the bed's sites; the last has no site at all of the second block when `sparse` */
static void make_files(files *f, bool equal, bool sparse)
{
    const char *dirs[K];

    bed_open(&f->b, test_ctx, BED_SET("method.name=fedavg"));
    fl_runtime *rt = f->b.rt;
    const fl_model *m = &rt->base.model;

    for (int k = 0; k < K; k++) {
        int r[BED_SITES] = {0}, own = equal ? 3 : rank_of[k];
        double alpha = equal ? 6 : alpha_of[k];

        for (int j = 0; j < m->nsites; j++) {
            r[j] =
                rt->run.space->r[j] > 0 && !(sparse && k == K - 1 && j >= m->nsites / 2) ? own : 0;
        }
        f->ad[k] =
            fl_adapter_create(fl_space_lora(rt->spaces, m->nsites, m->site, r, alpha, false));
        for (size_t i = 0; i < f->ad[k]->space->n; i++) {
            f->ad[k]->v[i] = (fl_real)(0.3 * bed_normal(k, 1, i));
        }
        snprintf(f->dir[k], sizeof f->dir[k], "%s/client-%d", bed_dir, k);
        bed_ok(fl_agree(test_ctx, test_ctx->rank == 0
                                      ? fl_peft_save(f->dir[k], m, f->ad[k], alpha, false, "base")
                                      : FL_OK));
        dirs[k] = f->dir[k];
    }
    bed_ok(fl_agree(test_ctx, fl_peft_set_open(K, dirs, NULL, &f->set)));
}

static void close_files(files *f)
{
    fl_peft_set_close(&f->set);
    for (int k = 0; k < K; k++) {
        fl_adapter_destroy(&f->ad[k]);
    }
    bed_close(&f->b);
}

static fl_err aggregate(files *f, fl_ctx *ctx, const char *method, const char *set, const char *out,
    fl_aggregate_options how)
{
    char name[80], dir[320];
    const char *const sets[] = {name, "cohort.size=4", set, NULL};

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(dir, sizeof dir, "%s/%s", bed_dir, out);
    fl_deck *deck = bed_deck(sets);

    how.out = dir;
    how.w = weight_of;
    fl_err err = fl_aggregate(ctx, deck, f->set, &how);

    fl_deck_destroy(&deck);
    return err;
}

/* x += what the folder holds */
static void add_folder(files *f, const char *out, int site, double *x)
{
    char dir[320];
    fl_adapter *ad;

    snprintf(dir, sizeof dir, "%s/%s", bed_dir, out);
    bed_ok(fl_peft_load(dir, &f->b.rt->base.model, f->b.rt->spaces, &ad));
    bed_add(ad->space->scale[site], fl_at(ad, site, FL_B), NULL, fl_at(ad, site, FL_A), NULL, x);
    fl_adapter_destroy(&ad);
}

/* || sum of the folders - T || / || T ||, T from the clients' numbers */
static double error_of(files *f, const char *out, const char *second)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE];
    const fl_model *m = &f->b.rt->base.model;
    double gap = 0, ideal = 0;

    fl_max(test_ctx, 0); /* written before it is read */
    for (int j = 0; j < m->nsites; j++) {
        size_t n = (size_t)m->site[j].m * (size_t)m->site[j].n;

        memset(t, 0, sizeof t);
        memset(x, 0, sizeof x);
        for (int k = 0; k < K; k++) {
            const fl_adapter *ad = f->ad[k];

            bed_add(weight_of[k] * ad->space->scale[j], fl_at(ad, j, FL_B), NULL,
                fl_at(ad, j, FL_A), NULL, t);
        }
        if (bed_norm2(n, t) == 0) {
            continue;
        }
        add_folder(f, out, j, x);
        if (second != NULL) {
            add_folder(f, second, j, x);
        }
        for (size_t i = 0; i < n; i++) {
            x[i] -= t[i];
        }
        gap += bed_norm2(n, x);
        ideal += bed_norm2(n, t);
    }
    assert_true(ideal > 1);
    return sqrt(gap / ideal);
}

/* the stack is exact; so is the SVD with room for all pairs; plain averaging is not */
static void exact_methods(void **state)
{
    files f;

    (void)state;
    make_files(&f, false, true);
    bed_ok(aggregate(&f, test_ctx, "flora", NULL, "flora", (fl_aggregate_options){0}));
    assert_below(error_of(&f, "flora", NULL), 1e-6);
    bed_ok(aggregate(&f, test_ctx, "flexlora", NULL, "all", (fl_aggregate_options){.r = 10}));
    assert_below(error_of(&f, "all", NULL), 1e-6);
    bed_ok(aggregate(&f, test_ctx, "flexlora", NULL, "cut", (fl_aggregate_options){.audit = true}));
    assert_true(error_of(&f, "cut", NULL) > 1e-3);
    bed_ok(aggregate(
        &f, test_ctx, "flexlora", NULL, "energy", (fl_aggregate_options){.r = 10, .energy = 0.9}));
    double e = error_of(&f, "energy", NULL);

    assert_true(e * e <= 0.1 + 1e-6 && e > 1e-3);
    close_files(&f);
}

/* the averaged factors and the residual, as two adapters or as one */
static void residual(void **state)
{
    files f;

    (void)state;
    make_files(&f, true, false);
    bed_ok(aggregate(&f, test_ctx, "fedex_lora", NULL, "two", (fl_aggregate_options){0}));
    assert_true(error_of(&f, "two", NULL) > 1e-2);
    assert_below(error_of(&f, "two", "two/residual"), 1e-6);
    bed_ok(aggregate(&f, test_ctx, "fedex_lora", NULL, "one",
        (fl_aggregate_options){.stacked = true, .audit = true}));
    assert_below(error_of(&f, "one", NULL), 1e-6);
    bed_ok(aggregate(&f, test_ctx, "fedavg", NULL, "plain", (fl_aggregate_options){0}));
    double plain = error_of(&f, "plain", NULL);

    assert_true(fabs(plain - error_of(&f, "two", NULL)) < 1e-6);
    close_files(&f);
}

/* bytes of OUT's weights */
static uint64_t file_hash(const char *out)
{
    char path[400], *s = NULL;
    size_t n = 0;

    snprintf(path, sizeof path, "%s/%s/adapter_model.safetensors", bed_dir, out);
    bed_ok(fl_file_read(path, &s, &n));
    uint64_t h = fl_hash(s, n, 0);

    fl_free(s);
    return h;
}

/* the same file from one rank and from all */
static void same_bytes(void **state)
{
    static const char *const method[] = {"fedavg", "flora", "flexlora", "fedex_lora"};
    files f;

    (void)state;
    make_files(&f, true, false);
    for (size_t i = 0; i < FL_COUNT(method); i++) {
        bed_ok(aggregate(
            &f, test_ctx, method[i], NULL, "all", (fl_aggregate_options){.stacked = true}));
        fl_max(test_ctx, 0);
        if (test_ctx->rank == 0) {
            fl_ctx *self;

            fl_ctx_create(MPI_COMM_SELF, &self);
            self->quiet = true;
            bed_ok(aggregate(
                &f, self, method[i], NULL, "alone", (fl_aggregate_options){.stacked = true}));
            fl_ctx_destroy(&self);
            assert_true(file_hash("all") == file_hash("alone"));
        }
        fl_max(test_ctx, 0);
    }
    close_files(&f);
}

static void refusals(void **state)
{
    files f;

    (void)state;
    make_files(&f, false, false);
    assert_true(
        aggregate(&f, test_ctx, "fedavg", NULL, "no", (fl_aggregate_options){0}) == FL_EDECK);
    bed_says("unequal ranks");
    fl_error_clear();
    assert_true(
        aggregate(&f, test_ctx, "local_only", NULL, "no", (fl_aggregate_options){0}) == FL_EUSAGE);
    bed_says("live clients");
    fl_error_clear();
    assert_true(
        aggregate(&f, test_ctx, "flora", NULL, "no", (fl_aggregate_options){.r = 3}) == FL_EUSAGE);
    bed_says("does not split");
    fl_error_clear();
    close_files(&f);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(exact_methods), T(residual), T(same_bytes), T(refusals)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
