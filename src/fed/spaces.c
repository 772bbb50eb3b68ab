/* spaces.c - spaces by value: how a shape travels and is saved. A space is a short list of whole
 * numbers from which every rank makes the same interned object:
 *   DECK r[nsites] (the deck's scale rule), STACK r[nsites] (scale 1), SCALED r[nsites] and the
 *   scales' bits, DENSE the base tensors present, PLAIN rows and columns of every slot. */
#include "fed_internal.h"

#include <string.h>

space_kind space_kind_of(fl_runtime *rt, const fl_space *sp)
{
    const fl_deck_adapter *d = &rt->deck->adapter;
    const fl_model *m = &rt->base.model;

    if (sp->nsites == 0) {
        return sp->nslots > 0 && sp->slot[0].factor == FL_PLAIN ? SPACE_PLAIN : SPACE_DENSE;
    }
    /* spaces are interned: the same scale rule on the same ranks gives the same object */
    if (fl_space_lora(rt->spaces, m->nsites, m->site, sp->r, d->alpha, d->rslora) == sp) {
        return SPACE_DECK;
    }
    return fl_space_lora(rt->spaces, m->nsites, m->site, sp->r, 0, false) == sp ? SPACE_STACK
                                                                                : SPACE_SCALED;
}

static const fl_space *dense_space(fl_runtime *rt, int n, const int *tensor)
{
    const fl_model *m = &rt->base.model;
    size_t all = (size_t)m->ntensors;
    const char **name = fl_alloc("tensor names", all, sizeof *name);
    int *rows = fl_alloc("tensor rows", all, sizeof *rows);
    int *cols = fl_alloc("tensor columns", all, sizeof *cols);

    for (int i = 0; i < m->ntensors; i++) {
        name[i] = m->tensor[i].name;
    }
    for (int i = 0; i < n; i++) {
        rows[tensor[i]] = m->tensor[tensor[i]].rows;
        cols[tensor[i]] = m->tensor[tensor[i]].cols;
    }
    const fl_space *sp = fl_space_dense(rt->spaces, m->ntensors, name, rows, cols);

    fl_free(name);
    fl_free(rows);
    fl_free(cols);
    return sp;
}

const fl_space *space_full(fl_runtime *rt)
{
    int n = rt->base.model.ntensors, *tensor = fl_alloc("tensors", (size_t)n, sizeof *tensor);

    for (int i = 0; i < n; i++) {
        tensor[i] = i;
    }
    const fl_space *sp = dense_space(rt, n, tensor);

    fl_free(tensor);
    return sp;
}

int space_words(fl_runtime *rt, const fl_space *sp, int32_t *words)
{
    space_kind kind = space_kind_of(rt, sp);
    size_t nsites = (size_t)sp->nsites;
    int32_t *w = words;

    if (words != NULL) {
        *w++ = (int32_t)kind;
        for (int i = 0; i < sp->nsites; i++) {
            *w++ = sp->r[i];
        }
        if (kind == SPACE_SCALED) {
            memcpy(w, sp->scale, nsites * sizeof *sp->scale);
        }
        for (int i = 0; sp->nsites == 0 && i < sp->nslots; i++) {
            if (kind == SPACE_PLAIN) {
                *w++ = sp->slot[i].rows;
                *w++ = sp->slot[i].cols;
            } else {
                *w++ = sp->slot[i].site;
            }
        }
    }
    return 1 + (sp->nsites > 0 ? sp->nsites * (kind == SPACE_SCALED ? 3 : 1)
                               : sp->nslots * (kind == SPACE_PLAIN ? 2 : 1));
}

static const fl_space *lora_from(fl_runtime *rt, space_kind kind, int n, const int32_t *x)
{
    const fl_deck_adapter *d = &rt->deck->adapter;
    const fl_model *m = &rt->base.model;

    if (n != m->nsites * (kind == SPACE_SCALED ? 3 : 1)) {
        return NULL;
    }
    for (int j = 0; j < m->nsites; j++) {
        if (x[j] < 0 || x[j] > (1 << 24)) {
            return NULL;
        }
    }
    if (kind == SPACE_SCALED) {
        double *scale = fl_alloc("scales", (size_t)m->nsites, sizeof *scale);
        bool finite = true;

        memcpy(scale, x + m->nsites, (size_t)m->nsites * sizeof *scale);
        for (int j = 0; j < m->nsites; j++) {
            finite = finite && scale[j] > -1e30 && scale[j] < 1e30;
        }
        const fl_space *sp =
            finite ? fl_space_scaled(rt->spaces, m->nsites, m->site, x, scale) : NULL;

        fl_free(scale);
        return sp;
    }
    return fl_space_lora(rt->spaces, m->nsites, m->site, x, kind == SPACE_STACK ? 0 : d->alpha,
        kind == SPACE_DECK && d->rslora);
}

