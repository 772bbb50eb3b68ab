/* fedpipe - every client adapts the matrices that its budget allows, at a rank that fits, over a
 * base of as many bits as it can hold. Source: Fang et al. 2024 (FedPipe, arXiv 2404.06448), from
 * abstract and summaries: no official code was found, the details below are ours. "FedPipe-like",
 * not a reproduction. client k  has q_k bits, rank r_k and a budget: the share f_k of the
 * parameters that all matrices at rank r_k would have. It takes matrices in order of importance at
 * rank r_k while they fit, and the next one at the largest rank that still does (one matrix at
 * least). training  A, B of its matrices over the base quantised to q_k bits (4: NormalFloat in
 * blocks of 64, 8: absmax, 0: as it is); other matrices are the base's. importance of a matrix:
 * AdaLoRA's rule. For pair i with singular value l, left and right vector (B_i = u l / s, A_i =
 * v'): score = S(l) + mean S(B_i) + mean S(A_i), S = I U from the smoothed I = |w dL/dw| and its
 * smoothed deviation U (for l: |sum_j B_ji dL/dB_ji|); of a matrix: the sum over its pairs,
 * averaged by p_k over those who adapted it. What nobody has measured yet comes first, in an order
 * drawn for every client and round. server    dW = sum_k p_k s_k B_k A_k / sum_k p_k over those who
 * adapted the matrix (normalise: all: without the division), split by SVD: s B = U S, A = V'; a
 * client gets its first pairs. Pairs beyond the rank of dW start again from A's start and B = 0.
 * One group, all matrices, equal ranks, 0 bits: FlexLoRA.
 * Traffic: sum r_kw (m + n) over the client's matrices, each way; down one byte a matrix (its
 * rank), up one score for every matrix of the client. The column matrices is their mean number. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct fedpipe_config {
    fl_ints bits;
    fl_reals bits_share, budget, budget_share;
    int normalise;
    double beta;
} fedpipe_config;
enum { BY_HOLDERS, BY_ALL };

static const fl_field fedpipe_fields[] = {
    FL_INTS(fedpipe_config, bits, "[4, 8, 0]", 0, 8, "bits",
        "what clients' bases are quantised to: 4, 8, or 0 = not at all"),
    FL_REALS(fedpipe_config, bits_share, "[0.25, 0.25, 0.5]", 0, 1, "", "shares of the clients"),
    FL_REALS(fedpipe_config, budget, "[0.5, 1.0]", 0, 1, "",
        "share of all adapter parameters of its rank that a client can train"),
    FL_REALS(fedpipe_config, budget_share, "[0.5, 0.5]", 0, 1, "", "shares of the clients"),
    FL_WORD(fedpipe_config, normalise, "holders", "holders|all",
        "mean over those who adapted the matrix, or over all who took part"),
    FL_REAL(fedpipe_config, beta, "0.85", 0, 0.999999, "", "smoothing of the sensitivity"),
    FL_END,
};

/* ---- what a client can do: a function of the seed ---- */
static int drawn(const fl_run *run, int what, int id, const fl_reals *share)
{
    double u = fl_uniform(run, what, id, 0, 0);
    int i = 0;

    for (double upto = share->x[0]; i + 1 < share->n && u >= upto; upto += share->x[i]) {
        i++;
    }
    return i;
}

static fl_err check_shares(const char *key, int n, const fl_reals *share)
{
    double sum = 0;

    for (int i = 0; i < share->n; i++) {
        sum += share->x[i];
    }
    if (n == 0 || share->n != n || fabs(sum - 1) > 1e-6) {
        return fl_fail(FL_EDECK,
            "fedpipe.%s_share: %d shares of sum %.6g for the %d values of fedpipe.%s; write one "
            "for "
            "each, of sum 1",
            key, share->n, sum, n, key);
    }
    return FL_OK;
}

