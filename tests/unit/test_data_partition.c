/* test_data_partition.c - partitions: every sample dealt once; Dirichlet moments, bounds on
 * classes, sizes. */
#include "data_bed.h"
#include <math.h>

/* a dataset in private memory */
static fl_dataset toy(int n, int nclasses, int nkeys)
{
    fl_dataset d = {.nsamples = n, .nclasses = nclasses, .nkeys = nkeys};
    int32_t *label = calloc((size_t)n, sizeof *label), *key = calloc((size_t)n, sizeof *key);
    uint8_t *split = calloc((size_t)n, 1);

    for (int i = 0; i < n; i++) {
        uint32_t x[4];

        fl_rng_block(1, FL_RNG_TEST, 0, 1, (uint64_t)i, x);
        label[i] = nclasses > 0 ? i % nclasses : 0;
        key[i] = nkeys > 0 ? (int32_t)(x[1] % (uint32_t)nkeys) : 0;
        split[i] = x[2] % 10 < 8 ? FL_TRAIN : x[2] % 10 < 9 ? FL_VALID : FL_TEST;
    }
    d.split = split;
    d.names = calloc((size_t)nkeys + 1, sizeof *d.names);
    for (int i = 0; i < nkeys; i++) {
        d.names[i] = malloc(16);
        snprintf(d.names[i], 16, "key %d", i);
    }
    d.label = nclasses > 0 ? label : (free(label), NULL);
    d.key = nkeys > 0 ? key : (free(key), NULL);
    d.key_name = (const char *const *)d.names;
    return d;
}

static void toy_free(fl_dataset *d)
{
    free((void *)(uintptr_t)d->label);
    free((void *)(uintptr_t)d->key);
    free((void *)(uintptr_t)d->split);
    for (int i = 0; i < d->nkeys; i++) {
        free(d->names[i]);
    }
    free(d->names);
}

static fl_err parted_error(fl_deck_partition how_part, const fl_dataset *d)
{
    fl_deck deck = deck_of(how(), 8);
    fl_partition p;

    deck.partition = how_part;
    return fl_partition_create(test_ctx, &deck, d, &p);
}

static void partition_iid(void **state)
{
    fl_dataset d = toy(1000, 0, 0);
    fl_partition p = parted((fl_deck_partition){.kind = FL_PART_IID, .clients = 37}, &d);

    (void)state;
    assert_partition(&p, &d, true);
    for (int s = 0; s < FL_NSPLITS; s++) {
        int64_t lo = 1000, hi = 0;

        for (int k = 0; k < 37; k++) {
            lo = FL_MIN(lo, fl_partition_count(&p, k, s));
            hi = FL_MAX(hi, fl_partition_count(&p, k, s));
        }
        assert_true(hi - lo <= 1);
    }
    assert_null(p.name);
    fl_partition_destroy(&p);
    assert_says(parted_error((fl_deck_partition){.kind = FL_PART_IID, .clients = 5000}, &d),
        FL_EDECK, "5000 clients");
    assert_says(parted_error((fl_deck_partition){.kind = FL_PART_IID}, &d), FL_EDECK,
        "partition.clients: 0");
    toy_free(&d);
}

static void partition_dirichlet_extremes(void **state)
{
    enum { K = 10, C = 5 };
    fl_dataset d = toy(20000, C, 0);

    (void)state;
    for (int small = 0; small < 2; small++) {
        fl_partition p = parted(
            (fl_deck_partition){
                .kind = FL_PART_DIRICHLET, .clients = K, .alpha = small ? 0.01 : 1e6},
            &d);
        double top = 0;

        assert_partition(&p, &d, true);
        for (int s = 0; s < FL_NSPLITS; s++) {
            for (int c = 0; c < C; c++) {
                int64_t n[K] = {0}, all = 0, most = 0;

                for (int k = 0; k < K; k++) {
                    for (uint64_t i = p.first[s][k]; i < p.first[s][k + 1]; i++) {
                        n[k] += d.label[p.list[s][i]] == c;
                    }
                    all += n[k];
                    most = FL_MAX(most, n[k]);
                }
                for (int k = 0; k < K && !small; k++) {
                    /* proportions are within 1 % of 1/K (sd 3e-5 of alpha 1e6); floors add one */
                    assert_true(fabs((double)n[k] - (double)all / K) < 0.01 * (double)all / K + 2);
                }
                top += (double)most / (double)all / (C * FL_NSPLITS);
            }
        }
        assert_true(small ? top > 0.9
                          : top < 0.12); /* nearly all of a class at one client, or shared alike */
        fl_partition_destroy(&p);
    }
    toy_free(&d);
}

