/* test_golden.c - the server's part of a round on numbers that the methods' official code was run
 * on: tests/golden (its README.md says what each file holds and where it comes from). One row a
 * fixture. The clients' factors of the file go into the pile of the method's aggregate hook; what
 * is then installed, W now + s B A, must be the file's to 1e-6 of the change. */
#include "method_test.h"

enum {
    FACTORS = 1, /* A and B themselves, not only their product */
    CUTS = 2     /* what clients of every rank download: outputs of the name "out.site0.r2.A" */
};

/* site j of the files is site[j] of a one-block Llama of width 12: m x n = 12 x 20, 20 x 12 */
static const char *const site_name[] = {"down", "up"};

typedef struct golden {
    const char *file, *method;
    int t; /* the round it is run as */
    unsigned checks;
    const char *set; /* one more "section.key=value" of the deck, NULL = none */
} golden;

static const golden row[] = {
    {"fedit_shepherd", "fedavg", 1, FACTORS, NULL},
    {"fedit_fedsvd", "fedavg", 1, FACTORS, NULL},
    {"fedit_peft_linear", "fedavg", 1, 0, NULL},
    {"ffa_fedsvd", "ffa_lora", 1, FACTORS, NULL},
    {"ffa_uniform", "ffa_lora", 1, FACTORS, NULL},
    {"ffa_fedsvd", "rolora", 1, FACTORS, NULL},
    {"ffa_uniform", "rolora", 3, FACTORS, NULL},
    {"fedit_common_b", "rolora", 2, FACTORS, NULL},
    {"flora_equal", "flora", 1, 0, NULL},
    {"flora_unequal", "flora", 1, 0, NULL},
    {"flora_fedsvd", "flora", 1, 0, NULL},
    {"flora_peft_cat", "flora", 1, 0, NULL},
    {"rbla", "rbla", 1, FACTORS, NULL},
    {"rbla", "dylora", 1, FACTORS, NULL},
    {"fedilora_two_levels", "fedilora", 1, FACTORS, NULL},
    {"fedilora_two_levels", "replication", 1, FACTORS, "replication.promote=false"},
    {"zero_padding", "hetlora", 1, FACTORS, "hetlora.weights=samples"},
    {"zero_padding_uniform", "hetlora", 1, FACTORS, "hetlora.weights=samples"},
    {"hetlora_norm", "hetlora", 1, FACTORS, "adapter.targets=[down]"},
    {"fedex_fedsvd", "fedex_lora", 1, FACTORS, NULL},
    {"fedex_uniform", "fedex_lora", 1, FACTORS, NULL},
    {"fedloru", "fedloru", 1, FACTORS, NULL},
    {"fedloru", "mfedloru", 1, FACTORS, NULL},
    {"fedsvd_refactor", "fedsvd", 1, 0, NULL},
    {"flexlora_equal", "flexlora", 1, CUTS, NULL},
    {"flexlora_equal", "hlora", 1, CUTS, NULL},
    {"flexlora_equal", "raflora", 1, CUTS, NULL},
    {"flexlora_unequal", "flexlora", 1, CUTS, NULL},
    {"flexlora_unequal", "hlora", 1, CUTS, NULL},
    {"flexlora_peft_svd", "flexlora", 1, 0, NULL},
    {"rb_lora_columns", "rb_lora", 1, CUTS, NULL},
    {"rb_lora_columns", "raflora", 1, CUTS, NULL},
    {"flexlora_rslora", "flexlora", 1, 0, "adapter.rslora=true"},
};

/* ---- the file ---- */
static fl_st st;

/* tensor by name, [*n] floats, owned by the caller; NULL if there is none */
static fl_real *tensor_of(const char *name, size_t *n)
{
    int at = fl_st_find(&st, name);
    fl_real *x;

    if (at < 0) {
        return NULL;
    }
    *n = (st.entry[at].end - st.entry[at].begin) / sizeof(float);
    x = fl_alloc("tensor", *n, sizeof *x);
    bed_ok(fl_st_read(&st, at, *n, x));
    return x;
}

/* the tensor into x, which has room for exactly its elements; false: there is none */
static bool read_into(const char *name, size_t n, fl_real *x)
{
    int at = fl_st_find(&st, name);

    if (at >= 0) {
        bed_ok(fl_st_read(&st, at, n, x));
    }
    return at >= 0;
}

