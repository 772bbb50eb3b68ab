/* Gradients of every operation of the engine against central differences, in double. The scalar is
 * sum c y(x), so its gradient is what backward makes of c. */
#include "../../src/nn/nn_internal.h"
#include "nn_bed.h"

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
enum {
    AT_HEADS = 4,
    AT_KV = 2,
    AT_HD = 6,
    AT_LD = (AT_HEADS + 2 * AT_KV) * AT_HD,
    AT_OUT = AT_HEADS * AT_HD
};
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
        p[j - from] =
            exp(weighted(AT_HD, q, qkv + j * AT_LD + (AT_HEADS + kv) * AT_HD) / sqrt(AT_HD));
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
    double *d = fl_alloc("test", nt * AT_LD, sizeof *d);
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
            double angle = (t < 2 ? t : t - 2) * pow(100, -2.0 * (i % HD % 3) / HD),
                   want = x[t * LD + i];
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

/* every fifth target does not count; 12 stands for the number of targets */
static void test_loss(void **state)
{
    (void)state;
    loss_case t;
    bed_create(&t.b, bed_shape(FL_FAMILY_LLAMA), 0, NULL, NULL);
    bed_batch(&t.b, 2, (const int[]){3, 9});
    size_t nt = 12, nd = (size_t)t.b.m.nd, nv = (size_t)t.b.m.vocab;
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

/* a vocabulary so large that the batch needs several chunks, against the definition */
static void test_loss_in_chunks(void **state)
{
    (void)state;
    enum { NT = 150, VOCAB = 40000 };
    bed b;
    fl_model m = bed_shape(FL_FAMILY_LLAMA);
    m.vocab = VOCAB;
    bed_create(&b, m, 0, NULL, NULL);
    assert_true(2 * nn_chunk(&b.m) < NT);
    bed_batch(&b, 2, (const int[]){NT - 90, 90});
    size_t nd = (size_t)m.nd;
    const double *head = b.w[b.work->shape.head], *x = b.work->xf;
    double *dx = fl_alloc("test", NT * nd, sizeof *dx),
           *dh = fl_alloc("test", VOCAB * nd, sizeof *dh);
    double *ex = fl_alloc("test", NT * nd, sizeof *ex),
           *eh = fl_alloc("test", VOCAB * nd, sizeof *eh);
    double *p = fl_alloc("test", VOCAB, sizeof *p), loss = 0;
    bed_fill(1, 1, 0, NT * nd, b.work->xf);
    for (int t = 0; t < NT; t++) {
        int target = b.target[t];
        double sum = 0;
        for (int j = 0; j < VOCAB && target >= 0; j++) {
            p[j] = exp(weighted(nd, x + (size_t)t * nd, head + (size_t)j * nd));
            sum += p[j];
        }
        loss += target < 0 ? 0 : -log(p[target] / sum);
        for (int j = 0; j < VOCAB && target >= 0; j++) {
            double dz = (p[j] / sum - (j == target)) * 0.01;
            for (size_t i = 0; i < nd; i++) {
                ex[(size_t)t * nd + i] += dz * head[(size_t)j * nd + i];
                eh[(size_t)j * nd + i] += dz * x[(size_t)t * nd + i];
            }
        }
    }
    double got = nn_loss(b.work, head, &b.batch, true, 0.01, dx, dh);
    assert_true(fabs(got - loss) < 1e-12 * loss);
    assert_true(bed_error(NT * nd, dx, ex) < 1e-12 && bed_error(VOCAB * nd, dh, eh) < 1e-12);
    fl_free(dx);
    fl_free(dh);
    fl_free(ex);
    fl_free(eh);
    fl_free(p);
    bed_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_norms),
    cmocka_unit_test(test_activations),
    cmocka_unit_test(test_attention),
    cmocka_unit_test(test_rotary),
    cmocka_unit_test(test_loss),
    cmocka_unit_test(test_loss_in_chunks),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
