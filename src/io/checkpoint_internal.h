/* checkpoint_internal.h - inside src/io: a checkpoint opened by one rank, for read, peek, inspect,
 * verify and diff. */
#ifndef FL_CHECKPOINT_INTERNAL_H
#define FL_CHECKPOINT_INTERNAL_H
#include "h5.h"

enum {
    CK_CHUNK =
        1 << 20, /* elements: unit of the hash of /base, so that any cut at chunks can sum it */
    CK_PARALLEL = 1 << 20, /* bytes: smaller arrays are written by rank 0 alone */
    CK_STAGE = 8 << 20, /* bytes: client blobs are copied together into pieces of at most so many;
                           stays in a cache (64 MiB cost twice the time of the write itself) */
    CK_TEXT_LIMIT = 64 << 20 /* bytes of /deck, /versions, /metrics_columns */
};
#define CK_SLAB ((size_t)256 << 20) /* bytes per rank and collective call */

typedef struct ck_file {
    const char *path; /* borrowed */
    hid_t file;
    int64_t bytes; /* size of the file */
    fl_snapshot s; /* owned; array[].x is NULL until ck_array; nbase set, base NULL */
    fl_array_type base_type;
    int64_t nids;         /* clients with state */
    int64_t *id, *offset; /* owned [nids], [nids + 1]; NULL until ck_clients */
    size_t state_bytes;
} ck_file;

/* Seal, header, names and sizes of everything. On failure nothing stays open. Local. */
fl_err ck_open(const char *path, ck_file *c);
void ck_close(ck_file *c);
/* Reads array i into s.array[i].x and checks its hash. */
fl_err ck_array(ck_file *c, int i);
void ck_array_drop(ck_file *c, int i);
/* Reads and checks the tables of ids and offsets. */
fl_err ck_clients(ck_file *c);
/* A data set to be read piece by piece. */
fl_err ck_open_set(const ck_file *c, const char *name, hid_t *set, uint64_t *xxh3);
fl_err ck_read(
    const ck_file *c, const char *name, hid_t set, hid_t mem, size_t first, size_t n, void *x);
/* Sum of the hashes of the blobs of clients [lo, hi) of the table; `put` (may be NULL) gets each.
 * Needs ck_clients. */
typedef void (*ck_blob)(void *to, int id, const void *blob, size_t bytes);
fl_err ck_blobs(const ck_file *c, int64_t lo, int64_t hi, ck_blob put, void *to, uint64_t *sum);
/* Sum of the hashes of chunks [lo, hi) of /base, read through a buffer of one chunk. */
fl_err ck_base_chunks(const ck_file *c, size_t lo, size_t hi, uint64_t *sum);
size_t ck_nchunks(size_t nbase);
fl_err ck_hash_error(const ck_file *c, const char *name); /* "dataset /NAME: hash differs ..." */
/* Checks every hash of an open checkpoint. Serial. */
fl_err ck_verify(ck_file *c);

/* ---- writing ---- */
/* A large data set, whose space is reserved and which step 2 fills. */
typedef struct ck_place {
    uint64_t at; /* of its first byte in the file */
    size_t bytes;
    const void *x; /* borrowed: all of it, or NULL = the clients' blobs */
} ck_place;

typedef struct ck_writer {
    fl_ctx *ctx;          /* borrowed */
    const fl_snapshot *s; /* borrowed */
    const char *path;     /* borrowed */
    char *tmp;            /* owned */
    uint64_t *hash;       /* owned [narrays] */
    int nmine;            /* client blobs on this rank */
    size_t *client_bytes; /* owned [size]: bytes of the blobs of every rank */
    size_t state_bytes;
    uint64_t state_hash, base_hash;
    int64_t nids, *id, *offset; /* owned, rank 0: [nids], [nids + 1] */
    h5_range *range;            /* owned, rank 0: the large data sets' places, for the seal */
    int nranges;
    ck_place *place; /* owned, rank 0: what is not yet written */
    int nplaces;
    double bytes; /* rank 0: size of the finished file */
    /* who writes: the ranks are cut into contiguous groups with one writer each */
    int nwriters, iwriter; /* iwriter: which group this rank is in */
    int writer;            /* the rank that writes for this one */
    int lo, hi;            /* ranks lo .. hi - 1 are the group */
    MPI_Comm team;         /* the writers; NULL on other ranks; the world (borrowed) if all write */
    bool independent;      /* writers: MPI-IO's independent writes instead of collective ones */
} ck_writer;
size_t ck_array_bytes(const fl_array *a);
bool ck_is_parallel(const fl_array *a); /* large enough for several ranks to share the writing */
void ck_writer_free(ck_writer *w);      /* collective among the writers */
/* Collective: hashes, the tables of clients, and PATH.tmp with everything but its large data sets.
 */
fl_err ck_prepare(ck_writer *w);
/* Collective: fills the large data sets of w->tmp, fsyncs. */
fl_err ck_write_parallel(ck_writer *w);

/* ---- writers ---- */
/* Collective. n = 0 or more than there are ranks: all. */
void ck_choose_writers(ck_writer *w, int n);
MPI_Info ck_hints(const fl_checkpoint_how *how); /* owned; MPI_INFO_NULL = none */

/* The blobs of a group, one after another, come to its writer piece by piece: every rank of the
 * group asks for the same pieces. */
typedef struct ck_blobs_out {
    const ck_writer *w; /* borrowed */
    size_t first;       /* of the group, in /clients/state */
    size_t bytes;       /* of the group */
    size_t before;      /* of the group's lower ranks */
    int next;           /* blob of this rank that the next byte comes from */
    size_t done;        /* bytes of it already given */
    char *stage;        /* owned [min(bytes, piece)]; members: of their own bytes */
} ck_blobs_out;
void ck_blobs_begin(const ck_writer *w, size_t piece, ck_blobs_out *b);
/* Bytes [at, at + n) of the group to `to` on its writer. */
void ck_blobs_next(ck_blobs_out *b, size_t at, size_t n, char *to);
void ck_blobs_end(ck_blobs_out *b);
#endif
