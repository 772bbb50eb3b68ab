/* test_inspect.c - inspect, verify and diff of files that are not checkpoints: data sets by another
 * writer (here HDF5 itself, as h5py would), safetensors, and files damaged so that HDF5 may crash
 * on them. */
#include "fedlora/io.h"
#include "harness.h"
#include <hdf5.h>
#include <math.h>
#include <string.h>

static char dir[300];
static fl_text out; /* of the last call */

static const char *at(const char *name)
{
    static char path[2][400];
    static int next = 0;

    next = !next;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static void expect_text(const char *part)
{
    if (out.s == NULL || strstr(out.s, part) == NULL) {
        fail_msg("\"%s\" is not in:\n%s", part, out.s != NULL ? out.s : "");
    }
}

static void expect(
    fl_err (*call)(const char *, fl_text *), const char *name, fl_err want, const char *part)
{
    fl_text_free(&out);
    fl_error_clear();
    fl_err err = call(at(name), &out);

    if (err != want) {
        fail_msg("%s: %d instead of %d: %s", name, (int)err, (int)want, fl_error_text());
    }
    if (want == FL_OK) {
        expect_text(part);
    } else if (strstr(fl_error_text(), part) == NULL) {
        fail_msg("\"%s\" is not in: %s", part, fl_error_text());
    }
    fl_error_clear();
}

/* ---- data sets ---- */

static void put(hid_t file, const char *name, hid_t type, const void *x, hsize_t n, bool chunked)
{
    hid_t space = H5Screate_simple(1, &n, NULL), dcpl = H5Pcreate(H5P_DATASET_CREATE);
    hsize_t chunk = 3;

    if (chunked) {
        H5Pset_chunk(dcpl, 1, &chunk);
        H5Pset_deflate(dcpl, 1);
    }
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);

    H5Dwrite(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x);
    H5Dclose(set);
    H5Pclose(dcpl);
    H5Sclose(space);
}

typedef struct recipe {
    int tokens[9], offsets[5], label[4], client[4], split[4];
    hsize_t nsplit;
} recipe;

static const recipe good = {
    {5, 6, 7, 8, 9, 1, 2, 3, 4}, {0, 2, 5, 5, 9}, {1, 0, 1, 4}, {0, 0, 2, 1}, {0, 0, 2, 1}, 4};

