/* test_base.c - errors, memory, arena, timers, text and hashes. */
#include "harness.h"
#include <string.h>

/* ---- errors ---- */

static void error_collection(void **state)
{
    (void)state;
    fl_error_clear();
    assert_string_equal(fl_error_text(), "");
    assert_int_equal(fl_fail(FL_EDECK, "deck.yaml:3: unknown key '%s'", "lrr"), FL_EDECK);
    assert_int_equal(
        fl_fail(FL_ENUM, "deck.yaml:3"), FL_ENUM); /* a part of a sentence is another sentence */
    fl_fail(FL_EDECK, "deck.yaml:3: unknown key '%s'", "lrr");
    fl_fail(FL_EDECK, "unknown key 'lrr'");
    fl_fail(FL_ENUM, "deck.yaml:3");
    assert_string_equal(
        fl_error_text(), "deck.yaml:3: unknown key 'lrr'\ndeck.yaml:3\nunknown key 'lrr'");

    fl_error_set("one\ntwo");
    fl_fail(FL_EFILE, "two");
    assert_string_equal(fl_error_text(), "one\ntwo");
    fl_fail(FL_EFILE, "[%s]", fl_error_text()); /* the record as its own argument */
    assert_string_equal(fl_error_text(), "one\ntwo\n[one\ntwo]");
    fl_error_set(fl_error_text());
    assert_string_equal(fl_error_text(), "one\ntwo\n[one\ntwo]");
    fl_error_clear();

    char longer[3000];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    fl_fail(FL_EFILE, "%s", longer);
    assert_string_equal(fl_error_text(), longer);
    fl_error_clear();
}

static void error_flood(void **state)
{
    (void)state;
    fl_error_clear();
    for (int i = 0; i < 3000; i++) {
        fl_fail(FL_EDECK, "mistake %d", i);
    }
    size_t lines = 1;
    for (const char *c = fl_error_text(); *c != '\0'; c++) {
        lines += *c == '\n';
    }
    assert_true(lines <= 1001);
    assert_non_null(strstr(fl_error_text(), "mistake 0\n"));
    assert_non_null(strstr(fl_error_text(), "further mistakes are not listed"));
    fl_error_clear();
}

static void error_codes(void **state)
{
    (void)state; /* the table of interface.md */
    assert_int_equal(fl_exit_code(FL_OK), 0);
    assert_int_equal(fl_exit_code(FL_EDIFF), 1);
    assert_int_equal(fl_exit_code(FL_EUSAGE), 2);
    assert_int_equal(fl_exit_code(FL_EDECK), 3);
    assert_int_equal(fl_exit_code(FL_ESHAPE), 3);
    assert_int_equal(fl_exit_code(FL_EFILE), 4);
    assert_int_equal(fl_exit_code(FL_ENUM), 5);
    assert_int_equal(fl_exit_code(FL_EBUG), 70);
    assert_int_equal(fl_exit_code(FL_ESTOP), 75);
    assert_int_equal(fl_exit_code((fl_err)999), 70);
}

/* ---- memory ---- */

static bool all_zero(const void *x, size_t n)
{
    const unsigned char *c = x;

    for (size_t i = 0; i < n; i++) {
        if (c[i] != 0) {
            return false;
        }
    }
    return true;
}

static void memory_blocks(void **state)
{
    size_t before = fl_memory_now();

    (void)state;
    for (size_t n = 0; n < 300; n += 7) {
        unsigned char *x = fl_alloc("test", n, 3);
        assert_non_null(x);
        assert_int_equal((uintptr_t)x % 64, 0);
        assert_true(all_zero(x, 3 * n));
        memset(x, 0xa5, 3 * n);
        assert_int_equal(fl_memory_now(), before + 3 * n);
        fl_free(x);
    }
    fl_free(NULL);
    assert_int_equal(fl_memory_now(), before);

    /* grown and shrunk through sizes where the C library moves blocks */
    unsigned char *x = NULL;
    size_t have = 0;
    for (size_t n = 1; n < 5000000; n = n * 3 + 5) {
        x = fl_realloc("test", x, n, 1);
        assert_int_equal((uintptr_t)x % 64, 0);
        for (size_t i = have; i < n; i++) {
            x[i] = (unsigned char)(i * 37);
        }
        have = n;
        assert_int_equal(fl_memory_now(), before + n);
    }
    x = fl_realloc("test", x, 1000, 1);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(x[i], (unsigned char)(i * 37));
    }
    assert_true(fl_memory_peak() >= before + have);
    fl_free(x);
    assert_int_equal(fl_memory_now(), before);
}

