/* rbla - average every rank-1 pair over the clients that have it (rank-based layer aggregation).
 * Source: Chen et al. 2024 (RBLA, arXiv 2408.08699); the first author's framework,
 * _fed_aggregator_rbla.py. Client k holds the pairs 1 .. r_k of the server's A (r x n), B (m x r).
 *   A[i,:] = sum_{k: r_k >= i} p_k A_k[i,:] / sum_{k: r_k >= i} p_k,  B[:,i] likewise.
 * Zero padding is the same sum without the division. The survey files this under replication-based
 * padding, but nothing is copied; the two agree for two levels of rank (see replication). */
#include "fedlora/fed.h"

static fl_err rbla_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_cut(run, run->space, c->r));

    fl_fit(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

static fl_err rbla_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = FL_HOLDERS}, &run->global);
}

const fl_method fl_method_rbla = {
    .name = "rbla",
    .title = "unequal ranks: every pair averaged over the clients that have it",
    .source = "Chen et al. 2024, arXiv 2408.08699",
    .choice = "a pair that no participant has keeps its value (0 in the official code); one scale "
              "alpha / r for all clients, that of the largest rank.",
    .needs = FL_HETERO | FL_LORA_ONLY,
    .download = rbla_download,
    .aggregate = rbla_aggregate,
};
