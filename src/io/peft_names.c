/* peft_names - modules of Hugging Face models and the patterns by which PEFT names them.
 * Source: peft utils/other.py get_pattern_key, tuners/lora/model.py; formats.md gives the rules in
 * words. */
#include "peft.h"
#include <ctype.h>
#include <string.h>

enum { PATTERN_MOST = 512 };

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

/* one character of a regular expression, at *p: does c fit? *p moves behind it */
static bool pattern_escape(char e, unsigned char c, bool *ok)
{
    switch (e) {
    case 'd':
        return isdigit(c);
    case 'w':
        return isalnum(c) || c == '_';
    default:
        *ok = *ok && e != 0 && !isalnum((unsigned char)e);
        return c == (unsigned char)e;
    }
}

static bool pattern_class(const char **p, unsigned char c, bool *ok)
{
    const char *s = *p + 1;
    bool negated = *s == '^', hit = false;

    for (s += negated; *s != ']' && *ok;) {
        unsigned char lo = (unsigned char)*s, hi = lo;

        if (*s == 0 || *s == '\\' || *s == '[') { /* rare: not worth the code */
            *ok = false;
            break;
        }
        if (s[1] == '-' && s[2] != ']' && s[2] != 0) {
            hi = (unsigned char)s[2];
            s += 2;
        }
        hit = hit || (c >= lo && c <= hi);
        s++;
    }
    *p = *ok ? s + 1 : s;
    return hit != negated;
}

static bool pattern_atom(const char **p, unsigned char c, bool *ok)
{
    char e = **p;

    if (e == '[') {
        return pattern_class(p, c, ok);
    }
    if (e == '\\') {
        e = (*p)[1];
        *p += e ? 2 : 1;
        return pattern_escape(e, c, ok);
    }
    *ok = *ok && strchr("(){}|*+?^$]", e) == NULL;
    (*p)++;
    return e == '.' || (unsigned char)e == c;
}

/* The set of places in name that the pattern read so far can reach: no backtracking, so no pattern
 * is slow. */
bool peft_pattern_matches(const char *pattern, const char *name, bool *ok)
{
    bool at[PATTERN_MOST + 1] = {false};
    size_t n = strlen(name), m = strlen(pattern);
    const char *p = pattern, *behind = p;

    *ok = n <= PATTERN_MOST && m > 0 && m <= PATTERN_MOST;
    at[0] = true;
    for (size_t i = 0; *ok && i < n && pattern[0] != '^'; i++) {
        at[i + 1] = name[i] == '.';
    }
    for (p += pattern[0] == '^'; *ok && *p && strcmp(p, "$") != 0; p = behind) {
        bool fits[PATTERN_MOST], next[PATTERN_MOST + 1];
        char times;

        behind = p;
        (void)pattern_atom(&behind, 0, ok); /* finds its end, also for an empty name */
        for (size_t i = 0; *ok && i < n; i++) {
            const char *again = p;

            fits[i] = pattern_atom(&again, (unsigned char)name[i], ok);
        }
        times = *behind;
        if (times != 0 && strchr("*+?", times)) {
            behind += behind[1] == '?' ? 2 : 1; /* lazy or not, the whole name must match */
        } else {
            times = 1;
        }
        for (size_t i = 0; *ok && i <= n; i++) {
            bool stay = times == '*' || times == '?';
            bool again = times == '*' || times == '+';

            next[i] =
                (stay && at[i]) || (i > 0 && fits[i - 1] && (at[i - 1] || (again && next[i - 1])));
        }
        memcpy(at, next, *ok ? n + 1 : 0);
    }
    return *ok && at[n];
}
