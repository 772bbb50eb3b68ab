/* dataset.c - the data set of a run: read by the leader of every node, placed in the node's shared
 * segment.
 *
 * Steps of fl_dataset_load: (1) every leader reads the source, gives splits, cuts samples (local;
 * result agreed); (2) rank 0's sizes and key names go to all ranks, a leader that read other sizes
 * says so; (3) the segment is made and filled; (4) all ranks compare the hash of the contents.
 * Segment: offset [n + 1] uint64, token [nt] uint32, label [n], key [n] int32, mask [nt], split [n]
 * uint8, each at a 64-byte offset, absent ones left out, and the hash (uint64) at the end. */
#include "data_internal.h"
#include <string.h>

typedef struct sizes { /* sent from rank 0 as bytes: all members 8 bytes, no gaps */
    int64_t n, nt, vocab, nclasses, nkeys, has_mask, has_label, has_key, names;
} sizes;

typedef struct places { /* byte offsets in the segment */
    size_t offset, token, label, key, mask, split, hash, end;
} places;

static places segment_places(const sizes *s)
{
    size_t n = (size_t)s->n, nt = (size_t)s->nt, at = 0;
    places p;

#define PLACE(member, bytes)                                                                       \
    p.member = at;                                                                                 \
    at = (at + (bytes) + 63) / 64 * 64
    PLACE(offset, (n + 1) * sizeof(uint64_t));
    PLACE(token, nt * sizeof(uint32_t));
    PLACE(label, s->has_label ? n * sizeof(int32_t) : 0);
    PLACE(key, s->has_key ? n * sizeof(int32_t) : 0);
    PLACE(mask, s->has_mask ? nt : 0);
    PLACE(split, n);
    PLACE(hash, sizeof(uint64_t));
#undef PLACE
    p.end = at;
    return p;
}

/* ---- (1) reading ---- */

static fl_err format_of(const fl_deck_data *how, int *format)
{
    static const struct {
        const char *tail;
        int format;
    } known[] = {{".txt", FL_FORMAT_TEXT}, {".text", FL_FORMAT_TEXT}, {".csv", FL_FORMAT_CSV},
        {".jsonl", FL_FORMAT_JSONL}, {".json", FL_FORMAT_JSONL}, {".h5", FL_FORMAT_HDF5},
        {".hdf5", FL_FORMAT_HDF5}};
    size_t n = how->source ? strlen(how->source) : 0;

    *format = how->format;
    if (*format != FL_FORMAT_AUTO) {
        return FL_OK;
    }
    if (n > 0 && strcmp(how->source, "synthetic") == 0) {
        *format = FL_FORMAT_SYNTHETIC;
        return FL_OK;
    }
    if (fl_data_ends_in(how->source, n, ".xz")) {
        n -= 3;
    }
    for (size_t i = 0; i < FL_COUNT(known); i++) {
        if (fl_data_ends_in(how->source, n, known[i].tail)) {
            *format = known[i].format;
            return FL_OK;
        }
    }
    return fl_fail(FL_EDECK,
        "data.source: %s: its format cannot be told from its name (.txt .text .csv .jsonl .json "
        ".h5 .hdf5, each also .xz); set data.format",
        n > 0 ? how->source : "(empty)");
}

static fl_err synthetic_check(const fl_deck_data *how)
{
    if (how->domains < 1 || how->sequences < 1 || how->length < 1) {
        return fl_fail(FL_EDECK,
            "data.domains, data.sequences, data.length: %d, %d, %d: the synthetic corpus needs at "
            "least 1 of each",
            how->domains, how->sequences, how->length);
    }
    return FL_OK;
}

static fl_err records_read(const fl_deck_data *how, int format, const fl_text *file, fl_records *r)
{
    switch (format) {
    case FL_FORMAT_TEXT:
        return fl_read_text(file->s, file->n, how->source, how, r);
    case FL_FORMAT_CSV:
        return fl_read_csv(file->s, file->n, how->source, how, r);
    default:
        return fl_read_jsonl(file->s, file->n, how->source, how, r);
    }
}

/* HDF5 files come from other programs and have no seal; a damaged one can crash the library, so a
 * child reads it first */
static fl_err hdf5_trial(const char *path, void *arg, fl_text *t)
{
    const fl_deck_data *how = arg;
    fl_corpus c;

    (void)t;
    return fl_data_read_hdf5(path, NULL, 0, how->max_records, &c);
}

