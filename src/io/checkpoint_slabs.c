/* checkpoint_slabs.c - step 2 of a checkpoint (checkpoint_write.c): the large data sets, which
 * exist already and whose space is reserved, are filled by the writers (checkpoint_writers.c) with
 * collective writes of at most CK_SLAB bytes per rank: above 2 GiB in one call MPI-IO overflows.
 * The number of calls is agreed, failures are agreed after each data set. */
#include "checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

size_t ck_array_bytes(const fl_array *a)
{
    return a->n * h5_type_bytes(a->type);
}

bool ck_is_parallel(const fl_array *a)
{
    return ck_array_bytes(a) >= CK_PARALLEL;
}

/* ---- step 2: the writers write the large data sets ---- */

/* Gives `n` elements of this group's share from `at` on, in one piece; at grows from call to call.
 * Every rank of the group calls it; what it returns matters on the writer only. */
typedef const void *(*piece_of)(void *from, size_t at, size_t n);

typedef struct slabs {
    const char *name;
    fl_array_type type;
    size_t first, n; /* this group's share of the data set */
    size_t most;     /* elements a call */
    piece_of piece;
    void *from;
} slabs;

static bool is_writer(const ck_writer *w)
{
    return w->writer == w->ctx->rank;
}

static size_t slab_bytes(const ck_writer *w, size_t most)
{
    return w->s->how.slab > 0 ? FL_MIN(w->s->how.slab, most) : most;
}

static fl_err write_calls(ck_writer *w, hid_t set, const slabs *b, const char *doing)
{
    fl_err err = FL_OK;
    int64_t calls = (int64_t)fl_max(w->ctx, (double)((b->n + b->most - 1) / b->most));
    hid_t dxpl = H5Pcreate(H5P_DATASET_XFER);

    H5Pset_dxpl_mpio(dxpl, w->independent ? H5FD_MPIO_INDEPENDENT : H5FD_MPIO_COLLECTIVE);
    for (int64_t i = 0; i < calls; i++) {
        size_t at = FL_MIN((size_t)i * b->most, b->n), n = FL_MIN(b->most, b->n - at);
        const void *x = n > 0 ? b->piece(b->from, at, n) : NULL;

        /* after a failure the calls go on: the other ranks are in them */
        if (is_writer(w) && (n > 0 || !w->independent) &&
            h5_write(set, h5_type_native(b->type), dxpl, b->first + at, n, x) < 0 && err == FL_OK) {
            err = h5_fail(w->path, doing);
        }
    }
    H5Pclose(dxpl);
    return err;
}

static fl_err write_slabs(ck_writer *w, hid_t file, const slabs *b)
{
    char doing[200];
    hid_t set = is_writer(w) ? H5Dopen2(file, b->name, H5P_DEFAULT) : -1;
    fl_err err = FL_OK;

    snprintf(doing, sizeof doing, "write dataset /%s", b->name);
    if (is_writer(w) && set < 0) {
        err = h5_fail(w->path, doing);
    }
    /* a rank without the data set must not leave the others in the collective write */
    err = fl_agree(w->ctx, err);
    if (err == FL_OK) {
        err = fl_agree(w->ctx, write_calls(w, set, b, doing));
    }
    if (set >= 0) {
        H5Dclose(set);
    }
    return err;
}

typedef struct plain {
    const char *x; /* borrowed: this group's share */
    size_t each;
} plain;

static const void *plain_piece(void *from, size_t at, size_t n)
{
    const plain *p = from;

    (void)n;
    return p->x + at * p->each;
}

/* An array that every writer has whole (replicated, or the base in its node's memory): each writes
 * a share, cut at multiples of 1 MiB so that no two touch a page, a block or a lock of the file
 * system. */