/* good until the next call */
static const char *name_of(const char *format, ...)
{
    static char name[80];
    va_list list;

    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    return name;
}

/* factors WHOSE[k].site*.[CUT]A, B into ad, k < 0: no number; those that the file does not have
 * stay */
static void read_factors(
    const fl_model *m, const char *whose, int k, const char *cut, fl_adapter *ad)
{
    char prefix[40];

    snprintf(prefix, sizeof prefix, k < 0 ? "%s" : "%s%d", whose, k);
    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        for (int f = 0; f < 2; f++) {
            fl_mat to = fl_at(ad, fl_model_site_named(m, 0, site_name[j]), f == 0 ? FL_A : FL_B);

            read_into(name_of("%s.site%d.%s%c", prefix, j, cut, "AB"[f]),
                (size_t)to.rows * (size_t)to.cols, to.x);
        }
    }
}

/* ---- the model: the file's weights before the round at the two sites ---- */
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
    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&m, 0, site_name[j]), tensor, row0;
        size_t n = (size_t)m.site[site].n;

        fl_model_site_tensor(&m, site, &tensor, &row0);
        read_into(name_of("before.site%d.W", j), (size_t)m.site[site].m * n,
            base + m.tensor[tensor].at + (size_t)row0 * n);
    }
    fl_err err = fl_hf_save(dir, &m, w);

    fl_free(w);
    fl_free(base);
    fl_model_free(&m);
    return err;
}

/* ---- one row ---- */
/* x = the file's change of the site: out W - before W + s B A; *grain: as in bed_installed, of the
 * file */
static void expected(const bed *b, int j, double *x, double *grain)
{
    int site = fl_model_site_named(&b->rt->base.model, 0, site_name[j]);
    fl_adapter *out = fl_adapter_create(b->rt->run.space);
    size_t n = 0, n0 = 0;
    fl_real *now = tensor_of(name_of("out.site%d.W", j), &n),
            *before = tensor_of(name_of("before.site%d.W", j), &n0);

    memset(x, 0, BED_SIDE * BED_SIDE * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(n, n0);
        x[i] = (double)now[i] - before[i];
        *grain += now[i] != before[i] ? pow(0x1p-24 * now[i], 2) : 0;
    }
    read_factors(&b->rt->base.model, "out", -1, "", out);
    assert_true(now != NULL || bed_norm2(1, &(double){fl_adapter_norm(out)}) > 0);
    bed_add(bed_scale(b, out, site), fl_at(out, site, FL_B), NULL, fl_at(out, site, FL_A), NULL, x);
    fl_adapter_destroy(&out);
    fl_free(now);
    fl_free(before);
}

/* || x - y || <= 1e-6 || y || + grain, and y is not nothing */
static void assert_near(size_t n, double *x, const double *y, double grain)
{
    double size = bed_norm2(n, y);

    for (size_t i = 0; i < n; i++) {
        x[i] -= y[i];
    }
    assert_true(size > 0);
    assert_below(sqrt(bed_norm2(n, x)), 1e-6 * sqrt(size) + sqrt(grain));
}

static void check_installed(const bed *b)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];

    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        const fl_model *m = &b->rt->base.model;
        int site = fl_model_site_named(m, 0, site_name[j]);
        double grain = 0;

        if (b->rt->run.space->r[site] == 0) { /* the deck key leaves it out */
            continue;
        }
        memset(x, 0, sizeof x);
        bed_installed(b, site, x, &grain);
        expected(b, j, y, &grain);
        assert_near((size_t)m->site[site].m * (size_t)m->site[site].n, x, y, grain);
    }
}

static void check_factors(const bed *b)
{
    const fl_adapter *have = b->rt->run.global;
    fl_adapter *out = fl_adapter_create(have->space);

    read_factors(&b->rt->base.model, "out", -1, "", out);
    for (size_t i = 0; i < have->space->n; i++) {
        assert_below(fabs((double)have->v[i] - out->v[i]), 1e-6 * fmax(fabs(out->v[i]), 0.01));
    }
    fl_adapter_destroy(&out);
}

