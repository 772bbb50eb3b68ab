/* cmd_scale.c - fedlora scale: one federation on 1, 2, 4, .. P of the job's ranks, one row per run
 * in DIR/scaling.csv.
 *
 * strong: the deck as it is; the state digests must be equal on all numbers of ranks.
 * weak: cohort.size, partition.clients and data.sequences of the deck times the ranks, so that
 * every rank keeps the clients it had.
 *
 * A run of p ranks uses the first p of the job; the others sleep until it is over, so that their
 * cores are free. A row is written when its run is over: a job that is started again goes on behind
 * the last row. A run that was stopped in its middle is no measurement and is made again. */
#include "scale.h"

#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- one run ---- */
/* the high-water mark of this process back to what it holds now; without it (not Linux, or a kernel
 * that does not let us) the memory of a run is that of the largest so far */
static void forget_peak(void)
{
    FILE *f;

    malloc_trim(0);
    f = fopen("/proc/self/clear_refs", "w");
    if (f != NULL) {
        fputs("5\n", f);
        fclose(f);
    }
}

/* the deck of a point, by --set behind the user's */
static fl_err point_deck(const scale_series *s, fl_ctx *ctx, scale_point p, fl_deck **deck)
{
    app_args more = *s->args;
    char set[3][64];

    if (p.weak) {
        const struct {
            const char *key;
            int have;
        } grows[] = {{"cohort.size", s->deck->cohort.size},
            {"partition.clients",
                s->deck->partition.kind == FL_PART_NATURAL ? 0 : s->deck->partition.clients},
            {"data.sequences",
                strcmp(s->deck->data.source, "synthetic") == 0 ? s->deck->data.sequences : 0}};

        for (int i = 0; i < 3; i++) {
            if (grows[i].have > INT32_MAX / p.ranks) {
                return fl_fail(FL_EDECK, "%s: %d times %d ranks is beyond 2^31", grows[i].key,
                    grows[i].have, p.ranks);
            }
            if (grows[i].have > 0) {
                snprintf(set[i], sizeof set[i], "%s=%d", grows[i].key, grows[i].have * p.ranks);
                more.set[more.nsets++] = set[i];
            }
        }
    }
    return app_deck(ctx, s->args->word[0], &more, deck);
}

/* a folder that no earlier, unfinished run has used; rank 0's choice */
static fl_err point_folder(const scale_series *s, fl_ctx *ctx, scale_point p, char path[SCALE_PATH])
{
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        int n = snprintf(path, SCALE_PATH, "%s/runs/%s-%d-%d", s->args->out, scale_mode(p.weak),
            p.ranks, p.repeat);

        for (int i = 2; fl_path_exists(path); i++) {
            snprintf(path + n, SCALE_PATH - (size_t)n, "-again-%d", i);
        }
        err = fl_make_dirs(path);
    }
    FL_TRY_ALL(ctx, err);
    fl_bcast(ctx, 0, path, SCALE_PATH);
    return FL_OK;
}

static double cores_of(fl_ctx *ctx)
{
    return fl_total(ctx, ctx->node_rank == 0 ? (double)sysconf(_SC_NPROCESSORS_ONLN) : 0);
}

/* by the ranks of the point; ctx is theirs */
static fl_err run_point(scale_series *s, fl_ctx *ctx, scale_point p)
{
    fl_deck *deck = NULL;
    char out[SCALE_PATH] = "";
    uint64_t state = 0;
    double cores = cores_of(ctx), used = fl_now() - s->begin;
    fl_options o = {.out = out,
        .resume = "none",
        .maxh = s->args->maxh > 0 ? FL_MAX(s->args->maxh - used / 3600, 1e-9) : 0,
        .requeue_code = s->args->requeue_code};
    fl_err err = point_deck(s, ctx, p, &deck);

    if (err == FL_OK) {
        err = point_folder(s, ctx, p, out);
    }
    forget_peak();
    if (err == FL_OK) {
        err = app_federation(ctx, deck, &o, &state);
    }
    if (err == FL_OK) {
        scale_place at = {out, ctx->nnodes, cores, state};

        err = fl_agree(ctx, ctx->rank == 0 ? scale_add(s, p, deck, &at) : FL_OK);
    }
    if (ctx->log != NULL) {
        fclose(ctx->log);
    }
    fl_deck_destroy(&deck);
    return err;
}

/* A barrier whose waiters sleep: MPI_Barrier polls, and would take the cores of the run. They pass
 * on a signal that came to one of them. */
static void sleepy_barrier(MPI_Comm comm)
{
    MPI_Request request;
    int done = 0;

    MPI_Ibarrier(comm, &request);
    for (long ns = 100000; MPI_Test(&request, &done, MPI_STATUS_IGNORE), !done;
         ns = FL_MIN(2 * ns, 20000000L)) {
        fl_stop_poll();
        nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
    }
}

