/* checkpoint_write.c - one HDF5 file per saved round.
 * Three steps, so that every failure is found by somebody who can report it and nobody waits for a
 * rank that gave up:
 * 1. Rank 0 alone creates PATH.tmp: all groups, data sets, attributes, hashes and small arrays. The
 * space of the large ones is reserved with fallocate, so that a full disk shows here and not in the
 * middle of a collective write.
 * 2. The writers open it and write large arrays, client state and base in collective contiguous
 * slabs (checkpoint_slabs.c), or a thread of rank 0 writes them while the run goes on
 * (checkpoint_async.c). No metadata change.
 * 3. Every writer fsyncs; rank 0 seals (seal.c), renames, fsyncs the folder. Until then the file
 * has another name and no seal, and no reader takes it.
 * The bytes of the file do not depend on the number of ranks or on who writes. */
#include "checkpoint_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* ---- what all ranks must agree on before anything is written ---- */

static fl_err check_replicated(ck_writer *w)
{
    const fl_snapshot *s = w->s;
    int64_t numbers[] = {s->round, s->rounds, (int64_t)s->state, s->base_revision, s->narrays,
        s->nclients, (int64_t)s->nbase};
    uint64_t all = fl_hash(numbers, sizeof numbers, 0);

    all = fl_hash(s->deck, strlen(s->deck), all);
    all = fl_hash(s->versions, strlen(s->versions), all);
    all = fl_hash(s->columns, strlen(s->columns), all);
    for (int i = 0; i < s->narrays; i++) {
        const fl_array *a = &s->array[i];
        uint64_t head[] = {(uint64_t)a->type, a->n};

        w->hash[i] = fl_hash(a->x, ck_array_bytes(a), 0);
        all = fl_hash(head, sizeof head, fl_hash(a->name, strlen(a->name), all ^ w->hash[i]));
    }
    if (!fl_same_everywhere(w->ctx, all)) {
        return fl_fail(FL_EBUG,
            "%s: the replicated arrays of round %d are not the same on all ranks", w->path,
            s->round);
    }
    return FL_OK;
}

/* ---- clients: where each rank's blobs go ---- */

typedef struct client_row {
    int64_t id, bytes;
} client_row;

/* Homes are ascending ranges of ids, so the ranks' rows in rank order are the table in id order. */
static void gather_clients(ck_writer *w)
{
    fl_ctx *ctx = w->ctx;
    int id;
    const void *blob;
    size_t bytes, *nsend = fl_alloc("sizes", (size_t)ctx->size, sizeof *nsend);
    size_t *ngot = fl_alloc("sizes", (size_t)ctx->size, sizeof *ngot);
    double *all = fl_alloc("client bytes", (size_t)ctx->size, sizeof *all);
    size_t here = 0;
    void *got = NULL;

    w->nmine = w->s->store == NULL ? 0 : fl_store_mine(w->s->store, -1, &id, &blob, &bytes);
    client_row *row = fl_alloc("client rows", (size_t)w->nmine, sizeof *row);

    for (int i = 0; i < w->nmine; i++) {
        fl_store_mine(w->s->store, i, &id, &blob, &bytes);
        row[i] = (client_row){id, (int64_t)bytes};
        here += bytes;
        w->state_hash += fl_hash(blob, bytes, (uint64_t)id);
    }
    w->state_hash = fl_total_hash(ctx, w->state_hash);
    double mine = (double)here; /* exact below 2^53 */

    fl_gather_doubles(ctx, 1, &mine, all);
    w->client_bytes = fl_alloc("client bytes", (size_t)ctx->size, sizeof *w->client_bytes);
    for (int i = 0; i < ctx->size; i++) {
        w->client_bytes[i] = (size_t)all[i];
        w->state_bytes += (size_t)all[i];
    }
    nsend[0] = (size_t)w->nmine * sizeof *row;
    fl_exchange(ctx, row, nsend, &got, ngot);
    if (ctx->rank == 0) {
        size_t total = 0;

        for (int i = 0; i < ctx->size; i++) {
            total += ngot[i];
        }
        const client_row *table = got;

        w->nids = (int64_t)(total / sizeof *row);
        w->id = fl_alloc("client ids", (size_t)w->nids, sizeof *w->id);
        w->offset = fl_alloc("client offsets", (size_t)w->nids + 1, sizeof *w->offset);
        for (int64_t i = 0; i < w->nids; i++) {
            w->id[i] = table[i].id;
            w->offset[i + 1] = w->offset[i] + table[i].bytes;
        }
    }
    fl_free(got);
    fl_free(row);
    fl_free(all);
    fl_free(ngot);
    fl_free(nsend);
}

