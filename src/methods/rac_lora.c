/* rac_lora - every round draws one factor, trains the other from zero and merges the product.
 * Source: Malinovsky et al. 2024 (RAC-LoRA, Fed-RAC-LoRA, arXiv 2410.08305); survey section 6.
 *   left:   B_S (m x r) is drawn, A_k starts at 0:  W <- W + s B_S (sum_k p_k A_k)
 *   right:  A_S (r x n) is drawn, B_k starts at 0:  W <- W + s (sum_k p_k B_k) A_S
 * The sketch is common, so this is W + sum_k p_k s B_k A_k exactly. If A_k is the minimiser of a
 * linearised f_k with step g, the round is W <- W - g H G, G = sum_k p_k grad f_k(W), H = B_S (B_S'
 * B_S)^-1 B_S', a projector of rank r with E[H] = (r / m) I. Download: the averaged factor of every
 * missed round and the seed of the next sketch; nobody needs an adapter. A client of rank r_k < r
 * trains on the first r_k columns (right: rows) of the sketch, with the server's s. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { RAC_LEFT, RAC_RIGHT, RAC_COIN };  /* side */
enum { RAC_GAUSSIAN, RAC_ORTHONORMAL };  /* sketch */
enum { RAC_SKETCH_DRAW, RAC_COIN_DRAW }; /* what is drawn */

typedef struct rac_lora_config {
    int side, sketch;
    double std;
} rac_lora_config;

static const fl_field rac_lora_fields[] = {
    FL_WORD(rac_lora_config, side, "left", "left|right|coin",
        "the factor that is drawn: left B, right A, coin one of them by a draw every round"),
    FL_WORD(rac_lora_config, sketch, "gaussian", "gaussian|orthonormal",
        "the draw: independent normal numbers, or the same made orthogonal (QR)"),
    FL_REAL(rac_lora_config, std, "0", 0, 1e6, "",
        "standard deviation of the sketch's entries; 0 = 1/sqrt(m) (right: 1/sqrt(n)), length one"),
    FL_END,
};

/* x (d x r) = sketch of a site in round t; column j depends on nothing beyond column j */
static fl_err rac_lora_sketch(fl_run *run, int site, int d, int r, double *x)
{
    const rac_lora_config *cf = run->config;
    double std = cf->std > 0 ? cf->std : 1 / sqrt((double)d);
    double *q = fl_scratch(run, (size_t)d * (size_t)r, sizeof *q);
    double *tri = fl_scratch(run, (size_t)r * (size_t)r, sizeof *tri);

    for (int i = 0; i < d * r; i++) {
        uint64_t place = (uint64_t)(i % r) * (uint64_t)d + (uint64_t)(i / r);

        x[i] = std * fl_normal(run, RAC_SKETCH_DRAW, site, run->round.t, place);
    }
    if (cf->sketch == RAC_GAUSSIAN) {
        return FL_OK;
    }
    FL_TRY(fl_qr(d, r, x, q, tri));
    for (int i = 0; i < d * r; i++) { /* the sign that makes the triangle's diagonal positive */
        x[i] = std * sqrt((double)d) * q[i] * (tri[i % r * (r + 1)] < 0 ? -1 : 1);
    }
    return FL_OK;
}

static fl_err rac_lora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    bool left = run->job.train[0].factors == FL_BIT(FL_A);
    fl_mat drawn = fl_at(out[0], site, left ? FL_B : FL_A);
    fl_mat free = fl_at(out[0], site, left ? FL_A : FL_B);
    int d = left ? drawn.rows : drawn.cols, r = left ? drawn.cols : drawn.rows;
    double *x = fl_scratch(run, (size_t)d * (size_t)r, sizeof *x);

    (void)in;
    (void)row;
    (void)arg;
    FL_TRY(rac_lora_sketch(run, site, d, r, x));
    for (int i = 0; i < d; i++) {
        for (int j = 0; j < r; j++) {
            drawn.x[left ? i * r + j : j * d + i] = (fl_real)x[i * r + j];
        }
    }
    memset(free.x, 0, (size_t)free.rows * (size_t)free.cols * sizeof *free.x);
    return FL_OK;
}

static fl_err rac_lora_plan(fl_run *run)
{
    const rac_lora_config *cf = run->config;
    bool left = cf->side == RAC_LEFT ||
                (cf->side == RAC_COIN && fl_uniform(run, RAC_COIN_DRAW, 0, run->round.t, 0) < 0.5);

    run->job.train[0].factors = FL_BIT(left ? FL_A : FL_B);
    return fl_sites(run, NULL, rac_lora_site, NULL, 1, &run->global, 0, NULL);
}

/* a client makes its sketch itself */
static fl_err rac_lora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *ad = run->global;

    if (c->r < run->space->rmax) {
        ad = fl_scratch_adapter(run, fl_space_cut(run, run->space, c->r));
        fl_fit(ad, run->global);
    }
    fl_send(down, (fl_part){.ad = ad, .of = run->global, .values = FL_KNOWN});
    return FL_OK;
}

static fl_err rac_lora_aggregate(fl_run *run, fl_pile *in)
{
    unsigned trained = run->job.train[0].factors;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    FL_TRY(fl_merge(run, run->global, 1, (fl_pick){.factors = trained}));
    for (int j = 0; j < run->nsites; j++) {
        fl_mat x = fl_at(run->global, j, trained == FL_BIT(FL_A) ? FL_A : FL_B);

        if (x.x != NULL) {
            memset(x.x, 0, (size_t)x.rows * (size_t)x.cols * sizeof *x.x);
        }
    }
    return FL_OK;
}

const fl_method fl_method_rac_lora = {
    .name = "rac_lora",
    .title = "a fresh random factor every round, the other trained from zero and merged",
    .source = "Malinovsky et al. 2024, arXiv 2410.08305",
    .choice = "the paper's entries are N(0, 1) (std: 1); the default scales them so that a column "
              "has length one and train.lr means what it means for other methods. Unequal ranks: "
              "the first r_k columns of the common sketch at the server's s, zero elsewhere. The "
              "8 bytes told with every merged factor are the seed of the next sketch.",
    .needs = FL_HETERO | FL_MERGES | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(rac_lora_config),
    .config = rac_lora_fields,
    .plan = rac_lora_plan,
    .download = rac_lora_download,
    .aggregate = rac_lora_aggregate,
};
