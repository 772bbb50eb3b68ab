/* test_checkpoint.c - checkpoints: written on some ranks and read on others, damaged in every way,
 * on a disk that is full. What is expected is the snapshot itself, made again from its formula; no
 * stored files. */
#include "checkpoint_bed.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* ---- any rank count ---- */

static void round_trip(void **state)
{
    fl_ctx *self;
    sample m;
    double bytes = 0;

    (void)state;
    fl_ctx_create(MPI_COMM_SELF, &self);
    self->quiet = true;
    for (int full = 0; full < 2; full++) {
        const char *path = at(full ? "round-000003.h5" : "small.h5"),
                   *other = at(full ? "serial.h5" : "small-serial.h5");

        /* by all, read by all and by each alone */
        sample_create(test_ctx, full, &m);
        assert_int_equal(fl_checkpoint_write(test_ctx, path, &m.s, &bytes), FL_OK);
        check_read(test_ctx, path, &m, full);
        check_read(self, path, &m, full);
        sample_destroy(&m);
        /* by one, read by all */
        sample_create(self, full, &m);
        if (test_ctx->rank == 0) {
            assert_int_equal(fl_checkpoint_write(self, other, &m.s, NULL), FL_OK);
        }
        barrier();
        check_read(test_ctx, other, &m, full);
        sample_destroy(&m);
        /* and they are the same file */
        size_t na, nb;
        char *a = file_bytes(path, &na), *b = file_bytes(other, &nb);

        assert_int_equal(na, nb);
        assert_int_equal(na, (size_t)bytes);
        assert_memory_equal(a, b, na);
        fl_free(a);
        fl_free(b);
        barrier();
    }
    fl_ctx_destroy(&self);
}

static void nothing_in_it(void **state)
{
    fl_snapshot s = {.round = 0,
                    .rounds = 1,
                    .deck = (char *)"",
                    .versions = (char *)"",
                    .columns = (char *)"",
                    .nclients = 0},
                r;

    (void)state;
    assert_int_equal(fl_checkpoint_write(test_ctx, at("empty.h5"), &s, NULL), FL_OK);
    assert_int_equal(fl_checkpoint_read(test_ctx, at("empty.h5"), NULL, 0, NULL, &r), FL_OK);
    assert_int_equal(r.narrays, 0);
    fl_snapshot_free(&r);
}

static void base_must_fit(void **state)
{
    fl_snapshot s;
    fl_store *store = fl_store_create(test_ctx, NCLIENTS);

    (void)state;
    assert_int_equal(
        fl_checkpoint_read(test_ctx, at("round-000003.h5"), store, NBASE - 1, (fl_real[1]){0}, &s),
        FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "another model"));
    assert_null(s.deck);
    fl_error_clear();
    fl_store_destroy(&store);
}

/* ---- text ---- */

static void peek_and_inspect(void **state)
{
    fl_snapshot s;
    fl_text t = {0};
    static const char *const parts[] = {"round          3 of 20\n",
        "clients        27 of 41 with state", "server/keep/r/0", "a small one [row,column]",
        "revision 2, saved dense: 2621443 numbers"};

    (void)state;
    assert_int_equal(fl_checkpoint_peek(at("round-000003.h5"), &s), FL_OK);
    assert_int_equal(s.round, 3);
    assert_int_equal(s.nclients, NCLIENTS);
    assert_string_equal(s.deck, "run: {seed: 1}\n");
    fl_snapshot_free(&s);
    assert_int_equal(fl_inspect(at("round-000003.h5"), &t), FL_OK);
    for (size_t i = 0; i < FL_COUNT(parts); i++) {
        if (strstr(t.s, parts[i]) == NULL) {
            fail_msg("\"%s\" is not in:\n%s", parts[i], t.s);
        }
    }
    const char *last = "\nstate 0123456789abcdef\n";

    assert_string_equal(t.s + t.n - strlen(last), last);
    fl_text_free(&t);
    assert_int_equal(fl_verify(at("round-000003.h5"), &t), FL_OK);
    assert_non_null(strstr(t.s, "every hash agrees"));
    fl_text_free(&t);
}

