/* dataset_hdf5.c - an HDF5 data set to a corpus. Local: each node's leader opens the file by
 * itself, serially.
 *
 * /tokens [T], /offsets [N + 1], /label [N], /loss_mask [T], /client [N], /client_name strings,
 * /split [N] (0 train, 1 validation, 2 test), attributes vocab_size and classes. Any integer type
 * is taken; values are read in slabs as int64 and checked there, so that nothing is cut off
 * silently. The file may be hostile: no size is believed before it was held against the bytes that
 * the file really stores. */
#include "dataset_hdf5.h"
#include <stdlib.h>
#include <string.h>

enum { H5_SLAB = 1 << 16 }; /* elements read at a time */

static bool h5_has(const fl_h5_reader *h, const char *what)
{
    return H5Lexists(h->file, what, H5P_DEFAULT) > 0;
}

fl_err fl_h5_wrong(const fl_h5_reader *h, const char *what, const char *why)
{
    return fl_fail(FL_EDECK, "%s: /%s: %s", h->name, what, why);
}

/* a chunk is unpacked as a whole, whatever part of it is asked for */
static hsize_t h5_chunk(hid_t plist)
{
    hsize_t n = 0;

    return H5Pget_layout(plist) == H5D_CHUNKED && H5Pget_chunk(plist, 1, &n) == 1 ? n : 0;
}

/* Opens a data set of one axis; *n elements that the file can really hold. */
fl_err fl_h5_open(const fl_h5_reader *h, const char *what, hid_t *set, hsize_t *n)
{
    hsize_t chunk;
    hid_t space, plist, x = h5_has(h, what) ? H5Dopen2(h->file, what, H5P_DEFAULT) : -1;
    hsize_t stored;
    bool one_axis, plain;

    if (x < 0) {
        return fl_h5_wrong(
            h, what, "is missing or is not a data set (inputs/DATA.md describes the file)");
    }
    space = H5Dget_space(x);
    plist = H5Dget_create_plist(x);
    one_axis =
        H5Sget_simple_extent_ndims(space) == 1 && H5Sget_simple_extent_dims(space, n, NULL) == 1;
    plain = plist >= 0 && H5Pget_external_count(plist) == 0 && H5Pget_layout(plist) != H5D_VIRTUAL;
    stored = H5Dget_storage_size(x);
    chunk = one_axis && plain ? h5_chunk(plist) : 0;
    H5Sclose(space);
    H5Pclose(plist);
    if (!one_axis || !plain) {
        H5Dclose(x);
        return fl_h5_wrong(h, what,
            one_axis ? "lies in another file (external or virtual storage), which is not read"
                     : "must have exactly one axis");
    }
    if (stored > h->bytes || FL_MAX(*n, *n > 0 ? chunk : 0) > stored * FL_H5_DEFLATE_MOST) {
        H5Dclose(x);
        return fl_fail(FL_EFILE,
            "%s: /%s: claims %llu elements, more than the file can hold; it is damaged or was not "
            "written to its end",
            h->name, what, (unsigned long long)*n);
    }
    *set = x;
    return FL_OK;
}

static void value_store(void *out, size_t each, size_t i, int64_t x)
{
    switch (each) {
    case 1:
        ((uint8_t *)out)[i] = (uint8_t)x;
        return;
    case 4: /* int32_t and uint32_t alike: x was checked against the range */
        ((uint32_t *)out)[i] = (uint32_t)x;
        return;
    default:
        ((uint64_t *)out)[i] = (uint64_t)x;
    }
}

/* The first n elements of an open data set, each lo..hi, into out (elements of `each` bytes). */
static fl_err h5_slabs(const fl_h5_reader *h, const char *what, hid_t set, hsize_t n, int64_t lo,
    int64_t hi, void *out, size_t each)
{
    hid_t space = H5Dget_space(set), memory = -1;
    int64_t *slab = fl_alloc("hdf5 slab", H5_SLAB, sizeof *slab);
    fl_err err = FL_OK;

    for (hsize_t at = 0; at < n && err == FL_OK; at += H5_SLAB) {
        hsize_t count = FL_MIN(n - at, (hsize_t)H5_SLAB);

        memory = H5Screate_simple(1, &count, NULL);
        if (H5Sselect_hyperslab(space, H5S_SELECT_SET, &at, NULL, &count, NULL) < 0 ||
            H5Dread(set, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, slab) < 0) {
            err =
                fl_fail(FL_EFILE, "%s: /%s: cannot be read near element %llu; the file is damaged",
                    h->name, what, (unsigned long long)at);
        }
        H5Sclose(memory);
        for (hsize_t i = 0; i < count && err == FL_OK; i++) {
            if (slab[i] < lo || slab[i] > hi) {
                err = fl_fail(FL_EDECK, "%s: /%s[%llu] is %lld; it must be %lld to %lld", h->name,
                    what, (unsigned long long)(at + i), (long long)slab[i], (long long)lo,
                    (long long)hi);
            } else {
                value_store(out, each, (size_t)(at + i), slab[i]);
            }
        }
    }
    H5Sclose(space);
    fl_free(slab);
    return err;
}

