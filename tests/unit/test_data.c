/* test_data.c - readers of text, csv, jsonl and xz, the whole load of a file. */
#include "data_bed.h"
#include <lzma.h>

static void assert_record(const fl_records *r, int64_t i, const char *text)
{
    assert_true(i < r->n);
    assert_int_equal(r->offset[i + 1] - r->offset[i], strlen(text));
    assert_memory_equal(r->bytes.s + r->offset[i], text, strlen(text));
}

typedef fl_err reader(const char *, size_t, const char *, const fl_deck_data *, fl_records *);

/* The reader gets an exact copy without a NUL behind it, so that a sanitizer sees any step too far.
 */
static fl_err read_with(
    reader *read, const char *text, size_t n, const fl_deck_data *h, fl_records *r)
{
    char *copy = calloc(n > 0 ? n : 1, 1);

    memcpy(copy, text, n);
    fl_err err = read(copy, n, "file", h, r);
    free(copy);
    return err;
}

static fl_err text_of(const char *text, const fl_deck_data *h, fl_records *r)
{
    return read_with(fl_read_text, text, strlen(text), h, r);
}

static fl_err csv_of(const char *text, const fl_deck_data *h, fl_records *r)
{
    return read_with(fl_read_csv, text, strlen(text), h, r);
}

static fl_err json_of(const char *text, const fl_deck_data *h, fl_records *r)
{
    return read_with(fl_read_jsonl, text, strlen(text), h, r);
}

/* ---- text ---- */

static void text_lines(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    assert_int_equal(text_of("one\r\n\n \t\ntwo \n\xff\xfe three", &h, &r), FL_OK);
    assert_int_equal(r.n, 3);
    assert_record(&r, 0, "one\n");
    assert_record(&r, 1, "two \n");
    assert_record(&r, 2, "\xff\xfe three\n");
    assert_null(r.key);
    assert_null(r.label);
    fl_records_free(&r);
    h.max_records = 2;
    assert_int_equal(text_of("a\nb\nc\n", &h, &r), FL_OK);
    assert_int_equal(r.n, 2);
    fl_records_free(&r);
}

static void text_paragraphs_and_headings(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    h.records = FL_RECORDS_PARAGRAPHS;
    h.key = "heading";
    assert_int_equal(
        text_of("\n\nZOE:\r\nhello\r\n\r\n\r\nADAM: \nx\ny\n\nZOE:\nbye", &h, &r), FL_OK);
    assert_int_equal(r.n, 3);
    assert_record(&r, 0, "ZOE:\nhello\n");
    assert_record(&r, 1, "ADAM: \nx\ny\n");
    assert_record(&r, 2, "ZOE:\nbye\n");
    /* keys in byte order, not in order of appearance */
    assert_int_equal(r.nkeys, 2);
    assert_string_equal(r.key_name[0], "ADAM");
    assert_string_equal(r.key_name[1], "ZOE");
    assert_int_equal(r.key[0], 1);
    assert_int_equal(r.key[1], 0);
    assert_int_equal(r.key[2], 1);
    fl_records_free(&r);
    assert_says(text_of("A:\nx\n\nno heading\n", &h, &r), FL_EDECK, "file:4:");
    h.records = FL_RECORDS_LINES;
    assert_says(text_of("A:\nx\n", &h, &r), FL_EDECK, "data.key: heading needs");
    h.key = "speaker";
    assert_says(text_of("A:\nx\n", &h, &r), FL_EDECK, "data.key: speaker");
}

static void text_documents(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    h.records = FL_RECORDS_DOCUMENTS;
    assert_int_equal(
        text_of("\na\n\nb\n\n<|endoftext|>\n\n<|endoftext|>\r\nc <|endoftext|>\nd", &h, &r), FL_OK);
    assert_int_equal(r.n, 2);
    assert_record(&r, 0, "a\n\nb\n");
    assert_record(&r, 1, "c <|endoftext|>\nd\n");
    fl_records_free(&r);
    h.separator = "";
    assert_says(text_of("a\n", &h, &r), FL_EDECK, "data.separator");
}

static void text_refuses(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    assert_says(read_with(fl_read_text, "a\nb\nc\0d\n", 8, &h, &r), FL_EDECK, "file:3:");
    assert_says(text_of("", &h, &r), FL_EDECK, "no record");
    assert_says(text_of(" \n\n", &h, &r), FL_EDECK, "no record");
    assert_says(fl_read_text(NULL, 0, "file", &h, &r), FL_EDECK, "no record");
    h.label = "class";
    assert_says(text_of("a\n", &h, &r), FL_EDECK, "data.label");
}

/* ---- csv ---- */

