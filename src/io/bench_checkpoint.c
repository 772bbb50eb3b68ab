/* bench_checkpoint.c - bandwidth of a checkpoint of 200 MB of client state, beside the limit: one
 * process writing as many bytes into the same folder with write() and one fsync(). Every way of
 * writing takes its turn after a plain write, several times over, so that what else the machine
 * does meets all alike; of each the best turn counts. Shown: 1, 2, 4 .. all ranks as writers, with
 * MPI-IO's collective and independent calls, and the background. */
#include "fedlora/io.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum {
    BENCH_BYTES = 200000000,
    BENCH_CLIENTS = 200,
    BENCH_BLOB = BENCH_BYTES / BENCH_CLIENTS,
    BENCH_PIECE = 8 << 20,
    BENCH_TURNS = 3,
    BENCH_WAYS = 40
};

typedef struct way {
    fl_checkpoint_how how;
    bool plain, async;
    double best, held; /* seconds: least so far; of those, the run stood still */
} way;

static fl_err plain_write(const char *path, const char *x)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int code = fd < 0 ? errno : 0;

    for (size_t at = 0; at < BENCH_BYTES && code == 0;) {
        ssize_t n = write(fd, x + at % BENCH_PIECE, FL_MIN((size_t)BENCH_PIECE, BENCH_BYTES - at));

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

/* file systems may compress what repeats */
static void fill(char *x, size_t n, int id)
{
    for (size_t i = 0; i + 16 <= n; i += 16) {
        fl_rng_block(0, FL_RNG_BENCH, id, 0, i, (uint32_t *)(void *)(x + i));
    }
}

static fl_store *bench_store(fl_ctx *ctx)
{
    fl_store *store = fl_store_create(ctx, BENCH_CLIENTS);
    char *blob = fl_alloc("checkpoint bench", BENCH_BLOB, 1);

    for (int id = 0; id < BENCH_CLIENTS; id++) {
        if (fl_home(BENCH_CLIENTS, ctx->size, id) == ctx->rank) {
            fill(blob, BENCH_BLOB, id);
            fl_store_put(store, id, blob, BENCH_BLOB);
        }
    }
    fl_free(blob);
    return store;
}

static int bench_ways(int size, way *ways)
{
    int n = 0;

    ways[n++] = (way){.plain = true, .best = 1e30};
    for (int writers = 1;; writers = FL_MIN(2 * writers, size)) {
        ways[n++] = (way){.how = {.writers = writers}, .best = 1e30};
        ways[n++] = (way){.how = {.writers = writers, .independent = true}, .best = 1e30};
        if (writers == size || n + 3 > BENCH_WAYS) {
            break;
        }
    }
    ways[n++] = (way){.async = true, .best = 1e30};
    return n;
}

static fl_err write_one(fl_ctx *ctx, const char *path, fl_snapshot *s, way *y, double *held)
{
    fl_checkpoint_job *job;
    double begin = fl_now(), bytes, seconds;

    s->how = y->how;
    if (!y->async) {
        fl_err err = fl_checkpoint_write(ctx, path, s, &bytes);

        *held = fl_now() - begin;
        return err;
    }
    FL_TRY(fl_checkpoint_begin(ctx, path, s, &job));
    *held = fl_now() - begin;
    return fl_checkpoint_end(ctx, &job, &bytes, &seconds);
}

static fl_err bench_turn(fl_ctx *ctx, const char *path, const char *x, fl_snapshot *s, way *y)
{
    double held = 0;

    fl_fill_in(ctx, 1, &held); /* all begin together */
    double begin = fl_now();

    if (y->plain) {
        FL_TRY_ALL(ctx, ctx->rank == 0 ? plain_write(path, x) : FL_OK);
    } else {
        FL_TRY(write_one(ctx, path, s, y, &held));
    }
    double seconds = fl_max(ctx, fl_now() - begin);

    held = fl_max(ctx, held);
    if (seconds < y->best) {
        y->best = seconds;
        y->held = held;
    }
    if (ctx->rank == 0) {
        unlink(path);
    }
    return FL_OK;
}

static void show(const way *ways, int n, int size, fl_text *t)
{
    fl_text_add(t,
        "checkpoint of %.0f MB of client state on %d rank(s), with hashes, fsync and rename; best "
        "of "
        "%d turns\n%-34s %9s %9s %7s\n",
        BENCH_BYTES / 1e6, size, BENCH_TURNS, "", "s", "MB/s", "ratio");
    for (int i = 0; i < n; i++) {
        const way *y = &ways[i];
        char name[64];

        snprintf(name, sizeof name, "writers: %d, %s", y->how.writers,
            y->how.independent ? "independent" : "collective");
        fl_text_add(t, "%-34s %9.3f %9.1f %7.2f",
            y->plain   ? "write() and fsync(): the limit"
            : y->async ? "async: true"
                       : name,
            y->best, BENCH_BYTES / 1e6 / y->best, ways[0].best / y->best);
        if (y->async) {
            fl_text_add(t, "  the run waits %.3f s of it", y->held);
        }
        fl_text_add(t, "\n");
    }
}

fl_err fl_bench_checkpoint(fl_ctx *ctx, const char *dir, fl_text *t)
{
    fl_snapshot s = {.rounds = 1,
        .deck = (char *)"",
        .versions = (char *)"",
        .columns = (char *)"",
        .nclients = BENCH_CLIENTS,
        .store = bench_store(ctx)};
    size_t room = strlen(dir) + 64;
    char *path = fl_alloc("path", room, 1), *x = fl_alloc("plain write", BENCH_PIECE, 1);
    way ways[BENCH_WAYS];
    int n = bench_ways(ctx->size, ways);
    fl_err err = FL_OK;

    snprintf(path, room, "%s/bench-checkpoint.h5", dir);
    fill(x, BENCH_PIECE, BENCH_CLIENTS);
    for (int i = 0; i < BENCH_TURNS * n && err == FL_OK; i++) {
        err = bench_turn(ctx, path, x, &s, &ways[i % n]);
    }
    if (err == FL_OK) {
        show(ways, n, ctx->size, t);
    }
    fl_free(x);
    fl_free(path);
    fl_store_destroy(&s.store);
    return err;
}
