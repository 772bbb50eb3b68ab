/* sweep_plan.c - from --over key=values to the list of runs and their names. */
#include "sweep.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN = 60, LONGEST_VALUE = 40, LONGEST_NAME = 200 };

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* ---- values ---- */

static fl_err add_value(sweep_axis *axis, int *room, const char *s, size_t n)
{
    if (axis->n == SWEEP_MAX_RUNS) {
        return fl_fail(
            FL_EUSAGE, "--over %.*s: more than %d values", SHOWN, axis->key, (int)SWEEP_MAX_RUNS);
    }
    if (axis->n == *room) {
        *room = FL_MAX(8, 2 * *room);
        axis->value =
            fl_realloc("values of a sweep", axis->value, (size_t)*room, sizeof *axis->value);
    }
    char *copy = fl_alloc("value of a sweep", n + 1, 1);

    memcpy(copy, s, n);
    axis->value[axis->n++] = copy;
    return FL_OK;
}

/* whole number at *s, which moves behind it */
static bool take_integer(const char **s, long long *x)
{
    char *end;

    if (!isdigit((unsigned char)(*s)[**s == '-'])) {
        return false; /* strtoll would take blanks and a plus */
    }
    errno = 0;
    *x = strtoll(*s, &end, 10);
    *s = end;
    return errno == 0;
}

/* "1..5" or "1..9..2": 1 = it is one and its values were added, 0 = it is not, -1 = it is a wrong
 * one */
static int add_range(sweep_axis *axis, int *room, const char *text, size_t n)
{
    char copy[80], number[32];
    const char *s = copy;
    long long from, to, step = 1;

    if (n >= sizeof copy) {
        return 0;
    }
    memcpy(copy, text, n);
    copy[n] = '\0';
    if (!take_integer(&s, &from) || strncmp(s, "..", 2) != 0) {
        return 0;
    }
    s += 2;
    if (!take_integer(&s, &to)) {
        return 0;
    }
    if (strncmp(s, "..", 2) == 0) {
        s += 2;
        if (!take_integer(&s, &step)) {
            return 0;
        }
    }
    if (*s != '\0') {
        return 0;
    }
    if (step < 1 || from > to) {
        fl_fail(FL_EUSAGE,
            "--over %.*s: '%s' is no range; write FROM..TO or FROM..TO..STEP, rising", SHOWN,
            axis->key, copy);
        return -1;
    }
    /* the difference may not fit into a signed number */
    uint64_t steps = ((uint64_t)to - (uint64_t)from) / (uint64_t)step;

    if (steps >= SWEEP_MAX_RUNS) {
        fl_fail(FL_EUSAGE, "--over %.*s: '%s' has more than %d values", SHOWN, axis->key, copy,
            (int)SWEEP_MAX_RUNS);
        return -1;
    }
    for (uint64_t i = 0; i <= steps; i++) {
        int length = snprintf(
            number, sizeof number, "%lld", (long long)((uint64_t)from + i * (uint64_t)step));

        if (add_value(axis, room, number, (size_t)length) != FL_OK) {
            return -1;
        }
    }
    return 1;
}

/* where the value that begins at s ends: at the next comma outside of quotes and brackets; NULL =
 * something is left open. A quote opens a string only where YAML would read it as one: in the
 * beginning of a value, or of a piece of a list. */
static const char *end_of_value(const char *s)
{
    char open[32], quote = '\0';
    int depth = 0;
    bool fresh = true; /* a new scalar begins here */

    for (; *s != '\0' && (*s != ',' || depth > 0 || quote != '\0'); s++) {
        if (quote != '\0') {
            if (*s == '\\' && quote == '"' && s[1] != '\0') {
                s++;
            } else if (*s == quote && quote == '\'' && s[1] == '\'') {
                s++; /* two of them mean one */
            } else if (*s == quote) {
                quote = '\0';
            }
        } else if ((*s == '"' || *s == '\'') && fresh) {
            quote = *s;
            fresh = false;
        } else if (*s == '[' || *s == '{') {
            if (depth == (int)sizeof open) {
                return NULL;
            }
            open[depth++] = *s == '[' ? ']' : '}';
            fresh = true;
        } else if (*s == ']' || *s == '}') {
            if (depth == 0 || open[--depth] != *s) {
                return NULL;
            }
        } else if (!is_blank(*s)) {
            fresh = depth > 0 && (*s == ',' || *s == ':');
        }
    }
    return depth == 0 && quote == '\0' ? s : NULL;
}