static void csv_quoting(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    h.label = "class";
    h.key = "who";
    assert_int_equal(csv_of("\xef\xbb\xbfwho,text,class\r\n"
                            "b,\"a, \"\"quoted\"\"\r\nline\",yes\r\n\r\n"
                            "a,in \"plain\" text,no\n"
                            "b,\"\",yes",
                         &h, &r),
        FL_OK);
    assert_int_equal(r.n, 3);
    assert_record(&r, 0, "a, \"quoted\"\nline\n");
    assert_record(&r, 1, "in \"plain\" text\n");
    assert_record(&r, 2, "\n");
    assert_int_equal(r.nclasses, 2);
    assert_int_equal(r.label[0], 1); /* no < yes */
    assert_int_equal(r.label[1], 0);
    assert_int_equal(r.key[0], 1);
    assert_int_equal(r.key[1], 0);
    assert_string_equal(r.key_name[0], "a");
    fl_records_free(&r);
}

static void csv_labels(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    h.label = "y";
    assert_int_equal(csv_of("y,text\n4,a\n1,b\n10,c\n", &h, &r), FL_OK);
    assert_int_equal(r.nclasses, 11); /* whole numbers are the classes themselves */
    assert_int_equal(r.label[0], 4);
    assert_int_equal(r.label[2], 10);
    fl_records_free(&r);
    assert_int_equal(csv_of("y,text\n-1,a\n1,b\n-1,c\n", &h, &r), FL_OK);
    assert_int_equal(r.nclasses, 2);
    assert_int_equal(r.label[0], 0);
    assert_int_equal(r.label[1], 1);
    fl_records_free(&r);
    assert_int_equal(csv_of("y,text\n1234567890,a\n01,b\n", &h, &r), FL_OK);
    assert_int_equal(r.nclasses, 2); /* an id is no class number */
    fl_records_free(&r);
}

static void csv_refuses(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    assert_says(csv_of("", &h, &r), FL_EDECK, "header");
    assert_says(csv_of("a,b\n1,2\n", &h, &r), FL_EDECK, "it has: a, b");
    assert_says(csv_of("text,text\n1,2\n", &h, &r), FL_EDECK, "more than one");
    assert_says(
        csv_of("text,b\n1,2\n3\n", &h, &r), FL_EDECK, "file:3: 1 fields where the header has 2");
    assert_says(csv_of("text,b\n1,\"2\n3\n", &h, &r), FL_EDECK, "file:2: the quote");
    assert_says(csv_of("text\n\"a\"b\n", &h, &r), FL_EDECK, "file:2: text after");
    assert_says(csv_of("text\n", &h, &r), FL_EDECK, "no record");
    h.label = "b";
    assert_says(csv_of("text,b\n1,\n", &h, &r), FL_EDECK, "label of this row is empty");
    h.label = "nope";
    assert_says(csv_of("text,b\n1,2\n", &h, &r), FL_EDECK, "data.label: nope");
}

/* ---- jsonl ---- */

static void json_lines_and_array(void **state)
{
    fl_deck_data h = how();
    fl_records r[2];
    const char *form[2] = {"{\"text\": \"caf\\u00e9\\nx\", \"y\": true, \"k\": 7}\r\n\n{\"k\": "
                           "\"z\", \"text\": \"b\\n\", \"y\": false}",
        " [{\"text\": \"caf\\u00e9\\nx\", \"y\": true, \"k\": 7},\n{\"k\": \"z\", \"text\": "
        "\"b\\n\", \"y\": false}]\n"};

    (void)state;
    h.key = "k";
    h.label = "y";
    for (int i = 0; i < 2; i++) {
        assert_int_equal(json_of(form[i], &h, &r[i]), FL_OK);
        assert_int_equal(r[i].n, 2);
        assert_record(&r[i], 0, "caf\xc3\xa9\nx\n");
        assert_record(&r[i], 1, "b\n");
        assert_int_equal(r[i].label[0], 1); /* false < true */
        assert_int_equal(r[i].label[1], 0);
        assert_string_equal(r[i].key_name[0], "7");
        assert_string_equal(r[i].key_name[1], "z");
        fl_records_free(&r[i]);
    }
}

static void json_refuses(void **state)
{
    fl_deck_data h = how();
    fl_records r;

    (void)state;
    assert_says(json_of("{\"text\": \"a\"}\n{\"text\": ", &h, &r), FL_EDECK, "file:2:");
    assert_says(json_of("{\"text\": \"a\"}\n{\"txt\": \"b\", \"z\": 1}", &h, &r), FL_EDECK,
        "there is: txt, z");
    assert_says(json_of("{\"text\": 3}", &h, &r), FL_EDECK, "not a string");
    assert_says(json_of("[1]", &h, &r), FL_EDECK, "element 1: is not a JSON object");
    assert_says(json_of("\"text\"", &h, &r), FL_EDECK, "line 1: is not a JSON object");
    assert_says(json_of("{\"text\": \"a\\u0000b\"}", &h, &r), FL_EDECK, "file:1:");
    assert_says(json_of("", &h, &r), FL_EDECK, "no record");
    h.label = "y";
    assert_says(json_of("{\"text\": \"a\", \"y\": 1.5}", &h, &r), FL_EDECK, "\"y\" (data.label)");
}

/* ---- xz ---- */

