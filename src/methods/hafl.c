/* hafl - rank-1 pairs have importance scores; weak clients train their most important pairs only.
 * Source: Su et al. 2024 (HAFL, arXiv 2411.06581); survey section 5; abstract only, no code.
 * Client k has a budget of k_k pairs a matrix, M_k = its k_k pairs of highest score.
 *   score     I_i <- beta I_i + (1 - beta) (mean_j |A_ij dL/dA_ij| + mean_j |B_ji dL/dB_ji|) at
 *             every local step (smoothed sensitivity, as in AdaLoRA)
 *   freeze    the client has all r pairs, trains those in M_k: distribution changes nothing
 *   truncate  the client gets the pairs of M_k alone: a smaller model, another function
 *   server    X_i = sum_{k: i in M_k} p_k X_{k,i} / sum_{k: i in M_k} p_k, else unchanged.
 * State: a client keeps its scores. While B = 0 all scores are 0: M_k is random in the first rounds
 * and in a client's first. Upload: |M_k| (m + n) and which they are. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct hafl_config {
    int scheme;
    double share, beta;
    int warmup;
} hafl_config;

enum { FREEZE, TRUNCATE };

static const fl_field hafl_fields[] = {
    FL_WORD(hafl_config, scheme, "freeze", "freeze|truncate",
        "all pairs are sent and the unimportant ones frozen, or the important ones alone are sent"),
    FL_REAL(hafl_config, share, "1", 0, 1, "",
        "budget of a client as a share of its rank in the deck; of the largest rank in all"),
    FL_REAL(hafl_config, beta, "0.85", 0, 0.999999, "", "memory of the scores, per local step"),
    FL_INT(hafl_config, warmup, "1", 0, 1000000, "", "first rounds in which pairs are random"),
    FL_END,
};

/* the client's: scores of all pairs, and which of them this turn works on */
static double *score_of(fl_run *run, fl_client *c, double **chosen, bool *fresh)
{
    size_t n = (size_t)fl_pair_first(run->space, run->nsites);
    double *x = fl_keep(run, c, "score", 0, 2 * n,
        "smoothed sensitivity of every rank-1 pair; chosen in the last turn", fresh);

    *chosen = x + n;
    return x;
}

static const uint64_t *chosen_pairs(fl_run *run, fl_client *c)
{
    size_t n = (size_t)fl_pair_first(run->space, run->nsites);
    uint64_t *pairs = fl_bits(run, n);
    double *chosen;

    score_of(run, c, &chosen, NULL);
    for (size_t i = 0; i < n; i++) {
        if (chosen[i] > 0) {
            fl_bit_set(pairs, i);
        }
    }
    return pairs;
}

/* M_k for this turn */
static void choose(fl_run *run, fl_client *c)
{
    const hafl_config *cf = run->config;
    int k = (int)fmax(1, floor(cf->share * c->r + 0.5));
    size_t n = (size_t)fl_pair_first(run->space, run->nsites);
    uint64_t *pairs = fl_bits(run, n);
    double *chosen, *score;
    bool fresh;

    score = score_of(run, c, &chosen, &fresh);
    if (fresh || run->round.t <= cf->warmup) {
        pairs = fl_random_pairs(run, 0, run->space, c->id, run->round.t, k, true);
    } else {
        for (int j = 0; j < run->nsites; j++) {
            size_t first = (size_t)fl_pair_first(run->space, j);

            fl_top(run, (size_t)run->space->r[j], score + first, (size_t)k, pairs, first);
        }
    }
    for (size_t i = 0; i < n; i++) {
        chosen[i] = fl_bit(pairs, i);
    }
}

/* pair i of `to` = pair k of `from` at one site */
static void copy_pair(fl_adapter *to, int i, const fl_adapter *from, int k, int site)
{
    fl_mat a = fl_at(to, site, FL_A), b = fl_at(to, site, FL_B);
    fl_mat fa = fl_at(from, site, FL_A), fb = fl_at(from, site, FL_B);

    for (int l = 0; l < a.cols; l++) {
        a.x[i * a.cols + l] = fa.x[k * fa.cols + l];
    }
    for (int l = 0; l < b.rows; l++) {
        b.x[l * b.cols + i] = fb.x[l * fb.cols + k];
    }
}

