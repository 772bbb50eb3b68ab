/* fedilora - averages by rank band, and clients put their least similar factors back to the
 * server's. Source: Yang et al. 2025 (FediLoRA, arXiv 2509.06984); official code gotobcn8/FediLoRA.
 * Dimension-wise weights: in the band of pairs that the clients k in S_l have,
 *   A[i,:] = sum_{k in S_l} p_k / (sum_{j in S_l} p_j) A_k[i,:],  B[:,i] alike: the rule of rbla.
 * Layer-wise editing, on the client after its training, from the second round on: of all its
 * factors A (or B) the `edit` ones with the smallest cosine c to the server's become
 *   similarity  (1 - c) server's + c own;   half  the mean of both;   replace  the server's.
 * Evaluated: the server's pair, and with eval.per_client every client's own edited adapter.
 * The released loop over B takes higher bands from the first client only; not copied. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct fedilora_config {
    int edit, factor, how;
} fedilora_config;

static const fl_field fedilora_fields[] = {
    FL_INT(fedilora_config, edit, "1", 0, 1000000, "",
        "how many of its matrices a client edits after training; 0 = none"),
    FL_WORD(fedilora_config, factor, "a", "a|b", "the factor that is edited"),
    FL_WORD(fedilora_config, how, "similarity", "similarity|half|replace",
        "weight of the server's factor: 1 - cosine, a half, all"),
    FL_END,
};

static fl_err fedilora_enroll(fl_run *run, fl_client *c)
{
    bool fresh;

    c->ad[0] = fl_keep_adapter(run, c, "own", 0, fl_space_cut(run, run->space, c->r), &fresh);
    c->n = fresh ? 0 : 1;
    return FL_OK;
}

static fl_err fedilora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_cut(run, run->space, c->r));

    fl_fit(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

/* cosine of two matrices as vectors; 0 where one of them is 0 */
static double cosine(fl_mat x, fl_mat y)
{
    double xx = 0, yy = 0, xy = 0;

    for (int i = 0; i < x.rows * x.cols; i++) {
        xx += (double)x.x[i] * x.x[i];
        yy += (double)y.x[i] * y.x[i];
        xy += (double)x.x[i] * y.x[i];
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
}

static void edit(fl_run *run, fl_client *c)
{
    const fedilora_config *cf = run->config;
    fl_factor f = cf->factor == 0 ? FL_A : FL_B;
    size_t n = (size_t)run->nsites;
    double *far = fl_scratch(run, n, sizeof *far);
    uint64_t *chosen = fl_bits(run, n);

    for (int j = 0; j < run->nsites; j++) { /* absent sites come last: at -2, below any -cosine */
        fl_mat own = fl_at(c->ad[0], j, f);

        far[j] = own.x != NULL ? -cosine(own, fl_at(c->got[0], j, f)) : -2;
    }
    fl_top(run, n, far, (size_t)cf->edit, chosen, 0);
    for (int j = 0; j < run->nsites; j++) {
        fl_mat own = fl_at(c->ad[0], j, f), server = fl_at(c->got[0], j, f);
        double keep = cf->how == 0 ? -far[j] : cf->how == 1 ? 0.5 : 0;

        for (int i = 0; fl_bit(chosen, (size_t)j) && i < own.rows * own.cols; i++) {
            own.x[i] = (fl_real)((1 - keep) * server.x[i] + keep * own.x[i]);
        }
    }
}

static fl_err fedilora_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    FL_TRY(fl_train(run, c, &job));
    if (run->round.t > 1) {
        edit(run, c);
    }
    return FL_OK;
}

static fl_err fedilora_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = FL_HOLDERS}, &run->global);
}

static fl_err fedilora_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    bool own = c != NULL && c->n > 0; /* took part already */

    if (which == 0) {
        v->name = own ? "own" : "global";
        v->stack = (fl_stack){.n = 1, .ad = {own ? c->ad[0] : run->global}, .coef = {1}};
    }
    return FL_OK;
}

const fl_method fl_method_fedilora = {
    .name = "fedilora",
    .title = "unequal ranks averaged band by band, with layer-wise editing on the clients",
    .source = "Yang et al. 2025, arXiv 2509.06984",
    .choice = "editing as in the official code, but among the matrices of the chosen factor only "
              "(there the list mixes A and B); pairs that nobody has keep their values; one scale "
              "for all clients. Missing modalities are a matter of the data, not simulated.",
    .needs = FL_HETERO | FL_LORA_ONLY,
    .config_size = sizeof(fedilora_config),
    .config = fedilora_fields,
    .enroll = fedilora_enroll,
    .download = fedilora_download,
    .train = fedilora_train,
    .aggregate = fedilora_aggregate,
    .view = fedilora_view,
};
