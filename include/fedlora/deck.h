/* deck.h - the deck: one row per key gives parsing, range, help, `fedlora deck`, `fedlora explain`, used.yaml and the
 * generated reference page. YAML by libyaml. No MPI communication: rank 0 reads the text, app broadcasts it, every rank parses. */
#ifndef FL_DECK_H
#define FL_DECK_H
#include "fedlora/base.h"

typedef struct fl_ints { int n; int *x; } fl_ints;          /* owned by the deck [n] */
typedef struct fl_reals { int n; double *x; } fl_reals;     /* owned [n] */
typedef struct fl_words { int n; char **x; } fl_words;      /* owned [n] */

/* how the value is stored at `at`:  int, double, bool, int (index in `words`), char *, fl_ints, fl_reals, fl_words, uint64_t */
typedef enum fl_type { FL_T_INT, FL_T_REAL, FL_T_BOOL, FL_T_WORD, FL_T_TEXT, FL_T_INTS, FL_T_REALS, FL_T_WORDS, FL_T_SEED, FL_T_END } fl_type;
enum { FL_FREE_KEY = 1 }; /* flag: may differ on resume (run.rounds, run.out, eval.*, checkpoint.*, placement) */

typedef struct fl_field {
    const char *name;      /* deck key = struct member */
    fl_type type;
    size_t at;             /* offsetof in the section's struct */
    const char *preset;    /* default, as YAML text: "8", "[q, v]", "" = empty text or empty list */
    double lo, hi;         /* range of a number, of each list element; of a list's length when WORDS */
    const char *words;     /* WORD, WORDS: the choices "a|b|c"; NULL = anything */
    const char *unit;      /* "" = none */
    unsigned flags;
    const char *help;      /* one line */
} fl_field;
#define FL_INT(T, m, preset, lo, hi, unit, help) { #m, FL_T_INT, offsetof(T, m), preset, lo, hi, NULL, unit, 0, help }
#define FL_REAL(T, m, preset, lo, hi, unit, help) { #m, FL_T_REAL, offsetof(T, m), preset, lo, hi, NULL, unit, 0, help }
#define FL_BOOL(T, m, preset, help) { #m, FL_T_BOOL, offsetof(T, m), preset, 0, 1, NULL, "", 0, help }
#define FL_WORD(T, m, preset, words, help) { #m, FL_T_WORD, offsetof(T, m), preset, 0, 0, words, "", 0, help }
#define FL_TEXT(T, m, preset, help) { #m, FL_T_TEXT, offsetof(T, m), preset, 0, 0, NULL, "", 0, help }
#define FL_INTS(T, m, preset, lo, hi, unit, help) { #m, FL_T_INTS, offsetof(T, m), preset, lo, hi, NULL, unit, 0, help }
#define FL_REALS(T, m, preset, lo, hi, unit, help) { #m, FL_T_REALS, offsetof(T, m), preset, lo, hi, NULL, unit, 0, help }
#define FL_WORDS(T, m, preset, words, help) { #m, FL_T_WORDS, offsetof(T, m), preset, 0, 1e4, words, "", 0, help }
#define FL_SEED(T, m, preset, help) { #m, FL_T_SEED, offsetof(T, m), preset, 0, 18446744073709551615.0, NULL, "", 0, help }
/* the same rows for keys that may differ on resume */
#define FL_FREE_INT(T, m, preset, lo, hi, unit, help) { #m, FL_T_INT, offsetof(T, m), preset, lo, hi, NULL, unit, FL_FREE_KEY, help }
#define FL_FREE_REAL(T, m, preset, lo, hi, unit, help) { #m, FL_T_REAL, offsetof(T, m), preset, lo, hi, NULL, unit, FL_FREE_KEY, help }
#define FL_FREE_BOOL(T, m, preset, help) { #m, FL_T_BOOL, offsetof(T, m), preset, 0, 1, NULL, "", FL_FREE_KEY, help }
#define FL_FREE_WORD(T, m, preset, words, help) { #m, FL_T_WORD, offsetof(T, m), preset, 0, 0, words, "", FL_FREE_KEY, help }
#define FL_FREE_TEXT(T, m, preset, help) { #m, FL_T_TEXT, offsetof(T, m), preset, 0, 0, NULL, "", FL_FREE_KEY, help }
#define FL_END { NULL, FL_T_END, 0, NULL, 0, 0, NULL, NULL, 0, NULL }

