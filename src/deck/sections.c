/* sections.c - the rows of all built-in sections: one row per key gives parsing, range, default,
 * unit, help, dump, explain and the reference page. The struct members are in deck.h; words are in
 * the order of its enums. */
#include "deck_internal.h"
#include <string.h>

#define ANY 2147483647.0 /* no upper limit but that of int */

static const fl_field run_fields[] = {
    FL_FREE_TEXT(
        fl_deck_run, name, "run", "name of the run, for the log and the default of run.out"),
    FL_SEED(fl_deck_run, seed, "1", "every random number of the run follows from it"),
    FL_FREE_INT(fl_deck_run, rounds, "20", 0, 8388607, "rounds",
        "rounds of the federation in all, earlier parts of the run included"),
    FL_FREE_TEXT(fl_deck_run, out, "", "directory of the results; empty = runs/NAME"),
    FL_FREE_REAL(fl_deck_run, maxh, "0", 0, 1e5, "hours",
        "wall time after which the run stops with a checkpoint; 0 = no limit"),
    FL_END,
};
static const fl_field model_fields[] = {
    FL_FREE_TEXT(fl_deck_model, path, "",
        "the base model: a Hugging Face folder (config.json and safetensors)"),
    FL_WORD(fl_deck_model, task, "lm", "lm", "lm = predict the next token"),
    FL_INT(fl_deck_model, max_length, "128", 1, 1e6, "tokens",
        "longer records are cut into samples of this many inputs"),
    FL_FREE_TEXT(fl_deck_model, share_dir, "",
        "directory of the memory that a node's ranks share; empty = /dev/shm"),
    FL_END,
};
static const fl_field adapter_fields[] = {
    FL_INT(fl_deck_adapter, r, "8", 1, 4096, "", "rank of the factors: A is r x in, B is out x r"),
    FL_REAL(fl_deck_adapter, alpha, "16", 1e-6, 1e6, "", "the product B A is scaled by alpha / r"),
    FL_BOOL(fl_deck_adapter, rslora, "false", "scale by alpha / sqrt(r) instead"),
    FL_WORDS(fl_deck_adapter, targets, "[q, v]", "q|k|v|o|up|gate|down",
        "matrices of every block that get an adapter (gate: llama only)"),
    FL_WORD(fl_deck_adapter, init, "kaiming", "kaiming|gaussian|svd",
        "start of A (B = 0): uniform within 1/sqrt(in), or normal; svd: A and B the top of W, "
        "which keeps "
        "the rest"),
    FL_REAL(fl_deck_adapter, init_std, "0", 0, 1e3, "",
        "standard deviation of init: gaussian; 0 = 1/r"),
    FL_REAL(fl_deck_adapter, dropout, "0", 0, 0.99, "",
        "share of an adapter's inputs set to zero in training"),
    FL_END,
};
static const fl_field data_fields[] = {
    FL_FREE_TEXT(fl_deck_data, source, "synthetic",
        "synthetic, or a file: .h5, .txt, .csv, .jsonl, each also with .xz behind it"),
    FL_WORD(fl_deck_data, format, "auto", "auto|text|csv|jsonl|hdf5|synthetic",
        "format of the source; auto = by the file's name"),
    FL_WORD(
        fl_deck_data, records, "lines", "lines|paragraphs|documents", "text: what one record is"),
    FL_TEXT(fl_deck_data, separator, "<|endoftext|>",
        "text, records: documents: the line between two documents"),
    FL_TEXT(fl_deck_data, key, "",
        "client key: a column or field; text: heading = first line 'NAME:'; empty = none"),
    FL_TEXT(fl_deck_data, field, "text", "csv, jsonl: the column or field with the text"),
    FL_TEXT(
        fl_deck_data, label, "", "csv, jsonl: the column or field with the label; empty = none"),
    FL_REAL(fl_deck_data, valid, "0.1", 0, 0.9, "",
        "share of each key's records for validation when the file has no split"),
    FL_REAL(fl_deck_data, test, "0.1", 0, 0.9, "",
        "share of each key's records for the test when the file has no split"),
    FL_INT(fl_deck_data, max_records, "0", 0, ANY, "records",
        "only the first so many records are read; 0 = all"),
    FL_INT(fl_deck_data, domains, "4", 1, 1e6, "domains",
        "synthetic: number of dialects, each with its own words and grammar"),
    FL_INT(fl_deck_data, sequences, "2000", 1, 1e8, "records", "synthetic: number of records"),
    FL_INT(fl_deck_data, length, "64", 2, 1e6, "bytes", "synthetic: length of a record"),
    FL_REAL(fl_deck_data, noise, "0.02", 0, 1, "",
        "synthetic: chance that a byte is a random letter instead"),
    FL_END,
};
static const fl_field partition_fields[] = {
    FL_WORD(fl_deck_partition, kind, "dirichlet", "iid|dirichlet|shards|natural",
        "how samples go to clients; natural = one client per key"),
    FL_INT(fl_deck_partition, clients, "100", 0, 1e8, "clients",
        "number of clients; natural: the largest so many, 0 = all"),
    FL_REAL(fl_deck_partition, alpha, "0.5", 1e-4, 1e6, "",
        "dirichlet: small = each client has few classes, large = all alike"),
    FL_INT(fl_deck_partition, shards, "2", 1, 1e5, "shards",
        "shards: pieces of the sorted samples that a client gets"),
    FL_INT(fl_deck_partition, min_records, "2", 1, ANY, "samples",
        "natural: keys with fewer training samples are left out"),
    FL_END,
};
static const fl_field clients_fields[] = {
    FL_INTS(fl_deck_clients, r, "[]", 1, 4096, "",
        "unequal ranks: the values that occur; [] = adapter.r for all"),
    FL_REALS(fl_deck_clients, r_share, "[]", 0, 1, "",
        "share of the clients with each of clients.r; sums to 1"),
    FL_REAL(fl_deck_clients, lost, "0", 0, 0.99, "", "share of the uploads that never arrive"),
    FL_END,
};
static const fl_field cohort_fields[] = {
    FL_INT(fl_deck_cohort, size, "10", 1, 1e7, "clients", "clients that take part in a round"),
    FL_WORD(fl_deck_cohort, sampling, "uniform", "uniform",
        "uniform = all clients equally likely, without replacement"),
    FL_WORD(fl_deck_cohort, weights, "samples", "samples|uniform",
        "weight of a client's update: its training samples, or all alike"),
    FL_INT(fl_deck_cohort, shards, "1", 1, 4096, "",
        "parts of a local step's batch, added by the order-free sum; so many ranks can share a "
        "client"),
    FL_END,
};
static const fl_field train_fields[] = {
    FL_WORD(fl_deck_train, what, "lora", "lora|full",
        "what trains: the adapters, or all weights of the base"),
    FL_WORD(fl_deck_train, optimizer, "adamw", "adamw|sgd", "optimiser of the local steps"),
    FL_REAL(fl_deck_train, lr, "1.0e-3", 0, 1e3, "", "learning rate before the schedule"),
    FL_WORD(fl_deck_train, schedule, "constant", "constant|linear|cosine",
        "learning rate within a round's local steps: constant, or falling to 0"),
    FL_REAL(fl_deck_train, warmup, "0", 0, 1, "",
        "share of the local steps in which the learning rate rises from 0"),
    FL_INT(fl_deck_train, steps, "10", 1, 1e8, "steps",
        "local steps per client and round (pretrain: in all)"),
    FL_INT(fl_deck_train, epochs, "0", 0, 1e6, "epochs",
        "passes over the client's data instead of train.steps; 0 = use steps"),
    FL_INT(fl_deck_train, batch, "8", 1, 1e6, "samples", "samples per step"),
    FL_REAL(fl_deck_train, clip, "1.0", 0, 1e9, "",
        "largest norm of a gradient, longer ones are shortened; 0 = off"),
    FL_REAL(fl_deck_train, beta1, "0.9", 0, 0.999999, "", "adamw: decay of the first moment"),
    FL_REAL(fl_deck_train, beta2, "0.999", 0, 0.99999999, "", "adamw: decay of the second moment"),
    FL_REAL(fl_deck_train, eps, "1.0e-8", 1e-30, 1, "",
        "adamw: added to the root of the second moment"),
    FL_REAL(fl_deck_train, weight_decay, "0.01", 0, 1e3, "",
        "adamw: decoupled decay; sgd: added to the gradient"),
    FL_REAL(fl_deck_train, momentum, "0", 0, 0.999999, "", "sgd: momentum"),
    FL_INT(fl_deck_train, shards, "4", 1, 1e6, "parts",
        "pretrain: parts of a step's batch, computed on any ranks"),
    FL_END,
};
static const fl_field method_fields[] = {
    FL_TEXT(fl_deck_method, name, "fedavg",
        "how the server aggregates; `fedlora methods` lists the names"),
    FL_END,
};
static const fl_field codec_fields[] = {
    FL_WORD(fl_deck_codec, up, "none", "none|topk|quantise|topk_quantise",
        "compression of the messages to the server"),
    FL_WORD(fl_deck_codec, down, "none", "none|topk|quantise|topk_quantise",
        "compression of the messages to the clients"),
    FL_REAL(fl_deck_codec, density, "0.1", 1e-6, 1, "",
        "topk: share of the elements that travel, those of largest change"),
    FL_INT(fl_deck_codec, bits, "8", 2, 16, "bits",
        "quantise: bits of an element; rounding is random and unbiased"),
    FL_BOOL(fl_deck_codec, feedback, "true",
        "the sender adds what a codec lost to its next message (error feedback)"),
    FL_END,
};
static const fl_field svd_fields[] = {
    FL_WORD(fl_deck_svd, solver, "auto", "auto|factored|dense|scalapack|randomized",
        "SVD of the aggregate; auto = by shapes, never by rank count"),
    FL_REAL(fl_deck_svd, tol, "1.0e-6", 1e-15, 1, "",
        "largest relative residual of a factorisation that is accepted"),
    FL_INTS(fl_deck_svd, grid, "[]", 1, 65535, "processes",
        "scalapack: process grid [p, q]; [] = nearly square over all ranks"),
    FL_INT(fl_deck_svd, block, "64", 1, 65536, "rows",
        "scalapack: side of a block of the distributed matrix"),
    FL_END,
};
static const fl_field eval_fields[] = {
    FL_FREE_INT(fl_deck_eval, every, "5", 0, ANY, "rounds",
        "evaluate after every so many rounds; the last always; 0 = only the last"),
    FL_FREE_WORD(fl_deck_eval, split, "validation", "validation|test",
        "split used during the run; the last round also uses the test split"),
    FL_FREE_INT(fl_deck_eval, max_samples, "1000", 1, ANY, "samples",
        "a fixed subset of at most so many samples"),
    FL_FREE_BOOL(fl_deck_eval, per_client, "false", "evaluate clients on their own samples too"),
    FL_FREE_INT(fl_deck_eval, max_clients, "100", 1, ANY, "clients",
        "per_client: a fixed subset of at most so many clients"),
    FL_FREE_INT(fl_deck_eval, batch, "16", 1, 1e6, "samples", "samples per evaluation batch"),
    FL_FREE_BOOL(fl_deck_eval, discordance, "true",
        "measure the relative error of the server's update against the ideal sum"),
    FL_END,
};
static const fl_field checkpoint_fields[] = {
    FL_FREE_INT(fl_deck_checkpoint, every, "1", 1, ANY, "rounds",
        "checkpoint after every so many rounds, and at the end or when stopped"),
    FL_FREE_INT(
        fl_deck_checkpoint, keep, "2", 1, 1e6, "files", "checkpoints kept, the newest ones"),
    FL_FREE_INT(fl_deck_checkpoint, writers, "0", 0, ANY, "ranks",
        "ranks that write the large data sets, spread over the nodes; the others send theirs; 0 = "
        "all"),
    FL_FREE_INT(fl_deck_checkpoint, stripe_count, "0", 0, ANY, "servers",
        "storage servers a new file is spread over (Lustre); 0 = the folder's own"),
    FL_FREE_INT(fl_deck_checkpoint, stripe_size, "0", 0, ANY, "bytes",
        "bytes on one server before the next (Lustre: multiples of 65536); 0 = the folder's own"),
    FL_FREE_BOOL(fl_deck_checkpoint, async, "false",
        "a thread of rank 0 writes a copy while the next round runs; not with writers"),
    FL_END,
};
static const fl_field pretrain_fields[] = {
    FL_WORD(fl_deck_pretrain, family, "llama", "gpt2|llama", "architecture of the base model"),
    FL_INT(fl_deck_pretrain, layers, "2", 1, 1024, "blocks", "transformer blocks"),
    FL_INT(fl_deck_pretrain, width, "64", 2, 65536, "", "width of the residual stream"),
    FL_INT(fl_deck_pretrain, heads, "4", 1, 1024, "heads", "attention heads; divides width"),
    FL_INT(fl_deck_pretrain, kv_heads, "0", 0, 1024, "heads",
        "llama: key-value heads; divides heads; 0 = heads"),
    FL_INT(fl_deck_pretrain, ff, "0", 0, 262144, "",
        "width of the MLP; 0 = 4 width (gpt2), 8/3 width rounded to 16 (llama)"),
    FL_INT(fl_deck_pretrain, context, "128", 2, 1e6, "tokens", "longest sequence"),
    FL_REAL(
        fl_deck_pretrain, rope_theta, "10000", 1, 1e9, "", "llama: base of the rotary frequencies"),
    FL_BOOL(fl_deck_pretrain, tied, "true", "the output layer is the embedding"),
    FL_FREE_TEXT(fl_deck_pretrain, out, "", "folder of the new model"),
    FL_END,
};
static const fl_field blas_fields[] = {
    FL_INT(fl_deck_blas, threads, "1", 1, 1024, "threads",
        "OpenBLAS threads per rank, over the environment; the bits depend on it"),
    FL_END,
};

