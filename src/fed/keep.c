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

        if (k->ad->space->nsites == sp->nsites) {
            fl_fit(ad, k->ad);
        } else { /* factors after dense weights: nothing of it can stay */
            is_new = true;
        }
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

fl_adapter *fl_scratch_copy(fl_run *run, const fl_adapter *ad)
{
    fl_adapter *copy = fl_scratch_adapter(run, ad->space);

    memcpy(copy->v, ad->v, ad->space->n * sizeof *copy->v);
    return copy;
}

/* ---- a client's list as bytes ----
 * "FLK2", number of entries; per entry: name[48], index, words of its space (spaces.c; 0 = an
 * array), n (doubles, or reals); the words; data */
enum { KEPT_MAGIC = 0x324b4c46 };
typedef struct kept_head {
    char name[48];
    int32_t index, nwords;
    uint64_t n;
} kept_head;

void kept_pack(const fl_kept_list *list, fl_runtime *rt, fl_text *blob)
{
    uint32_t head[2] = {KEPT_MAGIC, (uint32_t)list->n};

    fl_text_bytes(blob, head, sizeof head);
    for (int i = 0; i < list->n; i++) {
        const fl_kept *k = &list->k[i];
        kept_head h = {.index = k->index, .n = k->x != NULL ? k->n : k->ad->space->n};

        memcpy(h.name, k->name, sizeof h.name);
        if (k->x != NULL) {
            fl_text_bytes(blob, &h, sizeof h);
            fl_text_bytes(blob, k->x, k->n * sizeof *k->x);
        } else {
            h.nwords = space_words(rt, k->ad->space, NULL);
            int32_t *words = fl_alloc("words of a space", (size_t)h.nwords, sizeof *words);

            space_words(rt, k->ad->space, words);
            fl_text_bytes(blob, &h, sizeof h);
            fl_text_bytes(blob, words, (size_t)h.nwords * sizeof *words);
            fl_free(words);
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

    if (!take(in, &h, sizeof h) || memchr(h.name, '\0', sizeof h.name) == NULL || h.nwords < 0 ||
        (size_t)h.nwords > in->left / sizeof(int32_t) || h.n > in->left) {
        return false;
    }
    if (h.nwords == 0) {
        if (h.n > in->left / sizeof(double)) {
            return false;
        }
        fl_kept *k = kept_add(list, h.name, h.index, "");

        k->n = h.n;
        k->x = fl_alloc(h.name, h.n, sizeof *k->x);
        return take(in, k->x, h.n * sizeof *k->x);
    }
    int32_t *words = fl_alloc("words of a space", (size_t)h.nwords, sizeof *words);
    bool ok = take(in, words, (size_t)h.nwords * sizeof *words);
    const fl_space *sp = ok ? space_from(rt, h.nwords, words) : NULL;

    fl_free(words);
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
    bool ok = bytes == 0 || (take(&in, head, sizeof head) && head[0] == KEPT_MAGIC);

    for (uint32_t i = 0; ok && bytes > 0 && i < head[1]; i++) {
        ok = unpack_one(rt, &in, list);
    }
    return ok && in.left == 0
               ? FL_OK
               : fl_fail(FL_EFILE,
                     "a client's saved state (%zu bytes) is damaged or belongs to another model",
                     bytes);
}
