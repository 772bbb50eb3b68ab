/* h5.c - small helpers over HDF5: files without time stamps, data sets that explain themselves, careful reading of
 * attributes that somebody else may have written, and HDF5's error stack turned into one sentence. */
#include "h5.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- library ---- */

void h5_quiet(void)
{
    static bool done = false;

    if (!done) {
        /* many parallel file systems are mounted without flock, where HDF5 would refuse to open a file */
        setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
        H5open();
        done = true;
    }
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static void folder_of(const char *path, char *dir, size_t room)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL) {
        snprintf(dir, room, ".");
    } else if (slash == path) {
        snprintf(dir, room, "/");
    } else {
        snprintf(dir, room, "%.*s", (int)(slash - path), path);
    }
}

double h5_free_space(const char *path)
{
    char dir[4096];
    struct statvfs fs;

    folder_of(path, dir, sizeof dir);
    if (statvfs(dir, &fs) != 0 || fs.f_blocks == 0) {
        return -1;
    }
    return (double)fs.f_bavail * (double)fs.f_frsize;
}

static fl_err fail_full(const char *path, const char *doing)
{
    char free_text[32];
    double room = h5_free_space(path);

    if (room < 0) {
        return fl_fail(FL_EFILE, "%s: cannot %s: disk full", path, doing);
    }
    return fl_fail(FL_EFILE, "%s: cannot %s: disk full: %s free", path, doing, fl_bytes_text(room, free_text));
}

fl_err h5_fail_errno(const char *path, const char *doing, int code)
{
    if (code == ENOSPC || code == EDQUOT) {
        return fail_full(path, doing);
    }
    return fl_fail(FL_EFILE, "%s: cannot %s: %s", path, doing, strerror(code));
}

typedef struct story {
    char inner[400]; /* the message nearest to the cause */
    bool full;
} story;

static herr_t story_read(unsigned n, const H5E_error2_t *e, void *to)
{
    story *st = to;

    if (e->desc == NULL) {
        return 0;
    }
    if (n == 0) {
        snprintf(st->inner, sizeof st->inner, "%s", e->desc);
    }
    if (strstr(e->desc, "No space left") || strstr(e->desc, "NO_SPACE") || strstr(e->desc, "quota")) {
        st->full = true;
    }
    return 0;
}

fl_err h5_fail(const char *path, const char *doing)
{
    story st = { "unknown error", false };

    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, story_read, &st);
    H5Eclear2(H5E_DEFAULT);
    for (char *c = st.inner; *c != 0; c++) {
        if (*c == '\n') {
            *c = ' ';
        }
    }
    if (st.full) {
        return fail_full(path, doing);
    }
    return fl_fail(FL_EFILE, "%s: cannot %s: %s", path, doing, st.inner);
}

fl_err h5_fsync(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int code = 0;

    if (fd < 0) {
        return h5_fail_errno(path, "open it for fsync", errno);
    }
    if (fsync(fd) != 0) {
        code = errno;
    }
    if (close(fd) != 0 && code == 0) {
        code = errno;
    }
    return code == 0 ? FL_OK : h5_fail_errno(path, "write it to the disk (fsync)", code);
}

static fl_err folder_fsync(const char *path)
{
    char dir[4096];
    int fd;

    folder_of(path, dir, sizeof dir);
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return h5_fail_errno(dir, "open the folder", errno);
    }
    /* some network file systems cannot fsync a folder: EINVAL is their word for it */
    int code = fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP ? errno : 0;

    close(fd);
    return code == 0 ? FL_OK : h5_fail_errno(dir, "write the folder to the disk (fsync)", code);
}

fl_err h5_publish(const char *tmp, const char *path)
{
    fl_err err = h5_fsync(tmp);

    if (err == FL_OK && rename(tmp, path) != 0) {
        err = h5_fail_errno(path, "rename the finished file to this name", errno);
    }
    if (err != FL_OK) {
        unlink(tmp);
        return err;
    }
    return folder_fsync(path);
}

/* ---- files ---- */

int64_t h5_file_bytes(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

static hid_t create_on(hid_t fapl, const char *path)
{
    hid_t fcpl = H5Pcreate(H5P_FILE_CREATE);

    H5Pset_obj_track_times(fcpl, false);
    /* 1.8 format: superblock and object headers carry checksums, and every reader since 2008 knows it */
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    H5Pset_alignment(fapl, H5_SEAL_LARGE, 4096);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);

    H5Pclose(fapl);
    H5Pclose(fcpl);
    return file;
}

hid_t h5_create(const char *path)
{
    return create_on(H5Pcreate(H5P_FILE_ACCESS), path);
}

