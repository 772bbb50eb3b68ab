/* space - which numbers train, and where they lie in one vector.
 * A LoRA space lists, site by site, A (r x n) then B (m x r); a dense space lists base tensors.
 * Spaces are interned in a registry: equal shapes, names and scales are one object, so "same space"
 * is a comparison of pointers. */
#include "fedlora/adapter.h"
#include <math.h>
#include <string.h>

struct fl_spaces {
    int n, room;
    fl_space **space; /* owned [n]; pointers handed out stay good until destroy */
};

static void space_free(fl_space *s)
{
    fl_free(s->slot);
    fl_free(s->m);
    fl_free(s->n_in);
    fl_free(s->r);
    fl_free(s->scale);
    fl_free(s->slot_of);
    fl_free(s);
}

fl_spaces *fl_spaces_create(void)
{
    return fl_alloc("registry of spaces", 1, sizeof(fl_spaces));
}

void fl_spaces_destroy(fl_spaces **reg)
{
    if (*reg == NULL) {
        return;
    }
    for (int i = 0; i < (*reg)->n; i++) {
        space_free((*reg)->space[i]);
    }
    fl_free((*reg)->space);
    fl_free(*reg);
    *reg = NULL;
}

static fl_space *space_new(int nslots, int nsites)
{
    fl_space *s = fl_alloc("space", 1, sizeof *s);
    size_t sites = (size_t)nsites;

    s->nslots = nslots;
    s->nsites = nsites;
    s->slot = fl_alloc("slots", (size_t)nslots, sizeof *s->slot);
    s->m = fl_alloc("space m", sites, sizeof *s->m);
    s->n_in = fl_alloc("space n", sites, sizeof *s->n_in);
    s->r = fl_alloc("space r", sites, sizeof *s->r);
    s->scale = fl_alloc("space scale", sites, sizeof *s->scale);
    s->slot_of = fl_alloc("space slot_of", 2 * sites, sizeof *s->slot_of);
    return s;
}

/* field by field, so that padding of the structs never counts */
static uint64_t space_hash(const fl_space *s)
{
    const int head[3] = {s->nslots, s->nsites, s->rmax};
    size_t sites = (size_t)s->nsites;
    uint64_t h = fl_hash(head, sizeof head, 0);

    for (int i = 0; i < s->nslots; i++) {
        const fl_slot *slot = &s->slot[i];
        const int64_t x[5] = {
            (int64_t)slot->factor, slot->site, slot->rows, slot->cols, (int64_t)slot->at};

        h = fl_hash(slot->name, sizeof slot->name, h);
        h = fl_hash(x, sizeof x, h);
    }
    h = fl_hash(s->m, sites * sizeof *s->m, h);
    h = fl_hash(s->n_in, sites * sizeof *s->n_in, h);
    h = fl_hash(s->r, sites * sizeof *s->r, h);
    h = fl_hash(s->scale, sites * sizeof *s->scale, h);
    return fl_hash(s->slot_of, 2 * sites * sizeof *s->slot_of, h);
}

static bool space_same(const fl_space *a, const fl_space *b)
{
    if (a->hash != b->hash || a->nslots != b->nslots || a->nsites != b->nsites || a->n != b->n) {
        return false;
    }
    for (int i = 0; i < a->nslots; i++) {
        const fl_slot *x = &a->slot[i], *y = &b->slot[i];

        if (strcmp(x->name, y->name) != 0 || x->factor != y->factor || x->site != y->site ||
            x->rows != y->rows || x->cols != y->cols) {
            return false;
        }
    }
    for (int j = 0; j < a->nsites; j++) {
        if (a->m[j] != b->m[j] || a->n_in[j] != b->n_in[j] || a->r[j] != b->r[j] ||
            a->scale[j] != b->scale[j]) {
            return false;
        }
    }
    return true;
}

/* takes ownership of s; returns the one object of its kind */
static const fl_space *space_intern(fl_spaces *reg, fl_space *s)
{
    s->hash = space_hash(s);
    FL_REQUIRE(fl_space_is_valid(s));
    for (int i = 0; i < reg->n; i++) {
        if (space_same(reg->space[i], s)) {
            space_free(s);
            return reg->space[i];
        }
    }
    if (reg->n == reg->room) {
        reg->room = reg->room > 0 ? 2 * reg->room : 8;
        reg->space =
            fl_realloc("registry of spaces", reg->space, (size_t)reg->room, sizeof(fl_space *));
    }
    reg->space[reg->n++] = s;
    return s;
}

static void space_push(
    fl_space *s, int *at, const char *name, fl_factor f, int site, int rows, int cols)
{
    static const char *const tail[FL_NFACTORS] = {".A", ".B", "", ""};
    fl_slot *slot = &s->slot[*at];
    int length = snprintf(slot->name, sizeof slot->name, "%s%s", name, tail[f]);

    FL_REQUIRE(length >= 0 && (size_t)length < sizeof slot->name);
    slot->factor = f;
    slot->site = site;
    slot->rows = rows;
    slot->cols = cols;
    slot->at = s->n;
    s->n += (size_t)rows * (size_t)cols;
    (*at)++;
}

