/* fedex_lora - average A and B as FedIT does and put what is missing into the base.
 * Source: Singhal et al. 2024 (FedEx-LoRA, arXiv 2410.09432); survey section 3.1, Eq. 7 (which
 * drops the weights). A = sum_k p_k A_k,  B = sum_k p_k B_k,  D = sum_k p_k B_k A_k - B A,  W <- W
 * + s D. D is never dense and has rank (K - 1) r at most: since sum_k p_k (A_k - A) = 0, D = sum_{k
 * < K} p_k (B_k - B_K)(A_k - A), K - 1 stacked pairs of blocks, which is also what a client
 * downloads beside A and B. residual_rank r' ("best inexact"): the best approximation of D of rank
 * r', U_r' S_r' V_r' by its SVD, r' pairs to download; 0 is FedIT. */
#include "fedlora/fed.h"

typedef struct fedex_lora_config {
    int residual_rank;
} fedex_lora_config;

static const fl_field fedex_lora_fields[] = {
    FL_INT(fedex_lora_config, residual_rank, "-1", -1, 1e6, "",
        "rank to which the residual is cut before it is merged; -1: exact, 0: none (FedIT)"),
    FL_END,
};

/* s D = bs as, bs (m x R), as (R x n), R = (K - 1) r */
static int64_t fedex_lora_residual(
    fl_run *run, int site, const fl_pile *in, double **bs, double **as)
{
    fl_mat mean = fl_at(run->global, site, FL_A), last = fl_at(in->item[in->n - 1].ad, site, FL_B);
    size_t m = (size_t)last.rows, n = (size_t)mean.cols, r = (size_t)mean.rows,
           all = (size_t)(in->n - 1) * r;

    *bs = fl_scratch(run, m * all, sizeof **bs);
    *as = fl_scratch(run, all * n, sizeof **as);
    for (size_t k = 0; k < (size_t)in->n - 1; k++) {
        fl_mat ak = fl_at(in->item[k].ad, site, FL_A), bk = fl_at(in->item[k].ad, site, FL_B);

        for (size_t i = 0; i < r * n; i++) {
            (*as)[k * r * n + i] = (double)ak.x[i] - mean.x[i];
        }
        for (size_t i = 0; i < m * r; i++) {
            (*bs)[i / r * all + k * r + i % r] =
                in->item[k].p * run->space->scale[site] * ((double)bk.x[i] - last.x[i]);
        }
    }
    return (int64_t)all;
}

/* the residual as it is, or the top of its SVD where out has fewer pairs. row: squared norms of
 * the whole and of what is kept */
static fl_err fedex_lora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    double *bs, *as;
    int64_t all = fedex_lora_residual(run, site, in, &bs, &as);
    int k = a.rows;

    (void)arg;
    if (k < all) {
        double *u = fl_scratch(run, (size_t)b.rows * (size_t)k, sizeof *u);
        double *sv = fl_scratch(run, (size_t)k, sizeof *sv);
        double *vt = fl_scratch(run, (size_t)k * (size_t)a.cols, sizeof *vt);

        row[0] = fl_product_norm2(b.rows, a.cols, all, bs, as);
        FL_TRY(fl_site_svd(run, site, all, bs, as, k, u, sv, vt));
        for (int i = 0; i < b.rows * k; i++) {
            u[i] *= sv[i % k];
        }
        for (int i = 0; i < k; i++) {
            row[1] += sv[i] * sv[i];
        }
        bs = u;
        as = vt;
    }
    for (int i = 0; i < b.rows * k; i++) {
        b.x[i] = (fl_real)bs[i];
    }
    for (int i = 0; i < k * a.cols; i++) {
        a.x[i] = (fl_real)as[i];
    }
    return FL_OK;
}

static fl_err fedex_lora_aggregate(fl_run *run, fl_pile *in)
{
    const fedex_lora_config *c = run->config;
    const fl_space *sp = run->space;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    double *rows = fl_scratch(run, 2 * (size_t)run->nsites, sizeof *rows), all = 0, kept = 0;
    fl_adapter *residual;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    if (in->n == 1 || c->residual_rank == 0) {
        return FL_OK; /* the mean of one product is the product of the means */
    }
    for (int j = 0; j < run->nsites; j++) {
        r[j] = (in->n - 1) * sp->r[j];
        if (c->residual_rank > 0 && c->residual_rank < r[j]) {
            r[j] = FL_MIN(c->residual_rank, FL_MIN(sp->m[j], sp->n_in[j]));
        }
    }
    residual = fl_scratch_spread(run, fl_space_stack(run, r));
    FL_TRY(fl_sites(run, in, fedex_lora_site, NULL, 1, &residual, 2, rows));
    for (int j = 0; j < run->nsites; j++) {
        all += rows[2 * j];
        kept += rows[2 * j + 1];
    }
    if (c->residual_rank > 0) {
        fl_metric(run, "residual_kept", all > 0 ? kept / all : 1);
    }
    return fl_merge(run, residual, 1, (fl_pick){0});
}

const fl_method fl_method_fedex_lora = {
    .name = "fedex_lora",
    .title = "average the factors, merge the residual into the base",
    .source = "Singhal et al. 2024, arXiv 2410.09432",
    .choice = "the residual travels as (K - 1) r stacked pairs, or residual_rank of them; weights "
              "p_k as the deck says (the paper's are 1/K).",
    .needs = FL_MERGES | FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(fedex_lora_config),
    .config = fedex_lora_fields,
    .aggregate = fedex_lora_aggregate,
};
