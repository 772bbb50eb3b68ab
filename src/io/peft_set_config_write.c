/* peft_set_config_write - adapter_config.json of the adapter that comes out: r and alpha of every
 * site so that PEFT finds the same s, targets that match what was written and nothing else. */
#include "peft_set.h"
#include <math.h>
#include <string.h>

double peft_alpha_for(double scale, int r, bool rslora, bool *exact)
{
    double by = rslora ? sqrt((double)r) : (double)r, alpha = scale * by;
    double best = alpha, whole = rint(alpha);
    double tries[4] = {whole, alpha, nextafter(alpha, INFINITY), nextafter(alpha, -INFINITY)};

    *exact = false;
    for (int i = 0; i < 4 && !*exact; i++) { /* PEFT divides in double, too */
        if (tries[i] / by == scale) {
            best = tries[i];
            *exact = true;
        }
    }
    return best;
}

void peft_set_written(const fl_peft_set *s, const char *name, int names, char out[PEFT_LONG])
{
    const struct peft_set_inside *x = s->inside;

    for (int p = 0; p < PEFT_NPREFIXES; p++) {
        size_t n = strlen(peft_prefix[p]);

        if (x->strip[p] && strncmp(name, peft_prefix[p], n) == 0) {
            name += n;
            break;
        }
    }
    if ((names == 0 ? x->spelling : names) == 4) {
        (void)peft_name_to4(name, x->bare4, out);
    } else {
        snprintf(out, PEFT_LONG, "%s", name);
    }
}

typedef struct rank_alpha {
    int r;
    double alpha;
} rank_alpha;

static rank_alpha rank_of(const fl_peft_how *how, int j)
{
    bool exact;

    return (rank_alpha){
        how->r[j], peft_alpha_for(how->scale ? how->scale[j] : 1, how->r[j], how->rslora, &exact)};
}

/* one (r, alpha) that occurs, and that of more than half of the sites if there is such (majority
 * vote) */
static rank_alpha usual_of(const fl_peft_set *s, const fl_peft_how *how)
{
    rank_alpha best = {0, 0};
    int votes = 0;

    for (int j = 0; j < s->nsites; j++) {
        rank_alpha x = how->r[j] > 0 ? rank_of(how, j) : best;

        if (how->r[j] == 0) {
            continue;
        }
        if (votes == 0) {
            best = x;
        }
        votes += x.r == best.r && x.alpha == best.alpha ? 1 : -1;
    }
    return best;
}

