/* peft_set_folder - one adapter folder of a set: its config, and of its weights the header. The
 * keys in the file say what is adapted; r and alpha come from the config by PEFT's rules, and r
 * must agree with the shapes. */
#include "peft_set.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const peft_type[PEFT_NTYPES] = {"F32", "F16", "BF16", "F64"};

typedef struct folder_patterns { /* rank_pattern or alpha_pattern */
    int n;
    peft_pattern **pattern; /* owned [n] */
    const char **key;       /* owned [n], borrowed texts */
    const json_t **value;   /* owned [n], borrowed */
    const json_t *otherwise;
} folder_patterns;

typedef struct folder_tensor { /* of the file */
    int site, entry;
    bool b;
} folder_tensor;

typedef struct folder_in {
    fl_peft_set *s;
    int f;
    const char *name; /* of the config, for sentences */
    const fl_st *st;
    folder_patterns rank, alpha;
    bool rslora;
    int ntensors;
    folder_tensor *tensor; /* owned [ntensors] */
} folder_in;

/* ---- r and s ---- */
static fl_err patterns_read(const json_t *config, const char *patterns, const char *otherwise,
    const char *name, folder_patterns *p)
{
    json_t *o = json_object_get(config, patterns), *v;
    const char *key;

    p->otherwise = fl_json_given(config, otherwise) ? json_object_get(config, otherwise) : NULL;
    if (o == NULL || json_is_null(o)) {
        return FL_OK;
    }
    if (!json_is_object(o)) {
        return fl_fail(FL_EDECK, "%s: %s must be an object", name, patterns);
    }
    p->pattern = fl_alloc("patterns", json_object_size(o), sizeof(peft_pattern *));
    p->key = fl_alloc("patterns", json_object_size(o), sizeof *p->key);
    p->value = fl_alloc("patterns", json_object_size(o), sizeof *p->value);
    json_object_foreach(o, key, v) /* in the order of the file, as Python has it */
    {
        p->pattern[p->n] = peft_pattern_parse(key);
        p->key[p->n] = key;
        p->value[p->n++] = v;
        if (p->pattern[p->n - 1] == NULL) {
            return fl_fail(FL_EDECK,
                "%s: %s: the regular expression \"%.200s\" is beyond what is read here; write the "
                "full names of the modules",
                name, patterns, key);
        }
    }
    return FL_OK;
}

static void patterns_free(folder_patterns *p)
{
    for (int i = 0; i < p->n; i++) {
        peft_pattern_free(&p->pattern[i]);
    }
    fl_free(p->pattern);
    fl_free(p->key);
    fl_free(p->value);
}

/* the value of the first pattern that matches the module, else the global one; NULL = none given */
static fl_err patterns_find(
    const folder_in *in, const folder_patterns *p, const char *module, const json_t **x)
{
    *x = p->otherwise;
    for (int i = 0; i < p->n; i++) {
        bool ok, hit = peft_pattern_matches(p->pattern[i], module, &ok);

        if (!ok) {
            return fl_fail(FL_EDECK,
                "%s: the regular expression \"%.200s\" takes too long on module %.200s; write the "
                "full names of the modules",
                in->name, p->key[i], module);
        }
        if (hit) {
            *x = p->value[i];
            break;
        }
    }
    return FL_OK;
}

/* module: as in the file, for which the patterns were written */
static fl_err folder_scale(const folder_in *in, const char *module, peft_item *item)
{
    const json_t *r, *alpha;

    FL_TRY(patterns_find(in, &in->rank, module, &r));
    FL_TRY(patterns_find(in, &in->alpha, module, &alpha));
    item->alpha = alpha ? json_number_value(alpha) : 8;
    if ((r && (!json_is_integer(r) || json_integer_value(r) < 1 ||
                  json_integer_value(r) > PEFT_RANK_MOST)) ||
        (alpha && !json_is_number(alpha)) || !(fabs(item->alpha) <= 1e12)) {
        return fl_fail(FL_EDECK,
            "%s: module %.200s: r must be a whole number from 1 to %d, lora_alpha a number",
            in->name, module, PEFT_RANK_MOST);
    }
    item->r = r ? (int)json_integer_value(r) : 8;
    item->scale = in->rslora ? item->alpha / sqrt((double)item->r) : item->alpha / item->r;
    return FL_OK;
}

