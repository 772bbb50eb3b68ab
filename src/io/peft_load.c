/* peft_load - a PEFT LoRA adapter onto the sites of a model. The keys in the weights file are the
 * truth about what is adapted; r and alpha come from adapter_config.json and must agree with the
 * shapes. What makes the change of the model something else than s B A (DoRA, full tensors, ...) is
 * refused by name. Choice: a pair of GPT-2's c_attn goes to those of q, k, v where its column of B
 * is not all zero, and to all three when it is zero everywhere (an untrained B): the product is
 * kept, and what peft_save wrote comes back with its own ranks. */
#include "peft.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PEFT_MOST_R = 1 << 20 };

typedef struct peft_found { /* what the file has for one module */
    int a, b;               /* entries of the file, -1 = none */
    char *name;             /* owned; as in the file, behind base_model.model. */
    int r;
    double scale;
    fl_real *va, *vb; /* owned [r][cols], [rows][r] */
    bool *keep[3];    /* owned [r]: pairs of site i */
} peft_found;

typedef struct peft_in {
    const char *name; /* of the config, for sentences */
    const json_t *config;
    const fl_st *st;
    const fl_model *m;
    int nkinds;
    peft_found *found; /* owned [nlayers * nkinds] */
} peft_in;

/* present and not null, false, empty */
static bool peft_is_set(const json_t *o, const char *key)
{
    const json_t *x = json_object_get(o, key);

    return !(x == NULL || json_is_null(x) || json_is_false(x) ||
             (json_is_array(x) && json_array_size(x) == 0) ||
             (json_is_object(x) && json_object_size(x) == 0));
}

static fl_err peft_config_check(const json_t *o, const char *name)
{
    static const char *const refused[] = {"use_dora", "use_qalora", "lora_bias", "velora_config",
        "monteclora_config", "use_bdlora", "arrow_config", "kasa_config", "target_parameters",
        "layer_replication", "alora_invocation_tokens", "trainable_token_indices"};
    static const char *const inits[] = {"gaussian", "eva", "orthogonal"};
    const json_t *init = json_object_get(o, "init_lora_weights");
    const char *type, *bias;
    bool fine = !json_is_string(init);

    FL_TRY(fl_json_text(o, "peft_type", name, "(none)", &type));
    if (strcmp(type, "LORA") != 0) {
        return fl_fail(FL_EDECK, "%s: peft_type %.40s is not supported; LORA is", name, type);
    }
    for (size_t i = 0; i < FL_COUNT(refused); i++) {
        if (peft_is_set(o, refused[i])) {
            return fl_fail(FL_EDECK,
                "%s: %s is not supported: the change of the model is then more than s B A", name,
                refused[i]);
        }
    }
    FL_TRY(fl_json_text(o, "bias", name, "none", &bias));
    if (strcmp(bias, "none") != 0) {
        return fl_fail(FL_EDECK, "%s: bias %.40s is not supported; none is", name, bias);
    }
    for (size_t i = 0; i < FL_COUNT(inits); i++) {
        fine = fine || strcmp(json_string_value(init), inits[i]) == 0;
    }
    return fine
               ? FL_OK
               : fl_fail(FL_EDECK,
                     "%s: init_lora_weights %.40s changes the base too: save the adapter converted "
                     "to an ordinary LoRA",
                     name, json_string_value(init));
}

/* "base_model.model.NAME.lora_A.weight", also with an adapter's name before .weight; *which 'A' or
 * 'B' */
static bool peft_key(const char *key, char **name, char *which)
{
    const char *at = NULL, *tail;
    size_t n = strlen(PEFT_PREFIX), m = strlen(key), w = strlen(".weight");

    if (strncmp(key, PEFT_PREFIX, n) != 0 || m < w || strcmp(key + m - w, ".weight") != 0) {
        return false;
    }
    key += n;
    for (const char *s = key; (s = strstr(s, ".lora_")) != NULL; s++) {
        at = s; /* the last one */
    }
    if (at == NULL || (at[6] != 'A' && at[6] != 'B') || at[7] != '.') {
        return false;
    }
    tail = strchr(at + 8, '.'); /* an adapter's name between the two? it has no dot */
    if (strcmp(at + 7, ".weight") != 0 && (tail == NULL || strcmp(tail, ".weight") != 0)) {
        return false;
    }
    *which = at[6];
    *name = fl_alloc("module name", (size_t)(at - key) + 1, 1);
    memcpy(*name, key, (size_t)(at - key));
    return true;
}

