/* The engine in float: against PyTorch (fixtures written by tests/interop/make_nn_fixture.py), sums over sequences, bits. */
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

static void expect_array(const fixture *f, const char *prefix, const char *name, size_t n, const float *x)
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
        snprintf(prefix, sizeof prefix, "%s%c%s.", tag[0] == 'd' ? "d" : "", factor, tag[0] == 'd' ? "" : tag);
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

/* ---- sums over sequences ---- */
static const int r2[] = {2, 1};
static const unsigned everywhere[] = {0x7f, 0x7f};

/* sequence s of the bed's batch as a batch of its own; start: room for two */
static fl_batch one_sequence(const bed *b, int s, int *start)
{
    int at = b->start[s];

    start[0] = 0;
    start[1] = b->start[s + 1] - at;
    return (fl_batch){1, start[1], start, b->token + at, b->target + at};
}

static void test_sum_of_sequences(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        int n, total = 0, start[2];
        bed_create(&b, bed_shape(family), 1, r2, everywhere);
        bed_batch(&b, 2, (const int[]){9, 70});
        b.pass.grad[0] = b.grad[0];
        size_t size = b.grad[0]->space->n;
        float *sum = fl_alloc("test", size, sizeof *sum), *both = fl_alloc("test", size, sizeof *both);
        double loss = 0;
        for (int s = 0; s < 2; s++) {
            fl_batch one = one_sequence(&b, s, start);
            double mean = fl_nn_grad(b.work, &b.pass, &one, &n);
            loss += mean * n;
            total += n;
            for (size_t i = 0; i < size; i++) {
                sum[i] += b.grad[0]->v[i] * (float)n;
            }
        }
        double together = fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        assert_int_equal(n, total);
        assert_true(fabs(together * n - loss) < 1e-6 * loss);
        for (size_t i = 0; i < size; i++) {
            both[i] = b.grad[0]->v[i] * (float)n;
        }
        assert_true(bed_error(size, both, sum) < 2e-6);
        fl_free(sum);
        fl_free(both);
        bed_destroy(&b);
    }
}

static void test_permuted_sequences(void **state)
{
    (void)state;
    enum { LONG = 70, SHORT = 9, NT = LONG + SHORT };
    for (int family = 0; family < 2; family++) {
        bed b;
        int n, token[NT], target[NT], start[] = {0, LONG, NT};
        bed_create(&b, bed_shape(family), 1, r2, everywhere);
        bed_batch(&b, 2, (const int[]){SHORT, LONG});
        size_t nv = (size_t)b.m.vocab;
        memcpy(token, b.token + SHORT, LONG * sizeof *token);
        memcpy(token + LONG, b.token, SHORT * sizeof *token);
        memcpy(target, b.target + SHORT, LONG * sizeof *target);
        memcpy(target + LONG, b.target, SHORT * sizeof *target);
        fl_batch turned = {2, NT, start, token, target};
        double loss = fl_nn_loss(b.work, &b.pass, &b.batch, &n);
        float *z = fl_alloc("test", NT * nv, sizeof *z);
        memcpy(z, fl_nn_logits(b.work), NT * nv * sizeof *z);
        assert_true(fabs(fl_nn_loss(b.work, &b.pass, &turned, &n) - loss) < 1e-6 * loss);
        const float *y = fl_nn_logits(b.work);
        assert_true(bed_error(LONG * nv, y, z + SHORT * nv) < 2e-6);
        assert_true(bed_error(SHORT * nv, y + LONG * nv, z) < 2e-6);
        fl_free(z);
        bed_destroy(&b);
    }
}

/* a change of a later token changes no earlier logit */
static void test_causal(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        int n;
        bed_create(&b, bed_shape(family), 0, NULL, NULL);
        bed_batch(&b, 1, (const int[]){70});
        size_t nv = (size_t)b.m.vocab, before = 40;
        float z[70 * 13];
        fl_nn_loss(b.work, &b.pass, &b.batch, &n);
        memcpy(z, fl_nn_logits(b.work), 70 * nv * sizeof *z);
        b.token[before] = (b.token[before] + 1) % b.m.vocab;
        fl_nn_loss(b.work, &b.pass, &b.batch, &n);
        const float *y = fl_nn_logits(b.work);
        assert_memory_equal(y, z, before * nv * sizeof *z);
        assert_true(bed_error(nv, y + before * nv, z + before * nv) > 1e-3);
        bed_destroy(&b);
    }
}

/* ---- bits ---- same call, whatever the workspace held before, wherever it is and however large it is */
static uint64_t grad_bits(bed *b, fl_work *work)
{
    int n;
    double loss = fl_nn_grad(work, &b->pass, &b->batch, &n);
    uint64_t h = fl_hash(&loss, sizeof loss, 0);

    h = fl_hash(b->dbase, fl_model_bytes(&b->m), h);
    for (int j = 0; j < b->pass.n; j++) {
        h = fl_adapter_hash(b->grad[j], h);
    }
    return h;
}