static fl_err write_shared(
    ck_writer *w, hid_t file, const char *name, fl_array_type type, size_t n, const void *x)
{
    size_t each = h5_type_bytes(type), unit = CK_PARALLEL / each, units = (n + unit - 1) / unit;
    size_t nw = (size_t)w->nwriters, iw = (size_t)w->iwriter;
    size_t lo = FL_MIN(units * iw / nw * unit, n), hi = FL_MIN(units * (iw + 1) / nw * unit, n);
    plain from = {(const char *)x + lo * each, each};
    slabs b = {
        name, type, lo, hi - lo, FL_MAX(slab_bytes(w, CK_SLAB) / each, 1), plain_piece, &from};

    return write_slabs(w, file, &b);
}

static const void *clients_piece(void *from, size_t at, size_t n)
{
    ck_blobs_out *b = from;

    ck_blobs_next(b, at, n, b->stage);
    return b->stage;
}

static fl_err write_clients(ck_writer *w, hid_t file)
{
    size_t piece = slab_bytes(w, CK_STAGE);
    ck_blobs_out from;

    ck_blobs_begin(w, piece, &from);
    slabs b = {"clients/state", FL_U8, from.first, from.bytes, piece, clients_piece, &from};
    fl_err err = write_slabs(w, file, &b);

    ck_blobs_end(&from);
    return err;
}

static fl_err write_large(ck_writer *w, hid_t file)
{
    const fl_snapshot *s = w->s;

    for (int i = 0; i < s->narrays; i++) {
        const fl_array *a = &s->array[i];

        if (ck_is_parallel(a)) {
            FL_TRY(write_shared(w, file, a->name, a->type, a->n, a->x));
        }
    }
    if (w->state_bytes > 0) {
        FL_TRY(write_clients(w, file));
    }
    return s->nbase > 0 ? write_shared(w, file, "base", sizeof(fl_real) == 4 ? FL_F32 : FL_F64,
                              s->nbase, s->base)
                        : FL_OK;
}

static hid_t open_on_writers(const ck_writer *w)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    MPI_Info info = ck_hints(&w->s->how);

    H5Pset_fapl_mpio(fapl, w->team, info);
    H5Pset_all_coll_metadata_ops(fapl, true); /* one rank reads the header for all */
    hid_t file = H5Fopen(w->tmp, H5F_ACC_RDWR, fapl), error = h5_hold_error();

    H5Pclose(fapl);
    h5_give_error(error);
    if (info != MPI_INFO_NULL) {
        MPI_Info_free(&info);
    }
    return file;
}

/* Will ROMIO write? Its MPI_File_set_view waits for all ranks, and HDF5 leaves it out after a
 * collective write on the rank where that failed: the others would hang. Our pieces are contiguous,
 * so ROMIO is as fast with independent writes. OMPIO on one host tells all ranks of an error, and
 * its independent writes take twice the time. Open MPI does not say which of the two it chose:
 * OMPIO, unless there are several hosts (main.c), the user asks for another, or on Lustre. */
static bool by_romio(const ck_writer *w)
{
#ifdef OPEN_MPI
    const long lustre = 0x0bd00bd0;
    const char *io = getenv("OMPI_MCA_io");
    struct statfs fs;

    return w->ctx->nnodes > 1 || (io != NULL && strcmp(io, "ompio") != 0) ||
           (statfs(w->tmp, &fs) == 0 && (long)fs.f_type == lustre);
#else
    (void)w;
    return true;
#endif
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
    ck_choose_writers(w, w->s->how.writers);
    hid_t file = is_writer(w) ? open_on_writers(w) : -1;
    w->independent = fl_max(w->ctx, w->s->how.independent || by_romio(w)) > 0;
    fl_err err = fl_agree(w->ctx,
        is_writer(w) && file < 0 ? h5_fail(w->path, "open it on the ranks that write") : FL_OK);

    if (err == FL_OK) {
        err = write_large(w, file);
    }
    if (is_writer(w)) { /* on the others there is nothing to close */
        herr_t closed = file >= 0 ? H5Fclose(file) : 0;

        err = err == FL_OK && closed < 0 ? h5_fail(w->path, "close it") : err;
    }
    FL_TRY_ALL(w->ctx, err);
    return fl_agree(w->ctx, is_writer(w) ? h5_fsync(w->tmp) : FL_OK);
}
