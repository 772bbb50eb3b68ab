/* test_data_batch.c - batches against small ones written out; the order of an epoch is a
 * permutation and uniform. */
#include "data_bed.h"
#include <math.h>

static void batch_fill(void **state)
{
    static const uint32_t token[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const uint64_t offset[] = {0, 4, 9};
    static const uint8_t mask[] = {1, 1, 0, 1, 1, 0, 1, 1, 1};
    fl_dataset d = {.nsamples = 2, .ntokens = 9, .token = token, .offset = offset};
    fl_batcher b;

    (void)state;
    fl_batcher_create(&b, 3, 10);
    fl_batch_fill(&b, &d, 2, (uint32_t[]){1, 0}, 8);
    assert_int_equal(b.batch.nseq, 2);
    assert_int_equal(b.batch.ntokens, 7);
    assert_memory_equal(b.batch.start, ((int[]){0, 4, 7}), 3 * sizeof(int));
    assert_memory_equal(b.batch.token, ((int[]){5, 6, 7, 8, 1, 2, 3}), 7 * sizeof(int));
    assert_memory_equal(b.batch.target, ((int[]){6, 7, 8, 9, 2, 3, 4}), 7 * sizeof(int));
    d.mask = mask;
    fl_batch_fill(&b, &d, 3, (uint32_t[]){0, 1, 0}, 2); /* truncated to two inputs each */
    assert_int_equal(b.batch.ntokens, 6);
    assert_memory_equal(b.batch.start, ((int[]){0, 2, 4, 6}), 4 * sizeof(int));
    assert_memory_equal(b.batch.token, ((int[]){1, 2, 5, 6, 1, 2}), 6 * sizeof(int));
    assert_memory_equal(b.batch.target, ((int[]){2, -1, -1, 7, 2, -1}), 6 * sizeof(int));
    fl_batch_fill(&b, &d, 0, NULL, 2);
    assert_int_equal(b.batch.ntokens, 0);
    fl_batcher_destroy(&b);
}

static void pick_is_a_permutation(void **state)
{
    (void)state;
    for (int n = 1; n <= 200 + 3; n++) {
        int big[] = {1000, 65536, 100003}, size = n <= 200 ? n : big[n - 201],
            batch = n <= 200 ? 7 : 4096;
        int steps = fl_steps_per_epoch(size, batch);
        uint32_t *list = malloc((size_t)size * sizeof *list),
                 *sample = malloc((size_t)batch * sizeof *sample);
        int *seen = calloc((size_t)size, sizeof *seen);

        assert_int_equal(steps, (size + batch - 1) / batch);
        for (int i = 0; i < size; i++) {
            list[i] = (uint32_t)(3 * i + 5);
        }
        for (int step = 0; step < 2 * steps; step++) { /* two epochs */
            int got = fl_batch_pick(9, 4, 2, 1, step, batch, size, list, sample);

            assert_int_equal(got, (step + 1) % steps == 0 ? size - (steps - 1) * batch : batch);
            for (int i = 0; i < got; i++) {
                assert_int_equal((sample[i] - 5) % 3, 0);
                assert_true((sample[i] - 5) / 3 < (uint32_t)size);
                seen[(sample[i] - 5) / 3]++;
            }
        }
        for (int i = 0; i < size; i++) {
            assert_int_equal(seen[i], 2);
        }
        free(list);
        free(sample);
        free(seen);
    }
    assert_int_equal(fl_steps_per_epoch(0, 4), 0);
}

/* Each of the n! orders, or each (place, value) pair, is equally frequent: chi-square against its
 * 1e-6 quantile. */
static void pick_is_uniform(void **state)
{
    enum { DRAWS = 12000 };
    double chi = 0;
    int orders[27] = {0}, pairs[11][11] = {{0}};
    static const uint32_t list[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

    (void)state;
    for (int i = 0; i < DRAWS; i++) {
        uint32_t x[11];

        fl_batch_pick(1, i % 10, i / 10, 0, 0, 3, 3, list, x);
        orders[x[0] * 9 + x[1] * 3 + x[2]]++;
        fl_batch_pick(1, 3, 5, i, 0, 11, 11, list, x);
        for (int j = 0; j < 11; j++) {
            pairs[j][x[j]]++;
        }
    }
    for (int i = 0; i < 27; i++) {
        chi += orders[i] > 0 ? pow(orders[i] - DRAWS / 6.0, 2) / (DRAWS / 6.0) : 0;
    }
    assert_true(chi < 35.9); /* 5 degrees of freedom */
    chi = 0;
    for (int i = 0; i < 121; i++) {
        chi += pow(pairs[i / 11][i % 11] - DRAWS / 11.0, 2) / (DRAWS / 11.0);
    }
    assert_true(chi < 181.8); /* 100 degrees of freedom */
}

static void pick_depends_on_all(void **state)
{
    uint32_t list[64], base[64], x[64];

    (void)state;
    for (uint32_t i = 0; i < 64; i++) {
        list[i] = i;
    }
    fl_batch_pick(1, 2, 3, 4, 0, 64, 64, list, base);
    for (int i = 0; i < 6; i++) {
        fl_batch_pick(
            1 + (i == 0), 2 + (i == 1), 3 + (i == 2), 4 + (i == 3), i == 4, 64, 64, list, x);
        assert_int_equal(
            memcmp(x, base, sizeof x) == 0, i == 5); /* the last call is the first one again */
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batch_fill),
        cmocka_unit_test(pick_is_a_permutation),
        cmocka_unit_test(pick_is_uniform),
        cmocka_unit_test(pick_depends_on_all),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
