/* pile.c - what arrived, as the server sees it. The metadata of every part are replicated; the
 * contents stay where the client was hosted until a verb needs them: sums add them in place,
 * site-wise verbs send every site's factors to the site's owner. */
#include "fed_internal.h"

#include <string.h>

/* metadata of one part: label, factors, whether it is a change, words of its space and how many */
enum { META_LABEL, META_FACTORS, META_CHANGE, META_NWORDS, META_WORDS };

static void meta_write(fl_runtime *rt, const fl_part *part, double *x)
{
    const fl_space *sp = part->ad->space;
    int n = space_words(rt, sp, NULL);
    int32_t *words = fl_alloc("words of a space", (size_t)n, sizeof *words);

    space_words(rt, sp, words);
    x[META_LABEL] = part->label;
    x[META_FACTORS] = part->pick.factors;
    x[META_CHANGE] = part->change;
    x[META_NWORDS] = n;
    for (int i = 0; i < n; i++) {
        x[META_WORDS + i] = words[i];
    }
    fl_free(words);
}

/* a whole number that a double holds; 0 means not known yet */
static double meta_name(const double *x, int nmeta)
{
    return 1.0 + (double)(fl_hash(x, (size_t)nmeta * sizeof *x, 0) >> 12);
}

static const fl_space *meta_space(fl_runtime *rt, const double *x)
{
    int n = (int)x[META_NWORDS];
    int32_t *words = fl_arena_take(rt->round, (size_t)n, sizeof *words);

    for (int i = 0; i < n; i++) {
        words[i] = (int32_t)x[META_WORDS + i];
    }
    const fl_space *sp = space_from(rt, n, words);

    FL_REQUIRE(sp != NULL);
    return sp;
}

/* the longest row of metadata, on all ranks */
static int meta_length(fl_runtime *rt)
{
    const fl_inbox *in = &rt->inbox;
    const fl_space *last = NULL;
    int most = 0;

    for (int i = in->first_item[rt->ctx->rank]; i < in->first_item[rt->ctx->rank + 1]; i++) {
        const fl_space *sp = in->part[i]->ad->space;

        most = sp == last ? most : FL_MAX(most, space_words(rt, sp, NULL));
        last = sp;
    }
    return META_WORDS + (int)fl_max(rt->ctx, most);
}

/* deck's weights of those that arrived, summing to 1 */
static void set_weights(fl_runtime *rt, const double *count)
{
    fl_run *run = &rt->run;
    double *w = fl_arena_take(rt->round, (size_t)run->ncohort, sizeof *w), sum = 0;

    for (int i = 0; i < run->ncohort; i++) {
        bool samples = rt->deck->cohort.weights == FL_WEIGHTS_SAMPLES;

        w[i] = count[i] == 0 ? 0
               : samples     ? (double)fl_partition_count(&rt->part, run->cohort[i], FL_TRAIN)
                             : 1;
        sum += w[i];
    }
    for (int i = 0, at = 0; i < run->ncohort; i++) {
        for (int p = 0; p < (int)count[i]; p++) {
            rt->inbox.item[at++].p = w[i] / sum;
        }
    }
}

/* kind[i]: which row of metadata part i has, of *n different ones, numbered as they come; name
 * [nitems]. Open addressing; slots hold kind + 1, 0 = free. */
static int *meta_kinds(fl_runtime *rt, int nitems, const double *name, int *n, int *first)
{
    int *kind = fl_arena_take(rt->round, (size_t)nitems, sizeof *kind), *slot;
    size_t room = 2;

    while (room < 2 * (size_t)nitems) {
        room *= 2;
    }
    slot = fl_alloc("kinds of parts", room, sizeof *slot);
    *n = 0;
    for (int i = 0; i < nitems; i++) {
        size_t at = (size_t)name[i] & (room - 1); /* a hash already */

        while (slot[at] != 0 && name[first[slot[at] - 1]] != name[i]) {
            at = (at + 1) & (room - 1);
        }
        if (slot[at] == 0) {
            first[(*n)++] = i;
            slot[at] = *n;
        }
        kind[i] = slot[at] - 1;
    }
    fl_free(slot);
    return kind;
}

/* The metadata of all parts on all ranks. Most parts have equal ones, so that only their names go
 * around for every part, and every different row once, from the host of the first part that has it:
 * one number per part instead of one per site. */
