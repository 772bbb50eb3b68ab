/* nearest.c - "did you mean": the nearest choice, section or key to what was written. */
#include "deck_internal.h"
#include <string.h>

enum {
    LONGEST = 40
}; /* longer names are no slips of the pen; keeps the edit distance cheap on hostile input */

/* Edit distance, or -1 when so far that the proposal would puzzle. A name continued (batch_size) or
 * cut short (optim) is near. */
static int nearest_distance(const char *given, const char *candidate)
{
    size_t ng = strlen(given), nc = strlen(candidate), shorter = FL_MIN(ng, nc);

    if (ng == 0 || ng > LONGEST || nc > LONGEST) {
        return -1;
    }
    int d = fl_edit_distance(given, candidate), limit = FL_MIN(3, FL_MAX(1, (int)ng / 2));

    if (d <= limit && (size_t)d < nc) {
        return d;
    }
    return shorter >= 3 && strncmp(given, candidate, shorter) == 0 ? limit : -1;
}

typedef struct best {
    int distance; /* -1 = none yet */
    char name[2 * LONGEST + 2];
} best;

static void nearest_offer(best *b, const char *given, const char *candidate, const char *prefix)
{
    int d = nearest_distance(given, candidate);

    if (d >= 0 && (b->distance < 0 || d < b->distance)) {
        b->distance = d;
        snprintf(b->name, sizeof b->name, "%s%s%s", prefix, *prefix ? "." : "", candidate);
    }
}

static void nearest_say(const best *b, fl_text *t)
{
    if (b->distance >= 0) {
        fl_text_add(t, "; did you mean %s?", b->name);
    }
}

void deck_nearest_word(const char *words, const char *given, fl_text *t)
{
    best b = {.distance = -1};
    size_t n;
    const char *w;

    for (int i = 0; (w = deck_word(words, i, &n)) != NULL; i++) {
        char word[LONGEST + 1];

        snprintf(word, sizeof word, "%.*s", (int)FL_MIN(n, (size_t)LONGEST), w);
        nearest_offer(&b, given, word, "");
    }
    nearest_say(&b, t);
}

void deck_nearest_section(const fl_section *extra, int nextra, const char *given, fl_text *t)
{
    best b = {.distance = -1};

    for (int i = 0; i < deck_nsections(nextra); i++) {
        nearest_offer(&b, given, deck_section(extra, i)->name, "");
    }
    nearest_say(&b, t);
}

/* A near key of the same section first; else a key of exactly this name elsewhere (seed, written
 * under train). */
void deck_nearest_key(
    const fl_section *extra, int nextra, const char *section, const char *key, fl_text *t)
{
    int s = deck_find_section(extra, nextra, section);
    best b = {.distance = -1};

    if (s >= 0) {
        const fl_section *sec = deck_section(extra, s);

        for (int i = 0; i < deck_count_fields(sec); i++) {
            nearest_offer(&b, key, sec->fields[i].name, sec->name);
        }
    }
    for (int i = 0; i < deck_nsections(nextra) && b.distance < 0; i++) {
        const fl_section *sec = deck_section(extra, i);
        int at = deck_find_field(sec, key);

        if (at >= 0) {
            nearest_offer(&b, key, sec->fields[at].name, sec->name);
        }
    }
    nearest_say(&b, t);
}
