/* What is not s B A, or not relative to the same W, is refused by file, key and reason; what agrees
 * is accepted, and what differs but may differ is said. */
#include "peft_bed.h"

static void test_refused_configs(void **state)
{
    static const char *const bad[][3] = {
        {"{", "not valid JSON", ""},
        {"{\"r\":2}", "peft_type (none)", "LORA is"},
        {"{\"peft_type\":\"ADALORA\"}", "ADALORA", "s B A"},
        {"{\"peft_type\":\"LOHA\"}", "LOHA", ""},
        {LORA ",\"use_dora\":true}", "use_dora", "merge"},
        {LORA ",\"use_qalora\":true}", "use_qalora", "train without"},
        {LORA ",\"lora_bias\":true}", "lora_bias", "train without"},
        {LORA ",\"velora_config\":{\"a\":1}}", "velora_config", ""},
        {LORA ",\"monteclora_config\":{\"a\":1}}", "monteclora_config", ""},
        {LORA ",\"use_bdlora\":{\"a\":1}}", "use_bdlora", ""},
        {LORA ",\"arrow_config\":{\"a\":1}}", "arrow_config", ""},
        {LORA ",\"kasa_config\":{\"a\":1}}", "kasa_config", ""},
        {LORA ",\"target_parameters\":[\"x\"]}", "target_parameters", "target_modules"},
        {LORA ",\"bias\":\"some\"}", "bias some", ""},
        {LORA ",\"init_lora_weights\":\"pissa_niter_4\"}", "pissa_niter_4", "converted"},
        {LORA ",\"init_lora_weights\":\"olora\"}", "olora", "converted"},
        {LORA ",\"modules_to_save\":\"x\"}", "modules_to_save", "list"},
        {LORA ",\"rank_pattern\":{\"(?=x)x\":2}}", "rank_pattern", "beyond what is read"},
        {LORA ",\"alpha_pattern\":[]}", "alpha_pattern", "must be an object"},
        {LORA ",\"rank_pattern\":{\"x\":\"2\"}}", "module x", "whole number"},
        {LORA ",\"rank_pattern\":{\"((((x?){99}){99}){99}){99}\":2}}", "takes too long", "x"},
        {LORA ",\"lora_alpha\":\"8\"}", "module x", "lora_alpha a number"},
        {LORA ",\"lora_alpha\":1e300}", "module x", "lora_alpha a number"},
        {LORA ",\"use_rslora\":1}", "use_rslora", "true or false"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "module x", "whole number"},
        {"{\"peft_type\":\"LORA\",\"r\":3}", "r is 2 in lora_A", "3 by A"},
        {LORA ",\"rank_pattern\":{\"x\":1}}", "r is 2 in lora_A", "1 by A"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        given g = {bad[i][0], 2, {PAIR("x", 3, 4, 2)}};

        refused(
            1, &g, NULL, strstr(bad[i][1], "r is") ? FL_ESHAPE : FL_EDECK, bad[i][1], bad[i][2]);
    }
}

static void test_refused_tensors(void **state)
{
    static const struct {
        int n;
        fl_st_out out[4];
        fl_err err;
        const char *first, *second;
    } bad[] = {
        {0, {{0}}, FL_EDECK, "holds no LoRA factor", ""},
        {1, {{BASE "x.lora_A.weight", 2, {2, 4}, ones}}, FL_EDECK, "module x has lora_A",
            "no lora_B"},
        {1, {{BASE "x.lora_B.weight", 2, {2, 4}, ones}}, FL_EDECK, "module x has lora_B",
            "no lora_A"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_magnitude_vector", 1, {3}, ones}}, FL_EDECK,
            "x.lora_magnitude_vector", "DoRA"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_B.bias", 1, {3}, ones}}, FL_EDECK, "x.lora_B.bias",
            "lora_bias"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_E", 1, {3}, ones}}, FL_EDECK, "x.lora_E",
            "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {"x.weight", 1, {3}, ones}}, FL_EDECK, "tensor x.weight",
            "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {BASE "head.original_module.weight", 1, {3}, ones}}, FL_EDECK,
            "original_module", "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_A.default.weight", 2, {2, 4}, ones}}, FL_EDECK,
            "module x", "two names"},
        {4,
            {PAIR("vit.layers.0.mlp.fc1", 3, 4, 2),
                PAIR("vit.encoder.layer.0.intermediate.dense", 3, 4, 2)},
            FL_EDECK, "vit.", "two names"},
        {4,
            {PAIR("x", 3, 4, 2), {BASE "y.modules_to_save.a.weight", 1, {3}, ones},
                {BASE "y.weight", 1, {3}, ones}},
            FL_EDECK, "y.", "two names"},
        {2,
            {{BASE "x.lora_A.weight", 4, {2, 4, 3, 3}, ones},
                {BASE "x.lora_B.weight", 4, {3, 2, 1, 1}, ones}},
            FL_ESHAPE, "module x", "convolutions"},
        {2, {{BASE "x.lora_A.weight", 2, {2, 0}, ones}, {BASE "x.lora_B.weight", 2, {3, 2}, ones}},
            FL_ESHAPE, "module x", "3 x 0"},
        {2, {{BASE "x.lora_A.weight", 2, {2, 4}, ones}, {BASE "x.lora_B.weight", 2, {3, 1}, ones}},
            FL_ESHAPE, "2 in lora_A and 1 in lora_B", "2 by A"},
        {4,
            {PAIR("x", 3, 4, 2), {BASE "x.lora_embedding_A", 2, {2, 4}, ones},
                {BASE "x.lora_embedding_B", 2, {3, 2}, ones}},
            FL_EDECK, "module x", "embedding"},
        {3, {PAIR("x", 3, 4, 2), {BASE "head.weight", 1, {0}, ones}}, FL_ESHAPE, "head.weight",
            "empty"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        given g = {LORA "}", bad[i].n, {{0}}};

        memcpy(g.out, bad[i].out, sizeof bad[i].out);
        refused(1, &g, NULL, bad[i].err, bad[i].first, bad[i].second);
    }
}

