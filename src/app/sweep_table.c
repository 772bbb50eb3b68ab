/* sweep_table.c - what came of the runs of a sweep: read from their rounds.csv, written as
 * summary.csv and as a table of aligned columns. */
#include "sweep.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *title;
    bool sum;   /* over the rounds; else the last that is known */
    char style; /* in the table: f, e, or b for bytes */
    int digits;
} columns[] = {
#define AS_ROW(name, title, sum, style, digits) {#name, title, sum, style, digits},
    SWEEP_COLUMNS(AS_ROW)};

void sweep_result_clear(sweep_result *r, int run)
{
    memset(r, 0, sizeof *r);
    r->run = run;
    sweep_result_parse(r, "");
}

/* ---- rounds.csv ---- */

/* what the cells of rounds.csv are here: a column, or one of these */
enum { CELL_ROUND = SWEEP_NCOLUMNS, CELL_OTHER };

static int cell_of(const char *name, size_t n)
{
    for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
        if (strlen(columns[c].name) == n && strncmp(columns[c].name, name, n) == 0) {
            return c;
        }
    }
    return n == 5 && strncmp(name, "round", 5) == 0 ? CELL_ROUND : CELL_OTHER;
}

static void take_cell(sweep_result *r, int cell, double x)
{
    if (cell == CELL_ROUND) {
        r->rounds = x >= 0 && x < 1e9 ? (int)x : r->rounds;
    } else if (cell < SWEEP_NCOLUMNS) {
        r->x[cell] = columns[cell].sum && !isnan(r->x[cell]) ? r->x[cell] + x : x;
        /* round 0 has no training */
        if (cell == SWEEP_wall_s && r->rounds > 0) {
            r->longest = FL_MAX(r->longest, x);
        }
    }
}

void sweep_result_parse(sweep_result *r, const char *csv)
{
    int *cell = fl_alloc("columns of rounds.csv", strlen(csv) + 1, sizeof *cell), ncells = 0;
    bool head = true;

    r->rounds = -1;
    r->longest = 0;
    for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
        r->x[c] = NAN;
    }
    for (const char *s = csv; *s != '\0';) {
        for (int c = 0;; c++) {
            size_t n = strcspn(s, ",\n");
            char *end;
            double x = strtod(s, &end);

            if (head) {
                cell[ncells++] = cell_of(s, n);
            } else if (n > 0 && end == s + n && isfinite(x) && c < ncells) {
                take_cell(r, cell[c], x);
            }
            s += n;
            if (*s != ',') {
                break;
            }
            s++;
        }
        s += *s == '\n';
        head = false;
    }
    fl_free(cell);
}

void sweep_result_read(sweep_result *r, const char *out)
{
    fl_text path = {0};
    char *csv = NULL;
    size_t n;

    fl_text_add(&path, "%s/rounds.csv", out);
    if (fl_path_exists(path.s) && fl_file_read(path.s, &csv, &n) == FL_OK) {
        sweep_result_parse(r, csv);
    }
    fl_error_clear(); /* a file that cannot be read is as good as none */
    fl_free(csv);
    fl_text_free(&path);
}

/* ---- verdicts ---- */

int sweep_exit_code(const sweep_result *r, int requeue_code)
{
    return r->status == SWEEP_WAITS     ? -1
           : r->status == SWEEP_STOPPED ? requeue_code
                                        : fl_exit_code(r->err);
}

fl_err sweep_verdict(int n, const sweep_result *r, int *at)
{
    *at = 0;
    for (int i = 0; i < n; i++) {
        if (r[i].status == SWEEP_STOPPED || r[i].status == SWEEP_WAITS) {
            *at = i;
            return FL_ESTOP;
        }
    }
    for (int i = 0; i < n; i++) {
        if (r[i].status == SWEEP_FAILED) {
            *at = i;
            return r[i].err;
        }
    }
    return FL_OK;
}

/* ---- summary.csv ---- */

/* RFC 4180: quoted if needed */
static void add_cell(fl_text *t, const char *s)
{
    if (strpbrk(s, ",\"\n\r") == NULL) {
        fl_text_add(t, "%s,", s);
        return;
    }
    fl_text_add(t, "\"");
    for (; *s != '\0'; s++) {
        fl_text_add(t, "%s", *s == '"' ? "\"" : "");
        fl_text_bytes(t, s, 1);
    }
    fl_text_add(t, "\",");
}

static void add_number(fl_text *t, double x)
{
    if (isnan(x)) {
        fl_text_add(t, ",");
    } else if (x == rint(x) && fabs(x) < 9007199254740992.0) {
        fl_text_add(t, "%lld,", (long long)x);
    } else {
        fl_text_add(t, "%.9g,", x);
    }
}

