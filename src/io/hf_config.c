/* hf_config - config.json of a Hugging Face folder to the shape of a model and back: GPT-2 and
 * Llama. Keys left out have the defaults of transformers' GPT2Config and LlamaConfig; both
 * spellings of the rotary base are read (transformers 4: rope_theta, rope_scaling; 5:
 * rope_parameters). What the engine does not compute is refused by name. */
#include "fedlora/io.h"
#include "file.h"
#include <math.h>
#include <string.h>

enum { HF_MOST = 1 << 30, HF_MOST_LAYERS = 10000 };

typedef struct hf_int {
    const char *key, *alias; /* alias NULL = none; the first one given counts */
    int otherwise, most;     /* otherwise 0: must be computed by the caller */
    int *x;
} hf_int;

static fl_err hf_ints(const json_t *o, const char *name, size_t n, const hf_int *row)
{
    for (size_t i = 0; i < n; i++) {
        bool alias = row[i].alias && !fl_json_given(o, row[i].key);

        FL_TRY(fl_json_int(o, alias ? row[i].alias : row[i].key, name, row[i].otherwise, 1,
            row[i].most, row[i].x));
    }
    return FL_OK;
}

/* key must be absent, null or `only` */
static fl_err hf_only_bool(const json_t *o, const char *name, const char *key, bool only)
{
    bool x;

    FL_TRY(fl_json_bool(o, key, name, only, &x));
    if (x != only) {
        return fl_fail(FL_EDECK, "%s: %s: %s is not supported", name, key, x ? "true" : "false");
    }
    return FL_OK;
}

static fl_err hf_refuse_given(const json_t *o, const char *name, const char *key)
{
    return fl_json_given(o, key) ? fl_fail(FL_EDECK, "%s: %s is not supported", name, key) : FL_OK;
}

static fl_err hf_gpt2(const json_t *o, const char *name, fl_model *m)
{
    const hf_int row[] = {{"vocab_size", NULL, 50257, HF_MOST, &m->vocab},
        {"n_positions", "max_position_embeddings", 1024, HF_MOST, &m->nctx},
        {"n_embd", "hidden_size", 768, HF_MOST, &m->nd},
        {"n_layer", "num_hidden_layers", 12, HF_MOST_LAYERS, &m->nlayers},
        {"n_head", "num_attention_heads", 12, HF_MOST, &m->nheads},
        {"n_inner", NULL, 0, HF_MOST, &m->nff}};
    const char *act;

    m->family = FL_FAMILY_GPT2;
    m->bias = true;
    FL_TRY(hf_ints(o, name, FL_COUNT(row), row));
    m->nkv = m->nheads;
    if (m->nff == 0) {
        if (m->nd > HF_MOST / 4) {
            return fl_fail(FL_EDECK, "%s: n_embd %d is too large", name, m->nd);
        }
        m->nff = 4 * m->nd;
    }
    FL_TRY(fl_json_text(o, "activation_function", name, "gelu_new", &act));
    if (strcmp(act, "gelu_new") != 0) {
        return fl_fail(FL_EDECK,
            "%s: activation_function %.40s is not supported; gelu_new (the tanh form) is", name,
            act);
    }
    FL_TRY(hf_only_bool(o, name, "scale_attn_weights", true));
    FL_TRY(hf_only_bool(o, name, "scale_attn_by_inverse_layer_idx", false));
    FL_TRY(hf_only_bool(o, name, "add_cross_attention", false));
    FL_TRY(fl_json_real(o, "layer_norm_epsilon", name, 1e-5, 1e-30, 1, &m->eps));
    return fl_json_bool(o, "tie_word_embeddings", name, true, &m->tied);
}

/* an object of rotary settings: only the plain kind */
static fl_err hf_rope_is_default(const json_t *o, const char *key, const char *name)
{
    const json_t *rope = json_object_get(o, key);
    const char *type;
    double part;

    if (!fl_json_given(o, key)) {
        return FL_OK;
    }
    if (!json_is_object(rope)) {
        return fl_fail(FL_EDECK, "%s: %s must be an object", name, key);
    }
    FL_TRY(fl_json_text(rope, "type", name, "default", &type));
    FL_TRY(fl_json_text(rope, "rope_type", name, type, &type));
    if (strcmp(type, "default") != 0) {
        return fl_fail(
            FL_EDECK, "%s: %s of type %.40s is not supported; only default is", name, key, type);
    }
    FL_TRY(fl_json_real(rope, "partial_rotary_factor", name, 1, 0, 1, &part));
    if (part != 1) {
        return fl_fail(FL_EDECK, "%s: partial_rotary_factor %g is not supported", name, part);
    }
    return FL_OK;
}

