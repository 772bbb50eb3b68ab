/* checkpoint_file.c - a checkpoint opened and checked by one rank. Nothing in the file is believed:
 * the seal first, then kinds, sizes against the file's length, ranges of every number, and the hash
 * of everything that is read. */
#include "checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

fl_err ck_hash_error(const ck_file *c, const char *name)
{
    return fl_fail(
        FL_EFILE, "%s: dataset /%s: hash differs (bit rot or truncated write)", c->path, name);
}

size_t ck_nchunks(size_t nbase)
{
    return nbase / CK_CHUNK + (nbase % CK_CHUNK != 0);
}

/* ---- header ---- */

static fl_err read_int(const ck_file *c, hid_t root, const char *name, int *x)
{
    int64_t wide = 0;

    if (!h5_get_int(root, name, &wide) || wide < 0 || wide > INT32_MAX) {
        return fl_fail(FL_EFILE,
            "%s: attribute %s is missing or not a count: not a checkpoint of this program", c->path,
            name);
    }
    *x = (int)wide;
    return FL_OK;
}

static fl_err read_state(const ck_file *c, hid_t root, uint64_t *state)
{
    char text[40];
    char *end = NULL;

    if (!h5_get_text(root, "state", text, sizeof text) || strlen(text) != 16 ||
        strspn(text, "0123456789abcdef") != 16) {
        return fl_fail(FL_EFILE, "%s: attribute state is missing or not 16 hex digits", c->path);
    }
    *state = strtoull(text, &end, 16);
    return FL_OK;
}

static fl_err read_header(ck_file *c)
{
    hid_t root = H5Gopen2(c->file, "/", H5P_DEFAULT);
    int complete = 0;
    fl_err err = root < 0 ? h5_fail(c->path, "open its root group") : FL_OK;

    err = err != FL_OK ? err : read_int(c, root, "complete", &complete);
    err = err != FL_OK ? err : read_int(c, root, "round", &c->s.round);
    err = err != FL_OK ? err : read_int(c, root, "rounds", &c->s.rounds);
    err = err != FL_OK ? err : read_int(c, root, "base_revision", &c->s.base_revision);
    err = err != FL_OK ? err : read_int(c, root, "nclients", &c->s.nclients);
    err = err != FL_OK ? err : read_state(c, root, &c->s.state);
    if (root >= 0) {
        H5Gclose(root);
    }
    FL_TRY(err);
    if (complete != 1) {
        return fl_fail(FL_EFILE, "%s: the run that wrote it did not finish it (complete is %d)",
            c->path, complete);
    }
    c->s.deck = h5_get_string(c->file, "deck", CK_TEXT_LIMIT);
    c->s.versions = h5_get_string(c->file, "versions", CK_TEXT_LIMIT);
    c->s.columns = h5_get_string(c->file, "metrics_columns", CK_TEXT_LIMIT);
    if (c->s.deck == NULL || c->s.versions == NULL || c->s.columns == NULL) {
        return fl_fail(FL_EFILE,
            "%s: one of the texts /deck, /versions, /metrics_columns is missing or damaged",
            c->path);
    }
    return FL_OK;
}

/* ---- names and sizes ---- */

static bool is_special(const char *name)
{
    return strncmp(name, "clients/", 8) == 0 || strcmp(name, "base") == 0 ||
           strcmp(name, "deck") == 0 || strcmp(name, "versions") == 0 ||
           strcmp(name, "metrics_columns") == 0;
}

typedef struct name_list {
    int n, room;
    char (*name)[sizeof(((fl_array *)0)->name)]; /* owned [room] */
    bool too_long;
} name_list;

static void name_add(void *to, const char *name)
{
    name_list *list = to;

    if (is_special(name)) {
        return;
    }
    if (strlen(name) >= sizeof list->name[0]) {
        list->too_long = true;
        return;
    }
    if (list->n == list->room) {
        list->room = list->room > 0 ? 2 * list->room : 64;
        list->name = fl_realloc("names", list->name, (size_t)list->room, sizeof list->name[0]);
    }
    memset(list->name[list->n], 0, sizeof list->name[0]);
    memcpy(list->name[list->n++], name, strlen(name));
}

static fl_err read_array_head(const ck_file *c, fl_array *a)
{
    hid_t set = h5_open_flat(c->file, a->name, c->bytes, &a->type, &a->n);

    if (set < 0) {
        return fl_fail(
            FL_EFILE, "%s: dataset /%s is not an array that this program wrote", c->path, a->name);
    }
    h5_get_text(set, "description", a->what, sizeof a->what);
    h5_get_text(set, "unit", a->unit, sizeof a->unit);
    h5_get_text(set, "axes", a->axes, sizeof a->axes);
    H5Dclose(set);
    return FL_OK;
}