static const fl_space *plain_from(fl_runtime *rt, int n, const int32_t *x)
{
    size_t most = (size_t)FL_MAX(n / 2, 1);
    int *rows, *cols;
    const fl_space *sp = NULL;
    bool ok = n % 2 == 0;

    rows = fl_alloc("plain rows", most, sizeof *rows);
    cols = fl_alloc("plain columns", most, sizeof *cols);
    for (int i = 0; ok && i < n / 2; i++) {
        rows[i] = x[2 * i];
        cols[i] = x[2 * i + 1];
        ok = rows[i] > 0 && cols[i] > 0 && rows[i] <= (1 << 24) && cols[i] <= (1 << 24);
    }
    if (ok) {
        sp = fl_space_of_plain(rt->spaces, n / 2, rows, cols);
    }
    fl_free(rows);
    fl_free(cols);
    return sp;
}

static const fl_space *dense_from(fl_runtime *rt, int n, const int32_t *x)
{
    for (int i = 0; i < n; i++) {
        if (x[i] < 0 || x[i] >= rt->base.model.ntensors || (i > 0 && x[i] <= x[i - 1])) {
            return NULL;
        }
    }
    return dense_space(rt, n, x);
}

const fl_space *space_from(fl_runtime *rt, int n, const int32_t *words)
{
    if (n < 1) {
        return NULL;
    }
    switch (words[0]) {
    case SPACE_DECK:
    case SPACE_STACK:
    case SPACE_SCALED:
        return lora_from(rt, (space_kind)words[0], n - 1, words + 1);
    case SPACE_DENSE:
        return dense_from(rt, n - 1, words + 1);
    case SPACE_PLAIN:
        return plain_from(rt, n - 1, words + 1);
    default:
        return NULL;
    }
}

const fl_space *space_of_deck(fl_runtime *rt, const int *r)
{
    return fl_space_lora(rt->spaces, rt->base.model.nsites, rt->base.model.site, r,
        rt->deck->adapter.alpha, rt->deck->adapter.rslora);
}

/* ---- for methods ---- */
const fl_space *fl_space_at(fl_run *run, const fl_space *sp, const int *r, int all)
{
    if (sp->nsites == 0) {
        return sp;
    }
    int *at = fl_scratch(run, (size_t)sp->nsites, sizeof *at);

    for (int j = 0; j < sp->nsites; j++) {
        at[j] = r != NULL ? r[j] : FL_MIN(all, sp->r[j]);
    }
    return space_of_deck(run->rt, at);
}

const fl_space *fl_space_cut(fl_run *run, const fl_space *sp, int r)
{
    int *at = fl_scratch(run, (size_t)sp->nsites, sizeof *at);

    for (int j = 0; j < sp->nsites; j++) {
        at[j] = FL_MIN(r, sp->r[j]);
    }
    return fl_space_scales(run, at, sp->scale);
}

const fl_space *fl_space_stack(fl_run *run, const int *r)
{
    return fl_space_lora(
        run->rt->spaces, run->rt->base.model.nsites, run->rt->base.model.site, r, 0, false);
}

const fl_space *fl_space_scales(fl_run *run, const int *r, const double *scale)
{
    return fl_space_scaled(
        run->rt->spaces, run->rt->base.model.nsites, run->rt->base.model.site, r, scale);
}

const fl_space *fl_space_plain(fl_run *run, int n, const int *rows, const int *cols)
{
    return fl_space_of_plain(run->rt->spaces, n, rows, cols);
}

const fl_space *fl_space_base(fl_run *run, const fl_space *sp)
{
    const fl_model *m = &run->rt->base.model;
    int *tensor = fl_scratch(run, (size_t)m->ntensors, sizeof *tensor), n = 0;
    bool *has = fl_scratch(run, (size_t)m->ntensors, sizeof *has);

    for (int j = 0; j < sp->nsites; j++) {
        int t, row0;

        fl_model_site_tensor(m, j, &t, &row0);
        has[t] = has[t] || sp->r[j] > 0;
    }
    for (int t = 0; t < m->ntensors; t++) {
        if (has[t]) {
            tensor[n++] = t;
        }
    }
    return dense_space(run->rt, n, tensor);
}

void fl_site_tensor(const fl_run *run, int site, int *tensor, int *row0)
{
    fl_model_site_tensor(&run->rt->base.model, site, tensor, row0);
}
