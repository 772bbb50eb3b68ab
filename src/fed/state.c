/* state.c - checkpoints of a run: what is saved, the state digest, and choosing what to resume
 * from. The digest covers everything that the next round depends on: round, server state, base and
 * its revision, every client's state. */
#include "fed_internal.h"

#include <stdlib.h>
#include <string.h>

uint64_t state_digest(fl_runtime *rt, int t)
{
    fl_run *run = &rt->run;
    uint64_t x[5] = {(uint64_t)t, (uint64_t)rt->base_revision, rt->base_hash,
        fl_adapter_hash(run->global, 0), fl_store_digest(rt->store)},
             h = fl_hash(x, sizeof x, 1);

    for (int i = 0; i < rt->server.n; i++) {
        const fl_kept *k = &rt->server.k[i];

        h = fl_hash(k->name, strlen(k->name), h + (uint64_t)k->index);
        h = k->x != NULL ? fl_hash(k->x, k->n * sizeof *k->x, h) : fl_adapter_hash(k->ad, h);
    }
    h = fl_hash(rt->last_seen, (size_t)run->nclients * sizeof *rt->last_seen, h);
    FL_REQUIRE(fl_same_everywhere(rt->ctx, h)); /* replicated state is equal on all ranks */
    return h;
}

/* ---- saving ---- */
typedef struct arrays {
    fl_array *x;
    int n, room;
} arrays;

static fl_array *array_add(arrays *a, fl_array_type type, size_t n, const void *x, const char *what,
    const char *unit, const char *axes)
{
    if (a->n == a->room) {
        a->room = FL_MAX(16, 2 * a->room);
        a->x = fl_realloc("arrays of the checkpoint", a->x, (size_t)a->room, sizeof *a->x);
    }
    fl_array *y = &a->x[a->n++];

    *y = (fl_array){.type = type, .n = n, .x = (void *)(uintptr_t)x};
    snprintf(y->what, sizeof y->what, "%s", what);
    snprintf(y->unit, sizeof y->unit, "%s", unit);
    snprintf(y->axes, sizeof y->axes, "%s", axes);
    return y;
}

static void add_kept(fl_runtime *rt, arrays *a)
{
    for (int i = 0; i < rt->server.n; i++) {
        const fl_kept *k = &rt->server.k[i];
        fl_array *y;

        if (k->x != NULL) {
            y = array_add(a, FL_F64, k->n, k->x, k->what, "1", "element");
        } else {
            y = array_add(a, FL_F32, k->ad->space->n, k->ad->v, "adapter kept by the server", "1",
                "element, slot after slot");
        }
        snprintf(y->name, sizeof y->name, "server/keep/%s/%d", k->name, k->index);
    }
}

/* clients seen: id, last round */
static int64_t *seen_pairs(const fl_runtime *rt, size_t *n)
{
    int64_t *x = fl_alloc("clients seen", 2 * (size_t)rt->run.nclients, sizeof *x);

    *n = 0;
    for (int id = 0; id < rt->run.nclients; id++) {
        if (rt->last_seen[id] > 0) {
            x[(*n)++] = id;
            x[(*n)++] = rt->last_seen[id];
        }
    }
    return x;
}

static char *column_names(const fl_metrics *m)
{
    fl_text t = {0};

    for (int i = 0; i < m->ncolumns; i++) {
        fl_text_add(&t, "%s%s:%s", i > 0 ? "," : "", m->column[i], m->unit[i]);
    }
    return t.s;
}

/* a checkpoint is on disk: the older ones may go; what it cost */
static void state_saved(fl_runtime *rt, int t, double seconds)
{
    fl_text dir = {0};

    fl_text_add(&dir, "%s/checkpoints", rt->opt->out);
    if (rt->ctx->rank == 0) {
        fl_checkpoint_prune_upto(dir.s, rt->deck->checkpoint.keep, t);
    }
    rt->checkpoint_seconds += seconds;
    rt->checkpoint_total += rt->checkpoint_bytes;
    /* what a stop must leave time for */
    rt->longest_checkpoint = FL_MAX(rt->longest_checkpoint, rt->saving_waited + seconds);
    fl_text_free(&dir);
}

fl_err state_settle(fl_runtime *rt, bool wait)
{
    double seconds;

    if (rt->saving == NULL || (!wait && !fl_checkpoint_done(rt->ctx, rt->saving))) {
        return FL_OK;
    }
    fl_phase_begin(rt->ctx, FL_PHASE_checkpoint);
    fl_err err = fl_checkpoint_end(rt->ctx, &rt->saving, &rt->checkpoint_bytes, &seconds);

    if (err == FL_OK) {
        state_saved(rt, rt->saving_round, seconds);
    }
    fl_phase_end(rt->ctx, FL_PHASE_checkpoint);
    return err;
}

static void named(fl_array *a, const char *name)
{
    snprintf(a->name, sizeof a->name, "%s", name);
}