static fl_err parse_values(sweep_axis *axis, const char *s)
{
    int room = 0;

    for (;;) {
        const char *end = end_of_value(s), *next;

        if (end == NULL) {
            return fl_fail(FL_EUSAGE,
                "--over %.*s: a bracket or a quote is not closed, or closes nothing: %.*s", SHOWN,
                axis->key, SHOWN, s);
        }
        next = *end == ',' ? end + 1 : NULL;
        while (s < end && is_blank(*s)) {
            s++;
        }
        while (end > s && is_blank(end[-1])) {
            end--;
        }
        if (s == end) {
            return fl_fail(FL_EUSAGE, "--over %.*s: a value is empty", SHOWN, axis->key);
        }
        int range = add_range(axis, &room, s, (size_t)(end - s));

        if (range < 0) {
            return FL_EUSAGE;
        }
        if (range == 0) {
            FL_TRY(add_value(axis, &room, s, (size_t)(end - s)));
        }
        if (next == NULL) {
            return FL_OK;
        }
        s = next;
    }
}

/* ---- names ---- */

static bool is_safe(char c)
{
    return isalnum((unsigned char)c) || c == '.' || c == '_' || c == '-' || c == '+';
}

/* "[4, 8]" -> "4-8": what has no place in a file name becomes one dash, none at the ends */
static char *make_safe(const char *value)
{
    fl_text t = {0};
    bool dash = false;

    fl_text_add(&t, "%s", "");
    for (const char *s = value; *s != '\0'; s++) {
        if (is_safe(*s)) {
            if (dash && t.n > 0) {
                fl_text_add(&t, "-");
            }
            fl_text_bytes(&t, s, 1);
            dash = false;
        } else {
            dash = true;
        }
    }
    if (t.n > LONGEST_VALUE) {
        t.n = LONGEST_VALUE - 9;
        fl_text_add(&t, "-%08x", (unsigned)fl_hash_text(value));
    }
    return t.s;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* a text that is twice among text [n], or NULL; borrowed from there */
static const char *twice_among(int n, char *const *text)
{
    char **x = fl_alloc("sorted values", (size_t)n, sizeof *x);
    const char *twice = NULL;

    memcpy(x, text, (size_t)n * sizeof *x);
    qsort(x, (size_t)n, sizeof *x, by_text);
    for (int i = 1; i < n && twice == NULL; i++) {
        twice = strcmp(x[i - 1], x[i]) == 0 ? x[i] : NULL;
    }
    fl_free(x);
    return twice;
}

static fl_err name_values(sweep_axis *axis)
{
    const char *twice = twice_among(axis->n, axis->value);

    if (twice != NULL) {
        return fl_fail(
            FL_EUSAGE, "--over %.*s: the value %.*s comes twice", SHOWN, axis->key, SHOWN, twice);
    }
    axis->safe = fl_alloc("names of a sweep", (size_t)axis->n, sizeof *axis->safe);
    for (int i = 0; i < axis->n; i++) {
        axis->safe[i] = make_safe(axis->value[i]);
    }
    /* if two are alike, all of the key's names get a hash of the value: none depends on the order
     */
    bool alike = twice_among(axis->n, axis->safe) != NULL;

    for (int i = 0; i < axis->n && alike; i++) {
        fl_text t = {0};

        fl_text_add(&t, "%s-%08x", axis->safe[i], (unsigned)fl_hash_text(axis->value[i]));
        fl_free(axis->safe[i]);
        axis->safe[i] = t.s;
    }
    return FL_OK;
}

/* ---- the plan ---- */

static fl_err parse_axis(const char *over, sweep_axis *axis)
{
    const char *equals = strchr(over, '=');

    if (equals == NULL || equals == over || memchr(over, '.', (size_t)(equals - over)) == NULL) {
        return fl_fail(FL_EUSAGE, "--over %.*s: write it as section.key=a,b,c or section.key=1..5",
            SHOWN, over);
    }
    axis->key = fl_alloc("key of a sweep", (size_t)(equals - over) + 1, 1);
    memcpy(axis->key, over, (size_t)(equals - over));
    if (strcmp(axis->key, "run.out") == 0) {
        return fl_fail(FL_EUSAGE, "--over run.out: every run of a sweep has a folder of its own in "
                                  "the sweep's; choose that by --out DIR");
    }
    FL_TRY(parse_values(axis, equals + 1));
    return name_values(axis);
}

fl_err sweep_plan_make(int n, const char *const *over, sweep_plan *plan)
{
    int64_t runs = 1;

    *plan = (sweep_plan){0};
    if (n < 1 || n > MAX_OVERS) {
        return fl_fail(FL_EUSAGE, "sweep: needs 1 to %d --over section.key=VALUES", (int)MAX_OVERS);
    }
    for (int i = 0; i < n; i++) {
        sweep_axis *axis = &plan->axis[plan->naxes++];

        FL_TRY(parse_axis(over[i], axis));
        for (int j = 0; j < i; j++) {
            if (strcmp(plan->axis[j].key, axis->key) == 0) {
                return fl_fail(FL_EUSAGE, "--over %.*s comes twice; write all values into one",
                    SHOWN, axis->key);
            }
        }
        runs *= axis->n;
        if (runs > SWEEP_MAX_RUNS) {
            return fl_fail(FL_EUSAGE, "sweep: more than %d runs", (int)SWEEP_MAX_RUNS);
        }
    }
    plan->nruns = (int)runs;
    return FL_OK;
}

void sweep_plan_free(sweep_plan *plan)
{
    for (int a = 0; a < plan->naxes; a++) {
        sweep_axis *axis = &plan->axis[a];

        for (int i = 0; i < axis->n; i++) {
            fl_free(axis->value[i]);
            if (axis->safe != NULL) {
                fl_free(axis->safe[i]);
            }
        }
        fl_free(axis->value);
        fl_free(axis->safe);
        fl_free(axis->key);
    }
    *plan = (sweep_plan){0};
}

static int value_index(const sweep_plan *plan, int run, int axis)
{
    for (int a = plan->naxes - 1; a > axis; a--) {
        run /= plan->axis[a].n;
    }
    return run % plan->axis[axis].n;
}

const char *sweep_value(const sweep_plan *plan, int run, int axis)
{
    return plan->axis[axis].value[value_index(plan, run, axis)];
}

void sweep_name(const sweep_plan *plan, int run, fl_text *t)
{
    fl_text name = {0};

    for (int a = 0; a < plan->naxes; a++) {
        const sweep_axis *axis = &plan->axis[a];

        fl_text_add(
            &name, "%s%s=%s", a > 0 ? "+" : "", axis->key, axis->safe[value_index(plan, run, a)]);
    }
    if (name.n > LONGEST_NAME) {
        fl_text_add(
            t, "%.*s-%016llx", LONGEST_NAME, name.s, (unsigned long long)fl_hash_text(name.s));
    } else {
        fl_text_add(t, "%s", name.s);
    }
    fl_text_free(&name);
}

void sweep_label(const sweep_plan *plan, int run, fl_text *t)
{
    for (int a = 0; a < plan->naxes; a++) {
        fl_text_add(t, "%s%s=%s", a > 0 ? " " : "", plan->axis[a].key, sweep_value(plan, run, a));
    }
}
