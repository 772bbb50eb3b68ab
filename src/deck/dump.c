/* dump.c - the deck in force as YAML, and its digest: one canonical text per row. */
#include "deck_internal.h"

enum { HELP_COLUMN = 30 };

/* behind the value: help (unit; range; default) */
static void dump_comment(const fl_field *f, size_t width, fl_text *t)
{
    const char *sep = "";

    fl_text_add(t, "%*s# %s (", width < HELP_COLUMN ? (int)(HELP_COLUMN - width) : 1, "", f->help);
    if (*f->unit) {
        fl_text_add(t, "%s", f->unit);
        sep = "; ";
    }
    fl_text range = {0};
    deck_range_text(f, " or ", &range);
    if (range.n > 0) {
        fl_text_add(t, "%s%s", sep, range.s);
        sep = "; ";
    }
    fl_text_free(&range);
    fl_text_add(t, "%sdefault ", sep);
    deck_preset_text(f, t);
    fl_text_add(t, ")");
}

static void dump_section(const fl_deck *deck, int i, bool comments, fl_text *t)
{
    const fl_section *s = deck_section(deck->extra, i);
    int n = deck_count_fields(s);

    if (comments) {
        fl_text_add(t, "%s# %s\n", i ? "\n" : "", s->help);
    }
    if (n == 0) {
        fl_text_add(t, "%s: {}\n", s->name);
        return;
    }
    fl_text_add(t, "%s:\n", s->name);
    for (int j = 0; j < n; j++) {
        size_t start = t->n;

        fl_text_add(t, "  %s: ", s->fields[j].name);
        deck_field_text(&s->fields[j], deck_struct(deck, i), t);
        if (comments) {
            dump_comment(&s->fields[j], t->n - start, t);
        }
        fl_text_add(t, "\n");
    }
}

void fl_deck_dump(const fl_deck *deck, bool comments, fl_text *t)
{
    for (int i = 0; i < deck_nsections(deck->nextra); i++) {
        if (deck_in_use(deck, i)) {
            dump_section(deck, i, comments, t);
        }
    }
}

uint64_t fl_deck_digest(const fl_deck *deck)
{
    fl_text t = {0};

    for (int i = 0; i < deck_nsections(deck->nextra); i++) {
        const fl_section *s = deck_section(deck->extra, i);

        for (int j = 0; j < deck_count_fields(s) && deck_in_use(deck, i); j++) {
            if (!(s->fields[j].flags & FL_FREE_KEY)) {
                fl_text_add(&t, "%s.%s: ", s->name, s->fields[j].name);
                deck_field_text(&s->fields[j], deck_struct(deck, i), &t);
                fl_text_add(&t, "\n");
            }
        }
    }
    uint64_t digest = fl_hash(t.s, t.n, 0);

    fl_text_free(&t);
    return digest;
}
