/* fedloru - FedAvg on a low-rank pair that is folded into the base every tau rounds.
 * Source: Park and Klabjan 2024 (FedLoRU, arXiv 2409.12371), official code
 * haemPark/fedloru_official; survey section 3.2, Eq. 11 (which drops s and the rounds after the
 * last merge). every round:     A = sum_k p_k A_k,  B = sum_k p_k B_k t mod tau = 0:   W <- W + s B
 * A, then  merge_and_reinit: A drawn anew, B = 0;  merge_keep: A, B stay, so that the model jumps
 * from W + s B A to W + 2 s B A. Download at a merge: the pair, r (m + n) numbers, once for every
 * client, whenever it returns. */
#include "fedlora/fed.h"

enum { FEDLORU_REINIT, FEDLORU_KEEP }; /* reset */

typedef struct fedloru_config {
    int tau, reset;
} fedloru_config;

static const fl_field fedloru_fields[] = {
    FL_INT(fedloru_config, tau, "50", 1, 1e9, "rounds", "the pair is merged every tau rounds"),
    FL_WORD(fedloru_config, reset, "merge_and_reinit", "merge_and_reinit|merge_keep",
        "after a merge: draw A anew and clear B, or go on with the pair"),
    FL_END,
};

/* 1: the pair is as the last merge left it */
static double *fedloru_merged(fl_run *run)
{
    return fl_keep(run, NULL, "merged", 0, 1, "the pair is as the last merge left it", NULL);
}

static fl_err fedloru_setup(fl_run *run)
{
    fedloru_merged(run);
    return FL_OK;
}

/* right after a merge the pair is known to those who took part in it: a seed, or what they merged
 */
static fl_err fedloru_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const fedloru_config *cf = run->config;
    fl_told told = cf->reset == FEDLORU_REINIT ? FL_SEED : FL_KNOWN;

    (void)c;
    fl_send(down, (fl_part){.ad = run->global,
                      .of = run->global,
                      .values = *fedloru_merged(run) != 0 ? told : FL_SENT});
    return FL_OK;
}

static fl_err fedloru_aggregate(fl_run *run, fl_pile *in)
{
    const fedloru_config *cf = run->config;
    bool merges = run->round.t % cf->tau == 0;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    *fedloru_merged(run) = merges;
    if (merges) {
        FL_TRY(fl_merge(run, run->global, 1, (fl_pick){0}));
    }
    return merges && cf->reset == FEDLORU_REINIT ? fl_fill(run, run->global, -1, run->round.t)
                                                 : FL_OK;
}

const fl_method fl_method_fedloru = {
    .name = "fedloru",
    .title = "average the factors, fold the pair into the base every tau rounds",
    .source = "Park and Klabjan 2024, arXiv 2409.12371",
    .choice = "sources disagree on what follows a merge: the survey reinitialises (default), the "
              "printed algorithm keeps the pair. tau 50 is the official example's. Evaluation is "
              "after the merge (the code's is before it: the same for merge_and_reinit).",
    .needs = FL_MERGES | FL_LORA_ONLY,
    .config_size = sizeof(fedloru_config),
    .config = fedloru_fields,
    .setup = fedloru_setup,
    .download = fedloru_download,
    .aggregate = fedloru_aggregate,
};
