/* bench_checkpoint.c - bandwidth of a checkpoint of 200 MB written by all ranks, beside the limit:
 * one process writing as many bytes into the same folder with write() and one fsync(). */
#include "fedlora/io.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { BENCH_BYTES = 200000000, BENCH_PIECE = 8 << 20, BENCH_TURNS = 3 };

static fl_err plain_write(const char *path, const char *x)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int code = fd < 0 ? errno : 0;

    for (size_t at = 0; at < BENCH_BYTES && code == 0;) {
        ssize_t n = write(fd, x + at, FL_MIN((size_t)BENCH_PIECE, BENCH_BYTES - at));

        code = n < 0 && errno != EINTR ? errno : 0;
        at += n > 0 ? (size_t)n : 0;
    }
    if (code == 0 && fsync(fd) != 0) {
        code = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    return code == 0 ? FL_OK : fl_fail(FL_EFILE, "%s: cannot write it: %s", path, strerror(code));
}

/* One turn of each; seconds are the least of all turns so far. */
static fl_err bench_turn(fl_ctx *ctx, const char *plain, const char *path, const fl_snapshot *s,
    double best[2], double *bytes)
{
    double begin = fl_now();

    FL_TRY_ALL(ctx, ctx->rank == 0 ? plain_write(plain, s->array[0].x) : FL_OK);
    best[0] = FL_MIN(best[0], fl_max(ctx, fl_now() - begin));
    if (ctx->rank == 0) {
        unlink(plain);
    }
    begin = fl_now();
    FL_TRY(fl_checkpoint_write(ctx, path, s, bytes));
    best[1] = FL_MIN(best[1], fl_max(ctx, fl_now() - begin));
    if (ctx->rank == 0) {
        unlink(path);
    }
    return FL_OK;
}

fl_err fl_bench_checkpoint(fl_ctx *ctx, const char *dir, fl_text *t)
{
    fl_array a = {.name = "bench/array",
        .what = "random bytes",
        .axes = "byte",
        .type = FL_U8,
        .n = BENCH_BYTES};
    fl_snapshot s = {.rounds = 1,
        .deck = (char *)"",
        .versions = (char *)"",
        .columns = (char *)"",
        .narrays = 1,
        .array = &a};
    size_t room = strlen(dir) + 64;
    char *plain = fl_alloc("path", room, 1), *path = fl_alloc("path", room, 1);
    double best[2] = {1e30, 1e30}, bytes = 0;
    fl_err err = FL_OK;

    snprintf(plain, room, "%s/bench-plain.bin", dir);
    snprintf(path, room, "%s/bench-checkpoint.h5", dir);
    a.x = fl_alloc("checkpoint bench", BENCH_BYTES, 1);
    for (size_t i = 0; i + 16 <= BENCH_BYTES;
         i += 16) { /* file systems may compress what repeats */
        fl_rng_block(0, FL_RNG_BENCH, 0, 0, i, (uint32_t *)((char *)a.x + i));
    }
    for (int turn = 0; turn < BENCH_TURNS && err == FL_OK; turn++) {
        err = bench_turn(ctx, plain, path, &s, best, &bytes);
    }
    if (err == FL_OK) {
        fl_text_add(t,
            "checkpoint of %.0f MB on %d ranks  %7.3f s  %7.1f MB/s (hash, write, fsync, rename)\n"
            "write() and fsync() of the same     %7.3f s  %7.1f MB/s (the limit)  ratio %.2f\n",
            bytes / 1e6, ctx->size, best[1], bytes / 1e6 / best[1], best[0],
            BENCH_BYTES / 1e6 / best[0], best[0] / best[1]);
    }
    fl_free(a.x);
    fl_free(plain);
    fl_free(path);
    return err;
}