/* sorts the entries of the file by module */
static fl_err peft_collect(peft_in *in)
{
    for (int i = 0; i < in->st->n; i++) {
        const fl_st_entry *e = &in->st->entry[i];
        char *name = NULL, which;
        int block, kind, *slot;
        peft_found *f;

        if (!peft_key(e->name, &name, &which)) {
            return fl_fail(FL_EDECK,
                "%s: tensor %.200s is not a LoRA factor of a linear layer, and nothing else is "
                "supported",
                in->st->path, e->name);
        }
        if (!peft_module_find(in->m, name, &block, &kind)) {
            fl_err err = fl_fail(FL_EDECK,
                "%s: the module %.200s is not a linear layer of this model", in->st->path, name);

            fl_free(name);
            return err;
        }
        f = &in->found[block * in->nkinds + kind];
        slot = which == 'A' ? &f->a : &f->b;
        if (*slot >= 0 || (f->name && strcmp(f->name, name) != 0)) {
            fl_free(name);
            return fl_fail(
                FL_EDECK, "%s: tensor %.200s is there under two names", in->st->path, e->name);
        }
        *slot = i;
        fl_free(f->name);
        f->name = name;
    }
    return FL_OK;
}

/* the value of the first pattern that matches the module, else the global one; NULL = neither is
 * given */
static fl_err peft_lookup(const peft_in *in, const char *patterns, const char *otherwise,
    const char *module, const json_t **x)
{
    json_t *o = json_object_get(in->config, patterns), *v;
    const char *key;

    *x = json_object_get(in->config, otherwise);
    if (o && !json_is_null(o) && !json_is_object(o)) {
        return fl_fail(FL_EDECK, "%s: %s must be an object", in->name, patterns);
    }
    json_object_foreach(o, key, v)
    {
        peft_pattern *p = peft_pattern_parse(key);
        bool ok = p != NULL, hit = ok && peft_pattern_matches(p, module, &ok);

        peft_pattern_free(&p);
        if (!ok) {
            return fl_fail(FL_EDECK,
                "%s: %s: the regular expression \"%.200s\" is beyond what is read here; write the "
                "full module names",
                in->name, patterns, key);
        }
        if (hit) {
            *x = v;
            return FL_OK;
        }
    }
    return FL_OK;
}

/* r and s of one module, as PEFT computes them */
static fl_err peft_scale(const peft_in *in, peft_found *f)
{
    const json_t *r, *alpha;
    double a;
    bool rslora;

    FL_TRY(peft_lookup(in, "rank_pattern", "r", f->name, &r));
    FL_TRY(peft_lookup(in, "alpha_pattern", "lora_alpha", f->name, &alpha));
    FL_TRY(fl_json_bool(in->config, "use_rslora", in->name, false, &rslora));
    a = alpha ? json_number_value(alpha) : 8;
    if ((r && (!json_is_integer(r) || json_integer_value(r) < 1 ||
                  json_integer_value(r) > PEFT_MOST_R)) ||
        (alpha && !json_is_number(alpha)) || fabs(a) > 1e12) {
        return fl_fail(FL_EDECK,
            "%s: module %.200s: r must be a whole number from 1 to %d, lora_alpha a number",
            in->name, f->name, PEFT_MOST_R);
    }
    f->r = r ? (int)json_integer_value(r) : 8;
    f->scale = rslora ? a / sqrt((double)f->r) : a / f->r;
    return FL_OK;
}

static fl_err peft_shape(
    const peft_in *in, const peft_found *f, int entry, int64_t rows, int64_t cols)
{
    const fl_st_entry *e = &in->st->entry[entry];

    if (e->ndims == 2 && e->dims[0] == rows && e->dims[1] == cols) {
        return FL_OK;
    }
    return fl_fail(FL_ESHAPE,
        "%s: tensor %.200s has the shape [%lld%s%lld], but the model and r = %d in %s make it "
        "[%lld, "
        "%lld]",
        in->st->path, e->name, (long long)(e->ndims > 0 ? e->dims[0] : 0),
        e->ndims == 2 ? ", " : " .. ", (long long)(e->ndims > 0 ? e->dims[e->ndims - 1] : 0), f->r,
        in->name, (long long)rows, (long long)cols);
}

/* keep[i][l]: does pair l act on the rows of site i? */
static void peft_split(peft_found *f, int count, const int *rows)
{
    for (int i = 0, row0 = 0; i < count; row0 += rows[i++]) {
        f->keep[i] = fl_alloc("PEFT pairs", (size_t)f->r, sizeof(bool));
        for (int k = row0; k < row0 + rows[i]; k++) {
            for (int l = 0; l < f->r; l++) {
                f->keep[i][l] |= f->vb[(size_t)k * (size_t)f->r + (size_t)l] != 0;
            }
        }
    }
    for (int l = 0; l < f->r; l++) {
        bool any = false;

        for (int i = 0; i < count; i++) {
            any = any || f->keep[i][l];
        }
        for (int i = 0; i < count && !any; i++) {
            f->keep[i][l] = true;
        }
    }
}