/* Owned array of the first `take` of exactly `want` integers (take = want = -1: all there are; *n
 * says how many). */
static fl_err h5_ints(const fl_h5_reader *h, const char *what, int64_t want, int64_t take,
    int64_t lo, int64_t hi, size_t each, void *out_pointer, int64_t *n)
{
    hid_t set, type;
    hsize_t count;
    H5T_class_t class;
    void *out;
    fl_err err;

    FL_TRY(fl_h5_open(h, what, &set, &count));
    type = H5Dget_type(set);
    class = H5Tget_class(type);
    H5Tclose(type);
    if (class != H5T_INTEGER && class != H5T_ENUM) {
        H5Dclose(set);
        return fl_h5_wrong(h, what, "must hold integers");
    }
    if (want >= 0 && count != (hsize_t)want) {
        H5Dclose(set);
        return fl_fail(FL_EDECK, "%s: /%s has %llu elements; the other data sets call for %lld",
            h->name, what, (unsigned long long)count, (long long)want);
    }
    if (take >= 0) {
        count = FL_MIN(count, (hsize_t)take);
    }
    out = fl_alloc("hdf5 data", (size_t)count, each);
    err = h5_slabs(h, what, set, count, lo, hi, out, each);
    H5Dclose(set);
    if (err != FL_OK) {
        fl_free(out);
        return err;
    }
    memcpy(out_pointer, &out, sizeof out);
    if (n) {
        *n = (int64_t)count;
    }
    return FL_OK;
}

/* A scalar integer attribute of the root; *x stays as it is when there is none. */
static fl_err h5_attribute(
    const fl_h5_reader *h, const char *what, int64_t lo, int64_t hi, int64_t *x)
{
    hid_t a, type, space;
    bool fits;
    int64_t value = 0;

    if (H5Aexists(h->file, what) <= 0) {
        return FL_OK;
    }
    a = H5Aopen(h->file, what, H5P_DEFAULT);
    if (a < 0) {
        return fl_fail(
            FL_EFILE, "%s: attribute %s: cannot be read; the file is damaged", h->name, what);
    }
    type = H5Aget_type(a);
    space = H5Aget_space(a);
    fits = H5Tget_class(type) == H5T_INTEGER && H5Sget_simple_extent_npoints(space) == 1 &&
           H5Aread(a, H5T_NATIVE_INT64, &value) >= 0 && value >= lo && value <= hi;
    H5Tclose(type);
    H5Sclose(space);
    H5Aclose(a);
    if (!fits) {
        return fl_fail(FL_EDECK, "%s: attribute %s: must be one integer, %lld to %lld", h->name,
            what, (long long)lo, (long long)hi);
    }
    *x = value;
    return FL_OK;
}

/* ---- the whole ---- */

static fl_err h5_tokens(const fl_h5_reader *h, int max_records, int64_t *nrecords, fl_corpus *c)
{
    int64_t noffsets, all, vocab = 0;
    hid_t set;
    hsize_t ntokens;

    FL_TRY(h5_attribute(h, "vocab_size", 1, INT32_MAX, &vocab));
    FL_TRY(fl_h5_open(h, "tokens", &set, &ntokens));
    H5Dclose(set);
    FL_TRY(h5_ints(
        h, "offsets", -1, -1, 0, (int64_t)ntokens, sizeof *c->offset, &c->offset, &noffsets));
    if (noffsets < 2 || noffsets - 1 > INT32_MAX) {
        return fl_h5_wrong(h, "offsets", "must have 2 to 2^31 elements: one more than records");
    }
    all = noffsets - 1;
    for (int64_t i = 0; i < all; i++) {
        if (c->offset[i + 1] < c->offset[i]) {
            return fl_fail(FL_EDECK, "%s: /offsets[%lld] is below the one before it", h->name,
                (long long)i + 1);
        }
    }
    if (c->offset[0] != 0 || c->offset[all] != ntokens) {
        return fl_fail(FL_EDECK,
            "%s: /offsets runs from %llu to %llu; it must run from 0 to the %llu elements of "
            "/tokens",
            h->name, (unsigned long long)c->offset[0], (unsigned long long)c->offset[all],
            (unsigned long long)ntokens);
    }
    *nrecords = all;
    c->n = max_records > 0 ? FL_MIN(all, (int64_t)max_records) : all;
    FL_TRY(h5_ints(h, "tokens", (int64_t)ntokens, (int64_t)c->offset[c->n], 0,
        vocab > 0 ? vocab - 1 : INT32_MAX - 1, sizeof *c->token, &c->token, NULL));
    for (uint64_t i = 0; vocab == 0 && i < c->offset[c->n]; i++) {
        c->vocab = FL_MAX(c->vocab, (int)c->token[i] + 1);
    }
    c->vocab = vocab > 0 ? (int)vocab : FL_MAX(c->vocab, 1);
    return h5_has(h, "loss_mask") ? h5_ints(h, "loss_mask", (int64_t)ntokens,
                                        (int64_t)c->offset[c->n], 0, 1, 1, &c->mask, NULL)
                                  : FL_OK;
}

