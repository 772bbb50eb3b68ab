/* peft_set_lists - the sorted lists of sites and full tensors of a set, and the folders' indices
 * into them. */
#include "peft_set.h"
#include <stdlib.h>
#include <string.h>

typedef struct named {
    char *name; /* moves to the list */
    int old;
} named;

static int named_compare(const void *x, const void *y)
{
    return peft_names_compare(((const named *)x)->name, ((const named *)y)->name);
}

/* names with a folder, sorted; *order owned [*n], to [names->n] = index in it */
static named *set_order(peft_names *names, const peft_shape *shape, int *n, int *to)
{
    named *order = fl_alloc("order of names", (size_t)names->n, sizeof *order);

    *n = 0;
    for (int i = 0; i < names->n; i++) {
        to[i] = -1;
        if (shape[i].nfolders > 0) {
            order[*n] = (named){names->name[i], i};
            names->name[i] = NULL;
            (*n)++;
        }
    }
    if (*n > 0) {
        qsort(order, (size_t)*n, sizeof *order, named_compare);
    }
    for (int i = 0; i < *n; i++) {
        to[order[i].old] = i;
    }
    return order;
}

static int item_compare(const void *x, const void *y)
{
    const peft_item *a = x, *b = y;

    return (a->site > b->site) - (a->site < b->site);
}

/* "3.q_proj": number of the layer and last segment; "#17.q_proj" where that names two */
static void site_label(const char *name, int j, bool unique, fl_site *site)
{
    const char *last = strrchr(name, '.'), *number = name;

    while (
        *number && !(*number >= '0' && *number <= '9' && (number == name || number[-1] == '.'))) {
        number++;
    }
    site->block = *number && strspn(number, "0123456789") < 9 ? atoi(number) : 0;
    last = last ? last + 1 : name;
    snprintf(site->name, sizeof site->name, unique ? "%d.%.12s" : "#%d.%.11s",
        unique ? site->block : j, last);
}

static void set_labels(fl_peft_set *s)
{
    peft_names seen = {0};
    int *first = fl_alloc("site labels", (size_t)s->nsites, sizeof *first);

    for (int j = 0; j < s->nsites; j++) {
        int i;

        site_label(s->site[j].name, j, true, &s->site[j].site);
        i = peft_names_add(&seen, s->site[j].site.name);
        if (seen.n == i + 1 && first[i] == 0) {
            first[i] = j + 1;
        } else {
            site_label(
                s->site[first[i] - 1].name, first[i] - 1, false, &s->site[first[i] - 1].site);
            site_label(s->site[j].name, j, false, &s->site[j].site);
        }
    }
    peft_names_free(&seen);
    fl_free(first);
}

void peft_set_sites(fl_peft_set *s)
{
    struct peft_set_inside *x = s->inside;
    int *to = fl_alloc("order of sites", (size_t)x->sites.n, sizeof *to);
    named *order = set_order(&x->sites, x->site, &s->nsites, to);

    s->site = fl_alloc("sites", (size_t)s->nsites, sizeof *s->site);
    for (int j = 0; j < s->nsites; j++) {
        const peft_shape *shape = &x->site[order[j].old];

        s->site[j] = (fl_peft_site){.name = order[j].name,
            .site = {.m = shape->m, .n = shape->n},
            .embedding = shape->embedding,
            .nfolders = shape->nfolders};
    }
    for (int f = 0; f < s->nfolders; f++) {
        peft_folder *folder = &x->folder[f];

        for (int i = 0; i < folder->nitems; i++) {
            folder->item[i].site = to[folder->item[i].site];
        }
        qsort(folder->item, (size_t)folder->nitems, sizeof *folder->item, item_compare);
    }
    fl_free(order);
    fl_free(to);
    set_labels(s);
}

fl_err peft_set_extras(fl_peft_set *s)
{
    struct peft_set_inside *x = s->inside;
    int *to = fl_alloc("order of extras", (size_t)x->extras.n, sizeof *to);
    named *order = set_order(&x->extras, x->extra, &s->nextras, to);

    s->extra = fl_alloc("extras", (size_t)s->nextras, sizeof *s->extra);
    for (int j = 0; j < s->nextras; j++) {
        const peft_shape *shape = &x->extra[order[j].old];

        s->extra[j] = (fl_peft_extra){.name = order[j].name, .ndims = shape->ndims, .n = 1};
        for (int k = 0; k < shape->ndims; k++) {
            s->extra[j].dims[k] = shape->dims[k];
            s->extra[j].n *= (size_t)shape->dims[k];
        }
    }
    for (int f = 0; f < s->nfolders; f++) {
        peft_folder *folder = &x->folder[f];

        folder->extra = fl_alloc("adapter extras", (size_t)s->nextras, sizeof *folder->extra);
        for (int j = 0; j < s->nextras; j++) {
            folder->extra[j].type = -1;
        }
        for (int i = 0; i < folder->nfound; i++) {
            folder->extra[to[folder->extra_of[i]]] = folder->found[i];
        }
        fl_free(folder->extra_of);
        fl_free(folder->found);
        folder->extra_of = NULL;
        folder->found = NULL;
    }
    fl_free(order);
    fl_free(to);
    for (int j = 0; j < s->nextras; j++) {
        for (int f = 0; f < s->nfolders; f++) {
            if (x->folder[f].extra[j].type < 0) {
                int has = 0;

                while (x->folder[has].extra[j].type < 0) {
                    has++;
                }
                return fl_fail(FL_EDECK,
                    "%s: has no tensor %.200s, which %s has: tensors saved in full are averaged, "
                    "and "
                    "all adapters must have them",
                    s->folder[f], s->extra[j].name, s->folder[has]);
            }
        }
    }
    return FL_OK;
}