static void expect_diff(const char *other, fl_err want, const char *part)
{
    fl_text t = {0};

    assert_int_equal(fl_diff(at("small.h5"), at(other), &t), want);
    if (strstr(t.s, part) == NULL) {
        fail_msg("\"%s\" is not in:\n%s", part, t.s);
    }
    fl_text_free(&t);
    fl_error_clear();
}

static void write_changed(const char *name, sample *m)
{
    assert_int_equal(fl_checkpoint_write(test_ctx, at(name), &m->s, NULL), FL_OK);
}

static void differences(void **state)
{
    sample m;

    (void)state;
    expect_diff("small-serial.h5", FL_OK, "equal\n");
    sample_create(test_ctx, false, &m);
    double *metrics = m.array[4].x;

    metrics[4] += 10; /* wall_s of row 1: not compared */
    write_changed("d.h5", &m);
    expect_diff("d.h5", FL_OK, "equal\n");
    metrics[6] += 1; /* round of row 2 */
    write_changed("d.h5", &m);
    expect_diff(
        "d.h5", FL_EDIFF, "first difference: run/metrics: 1 of 9 numbers differ, first at 6 (");
    metrics[6] = value(4, 6);
    ((float *)m.array[0].x)[77] += 2;
    ((float *)m.array[0].x)[99] -= 4;
    m.array[1].n--;
    snprintf(m.array[3].name, sizeof m.array[3].name, "run/renamed");
    write_changed("d.h5", &m);
    expect_diff("d.h5", FL_EDIFF, "server/global: 2 of 5000 numbers differ, first at 77 (");
    expect_diff("d.h5", FL_EDIFF, "largest difference 4\n");
    expect_diff("d.h5", FL_EDIFF, "run/nothing: only in the first file");
    expect_diff("d.h5", FL_EDIFF, "run/renamed: only in the second file");
    expect_diff("d.h5", FL_EDIFF, "server/keep/r/0: 17 of type f64 against 16 of type f64");
    sample_destroy(&m);
    sample_create(test_ctx, false, &m);
    for (int id = 1; id <= 3; id++) { /* 1 has no state in small.h5, 2 is changed, 3 removed */
        char blob[1000] = {0};

        fill_blob(id, blob);
        blob[5] ^= 1;
        if (fl_home(NCLIENTS, test_ctx->size, id) == test_ctx->rank) {
            fl_store_put(m.store, id, blob, id == 1 ? 4 : id == 2 ? blob_bytes(2) : 0);
        }
    }
    m.s.state++;
    write_changed("d.h5", &m);
    expect_diff(
        "d.h5", FL_EDIFF, "first difference: client 1: has state only in the second file\n");
    expect_diff("d.h5", FL_EDIFF, "client 2: state differs, first at byte 5 of 75");
    expect_diff("d.h5", FL_EDIFF, "client 3: has state only in the first file");
    expect_diff("d.h5", FL_EDIFF, "state: 0123456789abcdef against 0123456789abcdf0");
    sample_destroy(&m);
}

/* ---- damage ---- */

/* Reading must fail on all ranks, say why, and leave store and base alone. */
static void expect_damage(const char *name, size_t where)
{
    fl_snapshot s;
    fl_text t = {0};
    fl_store *store = fl_store_create(test_ctx, NCLIENTS);
    fl_err err = fl_checkpoint_read(test_ctx, at(name), store, 0, NULL, &s);

    if (err != FL_EFILE || strstr(fl_error_text(), name) == NULL) {
        fail_msg("damage at byte %zu: read gives %d, \"%s\"", where, (int)err, fl_error_text());
    }
    assert_int_equal(fl_store_count(store), 0);
    fl_error_clear();
    if (test_ctx->rank == 0) {
        assert_int_equal(fl_verify(at(name), &t), FL_EFILE);
        fl_error_clear();
    }
    fl_text_free(&t);
    fl_store_destroy(&store);
}

static void put_file(const char *name, const char *x, size_t n)
{
    if (test_ctx->rank == 0) {
        assert_int_equal(fl_file_write(at(name), x, n), FL_OK);
    }
    barrier();
}

