/* hetlora - unequal ranks by zero padding, weights by the size of the update, an unused tail given
 * up. Source: Cho et al. 2024 (HETLoRA, arXiv 2401.06432); survey section 4.1, Eq. 12. No official
 * code. Client k holds the pairs 1 .. r_k of the server's A (r x n), B (m x r).
 *   tail    the pairs beyond t = floor(gamma r_k);  tau = sum_sites ||B[:, t:]|| ||A[t:, :]||
 *   client  loss + lambda tau;  if tau is smaller after training than before: r_k <- max(r_min, t)
 *   server  S_k = ||B_k A_k||,  w_k = S_k / sum_j S_j,  A = sum_k w_k pad(A_k),  B alike.
 * Zero padding shrinks a pair by q_i^2 a round even when nobody trains; q_i = weight of those that
 * have it. With weights: samples, w_k = p_k, this is plain zero padding. scale: common is one s for
 * all; absorb trains client k at its own s_k = alpha / r_k and pads sqrt(s_k / s) A_k and B_k, so
 * that s B A means the same on both sides. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct hetlora_config {
    double gamma, lambda;
    int r_min;
    int weights, scale;
    double floor;
} hetlora_config;

enum { BY_CLIENT, BY_MATRIX, BY_SAMPLES };
enum { COMMON, ABSORB };

static const fl_field hetlora_fields[] = {
    FL_REAL(hetlora_config, gamma, "0.99", 0, 1, "", "share of a client's pairs that is not tail"),
    FL_REAL(hetlora_config, lambda, "1.0e-3", 0, 1e6, "", "weight of the tail's norm in the loss"),
    FL_INT(hetlora_config, r_min, "5", 1, 1000000, "", "no client is pruned below this LoRA rank"),
    FL_WORD(hetlora_config, weights, "client", "client|matrix|samples",
        "norm of a client's whole update, norm per adapted matrix, or the deck's weights"),
    FL_WORD(hetlora_config, scale, "common", "common|absorb",
        "one scale for all, or alpha / r_k absorbed into the factors before padding"),
    FL_REAL(hetlora_config, floor, "1.0e-9", 1e-30, 1, "",
        "added to S_k, times p_k: nobody's weight is 0, untrained rounds use p_k"),
    FL_END,
};

/* [nclients] ranks after pruning, 0 = the deck's; the server's: a client whose message was lost
 * keeps the rank it had */
static double *rank_table(fl_run *run)
{
    return fl_keep(
        run, NULL, "r", 0, (size_t)run->nclients, "rank of a client, 0 = the deck's", NULL);
}

static fl_err hetlora_setup(fl_run *run)
{
    rank_table(run);
    return FL_OK;
}

static int tail_start(const hetlora_config *cf, int r)
{
    return (int)floor(cf->gamma * r + 1e-9); /* 0.7 * 90 is 62.999.. in binary */
}

/* squares of the tail of one site: columns t.. of B, rows t.. of A */
static void tail_squares(const fl_adapter *ad, int site, int t, double *b2, double *a2)
{
    fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);

    *a2 = *b2 = 1e-12; /* the product of norms has no derivative at 0 */
    for (int i = t * a.cols; i < a.rows * a.cols; i++) {
        *a2 += (double)a.x[i] * a.x[i];
    }
    for (int i = 0; i < b.rows * b.cols; i++) {
        *b2 += i % b.cols >= t ? (double)b.x[i] * b.x[i] : 0;
    }
}

static double tail_score(const hetlora_config *cf, const fl_adapter *ad)
{
    double sum = 0, a2, b2;

    for (int site = 0; site < ad->space->nsites; site++) {
        int t = tail_start(cf, ad->space->r[site]);

        if (t < ad->space->r[site]) {
            tail_squares(ad, site, t, &b2, &a2);
            sum += sqrt(a2 * b2);
        }
    }
    return sum;
}

/* the first r pairs; absorb: at their own scale, the product of each as it was */
static fl_adapter *cut_to(fl_run *run, const fl_adapter *from, int r)
{
    const hetlora_config *cf = run->config;
    const fl_space *sp = cf->scale == ABSORB ? fl_space_at(run, run->space, NULL, r)
                                             : fl_space_cut(run, run->space, r);
    fl_adapter *ad = fl_scratch_adapter(run, sp);

    fl_fit(ad, from);
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        double f = sqrt(from->space->scale[s->site] / sp->scale[s->site]);

        for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
            ad->v[s->at + j] = (fl_real)(f * ad->v[s->at + j]);
        }
    }
    return ad;
}

static fl_err hetlora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    int r = (int)rank_table(run)[c->id];

    fl_send(down, (fl_part){.ad = cut_to(run, run->global, r > 0 ? r : c->r), .of = run->global});
    return FL_OK;
}

static fl_err hetlora_train(fl_run *run, fl_client *c)
{
    const hetlora_config *cf = run->config;
    fl_job job = fl_job_of(run, c);
    int r = c->ad[0]->space->rmax, t = tail_start(cf, r);
    double before = tail_score(cf, c->ad[0]);

    FL_TRY(fl_train(run, c, &job));
    if (t < r && r > cf->r_min && tail_score(cf, c->ad[0]) < before) {
        c->ad[0] = cut_to(run, c->ad[0], t > cf->r_min ? t : cf->r_min);
    }
    return FL_OK;
}

