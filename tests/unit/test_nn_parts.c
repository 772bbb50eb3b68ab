/* Parts of the engine: shapes and their refusals, the layout of tensors and sites, the merge, the
 * optimisers, the exponential, the count of work. */
#include "../../src/nn/nn_internal.h"
#include "../../src/nn/vec.h"
#include "nn_bed.h"

static void expect_refused(fl_model m, const char *word)
{
    fl_error_clear();
    assert_int_equal(fl_model_complete(&m), FL_EDECK);
    if (!strstr(fl_error_text(), word)) {
        fail_msg("\"%s\" does not mention \"%s\"", fl_error_text(), word);
    }
    fl_error_clear();
}

static void test_bad_shapes(void **state)
{
    (void)state;
    fl_model good = bed_shape(FL_FAMILY_LLAMA), m;

    int *size[] = {&m.nlayers, &m.nd, &m.nheads, &m.nkv, &m.nff, &m.vocab, &m.nctx};
    for (size_t i = 0; i < FL_COUNT(size); i++) {
        m = good;
        *size[i] = 0;
        expect_refused(m, "at least 1");
        *size[i] = -3;
        expect_refused(m, "at least 1");
    }
    m = good, m.nd = 18;
    expect_refused(m, "do not divide the width 18");
    m = good, m.nkv = 3;
    expect_refused(m, "3 key/value heads");
    m = good, m.hd = 5;
    expect_refused(m, "even");
    m = good, m.nd = 12;
    expect_refused(m, "even"); /* 12 / 4 = 3 */
    m = good, m.hd = -4;
    expect_refused(m, "width of a head");
    m = good, m.family = FL_FAMILY_GPT2, m.hd = 6;
    expect_refused(m, "GPT-2");
    m = good, m.family = 9;
    expect_refused(m, "family");
    m = good, m.eps = NAN;
    expect_refused(m, "eps");
    m = good, m.rope_theta = 0;
    expect_refused(m, "rope_theta");
    m = good, m.nheads = m.nkv = INT32_MAX, m.hd = INT32_MAX - 1;
    expect_refused(m, "32-bit");
    m = good, m.nff = 1 << 30;
    expect_refused(m, "32-bit");
    m = good, m.nd = m.vocab = m.nctx = 1 << 30, m.hd = 1 << 20;
    expect_refused(m, "addressed");
    m = good, m.nlayers = INT32_MAX;
    expect_refused(m, "blocks");
}

static void test_layout(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        bed_create(&b, bed_shape(family), 0, NULL, NULL);
        size_t end = 0, sum = 0;
        for (int i = 0; i < b.m.ntensors; i++) {
            const fl_tensor *t = &b.m.tensor[i];
            assert_true(t->at * sizeof(fl_real) % 64 == 0 && t->at >= end);
            end = t->at + (size_t)t->rows * (size_t)t->cols;
            sum += (size_t)t->rows * (size_t)t->cols;
        }
        assert_true(sum == b.m.nweights && fl_model_bytes(&b.m) >= end * sizeof(fl_real));
        assert_true(fl_model_bytes(&b.m) % 64 == 0);
        bed_destroy(&b);
    }
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    int tensor, row0;
    assert_int_equal(fl_model_complete(&m), FL_OK);
    assert_int_equal(m.ntensors, 1 + 2 * 6 + 2);
    assert_string_equal(m.tensor[8].name, "1.qkv");
    assert_int_equal(m.tensor[8].rows, (4 + 2 * 2) * 4);
    assert_int_equal(m.nsites, 14);
    assert_string_equal(m.site[7 + 4].name, "1.gate");
    fl_model_site_tensor(&m, 7 + 2, &tensor, &row0); /* 1.v */
    assert_true(tensor == 8 && row0 == (4 + 2) * 4 && m.site[9].m == 8 && m.site[9].n == 16);
    fl_model_site_tensor(&m, 5, &tensor, &row0);
    assert_true(strcmp(m.tensor[tensor].name, "0.up") == 0 && row0 == m.nff);
    assert_int_equal(fl_model_site_named(&m, 1, "down"), 13);
    assert_int_equal(fl_model_site_named(&m, 2, "down"), -1);
    assert_int_equal(fl_model_site_named(&m, 0, "head"), -1);
    fl_model_free(&m);
}

