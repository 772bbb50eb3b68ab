/* fed_plora - parallel rank-1 modules: a client trains some and folds the others into its frozen
 * weight. Source: Zhang et al. 2026 (Fed-PLoRA, arXiv 2602.16936); abstract and summary only, no
 * code. The adapter is r modules b_i a_i. Select-N-Fold: client k draws M_k, |M_k| = k_k, holds W +
 * s sum_{i not in M_k} b_i a_i fixed and trains b_i, a_i for i in M_k, so that it starts from the
 * server's function whatever its budget.
 *   server  X_i = sum_{k: i in M_k} p_k X_{k,i} / sum_{k: i in M_k} p_k, else unchanged; X = a, b.
 * Folding is arithmetic, not a step of its own here: all modules stay in the forward pass, those
 * outside M_k frozen. Upload: |M_k| (m + n); M_k follows from the run's seed. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct fed_plora_config {
    double share;
    bool per_matrix;
} fed_plora_config;

static const fl_field fed_plora_fields[] = {
    FL_REAL(fed_plora_config, share, "1", 0, 1, "",
        "modules that a client trains, as a share of its rank in the deck; of the largest rank "
        "in all"),
    FL_BOOL(fed_plora_config, per_matrix, "true", "every adapted matrix draws modules of its own"),
    FL_END,
};

static const uint64_t *selection(fl_run *run, const fl_client *c)
{
    const fed_plora_config *cf = run->config;
    int k = (int)fmax(1, floor(cf->share * c->r + 0.5));

    return fl_random_pairs(run, 0, run->space, c->id, run->round.t, k, cf->per_matrix);
}

static fl_err fed_plora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    (void)c;
    fl_send(down, (fl_part){.ad = run->global, .of = run->global});
    return FL_OK;
}

static fl_err fed_plora_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    job.train[0].pairs = selection(run, c);
    return fl_train(run, c, &job);
}

static fl_err fed_plora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up,
        (fl_part){
            .ad = c->ad[0], .ref = c->got[0], .pick.pairs = selection(run, c), .which = FL_KNOWN});
    return FL_OK;
}

static fl_err fed_plora_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = FL_HOLDERS}, &run->global);
}

const fl_method fl_method_fed_plora = {
    .name = "fed_plora",
    .title = "parallel rank-1 modules: train some, fold the others",
    .source = "Zhang et al. 2026, arXiv 2602.16936",
    .choice = "modules are drawn at random in every round; a module is averaged over the clients "
              "that trained it, with the deck's weights over them.",
    .needs = FL_HETERO | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(fed_plora_config),
    .config = fed_plora_fields,
    .download = fed_plora_download,
    .train = fed_plora_train,
    .upload = fed_plora_upload,
    .aggregate = fed_plora_aggregate,
};
