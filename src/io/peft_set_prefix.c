/* peft_set_prefix - the same model saved from two classes: names with and without the class's own
 * prefix. It is said, and refused unless the caller wants them to be one. */
#include "peft_set.h"
#include <string.h>

/* A head class puts "model." before all that its bare class has. For each prefix P
 * the first segments that follow it anywhere are known; a name that starts with one of them is
 * bare. */
typedef struct prefix_use {
    peft_names first;  /* "model.layers." */
    bool *with, *bare; /* owned [nfolders * PEFT_NPREFIXES]: has such names */
} prefix_use;

static int prefix_of(const char *name)
{
    for (int p = 0; p < PEFT_NPREFIXES; p++) {
        if (strncmp(name, peft_prefix[p], strlen(peft_prefix[p])) == 0) {
            return p;
        }
    }
    return -1;
}

/* before and the first segment of name, with its dot */
static void first_segment(const char *before, const char *name, char out[PEFT_LONG])
{
    size_t n = strcspn(name, ".");

    snprintf(out, PEFT_LONG, "%s%.*s", before, (int)(n + (name[n] == '.')), name);
}

static void prefix_learn(prefix_use *use, const peft_names *names)
{
    char segment[PEFT_LONG];

    for (int i = 0; i < names->n; i++) {
        int p = prefix_of(names->name[i]);

        if (p >= 0) {
            first_segment(peft_prefix[p], names->name[i] + strlen(peft_prefix[p]), segment);
            (void)peft_names_add(&use->first, segment);
        }
    }
}

/* the prefix that others have before this name, -1 = none */
static int prefix_missing(const prefix_use *use, const char *name)
{
    char segment[PEFT_LONG];

    for (int p = 0; p < PEFT_NPREFIXES && prefix_of(name) < 0; p++) {
        first_segment(peft_prefix[p], name, segment);
        if (peft_names_find(&use->first, segment) >= 0) {
            return p;
        }
    }
    return -1;
}

static void prefix_mark(prefix_use *use, int f, const char *name)
{
    int p = prefix_of(name), q = prefix_missing(use, name);

    if (p >= 0) {
        use->with[f * PEFT_NPREFIXES + p] = true;
    }
    if (q >= 0) {
        use->bare[f * PEFT_NPREFIXES + q] = true;
    }
}

/* to[i]: the index of name i after bare names got prefix p */
static void prefix_join(prefix_use *use, int p, peft_names *names, peft_shape *shape, int *to)
{
    char whole[PEFT_LONG + 32];

    for (int i = 0; i < names->n; i++) {
        to[i] = i;
    }
    for (int i = 0, n = names->n; i < n; i++) {
        if (prefix_missing(use, names->name[i]) == p) {
            snprintf(whole, sizeof whole, "%s%s", peft_prefix[p], names->name[i]);
            to[i] = peft_names_find(names, whole);
            if (to[i] < 0) { /* no folder has it with the prefix: it gets the name */
                fl_free(names->name[i]);
                names->name[i] = fl_strdup(whole);
                to[i] = i;
            } else {
                shape[to[i]].nfolders += shape[i].nfolders;
                shape[i].nfolders = 0;
            }
        }
    }
}

static fl_err prefix_shapes(
    const fl_peft_set *s, const peft_names *names, const peft_shape *shape, const int *to)
{
    for (int i = 0; i < names->n; i++) {
        const peft_shape *a = &shape[i], *b = &shape[to[i]];

        if (to[i] != i &&
            (a->m != b->m || a->n != b->n || a->embedding != b->embedding || a->ndims != b->ndims ||
                memcmp(a->dims, b->dims, sizeof a->dims) != 0)) {
            return fl_fail(FL_ESHAPE, "%s: %.200s has another shape there than %.200s in %s",
                s->folder[a->folder], names->name[i], names->name[to[i]], s->folder[b->folder]);
        }
    }
    return FL_OK;
}

static fl_err prefix_apply(fl_peft_set *s, prefix_use *use, int p)
{
    struct peft_set_inside *x = s->inside;
    int *site = fl_alloc("prefixes", (size_t)x->sites.n, sizeof *site);
    int *extra = fl_alloc("prefixes", (size_t)x->extras.n, sizeof *extra);
    fl_err err;

    prefix_join(use, p, &x->sites, x->site, site);
    prefix_join(use, p, &x->extras, x->extra, extra);
    err = prefix_shapes(s, &x->sites, x->site, site);
    if (err == FL_OK) {
        err = prefix_shapes(s, &x->extras, x->extra, extra);
    }
    for (int f = 0; f < s->nfolders; f++) {
        for (int i = 0; i < x->folder[f].nitems; i++) {
            x->folder[f].item[i].site = site[x->folder[f].item[i].site];
        }
        for (int i = 0; i < x->folder[f].nfound; i++) {
            x->folder[f].extra_of[i] = extra[x->folder[f].extra_of[i]];
        }
    }
    fl_free(site);
    fl_free(extra);
    return err;
}

/* some folders have the names with prefix p, others without */
static fl_err prefix_settle(fl_peft_set *s, prefix_use *use, int p)
{
    struct peft_set_inside *x = s->inside;
    int with = -1, bare = -1, both = -1;

    for (int f = s->nfolders - 1; f >= 0; f--) {
        bool w = use->with[f * PEFT_NPREFIXES + p], b = use->bare[f * PEFT_NPREFIXES + p];

        with = w && !b ? f : with;
        bare = b && !w ? f : bare;
        both = w && b ? f : both;
    }
    if (with < 0 || bare < 0) {
        return FL_OK;
    }
    if (!x->options.join_prefixes || both >= 0) {
        return fl_fail(FL_EDECK,
            "the modules of %s are called %s.. and those of %s not: they were saved from two "
            "classes "
            "of the same model, or the models differ%s",
            s->folder[with], peft_prefix[p], s->folder[bare],
            both >= 0 ? ", and other adapters have both"
                      : "; if it is the same model, ask for the prefixes to be joined");
    }
    fl_text_add(&s->notes,
        "modules of %s and others are called %s.. elsewhere: taken as the same\n", s->folder[bare],
        peft_prefix[p]);
    x->strip[p] = bare < with;
    return prefix_apply(s, use, p);
}

fl_err peft_set_prefixes(fl_peft_set *s)
{
    struct peft_set_inside *x = s->inside;
    size_t n = (size_t)s->nfolders * PEFT_NPREFIXES;
    prefix_use use = {.with = fl_alloc("prefixes", n, 1), .bare = fl_alloc("prefixes", n, 1)};
    fl_err err = FL_OK;

    prefix_learn(&use, &x->sites);
    prefix_learn(&use, &x->extras);
    for (int f = 0; f < s->nfolders && use.first.n > 0; f++) {
        for (int i = 0; i < x->folder[f].nitems; i++) {
            prefix_mark(&use, f, x->sites.name[x->folder[f].item[i].site]);
        }
    }
    for (int p = 0; p < PEFT_NPREFIXES && err == FL_OK; p++) {
        err = prefix_settle(s, &use, p);
    }
    peft_names_free(&use.first);
    fl_free(use.with);
    fl_free(use.bare);
    return err;
}
