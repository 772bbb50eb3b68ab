/* inspect.c - what a checkpoint, data set, safetensors file or adapter folder holds, as text. */
#include "inspect_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- kinds ---- */

/* First 9 bytes: HDF5's signature, or the length of a JSON header and its brace. */
static fl_err kind_of_file(const char *path, file_kind *kind)
{
    static const unsigned char hdf5[8] = "\211HDF\r\n\032\n";
    unsigned char head[9] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof head, 0);
    int code = errno;

    if (fd >= 0) {
        close(fd);
    }
    if (n < 0) {
        return h5_fail_errno(path, "read it", code);
    }
    if (n >= 8 && memcmp(head, hdf5, 8) == 0) {
        *kind = h5_sealed(path) ? KIND_CHECKPOINT : KIND_HDF5;
        return FL_OK;
    }
    size_t length = strlen(path);

    if (length > 3 && strcmp(path + length - 3, ".h5") == 0) {
        return fl_fail(FL_EFILE, "%s: does not begin like an HDF5 file: damaged or empty", path);
    }
    if ((n == 9 && head[8] == '{') ||
        (length > 12 && strcmp(path + length - 12, ".safetensors") == 0)) {
        *kind = KIND_SAFETENSORS;
        return FL_OK;
    }
    return fl_fail(
        FL_EUSAGE, "%s: not a checkpoint, HDF5 data set, safetensors file or adapter folder", path);
}

fl_err file_kind_of(const char *path, file_kind *kind, char **real)
{
    static const char *const inside[] = {"adapter_model.safetensors", "model.safetensors"};
    struct stat st;

    *real = NULL;
    if (stat(path, &st) != 0) {
        return h5_fail_errno(path, "open it", errno);
    }
    if (!S_ISDIR(st.st_mode)) {
        FL_TRY(kind_of_file(path, kind));
        *real = fl_strdup(path);
        return FL_OK;
    }
    for (size_t i = 0; i < FL_COUNT(inside); i++) {
        size_t room = strlen(path) + strlen(inside[i]) + 2;
        char *try = fl_alloc("path", room, 1);

        snprintf(try, room, "%s/%s", path, inside[i]);
        if (fl_path_exists(try)) {
            *kind = KIND_SAFETENSORS;
            *real = try;
            return FL_OK;
        }
        fl_free(try);
    }
    return fl_fail(
        FL_EUSAGE, "%s: a folder without adapter_model.safetensors or model.safetensors", path);
}

/* ---- checkpoint ---- */

static void add_clients(const ck_file *c, fl_text *t)
{
    char bytes[32];

    fl_text_add(t, "clients        %lld of %d with state, %s\n", (long long)c->nids, c->s.nclients,
        fl_bytes_text((double)c->state_bytes, bytes));
}

static void add_base(const ck_file *c, fl_text *t)
{
    char bytes[32];

    if (c->s.nbase == 0) {
        fl_text_add(t, "base           revision %d, as loaded\n", c->s.base_revision);
        return;
    }
    fl_text_add(t, "base           revision %d, saved dense: %zu numbers (%s), %s\n",
        c->s.base_revision, c->s.nbase, h5_type_name(c->base_type),
        fl_bytes_text((double)c->s.nbase * (double)h5_type_bytes(c->base_type), bytes));
}

static void add_arrays(const ck_file *c, fl_text *t)
{
    int width = 4;

    for (int i = 0; i < c->s.narrays; i++) {
        width = FL_MAX(width, (int)strlen(c->s.array[i].name));
    }
    fl_text_add(t, "%-*s  %-4s  %12s  %-8s  %s\n", width, "name", "type", "n", "unit",
        "description [axes]");
    for (int i = 0; i < c->s.narrays; i++) {
        const fl_array *a = &c->s.array[i];

        fl_text_add(t, "%-*s  %-4s  %12zu  %-8s  %s [%s]\n", width, a->name, h5_type_name(a->type),
            a->n, a->unit[0] != 0 ? a->unit : "-", a->what, a->axes);
    }
}

