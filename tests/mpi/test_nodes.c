/* test_nodes.c - which ranks share memory, against the host names that MPI reports; what they share
 * is one copy per host and not seen by another. One expectation on one host (tests/run.sh) and on
 * several (tests/app/test_hosts.sh). */
#include "fedlora/comm.h"
#include "harness.h"
#include <string.h>

enum { NAME = MPI_MAX_PROCESSOR_NAME };

static char *names; /* owned [size][NAME]: the host of every rank */

static const char *host_of(int rank)
{
    return names + (size_t)rank * NAME;
}

static void gather_names(void)
{
    char mine[NAME] = "";
    int n;

    MPI_Get_processor_name(mine, &n);
    names = fl_alloc("host names", (size_t)test_ctx->size, NAME);
    MPI_Allgather(mine, NAME, MPI_CHAR, names, NAME, MPI_CHAR, test_ctx->world);
}

/* nodes are the hosts, numbered by their lowest rank; inside a node ranks keep their order */
static void nodes_are_hosts(void **state)
{
    fl_ctx *ctx = test_ctx;
    int node_rank = 0, node_size = 0, inode = 0, nnodes = 0;

    (void)state;
    gather_names();
    for (int r = 0; r < ctx->size; r++) {
        bool first = true, mine_first = true, here = strcmp(host_of(r), host_of(ctx->rank)) == 0;

        for (int q = 0; q < r; q++) {
            first = first && strcmp(host_of(q), host_of(r)) != 0;
        }
        for (int q = 0; q <= r; q++) {
            mine_first = mine_first && strcmp(host_of(q), host_of(ctx->rank)) != 0;
        }
        nnodes += first;
        inode += first && mine_first; /* hosts that begin before mine does */
        node_size += here;
        node_rank += here && r < ctx->rank;
    }
    assert_int_equal(ctx->nnodes, nnodes);
    assert_int_equal(ctx->inode, inode);
    assert_int_equal(ctx->node_size, node_size);
    assert_int_equal(ctx->node_rank, node_rank);
    assert_true((ctx->leaders != MPI_COMM_NULL) == (node_rank == 0));
}

/* one segment per host: every rank finds what all ranks of its host wrote, and nothing else */
static void segment_is_the_hosts_own(void **state)
{
    fl_ctx *ctx = test_ctx;
    fl_share share;

    (void)state;
    assert_int_equal(
        fl_share_create(ctx, "", "test", (size_t)ctx->size * sizeof(int), &share), FL_OK);
    ((int *)share.x)[ctx->rank] = ctx->rank + 1;
    fl_share_fence(ctx);
    MPI_Barrier(ctx->world); /* the other hosts wrote too, elsewhere */
    for (int r = 0; r < ctx->size; r++) {
        bool here = strcmp(host_of(r), host_of(ctx->rank)) == 0;

        assert_int_equal(((int *)share.x)[r], here ? r + 1 : 0);
    }
    fl_share_fence(ctx);
    fl_share_destroy(&share);
}

/* from every rank to one rank of every host, which puts it where all ranks of the host see it */
static void every_host_is_told(void **state)
{
    fl_ctx *ctx = test_ctx;
    fl_share share;
    enum { N = 3000 };
    int *x = fl_alloc("message", N, sizeof *x);

    (void)state;
    assert_int_equal(fl_share_create(ctx, "", "test", N * sizeof(int), &share), FL_OK);
    for (int from = 0; from < ctx->size; from++) {
        for (int to = 0; to < 3; to++) {
            for (int i = 0; i < N; i++) {
                x[i] = ctx->rank == from ? 1000 * from + to + i : -1;
            }
            if (fl_to_nodes(ctx, from, to, x, N * sizeof *x)) {
                memcpy(share.x, x, N * sizeof *x);
            }
            fl_share_fence(ctx);
            for (int i = 0; i < N; i++) {
                assert_int_equal(((int *)share.x)[i], 1000 * from + to + i);
            }
            fl_share_fence(ctx);
        }
    }
    fl_share_destroy(&share);
    fl_free(x);
}

/* a sentence from another host names it */
static void errors_name_the_host(void **state)
{
    fl_ctx *ctx = test_ctx;
    int last = ctx->size - 1;
    char want[NAME + 100];

    (void)state;
    if (ctx->size == 1) {
        skip();
    }
    fl_err err = ctx->rank == last ? fl_fail(FL_EFILE, "disk full") : FL_OK;

    assert_int_equal(fl_agree(ctx, err), FL_EFILE);
    if (ctx->nnodes > 1) {
        snprintf(want, sizeof want, "rank %d on %s: disk full", last, host_of(last));
    } else {
        snprintf(want, sizeof want, "rank %d: disk full", last);
    }
    assert_string_equal(fl_error_text(), want);
    fl_error_clear();
    fl_free(names);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_are_hosts),
        cmocka_unit_test(segment_is_the_hosts_own),
        cmocka_unit_test(every_host_is_told),
        cmocka_unit_test(errors_name_the_host),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