static fl_err h5_columns(const fl_h5_reader *h, int64_t nrecords, fl_corpus *c)
{
    int64_t classes = 0;

    if (h5_has(h, "split")) {
        FL_TRY(h5_ints(h, "split", nrecords, c->n, 0, FL_NSPLITS - 1, 1, &c->split, NULL));
    }
    if (h5_has(h, "label")) {
        FL_TRY(h5_attribute(h, "classes", 1, FL_DATA_CLASSES_MAX, &classes));
        FL_TRY(h5_ints(h, "label", nrecords, c->n, 0,
            (classes > 0 ? classes : FL_DATA_CLASSES_MAX) - 1, sizeof *c->label, &c->label, NULL));
        for (int64_t i = 0; classes == 0 && i < c->n; i++) {
            c->nclasses = FL_MAX(c->nclasses, c->label[i] + 1);
        }
        c->nclasses = FL_MAX(c->nclasses, (int)classes);
    }
    if (!h5_has(h, "client")) {
        return FL_OK;
    }
    if (!h5_has(h, "client_name")) {
        FL_TRY(h5_ints(h, "client", nrecords, c->n, 0, INT32_MAX, sizeof *c->key, &c->key, NULL));
        fl_h5_names_from_numbers(c);
        return FL_OK;
    }
    FL_TRY(fl_h5_names(h, c));
    return h5_ints(h, "client", nrecords, c->n, 0, c->nkeys - 1, sizeof *c->key, &c->key, NULL);
}

static fl_err h5_read(const fl_h5_reader *h, int max_records, fl_corpus *c)
{
    int64_t nrecords = 0;

    if (h5_has(h, "image") && !h5_has(h, "tokens")) {
        return fl_h5_wrong(
            h, "image", "the data set holds images; only token sequences can be trained on");
    }
    FL_TRY(h5_tokens(h, max_records, &nrecords, c));
    return h5_columns(h, nrecords, c);
}

fl_err fl_data_read_hdf5(
    const char *path, const void *image, size_t n, int max_records, fl_corpus *c)
{
    fl_h5_reader h = {.name = path};
    H5E_auto2_t report;
    void *report_data;
    hid_t plist;
    fl_err err;

    memset(c, 0, sizeof *c);
    /* file systems without flock: see h5_quiet in src/io/h5.c; before the library's first call,
     * which may be this one */
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
    /* the library prints its error stack by itself; our sentence is enough */
    H5Eget_auto2(H5E_DEFAULT, &report, &report_data);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    plist = H5Pcreate(H5P_FILE_ACCESS);
    if (image) {
        H5Pset_fapl_core(plist, 1 << 16, 0);
        H5Pset_file_image(plist, (void *)(uintptr_t)image, n); /* copied by the library */
    }
    h.file = H5Fopen(image ? "image" : path, H5F_ACC_RDONLY, plist);
    H5Pclose(plist);
    if (h.file < 0) {
        err = fl_fail(FL_EFILE,
            "%s: cannot be opened as an HDF5 file: missing, unreadable, damaged or of another "
            "format (data.source)",
            path);
    } else {
        err = H5Fget_filesize(h.file, &h.bytes) < 0
                  ? fl_fail(FL_EFILE, "%s: its size cannot be told", path)
                  : h5_read(&h, max_records, c);
        H5Fclose(h.file);
    }
    H5Eset_auto2(H5E_DEFAULT, report, report_data);
    if (err != FL_OK) {
        fl_corpus_free(c);
    }
    return err;
}
