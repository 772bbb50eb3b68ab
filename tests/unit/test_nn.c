/* The engine in float against PyTorch: losses, logits, gradients, steps of AdamW. The fixtures are
 * written by tests/interop/make_nn_fixture.py; Python is not needed to run this. */
#include "nn_bed.h"

/* ---- fixtures: arrays "name rows cols\n" and raw float32 ---- */
typedef struct fixture {
    char *s; /* owned [n] */
    size_t n;
} fixture;

static fixture fixture_read(const char *path)
{
    fixture f = {0};
    FILE *in = fopen(path, "rb");

    if (!in) {
        fail_msg("%s is missing (tests run from the root of the tree)", path);
    }
    f.s = fl_alloc("fixture", 1 << 20, 1);
    f.n = fread(f.s, 1, 1 << 20, in);
    fclose(in);
    return f;
}

/* the array called prefix + name, copied; fails the test if it is not there */
static float *fixture_get(const fixture *f, const char *prefix, const char *name, size_t *n)
{
    for (size_t at = 0; at < f->n;) {
        char called[64], want[64];
        unsigned rows = 0, cols = 0;
        char *end = memchr(f->s + at, '\n', f->n - at);
        assert_non_null(end);
        assert_int_equal(sscanf(f->s + at, "%63s %u %u", called, &rows, &cols), 3);
        snprintf(want, sizeof want, "%s%s", prefix, name);
        at = (size_t)(end + 1 - f->s);
        *n = (size_t)rows * cols;
        assert_true(*n <= (f->n - at) / sizeof(float));
        if (strcmp(called, want) == 0) {
            float *x = fl_alloc("fixture", *n, sizeof *x);
            memcpy(x, f->s + at, *n * sizeof *x);
            return x;
        }
        at += *n * sizeof(float);
    }
    fail_msg("no array %s%s", prefix, name);
    return NULL;
}

static void fixture_into(const fixture *f, const char *prefix, const char *name, size_t n, float *x)
{
    size_t got;
    float *from = fixture_get(f, prefix, name, &got);

    assert_int_equal(got, n);
    memcpy(x, from, n * sizeof *x);
    fl_free(from);
}

static void expect_array(
    const fixture *f, const char *prefix, const char *name, size_t n, const float *x)
{
    size_t got;
    float *want = fixture_get(f, prefix, name, &got);
    double error = bed_error(n, x, want);

    assert_int_equal(got, n);
    if (!(error < 1e-5)) {
        fail_msg("%s%s is off by %.3g", prefix, name, error);
    }
    fl_free(want);
}

static fl_model torch_shape(const fixture *f)
{
    size_t n;
    float *x = fixture_get(f, "", "shape", &n);
    fl_model m = bed_shape((int)x[0]);

    assert_int_equal(n, 10);
    m.nlayers = (int)x[1];
    m.nd = (int)x[2];
    m.nheads = (int)x[3];
    m.nkv = (int)x[4];
    m.nff = (int)x[5];
    m.vocab = (int)x[6];
    m.nctx = (int)x[7];
    m.eps = x[8];
    m.rope_theta = x[9];
    fl_free(x);
    return m;
}

static int *torch_ints(const fixture *f, const char *name, int *count)
{
    size_t n;
    float *x = fixture_get(f, "", name, &n);
    int *y = fl_alloc("test", n, sizeof *y);

    for (size_t i = 0; i < n; i++) {
        y[i] = (int)x[i];
    }
    *count = (int)n;
    fl_free(x);
    return y;
}

static void torch_batch(const fixture *f, bed *b)
{
    int nstart, nt, ntarget;

    fl_free(b->start);
    fl_free(b->token);
    fl_free(b->target);
    b->start = torch_ints(f, "start", &nstart);
    b->token = torch_ints(f, "token", &nt);
    b->target = torch_ints(f, "target", &ntarget);
    assert_int_equal(nt, ntarget);
    b->batch = (fl_batch){nstart - 1, nt, b->start, b->token, b->target};
}

