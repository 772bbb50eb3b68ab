/* local_initial - everybody goes on from the factors of one client, drawn anew every round.
 * Source: Bian et al. 2024 (LoRA-FAIR, arXiv 2411.14961), its study of starts; survey section 3.2.
 * c uniform over those that arrived:  A = A_c (r x n),  B = B_c (m x r).
 * With fold_residual the base takes the aggregate less what the start holds of it:
 *   product: W <- W + sum_k p_k s B_k A_k - s B_c A_c
 *              = W + sum_{k != c} p_k s B_k A_k + (p_c - 1) s B_c A_c
 *   factors: W <- W + s (sum_k p_k B_k)(sum_k p_k A_k) - s B_c A_c
 * Without it W stays, and the round of all others is lost. The terms of c cost nothing: who
 * downloads the start has them. */
#include "fedlora/fed.h"

enum { BY_PRODUCT, BY_FACTORS };
enum { DRAW_START };
typedef struct local_initial_config {
    int aggregation;
    bool fold_residual;
} local_initial_config;

static const fl_field local_initial_fields[] = {
    FL_WORD(local_initial_config, aggregation, "product", "product|factors",
        "the aggregate: the mean of the products, or the product of the means"),
    FL_BOOL(local_initial_config, fold_residual, "true",
        "the base takes the aggregate less the chosen client's product"),
    FL_END,
};

static const fl_pick known = {.factors = FL_NONE};

/* p_k s B_k, A_k of all but the item *arg, side by side */
static fl_err local_initial_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    const int *chosen = arg;
    int at = 0;

    (void)row;
    for (int k = 0; k < in->n; k++) {
        if (k == *chosen) {
            continue;
        }
        fl_mat ak = fl_at(in->item[k].ad, site, FL_A), bk = fl_at(in->item[k].ad, site, FL_B);
        double ps = in->item[k].p * run->space->scale[site];

        for (int i = 0; i < ak.rows * ak.cols; i++) {
            a.x[(size_t)at * a.cols + i] = ak.x[i];
        }
        for (int i = 0; i < bk.rows * bk.cols; i++) {
            b.x[(size_t)(i / bk.cols) * b.cols + at + i % bk.cols] = (fl_real)(ps * bk.x[i]);
        }
        at += ak.rows;
    }
    return FL_OK;
}

static fl_err fold_products(fl_run *run, fl_pile *in, int chosen)
{
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    fl_adapter *others;

    for (int site = 0; site < run->nsites; site++) {
        r[site] = (in->n - 1) * run->space->r[site];
    }
    others = fl_scratch_spread(run, fl_space_stack(run, r));
    FL_TRY(fl_sites(run, in, local_initial_site, &chosen, 1, &others, 0, NULL));
    FL_TRY(fl_merge(run, others, 1, (fl_pick){0}));
    return fl_merge(run, run->global, in->item[chosen].p - 1, known);
}

static fl_err fold_means(fl_run *run, fl_pile *in)
{
    fl_adapter *mean = fl_scratch_adapter(run, run->space);

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &mean));
    FL_TRY(fl_merge(run, mean, 1, (fl_pick){0}));
    return fl_merge(run, run->global, -1, known);
}

static fl_err local_initial_aggregate(fl_run *run, fl_pile *in)
{
    const local_initial_config *d = run->config;
    double *one = fl_scratch(run, (size_t)in->n, sizeof *one);
    int chosen = (int)(fl_uniform(run, DRAW_START, 0, run->round.t, 0) * in->n);

    one[chosen] = 1;
    FL_TRY(fl_mix(run, in, &(fl_mixing){.w = one}, &run->global));
    fl_metric(run, "start_client", in->item[chosen].client);
    if (!d->fold_residual || in->n == 1) {
        return FL_OK; /* one client: its product is the aggregate */
    }
    return d->aggregation == BY_PRODUCT ? fold_products(run, in, chosen) : fold_means(run, in);
}

const fl_method fl_method_local_initial = {
    .name = "local_initial",
    .title = "every round starts from the factors of one client; the base takes the rest",
    .source = "Bian et al. 2024, arXiv 2411.14961",
    .choice = "the source does not say what becomes of the aggregate; by default the base takes it "
              "(fold_residual), so that the server's "
              "model is the aggregate. Of the product form the other clients' stack travels; the "
              "chosen client's part is the start itself.",
    .needs = FL_MERGES | FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(local_initial_config),
    .config = local_initial_fields,
    .aggregate = local_initial_aggregate,
};
