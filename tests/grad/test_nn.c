/* Gradients of the engine against central differences, in double: every operation, then whole models of both families.
 * Error of (f(x + h) - f(x - h)) / 2h with h = 1e-5: h^2 f'''/6 + eps f / h, about 1e-10; errors are relative to the norm
 * of the array. */
#include "../../src/nn/nn_internal.h"
#include "nn_bed.h"

#define STEP 1e-5
#define LIMIT 1e-7

/* ---- one operation: the scalar is sum c y(x), so its gradient is the backward of c ---- */
typedef double scalar(void *what);

static void differences(scalar *f, void *what, size_t n, double *x, double *d)
{
    for (size_t i = 0; i < n; i++) {
        double keep = x[i], up, down;
        x[i] = keep + STEP;
        up = f(what);
        x[i] = keep - STEP;
        down = f(what);
        x[i] = keep;
        d[i] = (up - down) / (2 * STEP);
    }
}

static void expect_gradient(scalar *f, void *what, size_t n, double *x, const double *g, const char *name)
{
    double *d = fl_alloc("differences", n, sizeof *d), norm = 0, error;

    differences(f, what, n, x, d);
    for (size_t i = 0; i < n; i++) {
        norm += d[i] * d[i];
    }
    error = bed_error(n, g, d);
    if (!(norm > 0) || !(error < LIMIT)) {
        fail_msg("%s: gradient off by %.3g (norm %.3g)", name, error, sqrt(norm));
    }
    fl_free(d);
}

static double weighted(size_t n, const double *c, const double *y)
{
    double s = 0;

    for (size_t i = 0; i < n; i++) {
        s += c[i] * y[i];
    }
    return s;
}

enum { ROWS = 3, WIDE = 21, NORM = ROWS * WIDE };
typedef struct norm_case {
    bool layer;
    double x[NORM], w[WIDE], b[WIDE], c[NORM], y[NORM], mean[ROWS], rstd[ROWS];
} norm_case;

static double norm_scalar(void *what)
{
    norm_case *t = what;

    nn_norm_forward(ROWS, WIDE, 1e-5, t->x, t->w, t->layer ? t->b : NULL, t->y, t->mean, t->rstd);
    return weighted(NORM, t->c, t->y);
}

static void test_norms(void **state)
{
    (void)state;
    for (int layer = 0; layer < 2; layer++) {
        norm_case t = {.layer = layer};
        double dx[NORM] = {0}, dw[WIDE], db[WIDE];
        bed_fill(1, 1, 0.5, NORM, t.x);
        bed_fill(2, 0.3, 1, WIDE, t.w);
        bed_fill(3, 0.3, 0, WIDE, t.b);
        bed_fill(4, 1, 0, NORM, t.c);
        norm_scalar(&t);
        nn_norm_backward(layer, ROWS, WIDE, t.x, t.w, t.mean, t.rstd, t.c, dx);
        nn_norm_weights(layer, ROWS, WIDE, t.x, t.mean, t.rstd, t.c, dw, db);
        expect_gradient(norm_scalar, &t, NORM, t.x, dx, layer ? "LayerNorm x" : "RMSNorm x");
        expect_gradient(norm_scalar, &t, WIDE, t.w, dw, layer ? "LayerNorm w" : "RMSNorm w");
        if (layer) {
            expect_gradient(norm_scalar, &t, WIDE, t.b, db, "LayerNorm b");
        }
    }
}

enum { ACT_ROWS = 2, ACT = 19 };
typedef struct act_case {
    bool gated;
    double up[ACT_ROWS * 2 * ACT], y[ACT_ROWS * ACT], c[ACT_ROWS * ACT];
} act_case;

static double act_scalar(void *what)
{
    act_case *t = what;

    nn_activation_forward(t->gated, ACT_ROWS, ACT, t->up, t->y);
    return weighted(ACT_ROWS * ACT, t->c, t->y);
}

static void test_activations(void **state)
{
    (void)state;
    for (int gated = 0; gated < 2; gated++) {
        act_case t = {.gated = gated};
        size_t n = (size_t)(ACT_ROWS * ACT * (1 + gated));
        double d[ACT_ROWS * 2 * ACT];
        bed_fill(1, 2, 0, n, t.up);
        bed_fill(2, 1, 0, ACT_ROWS * ACT, t.c);
        nn_activation_backward(gated, ACT_ROWS, ACT, t.up, t.c, d);
        expect_gradient(act_scalar, &t, n, t.up, d, gated ? "silu gate" : "gelu");
        if (!gated) { /* the sigmoid form is the tanh form */
            double v = t.up[0], u = sqrt(2 / acos(-1.0)) * (v + 0.044715 * v * v * v);
            act_scalar(&t);
            assert_true(fabs(t.y[0] - 0.5 * v * (1 + tanh(u))) < 1e-14);
        }
    }
}