typedef struct fl_section {
    const char *name, *help;
    const fl_field *fields;  /* ends with FL_END; NULL = no keys of its own */
    size_t size;             /* of the struct */
} fl_section;

/* ---- the built-in sections; members are the deck keys ---- words are enums in the order of the row's choices */
typedef struct fl_deck_run { char *name; uint64_t seed; int rounds; char *out; double maxh; } fl_deck_run;
typedef struct fl_deck_model { char *path; int task; int max_length; char *share_dir; } fl_deck_model; /* task: lm */
typedef struct fl_deck_adapter { int r; double alpha; bool rslora; fl_words targets; int init; double init_std, dropout; } fl_deck_adapter;
    /* targets: q k v o up gate down; init: kaiming gaussian svd (FL_INIT_*) */
typedef struct fl_deck_data {
    char *source;            /* synthetic | FILE (.h5 .txt .csv .jsonl, each also .xz) */
    int format;              /* auto text csv jsonl hdf5 synthetic */
    int records;             /* text: lines paragraphs documents */
    char *separator;         /* text, records: documents: the line between two documents */
    char *key;               /* text: none | heading (first line "NAME:"); csv, jsonl: column or field with the client key; "" = none */
    char *field;             /* csv, jsonl: column or field with the text */
    char *label;             /* csv, jsonl: column or field with the label; "" = none */
    double valid, test;      /* share of each client key's records, the last ones, when the file has no split */
    int max_records;         /* 0 = all */
    int domains, sequences, length; double noise; /* synthetic */
} fl_deck_data;
typedef struct fl_deck_partition { int kind; int clients; double alpha; int shards; int min_records; } fl_deck_partition;
    /* kind: iid dirichlet shards natural; clients 0 = as many as natural keys */
typedef struct fl_deck_clients { fl_ints r; fl_reals r_share; double lost; } fl_deck_clients; /* lost: share of uploads that never arrive */
typedef struct fl_deck_cohort { int size, sampling, weights, shards; } fl_deck_cohort; /* sampling: uniform; weights: samples uniform */
typedef struct fl_deck_train {
    int what;                /* lora full */
    int optimizer;           /* adamw sgd */
    double lr; int schedule; /* constant linear cosine */
    double warmup;           /* share of the steps */
    int steps, epochs, batch; double clip; /* epochs > 0 replaces steps; clip 0 = off */
    double beta1, beta2, eps, weight_decay, momentum;
    int shards;              /* pretrain: a step's batch is cut into so many parts, summed by the order-free sum */
} fl_deck_train;
typedef struct fl_deck_method { char *name; } fl_deck_method;
typedef struct fl_deck_codec { int up, down; double density; int bits; bool feedback; } fl_deck_codec; /* FL_CODEC_* */
typedef struct fl_deck_svd { int solver; double tol; fl_ints grid; int block; } fl_deck_svd; /* auto factored dense scalapack randomized */
typedef struct fl_deck_eval { int every; int split; int max_samples; bool per_client; int max_clients; int batch; bool discordance; } fl_deck_eval;
typedef struct fl_deck_checkpoint { int every, keep, writers, stripe_count, stripe_size; bool async; } fl_deck_checkpoint;
typedef struct fl_deck_pretrain { int family, layers, width, heads, kv_heads, ff, context; double rope_theta; bool tied; char *out; } fl_deck_pretrain;
    /* family: gpt2 llama; the shape of the base that `fedlora pretrain` makes */
typedef struct fl_deck_blas { int threads; } fl_deck_blas;

