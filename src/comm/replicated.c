/* replicated.c - is what should be equal on all ranks equal? */
#include "fedlora/comm.h"

bool fl_same_everywhere(fl_ctx *ctx, uint64_t hash)
{
    uint64_t x[2] = {
        ~hash, hash}; /* complement reverses the order: one MAX gives minimum and maximum */

    MPI_Allreduce(MPI_IN_PLACE, x, 2, MPI_UINT64_T, MPI_MAX, ctx->world);
    fl_mpi_count(ctx, sizeof x);
    return ~x[0] == x[1];
}