/* ---- base: every node has it, equal: each rank hashes its share of the chunks ---- */

static void hash_base(ck_writer *w)
{
    size_t chunks = ck_nchunks(w->s->nbase), size = (size_t)w->ctx->size;
    size_t rank = (size_t)w->ctx->rank;
    uint64_t sum = 0;

    for (size_t c = chunks * rank / size; c < chunks * (rank + 1) / size; c++) {
        size_t n = FL_MIN((size_t)CK_CHUNK, w->s->nbase - c * CK_CHUNK);

        sum += fl_hash(w->s->base + c * CK_CHUNK, n * sizeof(fl_real), c);
    }
    w->base_hash = fl_total_hash(w->ctx, sum);
}

/* ---- step 1: rank 0 creates the file ---- */

static herr_t write_header(const ck_writer *w, hid_t file)
{
    const fl_snapshot *s = w->s;
    char state[24];
    hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);

    snprintf(state, sizeof state, "%016llx", (unsigned long long)s->state);
    bool ok =
        root >= 0 && h5_put_text(root, "program", "fedlora") >= 0 &&
        h5_put_text(root, "version", FL_VERSION) >= 0 && h5_put_int(root, "round", s->round) >= 0 &&
        h5_put_int(root, "rounds", s->rounds) >= 0 && h5_put_text(root, "state", state) >= 0 &&
        h5_put_int(root, "base_revision", s->base_revision) >= 0 &&
        h5_put_int(root, "nclients", s->nclients) >= 0 && h5_put_int(root, "complete", 1) >= 0 &&
        h5_string(file, "deck", s->deck, "the deck in force, every key (YAML)") >= 0 &&
        h5_string(file, "versions", s->versions, "program and libraries that wrote this file") >=
            0 &&
        h5_string(file, "metrics_columns", s->columns,
            "names of the columns of the metrics, comma-separated") >= 0;

    if (root >= 0) {
        H5Gclose(root);
    }
    return ok ? 0 : -1;
}

/* A new data set with its hash, written now unless it is left to step 2. Notes its place for the
 * seal and for step 2. */
static herr_t add_set(ck_writer *w, hid_t file, const fl_array *a, uint64_t hash, bool later)
{
    size_t bytes = ck_array_bytes(a);
    hid_t set = h5_dataset(file, a->name, h5_type_file(a->type), a->n, a->what, a->unit, a->axes);

    if (set < 0) {
        return -1;
    }
    herr_t status = h5_put_u64(set, "xxh3", hash);

    if (status >= 0 && !later && a->n > 0) {
        status = h5_write(set, h5_type_native(a->type), H5P_DEFAULT, 0, a->n, a->x);
    }
    haddr_t at = bytes > 0 ? H5Dget_offset(set) : 0;

    if (at == HADDR_UNDEF) {
        status = -1;
    }
    if (bytes >= H5_SEAL_LARGE) {
        w->range[w->nranges++] = (h5_range){at, bytes};
    }
    if (later && bytes > 0) {
        w->place[w->nplaces++] = (ck_place){at, bytes, a->x};
    }
    return H5Dclose(set) < 0 ? -1 : status;
}

