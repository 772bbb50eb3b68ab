/* peft_save - an adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors.
 * A module's scale in PEFT is alpha / r (rsLoRA: alpha / sqrt(r)), so alpha is chosen per module to
 * give ours. GPT-2's c_attn takes q, k, v together: with A = [A_q; A_k; A_v] and B = diag(B_q, B_k,
 * B_v), r = r_q + r_k + r_v, the product is the three products stacked; where the sites' scales
 * differ the quotient goes into B. */
#include "peft.h"
#include <math.h>
#include <string.h>

typedef struct peft_module {
    char name[PEFT_NAME], key_a[PEFT_NAME + 40], key_b[PEFT_NAME + 40];
    int kind, rows, cols, r;
    double alpha;
    fl_real *a, *b; /* owned [r][cols], [rows][r] */
} peft_module;

static double peft_alpha(double scale, int r, bool rslora)
{
    double alpha = rslora ? scale * sqrt((double)r) : scale * r, whole = rint(alpha);

    /* s was alpha / r once: take the rounding back */
    return fabs(alpha - whole) <= 1e-12 * fabs(alpha) ? whole : alpha;
}

/* copies the factors of one site into rows row0.. of B and pairs pair0.. */
static void peft_place(
    const fl_adapter *ad, int site, peft_module *mod, double scale, int row0, int pair0)
{
    fl_mat a = fl_at(ad, site, FL_A), b = fl_at(ad, site, FL_B);
    double fold = ad->space->scale[site] / scale;

    memcpy(mod->a + (size_t)pair0 * (size_t)mod->cols, a.x,
        (size_t)a.rows * (size_t)a.cols * sizeof *a.x);
    for (int i = 0; i < b.rows; i++) {
        fl_real *to = mod->b + (size_t)(row0 + i) * (size_t)mod->r + pair0;

        for (int l = 0; l < b.cols; l++) {
            double x = (double)b.x[(size_t)i * (size_t)b.cols + (size_t)l];

            to[l] = (fl_real)(fold == 1 ? x : fold * x);
        }
    }
}

/* false: no site of the module is adapted */
static bool peft_module_make(
    const fl_model *m, const fl_adapter *ad, int block, int kind, bool rslora, peft_module *mod)
{
    int site[3], count, row0 = 0, pair0 = 0, nkinds;
    const peft_kind *k = peft_kinds(m, &nkinds) + kind;
    double scale = 0;

    *mod = (peft_module){.kind = kind};
    count = peft_sites(m, block, k, site, &mod->rows, &mod->cols);
    for (int i = 0; i < count; i++) {
        int r = ad->space->r[site[i]];

        scale = mod->r == 0 && r > 0 ? ad->space->scale[site[i]] : scale;
        mod->r += r;
    }
    if (mod->r == 0) {
        return false;
    }
    peft_module_name(m, block, k, mod->name);
    snprintf(mod->key_a, sizeof mod->key_a, PEFT_PREFIX "%s.lora_A.weight", mod->name);
    snprintf(mod->key_b, sizeof mod->key_b, PEFT_PREFIX "%s.lora_B.weight", mod->name);
    mod->alpha = peft_alpha(scale, mod->r, rslora);
    mod->a = fl_alloc("PEFT A", (size_t)mod->r * (size_t)mod->cols, sizeof *mod->a);
    mod->b = fl_alloc("PEFT B", (size_t)mod->rows * (size_t)mod->r, sizeof *mod->b);
    for (int i = 0; i < count; i++) {
        if (ad->space->r[site[i]] > 0) {
            peft_place(ad, site[i], mod, scale, row0, pair0);
        }
        row0 += m->site[site[i]].m;
        pair0 += ad->space->r[site[i]];
    }
    return true;
}