static void share_meta(fl_runtime *rt, const int *client)
{
    fl_inbox *in = &rt->inbox;
    int nmeta = meta_length(rt), n, begin = in->first_item[rt->ctx->rank],
        end = in->first_item[rt->ctx->rank + 1];
    size_t nitems = (size_t)in->nitems;
    double *row = fl_arena_take(rt->round, (size_t)nmeta, sizeof *row);
    double *name = fl_arena_take(rt->round, nitems, sizeof *name);
    int *first = fl_arena_take(rt->round, nitems, sizeof *first);

    for (int i = begin; i < end; i++) {
        memset(row, 0, (size_t)nmeta * sizeof *row);
        meta_write(rt, in->part[i], row);
        name[i] = meta_name(row, nmeta);
    }
    fl_fill_in(rt->ctx, nitems, name);
    const int *kind = meta_kinds(rt, in->nitems, name, &n, first);
    double *rows = fl_arena_take(rt->round, (size_t)n * (size_t)nmeta, sizeof *rows);
    const fl_space **space = fl_arena_take(rt->round, (size_t)n, sizeof *space);

    for (int k = 0; k < n; k++) {
        if (first[k] >= begin && first[k] < end) {
            meta_write(rt, in->part[first[k]], rows + (size_t)k * (size_t)nmeta);
        }
    }
    fl_fill_in(rt->ctx, (size_t)n * (size_t)nmeta, rows);
    for (int k = 0; k < n; k++) {
        space[k] = meta_space(rt, rows + (size_t)k * (size_t)nmeta);
    }
    for (int i = 0; i < in->nitems; i++) {
        const double *x = rows + (size_t)kind[i] * (size_t)nmeta;

        in->item[i] = (fl_item){.client = client[i],
            .label = (int)x[META_LABEL],
            .space = space[kind[i]],
            .change = x[META_CHANGE] != 0,
            .pick.factors = (unsigned)x[META_FACTORS]};
    }
    for (int i = begin; i < end; i++) { /* two rows of one name: a chance of 2^-52 a pair */
        memset(row, 0, (size_t)nmeta * sizeof *row);
        meta_write(rt, in->part[i], row);
        FL_REQUIRE(
            memcmp(row, rows + (size_t)kind[i] * (size_t)nmeta, (size_t)nmeta * sizeof *row) == 0);
    }
}

fl_err pile_build(fl_runtime *rt)
{
    fl_run *run = &rt->run;
    fl_inbox *in = &rt->inbox;
    int size = rt->ctx->size, *client;
    double *count = fl_arena_take(rt->round, (size_t)run->ncohort, sizeof *count);

    *in = (fl_inbox){.first_item = fl_arena_take(rt->round, (size_t)size + 1, sizeof(int))};
    for (int i = rt->first[rt->ctx->rank]; i < rt->first[rt->ctx->rank + 1]; i++) {
        count[i] = rt->sent[i] != NULL ? rt->sent[i]->n : 0;
    }
    fl_fill_in(rt->ctx, (size_t)run->ncohort, count);
    for (int rank = 0; rank < size; rank++) {
        in->first_item[rank] = in->nitems;
        for (int i = rt->first[rank]; i < rt->first[rank + 1]; i++) {
            in->nitems += (int)count[i];
        }
    }
    in->first_item[size] = in->nitems;
    in->item = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *in->item);
    in->mine = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *in->mine);
    in->part = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *in->part);
    in->position = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *in->position);
    client = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *client);
    for (int i = 0, at = 0; i < run->ncohort; i++) {
        for (int p = 0; p < (int)count[i]; p++, at++) {
            client[at] = run->cohort[i];
            in->position[at] = i;
            if (i >= rt->first[rt->ctx->rank] && i < rt->first[rt->ctx->rank + 1]) {
                in->part[at] = &rt->sent[i]->part[p];
                in->mine[at] = in->part[at]->ad;
            }
        }
    }
    share_meta(rt, client);
    set_weights(rt, count);
    rt->pile = (fl_pile){in->nitems, in->item};
    return FL_OK;
}

/* ---- items of files ---- */
fl_err pile_item(fl_runtime *rt, int i, const fl_adapter **ad)
{
    const fl_item *it = &rt->inbox.item[i];

    if (rt->source == NULL) {
        *ad = rt->inbox.mine[i];
        return FL_OK;
    }
    fl_adapter *own = fl_scratch_adapter(&rt->run, it->space);

    for (int j = 0; j < it->space->nsites; j++) {
        if (it->space->r[j] > 0) {
            FL_TRY(rt->source->site(
                rt->source->of, i, j, fl_at(own, j, FL_A).x, fl_at(own, j, FL_B).x));
        }
    }
    *ad = own;
    return FL_OK;
}

/* ---- every site's factors to the site's owner ---- */
static size_t slot_size(const fl_space *sp, int slot)
{
    return slot < 0 ? 0 : (size_t)sp->slot[slot].rows * (size_t)sp->slot[slot].cols;
}