static herr_t add_sets(ck_writer *w, hid_t file)
{
    const fl_snapshot *s = w->s;
    size_t nids = (size_t)w->nids;
    fl_array id = {.name = "clients/id",
        .what = "clients that have state, ascending",
        .axes = "client",
        .type = FL_I64,
        .n = nids,
        .x = w->id};
    fl_array offset = {.name = "clients/offset",
        .what = "where each client's bytes begin in state; last: their end",
        .unit = "byte",
        .axes = "client",
        .type = FL_I64,
        .n = nids + 1,
        .x = w->offset};
    fl_array state = {.name = "clients/state",
        .what = "state of the clients one after another, packed by the run; xxh3 is the sum over "
                "clients",
        .unit = "byte",
        .axes = "byte",
        .type = FL_U8,
        .n = w->state_bytes};
    fl_array base = {.name = "base",
        .what =
            "base weights after merges, tensor by tensor; xxh3 is the sum over chunks of 1048576",
        .axes = "element",
        .type = sizeof(fl_real) == 4 ? FL_F32 : FL_F64,
        .n = s->nbase,
        .x = s->base};

    for (int i = 0; i < s->narrays; i++) {
        const fl_array *a = &s->array[i];

        if (add_set(w, file, a, w->hash[i], ck_is_parallel(a)) < 0) {
            return -1;
        }
    }
    if (add_set(w, file, &id, fl_hash(id.x, nids * 8, 0), false) < 0 ||
        add_set(w, file, &offset, fl_hash(offset.x, (nids + 1) * 8, 0), false) < 0 ||
        add_set(w, file, &state, w->state_hash, true) < 0) {
        return -1;
    }
    return s->nbase > 0 ? add_set(w, file, &base, w->base_hash, true) : 0;
}

static double expected_bytes(const ck_writer *w)
{
    const fl_snapshot *s = w->s;
    double sum = (double)w->state_bytes + 16.0 * (double)w->nids +
                 (double)s->nbase * sizeof(fl_real) +
                 (double)(strlen(s->deck) + strlen(s->versions) + strlen(s->columns));

    for (int i = 0; i < s->narrays; i++) {
        sum += (double)ck_array_bytes(&s->array[i]) + 4096 +
               2048; /* alignment, object header and attributes */
    }
    return sum + 65536;
}

/* Takes the blocks of `bytes` bytes in tmp, creating it. A file system that cannot reserve
 * (EOPNOTSUPP) is left to the check of the free space and to late errors. */
