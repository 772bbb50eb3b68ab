/* comm_internal.h - point-to-point messages of any size, for the files of this folder. */
#ifndef FL_COMM_INTERNAL_H
#define FL_COMM_INTERNAL_H
#include "fedlora/comm.h"

/* Longest single MPI call in bytes: counts of MPI are ints, and the library's own temporary buffers
 * stay bounded. A variable so that tests can cut small data into many calls; equal on all ranks. */
extern size_t fl_comm_chunk;

typedef struct fl_requests {
    MPI_Request *request; /* owned [room] */
    int n, room;
} fl_requests;
/* Messages between two ranks arrive in the order of posting; both sides cut at the same places. */
void fl_comm_isend(fl_ctx *ctx, fl_requests *q, const void *x, size_t bytes, int to);
void fl_comm_irecv(fl_ctx *ctx, fl_requests *q, void *x, size_t bytes, int from);
void fl_comm_wait(fl_requests *q); /* all; frees the list */
#endif
