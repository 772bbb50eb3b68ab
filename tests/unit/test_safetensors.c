/* The safetensors container: a worked example byte for byte, everything a reader must refuse, all
 * number types. */
#include "fedlora/io.h"
#include "harness.h"
#include <math.h>
#include <string.h>

#define LORA_A "base_model.model.fc.lora_A.weight"
#define LORA_B "base_model.model.fc.lora_B.weight"
static const fl_real a_values[6] = {1, 2, 3, 4, 5, 6}, b_values[8] = {1, 0, 0, 1, 1, 1, 2, -1};
static const char example_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"" LORA_A
    "\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"" LORA_B
    "\":{\"dtype\":\"F32\",\"shape\":[4,2],\"data_offsets\":[24,56]}}       ";

static char folder[256];

static int folder_make(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(folder, sizeof folder, "%s/fedlora-st-XXXXXX", tmp ? tmp : P_tmpdir);
    return mkdtemp(folder) == NULL;
}

static int folder_drop(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* a file in memory: length, header, data; length = 0: the header's own */
static void build(fl_text *t, uint64_t length, const char *header, const void *data, size_t n)
{
    uint64_t all = length ? length : strlen(header);

    fl_text_free(t);
    for (int i = 0; i < 8; i++) {
        char byte = (char)(all >> 8 * i & 255);
        fl_text_bytes(t, &byte, 1);
    }
    fl_text_bytes(t, header, strlen(header));
    fl_text_bytes(t, data, n);
}

/* 280 bytes; SHA-256 4076cf0a6659ef93d9c1eccff8902ac172c8f461e44e8a0997905330a9ca4e83 */
static void build_example(fl_text *t)
{
    float data[14];

    for (int i = 0; i < 14; i++) {
        data[i] = (float)(i < 6 ? a_values[i] : b_values[i - 6]);
    }
    build(t, 0, example_header, data, sizeof data);
}

static fl_err parse(const fl_text *t, fl_st *st)
{
    fl_error_clear();
    return fl_st_parse((const unsigned char *)t->s, t->n, "memory", st);
}

static void refused(fl_text *t, fl_err want, const char *says)
{
    fl_st st;
    /* in a block of exactly this size, so that a sanitizer sees any step beyond it */
    unsigned char *bytes = malloc(t->n ? t->n : 1);

    memcpy(bytes, t->n ? t->s : "", t->n);
    fl_error_clear();
    assert_int_equal(fl_st_parse(bytes, t->n, "memory", &st), want);
    if (strstr(fl_error_text(), says) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", fl_error_text(), says);
    }
    fl_st_close(&st); /* harmless after a failure */
    free(bytes);
    fl_text_free(t);
}

static void test_writer_gives_the_worked_example(void **state)
{
    const fl_st_out out[2] = {{LORA_B, 2, {4, 2}, b_values}, {LORA_A, 2, {2, 3}, a_values}};
    fl_text want = {0};
    char *got;
    size_t n;

    (void)state;
    build_example(&want);
    assert_int_equal(want.n, 280);
    assert_memory_equal(want.s, "\xd8\0\0\0\0\0\0\0{\"__meta", 16);
    assert_int_equal(fl_st_write(in_folder("x.safetensors"), 2, out, "pt"), FL_OK);
    assert_int_equal(fl_file_read(in_folder("x.safetensors"), &got, &n), FL_OK);
    assert_int_equal(n, 280);
    assert_memory_equal(got, want.s, 280);
    assert_false(fl_path_exists(in_folder("x.safetensors.tmp")));
    fl_free(got);
    fl_text_free(&want);
    unlink(in_folder("x.safetensors"));
}

static void test_reader_reads_the_worked_example(void **state)
{
    fl_text t = {0};
    fl_real x[8];
    fl_st st;

    (void)state;
    build_example(&t);
    assert_int_equal(parse(&t, &st), FL_OK);
    assert_int_equal(st.n, 2);
    assert_string_equal(st.metadata, "{\"format\":\"pt\"}");
    assert_int_equal(fl_st_find(&st, "none"), -1);
    int a = fl_st_find(&st, LORA_A), b = fl_st_find(&st, LORA_B);
    assert_true(a >= 0 && b >= 0);
    assert_int_equal(st.entry[b].ndims, 2);
    assert_int_equal(st.entry[b].dims[0], 4);
    assert_int_equal(fl_st_read(&st, a, 6, x), FL_OK);
    assert_memory_equal(x, a_values, sizeof a_values);
    assert_int_equal(fl_st_read(&st, b, 8, x), FL_OK);
    assert_memory_equal(x, b_values, sizeof b_values);
    assert_int_equal(fl_st_read(&st, b, 7, x), FL_ESHAPE);
    fl_st_close(&st);
    fl_text_free(&t);
}

#define ENTRY(name, dtype, shape, at)                                                              \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" at "}"

static void test_damaged_files_are_refused(void **state)
{
    static const char zeros[64];
    fl_text t = {0};

    (void)state;
    refused(&t, FL_EFILE, "cut short"); /* nothing at all */
    build_example(&t);
    t.n = 7;
    refused(&t, FL_EFILE, "cut short");
    build_example(&t);
    t.s[0] = (char)217; /* the header takes a byte of the data */
    refused(&t, FL_EFILE, "not valid JSON");
    build_example(&t);
    memcpy(t.s, "\0\0\0\0\0\0\0\x80", 8); /* N = 2^63 */
    refused(&t, FL_EFILE, "cut short");
    build_example(&t);
    memset(t.s, 255, 8); /* N = 2^64 - 1 */
    refused(&t, FL_EFILE, "cut short");
    build_example(&t);
    t.n--;
    refused(&t, FL_EFILE, "outside");
    build_example(&t);
    fl_text_bytes(&t, "x", 1);
    refused(&t, FL_EFILE, "damaged or cut short");
    build_example(&t);
    t.s[8] = ' ';
    refused(&t, FL_EFILE, "does not start with {");
    build(&t, 0, "", zeros, 8);
    refused(&t, FL_EFILE, "does not start with {");
    build(&t, 0, "{}{}", zeros, 0);
    refused(&t, FL_EFILE, "not valid JSON");
}

static void test_wrong_headers_are_refused(void **state)
{
    static const struct {
        const char *header;
        size_t n; /* bytes of data */
        const char *says;
    } bad[] = {
        {"{" ENTRY("a", "F32", "[6]", "[0,24]") "," ENTRY("b", "F32", "[8]", "[28,60]") "}", 60,
            "where byte 24 was expected"}, /* hole */
        {"{" ENTRY("a", "F32", "[6]", "[0,24]") "," ENTRY("b", "F32", "[8]", "[20,52]") "}", 52,
            "where byte 24 was expected"}, /* overlap */
        {"{" ENTRY("a", "F32", "[6]", "[0,24]") "," ENTRY("b", "F32", "[6]", "[0,24]") "}", 24,
            "was expected"}, /* the same place twice */
        {"{" ENTRY("a", "F32", "[6]", "[4,28]") "}", 28, "where byte 0 was expected"},
        {"{" ENTRY("a", "F32", "[2,4]", "[0,24]") "}", 24, "does not fit its shape"},
        {"{" ENTRY("a", "F32", "[8589934592,8589934592]", "[0,24]") "}", 24, "impossible shape"},
        {"{" ENTRY("a", "F32", "[4611686018427387904]", "[0,0]") "}", 0, "does not fit its shape"},
        {"{" ENTRY("a", "F32", "[-1]", "[0,0]") "}", 0, "impossible shape"},
        {"{" ENTRY("a", "F32", "[1.0]", "[0,4]") "}", 4, "impossible shape"},
        {"{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "dimensions"},
        {"{" ENTRY("a", "F32", "[6]", "[24,0]") "}", 24, "outside"},
        {"{" ENTRY("a", "F32", "[6]", "[-24,0]") "}", 24, "outside"},
        {"{" ENTRY("a", "F32", "[6]", "[0,9223372036854775807]") "}", 24, "outside"},
        {"{" ENTRY("a", "F32", "[6]", "[0]") "}", 24, "lacks"},
        {"{" ENTRY("a", "F33", "[6]", "[0,24]") "}", 24, "unknown type F33"},
        {"{" ENTRY("a", "F4", "[3]", "[0,1]") "}", 1, "does not fit its shape"}, /* half a byte */
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("a", "F32", "[1]", "[0,4]") "}", 4,
            "not valid JSON: duplicate"},
        {"{\"a\":5}", 0, "lacks"},
        {"{\"a\":{}}", 0, "lacks"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "is not a string"},
        {"{\"__metadata__\":7}", 0, "is not an object"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,99999999999999999999]}}", 4,
            "not valid JSON"},
    };
    static const char zeros[64];
    fl_text t = {0};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        build(&t, 0, bad[i].header, zeros, bad[i].n);
        refused(&t, FL_EFILE, bad[i].says);
    }
}