/* ---- the header ---- */
static fl_err folder_place(const folder_in *in, int entry, peft_place *place)
{
    const fl_st_entry *e = &in->st->entry[entry];

    place->at = e->begin;
    for (place->type = 0; place->type < PEFT_NTYPES; place->type++) {
        if (strcmp(peft_type[place->type], e->dtype) == 0) {
            break;
        }
    }
    if (place->type == PEFT_NTYPES) {
        return fl_fail(FL_EDECK,
            "%s: tensor %.200s is of type %s, but F32, F16, BF16 and F64 are read: save the "
            "adapter "
            "in one of them, not quantised",
            in->st->path, e->name, e->dtype);
    }
    in->s->inside->types |= FL_BIT(place->type);
    return FL_OK;
}

static void shapes_room(peft_shape **shape, int *room, int n)
{
    if (n >= *room) {
        *room = 2 * *room + 64;
        *shape = fl_realloc("shapes", *shape, (size_t)*room, sizeof **shape);
    }
}

static fl_err folder_refuse(const folder_in *in, const fl_st_entry *e, peft_part part)
{
    static const char *const why[] = {
        [PEFT_LORA_BIAS] = "a bias of LoRA (lora_bias), which a sum of s B A does not hold: train "
                           "without it",
        [PEFT_MAGNITUDE] = "of DoRA, whose change of W is not s B A: merge that adapter into its "
                           "base, or train without use_dora",
        [PEFT_STRANGE] = "not named as PEFT's save_pretrained names the tensors of a LoRA adapter: "
                         "save it again with that"};

    return fl_fail(FL_EDECK, "%s: tensor %.200s is %s", in->st->path, e->name, why[part]);
}

static fl_err folder_extra(folder_in *in, int entry, const char *name)
{
    struct peft_set_inside *x = in->s->inside;
    peft_folder *folder = &x->folder[in->f];
    const fl_st_entry *e = &in->st->entry[entry];
    int before = x->extras.n, i = peft_names_add(&x->extras, name);
    size_t n = 1;

    for (int k = 0; k < e->ndims; k++) {
        n *= (size_t)e->dims[k]; /* its bytes are in the file */
    }
    if (e->ndims > 4 || n == 0) {
        return fl_fail(FL_ESHAPE,
            "%s: tensor %.200s is empty or has more than 4 dimensions, which is not read",
            in->st->path, e->name);
    }
    if (i == before) {
        shapes_room(&x->extra, &x->extra_room, i);
        x->extra[i] = (peft_shape){.folder = in->f, .ndims = e->ndims};
        memcpy(x->extra[i].dims, e->dims, sizeof x->extra[i].dims);
    } else if (x->extra[i].last == in->f) {
        return fl_fail(
            FL_EDECK, "%s: tensor %.200s is there under two names", in->st->path, e->name);
    } else if (x->extra[i].ndims != e->ndims ||
               memcmp(x->extra[i].dims, e->dims, sizeof x->extra[i].dims) != 0) {
        return fl_fail(FL_ESHAPE,
            "%s: %.200s has another shape there than in %s (first numbers %lld and %lld): such "
            "tensors are averaged and must agree",
            in->s->folder[in->f], e->name, in->s->folder[x->extra[i].folder],
            (long long)(e->ndims > 0 ? e->dims[0] : 1),
            (long long)(x->extra[i].ndims > 0 ? x->extra[i].dims[0] : 1));
    }
    x->extra[i].last = in->f;
    x->extra[i].nfolders++;
    folder->extra_of[folder->nfound] = i;
    return folder_place(in, entry, &folder->found[folder->nfound++]);
}

