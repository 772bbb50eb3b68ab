/* test_metrics.c - the table of rounds: exact CSV, values and units in HDF5, files replaced and
 * never grown. */
#include "fedlora/io.h"
#include "harness.h"
#include <hdf5.h>
#include <math.h>
#include <string.h>

static char dir[300];

static const char *at(const char *name)
{
    static char path[400];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void sample(fl_metrics *m)
{
    memset(m, 0, sizeof *m);
    int round = fl_metrics_column(m, "round", ""), wall = fl_metrics_column(m, "wall_s", "s");

    fl_metrics_row(m);
    fl_metrics_set(m, round, 1);
    fl_metrics_set(m, wall, 0.25);
    /* a column that comes later: empty in old rows */
    int loss = fl_metrics_column(m, "eval_loss", "nat");

    assert_int_equal(fl_metrics_column(m, "wall_s", "s"), wall);
    fl_metrics_row(m);
    fl_metrics_set(m, round, 2);
    fl_metrics_set(m, loss, 1.0 / 3);
    fl_metrics_row(m);
    fl_metrics_set(m, round, 3);
    fl_metrics_set(m, wall, 123456789012345.0);
    fl_metrics_set(m, loss, -1e-12);
}

static void csv_text(void **state)
{
    fl_metrics m;
    char *x;
    size_t n;

    (void)state;
    sample(&m);
    assert_int_equal(
        fl_file_write(at("rounds.csv"),
            "an older and much longer file than the new one will be, so it must go\n\n\n\n\n\n",
            70),
        FL_OK);
    assert_int_equal(fl_metrics_csv(&m, at("rounds.csv")), FL_OK);
    assert_int_equal(fl_file_read(at("rounds.csv"), &x, &n), FL_OK);
    assert_string_equal(
        x, "round,wall_s,eval_loss\n1,0.25,\n2,,0.333333333\n3,123456789012345,-1e-12\n");
    assert_false(fl_path_exists(at("rounds.csv.tmp")));
    fl_free(x);
    fl_metrics_free(&m);
    assert_null(m.x);
}

static void csv_special(void **state)
{
    static const double x[] = {0, -0.0, -7, 1e15, 1e300, 0.1, INFINITY, NAN, 16777217};
    fl_metrics m = {0};
    char *text;
    size_t n;

    (void)state;
    fl_metrics_column(&m, "x", "");
    for (size_t i = 0; i < FL_COUNT(x); i++) {
        fl_metrics_row(&m);
        fl_metrics_set(&m, 0, x[i]);
    }
    assert_int_equal(fl_metrics_csv(&m, at("x.csv")), FL_OK);
    assert_int_equal(fl_file_read(at("x.csv"), &text, &n), FL_OK);
    assert_string_equal(text, "x\n0\n0\n-7\n1000000000000000\n1e+300\n0.1\ninf\n\n16777217\n");
    fl_free(text);
    fl_metrics_free(&m);
}

static void read_column(hid_t file, const char *name, size_t n, double *x, char *unit)
{
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(set),
          u = H5Aopen(set, "unit", H5P_DEFAULT);
    hid_t type = H5Aget_type(u);

    assert_true(set >= 0 && u >= 0 && H5Tget_size(type) < 20);
    assert_int_equal(H5Sget_simple_extent_npoints(space), n);
    assert_true(H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    memset(unit, 0, 20);
    assert_true(H5Aread(u, type, unit) >= 0);
    H5Tclose(type);
    H5Aclose(u);
    H5Sclose(space);
    H5Dclose(set);
}

static void h5_columns(void **state)
{
    static const char *const client[] = {"round", "client", "loss"};
    static const double curves[] = {1, 4, 2.5, 1, 9, 2.25};
    fl_metrics m;
    double x[3];
    char unit[20];

    (void)state;
    sample(&m);
    for (int turn = 0; turn < 2; turn++) { /* the second replaces the first */
        assert_int_equal(fl_metrics_h5(&m, at("metrics.h5"), 2, 3, client, curves), FL_OK);
    }
    hid_t file = H5Fopen(at("metrics.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);

    assert_true(file >= 0);
    read_column(file, "eval_loss", 3, x, unit);
    assert_true(isnan(x[0]) && x[1] == 1.0 / 3 && x[2] == -1e-12);
    assert_string_equal(unit, "nat");
    read_column(file, "wall_s", 3, x, unit);
    assert_true(x[0] == 0.25 && isnan(x[1]));
    assert_string_equal(unit, "s");
    read_column(file, "per_client/client", 2, x, unit);
    assert_true(x[0] == 4 && x[1] == 9);
    H5Fclose(file);
    assert_int_equal(fl_metrics_h5(&m, at("plain.h5"), 0, 0, NULL, NULL), FL_OK);
    file = H5Fopen(at("plain.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(file >= 0 && H5Lexists(file, "clients", H5P_DEFAULT) == 0);
    H5Fclose(file);
    fl_metrics_free(&m);
}

static void no_folder(void **state)
{
    fl_metrics m;

    (void)state;
    sample(&m);
    assert_int_equal(fl_metrics_csv(&m, at("absent/rounds.csv")), FL_EFILE);
    assert_int_equal(fl_metrics_h5(&m, at("absent/metrics.h5"), 0, 0, NULL, NULL), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "absent/metrics.h5"));
    fl_error_clear();
    fl_metrics_free(&m);
}

static int make_folder(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof dir, "%.200s/fedlora-metrics-XXXXXX", tmp != NULL ? tmp : "/tmp");
    return mkdtemp(dir) == NULL;
}

static int remove_folder(void **state)
{
    char command[400];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(csv_text, make_folder),
        cmocka_unit_test(csv_special),
        cmocka_unit_test(h5_columns),
        cmocka_unit_test_teardown(no_folder, remove_folder),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
