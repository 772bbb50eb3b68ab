/* fedsa_lora - train both factors, share A only; every client keeps its B.
 * Source: Guo et al. 2024 (FedSA-LoRA, arXiv 2410.01463); survey section 4.2.
 * State: the server's A (r x n); client k's B_k (m x r), for ever.
 * Local work: A and B_k, from (A, B_k).  Server: A = sum_k p_k A_k.
 * Evaluation: W + s B_k A on client k's own data; the server has no model. A client that has never
 * trained has the B of the start, which is 0.
 * The published configuration hands one model object from client to client, B_k with it; here B_k
 * is nobody else's. */
#include "fedlora/fed.h"

#include <string.h>

static fl_err fedsa_lora_enroll(fl_run *run, fl_client *c)
{
    bool fresh;

    c->n = 1;
    c->ad[0] = fl_keep_adapter(run, c, "own", 0, run->space, &fresh);
    if (fresh) {
        fl_fit(c->ad[0], run->global); /* the server's B is that of the start */
    }
    return FL_OK;
}

static fl_err fedsa_lora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    (void)c;
    fl_send(down, (fl_part){.ad = run->global, .of = run->global, .pick.factors = FL_BIT(FL_A)});
    return FL_OK;
}

static fl_err fedsa_lora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    (void)run;
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0], .pick.factors = FL_BIT(FL_A)});
    return FL_OK;
}

/* own B under the server's A, which the client of an earlier round no longer holds */
static fl_err fedsa_lora_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    if (c == NULL || which > 0) {
        return FL_OK;
    }
    fl_adapter *ad = fl_scratch_copy(run, run->global);

    for (int site = 0; site < run->nsites; site++) {
        fl_mat to = fl_at(ad, site, FL_B), from = fl_at(c->ad[0], site, FL_B);

        if (to.x != NULL) {
            memcpy(to.x, from.x, (size_t)to.rows * (size_t)to.cols * sizeof *to.x);
        }
    }
    v->name = "own B, server's A";
    v->stack = (fl_stack){.n = 1, .ad = {ad}, .coef = {1}};
    v->data.client = c->id;
    return FL_OK;
}

const fl_method fl_method_fedsa_lora = {
    .name = "fedsa_lora",
    .title = "share A, keep B: personal models with a common A",
    .source = "Guo et al. 2024, arXiv 2410.01463",
    .choice = "weights p_k as the deck says (the authors' are sample counts); a new client starts "
              "from B = 0.",
    .needs = FL_PERSONAL | FL_ONLINE | FL_LORA_ONLY,
    .enroll = fedsa_lora_enroll,
    .download = fedsa_lora_download,
    .upload = fedsa_lora_upload,
    .view = fedsa_lora_view,
};
