/* ctx.c - the MPI context: who this rank is, which ranks share its memory, and its timer. */
#include "timer.h"
#include <stdlib.h>

/* Nodes are numbered by their lowest rank: with `rank` as key it is node_rank 0, and the leaders
 * are ordered alike. */
static void ctx_find_nodes(fl_ctx *c)
{
    int node[2] = {0, 0};

    MPI_Comm_split_type(c->world, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &c->node);
    MPI_Comm_rank(c->node, &c->node_rank);
    MPI_Comm_size(c->node, &c->node_size);
    MPI_Comm_split(c->world, c->node_rank == 0 ? 0 : MPI_UNDEFINED, c->rank, &c->leaders);
    if (c->node_rank == 0) {
        MPI_Comm_rank(c->leaders, &node[0]);
        MPI_Comm_size(c->leaders, &node[1]);
    }
    MPI_Bcast(node, 2, MPI_INT, 0, c->node);
    c->inode = node[0];
    c->nnodes = node[1];
}

fl_err fl_ctx_create(MPI_Comm comm, fl_ctx **ctx)
{
    fl_ctx *c = fl_alloc("context", 1, sizeof *c);

    /* MPI's own errors stay fatal: after one nothing collective can be trusted */
    MPI_Comm_dup(comm, &c->world);
    MPI_Comm_rank(c->world, &c->rank);
    MPI_Comm_size(c->world, &c->size);
    ctx_find_nodes(c);
    c->timer = fl_alloc("timer", 1, sizeof *c->timer);
    /* for libraries loaded and programs started later; a BLAS that is loaded already listens to
     * fl_blas_threads only */
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
    *ctx = c;
    return FL_OK;
}

fl_err fl_ctx_split(fl_ctx *ctx, int colour, fl_ctx **part)
{
    MPI_Comm comm;

    MPI_Comm_split(ctx->world, colour, ctx->rank, &comm);
    fl_err err = fl_ctx_create(comm, part);

    MPI_Comm_free(&comm);
    (*part)->quiet = true;
    return err;
}

void fl_ctx_destroy(fl_ctx **ctx)
{
    fl_ctx *c = *ctx;

    if (c == NULL) {
        return;
    }
    if (c->leaders != MPI_COMM_NULL) {
        MPI_Comm_free(&c->leaders);
    }
    MPI_Comm_free(&c->node);
    MPI_Comm_free(&c->world);
    fl_free(c->timer);
    fl_free(c);
    *ctx = NULL;
}
