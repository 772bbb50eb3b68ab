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
    int64_t inputs[2] = {(int64_t)rt->base.hash, (int64_t)rt->data.hash};
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
    named(array_add(&a, FL_I64, 2, inputs,
              "hashes of the base as it was loaded and of the data set", "1", "(base, data)"),
        "run/inputs");
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
