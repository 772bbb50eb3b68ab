/* corpus.c - whole records: their splits, and the cut into samples. Local, pure.
 *
 * A record of L tokens becomes ceil((L - 1) / max_length) samples: sample j holds tokens j
 * max_length .. min((j + 1) max_length, L - 1), both ends included. Inputs are all but its last
 * token, targets all but its first, so every token but the record's first is predicted once. Splits
 * are given to records, before the cut: samples of one record never part. */
#include "data_internal.h"
#include <math.h>
#include <string.h>

void fl_corpus_free(fl_corpus *c)
{
    fl_free(c->offset);
    fl_free(c->byte);
    fl_free(c->token);
    fl_free(c->mask);
    fl_free(c->label);
    fl_free(c->key);
    fl_free(c->split);
    for (int i = 0; c->key_name && i < c->nkeys; i++) {
        fl_free(c->key_name[i]);
    }
    fl_free(c->key_name);
    memset(c, 0, sizeof *c);
}

void fl_corpus_take(fl_corpus *c, fl_records *r)
{
    memset(c, 0, sizeof *c);
    c->n = r->n;
    c->offset = r->offset;
    c->byte = fl_alloc("corpus", r->bytes.n, 1);
    if (r->bytes.n > 0) {
        memcpy(c->byte, r->bytes.s, r->bytes.n);
    }
    fl_text_free(&r->bytes);
    c->label = r->label;
    c->key = r->key;
    c->vocab = 256;
    c->nclasses = r->nclasses;
    c->nkeys = r->nkeys;
    c->key_name = r->key_name;
    memset(r, 0, sizeof *r);
}

/* the share is a decimal number: 0.29 * 100 is 28.999999999999996 */
static int64_t share_of(double share, int64_t n)
{
    return (int64_t)floor(share * (double)n + 1e-9);
}

fl_err fl_corpus_split(fl_corpus *c, double valid, double test)
{
    int nkeys = c->key ? c->nkeys : 1;
    int64_t *count, *seen;

    if (c->split) {
        return FL_OK;
    }
    if (!(valid >= 0 && test >= 0 && valid + test < 1)) {
        return fl_fail(FL_EDECK,
            "data.valid + data.test: %g + %g leaves nothing to train on; their sum must be below 1",
            valid, test);
    }
    c->split = fl_alloc("splits", (size_t)c->n, 1);
    count = fl_alloc("splits", (size_t)nkeys, sizeof *count);
    seen = fl_alloc("splits", (size_t)nkeys, sizeof *seen);
    /* a record too short to be a sample takes no place */
    for (int64_t i = 0; i < c->n; i++) {
        count[c->key ? c->key[i] : 0] += c->offset[i + 1] - c->offset[i] >= 2;
    }
    for (int64_t i = 0; i < c->n; i++) {
        int k = c->key ? c->key[i] : 0;
        int64_t ntest = share_of(test, count[k]), nvalid = share_of(valid, count[k]);

        if (c->offset[i + 1] - c->offset[i] >= 2) {
            c->split[i] = seen[k] >= count[k] - ntest            ? FL_TEST
                          : seen[k] >= count[k] - ntest - nvalid ? FL_VALID
                                                                 : FL_TRAIN;
            seen[k]++;
        }
    }
    fl_free(count);
    fl_free(seen);
    return FL_OK;
}

fl_err fl_corpus_cut(const fl_corpus *c, int max_length, fl_cut *cut)
{
    uint64_t stride = (uint64_t)max_length, n = 0;
    int64_t j = 0;

    FL_REQUIRE(max_length > 0);
    memset(cut, 0, sizeof *cut);
    for (int64_t i = 0; i < c->n; i++) {
        uint64_t length = c->offset[i + 1] - c->offset[i];

        n += length < 2 ? 0 : (length - 2) / stride + 1;
    }
    if (n == 0) {
        return fl_fail(
            FL_EDECK, "data.source: no record has two tokens or more, there is nothing to predict");
    }
    if (n > INT32_MAX) {
        return fl_fail(FL_EDECK, "data.source: more than 2^31 - 1 samples; set data.max_records or "
                                 "a larger model.max_length");
    }
    cut->n = (int64_t)n;
    cut->from = fl_alloc("samples", (size_t)n, sizeof *cut->from);
    cut->len = fl_alloc("samples", (size_t)n, sizeof *cut->len);
    cut->record = fl_alloc("samples", (size_t)n, sizeof *cut->record);
    for (int64_t i = 0; i < c->n; i++) {
        for (uint64_t at = c->offset[i]; at + 1 < c->offset[i + 1]; at += stride) {
            uint64_t len = FL_MIN(stride + 1, c->offset[i + 1] - at);

            cut->from[j] = at;
            cut->len[j] = (uint32_t)len;
            cut->record[j] = (int32_t)i;
            cut->ntokens += (int64_t)len;
            j++;
        }
    }
    FL_REQUIRE(j == cut->n);
    return FL_OK;
}

void fl_cut_free(fl_cut *cut)
{
    fl_free(cut->from);
    fl_free(cut->len);
    fl_free(cut->record);
    memset(cut, 0, sizeof *cut);
}
