/* yaml.c - the text of a deck -> entries (section, key, value, line) by libyaml's events. Knows
 * nothing about keys.
 *
 * A deck is one YAML document: a mapping of sections, each a mapping of keys to a scalar or to a
 * list of scalars. What YAML allows beyond that (anchors, aliases, tags, several documents, deeper
 * nesting, zero bytes) becomes an entry with `wrong`. Events, not documents: libyaml's documents
 * resolve aliases silently and recurse. */
#include "deck_internal.h"
#include <string.h>
#include <yaml.h>

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; zeroed = none */
    const char *text;   /* borrowed [n] */
    size_t n;
    char *syntax;     /* owned: the sentence of the syntax error that stopped the reader */
    int line, column; /* where */
} reader;

void deck_value_free(deck_value *value)
{
    for (int i = 0; i < value->n; i++) {
        fl_free(value->x[i].s);
    }
    fl_free(value->x);
    *value = (deck_value){0};
}

void deck_entries_free(deck_entries *entries)
{
    for (int i = 0; i < entries->n; i++) {
        deck_entry *e = &entries->x[i];

        fl_free(e->section);
        fl_free(e->key);
        fl_free(e->wrong);
        deck_value_free(&e->value);
    }
    fl_free(entries->x);
    *entries = (deck_entries){0};
}

/* The new entry, valid until the next one. section and key are copied, NULL stays NULL. */
static deck_entry *entries_add(deck_entries *out, int line, const char *section, const char *key)
{
    if (out->n == out->room) {
        out->room = out->room ? 2 * out->room : 64;
        out->x = fl_realloc("deck entries", out->x, (size_t)out->room, sizeof *out->x);
    }
    deck_entry *e = &out->x[out->n++];

    *e = (deck_entry){.line = line};
    e->section = section ? fl_strdup(section) : NULL;
    e->key = key ? fl_strdup(key) : NULL;
    return e;
}

static void value_add(deck_value *value, const char *s, bool plain)
{
    if (value->n == value->room) {
        value->room = value->room ? 2 * value->room : 4;
        value->x = fl_realloc("deck value", value->x, (size_t)value->room, sizeof *value->x);
    }
    value->x[value->n++] = (deck_scalar){fl_strdup(s), plain};
}

/* ---- events ---- */

static void reader_open(reader *r, const char *text, size_t n)
{
    *r = (reader){.text = text, .n = n};
    FL_REQUIRE(yaml_parser_initialize(&r->parser));
    yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, n);
}

static void reader_close(reader *r)
{
    yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
    fl_free(r->syntax);
}

/* The sentence of libyaml's error, with a hint for the two mistakes people make: tabs and another
 * encoding. */
static void reader_syntax(reader *r)
{
    const yaml_parser_t *p = &r->parser;
    const char *problem = p->problem ? p->problem : "not YAML";
    fl_text t = {0};

    FL_REQUIRE(p->error != YAML_MEMORY_ERROR);
    if (p->error == YAML_READER_ERROR) { /* has no mark: count the lines before the byte */
        size_t end = FL_MIN(p->problem_offset, r->n);

        r->line = 1;
        for (size_t i = 0; i < end; i++) {
            r->line += r->text[i] == '\n';
        }
        fl_text_add(&t, "%s at byte %zu; a deck is UTF-8 text", problem, p->problem_offset);
    } else {
        r->line = (int)p->problem_mark.line + 1;
        r->column = (int)p->problem_mark.column + 1;
        fl_text_add(&t, "%s", problem);
        if (p->context) {
            fl_text_add(&t, " %s (from line %zu)", p->context, p->context_mark.line + 1);
        }
        if (strstr(problem, "cannot start any token") && memchr(r->text, '\t', r->n)) {
            fl_text_add(&t, "; indent with spaces, not with tabs");
        }
    }
    r->syntax = t.s;
}

/* Steps to the next event. false: syntax error, or after the end. */
static bool reader_next(reader *r)
{
    yaml_event_delete(&r->event);
    memset(&r->event, 0, sizeof r->event);
    if (r->syntax) {
        return false;
    }
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        memset(&r->event, 0, sizeof r->event);
        reader_syntax(r);
        return false;
    }
    return r->event.type != YAML_NO_EVENT;
}