static void memory_of_process(void **state)
{
    size_t n = (size_t)64 << 20, resident = fl_memory_resident();

    (void)state;
    if (resident == 0) {
        skip(); /* no /proc here */
    }
    char *x = fl_alloc("test", n, 1);
    assert_true(fl_memory_resident() < resident + n / 2); /* untouched memory costs nothing */
    memset(x, 1, n);
    assert_true(fl_memory_resident() >= n && fl_memory_pss() >= n);
    fl_free(x);
}

static void arena_pieces(void **state)
{
    enum { PIECES = 400 };
    fl_arena *a = fl_arena_create("test");
    unsigned char *x[PIECES];
    size_t size[PIECES], before;

    (void)state;
    for (int pass = 0; pass < 3; pass++) {
        before = fl_memory_now();
        for (int i = 0; i < PIECES; i++) {
            size[i] = (size_t)(fl_rng_uniform(1, FL_RNG_TEST, pass, 0, (uint64_t)i) *
                               (i % 50 == 0 ? 300000 : 3000));
            x[i] = fl_arena_take(a, size[i], 1);
            assert_int_equal((uintptr_t)x[i] % 64, 0);
            assert_true(all_zero(x[i], size[i]));
            memset(x[i], i % 251 + 1, size[i]);
        }
        for (int i = 0; i < PIECES; i++) { /* none moved, none overlap */
            for (size_t j = 0; j < size[i]; j++) {
                assert_int_equal(x[i][j], i % 251 + 1);
            }
        }
        fl_arena_reset(a, (fl_mark){0});
    }
    assert_true(fl_memory_now() <= before); /* the third pass needed nothing new */
    assert_true(fl_arena_peak(a) > 0);
    fl_arena_destroy(&a);
    assert_null(a);
}

static void arena_marks(void **state)
{
    size_t before = fl_memory_now();
    fl_arena *a = fl_arena_create("test");

    (void)state;
    fl_mark start = fl_arena_mark(a);
    char *kept = fl_arena_take(a, 100, 1);
    memset(kept, 7, 100);
    fl_mark m = fl_arena_mark(a);
    for (int round = 0; round < 20; round++) { /* across chunk borders, larger every time */
        for (int i = 0; i < 10; i++) {
            size_t n = (size_t)10000 * (size_t)(round + 1);
            char *x = fl_arena_take(a, n, 1);
            assert_true(all_zero(x, n));
            memset(x, 1, n);
        }
        fl_arena_reset(a, m);
        for (int i = 0; i < 100; i++) {
            assert_int_equal(kept[i], 7);
        }
    }
    assert_int_equal(fl_arena_peak(a), 128 + 10 * 200000);
    assert_non_null(fl_arena_take(a, 0, 8));
    fl_arena_reset(a, start);
    assert_true(all_zero(fl_arena_take(a, 3000000, 1), 3000000));
    fl_arena_destroy(&a);
    assert_int_equal(fl_memory_now(), before);
}

/* ---- timers ---- */

static void pause_a_little(void)
{
    double start = fl_now();

    while (fl_now() - start < 0.01) {
    }
}

/* Whatever the machine does meanwhile, exclusive times add up to the whole and are as long as the
 * pauses in them. */
static void timer_exclusive(void **state)
{
    fl_phase used[3] = {FL_PHASE_train, FL_PHASE_svd, FL_PHASE_merge};
    double before[3], spent[3], sum = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        before[i] = fl_phase_seconds(test_ctx, used[i]);
    }
    double start = fl_now();
    fl_phase_begin(test_ctx, FL_PHASE_train);
    pause_a_little();
    fl_phase_begin(test_ctx, FL_PHASE_svd);
    pause_a_little();
    fl_phase_begin(test_ctx, FL_PHASE_train); /* the same phase again, inside */
    pause_a_little();
    assert_true(fl_phase_seconds(test_ctx, FL_PHASE_train) - before[0] >=
                0.019); /* runs while it is read */
    fl_phase_end(test_ctx, FL_PHASE_train);
    double frozen = fl_phase_seconds(test_ctx, FL_PHASE_train);
    pause_a_little();
    assert_true(fl_phase_seconds(test_ctx, FL_PHASE_train) == frozen); /* paused by svd */
    fl_phase_end(test_ctx, FL_PHASE_svd);
    pause_a_little();
    fl_phase_end(test_ctx, FL_PHASE_train);
    double whole = fl_now() - start;

    for (int i = 0; i < 3; i++) {
        spent[i] = fl_phase_seconds(test_ctx, used[i]) - before[i];
        sum += spent[i];
    }
    assert_true(spent[0] >= 0.029 && spent[1] >= 0.019 && spent[2] == 0);
    assert_true(sum <= whole && sum > 0.049);
    assert_string_equal(fl_phase_name[FL_PHASE_checkpoint], "checkpoint");

    double bytes = fl_mpi_bytes(test_ctx);
    fl_mpi_count(test_ctx, 12);
    assert_true(fl_mpi_bytes(test_ctx) == bytes + 12);
}

