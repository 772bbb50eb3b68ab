/* h5_write.c - attributes and data sets that explain themselves; elements of a 1-d data set in and
 * out. */
#include "h5.h"
#include <string.h>

/* ---- attributes ---- */

static herr_t put_attribute(
    hid_t obj, const char *name, hid_t file_type, hid_t mem_type, const void *x)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t at = H5Aexists(obj, name) > 0
                   ? H5Aopen(obj, name, H5P_DEFAULT)
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

/* ---- data sets ---- */

static const struct {
    size_t bytes;
    const char *name;
} kinds[] = {
    [FL_F32] = {4, "f32"}, [FL_F64] = {8, "f64"}, [FL_I64] = {8, "i64"}, [FL_U8] = {1, "u8"}};

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

/* Creates the groups of "a/b/c", one by one because HDF5's own way would stamp them with the time.
 */
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

hid_t h5_dataset(hid_t file, const char *name, hid_t type, size_t n, const char *what,
    const char *unit, const char *axes)
{
    hsize_t dims = n;
    hid_t space = H5Screate_simple(1, &dims, NULL);
    hid_t set = create_plain(file, name, type, space);

    H5Sclose(space);
    if (set >= 0 && (h5_put_text(set, "description", what) < 0 ||
                        h5_put_text(set, "unit", unit) < 0 || h5_put_text(set, "axes", axes) < 0)) {
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
    hid_t error = h5_hold_error();

    if (file >= 0) {
        H5Sclose(file);
    }
    H5Sclose(mem);
    h5_give_error(error);
}

herr_t h5_write(hid_t set, hid_t mem, hid_t dxpl, size_t first, size_t n, const void *x)
{
    hid_t in_file, in_mem;
    char nothing = 0;

    make_slab(set, first, n, &in_file, &in_mem);
    herr_t status =
        in_file < 0 ? -1 : H5Dwrite(set, mem, in_mem, in_file, dxpl, n > 0 ? x : &nothing);

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