static fl_err folder_sort(folder_in *in, bool bare4)
{
    struct peft_set_inside *x = in->s->inside;
    peft_folder *folder = &x->folder[in->f];
    peft_key k;
    char name[PEFT_LONG], other[PEFT_LONG];

    for (int i = 0; i < in->st->n; i++) {
        const fl_st_entry *e = &in->st->entry[i];
        int before = x->sites.n, site;

        peft_key_split(e->name, &k);
        folder->stray = folder->stray || k.stray;
        if (k.part > PEFT_FULL) {
            return folder_refuse(in, e, k.part);
        }
        if (peft_name_to5(k.name, bare4, name)) {
            folder->spelling = 4;
        } else if (folder->spelling == 0 && peft_name_to4(k.name, false, other)) {
            folder->spelling = 5;
        }
        if (k.part == PEFT_FULL) {
            FL_TRY(folder_extra(in, i, name));
            continue;
        }
        site = peft_names_add(&x->sites, name);
        if (site == before) {
            shapes_room(&x->site, &x->site_room, site);
            x->site[site] = (peft_shape){.folder = in->f, .embedding = k.embedding};
        } else if (x->site[site].embedding != k.embedding) {
            return fl_fail(FL_EDECK, "%s: module %.200s is an embedding here or in %s, not both",
                in->st->path, k.name, in->s->folder[x->site[site].folder]);
        }
        in->tensor[in->ntensors++] = (folder_tensor){site, i, k.part == PEFT_B};
    }
    return FL_OK;
}

static int tensor_compare(const void *x, const void *y)
{
    const folder_tensor *a = x, *b = y;

    return a->site != b->site ? (a->site < b->site ? -1 : 1)
           : a->b != b->b     ? a->b - b->b
                              : (a->entry > b->entry) - (a->entry < b->entry);
}

static fl_err folder_shapes(
    folder_in *in, const char *module, int ia, int ib, const peft_item *item)
{
    const fl_st_entry *a = &in->st->entry[ia], *b = &in->st->entry[ib];
    peft_shape *shape = &in->s->inside->site[item->site];

    if (a->ndims != 2 || b->ndims != 2) {
        return fl_fail(FL_ESHAPE,
            "%s: module %.200s: its factors have %d and %d dimensions, not 2 each: adapters of "
            "convolutions are not read; train without that module",
            in->st->path, module, a->ndims, b->ndims);
    }
    if (a->dims[0] != item->r || b->dims[1] != item->r) {
        return fl_fail(FL_ESHAPE,
            "%s: module %.200s: r is %lld in lora_A and %lld in lora_B, but %d by %s", in->st->path,
            module, (long long)a->dims[0], (long long)b->dims[1], item->r, in->name);
    }
    if (a->dims[1] < 1 || a->dims[1] > INT_MAX || b->dims[0] < 1 || b->dims[0] > INT_MAX) {
        return fl_fail(FL_ESHAPE, "%s: module %.200s: a change of %lld x %lld is not read",
            in->st->path, module, (long long)b->dims[0], (long long)a->dims[1]);
    }
    if (shape->m == 0) {
        shape->folder = in->f;
        shape->m = (int)b->dims[0];
        shape->n = (int)a->dims[1];
    } else if (shape->m != b->dims[0] || shape->n != a->dims[1]) {
        return fl_fail(FL_ESHAPE,
            "%s: module %.200s is %lld x %lld, but %d x %d in %s: adapters of different bases "
            "cannot be combined",
            in->s->folder[in->f], module, (long long)b->dims[0], (long long)a->dims[1], shape->m,
            shape->n, in->s->folder[shape->folder]);
    }
    return FL_OK;
}

