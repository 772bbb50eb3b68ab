/* base.h - what every file uses: errors, the MPI context, log, memory, arena, timers, random numbers, text, hashes.
 * Lowest layer: includes nothing of ours. */
#ifndef FL_BASE_H
#define FL_BASE_H
#include <mpi.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define FL_VERSION "0.1.0"

/* float in the program; double in gradient tests (make builds the same sources twice) */
#ifdef FL_REAL_DOUBLE
typedef double fl_real;
#define FL_MPI_REAL MPI_DOUBLE
#else
typedef float fl_real;
#define FL_MPI_REAL MPI_FLOAT
#endif

/* ---- errors ----
 * World's mistakes (deck, file, library status) are returned as fl_err with a sentence that says what, where, what to
 * do. Bugs stop at once (FL_REQUIRE). Out of memory aborts with label and size. */
#define FL_ERRORS(X)                                   \
    X(FL_EUSAGE, 2, "wrong use of the command line")   \
    X(FL_EDECK, 3, "the deck or the data are wrong")   \
    X(FL_ESHAPE, 3, "shapes do not fit")               \
    X(FL_EFILE, 4, "the file system refused")          \
    X(FL_ENUM, 5, "the numbers went wrong")            \
    X(FL_EDIFF, 1, "the files differ")                 \
    X(FL_ESTOP, 75, "stopped on purpose, run me again") \
    X(FL_EBUG, 70, "a bug in fedlora")
#define FL_AS_ENUM(name, exit_code, text) name,
typedef enum fl_err { FL_OK, FL_ERRORS(FL_AS_ENUM) FL_NERRORS } fl_err;

