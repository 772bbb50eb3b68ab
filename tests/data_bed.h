/* data_bed.h - what the tests of the data layer share: a deck, a data set in private memory, the
 * check that a partition is one. */
#ifndef DATA_BED_H
#define DATA_BED_H
#include "../src/data/data_internal.h"
#include "harness.h"
#include <string.h>

static inline fl_deck_data how(void)
{
    return (fl_deck_data){
        .source = "test", .separator = "<|endoftext|>", .key = "", .field = "text", .label = ""};
}

static inline void assert_says(fl_err err, fl_err want, const char *part)
{
    if (err != want || !strstr(fl_error_text(), part)) {
        fail_msg("error %d, wanted %d; \"%s\" lacks \"%s\"", err, want, fl_error_text(), part);
    }
    fl_error_clear();
}

static inline fl_deck deck_of(fl_deck_data data, int max_length)
{
    return (fl_deck){
        .run = {.seed = 11}, .model = {.max_length = max_length, .share_dir = ""}, .data = data};
}

static inline fl_partition parted(fl_deck_partition how_part, const fl_dataset *d)
{
    fl_deck deck = deck_of(how(), 8);
    fl_partition p;

    deck.partition = how_part;
    if (fl_partition_create(test_ctx, &deck, d, &p) != FL_OK) {
        fail_msg("%s", fl_error_text());
    }
    return p;
}

/* every sample of the split belongs to exactly one client (to at most one when `all` is false);
 * lists ascend */
static inline void assert_partition(const fl_partition *p, const fl_dataset *d, bool all)
{
    int *times = calloc((size_t)d->nsamples, sizeof *times);

    for (int s = 0; s < FL_NSPLITS; s++) {
        assert_int_equal(p->first[s][0], 0);
        for (int k = 0; k < p->nclients; k++) {
            for (uint64_t i = p->first[s][k]; i < p->first[s][k + 1]; i++) {
                assert_int_equal(d->split[p->list[s][i]], s);
                assert_true(i == p->first[s][k] || p->list[s][i - 1] < p->list[s][i]);
                times[p->list[s][i]]++;
            }
        }
    }
    for (int64_t i = 0; i < d->nsamples; i++) {
        assert_true(all ? times[i] == 1 : times[i] <= 1);
    }
    for (int k = 0; k < p->nclients; k++) {
        assert_true(fl_partition_count(p, k, FL_TRAIN) >= 1);
    }
    free(times);
}

#endif
