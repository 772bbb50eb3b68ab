/* inspect_dataset.c - HDF5 data sets of interface.md ("Data set file"), written by other programs:
 * summary and checks. Other HDF5 files are listed. Runs in a child process (fl_isolated), reads in
 * pieces, allocates nothing by the file's word. */
#include "inspect_internal.h"
#include <string.h>

enum { PIECE = 1 << 16, MOST_LABELS = 1 << 16, LABELS_SHOWN = 40 };
static const uint64_t most_samples = (uint64_t)1 << 40; /* beyond, a length is a lie */

typedef struct column {
    const char *name;
    hid_t set; /* -1 = absent */
    size_t n;
    int64_t *piece;  /* owned [PIECE] */
    size_t at, have; /* piece holds elements [at, at + have) */
} column;

/* A 1-d data set of integers, contiguous or chunked. Absent is no error. */
static fl_err column_open(const char *path, hid_t file, const char *name, column *c)
{
    *c = (column){.name = name, .set = -1};
    if (!h5_exists(file, name)) {
        return FL_OK;
    }
    c->set = H5Dopen2(file, name, H5P_DEFAULT);
    hid_t type = c->set < 0 ? -1 : H5Dget_type(c->set),
          space = c->set < 0 ? -1 : H5Dget_space(c->set);
    hssize_t n = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    bool ok = type >= 0 && H5Tget_class(type) == H5T_INTEGER &&
              H5Sget_simple_extent_ndims(space) == 1 && n >= 0 && (uint64_t)n < most_samples;

    if (type >= 0) {
        H5Tclose(type);
    }
    if (space >= 0) {
        H5Sclose(space);
    }
    if (!ok) {
        return fl_fail(FL_EFILE, "%s: dataset /%s is not a row of integers", path, name);
    }
    c->n = (size_t)n;
    c->piece = fl_alloc("column", PIECE, sizeof *c->piece);
    return FL_OK;
}

static void column_close(column *c)
{
    if (c->set >= 0) {
        H5Dclose(c->set);
    }
    fl_free(c->piece);
    *c = (column){.set = -1};
}

/* Element i, 0 <= i < n; cheap when i grows. */
static fl_err column_get(const char *path, column *c, size_t i, int64_t *x)
{
    if (i < c->at || i >= c->at + c->have) {
        size_t n = FL_MIN((size_t)PIECE, c->n - i);

        c->have = 0;
        if (h5_read(c->set, H5T_NATIVE_INT64, i, n, c->piece) < 0) {
            return fl_fail(
                FL_EFILE, "%s: cannot read dataset /%s at %zu: damaged", path, c->name, i);
        }
        c->at = i;
        c->have = n;
    }
    *x = c->piece[i - c->at];
    return FL_OK;
}

enum { TOKENS, OFFSETS, LABEL, MASK, CLIENT, TASK, SPLIT, NCOLUMNS };
static const char *const column_names[NCOLUMNS] = {
    "tokens", "offsets", "label", "loss_mask", "client", "task", "split"};

typedef struct dataset {
    const char *path;
    hid_t file;
    column col[NCOLUMNS];
    size_t nsamples;
    int64_t shape[4]; /* of /image; 0 = none */
    int64_t split[3];
    int64_t *labels; /* owned [nlabels]: samples of each */
    int64_t nlabels, unlabelled;
    int64_t vocab, nkeys;
} dataset;

static void image_shape(dataset *d)
{
    hsize_t dims[4] = {0};

    if (!h5_exists(d->file, "image")) {
        return;
    }
    hid_t set = H5Dopen2(d->file, "image", H5P_DEFAULT);
    hid_t space = set < 0 ? -1 : H5Dget_space(set);

    if (space >= 0 && H5Sget_simple_extent_ndims(space) == 4 &&
        H5Sget_simple_extent_dims(space, dims, NULL) == 4) {
        for (int i = 0; i < 4; i++) {
            d->shape[i] = dims[i] < most_samples ? (int64_t)dims[i] : 0;
        }
    }
    if (space >= 0) {
        H5Sclose(space);
    }
    if (set >= 0) {
        H5Dclose(set);
    }
}

static void dataset_close(dataset *d)
{
    for (int i = 0; i < NCOLUMNS; i++) {
        column_close(&d->col[i]);
    }
    fl_free(d->labels);
    if (d->file >= 0) {
        H5Fclose(d->file);
    }
}