static fl_err read_arrays(ck_file *c)
{
    name_list list = {0};
    fl_err err =
        h5_visit(c->file, name_add, &list) < 0 ? h5_fail(c->path, "list its datasets") : FL_OK;

    if (err == FL_OK && list.too_long) {
        err = fl_fail(FL_EFILE, "%s: the name of a dataset is too long", c->path);
    }
    if (err == FL_OK) {
        c->s.array = fl_alloc("checkpoint arrays", (size_t)list.n, sizeof *c->s.array);
        c->s.narrays = list.n;
    }
    for (int i = 0; i < list.n && err == FL_OK; i++) {
        memcpy(c->s.array[i].name, list.name[i], sizeof c->s.array[i].name);
        err = read_array_head(c, &c->s.array[i]);
    }
    fl_free(list.name);
    return err;
}

static fl_err size_of(const ck_file *c, const char *name, fl_array_type want, size_t *n)
{
    fl_array_type kind;
    hid_t set = h5_open_flat(c->file, name, c->bytes, &kind, n);

    if (set < 0) {
        return fl_fail(FL_EFILE, "%s: dataset /%s is missing or of the wrong kind", c->path, name);
    }
    H5Dclose(set);
    return kind == want ? FL_OK
                        : fl_fail(FL_EFILE, "%s: dataset /%s has type %s", c->path, name,
                              h5_type_name(kind));
}

static fl_err read_sizes(ck_file *c)
{
    size_t nid = 0, noffset = 0;

    FL_TRY(size_of(c, "clients/id", FL_I64, &nid));
    FL_TRY(size_of(c, "clients/offset", FL_I64, &noffset));
    FL_TRY(size_of(c, "clients/state", FL_U8, &c->state_bytes));
    if (noffset != nid + 1 || nid > (size_t)c->s.nclients) {
        return fl_fail(FL_EFILE, "%s: %zu clients with state among %d, but %zu offsets", c->path,
            nid, c->s.nclients, noffset);
    }
    c->nids = (int64_t)nid;
    if (!h5_exists(c->file, "base")) {
        return FL_OK;
    }
    hid_t set = h5_open_flat(c->file, "base", c->bytes, &c->base_type, &c->s.nbase);

    if (set < 0 || (c->base_type != FL_F32 && c->base_type != FL_F64)) {
        if (set >= 0) {
            H5Dclose(set);
        }
        return fl_fail(FL_EFILE, "%s: dataset /base is of the wrong kind", c->path);
    }
    H5Dclose(set);
    return FL_OK;
}

fl_err ck_open(const char *path, ck_file *c)
{
    memset(c, 0, sizeof *c);
    c->path = path;
    c->file = -1;
    h5_quiet();
    FL_TRY(h5_seal_check(path)); /* before HDF5 sees a byte */
    c->bytes = h5_file_bytes(path);
    c->file = h5_open(path, false);
    fl_err err = c->file < 0 ? h5_fail(path, "open it") : FL_OK;

    err = err != FL_OK ? err : read_header(c);
    err = err != FL_OK ? err : read_arrays(c);
    err = err != FL_OK ? err : read_sizes(c);
    if (err != FL_OK) {
        ck_close(c);
    }
    return err;
}

void ck_close(ck_file *c)
{
    if (c->file >= 0) {
        H5Fclose(c->file);
    }
    fl_free(c->id);
    fl_free(c->offset);
    fl_snapshot_free(&c->s);
    memset(c, 0, sizeof *c);
    c->file = -1;
}

/* ---- contents ---- */

fl_err ck_open_set(const ck_file *c, const char *name, hid_t *set, uint64_t *xxh3)
{
    *set = H5Dopen2(c->file, name, H5P_DEFAULT);
    if (*set < 0) {
        return fl_fail(FL_EFILE, "%s: cannot open dataset /%s", c->path, name);
    }
    if (!h5_get_u64(*set, "xxh3", xxh3)) {
        H5Dclose(*set);
        return fl_fail(FL_EFILE, "%s: dataset /%s has no hash (attribute xxh3)", c->path, name);
    }
    return FL_OK;
}

fl_err ck_read(
    const ck_file *c, const char *name, hid_t set, hid_t mem, size_t first, size_t n, void *x)
{
    char doing[200];

    if (h5_read(set, mem, first, n, x) >= 0) {
        return FL_OK;
    }
    snprintf(doing, sizeof doing, "read dataset /%s", name);
    return h5_fail(c->path, doing);
}

/* Whole data set [n] into x, hash checked. */
static fl_err read_whole(const ck_file *c, const char *name, fl_array_type type, size_t n, void *x)
{
    hid_t set;
    uint64_t xxh3 = 0;

    FL_TRY(ck_open_set(c, name, &set, &xxh3));
    fl_err err = ck_read(c, name, set, h5_type_native(type), 0, n, x);

    H5Dclose(set);
    FL_TRY(err);
    return fl_hash(x, n * h5_type_bytes(type), 0) == xxh3 ? FL_OK : ck_hash_error(c, name);
}

