/* write.c - values back to text: YAML that reads back to the same value, and the words of help
 * (type, range, default). */
#include "deck_internal.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

void deck_real_text(double x, fl_text *t)
{
    char s[40];

    for (int digits = 15; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, x);
        if (strtod(s, NULL) == x) {
            break;
        }
    }
    char *e = strchr(s, 'e');
    if (e &&
        !memchr(s, '.',
            (size_t)(e - s))) { /* YAML 1.1 readers take 1e-08 for a text, 1.0e-08 for a number */
        fl_text_add(t, "%.*s.0%s", (int)(e - s), s, e);
    } else {
        fl_text_add(t, "%s", s);
    }
}

/* A text that every YAML reader takes as this text without quotes: starts like a name or a path, is
 * no word with a meaning. */
static bool scalar_is_safe(const char *s)
{
    static const char *const taken[] = {
        "null", "true", "false", "yes", "no", "on", "off", "y", "n"};

    if (!isalpha((unsigned char)*s) && *s != '/' && *s != '_') {
        return false;
    }
    for (size_t i = 0; i < FL_COUNT(taken); i++) {
        if (strcasecmp(s, taken[i]) == 0) {
            return false;
        }
    }
    for (; *s; s++) {
        if (!isalnum((unsigned char)*s) && !strchr("/_.-+", *s)) {
            return false;
        }
    }
    return true;
}

/* Decodes one character of valid UTF-8; a stray byte stands for itself. Returns its length. */
static int utf8_decode(const unsigned char *s, uint32_t *code)
{
    int n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : s[0] >= 0xC0 ? 2 : 1;

    *code = n == 1 ? s[0] : s[0] & (0x7Fu >> n);
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            *code = s[0];
            return 1;
        }
        *code = *code << 6 | (s[i] & 0x3F);
    }
    return n;
}

/* May stand in a YAML stream as it is: printable, no line break, no byte order mark. */
static bool code_is_plain(uint32_t code)
{
    bool ascii = code >= 0x20 && code < 0x7F;
    bool breaks = code == 0x2028 || code == 0x2029 || code == 0xFEFF;

    return ascii || (code >= 0xA0 && code <= 0xD7FF && !breaks) ||
           (code >= 0xE000 && code < 0xFFFE && !breaks) || (code >= 0x10000 && code <= 0x10FFFF);
}

void deck_scalar_text(const char *s, fl_text *t)
{
    uint32_t code;

    if (scalar_is_safe(s)) {
        fl_text_add(t, "%s", s);
        return;
    }
    fl_text_add(t, "\"");
    for (int n; *s; s += n) {
        n = utf8_decode((const unsigned char *)s, &code);
        if (code == '"' || code == '\\') {
            fl_text_add(t, "\\%c", (char)code);
        } else if (code == '\n' || code == '\t') {
            fl_text_add(t, code == '\n' ? "\\n" : "\\t");
        } else if (code_is_plain(code) && (code < 0x80 || n > 1)) {
            fl_text_bytes(t, s, (size_t)n);
        } else if (code < 0x100) {
            fl_text_add(t, "\\x%02X", (unsigned)code);
        } else { /* the few that are left lie below 0x10000 */
            fl_text_add(t, "\\u%04X", (unsigned)code);
        }
    }
    fl_text_add(t, "\"");
}

void deck_field_text(const fl_field *f, const void *base, fl_text *t)
{
    const void *at = (const char *)base + f->at;
    const fl_ints *ints = at;
    const fl_reals *reals = at;
    const fl_words *words = at;
    size_t n;
    const char *w;

    switch (f->type) {
    case FL_T_INT:
        fl_text_add(t, "%d", *(const int *)at);
        break;
    case FL_T_REAL:
        deck_real_text(*(const double *)at, t);
        break;
    case FL_T_BOOL:
        fl_text_add(t, "%s", *(const bool *)at ? "true" : "false");
        break;
    case FL_T_WORD:
        w = deck_word(f->words, *(const int *)at, &n);
        FL_REQUIRE(w);
        fl_text_add(t, "%.*s", (int)n, w);
        break;
    case FL_T_TEXT:
        deck_scalar_text(*(char *const *)at, t);
        break;
    case FL_T_SEED:
        fl_text_add(t, "%llu", (unsigned long long)*(const uint64_t *)at);
        break;
    case FL_T_INTS:
        fl_text_add(t, "[");
        for (int i = 0; i < ints->n; i++) {
            fl_text_add(t, "%s%d", i ? ", " : "", ints->x[i]);
        }
        fl_text_add(t, "]");
        break;
    case FL_T_REALS:
        fl_text_add(t, "[");
        for (int i = 0; i < reals->n; i++) {
            fl_text_add(t, "%s", i ? ", " : "");
            deck_real_text(reals->x[i], t);
        }
        fl_text_add(t, "]");
        break;
    case FL_T_WORDS:
        fl_text_add(t, "[");
        for (int i = 0; i < words->n; i++) {
            fl_text_add(t, "%s", i ? ", " : "");
            deck_scalar_text(words->x[i], t);
        }
        fl_text_add(t, "]");
        break;
    case FL_T_END:
        break;
    }
}

void deck_value_text(const deck_value *value, fl_text *t)
{
    fl_text_add(t, "%s", value->list ? "[" : "");
    for (int i = 0; i < value->n; i++) {
        fl_text_add(t, "%s", i ? ", " : "");
        if (value->x[i].plain) {
            fl_text_add(t, "%s", value->x[i].s);
        } else {
            deck_scalar_text(value->x[i].s, t);
        }
    }
    fl_text_add(t, "%s", value->list ? "]" : "");
}

void deck_type_text(const fl_field *f, fl_text *t)
{
    static const char *const names[FL_T_END] = {
        [FL_T_INT] = "whole number",
        [FL_T_REAL] = "number",
        [FL_T_BOOL] = "true or false",
        [FL_T_WORD] = "word",
        [FL_T_TEXT] = "text",
        [FL_T_INTS] = "list of whole numbers",
        [FL_T_REALS] = "list of numbers",
        [FL_T_WORDS] = "list of words",
        [FL_T_SEED] = "whole number",
    };
    fl_text_add(t, "%s", names[f->type]);
}

void deck_range_text(const fl_field *f, const char *last, fl_text *t)
{
    const char *w;
    size_t n;

    if (f->words) {
        for (int i = 0; (w = deck_word(f->words, i, &n)) != NULL; i++) {
            fl_text_add(t, "%s%.*s", i == 0 ? "" : w[n] ? ", " : last, (int)n, w);
        }
    } else if (f->type == FL_T_SEED) {
        fl_text_add(t, "0 to 18446744073709551615");
    } else if (f->type == FL_T_INT || f->type == FL_T_REAL || f->type == FL_T_INTS ||
               f->type == FL_T_REALS) {
        deck_real_text(f->lo, t);
        if (f->hi >= 2147483647.0) {
            fl_text_add(t, " or more");
        } else {
            fl_text_add(t, " to ");
            deck_real_text(f->hi, t);
        }
    }
}

void deck_preset_text(const fl_field *f, fl_text *t)
{
    bool list = f->type == FL_T_INTS || f->type == FL_T_REALS || f->type == FL_T_WORDS;

    if (*f->preset == '\0') {
        fl_text_add(t, "%s", list ? "[]" : "\"\"");
    } else if (f->type == FL_T_TEXT && *f->preset != '"' && *f->preset != '\'') {
        deck_scalar_text(f->preset, t);
    } else {
        fl_text_add(t, "%s", f->preset);
    }
}
