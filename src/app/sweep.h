/* sweep.h - many runs in one job: the list of runs that --over asks for, what came of each, the
 * table. cmd_sweep.c runs them. */
#ifndef FL_SWEEP_H
#define FL_SWEEP_H
#include "app.h"

/* ---- the plan: every combination of the values of all --over; the last key varies fastest ---- */
enum { SWEEP_MAX_RUNS = 10000 };
typedef struct sweep_axis {
    char *key;           /* owned; "run.seed" */
    int n;
    char **value, **safe; /* owned [n]: as YAML flow; as part of the name of a folder */
} sweep_axis;
typedef struct sweep_plan {
    int naxes, nruns;
    sweep_axis axis[MAX_OVERS];
} sweep_plan;
/* over [n]: "key=a,b,c", "key=1..5", "key=1..9..2", or these mixed; commas inside of quotes or brackets belong to the value.
 * FL_EUSAGE for everything else, and for a key or a value that comes twice. Local. The plan is freed by the caller, after an error too. */
fl_err sweep_plan_make(int n, const char *const *over, sweep_plan *plan);
void sweep_plan_free(sweep_plan *plan);
const char *sweep_value(const sweep_plan *plan, int run, int axis); /* borrowed */
/* "method.name=flora+run.seed=2": a file name of letters, digits and . _ - + = that depends on this run's values alone
 * (and on other values of a key only when they would give the same name); at most 220 bytes */
void sweep_name(const sweep_plan *plan, int run, fl_text *t);
void sweep_label(const sweep_plan *plan, int run, fl_text *t); /* "method.name=flora run.seed=2" */

/* ---- what came of a run ---- sent between ranks as bytes: no pointers */
#define SWEEP_COLUMNS(X) /* of rounds.csv; title, summed over the rounds or the last, as f, e or bytes, digits */ \
    X(eval_loss, "eval", false, 'f', 5)         \
    X(eval_metric, "accuracy", false, 'f', 4)   \
    X(test_loss, "test", false, 'f', 5)         \
    X(test_metric, "accuracy", false, 'f', 4)   \
    X(up_bytes, "up", true, 'b', 0)             \
    X(down_bytes, "down", true, 'b', 0)         \
    X(discordance, "discord.", false, 'e', 2)   \
    X(wall_s, "seconds", true, 'f', 1)
#define SWEEP_AS_ENUM(name, title, sum, style, digits) SWEEP_##name,
enum { SWEEP_COLUMNS(SWEEP_AS_ENUM) SWEEP_NCOLUMNS };
typedef enum sweep_status { SWEEP_WAITS, SWEEP_DONE, SWEEP_STOPPED, SWEEP_FAILED } sweep_status;
typedef struct sweep_result {
    int run, status;
    bool begun, before;        /* begun in this job; had been finished by an earlier one */
    fl_err err;
    int rounds, planned;       /* done, of so many; rounds -1 = none known */
    double x[SWEEP_NCOLUMNS];  /* NaN = not known: the last value of a column of rounds.csv, or its sum */
    double longest;            /* seconds of the longest round */
    double seconds;            /* in this job */
    uint64_t state;            /* if done */
    char error[600];           /* first of the sentences, cut */
} sweep_result;
void sweep_result_clear(sweep_result *r, int run);
/* Takes rounds and x from the text of a rounds.csv. Survives any text: what is not a number is not known. */
void sweep_result_parse(sweep_result *r, const char *csv);
void sweep_result_read(sweep_result *r, const char *out); /* OUT/rounds.csv, if it is there */

/* ---- the table ---- r [plan->nruns] */
void sweep_csv(const sweep_plan *plan, const sweep_result *r, int requeue_code, fl_text *t);
void sweep_table(const sweep_plan *plan, const sweep_result *r, int requeue_code, fl_text *t); /* aligned columns */
int sweep_exit_code(const sweep_result *r, int requeue_code); /* -1 = waits */
/* FL_OK if all are done, FL_ESTOP if any was stopped, else the first failure; *at: a run that decides */
fl_err sweep_verdict(int n, const sweep_result *r, int *at);

/* ---- a sweep that runs ---- */
typedef struct sweep {
    fl_ctx *world; /* borrowed */
    fl_ctx *group; /* owned: the ranks that work on a run together */
    const app_args *args;
    sweep_plan plan; /* owned */
    char *text;      /* owned [ntext]: the deck */
    size_t ntext;
    char *out, *stop; /* owned: the folder, and OUT/STOP */
    double maxh, deadline; /* hours, 0 = no limit; fl_now */
    int ngroups, igroup;
    sweep_result *result; /* owned [plan.nruns] on rank 0 of the world, [0] elsewhere */
    int nresults;
    fl_err err; /* of writing summary.csv, on rank 0 */
} sweep;

void sweep_report_start(const sweep *sw);
void sweep_receive(sweep *sw);                          /* rank 0 of the world: all results that have arrived */
void sweep_hand_in(sweep *sw, const sweep_result *r);   /* rank 0 of a group */
fl_err sweep_report_end(sweep *sw);                     /* collective: the table, and the error of the whole */
#endif
