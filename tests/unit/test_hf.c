/* Hugging Face folders and PEFT adapters: what is written comes back bit for bit; what the engine
 * does not compute is refused by name. That transformers and PEFT read the same files is shown by
 * tests/interop/check_hf.py. */
#include "fedlora/io.h"
#include "harness.h"
#include <jansson.h>
#include <math.h>
#include <string.h>

static char folder[256];

static int folder_make(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(folder, sizeof folder, "%s/fedlora-hf-XXXXXX", tmp ? tmp : P_tmpdir);
    return mkdtemp(folder) == NULL;
}

static const char *in_folder(const char *name)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int folder_drop(void **state)
{
    static const char *const names[] = {"config.json", "model.safetensors",
        "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
        "sub/adapter_config.json", "sub/adapter_model.safetensors", "sub"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        remove(in_folder(names[i]));
    }
    return rmdir(folder);
}

static void says(const char *what)
{
    if (strstr(fl_error_text(), what) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", fl_error_text(), what);
    }
    fl_error_clear();
}

/* GPT-2: inner width not 4 d; Llama: grouped heads wider than d / heads; tied or not */
static fl_model tiny(int family, bool tied)
{
    bool llama = family == FL_FAMILY_LLAMA;
    fl_model m = {.family = family,
        .nlayers = 2,
        .nd = 12,
        .nheads = 3,
        .nkv = llama ? 1 : 3,
        .hd = llama ? 6 : 4,
        .nff = 20,
        .vocab = 17,
        .nctx = 9,
        .rms = llama,
        .rotary = llama,
        .gated = llama,
        .bias = !llama,
        .tied = tied,
        .eps = 1e-5,
        .rope_theta = llama ? 1234.5 : 0,
        .init_range = 0.02};

    assert_int_equal(fl_model_complete(&m), FL_OK);
    return m;
}

static fl_real *random_base(const fl_model *m, const fl_real **w)
{
    fl_real *base = fl_alloc("base", fl_model_bytes(m), 1);

    for (int i = 0; i < m->ntensors; i++) {
        const fl_tensor *t = &m->tensor[i];

        w[i] = base + t->at;
        for (size_t k = 0; k < (size_t)t->rows * (size_t)t->cols; k++) {
            base[t->at + k] = (fl_real)fl_rng_normal(3, FL_RNG_TEST, i, 0, k);
        }
    }
    return base;
}

static void test_model_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        fl_model m = tiny(i / 2, i % 2), back;
        const fl_real *w[64];
        fl_real *base = random_base(&m, w), *got = fl_alloc("got", fl_model_bytes(&m), 1);

        memset(got, 7, fl_model_bytes(&m));
        assert_int_equal(fl_hf_save(folder, &m, w), FL_OK);
        assert_int_equal(fl_hf_config(folder, &back), FL_OK);
        assert_int_equal(back.family, m.family);
        assert_int_equal(back.nctx, m.nctx);
        assert_int_equal(back.hd, m.hd);
        assert_int_equal(back.nkv, m.nkv);
        assert_int_equal(back.ntensors, m.ntensors);
        assert_int_equal(back.nweights, m.nweights);
        assert_true(back.tied == m.tied && back.eps == m.eps && back.init_range == m.init_range);
        assert_true(!m.rotary || back.rope_theta == m.rope_theta);
        assert_int_equal(fl_hf_load(folder, &back, got), FL_OK);
        assert_memory_equal(got, base, fl_model_bytes(&m)); /* gaps are zero in both */
        fl_model_free(&back);
        fl_model_free(&m);
        fl_free(got);
        fl_free(base);
    }
}

/* GPT-2's Conv1D is [in, out] with columns q, k, v; Llama's parts are separate: looked up in the
 * file itself */