hid_t h5_create_memory(void)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);

    H5Pset_fapl_core(fapl, 1 << 16, false);
    return create_on(fapl, "memory");
}

herr_t h5_image(hid_t file, void **image, size_t *n)
{
    ssize_t bytes = H5Fflush(file, H5F_SCOPE_GLOBAL) < 0 ? -1 : H5Fget_file_image(file, NULL, 0);

    if (bytes <= 0) {
        return -1;
    }
    *image = fl_alloc("HDF5 image", (size_t)bytes, 1);
    *n = (size_t)bytes;
    return H5Fget_file_image(file, *image, (size_t)bytes) == bytes ? 0 : -1;
}

hid_t h5_open(const char *path, bool writable)
{
    return H5Fopen(path, writable ? H5F_ACC_RDWR : H5F_ACC_RDONLY, H5P_DEFAULT);
}

/* ---- attributes ---- */

static herr_t put_attribute(hid_t obj, const char *name, hid_t file_type, hid_t mem_type, const void *x)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t at = H5Aexists(obj, name) > 0 ? H5Aopen(obj, name, H5P_DEFAULT)
                                        : H5Acreate2(obj, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t status = at < 0 ? -1 : H5Awrite(at, mem_type, x);

    if (at >= 0 && H5Aclose(at) < 0) {
        status = -1;
    }
    H5Sclose(space);
    return status;
}

static hid_t string_type(size_t n)
{
    hid_t type = H5Tcopy(H5T_C_S1);

    H5Tset_size(type, n > 0 ? n : 1); /* HDF5 knows no string of length 0 */
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

herr_t h5_put_text(hid_t obj, const char *name, const char *text)
{
    hid_t type = string_type(strlen(text));
    herr_t status = put_attribute(obj, name, type, type, text);

    H5Tclose(type);
    return status;
}

herr_t h5_put_u64(hid_t obj, const char *name, uint64_t x)
{
    return put_attribute(obj, name, H5T_STD_U64LE, H5T_NATIVE_UINT64, &x);
}

herr_t h5_put_int(hid_t obj, const char *name, int64_t x)
{
    return put_attribute(obj, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &x);
}

static bool is_single(hid_t at)
{
    hid_t space = H5Aget_space(at);
    bool one = space >= 0 && H5Sget_simple_extent_npoints(space) == 1;

    if (space >= 0) {
        H5Sclose(space);
    }
    return one;
}

static bool read_integer(hid_t obj, const char *name, bool is_signed, void *x)
{
    bool ok = false;

    if (H5Aexists(obj, name) <= 0) {
        return false;
    }
    hid_t at = H5Aopen(obj, name, H5P_DEFAULT);

    if (at < 0) {
        return false;
    }
    hid_t type = H5Aget_type(at);

    if (type >= 0 && H5Tget_class(type) == H5T_INTEGER && H5Tget_size(type) <= 8 && is_single(at)) {
        ok = H5Aread(at, is_signed ? H5T_NATIVE_INT64 : H5T_NATIVE_UINT64, x) >= 0;
    }
    if (type >= 0) {
        H5Tclose(type);
    }
    H5Aclose(at);
    return ok;
}

bool h5_get_u64(hid_t obj, const char *name, uint64_t *x)
{
    return read_integer(obj, name, false, x);
}

bool h5_get_int(hid_t obj, const char *name, int64_t *x)
{
    return read_integer(obj, name, true, x);
}

static bool read_text(hid_t at, hid_t type, char *text, size_t room)
{
    if (H5Tis_variable_str(type) > 0) {
        char *s = NULL;
        hid_t mem = H5Tcopy(type);
        bool ok = H5Aread(at, mem, &s) >= 0;

        snprintf(text, room, "%s", ok && s != NULL ? s : "");
        H5free_memory(s);
        H5Tclose(mem);
        return ok;
    }
    size_t n = H5Tget_size(type);

    if (n == 0 || n > 1 << 20) {
        return false;
    }
    char *s = fl_alloc("attribute", n + 1, 1);
    bool ok = H5Aread(at, type, s) >= 0;

    snprintf(text, room, "%s", ok ? s : "");
    fl_free(s);
    return ok;
}

bool h5_get_text(hid_t obj, const char *name, char *text, size_t room)
{
    bool ok = false;

    text[0] = 0;
    if (H5Aexists(obj, name) <= 0) {
        return false;
    }
    hid_t at = H5Aopen(obj, name, H5P_DEFAULT);

    if (at < 0) {
        return false;
    }
    hid_t type = H5Aget_type(at);

    if (type >= 0 && H5Tget_class(type) == H5T_STRING && is_single(at)) {
        ok = read_text(at, type, text, room);
    }
    if (type >= 0) {
        H5Tclose(type);
    }
    H5Aclose(at);
    return ok;
}

/* ---- data sets ---- */

static const struct {
    size_t bytes;
    const char *name;
} kinds[] = { [FL_F32] = { 4, "f32" }, [FL_F64] = { 8, "f64" }, [FL_I64] = { 8, "i64" }, [FL_U8] = { 1, "u8" } };

size_t h5_type_bytes(fl_array_type type)
{
    FL_REQUIRE((size_t)type < FL_COUNT(kinds));
    return kinds[type].bytes;
}

const char *h5_type_name(fl_array_type type)
{
    FL_REQUIRE((size_t)type < FL_COUNT(kinds));
    return kinds[type].name;
}

hid_t h5_type_native(fl_array_type type)
{
    switch (type) {
    case FL_F32:
        return H5T_NATIVE_FLOAT;
    case FL_F64:
        return H5T_NATIVE_DOUBLE;
    case FL_I64:
        return H5T_NATIVE_INT64;
    case FL_U8:
        break;
    }
    return H5T_NATIVE_UINT8;
}

hid_t h5_type_file(fl_array_type type)
{
    switch (type) {
    case FL_F32:
        return H5T_IEEE_F32LE;
    case FL_F64:
        return H5T_IEEE_F64LE;
    case FL_I64:
        return H5T_STD_I64LE;
    case FL_U8:
        break;
    }
    return H5T_STD_U8LE;
}

/* Creates the groups of "a/b/c", one by one because HDF5's own way would stamp them with the time. */
static herr_t make_groups(hid_t file, const char *name)
{
    char part[256];
    hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE);
    herr_t status = 0;

    H5Pset_obj_track_times(gcpl, false);
    for (const char *c = strchr(name, '/'); c != NULL && status >= 0; c = strchr(c + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(c - name), name);
        if (part[0] == 0 || H5Lexists(file, part, H5P_DEFAULT) > 0) {
            continue;
        }
        hid_t group = H5Gcreate2(file, part, H5P_DEFAULT, gcpl, H5P_DEFAULT);

        status = group < 0 ? -1 : H5Gclose(group);
    }
    H5Pclose(gcpl);
    return status;
}