#define DECK_SECTIONS(X)                                                                           \
    X(run, "the run as a whole")                                                                   \
    X(model, "the frozen base model")                                                              \
    X(adapter, "the low-rank adapters")                                                            \
    X(data, "the records and how they are read")                                                   \
    X(partition, "which samples belong to which client")                                           \
    X(clients, "how clients differ")                                                               \
    X(cohort, "who takes part in a round")                                                         \
    X(train, "local training of a client; `fedlora pretrain` trains by it too")                    \
    X(method, "the method; its own keys are in a section of its name")                             \
    X(codec, "compression of messages")                                                            \
    X(svd, "singular value decompositions on the server")                                          \
    X(eval, "evaluation during the run")                                                           \
    X(checkpoint, "checkpoints")                                                                   \
    X(pretrain, "the shape of the model that `fedlora pretrain` makes")                            \
    X(blas, "the linear algebra library")

#define AS_SECTION(name, help) {#name, help, name##_fields, sizeof(fl_deck_##name)},
#define AS_PLACE(name, help) offsetof(fl_deck, name),
static const fl_section sections[] = {DECK_SECTIONS(AS_SECTION)};
static const size_t places[] = {DECK_SECTIONS(AS_PLACE)};
enum { NBUILTIN = (int)FL_COUNT(sections) };