static void test_names_and_orientation_in_the_file(void **state)
{
    fl_model g = tiny(FL_FAMILY_GPT2, true), l = tiny(FL_FAMILY_LLAMA, false);
    const fl_real *w[64];
    fl_real *base = random_base(&g, w), x[36 * 12];
    fl_st st;
    int e, qkv = 4; /* embed, pos, norm1, norm1_bias, qkv */

    (void)state;
    assert_string_equal(g.tensor[qkv].name, "0.qkv");
    assert_int_equal(fl_hf_save(folder, &g, w), FL_OK);
    assert_int_equal(fl_st_open(in_folder("model.safetensors"), &st), FL_OK);
    assert_int_equal(st.n, 2 * 12 + 4);
    e = fl_st_find(&st, "transformer.h.0.attn.c_attn.weight");
    assert_true(e >= 0);
    assert_int_equal(st.entry[e].dims[0], 12);
    assert_int_equal(st.entry[e].dims[1], 36);
    assert_int_equal(fl_st_read(&st, e, FL_COUNT(x), x), FL_OK);
    for (int i = 0; i < 36; i++) {
        for (int j = 0; j < 12; j++) {
            assert_true(x[j * 36 + i] == w[qkv][i * 12 + j]);
        }
    }
    assert_int_equal(fl_st_find(&st, "lm_head.weight"), -1);
    fl_st_close(&st);
    fl_free(base);

    base = random_base(&l, w);
    qkv = 2; /* embed, norm1, qkv */
    assert_string_equal(l.tensor[qkv].name, "0.qkv");
    assert_int_equal(fl_hf_save(folder, &l, w), FL_OK);
    assert_int_equal(fl_st_open(in_folder("model.safetensors"), &st), FL_OK);
    assert_int_equal(st.n, 2 * 9 + 3);
    e = fl_st_find(
        &st, "model.layers.0.self_attn.v_proj.weight"); /* [6, 12], behind q [18] and k [6] */
    assert_int_equal(fl_st_read(&st, e, 72, x), FL_OK);
    assert_memory_equal(x, w[qkv] + (18 + 6) * 12, 72 * sizeof *x);
    e = fl_st_find(&st, "model.layers.0.mlp.up_proj.weight"); /* behind gate [20] */
    assert_int_equal(fl_st_read(&st, e, 240, x), FL_OK);
    assert_memory_equal(x, w[5] + 20 * 12, 240 * sizeof *x);
    assert_true(fl_st_find(&st, "lm_head.weight") >= 0);
    fl_st_close(&st);
    fl_free(base);
    fl_model_free(&g);
    fl_model_free(&l);
}

/* copies model.safetensors with one tensor left out, or names cut by a prefix, or a shape changed
 */
static void rewrite(const char *leave_out, const char *cut, const char *reshape)
{
    fl_st st;
    fl_st_out out[64];
    fl_real *x[64];
    int n = 0;

    assert_int_equal(fl_st_open(in_folder("model.safetensors"), &st), FL_OK);
    for (int i = 0; i < st.n; i++) {
        const fl_st_entry *e = &st.entry[i];
        size_t count = (e->end - e->begin) / 4;
        const char *name = e->name;

        x[i] = fl_alloc("copy", count, sizeof **x);
        assert_int_equal(fl_st_read(&st, i, count, x[i]), FL_OK);
        if (leave_out && strcmp(name, leave_out) == 0) {
            continue;
        }
        name += cut && strncmp(name, cut, strlen(cut)) == 0 ? strlen(cut) : 0;
        out[n] = (fl_st_out){name, e->ndims, {e->dims[0], e->dims[1]}, x[i]};
        if (reshape && strcmp(name, reshape) == 0) {
            out[n].dims[0] = e->dims[1];
            out[n].dims[1] = e->dims[0];
        }
        n++;
    }
    assert_int_equal(fl_st_write(in_folder("model.safetensors"), n, out, "pt"), FL_OK);
    for (int i = 0; i < st.n; i++) {
        fl_free(x[i]);
    }
    fl_st_close(&st);
}