/* what a client of rank r is sent against the file's factors of that rank, as products */
static void check_cut(bed *b, int r)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    fl_run *run = &b->rt->run;
    fl_client c = {.id = 0, .r = r};
    fl_msg down = {.run = run, .client = &c};
    fl_adapter *out = fl_adapter_create(fl_space_at(run, run->space, NULL, r));
    char cut[16];

    snprintf(cut, sizeof cut, "r%d.", r);
    read_factors(&b->rt->base.model, "out", -1, cut, out);
    bed_ok(b->rt->method->download(run, &c, &down));
    assert_int_equal(down.n, 1);
    assert_ptr_equal(down.part[0].ad->space, out->space);
    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&b->rt->base.model, 0, site_name[j]);

        fl_product(down.part[0].ad, site, 1, 0, x);
        fl_product(out, site, 1, 0, y);
        assert_near((size_t)out->space->m[site] * (size_t)out->space->n_in[site], x, y, 0);
    }
    fl_adapter_destroy(&out);
}

static void open_row(bed *b, const golden *g, const float *alpha, const float *r, size_t n)
{
    char method[64], size[64], clients[64], rank[64], scale[64];
    float most = 0;

    for (size_t i = 0; i < n; i++) {
        most = FL_MAX(most, r[i]);
    }
    snprintf(method, sizeof method, "method.name=%s", g->method);
    snprintf(clients, sizeof clients, "partition.clients=%zu", n);
    snprintf(size, sizeof size, "cohort.size=%zu", n);
    snprintf(rank, sizeof rank, "adapter.r=%.0f", (double)most);
    snprintf(scale, sizeof scale, "adapter.alpha=%.9g", (double)*alpha);
    bed_open(b, test_ctx,
        BED_SET(method, clients, size, rank, scale, "cohort.weights=samples",
            "adapter.targets=[up, down]", g->set != NULL ? g->set : "run.name=golden"));
}

/* the clients' sample counts are the file's; into [n + 1], which the run then borrows */
static void set_counts(bed *b, const float *count, size_t n, uint64_t *first)
{
    first[0] = 0;
    for (size_t i = 0; i < n; i++) {
        first[i + 1] = first[i] + (uint64_t)count[i];
    }
    b->rt->part.first[FL_TRAIN] = first;
}

static void check_row(void **state)
{
    const golden *g = *state;
    uint64_t first[BED_CLIENTS + 1];
    int ranks[BED_CLIENTS];
    size_t n = 0, one = 0;
    fl_real *count, *r, *alpha;
    bed b;

    count = tensor_of("client.n", &n);
    r = tensor_of("client.r", &n);
    alpha = tensor_of("alpha", &one);
    assert_true(count != NULL && r != NULL && alpha != NULL && n <= BED_CLIENTS);
    open_row(&b, g, alpha, r, n);
    set_counts(&b, count, n, first);
    read_factors(&b.rt->base.model, "global", -1, "", b.rt->run.global);
    for (size_t i = 0; i < n; i++) {
        ranks[i] = (int)r[i];
    }
    bed_begin(&b, g->t, ranks);
    for (size_t i = 0; i < n; i++) {
        read_factors(&b.rt->base.model, "client", (int)i, "", b.client[i]);
    }
    bed_end(&b);
    check_installed(&b);
    if ((g->checks & FACTORS) != 0) {
        check_factors(&b);
    }
    for (size_t i = 0; i < n && (g->checks & CUTS) != 0; i++) {
        check_cut(&b, ranks[i]);
    }
    bed_close(&b);
    fl_free(count);
    fl_free(r);
    fl_free(alpha);
}

/* the folder and the model of this row, on every rank the open file */
static int open_file(void **state)
{
    const golden *g = *state;
    char model[256];
    void *none = NULL;

    if (bed_folder(&none) != 0 ||
        fl_st_open(name_of("tests/golden/%s.safetensors", g->file), &st) != FL_OK) {
        return -1;
    }
    snprintf(model, sizeof model, "%s/model", bed_dir);
    return fl_agree(test_ctx, test_ctx->rank == 0 ? save_model(model) : FL_OK) == FL_OK ? 0 : -1;
}

static int close_file(void **state)
{
    fl_st_close(&st);
    return bed_remove(state);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[FL_COUNT(row)];
    static char name[FL_COUNT(row)][80];
    static golden copy[FL_COUNT(row)];

    for (size_t i = 0; i < FL_COUNT(row); i++) {
        copy[i] = row[i];
        snprintf(name[i], sizeof name[i], "%s: %s", row[i].method, row[i].file);
        tests[i] = (struct CMUnitTest){name[i], check_row, open_file, close_file, &copy[i]};
    }
    return fl_test_main(argc, argv, tests, FL_COUNT(row));
}