const fl_section *fl_deck_sections(int *n)
{
    *n = NBUILTIN;
    return sections;
}

int deck_nsections(int nextra)
{
    return NBUILTIN + nextra;
}

const fl_section *deck_section(const fl_section *extra, int i)
{
    return i < NBUILTIN ? &sections[i] : &extra[i - NBUILTIN];
}

void *deck_struct(const fl_deck *deck, int i)
{
    if (i >= NBUILTIN) {
        return deck->config[i - NBUILTIN];
    }
    return (char *)(uintptr_t)deck + places[i]; /* the caller knows whether it may write */
}

int deck_find_section(const fl_section *extra, int nextra, const char *name)
{
    for (int i = 0; i < deck_nsections(nextra); i++) {
        if (strcmp(deck_section(extra, i)->name, name) == 0) {
            return i;
        }
    }
    return -1;
}

int deck_count_fields(const fl_section *section)
{
    int n = 0;

    while (section->fields && section->fields[n].type != FL_T_END) {
        n++;
    }
    return n;
}

int deck_find_field(const fl_section *section, const char *key)
{
    for (int i = 0; i < deck_count_fields(section); i++) {
        if (strcmp(section->fields[i].name, key) == 0) {
            return i;
        }
    }
    return -1;
}

bool deck_in_use(const fl_deck *deck, int i)
{
    return i < NBUILTIN || strcmp(deck_section(deck->extra, i)->name, deck->method.name) == 0;
}
