/* checkpoint_slabs.c - step 2 of a checkpoint (checkpoint_write.c): the large data sets, which
 * exist already and whose space is reserved, are filled by all ranks with collective writes. The
 * number of calls is agreed, failures are agreed after each data set. */
#include "checkpoint_internal.h"
#include <string.h>

size_t ck_array_bytes(const fl_array *a)
{
    return a->n * h5_type_bytes(a->type);
}

bool ck_is_parallel(const fl_array *a)
{
    return ck_array_bytes(a) >= CK_PARALLEL;
}

void ck_base_block(const ck_writer *w, size_t *lo, size_t *hi)
{
    const fl_ctx *ctx = w->ctx;
    size_t n = ck_nchunks(w->s->nbase);

    *lo = *hi = 0;
    if (ctx->inode == 0) { /* one copy per node: node 0's is written */
        *lo = n * (size_t)ctx->node_rank / (size_t)ctx->node_size;
        *hi = n * ((size_t)ctx->node_rank + 1) / (size_t)ctx->node_size;
    }
}

/* ---- step 2: all ranks write the large data sets ---- */

/* Gives `n` elements of this rank's share from `at` on, in one piece; at grows from call to call.
 */
typedef const void *(*piece_of)(void *from, size_t at, size_t n);

typedef struct slabs {
    const char *name;
    fl_array_type type;
    size_t first, n; /* this rank's share of the data set */
    size_t most;     /* elements a call */
    piece_of piece;
    void *from;
} slabs;

static fl_err write_slabs(ck_writer *w, hid_t file, const slabs *b)
{
    char doing[200];
    fl_err err = FL_OK;
    hid_t set = H5Dopen2(file, b->name, H5P_DEFAULT);
    hid_t dxpl = H5Pcreate(H5P_DATASET_XFER);

    snprintf(doing, sizeof doing, "write dataset /%s", b->name);
    H5Pset_dxpl_mpio(dxpl, H5FD_MPIO_COLLECTIVE);
    if (set < 0) {
        err = h5_fail(w->path, doing);
    }
    err = fl_agree(w->ctx,
        err); /* a rank without the data set must not leave the others in the collective write */
    if (err == FL_OK) {
        int64_t calls = (int64_t)fl_max(w->ctx, (double)((b->n + b->most - 1) / b->most));

        for (int64_t i = 0; i < calls; i++) {
            size_t at = FL_MIN((size_t)i * b->most, b->n), n = FL_MIN(b->most, b->n - at);
            const void *x = n > 0 ? b->piece(b->from, at, n) : NULL;

            /* after a failure the calls go on: the other ranks are in them */
            if (h5_write(set, h5_type_native(b->type), dxpl, b->first + at, n, x) < 0 &&
                err == FL_OK) {
                err = h5_fail(w->path, doing);
            }
        }
        err = fl_agree(w->ctx, err);
    }
    H5Pclose(dxpl);
    if (set >= 0) {
        H5Dclose(set);
    }
    return err;
}

typedef struct plain {
    const char *x; /* borrowed: this rank's share */
    size_t each;
} plain;

static const void *plain_piece(void *from, size_t at, size_t n)
{
    const plain *p = from;

    (void)n;
    return p->x + at * p->each;
}

static fl_err write_array(ck_writer *w, hid_t file, const fl_array *a)
{
    /* equal on all ranks (checked), so each writes a share */
    size_t each = h5_type_bytes(a->type), size = (size_t)w->ctx->size, rank = (size_t)w->ctx->rank;
    size_t lo = a->n / size * rank + FL_MIN(a->n % size, rank),
           n = a->n / size + (rank < a->n % size);
    plain from = {(const char *)a->x + lo * each, each};
    slabs b = {a->name, a->type, lo, n, CK_SLAB / each, plain_piece, &from};

    return write_slabs(w, file, &b);
}

static fl_err write_base(ck_writer *w, hid_t file)
{
    size_t lo, hi;

    ck_base_block(w, &lo, &hi);
    size_t first = lo * CK_CHUNK,
           n = FL_MIN(hi * CK_CHUNK, w->s->nbase) - FL_MIN(first, w->s->nbase);
    plain from = {(const char *)(w->s->base + first), sizeof(fl_real)};
    slabs b = {"base", sizeof(fl_real) == 4 ? FL_F32 : FL_F64, first, n, CK_SLAB / sizeof(fl_real),
        plain_piece, &from};

    return write_slabs(w, file, &b);
}

typedef struct blobs {
    const fl_store *store;
    int next;    /* blob that the next byte comes from */
    size_t done; /* bytes of it already given */
    char *stage; /* owned [min(share, CK_STAGE)] */
} blobs;

static const void *blob_piece(void *from, size_t at, size_t n)
{
    blobs *b = from;
    int id;
    const void *blob;
    size_t bytes, have = 0;

    (void)at;
    while (have < n) {
        fl_store_mine(b->store, b->next, &id, &blob, &bytes);
        size_t m = FL_MIN(bytes - b->done, n - have);

        memcpy(b->stage + have, (const char *)blob + b->done, m);
        have += m;
        b->done += m;
        if (b->done == bytes) {
            b->next++;
            b->done = 0;
        }
    }
    return b->stage;
}

static fl_err write_clients(ck_writer *w, hid_t file)
{
    blobs from = {
        w->s->store, 0, 0, fl_alloc("checkpoint stage", FL_MIN(w->mine, (size_t)CK_STAGE), 1)};
    slabs b = {"clients/state", FL_U8, w->first, w->mine, CK_STAGE, blob_piece, &from};
    fl_err err = write_slabs(w, file, &b);

    fl_free(from.stage);
    return err;
}

static fl_err write_large(ck_writer *w, hid_t file)
{
    for (int i = 0; i < w->s->narrays; i++) {
        if (ck_is_parallel(&w->s->array[i])) {
            FL_TRY(write_array(w, file, &w->s->array[i]));
        }
    }
    if (w->state_bytes > 0) {
        FL_TRY(write_clients(w, file));
    }
    return w->s->nbase > 0 ? write_base(w, file) : FL_OK;
}

fl_err ck_write_parallel(ck_writer *w)
{
    bool any = w->state_bytes > 0 || w->s->nbase > 0;

    for (int i = 0; i < w->s->narrays; i++) {
        any = any || ck_is_parallel(&w->s->array[i]);
    }
    if (!any) {
        return FL_OK;
    }
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);

    H5Pset_fapl_mpio(fapl, w->ctx->world, MPI_INFO_NULL);
    H5Pset_all_coll_metadata_ops(fapl, true); /* one rank reads the header for all */
    hid_t file = H5Fopen(w->tmp, H5F_ACC_RDWR, fapl);

    H5Pclose(fapl);
    fl_err err = fl_agree(w->ctx, file < 0 ? h5_fail(w->path, "open it on all ranks") : FL_OK);

    if (err == FL_OK) {
        err = write_large(w, file);
    }
    if (file >= 0) {
        herr_t closed = H5Fclose(file);
        fl_err close_err =
            fl_agree(w->ctx, closed < 0 && err == FL_OK ? h5_fail(w->path, "close it") : FL_OK);

        err = err != FL_OK ? err : close_err;
    }
    return err != FL_OK ? err : fl_agree(w->ctx, h5_fsync(w->tmp));
}
