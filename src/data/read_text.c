/* read_text.c - plain text to records: lines, paragraphs or documents. Local.
 * Line ends CR LF become LF. A blank line holds nothing but spaces and tabs.
 *   lines       each line that is not blank, with its \n
 *   paragraphs  runs of lines between blank lines, joined by \n, with a final \n
 *   documents   the lines between separator lines, with a final \n; blank lines at either end are
 * dropped data.key: heading: the first line of a paragraph or document, "NAME:", names the client
 * and stays part of the text. */
#include "data_internal.h"
#include <string.h>

typedef struct text_line {
    const char *s; /* borrowed [n], without its line end */
    size_t n;
    int64_t number; /* from 1 */
} text_line;

typedef struct text_reader {
    const char *at, *end, *name;
    const fl_deck_data *how;
    bool heading, open; /* open: a record has begun */
    int64_t blanks;     /* documents: blank lines seen since the last line of text */
    fl_data_builder b;
} text_reader;

static bool line_next(text_reader *t, text_line *l)
{
    const char *stop;

    if (t->at >= t->end) {
        return false;
    }
    stop = memchr(t->at, '\n', (size_t)(t->end - t->at));
    l->s = t->at;
    l->n = (size_t)((stop ? stop : t->end) - t->at);
    l->number++;
    t->at = stop ? stop + 1 : t->end;
    if (l->n > 0 && l->s[l->n - 1] == '\r') {
        l->n--;
    }
    return true;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static bool line_is_blank(const text_line *l)
{
    for (size_t i = 0; i < l->n; i++) {
        if (!is_space(l->s[i])) {
            return false;
        }
    }
    return true;
}

static fl_err record_heading(text_reader *t, const text_line *l)
{
    const char *s = l->s;
    size_t n = l->n;

    while (n > 0 && is_space(s[n - 1])) {
        n--;
    }
    while (n > 0 && is_space(s[0])) {
        s++;
        n--;
    }
    if (n < 2 || s[n - 1] != ':') {
        return fl_fail(FL_EDECK,
            "%s:%lld: data.key: heading wants a first line \"NAME:\" here; use data.key: none or "
            "mend the file",
            t->name, (long long)l->number);
    }
    fl_data_names_add(&t->b.key, s, n - 1);
    return FL_OK;
}

static fl_err record_line(text_reader *t, const text_line *l)
{
    if (!t->open && t->heading) {
        FL_TRY(record_heading(t, l));
    }
    for (; t->open && t->blanks > 0; t->blanks--) {
        fl_data_add(&t->b, "\n", 1);
    }
    t->blanks = 0;
    t->open = true;
    fl_data_add(&t->b, l->s, l->n);
    fl_data_add(&t->b, "\n", 1);
    return FL_OK;
}

static void record_close(text_reader *t)
{
    if (t->open) {
        fl_data_close_record(&t->b);
    }
    t->open = false;
    t->blanks = 0;
}

static fl_err text_check(const text_reader *t)
{
    const fl_deck_data *how = t->how;

    if (fl_data_given(how->key) && strcmp(how->key, "none") != 0 && !t->heading) {
        return fl_fail(FL_EDECK, "data.key: %s: a text file knows only none and heading (%s)",
            how->key, t->name);
    }
    if (t->heading && how->records == FL_RECORDS_LINES) {
        return fl_fail(FL_EDECK,
            "data.key: heading needs data.records: paragraphs or documents, not lines (%s)",
            t->name);
    }
    if (fl_data_given(how->label)) {
        return fl_fail(FL_EDECK, "data.label: %s: a text file has no labels; use csv or jsonl (%s)",
            how->label, t->name);
    }
    if (how->records == FL_RECORDS_DOCUMENTS && !fl_data_given(how->separator)) {
        return fl_fail(FL_EDECK,
            "data.separator: is empty; data.records: documents needs the line between two "
            "documents (%s)",
            t->name);
    }
    return FL_OK;
}

static bool line_separates(const text_reader *t, const text_line *l)
{
    if (t->how->records == FL_RECORDS_DOCUMENTS) {
        size_t n = strlen(t->how->separator);

        return l->n == n && memcmp(l->s, t->how->separator, n) == 0;
    }
    return t->how->records == FL_RECORDS_PARAGRAPHS && line_is_blank(l);
}

static fl_err text_records(text_reader *t)
{
    text_line l = {0};

    while (!fl_data_full(&t->b, t->how) && line_next(t, &l)) {
        if (line_separates(t, &l)) {
            record_close(t);
        } else if (line_is_blank(&l)) {
            t->blanks += t->open;
        } else {
            FL_TRY(record_line(t, &l));
            if (t->how->records == FL_RECORDS_LINES) {
                record_close(t);
            }
        }
    }
    record_close(t);
    return FL_OK;
}

fl_err fl_read_text(
    const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r)
{
    text_reader t = {.at = bytes, .end = n > 0 ? bytes + n : bytes, .name = name, .how = how};
    fl_err err;

    t.heading = fl_data_given(how->key) && strcmp(how->key, "heading") == 0;
    memset(r, 0, sizeof *r);
    FL_TRY(text_check(&t));
    FL_TRY(fl_data_refuse_nul(bytes, n, name));
    fl_data_begin(&t.b, r);
    err = text_records(&t);
    return fl_data_finish(&t.b, name, err);
}