static fl_err corpus_read(const fl_deck *deck, fl_corpus *c)
{
    const fl_deck_data *how = &deck->data;
    fl_text file = {0};
    fl_records r = {0};
    int format;
    fl_err err;

    FL_TRY(format_of(how, &format));
    if (format == FL_FORMAT_SYNTHETIC) {
        FL_TRY(synthetic_check(how));
        fl_synthetic(how, deck->run.seed, &r);
        fl_corpus_take(c, &r);
        return FL_OK;
    }
    if (!fl_data_given(how->source)) {
        return fl_fail(FL_EDECK, "data.source: is empty; name a file, or synthetic");
    }
    if (format == FL_FORMAT_HDF5 && !fl_data_ends_in(how->source, strlen(how->source), ".xz")) {
        FL_TRY(fl_isolated(hdf5_trial, how->source, (void *)(uintptr_t)how, NULL));
        return fl_data_read_hdf5(how->source, NULL, 0, how->max_records, c);
    }
    FL_TRY(fl_data_load_file(how->source, &file));
    if (format == FL_FORMAT_HDF5) {
        err = fl_data_read_hdf5(how->source, file.s, file.n, how->max_records, c);
    } else {
        err = records_read(how, format, &file, &r);
    }
    fl_text_free(&file);
    if (err == FL_OK && format != FL_FORMAT_HDF5) {
        fl_corpus_take(c, &r);
    }
    return err;
}

static fl_err tokens_check(const fl_corpus *c, const fl_cut *cut, const char *source, int vocab)
{
    for (int64_t i = 0; vocab > 0 && c->vocab > vocab && i < cut->n; i++) {
        for (uint32_t j = 0; j < cut->len[i]; j++) {
            uint32_t x = fl_corpus_token(c, cut->from[i] + j);

            if (x >= (uint32_t)vocab) {
                return fl_fail(FL_EDECK,
                    "%s: sample %lld (record %d) holds token %u, but the model knows only 0 to %d "
                    "(vocab_size); data and model do not fit",
                    source, (long long)i, cut->record[i], x, vocab - 1);
            }
        }
    }
    return FL_OK;
}

static fl_err leader_read(const fl_deck *deck, int vocab, fl_corpus *c, fl_cut *cut)
{
    FL_TRY(corpus_read(deck, c));
    FL_TRY(fl_corpus_split(c, deck->data.valid, deck->data.test));
    FL_TRY(fl_corpus_cut(c, deck->model.max_length, cut));
    return tokens_check(c, cut, deck->data.source, vocab);
}

/* ---- (2) sizes and names ---- */

static void names_pack(const fl_corpus *c, fl_text *names)
{
    for (int i = 0; i < c->nkeys; i++) {
        fl_text_bytes(names, c->key_name[i], strlen(c->key_name[i]) + 1);
    }
}

static void names_unpack(fl_dataset *d, const char *s)
{
    d->names = fl_alloc("key names", (size_t)d->nkeys, sizeof *d->names);
    for (int i = 0; i < d->nkeys; i++) {
        d->names[i] = fl_strdup(s);
        s += strlen(s) + 1;
    }
    d->key_name = (const char *const *)d->names;
}

static fl_err nodes_differ(const char *source)
{
    return fl_fail(FL_EDECK,
        "%s: nodes read different data; the file must be the same on every node (a shared file "
        "system, or equal copies)",
        source);
}

static fl_err sizes_agree(fl_ctx *ctx, const fl_deck *deck, const fl_corpus *c, const fl_cut *cut,
    sizes *s, fl_text *names)
{
    sizes mine = {.n = cut->n,
        .nt = cut->ntokens,
        .vocab = c->vocab,
        .nclasses = c->nclasses,
        .nkeys = c->nkeys};
    bool same = true;

    mine.has_mask = c->mask != NULL;
    mine.has_label = c->label != NULL;
    mine.has_key = c->key != NULL;
    names_pack(c, names);
    mine.names = (int64_t)names->n;
    *s = mine;
    fl_bcast(ctx, 0, s, sizeof *s);
    char *all = fl_alloc("key names", (size_t)s->names, 1);

    if (ctx->rank == 0 && s->names > 0) {
        memcpy(all, names->s, names->n);
    }
    fl_bcast(ctx, 0, all, (size_t)s->names);
    if (ctx->node_rank == 0) {
        same = memcmp(s, &mine, sizeof mine) == 0 &&
               (names->n == 0 || memcmp(all, names->s, names->n) == 0);
    }
    fl_text_free(names);
    fl_text_bytes(names, all, (size_t)s->names);
    fl_free(all);
    return fl_agree(ctx, same ? FL_OK : nodes_differ(deck->data.source));
}