/* numbers of the quantised bases of 4 and 8 bits, for fl_stack */
static double *kept_bases(fl_run *run)
{
    return fl_keep(run, NULL, "bases", 0, 2, "numbers of the bases of 4 and of 8 bits", NULL);
}

static double *kept_importance(fl_run *run)
{
    return fl_keep(run, NULL, "importance", 0, (size_t)run->nsites,
        "importance of a matrix, -1 = not measured yet", NULL);
}

static fl_err fedpipe_setup(fl_run *run)
{
    const fedpipe_config *cf = run->config;
    double *bases = kept_bases(run), *importance = kept_importance(run);

    FL_TRY(check_shares("bits", cf->bits.n, &cf->bits_share));
    FL_TRY(check_shares("budget", cf->budget.n, &cf->budget_share));
    for (int i = 0; i < cf->bits.n; i++) {
        int bits = cf->bits.x[i], at = bits == 8;

        if (bits != 0 && bits != 4 && bits != 8) {
            return fl_fail(
                FL_EDECK, "fedpipe.bits: %d; there are 4, 8 and 0 (not quantised)", bits);
        }
        if (bits > 0 && bases[at] == 0) {
            int base = fl_base_bits(run, bits);

            if (base < 0) {
                return FL_EFILE; /* and the sentence is there */
            }
            bases[at] = base;
        }
    }
    for (int j = 0; j < run->nsites; j++) {
        importance[j] = -1;
    }
    return FL_OK;
}

/* ---- the plan of one client ---- */
/* matrices, most important first */
static int *order_of_sites(fl_run *run, int id, int *n)
{
    const double *importance = kept_importance(run);
    int *site = fl_scratch(run, (size_t)run->nsites, sizeof *site);

    *n = 0;
    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            site[(*n)++] = j;
        }
    }
    fl_shuffle(run, 2, id, run->round.t, *n, site);
    for (int i = 1; i < *n; i++) { /* stable: those of equal rank keep their order */
        for (int j = i; j > 0; j--) {
            double a = importance[site[j - 1]], b = importance[site[j]];

            if (a < 0 || (b >= 0 && a >= b)) {
                break;
            }
            int swap = site[j];

            site[j] = site[j - 1];
            site[j - 1] = swap;
        }
    }
    return site;
}

/* rank of every matrix, 0 = not adapted */
static int *plan_of(fl_run *run, int id, int r_k)
{
    const fedpipe_config *cf = run->config;
    const fl_space *sp = run->space;
    int n, *site = order_of_sites(run, id, &n), i = 0;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    double left = 0;

    for (int j = 0; j < run->nsites; j++) {
        left += FL_MIN(r_k, sp->r[j]) * ((double)sp->m[j] + sp->n_in[j]);
    }
    left *= cf->budget.x[drawn(run, 1, id, &cf->budget_share)];
    for (; i < n; i++) {
        double each = (double)sp->m[site[i]] + sp->n_in[site[i]];
        int want = FL_MIN(r_k, sp->r[site[i]]);
        int fits = (int)fmin(want, floor(left / each * (1 + 1e-12)));

        r[site[i]] = i == 0 ? FL_MAX(fits, 1) : fits;
        left -= r[site[i]] * each;
        if (fits < want) {
            break;
        }
    }
    return r;
}

static fl_err fedpipe_download(fl_run *run, fl_client *c, fl_msg *down)
{
    int *r = plan_of(run, c->id, c->r), n = 0;
    double *ranks = fl_scratch(run, (size_t)run->nsites, sizeof *ranks);
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, r, 0));

    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            ranks[n++] = r[j];
        }
    }
    fl_fit_product(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .values = run->round.t == 1 ? FL_KNOWN : FL_SENT});
    fl_put(down, "ranks", ranks, (size_t)n, 8);
    return FL_OK;
}

/* ---- the client ---- */
enum {
    ADAPTER,
    MEAN,
    DEVIATION,
    PAIR_MEAN,
    PAIR_DEVIATION
}; /* c->ad; the pairs': PLAIN, 1 x pairs */