static void damaged(void **state)
{
    size_t n;
    char *x = file_bytes(at("small.h5"), &n);

    (void)state;
    for (size_t cut = 0; cut < 16; cut++) { /* 0 bytes .. all but one */
        size_t length = cut < 8 ? n / 8 * cut : n - ((size_t)1 << (15 - cut));

        put_file("cut.h5", x, length);
        expect_damage("cut.h5", length);
    }
    for (size_t i = 0; i < 50;
         i++) { /* every byte is under a hash: a flipped bit anywhere is found */
        size_t where = i < 20 ? i * 13 : i < 40 ? n / 20 * (i - 20) + i : n - 1 - (i - 40) * 9;

        x[where] ^= (char)(1 << (i % 8));
        put_file("flip.h5", x, n);
        expect_damage("flip.h5", where);
        x[where] ^= (char)(1 << (i % 8));
    }
    put_file("flip.h5", x, n); /* the flips were undone: the last word is that the file is whole */
    fl_snapshot s;

    assert_int_equal(fl_checkpoint_read(test_ctx, at("flip.h5"), NULL, 0, NULL, &s), FL_OK);
    fl_snapshot_free(&s);
    fl_free(x);
}

/* The base is verified before it is overwritten. */
static void damaged_base(void **state)
{
    size_t n;
    char *x = file_bytes(at("round-000003.h5"), &n);
    fl_real *base = fl_alloc("base", NBASE, sizeof *base);
    fl_snapshot s;

    (void)state;
    x[n - 5000] ^= 4; /* base is the last large data set */
    put_file("flip.h5", x, n);
    assert_int_equal(fl_checkpoint_read(test_ctx, at("flip.h5"), NULL, NBASE, base, &s), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "dataset /base: hash differs"));
    for (size_t i = 0; i < NBASE; i++) {
        assert_true(base[i] == 0);
    }
    fl_error_clear();
    fl_free(base);
    fl_free(x);
}

/* ---- folders ---- */

static void list_and_prune(void **state)
{
    static const char *const names[] = {"round-000002.h5", "round-000010.h5", "round-1000000.h5",
        "round-000010.h5.tmp", "round-00010.h5", "round-0000100.h5", "round-000011.h5.bak",
        "xround-000012.h5"};
    char **path, sub[400];

    (void)state;
    snprintf(sub, sizeof sub, "%s/list", dir);
    if (test_ctx->rank == 0) {
        assert_int_equal(fl_make_dirs(sub), FL_OK);
        for (size_t i = 0; i < FL_COUNT(names); i++) {
            char name[100];

            snprintf(name, sizeof name, "list/%s", names[i]);
            assert_int_equal(fl_file_write(at(name), "x", 1), FL_OK);
        }
        assert_int_equal(fl_checkpoint_list(sub, &path), 3);
        for (int i = 0; i < 3; i++) {
            assert_string_equal(strrchr(path[i], '/') + 1, names[2 - i]);
            fl_free(path[i]);
        }
        fl_free(path);
        fl_checkpoint_prune(sub, 2);
        assert_false(fl_path_exists(at("list/round-000002.h5")));
        assert_false(fl_path_exists(at("list/round-000010.h5.tmp")));
        for (size_t i = 0; i < FL_COUNT(names); i++) {
            char name[100];

            snprintf(name, sizeof name, "list/%s", names[i]);
            assert_true(fl_path_exists(at(name)) == (i != 0 && i != 3));
        }
        assert_int_equal(fl_checkpoint_list(at("no-such-folder"), &path), 0);
        fl_free(path);
    }
    barrier();
}

static void missing_folder(void **state)
{
    sample m;
    fl_snapshot s;

    (void)state;
    sample_create(test_ctx, false, &m);
    assert_int_equal(
        fl_checkpoint_write(test_ctx, at("absent/round-000001.h5"), &m.s, NULL), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "No such file or directory"));
    assert_non_null(strstr(fl_error_text(), "absent/round-000001.h5"));
    fl_error_clear();
    assert_int_equal(
        fl_checkpoint_read(test_ctx, at("absent/round-000001.h5"), m.store, 0, NULL, &s), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "No such file or directory"));
    fl_error_clear();
    sample_destroy(&m);
}

