/* cmd_sweep.c - sweep: many runs in one job. The ranks are cut into groups, each a world of its own
 * in which one run follows the other; run i belongs to group i mod the number of groups. A run does
 * not see how many ranks it has, so its bits are those of the same run alone. What came of a run
 * goes to rank 0 as a message, which it takes after each of its own rounds and while it waits for
 * the others: it alone prints and writes summary.csv. */
#include "sweep.h"

#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- the decks ---- */

/* the deck of a run: the text, --set, then the values of --over. Local, equal on all ranks. */
static fl_err parse_deck(const sweep *sw, int run, fl_deck **deck)
{
    const char *set[MAX_SETS + MAX_OVERS];
    fl_text over[MAX_OVERS] = {{0}};
    int nextra, n = sw->args->nsets;
    const fl_section *extra = fl_method_sections(&nextra);

    memcpy(set, sw->args->set, (size_t)n * sizeof *set);
    for (int a = 0; a < sw->plan.naxes; a++) {
        fl_text_add(&over[a], "%s=%s", sw->plan.axis[a].key, sweep_value(&sw->plan, run, a));
        set[n++] = over[a].s;
    }
    fl_err err = fl_deck_parse(sw->text, sw->ntext, sw->args->word[0], n, set, extra, nextra, deck);

    for (int a = 0; a < sw->plan.naxes; a++) {
        fl_text_free(&over[a]);
    }
    if (err == FL_OK && fl_method_find((*deck)->method.name) == NULL) {
        err = fl_fail(FL_EDECK, "method.name: there is no method '%s'; fedlora methods lists them",
            (*deck)->method.name);
        fl_deck_destroy(deck);
    }
    if (err == FL_OK) {
        app_absolute(*deck);
    }
    return err;
}

/* What a group must have for a run: a grid of processes is part of the deck. */
static int ranks_needed(const fl_deck *deck)
{
    const fl_ints *grid = &deck->svd.grid;

    return deck->svd.solver == FL_SVD_SCALAPACK && grid->n == 2
               ? (int)FL_MIN((int64_t)grid->x[0] * grid->x[1], INT32_MAX)
               : 1;
}

/* A mistake in any of the decks is said before the first run begins. Afterwards: where, how long,
 * how many groups; *threads: a deck with the largest number of BLAS threads, owned by the caller.
 */
static fl_err check_decks(sweep *sw, fl_deck **threads)
{
    int wrong = 0, needs = 1, first = -1;

    *threads = NULL;
    for (int i = 0; i < sw->plan.nruns; i++) {
        fl_deck *deck;

        if (parse_deck(sw, i, &deck) != FL_OK) {
            first = wrong++ == 0 ? i : first;
            continue;
        }
        needs = FL_MAX(needs, ranks_needed(deck));
        if (sw->out == NULL) {
            sw->out = fl_strdup(sw->args->out != NULL ? sw->args->out : deck->run.out);
            sw->maxh = sw->args->maxh > 0 ? sw->args->maxh : deck->run.maxh;
        }
        if (*threads == NULL || deck->blas.threads > (*threads)->blas.threads) {
            fl_deck_destroy(threads);
            *threads = deck;
        } else {
            fl_deck_destroy(&deck);
        }
    }
    if (wrong > 0) {
        fl_text label = {0};

        sweep_label(&sw->plan, first, &label);
        fl_fail(FL_EDECK, "sweep: %d of %d decks are wrong, the first is that of %s; no run began",
            wrong, sw->plan.nruns, label.s);
        fl_text_free(&label);
        return FL_EDECK;
    }
    int most = FL_MAX(1, FL_MIN(sw->plan.nruns, sw->world->size / needs));

    sw->ngroups = sw->args->groups > 0 ? FL_MIN(sw->args->groups, most) : most;
    return FL_OK;
}

/* ---- the runs of a group ---- */

static bool told_to_stop(const sweep *sw)
{
    return sw->group->rank == 0 && fl_path_exists(sw->stop);
}

static bool ask(void *asker)
{
    sweep *sw = asker;

    if (sw->world->rank == 0) {
        sweep_receive(sw);
    }
    return told_to_stop(sw);
}

/* Collective over the group. Time counts only once this job has trained a round here (longest > 0):
 * every job gets ahead, however short. */
static bool no_more(sweep *sw, double longest)
{
    bool late = longest > 0 && sw->deadline - fl_now() < 1.3 * longest + 2;

    return fl_max(sw->group, fl_stop_poll() > 0 || told_to_stop(sw) || late) > 0;
}

static void log_errors(FILE *log, fl_err err)
{
    const char *line = fl_error_text();

    while (err != FL_OK && *line != '\0') {
        int n = (int)strcspn(line, "\n");

        fprintf(log, "%s%.*s\n", err == FL_ESTOP ? "" : "error: ", n, line);
        line += n + (line[n] == '\n');
    }
}

/* the run itself in a context of its own: phases and bytes are counted from zero */
static fl_err one_run(sweep *sw, const char *out, sweep_result *r)
{
    double left = (sw->deadline - fl_now()) / 3600;
    fl_options o = {.out = out,
        .resume = sw->args->resume,
        .maxh = isinf(sw->deadline) ? 0 : FL_MAX(left, 1e-9),
        .requeue_code = sw->args->requeue_code,
        .ask = ask,
        .asker = sw};
    fl_deck *deck = NULL;
    fl_ctx *ctx = NULL;
    int lock = -1;

    FL_TRY(fl_ctx_split(sw->group, 0, &ctx));
    fl_err err = fl_agree(ctx, parse_deck(sw, r->run, &deck));

    if (err == FL_OK) {
        fl_blas_threads(deck->blas.threads);
        r->planned = deck->run.rounds;
        if (ctx->rank == 0) {
            sweep_result_read(r, out);
            r->before = r->rounds >= 0 && r->rounds == deck->run.rounds;
        }
        err = app_lock_while(ctx, out, &lock);
    }
    if (err == FL_OK) {
        err = app_federation(ctx, deck, &o, &r->state);
    }
    if (ctx->log != NULL) {
        log_errors(ctx->log, err);
        fclose(ctx->log);
    }
    if (lock >= 0) {
        close(lock);
    }
    fl_deck_destroy(&deck);
    fl_ctx_destroy(&ctx);
    return err;
}