static void xz_round_trip_and_damage(void **state)
{
    enum { N = 300000 };
    uint8_t *plain = malloc(N), *packed = malloc(N + 1000);
    size_t n = 0;
    fl_text out = {0};

    (void)state;
    for (int i = 0; i < N; i++) {
        plain[i] = (uint8_t)(fl_rng_uniform(3, FL_RNG_TEST, 0, 0, (uint64_t)i) * 4);
    }
    assert_int_equal(
        lzma_easy_buffer_encode(0, LZMA_CHECK_CRC32, NULL, plain, N, packed, &n, N + 1000),
        LZMA_OK);
    assert_int_equal(fl_data_unxz(packed, n, "x.xz", &out), FL_OK);
    assert_int_equal(out.n, N);
    assert_memory_equal(out.s, plain, N);
    fl_text_free(&out);
    for (size_t cut = 0; cut < n; cut += n / 7) {
        fl_err err = fl_data_unxz(packed, cut, "x.xz", &out);

        assert_says(err, FL_EFILE, "x.xz: cannot be unpacked: it ends too early");
        assert_null(out.s);
    }
    packed[n / 2] ^= 0x55;
    assert_says(fl_data_unxz(packed, n, "x.xz", &out), FL_EFILE, "damaged");
    packed[n / 2] ^= 0x55;
    /* a block header that asks for a dictionary of 4 GiB: property byte 40 of filter 0x21, and its
     * CRC made good */
    size_t header = 12, size = ((size_t)packed[header] + 1) * 4, at = header + 2;

    while (!(packed[at] == 0x21 && packed[at + 1] == 1 && at < header + size)) {
        at++;
    }
    packed[at + 2] = 40;
    uint32_t crc = lzma_crc32(packed + header, size - 4, 0);

    for (int i = 0; i < 4; i++) {
        packed[header + size - 4 + (size_t)i] = (uint8_t)(crc >> (8 * i));
    }
    assert_says(fl_data_unxz(packed, n, "x.xz", &out), FL_EFILE, "256 MiB");
    assert_says(fl_data_unxz("not xz at all", 13, "x.xz", &out), FL_EFILE, "not an .xz file");
    assert_says(fl_data_load_file("no/such/file.txt", &out), FL_EFILE, "no/such/file.txt");
    assert_says(fl_data_load_file(".", &out), FL_EFILE, "cannot be read");
    free(plain);
    free(packed);
}

/* ---- the whole load ---- */

static void load_text_file(void **state)
{
    char path[] = "test-data-XXXXXX.txt";
    int fd = mkstemps(path, 4);
    const char *text = "B:\n0123456789\n\nA:\nx\n\nB:\nyz\n";
    fl_deck deck = deck_of(how(), 6);
    fl_dataset d;

    (void)state;
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    deck.data.source = path;
    deck.data.records = FL_RECORDS_PARAGRAPHS;
    deck.data.key = "heading";
    deck.data.test =
        0.5; /* of two records by B the second is for the test; A has one, kept for training */
    assert_int_equal(fl_dataset_load(test_ctx, &deck, 256, &d), FL_OK);
    /* "B:\n0123456789\n" is 14 tokens: 7 + 7 (sharing one) + 2 */
    assert_int_equal(d.nsamples, 5);
    assert_int_equal(d.offset[1], 7);
    assert_int_equal(d.offset[2], 14);
    assert_int_equal(d.offset[3], 16);
    assert_int_equal(d.token[6], '3');
    assert_int_equal(d.token[7], '3');
    assert_int_equal(d.key[0], 1);
    assert_int_equal(d.key[3], 0);
    assert_int_equal(d.split[2], FL_TRAIN);
    assert_int_equal(d.split[3], FL_TRAIN);
    assert_int_equal(d.split[4], FL_TEST);
    assert_int_equal(d.nkeys, 2);
    assert_string_equal(d.key_name[0], "A");
    assert_null(d.mask);
    assert_null(d.label);
    assert_int_equal((uintptr_t)d.token % 64, 0);
    fl_dataset_destroy(&d);
    assert_says(
        fl_dataset_load(test_ctx, &deck, 100, &d), FL_EDECK, "sample 3 (record 1) holds token 120");
    deck.data.source = "words.dat";
    assert_says(fl_dataset_load(test_ctx, &deck, 256, &d), FL_EDECK, "data.format");
    deck.data.source = "missing.txt";
    assert_says(fl_dataset_load(test_ctx, &deck, 256, &d), FL_EFILE, "missing.txt");
    unlink(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_lines),
        cmocka_unit_test(text_paragraphs_and_headings),
        cmocka_unit_test(text_documents),
        cmocka_unit_test(text_refuses),
        cmocka_unit_test(csv_quoting),
        cmocka_unit_test(csv_labels),
        cmocka_unit_test(csv_refuses),
        cmocka_unit_test(json_lines_and_array),
        cmocka_unit_test(json_refuses),
        cmocka_unit_test(xz_round_trip_and_damage),
        cmocka_unit_test(load_text_file),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