static int slot_at_site(const fl_space *sp, int site, int f)
{
    return sp->nsites > 0 ? sp->slot_of[2 * site + f] : -1;
}

/* reals that item it contributes to site: A and B as far as they travelled */
static size_t site_reals(const fl_item *it, int site)
{
    size_t n = 0;

    for (int f = FL_A; f <= FL_B; f++) {
        n += pick_factor(it->pick, (fl_factor)f)
                 ? slot_size(it->space, slot_at_site(it->space, site, f))
                 : 0;
    }
    return n;
}

/* One wave holds all sites while everything that arrived is below rt->most_at_once a rank; else
 * every owner takes one site at a time, so that a rank never holds more than its own clients'
 * messages and one site's. The bits do not depend on it: the unit of all work is a site. */
int pile_waves(fl_runtime *rt)
{
    const fl_inbox *in = &rt->inbox;
    double bytes = 0;
    int most = 0, n = 0;

    for (int i = 0; i < in->nitems; i++) {
        bytes += (double)in->item[i].space->n * sizeof(fl_real);
    }
    if (rt->source == NULL && bytes / rt->ctx->size <= rt->most_at_once) {
        return 1;
    }
    for (int j = 0; j < rt->base.model.nsites; j++) {
        n = j > 0 && rt->owner[j] == rt->owner[j - 1] ? n + 1 : 1;
        most = FL_MAX(most, n);
    }
    return most;
}

/* owners ascend with the sites: a site's number among its owner's is its distance from the first */
bool pile_in_wave(const fl_runtime *rt, int site, int wave, int nwaves)
{
    int first = site;

    if (nwaves == 1) {
        return true;
    }
    while (first > 0 && rt->owner[first - 1] == rt->owner[site]) {
        first--;
    }
    return site - first == wave;
}

/* pieces for all owners, ordered by owner, site, item, factor */
static fl_real *pack_sites(fl_runtime *rt, int wave, int nwaves, size_t *nsend)
{
    const fl_inbox *in = &rt->inbox;
    int rank = rt->ctx->rank, nsites = rt->base.model.nsites;
    size_t total = 0, at = 0;
    fl_real *send;

    for (int j = 0; j < nsites; j++) {
        for (int i = in->first_item[rank];
             pile_in_wave(rt, j, wave, nwaves) && i < in->first_item[rank + 1]; i++) {
            nsend[rt->owner[j]] += site_reals(&in->item[i], j) * sizeof *send;
            total += site_reals(&in->item[i], j);
        }
    }
    send = fl_alloc("factors by site", total, sizeof *send);
    for (int j = 0; j < nsites; j++) { /* owners ascend with the sites */
        for (int i = in->first_item[rank];
             pile_in_wave(rt, j, wave, nwaves) && i < in->first_item[rank + 1]; i++) {
            const fl_item *it = &in->item[i];

            for (int f = FL_A; f <= FL_B; f++) {
                int slot = slot_at_site(it->space, j, f);

                if (slot >= 0 && pick_factor(it->pick, (fl_factor)f)) {
                    memcpy(send + at, in->mine[i]->v + it->space->slot[slot].at,
                        slot_size(it->space, slot) * sizeof *send);
                    at += slot_size(it->space, slot);
                }
            }
        }
    }
    return send;
}

/* where in the received data (rank blocks; in each: my sites, the rank's items, factors) every slot
 * starts */
static size_t locate(fl_runtime *rt, int wave, int nwaves, size_t **slot_at)
{
    const fl_inbox *in = &rt->inbox;
    size_t at = 0;

    for (int rank = 0; rank < rt->ctx->size; rank++) {
        for (int j = 0; j < rt->base.model.nsites; j++) {
            if (rt->owner[j] != rt->ctx->rank || !pile_in_wave(rt, j, wave, nwaves)) {
                continue;
            }
            for (int i = in->first_item[rank]; i < in->first_item[rank + 1]; i++) {
                for (int f = FL_A; f <= FL_B; f++) {
                    int slot = slot_at_site(in->item[i].space, j, f);

                    if (slot >= 0 && pick_factor(in->item[i].pick, (fl_factor)f)) {
                        slot_at[i][slot] = at;
                        at += slot_size(in->item[i].space, slot);
                    }
                }
            }
        }
    }
    return at;
}

/* factors that did not travel are what the server sent: its adapter when aggregate began, at the
 * item's rank. One copy per space. */
