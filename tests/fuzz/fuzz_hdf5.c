/* fuzz_hdf5.c - libFuzzer: HDF5 data sets of hostile content. The input directs the HDF5 library in
 * writing a file in memory: which sets are there, of which type, shape and storage, with which
 * values; an empty input writes a good one. So every check of ours is reached. The container itself
 * stays sound: the library (1.10.8) uses freed memory on some damaged object headers, and that is
 * not ours to find. What the library leaks does not count; our memory is counted by fl_memory_now.
 */
#include "fuzz_records.h"
#include <hdf5.h>
#include <sanitizer/lsan_interface.h>

enum { FUZZ_MOST = 40 }; /* elements of a set */

typedef struct fuzz_input {
    const uint8_t *at, *end;
} fuzz_input;

static int fuzz_byte(fuzz_input *in) /* 0 when the input has ended */
{
    return in->at < in->end ? *in->at++ : 0;
}

static int64_t fuzz_value(fuzz_input *in)
{
    static const int64_t odd[] = {
        INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, 1LL << 32, 1LL << 31, 999999, 1000000};
    int x = fuzz_byte(in);

    return x < 248 ? x % 14 - 2 : odd[x - 248];
}

static hid_t fuzz_type(fuzz_input *in)
{
    hid_t type;

    switch (fuzz_byte(in) % 10) {
    case 0:
        return H5Tcopy(H5T_STD_U8LE);
    case 1:
        return H5Tcopy(H5T_STD_I8LE);
    case 2:
        return H5Tcopy(H5T_STD_I16BE);
    case 3:
        return H5Tcopy(H5T_STD_U32LE);
    case 4:
        return H5Tcopy(H5T_STD_I64BE);
    case 5:
        return H5Tcopy(H5T_STD_U64LE);
    case 6:
        return H5Tcopy(H5T_IEEE_F64LE);
    case 7:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, 1 + (size_t)(fuzz_byte(in) % 9));
        return type;
    case 8:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, H5T_VARIABLE);
        H5Tset_cset(type, H5T_CSET_UTF8);
        return type;
    default:
        type = H5Tenum_create(H5T_STD_I8LE); /* as h5py writes truth values */
        H5Tenum_insert(type, "FALSE", (int8_t[]){0});
        H5Tenum_insert(type, "TRUE", (int8_t[]){1});
        return type;
    }
}

static hid_t fuzz_space(fuzz_input *in, hsize_t n, bool huge)
{
    hsize_t dims[2] = {n, 1 + (hsize_t)(fuzz_byte(in) % 3)};

    if (huge) {
        dims[0] = (hsize_t)1 << (20 + fuzz_byte(in) % 40);
    }
    switch (fuzz_byte(in) % 8) {
    case 6:
        return H5Screate_simple(2, dims, NULL);
    case 7:
        return H5Screate(fuzz_byte(in) & 1 ? H5S_SCALAR : H5S_NULL);
    default:
        return H5Screate_simple(1, dims, NULL);
    }
}

static void fuzz_write(fuzz_input *in, hid_t set, hid_t type, hsize_t n)
{
    int64_t x[2 * FUZZ_MOST * 8] = {0};
    const char *s[3 * FUZZ_MOST];
    static const char *const words[] = {"", "ann", "bob", "a/b/c", "\xff"};

    if (H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) > 0) {
        for (size_t i = 0; i < FL_COUNT(s); i++) {
            s[i] = words[(size_t)fuzz_byte(in) % FL_COUNT(words)];
        }
        H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, s);
        return;
    }
    for (hsize_t i = 0; i < n; i++) {
        x[i] = fuzz_value(in);
    }
    H5Dwrite(set, H5Tget_class(type) == H5T_STRING ? type : H5T_NATIVE_INT64, H5S_ALL, H5S_ALL,
        H5P_DEFAULT, x);
}

