/* The frozen weights in shared memory: the same hash and bytes on any number of ranks; failures
 * leave together. */
#include "fedlora/deck.h"
#include "fedlora/io.h"
#include "harness.h"
#include <string.h>

static char folder[256];

static int folder_make(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(folder, sizeof folder, "%s/fedlora-base-XXXXXX", tmp ? tmp : P_tmpdir);
    if (test_ctx->rank == 0 && mkdtemp(folder) == NULL) {
        return 1;
    }
    MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, test_ctx->world);
    return 0;
}

static int folder_drop(void **state)
{
    char path[300];

    (void)state;
    MPI_Barrier(test_ctx->world);
    if (test_ctx->rank == 0) {
        snprintf(path, sizeof path, "%s/config.json", folder);
        remove(path);
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        remove(path);
        return rmdir(folder);
    }
    return 0;
}

static fl_model tiny(void)
{
    fl_model m = {.family = FL_FAMILY_GPT2,
        .nlayers = 2,
        .nd = 12,
        .nheads = 3,
        .nkv = 3,
        .hd = 4,
        .nff = 20,
        .vocab = 17,
        .nctx = 9,
        .bias = true,
        .eps = 1e-5,
        .init_range = 0.02};

    assert_int_equal(fl_model_complete(&m), FL_OK);
    return m;
}

static fl_real value(int tensor, size_t i)
{
    return (fl_real)fl_rng_normal(3, FL_RNG_TEST, tensor, 0, i);
}

static void save(const fl_model *m)
{
    fl_real *base = fl_alloc("base", fl_model_bytes(m), 1);
    const fl_real *w[64];

    for (int t = 0; t < m->ntensors; t++) {
        w[t] = base + m->tensor[t].at;
        for (size_t i = 0; i < (size_t)m->tensor[t].rows * (size_t)m->tensor[t].cols; i++) {
            base[m->tensor[t].at + i] = value(t, i);
        }
    }
    if (test_ctx->rank == 0) {
        assert_int_equal(fl_hf_save(folder, m, w), FL_OK);
    }
    MPI_Barrier(test_ctx->world);
    fl_free(base);
}

static void test_load_and_hash(void **state)
{
    fl_model m = tiny();
    uint64_t want = 0;
    fl_base base;

    (void)state;
    save(&m);
    assert_int_equal(fl_base_load(test_ctx, folder, "", &base), FL_OK);
    assert_string_equal(base.path, folder);
    assert_int_equal(base.model.ntensors, m.ntensors);
    for (int t = 0; t < m.ntensors; t++) {
        size_t n = (size_t)m.tensor[t].rows * (size_t)m.tensor[t].cols;

        assert_int_equal((uintptr_t)base.w[t] % 64, 0);
        for (size_t i = 0; i < n; i++) {
            assert_true(base.w[t][i] == value(t, i));
        }
        want += fl_hash(base.w[t], n * sizeof(fl_real), (uint64_t)t);
    }
    assert_true(base.hash == want); /* the definition, by one rank alone */
    assert_true(fl_base_hash(test_ctx, &base) == want);
    MPI_Barrier(test_ctx->world);
    if (test_ctx->node_rank == 0) { /* a merge changes one number: seen on all ranks */
        ((fl_real *)base.share.x)[m.tensor[5].at] += 1;
    }
    fl_share_fence(test_ctx);
    assert_true(fl_base_hash(test_ctx, &base) != want);
    fl_base_destroy(&base);
    assert_null(base.w);
    fl_model_free(&m);
}

static void test_all_leave_together(void **state)
{
    char path[300];
    fl_model m = tiny();
    fl_base base;

    (void)state;
    assert_int_equal(fl_base_load(test_ctx, folder, "", &base), FL_EFILE); /* empty folder */
    assert_non_null(strstr(fl_error_text(), "config.json"));
    fl_error_clear();
    save(&m);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (test_ctx->rank == 0) {
        remove(path);
    }
    MPI_Barrier(test_ctx->world);
    assert_int_equal(fl_base_load(test_ctx, folder, "", &base), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "has no model.safetensors"));
    fl_error_clear();
    fl_model_free(&m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_load_and_hash, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(test_all_leave_together, folder_make, folder_drop),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
