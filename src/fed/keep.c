/* keep.c - memory that a method declares: the server's and the clients' kept arrays and adapters,
 * scratch, spaces. A client's list travels as one blob of bytes; the server's goes into the
 * checkpoint array by array. */
#include "fed_internal.h"

#include <string.h>

void kept_free(fl_kept_list *list)
{
    for (int i = 0; i < list->n; i++) {
        fl_free(list->k[i].x);
        fl_adapter_destroy(&list->k[i].ad);
    }
    fl_free(list->k);
    *list = (fl_kept_list){0};
}

fl_kept *kept_find(fl_kept_list *list, const char *name, int index)
{
    for (int i = 0; i < list->n; i++) {
        if (list->k[i].index == index && strcmp(list->k[i].name, name) == 0) {
            return &list->k[i];
        }
    }
    return NULL;
}

static fl_kept *kept_add(fl_kept_list *list, const char *name, int index, const char *what)
{
    if (list->n == list->room) {
        list->room = FL_MAX(8, 2 * list->room);
        list->k = fl_realloc("kept list", list->k, (size_t)list->room, sizeof *list->k);
    }
    fl_kept *k = &list->k[list->n++];

    *k = (fl_kept){.index = index};
    FL_REQUIRE(strlen(name) < sizeof k->name);
    snprintf(k->name, sizeof k->name, "%s", name);
    snprintf(k->what, sizeof k->what, "%s", what);
    return k;
}

/* ---- spaces by value ---- */
const fl_space *space_of_kind(fl_runtime *rt, space_kind kind, const int *r)
{
    const fl_model *m = &rt->base.model;

    if (kind == SPACE_DENSE) {
        const char **name = fl_alloc("tensor names", (size_t)m->ntensors, sizeof *name);
        int *rows = fl_alloc("tensor rows", (size_t)m->ntensors, sizeof *rows);
        int *cols = fl_alloc("tensor columns", (size_t)m->ntensors, sizeof *cols);

        for (int i = 0; i < m->ntensors; i++) {
            name[i] = m->tensor[i].name;
            rows[i] = m->tensor[i].rows;
            cols[i] = m->tensor[i].cols;
        }
        const fl_space *sp = fl_space_dense(rt->spaces, m->ntensors, name, rows, cols);

        fl_free(name);
        fl_free(rows);
        fl_free(cols);
        return sp;
    }
    for (int j = 0; j < m->nsites; j++) {
        if (r[j] < 0 || r[j] > (1 << 24)) {
            return NULL;
        }
    }
    return fl_space_lora(rt->spaces, m->nsites, m->site, r,
        kind == SPACE_STACK ? 0 : rt->deck->adapter.alpha,
        kind == SPACE_DECK && rt->deck->adapter.rslora);
}

space_kind space_kind_of(fl_runtime *rt, const fl_space *sp)
{
    if (sp->nslots > 0 && sp->slot[0].factor == FL_DENSE) {
        return SPACE_DENSE;
    }
    /* spaces are interned: the deck's scale rule on the same ranks gives the same object */
    return space_of_kind(rt, SPACE_DECK, sp->r) == sp ? SPACE_DECK : SPACE_STACK;
}

const fl_space *fl_space_at(fl_run *run, const fl_space *sp, const int *r, int all)
{
    fl_runtime *rt = run->rt;

    if (space_kind_of(rt, sp) == SPACE_DENSE) {
        return sp;
    }
    int *at = fl_scratch(run, (size_t)sp->nsites, sizeof *at);

    for (int j = 0; j < sp->nsites; j++) {
        at[j] = r != NULL ? r[j] : FL_MIN(all, sp->r[j]);
    }
    return space_of_kind(rt, SPACE_DECK, at);
}

const fl_space *fl_space_stack(fl_run *run, const int *r)
{
    return space_of_kind(run->rt, SPACE_STACK, r);
}

/* ---- declared memory ---- */
static fl_kept_list *list_of(fl_run *run, const fl_client *c)
{
    return c == NULL ? &run->rt->server : &c->turn->kept;
}

double *fl_keep(
    fl_run *run, fl_client *c, const char *name, int index, size_t n, const char *what, bool *fresh)
{
    fl_kept *k = kept_find(list_of(run, c), name, index);
    bool is_new = k == NULL;

    if (is_new) {
        k = kept_add(list_of(run, c), name, index, what);
        k->x = fl_alloc(name, n, sizeof *k->x);
        k->n = n;
    }
    FL_REQUIRE(k->x != NULL); /* the name belongs to an adapter */
    if (k->n != n) {
        double *x = fl_alloc(name, n, sizeof *x);

        memcpy(x, k->x, FL_MIN(n, k->n) * sizeof *x);
        fl_free(k->x);
        k->x = x;
        k->n = n;
    }
    if (what[0] != '\0') {
        snprintf(k->what, sizeof k->what, "%s", what);
    }
    if (fresh != NULL) {
        *fresh = is_new;
    }
    return k->x;
}

fl_adapter *fl_keep_adapter(
    fl_run *run, fl_client *c, const char *name, int index, const fl_space *sp, bool *fresh)
{
    fl_kept *k = kept_find(list_of(run, c), name, index);
    bool is_new = k == NULL;

    if (is_new) {
        k = kept_add(list_of(run, c), name, index, "adapter");
        k->ad = fl_adapter_create(sp);
    }
    FL_REQUIRE(k->ad != NULL); /* the name belongs to an array */
    if (k->ad->space != sp) {
        fl_adapter *ad = fl_adapter_create(sp);

        fl_fit(ad, k->ad);
        fl_adapter_destroy(&k->ad);
        k->ad = ad;
    }
    if (fresh != NULL) {
        *fresh = is_new;
    }
    return k->ad;
}

