/* json - small configuration files written by others: one object, typed members with ranges.
 * Parsing by jansson, which bounds the depth (2048); the size is bounded here. */
#include "fedlora/io.h"
#include "file.h"
#include <stdlib.h>
#include <string.h>

enum { JSON_MOST = 16 << 20 }; /* bytes; a config.json with label names has tens of kilobytes */

fl_err fl_json_object(const char *json, size_t n, const char *name, json_t **root)
{
    json_error_t why;

    *root = NULL;
    if (n > JSON_MOST) {
        return fl_fail(FL_EDECK, "%s: %zu bytes is too large for a configuration", name, n);
    }
    *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &why);
    if (*root == NULL) {
        return fl_fail(FL_EDECK, "%s:%d: not valid JSON: %s", name, why.line, why.text);
    }
    if (!json_is_object(*root)) {
        json_decref(*root);
        *root = NULL;
        return fl_fail(FL_EDECK, "%s: a JSON object was expected", name);
    }
    return FL_OK;
}

bool fl_json_given(const json_t *o, const char *key)
{
    const json_t *x = json_object_get(o, key);

    return x != NULL && !json_is_null(x);
}

fl_err fl_json_int(
    const json_t *o, const char *key, const char *name, int otherwise, int lo, int hi, int *x)
{
    const json_t *v = json_object_get(o, key);

    *x = otherwise;
    if (!fl_json_given(o, key)) {
        return FL_OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi) {
        return fl_fail(FL_EDECK, "%s: %s must be a whole number from %d to %d", name, key, lo, hi);
    }
    *x = (int)json_integer_value(v);
    return FL_OK;
}

fl_err fl_json_real(const json_t *o, const char *key, const char *name, double otherwise, double lo,
    double hi, double *x)
{
    const json_t *v = json_object_get(o, key);
    double y = json_number_value(v);

    *x = otherwise;
    if (!fl_json_given(o, key)) {
        return FL_OK;
    }
    if (!json_is_number(v) || !(y >= lo && y <= hi)) {
        return fl_fail(FL_EDECK, "%s: %s must be a number from %g to %g", name, key, lo, hi);
    }
    *x = y;
    return FL_OK;
}

fl_err fl_json_bool(const json_t *o, const char *key, const char *name, bool otherwise, bool *x)
{
    const json_t *v = json_object_get(o, key);

    *x = otherwise;
    if (!fl_json_given(o, key)) {
        return FL_OK;
    }
    if (!json_is_boolean(v)) {
        return fl_fail(FL_EDECK, "%s: %s must be true or false", name, key);
    }
    *x = json_is_true(v);
    return FL_OK;
}

fl_err fl_json_text(
    const json_t *o, const char *key, const char *name, const char *otherwise, const char **x)
{
    const json_t *v = json_object_get(o, key);

    *x = otherwise;
    if (!fl_json_given(o, key)) {
        return FL_OK;
    }
    if (!json_is_string(v)) {
        return fl_fail(FL_EDECK, "%s: %s must be a string", name, key);
    }
    *x = json_string_value(v);
    return FL_OK;
}

fl_err fl_json_write(const char *path, const json_t *root)
{
    /* 17 digits: every double comes back as itself */
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    fl_text all = {0};
    fl_err err;

    FL_REQUIRE(text != NULL);
    fl_text_add(&all, "%s\n", text);
    free(text);
    err = fl_file_write(path, all.s, all.n);
    fl_text_free(&all);
    return err;
}