static fl_err hafl_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const hafl_config *cf = run->config;
    const fl_space *sp = run->space;
    int *r = fl_scratch(run, (size_t)sp->nsites, sizeof *r);

    choose(run, c); /* the client's choice; under truncate it asks for these pairs */
    if (cf->scheme == FREEZE) {
        fl_send(down, (fl_part){.ad = run->global, .of = run->global});
        return FL_OK;
    }
    const uint64_t *pairs = chosen_pairs(run, c);

    for (int j = 0; j < sp->nsites; j++) {
        for (int i = 0; i < sp->r[j]; i++) {
            r[j] += fl_bit(pairs, (size_t)(fl_pair_first(sp, j) + i));
        }
    }
    fl_adapter *part = fl_scratch_adapter(run, fl_space_scales(run, r, sp->scale));

    for (int j = 0; j < sp->nsites; j++) {
        for (int i = 0, at = 0; i < sp->r[j]; i++) {
            if (fl_bit(pairs, (size_t)(fl_pair_first(sp, j) + i))) {
                copy_pair(part, at++, run->global, i, j);
            }
        }
    }
    fl_send(down, (fl_part){.ad = part});
    return FL_OK;
}

static fl_err hafl_train(fl_run *run, fl_client *c)
{
    const hafl_config *cf = run->config;
    fl_job job = fl_job_of(run, c);

    if (cf->scheme == FREEZE) {
        job.train[0].pairs = chosen_pairs(run, c);
    }
    return fl_train(run, c, &job);
}

/* mean |x dL/dx| over row i of A and over column i of B */
static double sensitivity(const fl_adapter *ad, const fl_adapter *grad, int site, int i)
{
    fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);
    fl_mat ga = fl_at(grad, site, FL_A), gb = fl_at(grad, site, FL_B);
    double ea = 0, eb = 0;

    for (int l = 0; l < a.cols; l++) {
        ea += fabs((double)a.x[i * a.cols + l] * ga.x[i * a.cols + l]);
    }
    for (int l = 0; l < b.rows; l++) {
        eb += fabs((double)b.x[l * b.cols + i] * gb.x[l * b.cols + i]);
    }
    return ea / a.cols + eb / b.rows;
}

static fl_err hafl_step(fl_run *run, fl_client *c, fl_step *s)
{
    const hafl_config *cf = run->config;
    const fl_adapter *ad = s->job->stack.ad[0];
    double *chosen, *score;

    if (s->when != FL_GRAD) {
        return FL_OK;
    }
    score = score_of(run, c, &chosen, NULL);
    for (int j = 0; j < run->nsites; j++) {
        int first = fl_pair_first(run->space, j);

        for (int i = 0, at = 0; i < run->space->r[j]; i++) {
            if (cf->scheme == FREEZE || chosen[first + i] > 0) { /* frozen pairs have gradients */
                score[first + i] = cf->beta * score[first + i] +
                                   (1 - cf->beta) * sensitivity(ad, s->grad[0], j, at++);
            }
        }
    }
    return FL_OK;
}

static fl_err hafl_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const hafl_config *cf = run->config;
    const fl_space *sp = run->space;
    fl_adapter *all = c->ad[0];
    const uint64_t *pairs = chosen_pairs(run, c);

    if (cf->scheme == TRUNCATE) {
        all = fl_scratch_copy(run, run->global);
        for (int j = 0; j < sp->nsites; j++) {
            for (int i = 0, at = 0; i < sp->r[j]; i++) {
                if (fl_bit(pairs, (size_t)(fl_pair_first(sp, j) + i))) {
                    copy_pair(all, i, c->ad[0], at++, j);
                }
            }
        }
    }
    fl_send(up, (fl_part){.ad = all, .ref = run->global, .pick.pairs = pairs});
    return FL_OK;
}

static fl_err hafl_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = FL_HOLDERS}, &run->global);
}

const fl_method fl_method_hafl = {
    .name = "hafl",
    .title = "clients train their most important rank-1 pairs, the others frozen or not sent",
    .source = "Su et al. 2024, arXiv 2411.06581",
    .choice = "every client scores its pairs itself, on its own gradients, and chooses as many in "
              "every matrix; under truncate pairs that it does not have keep their scores; beta "
              "is AdaLoRA's; budgets are the deck's ranks.",
    .needs = FL_HETERO | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(hafl_config),
    .config = hafl_fields,
    .download = hafl_download,
    .train = hafl_train,
    .step = hafl_step,
    .upload = hafl_upload,
    .aggregate = hafl_aggregate,
};