static void test_odd_but_valid_headers(void **state)
{
    static const float data[3] = {1, 2, 3};
    fl_text t = {0};
    fl_real x[2];
    fl_st st;

    (void)state;
    /* order of the entries is free, names may be escaped, empty tensors and scalars exist, N need
     * not be a multiple of 8 */
    build(&t, 0,
        "{" ENTRY("z", "F32", "[2]", "[4,12]") "," ENTRY("none", "F32", "[3,0]", "[4,4]") "," ENTRY(
            "a\\u002eb", "F32", "[]", "[0,4]") "} ",
        data, sizeof data);
    assert_int_equal(parse(&t, &st), FL_OK);
    assert_int_equal(st.n, 3);
    assert_int_equal(fl_st_find(&st, "a.b"), 0);
    assert_int_equal(fl_st_read(&st, 0, 1, x), FL_OK);
    assert_true(x[0] == 1);
    assert_int_equal(fl_st_read(&st, fl_st_find(&st, "z"), 2, x), FL_OK);
    assert_true(x[0] == 2 && x[1] == 3);
    assert_int_equal(fl_st_read(&st, fl_st_find(&st, "none"), 0, x), FL_OK);
    fl_st_close(&st);
    build(&t, 0, "{}", data, 0);
    assert_int_equal(parse(&t, &st), FL_OK);
    assert_int_equal(st.n, 0);
    fl_st_close(&st);
    fl_text_free(&t);
}

