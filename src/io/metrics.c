/* metrics.c - the table of rounds: in memory, as CSV, as HDF5. Files are written new and renamed,
 * never appended to, so a run that is resumed at an earlier round leaves no rows of a future that
 * did not happen. */
#include "h5.h"
#include <math.h>
#include <string.h>

int fl_metrics_column(fl_metrics *m, const char *name, const char *unit)
{
    for (int i = 0; i < m->ncolumns; i++) {
        if (strcmp(m->column[i], name) == 0) {
            return i;
        }
    }
    size_t old = (size_t)m->ncolumns, rows = (size_t)m->nrows;
    double *x = fl_alloc("metrics", rows * (old + 1), sizeof *x);

    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < old; c++) {
            x[r * (old + 1) + c] = m->x[r * old + c];
        }
        x[r * (old + 1) + old] = NAN;
    }
    fl_free(m->x);
    m->x = x;
    m->column = fl_realloc("metrics", m->column, old + 1, sizeof *m->column);
    m->unit = fl_realloc("metrics", m->unit, old + 1, sizeof *m->unit);
    m->column[old] = fl_strdup(name);
    m->unit[old] = fl_strdup(unit);
    return m->ncolumns++;
}

void fl_metrics_row(fl_metrics *m)
{
    size_t nc = (size_t)m->ncolumns, rows = (size_t)m->nrows;

    m->x = fl_realloc("metrics", m->x, (rows + 1) * nc, sizeof *m->x);
    for (size_t c = 0; c < nc; c++) {
        m->x[rows * nc + c] = NAN;
    }
    m->nrows++;
}

void fl_metrics_set(fl_metrics *m, int column, double value)
{
    FL_REQUIRE(m->nrows > 0 && column >= 0 && column < m->ncolumns);
    m->x[(size_t)(m->nrows - 1) * (size_t)m->ncolumns + (size_t)column] = value;
}

void fl_metrics_free(fl_metrics *m)
{
    for (int i = 0; i < m->ncolumns; i++) {
        fl_free(m->column[i]);
        fl_free(m->unit[i]);
    }
    fl_free(m->column);
    fl_free(m->unit);
    fl_free(m->x);
    memset(m, 0, sizeof *m);
}

static void add_number(fl_text *t, double x)
{
    if (isnan(x)) {
        return; /* not evaluated: an empty cell */
    }
    if (x == rint(x) && fabs(x) < 9007199254740992.0) {
        fl_text_add(t, "%lld", (long long)x);
    } else {
        fl_text_add(t, "%.9g", x);
    }
}

fl_err fl_metrics_csv(const fl_metrics *m, const char *path)
{
    fl_text t = {0};

    for (int c = 0; c < m->ncolumns; c++) {
        fl_text_add(&t, "%s%s", c > 0 ? "," : "", m->column[c]);
    }
    fl_text_add(&t, "\n");
    for (size_t r = 0; r < (size_t)m->nrows; r++) {
        for (size_t c = 0; c < (size_t)m->ncolumns; c++) {
            fl_text_add(&t, "%s", c > 0 ? "," : "");
            add_number(&t, m->x[r * (size_t)m->ncolumns + c]);
        }
        fl_text_add(&t, "\n");
    }
    fl_err err = fl_file_write(path, t.s, t.n);

    fl_text_free(&t);
    return err;
}

/* Column c of x [rows][columns] as a data set of its own. */
static herr_t add_column(hid_t file, const char *name, const char *unit, const char *axes,
    const double *x, size_t rows, size_t columns, size_t c)
{
    hid_t set = h5_dataset(file, name, H5T_IEEE_F64LE, rows, "NaN: not evaluated", unit, axes);
    double *one = fl_alloc("metrics column", rows, sizeof *one);
    herr_t status = -1;

    for (size_t r = 0; r < rows; r++) {
        one[r] = x[r * columns + c];
    }
    if (set >= 0) {
        status = rows > 0 ? h5_write(set, H5T_NATIVE_DOUBLE, H5P_DEFAULT, 0, rows, one) : 0;
        if (H5Dclose(set) < 0) {
            status = -1;
        }
    }
    fl_free(one);
    return status;
}

static herr_t add_metrics(hid_t file, const fl_metrics *m, size_t nrows, size_t ncolumns,
    const char *const *column, const double *x)
{
    char name[300];
    herr_t status = h5_put_text(file, "program", "fedlora " FL_VERSION);

    for (int c = 0; c < m->ncolumns && status >= 0; c++) {
        status = add_column(file, m->column[c], m->unit[c], "round", m->x, (size_t)m->nrows,
            (size_t)m->ncolumns, (size_t)c);
    }
    for (size_t c = 0; x != NULL && c < ncolumns && status >= 0; c++) {
        snprintf(name, sizeof name, "per_client/%s", column[c]);
        status = add_column(file, name, "", "row: one client in one round", x, nrows, ncolumns, c);
    }
    return status;
}

/* The file is made in memory and written like any other: HDF5 does not close well on a full disk.
 */
fl_err fl_metrics_h5(const fl_metrics *m, const char *path, int nclients_rows, int nclient_columns,
    const char *const *client_columns, const double *client_x)
{
    h5_quiet();
    hid_t file = h5_create_memory();
    void *image = NULL;
    size_t n = 0;
    fl_err err = FL_OK;

    if (file < 0 ||
        add_metrics(file, m, (size_t)nclients_rows, (size_t)nclient_columns, client_columns,
            client_x) < 0 ||
        h5_image(file, &image, &n) < 0) {
        err = h5_fail(path, "make the table of metrics");
    }
    if (file >= 0) {
        H5Fclose(file);
    }
    if (err == FL_OK) {
        err = fl_file_write(path, image, n);
    }
    fl_free(image);
    return err;
}