/* FL_OK with nsamples 0 and neither offsets nor image: not a data set. */
static fl_err dataset_open(const char *path, dataset *d)
{
    *d = (dataset){.path = path, .file = -1};
    for (int i = 0; i < NCOLUMNS; i++) {
        d->col[i].set = -1;
    }
    h5_quiet();
    d->file = h5_open(path, false);
    if (d->file < 0) {
        return h5_fail(path, "open it");
    }
    for (int i = 0; i < NCOLUMNS; i++) {
        FL_TRY(column_open(path, d->file, column_names[i], &d->col[i]));
    }
    image_shape(d);
    d->nsamples = d->col[OFFSETS].n > 0 ? d->col[OFFSETS].n - 1 : (size_t)d->shape[0];
    d->vocab = -1;
    hid_t root = H5Gopen2(d->file, "/", H5P_DEFAULT);

    if (root >= 0) {
        h5_get_int(root, "vocab_size", &d->vocab);
        H5Gclose(root);
    }
    return FL_OK;
}

static bool is_dataset(const dataset *d)
{
    return d->col[OFFSETS].set >= 0 || d->shape[0] > 0;
}

/* ---- checks and counts, sample by sample ---- */

static fl_err bad(const dataset *d, const char *name, size_t i, int64_t x, const char *why)
{
    return fl_fail(
        FL_EFILE, "%s: dataset /%s: element %zu is %lld: %s", d->path, name, i, (long long)x, why);
}

static fl_err check_lengths(const dataset *d)
{
    static const int per_sample[] = {LABEL, CLIENT, TASK, SPLIT};

    for (size_t k = 0; k < FL_COUNT(per_sample); k++) {
        const column *c = &d->col[per_sample[k]];

        if (c->set >= 0 && c->n != d->nsamples) {
            return fl_fail(FL_EFILE, "%s: dataset /%s has %zu elements for %zu samples", d->path,
                c->name, c->n, d->nsamples);
        }
    }
    if (d->col[OFFSETS].set >= 0 && d->col[TOKENS].set < 0) {
        return fl_fail(FL_EFILE, "%s: has /offsets but no /tokens", d->path);
    }
    if (d->col[MASK].set >= 0 && d->col[MASK].n != d->col[TOKENS].n) {
        return fl_fail(FL_EFILE, "%s: dataset /loss_mask has %zu elements for %zu tokens", d->path,
            d->col[MASK].n, d->col[TOKENS].n);
    }
    return FL_OK;
}

static fl_err check_offsets(dataset *d)
{
    int64_t x = 0, before = 0;

    for (size_t i = 0; i < d->col[OFFSETS].n; i++) {
        FL_TRY(column_get(d->path, &d->col[OFFSETS], i, &x));
        if (x < before || (i == 0 && x != 0)) {
            return bad(d, "offsets", i, x, "offsets start at 0 and never fall");
        }
        before = x;
    }
    if (d->col[OFFSETS].set >= 0 && (uint64_t)x != d->col[TOKENS].n) {
        return bad(
            d, "offsets", d->col[OFFSETS].n - 1, x, "the last one must be the number of tokens");
    }
    return FL_OK;
}

static fl_err count_labels(dataset *d)
{
    int64_t x = 0;

    d->labels = fl_alloc("labels", MOST_LABELS, sizeof *d->labels);
    for (size_t i = 0; i < d->col[LABEL].n; i++) {
        FL_TRY(column_get(d->path, &d->col[LABEL], i, &x));
        if (x >= MOST_LABELS) {
            return bad(d, "label", i, x, "more than 65535 classes");
        }
        if (x < 0) {
            d->unlabelled++;
            continue;
        }
        d->labels[x]++;
        d->nlabels = FL_MAX(d->nlabels, x + 1);
    }
    return FL_OK;
}

static fl_err count_splits(dataset *d)
{
    int64_t x = 0;

    for (size_t i = 0; i < d->col[SPLIT].n; i++) {
        FL_TRY(column_get(d->path, &d->col[SPLIT], i, &x));
        if (x < 0 || x > 2) {
            return bad(d, "split", i, x, "0 is train, 1 validation, 2 test");
        }
        d->split[x]++;
    }
    for (size_t i = 0; i < d->col[CLIENT].n; i++) {
        FL_TRY(column_get(d->path, &d->col[CLIENT], i, &x));
        if (x < 0 || x >= INT32_MAX) {
            return bad(d, "client", i, x, "keys count from 0");
        }
        d->nkeys = FL_MAX(d->nkeys, x + 1);
    }
    return FL_OK;
}

static fl_err count_all(dataset *d)
{
    FL_TRY(check_lengths(d));
    FL_TRY(check_offsets(d));
    FL_TRY(count_labels(d));
    return count_splits(d);
}

static fl_err check_tokens(dataset *d)
{
    int64_t x = 0;

    for (size_t i = 0; i < d->col[TOKENS].n; i++) {
        FL_TRY(column_get(d->path, &d->col[TOKENS], i, &x));
        if (x < 0 || (d->vocab >= 0 && x >= d->vocab)) {
            return bad(d, "tokens", i, x, "outside the vocabulary");
        }
    }
    return FL_OK;
}

