/* h5_read.c - attributes, strings and data sets that somebody else may have written: every kind and
 * size is checked first. */
#include "h5.h"
#include <string.h>

/* ---- attributes ---- */

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
        if (H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0 ||
            !h5_get_u64(set, "xxh3", &hash) || hash != fl_hash_text(text)) {
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

    if (type >= 0 && space >= 0 && dcpl >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
        type_of(type, kind) && H5Pget_layout(dcpl) == H5D_CONTIGUOUS &&
        H5Pget_external_count(dcpl) == 0) {
        hssize_t points = H5Sget_simple_extent_npoints(space);
        haddr_t at = H5Dget_offset(set);
        uint64_t room = (uint64_t)file_bytes / h5_type_bytes(*kind);

        /* the bytes must really be there: nobody makes us allocate more than the file holds */
        ok = points >= 0 && file_bytes >= 0 && (uint64_t)points <= room &&
             (points == 0 ||
                 (at != HADDR_UNDEF &&
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
    visit_state v = {visit, to};

    return H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, visit_one, &v, H5O_INFO_BASIC);
}