static fl_err hf_llama(const json_t *o, const char *name, fl_model *m)
{
    const hf_int row[] = {{"vocab_size", NULL, 32000, HF_MOST, &m->vocab},
        {"max_position_embeddings", NULL, 2048, HF_MOST, &m->nctx},
        {"hidden_size", NULL, 4096, HF_MOST, &m->nd},
        {"intermediate_size", NULL, 11008, HF_MOST, &m->nff},
        {"num_hidden_layers", NULL, 32, HF_MOST_LAYERS, &m->nlayers},
        {"num_attention_heads", NULL, 32, HF_MOST, &m->nheads},
        {"num_key_value_heads", NULL, 0, HF_MOST, &m->nkv}, {"head_dim", NULL, 0, HF_MOST, &m->hd}};
    const char *act;

    m->family = FL_FAMILY_LLAMA;
    m->rms = m->rotary = m->gated = true;
    FL_TRY(hf_ints(o, name, FL_COUNT(row), row));
    m->nkv = m->nkv > 0 ? m->nkv : m->nheads;
    FL_TRY(fl_json_text(o, "hidden_act", name, "silu", &act));
    if (strcmp(act, "silu") != 0) {
        return fl_fail(FL_EDECK, "%s: hidden_act %.40s is not supported; silu is", name, act);
    }
    FL_TRY(hf_only_bool(o, name, "attention_bias", false));
    FL_TRY(hf_only_bool(o, name, "mlp_bias", false));
    FL_TRY(hf_rope_is_default(o, "rope_scaling", name));
    FL_TRY(hf_rope_is_default(o, "rope_parameters", name));
    FL_TRY(fl_json_real(o, "rope_theta", name, 10000, 1e-3, 1e15, &m->rope_theta));
    FL_TRY(fl_json_real(json_object_get(o, "rope_parameters"), "rope_theta", name, m->rope_theta,
        1e-3, 1e15, &m->rope_theta));
    FL_TRY(fl_json_real(o, "rms_norm_eps", name, 1e-6, 1e-30, 1, &m->eps));
    return fl_json_bool(o, "tie_word_embeddings", name, false, &m->tied);
}

static fl_err hf_config_object(const json_t *o, const char *name, fl_model *m)
{
    const char *type;

    FL_TRY(fl_json_text(o, "model_type", name, "", &type));
    FL_TRY(hf_refuse_given(o, name, "quantization_config"));
    FL_TRY(fl_json_real(o, "initializer_range", name, 0.02, 0, 1e3, &m->init_range));
    if (strcmp(type, "gpt2") == 0) {
        return hf_gpt2(o, name, m);
    }
    if (strcmp(type, "llama") == 0) {
        return hf_llama(o, name, m);
    }
    return fl_fail(FL_EDECK, "%s: model_type %.40s is not supported; gpt2 and llama are", name,
        type[0] ? type : "(none)");
}

fl_err fl_hf_config_parse(const char *json, size_t n, const char *name, fl_model *m)
{
    json_t *root;
    fl_err err;

    *m = (fl_model){0};
    FL_TRY(fl_json_object(json, n, name, &root));
    err = hf_config_object(root, name, m);
    json_decref(root);
    if (err == FL_OK && fl_model_complete(m) != FL_OK) {
        err = fl_fail(FL_EDECK, "%s: describes a model that cannot be", name);
    }
    if (err != FL_OK) {
        fl_model_free(m);
        *m = (fl_model){0};
    }
    return err;
}

fl_err fl_hf_config(const char *dir, fl_model *m)
{
    char *path = fl_path_join(dir, "config.json"), *json = NULL;
    size_t n;
    fl_err err;

    *m = (fl_model){0};
    err = fl_file_read(path, &json, &n);
    if (err == FL_OK) {
        err = fl_hf_config_parse(json, n, path, m);
    }
    fl_free(json);
    fl_free(path);
    return err;
}

static json_t *hf_gpt2_config(const fl_model *m)
{
    return json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:b, s:b, s:f, s:f, s:f}",
        "architectures", "GPT2LMHeadModel", "model_type", "gpt2", "vocab_size", m->vocab,
        "n_positions", m->nctx, "n_embd", m->nd, "n_layer", m->nlayers, "n_head", m->nheads,
        "n_inner", m->nff, "activation_function", "gelu_new", "layer_norm_epsilon", m->eps,
        "initializer_range", m->init_range, "scale_attn_weights", 1,
        "scale_attn_by_inverse_layer_idx", 0, "attn_pdrop", 0.0, "embd_pdrop", 0.0, "resid_pdrop",
        0.0);
}

static json_t *hf_llama_config(const fl_model *m)
{
    /* rope_theta twice: transformers 4 reads the first, 5 the second */
    return json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:f, "
                     "s:{s:s, s:f}, s:n, s:b, s:b, s:f}",
        "architectures", "LlamaForCausalLM", "model_type", "llama", "vocab_size", m->vocab,
        "max_position_embeddings", m->nctx, "hidden_size", m->nd, "intermediate_size", m->nff,
        "num_hidden_layers", m->nlayers, "num_attention_heads", m->nheads, "num_key_value_heads",
        m->nkv, "head_dim", m->hd, "hidden_act", "silu", "rms_norm_eps", m->eps,
        "initializer_range", m->init_range, "rope_theta", m->rope_theta, "rope_parameters",
        "rope_type", "default", "rope_theta", m->rope_theta, "rope_scaling", "attention_bias", 0,
        "mlp_bias", 0, "attention_dropout", 0.0);
}

fl_err fl_hf_config_write(const char *dir, const fl_model *m)
{
    json_t *o = m->family == FL_FAMILY_LLAMA ? hf_llama_config(m) : hf_gpt2_config(m);
    char *path = fl_path_join(dir, "config.json");
    fl_err err;

    FL_REQUIRE(o != NULL);
    /* no ids of special tokens: what 0 or 50256 means is the data set's business */
    json_object_set_new(o, "bos_token_id", json_null());
    json_object_set_new(o, "eos_token_id", json_null());
    json_object_set_new(o, "pad_token_id", json_null());
    json_object_set_new(o, "tie_word_embeddings", json_boolean(m->tied));
    json_object_set_new(o, "torch_dtype", json_string("float32"));
    json_object_set_new(o, "use_cache", json_true());
    err = fl_json_write(path, o);
    json_decref(o);
    fl_free(path);
    return err;
}