static fl_err inspect_checkpoint(const char *path, fl_text *t)
{
    ck_file c;
    char program[64], version[64], bytes[32];

    FL_TRY(ck_open(path, &c));
    hid_t root = H5Gopen2(c.file, "/", H5P_DEFAULT);

    if (root >= 0) {
        h5_get_text(root, "program", program, sizeof program);
        h5_get_text(root, "version", version, sizeof version);
        H5Gclose(root);
        fl_text_add(t, "checkpoint     %s %s, %s\n", program, version,
            fl_bytes_text((double)c.bytes, bytes));
    }
    fl_text_add(t, "round          %d of %d\n", c.s.round, c.s.rounds);
    add_clients(&c, t);
    add_base(&c, t);
    fl_text_add(t, "metrics        %s\n\n", c.s.columns[0] != 0 ? c.s.columns : "-");
    add_arrays(&c, t);
    fl_text_add(t, "\nversions\n%s%s", c.s.versions, c.s.versions[0] != 0 ? "\n" : "");
    fl_text_add(t, "state %016llx\n", (unsigned long long)c.s.state);
    ck_close(&c);
    return FL_OK;
}

/* ---- safetensors ---- */

bool st_is_float(const fl_st_entry *e)
{
    static const char *const kinds[] = {"F32", "F16", "BF16", "F64"};

    for (size_t i = 0; i < FL_COUNT(kinds); i++) {
        if (strcmp(e->dtype, kinds[i]) == 0) {
            return true;
        }
    }
    return false;
}

size_t st_count(const fl_st_entry *e)
{
    size_t n = 1;

    for (int i = 0; i < e->ndims; i++) {
        n *= (size_t)e->dims[i]; /* fl_st_open has seen that the product is the number of bytes */
    }
    return n;
}

void st_shape(const fl_st_entry *e, char *text, size_t room)
{
    size_t at = 0;

    snprintf(text, room, "scalar");
    for (int i = 0; i < e->ndims && at < room; i++) {
        at += (size_t)snprintf(
            text + at, room - at, "%s%lld", i > 0 ? " x " : "", (long long)e->dims[i]);
    }
}

static fl_err inspect_safetensors(const char *path, fl_text *t)
{
    fl_st st;
    int width = 4;
    double total = 0;
    char shape[200], bytes[32];

    FL_TRY(fl_st_open(path, &st));
    for (int i = 0; i < st.n; i++) {
        width = FL_MAX(width, FL_MIN(100, (int)strlen(st.entry[i].name)));
        total += (double)(st.entry[i].end - st.entry[i].begin);
    }
    fl_text_add(t, "safetensors    %d tensors, %s\n", st.n, fl_bytes_text(total, bytes));
    if (st.metadata != NULL && st.metadata[0] != 0) {
        fl_text_add(t, "metadata       %s\n", st.metadata);
    }
    fl_text_add(t, "\n%-*s  %-5s  %s\n", width, "name", "type", "shape");
    for (int i = 0; i < st.n; i++) {
        st_shape(&st.entry[i], shape, sizeof shape);
        fl_text_add(t, "%-*s  %-5s  %s\n", width, st.entry[i].name, st.entry[i].dtype, shape);
    }
    fl_st_close(&st);
    return FL_OK;
}

fl_err by_file_kind(const char *path, const kind_functions *by, fl_text *t)
{
    file_kind kind;
    char *real;
    fl_err err = FL_OK;

    FL_TRY(file_kind_of(path, &kind, &real));
    switch (kind) {
    case KIND_CHECKPOINT:
        err = by->checkpoint(real, t);
        break;
    case KIND_HDF5:
        err = fl_isolated(by->hdf5, real, NULL, t);
        break;
    case KIND_SAFETENSORS:
        err = by->safetensors(real, t);
        break;
    }
    fl_free(real);
    return err;
}

fl_err fl_inspect(const char *path, fl_text *t)
{
    return by_file_kind(
        path, &(kind_functions){inspect_checkpoint, dataset_inspect, inspect_safetensors}, t);
}