static void read_only_folder(void **state)
{
    sample m;

    (void)state;
    bool root = geteuid() == 0; /* root may write anywhere: be nobody for a moment */

    if (test_ctx->rank == 0) {
        assert_int_equal(mkdir(at("locked"), 0555), 0);
    }
    barrier();
    sample_create(test_ctx, false, &m);
    assert_true(!root || seteuid(65534) == 0);
    fl_err err = fl_checkpoint_write(test_ctx, at("locked/round-000001.h5"), &m.s, NULL);

    assert_true(!root || seteuid(0) == 0);
    assert_int_equal(err, FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "Permission denied"));
    fl_error_clear();
    sample_destroy(&m);
}

/* ---- no space ---- */

/* A write error on one rank in the middle: files of that rank may not grow beyond a limit. */
static void write_error_on_one_rank(void **state)
{
    sample m;
    struct rlimit old, low;

    (void)state;
    sample_create(test_ctx, true, &m);
    signal(SIGXFSZ, SIG_IGN); /* the system call then says EFBIG */
    getrlimit(RLIMIT_FSIZE, &old);
    for (int rank = 0; rank < test_ctx->size; rank++) {
        low = old;
        low.rlim_cur =
            rank % 2 == 0 ? 2000 : 1 << 20; /* nothing, or only the header, can be written */
        if (test_ctx->rank == rank) {
            setrlimit(RLIMIT_FSIZE, &low);
        }
        fl_err err = fl_checkpoint_write(test_ctx, at("limited.h5"), &m.s, NULL);

        setrlimit(RLIMIT_FSIZE, &old);
        if (rank == 0) { /* rank 0 reserves the space: it must notice */
            assert_int_equal(err, FL_EFILE);
        }
        if (err == FL_OK) { /* another rank did this rank's writing, as MPI-IO may */
            check_read(test_ctx, at("limited.h5"), &m, true);
        } else {
            assert_int_equal(err, FL_EFILE);
            assert_non_null(strstr(fl_error_text(), "limited.h5"));
        }
        assert_false(fl_path_exists(at("limited.h5.tmp")));
        fl_error_clear();
        barrier();
        if (test_ctx->rank == 0) {
            unlink(at("limited.h5"));
        }
        barrier();
    }
    signal(SIGXFSZ, SIG_DFL);
    sample_destroy(&m);
}

/* A file system of 8 MiB: a checkpoint of 13 MiB is refused, and the small one in it stays good. */
static void full_disk(void **state)
{
    sample big, little;
    int mounted = 0;

    (void)state;
    if (test_ctx->rank == 0) {
        mkdir(at("full"), 0755);
        mounted = test_ctx->nnodes == 1 && /* another host would not see it */
                  geteuid() == 0 && mount("tmpfs", at("full"), "tmpfs", 0, "size=8m") == 0;
    }
    fl_bcast(test_ctx, 0, &mounted, sizeof mounted);
    if (!mounted) {
        skip();
    }
    sample_create(test_ctx, true, &big);
    sample_create(test_ctx, false, &little);
    assert_int_equal(
        fl_checkpoint_write(test_ctx, at("full/round-000001.h5"), &little.s, NULL), FL_OK);
    assert_int_equal(
        fl_checkpoint_write(test_ctx, at("full/round-000001.h5"), &big.s, NULL), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "disk full"));
    assert_false(fl_path_exists(at("full/round-000001.h5.tmp")));
    fl_error_clear();
    check_read(test_ctx, at("full/round-000001.h5"), &little, false);
    sample_destroy(&big);
    sample_destroy(&little);
    barrier();
    if (test_ctx->rank == 0) {
        assert_int_equal(umount(at("full")), 0);
    }
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(round_trip, make_folder), /* its files serve the tests below */
        cmocka_unit_test(nothing_in_it),
        cmocka_unit_test(base_must_fit),
        cmocka_unit_test(peek_and_inspect),
        cmocka_unit_test(differences),
        cmocka_unit_test(damaged),
        cmocka_unit_test(damaged_base),
        cmocka_unit_test(list_and_prune),
        cmocka_unit_test(missing_folder),
        cmocka_unit_test(read_only_folder),
        cmocka_unit_test(full_disk),
        cmocka_unit_test_teardown(write_error_on_one_rank, remove_folder),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
