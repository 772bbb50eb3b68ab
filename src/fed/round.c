/* round.c - one round, as design section 6: draw, plan, place, turns, agree, aggregate. Reads like
 * the paper. */
#include "fed_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* K of N without replacement, ascending, the same on all ranks */
void round_draw(fl_runtime *rt, int t)
{
    fl_run *run = &rt->run;

    fl_rng_subset(run->seed, FL_RNG_COHORT, 0, t, run->nclients, run->ncohort, rt->cohort);
    run->cohort = rt->cohort;
}

static fl_err plan_round(fl_runtime *rt, int t)
{
    fl_run *run = &rt->run;

    fl_phase_begin(rt->ctx, FL_PHASE_plan);
    run->round = (fl_round){.t = t, .trains = true, .returns = true};
    run->job = (fl_job){.steps = rt->deck->train.steps, .epochs = rt->deck->train.epochs};
    run->turn = NULL;
    run->installed = NULL;
    rt->nmerges = 0;
    rt->revision_bytes[t] = rt->revision_bytes[t - 1];
    round_draw(rt, t);
    fl_err err = rt->method->plan != NULL ? rt->method->plan(run) : FL_OK;

    fl_phase_end(rt->ctx, FL_PHASE_plan);
    return err;
}

/* blocks of equal predicted cost (tokens x steps); one block of cohort positions per rank */
static void place_cohort(fl_runtime *rt)
{
    fl_run *run = &rt->run;
    double *cost = fl_arena_take(rt->round, (size_t)run->ncohort, sizeof *cost);

    for (int i = 0; i < run->ncohort; i++) {
        cost[i] = rt->cost[run->cohort[i]];
    }
    team_place(rt, cost);
}

/* position i of the cohort by the whole team; what it left behind counts on the leader only */
static fl_err one_turn(fl_runtime *rt, int i, void **blob, size_t *bytes)
{
    const fl_run *run = &rt->run;
    bool lost = fl_rng_uniform(run->seed, FL_RNG_LOSS, run->cohort[i], run->round.t, 0) <
                rt->deck->clients.lost;

    report_progress(
        rt, i - rt->first[rt->ctx->rank], rt->first[rt->ctx->rank + 1] - rt->first[rt->ctx->rank]);
    team_share_blob(rt, blob, bytes);
    fl_err err = turn_run(rt, i, lost, blob, bytes);

    if (!team_leads(rt)) {
        fl_free(*blob);
        *blob = NULL;
        *bytes = 0;
        rt->sent[i] = NULL;
        rt->turn_loss[i] = rt->turn_steps[i] = 0;
        rt->ledger = (fl_ledger){0};
    }
    if (err == FL_OK && fl_stop_poll() >= 2) {
        err = fl_fail(FL_ESTOP,
            "stopped in round %d by a second signal; the last checkpoint stands", run->round.t);
    }
    return rt->team->size > 1 ? fl_agree(rt->team, err) : err;
}

static fl_err run_turns(fl_runtime *rt)
{
    fl_run *run = &rt->run;
    size_t n = (size_t)run->ncohort;
    void **blob = fl_arena_take(rt->round, n, sizeof *blob);
    size_t *bytes = fl_arena_take(rt->round, n, sizeof *bytes);
    fl_err err;

    rt->sent = fl_arena_take(rt->round, n, sizeof *rt->sent);
    rt->turn_loss = fl_arena_take(rt->round, n, sizeof *rt->turn_loss);
    rt->turn_steps = fl_arena_take(rt->round, n, sizeof *rt->turn_steps);
    fl_phase_begin(rt->ctx, FL_PHASE_exchange);
    err = fl_store_fetch(rt->store, run->ncohort, run->cohort, rt->first, blob, bytes);
    fl_phase_end(rt->ctx, FL_PHASE_exchange);
    FL_TRY_ALL(rt->ctx, err);
    fl_phase_begin(rt->ctx, FL_PHASE_train);
    for (int i = rt->team_first[rt->iteam]; i < rt->team_first[rt->iteam + 1] && err == FL_OK;
         i++) {
        err = one_turn(rt, i, &blob[i], &bytes[i]);
    }
    report_progress(rt, 0, 0);
    fl_phase_end(rt->ctx, FL_PHASE_train);
    fl_phase_begin(rt->ctx, FL_PHASE_wait);
    err = fl_agree(rt->ctx, err);
    fl_phase_end(rt->ctx, FL_PHASE_wait);
    if (err != FL_OK) {
        for (int i = 0; i < run->ncohort; i++) {
            fl_free(blob[i]);
        }
        return err;
    }
    fl_phase_begin(rt->ctx, FL_PHASE_exchange);
    err = fl_store_return(rt->store, run->ncohort, run->cohort, rt->first, blob, bytes, NULL);
    fl_fill_in(rt->ctx, n, rt->turn_loss);
    fl_fill_in(rt->ctx, n, rt->turn_steps);
    fl_phase_end(rt->ctx, FL_PHASE_exchange);
    return fl_agree(rt->ctx, err);
}

static fl_err default_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){0}, &run->global);
}

fl_err round_sum(fl_runtime *rt)
{
    rt->aggregating = true;
    fl_phase_begin(rt->ctx, FL_PHASE_server); /* less what sums, exchanges, SVDs and merges take */
    fl_err err = (rt->method->aggregate != NULL ? rt->method->aggregate : default_aggregate)(
        &rt->run, &rt->pile);

    fl_phase_end(rt->ctx, FL_PHASE_server);
    rt->aggregating = false;
    return fl_agree(rt->ctx, err);
}

fl_err round_aggregate(fl_runtime *rt)
{
    fl_run *run = &rt->run;

    FL_TRY_ALL(rt->ctx, pile_build(rt));
    if (rt->pile.n == 0) {
        return FL_OK; /* every upload was lost: the server keeps its state */
    }
    rt->before = fl_scratch_adapter(run, run->space);
    memcpy(rt->before->v, run->global->v, run->space->n * sizeof(fl_real));
    return round_sum(rt);
}

double round_train_loss(const fl_runtime *rt)
{
    double loss = 0, n = 0;

    for (int i = 0; i < rt->run.ncohort; i++) {
        if (rt->turn_steps[i] > 0) {
            loss += rt->turn_loss[i];
            n++;
        }
    }
    return n > 0 ? loss / n : NAN;
}

fl_err round_run(fl_runtime *rt, int t)
{
    fl_run *run = &rt->run;

    fl_arena_reset(rt->round, (fl_mark){0});
    rt->pile = (fl_pile){0};
    FL_TRY_ALL(rt->ctx, plan_round(rt, t));
    place_cohort(rt);
    FL_TRY(run_turns(rt));
    for (int i = 0; i < run->ncohort; i++) {
        rt->last_seen[run->cohort[i]] = t;
    }
    if (run->round.returns) {
        FL_TRY(round_aggregate(rt));
    }
    ledger_changed(rt, t);
    if (rt->nmerges > 0) {
        rt->base_hash = fl_base_hash(rt->ctx, &rt->base);
    }
    return FL_OK;
}
