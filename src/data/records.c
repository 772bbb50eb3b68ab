/* records.c - building fl_records: bytes of the records one after the other, client keys and labels
 * as strings that are ranked at the end. Ranks are by byte order: independent of file order,
 * addresses and hash tables. Local. */
#include "data_internal.h"
#include <stdlib.h>
#include <string.h>

void fl_data_names_add(fl_data_names *names, const char *s, size_t n)
{
    if (names->n == names->room) {
        names->room = names->room > 0 ? 2 * names->room : 64;
        names->at = fl_realloc("names", names->at, (size_t)names->room, sizeof *names->at);
    }
    names->at[names->n++] = names->text.n;
    fl_text_bytes(&names->text, s, n);
    fl_text_bytes(&names->text, "", 1);
}

void fl_data_names_free(fl_data_names *names)
{
    fl_text_free(&names->text);
    fl_free(names->at);
    memset(names, 0, sizeof *names);
}

typedef struct ranked {
    const char *s;
    int64_t i;
} ranked;

static int ranked_compare(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    int c = strcmp(x->s, y->s);

    return c != 0 ? c : (x->i > y->i) - (x->i < y->i);
}

void fl_data_names_rank(const fl_data_names *names, int32_t *id, int *nnames, char ***name)
{
    size_t n = (size_t)names->n;
    ranked *x = fl_alloc("names", n, sizeof *x);
    int count = 0;

    for (size_t i = 0; i < n; i++) {
        x[i] = (ranked){names->text.s + names->at[i], (int64_t)i};
    }
    qsort(x, n, sizeof *x, ranked_compare);
    for (size_t i = 0; i < n; i++) {
        count += i == 0 || strcmp(x[i].s, x[i - 1].s) != 0;
        id[x[i].i] = count - 1;
    }
    *nnames = count;
    if (name) {
        *name = fl_alloc("names", (size_t)count, sizeof **name);
        for (size_t i = 0; i < n; i++) {
            if (i == 0 || strcmp(x[i].s, x[i - 1].s) != 0) {
                (*name)[id[x[i].i]] = fl_strdup(x[i].s);
            }
        }
    }
    fl_free(x);
}

/* Choice: when every label is a whole number below a million, written plainly, the number is the
 * class (so that files of one task agree); otherwise classes are the distinct labels in byte order.
 */
static bool label_number(const char *s, int32_t *x)
{
    int32_t v = 0;
    size_t n = strlen(s);

    if (n == 0 || n > 6 || (s[0] == '0' && n > 1)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9') {
            return false;
        }
        v = 10 * v + (s[i] - '0');
    }
    *x = v;
    return true;
}

static void labels_rank(const fl_data_names *names, int32_t *label, int *nclasses)
{
    int32_t highest = 0;

    for (int64_t i = 0; i < names->n; i++) {
        if (!label_number(names->text.s + names->at[i], &label[i])) {
            fl_data_names_rank(names, label, nclasses, NULL);
            return;
        }
        highest = FL_MAX(highest, label[i]);
    }
    *nclasses = highest + 1;
}

void fl_data_begin(fl_data_builder *b, fl_records *r)
{
    memset(r, 0, sizeof *r);
    memset(b, 0, sizeof *b);
    b->r = r;
    b->room = 64;
    r->offset = fl_alloc("record offsets", (size_t)b->room + 1, sizeof *r->offset);
}

void fl_data_add(fl_data_builder *b, const char *s, size_t n)
{
    fl_text_bytes(&b->r->bytes, s, n);
}

void fl_data_close_record(fl_data_builder *b)
{
    fl_records *r = b->r;

    if (r->n == b->room) {
        b->room *= 2;
        r->offset = fl_realloc("record offsets", r->offset, (size_t)b->room + 1, sizeof *r->offset);
    }
    r->offset[++r->n] = r->bytes.n;
}

void fl_data_close_text(fl_data_builder *b, const char *s, size_t n)
{
    fl_data_add(b, s, n);
    if (n == 0 || s[n - 1] != '\n') {
        fl_data_add(b, "\n", 1);
    }
    fl_data_close_record(b);
}

bool fl_data_full(const fl_data_builder *b, const fl_deck_data *how)
{
    return how->max_records > 0 && b->r->n >= how->max_records;
}

fl_err fl_data_finish(fl_data_builder *b, const char *name, fl_err err)
{
    fl_records *r = b->r;

    if (err == FL_OK && r->n == 0) {
        err = fl_fail(FL_EDECK, "%s: there is no record in it", name);
    }
    if (err == FL_OK && r->n > INT32_MAX) {
        err = fl_fail(FL_EDECK, "%s: more than 2^31 - 1 records; set data.max_records", name);
    }
    if (err == FL_OK && b->key.n > 0) {
        FL_REQUIRE(b->key.n == r->n);
        r->key = fl_alloc("record keys", (size_t)r->n, sizeof *r->key);
        fl_data_names_rank(&b->key, r->key, &r->nkeys, &r->key_name);
    }
    if (err == FL_OK && b->label.n > 0) {
        FL_REQUIRE(b->label.n == r->n);
        r->label = fl_alloc("record labels", (size_t)r->n, sizeof *r->label);
        labels_rank(&b->label, r->label, &r->nclasses);
    }
    fl_data_names_free(&b->key);
    fl_data_names_free(&b->label);
    if (err != FL_OK) {
        fl_records_free(r);
    }
    return err;
}

void fl_records_free(fl_records *r)
{
    fl_free(r->offset);
    fl_text_free(&r->bytes);
    fl_free(r->label);
    fl_free(r->key);
    for (int i = 0; r->key_name && i < r->nkeys; i++) {
        fl_free(r->key_name[i]);
    }
    fl_free(r->key_name);
    memset(r, 0, sizeof *r);
}

fl_err fl_data_refuse_nul(const char *bytes, size_t n, const char *name)
{
    const char *nul = n > 0 ? memchr(bytes, 0, n) : NULL;
    int64_t line = 1;

    if (!nul) {
        return FL_OK;
    }
    for (const char *s = bytes; s < nul; s++) {
        line += *s == '\n';
    }
    return fl_fail(FL_EDECK,
        "%s:%lld: a NUL byte: this is not text (UTF-16? convert it with iconv -t UTF-8)", name,
        (long long)line);
}

void fl_data_skip_bom(const char **bytes, size_t *n)
{
    if (*n >= 3 && memcmp(*bytes, "\xef\xbb\xbf", 3) == 0) {
        *bytes += 3;
        *n -= 3;
    }
}