static json_t *peft_number(double x)
{
    return x == rint(x) && fabs(x) < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

/* the commonest (r, alpha); the first of equals */
static const peft_module *peft_commonest(int n, const peft_module *mod)
{
    int best = 0, most = 0;

    for (int i = 0; i < n; i++) {
        int same = 0;

        for (int j = 0; j < n; j++) {
            same += mod[j].r == mod[i].r && mod[j].alpha == mod[i].alpha;
        }
        if (same > most) {
            most = same;
            best = i;
        }
    }
    return &mod[best];
}

/* ^transformer\.h\.3\.attn\.c_attn: anchored and full, so it names one module and the order of keys
 * is indifferent */
static void peft_pattern_key(const char *name, fl_text *t)
{
    fl_text_add(t, "^");
    for (; *name; name++) {
        fl_text_add(t, "%s%c", *name == '.' ? "\\" : "", *name);
    }
}

/* suffixes where every block has the module, full names elsewhere: PEFT adapts what matches, no
 * more and no less */
static json_t *peft_targets(const fl_model *m, int n, const peft_module *mod)
{
    json_t *list = json_array();
    int nkinds;
    const peft_kind *kinds = peft_kinds(m, &nkinds);

    for (int k = 0; k < nkinds; k++) {
        int here = 0;

        for (int i = 0; i < n; i++) {
            here += mod[i].kind == k;
        }
        if (here == m->nlayers) {
            json_array_append_new(list, json_string(kinds[k].entry));
        }
        for (int i = 0; i < n && here < m->nlayers; i++) {
            if (mod[i].kind == k) {
                json_array_append_new(list, json_string(mod[i].name));
            }
        }
    }
    return list;
}

static json_t *peft_config(
    const fl_model *m, int n, const peft_module *mod, bool rslora, const char *base_name)
{
    const peft_module *usual = peft_commonest(n, mod);
    json_t *ranks = json_object(), *alphas = json_object();
    json_t *o, *base;

    for (int i = 0; i < n; i++) {
        fl_text key = {0};

        if (mod[i].r != usual->r || mod[i].alpha != usual->alpha) {
            peft_pattern_key(mod[i].name, &key);
            json_object_set_new(ranks, key.s, json_integer(mod[i].r));
            json_object_set_new(alphas, key.s, peft_number(mod[i].alpha));
            fl_text_free(&key);
        }
    }
    o = json_pack("{s:o, s:o, s:o, s:o, s:i, s:b, s:b, s:b, s:b, s:b, s:b, s:f, s:s, s:s, s:s}",
        "target_modules", peft_targets(m, n, mod), "rank_pattern", ranks, "alpha_pattern", alphas,
        "lora_alpha", peft_number(usual->alpha), "r", usual->r, "use_rslora", (int)rslora,
        "fan_in_fan_out", m->family == FL_FAMILY_GPT2, "inference_mode", 1, "init_lora_weights", 1,
        "lora_bias", 0, "use_dora", 0, "lora_dropout", 0.0, "bias", "none", "peft_type", "LORA",
        "task_type", "CAUSAL_LM");
    FL_REQUIRE(o != NULL);
    base = base_name ? json_string(base_name) : NULL; /* NULL too if it is not UTF-8 */
    json_object_set_new(o, "base_model_name_or_path", base ? base : json_null());
    for (int i = 0; i < 6; i++) {
        static const char *const null[6] = {"auto_mapping", "exclude_modules", "layers_pattern",
            "layers_to_transform", "modules_to_save", "revision"};

        json_object_set_new(o, null[i], json_null());
    }
    return o;
}

static fl_err peft_write(const char *dir, int n, const peft_module *mod, const json_t *config)
{
    char *weights = fl_path_join(dir, "adapter_model.safetensors");
    char *json = fl_path_join(dir, "adapter_config.json");
    fl_st_out *out = fl_alloc("PEFT tensors", 2 * (size_t)n, sizeof *out);
    fl_err err = fl_make_dirs(dir);

    for (int i = 0; i < n; i++) {
        out[2 * i] = (fl_st_out){mod[i].key_a, 2, {mod[i].r, mod[i].cols}, mod[i].a};
        out[2 * i + 1] = (fl_st_out){mod[i].key_b, 2, {mod[i].rows, mod[i].r}, mod[i].b};
    }
    if (err == FL_OK) {
        err = fl_st_write(weights, 2 * n, out, "pt");
    }
    if (err == FL_OK) { /* last: what makes the folder an adapter */
        err = fl_json_write(json, config);
    }
    fl_free(out);
    fl_free(json);
    fl_free(weights);
    return err;
}

fl_err fl_peft_save(const char *dir, const fl_model *m, const fl_adapter *ad, double alpha,
    bool rslora, const char *base_name)
{
    int nkinds, n = 0;
    peft_module *mod;
    fl_err err;

    FL_REQUIRE(fl_space_is_valid(ad->space) && ad->at == NULL && ad->space->nsites == m->nsites);
    (void)peft_kinds(m, &nkinds);
    rslora = rslora && alpha > 0; /* a stack has s = 1: alpha = r without rsLoRA */
    mod = fl_alloc("PEFT modules", (size_t)m->nlayers * (size_t)nkinds, sizeof *mod);
    for (int i = 0; i < m->nlayers; i++) {
        for (int k = 0; k < nkinds; k++) {
            n += peft_module_make(m, ad, i, k, rslora, &mod[n]);
        }
    }
    if (n == 0) {
        err = fl_fail(FL_ESHAPE, "%s: the adapter has no matrix in it: nothing to write", dir);
    } else {
        json_t *config = peft_config(m, n, mod, rslora, base_name);

        err = peft_write(dir, n, mod, config);
        json_decref(config);
    }
    for (int i = 0; i < n; i++) {
        fl_free(mod[i].a);
        fl_free(mod[i].b);
    }
    fl_free(mod);
    return err;
}
