/* test_store.c - the state of clients moves between home and host ranks and comes back whole, on
 * 1-4 ranks; digest and count from their definitions. */
#include "../../src/comm/comm_internal.h"
#include "harness.h"
#include <string.h>

enum { STORE_CLIENTS = 37 };

/* state of a client after `turns` turns: size and content from both; turn 3 of some clients empties
 * it */
static size_t state_size(int id, int turns)
{
    return turns == 0 || (turns == 3 && id % 5 == 0) ? 0
                                                     : (size_t)((id * 13 + turns * 29) % 400) + 1;
}

static void *state_make(int id, int turns)
{
    size_t n = state_size(id, turns);
    unsigned char *x = n > 0 ? fl_alloc("test", n, 1) : NULL;

    for (size_t j = 0; j < n; j++) {
        x[j] = (unsigned char)(id + turns * 17 + (int)j);
    }
    return x;
}

static void state_check(const void *x, size_t n, int id, int turns)
{
    void *want = state_make(id, turns);

    assert_int_equal(n, state_size(id, turns));
    assert_int_equal(x == NULL, n == 0);
    if (n > 0) {
        assert_memory_equal(x, want, n);
    }
    fl_free(want);
}

/* digest and count from the definition */
static void store_check(fl_store *s, const int *turns)
{
    uint64_t digest = 0;
    int64_t count = 0;
    int last = -1;

    for (int id = 0; id < STORE_CLIENTS; id++) {
        void *x = state_make(id, turns[id]);
        if (x != NULL) {
            digest += fl_hash(x, state_size(id, turns[id]), (uint64_t)id);
            count++;
        }
        fl_free(x);
    }
    assert_true(fl_store_digest(s) == digest);
    assert_int_equal(fl_store_count(s), count);
    int mine = fl_store_mine(s, 0, NULL, NULL, NULL);
    for (int i = 0; i < mine; i++) {
        const void *x;
        size_t n;
        int id;
        assert_int_equal(fl_store_mine(s, i, &id, &x, &n), mine);
        assert_true(id > last && fl_home(STORE_CLIENTS, test_ctx->size, id) == test_ctx->rank);
        state_check(x, n, id, turns[id]);
        last = id;
    }
    assert_int_equal(fl_total_int(test_ctx, mine), count);
}

/* One round: a cohort hosted in blocks of its own is fetched, changed, returned; some turns are
 * thrown away. */
static void store_round(fl_store *s, int round, int *turns)
{
    int id[STORE_CLIENTS], first[5], n = 0, me = test_ctx->rank;
    double cost[STORE_CLIENTS];
    void *blob[STORE_CLIENTS] = {NULL};
    size_t bytes[STORE_CLIENTS];
    bool keep[STORE_CLIENTS];

    for (int k = 0; k < STORE_CLIENTS; k++) {
        if (fl_rng_uniform(9, FL_RNG_TEST, k, round, 0) < 0.1 * (round % 11)) {
            cost[n] = round % 3 == 0
                          ? (n == 0)
                          : fl_rng_uniform(9, FL_RNG_TEST, k, round, 1); /* also all on one rank */
            id[n++] = k;
        }
    }
    fl_layout(n, cost, test_ctx->size, first);
    assert_int_equal(fl_store_fetch(s, n, id, first, blob, bytes), FL_OK);
    for (int i = 0; i < n; i++) {
        keep[i] = round % 2 == 0 || fl_rng_uniform(9, FL_RNG_TEST, id[i], round, 2) < 0.7;
        if (i >= first[me] && i < first[me + 1]) {
            state_check(blob[i], bytes[i], id[i], turns[id[i]]);
            fl_free(blob[i]);
            blob[i] = state_make(id[i], turns[id[i]] + 1);
            bytes[i] = state_size(id[i], turns[id[i]] + 1);
        } else {
            assert_null(blob[i]);
        }
    }
    assert_int_equal(
        fl_store_return(s, n, id, first, blob, bytes, round % 2 == 0 ? NULL : keep), FL_OK);
    for (int i = 0; i < n; i++) {
        assert_null(blob[i]);
        turns[id[i]] += keep[i];
    }
}

static void store_round_trips(void **state)
{
    int turns[STORE_CLIENTS] = {0};
    fl_store *s = fl_store_create(test_ctx, STORE_CLIENTS);
    size_t empty = fl_store_bytes(s);

    (void)state;
    store_check(s, turns);
    for (int round = 0; round < 30; round++) {
        store_round(s, round, turns);
        store_check(s, turns);
    }
    assert_true(empty < 400 + 20 * STORE_CLIENTS);

    /* moved by hand into another store, as a checkpoint does */
    fl_store *copy = fl_store_create(test_ctx, STORE_CLIENTS);
    for (int i = 0; i < fl_store_mine(s, -1, NULL, NULL, NULL); i++) {
        const void *x;
        size_t n;
        int id;
        fl_store_mine(s, i, &id, &x, &n);
        fl_store_put(copy, id, "old", 3);
        fl_store_put(copy, id, x, n);
    }
    store_check(copy, turns);
    fl_store_destroy(&copy);
    fl_store_destroy(&s);
    assert_null(s);
}

static void store_memory_balanced(void **state)
{
    size_t before = fl_memory_now();

    store_round_trips(state);
    assert_int_equal(fl_memory_now(), before);
}

/* little data through the many-calls path of large data */
static int cut_small(void **state)
{
    (void)state;
    fl_comm_chunk = 64;
    return 0;
}

static int cut_large(void **state)
{
    (void)state;
    fl_comm_chunk = (size_t)1 << 28;
    return 0;
}

#define CUT(f) cmocka_unit_test_setup_teardown(f, cut_small, cut_large)
int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(store_round_trips),
        CUT(store_round_trips),
        cmocka_unit_test(store_memory_balanced),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
