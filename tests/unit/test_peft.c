/* PEFT adapters: the product s B A survives the way out and back, ranks and scales are found as
 * PEFT finds them, and what is more than s B A is refused by name. That PEFT reads the same files
 * is shown by tests/interop/check_hf.py. */
#include "hf_bed.h"
#include <jansson.h>
#include <math.h>

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

#define LORA "{\"peft_type\":\"LORA\",\"r\":2"
static void test_refused_adapter_configs(void **state)
{
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
        {LORA ",\"rank_pattern\":{\"(?=o)o_proj\":2}}", "beyond what is read"},
        {LORA ",\"rank_pattern\":{\"(o)_pr\\\\1j\":2}}", "beyond what is read"},
        {LORA ",\"rank_pattern\":[]}", "rank_pattern must be an object"},
        {LORA ",\"rank_pattern\":{\"o_proj\":\"2\"}}", "whole number"},
        {LORA ",\"lora_alpha\":\"8\"}", "lora_alpha a number"},
        {LORA ",\"lora_alpha\":1e300}", "lora_alpha a number"},
        {LORA ",\"use_rslora\":\"no\"}", "use_rslora must be true or false"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "whole number"},
    };
    fl_spaces *reg = fl_spaces_create();
    fl_model m = tiny(FL_FAMILY_LLAMA, true);
    fl_adapter *ad;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        assert_int_equal(from_memory(bad[i][0], 2, plain, &ad, reg, &m), FL_EDECK);
        assert_null(ad);
        says(bad[i][1]);
    }
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

static void test_refused_adapter_tensors(void **state)
{
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_adapter_round_trips),
        IN_FOLDER(test_config_of_a_plain_adapter),
        IN_FOLDER(test_untrained_and_empty_adapters),
        IN_FOLDER(test_ranks_and_scales_by_pattern),
        IN_FOLDER(test_refused_adapter_configs),
        IN_FOLDER(test_refused_adapter_tensors),
        IN_FOLDER(test_folders_and_names_of_others),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