static fl_err series_point(scale_series *s, scale_point p)
{
    bool runs = s->ctx->rank < p.ranks;
    fl_ctx *part = NULL;
    fl_err err = fl_ctx_split(s->ctx, runs ? 0 : 1, &part);

    if (err == FL_OK && runs) {
        err = run_point(s, part, p);
    }
    sleepy_barrier(s->ctx->world);
    fl_ctx_destroy(&part);
    FL_TRY_ALL(s->ctx, err);
    FL_TRY_ALL(s->ctx, s->ctx->rank == 0 ? scale_write(s) : FL_OK);
    return fl_max(s->ctx, fl_stop_poll()) > 0
               ? fl_fail(FL_ESTOP, "stopped between two runs; the same command goes on behind the "
                                   "last row of scaling.csv")
               : FL_OK;
}

/* ---- the series ---- */
static fl_err read_ranks(scale_series *s)
{
    const char *text = s->args->ranks;
    char *end;

    if (text == NULL) { /* powers of two, and all */
        for (int p = 1; p < s->ctx->size; p *= 2) {
            s->ranks[s->n++] = p;
        }
        s->ranks[s->n++] = s->ctx->size;
        return FL_OK;
    }
    for (const char *at = text;; at = end + 1) {
        long p = strtol(at, &end, 10);

        if (end == at || p < 1 || (*end != ',' && *end != '\0') || s->n == SCALE_POINTS) {
            return fl_fail(FL_EUSAGE,
                "scale: --ranks %s: give at most %d numbers of ranks, as in 1,2,4", text,
                SCALE_POINTS);
        }
        if (p > s->ctx->size) {
            return fl_fail(FL_EUSAGE,
                "scale: --ranks %s: %ld is more than the %d rank(s) of this job; start it with "
                "mpirun -n %ld",
                text, p, s->ctx->size, p);
        }
        s->ranks[s->n++] = (int)p;
        if (*end == '\0') {
            return FL_OK;
        }
    }
}

static fl_err series_run(scale_series *s)
{
    fl_err err = FL_OK;

    for (int repeat = 1; repeat <= s->repeats && err == FL_OK; repeat++) {
        for (int i = 0; i < s->n && err == FL_OK; i++) {
            scale_point p = {s->ranks[i], repeat, s->weak};
            int have = s->ctx->rank == 0 && scale_has(s, p);

            fl_bcast(s->ctx, 0, &have, sizeof have);
            err = have != 0 ? FL_OK : series_point(s, p);
            if (err == FL_OK && have == 0) {
                fl_log(s->ctx, "%s, %d rank(s), repeat %d of %d: done", scale_mode(s->weak),
                    p.ranks, repeat, s->repeats);
            }
        }
    }
    if (err == FL_OK) {
        err = fl_agree(s->ctx, s->ctx->rank == 0 && s->comparable ? scale_check_states(s) : FL_OK);
    }
    if (err == FL_OK && s->ctx->rank == 0) {
        scale_report(s);
    }
    return err;
}

fl_err app_scale(fl_ctx *ctx, const app_args *args)
{
    scale_series s = {.ctx = ctx,
        .args = args,
        .repeats = args->repeat,
        .weak = strcmp(args->mode, "weak") == 0,
        .begin = fl_now()};
    char path[SCALE_PATH];

    if (args->out == NULL || strlen(args->out) > SCALE_PATH / 2) {
        return fl_fail(FL_EUSAGE, "scale: needs --out DIR, which gets scaling.csv");
    }
    if (!s.weak && strcmp(args->mode, "strong") != 0) {
        return fl_fail(FL_EUSAGE, "scale: --mode %s: choose strong or weak", args->mode);
    }
    if (args->repeat < 1 || args->nsets + 3 > MAX_SETS) {
        return fl_fail(
            FL_EUSAGE, "scale: --repeat must be 1 at least, --set %d at most", MAX_SETS - 3);
    }
    FL_TRY(read_ranks(&s));
    FL_TRY(app_deck(ctx, args->word[0], args, &s.deck));
    /* of all that the state depends on */
    s.digest = fl_deck_digest(s.deck) + 0x9e3779b97f4a7c15u * (uint64_t)s.deck->run.rounds;
    s.comparable = s.deck->svd.solver != FL_SVD_SCALAPACK || s.deck->svd.grid.n == 2;
    snprintf(path, sizeof path, "%s/scaling.csv", args->out);
    fl_err err = app_check_ranks(ctx);

    if (err == FL_OK) {
        err = app_lock(ctx, args->out);
    }
    if (err == FL_OK) {
        err = fl_agree(ctx, ctx->rank == 0 ? scale_load(&s) : FL_OK);
    }
    if (err == FL_OK) {
        app_catch_signals();
        err = series_run(&s);
    }
    if (err == FL_OK) {
        fl_log(ctx, "wrote     %s", path);
    }
    fl_text_free(&s.rows);
    fl_deck_destroy(&s.deck);
    return err;
}
