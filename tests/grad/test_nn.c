/* Gradients of whole models of both families against central differences, in double: adapters,
 * weights, what is skipped; sums over sequences. */
#include "nn_bed.h"

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
            expect_gradient(bed_scalar, b, (size_t)t->rows * (size_t)t->cols, b->base + t->at,
                b->dw[i], t->name);
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

/* one site trains, the other adapter is frozen: whatever backward skips, that site's gradient is
 * there */
static void test_one_site(void **state)
{
    (void)state;
    for (int family = 0; family < 2; family++) {
        int per = family == FL_FAMILY_LLAMA ? 7 : 6;
        for (int s = 0; s < per; s++) {
            bed b;
            int n;
            bed_create(
                &b, bed_shape(family), 2, (const int[]){1, 1}, (const unsigned[]){0x7f, FL_BIT(s)});
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
        bed_create(
            &b, bed_shape(FL_FAMILY_LLAMA), 2, (const int[]){2, 1}, (const unsigned[]){0x7f, 0x55});
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

/* ---- sums over sequences ---- exact but for rounding, of which double leaves little */
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
        double *sum = fl_alloc("test", size, sizeof *sum),
               *both = fl_alloc("test", size, sizeof *both);
        double loss = 0;
        for (int s = 0; s < 2; s++) {
            fl_batch one = one_sequence(&b, s, start);
            double mean = fl_nn_grad(b.work, &b.pass, &one, &n);
            loss += mean * n;
            total += n;
            for (size_t i = 0; i < size; i++) {
                sum[i] += b.grad[0]->v[i] * n;
            }
        }
        double together = fl_nn_grad(b.work, &b.pass, &b.batch, &n);
        assert_int_equal(n, total);
        assert_true(fabs(together * n - loss) < 1e-13 * loss);
        for (size_t i = 0; i < size; i++) {
            both[i] = b.grad[0]->v[i] * n;
        }
        assert_true(bed_error(size, both, sum) < 1e-12);
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
        double *z = fl_alloc("test", NT * nv, sizeof *z);
        memcpy(z, fl_nn_logits(b.work), NT * nv * sizeof *z);
        assert_true(fabs(fl_nn_loss(b.work, &b.pass, &turned, &n) - loss) < 1e-13 * loss);
        const double *y = fl_nn_logits(b.work);
        assert_true(bed_error(LONG * nv, y, z + SHORT * nv) < 1e-12);
        assert_true(bed_error(SHORT * nv, y + LONG * nv, z) < 1e-12);
        fl_free(z);
        bed_destroy(&b);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_llama),
    cmocka_unit_test(test_llama_tied_with_wide_heads),
    cmocka_unit_test(test_gpt2),
    cmocka_unit_test(test_gpt2_untied),
    cmocka_unit_test(test_dropout),
    cmocka_unit_test(test_one_site),
    cmocka_unit_test(test_one_tensor),
    cmocka_unit_test(test_skipped_factors),
    cmocka_unit_test(test_sum_of_sequences),
    cmocka_unit_test(test_permuted_sequences),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
