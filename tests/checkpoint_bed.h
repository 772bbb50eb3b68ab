/* checkpoint_bed.h - for the tests of checkpoints: a snapshot made from a formula, and a folder of the test. Large enough, when it is full, for
 * the parallel path: one array, the clients' state of unequal blobs, the base. */
#ifndef FL_CHECKPOINT_BED_H
#define FL_CHECKPOINT_BED_H
#include "fedlora/io.h"
#include "harness.h"
#include <math.h>
#include <string.h>

enum {
    NCLIENTS = 41,
    NARRAYS = 5,
    NGLOBAL = 700001,
    NBASE = (5 << 19) + 3 /* two chunks and a half */
};

static char dir[300]; /* of this test, on all ranks the same */

static const char *at(const char *name)
{
    static char path[4][400];
    static int next = 0;

    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

/* ---- a snapshot by formula ---- */

static inline size_t blob_bytes(int id)
{
    return id % 3 == 1 ? 0 : id == 6 ? 300000 : 1 + (size_t)id * 37 % 1000;
}

static inline void fill_blob(int id, char *x)
{
    for (size_t i = 0; i < blob_bytes(id); i++) {
        x[i] = (char)(id * 7 + (int)(i * i % 251));
    }
}

static inline double value(int array, size_t i)
{
    return array == 4 && i % 3 == 2 ? NAN : fl_rng_uniform(5, FL_RNG_TEST, array, 0, i) - 0.5;
}

typedef struct sample {
    fl_snapshot s;
    fl_array array[NARRAYS];
    fl_store *store;
    fl_real *base;
    size_t nbase;
} sample;

static inline void fill_array(int k, fl_array *a)
{
    for (size_t i = 0; i < a->n; i++) {
        switch (a->type) {
        case FL_F32:
            ((float *)a->x)[i] = (float)value(k, i);
            break;
        case FL_F64:
            ((double *)a->x)[i] = value(k, i);
            break;
        case FL_I64:
            ((int64_t *)a->x)[i] = (int64_t)(value(k, i) * 1e18);
            break;
        case FL_U8:
            ((unsigned char *)a->x)[i] = (unsigned char)(i * 31);
            break;
        }
    }
}

/* full: an array large enough for the parallel path, and the base */
static inline void sample_create(fl_ctx *ctx, bool full, sample *m)
{
    static const fl_array plan[NARRAYS] = {
        {"server/global", "aggregated adapter", "1", "element", FL_F32, NGLOBAL, NULL},
        {"server/keep/r/0", "a small one", "kg", "row,column", FL_F64, 17, NULL},
        {"run/last_seen", "round", "round", "client", FL_I64, NCLIENTS, NULL},
        {"run/nothing", "an empty array", "", "", FL_U8, 0, NULL},
        {"run/metrics", "rows", "", "row,column", FL_F64, 9, NULL},
    };

    memset(m, 0, sizeof *m);
    memcpy(m->array, plan, sizeof plan);
    m->array[0].n = full ? NGLOBAL : 5000;
    for (int k = 0; k < NARRAYS; k++) {
        m->array[k].x = fl_alloc("array", m->array[k].n, 8);
        fill_array(k, &m->array[k]);
    }
    m->store = fl_store_create(ctx, NCLIENTS);
    for (int id = 0; id < NCLIENTS; id++) {
        if (blob_bytes(id) > 0 && fl_home(NCLIENTS, ctx->size, id) == ctx->rank &&
            (full || id < 6)) {
            char *x = fl_alloc("blob", blob_bytes(id), 1);

            fill_blob(id, x);
            fl_store_put(m->store, id, x, blob_bytes(id));
            fl_free(x);
        }
    }
    m->nbase = full ? NBASE : 0;
    m->base = fl_alloc("base", m->nbase, sizeof *m->base);
    for (size_t i = 0; i < m->nbase; i++) {
        m->base[i] = (fl_real)((double)(i % 9973) / 7);
    }
    m->s = (fl_snapshot){.round = 3,
        .rounds = 20,
        .state = 0x0123456789abcdefu,
        .base_revision = full ? 2 : 0,
        .deck = (char *)"run: {seed: 1}\n",
        .versions = (char *)"",
        .columns = (char *)"round,wall_s:s,train_loss:nat",
        .narrays = NARRAYS,
        .array = m->array,
        .nclients = NCLIENTS,
        .store = m->store,
        .nbase = m->nbase,
        .base = m->base};
}

static inline void sample_destroy(sample *m)
{
    for (int k = 0; k < NARRAYS; k++) {
        fl_free(m->array[k].x);
    }
    fl_store_destroy(&m->store);
    fl_free(m->base);
}

static const fl_array *find(const fl_snapshot *s, const char *name)
{
    for (int i = 0; i < s->narrays; i++) {
        if (strcmp(s->array[i].name, name) == 0) {
            return &s->array[i];
        }
    }
    fail_msg("array %s is missing", name);
    return NULL;
}

static inline void check_store(fl_ctx *ctx, const fl_store *store, bool full)
{
    char *want = fl_alloc("blob", 300000, 1);
    int n = fl_store_mine(store, -1, NULL, NULL, NULL), seen = 0;

    for (int id = 0; id < NCLIENTS; id++) {
        seen +=
            blob_bytes(id) > 0 && fl_home(NCLIENTS, ctx->size, id) == ctx->rank && (full || id < 6);
    }
    assert_int_equal(n, seen);
    for (int i = 0; i < n; i++) {
        int id;
        const void *blob;
        size_t bytes;

        fl_store_mine(store, i, &id, &blob, &bytes);
        assert_int_equal(bytes, blob_bytes(id));
        fill_blob(id, want);
        assert_memory_equal(blob, want, bytes);
    }
    fl_free(want);
}

/* Reads path on ctx and compares everything with m. */
static inline void check_read(fl_ctx *ctx, const char *path, const sample *m, bool full)
{
    fl_snapshot s;
    fl_store *store = fl_store_create(ctx, NCLIENTS);
    fl_real *base = fl_alloc("base", m->nbase, sizeof *base);

    assert_int_equal(fl_checkpoint_read(ctx, path, store, m->nbase, base, &s), FL_OK);
    assert_int_equal(s.round, 3);
    assert_int_equal(s.rounds, 20);
    assert_true(s.state == m->s.state);
    assert_int_equal(s.base_revision, m->s.base_revision);
    assert_int_equal(s.nclients, NCLIENTS);
    assert_string_equal(s.deck, m->s.deck);
    assert_string_equal(s.versions, "");
    assert_string_equal(s.columns, m->s.columns);
    assert_int_equal(s.narrays, NARRAYS);
    for (int k = 0; k < NARRAYS; k++) {
        static const size_t each[] = {4, 8, 8, 1};
        const fl_array *want = &m->array[k], *a = find(&s, want->name);

        assert_int_equal(a->type, want->type);
        assert_int_equal(a->n, want->n);
        assert_string_equal(a->what, want->what);
        assert_string_equal(a->unit, want->unit);
        assert_string_equal(a->axes, want->axes);
        assert_memory_equal(a->x, want->x, a->n * each[a->type]);
    }
    check_store(ctx, store, full);
    assert_int_equal(s.nbase, m->nbase);
    if (ctx->node_rank == 0) {
        assert_memory_equal(base, m->base, m->nbase * sizeof *base);
    }
    fl_snapshot_free(&s);
    fl_store_destroy(&store);
    fl_free(base);
}

static inline char *file_bytes(const char *path, size_t *n)
{
    char *x = NULL;

    assert_int_equal(fl_file_read(path, &x, n), FL_OK);
    return x;
}

static inline void barrier(void)
{
    MPI_Barrier(test_ctx->world);
}

static inline int make_folder(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    if (test_ctx->rank == 0) {
        snprintf(dir, sizeof dir, "%.200s/fedlora-checkpoint-XXXXXX", tmp != NULL ? tmp : "/tmp");
        if (mkdtemp(dir) == NULL) {
            dir[0] = 0;
        }
    }
    fl_bcast(test_ctx, 0, dir, sizeof dir);
    return dir[0] == 0;
}

static inline int remove_folder(void **state)
{
    char command[400];

    (void)state;
    barrier();
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return test_ctx->rank == 0 ? system(command) : 0;
}
#endif