static int reader_line(const reader *r)
{
    return (int)r->event.start_mark.line + 1;
}

static bool reader_starts_node(const reader *r)
{
    return r->event.type == YAML_MAPPING_START_EVENT || r->event.type == YAML_SEQUENCE_START_EVENT;
}

/* From the first event of a node to its last. */
static bool reader_skip(reader *r)
{
    int depth = reader_starts_node(r);

    while (depth > 0) {
        if (!reader_next(r)) {
            return false;
        }
        depth += reader_starts_node(r);
        depth -=
            r->event.type == YAML_MAPPING_END_EVENT || r->event.type == YAML_SEQUENCE_END_EVENT;
    }
    return true;
}

/* What of the current node has no place anywhere in a deck; NULL = nothing. */
static const char *reader_refuses(const reader *r)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    const yaml_event_t *e = &r->event;

    if (e->type == YAML_ALIAS_EVENT) {
        return "aliases are not allowed; write the value out";
    }
    if (e->type == YAML_SCALAR_EVENT) {
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
        if (memchr(e->data.scalar.value, 0, e->data.scalar.length)) {
            return "a zero byte is not allowed";
        }
    } else if (e->type == YAML_SEQUENCE_START_EVENT) {
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
    } else if (e->type == YAML_MAPPING_START_EVENT) {
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
    }
    return anchor ? "anchors are not allowed"
           : tag  ? "tags are not allowed; types follow from the key"
                  : NULL;
}

static const char *reader_scalar(const reader *r)
{
    return (const char *)r->event.data.scalar.value;
}

