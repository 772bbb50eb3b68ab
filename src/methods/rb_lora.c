/* rb_lora - FlexLoRA whose every rank-1 pair is averaged over the clients that have it.
 * Source: Ha 2026 (RB-LoRA, Findings of EACL 2026), official code seonha01/rb-lora (the helper
 * compute_column_weights_from_ranks, which its published path never calls).
 *   P_j = sum of p_k over clients with r_k >= j  (the code: n / N_j = 1 / P_j),
 *   T = sum_j sum_{k: r_k >= j} (p_k / P_j) s_k B_k[:, j] A_k[j, :] = U S V',
 *   for a client of rank r:  s_r B = U[:, 1:r] S[1:r],  A = V[:, 1:r]'.
 * A pair that few clients have is not diluted by those without it: without training every singular
 * value stays, while FlexLoRA multiplies the j-th by P_j each round. The code slices V as V'.
 * Choice: the weight goes on the products once (on both factors it would count twice). */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

static fl_err rb_lora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));

    fl_fit_product(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

/* weight of the clients whose rank at the site is j + 1 at least */
static double rb_lora_weight(const fl_pile *in, int site, int j)
{
    double p = 0;

    for (int k = 0; k < in->n; k++) {
        p += in->item[k].space->r[site] > j ? in->item[k].p : 0;
    }
    return p;
}

/* s B = U S, A = V' */
static void rb_lora_split(
    fl_adapter *out, int site, const double *u, const double *sv, const double *vt)
{
    fl_mat a = fl_at(out, site, FL_A), b = fl_at(out, site, FL_B);

    for (int i = 0; i < b.rows * b.cols; i++) {
        b.x[i] = (fl_real)(u[i] * sv[i % b.cols] / out->space->scale[site]);
    }
    for (int i = 0; i < a.rows * a.cols; i++) {
        a.x[i] = (fl_real)vt[i];
    }
}

/* row: squared norms of T and of what the largest rank keeps */
static fl_err rb_lora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    int m = out[0]->space->m[site], n = out[0]->space->n_in[site], r = out[0]->space->r[site];
    double *bs, *as, *u = fl_scratch(run, (size_t)m * (size_t)r, sizeof *u);
    double *sv = fl_scratch(run, (size_t)r, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)r * (size_t)n, sizeof *vt);
    int64_t nstack, at = 0;

    (void)arg;
    fl_site_stack(run, site, in, 0, NULL, &nstack, &bs, &as); /* rows of as: p_k s_k A_k[j, :] */
    for (int k = 0; k < in->n; k++) {
        for (int j = 0; j < in->item[k].space->r[site]; j++, at++) {
            double p = rb_lora_weight(in, site, j);

            for (int i = 0; i < n; i++) {
                as[at * n + i] /= p;
            }
        }
    }
    row[0] = fl_product_norm2(m, n, nstack, bs, as);
    FL_TRY(fl_site_svd(run, site, nstack, bs, as, r, u, sv, vt));
    for (int j = 0; j < r; j++) {
        row[1] += sv[j] * sv[j];
    }
    rb_lora_split(out[0], site, u, sv, vt);
    return FL_OK;
}

static fl_err rb_lora_aggregate(fl_run *run, fl_pile *in)
{
    double *rows = fl_scratch(run, 2 * (size_t)run->nsites, sizeof *rows), all = 0, kept = 0;

    FL_TRY(fl_sites(run, in, rb_lora_site, NULL, 1, &run->global, 2, rows));
    for (int j = 0; j < run->nsites; j++) {
        all += rows[2 * j];
        kept += rows[2 * j + 1];
    }
    fl_metric(run, "discarded_energy", all > 0 ? fmax(0, 1 - kept / all) : 0);
    return FL_OK;
}

const fl_method fl_method_rb_lora = {
    .name = "rb_lora",
    .title = "FlexLoRA with every rank-1 pair averaged over its holders",
    .source = "Ha 2026, Findings of EACL 2026",
    .choice = "the balancing weight is put on the products, once; redistribution by the SVD as in "
              "FlexLoRA (the published code slices V for V'); discordance is measured against the "
              "unbalanced mean.",
    .needs = FL_HETERO | FL_EACH | FL_LORA_ONLY,
    .download = rb_lora_download,
    .aggregate = rb_lora_aggregate,
};
