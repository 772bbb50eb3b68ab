/* scale_table.c - DIR/scaling.csv of fedlora scale: one row per run, written when the run is over,
 * from its rounds.csv and perf.json. Seconds by phase are means over the ranks, summed over the
 * whole run; wall_s is that of a round. */
#include "scale.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- scaling.csv ---- */
static void add_header(fl_text *t)
{
    fl_text_add(t, "mode,ranks,repeat,deck,nodes,cores,clients,cohort,rounds,wall_s_min,"
                   "wall_s_median");
    for (int p = 0; p < FL_NPHASES; p++) {
        fl_text_add(t, ",%s_s", fl_phase_name[p]);
    }
    fl_text_add(t, ",train_s_max,mpi_bytes_per_round,up_bytes,down_bytes,tokens_per_s,"
                   "gflops_per_rank,memory_per_rank_bytes,node_pss_bytes,state\n");
}

/* field `column` of a line of comma-separated words: its start, *n its length; NULL = none */
static const char *csv_field(const char *line, int column, size_t *n)
{
    for (; column > 0; column--) {
        line += strcspn(line, ",\n");
        if (*line != ',') {
            return NULL;
        }
        line++;
    }
    *n = strcspn(line, ",\n");
    return line;
}

static int csv_column(const char *header, const char *name)
{
    size_t n;
    const char *at;

    for (int i = 0; (at = csv_field(header, i, &n)) != NULL; i++) {
        if (n == strlen(name) && strncmp(at, name, n) == 0) {
            return i;
        }
    }
    return -1;
}

static bool csv_is(const char *line, int column, const char *text)
{
    size_t n;
    const char *at = csv_field(line, column, &n);

    return at != NULL && n == strlen(text) && strncmp(at, text, n) == 0;
}

static double csv_number(const char *line, int column)
{
    size_t n;
    const char *at = column < 0 ? NULL : csv_field(line, column, &n);

    return at != NULL && n > 0 ? strtod(at, NULL) : NAN;
}

static const char *next_line(const char *line)
{
    const char *end = strchr(line, '\n');

    return end != NULL && end[1] != '\0' ? end + 1 : NULL;
}

const char *scale_mode(bool weak)
{
    return weak ? "weak" : "strong";
}

/* the row of a point, NULL = not measured yet; rank 0 */
static const char *find_row(const scale_series *s, scale_point p)
{
    char ranks[16], repeat[16];

    snprintf(ranks, sizeof ranks, "%d", p.ranks);
    snprintf(repeat, sizeof repeat, "%d", p.repeat);
    for (const char *line = s->rows.n > 0 ? s->rows.s : NULL; line != NULL;
         line = next_line(line)) {
        if (csv_is(line, 0, scale_mode(p.weak)) && csv_is(line, 1, ranks) &&
            csv_is(line, 2, repeat)) {
            return line;
        }
    }
    return NULL;
}

bool scale_has(const scale_series *s, scale_point p)
{
    return find_row(s, p) != NULL;
}

static void csv_path(const scale_series *s, char path[SCALE_PATH])
{
    snprintf(path, SCALE_PATH, "%s/scaling.csv", s->args->out);
}

fl_err scale_load(scale_series *s)
{
    char path[SCALE_PATH];
    char *bytes = NULL, digest[24];
    size_t n = 0;
    fl_text header = {0};
    fl_err err;

    csv_path(s, path);
    if (!fl_path_exists(path)) {
        return FL_OK;
    }
    FL_TRY(fl_file_read(path, &bytes, &n));
    add_header(&header);
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)s->digest);
    if (n < header.n || memcmp(bytes, header.s, header.n) != 0 || bytes[n - 1] != '\n') {
        err = fl_fail(FL_EFILE,
            "%s: is not a table of this version of fedlora scale; choose another --out", path);
    } else {
        fl_text_bytes(&s->rows, bytes + header.n, n - header.n);
        err = FL_OK;
    }
    for (const char *line = s->rows.n > 0 ? s->rows.s : NULL; line != NULL && err == FL_OK;
         line = next_line(line)) {
        if (!csv_is(line, 3, digest)) {
            err = fl_fail(FL_EDECK,
                "%s: has rows of another deck or other --set; choose another --out", path);
        }
    }
    fl_text_free(&header);
    fl_free(bytes);
    return err;
}

fl_err scale_write(const scale_series *s)
{
    char path[SCALE_PATH];
    fl_text t = {0};

    csv_path(s, path);
    add_header(&t);
    fl_text_bytes(&t, s->rows.s, s->rows.n);
    fl_err err = fl_file_write(path, t.s, t.n);

    fl_text_free(&t);
    return err;
}