const fl_space *fl_space_lora(
    fl_spaces *reg, int nsites, const fl_site *site, const int *r, double alpha, bool rslora)
{
    double *scale = fl_alloc("scales", (size_t)nsites, sizeof *scale);

    for (int j = 0; j < nsites; j++) {
        scale[j] = alpha <= 0 || r[j] == 0 ? 1.0
                   : rslora                ? alpha / sqrt((double)r[j])
                                           : alpha / r[j];
    }
    const fl_space *sp = fl_space_scaled(reg, nsites, site, r, scale);

    fl_free(scale);
    return sp;
}

const fl_space *fl_space_scaled(
    fl_spaces *reg, int nsites, const fl_site *site, const int *r, const double *scale)
{
    fl_space *s;
    int present = 0, at = 0;

    FL_REQUIRE(nsites >= 0);
    for (int j = 0; j < nsites; j++) {
        FL_REQUIRE(r[j] >= 0 && site[j].m > 0 && site[j].n > 0);
        present += r[j] > 0;
    }
    s = space_new(2 * present, nsites);
    for (int j = 0; j < nsites; j++) {
        s->m[j] = site[j].m;
        s->n_in[j] = site[j].n;
        s->r[j] = r[j];
        s->slot_of[2 * j] = s->slot_of[2 * j + 1] = -1;
        if (r[j] == 0) {
            continue;
        }
        s->scale[j] = scale[j];
        s->rmax = FL_MAX(s->rmax, r[j]);
        s->slot_of[2 * j] = at;
        space_push(s, &at, site[j].name, FL_A, j, r[j], site[j].n);
        s->slot_of[2 * j + 1] = at;
        space_push(s, &at, site[j].name, FL_B, j, site[j].m, r[j]);
    }
    return space_intern(reg, s);
}

const fl_space *fl_space_dense(
    fl_spaces *reg, int ntensors, const char *const *name, const int *rows, const int *cols)
{
    fl_space *s;
    int present = 0, at = 0;

    FL_REQUIRE(ntensors >= 0);
    for (int i = 0; i < ntensors; i++) {
        FL_REQUIRE(rows[i] >= 0 && cols[i] >= 0);
        present += rows[i] > 0 && cols[i] > 0;
    }
    s = space_new(present, 0);
    for (int i = 0; i < ntensors; i++) {
        if (rows[i] > 0 && cols[i] > 0) {
            space_push(s, &at, name[i], FL_DENSE, i, rows[i], cols[i]);
        }
    }
    return space_intern(reg, s);
}

const fl_space *fl_space_of_plain(fl_spaces *reg, int n, const int *rows, const int *cols)
{
    fl_space *s;
    char name[24];
    int at = 0;

    FL_REQUIRE(n >= 0);
    s = space_new(n, 0);
    for (int i = 0; i < n; i++) {
        FL_REQUIRE(rows[i] > 0 && cols[i] > 0);
        snprintf(name, sizeof name, "plain.%d", i);
        space_push(s, &at, name, FL_PLAIN, i, rows[i], cols[i]);
    }
    return space_intern(reg, s);
}

int fl_pair_first(const fl_space *s, int site)
{
    int n = 0;

    for (int j = 0; j < site; j++) {
        n += s->r[j];
    }
    return n;
}

static bool space_pair_is_valid(const fl_space *s, int j)
{
    int a = s->slot_of[2 * j], b = s->slot_of[2 * j + 1];

    if (s->r[j] == 0) {
        return a == -1 && b == -1;
    }
    return s->r[j] > 0 && s->r[j] <= s->rmax && a >= 0 && b == a + 1 && b < s->nslots &&
           s->slot[a].factor == FL_A && s->slot[b].factor == FL_B && s->slot[a].site == j &&
           s->slot[b].site == j && s->slot[a].rows == s->r[j] && s->slot[a].cols == s->n_in[j] &&
           s->slot[b].rows == s->m[j] && s->slot[b].cols == s->r[j] && isfinite(s->scale[j]);
}

/* Slots are contiguous and cover exactly n elements; every present site has its A and B, in this
 * order. */
bool fl_space_is_valid(const fl_space *s)
{
    size_t at = 0;

    if (s == NULL || s->nslots < 0 || s->nsites < 0) {
        return false;
    }
    for (int i = 0; i < s->nslots; i++) {
        if (s->slot[i].at != at || s->slot[i].rows <= 0 || s->slot[i].cols <= 0) {
            return false;
        }
        at += (size_t)s->slot[i].rows * (size_t)s->slot[i].cols;
    }
    for (int j = 0; j < s->nsites; j++) {
        if (!space_pair_is_valid(s, j)) {
            return false;
        }
    }
    return at == s->n;
}
