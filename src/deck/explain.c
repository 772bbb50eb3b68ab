/* explain.c - the rows as help: `fedlora explain` and the reference page. */
#include "deck_internal.h"
#include <string.h>

static void explain_row(const fl_field *f, fl_text *t)
{
    fl_text range = {0};

    fl_text_add(t, "  type     ");
    deck_type_text(f, t);
    deck_range_text(f, " or ", &range);
    if (range.n > 0) {
        fl_text_add(t, "\n  %s%s", f->words ? "choices  " : "range    ", range.s);
    }
    fl_text_free(&range);
    if (*f->unit) {
        fl_text_add(t, "\n  unit     %s", f->unit);
    }
    fl_text_add(t, "\n  default  ");
    deck_preset_text(f, t);
    fl_text_add(
        t, "\n  resume   %s\n", f->flags & FL_FREE_KEY ? "may be changed" : "must stay the same");
}

static void explain_section(const fl_section *s, fl_text *t)
{
    int n = deck_count_fields(s);

    fl_text_add(t, "%s: %s\n", s->name, s->help);
    if (n == 0) {
        fl_text_add(t, "  no keys; write %s: {}\n", s->name);
    }
    for (int j = 0; j < n; j++) {
        fl_text_add(t, "  %-14s %s\n", s->fields[j].name, s->fields[j].help);
    }
}

fl_err fl_deck_explain(const char *what, const fl_section *extra, int nextra, fl_text *t)
{
    char *section = fl_strdup(what), *dot = strchr(section, '.'), shown[DECK_SHOW];
    const char *key = NULL;
    fl_text hint = {0};
    fl_err err = FL_OK;

    if (dot) {
        *dot = '\0';
        key = dot + 1;
    }
    int i = deck_find_section(extra, nextra, section);
    int j = i >= 0 && key ? deck_find_field(deck_section(extra, i), key) : -1;

    deck_clean(what, shown);
    if (i >= 0 && !key) {
        explain_section(deck_section(extra, i), t);
    } else if (j >= 0) {
        const fl_section *s = deck_section(extra, i);

        fl_text_add(t, "%s.%s: %s\n", s->name, s->fields[j].name, s->fields[j].help);
        explain_row(&s->fields[j], t);
    } else {
        fl_text_add(&hint, "%s", i >= 0 ? "unknown key" : "unknown section");
        if (i < 0) {
            deck_nearest_section(extra, nextra, section, &hint);
        }
        if (!strchr(hint.s, ';')) { /* "lr" alone: the key of that name */
            deck_nearest_key(extra, nextra, section, key ? key : section, &hint);
        }
        err = fl_fail(FL_EUSAGE, "%s: %s", shown, hint.s);
    }
    fl_text_free(&hint);
    fl_free(section);
    return err;
}

/* In a table of Markdown a bar separates cells, also within `code`. */
static void reference_cell(const char *s, fl_text *t)
{
    for (; *s; s++) {
        if (*s == '|') {
            fl_text_add(t, "\\");
        }
        fl_text_bytes(t, s, 1);
    }
}

static void reference_row(const fl_field *f, fl_text *t)
{
    fl_text preset = {0}, range = {0};

    fl_text_add(t, "| `%s` | ", f->name);
    deck_type_text(f, t);
    deck_range_text(f, ", ", &range);
    fl_text_add(t, " | ");
    reference_cell(range.n > 0 ? range.s : "", t);
    fl_text_add(t, " | %s | `", f->unit);
    deck_preset_text(f, &preset);
    reference_cell(preset.s, t);
    fl_text_add(t, "` | ");
    reference_cell(f->help, t);
    fl_text_add(t, "%s |\n", f->flags & FL_FREE_KEY ? " *" : "");
    fl_text_free(&preset);
    fl_text_free(&range);
}

void fl_deck_reference(const fl_section *extra, int nextra, fl_text *t)
{
    fl_text_add(t, "# Deck keys\n\n"
                   "Written by `make reference` from the rows that the program parses by; `fedlora "
                   "explain section.key` prints one.\n"
                   "A star behind the help: the key may be changed when a run is resumed.\n");
    for (int i = 0; i < deck_nsections(nextra); i++) {
        const fl_section *s = deck_section(extra, i);
        int n = deck_count_fields(s);

        fl_text_add(t, "\n## %s\n\n", s->name);
        reference_cell(s->help, t);
        if (n == 0) {
            fl_text_add(t, "; no keys: write `%s: {}`", s->name);
        }
        fl_text_add(t, "\n");
        if (n > 0) {
            fl_text_add(t, "\n| key | type | range or choices | unit | default | meaning |\n| --- "
                           "| --- | --- | --- | --- | --- |\n");
        }
        for (int j = 0; j < n; j++) {
            reference_row(&s->fields[j], t);
        }
    }
}
