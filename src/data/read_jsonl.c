/* read_jsonl.c - JSON lines to records, by jansson: one object a line. Local.
 * A file that is one array of objects is read as well. The record is the string data.field, ending
 * in \n; data.key and data.label are strings, whole numbers or booleans. */
#include "data_internal.h"
#include <jansson.h>
#include <string.h>

typedef struct json_reader {
    const char *name;
    const fl_deck_data *how;
    bool has_key, has_label;
    const char *unit; /* what `number` counts: line or element */
    long long number;
    fl_data_builder b;
} json_reader;

static fl_err value_missing(
    const json_reader *j, json_t *object, const char *deck_key, const char *field)
{
    fl_text list = {0};
    const char *name;
    json_t *value;
    fl_err err;

    json_object_foreach(object, name, value)
    {
        if (list.n < 400) {
            fl_text_add(&list, "%s%.60s", list.n > 0 ? ", " : "", name);
        }
    }
    err = fl_fail(FL_EDECK, "%s: %s %lld: there is no field \"%s\" (%s); there is: %s", j->name,
        j->unit, j->number, field, deck_key, list.n > 0 ? list.s : "nothing");
    fl_text_free(&list);
    return err;
}

/* The key or label as text. */
static fl_err value_name(const json_reader *j, json_t *object, const char *deck_key,
    const char *field, fl_data_names *names)
{
    json_t *x = json_object_get(object, field);
    char number[32];

    if (!x) {
        return value_missing(j, object, deck_key, field);
    }
    if (json_is_string(x) && json_string_length(x) > 0) {
        fl_data_names_add(names, json_string_value(x), json_string_length(x));
    } else if (json_is_integer(x)) {
        int n = snprintf(number, sizeof number, "%lld", (long long)json_integer_value(x));

        fl_data_names_add(names, number, (size_t)n);
    } else if (json_is_boolean(x)) {
        const char *s = json_is_true(x) ? "true" : "false";

        fl_data_names_add(names, s, strlen(s));
    } else {
        return fl_fail(FL_EDECK,
            "%s: %s %lld: \"%s\" (%s) is neither a filled string nor a whole number nor a boolean",
            j->name, j->unit, j->number, field, deck_key);
    }
    return FL_OK;
}

static fl_err object_record(json_reader *j, json_t *object)
{
    const char *field = j->how->field ? j->how->field : "";
    json_t *text;

    if (!json_is_object(object)) {
        return fl_fail(FL_EDECK, "%s: %s %lld: is not a JSON object", j->name, j->unit, j->number);
    }
    text = json_object_get(object, field);
    if (!text) {
        return value_missing(j, object, "data.field", field);
    }
    if (!json_is_string(text)) {
        return fl_fail(FL_EDECK, "%s: %s %lld: \"%s\" (data.field) is not a string", j->name,
            j->unit, j->number, field);
    }
    if (j->has_key) {
        FL_TRY(value_name(j, object, "data.key", j->how->key, &j->b.key));
    }
    if (j->has_label) {
        FL_TRY(value_name(j, object, "data.label", j->how->label, &j->b.label));
    }
    fl_data_close_text(&j->b, json_string_value(text), json_string_length(text));
    return FL_OK;
}

static fl_err json_wrong(const json_reader *j, const json_error_t *e, long long line)
{
    return fl_fail(FL_EDECK, "%s:%lld: not valid JSON: %s", j->name, line, e->text);
}

static bool only_space(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r') {
            return false;
        }
    }
    return true;
}

static fl_err lines_read(json_reader *j, const char *at, const char *end)
{
    j->unit = "line";
    while (at < end && !fl_data_full(&j->b, j->how)) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((stop ? stop : end) - at);
        json_error_t e;

        j->number++;
        if (!only_space(at, n)) {
            json_t *object = json_loadb(at, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
            fl_err err;

            if (!object) {
                return json_wrong(j, &e, j->number);
            }
            err = object_record(j, object);
            json_decref(object);
            FL_TRY(err);
        }
        at = stop ? stop + 1 : end;
    }
    return FL_OK;
}

static fl_err array_read(json_reader *j, const char *bytes, size_t n)
{
    json_error_t e;
    json_t *array = json_loadb(bytes, n, JSON_REJECT_DUPLICATES, &e);
    fl_err err = FL_OK;

    j->unit = "element";
    if (!array) {
        return json_wrong(j, &e, e.line);
    }
    for (size_t i = 0; i < json_array_size(array) && !fl_data_full(&j->b, j->how) && err == FL_OK;
         i++) {
        j->number = (long long)i + 1;
        err = object_record(j, json_array_get(array, i));
    }
    json_decref(array);
    return err;
}

fl_err fl_read_jsonl(
    const char *bytes, size_t n, const char *name, const fl_deck_data *how, fl_records *r)
{
    json_reader j = {.name = name, .how = how, .has_label = fl_data_given(how->label)};
    size_t first = 0;
    fl_err err;

    j.has_key = fl_data_given(how->key) && strcmp(how->key, "none") != 0;
    memset(r, 0, sizeof *r);
    FL_TRY(fl_data_refuse_nul(bytes, n, name));
    fl_data_skip_bom(&bytes, &n);
    while (first < n && strchr(" \t\r\n", bytes[first])) {
        first++;
    }
    fl_data_begin(&j.b, r);
    err = first < n && bytes[first] == '[' ? array_read(&j, bytes, n)
                                           : lines_read(&j, bytes, n > 0 ? bytes + n : bytes);
    return fl_data_finish(&j.b, name, err);
}
