/* checkpoint_read.c - a checkpoint onto any number of ranks.
 * Rank 0 checks the file first, the others follow only if it is whole. Replicated arrays are read
 * by rank 0 and broadcast; each rank reads the blobs of the clients at home on it; every node's
 * leader reads the base. Client state and base are read twice, first for the hash only: on failure
 * neither the store nor the base was touched, so an older checkpoint can be tried next. */
#include "checkpoint_internal.h"
#include <string.h>

void fl_snapshot_free(fl_snapshot *s)
{
    fl_free(s->deck);
    fl_free(s->versions);
    fl_free(s->columns);
    for (int i = 0; i < s->narrays; i++) {
        fl_free(s->array[i].x);
    }
    fl_free(s->array);
    memset(s, 0, sizeof *s);
}

fl_err fl_checkpoint_peek(const char *path, fl_snapshot *s)
{
    ck_file c;

    memset(s, 0, sizeof *s);
    FL_TRY(ck_open(path, &c));
    *s = c.s;
    memset(&c.s, 0, sizeof c.s);
    ck_close(&c);
    return FL_OK;
}

static fl_err open_everywhere(fl_ctx *ctx, const char *path, ck_file *c)
{
    FL_TRY_ALL(ctx, ctx->rank == 0 ? ck_open(path, c) : FL_OK);
    FL_TRY_ALL(ctx, ctx->rank != 0 ? ck_open(path, c) : FL_OK);

    int64_t numbers[] = {c->s.round, (int64_t)c->s.state, c->s.narrays, c->nids,
        (int64_t)c->state_bytes, (int64_t)c->s.nbase, c->bytes};
    uint64_t all = fl_hash(numbers, sizeof numbers, 0);

    for (int i = 0; i < c->s.narrays; i++) {
        uint64_t head[] = {(uint64_t)c->s.array[i].type, c->s.array[i].n};

        all = fl_hash(head, sizeof head, all);
    }
    if (!fl_same_everywhere(ctx, all)) {
        return fl_fail(FL_EFILE, "%s: the nodes see different files under this name", path);
    }
    return FL_OK;
}

static fl_err read_arrays(fl_ctx *ctx, ck_file *c)
{
    for (int i = 0; i < c->s.narrays; i++) {
        fl_array *a = &c->s.array[i];

        FL_TRY_ALL(ctx, ctx->rank == 0 ? ck_array(c, i) : FL_OK);
        if (ctx->rank != 0) {
            a->x = fl_alloc(a->name, a->n, h5_type_bytes(a->type));
        }
        fl_bcast(ctx, 0, a->x, a->n * h5_type_bytes(a->type));
    }
    return FL_OK;
}

/* Collective: the ranks' sums together against the hash in the file. */
static fl_err check_sum(fl_ctx *ctx, const ck_file *c, const char *name, uint64_t mine)
{
    uint64_t sum = fl_total_hash(ctx, mine), xxh3 = 0;
    hid_t set;
    fl_err err = ck_open_set(c, name, &set, &xxh3);

    if (err == FL_OK) {
        H5Dclose(set);
    }
    FL_TRY_ALL(ctx, err);
    return sum == xxh3 ? FL_OK : ck_hash_error(c, name);
}

/* First place in the table with an id of at least `id`. */
static int64_t place_of(const ck_file *c, int id)
{
    int64_t lo = 0, hi = c->nids;

    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;

        if (c->id[mid] < id) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

static void put_blob(void *to, int id, const void *blob, size_t bytes)
{
    fl_store_put(to, id, blob, bytes);
}

static fl_err read_clients(fl_ctx *ctx, ck_file *c, fl_store *store)
{
    uint64_t sum = 0;

    FL_TRY_ALL(ctx, ck_clients(c));
    int64_t lo = place_of(c, fl_home_first(c->s.nclients, ctx->size, ctx->rank));
    int64_t hi = ctx->rank + 1 < ctx->size
                     ? place_of(c, fl_home_first(c->s.nclients, ctx->size, ctx->rank + 1))
                     : c->nids;

    FL_TRY_ALL(ctx, ck_blobs(c, lo, hi, NULL, NULL, &sum));
    FL_TRY(check_sum(ctx, c, "clients/state", sum));
    return fl_agree(ctx, ck_blobs(c, lo, hi, put_blob, store, &sum));
}

static fl_err base_into(const ck_file *c, fl_real *base)
{
    hid_t set, mem = h5_type_native(c->base_type);
    uint64_t xxh3;
    size_t most = CK_SLAB / sizeof(fl_real);
    fl_err err = FL_OK;

    FL_TRY(ck_open_set(c, "base", &set, &xxh3));
    for (size_t at = 0; at < c->s.nbase && err == FL_OK; at += most) {
        err = ck_read(c, "base", set, mem, at, FL_MIN(most, c->s.nbase - at), base + at);
    }
    H5Dclose(set);
    return err;
}

static fl_err read_base(fl_ctx *ctx, ck_file *c, size_t nbase, fl_real *base)
{
    size_t n = ck_nchunks(c->s.nbase), size = (size_t)ctx->size, rank = (size_t)ctx->rank;
    uint64_t sum = 0;

    if (c->s.nbase == 0) {
        return FL_OK;
    }
    if (base == NULL || c->s.nbase != nbase || h5_type_bytes(c->base_type) != sizeof(fl_real)) {
        return fl_fail(FL_EFILE,
            "%s: holds a base of %zu numbers (%s), the model has %zu: another model", c->path,
            c->s.nbase, h5_type_name(c->base_type), base == NULL ? 0 : nbase);
    }
    FL_TRY_ALL(ctx, ck_base_chunks(c, n * rank / size, n * (rank + 1) / size, &sum));
    FL_TRY(check_sum(ctx, c, "base", sum));
    fl_err err = fl_agree(ctx, ctx->node_rank == 0 ? base_into(c, base) : FL_OK);

    fl_share_fence(ctx);
    return err;
}

fl_err fl_checkpoint_read(
    fl_ctx *ctx, const char *path, fl_store *store, size_t nbase, fl_real *base, fl_snapshot *s)
{
    ck_file c = {.path = path, .file = -1};
    fl_err err = open_everywhere(ctx, path, &c);

    memset(s, 0, sizeof *s);
    err = err != FL_OK ? err : read_arrays(ctx, &c);
    if (err == FL_OK && store != NULL) {
        err = read_clients(ctx, &c, store);
    }
    err = err != FL_OK ? err : read_base(ctx, &c, nbase, base);
    if (err == FL_OK) {
        *s = c.s;
        s->store = store;
        s->base = c.s.nbase > 0 ? base : NULL;
        memset(&c.s, 0, sizeof c.s);
    }
    ck_close(&c);
    return err;
}