static void one(const char *dtype, const void *data, size_t bytes, size_t n, fl_err want,
    const double *expected)
{
    fl_text t = {0};
    char header[200];
    fl_real x[16];
    fl_st st;

    snprintf(header, sizeof header,
        "{\"x\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}", dtype, n, bytes);
    build(&t, 0, header, data, bytes);
    assert_int_equal(parse(&t, &st), FL_OK);
    assert_int_equal(fl_st_read(&st, 0, n, x), want);
    for (size_t i = 0; want == FL_OK && i < n; i++) {
        assert_true((double)x[i] == expected[i] && !signbit(x[i]) == !signbit(expected[i]));
    }
    fl_st_close(&st);
    fl_text_free(&t);
}

static void test_types(void **state)
{
    static const uint16_t half[8] = {
        0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x8000, 0x3555};
    static const double half_is[8] = {
        1, -2, 0x1p-24, 0x1.ff8p-15, 0x1p-14, 65504, -0.0, 0x1.554p-2};
    static const uint16_t brain[4] = {0x3f80, 0xc049, 0x0001, 0x7f7f};
    static const double brain_is[4] = {1, -3.140625, 0x1p-133, 0x1.fep127};
    static const double wide[2] = {0.5, -3};
    static const double nan64[1] = {NAN}, large[1] = {1e300};
    static const uint16_t half_inf[1] = {0x7c00}, half_nan[1] = {0x7e01}, brain_inf[1] = {0xff80};
    static const float inf32[1] = {-INFINITY};
    static const int32_t whole[1] = {7};

    (void)state;
    one("F16", half, sizeof half, 8, FL_OK, half_is);
    one("BF16", brain, sizeof brain, 4, FL_OK, brain_is);
    one("F64", wide, sizeof wide, 2, FL_OK, wide);
    one("F64", nan64, sizeof nan64, 1, FL_ENUM, NULL);
    one("F64", large, sizeof large, 1, sizeof(fl_real) == 4 ? FL_ENUM : FL_OK, large);
    one("F16", half_inf, 2, 1, FL_ENUM, NULL);
    one("F16", half_nan, 2, 1, FL_ENUM, NULL);
    one("BF16", brain_inf, 2, 1, FL_ENUM, NULL);
    one("F32", inf32, 4, 1, FL_ENUM, NULL);
    one("I32", whole, 4, 1, FL_EFILE, NULL);
}

