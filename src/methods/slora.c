/* slora - first sparse tuning of the adapted matrices under a common random mask, then LoRA from
 * the SVD of what that changed.
 * Source: Babakniya et al. 2023 (SLoRA, arXiv 2308.06522); survey section 3.2, Eq. 10 (which names
 * W instead of its change and slices U by rows). The hand-over is that of FederatedScope, branch
 * FlexLoRA; there is no official code.
 * Rounds 1 .. R1: a mask M of every adapted W (m x n), each entry 1 with probability density, from
 *   the seed. Clients train the entries M of W_0 + D, and moments and decay exist only there:
 *   D <- sum_k p_k (W_k - W_0), which is 0 off the mask.
 * Then D = U S V',  s B A = U_r S_r V_r'.  left: B = U_r S_r / s, A = V_r';  balanced: the root of
 *   S / s in both. The base is W_0 as ever, since D was never merged. A matrix that did not change
 *   keeps the deck's start.
 * Rounds R1 + 1 .. T: FedAvg of A and B.
 * Traffic per client: nnz(M) numbers each way, no positions; at the switch A and B down. */
#include "fedlora/fed.h"

#include <math.h>
#include <string.h>

enum { SPLIT_LEFT, SPLIT_BALANCED };
enum { DRAW_MASK };
typedef struct slora_config {
    double density, sparse_lr;
    int sparse_rounds, split;
} slora_config;

static const fl_field slora_fields[] = {
    FL_REAL(slora_config, density, "0.01", 1e-6, 1, "1",
        "share of the entries of the adapted matrices that train in stage 1"),
    FL_INT(slora_config, sparse_rounds, "5", 0, 1e6, "rounds", "R1: rounds of stage 1"),
    FL_REAL(slora_config, sparse_lr, "1", 1e-9, 1e9, "1", "multiplies train.lr in stage 1"),
    FL_WORD(slora_config, split, "left", "left|balanced",
        "where the singular values go at the switch: all into B, or their root into both"),
    FL_END,
};

/* D, kept from setup on, and which stage the server's model is in: 1 or 2 */
static fl_adapter *change_of(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "change", 0, fl_space_base(run, run->space), NULL);
}

static double *stage_of(fl_run *run)
{
    return fl_keep(run, NULL, "stage", 0, 1, "1 = sparse, 2 = factors", NULL);
}

static fl_err slora_setup(fl_run *run)
{
    const slora_config *d = run->config;

    *stage_of(run) = d->sparse_rounds > 0 ? 1 : 2;
    if (d->sparse_rounds > 0) {
        change_of(run);
    }
    return FL_OK;
}

/* M as a bit set of the dense space: only rows of adapted matrices, the same in every round and on
 * every client */
static uint64_t *mask_of(fl_run *run, const fl_adapter *change)
{
    const slora_config *d = run->config;
    uint64_t *mask = fl_bits(run, change->space->n);

    for (int site = 0; site < run->nsites; site++) {
        int tensor, row0;

        if (run->space->r[site] == 0) {
            continue;
        }
        fl_site_tensor(run, site, &tensor, &row0);
        fl_mat w = fl_at(change, tensor, FL_DENSE);
        size_t first = (size_t)(w.x - change->v) + (size_t)row0 * (size_t)w.cols;
        size_t n = (size_t)run->space->m[site] * (size_t)w.cols;

        for (size_t i = 0; i < n; i++) {
            if (fl_uniform(run, DRAW_MASK, site, 0, i) < d->density) {
                fl_bit_set(mask, first + i);
            }
        }
    }
    return mask;
}

/* (A, B) from D; then D is forgotten and the base is as it was loaded */
static fl_err hand_over(fl_run *run)
{
    const slora_config *d = run->config;
    fl_adapter *change = change_of(run), *start = fl_scratch_adapter(run, run->space);
    double all = pow(fl_adapter_norm(change), 2), kept = 0;

    FL_TRY(fl_svd_of(run, change, d->split == SPLIT_LEFT ? 0 : 0.5, run->global));
    FL_TRY(fl_fill(run, start, -1, 0));
    for (int site = 0; site < run->nsites; site++) {
        double norm2 = fl_dot(run->global, run->global, site, FL_PRODUCT);
        fl_mat a = fl_at(run->global, site, FL_A), from = fl_at(start, site, FL_A);

        if (norm2 == 0 && a.x != NULL) { /* nothing to decompose: B = 0 and the deck's A */
            memcpy(a.x, from.x, (size_t)a.rows * (size_t)a.cols * sizeof *a.x);
        }
        kept += norm2;
    }
    fl_metric(run, "discarded_energy", all > 0 ? fmax(1 - kept / all, 0) : 0);
    memset(change->v, 0, change->space->n * sizeof *change->v);
    *stage_of(run) = 2;
    return FL_OK;
}

static fl_err slora_plan(fl_run *run)
{
    const slora_config *d = run->config;
    double *stage = stage_of(run);

    if (*stage == 1 && run->round.t > d->sparse_rounds) {
        FL_TRY(hand_over(run));
    }
    if (*stage == 1) {
        run->job.train[0].elems = mask_of(run, change_of(run));
        run->job.lr[FL_DENSE] = d->sparse_lr;
    }
    return FL_OK;
}

static fl_err slora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const slora_config *d = run->config;
    int t = run->round.t;

    (void)c;
    if (*stage_of(run) ==
        1) { /* before round 1 D = 0, which everybody knows; the mask is the seed's */
        fl_send(down, (fl_part){.ad = change_of(run),
                          .pick = run->job.train[0],
                          .values = t == 1 ? FL_KNOWN : FL_SENT,
                          .which = FL_KNOWN});
    } else if (t == d->sparse_rounds + 1 && t > 1) { /* new factors for everybody */
        fl_send(down, (fl_part){.ad = fl_scratch_copy(run, run->global)});
    } else {
        fl_send(down, (fl_part){.ad = run->global, .of = run->global});
    }
    return FL_OK;
}

static fl_err slora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up,
        (fl_part){.ad = c->ad[0], .ref = c->got[0], .pick = run->job.train[0], .which = FL_KNOWN});
    return FL_OK;
}

static fl_err slora_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *change;

    if (*stage_of(run) == 2) {
        return fl_mix(run, in, &(fl_mixing){0}, &run->global);
    }
    change = change_of(run);
    return fl_mix(run, in, &(fl_mixing){0}, &change);
}

/* stage 1: the base with its changed entries */
static fl_err slora_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    if (c == NULL && which == 0) {
        bool sparse = *stage_of(run) == 1;

        v->name = sparse ? "sparse" : "global";
        v->stack = (fl_stack){.n = 1, .ad = {sparse ? change_of(run) : run->global}, .coef = {1}};
    }
    return FL_OK;
}

const fl_method fl_method_slora = {
    .name = "slora",
    .title = "sparse tuning under a common mask, then LoRA from the SVD of its update",
    .source = "Babakniya et al. 2023, arXiv 2308.06522",
    .choice = "one mask for all clients and rounds, on the adapted matrices only; all singular "
              "values go into B (split), as in the one "
              "implementation at hand; the switch is made before round R1 + 1, so with R1 >= "
              "run.rounds the run is sparse tuning alone and "
              "what is exported as adapter is the untrained start.",
    .needs = FL_OWN_START | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(slora_config),
    .config = slora_fields,
    .setup = slora_setup,
    .plan = slora_plan,
    .download = slora_download,
    .upload = slora_upload,
    .aggregate = slora_aggregate,
    .view = slora_view,
};
