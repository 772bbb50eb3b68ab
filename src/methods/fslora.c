/* fslora - the server owns one pair of rank r; each client trains a random sketch of it.
 * Source: Fang et al. 2025 (FSLoRA, arXiv 2501.19389), Algorithm 1, Eq. 5. Round t, client i: I_i =
 * k_i of the r pairs at random, S_i = (r / k_i) diag(1 at I_i), E[S_i] = identity;
 *   client  min f_i(W + s B S_i A): with A' = A[I,:], B' = B[:,I] at the scale s r / k_i;
 *   server  B <- B + (1/N) sum_i dB_i,  A <- A + (1/N) sum_i dA_i, changes outside I_i being 0.
 * The divisor is N, the clients that arrived, not the holders of a pair. The small form equals the
 * masked one under SGD; under AdamW the masked one would decay rows outside I_i. The released code
 * compares parameter names for equality and so never sketches. Download: the pairs and an 8-byte
 * seed, which tells both sides I_i. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct fslora_config {
    double share;
    bool per_matrix;
    int server;
    double server_lr, beta1, beta2, eps;
} fslora_config;

enum { MEAN, FEDADAM };

static const fl_field fslora_fields[] = {
    FL_REAL(fslora_config, share, "0.5", 0, 1, "",
        "pairs that a client trains, as a share of its rank in the deck (clients.r or adapter.r)"),
    FL_BOOL(fslora_config, per_matrix, "true", "every adapted matrix draws pairs of its own"),
    FL_WORD(fslora_config, server, "mean", "mean|fedadam",
        "the mean change is added, or Adam of the server takes it as a gradient"),
    FL_REAL(fslora_config, server_lr, "3.0e-4", 0, 1e3, "", "fedadam: learning rate"),
    FL_REAL(fslora_config, beta1, "0.9", 0, 0.999999, "", "fedadam: decay of the first moment"),
    FL_REAL(fslora_config, beta2, "0.999", 0, 0.999999, "", "fedadam: decay of the second moment"),
    FL_REAL(fslora_config, eps, "1.0e-8", 1e-30, 1, "", "fedadam: added to the root"),
    FL_END,
};

static fl_server_opt server_adam(const fslora_config *cf)
{
    return (fl_server_opt){FL_SERVER_ADAM, cf->server_lr, cf->beta1, cf->beta2, cf->eps};
}

static fl_err fslora_setup(fl_run *run)
{
    const fslora_config *cf = run->config;
    fl_server_opt adam = server_adam(cf);

    if (cf->server == FEDADAM) {
        fl_serve(run, "adam", &adam, NULL, run->global);
    }
    return FL_OK;
}

/* I_i, and the space of A' and B' */
static const uint64_t *sketch(fl_run *run, const fl_client *c, const fl_space **small)
{
    const fslora_config *cf = run->config;
    const fl_space *sp = run->space;
    int k = (int)fmax(1, floor(cf->share * c->r + 0.5));
    int *r = fl_scratch(run, (size_t)sp->nsites, sizeof *r);
    double *scale = fl_scratch(run, (size_t)sp->nsites, sizeof *scale);

    for (int j = 0; j < sp->nsites; j++) {
        r[j] = FL_MIN(k, sp->r[j]);
        scale[j] = r[j] > 0 ? sp->scale[j] * sp->r[j] / r[j] : 1;
    }
    *small = fl_space_scales(run, r, scale);
    return fl_random_pairs(run, 0, sp, c->id, run->round.t, k, cf->per_matrix);
}

/* the pairs of `whole` that are in the set, in their order, to or from `part` */
static void copy_pairs(fl_adapter *whole, const uint64_t *pairs, fl_adapter *part, bool back)
{
    for (int j = 0; j < whole->space->nsites; j++) {
        fl_mat a = fl_at(whole, j, FL_A), b = fl_at(whole, j, FL_B), sa = fl_at(part, j, FL_A),
               sb = fl_at(part, j, FL_B);
        size_t first = (size_t)fl_pair_first(whole->space, j);

        for (int i = 0, at = 0; i < a.rows; i++) {
            if (!fl_bit(pairs, first + (size_t)i)) {
                continue;
            }
            for (int l = 0; l < a.cols; l++) {
                fl_real *x = &a.x[i * a.cols + l], *y = &sa.x[at * a.cols + l];

                *(back ? x : y) = *(back ? y : x);
            }
            for (int l = 0; l < b.rows; l++) {
                fl_real *x = &b.x[l * b.cols + i], *y = &sb.x[l * sb.cols + at];

                *(back ? x : y) = *(back ? y : x);
            }
            at++;
        }
    }
}

static fl_err fslora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const fl_space *small;
    const uint64_t *pairs = sketch(run, c, &small);
    fl_adapter *part = fl_scratch_adapter(run, small);

    copy_pairs(run->global, pairs, part, false);
    fl_send(down, (fl_part){.ad = part, .which = FL_SEED});
    return FL_OK;
}

static fl_err fslora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const fl_space *small;
    const uint64_t *pairs = sketch(run, c, &small);
    fl_adapter *change = fl_scratch_copy(run, c->ad[0]);
    fl_adapter *whole = fl_scratch_adapter(run, run->space);

    fl_adapter_axpy(change, -1, c->got[0]);
    copy_pairs(whole, pairs, change, true);
    fl_send(up, (fl_part){.ad = whole, .pick.pairs = pairs, .which = FL_KNOWN, .change = true});
    return FL_OK;
}

static fl_err fslora_aggregate(fl_run *run, fl_pile *in)
{
    const fslora_config *cf = run->config;
    fl_server_opt adam = server_adam(cf);
    fl_adapter *mean = fl_scratch_adapter(run, run->space);

    FL_TRY(fl_mix(run, in, &(fl_mixing){.even = true}, &mean));
    if (cf->server == FEDADAM) {
        fl_serve(run, "adam", &adam, mean, run->global);
    } else {
        fl_adapter_axpy(run->global, 1, mean);
    }
    return FL_OK;
}

const fl_method fl_method_fslora = {
    .name = "fslora",
    .title = "clients train random sketches of one pair of factors",
    .source = "Fang et al. 2025, arXiv 2501.19389",
    .choice = "k_i = share times the client's rank in the deck, r the largest of these ranks; "
              "weights are 1/N by definition, cohort.weights has no say; fedadam has no weight "
              "decay (the released code's AdamW has).",
    .needs = FL_HETERO | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(fslora_config),
    .config = fslora_fields,
    .setup = fslora_setup,
    .download = fslora_download,
    .upload = fslora_upload,
    .aggregate = fslora_aggregate,
};
