/* fuzz_records.h - what the fuzzers of the data readers share: whatever was read must be whole,
 * survive the split and the cut, and leave no memory behind; whatever was refused must have said
 * so. */
#ifndef FUZZ_RECORDS_H
#define FUZZ_RECORDS_H
#include "../../src/data/data_internal.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static inline void fuzz_need(bool holds)
{
    if (!holds) {
        abort();
    }
}

static inline void fuzz_corpus(fl_corpus *c, int max_length)
{
    fl_cut cut;
    uint64_t predicted = 0, want = 0;

    fuzz_need(c->n >= 1 && c->offset[0] == 0);
    for (int64_t i = 0; i < c->n; i++) {
        uint64_t length = c->offset[i + 1] - c->offset[i];

        fuzz_need(c->offset[i + 1] >= c->offset[i]);
        fuzz_need(!c->label || (c->label[i] >= 0 && c->label[i] < c->nclasses));
        fuzz_need(!c->key || (c->key[i] >= 0 && c->key[i] < c->nkeys && c->key_name[c->key[i]]));
        for (uint64_t t = c->offset[i]; t < c->offset[i + 1]; t++) {
            fuzz_need(fl_corpus_token(c, t) < (uint32_t)c->vocab);
        }
        want += length > 0 ? length - 1 : 0;
    }
    fuzz_need(fl_corpus_split(c, 0.25, 0.25) == FL_OK);
    if (fl_corpus_cut(c, max_length, &cut) == FL_OK) {
        for (int64_t i = 0; i < cut.n; i++) {
            fuzz_need(cut.len[i] >= 2 && cut.len[i] <= (uint32_t)max_length + 1);
            fuzz_need(c->split[cut.record[i]] < FL_NSPLITS);
            predicted += cut.len[i] - 1;
        }
        fuzz_need(predicted == want);
        fl_cut_free(&cut);
    } else {
        fuzz_need(want == 0);
        fl_error_clear();
    }
    fl_corpus_free(c);
}

static inline void fuzz_records(fl_err err, fl_records *r, int max_length)
{
    fl_corpus c;

    fuzz_need((err == FL_OK) == (*fl_error_text() == '\0'));
    fl_error_clear();
    if (err == FL_OK) {
        fuzz_need(
            r->offset[r->n] == r->bytes.n && (!r->bytes.s || !memchr(r->bytes.s, 0, r->bytes.n)));
        for (int i = 1; i < r->nkeys; i++) {
            fuzz_need(strcmp(r->key_name[i - 1], r->key_name[i]) < 0);
        }
        fl_corpus_take(&c, r);
        fuzz_corpus(&c, max_length);
    }
    fl_records_free(r);
}

/* The first byte sets the options; the rest is the file, handed over without a NUL behind it. */
typedef fl_err fuzz_reader(const char *, size_t, const char *, const fl_deck_data *, fl_records *);
static inline int fuzz_read(fuzz_reader *read, const uint8_t *data, size_t n, fl_deck_data *how)
{
    size_t before = fl_memory_now();
    fl_records r;

    how->max_records = n > 0 && data[0] & 0x80 ? 3 : 0;
    how->source = "fuzz";
    fuzz_records(read(n > 0 ? (const char *)data + 1 : NULL, n > 0 ? n - 1 : 0, "fuzz", how, &r),
        &r, n > 0 ? 1 + data[0] % 16 : 8);
    fuzz_need(fl_memory_now() == before);
    return 0;
}
#endif