static void test_round_trip_through_a_file(void **state)
{
    enum { N = 70000 }; /* more than one piece of the writer */
    fl_real *x = fl_alloc("x", N, sizeof *x), *y = fl_alloc("y", N, sizeof *y), scalar = -7;
    const fl_st_out out[3] = {
        {"w \"\\\x01", 2, {700, 100}, x}, {"empty", 1, {0}, x}, {"scalar", 0, {0}, &scalar}};
    fl_st st;

    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        x[i] = (fl_real)fl_rng_normal(5, FL_RNG_TEST, 0, 0, i);
    }
    assert_int_equal(fl_st_write(in_folder("big.safetensors"), 3, out, "pt"), FL_OK);
    assert_int_equal(fl_st_open(in_folder("big.safetensors"), &st), FL_OK);
    assert_int_equal(st.data % 8, 0);
    int e = fl_st_find(&st, out[0].name);
    assert_true(e >= 0);
    assert_int_equal(fl_st_read(&st, e, N, y), FL_OK);
    assert_memory_equal(x, y, N * sizeof *x);
    assert_int_equal(fl_st_read(&st, fl_st_find(&st, "scalar"), 1, y), FL_OK);
    assert_true(y[0] == -7);
    fl_st_close(&st);
    unlink(in_folder("big.safetensors"));
    fl_free(y);
    fl_free(x);
}

static void test_files_that_cannot_be(void **state)
{
    const fl_st_out out = {"x", 1, {6}, a_values};
    char path[600];
    fl_st st;

    (void)state;
    fl_error_clear();
    assert_int_equal(fl_st_open(in_folder("absent"), &st), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "No such file"));
    assert_int_equal(fl_st_open(folder, &st), FL_EFILE);
    assert_int_equal(fl_file_write(in_folder("empty"), "", 0), FL_OK);
    assert_int_equal(fl_st_open(in_folder("empty"), &st), FL_EFILE);
    unlink(in_folder("empty"));
    snprintf(path, sizeof path, "%s/no/such/folder", folder);
    assert_int_equal(fl_st_write(path, 1, &out, "pt"), FL_EFILE);
    assert_false(fl_path_exists(in_folder("no")));
}

static void test_make_dirs(void **state)
{
    char deep[600], odd[700];

    (void)state;
    snprintf(deep, sizeof deep, "%s/a/b/c", folder);
    snprintf(odd, sizeof odd, "%s//a/b/c/", folder);
    assert_int_equal(fl_make_dirs(deep), FL_OK);
    assert_int_equal(fl_make_dirs(odd), FL_OK);
    assert_true(fl_path_exists(deep));
    rmdir(deep);
    assert_int_equal(fl_file_write(deep, "x", 1), FL_OK);
    assert_int_equal(fl_make_dirs(deep), FL_EFILE); /* a file stands there */
    snprintf(odd, sizeof odd, "%s/d", deep);
    assert_int_equal(fl_make_dirs(odd), FL_EFILE);
    unlink(deep);
    rmdir(in_folder("a/b"));
    rmdir(in_folder("a"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_writer_gives_the_worked_example, folder_make, folder_drop),
        cmocka_unit_test(test_reader_reads_the_worked_example),
        cmocka_unit_test(test_damaged_files_are_refused),
        cmocka_unit_test(test_wrong_headers_are_refused),
        cmocka_unit_test(test_odd_but_valid_headers),
        cmocka_unit_test(test_types),
        cmocka_unit_test_setup_teardown(test_round_trip_through_a_file, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(test_files_that_cannot_be, folder_make, folder_drop),
        cmocka_unit_test_setup_teardown(test_make_dirs, folder_make, folder_drop),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
