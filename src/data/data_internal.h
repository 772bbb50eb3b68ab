/* data_internal.h - what the files of src/data share: whole records on the way to samples, and the
 * deal of samples to clients. */
#ifndef FL_DATA_INTERNAL_H
#define FL_DATA_INTERNAL_H
#include "fedlora/data.h"

enum {
    FL_DATA_CLASSES_MAX = 1000000
}; /* more is taken for a mistake (an id in place of a label) */

static inline bool fl_data_given(const char *s)
{
    return s && *s;
}

/* ---- xz.c: bytes of a file ---- local */
/* The file's bytes; NAME.xz is unpacked. FL_EFILE with the system's reason; out is freed then. */
fl_err fl_data_load_file(const char *path, fl_text *out);
/* Decodes .xz streams in memory. FL_EFILE: truncated, damaged, or wanting more memory than is
 * allowed. */
fl_err fl_data_unxz(const void *x, size_t n, const char *name, fl_text *out);
bool fl_data_ends_in(
    const char *name, size_t n, const char *tail); /* first n characters of name, case ignored */

/* ---- records.c: building records ---- */
typedef struct fl_data_names { /* strings in order of arrival */
    fl_text text;              /* owned, each with its NUL */
    size_t *at;                /* owned [room], n used: offsets in text */
    int64_t n, room;
} fl_data_names;
void fl_data_names_add(fl_data_names *names, const char *s, size_t n);
void fl_data_names_free(fl_data_names *names);
/* Distinct strings in byte order: id[i] = place of string i among them; *name owned [*nnames].
 * Sorted, so that neither file order nor addresses matter. */
void fl_data_names_rank(const fl_data_names *names, int32_t *id, int *nnames, char ***name);

typedef struct fl_data_builder {
    fl_records *r; /* borrowed, filled by fl_data_finish */
    int64_t room;
    fl_data_names key, label; /* one per record, or none at all */
} fl_data_builder;
void fl_data_begin(fl_data_builder *b, fl_records *r);
void fl_data_add(fl_data_builder *b, const char *s, size_t n); /* to the text of the open record */
void fl_data_close_record(fl_data_builder *b);
void fl_data_close_text(
    fl_data_builder *b, const char *s, size_t n); /* one record: s, ending in one \n at least */
/* Ranks keys and labels. err != FL_OK: frees everything. Returns err, or FL_EDECK when there is no
 * record. */
fl_err fl_data_finish(fl_data_builder *b, const char *name, fl_err err);
bool fl_data_full(const fl_data_builder *b, const fl_deck_data *how); /* max_records are there */
fl_err fl_data_refuse_nul(const char *bytes, size_t n, const char *name);
void fl_data_skip_bom(const char **bytes, size_t *n);

/* ---- corpus.c: whole records, their splits, and the cut into samples ---- local */
typedef struct fl_corpus {
    int64_t n;            /* records */
    uint64_t *offset;     /* owned [n + 1], into byte or token */
    uint8_t *byte;        /* owned, or NULL: then token */
    uint32_t *token;      /* owned */
    uint8_t *mask;        /* owned [offset[n]] or NULL */
    int32_t *label, *key; /* owned [n] or NULL */
    uint8_t *split;       /* owned [n]; NULL = not known yet */
    int vocab, nclasses, nkeys;
    char **key_name; /* owned [nkeys] or NULL */
} fl_corpus;
typedef struct fl_cut { /* samples as pieces of records */
    int64_t n, ntokens;
    uint64_t *from;  /* owned [n] offset of the first token in the corpus */
    uint32_t *len;   /* owned [n] tokens, 2 .. max_length + 1 */
    int32_t *record; /* owned [n] */
} fl_cut;
void fl_corpus_free(fl_corpus *c);
void fl_corpus_take(fl_corpus *c, fl_records *r); /* byte tokens; r is emptied */
fl_err fl_corpus_split(
    fl_corpus *c, double valid, double test); /* fills c->split unless the file had it */
fl_err fl_corpus_cut(const fl_corpus *c, int max_length, fl_cut *cut);
void fl_cut_free(fl_cut *cut);
static inline uint32_t fl_corpus_token(const fl_corpus *c, uint64_t i)
{
    return c->byte ? c->byte[i] : c->token[i];
}

/* ---- dataset_hdf5.c ---- local. image: the file's n bytes in memory, NULL = open path. */
fl_err fl_data_read_hdf5(
    const char *path, const void *image, size_t n, int max_records, fl_corpus *c);

/* ---- partition*.c: a deal gives every sample its client ---- local, pure functions of seed, deck
 * and data */
typedef struct fl_deal {
    uint64_t seed;
    const fl_dataset *d;          /* borrowed */
    const fl_deck_partition *how; /* borrowed */
    const char *source;           /* borrowed, for messages */
    int nclients;
    int32_t *owner;      /* owned [nsamples], -1 = nobody's */
    int32_t *client_key; /* owned [nclients] or NULL: natural key of a client */
} fl_deal;
fl_err fl_deal_iid(fl_deal *deal);
fl_err fl_deal_dirichlet(fl_deal *deal);
fl_err fl_deal_shards(fl_deal *deal);
fl_err fl_deal_natural(fl_deal *deal);
/* where the random numbers of a deal come from: the `round` argument of fl_rng under
 * FL_RNG_PARTITION */
enum {
    FL_DEAL_SHUFFLE = 0,
    FL_DEAL_PIECES = FL_NSPLITS,
    FL_DEAL_NORMAL,
    FL_DEAL_UNIFORM,
    FL_DEAL_BOOST
};
/* class of every sample: label, else natural key, else FL_EDECK */
fl_err fl_deal_class(const fl_deal *deal, const int32_t **class_of, int *nclasses);
/* samples of one split in order of class, then index: first owned [nclasses + 1], list owned
 * [first[nclasses]] */
void fl_deal_by_class(const fl_deal *deal, fl_split split, const int32_t *class_of, int nclasses,
    int64_t **first, int **list);
int64_t fl_deal_count(const fl_deal *deal, fl_split split);
#endif
