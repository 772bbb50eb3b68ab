/* fed_sb - an r x r core R between two fixed factors; only R is trained, sent and averaged.
 * Source: Singhal et al. 2025 (Fed-SB, arXiv 2502.15436) after LoRA-SB; official code
 * CERT-Lab/fed-sb. dW = s B R A,  B (m x r) with orthonormal columns, A (r x n) with orthonormal
 * rows, both fixed for ever. The update is linear in R, so the mean is exact:  s B (sum_k p_k R_k)
 * A = sum_k p_k s B R_k A.  Gradient:  dL/dR = s B' G A', G = dL/dW.
 * Start (gradient): round 1 collects G = sum_k p_k G_k from the cohort, trains nothing;
 *   M = -eta sign(G) = U S V' (what a first Adam step would do),  B = U_r,  A = V_r',  s R = S_r:
 *   dW starts as the best rank-r version of M, not at zero.
 * Traffic: r^2 per matrix up and down in a round; the start costs every client of round 1 m n up,
 * and every client r (m + n) down once. run->global shows the model as (A, B R).
 * The public script of several rounds never empties its list of cores and so averages over all past
 * rounds; here a round averages its own. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct fed_sb_config {
    int start, batches;
    double eta;
} fed_sb_config;
enum { START_GRADIENT, START_WEIGHTS, START_RANDOM };
enum { CORE, FIXED, GRADIENT }; /* labels */

static const fl_field fed_sb_fields[] = {
    FL_WORD(fed_sb_config, start, "gradient", "gradient|weights|random",
        "where A and B come from: SVD of a first step, collected in round 1; SVD of W; the seed"),
    FL_INT(fed_sb_config, batches, "4", 1, 1e6, "batches",
        "start: gradient: batches of each client's data"),
    FL_REAL(fed_sb_config, eta, "1.0e-3", 0, 10, "",
        "start: gradient: size of the first step that the start imitates"),
    FL_END,
};

/* one slot for every adapted site, in order */
static const fl_space *core_space(fl_run *run)
{
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r), n = 0;

    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            r[n++] = run->space->r[j];
        }
    }
    return fl_space_plain(run, n, r, r);
}

static fl_adapter *kept_core(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "core", 0, core_space(run), NULL);
}

static fl_adapter *kept_fixed(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "fixed", 0, run->space, NULL);
}

static double *kept_ready(fl_run *run)
{
    return fl_keep(run, NULL, "ready", 0, 1, "1 = A and B are there", NULL);
}

/* out = (A, B R) */
static void compose(const fl_adapter *fixed, const fl_adapter *core, fl_adapter *out)
{
    fl_fit(out, fixed);
    for (int j = 0, at = 0; j < out->space->nsites; j++) {
        fl_mat b = fl_at(fixed, j, FL_B);

        if (b.x != NULL) {
            fl_gemm('n', 'n', b.rows, b.cols, b.cols, 1, b.x, fl_at(core, at++, FL_PLAIN).x, 0,
                fl_at(out, j, FL_B).x);
        }
    }
}

/* fixed holds B = U and A = S V' / s: the rows of A to length 1, their lengths into the core */
static void take_values(fl_adapter *fixed, fl_adapter *core)
{
    for (int j = 0, at = 0; j < fixed->space->nsites; j++) {
        fl_mat a = fl_at(fixed, j, FL_A);
        fl_mat r = a.x != NULL ? fl_at(core, at++, FL_PLAIN) : (fl_mat){NULL, 0, 0};

        for (int i = 0; i < a.rows; i++) {
            fl_real *row = a.x + (size_t)i * (size_t)a.cols;
            double norm = 0;

            for (int k = 0; k < a.cols; k++) {
                norm += (double)row[k] * (double)row[k];
            }
            norm = sqrt(norm);
            for (int k = 0; norm > 0 && k < a.cols; k++) {
                row[k] = (fl_real)((double)row[k] / norm);
            }
            r.x[i * r.cols + i] = (fl_real)norm;
        }
    }
}

