/* test_data_hdf5.c - HDF5 data sets made here: read whole, or refused with the place that is wrong.
 */
#include "data_bed.h"
#include <hdf5.h>

typedef struct h5_file { /* what the test writes; NULL or n = 0: not written */
    hid_t file;
} h5_file;

static h5_file h5_begin(void)
{
    hid_t plist = H5Pcreate(H5P_FILE_ACCESS);
    h5_file f;

    H5Pset_fapl_core(plist, 1 << 16, 0);
    f.file = H5Fcreate("test-image", H5F_ACC_TRUNC, H5P_DEFAULT, plist);
    H5Pclose(plist);
    return f;
}

static void h5_array(
    h5_file f, const char *name, hid_t type, hid_t memory, hsize_t n, const void *x)
{
    hid_t space = H5Screate_simple(1, &n, NULL),
          set = H5Dcreate2(f.file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    assert_true(set >= 0 && H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static void h5_int64s(h5_file f, const char *name, hid_t type, hsize_t n, const int64_t *x)
{
    h5_array(f, name, type, H5T_NATIVE_INT64, n, x);
}

static void h5_number(h5_file f, const char *name, int64_t x)
{
    hid_t space = H5Screate(H5S_SCALAR),
          a = H5Acreate2(f.file, name, H5T_NATIVE_INT64, space, H5P_DEFAULT, H5P_DEFAULT);

    H5Awrite(a, H5T_NATIVE_INT64, &x);
    H5Aclose(a);
    H5Sclose(space);
}

static void h5_names(h5_file f, bool variable, int n, const char *const *s)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    char fixed[8][8] = {{0}};

    H5Tset_cset(type, H5T_CSET_UTF8);
    H5Tset_size(type, variable ? H5T_VARIABLE : 8);
    H5Tset_strpad(type, H5T_STR_SPACEPAD);
    for (int i = 0; i < n; i++) {
        memset(fixed[i], ' ', 8);
        memcpy(fixed[i], s[i], strlen(s[i]));
    }
    h5_array(f, "client_name", type, type, (hsize_t)n, variable ? (const void *)s : fixed);
    H5Tclose(type);
}

static fl_err h5_end_read(h5_file f, int max_records, fl_corpus *c)
{
    H5Fflush(f.file, H5F_SCOPE_GLOBAL);
    ssize_t n = H5Fget_file_image(f.file, NULL, 0);
    void *image = malloc((size_t)n);

    H5Fget_file_image(f.file, image, (size_t)n);
    H5Fclose(f.file);
    fl_err err = fl_data_read_hdf5("file.h5", image, (size_t)n, max_records, c);

    free(image);
    return err;
}

static const int64_t good_token[] = {5, 6, 7, 1, 2, 3, 4, 300, 9};
static const int64_t good_offset[] = {0, 3, 7, 9};

static h5_file h5_good(void)
{
    h5_file f = h5_begin();

    h5_int64s(f, "tokens", H5T_STD_U32LE, 9, good_token);
    h5_int64s(f, "offsets", H5T_STD_U64LE, 4, good_offset);
    return f;
}

static void hdf5_reads(void **state)
{
    (void)state;
    for (int variable = 0; variable < 2; variable++) {
        const char *name[] = {"x/y", "\xc3\xa9t\xc3\xa9"};
        h5_file f = h5_good();
        fl_corpus c;

        h5_int64s(f, "label", H5T_STD_I32BE, 3, (int64_t[]){1, 0, 1});
        h5_int64s(f, "client", H5T_STD_I32LE, 3, (int64_t[]){1, 1, 0});
        h5_int64s(f, "split", H5T_STD_U8LE, 3, (int64_t[]){0, 1, 2});
        h5_int64s(f, "loss_mask", H5T_STD_U8LE, 9, (int64_t[]){0, 1, 1, 0, 0, 1, 1, 1, 0});
        h5_names(f, variable, 2, name);
        h5_number(f, "vocab_size", 301);
        h5_number(f, "classes", 3);
        assert_int_equal(h5_end_read(f, variable ? 2 : 0, &c), FL_OK);
        assert_int_equal(c.n, variable ? 2 : 3);
        for (int i = 0; i < (variable ? 7 : 9); i++) {
            assert_int_equal(c.token[i], good_token[i]);
        }
        assert_int_equal(c.offset[2], 7);
        assert_int_equal(c.vocab, 301);
        assert_int_equal(c.nclasses, 3);
        assert_int_equal(c.nkeys, 2);
        assert_string_equal(c.key_name[0], name[0]);
        assert_string_equal(c.key_name[1], name[1]);
        assert_int_equal(c.key[1], 1);
        assert_int_equal(c.label[0], 1);
        assert_int_equal(c.split[1], FL_VALID);
        assert_int_equal(c.mask[3], 0);
        assert_int_equal(c.mask[5], 1);
        fl_corpus_free(&c);
    }
}

static void hdf5_keys_without_names(void **state)
{
    h5_file f = h5_good();
    fl_corpus c;

    (void)state;
    h5_int64s(f, "client", H5T_STD_I64LE, 3, (int64_t[]){2000000000, 17, 2000000000});
    assert_int_equal(h5_end_read(f, 0, &c), FL_OK);
    assert_int_equal(c.nkeys, 2);
    assert_string_equal(c.key_name[0], "17");
    assert_string_equal(c.key_name[1], "2000000000");
    assert_int_equal(c.key[0], 1);
    assert_int_equal(c.vocab, 301); /* highest token + 1 */
    fl_corpus_free(&c);
}

static void hdf5_refuses(void **state)
{
    static const struct {
        const char *set;
        int n;
        int64_t x[10];
        const char *says;
    } bad[] = {
        {"offsets", 4, {0, 7, 3, 9}, "/offsets[2] is below"},
        {"offsets", 4, {0, 3, 7, 10}, "/offsets[3] is 10; it must be 0 to 9"},
        {"offsets", 4, {0, 3, 7, 8}, "/offsets runs from 0 to 8"},
        {"offsets", 4, {1, 3, 7, 9}, "/offsets runs from 1"},
        {"offsets", 4, {-1, 3, 7, 9}, "/offsets[0] is -1"},
        {"offsets", 1, {0}, "/offsets: must have"},
        {"split", 3, {0, 3, 0}, "/split[1] is 3; it must be 0 to 2"},
        {"split", 2, {0, 0}, "/split has 2 elements"},
        {"label", 3, {0, -1, 0}, "/label[1] is -1"},
        {"label", 3, {0, 2000000000, 0}, "/label[1] is 2000000000"},
        {"client", 3, {0, 0, -5}, "/client[2] is -5"},
        {"client", 4, {0, 0, 0, 0}, "/client has 4"},
        {"loss_mask", 9, {0, 0, 2, 0, 0, 0, 0, 0, 0}, "/loss_mask[2] is 2"},
        {"loss_mask", 8, {0}, "/loss_mask has 8"},
        {"tokens", 9, {0, 0, 0, 0, -7, 0, 0, 0, 0}, "/tokens[4] is -7"},
        {"tokens", 9, {0, 0, 0, 0, 1LL << 40, 0, 0, 0, 0}, "/tokens[4] is 1099511627776"},
    };
    fl_corpus c;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        h5_file f = h5_begin();

        if (strcmp(bad[i].set, "tokens") != 0) {
            h5_int64s(f, "tokens", H5T_STD_U32LE, 9, good_token);
        }
        if (strcmp(bad[i].set, "offsets") != 0) {
            h5_int64s(f, "offsets", H5T_STD_U64LE, 4, good_offset);
        }
        h5_int64s(f, bad[i].set, H5T_STD_I64LE, (hsize_t)bad[i].n, bad[i].x);
        assert_says(h5_end_read(f, 0, &c), FL_EDECK, bad[i].says);
        assert_null(c.offset);
    }
}

static void hdf5_refuses_shapes(void **state)
{
    fl_corpus c;
    h5_file f = h5_begin();

    (void)state;
    h5_int64s(f, "tokens", H5T_STD_U32LE, 9, good_token);
    assert_says(h5_end_read(f, 0, &c), FL_EDECK, "/offsets: is missing");
    f = h5_good();
    h5_number(f, "vocab_size", 300);
    assert_says(h5_end_read(f, 0, &c), FL_EDECK, "/tokens[7] is 300; it must be 0 to 299");
    f = h5_good();
    h5_int64s(f, "client", H5T_STD_I32LE, 3, (int64_t[]){0, 2, 1});
    h5_names(f, true, 2, (const char *[]){"a", "b"});
    assert_says(h5_end_read(f, 0, &c), FL_EDECK, "/client[1] is 2; it must be 0 to 1");
    f = h5_begin();
    h5_int64s(f, "image", H5T_STD_U8LE, 3, (int64_t[]){0, 0, 0});
    assert_says(h5_end_read(f, 0, &c), FL_EDECK, "images");
    f = h5_begin();
    h5_int64s(f, "tokens", H5T_IEEE_F32LE, 9, good_token);
    h5_int64s(f, "offsets", H5T_STD_U64LE, 4, good_offset);
    assert_says(h5_end_read(f, 0, &c), FL_EDECK, "/tokens: must hold integers");
    /* a chunked data set of 2^50 elements of which nothing is stored */
    f = h5_begin();
    hsize_t huge = 1LL << 50, chunk = 1024;
    hid_t space = H5Screate_simple(1, &huge, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);

    H5Pset_chunk(plist, 1, &chunk);
    H5Dclose(H5Dcreate2(f.file, "tokens", H5T_STD_U32LE, space, H5P_DEFAULT, plist, H5P_DEFAULT));
    H5Pclose(plist);
    H5Sclose(space);
    h5_int64s(f, "offsets", H5T_STD_U64LE, 4, good_offset);
    assert_says(h5_end_read(f, 0, &c), FL_EFILE, "more than the file can hold");
    assert_says(fl_data_read_hdf5("file.h5", "garbage", 7, 0, &c), FL_EFILE, "cannot be opened");
    assert_says(fl_data_read_hdf5("no/such.h5", NULL, 0, 0, &c), FL_EFILE, "no/such.h5");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hdf5_reads),
        cmocka_unit_test(hdf5_keys_without_names),
        cmocka_unit_test(hdf5_refuses),
        cmocka_unit_test(hdf5_refuses_shapes),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
