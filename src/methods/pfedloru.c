/* pfedloru - FedLoRU with a private low-rank pair on top at every client.
 * Source: Park and Klabjan 2024 (pFedLoRU, arXiv 2409.12371): slides, figure (b); no code.
 *   client k runs W + s B A + s_p L_k U_k and keeps L_k (m x r_p, starts at 0), U_k (r_p x n,
 * drawn) alternate: fit L_k, U_k with A, B frozen, then A, B with L_k, U_k frozen;  joint: all at
 * once server, as FedLoRU: A, B = means; t mod tau = 0: W <- W + s B A, then a fresh pair (or the
 * same) L_k and U_k never travel, and merging leaves them as they are. Evaluation: every client's
 * own model on its own data. */
#include "fedlora/fed.h"

enum { PFEDLORU_REINIT, PFEDLORU_KEEP };     /* reset */
enum { PFEDLORU_ALTERNATE, PFEDLORU_JOINT }; /* phases */

typedef struct pfedloru_config {
    int tau, reset, r_personal, phases, steps_personal;
    double scale;
} pfedloru_config;

static const fl_field pfedloru_fields[] = {
    FL_INT(
        pfedloru_config, tau, "50", 1, 1e9, "rounds", "the shared pair is merged every tau rounds"),
    FL_WORD(pfedloru_config, reset, "merge_and_reinit", "merge_and_reinit|merge_keep",
        "after a merge: draw A anew and clear B, or go on with the pair"),
    FL_INT(pfedloru_config, r_personal, "0", 0, 1e5, "", "rank of the private pair; 0 = adapter.r"),
    FL_REAL(pfedloru_config, scale, "0", 0, 1e6, "",
        "scale s_p of the private pair; 0 = as adapter.alpha gives for its rank"),
    FL_WORD(pfedloru_config, phases, "alternate", "alternate|joint",
        "first the private pair, then the shared one, or both in every step"),
    FL_INT(pfedloru_config, steps_personal, "-1", -1, 1e9, "steps",
        "alternate: local steps on the private pair; -1 = as on the shared one, 0 = FedLoRU"),
    FL_END,
};

/* 1: the pair is as the last merge left it */
static double *pfedloru_merged(fl_run *run)
{
    return fl_keep(run, NULL, "merged", 0, 1, "the pair is as the last merge left it", NULL);
}

static fl_err pfedloru_setup(fl_run *run)
{
    pfedloru_merged(run);
    return FL_OK;
}

static const fl_space *pfedloru_space(fl_run *run)
{
    const pfedloru_config *cf = run->config;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    double *scale = fl_scratch(run, (size_t)run->nsites, sizeof *scale);

    for (int j = 0; j < run->nsites; j++) {
        r[j] = run->space->r[j] > 0 && cf->r_personal > 0 ? cf->r_personal : run->space->r[j];
        scale[j] = cf->scale;
    }
    return cf->scale > 0 ? fl_space_scales(run, r, scale) : fl_space_at(run, run->space, r, 0);
}

static fl_err pfedloru_enroll(fl_run *run, fl_client *c)
{
    bool fresh;

    c->n = 2;
    c->ad[1] = fl_keep_adapter(run, c, "own", 0, pfedloru_space(run), &fresh);
    return fresh ? fl_fill(run, c->ad[1], c->id, 0) : FL_OK;
}

static fl_err pfedloru_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const pfedloru_config *cf = run->config;
    fl_told told = cf->reset == PFEDLORU_REINIT ? FL_SEED : FL_KNOWN;

    (void)c;
    fl_send(down, (fl_part){.ad = run->global,
                      .of = run->global,
                      .values = *pfedloru_merged(run) != 0 ? told : FL_SENT});
    return FL_OK;
}

static fl_err pfedloru_train(fl_run *run, fl_client *c)
{
    const pfedloru_config *cf = run->config;
    fl_job shared = fl_job_of(run, c), own;

    if (cf->phases == PFEDLORU_ALTERNATE && cf->steps_personal == 0) {
        return fl_train(run, c, &shared); /* L_k is 0 for ever */
    }
    shared.stack.n = 2;
    shared.stack.ad[1] = c->ad[1];
    shared.stack.coef[1] = 1;
    if (cf->phases == PFEDLORU_JOINT) {
        return fl_train(run, c, &shared);
    }
    own = shared;
    own.stream = 1;
    own.train[0].factors = FL_NONE;
    shared.train[1].factors = FL_NONE;
    if (cf->steps_personal > 0) {
        own.steps = cf->steps_personal;
        own.epochs = 0;
    }
    FL_TRY(fl_train(run, c, &own));
    return fl_train(run, c, &shared);
}

static fl_err pfedloru_aggregate(fl_run *run, fl_pile *in)
{
    const pfedloru_config *cf = run->config;
    bool merges = run->round.t % cf->tau == 0;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    *pfedloru_merged(run) = merges;
    if (merges) {
        FL_TRY(fl_merge(run, run->global, 1, (fl_pick){0}));
    }
    return merges && cf->reset == PFEDLORU_REINIT ? fl_fill(run, run->global, -1, run->round.t)
                                                  : FL_OK;
}

static fl_err pfedloru_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    if (c != NULL && which == 0) {
        v->name = "personal";
        v->stack = (fl_stack){.n = 2, .ad = {run->global, c->ad[1]}, .coef = {1, 1}};
        v->data.client = c->id;
    }
    return FL_OK;
}

const fl_method fl_method_pfedloru = {
    .name = "pfedloru",
    .title = "FedLoRU with a private pair on top at every client",
    .source = "Park and Klabjan 2024, arXiv 2409.12371",
    .choice = "known from a figure and reviews only: the order of the phases, their steps and the "
              "scale s_p are ours. L starts at 0, U by adapter.init from the client's number.",
    .needs = FL_MERGES | FL_PERSONAL | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(pfedloru_config),
    .config = pfedloru_fields,
    .setup = pfedloru_setup,
    .enroll = pfedloru_enroll,
    .download = pfedloru_download,
    .train = pfedloru_train,
    .aggregate = pfedloru_aggregate,
    .view = pfedloru_view,
};