static void test_adapters_that_do_not_go_together(void **state)
{
    static const struct {
        given g[2];
        fl_err err;
        const char *first, *second;
    } bad[] = {
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}}, {LORA "}", 2, {PAIR("x", 3, 5, 2)}}}, FL_ESHAPE,
            "B: module x is 3 x 5", "3 x 4 in A"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}}, {LORA "}", 2, {PAIR("x", 4, 4, 2)}}}, FL_ESHAPE,
            "B: module x is 4 x 4", "3 x 4 in A"},
        {{{LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {2, 3}, ones}}},
             {LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {5, 3}, ones}}}},
            FL_ESHAPE, "B: " BASE "score.weight has another shape there than in A", "5 and 2"},
        {{{LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {2, 3}, ones}}},
             {LORA "}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: has no tensor score.weight, which A has", "averaged"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"bias\":\"all\"}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: bias is not the same as in A", ""},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"layer_replication\":[[0,1]]}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: layer_replication is not the same as in A", ""},
        {{{LORA ",\"alora_invocation_tokens\":[1,2]}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"alora_invocation_tokens\":[2,1]}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: alora_invocation_tokens", ""},
        {{{LORA ",\"trainable_token_indices\":[1,2]}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA "}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: trainable_token_indices", ""},
        {{{LORA "}", 2, {PAIR("model.layers.0.x", 3, 4, 2)}},
             {LORA "}", 2, {PAIR("layers.1.x", 3, 4, 2)}}},
            FL_EDECK, "of A are called model.", "those of B not"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA "}", 2,
                 {{BASE "x.lora_embedding_A", 2, {2, 4}, ones},
                     {BASE "x.lora_embedding_B", 2, {3, 2}, ones}}}},
            FL_EDECK, "embedding", "A"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        refused(2, bad[i].g, NULL, bad[i].err, bad[i].first, bad[i].second);
    }
}

static void test_what_agrees_is_accepted_and_said(void **state)
{
    static const given g[3] = {
        {LORA
            ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"task_type\":\"A\","
            "\"init_lora_weights\":\"pissa\",\"base_model_name_or_path\":\"one\"}",
            3,
            {PAIR("x", 3, 4, 2), {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}},
        {LORA ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"new_key\":7,"
              "\"base_model_name_or_path\":\"two\"}",
            3,
            {PAIR("x", 3, 4, 2), {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}},
        {LORA ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"bias\":\"none\","
              "\"base_model_name_or_path\":\"one\",\"task_type\":\"A\"}",
            3,
            {{BASE "x.lora_A.me.weight", 2, {2, 4}, ones},
                {BASE "x.lora_B.me.weight", 2, {3, 2}, ones},
                {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}}};
    fl_peft_options any = {.any_init = true};
    fl_peft_set *s;
    fl_st st[3];

    (void)state;
    must(from_memory(3, g, &any, &s, st));
    assert_int_equal(s->nsites, 1);
    assert_int_equal(s->nextras, 1);
    assert_int_equal(fl_peft_set_r(s, 2, 0, NULL), 2);
    assert_non_null(strstr(s->notes.s, "base_model_name_or_path of 1 of the 3 adapters"));
    assert_non_null(strstr(s->notes.s, "first: B"));
    assert_non_null(strstr(s->notes.s, "task_type of 1 of the 3"));
    assert_non_null(strstr(s->notes.s, "1 of the 3 adapters have an adapter's name"));
    fl_peft_set_close(&s);
    for (int i = 0; i < 3; i++) {
        fl_st_close(&st[i]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(test_refused_configs),
        IN_A_FOLDER(test_refused_tensors),
        IN_A_FOLDER(test_adapters_that_do_not_go_together),
        IN_A_FOLDER(test_what_agrees_is_accepted_and_said),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