static fl_real *complete(fl_runtime *rt, size_t **slot_at, const void *got, size_t ngot)
{
    const fl_inbox *in = &rt->inbox;
    const fl_space *spaces[64];
    size_t start[64], n = ngot;
    int nspaces = 0;

    for (int i = 0; i < in->nitems; i++) {
        const fl_space *sp = in->item[i].space;
        int k = 0;

        if (sp->nsites == 0 ||
            (pick_factor(in->item[i].pick, FL_A) && pick_factor(in->item[i].pick, FL_B))) {
            continue;
        }
        while (k < nspaces && spaces[k] != sp) {
            k++;
        }
        if (k == nspaces) {
            FL_REQUIRE(nspaces < (int)FL_COUNT(spaces));
            spaces[nspaces++] = sp;
            start[k] = n;
            n += sp->n;
        }
        for (int slot = 0; slot < sp->nslots; slot++) {
            if (!pick_factor(in->item[i].pick, sp->slot[slot].factor)) {
                slot_at[i][slot] = start[k] + sp->slot[slot].at;
            }
        }
    }
    fl_real *x = fl_arena_take(rt->round, n, sizeof *x);

    if (ngot > 0) {
        memcpy(x, got, ngot * sizeof *x);
    }
    for (int k = 0; k < nspaces; k++) {
        fl_fit(&(fl_adapter){.space = spaces[k], .v = x + start[k]}, rt->before);
    }
    return x;
}

/* items of files: the owner reads its sites itself */
static fl_err read_sites(fl_runtime *rt, int wave, int nwaves, size_t **slot_at, fl_real **x)
{
    const fl_inbox *in = &rt->inbox;
    size_t n = 0;

    for (int pass = 0; pass < 2; pass++, n = 0) {
        for (int j = 0; j < rt->base.model.nsites; j++) {
            if (rt->owner[j] != rt->ctx->rank || !pile_in_wave(rt, j, wave, nwaves)) {
                continue;
            }
            for (int i = 0; i < in->nitems; i++) {
                const fl_space *sp = in->item[i].space;
                int a = sp->slot_of[2 * j + FL_A], b = sp->slot_of[2 * j + FL_B];

                if (a < 0) {
                    continue;
                }
                size_t na = slot_size(sp, a);

                if (pass == 1) {
                    slot_at[i][a] = n;
                    slot_at[i][b] = n + na;
                    FL_TRY(rt->source->site(rt->source->of, i, j, *x + n, *x + n + na));
                }
                n += na + slot_size(sp, b);
            }
        }
        if (pass == 0) {
            *x = fl_arena_take(rt->round, n, sizeof **x);
        }
    }
    return FL_OK;
}

void pile_forget(fl_runtime *rt)
{
    rt->inbox.bysite = NULL;
}

fl_err pile_by_site(fl_runtime *rt, int wave, int nwaves)
{
    fl_inbox *in = &rt->inbox;
    size_t *nsend, *ngot, **slot_at;
    fl_real *v = NULL;
    void *got = NULL;
    fl_err err = FL_OK;

    if (in->bysite != NULL && in->wave == wave && in->nwaves == nwaves) {
        return FL_OK;
    }
    fl_phase_begin(rt->ctx, FL_PHASE_gather);
    nsend = fl_arena_take(rt->round, (size_t)rt->ctx->size, sizeof *nsend);
    ngot = fl_arena_take(rt->round, (size_t)rt->ctx->size, sizeof *ngot);
    slot_at = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *slot_at);
    for (int i = 0; i < in->nitems; i++) {
        slot_at[i] = fl_arena_take(rt->round, (size_t)in->item[i].space->nslots, sizeof **slot_at);
        memset(slot_at[i], 0xff,
            (size_t)in->item[i].space->nslots * sizeof **slot_at); /* SIZE_MAX: not here */
    }
    if (rt->source != NULL) {
        err = fl_agree(rt->ctx, read_sites(rt, wave, nwaves, slot_at, &v));
    } else {
        fl_real *send = pack_sites(rt, wave, nwaves, nsend);

        fl_exchange(rt->ctx, send, nsend, &got, ngot);
        fl_free(send);
        v = complete(rt, slot_at, got, locate(rt, wave, nwaves, slot_at));
        fl_free(got);
    }
    in->bysite = fl_arena_take(rt->round, (size_t)in->nitems, sizeof *in->bysite);
    in->wave = wave;
    in->nwaves = nwaves;
    for (int i = 0; i < in->nitems; i++) {
        fl_adapter *ad = fl_arena_take(rt->round, 1, sizeof *ad);

        *ad = (fl_adapter){.space = in->item[i].space, .v = v, .at = slot_at[i]};
        in->bysite[i] = in->item[i];
        in->bysite[i].ad = ad;
    }
    fl_phase_end(rt->ctx, FL_PHASE_gather);
    return err;
}
