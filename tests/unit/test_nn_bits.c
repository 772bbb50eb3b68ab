/* The engine in float: causality, bits that depend on the arguments only, what is not computed. */
#include "../../src/nn/nn_internal.h"
#include "nn_bed.h"

static const int r2[] = {2, 1};
static const unsigned everywhere[] = {0x7f, 0x7f};

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

/* ---- bits ---- same call, whatever the workspace held before, wherever it is and however large it
 * is */
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
    bed_create(&b, bed_shape(FL_FAMILY_LLAMA), 1, r2,
        (const unsigned[]){0x40}); /* down only, the last thing before the norm */
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

/* backward ends at the lowest site that trains: the gradient by its input, and all below, are not
 * formed */
static void test_stops(void **state)
{
    (void)state;
    bed b;
    int n;
    bed_create(
        &b, bed_shape(FL_FAMILY_LLAMA), 2, (const int[]){1, 1}, (const unsigned[]){0x7f, 0x7f});
    fl_work *k = b.work;
    fl_real *const by_input[NN_GROUPS] = {
        k->dqkv, k->datt, k->dup, k->dact}; /* first elements tell */
    for (int stop = 0; stop < NN_GROUPS; stop++) {
        static const unsigned sites[NN_GROUPS] = {0x07, 0x08, 0x30, 0x40};
        int rank[14] = {0};
        for (int i = 7; i < 14; i++) {
            rank[i] = sites[stop] & FL_BIT(i - 7) ? 1 : 0;
        }
        const fl_space *space = fl_space_lora(b.reg, b.m.nsites, b.m.site, rank, 1, false);
        fl_adapter *ad = fl_adapter_create(space), *grad = fl_adapter_create(space);
        b.pass.ad[1] = ad;
        b.pass.grad[1] = grad;
        for (int g = 0; g < NN_GROUPS; g++) {
            by_input[g][0] = 777;
        }
        fl_nn_grad(k, &b.pass, &b.batch, &n);
        /* [o] writes datt, [up] writes dn, [down] writes dact; attention writes dqkv, the
         * activation dup */
        assert_true((k->dact[0] != 777) == (stop < NN_DOWN));
        assert_true((k->dup[0] != 777) == (stop < NN_DOWN));
        assert_true((k->datt[0] != 777) == (stop < NN_O));
        assert_true((k->dqkv[0] != 777) == (stop < NN_O));
        fl_adapter_destroy(&ad);
        fl_adapter_destroy(&grad);
    }
    bed_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_causal),
    cmocka_unit_test(test_bits),
    cmocka_unit_test(test_unaligned_weights),
    cmocka_unit_test(test_nothing_counts),
    cmocka_unit_test(test_dropout_mean),
    cmocka_unit_test(test_stops),
};

int main(int argc, char **argv)
{
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
