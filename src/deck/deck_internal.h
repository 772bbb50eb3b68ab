/* deck_internal.h - what the files of src/deck share: the values read from YAML, the rows'
 * functions, the places of sections.
 *
 * A deck goes text -> entries (yaml.c, nothing known about keys) -> structs (parse.c, field.c) ->
 * cross-key rules (rules.c). */
#ifndef DECK_INTERNAL_H
#define DECK_INTERNAL_H
#include "fedlora/deck.h"

enum {
    DECK_MAX_BYTES =
        1 << 20, /* larger texts are no decks: refused before the YAML library sees them */
    DECK_MAX_MISTAKES = 100, /* reported one by one; the rest is only counted */
    DECK_SHOW = 120,         /* a user's value in a message: at most so many bytes */
};

/* ---- yaml.c ---- */
typedef struct deck_scalar {
    char *s;    /* owned; holds no zero byte */
    bool plain; /* written without quotes: may be a number, a truth value, null */
} deck_scalar;
typedef struct deck_value {
    bool list;
    int n, room;
    deck_scalar *x; /* owned [room], n in use; not a list: n = 1 */
} deck_value;
typedef struct deck_entry {
    int line, column;    /* from 1; column 0 = of no interest, line 0 = the deck as a whole */
    char *section, *key; /* owned; key NULL = the section begins; both NULL = neither is known */
    char *wrong;         /* owned sentence: broken as YAML, value is empty; NULL = fine */
    bool syntax;         /* wrong is a syntax error: what came before it may have been misread */
    deck_value value;
} deck_entry;
typedef struct deck_entries {
    int n, room;
    deck_entry *x; /* owned [room], n in use, in the order of the text */
} deck_entries;

/* Reads a whole deck. Never fails: what is wrong is an entry with `wrong`, a syntax error is the
 * last entry. */
void deck_read(const char *text, size_t n, deck_entries *out);
/* Reads one value ("3", "[4, 8]"). NULL = fine, else the sentence that says what is wrong, owned by
 * the caller. */
char *deck_read_value(const char *text, size_t n, deck_value *value);
void deck_entries_free(deck_entries *entries);
void deck_value_free(deck_value *value);

/* ---- field.c ---- base: the section's struct */
/* Checks the value against the row and stores it; false: the struct is as before and why got "'x'
 * is not a number". */
bool deck_field_parse(const fl_field *f, const deck_value *value, void *base, fl_text *why);
void deck_field_default(
    const fl_field *f, void *base); /* the row's preset; a preset that does not parse is a bug */
void deck_field_free(const fl_field *f, void *base);

/* ---- scalar.c ---- false (deck_scalar_word: -1): why got the sentence "'x' is not a number" */
bool deck_scalar_is_null(const deck_scalar *s);
bool deck_scalar_real(const fl_field *f, const deck_scalar *s, double *x, fl_text *why);
bool deck_scalar_int(const fl_field *f, const deck_scalar *s, int *out, fl_text *why);
bool deck_scalar_seed(const deck_scalar *s, uint64_t *out, fl_text *why);
bool deck_scalar_bool(const deck_scalar *s, bool *out, fl_text *why);
int deck_scalar_word(
    const fl_field *f, const deck_scalar *s, fl_text *why); /* index of the choice */
void deck_clean(
    const char *s, char buffer[DECK_SHOW]); /* s cut to fit, without control characters */
/* choice i of "a|b|c": its start and length; NULL = no such */
const char *deck_word(const char *words, int i, size_t *n);

/* ---- write.c ---- */
void deck_field_text(
    const fl_field *f, const void *base, fl_text *t); /* the value as YAML flow text on one line */
void deck_value_text(const deck_value *value, fl_text *t); /* a value as it was read */
void deck_real_text(double x, fl_text *t); /* shortest of 15..17 digits that reads back equal */
void deck_scalar_text(const char *s, fl_text *t);   /* quoted when needed */
void deck_type_text(const fl_field *f, fl_text *t); /* "whole number", "list of words" */
void deck_range_text(const fl_field *f, const char *last,
    fl_text *t); /* "1 to 8", "a, b or c"; "" = none; last: " or " */
void deck_preset_text(const fl_field *f, fl_text *t); /* default as one would write it */

/* ---- sections.c ---- sections are numbered: the built-in ones, then the extra ones */
int deck_nsections(int nextra);
const fl_section *deck_section(const fl_section *extra, int i);
void *deck_struct(const fl_deck *deck, int i);
int deck_find_section(const fl_section *extra, int nextra, const char *name); /* -1 = none */
int deck_find_field(const fl_section *section, const char *key);              /* -1 = none */
int deck_count_fields(const fl_section *section);
bool deck_in_use(const fl_deck *deck, int i); /* built in, or the section of method.name */

/* ---- nearest.c ---- add "; did you mean x?" to t when something is near enough */
void deck_nearest_word(const char *words, const char *given, fl_text *t);
void deck_nearest_section(const fl_section *extra, int nextra, const char *given, fl_text *t);
void deck_nearest_key(
    const fl_section *extra, int nextra, const char *section, const char *key, fl_text *t);

/* ---- parse.c ---- */
fl_deck *deck_create(
    const fl_section *extra, int nextra); /* all defaults, run.out as the row has it */
typedef struct deck_origin {
    int line;   /* of the text; 0 = not given there */
    int set;    /* 1 + index of the last --set that gave it; 0 = none */
    bool wrong; /* a mistake was reported: rules about it are silent */
} deck_origin;
typedef struct deck_work {
    fl_deck *deck;    /* owned until handed out */
    const char *name; /* borrowed, for messages */
    int nsets;
    const char *const *set; /* borrowed [nsets] */
    deck_origin **origin;   /* owned [nsections][fields of the section] */
    int *opened;            /* owned [nsections]: line where the section began, 0 = not yet */
    int nmistakes;
} deck_work;
/* ---- rules.c ---- what several keys must fulfil together; mistakes go through deck_rule_fail */
void deck_rules(deck_work *w);
/* Unless a or b ("section.key"; b may be NULL) is already known to be wrong: a mistake that starts
 * with a, at the place where a, else b, was given. */
void deck_rule_fail(deck_work *w, const char *a, const char *b, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
#endif