/* ---- scratch ---- */
static fl_arena *arena_now(const fl_runtime *rt)
{
    return rt->now != NULL ? rt->turn : rt->round;
}

void *fl_scratch(fl_run *run, size_t n, size_t each)
{
    return fl_arena_take(arena_now(run->rt), n, each);
}

fl_adapter *fl_scratch_adapter(fl_run *run, const fl_space *sp)
{
    fl_adapter *ad = fl_scratch(run, 1, sizeof *ad);

    *ad = (fl_adapter){.space = sp, .v = fl_scratch(run, sp->n, sizeof(fl_real))};
    return ad;
}

fl_adapter *fl_scratch_spread(fl_run *run, const fl_space *sp)
{
    fl_runtime *rt = run->rt;
    fl_adapter *ad = fl_scratch(run, 1, sizeof *ad);
    size_t *at = fl_scratch(run, (size_t)sp->nslots, sizeof *at), n = 0;

    FL_REQUIRE(rt->now == NULL);
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        bool here = rt->owner[s->site] == rt->ctx->rank;

        at[i] = here ? n : SIZE_MAX;
        n += here ? (size_t)s->rows * (size_t)s->cols : 0;
    }
    *ad = (fl_adapter){.space = sp, .v = fl_scratch(run, n, sizeof(fl_real)), .at = at};
    return ad;
}

/* ---- a client's list as bytes ----
 * "FLK1", number of entries; per entry: name[48], index, kind (0 array, 1 + space_kind adapter), n
 * (doubles, or reals), for LoRA r[nsites]; data */
typedef struct kept_head {
    char name[48];
    int32_t index, kind;
    uint64_t n;
} kept_head;

void kept_pack(const fl_kept_list *list, fl_runtime *rt, fl_text *blob)
{
    uint32_t head[2] = {0x314b4c46u, (uint32_t)list->n};

    fl_text_bytes(blob, head, sizeof head);
    for (int i = 0; i < list->n; i++) {
        const fl_kept *k = &list->k[i];
        kept_head h = {.index = k->index, .n = k->x != NULL ? k->n : k->ad->space->n};

        memcpy(h.name, k->name, sizeof h.name);
        if (k->x != NULL) {
            fl_text_bytes(blob, &h, sizeof h);
            fl_text_bytes(blob, k->x, k->n * sizeof *k->x);
        } else {
            space_kind kind = space_kind_of(rt, k->ad->space);

            h.kind = 1 + (int)kind;
            fl_text_bytes(blob, &h, sizeof h);
            if (kind != SPACE_DENSE) {
                fl_text_bytes(blob, k->ad->space->r, (size_t)k->ad->space->nsites * sizeof(int));
            }
            fl_text_bytes(blob, k->ad->v, k->ad->space->n * sizeof(fl_real));
        }
    }
}

typedef struct reader {
    const char *at;
    size_t left;
} reader;

static bool take(reader *r, void *x, size_t n)
{
    if (n > r->left) {
        return false;
    }
    memcpy(x, r->at, n);
    r->at += n;
    r->left -= n;
    return true;
}

static bool unpack_one(fl_runtime *rt, reader *in, fl_kept_list *list)
{
    kept_head h;

    if (!take(in, &h, sizeof h) || memchr(h.name, '\0', sizeof h.name) == NULL || h.kind < 0 ||
        h.kind > 1 + SPACE_DENSE || h.n > in->left) {
        return false;
    }
    if (h.kind == 0) {
        if (h.n > in->left / sizeof(double)) {
            return false;
        }
        fl_kept *k = kept_add(list, h.name, h.index, "");

        k->n = h.n;
        k->x = fl_alloc(h.name, h.n, sizeof *k->x);
        return take(in, k->x, h.n * sizeof *k->x);
    }
    int nsites = rt->base.model.nsites;
    int *r = fl_alloc("ranks", (size_t)nsites, sizeof *r);
    bool ok = h.kind == 1 + SPACE_DENSE || take(in, r, (size_t)nsites * sizeof *r);
    const fl_space *sp = ok ? space_of_kind(rt, (space_kind)(h.kind - 1), r) : NULL;

    fl_free(r);
    if (sp == NULL || sp->n != h.n || h.n > in->left / sizeof(fl_real)) {
        return false;
    }
    fl_kept *k = kept_add(list, h.name, h.index, "adapter");

    k->ad = fl_adapter_create(sp);
    return take(in, k->ad->v, sp->n * sizeof(fl_real));
}

fl_err kept_unpack(fl_runtime *rt, const void *blob, size_t bytes, fl_kept_list *list)
{
    reader in = {blob, bytes};
    uint32_t head[2];
    bool ok = bytes == 0 || (take(&in, head, sizeof head) && head[0] == 0x314b4c46u);

    for (uint32_t i = 0; ok && bytes > 0 && i < head[1]; i++) {
        ok = unpack_one(rt, &in, list);
    }
    return ok && in.left == 0
               ? FL_OK
               : fl_fail(FL_EFILE,
                     "a client's saved state (%zu bytes) is damaged or belongs to another model",
                     bytes);
}
