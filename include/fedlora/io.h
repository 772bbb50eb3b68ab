/* io.h - files: safetensors, Hugging Face folders, PEFT adapters, checkpoints and metrics in (parallel) HDF5.
 * <hdf5.h> stays in src/io and src/data/dataset*.c. Writers write NAME.tmp, fsync, rename, fsync the directory. Disk full and all other
 * failures are FL_EFILE with path and reason (strerror). Readers trust nothing: sizes checked in 64 bit before any allocation. */
#ifndef FL_IO_H
#define FL_IO_H
#include "fedlora/comm.h"
#include "fedlora/deck.h"
#include "fedlora/nn.h"

/* ---- plain files ---- local */
fl_err fl_file_read(const char *path, char **bytes, size_t *n);         /* owned by the caller (fl_free), one extra 0 byte behind */
fl_err fl_file_write(const char *path, const void *bytes, size_t n);    /* tmp, fsync, rename, fsync dir */
fl_err fl_make_dirs(const char *path);                                  /* mkdir -p */
bool fl_path_exists(const char *path);

/* ---- safetensors (formats.md 4) ---- local; F32, F16, BF16, F64 are read (converted to float), F32 written */
typedef struct fl_st_entry { char *name; char dtype[12]; int ndims; int64_t dims[8]; size_t begin, end; } fl_st_entry; /* offsets into data */
typedef struct fl_st { char *path; int n; fl_st_entry *entry; size_t data; char *metadata; int fd; const unsigned char *bytes; size_t nbytes; } fl_st; /* mmapped or memory */
fl_err fl_st_open(const char *path, fl_st *st);                         /* all checks of formats.md 4.1 */
fl_err fl_st_parse(const unsigned char *bytes, size_t n, const char *name, fl_st *st); /* the same from memory (fuzzing); bytes borrowed */
void fl_st_close(fl_st *st);
int fl_st_find(const fl_st *st, const char *name);                      /* -1 = none */
fl_err fl_st_read(const fl_st *st, int entry, size_t n, fl_real *out);  /* n must be its number of elements; NaN/Inf refused (FL_ENUM) */
typedef struct fl_st_out { const char *name; int ndims; int64_t dims[4]; const fl_real *x; } fl_st_out; /* borrowed */
fl_err fl_st_write(const char *path, int n, const fl_st_out *out, const char *metadata_format /* "pt" */);

/* ---- Hugging Face folders: GPT-2 and Llama ---- */
fl_err fl_hf_config(const char *dir, fl_model *m);                      /* config.json -> completed model; unsupported things are refused by name. Local. */
/* the same from memory; name for the sentences. Survives any bytes (fuzzed). */
fl_err fl_hf_config_parse(const char *json, size_t n, const char *name, fl_model *m);
/* model.safetensors -> base (layout of m->tensor): names with or without the prefix, Conv1D transposed, q k v and gate up stacked. Local. */
fl_err fl_hf_load(const char *dir, const fl_model *m, fl_real *base);
/* Writes config.json + model.safetensors (+ tokenizer note) that transformers loads. w [ntensors] pointers. Local (one rank calls). */
fl_err fl_hf_save(const char *dir, const fl_model *m, const fl_real *const *w);
/* Collective: config and one copy of the weights per node in a shared segment; every node's leader reads; hashes agreed. */
typedef struct fl_base { fl_model model; fl_share share; const fl_real **w; uint64_t hash; char *path; } fl_base; /* owned; w [ntensors] into the segment */
fl_err fl_base_load(fl_ctx *ctx, const char *dir, const char *share_dir, fl_base *base);
uint64_t fl_base_hash(fl_ctx *ctx, const fl_base *base);                /* collective; of the weights now; FL_REQUIREs that all nodes agree */
void fl_base_destroy(fl_base *base);

/* ---- PEFT adapters ---- local (one rank calls) */
/* Writes adapter_config.json + adapter_model.safetensors that PEFT loads on the base folder: base_name goes to base_model_name_or_path. GPT-2: q, k, v of a
 * block become one c_attn adapter (rows of B block-wise, ranks added, scales folded in, exact). Unequal r: anchored rank_pattern, alpha_pattern. */
