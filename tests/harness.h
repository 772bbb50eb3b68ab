/* harness.h - a test program is a list of cmocka tests run under MPI: every rank runs all of them, rank 0 prints TAP.
 * A failure on any rank fails the program. Usage:  int main(int c, char **v) { return fl_test_main(c, v, tests, n); } */
#ifndef FL_HARNESS_H
#define FL_HARNESS_H
#include "fedlora/base.h"
#include <setjmp.h>
#include <stdlib.h>
#include <unistd.h>
/* cmocka wants the includes above first */
#include <cmocka.h>

static fl_ctx *test_ctx; /* the world of the test, available in every test */

static inline int fl_test_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    MPI_Init(&argc, &argv);
    fl_ctx_create(MPI_COMM_WORLD, &test_ctx);
    test_ctx->quiet = true;
    setenv("CMOCKA_MESSAGE_OUTPUT", "TAP", 1);
    if (test_ctx->rank != 0 && !freopen("/dev/null", "w", stdout)) {
        return 1;
    }
    int failed = _cmocka_run_group_tests(argv[0], tests, n, NULL, NULL), worst = 0;

    MPI_Allreduce(&failed, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (test_ctx->rank == 0 && failed == 0 && worst != 0) {
        printf("not ok - %s: a test failed on another rank\n", argv[0]);
    }
    fflush(stdout);
    fl_ctx_destroy(&test_ctx);
    MPI_Finalize();
    return worst != 0;
}
#endif
