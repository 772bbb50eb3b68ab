/* test_checkpoint_writers.c - who writes a checkpoint, in which pieces, with which hints, at once
 * or in the background: none of it changes a byte of the file. The reference is the file that one
 * rank writes alone. MPI_File_open and pwrite are wrapped here, to see the hints arrive and to let
 * the background fail. */
#include "../../src/io/checkpoint_internal.h"
#include "checkpoint_bed.h"
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

/* ---- wrapped ---- */
static int opens, hinted;

int MPI_File_open(MPI_Comm comm, const char *name, int mode, MPI_Info info, MPI_File *file)
{
    char factor[16] = "", unit[16] = "";
    int a = 0, b = 0;

    opens++;
    if (info != MPI_INFO_NULL) {
        MPI_Info_get(info, "striping_factor", 15, factor, &a);
        MPI_Info_get(info, "striping_unit", 15, unit, &b);
    }
    hinted += a && b && strcmp(factor, "3") == 0 && strcmp(unit, "131072") == 0;
    return PMPI_File_open(comm, name, mode, info, file);
}

static atomic_int background_error, background_calls, background_held;

/* only the thread behind a checkpoint is disturbed */
ssize_t pwrite(int fd, const void *x, size_t n, off_t at)
{
    if (syscall(SYS_gettid) != getpid()) {
        background_calls++;
        while (background_held != 0) {
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        }
        if (background_error != 0) {
            errno = background_error;
            return -1;
        }
    }
    return syscall(SYS_pwrite64, fd, x, n, at);
}

/* ---- */
static char *want; /* the file that one rank writes, on all ranks */
static size_t nwant;

static int write_reference(void **state)
{
    fl_ctx *self;
    sample m;

    if (make_folder(state) != 0) {
        return 1;
    }
    fl_ctx_create(MPI_COMM_SELF, &self);
    self->quiet = true;
    sample_create(self, true, &m);
    if (test_ctx->rank == 0) {
        assert_int_equal(fl_checkpoint_write(self, at("reference.h5"), &m.s, NULL), FL_OK);
    }
    barrier();
    sample_destroy(&m);
    fl_ctx_destroy(&self);
    want = file_bytes(at("reference.h5"), &nwant);
    return 0;
}

static int drop_reference(void **state)
{
    fl_free(want);
    return remove_folder(state);
}

static void expect_reference(const char *name)
{
    size_t n;
    char *got = file_bytes(at(name), &n);

    assert_int_equal(n, nwant);
    assert_memory_equal(got, want, n);
    fl_free(got);
    assert_false(fl_path_exists(at("w.h5.tmp")));
    barrier();
}

static void any_writers_any_pieces(void **state)
{
    static const fl_checkpoint_how how[] = {{.writers = 1}, {.writers = 2}, {.writers = 100},
        {.slab = 170001}, {.writers = 1, .slab = 170001},
        {.writers = 3, .slab = 70001, .independent = true}, {.independent = true}};
    sample m;

    (void)state;
    sample_create(test_ctx, true, &m);
    for (size_t i = 0; i < FL_COUNT(how); i++) {
        double bytes = 0;

        m.s.how = how[i];
        assert_int_equal(fl_checkpoint_write(test_ctx, at("w.h5"), &m.s, &bytes), FL_OK);
        assert_true(bytes == (double)nwant);
        expect_reference("w.h5");
    }
    sample_destroy(&m);
}

/* slabs of 13 bytes cut elements, blobs and the smallest arrays; every slab is a collective write
 */
static void tiny_slabs(void **state)
{
    sample m;
    size_t na, nb;

    (void)state;
    sample_create(test_ctx, false, &m);
    assert_int_equal(fl_checkpoint_write(test_ctx, at("small.h5"), &m.s, NULL), FL_OK);
    char *a = file_bytes(at("small.h5"), &na);

    for (int writers = 0; writers < 2; writers++) {
        m.s.how = (fl_checkpoint_how){.writers = writers, .slab = 13};
        assert_int_equal(fl_checkpoint_write(test_ctx, at("w.h5"), &m.s, NULL), FL_OK);
        char *b = file_bytes(at("w.h5"), &nb);

        assert_int_equal(na, nb);
        assert_memory_equal(a, b, na);
        fl_free(b);
        barrier();
    }
    fl_free(a);
    sample_destroy(&m);
}