/* ---- attention: two sequences, one longer than a tile, four heads on two key/value heads ---- */
enum { AT_HEADS = 4, AT_KV = 2, AT_HD = 6, AT_LD = (AT_HEADS + 2 * AT_KV) * AT_HD, AT_OUT = AT_HEADS * AT_HD };
typedef struct attention_case {
    bed b;
    nn_saved s;
    double *c;
} attention_case;

static double attention_scalar(void *what)
{
    attention_case *t = what;

    nn_attention_forward(t->b.work, &t->b.batch, &t->s);
    return weighted((size_t)t->b.batch.ntokens * AT_OUT, t->c, t->s.att);
}

/* one query row by the definition */
static void attention_naive(const double *qkv, int from, int t, int h, double *o)
{
    double p[128], sum = 0;
    int kv = h / (AT_HEADS / AT_KV);
    const double *q = qkv + t * AT_LD + h * AT_HD;

    memset(o, 0, AT_HD * sizeof *o);
    for (int j = from; j <= t; j++) {
        p[j - from] = exp(weighted(AT_HD, q, qkv + j * AT_LD + (AT_HEADS + kv) * AT_HD) / sqrt(AT_HD));
        sum += p[j - from];
    }
    for (int j = from; j <= t; j++) {
        for (int i = 0; i < AT_HD; i++) {
            o[i] += p[j - from] / sum * qkv[j * AT_LD + (AT_HEADS + AT_KV + kv) * AT_HD + i];
        }
    }
}

static void test_attention(void **state)
{
    (void)state;
    attention_case t;
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    m.hd = AT_HD;
    bed_create(&t.b, m, 0, NULL, NULL);
    bed_batch(&t.b, 3, (const int[]){4, 0, 67});
    size_t nt = (size_t)t.b.batch.ntokens;
    double *d = fl_alloc("test", nt * AT_LD, sizeof *d), *diff = fl_alloc("test", nt * AT_LD, sizeof *d);
    t.s = t.b.work->saved[0];
    t.c = fl_alloc("test", nt * AT_OUT, sizeof *t.c);
    bed_fill(1, 0.8, 0, nt * AT_LD, t.s.qkv);
    bed_fill(2, 1, 0, nt * AT_OUT, t.c);

    attention_scalar(&t);
    for (int i = 0; i < t.b.batch.ntokens; i++) {
        for (int h = 0; h < AT_HEADS; h++) {
            double o[AT_HD];
            attention_naive(t.s.qkv, i < 4 ? 0 : 4, i, h, o);
            assert_true(bed_error(AT_HD, t.s.att + i * AT_OUT + h * AT_HD, o) < 1e-13);
        }
    }
    nn_attention_backward(t.b.work, &t.b.batch, &t.s, t.c, d);
    expect_gradient(attention_scalar, &t, nt * AT_LD, t.s.qkv, d, "attention");
    fl_free(d);
    fl_free(diff);
    fl_free(t.c);
    bed_destroy(&t.b);
}

/* turned by its angle, and back; as complex numbers, z e^(i t theta^(-2j/hd)) */
static void test_rotary(void **state)
{
    (void)state;
    enum { HD = 6, LENGTH = 5, HEADS = 2, LD = 15 };
    const int start[] = {0, 2, 7};
    fl_batch batch = {.nseq = 2, .ntokens = 7, .start = start};
    double c[LENGTH * HD / 2], s[LENGTH * HD / 2], x[7 * LD], y[7 * LD];

    nn_rotary_table(LENGTH, HD, 100, c, s);
    bed_fill(1, 1, 0, FL_COUNT(x), x);
    memcpy(y, x, sizeof y);
    nn_rotary(&batch, HEADS, HD, LD, 1, c, s, y);
    for (int t = 0; t < 7; t++) {
        for (int i = 0; i < LD; i++) {
            double angle = (t < 2 ? t : t - 2) * pow(100, -2.0 * (i % HD % 3) / HD), want = x[t * LD + i];
            if (i < HEADS * HD) {
                const double *head = x + t * LD + i / HD * HD;
                int j = i % HD % 3;
                want = i % HD < 3 ? head[j] * cos(angle) - head[j + 3] * sin(angle)
                                  : head[j + 3] * cos(angle) + head[j] * sin(angle);
            }
            assert_true(fabs(y[t * LD + i] - want) < 1e-14);
        }
    }
    nn_rotary(&batch, HEADS, HD, LD, -1, c, s, y); /* the transpose of a turn is the turn back */
    assert_true(bed_error(FL_COUNT(x), y, x) < 1e-15);
}

