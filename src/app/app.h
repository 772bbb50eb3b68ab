/* app.h - the command line: one table of commands, one of options; every command is a function of
 * parsed options. */
#ifndef FL_APP_H
#define FL_APP_H
#include "fedlora/fed.h"

enum { MAX_SETS = 256, MAX_WORDS = 4096, MAX_OVERS = 16 };
typedef struct app_args { /* all borrowed from argv */
    int nwords, nsets;
    const char *word[MAX_WORDS]; /* what is no option */
    const char *set[MAX_SETS];   /* --set section.key=value */
    const char *out, *resume, *model, *data, *adapter, *split, *method;
    double maxh;
    int requeue_code, client;
    bool dry_run, merged, help, reference;
    const char *ranks, *mode; /* of a scaling study */
    int repeat;
    const char *over[MAX_OVERS]; /* of a sweep: --over section.key=VALUES */
    int novers, groups;
    const char *weights, *dtype; /* of an aggregation */
    int r;
    double energy;
    bool stacked, no_audit, join_prefixes, any_init;
} app_args;

typedef struct app_command {
    const char *name, *usage, *help;
    int least, most; /* words after the command's name */
    fl_err (*run)(fl_ctx *ctx, const app_args *args);
    const char *options; /* the options it takes, separated by spaces, e.g. "--set --out" */
} app_command;
const app_command *app_commands(int *n);

typedef enum app_option_type { OPT_TEXT, OPT_NUMBER, OPT_INT, OPT_FLAG, OPT_SET, OPT_OVER } app_option_type;
typedef struct app_option {
    const char *name, *other;
    app_option_type type;
    size_t at;                 /* of the member of app_args */
    const char *value, *help;  /* "DIR", "a|b|FILE", "" for a flag; one line */
} app_option;
const app_option *app_options(int *n);
bool app_takes(const app_command *command, const char *option);
fl_err app_parse(int argc, char **argv, const app_command *command, app_args *args);
void app_help(const app_command *command, fl_text *t); /* NULL = all */

/* Candidates for the last of n words that follow "fedlora" on a command line, one a line; "@file" or "@dir": names of files.
 * No MPI, so that a shell may ask on a login node. */
void app_complete(int n, char **words, fl_text *t);

/* Collective: rank 0 reads the deck file, everybody parses the same text. path NULL = defaults. */
fl_err app_deck_text(fl_ctx *ctx, const char *path, char **text, size_t *n); /* the reading alone; text owned */
void app_absolute(fl_deck *deck); /* its relative paths, which are from the working directory */
fl_err app_deck(fl_ctx *ctx, const char *path, const app_args *args, fl_deck **deck);
char *app_versions(fl_ctx *ctx); /* collective; comment lines for used.yaml; owned by the caller */
fl_err app_check_ranks(fl_ctx *ctx); /* collective: the same binary and BLAS kernel */
fl_err app_lock(fl_ctx *ctx, const char *out); /* collective: OUT/.lock for the life of rank 0 */
fl_err app_lock_while(fl_ctx *ctx, const char *out, int *lock); /* the same until rank 0 closes *lock; -1 elsewhere */
/* Collective: opens OUT/log.txt on rank 0, which stays open as ctx->log. */
fl_err app_open_log(fl_ctx *ctx, const char *out);
/* Collective: one federation into o->out, which the caller has locked: log.txt, the rounds, the line `state`. */
fl_err app_federation(fl_ctx *ctx, const fl_deck *deck, fl_options *o, uint64_t *state);
void app_catch_signals(void);

fl_err app_run(fl_ctx *ctx, const app_args *args);
fl_err app_pretrain(fl_ctx *ctx, const app_args *args);
fl_err app_eval(fl_ctx *ctx, const app_args *args);
fl_err app_aggregate(fl_ctx *ctx, const app_args *args);
fl_err app_export(fl_ctx *ctx, const app_args *args);
fl_err app_inspect(fl_ctx *ctx, const app_args *args);
fl_err app_verify(fl_ctx *ctx, const app_args *args);
fl_err app_diff(fl_ctx *ctx, const app_args *args);
fl_err app_methods(fl_ctx *ctx, const app_args *args);
fl_err app_scale(fl_ctx *ctx, const app_args *args);
fl_err app_sweep(fl_ctx *ctx, const app_args *args);
fl_err app_show_deck(fl_ctx *ctx, const app_args *args);
fl_err app_explain(fl_ctx *ctx, const app_args *args);
fl_err app_bench(fl_ctx *ctx, const app_args *args);

/* ---- placement.c ---- collective: the start-up line on ranks, cores, threads and binding; warns with the remedy when they sit badly */
void app_placement(fl_ctx *ctx, const fl_deck *deck);
void app_cpu_name(char *name, size_t n); /* model name of this host's CPU, "unknown" */
#endif