static void write_dataset(const char *name, const recipe *r, bool chunked)
{
    hid_t file = H5Fcreate(at(name), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate(H5S_SCALAR), text = H5Tcopy(H5T_C_S1);
    int vocab = 10;
    const char *source = "made for a test";

    assert_true(file >= 0);
    put(file, "tokens", H5T_STD_U32LE, r->tokens, 9, chunked);
    put(file, "offsets", H5T_STD_U64LE, r->offsets, 5, chunked);
    put(file, "label", H5T_STD_I32BE, r->label, 4, chunked); /* big-endian: converted by HDF5 */
    put(file, "client", H5T_STD_I32LE, r->client, 4, chunked);
    put(file, "split", H5T_STD_U8LE, r->split, r->nsplit, chunked);
    hid_t a = H5Acreate2(file, "vocab_size", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT);

    H5Awrite(a, H5T_NATIVE_INT, &vocab);
    H5Aclose(a);
    H5Tset_size(text, H5T_VARIABLE); /* h5py's strings */
    a = H5Acreate2(file, "source", text, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(a, text, &source);
    H5Aclose(a);
    H5Tclose(text);
    H5Sclose(space);
    assert_true(H5Fclose(file) >= 0);
}

static void dataset_text(void **state)
{
    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        write_dataset("data.h5", &good, chunked);
        expect(fl_verify, "data.h5", FL_OK, "whole: 4 samples, 9 tokens");
        expect(fl_inspect, "data.h5", FL_OK, "data set       4 samples\n");
        expect_text("tokens         9, no loss mask\n");
        expect_text("vocabulary     10\n");
        expect_text("client keys    3\n");
        expect_text("splits         2 train, 1 validation, 1 test\n");
        expect_text("source         made for a test\n");
        expect_text("       0             1\n       1             2\n       2             0\n");
    }
}

static void dataset_wrong(void **state)
{
    recipe r = good;

    (void)state;
    r.offsets[4] = 8;
    write_dataset("bad.h5", &r, false);
    expect(fl_verify, "bad.h5", FL_EFILE,
        "dataset /offsets: element 4 is 8: the last one must be the number of tokens");
    r = good;
    r.offsets[2] = 1;
    write_dataset("bad.h5", &r, true);
    expect(fl_verify, "bad.h5", FL_EFILE, "dataset /offsets: element 2 is 1");
    r = good;
    r.tokens[7] = 10;
    write_dataset("bad.h5", &r, false);
    expect(
        fl_verify, "bad.h5", FL_EFILE, "dataset /tokens: element 7 is 10: outside the vocabulary");
    r = good;
    r.split[3] = 3;
    write_dataset("bad.h5", &r, false);
    expect(fl_verify, "bad.h5", FL_EFILE, "dataset /split: element 3 is 3");
    r = good;
    r.nsplit = 3;
    write_dataset("bad.h5", &r, false);
    expect(fl_verify, "bad.h5", FL_EFILE, "dataset /split has 3 elements for 4 samples");
    r = good;
    r.label[0] = 1 << 20;
    write_dataset("bad.h5", &r, false);
    expect(fl_inspect, "bad.h5", FL_EFILE, "dataset /label: element 0 is 1048576");
}

/* No seal guards these files. Whatever HDF5 does, this process lives, and the answer is a text or a
 * sentence. */
static void dataset_damaged(void **state)
{
    char *x;
    size_t n;

    (void)state;
    write_dataset("data.h5", &good, true);
    assert_int_equal(fl_file_read(at("data.h5"), &x, &n), FL_OK);
    for (size_t i = 0; i < 60; i++) {
        size_t where = 8 + (i * 97) % (FL_MIN(n, (size_t)3000) - 8);

        x[where] ^= (char)(0x55 << (i % 2));
        assert_int_equal(fl_file_write(at("flip.h5"), x, n), FL_OK);
        x[where] ^= (char)(0x55 << (i % 2));
        fl_text_free(&out);
        fl_err err = fl_verify(at("flip.h5"), &out);

        assert_true(
            (err == FL_OK && out.n > 0) || (err == FL_EFILE && strstr(fl_error_text(), "flip.h5")));
        fl_error_clear();
    }
    for (size_t cut = 0; cut < n; cut += n / 7) {
        assert_int_equal(fl_file_write(at("flip.h5"), x, cut), FL_OK);
        expect(fl_verify, "flip.h5", FL_EFILE, "flip.h5");
        expect(fl_inspect, "flip.h5", FL_EFILE, "flip.h5");
    }
    fl_free(x);
}

static void other_hdf5(void **state)
{
    fl_metrics m = {0};

    (void)state;
    fl_metrics_column(&m, "train_loss", "nat");
    fl_metrics_row(&m);
    assert_int_equal(fl_metrics_h5(&m, at("metrics.h5"), 0, 0, NULL, NULL), FL_OK);
    fl_metrics_free(&m);
    expect(fl_inspect, "metrics.h5", FL_OK, "train_loss                        1  nat");
    expect(fl_verify, "metrics.h5", FL_EFILE, "no seal");
}

/* ---- safetensors ---- */

static void tensors(void **state)
{
    fl_real a[6] = {1, 2, 3, 4, 5, 6}, b[2] = {7, 8};
    fl_st_out first[] = {{"layer.a", 2, {2, 3}, a}, {"layer.b", 1, {2}, b}};

    (void)state;
    assert_int_equal(fl_make_dirs(at("adapter")), FL_OK);
    assert_int_equal(fl_st_write(at("adapter/adapter_model.safetensors"), 2, first, "pt"), FL_OK);
    expect(fl_inspect, "adapter", FL_OK, "safetensors    2 tensors, 32");
    expect_text("layer.a  F32    2 x 3\n");
    expect(fl_verify, "adapter", FL_OK, "whole: 2 tensors, the numbers of 2 are finite");
    assert_int_equal(fl_st_write(at("x.safetensors"), 2, first, "pt"), FL_OK);
    fl_text_free(&out);
    assert_int_equal(fl_diff(at("adapter"), at("x.safetensors"), &out), FL_OK);
    assert_string_equal(out.s, "equal\n");
    a[4] = 5.5;
    first[1].name = "layer.c";
    assert_int_equal(fl_st_write(at("x.safetensors"), 2, first, "pt"), FL_OK);
    fl_text_free(&out);
    assert_int_equal(fl_diff(at("adapter"), at("x.safetensors"), &out), FL_EDIFF);
    assert_true(strncmp(out.s,
                    "first difference: layer.a: 1 of 6 numbers differ, first at 4 (5 against 5.5), "
                    "largest difference 0.5\n",
                    60) == 0);
    expect_text("layer.b: only in the first file\n");
    expect_text("layer.c: only in the second file\n");
    fl_error_clear();
}

static void unknown(void **state)
{
    (void)state;
    assert_int_equal(fl_file_write(at("note.txt"), "hello, this is text", 19), FL_OK);
    expect(fl_inspect, "note.txt", FL_EUSAGE, "note.txt: not a checkpoint");
    expect(fl_verify, "note.txt", FL_EUSAGE, "note.txt: not a checkpoint");
    assert_int_equal(fl_make_dirs(at("hollow")), FL_OK);
    expect(fl_inspect, "hollow", FL_EUSAGE, "a folder without");
    expect(fl_inspect, "absent", FL_EFILE, "No such file or directory");
    assert_int_equal(fl_diff(at("data.h5"), at("adapter"), &out), FL_EUSAGE);
    fl_error_clear();
    fl_text_free(&out);
}

static int make_folder(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    snprintf(dir, sizeof dir, "%.200s/fedlora-inspect-XXXXXX", tmp != NULL ? tmp : "/tmp");
    return mkdtemp(dir) == NULL;
}

static int remove_folder(void **state)
{
    char command[400];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(dataset_text, make_folder),
        cmocka_unit_test(dataset_wrong),
        cmocka_unit_test(dataset_damaged),
        cmocka_unit_test(other_hdf5),
        cmocka_unit_test(tensors),
        cmocka_unit_test_teardown(unknown, remove_folder),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
