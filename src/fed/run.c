/* run.c - `fedlora run`: set up, resume, rounds, finish. */
#include "fed_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* evaluation of round t (0 = before training) into the row; the last round on test too */
static fl_err evaluate(fl_runtime *rt, int t)
{
    const fl_deck_eval *d = &rt->deck->eval;
    bool last = t == rt->deck->run.rounds;
    double x[4];

    if (!last && t != 0 && (d->every == 0 || t % d->every != 0)) {
        return FL_OK;
    }
    FL_TRY(eval_round(rt, d->split == FL_SPLIT_TEST ? FL_TEST : FL_VALID, d->per_client, x));
    fl_metrics_set(&rt->metrics, rt->col.eval, x[0]);
    fl_metrics_set(&rt->metrics, rt->col.metric, x[1]);
    fl_metrics_set(&rt->metrics, rt->col.mean, x[2]);
    fl_metrics_set(&rt->metrics, rt->col.worst, x[3]);
    if (last) {
        FL_TRY(eval_round(rt, FL_TEST, false, x));
        fl_metrics_set(&rt->metrics, fl_metrics_column(&rt->metrics, "test_loss", "nat"), x[0]);
        fl_metrics_set(&rt->metrics, fl_metrics_column(&rt->metrics, "test_metric", "1"), x[1]);
    }
    if (d->discordance && t > 0 && rt->pile.n > 0) {
        double relative;

        fl_phase_begin(rt->ctx, FL_PHASE_metrics);
        FL_TRY(discordance_measure(rt, &relative));
        fl_metrics_set(&rt->metrics, rt->col.discordance, relative);
        fl_phase_end(rt->ctx, FL_PHASE_metrics);
    }
    return FL_OK;
}

static int clients_arrived(const fl_runtime *rt)
{
    int n = 0;

    for (int i = 0; i < rt->pile.n; i++) {
        n += i == 0 || rt->pile.item[i].client != rt->pile.item[i - 1].client;
    }
    return n;
}

static fl_err one_round(fl_runtime *rt, int t)
{
    double begin = fl_now(), up, down;
    fl_metrics *m = &rt->metrics;

    fl_metrics_row(m);
    fl_metrics_set(m, 0, t);
    if (t > 0) {
        FL_TRY(round_run(rt, t));
        ledger_round(rt, &up, &down);
        fl_metrics_set(m, rt->col.train, round_train_loss(rt));
        fl_metrics_set(m, rt->col.up, up);
        fl_metrics_set(m, rt->col.down, down);
        fl_metrics_set(m, rt->col.clients, clients_arrived(rt));
    } else {
        fl_metrics_set(m, rt->col.up, 0);
        fl_metrics_set(m, rt->col.down, 0);
        fl_metrics_set(m, rt->col.clients, 0);
    }
    FL_TRY(evaluate(rt, t));
    fl_metrics_set(m, rt->col.wall, fl_max(rt->ctx, fl_now() - begin));
    rt->longest_round = FL_MAX(rt->longest_round,
        t > 0 ? m->x[(size_t)(m->nrows - 1) * (size_t)m->ncolumns + (size_t)rt->col.wall] : 0);
    report_round(rt, t);
    return FL_OK;
}

/* the moment (fl_now) when the time is up: the earlier of --maxh and the end of the job as its
 * script or Slurm tells it (seconds since 1970). Looked up once: a clock that jumps later does no
 * harm. INFINITY = no limit */
double fl_deadline(double maxh)
{
    const char *text = getenv("FEDLORA_END_TIME");
    double limit = maxh > 0 ? fl_now() + maxh * 3600 : INFINITY, end;

    if (text == NULL) {
        text = getenv("SLURM_JOB_END_TIME");
    }
    end = text != NULL ? strtod(text, NULL) : 0;
    return end > 0 ? FL_MIN(limit, fl_now() + end - (double)time(NULL)) : limit;
}

