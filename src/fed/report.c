/* report.c - what a run says and writes: the start-up lines, a line a round, rounds.csv,
 * metrics.h5, used.yaml, the tables of phases and traffic, perf.json, the server's adapter. */
#include "fed_internal.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static const char *const weights_name[] = {"samples", "uniform"};

void report_start(fl_runtime *rt)
{
    const fl_run *run = &rt->run;
    const fl_model *m = &rt->base.model;
    char b[32];
    double reals = 0;

    for (int j = 0; j < run->space->nslots; j++) {
        reals += (double)run->space->slot[j].rows * run->space->slot[j].cols;
    }
    fl_log(rt->ctx,
        "model     %s: %s, %d blocks of width %d, %zu parameters in %s, one copy per node",
        rt->deck->model.path, m->family == FL_FAMILY_GPT2 ? "gpt2" : "llama", m->nlayers, m->nd,
        m->nweights, fl_bytes_text((double)fl_model_bytes(m), b));
    fl_log(rt->ctx,
        "data      %lld sequences, %lld tokens; %d clients, %d per round, weights by %s",
        (long long)rt->data.nsamples, (long long)rt->data.ntokens, run->nclients, run->ncohort,
        weights_name[rt->deck->cohort.weights]);
    fl_log(rt->ctx, "method    %s: %s", rt->method->name, rt->method->title);
    fl_log(rt->ctx, "adapter   %.0f numbers, largest r %d; svd.solver %s", reals, run->space->rmax,
        (const char *[]){"auto", "factored", "dense", "scalapack"}[rt->deck->svd.solver]);
    fl_log(
        rt->ctx, "ranks     %d on %d node(s); %s", rt->ctx->size, rt->ctx->nnodes, fl_blas_name());
}

static const char *cell(double x, const char *format, char buffer[24])
{
    if (isnan(x)) {
        return "-";
    }
    snprintf(buffer, 24, format, x);
    return buffer;
}

/* what a rank holds after the round (largest), and sent through MPI in it (mean): flat over rounds,
 * or something grows */
static void note_round(fl_runtime *rt, int t)
{
    double mine[2] = {(double)fl_memory_private(), fl_mpi_bytes(rt->ctx) - rt->mpi_bytes_before};
    double *x;

    if (rt->by_round == NULL) {
        rt->by_round = fl_alloc("notes on rounds", (size_t)rt->deck->run.rounds + 1, 2 * sizeof *x);
        rt->noted_first = t;
    }
    x = rt->by_round + 2 * (size_t)rt->noted++;
    x[0] = fl_max(rt->ctx, mine[0]);
    x[1] = fl_total(rt->ctx, mine[1]) / rt->ctx->size;
    rt->mpi_bytes_before = fl_mpi_bytes(rt->ctx);
}

static json_t *by_round_json(const fl_runtime *rt)
{
    json_t *memory = json_array(), *bytes = json_array();

    for (int i = 0; i < rt->noted; i++) {
        json_array_append_new(memory, json_real(rt->by_round[2 * i]));
        json_array_append_new(bytes, json_real(rt->by_round[2 * i + 1]));
    }
    return json_pack("{s:i, s:o, s:o}", "first_round", rt->noted_first, "private_memory_bytes",
        memory, "mpi_bytes", bytes);
}

void report_round(fl_runtime *rt, int t)
{
    const fl_metrics *m = &rt->metrics;
    const double *x = m->x + (size_t)(m->nrows - 1) * (size_t)m->ncolumns;
    char b[8][32], c[6][24];

    note_round(rt, t);
    if (t == 0) {
        fl_log(rt->ctx, "%6s %9s %10s %10s %9s %9s %10s %10s %7s", "round", "seconds", "train",
            "eval", "accuracy", "discord.", "up", "down", "clients");
    }
    fl_log(rt->ctx, "%6d %9s %10s %10s %9s %9s %10s %10s %7.0f", t,
        cell(x[rt->col.wall], "%.2f", c[0]), cell(x[rt->col.train], "%.5f", c[1]),
        cell(x[rt->col.eval], "%.5f", c[2]), cell(x[rt->col.metric], "%.4f", c[3]),
        cell(x[rt->col.discordance], "%.2e", c[4]), fl_bytes_text(x[rt->col.up], b[0]),
        fl_bytes_text(x[rt->col.down], b[1]), x[rt->col.clients]);
}

/* on a terminal: where rank 0 is in the round, and the time left by the rounds so far; wiped before
 * the next line */
