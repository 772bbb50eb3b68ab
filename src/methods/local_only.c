/* local_only - no federation: every client trains an adapter of its own and sends nothing. The
 * baseline that a federation must beat. State: client k keeps (A_k, B_k) for ever. Evaluation:
 * every client's own adapter on its own data. */
#include "fedlora/fed.h"

static fl_err local_only_enroll(fl_run *run, fl_client *c)
{
    bool fresh;

    c->n = 1;
    c->ad[0] = fl_keep_adapter(run, c, "own", 0, fl_space_at(run, run->space, NULL, c->r), &fresh);
    if (fresh) {
        fl_fit(c->ad[0], run->global); /* the common start, which nobody ever changes */
    }
    return FL_OK;
}

static fl_err local_only_plan(fl_run *run)
{
    run->round.returns = false;
    return FL_OK;
}

static fl_err local_only_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    (void)run;
    if (c != NULL && which == 0) {
        v->name = "own";
        v->stack = (fl_stack){.n = 1, .ad = {c->ad[0]}, .coef = {1}};
        v->data.client = c->id;
    }
    return FL_OK;
}

const fl_method fl_method_local_only = {
    .name = "local_only",
    .title = "no federation: every client trains alone (baseline)",
    .source = "baseline",
    .needs = FL_HETERO | FL_PERSONAL | FL_ONLINE | FL_LORA_ONLY,
    .plan = local_only_plan,
    .enroll = local_only_enroll,
    .download = fl_no_message,
    .view = local_only_view,
};
