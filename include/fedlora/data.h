/* data.h - data sets, partitions of samples over clients, batches. A data set is one copy per node, in a shared segment. */
#ifndef FL_DATA_H
#define FL_DATA_H
#include "fedlora/comm.h"
#include "fedlora/deck.h"
#include "fedlora/nn.h"

typedef enum fl_split { FL_TRAIN, FL_VALID, FL_TEST, FL_NSPLITS } fl_split;

typedef struct fl_dataset {
    int64_t nsamples, ntokens;
    int vocab, nclasses, nkeys;    /* nclasses 0 = no labels; nkeys: natural client keys, 0 = none */
    const uint32_t *token;         /* [ntokens] in the segment */
    const uint64_t *offset;        /* [nsamples + 1] */
    const uint8_t *mask;           /* [ntokens] loss_mask, NULL = everywhere */
    const int32_t *label;          /* [nsamples] or NULL */
    const int32_t *key;            /* [nsamples] natural client key or NULL */
    const uint8_t *split;          /* [nsamples] fl_split */
    const char *const *key_name;   /* owned [nkeys] or NULL: replicated per rank */
    uint64_t hash;                 /* of all contents, equal on all ranks and nodes */
    fl_share share;                /* owned */
    char **names;                  /* owned backing of key_name */
} fl_dataset;
/* Collective over ctx->world. Every node's leader reads deck->data.source (text, csv, jsonl: byte tokens, vocab 256; a trailing .xz is
 * decompressed with liblzma; HDF5 data sets of interface.md; synthetic: the procedural language), all ranks agree. Long records are cut into
 * samples of at most max_length + 1 tokens (inputs + next targets; consecutive samples of a record overlap by one token, so that every
 * token but a record's first is predicted once); samples of fewer than 2 tokens are dropped. Splits: from the file, else the last `valid` and
 * `test` shares of each key's (or, keyless, of the whole file's) records, in file order.
 * vocab: of the model; a token >= vocab is FL_EDECK naming sample and value. Errors: FL_EDECK, FL_EFILE, on all ranks, naming file and line. */
fl_err fl_dataset_load(fl_ctx *ctx, const fl_deck *deck, int vocab, fl_dataset *d);
void fl_dataset_destroy(fl_dataset *d);
/* Local core of the readers, for tests and fuzzing: bytes of a file in memory -> records. */
typedef struct fl_records { int64_t n; uint64_t *offset; fl_text bytes; int32_t *label, *key; int nkeys, nclasses; char **key_name; } fl_records; /* owned; label, key NULL = none */
fl_err fl_read_text(const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r);
fl_err fl_read_csv(const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r);   /* RFC 4180 quoting, header line */
fl_err fl_read_jsonl(const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r); /* jansson; one object a line */
void fl_records_free(fl_records *r);
/* the synthetic corpus: domain of sample i = i mod domains; each domain has its own word list and Markov grammar; deterministic */
void fl_synthetic(const fl_deck_data *how, uint64_t seed, fl_records *r); /* key = domain, key_name "domain-0".. */

/* ---- partition: which samples are whose ---- replicated table in a shared segment; same on any number of ranks */
typedef struct fl_partition {
    int nclients;
    const uint64_t *first[FL_NSPLITS]; /* [nclients + 1] offsets into list */
    const uint32_t *list[FL_NSPLITS];  /* sample indices, ascending within a client */
    const char *const *name;           /* [nclients] natural key's name, NULL = unnamed */
    fl_share share;
    char **names;                      /* owned or NULL */
} fl_partition;
/* Collective. iid: samples dealt by a random permutation, equal counts. dirichlet: for each class (label, else natural key, else FL_EDECK)
 * proportions ~ Dir(alpha) over clients; every client gets at least one training sample. shards: sorted by class (as above), cut
 * into clients * shards pieces, dealt at random. natural: one client per key with at least min_records training samples, ascending key;
 * partition.clients > 0 keeps the first so many of the largest. Validation and test samples follow the same rule in their own split
 * (natural: by key; a client may have none). FL_EDECK when there are fewer training samples than clients. */
fl_err fl_partition_create(fl_ctx *ctx, const fl_deck *deck, const fl_dataset *d, fl_partition *p);
void fl_partition_destroy(fl_partition *p);
static inline int64_t fl_partition_count(const fl_partition *p, int client, fl_split split)
{
    return (int64_t)(p->first[split][client + 1] - p->first[split][client]);
}

/* ---- batches ---- */
typedef struct fl_batcher { fl_batch batch; int *start, *token, *target; int room_seq, room_tokens; } fl_batcher; /* owned arrays; fl_batch borrows them */
void fl_batcher_create(fl_batcher *b, int nseq, int ntokens);
void fl_batcher_destroy(fl_batcher *b);
/* Fills b->batch with the given samples, in that order; each truncated to max_length inputs. */
void fl_batch_fill(fl_batcher *b, const fl_dataset *d, int n, const uint32_t *sample, int max_length);
/* Training order: epoch e of a client is a permutation f(seed, BATCH, client, round, stream, e); batch `step` takes the next `batch` samples; the last batch of
 * an epoch is the remainder (never padded, never empty). Writes the samples of that step, returns their number.
 *   n samples of the client, list its samples */
int fl_batch_pick(uint64_t seed, int client, int round, int stream, int step, int batch, int64_t n, const uint32_t *list, uint32_t *sample);
int fl_steps_per_epoch(int64_t n, int batch);
#endif