void report_progress(fl_runtime *rt, int done, int mine)
{
    int t = rt->run.round.t, rounds = rt->deck->run.rounds;
    double left = rt->longest_round * (rounds - t);

    if (!rt->opt->progress || rt->ctx->rank != 0 || rt->ctx->quiet) {
        return;
    }
    if (done == mine) {
        fputs("\r\033[K", stderr);
    } else if (left > 0) {
        fprintf(stderr, "\rround %d of %d, client %d of %d on rank 0, at most %.0f s left\033[K", t,
            rounds, done + 1, mine, left);
    } else {
        fprintf(
            stderr, "\rround %d of %d, client %d of %d on rank 0\033[K", t, rounds, done + 1, mine);
    }
    fflush(stderr);
}

fl_err report_files(fl_runtime *rt)
{
    static const char *const columns[CURVE_COLUMNS] = {
        "round", "client", "loss", "accuracy", "targets"};
    fl_text csv = {0}, h5 = {0};
    fl_err err = FL_OK;

    if (rt->ctx->rank == 0) {
        fl_text_add(&csv, "%s/rounds.csv", rt->opt->out);
        fl_text_add(&h5, "%s/metrics.h5", rt->opt->out);
        err = fl_metrics_csv(&rt->metrics, csv.s);
        if (err == FL_OK) {
            err = fl_metrics_h5(&rt->metrics, h5.s, rt->ncurve, CURVE_COLUMNS, columns, rt->curve);
        }
    }
    fl_text_free(&csv);
    fl_text_free(&h5);
    return fl_agree(rt->ctx, err);
}

fl_err report_used(fl_runtime *rt)
{
    fl_text t = {0}, path = {0};
    fl_err err = FL_OK;

    if (rt->ctx->rank == 0) {
        fl_text_add(&path, "%s/used.yaml", rt->opt->out);
        fl_text_add(&t, "%s", rt->opt->versions);
        fl_deck_dump(rt->deck, false, &t);
        err = fl_file_write(path.s, t.s, t.n);
    }
    fl_text_free(&t);
    fl_text_free(&path);
    return fl_agree(rt->ctx, err);
}

/* ---- the end of the run ---- */
typedef struct spread {
    double min, mean, max;
    int at;
} spread; /* over ranks */

static spread spread_of(fl_runtime *rt, double mine)
{
    double *all = fl_arena_take(rt->round, (size_t)rt->ctx->size, sizeof *all);
    spread s;

    fl_gather_doubles(rt->ctx, 1, &mine, all);
    s = (spread){all[0], 0, all[0], 0};
    for (int r = 0; r < rt->ctx->size; r++) {
        s.mean += all[r] / rt->ctx->size;
        s.min = FL_MIN(s.min, all[r]);
        if (all[r] > s.max) {
            s.max = all[r];
            s.at = r;
        }
    }
    return s;
}

static json_t *spread_json(spread s)
{
    return json_pack(
        "{s:f, s:f, s:f, s:i}", "min", s.min, "avg", s.mean, "max", s.max, "max_rank", s.at);
}

static json_t *phase_table(fl_runtime *rt)
{
    double total = fl_now() - rt->started;
    json_t *phases = json_object();

    fl_log(rt->ctx, "%s", "");
    fl_log(rt->ctx, "%-12s %9s %9s %15s %7s", "phase", "min s", "avg s", "max s (rank)", "%total");
    for (int p = 0; p < FL_NPHASES; p++) {
        spread s = spread_of(rt, fl_phase_seconds(rt->ctx, (fl_phase)p));

        if (s.max > 0.0005) {
            fl_log(rt->ctx, "%-12s %9.3f %9.3f %9.3f (%3d) %7.1f", fl_phase_name[p], s.min, s.mean,
                s.max, s.at, 100 * s.mean / total);
        }
        json_object_set_new(phases, fl_phase_name[p], spread_json(s));
    }
    return phases;
}

static json_t *traffic_table(fl_runtime *rt)
{
    json_t *traffic = json_object();

    fl_log(rt->ctx, "%s", "");
    fl_log(rt->ctx, "%-12s %14s %14s", "traffic", "up", "down");
    for (int k = 0; k < NTRAFFIC; k++) {
        char a[32], b[32];

        if (rt->total.up[k] + rt->total.down[k] > 0) {
            fl_log(rt->ctx, "%-12s %14s %14s", traffic_name[k], fl_bytes_text(rt->total.up[k], a),
                fl_bytes_text(rt->total.down[k], b));
        }
        json_object_set_new(traffic, traffic_name[k],
            json_pack("{s:f, s:f}", "up_bytes", rt->total.up[k], "down_bytes", rt->total.down[k]));
    }
    return traffic;
}

static double largest_by_node(fl_runtime *rt, double mine)
{
    double *all = fl_arena_take(rt->round, 2 * (size_t)rt->ctx->size, sizeof *all), most = 0;
    double x[2] = {rt->ctx->inode, mine};

    fl_gather_doubles(rt->ctx, 2, x, all);
    for (int node = 0; node < rt->ctx->nnodes; node++) {
        double sum = 0;

        for (int r = 0; r < rt->ctx->size; r++) {
            sum += all[2 * r] == node ? all[2 * r + 1] : 0;
        }
        most = FL_MAX(most, sum);
    }
    return most;
}

