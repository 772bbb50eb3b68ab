/* parse.c - text and --set -> the deck. Every mistake is reported with its place; the deck exists
 * only without any. */
#include "deck_internal.h"
#include <string.h>

/* ---- the deck ---- */

fl_deck *deck_create(const fl_section *extra, int nextra)
{
    fl_deck *deck = fl_alloc("deck", 1, sizeof *deck);

    deck->extra = extra;
    deck->nextra = nextra;
    deck->config = fl_alloc("deck config", (size_t)nextra, sizeof *deck->config);
    for (int i = 0; i < nextra; i++) {
        deck->config[i] = fl_alloc(extra[i].name, extra[i].size, 1);
    }
    for (int i = 0; i < deck_nsections(nextra); i++) {
        const fl_section *s = deck_section(extra, i);

        FL_REQUIRE(deck_find_section(extra, nextra, s->name) == i); /* names are unique */
        for (int j = 0; j < deck_count_fields(s); j++) {
            deck_field_default(&s->fields[j], deck_struct(deck, i));
        }
    }
    return deck;
}

void fl_deck_destroy(fl_deck **deck)
{
    fl_deck *d = *deck;

    if (!d) {
        return;
    }
    for (int i = 0; i < deck_nsections(d->nextra); i++) {
        const fl_section *s = deck_section(d->extra, i);

        for (int j = 0; j < deck_count_fields(s); j++) {
            deck_field_free(&s->fields[j], deck_struct(d, i));
        }
    }
    for (int i = 0; i < d->nextra; i++) {
        fl_free(d->config[i]);
    }
    fl_free(d->config);
    fl_free(d);
    *deck = NULL;
}

const void *fl_deck_config(const fl_deck *deck, const char *section)
{
    for (int i = 0; i < deck->nextra; i++) {
        if (strcmp(deck->extra[i].name, section) == 0) {
            return deck->config[i];
        }
    }
    return NULL;
}

/* ---- mistakes ---- */

/* "name:line: section.key: sentence"; parts that are 0 or NULL are left out. */
static void mistake_text(
    deck_work *w, int line, int column, const char *section, const char *key, const char *sentence)
{
    char clean[2][DECK_SHOW];
    fl_text t = {0};

    if (++w->nmistakes > DECK_MAX_MISTAKES) {
        return;
    }
    fl_text_add(&t, "%s:", w->name);
    if (line > 0) {
        fl_text_add(&t, "%d:", line);
    }
    if (column > 0) {
        fl_text_add(&t, "%d:", column);
    }
    if (section) {
        deck_clean(section, clean[0]);
        fl_text_add(&t, " %s", clean[0]);
        if (key) {
            deck_clean(key, clean[1]);
            fl_text_add(&t, ".%s", clean[1]);
        }
        fl_text_add(&t, ":");
    }
    fl_fail(FL_EDECK, "%s %s", t.s, sentence);
    fl_text_free(&t);
}

static void mistake_set(deck_work *w, int set, const char *sentence)
{
    char clean[DECK_SHOW];

    if (++w->nmistakes <= DECK_MAX_MISTAKES) {
        deck_clean(w->set[set], clean);
        fl_fail(FL_EDECK, "--set %s: %s", clean, sentence);
    }
}

static deck_origin *origin_of(deck_work *w, const char *path)
{
    char section[64];
    const char *dot = strchr(path, '.');

    snprintf(section, sizeof section, "%.*s", (int)(dot - path), path);
    int i = deck_find_section(w->deck->extra, w->deck->nextra, section);
    int j = deck_find_field(deck_section(w->deck->extra, i), dot + 1);

    FL_REQUIRE(j >= 0);
    return &w->origin[i][j];
}

void deck_rule_fail(deck_work *w, const char *a, const char *b, const char *format, ...)
{
    const deck_origin *oa = origin_of(w, a), *ob = b ? origin_of(w, b) : oa;
    const deck_origin *at = oa->set || (oa->line && !ob->set) ? oa : ob;
    fl_text t = {0};
    char sentence[400];
    va_list args;

    if (oa->wrong || ob->wrong) {
        return;
    }
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    fl_text_add(&t, "%s: %s", a, sentence);
    if (at->set) {
        mistake_set(w, at->set - 1, t.s);
    } else {
        char line[16] = "";

        if (at->line) {
            snprintf(line, sizeof line, "%d:", at->line);
        }
        if (++w->nmistakes <= DECK_MAX_MISTAKES) {
            fl_fail(FL_EDECK, "%s:%s %s", w->name, line, t.s);
        }
    }
    fl_text_free(&t);
}

/* ---- entries of the text ---- */

static void apply_section(deck_work *w, const deck_entry *e)
{
    const fl_deck *d = w->deck;
    int i = deck_find_section(d->extra, d->nextra, e->section);
    fl_text t = {0};

    if (i < 0) {
        fl_text_add(&t, "unknown section");
        deck_nearest_section(d->extra, d->nextra, e->section, &t);
        mistake_text(w, e->line, 0, e->section, NULL, t.s);
    } else if (w->opened[i]) {
        fl_text_add(&t, "the section occurs twice; it began on line %d", w->opened[i]);
        mistake_text(w, e->line, 0, e->section, NULL, t.s);
    } else {
        w->opened[i] = e->line;
    }
    fl_text_free(&t);
}