fl_err ck_array(ck_file *c, int i)
{
    fl_array *a = &c->s.array[i];

    a->x = fl_alloc(a->name, a->n, h5_type_bytes(a->type));
    fl_err err = read_whole(c, a->name, a->type, a->n, a->x);

    if (err != FL_OK) {
        ck_array_drop(c, i);
    }
    return err;
}

void ck_array_drop(ck_file *c, int i)
{
    fl_free(c->s.array[i].x);
    c->s.array[i].x = NULL;
}

fl_err ck_clients(ck_file *c)
{
    size_t n = (size_t)c->nids;

    if (c->id != NULL) {
        return FL_OK;
    }
    c->id = fl_alloc("client ids", n, sizeof *c->id);
    c->offset = fl_alloc("client offsets", n + 1, sizeof *c->offset);
    FL_TRY(read_whole(c, "clients/id", FL_I64, n, c->id));
    FL_TRY(read_whole(c, "clients/offset", FL_I64, n + 1, c->offset));
    for (size_t i = 0; i < n; i++) {
        if (c->id[i] < 0 || c->id[i] >= c->s.nclients || (i > 0 && c->id[i] <= c->id[i - 1]) ||
            c->offset[i] >= c->offset[i + 1]) {
            return fl_fail(FL_EFILE, "%s: the table of clients is wrong at entry %zu", c->path, i);
        }
    }
    if (c->offset[0] != 0 || (uint64_t)c->offset[n] != c->state_bytes) {
        return fl_fail(FL_EFILE, "%s: the offsets of clients do not cover /clients/state", c->path);
    }
    return FL_OK;
}

fl_err ck_blobs(const ck_file *c, int64_t lo, int64_t hi, ck_blob put, void *to, uint64_t *sum)
{
    hid_t set;
    uint64_t xxh3;
    fl_err err = FL_OK;
    char *piece = NULL;
    size_t room = 0;

    *sum = 0;
    FL_TRY(ck_open_set(c, "clients/state", &set, &xxh3));
    while (lo < hi && err == FL_OK) {
        int64_t end = lo + 1;

        while (end < hi && c->offset[end + 1] - c->offset[lo] <= CK_STAGE) {
            end++;
        }
        size_t at = (size_t)c->offset[lo], n = (size_t)c->offset[end] - at;

        if (n > room || piece == NULL) {
            fl_free(piece);
            piece = fl_alloc("client state", n, 1);
            room = n;
        }
        err = ck_read(c, "clients/state", set, H5T_NATIVE_UINT8, at, n, piece);
        for (; lo < end && err == FL_OK; lo++) {
            const char *blob = piece + ((size_t)c->offset[lo] - at);
            size_t bytes = (size_t)(c->offset[lo + 1] - c->offset[lo]);

            *sum += fl_hash(blob, bytes, (uint64_t)c->id[lo]);
            if (put != NULL) {
                put(to, (int)c->id[lo], blob, bytes);
            }
        }
    }
    fl_free(piece);
    H5Dclose(set);
    return err;
}

fl_err ck_base_chunks(const ck_file *c, size_t lo, size_t hi, uint64_t *sum)
{
    hid_t set, mem = h5_type_native(c->base_type);
    uint64_t xxh3;
    size_t each = h5_type_bytes(c->base_type);
    fl_err err = FL_OK;

    *sum = 0;
    FL_TRY(ck_open_set(c, "base", &set, &xxh3));
    char *chunk = fl_alloc("base chunk", CK_CHUNK, each);

    for (; lo < hi && err == FL_OK; lo++) {
        size_t n = FL_MIN((size_t)CK_CHUNK, c->s.nbase - lo * CK_CHUNK);

        err = ck_read(c, "base", set, mem, lo * CK_CHUNK, n, chunk);
        *sum += fl_hash(chunk, n * each, lo);
    }
    fl_free(chunk);
    H5Dclose(set);
    return err;
}

static fl_err verify_sum(const ck_file *c, const char *name, uint64_t sum)
{
    hid_t set;
    uint64_t xxh3 = 0;

    FL_TRY(ck_open_set(c, name, &set, &xxh3));
    H5Dclose(set);
    return sum == xxh3 ? FL_OK : ck_hash_error(c, name);
}

fl_err ck_verify(ck_file *c)
{
    uint64_t sum;

    for (int i = 0; i < c->s.narrays; i++) {
        FL_TRY(ck_array(c, i));
        ck_array_drop(c, i);
    }
    FL_TRY(ck_clients(c));
    FL_TRY(ck_blobs(c, 0, c->nids, NULL, NULL, &sum));
    FL_TRY(verify_sum(c, "clients/state", sum));
    if (c->s.nbase > 0) {
        FL_TRY(ck_base_chunks(c, 0, ck_nchunks(c->s.nbase), &sum));
        FL_TRY(verify_sum(c, "base", sum));
    }
    return FL_OK;
}