static json_t *number(double x)
{
    return x == rint(x) && fabs(x) < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

/* anchored, escaped and full, so that a key names one module and their order is indifferent */
static void pattern_key(const char *name, fl_text *t)
{
    fl_text_add(t, "^");
    for (; *name; name++) {
        bool word = (*name >= '0' && *name <= '9') || (*name >= 'a' && *name <= 'z') ||
                    (*name >= 'A' && *name <= 'Z') || *name == '_';

        fl_text_add(t, "%s%c", word ? "" : "\\", *name);
    }
}

/* PEFT adapts what the targets match, no more and no less: the inputs' own list where every adapter
 * has the same one and all sites are written; full names otherwise */
static void put_targets(json_t *o, const fl_peft_set *s, const fl_peft_how *how)
{
    static const char *const rest[] = {"exclude_modules", "layers_to_transform", "layers_pattern"};
    const struct peft_set_inside *x = s->inside;
    bool same = x->same_targets && peft_config_given(x->config, "target_modules") != NULL;
    char name[PEFT_LONG];

    for (int p = 0; p < PEFT_NPREFIXES; p++) {
        same = same && !x->strip[p];
    }
    for (int j = 0; j < s->nsites; j++) {
        same = same && how->r[j] > 0 && s->site[j].nfolders == s->nfolders;
    }
    for (int f = 0; f < s->nfolders; f++) {
        int spelling = x->folder[f].spelling;

        same = same && (spelling == 0 || spelling == (how->names == 0 ? x->spelling : how->names));
    }
    for (size_t i = 0; i < FL_COUNT(rest); i++) {
        json_t *v = same ? peft_config_given(x->config, rest[i]) : NULL;

        json_object_set_new(o, rest[i], v ? json_deep_copy(v) : json_null());
    }
    if (same) {
        json_object_set_new(
            o, "target_modules", json_deep_copy(peft_config_given(x->config, "target_modules")));
        return;
    }
    json_object_set_new(o, "target_modules", json_array());
    for (int j = 0; j < s->nsites; j++) {
        if (how->r[j] > 0) {
            peft_set_written(s, s->site[j].name, how->names, name);
            json_array_append_new(json_object_get(o, "target_modules"), json_string(name));
        }
    }
}

static void put_ranks(json_t *o, const fl_peft_set *s, const fl_peft_how *how)
{
    rank_alpha usual = usual_of(s, how);
    json_t *ranks = json_object(), *alphas = json_object();

    for (int j = 0; j < s->nsites; j++) {
        rank_alpha x = how->r[j] > 0 ? rank_of(how, j) : usual;
        char name[PEFT_LONG];
        fl_text key = {0};

        if (x.r != usual.r || x.alpha != usual.alpha) {
            peft_set_written(s, s->site[j].name, how->names, name);
            pattern_key(name, &key);
            json_object_set_new(ranks, key.s, json_integer(x.r));
            json_object_set_new(alphas, key.s, number(x.alpha));
            fl_text_free(&key);
        }
    }
    json_object_set_new(o, "r", json_integer(usual.r));
    json_object_set_new(o, "lora_alpha", number(usual.alpha));
    json_object_set_new(o, "rank_pattern", ranks);
    json_object_set_new(o, "alpha_pattern", alphas);
}

json_t *peft_config_write(const fl_peft_set *s, const fl_peft_how *how)
{
    static const char *const copied[] = {"auto_mapping", "base_model_name_or_path", "revision",
        "task_type", "layer_replication", "alora_invocation_tokens", "megatron_config"};
    const struct peft_set_inside *x = s->inside;
    bool all = !how->no_extras;
    json_t *bias = peft_config_given(x->config, "bias"),
           *dropout = peft_config_given(x->config, "lora_dropout");
    json_t *o = json_pack("{s:b, s:b, s:b, s:b, s:b, s:s, s:s}", "use_rslora", (int)how->rslora,
        "inference_mode", 1, "init_lora_weights", 1, "lora_bias", 0, "use_dora", 0, "peft_type",
        "LORA", "bias", all && bias ? json_string_value(bias) : "none");

    FL_REQUIRE(o != NULL);
    for (size_t i = 0; i < FL_COUNT(copied); i++) {
        json_t *v = peft_config_given(x->config, copied[i]);

        json_object_set_new(o, copied[i], v ? json_deep_copy(v) : json_null());
    }
    if (how->base_name) {
        json_t *base = json_string(how->base_name); /* NULL if it is not UTF-8 */

        json_object_set_new(o, "base_model_name_or_path", base ? base : json_null());
    }
    json_object_set_new(o, "fan_in_fan_out",
        json_boolean(json_is_true(peft_config_given(x->config, "fan_in_fan_out"))));
    json_object_set_new(o, "ensure_weight_tying",
        json_boolean(json_is_true(peft_config_given(x->config, "ensure_weight_tying"))));
    json_object_set_new(o, "lora_dropout",
        x->same_dropout && json_is_number(dropout) ? json_deep_copy(dropout) : json_real(0));
    json_object_set_new(o, "modules_to_save",
        all && s->nextras > 0 && json_array_size(x->heads) > 0 ? json_deep_copy(x->heads)
                                                               : json_null());
    if (all && peft_config_given(x->config, "trainable_token_indices")) {
        json_object_set_new(o, "trainable_token_indices",
            json_deep_copy(peft_config_given(x->config, "trainable_token_indices")));
    }
    put_targets(o, s, how);
    put_ranks(o, s, how);
    return o;
}
