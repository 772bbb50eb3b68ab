/* resume.c - choosing a checkpoint and taking a run up again from it: the newest whole one of OUT,
 * or the one that was named. */
#include "fed_internal.h"

#include <stdlib.h>
#include <string.h>

static const fl_array *array_find(const fl_snapshot *s, const char *name, fl_array_type type)
{
    for (int i = 0; i < s->narrays; i++) {
        if (strcmp(s->array[i].name, name) == 0 && s->array[i].type == type) {
            return &s->array[i];
        }
    }
    return NULL;
}

/* copies an array that must have n elements */
static fl_err array_take(
    const fl_snapshot *s, const char *name, fl_array_type type, size_t n, size_t each, void *x)
{
    const fl_array *a = array_find(s, name, type);

    if (a == NULL || a->n != n) {
        return fl_fail(FL_EFILE, "%s is %s", name, a == NULL ? "missing" : "of another size");
    }
    if (n > 0) {
        memcpy(x, a->x, n * each);
    }
    return FL_OK;
}

static fl_err take_metrics(fl_runtime *rt, const fl_snapshot *s)
{
    const fl_array *rows = array_find(s, "run/metrics", FL_F64),
                   *curves = array_find(s, "run/curves", FL_F64);
    char *names = fl_strdup(s->columns), *save = NULL;
    fl_metrics m = {0};

    for (char *word = strtok_r(names, ",", &save); word != NULL;
         word = strtok_r(NULL, ",", &save)) {
        char *unit = strrchr(word, ':');

        if (unit != NULL) {
            *unit++ = '\0';
        }
        fl_metrics_column(&m, word, unit != NULL ? unit : "1");
    }
    fl_free(names);
    if (rows == NULL || curves == NULL || m.ncolumns == 0 || rows->n % (size_t)m.ncolumns != 0 ||
        curves->n % CURVE_COLUMNS != 0) {
        fl_metrics_free(&m);
        return fl_fail(FL_EFILE, "run/metrics does not fit its columns");
    }
    for (size_t i = 0; i < rows->n / (size_t)m.ncolumns; i++) {
        fl_metrics_row(&m);
        for (int c = 0; c < m.ncolumns; c++) {
            fl_metrics_set(&m, c, ((const double *)rows->x)[i * (size_t)m.ncolumns + c]);
        }
    }
    fl_metrics_free(&rt->metrics);
    rt->metrics = m;
    fl_free(rt->curve);
    rt->ncurve = rt->curve_room = (int)(curves->n / CURVE_COLUMNS);
    rt->curve =
        fl_alloc("client curves", (size_t)rt->curve_room, CURVE_COLUMNS * sizeof *rt->curve);
    if (rt->curve_room > 0) {
        memcpy(rt->curve, curves->x, curves->n * sizeof(double));
    }
    return FL_OK;
}

static fl_err take_seen(fl_runtime *rt, const fl_snapshot *s)
{
    const fl_array *a = array_find(s, "run/last_seen", FL_I64);

    if (a == NULL || a->n % 2 != 0) {
        return fl_fail(FL_EFILE, "run/last_seen is missing");
    }
    memset(rt->last_seen, 0, (size_t)rt->run.nclients * sizeof *rt->last_seen);
    for (size_t i = 0; i < a->n; i += 2) {
        const int64_t *x = (const int64_t *)a->x + i;

        if (x[0] < 0 || x[0] >= rt->run.nclients || x[1] < 0 || x[1] > s->round) {
            return fl_fail(FL_EFILE, "run/last_seen names a client that does not exist");
        }
        rt->last_seen[x[0]] = (int)x[1];
    }
    return FL_OK;
}

/* model.path and data.source may move; what they hold may not change */
static fl_err check_inputs(fl_runtime *rt, const fl_snapshot *s)
{
    int64_t inputs[2];

    FL_TRY(array_take(s, "run/inputs", FL_I64, 2, sizeof *inputs, inputs));
    if ((uint64_t)inputs[0] != rt->base.hash) {
        return fl_fail(FL_EDECK,
            "model.path: %s holds other weights than the run was begun with; put them back, or "
            "start afresh with another --out",
            rt->deck->model.path);
    }
    return (uint64_t)inputs[1] == rt->data.hash
               ? FL_OK
               : fl_fail(FL_EDECK,
                     "data.source: %s holds other data than the run was begun with; put them back, "
                     "or start afresh with another --out",
                     rt->deck->data.source);
}

/* everything but base and clients' blobs, which the reader has put in place */
static fl_err state_restore(fl_runtime *rt, const fl_snapshot *s)
{
    fl_run *run = &rt->run;
    size_t nslots = (size_t)run->space->nslots;
    int64_t *changed = fl_arena_take(rt->round, nslots, sizeof *changed);
    double traffic[2 * NTRAFFIC] = {0};

    FL_TRY(check_inputs(rt, s));
    FL_TRY(array_take(s, "server/global", FL_F32, run->space->n, sizeof(fl_real), run->global->v));
    for (int i = 0; i < rt->server.n; i++) {
        fl_kept *k = &rt->server.k[i];
        char name[120];

        snprintf(name, sizeof name, "server/keep/%s/%d", k->name, k->index);
        if (k->x != NULL) {
            FL_TRY(array_take(s, name, FL_F64, k->n, sizeof *k->x, k->x));
        } else {
            FL_TRY(array_take(s, name, FL_F32, k->ad->space->n, sizeof(fl_real), k->ad->v));
        }
    }
    FL_TRY(take_seen(rt, s));
    FL_TRY(array_take(s, "run/slot_changed", FL_I64, nslots, sizeof *changed, changed));
    ledger_changed(rt, 0); /* hashes of the slots as they are now */
    for (size_t i = 0; i < nslots; i++) {
        rt->slot_changed[i] = (int)changed[i];
    }
    FL_TRY(array_take(
        s, "run/revision_bytes", FL_F64, (size_t)s->round + 1, sizeof(double), rt->revision_bytes));
    FL_TRY(array_take(s, "run/traffic", FL_F64, 2 * NTRAFFIC, sizeof(double), traffic));
    memcpy(rt->total.up, traffic, sizeof rt->total.up);
    memcpy(rt->total.down, traffic + NTRAFFIC, sizeof rt->total.down);
    FL_TRY(take_metrics(rt, s));
    rt->base_revision = s->base_revision;
    return FL_OK;
}