/* A and B of one module stand side by side */
static fl_err folder_pair(folder_in *in)
{
    peft_folder *folder = &in->s->inside->folder[in->f];
    peft_key k;

    for (int i = 0; i < in->ntensors; i += 2) {
        const folder_tensor *t = &in->tensor[i];
        peft_item *item = &folder->item[folder->nitems];
        int left = in->ntensors - i;

        peft_key_split(in->st->entry[t->entry].name, &k);
        if (left < 2 || t[1].site != t->site) {
            return fl_fail(FL_EDECK, "%s: module %.200s has lora_%s but no lora_%s", in->st->path,
                k.name, t->b ? "B" : "A", t->b ? "A" : "B");
        }
        if (t[0].b == t[1].b || (left > 2 && t[2].site == t->site)) {
            return fl_fail(
                FL_EDECK, "%s: module %.200s is there under two names", in->st->path, k.name);
        }
        item->site = t->site;
        in->s->inside->site[t->site].nfolders++;
        FL_TRY(folder_scale(in, k.name, item));
        FL_TRY(folder_shapes(in, k.name, t[0].entry, t[1].entry, item));
        FL_TRY(folder_place(in, t[0].entry, &item->a));
        FL_TRY(folder_place(in, t[1].entry, &item->b));
        folder->nitems++;
    }
    return FL_OK;
}

/* a bare ViT of transformers 4: encoder.layer.0.attention.attention.query */
static bool folder_is_bare4(const folder_in *in, const json_t *config)
{
    static const char *const vit[] = {
        "ViT", "DeiT", "Beit", "Vivit", "ASTModel", "IJepa"}; /* how their classes begin */
    const char *class = json_string_value(
        json_object_get(json_object_get(config, "auto_mapping"), "base_model_class"));
    size_t n = strlen(PEFT_PREFIX);

    if (class && strncmp(class, "Dinov2", 6) == 0) {
        return false;
    }
    for (size_t i = 0; class && i < FL_COUNT(vit); i++) {
        if (strncmp(class, vit[i], strlen(vit[i])) == 0) {
            return true;
        }
    }
    for (int i = 0; i < in->st->n; i++) {
        const char *key = in->st->entry[i].name;

        if (strncmp(key, PEFT_PREFIX, n) == 0 && peft_name_shows_bare4(key + n)) {
            return true;
        }
    }
    return false;
}

static fl_err folder_read(folder_in *in, json_t *config)
{
    struct peft_set_inside *x = in->s->inside;
    peft_folder *folder = &x->folder[in->f];

    FL_TRY(peft_config_accept(config, in->name, x->options.any_init));
    FL_TRY(peft_config_agree(in->s, in->f, config, in->name));
    FL_TRY(fl_json_bool(config, "use_rslora", in->name, false, &in->rslora));
    FL_TRY(patterns_read(config, "rank_pattern", "r", in->name, &in->rank));
    FL_TRY(patterns_read(config, "alpha_pattern", "lora_alpha", in->name, &in->alpha));
    folder->rslora = in->rslora;
    folder->bare4 = folder_is_bare4(in, config);
    FL_TRY(folder_sort(in, folder->bare4));
    if (in->ntensors == 0) {
        return fl_fail(FL_EDECK, "%s: holds no LoRA factor", in->st->path);
    }
    qsort(in->tensor, (size_t)in->ntensors, sizeof *in->tensor, tensor_compare);
    return folder_pair(in);
}

fl_err peft_set_add(
    fl_peft_set *s, int f, const char *json, size_t n, const char *name, const fl_st *st)
{
    folder_in in = {.s = s, .f = f, .name = name, .st = st};
    peft_folder *folder = &s->inside->folder[f];
    size_t most = (size_t)st->n;
    json_t *config;
    fl_err err;

    FL_TRY(fl_json_object(json, n, name, &config));
    folder->nbytes = st->nbytes;
    folder->data = st->data;
    in.tensor = fl_alloc("adapter tensors", most, sizeof *in.tensor);
    folder->item = fl_alloc("adapter sites", most / 2 + 1, sizeof *folder->item);
    folder->extra_of = fl_alloc("adapter extras", most, sizeof *folder->extra_of);
    folder->found = fl_alloc("adapter extras", most, sizeof *folder->found);
    err = folder_read(&in, config);
    folder->item =
        fl_realloc("adapter sites", folder->item, (size_t)folder->nitems, sizeof *folder->item);
    patterns_free(&in.rank);
    patterns_free(&in.alpha);
    fl_free(in.tensor);
    json_decref(config);
    return err;
}
