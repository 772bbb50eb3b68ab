/* ffa_lora - freeze A at its random start on everybody; train and average B only.
 * Source: Sun et al. 2024 (FFA-LoRA, arXiv 2403.12313); survey section 3.1.
 *   B = sum_k p_k B_k,  A = A_0 for ever; s (sum_k p_k B_k) A_0 = sum_k p_k s B_k A_0 exactly.
 * A_0 is drawn from the run's seed, so a client's first download costs the seed, never the matrix.
 */
#include "fedlora/fed.h"

static fl_err ffa_lora_plan(fl_run *run)
{
    run->job.train[0].factors = FL_BIT(FL_B);
    return FL_OK;
}

const fl_method fl_method_ffa_lora = {
    .name = "ffa_lora",
    .title = "A frozen at its start, B trained and averaged",
    .source = "Sun et al. 2024, arXiv 2403.12313",
    .needs = FL_LORA_ONLY,
    .plan = ffa_lora_plan,
};
