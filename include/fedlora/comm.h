/* comm.h - what the ranks do together: blocks of work, the order-free sum, memory shared on a node, collecting by
 * owner, per-client state at home ranks, the check that replicated data are equal. The only layer above base with MPI
 * (besides la/grid, io, app). Everything counts its bytes with fl_mpi_count. */
#ifndef FL_COMM_H
#define FL_COMM_H
#include "fedlora/base.h"

#include <signal.h>

/* ---- layout: ownership is an offset array, the same on all ranks ----
 * Contiguous blocks of items 0..n-1 with nearly equal sums of cost[i] >= 0; first[size + 1], first[0] = 0, first[size] = n.
 * A pure function of (n, cost, size). Local. Optimal or within one item of the average: block b ends where the prefix
 * sum is nearest to (b + 1) / size of the total. */
void fl_layout(int n, const double *cost, int size, int *first);
int fl_layout_owner(int size, const int *first, int item); /* binary search */
int fl_home(int nclients, int size, int id);               /* home rank of a client: contiguous, even */
int fl_home_first(int nclients, int size, int rank);       /* lowest id at home on that rank */

/* ---- the order-free sum (design 2.2) ----
 * sum of p * x over any terms in any order on any ranks, the same bits: each term goes onto a fixed grid as two int64.
 * unit: values are measured in 2^unit (0 for adapters). Absolute error 2^-79 * 2^unit per term. */
typedef struct fl_sum fl_sum;
fl_sum *fl_sum_create(size_t n, int unit);
void fl_sum_destroy(fl_sum **s);
/* element at + i gets p * x[i], i < n. FL_ENUM if p x / 2^unit is NaN, Inf or >= 2^34 in magnitude (sentence gives the index; nothing is added). */
fl_err fl_sum_add(fl_sum *s, size_t at, size_t n, const fl_real *x, double p);
fl_err fl_sum_add_double(fl_sum *s, size_t at, size_t n, const double *x, double p);
fl_err fl_sum_reduce(fl_ctx *ctx, fl_sum *s); /* collective: every rank then holds the sum; at most 2^28 elements an MPI call */
void fl_sum_get(const fl_sum *s, size_t at, size_t n, double *y);      /* before reduce: this rank's part */
void fl_sum_limbs(const fl_sum *s, size_t i, int64_t *h, int64_t *l);  /* normalised: for tests and masks */

/* ---- memory shared on a node (design 1.3) ----
 * One segment per node: shm_open in share_dir ("" = /dev/shm through shm_open; else a file there), reserved with
 * posix_fallocate by node rank 0, result agreed by all ranks of the job, mapped by all, unlinked at once.
 * Collective over ctx->world. Errors: FL_EFILE on all ranks, naming the directory, its free space and the size wanted,
 * and model.share_dir as the remedy. x: 64-byte aligned, zeroed, writable by all ranks of the node. */
typedef struct fl_share { void *x; size_t bytes; } fl_share;
fl_err fl_share_create(fl_ctx *ctx, const char *share_dir, const char *what, size_t bytes, fl_share *share);
void fl_share_destroy(fl_share *share);       /* local: unmaps */
void fl_share_fence(fl_ctx *ctx);             /* collective over the node: writes before are seen after */

/* ---- small collectives ---- sizes may differ by rank; 64-bit safe (cut into int-sized MPI calls) */
void fl_bcast(fl_ctx *ctx, int from, void *x, size_t bytes);
fl_err fl_bcast_text(fl_ctx *ctx, char **s, size_t *n); /* from rank 0; others get an owned copy */
/* x[i] is non-zero on one rank at most; afterwards everywhere. Exact: sums of one term. */
void fl_fill_in(fl_ctx *ctx, size_t n, double *x);
double fl_min(fl_ctx *ctx, double x);
double fl_max(fl_ctx *ctx, double x);
double fl_total(fl_ctx *ctx, double x); /* rank-count dependent rounding: for reports only */
int64_t fl_total_int(fl_ctx *ctx, int64_t x);
uint64_t fl_total_hash(fl_ctx *ctx, uint64_t x);        /* sum mod 2^64 */
void fl_gather_doubles(fl_ctx *ctx, int n, const double *mine, double *all); /* every rank: all[size][n] */
/* Pieces by owner. Each rank holds bytes for every owner: send (contiguous, ordered by owner), nsend[size] bytes each;
 * gets from every rank r its piece for me, in rank order. *got owned by the caller (fl_free), ngot[size] filled. Collective. */
