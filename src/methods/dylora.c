/* dylora - every local step trains a random prefix of the pairs, so that any prefix is usable.
 * Source: Valipour et al. 2022 (DyLoRA, arXiv 2210.07558); the layers as vendored in FeDylora. The
 * federation is ours: rbla's mean of the pairs. A client of rank r_k draws b in {1 .. r_k} at every
 * step and runs y = W x + (alpha / b) B[:, :b] A[:b, :] x; all b pairs get gradients, or (frozen)
 * pair b alone. Evaluated: all pairs of the server at alpha / r. (The official code puts
 * sqrt(r / b) on each factor on top of alpha / r, and counts b from 0.)
 * Pairs that a step does not train do not move in it, not even by momentum or decay. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct dylora_config {
    bool frozen;
    int lowest;
    fl_ints report;
} dylora_config;

static const fl_field dylora_fields[] = {
    FL_BOOL(dylora_config, frozen, "false", "only the last pair of the prefix is trained"),
    FL_INT(dylora_config, lowest, "1", 1, 1000000, "",
        "shortest prefix drawn; from a client's rank on: always all of its pairs"),
    FL_INTS(dylora_config, report, "[]", 1, 1000000, "",
        "ranks b: columns valid_loss_rB, the loss of the first b pairs that the cohort received"),
    FL_END,
};

/* what the step hook remembers between its calls */
typedef struct prefix {
    int b;            /* of this step; 0 = none is in force */
    fl_adapter *full; /* all pairs as they were before the step */
} prefix;

/* alpha / b in units of the adapter's own scale */
static double scale_of_prefix(fl_run *run, const fl_space *sp, int b)
{
    const fl_space *at = fl_space_at(run, sp, NULL, b);
    int site = 0;

    while (sp->r[site] < sp->rmax) {
        site++;
    }
    return at->scale[site] / sp->scale[site];
}

/* pairs beyond b leave the forward pass */
static void hide(fl_adapter *ad, int b)
{
    for (int j = 0; j < ad->space->nsites; j++) {
        fl_mat x = fl_at(ad, j, FL_B);

        for (int i = 0; i < x.rows * x.cols; i++) {
            x.x[i] = i % x.cols < b ? x.x[i] : 0;
        }
    }
}

/* x = y at the pairs outside [from, b); y NULL: 0 */
static void outside(fl_adapter *x, const fl_adapter *y, int from, int b)
{
    for (int i = 0; i < x->space->nslots; i++) {
        const fl_slot *s = &x->space->slot[i];

        for (int e = 0; e < s->rows * s->cols; e++) {
            int pair = s->factor == FL_A ? e / s->cols : e % s->cols;

            if (pair < from || pair >= b) {
                x->v[s->at + (size_t)e] = y != NULL ? y->v[s->at + (size_t)e] : 0;
            }
        }
    }
}

static fl_err dylora_step(fl_run *run, fl_client *c, fl_step *s)
{
    const dylora_config *cf = run->config;
    fl_adapter *ad = s->job->stack.ad[0];
    prefix *now = s->job->arg;
    int r = ad->space->rmax, low = FL_MIN(cf->lowest, r), from = cf->frozen ? now->b - 1 : 0;

    if (s->when == FL_BEFORE) {
        double u = fl_uniform(run, 0, c->id, run->round.t, (uint64_t)s->i);

        if (now->b > 0) { /* the last step had no targets and was left out */
            outside(ad, now->full, 0, 0);
        }
        memcpy(now->full->v, ad->v, ad->space->n * sizeof *ad->v);
        now->b = low + (int)(u * (r - low + 1));
        s->job->stack.coef[0] = scale_of_prefix(run, ad->space, now->b);
        hide(ad, now->b);
    } else if (s->when == FL_GRAD) {
        outside(s->grad[0], NULL, from, now->b);
    } else {
        outside(ad, now->full, from, now->b);
        now->b = 0;
    }
    return FL_OK;
}

/* loss of the received prefixes on the client's validation data: (mean, targets) each */
static fl_err measure(fl_run *run, fl_client *c, double *x)
{
    const dylora_config *cf = run->config;
    fl_job job = fl_job_of(run, c);

    job.stack.ad[0] = fl_scratch_copy(run, c->got[0]);
    job.data.split = FL_VALID;
    for (int i = 0; i < cf->report.n; i++) {
        int b = FL_MIN(cf->report.x[i], c->got[0]->space->rmax);

        memcpy(job.stack.ad[0]->v, c->got[0]->v, c->got[0]->space->n * sizeof(fl_real));
        hide(job.stack.ad[0], b);
        job.stack.coef[0] = scale_of_prefix(run, c->got[0]->space, b);
        FL_TRY(fl_loss(run, c, &job, &x[2 * i], &x[2 * i + 1]));
        x[2 * i + 1] = b == cf->report.x[i] ? x[2 * i + 1] : 0; /* a client of a lower rank */
    }
    return FL_OK;
}

static fl_err dylora_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);
    prefix now = {0, fl_scratch_adapter(run, c->ad[0]->space)};

    job.arg = &now;
    FL_TRY(fl_train(run, c, &job));
    if (now.b > 0) {
        outside(c->ad[0], now.full, 0, 0);
    }
    return FL_OK;
}

static fl_err dylora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const dylora_config *cf = run->config;
    double *x = fl_scratch(run, 2 * (size_t)cf->report.n, sizeof *x);

    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0]});
    if (cf->report.n > 0) {
        FL_TRY(measure(run, c, x));
        fl_put(up, "losses", x, 2 * (size_t)cf->report.n, 32);
    }
    return FL_OK;
}

static const char *column_of(fl_run *run, int b)
{
    char *name = fl_scratch(run, 24, 1), digit[12];
    int n = 0, at = 12;

    memcpy(name, "valid_loss_r", 12);
    for (; b > 0; b /= 10) {
        digit[n++] = (char)('0' + b % 10);
    }
    while (n > 0) {
        name[at++] = digit[--n];
    }
    return name;
}

static fl_err dylora_aggregate(fl_run *run, fl_pile *in)
{
    const dylora_config *cf = run->config;
    int n = 2 * cf->report.n;
    double *x = fl_scratch(run, (size_t)in->n * (size_t)n, sizeof *x);

    if (n > 0) {
        FL_TRY(fl_numbers(run, in, "losses", n, x));
    }
    for (int i = 0; i < n; i += 2) {
        double sum = 0, targets = 0;

        for (int k = 0; k < in->n; k++) {
            if (x[k * n + i + 1] > 0) {
                sum += x[k * n + i] * x[k * n + i + 1];
                targets += x[k * n + i + 1];
            }
        }
        fl_metric(run, column_of(run, cf->report.x[i / 2]), targets > 0 ? sum / targets : NAN);
    }
    return fl_mix(run, in, &(fl_mixing){.norm = FL_HOLDERS}, &run->global);
}

const fl_method fl_method_dylora = {
    .name = "dylora",
    .title = "nested ranks: every step trains a random prefix of the pairs",
    .source = "Valipour et al. 2022, arXiv 2210.07558",
    .choice = "the federation is ours: clients of unequal rank have prefixes of the server's "
              "pairs, averaged over those that have them; b is uniform.",
    .needs = FL_HETERO | FL_NUMBERS | FL_LORA_ONLY,
    .config_size = sizeof(dylora_config),
    .config = dylora_fields,
    .train = dylora_train,
    .step = dylora_step,
    .upload = dylora_upload,
    .aggregate = dylora_aggregate,
};