static void test_foreign_weights(void **state)
{
    static const char *const prefix[2] = {"transformer.", "model."};

    (void)state;
    for (int family = 0; family < 2; family++) {
        fl_model m = tiny(family, false);
        const fl_real *w[64];
        fl_real *base = random_base(&m, w), *got = fl_alloc("got", fl_model_bytes(&m), 1);

        fl_error_clear();
        assert_int_equal(fl_hf_save(folder, &m, w), FL_OK);
        rewrite(NULL, prefix[family], NULL); /* as published: without the prefix */
        assert_int_equal(fl_hf_load(folder, &m, got), FL_OK);
        assert_memory_equal(got, base, fl_model_bytes(&m));

        assert_int_equal(fl_hf_save(folder, &m, w), FL_OK);
        rewrite("lm_head.weight", NULL, NULL);
        assert_int_equal(fl_hf_load(folder, &m, got), FL_EFILE);
        says("lm_head.weight");

        assert_int_equal(fl_hf_save(folder, &m, w), FL_OK);
        rewrite(NULL, NULL,
            family ? "model.layers.1.mlp.down_proj.weight" : "transformer.h.1.mlp.c_proj.weight");
        assert_int_equal(fl_hf_load(folder, &m, got), FL_ESHAPE);
        says(family ? "[20, 12], but config.json makes it [12, 20]"
                    : "[12, 20], but config.json makes it [20, 12]");

        remove(in_folder("model.safetensors"));
        assert_int_equal(fl_hf_load(folder, &m, got), FL_EFILE);
        says("has no model.safetensors");
        assert_int_equal(fl_file_write(in_folder("model.safetensors.index.json"), "{}", 2), FL_OK);
        assert_int_equal(fl_hf_load(folder, &m, got), FL_EFILE);
        says("sharded");
        remove(in_folder("model.safetensors.index.json"));
        fl_model_free(&m);
        fl_free(got);
        fl_free(base);
    }
}

static void test_models_without_a_class_are_not_saved(void **state)
{
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    const fl_real *w[64];
    fl_real *base = random_base(&m, w);

    (void)state;
    fl_error_clear();
    m.rms = false;
    assert_int_equal(fl_hf_save(folder, &m, w), FL_EDECK);
    says("no Hugging Face class");
    fl_model_free(&m);
    fl_free(base);
}

static fl_err config(const char *json, fl_model *m)
{
    fl_error_clear();
    return fl_hf_config_parse(json, strlen(json), "config.json", m);
}

static void test_configs_of_others(void **state)
{
    fl_model m;

    (void)state;
    /* defaults of GPT2Config: the 124M model, 148 tensors, 124,439,808 parameters */
    assert_int_equal(config("{\"model_type\":\"gpt2\"}", &m), FL_OK);
    assert_int_equal(m.nweights, 124439808);
    assert_int_equal(m.ntensors, 148);
    assert_int_equal(m.nff, 3072);
    assert_true(m.tied && m.bias && !m.rms && !m.rotary && !m.gated && m.eps == 1e-5);
    fl_model_free(&m);
    /* aliases */
    assert_int_equal(
        config("{\"model_type\":\"gpt2\",\"hidden_size\":8,\"num_attention_heads\":2,"
               "\"num_hidden_layers\":3,\"max_position_embeddings\":5,\"n_inner\":null,"
               "\"vocab_size\":11}",
            &m),
        FL_OK);
    assert_int_equal(m.nd, 8);
    assert_int_equal(m.nlayers, 3);
    assert_int_equal(m.nctx, 5);
    assert_int_equal(m.nff, 32);
    fl_model_free(&m);
    /* defaults of LlamaConfig: Llama-2-7B but for the context; our 291 tensors are 2 + 1 fewer per
     * block */
    assert_int_equal(config("{\"model_type\":\"llama\"}", &m), FL_OK);
    assert_int_equal(m.nweights, 6738415616);
    assert_int_equal(m.ntensors, 291 - 3 * 32);
    assert_true(!m.tied && !m.bias && m.rms && m.rotary && m.gated);
    assert_true(m.eps == 1e-6 && m.rope_theta == 10000 && m.nkv == 32 && m.hd == 128);
    fl_model_free(&m);
    /* both spellings of the rotary base */
    assert_int_equal(
        config("{\"model_type\":\"llama\",\"rope_theta\":500000.0,\"rope_scaling\":null}", &m),
        FL_OK);
    assert_true(m.rope_theta == 500000);
    fl_model_free(&m);
    assert_int_equal(
        config("{\"model_type\":\"llama\",\"rope_parameters\":{\"rope_type\":\"default\","
               "\"rope_theta\":500000},\"eos_token_id\":[1,2]}",
            &m),
        FL_OK);
    assert_true(m.rope_theta == 500000);
    fl_model_free(&m);
}