/* A share of one class under Dir(alpha) over K clients has mean 1/K and variance (1/K)(1 - 1/K) /
 * (K alpha + 1). */
static void partition_dirichlet_moments(void **state)
{
    enum { K = 4, N = 2000, TRIALS = 1500 };
    static const double alphas[] = {0.1, 0.5, 1, 3};
    fl_dataset d = toy(N, 1, 0);

    (void)state;
    memset((void *)(uintptr_t)d.split, FL_TRAIN, N);
    for (size_t a = 0; a < FL_COUNT(alphas); a++) {
        fl_deck_partition h = {.kind = FL_PART_DIRICHLET, .clients = K, .alpha = alphas[a]};
        double mean = 0, var = 0, want = 1.0 / K * (1 - 1.0 / K) / (K * alphas[a] + 1);
        int32_t *owner = malloc(N * sizeof *owner);

        for (int t = 0; t < TRIALS; t++) {
            fl_deal deal = {.seed = (uint64_t)t, .d = &d, .how = &h, .nclients = K, .owner = owner};
            int n = 0;

            assert_int_equal(fl_deal_dirichlet(&deal), FL_OK);
            for (int i = 0; i < N; i++) {
                n += owner[i] == 2;
            }
            mean += (double)n / N / TRIALS;
            var += ((double)n / N - 1.0 / K) * ((double)n / N - 1.0 / K) / TRIALS;
        }
        assert_true(fabs(mean - 1.0 / K) < 5 * sqrt(want / TRIALS)); /* five standard errors */
        assert_true(
            fabs(var / want - 1) < 0.2); /* the standard error of a variance is below 4 % here */
        free(owner);
    }
    toy_free(&d);
}

static void partition_dirichlet_fills_and_scales(void **state)
{
    fl_dataset d = toy(100000, 20, 0), tight = toy(60, 2, 0);
    fl_partition p =
        parted((fl_deck_partition){.kind = FL_PART_DIRICHLET, .clients = 10000, .alpha = 0.05}, &d);
    int ntrain = 0;

    (void)state;
    assert_partition(&p, &d, true); /* among others: no client without a training sample */
    fl_partition_destroy(&p);
    for (int i = 0; i < 60; i++) {
        ntrain += tight.split[i] == FL_TRAIN;
    }
    /* as many clients as samples: exactly one each */
    p = parted(
        (fl_deck_partition){.kind = FL_PART_DIRICHLET, .clients = ntrain, .alpha = 0.01}, &tight);
    assert_partition(&p, &tight, true);
    fl_partition_destroy(&p);
    toy_free(&d);
    toy_free(&tight);
    d = toy(100, 0, 0);
    assert_says(
        parted_error((fl_deck_partition){.kind = FL_PART_DIRICHLET, .clients = 3, .alpha = 1}, &d),
        FL_EDECK, "data.label or data.key");
    assert_says(
        parted_error((fl_deck_partition){.kind = FL_PART_SHARDS, .clients = 3, .shards = 1}, &d),
        FL_EDECK, "data.label or data.key");
    assert_says(
        parted_error((fl_deck_partition){.kind = FL_PART_NATURAL}, &d), FL_EDECK, "data.key");
    toy_free(&d);
}