/* standard deviations of the start, and that they do not depend on what the memory held */
static void test_init(void **state)
{
    (void)state;
    fl_model m = bed_shape(FL_FAMILY_GPT2);
    m.nd = m.nff = 64;
    m.nlayers = 3;
    assert_int_equal(fl_model_complete(&m), FL_OK);
    size_t bytes = fl_model_bytes(&m);
    fl_real *x = fl_alloc("test", bytes, 1), *y = fl_alloc("test", bytes, 1);
    memset(y, 0x55, bytes);
    fl_model_init(&m, 4, x);
    fl_model_init(&m, 4, y);
    assert_memory_equal(x, y, bytes);
    for (int i = 0; i < m.ntensors; i++) {
        const fl_tensor *t = &m.tensor[i];
        double n = (double)t->rows * t->cols, sum = 0, sum2 = 0, want = 0.02;
        for (size_t j = 0; j < (size_t)n; j++) {
            sum += x[t->at + j];
            sum2 += (double)x[t->at + j] * x[t->at + j];
        }
        if (strstr(t->name, "norm") && !strstr(t->name, "bias")) {
            assert_true(sum == n && sum2 == n);
            continue;
        }
        if (strstr(t->name, "bias")) {
            assert_true(sum2 == 0);
            continue;
        }
        want *= strstr(t->name, ".o") || strstr(t->name, ".down") ? 1 / sqrt(6.0) : 1;
        assert_true(fabs(sum / n) < 5 * want / sqrt(n)); /* five standard errors */
        assert_true(fabs(sqrt(sum2 / n) / want - 1) < 5 / sqrt(2 * n));
    }
    fl_free(x);
    fl_free(y);
    fl_model_free(&m);
}

/* W += c s B A at the site's rows and nowhere else; and the merged model is the model with its
 * adapter */
static void test_merge(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        int n;
        bed_create(&b, bed_shape(family), 1, (const int[]){2}, (const unsigned[]){0x7f});
        double loss = fl_nn_loss(b.work, &b.pass, &b.batch, &n);
        for (int site = 0; site < b.m.nsites; site++) {
            int tensor, row0;
            fl_model_site_tensor(&b.m, site, &tensor, &row0);
            const fl_tensor *t = &b.m.tensor[tensor];
            fl_real *w = b.base + t->at,
                    *old = fl_alloc("test", (size_t)t->rows * (size_t)t->cols, sizeof *old);
            memcpy(old, w, (size_t)t->rows * (size_t)t->cols * sizeof *old);
            fl_linear_merge(&b.m, site, w, b.ad[0], 1);
            fl_mat a = fl_at(b.ad[0], site, FL_A), bb = fl_at(b.ad[0], site, FL_B);
            for (int i = 0; i < t->rows; i++) {
                for (int j = 0; j < t->cols; j++) {
                    double want = old[i * t->cols + j];
                    int row = i - row0;
                    for (int l = 0; l < a.rows && row >= 0 && row < bb.rows; l++) {
                        want += b.ad[0]->space->scale[site] * bb.x[row * a.rows + l] *
                                a.x[l * t->cols + j];
                    }
                    assert_true(fabs(w[i * t->cols + j] - want) <= 1e-7 * fmax(1, fabs(want)));
                }
            }
            fl_free(old);
        }
        b.pass.n = 0;
        assert_true(fabs(fl_nn_loss(b.work, &b.pass, &b.batch, &n) - loss) < 2e-6 * loss);
        bed_destroy(&b);
    }
}

/* e^x within 2 units in the last place wherever it is a normal number */
static void test_exponential(void **state)
{
    (void)state;
    double worst = 0;

    for (int i = 0; i <= 2000000; i++) {
        float x = -87.3f + (float)i * 8.8e-5f;
        double want = exp((double)x), ulp = ldexp(1, ilogb(want) - 23);
        if (want <= 3.4e38) {
            worst = fmax(worst, fabs(nn_exp(x) - want) / ulp);
        }
    }
    assert_true(worst < 2);
    assert_true(nn_exp(0) == 1 && nn_exp(-INFINITY) == 0 && nn_exp(-90) == 0 &&
                nn_exp(INFINITY) == INFINITY);
    assert_true(nn_exp(100) == INFINITY && isnan(nn_exp(NAN)));
    assert_true(nn_sigmoid(-INFINITY) == 0 && nn_sigmoid(INFINITY) == 1 && nn_sigmoid(0) == 0.5f);
}

static void test_reductions(void **state)
{
    (void)state;
    float x[70], y[70];

    bed_fill(1, 1, -3, 70, x);
    bed_fill(2, 1, 0, 70, y);
    for (int n = 1; n <= 70; n++) {
        double sum = 0, dot = 0, most = x[0];
        for (int i = 0; i < n; i++) {
            sum += x[i];
            dot += (double)x[i] * y[i];
            most = fmax(most, x[i]);
        }
        assert_true(
            fabs(nn_sum(n, x) - sum) < 1e-6 * 4 * n && fabs(nn_dot(n, x, y) - dot) < 1e-6 * 4 * n);
        assert_true(nn_max(n, x) == most);
    }
}

/* torch.optim.SGD with momentum and L2 decay, two ranges, the rest untouched; AdamW is held against
 * torch in test_nn.c */