/* orthonormal columns of B and rows of A from normal numbers of the seed */
static fl_err random_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    (void)in;
    (void)row;
    (void)arg;
    for (int f = FL_A; f <= FL_B; f++) {
        fl_mat to = fl_at(out[0], site, (fl_factor)f);
        int n = FL_MAX(to.rows, to.cols), r = FL_MIN(to.rows, to.cols);
        size_t size = (size_t)n * (size_t)r;
        double *x = fl_scratch(run, size, sizeof *x), *q = fl_scratch(run, size, sizeof *q);
        double *t = fl_scratch(run, (size_t)r * (size_t)r, sizeof *t);

        for (size_t i = 0; i < size; i++) {
            x[i] = fl_normal(run, f, site, 0, i);
        }
        FL_TRY(fl_qr(n, r, x, q, t));
        for (size_t i = 0; i < size; i++) {
            size_t from = f == FL_B ? i : i % (size_t)n * (size_t)r + i / (size_t)n;

            to.x[i] = (fl_real)q[from];
        }
    }
    return FL_OK;
}

static fl_err fed_sb_setup(fl_run *run)
{
    const fed_sb_config *cf = run->config;
    fl_adapter *fixed = kept_fixed(run), *core = kept_core(run);

    kept_ready(run)[0] = cf->start != START_GRADIENT;
    if (cf->start == START_WEIGHTS) {
        FL_TRY(fl_svd_of(run, NULL, 1, fixed));
        take_values(fixed, core);
        memset(core->v, 0, core->space->n * sizeof *core->v); /* directions of W, no change of it */
    }
    if (cf->start == START_RANDOM) {
        FL_TRY(fl_sites(run, NULL, random_site, NULL, 1, &fixed, 0, NULL));
    }
    compose(fixed, core, run->global);
    return FL_OK;
}

static fl_err fed_sb_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const fed_sb_config *cf = run->config;

    if (kept_ready(run)[0] == 0) {
        return FL_OK;
    }
    double *told = fl_keep(run, c, "told", 0, 1, "1 = has A and B", NULL);
    bool free = told[0] != 0 || cf->start != START_GRADIENT; /* W and the seed are known */

    told[0] = 1;
    fl_send(down, (fl_part){.ad = kept_core(run), .label = CORE});
    fl_send(down, (fl_part){.ad = kept_fixed(run), .label = FIXED, .values = FL_KNOWN});
    if (!free) { /* whole, past any codec: they stay as they are for ever */
        fl_charge(run, c, false, "A and B", 4.0 * (double)run->space->n);
    }
    return FL_OK;
}

static fl_err fed_sb_train(fl_run *run, fl_client *c)
{
    const fed_sb_config *cf = run->config;
    fl_job job = fl_job_of(run, c);

    job.train[0].factors = FL_NONE;
    job.watch = FL_BIT(0);
    if (kept_ready(run)[0] == 0) { /* G: the gradient by W itself, nothing moves */
        c->ad[GRADIENT] = fl_scratch_adapter(run, fl_space_base(run, run->space));
        job.stack.ad[0] = fl_scratch_adapter(run, c->ad[GRADIENT]->space);
        job.steps = cf->batches;
        job.epochs = 0;
    } else {
        job.stack.n = 2;
        job.stack.ad[0] = fl_scratch_adapter(run, run->space);
        job.stack.ad[1] = c->ad[CORE];
        job.stack.coef[1] = 1;
    }
    return fl_train(run, c, &job);
}

