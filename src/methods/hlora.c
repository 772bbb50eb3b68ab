/* hlora - FlexLoRA's average of products with a rank policy of its own.
 * Source: Liu et al. 2025 (HLoRA, arXiv 2503.00813).
 *   T = sum_k p_k B_k A_k = U S V',  for a client of rank r:  B = U[:, 1:r] S[1:r], A = V[:, 1:r]'.
 * s is not in the formula. scale: own puts each client's s_k into T and takes the receiver's out,
 * so that what travels is the update W sees (then it is FlexLoRA); scale: literal does neither, so
 * a client of another rank, hence another s, receives a rescaled update. At equal ranks both agree.
 * ranks: deck takes clients.r; samples gives a client with n_k training samples
 *   r_k = max(least, round(r n_k / max_j n_j)), r the deck's largest rank. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { HLORA_OWN, HLORA_LITERAL };
enum { HLORA_DECK, HLORA_SAMPLES };
typedef struct hlora_config {
    int scale, ranks, least;
} hlora_config;

static const fl_field hlora_fields[] = {
    FL_WORD(hlora_config, scale, "own", "own|literal",
        "whether each client's s is part of the averaged product; literal: as the formula is "
        "written"),
    FL_WORD(hlora_config, ranks, "deck", "deck|samples",
        "ranks of the clients: section clients, or in proportion to their samples"),
    FL_INT(hlora_config, least, "1", 1, 1e6, "", "smallest rank of a client; ranks: samples only"),
    FL_END,
};

static fl_err hlora_setup(fl_run *run)
{
    double *most = fl_keep(run, NULL, "most", 0, 1, "samples of the largest client", NULL);

    for (int id = 0; id < run->nclients; id++) {
        *most = fmax(*most, fl_sample_count(run, id, FL_TRAIN));
    }
    return FL_OK;
}

static fl_err hlora_enroll(fl_run *run, fl_client *c)
{
    const hlora_config *h = run->config;
    const double *most = fl_keep(run, NULL, "most", 0, 1, "samples of the largest client", NULL);
    int r = run->space->rmax;

    if (h->ranks == HLORA_SAMPLES) {
        c->r = (int)rint(r * fl_sample_count(run, c->id, FL_TRAIN) / fmax(*most, 1));
        c->r = FL_MIN(FL_MAX(c->r, h->least), r);
    }
    return FL_OK;
}

static fl_err hlora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const hlora_config *h = run->config;
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));

    if (h->scale == HLORA_OWN) {
        fl_fit_product(cut, run->global);
    } else {
        fl_fit(cut, run->global);
    }
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

/* weights under which the runtime's sum of w_k s_k B_k A_k is s times the formula's T; a client has
 * one rank, so one s, at all its sites */
static const double *hlora_weights(fl_run *run, const fl_pile *in)
{
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w);

    for (int i = 0; i < in->n; i++) {
        for (int j = 0; j < run->nsites; j++) {
            if (run->space->r[j] > 0 && in->item[i].space->r[j] > 0) {
                w[i] = in->item[i].p * run->space->scale[j] / in->item[i].space->scale[j];
            }
        }
    }
    return w;
}

static fl_err hlora_aggregate(fl_run *run, fl_pile *in)
{
    const hlora_config *h = run->config;
    fl_mixing how = {.w = h->scale == HLORA_LITERAL ? hlora_weights(run, in) : NULL};
    double discarded;

    FL_TRY(fl_svd_mix(run, in, &how, &run->global, &discarded));
    fl_metric(run, "discarded_energy", discarded);
    return FL_OK;
}

const fl_method fl_method_hlora = {
    .name = "hlora",
    .title = "average of the products, redistributed by SVD; ranks by the clients' samples",
    .source = "Liu et al. 2025, arXiv 2503.00813",
    .choice = "the paper's rank policy is not known: the deck's ranks, or (ranks: samples) in "
              "proportion to a client's samples; with scale: own and ranks: deck it is FlexLoRA.",
    .needs = FL_HETERO | FL_EACH | FL_SPLITS | FL_LORA_ONLY,
    .config_size = sizeof(hlora_config),
    .config = hlora_fields,
    .setup = hlora_setup,
    .enroll = hlora_enroll,
    .download = hlora_download,
    .aggregate = hlora_aggregate,
};