/* With ranks dealt to nodes in blocks or in turn, every node gets its share of the writers. */
static void writers_over_nodes(void **state)
{
    int size = test_ctx->size, *taken = fl_alloc("writers", (size_t)size, sizeof *taken);

    (void)state;
    for (int by_turn = 0; by_turn < 2; by_turn++) {
        for (int n = 1; n < size; n++) {
            fl_ctx fake = *test_ctx;
            ck_writer w = {.ctx = &fake};
            int nodes = FL_MIN(size, 2), on[2] = {0, 0};

            fake.nnodes = nodes;
            fake.inode = by_turn ? fake.rank % nodes : fake.rank * nodes / size;
            ck_choose_writers(&w, n);
            assert_true(
                w.lo <= w.writer && w.writer < w.hi && w.lo <= fake.rank && fake.rank < w.hi);
            assert_int_equal(w.team != MPI_COMM_NULL, w.writer == fake.rank);
            double mine[2] = {w.writer == fake.rank, fake.inode},
                   *all = fl_alloc("writers", 2 * (size_t)size, sizeof *all);

            fl_gather_doubles(test_ctx, 2, mine, all);
            for (int r = 0; r < size; r++) {
                on[(int)all[2 * r + 1]] += all[2 * r] > 0;
            }
            fl_free(all);
            assert_int_equal(on[0] + on[1], n);
            assert_true(abs(on[0] - on[1]) <= 1 || n == 1);
            ck_writer_free(&w);
        }
    }
    fl_free(taken);
}

static void hints_arrive(void **state)
{
    sample m;

    (void)state;
    sample_create(test_ctx, true, &m);
    opens = hinted = 0;
    assert_int_equal(fl_checkpoint_write(test_ctx, at("w.h5"), &m.s, NULL), FL_OK);
    assert_int_equal(opens, 1); /* HDF5's; every rank writes */
    assert_int_equal(hinted, 0);
    expect_reference("w.h5");
    opens = 0;
    m.s.how = (fl_checkpoint_how){.stripe_count = 3, .stripe_size = 131072};
    assert_int_equal(fl_checkpoint_write(test_ctx, at("w.h5"), &m.s, NULL), FL_OK);
    assert_int_equal(opens,
        test_ctx->rank == 0 ? 2 : 1); /* where stripes are chosen: when the file is created */
    assert_int_equal(hinted, opens);
    expect_reference("w.h5");
    assert_int_equal(fl_checkpoint_write(test_ctx, at("absent/w.h5"), &m.s, NULL), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "absent/w.h5"));
    fl_error_clear();
    sample_destroy(&m);
}

/* ---- in the background ---- */

/* What the run does next: it changes everything. */
static void scribble(sample *m)
{
    for (int k = 0; k < NARRAYS; k++) {
        memset(m->array[k].x, 7, m->array[k].n * 4);
        snprintf(m->array[k].name, sizeof m->array[k].name, "other");
    }
    memset(m->base, 9, m->nbase * sizeof *m->base);
    for (int id = 0; id < NCLIENTS; id++) {
        if (fl_home(NCLIENTS, test_ctx->size, id) == test_ctx->rank) {
            fl_store_put(m->store, id, "x", 1);
        }
    }
}

static void background_is_the_same(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        sample m;
        double bytes = 0, seconds = 0;
        fl_checkpoint_job *job = NULL;

        sample_create(test_ctx, true, &m);
        m.s.how = (fl_checkpoint_how){
            .writers = i, .slab = i == 1 ? 10007 : 0, .stripe_count = i == 2 ? 1 : 0};
        background_held = 1;
        background_calls = 0;
        unlink(at("w.h5"));
        barrier();
        assert_int_equal(fl_checkpoint_begin(test_ctx, at("w.h5"), &m.s, &job), FL_OK);
        scribble(&m);
        assert_non_null(job);
        assert_false(fl_path_exists(at("w.h5")));
        assert_false(fl_checkpoint_done(test_ctx, job));
        background_held = 0;
        assert_int_equal(fl_checkpoint_end(test_ctx, &job, &bytes, &seconds), FL_OK);
        assert_null(job);
        assert_true(bytes == (double)nwant && seconds > 0);
        /* the array, the clients' state, the base, and two for the seal, all by the thread */
        assert_true(background_calls >= (test_ctx->rank == 0 ? 5 : 0));
        expect_reference("w.h5");
        sample_destroy(&m);
    }
}