typedef struct loss_case {
    bed b;
    double *head;
} loss_case;

static double loss_scalar(void *what)
{
    loss_case *t = what;

    return nn_loss(t->b.work, t->head, &t->b.batch, false, 0, NULL, NULL) / 12;
}

/* more rows than a chunk, every fifth without a target; 12 stands for the number of targets */
static void test_loss(void **state)
{
    (void)state;
    loss_case t;
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    m.vocab = 40000; /* chunks of 64 rows */
    bed_create(&t.b, m, 0, NULL, NULL);
    t.b.m.vocab = 37; /* the workspace keeps the shape by address; chunk and head shrink */
    assert_int_equal(nn_chunk(&t.b.m), 512);
    bed_batch(&t.b, 2, (const int[]){3, 9});
    size_t nt = 12, nd = (size_t)t.b.m.nd, nv = 37;
    double *dx = fl_alloc("test", nt * nd, sizeof *dx), *dh = fl_alloc("test", nv * nd, sizeof *dh);
    t.head = t.b.base;
    bed_fill(1, 1, 0, nt * nd, t.b.work->xf);
    nn_loss(t.b.work, t.head, &t.b.batch, true, 1.0 / 12, dx, dh);
    expect_gradient(loss_scalar, &t, nt * nd, t.b.work->xf, dx, "loss by x");
    expect_gradient(loss_scalar, &t, nv * nd, t.head, dh, "loss by head");
    for (size_t i = 0; i < nd; i++) {
        assert_true(dx[3 * nd + i] == 0); /* its target does not count */
    }
    fl_free(dx);
    fl_free(dh);
    bed_destroy(&t.b);
}

/* ---- whole models ---- */
static double bed_scalar(void *what)
{
    bed *b = what;
    int n;
    double sum = fl_nn_loss(b->work, &b->pass, &b->batch, &n);

    return sum / n;
}

static void expect_weights(bed *b)
{
    for (int i = 0; i < b->m.ntensors; i++) {
        const fl_tensor *t = &b->m.tensor[i];
        if (b->pass.dw[i]) {
            expect_gradient(bed_scalar, b, (size_t)t->rows * (size_t)t->cols, b->base + t->at, b->dw[i], t->name);
        }
    }
}

static void expect_adapters(bed *b)
{
    for (int j = 0; j < b->pass.n; j++) {
        const fl_space *space = b->ad[j]->space;
        for (int i = 0; b->pass.grad[j] && i < space->nslots; i++) {
            const fl_slot *s = &space->slot[i];
            size_t n = (size_t)s->rows * (size_t)s->cols;
            expect_gradient(bed_scalar, b, n, b->ad[j]->v + s->at, b->grad[j]->v + s->at, s->name);
        }
    }
}

static void check_model(fl_model m, double dropout, bool full)
{
    static const int r[] = {2, 1};
    static const unsigned sites[] = {0x7f, 0x7f};
    bed b;
    int n;

    bed_create(&b, m, 2, r, sites);
    b.pass.dropout = dropout;
    b.pass.grad[0] = b.grad[0];
    b.pass.grad[1] = b.grad[1];
    b.pass.dw = full ? b.dw : NULL;
    double loss = fl_nn_grad(b.work, &b.pass, &b.batch, &n);
    assert_true(n == 12 && fabs(loss - bed_scalar(&b)) < 1e-14);
    fl_nn_grad(b.work, &b.pass, &b.batch, &n);
    expect_adapters(&b);
    if (full) {
        expect_weights(&b);
    }
    bed_destroy(&b);
}

static void test_llama(void **state)
{
    (void)state;
    check_model(bed_shape(FL_FAMILY_LLAMA), 0, true);
}

static void test_llama_tied_with_wide_heads(void **state)
{
    (void)state;
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    m.tied = true;
    m.bias = true;
    m.hd = 6; /* heads need not fill the width */
    check_model(m, 0, true);
}

static void test_gpt2(void **state)
{
    (void)state;
    check_model(bed_shape(FL_FAMILY_GPT2), 0, true);
}

static void test_gpt2_untied(void **state)
{
    (void)state;
    fl_model m = bed_shape(FL_FAMILY_GPT2);
    m.tied = false;
    check_model(m, 0, true);
}

