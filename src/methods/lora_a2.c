/* lora_a2 - B in odd rounds, A in even ones, and of it only the rank-1 slices that matter most to
 * the client.
 * Source: Koo et al. 2024 (LoRA-A2, arXiv 2410.22815), Algorithm 1; survey section 3.1. No official
 * code. A (r x n) and B (m x r) are common to all, at each of N sites. Client k of budget r_k, B
 * active:
 *   probe: one epoch from the received factors gives dB; slice i of a site scores
 *     S = ||dB[:,i] A[i,:]||_F = ||dB[:,i]|| ||A[i,:]||      (A active: ||B[:,i]|| ||dA[i,:]||);
 *   the r_k N best of all r N slices are kept; from the received factors again, only they train
 *   and travel.
 * Server: B <- B + sum_k p_k dB_k, with dB_k = 0 where not kept. The other factor is common, so
 * this is the mean of the products. The paper's text swaps odd and even rounds; with B = 0 only
 * the algorithm's order works. */
#include "fedlora/fed.h"

#include <math.h>

enum { DRAW_BUDGET };
enum { SHARED, KEPT }; /* the client's adapters: the factors; which slices are kept */
typedef struct lora_a2_config {
    fl_ints budget;
    double lr_b;
    int probe_epochs, probe_steps;
} lora_a2_config;

static const fl_field lora_a2_fields[] = {
    FL_INTS(lora_a2_config, budget, "[]", 1, 1e6, "slices a site",
        "budgets, one drawn for every client; empty: the client's rank (clients.r)"),
    FL_REAL(lora_a2_config, lr_b, "5", 1e-9, 1e9, "1", "multiplies train.lr for B"),
    FL_INT(lora_a2_config, probe_epochs, "1", 1, 1000, "epochs", "length of the probe"),
    FL_INT(lora_a2_config, probe_steps, "0", 0, 1e9, "steps",
        "length of the probe in steps; 0 = probe_epochs"),
    FL_END,
};

static fl_factor active(const fl_run *run)
{
    return run->round.t % 2 == 1 ? FL_B : FL_A;
}

static fl_err lora_a2_plan(fl_run *run)
{
    const lora_a2_config *d = run->config;

    run->job.train[0].factors = FL_BIT(active(run));
    run->job.lr[FL_B] = d->lr_b;
    return FL_OK;
}

/* every client holds all slices of the largest rank, whatever its budget */
static fl_err lora_a2_download(fl_run *run, fl_client *c, fl_msg *down)
{
    (void)c;
    fl_send(down, (fl_part){.ad = run->global, .of = run->global});
    return FL_OK;
}

/* r_k N: how many slices client c keeps, of fl_pair_first(space, nsites) */
static int kept_slices(const fl_run *run, const fl_client *c)
{
    const lora_a2_config *d = run->config;
    int budget = c->r, n = 0;

    if (d->budget.n > 0) {
        budget = d->budget.x[(int)(fl_uniform(run, DRAW_BUDGET, c->id, 0, 0) * d->budget.n)];
    }
    for (int site = 0; site < run->nsites; site++) {
        n += FL_MIN(budget, run->space->r[site]);
    }
    return n;
}

/* norm of slice i's part of a factor, less that of another adapter (NULL: 0): row i of A, column i
 * of B */
static double slice_norm(const fl_adapter *ad, const fl_adapter *less, int site, fl_factor f, int i)
{
    fl_mat x = fl_at(ad, site, f);
    size_t step = f == FL_A ? 1 : (size_t)x.cols,
           first = (size_t)i * (f == FL_A ? (size_t)x.cols : 1);
    int n = f == FL_A ? x.cols : x.rows;
    double sum = 0;

    for (int e = 0; e < n; e++) {
        size_t at = first + (size_t)e * step;
        double v = (double)x.x[at] - (less != NULL ? (double)fl_at(less, site, f).x[at] : 0);

        sum += v * v;
    }
    return sqrt(sum);
}