static hid_t create_plain(hid_t file, const char *name, hid_t type, hid_t space)
{
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), set = -1;

    H5Pset_obj_track_times(dcpl, false);
    H5Pset_layout(dcpl, H5D_CONTIGUOUS);
    H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
    if (make_groups(file, name) >= 0) {
        set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    }
    H5Pclose(dcpl);
    return set;
}

hid_t h5_dataset(
    hid_t file, const char *name, hid_t type, size_t n, const char *what, const char *unit, const char *axes)
{
    hsize_t dims = n;
    hid_t space = H5Screate_simple(1, &dims, NULL);
    hid_t set = create_plain(file, name, type, space);

    H5Sclose(space);
    if (set >= 0 && (h5_put_text(set, "description", what) < 0 || h5_put_text(set, "unit", unit) < 0 ||
                        h5_put_text(set, "axes", axes) < 0)) {
        H5Dclose(set);
        return -1;
    }
    return set;
}

herr_t h5_string(hid_t file, const char *name, const char *text, const char *what)
{
    hid_t type = string_type(strlen(text)), space = H5Screate(H5S_SCALAR);
    hid_t set = create_plain(file, name, type, space);
    herr_t status = -1;

    if (set >= 0) {
        status = H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text);
        if (h5_put_text(set, "description", what) < 0 || h5_put_text(set, "unit", "") < 0 ||
            h5_put_text(set, "axes", "") < 0 || h5_put_u64(set, "xxh3", fl_hash_text(text)) < 0) {
            status = -1;
        }
        if (H5Dclose(set) < 0) {
            status = -1;
        }
    }
    H5Sclose(space);
    H5Tclose(type);
    return status;
}