/* anything that asks to stop, agreed: signals, the STOP file, the time limit */
static bool must_stop(fl_runtime *rt)
{
    fl_text stop = {0};
    double why = 0;
    bool asked = rt->opt->ask != NULL && rt->opt->ask(rt->opt->asker);

    fl_text_add(&stop, "%s/STOP", rt->opt->out);
    if (fl_stop_poll() > 0) {
        why = 3;
    } else if (asked || (rt->ctx->rank == 0 && fl_path_exists(stop.s))) {
        why = 2;
    } else if (rt->deadline - fl_now() < 1.3 * (rt->longest_round + rt->longest_checkpoint) + 2) {
        why = 1;
    }
    why = fl_max(rt->ctx, why);
    if (why > 0) {
        fl_log(rt->ctx, "stopping  %s",
            why == 3   ? "a signal came"
            : why == 2 ? "there is a file STOP in the output folder"
                       : "the next round would not fit into the time that is left (--maxh, or the "
                         "end of the job)");
    }
    fl_text_free(&stop);
    return why > 0;
}

static fl_err rounds(fl_runtime *rt, int t)
{
    const fl_deck *deck = rt->deck;
    int saved = t;

    if (t == 0) {
        FL_TRY(one_round(rt, 0));
    }
    while (t < deck->run.rounds) {
        t++;
        FL_TRY(one_round(rt, t));
        FL_TRY(state_settle(rt, false));
        bool last = t == deck->run.rounds, stop = !last && must_stop(rt);

        if (last || stop || (deck->checkpoint.every > 0 && t % deck->checkpoint.every == 0)) {
            FL_TRY(state_save(rt, t));
            saved = t;
        }
        fl_phase_begin(rt->ctx, FL_PHASE_metrics);
        FL_TRY(report_files(rt));
        fl_phase_end(rt->ctx, FL_PHASE_metrics);
        if (stop) {
            FL_TRY(state_settle(rt, true));
            return fl_fail(FL_ESTOP,
                "stopped after round %d of %d with a checkpoint; run the same command again to go "
                "on",
                saved, deck->run.rounds);
        }
    }
    return state_settle(rt, true);
}

static fl_err federation(fl_runtime *rt, uint64_t *state)
{
    int t;

    FL_TRY_ALL(rt->ctx, setup_fresh(rt));
    if (rt->opt->dry_run) {
        return report_dry_run(rt);
    }
    FL_TRY(state_resume(rt, &t));
    FL_TRY(report_used(rt));
    if (t == rt->deck->run.rounds && t > 0) {
        fl_log(rt->ctx, "finished  all %d rounds are done already", t);
        *state = state_digest(rt, t);
        FL_TRY(report_files(rt));
        return report_adapter(rt); /* the job may have died after its last checkpoint */
    }
    FL_TRY(rounds(rt, t));
    if (rt->deck->run.rounds == 0) {
        FL_TRY(report_files(rt));
    }
    *state = state_digest(rt, rt->deck->run.rounds);
    return report_finish(rt);
}

/* said before the first round is trained, not after; the number of ranks is not the deck's to know
 */
static fl_err check_grid(const fl_ctx *ctx, const fl_deck *deck)
{
    const fl_ints *grid = &deck->svd.grid;

    if (deck->svd.solver != FL_SVD_SCALAPACK || grid->n != 2 ||
        (int64_t)grid->x[0] * grid->x[1] <= ctx->size) {
        return FL_OK;
    }
    return fl_fail(FL_EDECK,
        "svd.grid: [%d, %d] needs %lld ranks, this job has %d; start more ranks, or choose a "
        "smaller grid (the results depend on it)",
        grid->x[0], grid->x[1], (long long)grid->x[0] * grid->x[1], ctx->size);
}

fl_err fl_federation(fl_ctx *ctx, const fl_deck *deck, const fl_options *options, uint64_t *state)
{
    static fl_runtime runtime; /* zero; large arrays inside */
    fl_runtime *rt = &runtime;

    FL_TRY(check_grid(ctx, deck));
    fl_err err = fl_agree(ctx, setup_runtime(ctx, deck, options, rt));

    rt->deadline = fl_deadline(options->maxh);

    if (err == FL_OK) {
        report_start(rt);
        err = federation(rt, state);
    }
    setup_destroy(rt);
    return err;
}
