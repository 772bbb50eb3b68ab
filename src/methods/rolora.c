/* rolora - train and average B in odd rounds, A in even rounds.
 * Source: Chen et al. 2024 (RoLoRA, arXiv 2409.02346; 2502.01755); survey section 3.1.
 * The idle factor is common to all clients, so sum_k p_k B_k A = (sum_k p_k B_k) A exactly.
 * Choice: rounds count from 1, so B trains first; while B = 0 the gradient of A is zero. */
#include "fedlora/fed.h"

static fl_err rolora_plan(fl_run *run)
{
    run->job.train[0].factors = FL_BIT(run->round.t % 2 == 1 ? FL_B : FL_A);
    return FL_OK;
}

const fl_method fl_method_rolora = {
    .name = "rolora",
    .title = "alternating minimisation: B in odd rounds, A in even ones",
    .source = "Chen et al. 2024, arXiv 2409.02346",
    .choice = "weights p_k as the deck says (cohort.weights: uniform is the paper's 1/K); rounds "
              "count from 1, B first.",
    .needs = FL_LORA_ONLY,
    .plan = rolora_plan,
};