static void test_refused_configs(void **state)
{
#define G "{\"model_type\":\"gpt2\","
#define L "{\"model_type\":\"llama\","
    static const char *const bad[][2] = {
        {"", "not valid JSON"},
        {"[]", "object was expected"},
        {"{\"a\":1,\"a\":2}", "not valid JSON: duplicate"},
        {"{}", "model_type (none)"},
        {"{\"model_type\":3}", "model_type must be a string"},
        {"{\"model_type\":\"mistral\"}", "mistral"},
        {G "\"activation_function\":\"relu\"}", "relu"},
        {G "\"scale_attn_by_inverse_layer_idx\":true}", "scale_attn_by_inverse_layer_idx"},
        {G "\"scale_attn_weights\":false}", "scale_attn_weights"},
        {G "\"add_cross_attention\":true}", "add_cross_attention"},
        {G "\"n_head\":5}", "cannot be"},
        {G "\"n_layer\":0}", "n_layer must be a whole number"},
        {G "\"n_layer\":2000000000}", "n_layer must be a whole number"},
        {G "\"n_embd\":1e3}", "n_embd must be a whole number"},
        {G "\"n_embd\":4294967296}", "n_embd must be a whole number"},
        {G "\"layer_norm_epsilon\":-1}", "layer_norm_epsilon must be"},
        {L "\"hidden_act\":\"gelu\"}", "gelu"},
        {L "\"attention_bias\":true}", "attention_bias"},
        {L "\"mlp_bias\":true}", "mlp_bias"},
        {L "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}", "linear"},
        {L "\"rope_parameters\":{\"rope_type\":\"llama3\"}}", "llama3"},
        {L "\"rope_parameters\":[]}", "rope_parameters must be an object"},
        {L "\"rope_parameters\":{\"partial_rotary_factor\":0.5}}", "partial_rotary_factor"},
        {L "\"num_key_value_heads\":5}", "cannot be"},
        {L "\"quantization_config\":{\"bits\":4}}", "quantization_config"},
        {L "\"tie_word_embeddings\":1}", "tie_word_embeddings must be true or false"},
    };
    fl_model m;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        assert_int_equal(config(bad[i][0], &m), FL_EDECK);
        assert_null(m.tensor);
        says(bad[i][1]);
    }
}

/* ---- adapters ---- */

static fl_adapter *random_adapter(
    fl_spaces *reg, const fl_model *m, const int *r, double alpha, bool rslora)
{
    fl_adapter *ad = fl_adapter_create(fl_space_lora(reg, m->nsites, m->site, r, alpha, rslora));

    for (size_t i = 0; i < ad->space->n; i++) {
        ad->v[i] = (fl_real)fl_rng_normal(9, FL_RNG_TEST, 0, 0, i);
    }
    return ad;
}

