/* frlora - factors restart every round from the top of W; what they moved goes into the base.
 * Source: Yan et al. 2025 (FRLoRA, ICLR 2025), official code IAMJackYan/FRLoRA.
 *   start:   W = U S V',  B_0 = U_r (S_r / s)^1/2,  A_0 = (S_r / s)^1/2 V_r',  W <- W - s B_0 A_0
 *   round:   clients train from (A_0, B_0);  A = sum_k p_k A_k,  B = sum_k p_k B_k
 *            W <- W + s (B A - B_0 A_0);  everybody is back at (A_0, B_0)
 * The change has rank 2 r and is merged in one piece, B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0),
 * so that a round in which nothing moved changes no bit. Its first r pairs (B - B_0 and A) tell
 * all: r (m + n) numbers for every missed round. The start is worked out by every client from W.
 * All changes share the columns of B_0, so that T rounds reach rank (T + 1) r. */
#include "fedlora/fed.h"

typedef struct frlora_config {
    bool freeze_a;
} frlora_config;

static const fl_field frlora_fields[] = {
    FL_BOOL(frlora_config, freeze_a, "false",
        "train B only, as the released trainer does; the paper trains both"),
    FL_END,
};

static fl_adapter *frlora_start(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "start", 0, run->space, NULL);
}

static fl_err frlora_setup(fl_run *run)
{
    FL_TRY(fl_svd_of(run, NULL, 0.5, run->global));
    FL_TRY(fl_merge(run, run->global, -1, (fl_pick){.factors = FL_NONE}));
    fl_fit(frlora_start(run), run->global);
    return FL_OK;
}

static fl_err frlora_plan(fl_run *run)
{
    const frlora_config *cf = run->config;

    run->job.train[0].factors = cf->freeze_a ? FL_BIT(FL_B) : 0;
    return FL_OK;
}

/* [B - B_0, B_0] and [A; A - A_0] of one site */
static fl_err frlora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const fl_adapter *start = arg;
    fl_mat a = fl_at(run->global, site, FL_A), b = fl_at(run->global, site, FL_B);
    fl_mat a0 = fl_at(start, site, FL_A), b0 = fl_at(start, site, FL_B);
    fl_mat to_a = fl_at(out[0], site, FL_A), to_b = fl_at(out[0], site, FL_B);
    size_t na = (size_t)a.rows * (size_t)a.cols, r = (size_t)a.rows;

    (void)in;
    (void)row;
    for (size_t i = 0; i < na; i++) {
        to_a.x[i] = a.x[i];
        to_a.x[na + i] = a.x[i] - a0.x[i];
    }
    for (size_t i = 0; i < (size_t)b.rows * r; i++) {
        to_b.x[i / r * 2 * r + i % r] = b.x[i] - b0.x[i];
        to_b.x[i / r * 2 * r + r + i % r] = b0.x[i];
    }
    return FL_OK;
}

static fl_err frlora_aggregate(fl_run *run, fl_pile *in)
{
    const frlora_config *cf = run->config;
    fl_adapter *start = frlora_start(run), *change;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    uint64_t *first;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    for (int j = 0; j < run->nsites; j++) {
        r[j] = 2 * run->space->r[j];
    }
    change = fl_scratch_spread(run, fl_space_scales(run, r, run->space->scale));
    FL_TRY(fl_sites(run, NULL, frlora_site, start, 1, &change, 0, NULL));
    first = fl_bits(run, (size_t)fl_pair_first(change->space, run->nsites));
    for (int j = 0; j < run->nsites; j++) {
        for (int i = 0; i < run->space->r[j]; i++) {
            fl_bit_set(first, (size_t)(fl_pair_first(change->space, j) + i));
        }
    }
    FL_TRY(fl_merge(run, change, 1,
        (fl_pick){.factors = cf->freeze_a ? FL_BIT(FL_B) : FL_LORA, .pairs = first}));
    fl_fit(run->global, start);
    return FL_OK;
}

const fl_method fl_method_frlora = {
    .name = "frlora",
    .title = "factors restart from the top of W every round, their change goes into the base",
    .source = "Yan et al. 2025, ICLR 2025 (FRLoRA)",
    .choice = "both factors train (the released trainer freezes A: freeze_a); weights p_k as the "
              "deck says (the code's are uniform); the optimiser restarts every round with the "
              "factors (the code keeps every client's moments).",
    .needs = FL_MERGES | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(frlora_config),
    .config = frlora_fields,
    .setup = frlora_setup,
    .plan = frlora_plan,
    .aggregate = frlora_aggregate,
};
