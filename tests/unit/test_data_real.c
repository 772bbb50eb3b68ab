/* test_data_real.c - real files, when FEDLORA_DATA (default ../shared/data) has them: counts that
 * their sources state. */
#include "data_bed.h"

static bool real_file(const char *name, char *path, size_t room)
{
    const char *root = getenv("FEDLORA_DATA");

    snprintf(path, room, "%s/%s", root ? root : "../shared/data", name);
    return access(path, R_OK) == 0;
}

static fl_dataset real_load(const char *name, fl_deck_data h, int max_length)
{
    char path[4096];
    fl_dataset d;

    if (!real_file(name, path, sizeof path)) {
        skip();
    }
    h.source = path;
    h.valid = 0.1;
    h.test = 0.1;
    fl_deck deck = deck_of(h, max_length);

    if (fl_dataset_load(test_ctx, &deck, 256, &d) != FL_OK) {
        fail_msg("%s", fl_error_text());
    }
    return d;
}

static void real_shakespeare(void **state)
{
    fl_deck_data h = how();

    (void)state;
    h.records = FL_RECORDS_PARAGRAPHS;
    h.key = "heading";
    fl_dataset d = real_load("shakespeare/input.txt.xz", h, 1 << 20);
    bool letter[256] = {false};
    int letters = 0;

    assert_int_equal(d.nkeys, 309);
    assert_int_equal(d.nsamples, 7222);
    assert_int_equal(d.ntokens, 1115394 - 7223); /* the file less its 7,223 blank lines */
    for (int64_t i = 0; i < d.ntokens; i++) {
        letters += !letter[d.token[i]];
        letter[d.token[i]] = true;
    }
    assert_int_equal(letters, 65);
    fl_partition p = parted((fl_deck_partition){.kind = FL_PART_NATURAL, .min_records = 1}, &d);

    assert_partition(
        &p, &d, true); /* every role has a training record, as shares are rounded down */
    assert_int_equal(p.nclients, 309);
    fl_partition_destroy(&p);
    fl_dataset_destroy(&d);
}

static void real_tinystories(void **state)
{
    fl_deck_data h = how();

    (void)state;
    h.records = FL_RECORDS_DOCUMENTS;
    fl_dataset d = real_load("tinystories/tinystories_sample.txt.xz", h, 1 << 20);

    assert_int_equal(d.nsamples, 2317); /* 2,316 and one cut off */
    fl_dataset_destroy(&d);
}

static void real_wikitext(void **state)
{
    fl_dataset d = real_load("wikitext-2/valid.txt.xz", how(), 128);

    (void)state;
    assert_true(d.nsamples > 2461);
    fl_dataset_destroy(&d);
}

static void real_banking(void **state)
{
    fl_deck_data h = how();
    int count[77] = {0};

    (void)state;
    h.label = "category";
    fl_dataset d = real_load("banking77/train.csv.xz", h, 1 << 20);

    assert_int_equal(d.nsamples, 10003);
    assert_int_equal(d.nclasses, 77);
    for (int64_t i = 0; i < d.nsamples; i++) {
        count[d.label[i]]++;
    }
    for (int c = 0; c < 77; c++) {
        assert_in_range(count[c], 35, 187);
    }
    fl_dataset_destroy(&d);
}

static void real_boolq(void **state)
{
    fl_deck_data h = how();

    (void)state;
    h.field = "instruction";
    h.label = "answer";
    fl_dataset d = real_load("commonsense/boolq_train.json.xz", h, 1 << 20);

    assert_int_equal(d.nsamples, 9427);
    assert_int_equal(d.nclasses, 2);
    fl_dataset_destroy(&d);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_shakespeare),
        cmocka_unit_test(real_tinystories),
        cmocka_unit_test(real_wikitext),
        cmocka_unit_test(real_banking),
        cmocka_unit_test(real_boolq),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