/* lambda d tau / dA[i,:] = lambda ||B[:, t:]|| / ||A[t:, :]|| A[i,:] for i >= t; B alike */
static fl_err hetlora_step(fl_run *run, fl_client *c, fl_step *s)
{
    const hetlora_config *cf = run->config;
    const fl_adapter *ad = s->job->stack.ad[0];

    (void)c;
    if (s->when != FL_GRAD) {
        return FL_OK;
    }
    *s->loss += cf->lambda * tail_score(cf, ad);
    for (int site = 0; site < run->nsites; site++) {
        fl_mat a = fl_at(ad, site, FL_A), ga = fl_at(s->grad[0], site, FL_A);
        fl_mat b = fl_at(ad, site, FL_B), gb = fl_at(s->grad[0], site, FL_B);
        int t = tail_start(cf, a.rows);
        double a2, b2;

        tail_squares(ad, site, t, &b2, &a2);
        for (int i = t * a.cols; i < a.rows * a.cols; i++) {
            ga.x[i] += (fl_real)(cf->lambda * sqrt(b2 / a2) * a.x[i]);
        }
        for (int i = 0; i < b.rows * b.cols; i++) {
            gb.x[i] += i % b.cols >= t ? (fl_real)(cf->lambda * sqrt(a2 / b2) * b.x[i]) : 0;
        }
    }
    return FL_OK;
}

static fl_err hetlora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0]});
    fl_charge(run, c, true, "rank", 4);
    return FL_OK;
}

/* row[k] = ||B_k A_k||, with s_k where it is absorbed */
static fl_err site_norms(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const hetlora_config *cf = run->config;

    (void)out;
    (void)arg;
    for (int k = 0; k < in->n; k++) {
        const fl_item *it = &in->item[k];

        if (it->space->r[site] > 0) {
            row[k] = sqrt(fl_dot(it->ad, it->ad, site, FL_PRODUCT));
            row[k] /= cf->scale == COMMON ? it->space->scale[site] : 1;
        }
    }
    return FL_OK;
}

/* norms [nsites][in->n] into weights, each site's sum 1 */
static void weigh(fl_run *run, const fl_pile *in, double *w)
{
    const hetlora_config *cf = run->config;
    size_t n = (size_t)in->n;

    for (size_t k = 0; k < n && cf->weights == BY_CLIENT; k++) {
        double sum = 0;

        for (size_t j = 0; j < (size_t)run->nsites; j++) {
            sum += w[j * n + k];
        }
        for (size_t j = 0; j < (size_t)run->nsites; j++) {
            w[j * n + k] = sum;
        }
    }
    for (size_t j = 0; j < (size_t)run->nsites; j++) {
        double sum = 0;

        for (size_t k = 0; k < n; k++) {
            double p = in->item[k].p;

            w[j * n + k] = cf->weights == BY_SAMPLES ? p : w[j * n + k] + cf->floor * p;
            sum += w[j * n + k];
        }
        for (size_t k = 0; k < n; k++) {
            w[j * n + k] /= sum;
        }
    }
}

/* one factor of one site: x = sum_k w_k f_k pad(x_k) */
static void pad_and_add(
    fl_run *run, int site, fl_factor f, const fl_pile *in, const double *w, fl_adapter *out)
{
    const hetlora_config *cf = run->config;
    fl_mat to = fl_at(out, site, f);
    double *sum = fl_scratch(run, (size_t)to.rows * (size_t)to.cols, sizeof *sum);

    for (int k = 0; k < in->n; k++) {
        const fl_item *it = &in->item[k];
        fl_mat x = fl_at(it->ad, site, f);
        double c = w[k];

        if (x.x == NULL) {
            continue;
        }
        c *= cf->scale == ABSORB ? sqrt(it->space->scale[site] / out->space->scale[site]) : 1;
        for (int i = 0; i < FL_MIN(x.rows, to.rows); i++) {
            for (int j = 0; j < FL_MIN(x.cols, to.cols); j++) {
                sum[i * to.cols + j] += c * x.x[i * x.cols + j];
            }
        }
    }
    for (int i = 0; i < to.rows * to.cols; i++) {
        to.x[i] = (fl_real)sum[i];
    }
}

static fl_err site_sum(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const double *w = (const double *)arg + (size_t)site * (size_t)in->n;

    (void)row;
    pad_and_add(run, site, FL_A, in, w, out[0]);
    pad_and_add(run, site, FL_B, in, w, out[0]);
    return FL_OK;
}

static fl_err hetlora_aggregate(fl_run *run, fl_pile *in)
{
    double *w = fl_scratch(run, (size_t)run->nsites * (size_t)in->n, sizeof *w);
    double *r = rank_table(run), sum = 0;

    FL_TRY(fl_sites(run, in, site_norms, NULL, 0, NULL, in->n, w));
    weigh(run, in, w);
    FL_TRY(fl_sites(run, in, site_sum, w, 1, &run->global, 0, NULL));
    for (int k = 0; k < in->n; k++) {
        r[in->item[k].client] = in->item[k].space->rmax;
        sum += in->item[k].space->rmax;
    }
    fl_metric(run, "mean_rank", sum / in->n);
    return FL_OK;
}

const fl_method fl_method_hetlora = {
    .name = "hetlora",
    .title = "unequal ranks: zero padding, weights by norm, pruning of unused pairs",
    .source = "Cho et al. 2024, arXiv 2401.06432",
    .choice = "one weight per client, S_k = sum over the adapted matrices of ||B_k A_k||, or one "
              "per matrix; floor p_k is added to S_k, so that no weight is 0; the default lambda "
              "is that of FlexLoRA's baseline; one scale for all clients unless scale: absorb.",
    .needs = FL_HETERO | FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(hetlora_config),
    .config = hetlora_fields,
    .setup = hetlora_setup,
    .download = hetlora_download,
    .train = hetlora_train,
    .step = hetlora_step,
    .upload = hetlora_upload,
    .aggregate = hetlora_aggregate,
};