static void fuzz_set(fuzz_input *in, hid_t file, const char *name)
{
    int storage = fuzz_byte(in) % 6;
    hsize_t n = (hsize_t)(fuzz_byte(in) % (FUZZ_MOST + 1)),
            chunk[2] = {1 + (hsize_t)(fuzz_byte(in) % 8), 1};
    hid_t type = fuzz_type(in), space = fuzz_space(in, n, storage == 4),
          plist = H5Pcreate(H5P_DATASET_CREATE), set;
    int axes = H5Sget_simple_extent_ndims(space);

    if (storage == 1) {
        H5Pset_layout(plist, H5D_COMPACT);
    } else if (storage > 1 && axes > 0) {
        chunk[0] <<= storage == 5 ? 24 : 0;
        H5Pset_chunk(plist, axes, chunk);
        if (storage == 3) {
            H5Pset_deflate(plist, 1);
        }
    }
    set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    if (set >= 0 && storage < 4) {
        fuzz_write(in, set, type, n);
    }
    H5Dclose(set);
    H5Pclose(plist);
    H5Sclose(space);
    H5Tclose(type);
}

static void good_set(hid_t file, const char *name, hsize_t n, const int64_t *x)
{
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t set = H5Dcreate2(file, name, H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, x);
    H5Dclose(set);
    H5Sclose(space);
}

static void fuzz_attribute(fuzz_input *in, hid_t file, const char *name)
{
    int choice = fuzz_byte(in) % 4;
    int64_t x = choice == 1 ? 20 : fuzz_value(in);
    hsize_t n = 1 + (hsize_t)(choice == 3);
    hid_t type, space, a;

    if (choice == 0) {
        return;
    }
    type = choice == 3 ? fuzz_type(in) : H5Tcopy(H5T_STD_I64LE);
    space = H5Screate_simple(1, &n, NULL);
    a = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (H5Tget_class(type) == H5T_INTEGER) {
        H5Awrite(a, H5T_NATIVE_INT64, (int64_t[]){x, x});
    }
    H5Aclose(a);
    H5Sclose(space);
    H5Tclose(type);
}

/* The file as bytes, owned by the caller. */
static uint8_t *fuzz_file(fuzz_input *in, size_t *size)
{
    static const struct {
        const char *name;
        hsize_t n;
        int64_t x[8];
    } good[] = {{"tokens", 7, {1, 2, 3, 4, 5, 6, 9}}, {"offsets", 4, {0, 3, 3, 7}},
        {"loss_mask", 7, {0, 1, 1, 1, 0, 1, 1}}, {"label", 3, {0, 2, 1}}, {"client", 3, {1, 0, 1}},
        {"split", 3, {0, 1, 2}}, {"client_name", 0, {0}}, {"image", 0, {0}}};
    hid_t plist = H5Pcreate(H5P_FILE_ACCESS), file;
    uint8_t *image;

    H5Pset_fapl_core(plist, 1 << 10, 0);
    file = H5Fcreate("fuzz", H5F_ACC_TRUNC, H5P_DEFAULT, plist);
    for (size_t i = 0; i < FL_COUNT(good); i++) {
        int choice = fuzz_byte(in) % 4;

        if (choice == 0 && good[i].n > 0) {
            good_set(file, good[i].name, good[i].n, good[i].x);
        } else if (choice > 1) {
            fuzz_set(in, file, good[i].name);
        }
    }
    fuzz_attribute(in, file, "vocab_size");
    fuzz_attribute(in, file, "classes");
    H5Fflush(file, H5F_SCOPE_GLOBAL);
    *size = (size_t)H5Fget_file_image(file, NULL, 0);
    image = malloc(*size);
    H5Fget_file_image(file, image, *size);
    H5Fclose(file);
    H5Pclose(plist);
    return image;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    __lsan_disable(); /* for good: the library keeps what it leaks in lists of its own */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now(), size;
    fuzz_input in = {data, data + n};
    uint8_t *image = fuzz_file(&in, &size);
    fl_corpus c;
    fl_err err = fl_data_read_hdf5("fuzz", image, size, n % 3 == 2 ? 2 : 0, &c);

    free(image);
    fuzz_need((err == FL_OK) == (*fl_error_text() == '\0'));
    fuzz_need(n > 0 || err == FL_OK);
    fl_error_clear();
    if (err == FL_OK) {
        fuzz_corpus(&c, 3);
    }
    fuzz_need(fl_memory_now() == before);
    return 0;
}