static void apply_key(deck_work *w, const deck_entry *e)
{
    const fl_deck *d = w->deck;
    int i = deck_find_section(d->extra, d->nextra, e->section);
    fl_text t = {0};

    if (i < 0) {
        return; /* said when the section began */
    }
    const fl_section *s = deck_section(d->extra, i);
    int j = deck_find_field(s, e->key);
    deck_origin *o = j >= 0 ? &w->origin[i][j] : NULL;
    bool wrong = true;

    if (!o) {
        fl_text_add(&t, "unknown key");
        deck_nearest_key(d->extra, d->nextra, e->section, e->key, &t);
    } else if (o->line) {
        fl_text_add(&t, "the key occurs twice; it is on line %d already", o->line);
    } else if (e->wrong) {
        fl_text_add(&t, "%s", e->wrong);
    } else {
        wrong = !deck_field_parse(&s->fields[j], &e->value, deck_struct(d, i), &t);
    }
    if (o) {
        o->wrong |= wrong;
        o->line = o->line ? o->line : e->line;
    }
    if (wrong) {
        mistake_text(w, e->line, 0, e->section, e->key, t.s);
    }
    fl_text_free(&t);
}

static void apply_text(deck_work *w, const char *text, size_t n)
{
    deck_entries entries;

    deck_read(text, n, &entries);
    /* "{seed: 1" without its brace makes "1 train" the seed: say only where the syntax broke */
    bool broken = entries.n > 0 && entries.x[entries.n - 1].syntax;

    for (int i = broken ? entries.n - 1 : 0; i < entries.n; i++) {
        const deck_entry *e = &entries.x[i];

        if (e->key) {
            apply_key(w, e);
            continue;
        }
        if (e->section && !e->wrong) {
            apply_section(w, e);
        } else {
            mistake_text(w, e->line, e->column, e->section, NULL, e->wrong);
        }
    }
    deck_entries_free(&entries);
}

/* ---- --set section.key=value ---- */

static void apply_set_value(deck_work *w, int set, int section, int field, const char *value)
{
    const fl_section *s = deck_section(w->deck->extra, section);
    deck_origin *o = &w->origin[section][field];
    deck_value v;
    fl_text t = {0};
    char *wrong = deck_read_value(value, strlen(value), &v);

    o->set = set + 1;
    if (wrong) {
        fl_text_add(&t, "%s", wrong);
    } else {
        deck_field_parse(&s->fields[field], &v, deck_struct(w->deck, section), &t);
    }
    if (t.n > 0) {
        o->wrong = true;
        mistake_set(w, set, t.s);
    }
    deck_value_free(&v);
    fl_free(wrong);
    fl_text_free(&t);
}

/* A later --set of the same key wins: scripts append their own. */
static void apply_set(deck_work *w, int set)
{
    const fl_deck *d = w->deck;
    char *name = fl_strdup(w->set[set]), *equals = strchr(name, '='), *dot = NULL;
    fl_text t = {0};

    if (equals) {
        *equals = '\0';
        dot = strchr(name, '.');
    }
    if (!equals || !dot) {
        fl_text_add(&t, "write it as section.key=value");
        deck_nearest_key(d->extra, d->nextra, "", name, &t);
    } else {
        *dot = '\0';
        int i = deck_find_section(d->extra, d->nextra, name);
        int j = i < 0 ? -1 : deck_find_field(deck_section(d->extra, i), dot + 1);

        if (i < 0) {
            fl_text_add(&t, "unknown section");
            deck_nearest_section(d->extra, d->nextra, name, &t);
        } else if (j < 0) {
            fl_text_add(&t, "unknown key");
            deck_nearest_key(d->extra, d->nextra, name, dot + 1, &t);
        } else {
            apply_set_value(w, set, i, j, equals + 1);
        }
    }
    if (t.n > 0) {
        mistake_set(w, set, t.s);
    }
    fl_text_free(&t);
    fl_free(name);
}

/* ---- all of it ---- */

static void work_open(deck_work *w)
{
    int n = deck_nsections(w->deck->nextra);

    w->opened = fl_alloc("deck lines", (size_t)n, sizeof *w->opened);
    w->origin = fl_alloc("deck origins", (size_t)n, sizeof *w->origin);
    for (int i = 0; i < n; i++) {
        int nfields = deck_count_fields(deck_section(w->deck->extra, i));

        w->origin[i] = fl_alloc("deck origins", (size_t)nfields, sizeof *w->origin[i]);
    }
}

static void work_close(deck_work *w)
{
    for (int i = 0; i < deck_nsections(w->deck->nextra); i++) {
        fl_free(w->origin[i]);
    }
    fl_free(w->origin);
    fl_free(w->opened);
}

/* the one default that depends on another key */
static void default_out(fl_deck *deck)
{
    if (*deck->run.out == '\0') {
        fl_text t = {0};

        fl_text_add(&t, "runs/%s", deck->run.name);
        fl_free(deck->run.out);
        deck->run.out = fl_strdup(t.s);
        fl_text_free(&t);
    }
}

fl_err fl_deck_parse(const char *text, size_t n, const char *name, int nsets,
    const char *const *sets, const fl_section *extra, int nextra, fl_deck **deck)
{
    deck_work w = {.deck = deck_create(extra, nextra),
        .name = name ? name : "deck",
        .nsets = nsets,
        .set = sets};

    *deck = NULL;
    work_open(&w);
    if (text) {
        apply_text(&w, text, n);
    }
    for (int i = 0; i < nsets; i++) {
        apply_set(&w, i);
    }
    deck_rules(&w);
    work_close(&w);
    if (w.nmistakes > 0) {
        fl_deck_destroy(&w.deck);
        return w.nmistakes <= DECK_MAX_MISTAKES
                   ? FL_EDECK
                   : fl_fail(FL_EDECK, "%s: %d more mistakes are not shown", w.name,
                         w.nmistakes - DECK_MAX_MISTAKES);
    }
    default_out(w.deck);
    *deck = w.deck;
    return FL_OK;
}