static fl_err fed_sb_step(fl_run *run, fl_client *c, fl_step *s)
{
    (void)run;
    if (s->job->stack.n == 1) {
        if (s->when == FL_GRAD) {
            fl_adapter_axpy(c->ad[GRADIENT], 1.0 / s->n, s->grad[0]);
        }
        return FL_OK;
    }
    if (s->when == FL_BEFORE) {
        compose(c->ad[FIXED], c->ad[CORE], s->job->stack.ad[0]);
    }
    for (int j = 0, at = 0; s->when == FL_GRAD && j < run->nsites; j++) {
        fl_mat b = fl_at(c->ad[FIXED], j, FL_B);

        if (b.x != NULL) { /* the gradient by B R is s G A' */
            fl_gemm('t', 'n', b.cols, b.cols, b.rows, 1, b.x, fl_at(s->grad[0], j, FL_B).x, 1,
                fl_at(s->grad[1], at++, FL_PLAIN).x);
        }
    }
    return FL_OK;
}

/* the adapted rows of the base's tensors */
static uint64_t *rows_of_sites(fl_run *run, const fl_space *dense)
{
    uint64_t *elems = fl_bits(run, dense->n);

    for (int j = 0; j < run->nsites; j++) {
        int tensor, row0, slot = 0;

        fl_site_tensor(run, j, &tensor, &row0);
        while (slot < dense->nslots && dense->slot[slot].site != tensor) {
            slot++;
        }
        if (run->space->r[j] > 0) {
            size_t cols = (size_t)dense->slot[slot].cols, first = (size_t)row0 * cols;

            for (size_t i = 0; i < (size_t)run->space->m[j] * cols; i++) {
                fl_bit_set(elems, dense->slot[slot].at + first + i);
            }
        }
    }
    return elems;
}

static fl_err fed_sb_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    if (kept_ready(run)[0] == 0) {
        fl_send(up, (fl_part){.ad = c->ad[GRADIENT],
                        .label = GRADIENT,
                        .pick.elems = rows_of_sites(run, c->ad[GRADIENT]->space),
                        .which = FL_KNOWN,
                        .change = true});
    } else {
        fl_send(up, (fl_part){.ad = c->ad[CORE], .ref = c->got[CORE], .label = CORE});
    }
    return FL_OK;
}

static fl_err fed_sb_aggregate(fl_run *run, fl_pile *in)
{
    const fed_sb_config *cf = run->config;
    fl_adapter *fixed = kept_fixed(run), *core = kept_core(run);

    if (kept_ready(run)[0] == 0) {
        fl_adapter *g = fl_scratch_adapter(run, fl_space_base(run, run->space));

        FL_TRY(fl_mix(run, in, &(fl_mixing){.label = GRADIENT}, &g));
        for (size_t i = 0; i < g->space->n; i++) {
            g->v[i] = (fl_real)(g->v[i] > 0 ? -cf->eta : g->v[i] < 0 ? cf->eta : 0);
        }
        FL_TRY(fl_svd_of(run, g, 1, fixed));
        take_values(fixed, core);
        kept_ready(run)[0] = 1;
    } else {
        FL_TRY(fl_mix(run, in, &(fl_mixing){.label = CORE}, &core));
    }
    compose(fixed, core, run->global);
    return FL_OK;
}

const fl_method fl_method_fed_sb = {
    .name = "fed_sb",
    .title = "a small core between fixed factors is all that is trained and sent",
    .source = "Singhal et al. 2025, arXiv 2502.15436",
    .choice =
        "the paper estimates the gradient of the start on pooled data; here round 1 is spent on "
        "it: "
        "its cohort sends gradients (m n per matrix, counted) and trains nothing. The SVD is "
        "exact, "
        "not randomised. start: weights and start: random (A and B cost nothing then; R starts at "
        "0) are ours. s R = S at the start, so any adapter.alpha gives the paper's dW. Weights p_k "
        "as the deck says (the paper's are 1/K). eta: the code has train.lr / (warm-up share x "
        "steps).",
    .needs = FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(fed_sb_config),
    .config = fed_sb_fields,
    .setup = fed_sb_setup,
    .download = fed_sb_download,
    .train = fed_sb_train,
    .step = fed_sb_step,
    .upload = fed_sb_upload,
    .aggregate = fed_sb_aggregate,
};