static fl_err fedpipe_train(fl_run *run, fl_client *c)
{
    const fedpipe_config *cf = run->config;
    const fl_space *sp = c->ad[ADAPTER]->space;
    int bits = cf->bits.x[drawn(run, 0, c->id, &cf->bits_share)];
    int one = 1, pairs = fl_pair_first(sp, sp->nsites);
    fl_job job = fl_job_of(run, c);

    for (int i = MEAN; i <= PAIR_DEVIATION; i++) {
        c->ad[i] =
            fl_scratch_adapter(run, i < PAIR_MEAN ? sp : fl_space_plain(run, 1, &one, &pairs));
    }
    job.stack.base = bits > 0 ? (int)kept_bases(run)[bits == 8] : 0;
    return fl_train(run, c, &job);
}

/* I <- b I + (1 - b) now,  U <- b U + (1 - b) |now - I| */
static void smooth(double b, double now, fl_real *mean, fl_real *deviation)
{
    double m = b * (double)*mean + (1 - b) * now;

    *mean = (fl_real)m;
    *deviation = (fl_real)(b * (double)*deviation + (1 - b) * fabs(now - m));
}

static fl_err fedpipe_step(fl_run *run, fl_client *c, fl_step *s)
{
    const fedpipe_config *cf = run->config;
    const fl_adapter *ad = c->ad[ADAPTER], *g = s->grad[0];

    if (s->when != FL_GRAD) {
        return FL_OK;
    }
    for (size_t e = 0; e < ad->space->n; e++) {
        smooth(cf->beta, fabs((double)ad->v[e] * (double)g->v[e]), &c->ad[MEAN]->v[e],
            &c->ad[DEVIATION]->v[e]);
    }
    for (int j = 0; j < run->nsites; j++) {
        fl_mat b = fl_at(ad, j, FL_B), gb = fl_at(g, j, FL_B);
        int first = fl_pair_first(ad->space, j);

        for (int i = 0; i < b.cols; i++) {
            double sum = 0;

            for (int k = i; k < b.rows * b.cols; k += b.cols) {
                sum += (double)b.x[k] * (double)gb.x[k];
            }
            smooth(cf->beta, fabs(sum), &c->ad[PAIR_MEAN]->v[first + i],
                &c->ad[PAIR_DEVIATION]->v[first + i]);
        }
    }
    return FL_OK;
}

/* sum over the pairs of S(l) + mean S(B_i) + mean S(A_i) */
static double score_of(const fl_client *c, int site)
{
    const fl_space *sp = c->ad[ADAPTER]->space;
    double sum = 0;

    for (int f = FL_A; f <= FL_B; f++) {
        fl_mat m = fl_at(c->ad[MEAN], site, (fl_factor)f);
        fl_mat d = fl_at(c->ad[DEVIATION], site, (fl_factor)f);

        for (int i = 0; i < m.rows * m.cols; i++) {
            sum += (double)m.x[i] * (double)d.x[i] / (f == FL_A ? m.cols : m.rows);
        }
    }
    for (int i = 0, first = fl_pair_first(sp, site); i < sp->r[site]; i++) {
        sum += (double)c->ad[PAIR_MEAN]->v[first + i] * (double)c->ad[PAIR_DEVIATION]->v[first + i];
    }
    return sum;
}

/* label of uploads: not 0, as a sum over all clients is not what the server is after, so that a
 * distance from it (the column discordance) would mean nothing */
enum { PARTLY = 1 };

static fl_err fedpipe_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    double *score = fl_scratch(run, (size_t)run->nsites, sizeof *score);
    size_t n = 0;

    for (int j = 0; j < run->nsites; j++) {
        if (c->ad[ADAPTER]->space->r[j] > 0) {
            score[n++] = score_of(c, j);
        }
    }
    fl_send(up, (fl_part){.ad = c->ad[ADAPTER], .ref = c->got[ADAPTER], .label = PARTLY});
    fl_put(up, "score", score, n, 32);
    return FL_OK;
}

