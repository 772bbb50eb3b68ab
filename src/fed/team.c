/* team.c - few clients, many ranks: with cohort.shards = T a local step's batch is cut into T parts
 * whose gradients go through the order-free sum, so 1 to T ranks may share a client. T decides the
 * bits, the number of ranks does not. A team is a contiguous group of ranks. Every member runs the
 * whole turn of a client (its state, the server's message and the optimiser are the same
 * everywhere); only the parts of the batches are divided. The leader's messages and states are the
 * ones that count. */
#include "fed_internal.h"

bool team_leads(const fl_runtime *rt)
{
    return rt->team->rank == 0;
}

/* as many teams as there are clients in a round, but no more ranks in a team than there are shards
 */
static int count_teams(const fl_runtime *rt)
{
    int size = rt->ctx->size, shards = rt->deck->cohort.shards,
        fewest = (size + shards - 1) / shards;

    return FL_MIN(size, FL_MAX(fewest, FL_MIN(size, rt->run.ncohort)));
}

fl_err team_create(fl_runtime *rt)
{
    int size = rt->ctx->size, rank = rt->ctx->rank;

    rt->nteams = count_teams(rt);
    rt->team_first =
        fl_alloc("blocks of the teams", (size_t)rt->nteams + 1, sizeof *rt->team_first);
    rt->leader = fl_alloc("leaders", (size_t)rt->nteams, sizeof *rt->leader);
    for (int g = 0; g < rt->nteams; g++) {
        int from = (int)((int64_t)size * g / rt->nteams),
            to = (int)((int64_t)size * (g + 1) / rt->nteams);

        rt->leader[g] = from;
        if (rank >= from && rank < to) {
            rt->iteam = g;
        }
    }
    return fl_ctx_split(rt->ctx, rt->iteam, &rt->team);
}

void team_place(fl_runtime *rt, const double *cost)
{
    int g = 0;

    fl_layout(rt->run.ncohort, cost, rt->nteams, rt->team_first);
    for (int rank = 0; rank < rt->ctx->size; rank++) {
        rt->first[rank] =
            rt->team_first[g]; /* behind a leader g is the next team: an empty block */
        g += g < rt->nteams && rt->leader[g] == rank;
    }
    rt->first[rt->ctx->size] = rt->run.ncohort;
}

void team_share_blob(fl_runtime *rt, void **blob, size_t *bytes)
{
    uint64_t n = *bytes;

    if (rt->team->size == 1) {
        return;
    }
    fl_bcast(rt->team, 0, &n, sizeof n);
    if (rt->team->rank != 0 && n > 0) {
        *blob = fl_alloc("client state", n, 1);
    }
    *bytes = n;
    fl_bcast(rt->team, 0, *blob, n);
}