static void test_dropout(void **state)
{
    (void)state;
    check_model(bed_shape(FL_FAMILY_LLAMA), 0.3, false);
    check_model(bed_shape(FL_FAMILY_GPT2), 0.3, false);
}

/* one site trains, the other adapter is frozen: whatever backward skips, that site's gradient is there */
static void test_one_site(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        int per = family == FL_FAMILY_LLAMA ? 7 : 6;
        for (int s = 0; s < per; s++) {
            bed b;
            int n;
            bed_create(&b, bed_shape(family), 2, (const int[]){1, 1}, (const unsigned[]){0x7f, FL_BIT(s)});
            b.pass.grad[1] = b.grad[1];
            fl_nn_grad(b.work, &b.pass, &b.batch, &n);
            expect_adapters(&b);
            bed_destroy(&b);
        }
    }
}

/* every tensor alone has the gradient it has among all; the others are not touched */
static void test_one_tensor(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        bed b;
        int n;
        bed_create(&b, bed_shape(family), 0, NULL, NULL);
        size_t bytes = fl_model_bytes(&b.m), elements = bytes / sizeof(fl_real);
        double *all = fl_alloc("test", elements, sizeof *all);
        fl_real **one = fl_alloc("test", (size_t)b.m.ntensors, sizeof *one);
        b.pass.dw = b.dw;
        fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        memcpy(all, b.dbase, bytes);
        b.pass.dw = one;
        for (int i = 0; i < b.m.ntensors; i++) {
            const fl_tensor *t = &b.m.tensor[i];
            size_t at = t->at, size = (size_t)t->rows * (size_t)t->cols;
            for (size_t j = 0; j < elements; j++) {
                b.dbase[j] = 777;
            }
            one[i] = b.dw[i];
            fl_nn_grad(b.work, &b.pass, &b.batch, &n);
            one[i] = NULL;
            if (memcmp(all + at, b.dbase + at, size * sizeof *all) != 0) {
                fail_msg("%s alone differs", t->name);
            }
            for (size_t j = 0; j < elements; j++) {
                assert_true((j >= at && j < at + size) || b.dbase[j] == 777);
            }
        }
        fl_free(all);
        fl_free(one);
        bed_destroy(&b);
    }
}

static void test_skipped_factors(void **state)
{
    (void)state;
    for (int drop = 0; drop < 2; drop++) {
        bed b;
        int n;
        bed_create(&b, bed_shape(FL_FAMILY_LLAMA), 2, (const int[]){2, 1}, (const unsigned[]){0x7f, 0x55});
        b.pass.dropout = 0.2 * drop;
        b.pass.grad[0] = b.grad[0];
        b.pass.grad[1] = b.grad[1];
        fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        double *want[2];
        for (int j = 0; j < 2; j++) {
            want[j] = fl_alloc("test", b.grad[j]->space->n, sizeof **want);
            memcpy(want[j], b.grad[j]->v, b.grad[j]->space->n * sizeof **want);
        }
        b.pass.factors[0] = FL_BIT(FL_B);
        b.pass.factors[1] = FL_BIT(FL_A);
        fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        for (int j = 0; j < 2; j++) {
            const fl_space *space = b.ad[j]->space;
            for (int i = 0; i < space->nslots; i++) {
                const fl_slot *s = &space->slot[i];
                size_t size = (size_t)s->rows * (size_t)s->cols;
                const double *got = b.grad[j]->v + s->at;
                bool trains = b.pass.factors[j] & FL_BIT(s->factor);
                for (size_t e = 0; e < size && !trains; e++) {
                    assert_true(got[e] == 0);
                }
                assert_true(!trains || bed_error(size, got, want[j] + s->at) < 1e-13);
            }
            fl_free(want[j]);
        }
        b.pass.factors[0] = b.pass.factors[1] = FL_NONE;
        fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        assert_true(fl_adapter_norm(b.grad[0]) == 0 && fl_adapter_norm(b.grad[1]) == 0);
        bed_destroy(&b);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_norms),
    cmocka_unit_test(test_activations),
    cmocka_unit_test(test_attention),
    cmocka_unit_test(test_rotary),
    cmocka_unit_test(test_loss),
    cmocka_unit_test(test_llama),
    cmocka_unit_test(test_llama_tied_with_wide_heads),
    cmocka_unit_test(test_gpt2),
    cmocka_unit_test(test_gpt2_untied),
    cmocka_unit_test(test_dropout),
    cmocka_unit_test(test_one_site),
    cmocka_unit_test(test_one_tensor),
    cmocka_unit_test(test_skipped_factors),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