/* reads one module; r [nsites] gets the ranks of its sites */
static fl_err peft_read_module(const peft_in *in, int block, int kind, peft_found *f, int *r)
{
    int site[3], part[3], rows, cols, n;
    const peft_kind *k = peft_kinds(in->m, &n) + kind;
    int count = peft_sites(in->m, block, k, site, &rows, &cols);

    if (f->a < 0 || f->b < 0) {
        return fl_fail(FL_EDECK, "%s: module %.200s has lora_%s but no lora_%s", in->st->path,
            f->name, f->a < 0 ? "B" : "A", f->a < 0 ? "A" : "B");
    }
    FL_TRY(peft_scale(in, f));
    FL_TRY(peft_shape(in, f, f->a, f->r, cols));
    FL_TRY(peft_shape(in, f, f->b, rows, f->r));
    f->va = fl_alloc("PEFT A", (size_t)f->r * (size_t)cols, sizeof *f->va);
    f->vb = fl_alloc("PEFT B", (size_t)rows * (size_t)f->r, sizeof *f->vb);
    FL_TRY(fl_st_read(in->st, f->a, (size_t)f->r * (size_t)cols, f->va));
    FL_TRY(fl_st_read(in->st, f->b, (size_t)rows * (size_t)f->r, f->vb));
    for (int i = 0; i < count; i++) {
        part[i] = in->m->site[site[i]].m;
    }
    peft_split(f, count, part);
    for (int i = 0; i < count; i++) {
        for (int l = 0; l < f->r; l++) {
            r[site[i]] += f->keep[i][l];
        }
    }
    return FL_OK;
}

/* the kept pairs of one site; s goes into B */
static void peft_fill(const peft_found *f, const bool *keep, int row0, fl_mat a, fl_mat b)
{
    for (int l = 0, to = 0; l < f->r; l++) {
        if (!keep[l]) {
            continue;
        }
        memcpy(a.x + (size_t)to * (size_t)a.cols, f->va + (size_t)l * (size_t)a.cols,
            (size_t)a.cols * sizeof *a.x);
        for (int i = 0; i < b.rows; i++) {
            double x = (double)f->vb[(size_t)(row0 + i) * (size_t)f->r + (size_t)l];

            b.x[(size_t)i * (size_t)b.cols + (size_t)to] = (fl_real)(f->scale * x);
        }
        to++;
    }
}

static fl_err peft_build(const peft_in *in, fl_spaces *reg, const int *r, fl_adapter **ad)
{
    int slot;

    *ad = fl_adapter_create(fl_space_lora(reg, in->m->nsites, in->m->site, r, 0, false));
    for (int f = 0; f < in->m->nlayers * in->nkinds; f++) {
        int site[3], rows, cols, n, row0 = 0, block = f / in->nkinds;
        const peft_kind *k = peft_kinds(in->m, &n) + f % in->nkinds;
        int count = in->found[f].name ? peft_sites(in->m, block, k, site, &rows, &cols) : 0;

        for (int i = 0; i < count; i++) {
            if (r[site[i]] > 0) {
                peft_fill(&in->found[f], in->found[f].keep[i], row0, fl_at(*ad, site[i], FL_A),
                    fl_at(*ad, site[i], FL_B));
            }
            row0 += in->m->site[site[i]].m;
        }
    }
    if (!fl_adapter_finite(*ad, &slot)) {
        fl_err err = fl_fail(FL_ENUM, "%s: lora_alpha makes numbers beyond float at %s", in->name,
            (*ad)->space->slot[slot].name);

        fl_adapter_destroy(ad);
        return err;
    }
    return FL_OK;
}

static fl_err peft_read(peft_in *in, int *r)
{
    bool any = false;

    FL_TRY(peft_config_check(in->config, in->name));
    FL_TRY(peft_collect(in));
    for (int f = 0; f < in->m->nlayers * in->nkinds; f++) {
        if (in->found[f].name) {
            any = true;
            FL_TRY(peft_read_module(in, f / in->nkinds, f % in->nkinds, &in->found[f], r));
        }
    }
    return any ? FL_OK : fl_fail(FL_EDECK, "%s: holds no LoRA factor", in->st->path);
}

fl_err fl_peft_parse(const char *json, size_t n, const char *name, const fl_st *st,
    const fl_model *m, fl_spaces *reg, fl_adapter **ad)
{
    peft_in in = {.name = name, .st = st, .m = m};
    size_t nfound;
    json_t *config;
    int *r;
    fl_err err;

    *ad = NULL;
    FL_TRY(fl_json_object(json, n, name, &config));
    (void)peft_kinds(m, &in.nkinds);
    nfound = (size_t)m->nlayers * (size_t)in.nkinds;
    in.config = config;
    in.found = fl_alloc("PEFT modules", nfound, sizeof *in.found);
    r = fl_alloc("PEFT ranks", (size_t)m->nsites, sizeof *r);
    for (size_t i = 0; i < nfound; i++) {
        in.found[i].a = in.found[i].b = -1;
    }
    err = peft_read(&in, r);
    if (err == FL_OK) {
        err = peft_build(&in, reg, r, ad);
    }
    for (size_t i = 0; i < nfound; i++) {
        fl_free(in.found[i].name);
        fl_free(in.found[i].va);
        fl_free(in.found[i].vb);
        for (int k = 0; k < 3; k++) {
            fl_free(in.found[i].keep[k]);
        }
    }
    fl_free(r);
    fl_free(in.found);
    json_decref(config);
    return err;
}