/* Collective over the group; *longest grows to the longest round trained here. */
static void attend(sweep *sw, int run, bool begin, double *longest)
{
    sweep_result r;
    fl_text out = {0};

    sweep_result_clear(&r, run);
    fl_text_add(&out, "%s/", sw->out);
    sweep_name(&sw->plan, run, &out);
    if (begin) {
        double from = fl_now();

        r.begun = true;
        r.err = one_run(sw, out.s, &r);
        r.seconds = fl_now() - from;
    }
    r.status = !begin || r.err == FL_ESTOP ? SWEEP_STOPPED
               : r.err == FL_OK            ? SWEEP_DONE
                                           : SWEEP_FAILED;
    snprintf(r.error, sizeof r.error, "%.*s", (int)strcspn(fl_error_text(), "\n"), fl_error_text());
    fl_error_clear();
    if (sw->group->rank == 0) {
        if (r.err == FL_EDECK) {
            sweep_result_parse(&r, ""); /* what is there may belong to another deck */
        } else {
            sweep_result_read(&r, out.s);
        }
        sweep_hand_in(sw, &r);
    }
    if (begin && !r.before) {
        *longest = FL_MAX(*longest, r.longest);
    }
    fl_bcast(sw->group, 0, longest, sizeof *longest);
    fl_text_free(&out);
}

static void attend_all(sweep *sw)
{
    double longest = 0;
    bool end = false;

    for (int i = sw->igroup; i < sw->plan.nruns; i += sw->ngroups) {
        end = end || no_more(sw, longest);
        attend(sw, i, !end, &longest);
    }
}

/* ---- beginning and end ---- */

static void pause_a_moment(void)
{
    fl_stop_poll(); /* a rank that waits still passes a signal on */
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* Those who are ready sleep, so that their cores serve the others if ranks outnumber cores. */
static void wait_for_all(sweep *sw)
{
    MPI_Request request;
    int done = 0;

    while (sw->world->rank == 0 && sw->nresults < sw->plan.nruns) {
        sweep_receive(sw);
        pause_a_moment();
    }
    MPI_Ibarrier(sw->world->world, &request);
    for (MPI_Test(&request, &done, MPI_STATUS_IGNORE); !done;
         MPI_Test(&request, &done, MPI_STATUS_IGNORE)) {
        pause_a_moment();
    }
}

static void split(sweep *sw)
{
    int64_t rank = sw->world->rank, size = sw->world->size;

    /* the group g has the ranks from size g / ngroups on: contiguous, so that it has few nodes */
    while (size * (sw->igroup + 1) / sw->ngroups <= rank) {
        sw->igroup++;
    }
    fl_ctx_split(sw->world, sw->igroup, &sw->group);
}

/* Collective: the folder, its log, the start-up lines */
static fl_err open_folder(sweep *sw, const fl_deck *deck)
{
    fl_text stop = {0};

    FL_TRY(app_check_ranks(sw->world));
    fl_text_add(&stop, "%s/STOP", sw->out);
    sw->stop = stop.s;
    if (!sw->args->dry_run) {
        FL_TRY(app_lock(sw->world, sw->out));
        FL_TRY(app_open_log(sw->world, sw->out));
        app_catch_signals();
    }
    app_placement(sw->world, deck);
    sweep_report_start(sw);
    return FL_OK;
}

static fl_err prepare(sweep *sw)
{
    fl_deck *threads;

    if (strcmp(sw->args->resume, "auto") != 0 && strcmp(sw->args->resume, "none") != 0) {
        return fl_fail(FL_EUSAGE, "sweep: --resume is auto or none");
    }
    FL_TRY(sweep_plan_make(sw->args->novers, sw->args->over, &sw->plan));
    FL_TRY(app_deck_text(sw->world, sw->args->word[0], &sw->text, &sw->ntext));
    fl_err err = check_decks(sw, &threads);

    if (err == FL_OK) {
        err = open_folder(sw, threads);
    }
    fl_deck_destroy(&threads);
    FL_TRY(err);
    size_t n = sw->world->rank == 0 ? (size_t)sw->plan.nruns : 0;

    sw->deadline = fl_deadline(sw->maxh);
    sw->result = fl_alloc("results of a sweep", n, sizeof *sw->result);
    for (int i = 0; i < (int)n; i++) {
        sweep_result_clear(&sw->result[i], i);
    }
    return FL_OK;
}

fl_err app_sweep(fl_ctx *ctx, const app_args *args)
{
    sweep sw = {.world = ctx, .args = args};
    fl_err err = prepare(&sw);

    if (err == FL_OK && !args->dry_run) {
        split(&sw);
        attend_all(&sw);
        wait_for_all(&sw);
        err = sweep_report_end(&sw);
        fl_ctx_destroy(&sw.group);
    }
    sweep_plan_free(&sw.plan);
    fl_free(sw.text);
    fl_free(sw.out);
    fl_free(sw.stop);
    fl_free(sw.result);
    return err;
}
