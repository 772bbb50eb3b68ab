/* dataset_hdf5_names.c - names of the client keys of an HDF5 data set: strings of variable or fixed
 * length, or the numbers themselves. Local. */
#include "dataset_hdf5.h"
#include <stdlib.h>
#include <string.h>

enum { H5_NAME_MOST = 1 << 16 }; /* bytes of a client's name */

static fl_err names_variable(const fl_h5_reader *h, hid_t set, hid_t type, hsize_t n, char **name)
{
    hid_t space = H5Dget_space(set), memory = H5Tcopy(type); /* a copy keeps the character set */
    char **s = fl_alloc("client names", (size_t)n, sizeof *s);
    fl_err err = FL_OK;

    if (H5Dread(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, s) < 0) {
        err = fl_fail(FL_EFILE, "%s: /client_name: cannot be read; the file is damaged", h->name);
    } else {
        for (hsize_t i = 0; i < n; i++) {
            name[i] = fl_strdup(s[i] ? s[i] : "");
        }
        H5Dvlen_reclaim(memory, space, H5P_DEFAULT, s);
    }
    fl_free(s);
    H5Tclose(memory);
    H5Sclose(space);
    return err;
}

static fl_err names_fixed(const fl_h5_reader *h, hid_t set, hid_t type, hsize_t n, char **name)
{
    size_t each = H5Tget_size(type);
    char *s;
    fl_err err = FL_OK;

    if (each == 0 || each > H5_NAME_MOST || n > h->bytes * FL_H5_DEFLATE_MOST / each) {
        return fl_h5_wrong(h, "client_name", "its strings are too long for this file");
    }
    s = fl_alloc("client names", (size_t)n, each);
    if (H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, s) < 0) {
        err = fl_fail(FL_EFILE, "%s: /client_name: cannot be read; the file is damaged", h->name);
    }
    for (hsize_t i = 0; i < n && err == FL_OK; i++) {
        const char *at = s + i * each;
        size_t len = strnlen(at, each);

        while (len > 0 && at[len - 1] == ' ' && H5Tget_strpad(type) == H5T_STR_SPACEPAD) {
            len--;
        }
        name[i] = fl_alloc("client name", len + 1, 1);
        memcpy(name[i], at, len);
    }
    fl_free(s);
    return err;
}

fl_err fl_h5_names(const fl_h5_reader *h, fl_corpus *c)
{
    hid_t set, type;
    hsize_t n;
    fl_err err;

    FL_TRY(fl_h5_open(h, "client_name", &set, &n));
    type = H5Dget_type(set);
    if (H5Tget_class(type) != H5T_STRING || n < 1 || n > INT32_MAX) {
        err = fl_h5_wrong(h, "client_name", "must hold at least one string");
    } else {
        c->nkeys = (int)n;
        c->key_name = fl_alloc("client names", (size_t)n, sizeof *c->key_name);
        err = H5Tis_variable_str(type) > 0 ? names_variable(h, set, type, n, c->key_name)
                                           : names_fixed(h, set, type, n, c->key_name);
    }
    H5Tclose(type);
    H5Dclose(set);
    return err;
}

static int int32_compare(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return (x > y) - (x < y);
}

void fl_h5_names_from_numbers(fl_corpus *c)
{
    int32_t *sorted = fl_alloc("client keys", (size_t)c->n, sizeof *sorted);
    char text[16];
    int n = 0;

    memcpy(sorted, c->key, (size_t)c->n * sizeof *sorted);
    qsort(sorted, (size_t)c->n, sizeof *sorted, int32_compare);
    for (int64_t i = 0; i < c->n; i++) {
        if (n == 0 || sorted[i] != sorted[n - 1]) {
            sorted[n++] = sorted[i];
        }
    }
    for (int64_t i = 0; i < c->n; i++) {
        c->key[i] = (int32_t)((int32_t *)bsearch(
                                  &c->key[i], sorted, (size_t)n, sizeof *sorted, int32_compare) -
                              sorted);
    }
    c->nkeys = n;
    c->key_name = fl_alloc("client names", (size_t)n, sizeof *c->key_name);
    for (int i = 0; i < n; i++) {
        snprintf(text, sizeof text, "%d", (int)sorted[i]);
        c->key_name[i] = fl_strdup(text);
    }
    fl_free(sorted);
}