/* largest |s B A - s' B' A'| over all sites, relative to the largest |s B A| */
static double difference(const fl_model *m, const fl_adapter *x, const fl_adapter *y)
{
    double *z = fl_alloc("product", 1 << 16, sizeof *z), top = 0, gap = 0;

    for (int j = 0; j < m->nsites; j++) {
        int n = m->site[j].m * m->site[j].n;

        fl_product(x, j, 1, 0, z);
        for (int i = 0; i < n; i++) {
            top = fmax(top, fabs(z[i]));
        }
        fl_product(y, j, -1, 1, z);
        for (int i = 0; i < n; i++) {
            gap = fmax(gap, fabs(z[i]));
        }
    }
    fl_free(z);
    assert_true(top > 0);
    return gap / top;
}

static void adapter_round_trip(int family, double alpha, bool rslora, const int *r, double limit)
{
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(family, true);
    fl_adapter *ad = random_adapter(reg, &m, r, alpha, rslora), *back;
    double gap;

    assert_int_equal(fl_peft_save(folder, &m, ad, alpha, rslora, "base"), FL_OK);
    assert_int_equal(fl_peft_load(folder, &m, reg, &back), FL_OK);
    for (int j = 0; j < m.nsites; j++) {
        assert_int_equal(back->space->r[j], r[j]);
        assert_true(r[j] == 0 || back->space->scale[j] == 1);
    }
    gap = difference(&m, ad, back);
    if (gap > limit) {
        fail_msg("family %d alpha %g: %g > %g", family, alpha, gap, limit);
    }
    fl_adapter_destroy(&back);
    fl_adapter_destroy(&ad);
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

static void test_adapter_round_trips(void **state)
{
    /* sites of a block: q k v o up down; q k v o gate up down */
    static const int qv[12] = {4, 0, 4, 0, 0, 0, 4, 0, 4, 0, 0, 0};
    static const int mixed[12] = {2, 0, 4, 3, 1, 0, 1, 8, 0, 0, 2, 5};
    static const int holes[14] = {0, 0, 4, 0, 0, 0, 0, 1, 0, 2, 3, 4, 5, 6};

    (void)state;
    /* s a power of two (or 1): the product must come back exactly; double to float rounding
     * otherwise */
    adapter_round_trip(FL_FAMILY_GPT2, 16, false, qv, 0);
    adapter_round_trip(FL_FAMILY_GPT2, -1, false, mixed, 0);
    adapter_round_trip(FL_FAMILY_GPT2, -1, true, mixed, 0);
    adapter_round_trip(FL_FAMILY_GPT2, 16, false, mixed, 1e-6);
    adapter_round_trip(FL_FAMILY_GPT2, 5, true, mixed, 1e-6);
    adapter_round_trip(FL_FAMILY_LLAMA, -1, false, holes, 0);
    adapter_round_trip(FL_FAMILY_LLAMA, 7, false, holes, 1e-6);
    adapter_round_trip(FL_FAMILY_LLAMA, 7, true, holes, 1e-6);
}

/* r, alpha, rslora of a module as PEFT would read them: the plain config of the commonest case has
 * empty patterns */
static void test_config_of_a_plain_adapter(void **state)
{
    static const int qv[14] = {4, 0, 4, 0, 0, 0, 0, 4, 0, 4, 0, 0, 0, 0};
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    fl_adapter *ad = random_adapter(reg, &m, qv, 16, false);
    char *text;
    size_t n;
    json_t *o, *targets;

    (void)state;
    assert_int_equal(fl_peft_save(folder, &m, ad, 16, false, "models/tiny"), FL_OK);
    assert_int_equal(fl_file_read(in_folder("adapter_config.json"), &text, &n), FL_OK);
    o = json_loadb(text, n, 0, NULL);
    assert_non_null(o);
    assert_int_equal(json_integer_value(json_object_get(o, "r")), 4);
    assert_int_equal(json_integer_value(json_object_get(o, "lora_alpha")), 16);
    assert_int_equal(json_object_size(json_object_get(o, "rank_pattern")), 0);
    assert_int_equal(json_object_size(json_object_get(o, "alpha_pattern")), 0);
    assert_string_equal(
        json_string_value(json_object_get(o, "base_model_name_or_path")), "models/tiny");
    targets = json_object_get(o, "target_modules");
    assert_int_equal(json_array_size(targets), 2);
    assert_string_equal(json_string_value(json_array_get(targets, 0)), "q_proj");
    assert_string_equal(json_string_value(json_array_get(targets, 1)), "v_proj");
    json_decref(o);
    fl_free(text);
    fl_adapter_destroy(&ad);
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

static void test_untrained_and_empty_adapters(void **state)
{
    static const int qv[12] = {4, 0, 4, 0, 0, 0, 4, 0, 4, 0, 0, 0}, none[12] = {0};
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_GPT2, true);
    fl_adapter *ad = fl_adapter_create(fl_space_lora(reg, m.nsites, m.site, qv, 16, false)), *back;

    (void)state;
    fl_init_site(1, 0, FL_INIT_KAIMING, 0, 0, ad); /* B = 0: nothing says whose the pairs are */
    assert_int_equal(fl_peft_save(folder, &m, ad, 16, false, "base"), FL_OK);
    assert_int_equal(fl_peft_load(folder, &m, reg, &back), FL_OK);
    assert_int_equal(back->space->r[0], 8);
    assert_int_equal(back->space->r[1], 8);
    assert_memory_equal(fl_at(back, 0, FL_A).x, fl_at(ad, 0, FL_A).x, 4 * 12 * sizeof(fl_real));
    assert_true(fl_dot(back, back, 0, FL_PRODUCT) == 0);
    fl_adapter_destroy(&back);
    fl_adapter_destroy(&ad);
    ad = fl_adapter_create(fl_space_lora(reg, m.nsites, m.site, none, 16, false));
    fl_error_clear();
    assert_int_equal(fl_peft_save(folder, &m, ad, 16, false, "base"), FL_ESHAPE);
    says("nothing to write");
    fl_adapter_destroy(&ad);
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

#define KEY(module, part) "base_model.model." module ".lora_" part ".weight"
static const fl_real ones[1024] = {[0] = 1, [1] = 2, [5] = -3};

/* one module of the tiny Llama, o_proj of block 1 (m 12, n 18), with r = 2, from memory */
static fl_err from_memory(const char *json, int nout, const fl_st_out *out, fl_adapter **ad,
    fl_spaces *reg, const fl_model *m)
{
    fl_st st;
    fl_err err;

    fl_error_clear();
    assert_int_equal(fl_st_write(in_folder("adapter_model.safetensors"), nout, out, "pt"), FL_OK);
    assert_int_equal(fl_st_open(in_folder("adapter_model.safetensors"), &st), FL_OK);
    err = fl_peft_parse(json, strlen(json), "adapter_config.json", &st, m, reg, ad);
    fl_st_close(&st);
    return err;
}

#define O_PROJ "model.layers.1.self_attn.o_proj"
static const fl_st_out plain[2] = {
    {KEY(O_PROJ, "A"), 2, {2, 18}, ones}, {KEY(O_PROJ, "B"), 2, {12, 2}, ones}};

static void test_ranks_and_scales_by_pattern(void **state)
{
    static const struct {
        const char *json;
        double scale;
    } good[] = {
        {"{\"peft_type\":\"LORA\",\"r\":2}", 4}, /* lora_alpha is 8 when left out */
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}", 2},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"use_rslora\":true}",
            2.8284271247461903},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"o_proj\":2},\"alpha_pattern\":{\"o_"
         "proj\":1}}",
            0.5},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"proj\":3,\"o_proj\":2,\"o_.*\":7}}",
            4},
        {"{\"peft_type\":\"LORA\",\"rank_pattern\":{\"^o_proj\":9,\"^model\\\\.layers\\\\.1\\\\."
         "self_attn\\\\.o_proj\":2}}",
            4},
        {"{\"peft_type\":\"LORA\",\"rank_pattern\":{\"layers\\\\.\\\\d+\\\\.self_attn\\\\.[m-p]_pr?"
         "oj$\":2}}",
            4},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"rank_pattern\":{\"layers.0.*\":5,\"ayers.1.*\":5}}", 4},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"bias\":\"none\",\"use_dora\":false,\"init_lora_"
         "weights\":"
         "\"gaussian\",\"modules_to_save\":[\"classifier\"],\"layer_replication\":null,\"new_key\":"
         "3}",
            4},
    };
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    int site = fl_model_site_named(&m, 1, "o");
    fl_adapter *ad;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(good); i++) {
        fl_err err = from_memory(good[i].json, 2, plain, &ad, reg, &m);

        if (err != FL_OK) {
            fail_msg("%s: %s", good[i].json, fl_error_text());
        }
        for (int j = 0; j < m.nsites; j++) {
            assert_int_equal(ad->space->r[j], j == site ? 2 : 0);
        }
        assert_true(fabs((double)fl_at(ad, site, FL_B).x[1] - 2 * good[i].scale) < 1e-6);
        assert_true(fl_at(ad, site, FL_A).x[1] == 2);
        fl_adapter_destroy(&ad);
    }
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

