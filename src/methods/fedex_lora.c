/* fedex_lora - average A and B as FedIT does and put what is missing into the base.
 * Source: Singhal et al. 2024 (FedEx-LoRA, arXiv 2410.09432); survey section 3.1, Eq. 7 (which
 * drops the weights). A = sum_k p_k A_k,  B = sum_k p_k B_k,  D = sum_k p_k B_k A_k - B A,  W <- W
 * + s D. D is never dense and has rank (K - 1) r at most: since sum_k p_k (A_k - A) = 0, D = sum_{k
 * < K} p_k (B_k - B_K)(A_k - A), K - 1 stacked pairs of blocks, which is also what a client
 * downloads beside A and B. */
#include "fedlora/fed.h"

/* block k of the residual at one site: columns of B, rows of A */
static fl_err fedex_lora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B),
           mean = fl_at(run->global, site, FL_A);
    fl_mat last = fl_at(in->item[in->n - 1].ad, site, FL_B);
    int at = 0;

    (void)row;
    (void)arg;
    for (int k = 0; k < in->n - 1; k++) {
        fl_mat ak = fl_at(in->item[k].ad, site, FL_A), bk = fl_at(in->item[k].ad, site, FL_B);

        for (int i = 0; i < ak.rows * ak.cols; i++) {
            a.x[(size_t)at * a.cols + i] = ak.x[i] - mean.x[i];
        }
        for (int i = 0; i < bk.rows * bk.cols; i++) {
            double d = (double)bk.x[i] - last.x[i];

            b.x[(size_t)(i / bk.cols) * b.cols + at + i % bk.cols] =
                (fl_real)(in->item[k].p * run->space->scale[site] * d);
        }
        at += ak.rows;
    }
    return FL_OK;
}

static fl_err fedex_lora_aggregate(fl_run *run, fl_pile *in)
{
    int *r = fl_scratch(run, run->nsites, sizeof *r);
    fl_adapter *residual;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    if (in->n == 1) {
        return FL_OK; /* the mean of one product is the product of the means */
    }
    for (int site = 0; site < run->nsites; site++) {
        r[site] = (in->n - 1) * run->space->r[site];
    }
    residual = fl_scratch_spread(run, fl_space_stack(run, r));
    FL_TRY(fl_sites(run, in, fedex_lora_site, NULL, 1, &residual, 0, NULL));
    return fl_merge(run, residual, 1, (fl_pick){0});
}

const fl_method fl_method_fedex_lora = {
    .name = "fedex_lora",
    .title = "average the factors, merge the residual into the base",
    .source = "Singhal et al. 2024, arXiv 2410.09432",
    .choice = "the residual travels as (K - 1) r stacked pairs; weights p_k as the deck says (the "
              "paper's are 1/K).",
    .needs = FL_MERGES | FL_EACH | FL_LORA_ONLY,
    .aggregate = fedex_lora_aggregate,
};