/* ---- one row, from what a run wrote ---- */
static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(int n, double *x)
{
    if (n == 0) {
        return NAN;
    }
    qsort(x, (size_t)n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

/* wall_s of the rounds; those that were evaluated count only if there is no other */
static fl_err round_times(const char *out, double *least, double *middle, int *n)
{
    char path[SCALE_PATH], *csv = NULL;
    size_t bytes = 0;

    snprintf(path, sizeof path, "%s/rounds.csv", out);
    FL_TRY(fl_file_read(path, &csv, &bytes));
    int wall = csv_column(csv, "wall_s"), eval = csv_column(csv, "eval_loss");
    double *x = fl_alloc("seconds of rounds", bytes + 1, sizeof *x);

    *n = 0;
    for (int all = 0; all < 2 && *n == 0; all++) {
        for (const char *line = next_line(csv); line != NULL; line = next_line(line)) {
            if (csv_number(line, 0) > 0 && (all == 1 || isnan(csv_number(line, eval)))) {
                x[(*n)++] = csv_number(line, wall);
            }
        }
    }
    *middle = median(*n, x);
    *least = *n > 0 ? x[0] : NAN;
    fl_free(x);
    fl_free(csv);
    return *n > 0 ? FL_OK : fl_fail(FL_EDECK, "run.rounds: a scaling study needs a round at least");
}

static double perf_number(const json_t *perf, const char *a, const char *b)
{
    const json_t *x = json_object_get(perf, a);

    return json_number_value(b != NULL ? json_object_get(x, b) : x);
}

/* MPI bytes of a rank in a round of training, set-up and row 0 left out */
static double mpi_per_round(const json_t *perf)
{
    const json_t *list = json_object_get(json_object_get(perf, "by_round"), "mpi_bytes");
    size_t n = json_array_size(list);
    double *x = fl_alloc("bytes of rounds", n + 1, sizeof *x);

    for (size_t i = 1; i < n; i++) {
        x[i - 1] = json_number_value(json_array_get(list, i));
    }
    double middle = n > 1 ? median((int)n - 1, x) : 0;

    fl_free(x);
    return middle;
}

fl_err scale_add(scale_series *s, scale_point p, const fl_deck *deck, const scale_place *at)
{
    char path[SCALE_PATH];
    double least, middle, up = 0, down = 0;
    int n;
    const char *kind;
    json_t *perf, *x;
    fl_text *t = &s->rows;

    snprintf(path, sizeof path, "%s/perf.json", at->out);
    FL_TRY(round_times(at->out, &least, &middle, &n));
    perf = json_load_file(path, 0, NULL);
    if (perf == NULL) {
        return fl_fail(FL_EFILE, "%s: cannot be read", path);
    }
    json_object_foreach(json_object_get(perf, "traffic_bytes"), kind, x)
    {
        up += perf_number(x, "up_bytes", NULL);
        down += perf_number(x, "down_bytes", NULL);
    }
    fl_text_add(t, "%s,%d,%d,%016llx,%d,%.0f,%.0f,%d,%d,%.9g,%.9g", scale_mode(p.weak), p.ranks,
        p.repeat, (unsigned long long)s->digest, at->nodes, at->cores,
        perf_number(perf, "clients", NULL), deck->cohort.size, deck->run.rounds, least, middle);
    for (int i = 0; i < FL_NPHASES; i++) {
        x = json_object_get(json_object_get(perf, "phases_s"), fl_phase_name[i]);
        fl_text_add(t, ",%.9g", perf_number(x, "avg", NULL));
    }
    x = json_object_get(json_object_get(perf, "phases_s"), "train");
    fl_text_add(t, ",%.9g,%.0f,%.0f,%.0f,%.9g,%.9g,%.0f,%.0f,%016llx\n",
        perf_number(x, "max", NULL), mpi_per_round(perf), up, down,
        p.ranks * perf_number(perf, "train_tokens_per_s_per_rank", "avg"),
        perf_number(perf, "train_gflops_per_rank", "avg"),
        perf_number(perf, "peak_memory_bytes", "max"), perf_number(perf, "node_pss_bytes", NULL),
        (unsigned long long)at->state);
    json_decref(perf);
    return FL_OK;
}

/* of scaling.csv */
static int column_of(const char *name)
{
    fl_text header = {0};

    add_header(&header);
    int column = csv_column(header.s, name);

    fl_text_free(&header);
    return column;
}

fl_err scale_check_states(const scale_series *s)
{
    int column = column_of("state");
    size_t n, m;

    for (const char *a = s->rows.n > 0 ? s->rows.s : NULL; a != NULL; a = next_line(a)) {
        const char *x = csv_field(a, column, &n), *b = s->rows.s;
        bool weak = csv_is(a, 0, "weak");

        while (b != a &&
               (csv_is(b, 0, "weak") != weak || (weak && csv_number(a, 1) != csv_number(b, 1)))) {
            b = next_line(b);
        }
        const char *y = csv_field(b, column, &m);

        FL_REQUIRE(x != NULL && y != NULL);
        if (n != m || strncmp(x, y, n) != 0) {
            return fl_fail(FL_EBUG,
                "the state differs: %.*s on %.0f ranks, %.*s on %.0f ranks (%s), though it must "
                "not depend on the ranks; please report it with the deck",
                (int)n, x, csv_number(a, 1), (int)m, y, csv_number(b, 1), weak ? "weak" : "strong");
        }
    }
    return FL_OK;
}

static double best_wall(const scale_series *s, int ranks)
{
    int wall = column_of("wall_s_median");
    double best = INFINITY;

    for (const char *line = s->rows.s; line != NULL; line = next_line(line)) {
        if (csv_is(line, 0, scale_mode(s->weak)) && csv_number(line, 1) == ranks) {
            best = fmin(best, csv_number(line, wall));
        }
    }
    return best;
}

void scale_report(const scale_series *s)
{
    double first = best_wall(s, s->ranks[0]);

    fl_log(s->ctx, "%6s %12s %9s %11s", "ranks", "s per round", "speed-up", "efficiency");
    for (int i = 0; i < s->n; i++) {
        double wall = best_wall(s, s->ranks[i]), share = (double)s->ranks[i] / s->ranks[0],
               speed = first / wall * (s->weak ? share : 1);

        fl_log(s->ctx, "%6d %12.5f %9.2f %10.1f%%", s->ranks[i], wall, speed, 100 * speed / share);
    }
    if (s->comparable) {
        fl_log(s->ctx, "states    equal%s",
            s->weak ? " over the repeats" : " on all numbers of ranks, in all repeats");
    } else {
        fl_log(s->ctx, "states    not compared: the bits of svd.solver: scalapack depend on the "
                       "process grid, and svd.grid is not set");
    }
}