static fl_err write_perf(fl_runtime *rt, json_t *perf)
{
    fl_text path = {0};
    char *s = json_dumps(perf, JSON_INDENT(2) | JSON_SORT_KEYS);
    fl_err err = FL_OK;

    if (rt->ctx->rank == 0) {
        fl_text_add(&path, "%s/perf.json", rt->opt->out);
        err = fl_file_write(path.s, s, strlen(s));
    }
    free(s);
    fl_text_free(&path);
    return err;
}

/* what the server's view puts on the base, if that is one adapter and nothing else; NULL = a view
 * that no PEFT folder can hold */
static const fl_adapter *shown(fl_runtime *rt)
{
    fl_run *run = &rt->run;
    fl_view v = {0};

    if (rt->method->view == NULL) {
        return run->global;
    }
    bool one = rt->method->view(run, NULL, 0, &v) == FL_OK && v.name != NULL && v.stack.n == 1 &&
               v.stack.base == 0 && v.stack.coef[0] == 1 &&
               (v.stack.ad[0] == run->global || v.stack.ad[0]->space->nsites > 0);

    return one ? v.stack.ad[0] : NULL;
}

static fl_err write_adapter(fl_runtime *rt)
{
    const fl_deck *deck = rt->deck;
    const fl_adapter *ad = rt->ctx->rank == 0 ? shown(rt) : NULL;
    fl_text path = {0};
    fl_err err = FL_OK;

    if (ad == NULL) {
        return FL_OK;
    }
    if (deck->train.what == FL_WHAT_LORA) {
        fl_text_add(&path, "%s/adapter", rt->opt->out);
        err = fl_peft_save(path.s, &rt->base.model, ad, deck->adapter.alpha, deck->adapter.rslora,
            deck->model.path);
    }
    if (err == FL_OK &&
        rt->base_revision > 0) { /* the adapter alone means nothing on the base as it was loaded */
        path.n = 0;
        fl_text_add(&path, "%s/base", rt->opt->out);
        err = fl_hf_save(path.s, &rt->base.model, rt->base.w);
    }
    fl_text_free(&path);
    return err;
}

fl_err report_adapter(fl_runtime *rt)
{
    return fl_agree(rt->ctx, write_adapter(rt));
}

fl_err report_finish(fl_runtime *rt)
{
    double train = fl_phase_seconds(rt->ctx, FL_PHASE_train);
    spread gflops = spread_of(rt, train > 0 ? rt->flops / train * 1e-9 : 0),
           tokens = spread_of(rt, train > 0 ? rt->train_tokens / train : 0);
    spread bytes = spread_of(rt, fl_mpi_bytes(rt->ctx)),
           peak = spread_of(rt, (double)fl_memory_resident());
    double pss = largest_by_node(rt, (double)fl_memory_pss()),
           checkpoint = fl_phase_seconds(rt->ctx, FL_PHASE_checkpoint);
    spread limit = spread_of(rt, fl_gemm_peak(512, rt->base.model.nd, rt->base.model.nd));
    char a[32], b[32], c[32];
    json_t *perf = json_object();

    json_object_set_new(perf, "phases_s", phase_table(rt));
    json_object_set_new(perf, "traffic_bytes", traffic_table(rt));
    json_object_set_new(perf, "ranks", json_integer(rt->ctx->size));
    json_object_set_new(perf, "nodes", json_integer(rt->ctx->nnodes));
    json_object_set_new(perf, "clients", json_integer(rt->run.nclients));
    json_object_set_new(perf, "by_round", by_round_json(rt));
    json_object_set_new(perf, "wall_s", json_real(fl_now() - rt->started));
    json_object_set_new(perf, "train_gflops_per_rank", spread_json(gflops));
    json_object_set_new(perf, "gemm_limit_gflops_per_rank", spread_json(limit));
    json_object_set_new(perf, "train_fraction_of_gemm_limit",
        json_real(limit.mean > 0 ? gflops.mean / limit.mean : 0));
    json_object_set_new(perf, "train_tokens_per_s_per_rank", spread_json(tokens));
    json_object_set_new(perf, "mpi_bytes", spread_json(bytes));
    json_object_set_new(perf, "peak_memory_bytes", spread_json(peak));
    json_object_set_new(perf, "node_pss_bytes", json_real(pss));
    json_object_set_new(perf, "checkpoint_file_bytes", json_real(rt->checkpoint_bytes));
    json_object_set_new(perf, "checkpoint_bytes", json_real(rt->checkpoint_total));
    json_object_set_new(perf, "checkpoint_seconds", json_real(rt->checkpoint_seconds));
    json_object_set_new(perf, "checkpoint_bandwidth_bytes_per_s",
        json_real(rt->checkpoint_seconds > 0 ? rt->checkpoint_total / rt->checkpoint_seconds : 0));
    json_object_set_new(perf, "longest_checkpoint_s", json_real(rt->longest_checkpoint));
    fl_log(rt->ctx, "%s", "");
    if (checkpoint > 0.05 * (fl_now() - rt->started) && checkpoint > 5) {
        fl_warn(rt->ctx, "checkpoints took %.0f %% of the time; raise checkpoint.every",
            100 * checkpoint / (fl_now() - rt->started));
    }
    fl_log(rt->ctx,
        "training  %.1f GFLOP/s (%.0f %% of the GEMM limit) and %.0f tokens/s per rank; MPI %s per "
        "rank; memory %s per rank at most, %s on a node (shared once)",
        gflops.mean, 100 * gflops.mean / limit.mean, tokens.mean, fl_bytes_text(bytes.mean, a),
        fl_bytes_text(peak.max, b), fl_bytes_text(pss, c));
    fl_err err = fl_agree(rt->ctx, write_perf(rt, perf));

    json_decref(perf);
    FL_TRY(err);
    return report_adapter(rt);
}

