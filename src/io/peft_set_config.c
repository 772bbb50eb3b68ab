/* peft_set_config - adapter_config.json of a set: what is refused, what must agree between folders,
 * what the user is told. */
#include "peft_set.h"
#include <string.h>

/* ---- one config ---- */
bool peft_config_is_set(const json_t *o, const char *key)
{
    const json_t *x = json_object_get(o, key);

    return !(x == NULL || json_is_null(x) || json_is_false(x) ||
             (json_is_array(x) && json_array_size(x) == 0) ||
             (json_is_object(x) && json_object_size(x) == 0));
}

static fl_err accept_init(const json_t *o, const char *name)
{
    static const char *const inits[] = {"gaussian", "eva", "orthogonal"};
    const json_t *init = json_object_get(o, "init_lora_weights");

    if (!json_is_string(init)) {
        return FL_OK;
    }
    for (size_t i = 0; i < FL_COUNT(inits); i++) {
        if (strcmp(json_string_value(init), inits[i]) == 0) {
            return FL_OK;
        }
    }
    return fl_fail(FL_EDECK,
        "%s: init_lora_weights %.40s changes the base as well, so the adapter has no meaning on "
        "the "
        "base as published: save it converted to an ordinary LoRA "
        "(save_pretrained with path_initial_model_for_weight_conversion), or say that all adapters "
        "have the same changed base",
        name, json_string_value(init));
}

fl_err peft_config_accept(const json_t *o, const char *name, bool any_init)
{
    static const struct {
        const char *key, *why;
    } refused[] = {
        {"use_dora", "the change of W is not s B A but also rescales its rows: merge the adapter "
                     "into its base, or train without it"},
        {"lora_bias", "lora_B has a bias, which a sum of s B A does not hold: train without it"},
        {"use_qalora", "A acts on groups of inputs, not on the input: train without it"},
        {"velora_config", "the adapter's gradients and form are not those of s B A"},
        {"monteclora_config", "the change of W is drawn at random around s B A"},
        {"use_bdlora", "the factors are block-diagonal pieces, not A and B"},
        {"arrow_config", "the adapter routes between others at run time"},
        {"kasa_config", "the change of W has a third factor, and the base was truncated"},
        {"target_parameters", "LoRA sits on parameters (experts), which PEFT itself does not "
                              "combine: train with target_modules"},
    };
    const char *type, *bias;

    FL_TRY(fl_json_text(o, "peft_type", name, "(none)", &type));
    if (strcmp(type, "LORA") != 0) {
        return fl_fail(FL_EDECK,
            "%s: peft_type %.40s is not read; LORA is, whose change of W is s B A", name, type);
    }
    for (size_t i = 0; i < FL_COUNT(refused); i++) {
        if (peft_config_is_set(o, refused[i].key)) {
            return fl_fail(
                FL_EDECK, "%s: %s is not read: %s", name, refused[i].key, refused[i].why);
        }
    }
    FL_TRY(fl_json_text(o, "bias", name, "none", &bias));
    if (strcmp(bias, "none") != 0 && strcmp(bias, "all") != 0 && strcmp(bias, "lora_only") != 0) {
        return fl_fail(FL_EDECK, "%s: bias %.40s is not one of none, all, lora_only", name, bias);
    }
    return any_init ? FL_OK : accept_init(o, name);
}

/* ---- several ---- */
json_t *peft_config_given(const json_t *o, const char *key)
{
    json_t *x = json_object_get(o, key);

    return json_is_null(x) ? NULL : x;
}

/* lists as sets: PEFT writes them in any order */
static bool equal_lists(const json_t *a, const json_t *b)
{
    if (a == NULL || b == NULL || !json_is_array(a) || !json_is_array(b)) {
        return (a == NULL && b == NULL) || json_equal((json_t *)a, (json_t *)b);
    }
    if (json_array_size(a) != json_array_size(b) || json_array_size(a) > 2000) {
        return false;
    }
    for (size_t i = 0; i < json_array_size(a); i++) {
        bool found = false;

        for (size_t k = 0; k < json_array_size(b) && !found; k++) {
            found =
                json_equal(json_array_get(a, i), json_array_get(b, (i + k) % json_array_size(b)));
        }
        if (!found) {
            return false;
        }
    }
    return true;
}