/* ---- (3) the segment ---- */

static void segment_fill(const fl_corpus *c, const fl_cut *cut, const sizes *s, char *x)
{
    places p = segment_places(s);
    uint64_t *offset = (uint64_t *)(void *)(x + p.offset), at = 0;
    uint32_t *token = (uint32_t *)(void *)(x + p.token);

    for (int64_t i = 0; i < cut->n; i++) {
        int32_t record = cut->record[i];

        offset[i] = at;
        for (uint32_t j = 0; j < cut->len[i]; j++) {
            token[at + j] = fl_corpus_token(c, cut->from[i] + j);
        }
        if (c->mask) {
            memcpy(x + p.mask + at, c->mask + cut->from[i], cut->len[i]);
        }
        if (c->label) {
            ((int32_t *)(void *)(x + p.label))[i] = c->label[record];
        }
        if (c->key) {
            ((int32_t *)(void *)(x + p.key))[i] = c->key[record];
        }
        x[p.split + (size_t)i] = (char)c->split[record];
        at += cut->len[i];
    }
    offset[cut->n] = at;
}

static void dataset_point(fl_dataset *d, const sizes *s)
{
    places p = segment_places(s);
    const char *x = d->share.x;

    d->offset = (const uint64_t *)(const void *)(x + p.offset);
    d->token = (const uint32_t *)(const void *)(x + p.token);
    d->label = s->has_label ? (const int32_t *)(const void *)(x + p.label) : NULL;
    d->key = s->has_key ? (const int32_t *)(const void *)(x + p.key) : NULL;
    d->mask = s->has_mask ? (const uint8_t *)(x + p.mask) : NULL;
    d->split = (const uint8_t *)(x + p.split);
    d->hash = *(const uint64_t *)(const void *)(x + p.hash);
}

static fl_err dataset_share(fl_ctx *ctx, const fl_deck *deck, const fl_corpus *c, const fl_cut *cut,
    const sizes *s, const fl_text *names, fl_dataset *d)
{
    places p = segment_places(s);

    d->nsamples = s->n;
    d->ntokens = s->nt;
    d->vocab = (int)s->vocab;
    d->nclasses = (int)s->nclasses;
    d->nkeys = (int)s->nkeys;
    FL_TRY(fl_share_create(ctx, fl_data_given(deck->model.share_dir) ? deck->model.share_dir : "",
        "data set", p.end, &d->share));
    if (s->has_key) {
        names_unpack(d, names->s);
    }
    if (ctx->node_rank == 0) {
        char *x = d->share.x;
        uint64_t h = fl_hash(names->s ? names->s : "", names->n, fl_hash(s, sizeof *s, 0));

        segment_fill(c, cut, s, x);
        *(uint64_t *)(void *)(x + p.hash) = fl_hash(x, p.hash, h);
    }
    fl_share_fence(ctx);
    dataset_point(d, s);
    return fl_same_everywhere(ctx, d->hash) ? FL_OK : nodes_differ(deck->data.source);
}

fl_err fl_dataset_load(fl_ctx *ctx, const fl_deck *deck, int vocab, fl_dataset *d)
{
    fl_corpus c = {0};
    fl_cut cut = {0};
    fl_text names = {0};
    sizes s;
    fl_err err = FL_OK;

    memset(d, 0, sizeof *d);
    if (ctx->node_rank == 0) {
        err = leader_read(deck, vocab, &c, &cut);
    }
    err = fl_agree(ctx, err);
    if (err == FL_OK) {
        err = sizes_agree(ctx, deck, &c, &cut, &s, &names);
    }
    if (err == FL_OK) {
        err = dataset_share(ctx, deck, &c, &cut, &s, &names, d);
    }
    fl_text_free(&names);
    fl_corpus_free(&c);
    fl_cut_free(&cut);
    if (err != FL_OK) {
        fl_dataset_destroy(d);
    }
    return err;
}

void fl_dataset_destroy(fl_dataset *d)
{
    fl_share_destroy(&d->share);
    for (int i = 0; d->names && i < d->nkeys; i++) {
        fl_free(d->names[i]);
    }
    fl_free(d->names);
    memset(d, 0, sizeof *d);
}