/* ---- --dry-run ---- */
static double adapter_bytes(fl_runtime *rt, int r)
{
    fl_mark mark = fl_arena_mark(rt->round);
    double bytes = 4.0 * (double)fl_space_at(&rt->run, rt->run.space, NULL, r)->n;

    fl_arena_reset(rt->round, mark);
    return bytes;
}

fl_err report_dry_run(fl_runtime *rt)
{
    fl_run *run = &rt->run;
    double messages = 0, mine, state;
    char a[32], b[32], c[32], d[32];
    int size = rt->ctx->size;
    double *cost = fl_arena_take(rt->round, (size_t)run->ncohort, sizeof *cost);

    round_draw(rt, 1);
    for (int i = 0; i < run->ncohort; i++) {
        messages += adapter_bytes(rt, rt->client_r[run->cohort[i]]);
        cost[i] = rt->cost[run->cohort[i]];
    }
    fl_layout(run->ncohort, cost, size, rt->first);
    fl_log(rt->ctx, "rank x client map of round 1 (cohort positions, predicted tokens)");
    for (int r = 0; r < size; r++) {
        double sum = 0;

        for (int i = rt->first[r]; i < rt->first[r + 1]; i++) {
            sum += cost[i];
        }
        fl_log(rt->ctx, "  rank %4d: %4d .. %4d  %12.0f tokens", r, rt->first[r],
            rt->first[r + 1] - 1, sum);
    }
    mine = (double)fl_memory_now();
    state = (rt->method->needs & FL_PERSONAL) != 0
                ? adapter_bytes(rt, run->space->rmax) * run->nclients
                : 0;
    fl_log(rt->ctx,
        "memory    %s per rank (activations %s, messages of a round %s), %s shared per node",
        fl_bytes_text(mine, a),
        fl_bytes_text(
            (double)fl_work_bytes(&rt->base.model,
                FL_MAX(rt->deck->train.batch, rt->deck->eval.batch) * rt->deck->model.max_length,
                FL_MAX(rt->deck->train.batch, rt->deck->eval.batch), rt->deck->model.max_length,
                run->space->rmax, true),
            b),
        fl_bytes_text(messages / size, c),
        fl_bytes_text(
            (double)(rt->base.share.bytes + rt->data.share.bytes + rt->part.share.bytes), d));
    fl_log(rt->ctx, "traffic   at most %s up and %s down per round in adapters%s",
        fl_bytes_text(messages, a), fl_bytes_text(messages, b),
        (rt->method->needs & FL_MERGES) != 0 ? "; the base's updates come on top, down" : "");
    fl_log(rt->ctx, "checkpoint %s (server), %s (clients, when all took part), %s (base%s)",
        fl_bytes_text(4.0 * (double)run->space->n, a), fl_bytes_text(state, b),
        fl_bytes_text(
            (rt->method->needs & FL_MERGES) != 0 ? (double)fl_model_bytes(&rt->base.model) : 0, c),
        (rt->method->needs & FL_MERGES) != 0 ? ", merged" : " unchanged");
    if (rt->deck->checkpoint.async) {
        fl_log(rt->ctx, "checkpoint.async: rank 0 copies all of it: up to %s more memory there",
            fl_bytes_text(
                4.0 * (double)run->space->n + state +
                    ((rt->method->needs & FL_MERGES) != 0 ? (double)fl_model_bytes(&rt->base.model)
                                                          : 0),
                a));
    }
    return FL_OK;
}
