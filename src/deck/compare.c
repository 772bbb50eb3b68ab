/* compare.c - which keys of a deck differ from those stored with a checkpoint, free keys left out.
 */
#include "deck_internal.h"
#include <string.h>

typedef struct comparison {
    const fl_deck *deck;
    fl_deck *stored; /* owned: the stored text over the defaults */
    bool **reported; /* owned [nsections][fields]: said already, its value did not parse */
    fl_text *t;      /* borrowed */
    int n;
} comparison;

/* A key of the stored deck into c->stored; what has no row or does not fit its row is a difference
 * of its own. */
static void compare_entry(comparison *c, const deck_entry *e)
{
    const fl_deck *d = c->deck;
    char shown[2][DECK_SHOW];
    int i = deck_find_section(d->extra, d->nextra, e->section);
    int j = i < 0 ? -1 : deck_find_field(deck_section(d->extra, i), e->key);
    const fl_field *f = j < 0 ? NULL : &deck_section(d->extra, i)->fields[j];
    fl_text why = {0}, there = {0};

    if (!e->wrong && f && deck_field_parse(f, &e->value, deck_struct(c->stored, i), &why)) {
        fl_text_free(&why);
        return;
    }
    fl_text_free(&why);
    if (f) {
        c->reported[i][j] = true;
        if (f->flags & FL_FREE_KEY || !deck_in_use(d, i)) {
            return;
        }
    }
    deck_clean(e->section, shown[0]);
    deck_clean(e->key, shown[1]);
    fl_text_add(c->t, "%s.%s: ", shown[0], shown[1]);
    if (f) {
        deck_field_text(f, deck_struct(d, i), c->t);
    } else {
        fl_text_add(c->t, "unknown");
    }
    deck_value_text(&e->value, &there);
    deck_clean(e->wrong ? e->wrong : there.s, shown[0]);
    fl_text_add(c->t, " here, %s in the checkpoint\n", shown[0]);
    fl_text_free(&there);
    c->n++;
}

static void compare_row(comparison *c, int i, int j)
{
    const fl_section *s = deck_section(c->deck->extra, i);
    const fl_field *f = &s->fields[j];
    fl_text here = {0}, there = {0};

    deck_field_text(f, deck_struct(c->deck, i), &here);
    deck_field_text(f, deck_struct(c->stored, i), &there);
    if (strcmp(here.s, there.s) != 0) {
        fl_text_add(
            c->t, "%s.%s: %s here, %s in the checkpoint\n", s->name, f->name, here.s, there.s);
        c->n++;
    }
    fl_text_free(&here);
    fl_text_free(&there);
}

static void compare_rows(comparison *c)
{
    const fl_deck *d = c->deck;
    bool same_method = strcmp(d->method.name, c->stored->method.name) == 0;
    int nbuiltin;

    (void)fl_deck_sections(&nbuiltin);
    for (int i = 0; i < deck_nsections(d->nextra); i++) {
        /* another method's name is the difference; its keys against our defaults would only hide
         * that */
        if (!deck_in_use(d, i) || (i >= nbuiltin && !same_method)) {
            continue;
        }
        const fl_section *s = deck_section(d->extra, i);

        for (int j = 0; j < deck_count_fields(s); j++) {
            if (!(s->fields[j].flags & FL_FREE_KEY) && !c->reported[i][j]) {
                compare_row(c, i, j);
            }
        }
    }
}

int fl_deck_compare(const fl_deck *deck, const char *stored, size_t n, const fl_section *extra,
    int nextra, fl_text *t)
{
    FL_REQUIRE(deck->nextra == nextra); /* sections are compared by number */
    comparison c = {.deck = deck, .stored = deck_create(extra, nextra), .t = t};
    deck_entries entries;
    const char *wrong = NULL;

    c.reported = fl_alloc("deck compare", (size_t)deck_nsections(nextra), sizeof *c.reported);
    for (int i = 0; i < deck_nsections(nextra); i++) {
        int nfields = deck_count_fields(deck_section(extra, i));

        c.reported[i] = fl_alloc("deck compare", (size_t)nfields, sizeof *c.reported[i]);
    }
    deck_read(stored, n, &entries);
    for (int i = 0; i < entries.n; i++) {
        wrong = entries.x[i].wrong && !entries.x[i].key ? entries.x[i].wrong : wrong;
    }
    if (wrong) { /* not a dump: values cannot be told */
        fl_text_add(t, "the checkpoint's deck cannot be read: %s\n", wrong);
        c.n = 1;
    }
    for (int i = 0; i < entries.n && !wrong; i++) {
        if (entries.x[i].key) {
            compare_entry(&c, &entries.x[i]);
        }
    }
    if (!wrong) {
        compare_rows(&c);
    }
    deck_entries_free(&entries);
    for (int i = 0; i < deck_nsections(nextra); i++) {
        fl_free(c.reported[i]);
    }
    fl_free(c.reported);
    fl_deck_destroy(&c.stored);
    return c.n;
}
