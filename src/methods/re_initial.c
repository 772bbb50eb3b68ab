/* re_initial - merge the round's aggregate into the base, start the next round from a new draw.
 * Source: Bian et al. 2024 (LoRA-FAIR, arXiv 2411.14961), its study of starts; survey section 3.2
 * (whose formula omits s).
 *   product: D = sum_k p_k s_k B_k A_k, as a stack     rank(W_T - W_0) <= T K r
 *   factors: D = s (sum_k p_k B_k)(sum_k p_k A_k)      rank(W_T - W_0) <= T r
 * W <- W + D (m x n);  A (r x n) a new draw, the same for all clients;  B = 0 (m x r).
 * Avg-Initial of the same study is fedavg, Local-Initial is local_initial. */
#include "fedlora/fed.h"

enum { BY_PRODUCT, BY_FACTORS };
typedef struct re_initial_config {
    int aggregation;
} re_initial_config;

static const fl_field re_initial_fields[] = {
    FL_WORD(re_initial_config, aggregation, "product", "product|factors",
        "what is merged: the mean of the products, or the product of the means"),
    FL_END,
};

static fl_err re_initial_enroll(fl_run *run, fl_client *c)
{
    const re_initial_config *d = run->config;

    return d->aggregation == BY_PRODUCT || c->r == run->space->rmax
               ? FL_OK
               : fl_fail(FL_EDECK, "re_initial.aggregation: factors of unequal rank have no mean; "
                                   "use product, or one rank in clients.r");
}

/* the draw of a round is a seed; that of round 1 follows from the run's own */
static fl_err re_initial_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *ad = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));

    fl_fit(ad, run->global);
    fl_send(down,
        (fl_part){.ad = ad, .of = run->global, .values = run->round.t == 1 ? FL_KNOWN : FL_SEED});
    return FL_OK;
}

static fl_err re_initial_aggregate(fl_run *run, fl_pile *in)
{
    const re_initial_config *d = run->config;

    if (d->aggregation == BY_PRODUCT) {
        fl_adapter *stack = NULL;

        FL_TRY(fl_stack_mix(run, in, &(fl_mixing){0}, &stack));
        FL_TRY(fl_merge(run, stack, 1, (fl_pick){0}));
    } else {
        FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
        FL_TRY(fl_merge(run, run->global, 1, (fl_pick){0}));
    }
    return fl_fill(run, run->global, -1, run->round.t);
}

const fl_method fl_method_re_initial = {
    .name = "re_initial",
    .title = "merge the aggregate into the base and draw new factors every round",
    .source = "Bian et al. 2024, arXiv 2411.14961",
    .choice = "the product form is the default, since the study names FLoRA as its example; there "
              "clients may have unequal ranks. The draw "
              "follows adapter.init and travels as a seed (svd: only the first start is one, later "
              "ones are kaiming).",
    .needs = FL_HETERO | FL_MERGES | FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(re_initial_config),
    .config = re_initial_fields,
    .enroll = re_initial_enroll,
    .download = re_initial_download,
    .aggregate = re_initial_aggregate,
};
