/* Hugging Face folders: what is written comes back bit for bit; what the engine does not compute is
 * refused by name. That transformers reads the same files is shown by tests/interop/check_hf.py. */
#include "hf_bed.h"

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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_model_round_trip),
        IN_FOLDER(test_names_and_orientation_in_the_file),
        IN_FOLDER(test_foreign_weights),
        IN_FOLDER(test_models_without_a_class_are_not_saved),
        cmocka_unit_test(test_configs_of_others),
        cmocka_unit_test(test_refused_configs),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
