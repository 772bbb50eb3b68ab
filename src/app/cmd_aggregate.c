/* cmd_aggregate.c - fedlora aggregate: finished PEFT adapters in, one out. What the user gave
 * becomes a list of folders, weights of sum 1 and a deck with the method in it; all of it is
 * checked before a number is read. */
#include "app.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_ADAPTERS = 1000000 };

typedef struct adapters {
    int n, room;
    char **dir; /* owned [n] */
    double *w;  /* owned [n], sum 1 */
} adapters;

static void adapters_free(adapters *a)
{
    for (int i = 0; i < a->n; i++) {
        fl_free(a->dir[i]);
    }
    fl_free(a->dir);
    fl_free(a->w);
}

/* ---- folders ---- */
static fl_err add_folder(adapters *a, const char *dir)
{
    if (a->n == MOST_ADAPTERS) {
        return fl_fail(FL_EUSAGE, "aggregate: more than %d adapters", MOST_ADAPTERS);
    }
    if (a->n == a->room) {
        a->room = 2 * a->room + 64;
        a->dir = fl_realloc("adapters", a->dir, (size_t)a->room, sizeof *a->dir);
    }
    a->dir[a->n++] = fl_strdup(dir);
    return FL_OK;
}

/* one folder a line; empty lines and those that start with # are left out. Collective. */
static fl_err add_listed(fl_ctx *ctx, adapters *a, const char *path)
{
    char *text = NULL, *save = NULL;
    size_t n;
    int before = a->n;
    fl_err err;

    FL_TRY(app_deck_text(ctx, path, &text, &n));
    err = strlen(text) == n ? FL_OK : fl_fail(FL_EUSAGE, "%s: is not a list of folders", path);
    for (char *line = strtok_r(text, "\r\n", &save); line != NULL && err == FL_OK;
         line = strtok_r(NULL, "\r\n", &save)) {
        if (*line != '#') {
            err = add_folder(a, line);
        }
    }
    fl_free(text);
    if (err == FL_OK && a->n == before) {
        err = fl_fail(FL_EUSAGE, "%s: names no folder", path);
    }
    return err;
}

static fl_err read_folders(fl_ctx *ctx, const app_args *args, adapters *a)
{
    for (int i = 0; i < args->nwords; i++) {
        FL_TRY(args->word[i][0] == '@' ? add_listed(ctx, a, args->word[i] + 1)
                                       : add_folder(a, args->word[i]));
    }
    return a->n > 0 ? FL_OK
                    : fl_fail(FL_EUSAGE,
                          "aggregate: no adapter folder is given (or @FILE with one a line)");
}

/* ---- weights ---- */
static fl_err parse_weights(const char *text, adapters *a)
{
    const char *at = text;
    double sum = 0;
    int n = 0;

    for (at += strspn(at, ", \t\r\n"); *at != 0; at += strspn(at, ", \t\r\n")) {
        char *end;
        double x;

        errno = 0;
        x = strtod(at, &end);
        if (end == at || (*end != 0 && strchr(", \t\r\n", *end) == NULL) || !isfinite(x) || x < 0) {
            return fl_fail(FL_EUSAGE, "--weights: '%.*s' is not a number of at least 0",
                (int)FL_MIN(strcspn(at, ", \t\r\n"), (size_t)60), at);
        }
        if (n < a->n) {
            a->w[n] = x;
            sum += x;
        }
        n++;
        at = end;
    }
    if (n != a->n) {
        return fl_fail(FL_EUSAGE, "--weights: %d numbers for %d adapters", n, a->n);
    }
    if (!(sum > 0) || !isfinite(sum)) {
        return fl_fail(FL_EUSAGE, "--weights: the sum is %g, not a positive number", sum);
    }
    for (int i = 0; i < n; i++) {
        a->w[i] /= sum;
    }
    return FL_OK;
}

/* Collective. */
static fl_err read_weights(fl_ctx *ctx, const char *weights, adapters *a)
{
    char *text = NULL;
    size_t n;
    fl_err err;

    a->w = fl_alloc("weights", (size_t)a->n, sizeof *a->w);
    if (weights == NULL) {
        for (int i = 0; i < a->n; i++) {
            a->w[i] = 1.0 / a->n;
        }
        return FL_OK;
    }
    if (weights[0] != '@') {
        return parse_weights(weights, a);
    }
    FL_TRY(app_deck_text(ctx, weights + 1, &text, &n));
    err = parse_weights(text, a);
    fl_free(text);
    return err;
}

