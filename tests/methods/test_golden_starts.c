/* test_golden_starts.c - starts that official code computed (tests/golden, its README.md): PiSSA's
 * factors of W for FeDeRA, SLoRA's hand-over of a change of W. Not a server's sum, so not a row of
 * test_golden.c. */
#include "method_run.h"

/* site j of the files is site[j] of a one-block Llama of width 12: m x n = 12 x 20, 20 x 12 */
static const char *const site_name[] = {"down", "up"};

/* tensor PREFIX.siteJ.WHAT of the file, n numbers */
static void read_site(
    const fl_st *st, const char *prefix, int j, const char *what, size_t n, fl_real *x)
{
    char name[64];
    int at;

    snprintf(name, sizeof name, "%s.site%d.%s", prefix, j, what);
    at = fl_st_find(st, name);
    assert_true(at >= 0);
    bed_ok(fl_st_read(st, at, n, x));
}

/* a model that holds before.site*.W, in bed_dir/golden */
static fl_err save_model(const fl_st *st)
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
    char dir[256];

    FL_TRY(fl_model_complete(&m));
    fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
    const fl_real **w = fl_alloc("tensors", (size_t)m.ntensors, sizeof *w);

    fl_model_init(&m, 7, base);
    for (int i = 0; i < m.ntensors; i++) {
        w[i] = base + m.tensor[i].at;
    }
    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&m, 0, site_name[j]), tensor, row0;

        fl_model_site_tensor(&m, site, &tensor, &row0);
        read_site(st, "before", j, "W", 12 * 20,
            base + m.tensor[tensor].at + (size_t)row0 * (size_t)m.site[site].n);
    }
    snprintf(dir, sizeof dir, "%s/golden", bed_dir);
    fl_err err = fl_make_dirs(dir);

    err = err == FL_OK ? fl_hf_save(dir, &m, w) : err;
    fl_free(w);
    fl_free(base);
    fl_model_free(&m);
    return err;
}

static void open_golden(bed *b, const char *file, fl_st *st, const char *method, const char *set)
{
    char path[300], name[64], scale[64];
    fl_real alpha;

    snprintf(path, sizeof path, "tests/golden/%s.safetensors", file);
    bed_ok(fl_st_open(path, st));
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? save_model(st) : FL_OK));
    bed_ok(fl_st_read(st, fl_st_find(st, "alpha"), 1, &alpha));
    snprintf(path, sizeof path, "model.path=%s/golden", bed_dir);
    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(scale, sizeof scale, "adapter.alpha=%.9g", (double)alpha);
    bed_open(
        b, test_ctx, BED_SET(path, name, scale, set, "adapter.r=4", "adapter.targets=[up, down]"));
}

/* s B A is the file's out.B out.A to `tolerance` of its norm, and so are A and B, pair by pair up
 * to a sign */
static void check_factors(const bed *b, const fl_st *st, double tolerance)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    fl_adapter *out = fl_adapter_create(b->rt->run.space);

    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&b->rt->base.model, 0, site_name[j]);
        fl_mat fa = fl_at(out, site, FL_A), fb = fl_at(out, site, FL_B);
        fl_mat ha = fl_at(b->rt->run.global, site, FL_A), hb = fl_at(b->rt->run.global, site, FL_B);
        double gap = 0, size;

        read_site(st, "out", j, "A", (size_t)fa.rows * (size_t)fa.cols, fa.x);
        read_site(st, "out", j, "B", (size_t)fb.rows * (size_t)fb.cols, fb.x);
        fl_product(out, site, 1, 0, x);
        fl_product(b->rt->run.global, site, 1, 0, y);
        size = bed_norm2(12 * 20, x);
        for (int i = 0; i < 12 * 20; i++) {
            gap += pow(x[i] - y[i], 2);
        }
        assert_true(size > 0);
        assert_below(sqrt(gap), tolerance * sqrt(size));
        for (int i = 0; i < fa.rows; i++) {
            double dot = 0, sign;

            for (int e = 0; e < fa.cols; e++) {
                dot += (double)fa.x[i * fa.cols + e] * ha.x[i * fa.cols + e];
            }
            sign = dot > 0 ? 1 : -1;
            for (int e = 0; e < fa.cols; e++) {
                assert_below(fabs(fa.x[i * fa.cols + e] - sign * ha.x[i * fa.cols + e]), 1e-5);
            }
            for (int e = 0; e < fb.rows; e++) {
                assert_below(fabs(fb.x[e * fb.cols + i] - sign * hb.x[e * fb.cols + i]), 1e-5);
            }
        }
    }
    fl_adapter_destroy(&out);
}

/* PiSSA: factors, and what is left of W; single-precision SVD there */
static void federa_pissa(void **state)
{
    fl_real rest[12 * 20];
    fl_st st;
    bed b;

    (void)state;
    open_golden(&b, "federa_pissa", &st, "federa", "federa.split=balanced");
    check_factors(&b, &st, 3e-6);
    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&b.rt->base.model, 0, site_name[j]), tensor, row0;

        fl_model_site_tensor(&b.rt->base.model, site, &tensor, &row0);
        read_site(&st, "out", j, "W", 12 * 20, rest);
        for (int i = 0; i < 12 * 20; i++) {
            size_t at = (size_t)row0 * (size_t)b.rt->base.model.site[site].n + (size_t)i;

            assert_below(fabs(rest[i] - b.rt->base.w[tensor][at]), 1e-5);
        }
    }
    bed_close(&b);
    fl_st_close(&st);
}

/* the change trained.W - before.W, as stage 1 would leave it, through the plan of the first round
 * of stage 2 */
static void slora_handover(void **state)
{
    fl_st st;
    bed b;

    (void)state;
    open_golden(&b, "slora_handover", &st, "slora", "slora.sparse_rounds=1");
    const fl_adapter *change = kept_find(&b.rt->server, "change", 0)->ad;

    for (int j = 0; j < (int)FL_COUNT(site_name); j++) {
        int site = fl_model_site_named(&b.rt->base.model, 0, site_name[j]), tensor, row0;
        fl_real trained[12 * 20];

        fl_model_site_tensor(&b.rt->base.model, site, &tensor, &row0);
        read_site(&st, "trained", j, "W", 12 * 20, trained);
        for (int i = 0; i < 12 * 20; i++) {
            size_t at = (size_t)row0 * (size_t)b.rt->base.model.site[site].n + (size_t)i;

            fl_at(change, tensor, FL_DENSE).x[at] = trained[i] - b.rt->base.w[tensor][at];
        }
    }
    bed_begin(&b, 2, NULL);
    check_factors(&b, &st, 1e-6);
    bed_close(&b);
    fl_st_close(&st);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(federa_pissa), T(slora_handover)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