static void test_refused_adapters(void **state)
{
#define LORA "{\"peft_type\":\"LORA\",\"r\":2"
    static const char *const bad[][2] = {
        {"{", "not valid JSON"},
        {"{\"r\":2}", "peft_type (none)"},
        {"{\"peft_type\":\"IA3\"}", "IA3"},
        {LORA ",\"use_dora\":true}", "use_dora"},
        {LORA ",\"use_qalora\":true}", "use_qalora"},
        {LORA ",\"lora_bias\":true}", "lora_bias"},
        {LORA ",\"bias\":\"all\"}", "bias all"},
        {LORA ",\"target_parameters\":[\"x\"]}", "target_parameters"},
        {LORA ",\"layer_replication\":[[0,1]]}", "layer_replication"},
        {LORA ",\"init_lora_weights\":\"pissa_niter_4\"}", "pissa_niter_4"},
        {LORA ",\"rank_pattern\":{\"(o|q)_proj\":2}}", "beyond what is read"},
        {LORA ",\"rank_pattern\":{\"o_proj{1}\":2}}", "beyond what is read"},
        {LORA ",\"rank_pattern\":[]}", "rank_pattern must be an object"},
        {LORA ",\"rank_pattern\":{\"o_proj\":\"2\"}}", "whole number"},
        {LORA ",\"lora_alpha\":\"8\"}", "lora_alpha a number"},
        {LORA ",\"lora_alpha\":1e300}", "lora_alpha a number"},
        {LORA ",\"use_rslora\":\"no\"}", "use_rslora must be true or false"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "whole number"},
    };
    static const fl_st_out lonely[1] = {{KEY(O_PROJ, "A"), 2, {2, 18}, ones}};
    static const fl_st_out three[2] = {
        {KEY(O_PROJ, "A"), 2, {3, 18}, ones}, {KEY(O_PROJ, "B"), 2, {12, 3}, ones}};
    static const fl_st_out stranger[1] = {
        {KEY("model.layers.2.self_attn.o_proj", "A"), 2, {2, 18}, ones}};
    static const fl_st_out zeros[1] = {
        {KEY("model.layers.01.self_attn.o_proj", "A"), 2, {2, 18}, ones}};
    static const fl_st_out head[1] = {{"base_model.model.classifier.weight", 2, {2, 18}, ones}};
    static const fl_st_out twice[3] = {{KEY(O_PROJ, "A"), 2, {2, 18}, ones},
        {KEY(O_PROJ, "B"), 2, {12, 2}, ones},
        {KEY("layers.1.self_attn.o_proj", "A"), 2, {2, 18}, ones}};
    static const fl_real nans[64] = {[3] = (fl_real)NAN};
    static const fl_st_out sick[2] = {
        {KEY(O_PROJ, "A"), 2, {2, 18}, nans}, {KEY(O_PROJ, "B"), 2, {12, 2}, ones}};
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    fl_adapter *ad;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        assert_int_equal(from_memory(bad[i][0], 2, plain, &ad, reg, &m), FL_EDECK);
        assert_null(ad);
        says(bad[i][1]);
    }
    assert_int_equal(from_memory(LORA "}", 1, lonely, &ad, reg, &m), FL_EDECK);
    says("has lora_A but no lora_B");
    assert_int_equal(from_memory(LORA "}", 2, three, &ad, reg, &m), FL_ESHAPE);
    says("[3, 18], but the model and r = 2");
    assert_int_equal(from_memory(LORA "}", 1, stranger, &ad, reg, &m), FL_EDECK);
    says("model.layers.2.self_attn.o_proj is not a linear layer");
    assert_int_equal(from_memory(LORA "}", 1, zeros, &ad, reg, &m), FL_EDECK);
    says("is not a linear layer");
    assert_int_equal(from_memory(LORA "}", 1, head, &ad, reg, &m), FL_EDECK);
    says("base_model.model.classifier.weight is not a LoRA factor");
    assert_int_equal(from_memory(LORA "}", 3, twice, &ad, reg, &m), FL_EDECK);
    says("under two names");
    assert_int_equal(from_memory(LORA "}", 2, sick, &ad, reg, &m), FL_ENUM);
    says("NaN");
    assert_int_equal(from_memory(LORA "}", 0, plain, &ad, reg, &m), FL_EDECK);
    says("holds no LoRA factor");
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

