/* flasc - dense local training, sparse messages. Source: Kuo et al. 2024 (FLASC, arXiv 2406.05233);
 * official code imkevinkuo/flasc. theta: all A and B as one vector of P numbers.
 *   down    theta M, M = the floor(d_down P) largest |theta|, of the whole vector
 *   client  trains all P numbers, delta_k = theta_k - theta M;  sends its floor(d_up P) largest
 *   server  g = -(1/K) sum_k top(delta_k);  theta <- SGD or Adam (theta, g).
 * A number that is not sent down starts at 0 on the client, not frozen: with B = 0 at the start M
 * holds entries of A alone, and B trains all the same. Ties go to the lower index. Clients of a
 * lower rank in the deck have densities smaller by r_k / r (the tiers of the official
 * heterogeneous script). Evaluated: theta M. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct flasc_config {
    double density_down, density_up;
    bool freeze;
    int server;
    double server_lr, momentum, beta1, beta2, eps;
} flasc_config;

static const fl_field flasc_fields[] = {
    FL_REAL(flasc_config, density_down, "0.25", 0, 1, "", "share of the numbers sent down"),
    FL_REAL(flasc_config, density_up, "0.25", 0, 1, "", "share of the changes sent up"),
    FL_BOOL(flasc_config, freeze, "false",
        "clients train what they were sent only: sparse tuning, for comparison"),
    FL_WORD(flasc_config, server, "adam", "adam|sgd", "the server's optimiser"),
    FL_REAL(flasc_config, server_lr, "1.0e-3", 0, 1e3, "", "its learning rate"),
    FL_REAL(flasc_config, momentum, "0", 0, 0.999999, "", "sgd: momentum"),
    FL_REAL(flasc_config, beta1, "0.9", 0, 0.999999, "", "adam: decay of the first moment"),
    FL_REAL(flasc_config, beta2, "0.999", 0, 0.999999, "", "adam: decay of the second moment"),
    FL_REAL(flasc_config, eps, "1.0e-8", 1e-30, 1, "", "adam: added to the root"),
    FL_END,
};

static fl_server_opt server_of(const flasc_config *cf)
{
    return cf->server == 0
               ? (fl_server_opt){FL_SERVER_ADAM, cf->server_lr, cf->beta1, cf->beta2, cf->eps}
               : (fl_server_opt){FL_SERVER_SGD, cf->server_lr, cf->momentum, 0, 0};
}

static fl_err flasc_setup(fl_run *run)
{
    fl_server_opt opt = server_of(run->config);

    fl_serve(run, "server", &opt, NULL, run->global);
    return FL_OK;
}

/* the floor(density P) largest |x|; c NULL: of the largest tier. NULL = all */
static const uint64_t *largest(
    fl_run *run, const fl_client *c, double density, const fl_adapter *ad)
{
    double tier = c != NULL && run->space->rmax > 0 ? (double)c->r / run->space->rmax : 1;
    size_t n = ad->space->n, k = (size_t)(density * tier * (double)n + 1e-9);
    uint64_t *bits = fl_bits(run, n);
    double *x;

    if (k >= n) {
        return NULL;
    }
    x = fl_scratch(run, n, sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = fabs((double)ad->v[i]);
    }
    fl_top(run, n, x, k, bits, 0);
    return bits;
}

static const uint64_t *down_mask(fl_run *run, const fl_client *c)
{
    const flasc_config *cf = run->config;

    return largest(run, c, cf->density_down, run->global);
}

static fl_err flasc_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const uint64_t *mask = down_mask(run, c);

    if (mask == NULL) {
        fl_send(down, (fl_part){.ad = run->global, .of = run->global});
    } else { /* a copy: of what it holds from other masks, nothing counts as known */
        fl_send(down, (fl_part){.ad = fl_scratch_copy(run, run->global), .pick.elems = mask});
    }
    return FL_OK;
}

static fl_err flasc_train(fl_run *run, fl_client *c)
{
    const flasc_config *cf = run->config;
    fl_job job = fl_job_of(run, c);

    if (cf->freeze) {
        job.train[0].elems = down_mask(run, c);
    }
    return fl_train(run, c, &job);
}

static fl_err flasc_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const flasc_config *cf = run->config;
    fl_adapter *change = fl_scratch_copy(run, c->ad[0]);

    fl_adapter_axpy(change, -1, c->got[0]);
    fl_send(up,
        (fl_part){
            .ad = change, .pick.elems = largest(run, c, cf->density_up, change), .change = true});
    return FL_OK;
}

static fl_err flasc_aggregate(fl_run *run, fl_pile *in)
{
    fl_server_opt opt = server_of(run->config);
    fl_adapter *mean = fl_scratch_adapter(run, run->space);

    FL_TRY(fl_mix(run, in, &(fl_mixing){.even = true}, &mean));
    fl_serve(run, "server", &opt, mean, run->global);
    return FL_OK;
}

/* theta M of this tier */
static fl_err flasc_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    const uint64_t *mask = down_mask(run, c);
    fl_adapter *ad = run->global;

    if (which > 0) {
        return FL_OK;
    }
    if (mask != NULL) {
        ad = fl_scratch_copy(run, run->global);
        for (size_t i = 0; i < ad->space->n; i++) {
            ad->v[i] = fl_bit(mask, i) ? ad->v[i] : 0;
        }
    }
    v->name = "masked";
    v->stack = (fl_stack){.n = 1, .ad = {ad}, .coef = {1}};
    return FL_OK;
}

const fl_method fl_method_flasc = {
    .name = "flasc",
    .title = "dense local training, sparse messages both ways",
    .source = "Kuo et al. 2024, arXiv 2406.05233",
    .choice = "Adam of the server without the weight decay of 0.01 that the official code's AdamW "
              "has by default; weights are 1/K by definition; positions are counted; nothing but A "
              "and B is in the vector.",
    .needs = FL_HETERO | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(flasc_config),
    .config = flasc_fields,
    .setup = flasc_setup,
    .download = flasc_download,
    .train = flasc_train,
    .upload = flasc_upload,
    .aggregate = flasc_aggregate,
    .view = flasc_view,
};