fl_err fl_peft_save(const char *dir, const fl_model *m, const fl_adapter *ad, double alpha, bool rslora, const char *base_name);
/* Reads one back onto a LoRA space over all sites of m (r 0 where absent; s folded into B so that scale is exact: space made with alpha <= 0). */
fl_err fl_peft_load(const char *dir, const fl_model *m, fl_spaces *reg, fl_adapter **ad);
/* the same from memory: json = adapter_config.json called name, st = the opened tensors. Survives any bytes (fuzzed). */
fl_err fl_peft_parse(const char *json, size_t n, const char *name, const fl_st *st, const fl_model *m, fl_spaces *reg, fl_adapter **ad);

/* ---- PEFT adapters of any model, many at a time ---- local: whoever needs a set opens it by itself, and all get the same one. Opening reads
 * every adapter_config.json and every header, no numbers. A site is a module that has a LoRA pair in some folder: y = W x + s B (A x), W m x n;
 * a folder without it has r = 0 there. Everything that makes the change more than s B A, or not relative to the same W, is refused by name;
 * tensors saved in full (heads of modules_to_save, biases, token embeddings) are extras, which every folder must have. */
typedef struct fl_peft_site {
    char *name;                 /* owned: "model.layers.3.self_attn.q_proj"; names of transformers 4 and 5 are one site, called as in 5 */
    fl_site site;               /* site.name: short and unique, "3.q_proj" */
    bool embedding;             /* the change is s (B A)^T: A r x tokens, B width x r */
    int nfolders;               /* that have it */
} fl_peft_site;
typedef struct fl_peft_extra { char *name; int ndims; int64_t dims[4]; size_t n; } fl_peft_extra; /* owned name: "classifier.weight"; n elements */
typedef struct fl_peft_set {
    int nfolders, nsites, nextras, nrslora; /* nrslora: folders with use_rslora */
    char **folder;              /* owned [nfolders]: where adapter_config.json is: as given, or a sub-folder of it */
    fl_peft_site *site;         /* owned [nsites], sorted by name, numbers by value: layers.2 before layers.10 */
    fl_peft_extra *extra;       /* owned [nextras], sorted likewise */
    const char *dtype;          /* "F32", "F16", "BF16", "F64" if all tensors are of it, else NULL */
    fl_text notes;              /* lines: what the user should know, e.g. that the names of the base models differ */
    struct peft_set_inside *inside;
} fl_peft_set;
typedef struct fl_peft_options {
    bool join_prefixes;         /* "layers.0.x" of one folder and "model.layers.0.x" of another are the same module (else: refused) */
    bool any_init;              /* accept initialisations that change the base (PiSSA, OLoRA, ..): all folders have the same changed base */
} fl_peft_options;
/* dir [n]; options NULL = zero. Several mistakes are reported together. Descriptors are opened as needed: n may be beyond the limit of open files. */
fl_err fl_peft_set_open(int n, const char *const *dir, const fl_peft_options *options, fl_peft_set **set);
/* the same from memory, all of it borrowed: json [n] = adapter_config.json called name, st = its tensors. Survives any bytes (fuzzed). */
typedef struct fl_peft_source { const char *name, *json; size_t n; const fl_st *st; } fl_peft_source;
fl_err fl_peft_set_parse(int n, const fl_peft_source *source, const fl_peft_options *options, fl_peft_set **set);
void fl_peft_set_close(fl_peft_set **set);
int fl_peft_set_r(const fl_peft_set *s, int folder, int site, double *scale /* s; may be NULL */); /* 0 = absent */
/* a (r x n), b (m x r) as in the file, s not applied; r must not be 0. NaN, Inf: FL_ENUM. A file that changed since: FL_EFILE. */
fl_err fl_peft_set_read(const fl_peft_set *s, int folder, int site, fl_real *a, fl_real *b);
fl_err fl_peft_set_read_extra(const fl_peft_set *s, int folder, int extra, fl_real *x /* extra[].n */);