/* ---- the server ---- */
static fl_err take_scores(fl_run *run, fl_pile *in)
{
    double *rows = fl_scratch(run, (size_t)in->n * (size_t)run->nsites, sizeof *rows);
    double *importance = kept_importance(run), matrices = 0;
    int *at = fl_scratch(run, (size_t)in->n, sizeof *at);

    FL_TRY(fl_numbers(run, in, "score", run->nsites, rows));
    for (int j = 0; j < run->nsites; j++) {
        double sum = 0, weight = 0;

        for (int k = 0; k < in->n; k++) {
            const fl_item *it = &in->item[k];

            if (it->space->r[j] > 0) {
                sum += it->p * rows[(size_t)k * (size_t)run->nsites + (size_t)at[k]++];
                weight += it->p;
            }
        }
        importance[j] = weight > 0 ? sum / weight : importance[j];
    }
    for (int k = 0; k < in->n; k++) {
        matrices += (double)at[k] / in->n;
    }
    fl_metric(run, "matrices", matrices);
    return FL_OK;
}

static fl_err fedpipe_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const fedpipe_config *cf = run->config;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    fl_mat start = fl_at(arg, site, FL_A);
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w), weight = 0, *bs, *as;
    double s = out[0]->space->scale[site];
    int64_t nstack;
    int r = a.rows;

    (void)row;
    for (int k = 0; k < in->n; k++) {
        w[k] = in->item[k].space->r[site] > 0 ? in->item[k].p : 0;
        weight += w[k];
    }
    if (weight == 0) {
        return FL_OK; /* nobody adapted it: it stays */
    }
    for (int k = 0; k < in->n && cf->normalise == BY_HOLDERS; k++) {
        w[k] /= weight;
    }
    fl_site_stack(run, site, in, PARTLY, w, &nstack, &bs, &as);
    double *u = fl_scratch(run, (size_t)b.rows * (size_t)r, sizeof *u);
    double *sv = fl_scratch(run, (size_t)r, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)r * (size_t)a.cols, sizeof *vt);

    FL_TRY(fl_site_svd(run, site, nstack, bs, as, r, u, sv, vt));
    for (int i = 0; i < b.rows * r; i++) {
        b.x[i] = (fl_real)(sv[i % r] > 1e-9 * sv[0] ? u[i] * sv[i % r] / s : 0);
    }
    for (int i = 0; i < r * a.cols; i++) {
        a.x[i] = sv[i / a.cols] > 1e-9 * sv[0] ? (fl_real)vt[i] : start.x[i];
    }
    return FL_OK;
}

static fl_err fedpipe_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *start = fl_scratch_adapter(run, run->space);

    FL_TRY(fl_fill(run, start, -1, 0));
    FL_TRY(take_scores(run, in));
    return fl_sites(run, in, fedpipe_site, start, 1, &run->global, 0, NULL);
}

const fl_method fl_method_fedpipe = {
    .name = "fedpipe",
    .title = "matrices, ranks and bits by every client's budget (FedPipe-like)",
    .source = "Fang et al. 2024, arXiv 2404.06448",
    .choice =
        "known from abstract and summaries only, so this is like FedPipe, not FedPipe: the "
        "importance of a matrix is AdaLoRA's sensitivity, the mixed-integer plan is greedy by "
        "importance, the budget counts parameters, batches are equal for all, redistribution is "
        "FlexLoRA's, normalising over those who adapted the matrix is our reading. Quantisation "
        "rounds the values of the base's adapted tensors; the arithmetic stays in float. Evaluated "
        "over the base as it is.",
    .needs = FL_HETERO | FL_EACH | FL_NUMBERS | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(fedpipe_config),
    .config = fedpipe_fields,
    .setup = fedpipe_setup,
    .download = fedpipe_download,
    .train = fedpipe_train,
    .step = fedpipe_step,
    .upload = fedpipe_upload,
    .aggregate = fedpipe_aggregate,
};
