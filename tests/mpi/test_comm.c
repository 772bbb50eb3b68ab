/* test_comm.c - layout, order-free sum, shared memory, collectives, exchange and store on 1-4
 * ranks: one expectation for all. fl_comm_chunk is made small so that little data takes the
 * many-calls path of large data. */
#include "../../src/comm/comm_internal.h"
#include "harness.h"
#include <math.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

/* ---- layout ---- */

static void layout_check(int n, const double *cost, int size)
{
    int *first = fl_alloc("test", (size_t)size + 1, sizeof *first);
    double total = 0, most = 0, sum = 0;

    for (int i = 0; i < n; i++) {
        total += cost[i];
        most = FL_MAX(most, cost[i]);
    }
    fl_layout(n, cost, size, first);
    assert_int_equal(first[0], 0);
    assert_int_equal(first[size], n);
    for (int b = 0; b < size; b++) {
        double load = 0;
        assert_true(first[b] <= first[b + 1]);
        for (int i = first[b]; i < first[b + 1]; i++) {
            load += cost[i];
            assert_int_equal(fl_layout_owner(size, first, i), b);
        }
        sum += load;
        /* a cut is at most half an item from its goal, so a block at most one from the average */
        assert_true(load <= total / size + most + 1e-9 * total);
        /* nearest: no neighbouring cut is nearer to the goal */
        double goal = total * (b + 1) / size;
        if (b + 1 < size && total > 0 && first[b + 1] < n) {
            assert_true(fabs(sum - goal) <= fabs(sum + cost[first[b + 1]] - goal) + 1e-9 * total);
        }
        if (b + 1 < size && total > 0 && first[b + 1] > first[b]) {
            assert_true(
                fabs(sum - goal) <= fabs(sum - cost[first[b + 1] - 1] - goal) + 1e-9 * total);
        }
    }
    fl_free(first);
}

static void layout_properties(void **state)
{
    double cost[200];

    (void)state;
    for (int trial = 0; trial < 60; trial++) {
        for (int size = 1; size <= 9; size += 2) {
            int n = trial * 3;
            for (int i = 0; i < n; i++) {
                double u = fl_rng_uniform(1, FL_RNG_TEST, trial, size, (uint64_t)i);
                cost[i] = trial % 3 == 0 ? 1.0 : trial % 3 == 1 ? exp(8 * u) : u < 0.5 ? 0.0 : u;
            }
            layout_check(n, cost, size);
        }
    }
    /* no cost at all: dealt by number */
    int first[5];
    memset(cost, 0, sizeof cost);
    fl_layout(8, cost, 4, first);
    for (int b = 0; b <= 4; b++) {
        assert_int_equal(first[b], 2 * b);
    }
}

static void layout_homes(void **state)
{
    (void)state;
    for (int nclients = 1; nclients < 60; nclients++) {
        for (int size = 1; size < 12; size++) {
            int last = 0;
            assert_int_equal(fl_home_first(nclients, size, 0), 0);
            assert_int_equal(fl_home_first(nclients, size, size), nclients);
            for (int id = 0; id < nclients; id++) {
                int home = fl_home(nclients, size, id);
                assert_true(home >= last && home < size);
                assert_true(id >= fl_home_first(nclients, size, home) &&
                            id < fl_home_first(nclients, size, home + 1));
                last = home;
            }
            for (int r = 0; r < size; r++) {
                int here = fl_home_first(nclients, size, r + 1) - fl_home_first(nclients, size, r);
                assert_true(here == nclients / size || here == nclients / size + 1);
            }
        }
    }
    assert_int_equal(fl_home(INT32_MAX, 100000, INT32_MAX - 1), 99999); /* no overflow of int */
    assert_int_equal(fl_home_first(INT32_MAX, 100000, 100000), INT32_MAX);
}

/* ---- memory shared on a node ---- */

static void share_visible(void **state)
{
    enum { EACH = 1000 };
    const char *dir[] = {"", "."};

    (void)state;
    for (size_t d = 0; d < FL_COUNT(dir); d++) {
        size_t n = (size_t)test_ctx->node_size * EACH;
        fl_share share;
        assert_int_equal(
            fl_share_create(test_ctx, dir[d], "the test", n * sizeof(int), &share), FL_OK);
        int *x = share.x;
        assert_int_equal((uintptr_t)x % 64, 0);
        assert_int_equal(share.bytes, n * sizeof(int));
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(x[i], 0);
        }
        fl_share_fence(test_ctx);
        for (int i = 0; i < EACH; i++) {
            x[test_ctx->node_rank * EACH + i] = test_ctx->node_rank * EACH + i + 1;
        }
        fl_share_fence(test_ctx);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(x[i], (int)i + 1);
        }
        fl_share_fence(test_ctx);
        fl_share_destroy(&share);
        assert_null(share.x);
        fl_share_destroy(&share);
    }
    fl_share empty;
    assert_int_equal(fl_share_create(test_ctx, "", "nothing", 0, &empty), FL_OK);
    assert_non_null(empty.x);
    fl_share_destroy(&empty);
}