static void partition_shards(void **state)
{
    enum { K = 25, SHARDS = 2, C = 10, N = 2000 };
    fl_dataset d = toy(N, C, 0);
    int incidences = 0;

    (void)state;
    memset((void *)(uintptr_t)d.split, FL_TRAIN,
        N); /* 200 of each class, pieces of 40: no piece has two classes */
    for (int i = 0; i < N; i++) {
        ((uint8_t *)(uintptr_t)d.split)[i] = i >= N / 2 ? FL_TEST : FL_TRAIN;
    }
    fl_partition p =
        parted((fl_deck_partition){.kind = FL_PART_SHARDS, .clients = K, .shards = SHARDS}, &d);

    assert_partition(&p, &d, true);
    for (int k = 0; k < K; k++) {
        unsigned seen[FL_NSPLITS] = {0};

        for (int s = 0; s < FL_NSPLITS; s++) {
            for (uint64_t i = p.first[s][k]; i < p.first[s][k + 1]; i++) {
                seen[s] |= FL_BIT(d.label[p.list[s][i]]);
            }
        }
        assert_in_range(__builtin_popcount(seen[FL_TRAIN]), 1, SHARDS);
        assert_int_equal(seen[FL_TRAIN], seen[FL_TEST]); /* judged on what it was trained on */
        assert_int_equal(fl_partition_count(&p, k, FL_TRAIN), N / 2 / K);
        incidences += __builtin_popcount(seen[FL_TRAIN]);
    }
    assert_true(
        incidences > K); /* the pieces are dealt at random: not all clients got two of one class */
    fl_partition_destroy(&p);
    assert_says(
        parted_error((fl_deck_partition){.kind = FL_PART_SHARDS, .clients = K, .shards = 100}, &d),
        FL_EDECK, "partition.shards: 100");
    toy_free(&d);
}

static void partition_natural(void **state)
{
    enum { KEYS = 30 };
    fl_dataset d = toy(600, 0, KEYS);
    int64_t n[KEYS] = {0};
    int least = 16, want = 0;

    (void)state;
    for (int i = 0; i < 600; i++) {
        n[d.key[i]] += d.split[i] == FL_TRAIN;
    }
    for (int k = 0; k < KEYS; k++) {
        want += n[k] >= least;
    }
    assert_in_range(want, 2, KEYS - 1);
    fl_partition p = parted((fl_deck_partition){.kind = FL_PART_NATURAL, .min_records = least}, &d);

    assert_partition(&p, &d, false);
    assert_int_equal(p.nclients, want);
    for (int k = 0, key = 0; k < want; k++, key++) {
        for (; n[key] < least; key++) {
        }
        assert_string_equal(p.name[k], d.key_name[key]);
        assert_int_equal(fl_partition_count(&p, k, FL_TRAIN), n[key]);
        for (int s = 0; s < FL_NSPLITS; s++) {
            for (uint64_t i = p.first[s][k]; i < p.first[s][k + 1]; i++) {
                assert_int_equal(d.key[p.list[s][i]], key);
            }
        }
    }
    fl_partition_destroy(&p);
    p = parted((fl_deck_partition){.kind = FL_PART_NATURAL, .clients = 4}, &d);
    assert_int_equal(p.nclients, 4);
    int64_t smallest = 600;
    int larger = 0;

    for (int k = 0; k < 4; k++) {
        smallest = FL_MIN(smallest, fl_partition_count(&p, k, FL_TRAIN));
        assert_true(
            k == 0 || strtol(p.name[k] + 4, NULL, 10) > strtol(p.name[k - 1] + 4, NULL, 10));
    }
    for (int k = 0; k < KEYS; k++) {
        larger += n[k] > smallest;
    }
    assert_true(larger < 4); /* nobody larger was left out */
    fl_partition_destroy(&p);
    assert_says(parted_error((fl_deck_partition){.kind = FL_PART_NATURAL, .min_records = 500}, &d),
        FL_EDECK, "partition.min_records");
    toy_free(&d);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(partition_iid),
        cmocka_unit_test(partition_dirichlet_extremes),
        cmocka_unit_test(partition_dirichlet_moments),
        cmocka_unit_test(partition_dirichlet_fills_and_scales),
        cmocka_unit_test(partition_shards),
        cmocka_unit_test(partition_natural),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