static fl_err resume_from(fl_runtime *rt, const char *path, int *t)
{
    fl_snapshot s;
    size_t nbase = fl_model_bytes(&rt->base.model) / sizeof(fl_real);

    fl_store_destroy(&rt->store);
    rt->store = fl_store_create(rt->ctx, rt->run.nclients);
    FL_TRY(fl_checkpoint_read(rt->ctx, path, rt->store, nbase, rt->base.share.x, &s));
    fl_err err = s.round <= rt->deck->run.rounds ? fl_agree(rt->ctx, state_restore(rt, &s))
                                                 : fl_fail(FL_EDECK,
                                                       "%s: round %d is beyond run.rounds: %d; "
                                                       "raise run.rounds or choose another run.out",
                                                       path, s.round, rt->deck->run.rounds);

    if (err == FL_OK) {
        fl_share_fence(rt->ctx);
        rt->base_hash = fl_base_hash(rt->ctx, &rt->base);
        if (state_digest(rt, s.round) != s.state) {
            err = fl_fail(FL_EFILE,
                "%s: what was read does not give the state digest it was saved with", path);
        } else {
            *t = s.round;
        }
    }
    fl_snapshot_free(&s);
    return err;
}

/* the keys that must not change; equal on all ranks because rank 0's reading decides */
static fl_err check_deck(fl_runtime *rt, const char *path)
{
    fl_err err = FL_OK;

    if (rt->ctx->rank == 0) {
        fl_snapshot s;
        fl_text t = {0};
        int n;
        const fl_section *extra = fl_method_sections(&n);

        err = fl_checkpoint_peek(path, &s);
        if (err == FL_OK) {
            if (fl_deck_compare(rt->deck, s.deck, strlen(s.deck), extra, n, &t) > 0) {
                err = fl_fail(FL_EDECK,
                    "%s was made by another deck; use --resume none with another --out, or put "
                    "back:\n%s",
                    path, t.s);
            }
            fl_snapshot_free(&s);
        }
        fl_text_free(&t);
    }
    return fl_agree(rt->ctx, err);
}

/* the list of checkpoints as rank 0 sees it, the same on all ranks: names joined by newlines */
static char **list_paths(fl_runtime *rt, int *n)
{
    fl_text dir = {0}, joined = {0};
    char **paths = NULL, *all = NULL, *save = NULL;
    size_t bytes = 0;

    fl_text_add(&dir, "%s/checkpoints", rt->opt->out);
    if (rt->ctx->rank == 0) {
        int have = fl_checkpoint_list(dir.s, &paths);

        fl_text_add(&joined, "%s", "");
        for (int i = 0; i < have; i++) {
            fl_text_add(&joined, "%s\n", paths[i]);
            fl_free(paths[i]);
        }
        fl_free(paths);
        all = joined.s;
        bytes = joined.n;
    }
    fl_bcast_text(rt->ctx, &all, &bytes);
    paths = fl_alloc("checkpoints", bytes + 1, sizeof *paths);
    *n = 0;
    for (char *p = strtok_r(all, "\n", &save); p != NULL; p = strtok_r(NULL, "\n", &save)) {
        paths[(*n)++] = fl_strdup(p);
    }
    fl_free(all);
    fl_text_free(&dir);
    return paths;
}

static fl_err resume_newest(fl_runtime *rt, int n, char **paths, int *t)
{
    for (int i = 0; i < n; i++) {
        fl_err err = check_deck(rt, paths[i]);

        if (err == FL_OK) {
            err = resume_from(rt, paths[i], t);
        }
        if (err == FL_OK) {
            fl_log(rt->ctx, "resumed   round %d from %s", *t, paths[i]);
            return FL_OK;
        }
        if (err != FL_EFILE) {
            return err;
        }
        fl_warn(rt->ctx, "checkpoint skipped: %s", fl_error_text());
        fl_error_clear();
    }
    return fl_fail(FL_EFILE,
        "%s/checkpoints: none of the %d checkpoints is whole; use --resume none with another --out "
        "to start afresh",
        rt->opt->out, n);
}

fl_err state_resume(fl_runtime *rt, int *t)
{
    const char *how = rt->opt->resume;
    int n;
    char **paths;
    fl_err err = FL_OK;

    *t = 0;
    if (strcmp(how, "auto") != 0 && strcmp(how, "none") != 0) {
        FL_TRY(check_deck(rt, how));
        FL_TRY(resume_from(rt, how, t));
        fl_log(rt->ctx, "resumed   round %d from %s", *t, how);
        return FL_OK;
    }
    paths = list_paths(rt, &n);
    if (n > 0 && strcmp(how, "none") == 0) {
        err = fl_fail(FL_EDECK,
            "--resume none: %s already holds checkpoints; choose another --out, or remove it",
            rt->opt->out);
    } else if (n > 0) {
        err = resume_newest(rt, n, paths, t);
    }
    for (int i = 0; i < n; i++) {
        fl_free(paths[i]);
    }
    fl_free(paths);
    return err;
}