enum { FL_INIT_KAIMING, FL_INIT_GAUSSIAN, FL_INIT_SVD };
enum { FL_FORMAT_AUTO, FL_FORMAT_TEXT, FL_FORMAT_CSV, FL_FORMAT_JSONL, FL_FORMAT_HDF5, FL_FORMAT_SYNTHETIC };
enum { FL_RECORDS_LINES, FL_RECORDS_PARAGRAPHS, FL_RECORDS_DOCUMENTS };
enum { FL_PART_IID, FL_PART_DIRICHLET, FL_PART_SHARDS, FL_PART_NATURAL };
enum { FL_WEIGHTS_SAMPLES, FL_WEIGHTS_UNIFORM };
enum { FL_WHAT_LORA, FL_WHAT_FULL };
enum { FL_OPT_ADAMW, FL_OPT_SGD };
enum { FL_SCHEDULE_CONSTANT, FL_SCHEDULE_LINEAR, FL_SCHEDULE_COSINE };
enum { FL_SVD_AUTO, FL_SVD_FACTORED, FL_SVD_DENSE, FL_SVD_SCALAPACK, FL_SVD_RANDOMIZED };
enum { FL_CODEC_NONE, FL_CODEC_TOPK, FL_CODEC_QUANTISE, FL_CODEC_TOPK_QUANTISE };
enum { FL_SPLIT_VALIDATION, FL_SPLIT_TEST };
enum { FL_FAMILY_GPT2, FL_FAMILY_LLAMA };

typedef struct fl_deck {
    fl_deck_run run;
    fl_deck_model model;
    fl_deck_adapter adapter;
    fl_deck_data data;
    fl_deck_partition partition;
    fl_deck_clients clients;
    fl_deck_cohort cohort;
    fl_deck_train train;
    fl_deck_method method;
    fl_deck_codec codec;
    fl_deck_svd svd;
    fl_deck_eval eval;
    fl_deck_checkpoint checkpoint;
    fl_deck_pretrain pretrain;
    fl_deck_blas blas;
    int nextra;                 /* sections of methods */
    const fl_section *extra;    /* borrowed [nextra] */
    void **config;              /* owned [nextra]: each section's struct, defaults applied */
} fl_deck;

/* Parses and checks. All mistakes of keys, types and ranges are collected (fl_fail, one sentence each:
 * "file:line: section.key: what is wrong; did you mean ...") and reported together; a syntax error stops at the first.
 *   text   the deck, n bytes; NULL = defaults only.   name   for messages ("inputs/quickstart.yaml")
 *   sets   [nsets] "section.key=value" (YAML flow value), applied after the text; messages say "--set ..."
 *   extra  sections of the methods; sections of methods not in use are checked, then ignored
 * Duplicate keys, aliases, anchors, several documents, empty values: errors. Errors: FL_EDECK. Local, equal on all ranks.
 * Cross-key rules that need no other layer (cohort.size <= partition.clients when not natural, r_share as long as r and
 * summing to 1, ...) are checked here too. */
fl_err fl_deck_parse(const char *text, size_t n, const char *name, int nsets, const char *const *sets,
    const fl_section *extra, int nextra, fl_deck **deck);
void fl_deck_destroy(fl_deck **deck);
const void *fl_deck_config(const fl_deck *deck, const char *section); /* struct of a method's section, NULL = no such */

/* Rows for all: the built-in sections, in order, [*n]. */
const fl_section *fl_deck_sections(int *n);

/* Adds to t the deck in force as YAML, every key; only the section of method.name of the extra ones.
 * comments: each key with its help, unit, range and default behind or above it (for `fedlora deck`). Parses back to the same deck. */
void fl_deck_dump(const fl_deck *deck, bool comments, fl_text *t);
/* `fedlora explain section.key` or `section`: type, unit, range or choices, default, help. FL_EUSAGE with the nearest name. */
fl_err fl_deck_explain(const char *what, const fl_section *extra, int nextra, fl_text *t);
/* the reference page of all keys in Markdown (make writes inputs/REFERENCE.md from it; a test compares) */
void fl_deck_reference(const fl_section *extra, int nextra, fl_text *t);
/* Keys whose values differ between two dumps (comments ignored), free keys and placement left out: "section.key: A here, B in the
 * checkpoint" lines added to t; returns their number. Parses `stored` with the same rules; unknown keys in it count as different. */
int fl_deck_compare(const fl_deck *deck, const char *stored, size_t n, const fl_section *extra, int nextra, fl_text *t);
uint64_t fl_deck_digest(const fl_deck *deck); /* of the non-free keys */
#endif
