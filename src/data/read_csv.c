/* read_csv.c - comma separated values to records, after RFC 4180: a header line, fields in double
 * quotes may hold commas, line ends and doubled quotes. Local. Beyond the RFC: LF alone ends a
 * line; a UTF-8 byte order mark is skipped; empty lines are skipped; a quote inside an unquoted
 * field is a character; CR LF inside quotes becomes LF. A record is the text of column data.field,
 * ending in \n. */
#include "data_internal.h"
#include <string.h>

typedef struct csv_reader {
    const char *at, *end, *name;
    int64_t line;   /* of `at`, from 1 */
    int64_t row;    /* line where the present row began */
    fl_text text;   /* owned; fields of the present row, each with a NUL */
    size_t *start;  /* owned [room + 1]; field i is text[start[i] .. start[i + 1] - 2] */
    size_t n, room; /* fields of the present row */
    size_t ncols;
} csv_reader;

static const char *field_text(const csv_reader *c, size_t i, size_t *n)
{
    *n = c->start[i + 1] - c->start[i] - 1;
    return c->text.s + c->start[i];
}

static void field_close(csv_reader *c)
{
    fl_text_bytes(&c->text, "", 1);
    if (c->n == c->room) {
        c->room = c->room > 0 ? 2 * c->room : 16;
        c->start = fl_realloc("csv fields", c->start, c->room + 1, sizeof *c->start);
    }
    c->start[0] = 0;
    c->start[++c->n] = c->text.n;
}

static bool at_line_end(const csv_reader *c)
{
    return c->at < c->end &&
           (*c->at == '\n' || (*c->at == '\r' && c->at + 1 < c->end && c->at[1] == '\n'));
}

static void skip_line_end(csv_reader *c)
{
    c->at += *c->at == '\r' ? 2 : 1;
    c->line++;
}

static fl_err field_quoted(csv_reader *c)
{
    int64_t began = c->line;

    c->at++;
    while (c->at < c->end) {
        if (*c->at == '"') {
            if (c->at + 1 == c->end || c->at[1] != '"') {
                c->at++;
                if (c->at < c->end && *c->at != ',' && !at_line_end(c)) {
                    return fl_fail(FL_EDECK,
                        "%s:%lld: text after a closing quote; a quote inside quotes is doubled",
                        c->name, (long long)c->line);
                }
                return FL_OK;
            }
            c->at++; /* the first of a pair */
        }
        if (at_line_end(c)) {
            skip_line_end(c);
            fl_text_bytes(&c->text, "\n", 1);
        } else {
            fl_text_bytes(&c->text, c->at++, 1);
        }
    }
    return fl_fail(
        FL_EDECK, "%s:%lld: the quote that opens here is never closed", c->name, (long long)began);
}

static void field_plain(csv_reader *c)
{
    const char *from = c->at;

    while (c->at < c->end && *c->at != ',' && !at_line_end(c)) {
        c->at++;
    }
    fl_text_bytes(&c->text, from, (size_t)(c->at - from));
}

/* *more = false at the end of the file. */
static fl_err row_next(csv_reader *c, bool *more)
{
    while (at_line_end(c)) {
        skip_line_end(c);
    }
    *more = c->at < c->end;
    c->row = c->line;
    c->n = 0;
    c->text.n = 0;
    while (*more) {
        if (c->at < c->end && *c->at == '"') {
            FL_TRY(field_quoted(c));
        } else {
            field_plain(c);
        }
        field_close(c);
        if (c->at == c->end) {
            return FL_OK;
        }
        if (at_line_end(c)) {
            skip_line_end(c);
            return FL_OK;
        }
        c->at++; /* the comma; a field follows, even an empty one at the end of the file */
    }
    return FL_OK;
}

/* Index of the column in the header, which is the present row. */
static fl_err column_find(const csv_reader *c, const char *key, const char *column, size_t *found)
{
    fl_text list = {0};
    size_t n, hits = 0;
    fl_err err = FL_OK;

    for (size_t i = 0; i < c->n; i++) {
        const char *s = field_text(c, i, &n);

        if (strlen(column) == n && memcmp(s, column, n) == 0) {
            *found = i;
            hits++;
        }
        if (list.n < 400) {
            fl_text_add(&list, "%s%.*s", i > 0 ? ", " : "", (int)FL_MIN(n, (size_t)60), s);
        }
    }
    if (hits != 1) {
        err = fl_fail(FL_EDECK, "%s: %s: %s: the header has %s column of this name; it has: %s",
            key, column, c->name, hits == 0 ? "no" : "more than one", list.s);
    }
    fl_text_free(&list);
    return err;
}

/* The key or label of this row goes to `names`; none may be empty. */
static fl_err row_name(const csv_reader *c, size_t column, const char *what, fl_data_names *names)
{
    size_t n;
    const char *s = field_text(c, column, &n);

    if (n == 0) {
        return fl_fail(
            FL_EDECK, "%s:%lld: the %s of this row is empty", c->name, (long long)c->row, what);
    }
    fl_data_names_add(names, s, n);
    return FL_OK;
}

static fl_err csv_records(csv_reader *c, const fl_deck_data *how, fl_data_builder *b)
{
    bool more, has_key = fl_data_given(how->key) && strcmp(how->key, "none") != 0;
    bool has_label = fl_data_given(how->label);
    size_t field = 0, key = 0, label = 0, n;

    FL_TRY(row_next(c, &more));
    if (!more) {
        return fl_fail(FL_EDECK, "%s: is empty; a header line is needed", c->name);
    }
    FL_TRY(column_find(c, "data.field", how->field ? how->field : "", &field));
    if (has_key) {
        FL_TRY(column_find(c, "data.key", how->key, &key));
    }
    if (has_label) {
        FL_TRY(column_find(c, "data.label", how->label, &label));
    }
    c->ncols = c->n;
    while (!fl_data_full(b, how)) {
        FL_TRY(row_next(c, &more));
        if (!more) {
            break;
        }
        if (c->n != c->ncols) {
            return fl_fail(FL_EDECK, "%s:%lld: %zu fields where the header has %zu", c->name,
                (long long)c->row, c->n, c->ncols);
        }
        if (has_key) {
            FL_TRY(row_name(c, key, "client key", &b->key));
        }
        if (has_label) {
            FL_TRY(row_name(c, label, "label", &b->label));
        }
        const char *s = field_text(c, field, &n);

        fl_data_close_text(b, s, n);
    }
    return FL_OK;
}

fl_err fl_read_csv(
    const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r)
{
    csv_reader c = {.name = name, .line = 1};
    fl_data_builder b;
    fl_err err;

    memset(r, 0, sizeof *r);
    FL_TRY(fl_data_refuse_nul(bytes, n, name));
    fl_data_skip_bom(&bytes, &n);
    c.at = bytes;
    c.end = n > 0 ? bytes + n : bytes;
    fl_data_begin(&b, r);
    err = csv_records(&c, how, &b);
    fl_text_free(&c.text);
    fl_free(c.start);
    return fl_data_finish(&b, name, err);
}