static void share_refused(const char *dir, size_t bytes)
{
    fl_share share;
    char want[32];

    fl_error_clear();
    assert_int_equal(fl_share_create(test_ctx, dir, "the base weights", bytes, &share), FL_EFILE);
    assert_null(share.x);
    assert_non_null(strstr(fl_error_text(), "model.share_dir"));
    assert_non_null(strstr(fl_error_text(), "the base weights"));
    assert_non_null(strstr(fl_error_text(), *dir != '\0' ? dir : "/dev/shm"));
    snprintf(want, sizeof want, "%zu bytes", bytes);
    assert_non_null(strstr(fl_error_text(), want));
    fl_error_clear();
    MPI_Barrier(test_ctx->world);
}

/* No room, no directory, no right size: the same error on all ranks, nobody hangs, nobody is
 * killed. */
static void share_fails_everywhere(void **state)
{
    struct statvfs fs;

    (void)state;
    share_refused("no/such/directory", 1000);
    share_refused("", SIZE_MAX);
    share_refused("", (size_t)INT64_MAX);
    if (statvfs("/dev/shm", &fs) == 0 && fs.f_blocks > 0) {
        share_refused("", (size_t)(fs.f_frsize * fs.f_blocks) + ((size_t)1 << 30));
    }
    const char *small =
        getenv("FEDLORA_SMALL_TMPFS"); /* a file system of a few MiB, when the tester has one */
    if (small != NULL && statvfs(small, &fs) == 0) {
        size_t half = (size_t)(fs.f_frsize * fs.f_bfree) / 2;
        fl_share a, b;
        assert_int_equal(fl_share_create(test_ctx, small, "first", half, &a), FL_OK);
        share_refused(small, half + 8192);
        assert_int_equal(fl_share_create(test_ctx, small, "second", half / 2, &b), FL_OK);
        fl_share_fence(test_ctx);
        if (test_ctx->node_rank == test_ctx->node_size - 1) { /* every page has its room */
            memset(a.x, 1, a.bytes);
            memset(b.x, 1, b.bytes);
        }
        fl_share_fence(test_ctx);
        fl_share_destroy(&a);
        fl_share_destroy(&b);
    }
}

/* The segment is there, but one rank cannot map it: its address space is limited to little more
 * than it has. */
static void share_unmapped_on_one(void **state)
{
    const size_t bytes = (size_t)48 << 20;
    struct rlimit old, tight;
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    (void)state;
    bool known = f != NULL && fscanf(f, "%lu", &pages) == 1;
    if (f != NULL) {
        fclose(f);
    }
    if (fl_min(test_ctx, known) == 0) {
        skip();
    }
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    if (test_ctx->rank == test_ctx->size - 1) {
        tight = old;
        tight.rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) + bytes / 2;
        assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
    }
    share_refused("", bytes);
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
}

/* ---- agreement ---- */