/* both factors of every site: into the adapter, or compared with it */
static void torch_factors(const fixture *f, const char *tag, const fl_adapter *ad, bool compare)
{
    const fl_space *space = ad->space;

    for (int i = 0; i < space->nslots; i++) {
        const fl_slot *s = &space->slot[i];
        size_t n = (size_t)s->rows * (size_t)s->cols;
        char prefix[16], site[40];
        char factor = s->factor == FL_A ? 'A' : 'B';
        snprintf(prefix, sizeof prefix, "%s%c%s.", tag[0] == 'd' ? "d" : "", factor,
            tag[0] == 'd' ? "" : tag);
        snprintf(site, sizeof site, "%.*s", (int)strlen(s->name) - 2, s->name);
        if (compare) {
            expect_array(f, prefix, site, n, ad->v + s->at);
        } else {
            fixture_into(f, prefix, site, n, ad->v + s->at);
        }
    }
}

static void check_torch(const char *path)
{
    fixture f = fixture_read(path);
    bed b;
    int n;
    fl_optim opt;

    bed_create(&b, torch_shape(&f), 1, (const int[]){4}, (const unsigned[]){0x7f});
    fl_adapter_destroy(&b.ad[0]);
    fl_adapter_destroy(&b.grad[0]);
    fl_work_destroy(&b.work);
    int rank[32];
    for (int i = 0; i < b.m.nsites; i++) {
        rank[i] = 4;
    }
    const fl_space *space = fl_space_lora(b.reg, b.m.nsites, b.m.site, rank, 8, false);
    b.pass.ad[0] = b.ad[0] = fl_adapter_create(space);
    b.pass.grad[0] = b.grad[0] = fl_adapter_create(space);
    b.work = fl_work_create(&b.m, 20, 3, 12, 4, true);
    b.pass.dw = b.dw;
    torch_batch(&f, &b);
    torch_factors(&f, "", b.ad[0], false);
    for (int i = 0; i < b.m.ntensors; i++) {
        const fl_tensor *t = &b.m.tensor[i];
        fixture_into(&f, "w.", t->name, (size_t)t->rows * (size_t)t->cols, b.base + t->at);
    }

    float loss = (float)(fl_nn_loss(b.work, &b.pass, &b.batch, &n) / n);
    assert_int_equal(n, 16);
    expect_array(&f, "", "loss", 1, &loss);
    expect_array(&f, "", "logits", 20 * (size_t)b.m.vocab, fl_nn_logits(b.work));
    loss = (float)fl_nn_grad(b.work, &b.pass, &b.batch, &n);
    expect_array(&f, "", "loss", 1, &loss);
    expect_array(&f, "", "logits", 20 * (size_t)b.m.vocab, fl_nn_logits(b.work));
    torch_factors(&f, "d", b.grad[0], true);
    for (int i = 0; i < b.m.ntensors; i++) {
        const fl_tensor *t = &b.m.tensor[i];
        expect_array(&f, "dw.", t->name, (size_t)t->rows * (size_t)t->cols, b.dw[i]);
    }

    fl_range all = {0, space->n};
    fl_optim_create(&opt, FL_OPT_ADAMW, 0.9, 0.99, 1e-6, 0.1, 0, space->n);
    for (int step = 1; step <= 3; step++) {
        fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        fl_optim_step(&opt, 1e-2, 1, &all, b.grad[0]->v, b.ad[0]->v);
        if (step != 2) {
            torch_factors(&f, step == 1 ? "1" : "3", b.ad[0], true);
        }
    }
    fl_optim_destroy(&opt);
    bed_destroy(&b);
    fl_free(f.s);
}

static void test_torch_llama(void **state)
{
    (void)state;
    check_torch("tests/fixtures/nn_llama.bin");
}

static void test_torch_gpt2(void **state)
{
    (void)state;
    check_torch("tests/fixtures/nn_gpt2.bin");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_torch_llama),
    cmocka_unit_test(test_torch_gpt2),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
