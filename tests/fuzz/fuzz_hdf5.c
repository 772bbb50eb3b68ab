/* fuzz_hdf5.c - libFuzzer: an HDF5 data set in memory. An input that begins with the HDF5 signature
 * is the file itself; any other is a list of changes (two bytes place, one byte value) to a good
 * file made here, so that the fuzzer reaches what lies behind the format's checks. What the HDF5
 * library itself leaks on a damaged file does not count; ours is counted by fl_memory_now. */
#include "fuzz_records.h"
#include <hdf5.h>
#include <sanitizer/lsan_interface.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
const char *__asan_default_options(void);

/* the library takes sizes from the file and bears malloc to fail; we must not ask for so much */
const char *__asan_default_options(void)
{
    return "max_allocation_size_mb=1024:allocator_may_return_null=1";
}

static uint8_t *good; /* owned [ngood] */
static size_t ngood;

static void good_array(
    hid_t file, const char *name, hid_t type, hsize_t n, const int32_t *x, bool packed)
{
    hid_t space = H5Screate_simple(1, &n, NULL), plist = H5Pcreate(H5P_DATASET_CREATE), set;

    if (packed) {
        H5Pset_chunk(plist, 1, &n);
        H5Pset_deflate(plist, 1);
    }
    set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    H5Dwrite(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, x);
    H5Dclose(set);
    H5Pclose(plist);
    H5Sclose(space);
}

static void good_names(hid_t file)
{
    hid_t type = H5Tcopy(H5T_C_S1), space, set;
    hsize_t n = 2;
    const char names[2][4] = {"ann", "bob"};

    H5Tset_size(type, 4);
    space = H5Screate_simple(1, &n, NULL);
    set = H5Dcreate2(file, "client_name", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names);
    H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    hid_t plist = H5Pcreate(H5P_FILE_ACCESS), file, space, a;
    int32_t vocab = 10;

    __lsan_disable(); /* for good: the library keeps what it leaks in lists of its own */
    (void)argc;
    (void)argv;
    H5Pset_fapl_core(plist, 1 << 10, 0);
    file = H5Fcreate("good", H5F_ACC_TRUNC, H5P_DEFAULT, plist);
    good_array(file, "tokens", H5T_STD_U32LE, 7, (int32_t[]){1, 2, 3, 4, 5, 6, 9}, true);
    good_array(file, "offsets", H5T_STD_U64LE, 4, (int32_t[]){0, 3, 3, 7}, false);
    good_array(file, "loss_mask", H5T_STD_U8LE, 7, (int32_t[]){0, 1, 1, 1, 0, 1, 1}, false);
    good_array(file, "label", H5T_STD_I32LE, 3, (int32_t[]){0, 2, 1}, false);
    good_array(file, "client", H5T_STD_I32LE, 3, (int32_t[]){1, 0, 1}, false);
    good_array(file, "split", H5T_STD_U8LE, 3, (int32_t[]){0, 1, 2}, false);
    good_names(file);
    space = H5Screate(H5S_SCALAR);
    a = H5Acreate2(file, "vocab_size", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(a, H5T_NATIVE_INT32, &vocab);
    H5Aclose(a);
    H5Sclose(space);
    H5Fflush(file, H5F_SCOPE_GLOBAL);
    ngood = (size_t)H5Fget_file_image(file, NULL, 0);
    good = malloc(ngood);
    H5Fget_file_image(file, good, ngood);
    H5Fclose(file);
    H5Pclose(plist);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now();
    bool whole = n >= 8 && memcmp(data, "\211HDF\r\n\032\n", 8) == 0;
    size_t size = whole ? n : ngood;
    uint8_t *image = malloc(size);
    fl_corpus c;
    fl_err err;

    memcpy(image, whole ? data : good, size);
    for (size_t i = 0; !whole && i + 3 <= n; i += 3) {
        image[((size_t)data[i] << 8 | data[i + 1]) % size] = data[i + 2];
    }
    err = fl_data_read_hdf5("fuzz", image, size, n % 2 ? 2 : 0, &c);
    free(image);
    fuzz_need((err == FL_OK) == (*fl_error_text() == '\0'));
    fuzz_need(n > 0 || err == FL_OK); /* the good file itself is good */
    fl_error_clear();
    if (err == FL_OK) {
        fuzz_corpus(&c, 3);
    }
    fuzz_need(fl_memory_now() == before);
    return 0;
}