/* ---- text and hashes ---- */

static void text_grows(void **state)
{
    fl_text t = {0}, other = {0};
    char want[8000] = "";

    (void)state;
    fl_text_add(&other, "%s", "");
    assert_string_equal(other.s, "");
    fl_text_free(&other);
    assert_null(other.s);
    for (int i = 0; i < 1000; i++) {
        fl_text_add(&t, "%d,", i);
        sprintf(want + strlen(want), "%d,", i);
    }
    assert_string_equal(t.s, want);
    assert_int_equal(t.n, strlen(want));
    fl_text_bytes(&t, "a\0b", 3);
    assert_int_equal(t.n, strlen(want) + 3);
    assert_memory_equal(t.s + strlen(want), "a\0b", 4);
    fl_text_bytes(&t, NULL, 0);
    fl_text_free(&t);
}

static void text_distances(void **state)
{
    (void)state;
    assert_int_equal(fl_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(fl_edit_distance("saturday", "sunday"), 3);
    assert_int_equal(fl_edit_distance("", "abc"), 3);
    assert_int_equal(fl_edit_distance("abc", ""), 3);
    assert_int_equal(fl_edit_distance("lr", "lr"), 0);
    assert_int_equal(fl_edit_distance("rounds", "round"), 1);
}

static void text_sizes(void **state)
{
    char b[32];

    (void)state;
    assert_string_equal(fl_bytes_text(0, b), "0 B");
    assert_string_equal(fl_bytes_text(1023, b), "1023 B");
    assert_string_equal(fl_bytes_text(1.5 * 1024 * 1024, b), "1.5 MiB");
    assert_string_equal(fl_bytes_text(3.0 * 1024 * 1024 * 1024, b), "3.0 GiB");
}

static void hash_values(void **state)
{
    (void)state;
    /* XXH3_64bits of nothing, seed 0: the test vector of the xxHash specification */
    assert_true(fl_hash(NULL, 0, 0) == UINT64_C(0x2D06800538D394C2));
    assert_true(fl_hash_text("") == fl_hash(NULL, 0, 0));
    assert_true(fl_hash("abc", 3, 0) == fl_hash_text("abc"));
    assert_true(fl_hash("abc", 3, 0) != fl_hash("abc", 3, 1));
    assert_true(fl_hash("abc", 3, 0) != fl_hash("abd", 3, 0));
}

/* ---- log ---- */

static void log_goes_to_file(void **state)
{
    char line[3][64];
    FILE *f = tmpfile();

    (void)state;
    assert_non_null(f);
    test_ctx->log = f;
    fl_log(test_ctx, "round %d of %s", 3, "20");
    fl_log(test_ctx, "100%%");
    test_ctx->log = NULL;
    rewind(f);
    assert_non_null(fgets(line[0], sizeof line[0], f));
    assert_non_null(fgets(line[1], sizeof line[1], f));
    assert_null(fgets(line[2], sizeof line[2], f));
    assert_string_equal(line[0], "round 3 of 20\n");
    assert_string_equal(line[1], "100%\n");
    fclose(f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_collection),
        cmocka_unit_test(error_flood),
        cmocka_unit_test(error_codes),
        cmocka_unit_test(memory_blocks),
        cmocka_unit_test(memory_of_process),
        cmocka_unit_test(arena_pieces),
        cmocka_unit_test(arena_marks),
        cmocka_unit_test(timer_exclusive),
        cmocka_unit_test(text_grows),
        cmocka_unit_test(text_distances),
        cmocka_unit_test(text_sizes),
        cmocka_unit_test(hash_values),
        cmocka_unit_test(log_goes_to_file),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