static void test_bits(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        int n;
        bed_create(&b, bed_shape(family), 2, r2, everywhere);
        bed_batch(&b, 3, (const int[]){9, 70, 33});
        b.pass.dropout = 0.1;
        b.pass.dw = b.dw;
        b.pass.grad[0] = b.grad[0];
        b.pass.grad[1] = b.grad[1];
        uint64_t first = grad_bits(&b, b.work);
        assert_true(grad_bits(&b, b.work) == first);

        b.base[7] = NAN; /* every activation and gradient becomes NaN, then they are used again */
        for (int i = 0; i < b.m.ntensors; i++) {
            b.base[b.m.tensor[i].at] = NAN;
        }
        assert_true(isnan(fl_nn_grad(b.work, &b.pass, &b.batch, &n)));
        bed clean;
        bed_create(&clean, bed_shape(family), 2, r2, everywhere);
        memcpy(b.base, clean.base, fl_model_bytes(&b.m));
        assert_true(grad_bits(&b, b.work) == first);
        bed_destroy(&clean);

        fl_work *larger = fl_work_create(&b.m, 333, 9, 121, 11, true);
        assert_true(grad_bits(&b, larger) == first);
        double loss = fl_nn_loss(larger, &b.pass, &b.batch, &n);
        fl_work_destroy(&larger);
        larger = fl_work_create(&b.m, 112, 3, 70, 5, false); /* without room for backward */
        assert_true(fl_nn_loss(larger, &b.pass, &b.batch, &n) == loss);
        fl_work_destroy(&larger);

        b.pass.step++; /* another mask */
        assert_true(grad_bits(&b, b.work) != first);
        bed_destroy(&b);
    }
}

static void test_unaligned_weights(void **state)
{
    (void)state;
    bed b;
    bed_create(&b, bed_shape(FL_FAMILY_GPT2), 1, r2, everywhere);
    b.pass.dw = b.dw;
    b.pass.grad[0] = b.grad[0];
    uint64_t first = grad_bits(&b, b.work);
    size_t elements = fl_model_bytes(&b.m) / sizeof(float);
    float *moved = fl_alloc("test", elements + 3, sizeof *moved);
    memcpy(moved + 3, b.base, fl_model_bytes(&b.m));
    for (int i = 0; i < b.m.ntensors; i++) {
        b.w[i] = moved + 3 + b.m.tensor[i].at;
    }
    assert_true(grad_bits(&b, b.work) == first);
    fl_free(moved);
    bed_destroy(&b);
}

static void test_nothing_counts(void **state)
{
    (void)state;
    bed b;
    int n = -1, start[] = {0};
    fl_batch none = {.nseq = 0, .ntokens = 0, .start = start};
    bed_create(&b, bed_shape(FL_FAMILY_LLAMA), 1, r2, everywhere);
    b.pass.dw = b.dw;
    b.pass.grad[0] = b.grad[0];
    grad_bits(&b, b.work);
    for (int t = 0; t < b.batch.ntokens; t++) {
        b.target[t] = -1;
    }
    assert_true(fl_nn_grad(b.work, &b.pass, &b.batch, &n) == 0 && n == 0);
    assert_true(fl_adapter_norm(b.grad[0]) == 0);
    for (int i = 0; i < b.m.ntensors; i++) {
        for (int j = 0; j < b.m.tensor[i].rows * b.m.tensor[i].cols; j++) {
            assert_true(b.dw[i][j] == 0);
        }
    }
    assert_true(fl_nn_loss(b.work, &b.pass, &b.batch, &n) == 0 && n == 0);
    assert_true(fl_nn_loss(b.work, &b.pass, &none, &n) == 0 && n == 0);
    bed_destroy(&b);
}

/* the mask drops the share it says and keeps the mean: E[B A dropout(x)] = B A x */
static void test_dropout_mean(void **state)
{
    (void)state;
    enum { DRAWS = 2000 };
    bed b;
    int n;
    double sum = 0, sum2 = 0;
    bed_create(&b, bed_shape(FL_FAMILY_LLAMA), 1, r2, (const unsigned[]){0x40}); /* down only, the last thing before the norm */
    fl_work *work = fl_work_create(&b.m, 15, 3, 9, 3, false);
    for (size_t i = 0; i < b.ad[0]->space->n; i++) {
        b.ad[0]->v[i] *= 0.03f; /* small: the loss is linear in the change */
    }
    double plain = fl_nn_loss(work, &b.pass, &b.batch, &n);
    b.pass.dropout = 0.4;
    for (int i = 0; i < DRAWS; i++) {
        b.pass.step = i;
        double change = fl_nn_loss(work, &b.pass, &b.batch, &n) - plain;
        sum += change;
        sum2 += change * change;
    }
    double mean = sum / DRAWS, spread = sqrt((sum2 / DRAWS - mean * mean) / DRAWS);
    assert_true(spread > 0 && fabs(mean) < 5 * spread);
    fl_work_destroy(&work);
    bed_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_torch_llama),
    cmocka_unit_test(test_torch_gpt2),
    cmocka_unit_test(test_sum_of_sequences),
    cmocka_unit_test(test_permuted_sequences),
    cmocka_unit_test(test_causal),
    cmocka_unit_test(test_bits),
    cmocka_unit_test(test_unaligned_weights),
    cmocka_unit_test(test_nothing_counts),
    cmocka_unit_test(test_dropout_mean),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