/* File and memory spaces for elements [first, first + n); both empty for n = 0. */
static void make_slab(hid_t set, size_t first, size_t n, hid_t *file, hid_t *mem)
{
    hsize_t start = first, count = n > 0 ? n : 1;

    *file = H5Dget_space(set);
    *mem = H5Screate_simple(1, &count, NULL);
    if (n == 0) {
        H5Sselect_none(*file);
        H5Sselect_none(*mem);
    } else if (H5Sselect_hyperslab(*file, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0) {
        H5Sclose(*file);
        *file = -1;
    }
}

static void close_slab(hid_t file, hid_t mem)
{
    if (file >= 0) {
        H5Sclose(file);
    }
    H5Sclose(mem);
}

herr_t h5_write(hid_t set, hid_t mem, hid_t dxpl, size_t first, size_t n, const void *x)
{
    hid_t in_file, in_mem;
    char nothing = 0;

    make_slab(set, first, n, &in_file, &in_mem);
    herr_t status = in_file < 0 ? -1 : H5Dwrite(set, mem, in_mem, in_file, dxpl, n > 0 ? x : &nothing);

    close_slab(in_file, in_mem);
    return status;
}

herr_t h5_read(hid_t set, hid_t mem, size_t first, size_t n, void *x)
{
    hid_t in_file, in_mem;

    if (n == 0) {
        return 0;
    }
    make_slab(set, first, n, &in_file, &in_mem);
    herr_t status = in_file < 0 ? -1 : H5Dread(set, mem, in_mem, in_file, H5P_DEFAULT, x);

    close_slab(in_file, in_mem);
    return status;
}

bool h5_exists(hid_t file, const char *name)
{
    char part[1024];

    if (strlen(name) >= sizeof part) {
        return false;
    }
    for (const char *c = strchr(name, '/'); c != NULL; c = strchr(c + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(c - name), name);
        if (part[0] != 0 && H5Lexists(file, part, H5P_DEFAULT) <= 0) {
            return false;
        }
    }
    return H5Lexists(file, name, H5P_DEFAULT) > 0;
}

char *h5_get_string(hid_t file, const char *name, size_t limit)
{
    char *text = NULL;

    if (!h5_exists(file, name)) {
        return NULL;
    }
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT);

    if (set < 0) {
        return NULL;
    }
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    size_t n = H5Tget_size(type);
    uint64_t hash;

    if (H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 && n > 0 && n <= limit &&
        H5Sget_simple_extent_npoints(space) == 1) {
        text = fl_alloc("string", n + 1, 1);
        if (H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0 || !h5_get_u64(set, "xxh3", &hash) ||
            hash != fl_hash_text(text)) {
            fl_free(text);
            text = NULL;
        }
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(set);
    return text;
}

static bool type_of(hid_t type, fl_array_type *kind)
{
    for (int k = FL_F32; k <= FL_U8; k++) {
        if (H5Tequal(type, h5_type_file((fl_array_type)k)) > 0) {
            *kind = (fl_array_type)k;
            return true;
        }
    }
    return false;
}

hid_t h5_open_flat(hid_t file, const char *name, int64_t file_bytes, fl_array_type *kind, size_t *n)
{
    bool ok = false;

    if (!h5_exists(file, name)) {
        return -1;
    }
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT);

    if (set < 0) {
        return -1;
    }
    hid_t type = H5Dget_type(set), space = H5Dget_space(set), dcpl = H5Dget_create_plist(set);

    if (type >= 0 && space >= 0 && dcpl >= 0 && H5Sget_simple_extent_ndims(space) == 1 && type_of(type, kind) &&
        H5Pget_layout(dcpl) == H5D_CONTIGUOUS && H5Pget_external_count(dcpl) == 0) {
        hssize_t points = H5Sget_simple_extent_npoints(space);
        haddr_t at = H5Dget_offset(set);
        uint64_t room = (uint64_t)file_bytes / h5_type_bytes(*kind);

        /* the bytes must really be there: nobody makes us allocate more than the file holds */
        ok = points >= 0 && file_bytes >= 0 && (uint64_t)points <= room &&
             (points == 0 || (at != HADDR_UNDEF &&
                                 at <= (uint64_t)file_bytes - (uint64_t)points * h5_type_bytes(*kind)));
        *n = ok ? (size_t)points : 0;
    }
    if (type >= 0) {
        H5Tclose(type);
    }
    if (space >= 0) {
        H5Sclose(space);
    }
    if (dcpl >= 0) {
        H5Pclose(dcpl);
    }
    if (!ok) {
        H5Dclose(set);
        return -1;
    }
    return set;
}

typedef struct visit_state {
    h5_visitor visit;
    void *to;
} visit_state;

static herr_t visit_one(hid_t obj, const char *name, const H5O_info_t *info, void *to)
{
    visit_state *v = to;

    (void)obj;
    if (info->type == H5O_TYPE_DATASET) {
        v->visit(v->to, name);
    }
    return 0;
}

herr_t h5_visit(hid_t file, h5_visitor visit, void *to)
{
    visit_state v = { visit, to };

    return H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, visit_one, &v, H5O_INFO_BASIC);
}
