/* peft_names - modules of Hugging Face models as PEFT names them. */
#include "peft.h"
#include <ctype.h>
#include <string.h>

static const peft_kind peft_gpt2[] = {{"attn.c_attn", "c_attn", {"q", "k", "v", NULL}},
    {"attn.c_proj", "attn.c_proj", {"o", NULL, NULL, NULL}},
    {"mlp.c_fc", "c_fc", {"up", NULL, NULL, NULL}},
    {"mlp.c_proj", "mlp.c_proj", {"down", NULL, NULL, NULL}}};
static const peft_kind peft_llama[] = {{"self_attn.q_proj", "q_proj", {"q", NULL, NULL, NULL}},
    {"self_attn.k_proj", "k_proj", {"k", NULL, NULL, NULL}},
    {"self_attn.v_proj", "v_proj", {"v", NULL, NULL, NULL}},
    {"self_attn.o_proj", "o_proj", {"o", NULL, NULL, NULL}},
    {"mlp.gate_proj", "gate_proj", {"gate", NULL, NULL, NULL}},
    {"mlp.up_proj", "up_proj", {"up", NULL, NULL, NULL}},
    {"mlp.down_proj", "down_proj", {"down", NULL, NULL, NULL}}};

const peft_kind *peft_kinds(const fl_model *m, int *n)
{
    bool llama = m->family == FL_FAMILY_LLAMA;

    *n = llama ? (int)FL_COUNT(peft_llama) : (int)FL_COUNT(peft_gpt2);
    return llama ? peft_llama : peft_gpt2;
}

int peft_sites(
    const fl_model *m, int block, const peft_kind *kind, int site[3], int *rows, int *cols)
{
    int n = 0;

    *rows = 0;
    for (; kind->site[n]; n++) {
        site[n] = fl_model_site_named(m, block, kind->site[n]);
        FL_REQUIRE(site[n] >= 0);
        *rows += m->site[site[n]].m;
        *cols = m->site[site[n]].n;
    }
    return n;
}

static const char *peft_class_prefix(const fl_model *m)
{
    return m->family == FL_FAMILY_LLAMA ? "model." : "transformer.";
}

static const char *peft_list(const fl_model *m)
{
    return m->family == FL_FAMILY_LLAMA ? "layers." : "h.";
}

void peft_module_name(const fl_model *m, int block, const peft_kind *kind, char name[PEFT_NAME])
{
    snprintf(name, PEFT_NAME, "%s%s%d.%s", peft_class_prefix(m), peft_list(m), block, kind->path);
}

/* *s without `prefix`, false if it does not start so */
static bool peft_skip(const char **s, const char *prefix)
{
    size_t n = strlen(prefix);

    if (strncmp(*s, prefix, n) != 0) {
        return false;
    }
    *s += n;
    return true;
}

bool peft_module_find(const fl_model *m, const char *name, int *block, int *kind)
{
    const peft_kind *kinds;
    int n, digits = 0;

    (void)peft_skip(&name, peft_class_prefix(m));
    if (!peft_skip(&name, peft_list(m))) {
        return false;
    }
    *block = 0;
    while (isdigit((unsigned char)name[digits]) && digits < 9) {
        *block = 10 * *block + (name[digits++] - '0');
    }
    if (digits == 0 || (digits > 1 && name[0] == '0') || name[digits] != '.' ||
        *block >= m->nlayers) {
        return false;
    }
    kinds = peft_kinds(m, &n);
    for (*kind = 0; *kind < n; (*kind)++) {
        if (strcmp(kinds[*kind].path, name + digits + 1) == 0) {
            return true;
        }
    }
    return false;
}
