/* flora - stack the clients' factors, merge the stack into the base, start afresh.
 * Source: Wang et al. 2024 (FLoRA, arXiv 2409.05976); survey section 3.1.
 *   A = [p_1 s_1 A_1; ..; p_K s_K A_K] (R x n),  B = [B_1, .., B_K] (m x R),  R = sum_k r_k,  W <-
 * W + B A. The weight goes on one factor only. Ranks may differ. Every client starts every round
 * from its own fresh A_k and B_k = 0. Download: the stack, R (m + n) numbers per site, once for
 * every round that the client missed. */
#include "fedlora/fed.h"

static fl_err flora_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    FL_TRY(fl_fill(run, c->ad[0], c->id, run->round.t));
    return fl_train(run, c, &job);
}

static fl_err flora_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *stack = NULL;

    FL_TRY(fl_stack_mix(run, in, &(fl_mixing){0}, &stack));
    return fl_merge(run, stack, 1, (fl_pick){0});
}

const fl_method fl_method_flora = {
    .name = "flora",
    .title = "stack the factors and merge the stack into the base",
    .source = "Wang et al. 2024, arXiv 2409.05976",
    .choice = "s_k goes into the stack (s = 1 there), so clients of unequal r and equal alpha are "
              "exact too.",
    .needs = FL_HETERO | FL_MERGES | FL_EACH | FL_LORA_ONLY,
    .download = fl_no_message,
    .train = flora_train,
    .aggregate = flora_aggregate,
};