static void test_folders_and_names_of_others(void **state)
{
    static const fl_st_out named[2] = {
        {"base_model.model.layers.1.self_attn.o_proj.lora_A.default.weight", 2, {2, 18}, ones},
        {"base_model.model.layers.1.self_attn.o_proj.lora_B.default.weight", 2, {12, 2}, ones}};
    static const char json[] = LORA "}";
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    fl_adapter *ad;
    fl_err err;

    (void)state;
    fl_error_clear();
    assert_int_equal(fl_peft_load(folder, &m, reg, &ad), FL_EFILE);
    says("has no adapter_config.json");
    assert_int_equal(fl_make_dirs(in_folder("sub")), FL_OK);
    err = fl_file_write(in_folder("sub/adapter_config.json"), json, sizeof json - 1);
    assert_int_equal(err, FL_OK);
    err = fl_st_write(in_folder("sub/adapter_model.safetensors"), 2, named, "pt");
    assert_int_equal(err, FL_OK);
    assert_int_equal(fl_peft_load(folder, &m, reg, &ad), FL_OK);
    assert_int_equal(ad->space->r[fl_model_site_named(&m, 1, "o")], 2);
    fl_adapter_destroy(&ad);
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, folder_drop)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_model_round_trip),
        IN_FOLDER(test_names_and_orientation_in_the_file),
        IN_FOLDER(test_foreign_weights),
        IN_FOLDER(test_models_without_a_class_are_not_saved),
        cmocka_unit_test(test_configs_of_others),
        cmocka_unit_test(test_refused_configs),
        IN_FOLDER(test_adapter_round_trips),
        IN_FOLDER(test_config_of_a_plain_adapter),
        IN_FOLDER(test_untrained_and_empty_adapters),
        IN_FOLDER(test_ranks_and_scales_by_pattern),
        IN_FOLDER(test_refused_adapters),
        IN_FOLDER(test_folders_and_names_of_others),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
