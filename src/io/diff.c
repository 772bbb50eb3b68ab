/* diff.c - where two checkpoints or two safetensors files differ: the first field, then one line
 * per field with the first index and the largest absolute difference. */
#include "inspect_internal.h"
#include <math.h>
#include <string.h>

void diff_note(diff_report *r, const char *field, const char *how)
{
    if (r->first.n == 0) {
        fl_text_add(&r->first, "first difference: %s: %s\n", field, how);
    }
    fl_text_add(&r->rows, "%s: %s\n", field, how);
}

void diff_note_number(diff_report *r, const char *field, long long a, long long b)
{
    char how[100];

    snprintf(how, sizeof how, "%lld against %lld", a, b);
    diff_note(r, field, how);
}

/* ---- arrays ---- */

static double number_at(const void *x, fl_array_type type, size_t i)
{
    switch (type) {
    case FL_F32:
        return (double)((const float *)x)[i];
    case FL_F64:
        return ((const double *)x)[i];
    case FL_I64:
        return (double)((const int64_t *)x)[i];
    case FL_U8:
        break;
    }
    return (double)((const unsigned char *)x)[i];
}

static bool same_at(const diff_pair *v, size_t i)
{
    size_t each = h5_type_bytes(v->type);

    if (memcmp((const char *)v->a + i * each, (const char *)v->b + i * each, each) == 0) {
        return true;
    }
    /* all NaNs are one; +0 and -0 differ, because a restart must give the same bits */
    return isnan(number_at(v->a, v->type, i)) && isnan(number_at(v->b, v->type, i));
}

void diff_compare(diff_report *r, const char *field, const diff_pair *v)
{
    size_t count = 0, first = 0;
    double largest = 0;
    bool nan = false;
    char how[300];

    for (size_t i = 0; i < v->n; i++) {
        if ((v->skip != NULL && v->skip[i % v->ncolumns]) || same_at(v, i)) {
            continue;
        }
        double gap = fabs(number_at(v->a, v->type, i) - number_at(v->b, v->type, i));

        first = count++ == 0 ? i : first;
        nan = nan || isnan(gap);
        largest = gap > largest ? gap : largest;
    }
    if (count == 0) {
        return;
    }
    snprintf(how, sizeof how,
        "%zu of %zu numbers differ, first at %zu (%.9g against %.9g), largest difference %.6g%s",
        count, v->n, first, number_at(v->a, v->type, first), number_at(v->b, v->type, first),
        largest, nan ? " and NaN against a number" : "");
    diff_note(r, field, how);
}

/* ---- safetensors ---- */

static fl_err diff_tensor(diff_report *r, const fl_st *a, const fl_st *b, int i, int j)
{
    char left[200], right[200], how[500];
    const fl_st_entry *x = &a->entry[i], *y = &b->entry[j];

    st_shape(x, left, sizeof left);
    st_shape(y, right, sizeof right);
    if (strcmp(left, right) != 0 || st_is_float(x) != st_is_float(y)) {
        snprintf(how, sizeof how, "%s %s against %s %s", x->dtype, left, y->dtype, right);
        diff_note(r, x->name, how);
        return FL_OK;
    }
    if (!st_is_float(x)) {
        if (x->end - x->begin != y->end - y->begin ||
            memcmp(a->bytes + a->data + x->begin, b->bytes + b->data + y->begin,
                x->end - x->begin) != 0) {
            diff_note(r, x->name, "other bytes");
        }
        return FL_OK;
    }
    size_t n = st_count(x);
    fl_real *u = fl_alloc("tensor", n, sizeof *u), *w = fl_alloc("tensor", n, sizeof *w);
    fl_err err = fl_st_read(a, i, n, u);

    err = err != FL_OK ? err : fl_st_read(b, j, n, w);
    if (err == FL_OK) {
        diff_pair v = {u, w, sizeof(fl_real) == 4 ? FL_F32 : FL_F64, n, 1, NULL};

        diff_compare(r, x->name, &v);
    }
    fl_free(u);
    fl_free(w);
    return err;
}

static fl_err diff_open_safetensors(diff_report *r, const fl_st *a, const fl_st *b)
{
    for (int i = 0; i < a->n; i++) {
        int j = fl_st_find(b, a->entry[i].name);

        if (j < 0) {
            diff_note(r, a->entry[i].name, "only in the first file");
        } else {
            FL_TRY(diff_tensor(r, a, b, i, j));
        }
    }
    for (int j = 0; j < b->n; j++) {
        if (fl_st_find(a, b->entry[j].name) < 0) {
            diff_note(r, b->entry[j].name, "only in the second file");
        }
    }
    return FL_OK;
}

static fl_err diff_safetensors(diff_report *r, const char *a, const char *b)
{
    fl_st x, y;

    FL_TRY(fl_st_open(a, &x));
    fl_err err = fl_st_open(b, &y);

    if (err == FL_OK) {
        err = diff_open_safetensors(r, &x, &y);
        fl_st_close(&y);
    }
    fl_st_close(&x);
    return err;
}

/* ---- */

static fl_err diff_files(diff_report *r, const char *a, const char *b, file_kind ka, file_kind kb)
{
    if (ka == KIND_CHECKPOINT && kb == KIND_CHECKPOINT) {
        return diff_checkpoints(r, a, b);
    }
    if (ka == KIND_SAFETENSORS && kb == KIND_SAFETENSORS) {
        return diff_safetensors(r, a, b);
    }
    return fl_fail(FL_EUSAGE,
        "%s and %s: diff compares two checkpoints, or two safetensors files or adapter folders", a,
        b);
}

fl_err fl_diff(const char *a, const char *b, fl_text *t)
{
    diff_report r = {0};
    file_kind ka, kb;
    char *real_a = NULL, *real_b = NULL;
    fl_err err = file_kind_of(a, &ka, &real_a);

    err = err != FL_OK ? err : file_kind_of(b, &kb, &real_b);
    err = err != FL_OK ? err : diff_files(&r, real_a, real_b, ka, kb);
    if (err == FL_OK && r.first.n > 0) {
        fl_text_bytes(t, r.first.s, r.first.n);
        err = fl_fail(FL_EDIFF, "%s and %s differ", a, b);
    } else if (err == FL_OK) {
        fl_text_add(t, "equal\n");
    }
    fl_text_bytes(t, r.rows.s, r.rows.n);
    fl_text_free(&r.first);
    fl_text_free(&r.rows);
    fl_free(real_a);
    fl_free(real_b);
    return err;
}