void sweep_csv(const sweep_plan *plan, const sweep_result *r, int requeue_code, fl_text *t)
{
    fl_text_add(t, "run,");
    for (int a = 0; a < plan->naxes; a++) {
        add_cell(t, plan->axis[a].key);
    }
    fl_text_add(t, "rounds,");
    for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
        fl_text_add(t, "%s,", columns[c].name);
    }
    fl_text_add(t, "state,exit_code\n");
    for (int i = 0; i < plan->nruns; i++) {
        sweep_name(plan, i, t);
        fl_text_add(t, ",");
        for (int a = 0; a < plan->naxes; a++) {
            add_cell(t, sweep_value(plan, i, a));
        }
        add_number(t, r[i].rounds >= 0 ? (double)r[i].rounds : (double)NAN);
        for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
            add_number(t, r[i].x[c]);
        }
        if (r[i].status == SWEEP_DONE) {
            fl_text_add(t, "%016llx", (unsigned long long)r[i].state);
        }
        fl_text_add(t, ",");
        if (r[i].status != SWEEP_WAITS) {
            fl_text_add(t, "%d", sweep_exit_code(&r[i], requeue_code));
        }
        fl_text_add(t, "\n");
    }
}

/* ---- the table ---- */

/* [rows][cols] texts, the first row titles */
typedef struct grid {
    int rows, cols;
    char **text; /* owned */
} grid;

static void put(grid *g, int row, int col, const char *s)
{
    g->text[(size_t)row * (size_t)g->cols + (size_t)col] = fl_strdup(s);
}

static void put_number(grid *g, int row, int col, double x, char style, int digits)
{
    char s[400] = "-"; /* %f of the largest double has 309 digits */

    if (!isnan(x) && style == 'b') {
        fl_bytes_text(x, s);
    } else if (!isnan(x)) {
        snprintf(s, sizeof s, style == 'f' ? "%.*f" : "%.*e", digits, x);
    }
    put(g, row, col, s);
}

static void put_run(
    grid *g, int row, const sweep_plan *plan, const sweep_result *r, int requeue_code)
{
    int col = 0;
    char s[32];

    for (int a = 0; a < plan->naxes; a++) {
        put(g, row, col++, sweep_value(plan, r->run, a));
    }
    put_number(g, row, col++, r->rounds >= 0 ? (double)r->rounds : (double)NAN, 'f', 0);
    for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
        put_number(g, row, col++, r->x[c], columns[c].style, columns[c].digits);
    }
    snprintf(s, sizeof s, "%016llx", (unsigned long long)r->state);
    put(g, row, col++, r->status == SWEEP_DONE ? s : "-");
    put_number(g, row, col,
        r->status == SWEEP_WAITS ? (double)NAN : (double)sweep_exit_code(r, requeue_code), 'f', 0);
}

/* keys to the left, numbers to the right */
static void print_grid(const grid *g, int nkeys, fl_text *t)
{
    int *width = fl_alloc("table of a sweep", (size_t)g->cols, sizeof *width);

    for (int i = 0; i < g->rows * g->cols; i++) {
        width[i % g->cols] = FL_MAX(width[i % g->cols], (int)strlen(g->text[i]));
    }
    for (int i = 0; i < g->rows * g->cols; i++) {
        int col = i % g->cols, last = col == g->cols - 1;

        fl_text_add(
            t, "%*s%s", col < nkeys ? -width[col] : width[col], g->text[i], last ? "\n" : "  ");
    }
    fl_free(width);
}

void sweep_table(const sweep_plan *plan, const sweep_result *r, int requeue_code, fl_text *t)
{
    grid g = {.rows = plan->nruns + 1, .cols = plan->naxes + SWEEP_NCOLUMNS + 3};
    int col = 0;

    g.text = fl_alloc("table of a sweep", (size_t)g.rows * (size_t)g.cols, sizeof *g.text);
    for (int a = 0; a < plan->naxes; a++) {
        put(&g, 0, col++, plan->axis[a].key);
    }
    put(&g, 0, col++, "rounds");
    for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
        put(&g, 0, col++, columns[c].title);
    }
    put(&g, 0, col++, "state");
    put(&g, 0, col, "exit");
    for (int i = 0; i < plan->nruns; i++) {
        put_run(&g, i + 1, plan, &r[i], requeue_code);
    }
    print_grid(&g, plan->naxes, t);
    for (int i = 0; i < g.rows * g.cols; i++) {
        fl_free(g.text[i]);
    }
    fl_free(g.text);
}