/* S of all slices after the probe */
static void score_slices(
    const fl_run *run, const fl_adapter *probe, const fl_adapter *received, double *score)
{
    fl_factor f = active(run), other = f == FL_B ? FL_A : FL_B;

    for (int site = 0, at = 0; site < run->nsites; site++) {
        for (int i = 0; i < run->space->r[site]; i++) {
            score[at++] = slice_norm(probe, received, site, f, i) *
                          slice_norm(received, NULL, site, other, i);
        }
    }
}

/* the kept slices as a bit set, NULL = all */
static const uint64_t *kept_bits(fl_run *run, const fl_client *c)
{
    const fl_adapter *kept = c->ad[KEPT];
    uint64_t *bits;

    if (kept == NULL) {
        return NULL;
    }
    bits = fl_bits(run, kept->space->n);
    for (size_t i = 0; i < kept->space->n; i++) {
        if (kept->v[i] > 0) {
            fl_bit_set(bits, i);
        }
    }
    return bits;
}

static fl_err probe_slices(fl_run *run, fl_client *c, int nslices, int n)
{
    const lora_a2_config *d = run->config;
    fl_job probe = fl_job_of(run, c);
    double *score = fl_scratch(run, (size_t)nslices, sizeof *score);
    uint64_t *best = fl_bits(run, (size_t)nslices);
    const int one = 1;

    probe.stack.ad[0] = fl_scratch_copy(run, c->ad[SHARED]);
    probe.stream = 1;
    probe.epochs = d->probe_steps > 0 ? 0 : d->probe_epochs;
    probe.steps = d->probe_steps;
    FL_TRY(fl_train(run, c, &probe));
    score_slices(run, probe.stack.ad[0], c->ad[SHARED], score);
    c->ad[KEPT] = fl_scratch_adapter(run, fl_space_plain(run, 1, &one, &nslices));
    c->n = KEPT + 1;
    fl_top(run, (size_t)nslices, score, (size_t)n, best, 0);
    for (int i = 0; i < nslices; i++) {
        c->ad[KEPT]->v[i] = fl_bit(best, (size_t)i);
    }
    return FL_OK;
}

static fl_err lora_a2_train(fl_run *run, fl_client *c)
{
    int nslices = fl_pair_first(run->space, run->nsites), n = kept_slices(run, c);
    fl_job job = fl_job_of(run, c);

    if (n < nslices) {
        FL_TRY(probe_slices(run, c, nslices, n));
    }
    job.train[0].pairs = kept_bits(run, c);
    return fl_train(run, c, &job);
}

static fl_err lora_a2_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_pick pick = {.factors = run->job.train[0].factors, .pairs = kept_bits(run, c)};

    fl_send(up, (fl_part){.ad = c->ad[SHARED], .ref = c->got[SHARED], .pick = pick});
    return FL_OK;
}

static fl_err lora_a2_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = FL_REST}, &run->global);
}

const fl_method fl_method_lora_a2 = {
    .name = "lora_a2",
    .title = "alternating factors, and only the slices that score best within a budget",
    .source = "Koo et al. 2024, arXiv 2410.22815",
    .choice = "the probe is thrown away, and left out where the budget holds all slices; s belongs "
              "to the common rank; the weights are those "
              "of the round's participants; the values of the kept slices travel, whose mean with "
              "the old ones is the paper's mean of the "
              "differences. A client's rank in clients.r is its budget; the common rank is the "
              "largest (or adapter.r with lora_a2.budget).",
    .needs = FL_HETERO | FL_LORA_ONLY | FL_ONLINE,
    .config_size = sizeof(lora_a2_config),
    .config = lora_a2_fields,
    .plan = lora_a2_plan,
    .download = lora_a2_download,
    .train = lora_a2_train,
    .upload = lora_a2_upload,
    .aggregate = lora_a2_aggregate,
};