void fl_exchange(fl_ctx *ctx, const void *send, const size_t *nsend, void **got, size_t *ngot);
/* Collective among one rank per node: x goes from world rank `from` to the rank of every node whose node_rank is
 * `to_node_rank` (min'ed to the node's size - 1). Returns true on the ranks that hold x afterwards: one rank per node, so `from`
 * itself gets false unless it is the one of its node. Others may pass x NULL. The first call is collective over the world. */
bool fl_to_nodes(fl_ctx *ctx, int from, int to_node_rank, void *x, size_t bytes);

/* ---- replicated state, checked ---- collective; false if any rank holds other bytes */
bool fl_same_everywhere(fl_ctx *ctx, uint64_t hash);

/* ---- per-client state at home ranks ----
 * A client's state is one blob of bytes (fed packs it). Only clients that took part have one. Blobs live at their home
 * rank between rounds. */
typedef struct fl_store fl_store;
fl_store *fl_store_create(fl_ctx *ctx, int nclients);
void fl_store_destroy(fl_store **store);
/* Collective. The ascending list id[n] is hosted in blocks first[size + 1] (fl_layout). Every rank receives the blobs of
 * its block: blob[i], bytes[i] for i in its block (owned copies, fl_free; NULL, 0 = none yet). One Isend/Irecv per client.
 * i is the position in the list: blob, bytes and keep have n entries, of which first[rank] .. first[rank + 1] - 1 are touched. */
fl_err fl_store_fetch(fl_store *store, int n, const int *id, const int *first, void **blob, size_t *bytes);
/* Collective, the way back: takes ownership of blob[i] of this rank's block; bytes 0 = the client has (still) no state.
 * keep[i] false: the stored blob stays as it was (a client whose turn was thrown away); keep NULL = all true. */
fl_err fl_store_return(fl_store *store, int n, const int *id, const int *first, void **blob, size_t *bytes, const bool *keep);
uint64_t fl_store_digest(fl_store *store);     /* collective: sum mod 2^64 of hash(bytes, seed id) over clients with state */
int64_t fl_store_count(fl_store *store);       /* collective: clients with state */
/* this rank's own, for checkpoints: ids ascending; pointers borrowed */
int fl_store_mine(const fl_store *store, int i, int *id, const void **blob, size_t *bytes); /* i-th of those here; returns number here */
void fl_store_put(fl_store *store, int id, const void *blob, size_t bytes);                 /* local; id must be at home here */
size_t fl_store_bytes(const fl_store *store);  /* held on this rank, table included */

/* ---- measured ---- collective. Order-free sum of 100 messages of 300,000 elements, dealt to the ranks, beside a float
 * MPI_Allreduce of the same size and the memory bandwidth of a triad in the same run. Lines are added to t on rank 0. */
fl_err fl_bench_reduce(fl_ctx *ctx, fl_text *t);

/* ---- stopping on purpose ---- one for the program: opened and closed by app, collectively over its world */
extern volatile sig_atomic_t fl_stop_signals; /* counted by app's signal handler on this rank */
void fl_stop_open(fl_ctx *ctx);
void fl_stop_close(void);
/* Local, cheap, at every step: 0, 1 = finish the round, 2 = leave at the next step. What one rank knows all know soon; agree before acting. */
int fl_stop_poll(void);
#endif