/* Records a sentence (printf) and returns err. Several calls collect: one line each, duplicates dropped. Local. */
fl_err fl_fail(fl_err err, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *fl_error_text(void); /* the recorded sentences, lines separated by \n; "" = none. Owned by base. */
void fl_error_clear(void);
void fl_error_set(const char *text); /* replaces all recorded sentences */
int fl_exit_code(fl_err err);        /* the exit code of interface.md */
_Noreturn void fl_bug(const char *file, int line, const char *what); /* says rank, file, line; MPI_Abort(70) */

#define FL_TRY(call)             \
    do {                         \
        fl_err e_ = (call);      \
        if (e_ != FL_OK) {       \
            return e_;           \
        }                        \
    } while (0)
#define FL_REQUIRE(x)                          \
    do {                                       \
        if (!(x)) {                            \
            fl_bug(__FILE__, __LINE__, #x);    \
        }                                      \
    } while (0)
#define FL_BIT(i) (1u << (i))
#define FL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define FL_MAX(a, b) ((a) > (b) ? (a) : (b))
#define FL_COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- the MPI context ---- `rank` and `size` are MPI's; a LoRA rank is `r`. Nobody else writes MPI_COMM_WORLD. */
typedef struct fl_ctx {
    MPI_Comm world;            /* owned duplicate */
    int rank, size;
    MPI_Comm node;             /* owned: the ranks that share memory with this one */
    int node_rank, node_size;
    MPI_Comm leaders;          /* owned: node_rank 0 of every node; MPI_COMM_NULL on other ranks */
    int inode, nnodes;         /* which node this rank is on, in order of its lowest rank */
    FILE *log;                 /* rank 0: OUT/log.txt or NULL */
    bool quiet;                /* rank 0 prints nothing on stdout */
    struct fl_timer *timer;    /* owned */
} fl_ctx;
/* Collective over comm, which is duplicated. Also sets the BLAS thread count's environment; see la.h. */
fl_err fl_ctx_create(MPI_Comm comm, fl_ctx **ctx);
/* Collective over ctx->world: ranks of equal colour (>= 0) get a context of their own, in the same order; quiet, without a log. */
fl_err fl_ctx_split(fl_ctx *ctx, int colour, fl_ctx **part);
void fl_ctx_destroy(fl_ctx **ctx); /* collective */

/* Collective: the same error on every rank (that of the lowest failing rank; its sentences, prefixed "rank R: " when
 * size > 1 and the sentences are not the same everywhere, are recorded on all ranks). FL_OK only if OK on all. */
fl_err fl_agree(fl_ctx *ctx, fl_err err);
#define FL_TRY_ALL(ctx, call) FL_TRY(fl_agree((ctx), (call)))

/* ---- log ---- rank 0 only, others ignored; to stdout (unless quiet) and to ctx->log. A newline is added. */
void fl_log(fl_ctx *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fl_warn(fl_ctx *ctx, const char *format, ...) __attribute__((format(printf, 2, 3))); /* "warning: ..." to stderr and the log file */

/* ---- memory ---- zeroed, 64-byte aligned, counted; aborts (exit 70) with label and size when there is none */
void *fl_alloc(const char *label, size_t n, size_t each); /* n*each = 0 gives a valid pointer */
void *fl_realloc(const char *label, void *old, size_t n, size_t each); /* grown part is not zeroed */
void fl_free(void *x);                                     /* NULL is fine */
char *fl_strdup(const char *s);
size_t fl_memory_now(void), fl_memory_peak(void);          /* bytes through fl_alloc on this rank */
size_t fl_memory_resident(void), fl_memory_pss(void);      /* bytes, VmHWM and Pss of this process from /proc; 0 = unknown */
size_t fl_memory_private(void);                            /* bytes, RssAnon: what it holds now, without files and shared segments */

/* ---- arena ---- round-life memory: taken piece by piece, given back at once; pieces never move */
typedef struct fl_arena fl_arena;
fl_arena *fl_arena_create(const char *label);
void *fl_arena_take(fl_arena *arena, size_t n, size_t each); /* zeroed, 64-byte aligned */
typedef struct fl_mark { int chunk; size_t used; } fl_mark;
fl_mark fl_arena_mark(const fl_arena *arena);
void fl_arena_reset(fl_arena *arena, fl_mark mark);         /* gives back all taken since; (fl_mark){0} = everything */
size_t fl_arena_peak(const fl_arena *arena);
void fl_arena_destroy(fl_arena **arena);

/* ---- timers ---- exclusive: starting a phase pauses the one around it. Phases nest. */
#define FL_PHASES(X) \
    X(setup) X(plan) X(exchange) X(train) X(wait) X(server) X(gather) X(sum) X(svd) X(merge) X(eval) X(metrics) X(checkpoint) X(other)
#define FL_AS_PHASE(name) FL_PHASE_##name,
typedef enum fl_phase { FL_PHASES(FL_AS_PHASE) FL_NPHASES } fl_phase;
extern const char *const fl_phase_name[FL_NPHASES];
double fl_now(void);                                /* seconds, monotonic */
void fl_phase_begin(fl_ctx *ctx, fl_phase phase);
void fl_phase_end(fl_ctx *ctx, fl_phase phase);
double fl_phase_seconds(const fl_ctx *ctx, fl_phase phase); /* so far, this rank */
/* MPI bytes that comm's functions count, this rank; the simulator's own ledger, never mixed with traffic */
void fl_mpi_count(fl_ctx *ctx, double bytes);
double fl_mpi_bytes(const fl_ctx *ctx);

/* ---- random numbers ---- Philox4x32-10 (Random123): value = f(seed, purpose, id, round, index). No state exists.
 * purpose < 256, id >= 0, |round| < 2^23. Public purposes; methods' own draws are FL_RNG_METHOD + what. */
enum { FL_RNG_COHORT = 1, FL_RNG_LOSS, FL_RNG_BATCH, FL_RNG_DROPOUT, FL_RNG_INIT, FL_RNG_PARTITION, FL_RNG_SYNTHETIC,
    FL_RNG_WEIGHTS, FL_RNG_CLIENT_R, FL_RNG_SPLIT, FL_RNG_BENCH, FL_RNG_TEST, FL_RNG_METHOD = 64 };
void fl_rng_block(uint64_t seed, int purpose, int id, int round, uint64_t index, uint32_t out[4]);
double fl_rng_uniform(uint64_t seed, int purpose, int id, int round, uint64_t index); /* [0, 1), 53 bits */
double fl_rng_normal(uint64_t seed, int purpose, int id, int round, uint64_t index);  /* Box-Muller, one per index */
void fl_rng_shuffle(uint64_t seed, int purpose, int id, int round, int n, int *x);    /* Fisher-Yates */
/* k of 0..n-1, every set as likely as any other, ascending in x [k]; costs k, not n */
void fl_rng_subset(uint64_t seed, int purpose, int id, int round, int n, int k, int *x);

/* ---- text ---- a growing string */
typedef struct fl_text { char *s; size_t n, room; } fl_text; /* s owned, always terminated once anything was added */
void fl_text_add(fl_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fl_text_bytes(fl_text *t, const void *x, size_t n);
void fl_text_free(fl_text *t);
int fl_edit_distance(const char *a, const char *b);          /* Levenshtein, for "did you mean" */
const char *fl_bytes_text(double bytes, char buffer[32]);    /* "1.5 MiB" */

/* ---- hashes ---- XXH3, 64 bits */
uint64_t fl_hash(const void *x, size_t n, uint64_t seed);
uint64_t fl_hash_text(const char *s);

/* ---- isolation ---- Runs job in a forked child, so that a crash of a library on a damaged file becomes FL_EFILE. Its sentences and
 * what it adds to t come back; nothing else does. job must only read; no MPI in it. */
typedef fl_err fl_isolated_job(const char *path, void *arg, fl_text *t);
fl_err fl_isolated(fl_isolated_job *job, const char *path, void *arg, fl_text *t);
#endif
