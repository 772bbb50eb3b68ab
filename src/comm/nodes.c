/* nodes.c - from one rank to one rank of every node. The table of who is where is made at the first
 * call and kept with the communicator, so that later calls involve only the sender and the
 * receivers. */
#include "comm_internal.h"
#include "fedlora/comm.h"

typedef struct nodes_table {
    int nnodes;
    int *first; /* owned [nnodes + 1]: where a node's ranks begin in rank[] */
    int *rank;  /* owned [size]: world ranks by node, then by node_rank */
} nodes_table;

static int nodes_forget(MPI_Comm comm, int key, void *value, void *extra)
{
    nodes_table *t = value;

    (void)comm, (void)key, (void)extra;
    fl_free(t->first);
    fl_free(t->rank);
    fl_free(t);
    return MPI_SUCCESS;
}

static nodes_table *nodes_make(fl_ctx *ctx)
{
    size_t size = (size_t)ctx->size;
    int mine[2] = {ctx->inode, ctx->node_rank};
    int *all = fl_alloc("node table", 2 * size, sizeof *all);
    nodes_table *t = fl_alloc("node table", 1, sizeof *t);

    MPI_Allgather(mine, 2, MPI_INT, all, 2, MPI_INT, ctx->world);
    fl_mpi_count(ctx, sizeof mine);
    t->nnodes = ctx->nnodes;
    t->first = fl_alloc("node table", (size_t)t->nnodes + 1, sizeof *t->first);
    t->rank = fl_alloc("node table", size, sizeof *t->rank);
    for (size_t r = 0; r < size; r++) {
        t->first[all[2 * r] + 1]++;
    }
    for (int i = 0; i < t->nnodes; i++) {
        t->first[i + 1] += t->first[i];
    }
    for (size_t r = 0; r < size; r++) {
        t->rank[t->first[all[2 * r]] + all[2 * r + 1]] = (int)r;
    }
    fl_free(all);
    return t;
}

static const nodes_table *nodes_get(fl_ctx *ctx)
{
    static int key = MPI_KEYVAL_INVALID; /* one per process, for all communicators */
    nodes_table *t;
    int found;

    if (key == MPI_KEYVAL_INVALID) {
        MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, nodes_forget, &key, NULL);
    }
    MPI_Comm_get_attr(ctx->world, key, &t, &found);
    if (!found) {
        t = nodes_make(ctx);
        MPI_Comm_set_attr(ctx->world, key, t);
    }
    return t;
}

/* world rank of the i-th in the tree: 0 is the sender, then the receivers by node, the sender left
 * out */
static int nodes_member(const nodes_table *t, int from, int to_node_rank, int i, int *n)
{
    int seen = 1, member = i == 0 ? from : -1;

    for (int node = 0; node < t->nnodes; node++) {
        int last = t->first[node + 1] - t->first[node] - 1;
        int r = t->rank[t->first[node] + FL_MIN(to_node_rank, last)];
        if (r == from) {
            continue;
        }
        if (seen == i) {
            member = r;
        }
        seen++;
    }
    *n = seen;
    return member;
}

bool fl_to_nodes(fl_ctx *ctx, int from, int to_node_rank, void *x, size_t bytes)
{
    const nodes_table *t = nodes_get(ctx);
    bool receiver = ctx->node_rank == FL_MIN(to_node_rank, ctx->node_size - 1);
    int n, me = 0, bit = 1;

    FL_REQUIRE(from >= 0 && from < ctx->size && to_node_rank >= 0);
    if (!receiver && ctx->rank != from) {
        return false;
    }
    nodes_member(t, from, to_node_rank, 0, &n);
    while (ctx->rank != from && nodes_member(t, from, to_node_rank, me, &n) != ctx->rank) {
        me++;
    }
    /* binomial tree: i receives from i without its highest bit */
    while (bit <= me) {
        bit *= 2;
    }
    fl_requests q = {0};
    if (me > 0) {
        fl_comm_irecv(ctx, &q, x, bytes, nodes_member(t, from, to_node_rank, me - bit / 2, &n));
        fl_comm_wait(&q);
    }
    for (; me + bit < n; bit *= 2) {
        int unused, to = nodes_member(t, from, to_node_rank, me + bit, &unused);
        fl_comm_isend(ctx, &q, x, bytes, to);
    }
    fl_comm_wait(&q);
    return receiver;
}