static void agree_text(void **state)
{
    int size = test_ctx->size, me = test_ctx->rank, low = size > 1 ? 1 : 0, n;
    char want[2 * MPI_MAX_PROCESSOR_NAME + 100], host[MPI_MAX_PROCESSOR_NAME + 4] = " on ";

    (void)state;
    MPI_Get_processor_name(host + 4, &n);
    MPI_Bcast(host, sizeof host, MPI_CHAR, low, test_ctx->world);
    if (test_ctx->nnodes == 1) { /* one host needs no name */
        host[0] = '\0';
    }
    fl_error_clear();
    assert_int_equal(fl_agree(test_ctx, FL_OK), FL_OK);
    assert_string_equal(fl_error_text(), "");

    /* the same mistake on all: no prefix */
    fl_fail(FL_EDECK, "first");
    fl_fail(FL_EDECK, "second");
    assert_int_equal(fl_agree(test_ctx, FL_EDECK), FL_EDECK);
    assert_string_equal(fl_error_text(), "first\nsecond");
    assert_int_equal(fl_agree(test_ctx, FL_EDECK), FL_EDECK); /* once more, further up */
    assert_string_equal(fl_error_text(), "first\nsecond");
    fl_error_clear();

    /* on one rank only: everybody learns it */
    fl_err err = FL_OK;
    if (me == low) {
        err = fl_fail(FL_EFILE, "disk full");
        fl_fail(FL_EFILE, "go home");
    }
    assert_int_equal(fl_agree(test_ctx, err), FL_EFILE);
    snprintf(want, sizeof want,
        size > 1 ? "rank %d%s: disk full\nrank %d%s: go home" : "disk full\ngo home", low, host,
        low, host);
    assert_string_equal(fl_error_text(), want);
    fl_error_clear();

    /* different mistakes: the lowest failing rank's */
    if (me >= low) {
        err = fl_fail(me == low ? FL_ENUM : FL_EFILE, "trouble %d", me);
    } else {
        err = FL_OK;
    }
    assert_int_equal(fl_agree(test_ctx, err), FL_ENUM);
    snprintf(want, sizeof want, size > 1 ? "rank %d%s: trouble %d" : "trouble 0", low, host, low);
    assert_string_equal(fl_error_text(), want);
    fl_error_clear();
}

/* ---- collectives ---- */

static void ctx_nodes(void **state)
{
    (void)state;
    assert_true(
        test_ctx->nnodes >= 1 && test_ctx->inode >= 0 && test_ctx->inode < test_ctx->nnodes);
    assert_true((test_ctx->leaders != MPI_COMM_NULL) == (test_ctx->node_rank == 0));
    assert_int_equal(fl_total_int(test_ctx, test_ctx->node_rank == 0), test_ctx->nnodes);
    if (test_ctx->rank == 0) {
        assert_int_equal(test_ctx->inode, 0);
    }
}

static void collect_small(void **state)
{
    int size = test_ctx->size, me = test_ctx->rank;
    double all[8], mine[2] = {me, 10 * me}, x[300];

    (void)state;
    assert_true(fl_min(test_ctx, me) == 0);
    assert_true(fl_max(test_ctx, me) == size - 1);
    assert_true(fl_total(test_ctx, 1.0) == size);
    assert_int_equal(fl_total_int(test_ctx, INT64_C(1) << 40), (int64_t)size << 40);
    assert_true(fl_total_hash(test_ctx, UINT64_MAX) == (uint64_t)-size); /* mod 2^64 */
    fl_gather_doubles(test_ctx, 2, mine, all);
    for (int r = 0; r < size; r++) {
        assert_true(all[2 * r] == r && all[2 * r + 1] == 10 * r);
    }
    for (int i = 0; i < 300; i++) {
        x[i] = i % size == me ? sqrt(i) / 3 : 0;
    }
    fl_fill_in(test_ctx, 300, x);
    for (int i = 0; i < 300; i++) {
        assert_true(x[i] == sqrt(i) / 3);
    }
    assert_true(fl_same_everywhere(test_ctx, UINT64_MAX - 5));
    assert_true(fl_same_everywhere(test_ctx, 0));
    assert_int_equal(fl_same_everywhere(test_ctx, me == size - 1 ? 17 : 16), size == 1);
    assert_int_equal(fl_same_everywhere(test_ctx, me == 0 ? UINT64_MAX : 0), size == 1);
}

static void collect_bcast(void **state)
{
    unsigned char x[1003];

    (void)state;
    for (int from = 0; from < test_ctx->size; from++) {
        for (int i = 0; i < 1003; i++) {
            x[i] = test_ctx->rank == from ? (unsigned char)(i * 7 + from) : 0;
        }
        fl_bcast(test_ctx, from, x, sizeof x);
        for (int i = 0; i < 1003; i++) {
            assert_int_equal(x[i], (unsigned char)(i * 7 + from));
        }
    }
    char *s = NULL;
    size_t n = 0;
    if (test_ctx->rank == 0) {
        s = fl_strdup("run: {seed: 1}\n");
        n = strlen(s);
    }
    assert_int_equal(fl_bcast_text(test_ctx, &s, &n), FL_OK);
    assert_string_equal(s, "run: {seed: 1}\n");
    assert_int_equal(n, 15);
    fl_free(s);
}

/* byte j of the piece that rank a has for rank b; sizes depend on both and are often 0 */
static size_t piece_size(int a, int b)
{
    return (size_t)((a * 5 + b * 3) % 4 * 301);
}