/* the order counts: rows of a tensor stand in the order of trainable_token_indices */
static bool equal_values(const json_t *a, const json_t *b, const char *key)
{
    return (!peft_config_is_set(a, key) && !peft_config_is_set(b, key)) ||
           json_equal(json_object_get(a, key), json_object_get(b, key));
}

static bool equal_keys(const json_t *a, const json_t *b, const char *key)
{
    const json_t *x = peft_config_given(a, key), *y = peft_config_given(b, key);

    return equal_lists(x, y) || (!peft_config_is_set(a, key) && !peft_config_is_set(b, key));
}

static const char *const noted[PEFT_NNOTED] = {
    "base_model_name_or_path", "revision", "task_type", "fan_in_fan_out", "ensure_weight_tying"};

static fl_err add_heads(json_t *heads, const json_t *o, const char *name)
{
    const json_t *list = peft_config_given(o, "modules_to_save");

    if (list && !json_is_array(list)) {
        return fl_fail(FL_EDECK, "%s: modules_to_save must be a list", name);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *head = json_array_get(list, i);
        bool found = false;

        if (!json_is_string(head)) {
            return fl_fail(FL_EDECK, "%s: modules_to_save must be a list of names", name);
        }
        for (size_t k = 0; k < json_array_size(heads) && !found; k++) {
            found = json_equal(head, json_array_get(heads, k));
        }
        if (!found) {
            json_array_append(heads, head);
        }
    }
    return FL_OK;
}

fl_err peft_config_agree(fl_peft_set *s, int f, json_t *o, const char *name)
{
    static const char *const same[] = {
        "bias", "layer_replication", "alora_invocation_tokens", "trainable_token_indices"};
    static const char *const targets[] = {
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"};
    struct peft_set_inside *x = s->inside;

    if (f == 0) {
        x->config = json_incref(o);
        x->heads = json_array();
        x->same_targets = x->same_dropout = true;
        return add_heads(x->heads, o, name);
    }
    for (size_t i = 0; i < FL_COUNT(same); i++) {
        const char *key = same[i], *b0 = "none", *b1 = "none";

        if (i == 0) { /* absent means none */
            FL_TRY(fl_json_text(x->config, key, s->folder[0], "none", &b0));
            FL_TRY(fl_json_text(o, key, name, "none", &b1));
        }
        if (strcmp(b0, b1) != 0 || (i > 0 && !equal_values(x->config, o, key))) {
            return fl_fail(FL_EDECK,
                "%s: %s is not the same as in %s: such adapters change different things and cannot "
                "be combined",
                name, key, s->folder[0]);
        }
    }
    for (int i = 0; i < PEFT_NNOTED; i++) {
        if (!equal_keys(x->config, o, noted[i])) {
            x->differ_folder[i] = x->differ[i] == 0 ? f : x->differ_folder[i];
            x->differ[i]++;
        }
    }
    for (size_t i = 0; i < FL_COUNT(targets); i++) {
        x->same_targets = x->same_targets && equal_keys(x->config, o, targets[i]);
    }
    x->same_dropout = x->same_dropout && equal_keys(x->config, o, "lora_dropout");
    return add_heads(x->heads, o, name);
}

void peft_config_notes(fl_peft_set *s)
{
    const struct peft_set_inside *x = s->inside;
    int stray = 0, first = 0;

    for (int i = 0; i < PEFT_NNOTED; i++) {
        if (x->differ[i] > 0) {
            fl_text_add(&s->notes,
                "%s of %d of the %d adapters differs from that of %s (first: %s)%s\n", noted[i],
                x->differ[i], s->nfolders, s->folder[0], s->folder[x->differ_folder[i]],
                i == 0 ? "; it must be the same base all the same" : "");
        }
    }
    for (int f = s->nfolders - 1; f >= 0; f--) {
        if (x->folder[f].stray) {
            stray++;
            first = f;
        }
    }
    if (stray > 0) {
        fl_text_add(&s->notes,
            "%d of the %d adapters have an adapter's name in the names of their tensors, which is "
            "left out (first: %s)\n",
            stray, s->nfolders, s->folder[first]);
    }
}