static bool reader_is_plain(const reader *r)
{
    return r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* Reads the value that starts at the current event, to its last event. Returns what is wrong with
 * it, NULL = nothing (or a syntax error, which r->syntax tells). */
static const char *reader_value(reader *r, deck_value *value)
{
    const char *wrong = reader_refuses(r);

    if (!wrong && r->event.type == YAML_MAPPING_START_EVENT) {
        wrong = "keys within keys where a value or a list belongs";
    }
    if (wrong || r->event.type == YAML_SCALAR_EVENT) {
        if (!wrong) {
            value_add(value, reader_scalar(r), reader_is_plain(r));
        }
        reader_skip(r);
        return wrong;
    }
    value->list = true;
    while (reader_next(r) && r->event.type != YAML_SEQUENCE_END_EVENT) {
        const char *bad = reader_refuses(r);

        if (!bad && r->event.type != YAML_SCALAR_EVENT) {
            bad = "a list within the list";
        }
        if (!bad) {
            value_add(value, reader_scalar(r), reader_is_plain(r));
        } else if (!wrong) {
            wrong = bad;
        }
        if (!reader_skip(r)) {
            break;
        }
    }
    return wrong;
}

/* ---- the deck ---- */

/* Reads a key's scalar; NULL = recorded as wrong and skipped (with the value), or a syntax error.
 * Owned by the caller. */
static char *read_key(reader *r, const char *section, deck_entries *out)
{
    const char *wrong = reader_refuses(r);

    if (!wrong && r->event.type != YAML_SCALAR_EVENT) {
        wrong = "a name belongs here";
    }
    if (!wrong) {
        return fl_strdup(reader_scalar(r));
    }
    entries_add(out, reader_line(r), section, NULL)->wrong = fl_strdup(wrong);
    if (reader_skip(r) && reader_next(r)) {
        reader_skip(r);
    }
    return NULL;
}

static void read_keys(reader *r, const char *section, deck_entries *out)
{
    while (reader_next(r) && r->event.type != YAML_MAPPING_END_EVENT) {
        int line = reader_line(r);
        char *key = read_key(r, section, out);

        if (!key) {
            continue;
        }
        if (reader_next(r)) {
            deck_value value = {0};
            const char *wrong = reader_value(r, &value);

            if (r->syntax || wrong) {
                deck_value_free(&value);
            }
            if (!r->syntax) {
                deck_entry *e = entries_add(out, line, section, key);

                e->value = value;
                e->wrong = wrong ? fl_strdup(wrong) : NULL;
            }
        }
        fl_free(key);
    }
}

static void read_section(reader *r, deck_entries *out)
{
    int line = reader_line(r);
    char *section = read_key(r, NULL, out);

    if (!section) {
        return;
    }
    if (reader_next(r)) {
        const char *wrong = reader_refuses(r);
        deck_entry *e = entries_add(out, line, section, NULL);

        if (!wrong && r->event.type != YAML_MAPPING_START_EVENT) {
            wrong = "a section holds keys; write {} for none";
        }
        e->wrong = wrong ? fl_strdup(wrong) : NULL;
        if (wrong) {
            reader_skip(r);
        } else {
            read_keys(r, section, out);
        }
    }
    fl_free(section);
}

static void read_document(reader *r, deck_entries *out)
{
    const char *wrong = reader_refuses(r);

    if (!wrong && r->event.type == YAML_SCALAR_EVENT && reader_is_plain(r) &&
        *reader_scalar(r) == '\0') {
        wrong = "the deck is empty; `fedlora deck` prints a complete one";
    }
    if (!wrong && r->event.type != YAML_MAPPING_START_EVENT) {
        wrong = "a deck is made of sections, each with its keys (run: {seed: 1})";
    }
    if (wrong) {
        entries_add(out, reader_line(r), NULL, NULL)->wrong = fl_strdup(wrong);
        reader_skip(r);
        return;
    }
    while (reader_next(r) && r->event.type != YAML_MAPPING_END_EVENT) {
        read_section(r, out);
    }
}

void deck_read(const char *text, size_t n, deck_entries *out)
{
    reader r;
    int ndocuments = 0;

    *out = (deck_entries){0};
    if (n > DECK_MAX_BYTES) {
        entries_add(out, 0, NULL, NULL)->wrong = fl_strdup("larger than 1 MiB; this is not a deck");
        return;
    }
    reader_open(&r, text, n);
    while (reader_next(&r) && r.event.type != YAML_STREAM_END_EVENT) {
        if (r.event.type != YAML_DOCUMENT_START_EVENT) {
            continue;
        }
        if (++ndocuments > 1) {
            entries_add(out, reader_line(&r), NULL, NULL)->wrong =
                fl_strdup("a second document begins; a deck is one");
            break;
        }
        if (reader_next(&r)) {
            read_document(&r, out);
        }
    }
    if (r.syntax) {
        deck_entry *e = entries_add(out, r.line, NULL, NULL);

        e->column = r.column;
        e->syntax = true;
        e->wrong = fl_strdup(r.syntax);
    } else if (ndocuments == 0) {
        entries_add(out, 0, NULL, NULL)->wrong =
            fl_strdup("the deck is empty; `fedlora deck` prints a complete one");
    }
    reader_close(&r);
}

char *deck_read_value(const char *text, size_t n, deck_value *value)
{
    reader r;
    char *wrong = NULL;

    *value = (deck_value){0};
    if (n > DECK_MAX_BYTES) {
        return fl_strdup("longer than 1 MiB");
    }
    reader_open(&r, text, n);
    /* stream start, document start, the value; an empty text has no document */
    if (reader_next(&r) && reader_next(&r) && r.event.type == YAML_DOCUMENT_START_EVENT &&
        reader_next(&r)) {
        const char *bad = reader_value(&r, value);

        wrong = bad ? fl_strdup(bad) : NULL;
        while (!wrong && reader_next(&r) && r.event.type != YAML_STREAM_END_EVENT) {
            if (r.event.type == YAML_DOCUMENT_START_EVENT) {
                wrong = fl_strdup("one value, not several documents");
            }
        }
    } else if (!r.syntax) {
        value_add(value, "", true);
    }
    if (r.syntax && !wrong) {
        wrong = fl_strdup(r.syntax);
    }
    if (wrong) {
        deck_value_free(value);
    }
    reader_close(&r);
    return wrong;
}