/* One adapter out: sites and extras of a set, put in any order. Nothing is in memory but the piece being written. */
typedef enum fl_peft_dtype { FL_PEFT_F32, FL_PEFT_F16, FL_PEFT_BF16 } fl_peft_dtype;
typedef struct fl_peft_how {
    const int *r;               /* [nsites]; 0 = left out */
    const double *scale;        /* [nsites] s of the pairs that will be put, NULL = 1. lora_alpha = r s: PEFT finds the same s */
    bool rslora;                /* lora_alpha = sqrt(r) s and use_rslora */
    fl_peft_dtype dtype;
    int names;                  /* as transformers 4 or 5 calls modules, where they differ; 0 = as the first folder that shows it */
    bool no_extras;             /* a second adapter beside one that has them */
    const char *base_name;      /* NULL = as in the first folder */
} fl_peft_how;
typedef struct fl_peft_out fl_peft_out;
/* Makes dir; dir must not be a folder of the set. The set must outlive *out; of how, r and scale are copied. */
fl_err fl_peft_out_begin(const fl_peft_set *s, const char *dir, const fl_peft_how *how, fl_peft_out **out);
fl_err fl_peft_out_site(fl_peft_out *out, int site, const fl_real *a, const fl_real *b); /* once for every r > 0; r x n, m x r */
fl_err fl_peft_out_extra(fl_peft_out *out, int extra, const fl_real *x);                /* once for every extra, unless no_extras */
/* All was put: the weights get their name, then the config, without which the folder is no adapter. rounding (may be NULL): F16, BF16:
 * ||x - written|| / ||x|| over all numbers, 0 for F32. *out is freed, also on failure. */
fl_err fl_peft_out_commit(fl_peft_out **out, double *rounding);
void fl_peft_out_drop(fl_peft_out **out); /* gives up: nothing of it stays in dir */

/* ---- checkpoints ---- */
typedef enum fl_array_type { FL_F32, FL_F64, FL_I64, FL_U8 } fl_array_type;
typedef struct fl_array {       /* a replicated array of the server or the run */
    char name[120];             /* HDF5 path, e.g. "server/global", "server/keep/r/0", "run/last_seen" */
    char what[160], unit[24], axes[80];
    fl_array_type type;
    size_t n;
    void *x;                    /* write: borrowed; read: owned by the snapshot */
} fl_array;
typedef struct fl_checkpoint_how { /* zero = the defaults; none of it changes a byte of the file */
    int writers;                /* ranks that write the large data sets, the others send them theirs; 0 = all */
    int stripe_count, stripe_size; /* hints to MPI-IO for new files (striping_factor, striping_unit); 0 = the file system's own */
    bool independent;           /* MPI-IO's independent writes instead of collective ones (measured by bench) */
    size_t slab;                /* most bytes per rank and call, 0 = 256 MiB; tests make it small */
} fl_checkpoint_how;
typedef struct fl_snapshot {
    int round, rounds;          /* rounds done; planned */
    uint64_t state;             /* the state digest */
    int base_revision;
    char *deck;                 /* full dump; read: owned */
    char *versions;             /* free text: program, libraries; read: owned */
    char *columns;              /* names of the metric columns, comma-separated; read: owned */
    int narrays;
    fl_array *array;            /* [narrays]; read: owned */
    int nclients;
    fl_store *store;            /* per-client blobs: written from it; read into it (created by the caller) */
    size_t nbase;               /* elements of the base saved dense, 0 = as loaded */
    fl_real *base;              /* the shared segment of the node, equal on all nodes; every writer writes its slabs, every node's leader reads */
    fl_checkpoint_how how;      /* write only */
} fl_snapshot;
/* Collective. Parallel HDF5, one file: PATH.tmp, collective contiguous writes in slabs of at most 256 MiB per rank, the number of calls agreed by MAX,
 * every return code agreed; after H5Fclose writers open and fsync, barrier, rank 0 renames, fsyncs the directory. Every dataset carries
 * description, unit, axes and xxh3 (hash of its bytes; client data: sum of hash(blob, seed id)). *bytes: file size. */