static void test_sgd(void **state)
{
    (void)state;
    enum { N = 40 };
    const fl_range range[] = {{3, 5}, {20, 17}};
    for (int momentum = 0; momentum < 2; momentum++) {
        float x[N], g[N];
        double want[N], buffer[N] = {0};
        fl_optim opt;
        fl_optim_create(&opt, FL_OPT_SGD, 0, 0, 0, 0.01, 0.9 * momentum, N);
        bed_fill(1, 1, 0, N, x);
        for (int i = 0; i < N; i++) {
            want[i] = x[i];
        }
        for (int step = 0; step < 5; step++) {
            bed_fill(10 + step, 1, 0, N, g);
            fl_optim_step(&opt, 0.1, 2, range, g, x);
            for (int i = 0; i < N; i++) {
                bool trains = (i >= 3 && i < 8) || (i >= 20 && i < 37);
                double gi = g[i] + 0.01 * want[i];
                buffer[i] = step == 0 ? gi : 0.9 * momentum * buffer[i] + gi;
                want[i] -= trains ? 0.1 * buffer[i] : 0;
            }
        }
        for (int i = 0; i < N; i++) {
            assert_true(fabs(x[i] - want[i]) < 1e-6);
        }
        assert_int_equal(opt.step, 5);
        fl_optim_destroy(&opt);
    }
}

static void test_clip(void **state)
{
    (void)state;
    float g[30];
    const fl_range range[] = {{0, 10}, {12, 18}};
    double sum = 0;

    bed_fill(1, 2, 0, 30, g);
    for (int i = 0; i < 30; i++) {
        sum += i < 10 || i >= 12 ? (double)g[i] * g[i] : 0;
    }
    float outside = g[11], inside = g[12];
    assert_true(fabs(fl_clip(0, 2, range, g) - sqrt(sum)) < 1e-12);
    assert_true(fl_clip(1e3, 2, range, g) > 0 && g[12] == inside);
    fl_clip(0.5, 2, range, g);
    assert_true(fabs(fl_clip(0, 2, range, g) - 0.5) < 1e-6 && g[11] == outside);
}

static void test_schedules(void **state)
{
    (void)state;
    for (int kind = FL_SCHEDULE_CONSTANT; kind <= FL_SCHEDULE_COSINE; kind++) {
        double before = 0;
        for (int i = 0; i < 100;
             i++) { /* rises for ten steps, is 1 at the eleventh, never rises after */
            double f = fl_schedule(kind, 0.1, i, 100);
            assert_true(
                f > 0 && f <= 1 && (i <= 10 ? f > before : f <= before) && (i != 10 || f == 1));
            before = f;
        }
        assert_true(fl_schedule(kind, 0, 0, 1) == 1);
        assert_true(
            fabs(fl_schedule(kind, 0, 50, 100) - (kind == FL_SCHEDULE_CONSTANT ? 1 : 0.5)) < 1e-15);
    }
    assert_true(fabs(fl_schedule(FL_SCHEDULE_LINEAR, 0, 99, 100) - 0.01) < 1e-15);
}

/* one block, one adapter at v: counted by hand */
static void test_flops(void **state)
{
    (void)state;
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    m.nlayers = 1;
    assert_int_equal(fl_model_complete(&m), FL_OK);
    fl_spaces *reg = fl_spaces_create();
    const fl_space *v =
        fl_space_lora(reg, m.nsites, m.site, (const int[]){0, 0, 3, 0, 0, 0, 0}, 1, false);
    double qkv = 32 * 16, o = 16 * 16, up = 40 * 16, down = 20 * 16, head = 13 * 16,
           att = 2 * 5 * 16, lora = 3 * (8 + 16);
    double forward = qkv + o + up + down + head + att;

    assert_true(fl_model_flops(&m, NULL, 10, 9, false) == 20 * forward);
    assert_true(fl_model_flops(&m, v, 10, 9, false) == 20 * (forward + lora));
    /* backward to v: no product with qkv's weight; dB, dh and dA of the adapter, no dx */
    assert_true(fl_model_flops(&m, v, 10, 9, true) ==
                20 * (2 * forward + att - qkv + lora + 3 * 2 * 8 + 3 * 16));
    /* everything trains: every product three times */
    assert_true(fl_model_flops(&m, NULL, 10, 9, true) == 20 * 3 * forward);
    fl_spaces_destroy(&reg);
    fl_model_free(&m);
}

static void test_bench(void **state)
{
    (void)state;
    fl_model m = bed_shape(FL_FAMILY_GPT2);
    fl_text t = {0};

    assert_int_equal(fl_model_complete(&m), FL_OK);
    assert_int_equal(fl_bench_train(&m, NULL, &t), FL_OK);
    assert_non_null(strstr(t.s, "GFLOP/s (the limit"));
    assert_non_null(strstr(t.s, "width 16"));
    fl_text_free(&t);
    fl_model_free(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_bad_shapes),
    cmocka_unit_test(test_layout),
    cmocka_unit_test(test_init),
    cmocka_unit_test(test_merge),
    cmocka_unit_test(test_exponential),
    cmocka_unit_test(test_reductions),
    cmocka_unit_test(test_sgd),
    cmocka_unit_test(test_clip),
    cmocka_unit_test(test_schedules),
    cmocka_unit_test(test_flops),
    cmocka_unit_test(test_bench),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