static unsigned char piece_byte(int a, int b, size_t j)
{
    return (unsigned char)(a * 100 + b * 10 + (int)j * 3);
}

static void collect_exchange(void **state)
{
    size_t nsend[4], ngot[4], total = 0;
    int me = test_ctx->rank;
    void *got;

    (void)state;
    for (int b = 0; b < test_ctx->size; b++) {
        nsend[b] = piece_size(me, b);
        total += nsend[b];
    }
    unsigned char *send = fl_alloc("test", total, 1), *at = send;
    for (int b = 0; b < test_ctx->size; b++) {
        for (size_t j = 0; j < nsend[b]; j++) {
            *at++ = piece_byte(me, b, j);
        }
    }
    fl_exchange(test_ctx, total > 0 ? send : NULL, nsend, &got, ngot);
    at = got;
    for (int a = 0; a < test_ctx->size; a++) {
        assert_int_equal(ngot[a], piece_size(a, me));
        for (size_t j = 0; j < ngot[a]; j++) {
            assert_int_equal(*at++, piece_byte(a, me, j));
        }
    }
    fl_free(got);
    fl_free(send);
    memset(nsend, 0, sizeof nsend); /* nothing at all */
    fl_exchange(test_ctx, NULL, nsend, &got, ngot);
    fl_free(got);
}

static void to_nodes_check(fl_ctx *ctx)
{
    for (int from = 0; from < ctx->size; from++) {
        for (int to = 0; to < 4; to++) {
            bool receiver = ctx->node_rank == FL_MIN(to, ctx->node_size - 1);
            unsigned char x[700];
            for (int i = 0; i < 700; i++) {
                x[i] = ctx->rank == from ? (unsigned char)(i + from * 50 + to) : 0;
            }
            bool used = receiver || ctx->rank == from;
            assert_int_equal(fl_to_nodes(ctx, from, to, used ? x : NULL, sizeof x), receiver);
            for (int i = 0; i < 700; i++) {
                assert_int_equal(x[i], used ? (unsigned char)(i + from * 50 + to) : 0);
            }
        }
    }
}

/* also on make-believe nodes: the world as 1, 2, .. nodes, ranks dealt in blocks and in turn */
static void collect_to_nodes(void **state)
{
    (void)state;
    to_nodes_check(test_ctx);
    for (int nnodes = 1; nnodes <= test_ctx->size; nnodes++) {
        for (int turn = 0; turn < 2; turn++) {
            fl_ctx *c;
            fl_ctx_create(test_ctx->world, &c);
            c->nnodes = nnodes;
            c->inode = turn ? c->rank % nnodes : c->rank * nnodes / c->size;
            MPI_Comm_free(&c->node);
            MPI_Comm_split(c->world, c->inode, c->rank, &c->node);
            MPI_Comm_rank(c->node, &c->node_rank);
            MPI_Comm_size(c->node, &c->node_size);
            to_nodes_check(c);
            fl_ctx_destroy(&c);
        }
    }
}

/* ---- all of it in one call each, then cut into many ---- */

static int cut_small(void **state)
{
    (void)state;
    fl_comm_chunk = 64;
    return 0;
}

static int cut_large(void **state)
{
    (void)state;
    fl_comm_chunk = (size_t)1 << 28;
    return 0;
}

static void memory_balanced(void **state)
{
    static size_t before;

    (void)state;
    if (before == 0) {
        before = fl_memory_now(); /* the first call, after the first pass: tables kept with the
                                     context exist */
        return;
    }
    assert_int_equal(fl_memory_now(), before);
}

#define CUT(f) cmocka_unit_test_setup_teardown(f, cut_small, cut_large)
int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_properties),
        cmocka_unit_test(layout_homes),
        cmocka_unit_test(share_visible),
        cmocka_unit_test(share_fails_everywhere),
        cmocka_unit_test(share_unmapped_on_one),
        cmocka_unit_test(agree_text),
        cmocka_unit_test(ctx_nodes),
        cmocka_unit_test(collect_small),
        cmocka_unit_test(collect_bcast),
        cmocka_unit_test(collect_exchange),
        cmocka_unit_test(collect_to_nodes),
        cmocka_unit_test(memory_balanced),
        CUT(collect_small),
        CUT(collect_bcast),
        CUT(collect_exchange),
        CUT(collect_to_nodes),
        cmocka_unit_test(memory_balanced),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