fl_err fl_checkpoint_write(fl_ctx *ctx, const char *path, const fl_snapshot *s, double *bytes);
/* The same file, byte for byte, while the run goes on. Collective. Everything is copied to rank 0, which makes the file with its small contents; a thread
 * of rank 0 then writes the large data sets (POSIX only: no MPI, no HDF5, no memory), seals, fsyncs and renames. *s may change as soon as this
 * returns. how.writers is without meaning. FL_EFILE: nothing runs. Memory on rank 0: the arrays, client state and base, once more. */
typedef struct fl_checkpoint_job fl_checkpoint_job;
fl_err fl_checkpoint_begin(fl_ctx *ctx, const char *path, const fl_snapshot *s, fl_checkpoint_job **job);
bool fl_checkpoint_done(fl_ctx *ctx, const fl_checkpoint_job *job); /* collective: end would not wait */
/* Collective: waits, agrees on the result, frees. seconds: from begin until the file had its name. FL_EFILE: no file of that name came, nor PATH.tmp stays. */
fl_err fl_checkpoint_end(fl_ctx *ctx, fl_checkpoint_job **job, double *bytes, double *seconds);
fl_err fl_checkpoint_join(fl_checkpoint_job **job); /* local, for ways out on which ranks no longer agree; NULL is fine; the error is rank 0's alone */
/* Collective. Verifies every hash; FL_EFILE with the reason when anything is wrong (then *s is freed). nbase > 0: into base (must fit). */
fl_err fl_checkpoint_read(fl_ctx *ctx, const char *path, fl_store *store, size_t nbase, fl_real *base, fl_snapshot *s);
/* Local (serial HDF5 access through the same library): header only, for choosing: deck, round, state, base_revision, nclients; FL_EFILE if unreadable. */
fl_err fl_checkpoint_peek(const char *path, fl_snapshot *s);
void fl_snapshot_free(fl_snapshot *s); /* of what a read made */
/* newest first: "DIR/round-000020.h5" ...; owned list of owned names; stale .tmp files are listed apart and may be removed */
int fl_checkpoint_list(const char *dir, char ***paths);
void fl_checkpoint_prune(const char *dir, int keep); /* deletes all but the newest keep, and stale .tmp files */
void fl_checkpoint_prune_upto(const char *dir, int keep, int round); /* the same, but files of later rounds neither count nor go */

/* ---- inspect, verify, diff: text about a checkpoint, data set, safetensors file or adapter folder ---- local */
fl_err fl_inspect(const char *path, fl_text *t);
fl_err fl_verify(const char *path, fl_text *t);                     /* FL_EFILE if not whole */
fl_err fl_diff(const char *a, const char *b, fl_text *t);           /* FL_EDIFF if different: first differing field, largest difference per field */

/* ---- metrics ---- rank 0 only */
typedef struct fl_metrics { int ncolumns, nrows; char **column; char **unit; double *x; } fl_metrics; /* owned; x [nrows][ncolumns], NaN = not evaluated; first column round */
int fl_metrics_column(fl_metrics *m, const char *name, const char *unit); /* index, added (NaN in old rows) when new */
void fl_metrics_row(fl_metrics *m);                                 /* a new row of NaN */
void fl_metrics_set(fl_metrics *m, int column, double value);       /* in the last row */
void fl_metrics_free(fl_metrics *m);
fl_err fl_metrics_csv(const fl_metrics *m, const char *path);       /* rounds.csv: %.9g, integers whole, NaN = empty */
fl_err fl_metrics_h5(const fl_metrics *m, const char *path, int nclients_rows, int nclient_columns, const char *const *client_columns,
    const double *client_x /* per-client curves [rows][columns]: round, client, loss, ...; NULL = none */);
const char *fl_hdf5_name(void); /* "HDF5 1.10.8" */

/* ---- bench ---- Collective. Adds lines to t: a checkpoint of 200 MB of client state into dir by 1, 2, 4 .. all ranks, collectively and independently, and in
 * the background, each with its ratio to write() and fsync() of as many bytes by one process in the same minute. */
fl_err fl_bench_checkpoint(fl_ctx *ctx, const char *dir, fl_text *t);
#endif
