/* field.c - one value against one row: its form and its items; stored into the section's struct. */
#include "deck_internal.h"
#include <string.h>

static void *field_place(const fl_field *f, void *base)
{
    return (char *)base + f->at;
}

/* ---- lists ---- */

static bool list_ints(const fl_field *f, const deck_value *v, fl_ints *out, fl_text *why)
{
    *out = (fl_ints){v->n, fl_alloc(f->name, (size_t)v->n, sizeof *out->x)};
    for (int i = 0; i < v->n; i++) {
        if (!deck_scalar_int(f, &v->x[i], &out->x[i], why)) {
            fl_free(out->x);
            return false;
        }
    }
    return true;
}

static bool list_reals(const fl_field *f, const deck_value *v, fl_reals *out, fl_text *why)
{
    *out = (fl_reals){v->n, fl_alloc(f->name, (size_t)v->n, sizeof *out->x)};
    for (int i = 0; i < v->n; i++) {
        if (!deck_scalar_real(f, &v->x[i], &out->x[i], why)) {
            fl_free(out->x);
            return false;
        }
    }
    return true;
}

/* Choices may occur once each; free words as often as one likes. */
static bool list_words(const fl_field *f, const deck_value *v, fl_words *out, fl_text *why)
{
    uint64_t seen = 0; /* bit i: choice i */

    if (v->n < f->lo || v->n > f->hi) {
        fl_text_add(why, "%d words, not %.0f to %.0f", v->n, f->lo, f->hi);
        return false;
    }
    for (int i = 0; i < v->n && f->words; i++) {
        int w = deck_scalar_word(f, &v->x[i], why);

        FL_REQUIRE(w < 64);
        if (w >= 0 && seen >> w & 1) {
            fl_text_add(why, "'%s' occurs twice", v->x[i].s);
        }
        if (w < 0 || seen >> w & 1) {
            return false;
        }
        seen |= UINT64_C(1) << w;
    }
    *out = (fl_words){v->n, fl_alloc(f->name, (size_t)v->n, sizeof *out->x)};
    for (int i = 0; i < v->n; i++) {
        out->x[i] = fl_strdup(v->x[i].s);
    }
    return true;
}

/* ---- rows ---- */

typedef union field_any {
    int i;
    double real;
    bool truth;
    char *text;
    uint64_t seed;
    fl_ints ints;
    fl_reals reals;
    fl_words words;
} field_any;

static bool field_read(const fl_field *f, const deck_value *v, field_any *out, fl_text *why)
{
    const deck_scalar *s = v->x;

    switch (f->type) {
    case FL_T_INT:
        return deck_scalar_int(f, s, &out->i, why);
    case FL_T_REAL:
        return deck_scalar_real(f, s, &out->real, why);
    case FL_T_BOOL:
        return deck_scalar_bool(s, &out->truth, why);
    case FL_T_WORD:
        out->i = deck_scalar_word(f, s, why);
        return out->i >= 0;
    case FL_T_TEXT:
        out->text = fl_strdup(s->s);
        return true;
    case FL_T_SEED:
        return deck_scalar_seed(s, &out->seed, why);
    case FL_T_INTS:
        return list_ints(f, v, &out->ints, why);
    case FL_T_REALS:
        return list_reals(f, v, &out->reals, why);
    case FL_T_WORDS:
        return list_words(f, v, &out->words, why);
    case FL_T_END:
        break;
    }
    FL_REQUIRE(!"a row without a type");
    return false;
}

static size_t field_size(fl_type type)
{
    static const size_t size[FL_T_END] = {
        [FL_T_INT] = sizeof(int),
        [FL_T_REAL] = sizeof(double),
        [FL_T_BOOL] = sizeof(bool),
        [FL_T_WORD] = sizeof(int),
        [FL_T_TEXT] = sizeof(char *),
        [FL_T_INTS] = sizeof(fl_ints),
        [FL_T_REALS] = sizeof(fl_reals),
        [FL_T_WORDS] = sizeof(fl_words),
        [FL_T_SEED] = sizeof(uint64_t),
    };
    return size[type];
}

/* the form of the value: list or scalar, and that there is one */
static bool field_form(const fl_field *f, const deck_value *v, fl_text *why)
{
    bool list = f->type == FL_T_INTS || f->type == FL_T_REALS || f->type == FL_T_WORDS;
    char shown[DECK_SHOW];

    for (int i = 0; i < v->n; i++) {
        if (deck_scalar_is_null(&v->x[i])) {
            fl_text_add(why, "a value is missing%s",
                list ? " (write [] for an empty list)"
                : f->type == FL_T_TEXT
                    ? " (write \"\" for an empty text, quotes for the text \"null\")"
                    : "");
            return false;
        }
    }
    if (list && !v->list) {
        deck_clean(v->x[0].s, shown);
        fl_text_add(why, "a list belongs here; write [%s]", shown);
        return false;
    }
    if (!list && v->list) {
        fl_text_add(why, "a list where one value belongs");
        return false;
    }
    if (list && v->n == 0 && *f->preset != '\0' && strcmp(f->preset, "[]") != 0) {
        fl_text_add(why, "the list is empty");
        return false;
    }
    return true;
}

bool deck_field_parse(const fl_field *f, const deck_value *value, void *base, fl_text *why)
{
    field_any any;

    if (!field_form(f, value, why) || !field_read(f, value, &any, why)) {
        return false;
    }
    deck_field_free(f, base);
    memcpy(field_place(f, base), &any, field_size(f->type));
    return true;
}

void deck_field_default(const fl_field *f, void *base)
{
    deck_value value = {0};
    deck_scalar one = {fl_strdup(f->preset), *f->preset != '\0'};
    fl_text why = {0};
    bool yaml = strchr("[\"'", *f->preset) != NULL && *f->preset != '\0';
    bool list = f->type == FL_T_INTS || f->type == FL_T_REALS || f->type == FL_T_WORDS;

    if (yaml) { /* most rows are single words: no YAML parser is started for them */
        char *wrong = deck_read_value(f->preset, strlen(f->preset), &value);

        FL_REQUIRE(wrong == NULL);
    } else {
        value = list ? (deck_value){.list = true} : (deck_value){.n = 1, .x = &one};
        FL_REQUIRE(!list || *f->preset == '\0');
    }
    if (!deck_field_parse(f, &value, base, &why)) {
        fl_fail(FL_EBUG, "default of %s: %s", f->name, why.s);
        FL_REQUIRE(!"a preset fits its own row");
    }
    if (yaml) {
        deck_value_free(&value);
    }
    fl_free(one.s);
    fl_text_free(&why);
}

void deck_field_free(const fl_field *f, void *base)
{
    void *at = field_place(f, base);

    if (f->type == FL_T_TEXT) {
        fl_free(*(char **)at);
        *(char **)at = NULL;
    } else if (f->type == FL_T_INTS) {
        fl_free(((fl_ints *)at)->x);
        *(fl_ints *)at = (fl_ints){0};
    } else if (f->type == FL_T_REALS) {
        fl_free(((fl_reals *)at)->x);
        *(fl_reals *)at = (fl_reals){0};
    } else if (f->type == FL_T_WORDS) {
        fl_words *words = at;

        for (int i = 0; i < words->n; i++) {
            fl_free(words->x[i]);
        }
        fl_free(words->x);
        *words = (fl_words){0};
    }
}