/* ---- the rest ---- */
static fl_err check_options(const app_args *args, fl_aggregate_options *o)
{
    static const char *const dtypes[] = {
        [FL_PEFT_F32] = "f32", [FL_PEFT_F16] = "f16", [FL_PEFT_BF16] = "bf16"};

    if (args->method == NULL) {
        return fl_fail(FL_EUSAGE, "aggregate: --method is missing; fedlora methods lists them");
    }
    if (fl_method_find(args->method) == NULL) {
        return fl_fail(
            FL_EUSAGE, "there is no method '%s'; fedlora methods lists them", args->method);
    }
    if (args->out == NULL || *args->out == 0) {
        return fl_fail(FL_EUSAGE, "aggregate: --out is missing: the folder for the result");
    }
    if (args->r > 0 && args->energy > 0) {
        return fl_fail(FL_EUSAGE, "aggregate: --r and --energy both choose the rank; give one");
    }
    if (args->energy > 1) {
        return fl_fail(FL_EUSAGE, "--energy: %g is not a share of at most 1", args->energy);
    }
    for (size_t i = 0; i < FL_COUNT(dtypes); i++) {
        if (strcmp(args->dtype, dtypes[i]) == 0) {
            o->dtype = (int)i;
            return FL_OK;
        }
    }
    return fl_fail(FL_EUSAGE, "--dtype: '%s' is not one of f32, f16, bf16", args->dtype);
}

/* the deck of a round in which all adapters are the cohort. Collective. */
static fl_err make_deck(fl_ctx *ctx, const app_args *args, int n, fl_deck **deck)
{
    static const char *const keys[] = {"method.name=%s", "partition.clients=%s", "cohort.size=%s"};
    app_args more = *args;
    fl_text set[FL_COUNT(keys)] = {{0}};
    char number[16];
    fl_err err = FL_OK;

    snprintf(number, sizeof number, "%d", n);
    if (args->nsets + (int)FL_COUNT(keys) > MAX_SETS) {
        return fl_fail(FL_EUSAGE, "more than %d --set", MAX_SETS - (int)FL_COUNT(keys));
    }
    for (size_t i = 0; i < FL_COUNT(keys); i++) { /* last, so that they hold */
        fl_text_add(&set[i], keys[i], i == 0 ? args->method : number);
        more.set[more.nsets++] = set[i].s;
    }
    err = app_deck(ctx, NULL, &more, deck);
    for (size_t i = 0; i < FL_COUNT(keys); i++) {
        fl_text_free(&set[i]);
    }
    return err;
}

static void tell(fl_ctx *ctx, const fl_peft_set *s)
{
    char *text = s->notes.s != NULL ? fl_strdup(s->notes.s) : NULL, *save = NULL;

    for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        fl_warn(ctx, "%s", line);
    }
    fl_free(text);
}

static fl_err aggregate(fl_ctx *ctx, const app_args *args, const adapters *a,
    fl_aggregate_options *o, const fl_deck *deck)
{
    fl_peft_options how = {.join_prefixes = args->join_prefixes, .any_init = args->any_init};
    fl_peft_set *set = NULL;
    fl_err err = fl_agree(ctx, fl_peft_set_open(a->n, (const char *const *)a->dir, &how, &set));

    if (err == FL_OK) {
        tell(ctx, set);
        o->w = a->w;
        err = fl_aggregate(ctx, deck, set, o);
    }
    fl_peft_set_close(&set);
    return err;
}

fl_err app_aggregate(fl_ctx *ctx, const app_args *args)
{
    adapters a = {0};
    fl_deck *deck = NULL;
    fl_aggregate_options o = {.out = args->out,
        .r = args->r,
        .energy = args->energy,
        .stacked = args->stacked,
        .audit = !args->no_audit,
        .progress = isatty(2) != 0};
    fl_err err;

    FL_TRY(app_check_ranks(ctx));
    FL_TRY(check_options(args, &o));
    err = read_folders(ctx, args, &a);
    if (err == FL_OK) {
        err = read_weights(ctx, args->weights, &a);
    }
    if (err == FL_OK) {
        err = make_deck(ctx, args, a.n, &deck);
    }
    if (err == FL_OK) {
        err = aggregate(ctx, args, &a, &o, deck);
    }
    fl_deck_destroy(&deck);
    adapters_free(&a);
    return err;
}