static fl_err state_write(fl_runtime *rt, int t)
{
    fl_run *run = &rt->run;
    arrays a = {0};
    fl_text deck = {0};
    size_t nseen, nslots = (size_t)run->space->nslots;
    int64_t *seen = seen_pairs(rt, &nseen),
            *changed = fl_alloc("slot changes", nslots, sizeof *changed);
    double traffic[2 * NTRAFFIC], begin = fl_now();
    char *columns = column_names(&rt->metrics), *path = NULL, *dir = NULL;
    const fl_deck_checkpoint *how = &rt->deck->checkpoint;
    fl_text p = {0}, d = {0};

    fl_phase_begin(rt->ctx, FL_PHASE_checkpoint);
    for (size_t i = 0; i < nslots; i++) {
        changed[i] = rt->slot_changed[i];
    }
    memcpy(traffic, rt->total.up, sizeof rt->total.up);
    memcpy(traffic + NTRAFFIC, rt->total.down, sizeof rt->total.down);
    named(array_add(&a, FL_F32, run->space->n, run->global->v, "the server's adapter", "1",
              "element, slot after slot"),
        "server/global");
    add_kept(rt, &a);
    named(array_add(&a, FL_I64, nseen, seen,
              "clients that took part: id, round of the last download", "1", "client, (id, round)"),
        "run/last_seen");
    named(array_add(&a, FL_I64, nslots, changed,
              "round in which a slot of the server's adapter last changed", "1", "slot"),
        "run/slot_changed");
    named(array_add(&a, FL_F64, (size_t)t + 1, rt->revision_bytes,
              "cumulative cost of the base's revisions", "B", "round"),
        "run/revision_bytes");
    named(array_add(&a, FL_F64, 2 * NTRAFFIC, traffic, "traffic so far: up, down by kind", "B",
              "direction, kind"),
        "run/traffic");
    named(array_add(&a, FL_F64, (size_t)rt->metrics.nrows * (size_t)rt->metrics.ncolumns,
              rt->metrics.x, "rows of rounds.csv", "1", "row, column"),
        "run/metrics");
    named(array_add(&a, FL_F64, (size_t)rt->ncurve * CURVE_COLUMNS, rt->curve,
              "evaluations of clients", "1", "row, (round, client, loss, accuracy, targets)"),
        "run/curves");
    fl_deck_dump(rt->deck, false, &deck);
    fl_snapshot s = {.round = t,
        .rounds = rt->deck->run.rounds,
        .state = state_digest(rt, t),
        .base_revision = rt->base_revision,
        .deck = deck.s,
        .versions = (char *)(uintptr_t)rt->opt->versions,
        .columns = columns,
        .narrays = a.n,
        .array = a.x,
        .nclients = run->nclients,
        .store = rt->store,
        .nbase = rt->base_revision > 0 ? fl_model_bytes(&rt->base.model) / sizeof(fl_real) : 0,
        .base = rt->base.share.x,
        .how = {.writers = how->writers,
            .stripe_count = how->stripe_count,
            .stripe_size = how->stripe_size}};

    fl_text_add(&d, "%s/checkpoints", rt->opt->out);
    fl_text_add(&p, "%s/round-%06d.h5", d.s, t);
    dir = d.s;
    path = p.s;
    fl_err err = fl_agree(rt->ctx, rt->ctx->rank == 0 ? fl_make_dirs(dir) : FL_OK);

    if (err == FL_OK && how->async) {
        err = fl_checkpoint_begin(rt->ctx, path, &s, &rt->saving);
        rt->saving_round = t;
    } else if (err == FL_OK) {
        err = fl_checkpoint_write(rt->ctx, path, &s, &rt->checkpoint_bytes);
        if (err == FL_OK) {
            state_saved(rt, t, fl_max(rt->ctx, fl_now() - begin));
        }
    }
    fl_phase_end(rt->ctx, FL_PHASE_checkpoint);
    fl_free(a.x);
    fl_free(seen);
    fl_free(changed);
    fl_text_free(&deck);
    fl_free(columns);
    fl_text_free(&d);
    fl_text_free(&p);
    return err;
}

fl_err state_save(fl_runtime *rt, int t)
{
    double begin = fl_now();

    FL_TRY(state_settle(rt, true)); /* one at a time, so that there is one copy at most */
    rt->saving_waited = fl_now() - begin;
    return state_write(rt, t);
}

/* ---- resuming ---- */
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

/* everything but base and clients' blobs, which the reader has put in place */
static fl_err state_restore(fl_runtime *rt, const fl_snapshot *s)
{
    fl_run *run = &rt->run;
    size_t nslots = (size_t)run->space->nslots;
    int64_t *changed = fl_arena_take(rt->round, nslots, sizeof *changed);
    double traffic[2 * NTRAFFIC] = {0};

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