/* ---- text ---- */

static void add_dataset(const dataset *d, fl_text *t)
{
    static const char *const attribute[] = {"task", "tokenizer", "source", "license"};
    char text[300];
    hid_t root = H5Gopen2(d->file, "/", H5P_DEFAULT);

    fl_text_add(t, "data set       %zu samples\n", d->nsamples);
    if (d->shape[0] > 0) {
        fl_text_add(t, "images         %lld channels of %lld x %lld\n", (long long)d->shape[1],
            (long long)d->shape[2], (long long)d->shape[3]);
    } else {
        fl_text_add(t, "tokens         %zu, %s loss mask\n", d->col[TOKENS].n,
            d->col[MASK].set >= 0 ? "with a" : "no");
    }
    if (d->vocab >= 0) {
        fl_text_add(t, "vocabulary     %lld\n", (long long)d->vocab);
    }
    fl_text_add(t, "client keys    %lld\n", (long long)d->nkeys);
    if (d->col[SPLIT].set >= 0) {
        fl_text_add(t, "splits         %lld train, %lld validation, %lld test\n",
            (long long)d->split[0], (long long)d->split[1], (long long)d->split[2]);
    } else {
        fl_text_add(t, "splits         none in the file\n");
    }
    for (size_t i = 0; root >= 0 && i < FL_COUNT(attribute); i++) {
        if (h5_get_text(root, attribute[i], text, sizeof text)) {
            fl_text_add(t, "%-14s %s\n", attribute[i], text);
        }
    }
    if (root >= 0) {
        H5Gclose(root);
    }
    for (int64_t i = 0; i < d->nlabels && i < LABELS_SHOWN; i++) {
        fl_text_add(t, "%s%8lld  %12lld\n", i == 0 ? "   label       samples\n" : "", (long long)i,
            (long long)d->labels[i]);
    }
    if (d->nlabels > LABELS_SHOWN) {
        fl_text_add(t, "     ...  %lld labels in all\n", (long long)d->nlabels);
    }
    if (d->unlabelled > 0) {
        fl_text_add(t, "    none  %12lld\n", (long long)d->unlabelled);
    }
}

typedef struct listing {
    hid_t file;
    fl_text *t;
} listing;

static void list_one(void *to, const char *name)
{
    listing *l = to;
    char unit[64] = "", what[200] = "";
    hsize_t dims[H5S_MAX_RANK];
    hid_t set = H5Dopen2(l->file, name, H5P_DEFAULT);
    hid_t space = set < 0 ? -1 : H5Dget_space(set);
    int n = space < 0 ? -1 : H5Sget_simple_extent_dims(space, dims, NULL);

    if (set >= 0) {
        h5_get_text(set, "unit", unit, sizeof unit);
        h5_get_text(set, "description", what, sizeof what);
    }
    fl_text_add(l->t, "%-32s  ", name);
    for (int i = 0; i < n; i++) {
        fl_text_add(l->t, "%s%llu", i > 0 ? " x " : "", (unsigned long long)dims[i]);
    }
    fl_text_add(l->t, "  %s  %s\n", unit[0] != 0 ? unit : "-", what);
    if (space >= 0) {
        H5Sclose(space);
    }
    if (set >= 0) {
        H5Dclose(set);
    }
}

fl_err dataset_inspect(const char *path, void *arg, fl_text *t)
{
    (void)arg;
    dataset d;
    fl_err err = dataset_open(path, &d);

    if (err == FL_OK && is_dataset(&d)) {
        err = count_all(&d);
        if (err == FL_OK) {
            add_dataset(&d, t);
        }
    } else if (err == FL_OK) {
        listing l = {d.file, t};

        fl_text_add(t, "HDF5 file      neither a checkpoint (no seal at its end) nor a data set "
                       "(no /offsets)\n");
        if (h5_visit(d.file, list_one, &l) < 0) {
            err = h5_fail(path, "list its datasets");
        }
    }
    dataset_close(&d);
    return err;
}

fl_err dataset_verify(const char *path, void *arg, fl_text *t)
{
    (void)arg;
    dataset d;
    fl_err err = dataset_open(path, &d);

    if (err == FL_OK && !is_dataset(&d)) {
        err = fl_fail(FL_EFILE,
            "%s: an HDF5 file, but neither a whole checkpoint (no seal at its end) nor a data set "
            "(no /offsets)",
            path);
    }
    err = err != FL_OK ? err : count_all(&d);
    err = err != FL_OK ? err : check_tokens(&d);
    if (err == FL_OK) {
        fl_text_add(t, "%s: whole: %zu samples, %zu tokens, lengths and ranges agree\n", path,
            d.nsamples, d.col[TOKENS].n);
    }
    dataset_close(&d);
    return err;
}