static void background_is_done(void **state)
{
    sample m;
    double bytes, seconds;
    fl_checkpoint_job *job;

    (void)state;
    sample_create(test_ctx, false, &m);
    assert_int_equal(fl_checkpoint_begin(test_ctx, at("w.h5"), &m.s, &job), FL_OK);
    while (!fl_checkpoint_done(test_ctx, job)) {
    }
    assert_int_equal(fl_checkpoint_end(test_ctx, &job, &bytes, &seconds), FL_OK);
    check_read(test_ctx, at("w.h5"), &m, false);
    /* nobody comes for it together: each rank on its own */
    assert_int_equal(fl_checkpoint_begin(test_ctx, at("w.h5"), &m.s, &job), FL_OK);
    assert_int_equal(fl_checkpoint_join(&job), FL_OK);
    assert_null(job);
    assert_int_equal(fl_checkpoint_join(&job), FL_OK);
    barrier();
    check_read(test_ctx, at("w.h5"), &m, false);
    sample_destroy(&m);
}

static void background_fails(void **state)
{
    static const struct {
        int code;
        const char *says;
    } errors[] = {{ENOSPC, "disk full"}, {EIO, "Input/output error"}, {EDQUOT, "disk full"}};
    sample m, old;
    double bytes, seconds;
    fl_checkpoint_job *job;

    (void)state;
    sample_create(test_ctx, false, &old);
    assert_int_equal(fl_checkpoint_write(test_ctx, at("w.h5"), &old.s, NULL), FL_OK);
    sample_create(test_ctx, true, &m);
    for (size_t i = 0; i < FL_COUNT(errors); i++) {
        background_error = errors[i].code;
        assert_int_equal(fl_checkpoint_begin(test_ctx, at("w.h5"), &m.s, &job), FL_OK);
        assert_int_equal(fl_checkpoint_end(test_ctx, &job, &bytes, &seconds), FL_EFILE);
        assert_non_null(strstr(fl_error_text(), errors[i].says));
        assert_non_null(strstr(fl_error_text(), "w.h5"));
        fl_error_clear();
        assert_false(fl_path_exists(at("w.h5.tmp")));
        check_read(test_ctx, at("w.h5"), &old, false); /* what was there before stands */
    }
    background_error = 0;
    assert_int_equal(fl_checkpoint_begin(test_ctx, at("absent/w.h5"), &m.s, &job), FL_EFILE);
    assert_null(job);
    fl_error_clear();
    sample_destroy(&m);
    sample_destroy(&old);
}

static int signals;

static void count_signal(int number)
{
    (void)number;
    signals += syscall(SYS_gettid) == getpid() ? 1 : 1000;
}

/* Signals are for the thread that acts on them. */
static void signals_stay_here(void **state)
{
    sample m;
    double bytes, seconds;
    fl_checkpoint_job *job;

    (void)state;
    sample_create(test_ctx, true, &m);
    signal(SIGUSR2, count_signal);
    background_held = 1;
    assert_int_equal(fl_checkpoint_begin(test_ctx, at("w.h5"), &m.s, &job), FL_OK);
    for (int i = 0; i < 10; i++) {
        kill(getpid(), SIGUSR2);
    }
    background_held = 0;
    assert_int_equal(fl_checkpoint_end(test_ctx, &job, &bytes, &seconds), FL_OK);
    signal(SIGUSR2, SIG_DFL);
    assert_in_range(signals, 1, 10);
    expect_reference("w.h5");
    sample_destroy(&m);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(any_writers_any_pieces, write_reference),
        cmocka_unit_test(tiny_slabs),
        cmocka_unit_test(writers_over_nodes),
        cmocka_unit_test(hints_arrive),
        cmocka_unit_test(background_is_the_same),
        cmocka_unit_test(background_is_done),
        cmocka_unit_test(background_fails),
        cmocka_unit_test_teardown(signals_stay_here, drop_reference),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