static fl_err reserve_space(const ck_writer *w, double bytes)
{
    int fd = open(w->tmp, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

    if (fd < 0) {
        return h5_fail_errno(w->tmp, "create it", errno);
    }
    int code = fallocate(fd, 0, 0, (off_t)bytes) == 0 ? 0 : errno;

    close(fd);
    return code == ENOSPC || code == EDQUOT || code == EFBIG || code == EIO
               ? h5_fail_errno(w->path, "reserve space for it", code)
               : FL_OK;
}

/* Stripes are chosen when a file is created, and stay when it is truncated: MPI-IO, which knows the
 * hints, creates it before HDF5 does. Without hints it stays away. */
static fl_err create_striped(const ck_writer *w)
{
    MPI_Info info = ck_hints(&w->s->how);
    MPI_File file;
    char why[MPI_MAX_ERROR_STRING];
    int n;

    if (info == MPI_INFO_NULL) {
        return FL_OK;
    }
    int code = MPI_File_open(
        MPI_COMM_SELF, w->tmp, MPI_MODE_CREATE | MPI_MODE_EXCL | MPI_MODE_WRONLY, info, &file);

    MPI_Info_free(&info);
    code = code == MPI_SUCCESS ? MPI_File_close(&file) : code;
    if (code == MPI_SUCCESS) {
        return FL_OK;
    }
    MPI_Error_string(code, why, &n);
    return fl_fail(FL_EFILE,
        "%s: cannot create it with checkpoint.stripe_count and stripe_size (try 0): %s", w->path,
        why);
}

static fl_err create_file(ck_writer *w)
{
    double room = h5_free_space(w->path), need = expected_bytes(w);
    char free_text[32], need_text[32];

    if (room >= 0 && room < need) {
        return fl_fail(FL_EFILE, "%s: disk full: the checkpoint needs %s, %s are free", w->path,
            fl_bytes_text(need, need_text), fl_bytes_text(room, free_text));
    }
    /* A trial before HDF5, which truncates the file again: quotas do not show in the free space,
     * and HDF5 1.10 cannot close a file that it failed to write (it crashes in MPI_Finalize). */
    unlink(w->tmp);
    FL_TRY(create_striped(w));
    FL_TRY(reserve_space(w, need));
    w->range = fl_alloc("seal", (size_t)w->s->narrays + 4, sizeof *w->range);
    w->place = fl_alloc("places", (size_t)w->s->narrays + 2, sizeof *w->place);
    hid_t file = h5_create(w->tmp);
    fl_err err = file < 0 ? h5_fail(w->path, "create it") : FL_OK;

    if (err == FL_OK && (write_header(w, file) < 0 || add_sets(w, file) < 0)) {
        err = h5_fail(w->path, "write its header and tables");
    }
    if (file >= 0 && H5Fclose(file) < 0 && err == FL_OK) {
        err = h5_fail(w->path, "close it");
    }
    return err != FL_OK ? err : reserve_space(w, (double)h5_file_bytes(w->tmp));
}

/* ---- step 3: rank 0 finishes ---- */

static fl_err finish_file(ck_writer *w)
{
    FL_TRY(h5_seal(w->tmp, w->nranges, w->range));
    w->bytes = (double)h5_file_bytes(w->tmp);
    return h5_publish(w->tmp, w->path);
}

void ck_writer_free(ck_writer *w)
{
    if (w->nwriters > 0 && w->nwriters < w->ctx->size && w->team != MPI_COMM_NULL) {
        MPI_Comm_free(&w->team);
    }
    fl_free(w->place);
    fl_free(w->range);
    fl_free(w->id);
    fl_free(w->offset);
    fl_free(w->client_bytes);
    fl_free(w->hash);
    fl_free(w->tmp);
}

fl_err ck_prepare(ck_writer *w)
{
    const fl_snapshot *s = w->s;
    size_t room = strlen(w->path) + 5;

    FL_REQUIRE(s->deck != NULL && s->versions != NULL && s->columns != NULL &&
               (s->nbase == 0 || s->base != NULL));
    h5_quiet();
    w->tmp = fl_alloc("path", room, 1);
    snprintf(w->tmp, room, "%s.tmp", w->path);
    w->hash = fl_alloc("hashes", (size_t)s->narrays, sizeof *w->hash);
    FL_TRY(check_replicated(w));
    gather_clients(w);
    hash_base(w);
    return fl_agree(w->ctx, w->ctx->rank == 0 ? create_file(w) : FL_OK);
}

fl_err fl_checkpoint_write(fl_ctx *ctx, const char *path, const fl_snapshot *s, double *bytes)
{
    ck_writer w = {.ctx = ctx, .s = s, .path = path};
    fl_err err = ck_prepare(&w);

    if (err == FL_OK) {
        err = ck_write_parallel(&w);
    }
    if (err == FL_OK) {
        err = fl_agree(ctx, ctx->rank == 0 ? finish_file(&w) : FL_OK);
    }
    if (err != FL_OK && ctx->rank == 0) {
        unlink(w.tmp); /* a half-written file would only take the space that was missing */
    }
    fl_bcast(ctx, 0, &w.bytes, sizeof w.bytes);
    if (bytes != NULL) {
        *bytes = w.bytes;
    }
    ck_writer_free(&w);
    return err;
}
