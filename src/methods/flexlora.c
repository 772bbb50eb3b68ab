/* flexlora - average the products, split the average by SVD, give every client its own rank.
 * Source: Bai et al. 2024 (FlexLoRA, arXiv 2402.11505), official code FederatedScope, branch
 * FlexLoRA; survey section 3.1, Eq. 10. T = sum_k p_k s_k B_k A_k = U S V',  for a client of rank
 * r:  s_r B = U[:, 1:r] S[1:r],  A = V[:, 1:r]'. The server keeps the split at the largest r; a
 * client's is its first pairs, with B rescaled by s / s_r so that the product of the pairs stays.
 * Nothing is folded into W. The survey's Eq. 10 slices U by rows and forgets the transpose of V. */
#include "fedlora/fed.h"

static fl_err flexlora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));

    fl_fit_product(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

static fl_err flexlora_aggregate(fl_run *run, fl_pile *in)
{
    double discarded;

    FL_TRY(fl_svd_mix(run, in, &(fl_mixing){0}, &run->global, &discarded));
    fl_metric(run, "discarded_energy", discarded);
    return FL_OK;
}

const fl_method fl_method_flexlora = {
    .name = "flexlora",
    .title = "average the products, redistribute by SVD at every client's rank",
    .source = "Bai et al. 2024, arXiv 2402.11505",
    .choice = "B carries the singular values and A has orthonormal rows, as in the official code; "
              "the sign of every pair is fixed.",
    .needs = FL_HETERO | FL_EACH | FL_SPLITS | FL_LORA_ONLY,
    .download = flexlora_download,
    .aggregate = flexlora_aggregate,
};
