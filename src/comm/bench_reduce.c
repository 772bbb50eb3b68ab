/* bench_reduce.c - what the order-free sum costs: 100 messages of 300,000 floats, dealt to the
 * ranks, added and reduced. Beside it: the same as a float sum with MPI_Allreduce (whose bits
 * depend on the rank count), and the memory bandwidth of a triad in the same run, which is the
 * limit of both. Best of several repetitions, slowest rank. */
#include "fedlora/comm.h"

enum { BENCH_CLIENTS = 100, BENCH_N = 300000, BENCH_TRIAD = 1 << 23, BENCH_REPEAT = 5 };

/* seconds of the slowest rank since start */
static double bench_slowest(fl_ctx *ctx, double start)
{
    return fl_max(ctx, fl_now() - start);
}

/* GB/s of a[i] = b[i] + c d[i] over arrays far larger than the caches, all ranks at once */
static double bench_triad(fl_ctx *ctx)
{
    size_t n = BENCH_TRIAD;
    double *restrict a = fl_alloc("triad", n, sizeof *a),
                     *restrict b = fl_alloc("triad", n, sizeof *b),
                     *restrict d = fl_alloc("triad", n, sizeof *d), best = 1e300;

    for (size_t i = 0; i < n; i++) {
        a[i] = 1.0; /* touched before the clock runs */
        b[i] = (double)i;
        d[i] = 0.5 * (double)i;
    }
    for (int k = 0; k < BENCH_REPEAT; k++) {
        MPI_Barrier(ctx->world);
        double start = fl_now();
        for (size_t i = 0; i < n; i++) {
            a[i] = b[i] + (0.25 + k) * d[i];
        }
        __asm__ volatile("" : : "r"(a) : "memory"); /* the result counts as used */
        best = FL_MIN(best, bench_slowest(ctx, start));
    }
    fl_free(a);
    fl_free(b);
    fl_free(d);
    return 24.0 * (double)n * ctx->size / best / 1e9;
}

typedef struct bench_times {
    double add, reduce, float_add, float_reduce; /* seconds */
} bench_times;

/* the messages of this rank: clients rank, rank + size, ... of one stock, shifted so that they
 * differ */
static const fl_real *bench_message(const fl_real *stock, int client)
{
    return stock + client;
}

static fl_err bench_order_free(fl_ctx *ctx, const fl_real *stock, bench_times *best)
{
    for (int k = 0; k < BENCH_REPEAT; k++) {
        fl_sum *s = fl_sum_create(BENCH_N, 0);
        fl_err err = FL_OK;

        for (size_t i = 0; i < BENCH_N; i++) {
            static const fl_real zero;
            fl_sum_add(s, i, 1, &zero, 1.0); /* touch the pages: a run keeps its sums */
        }
        MPI_Barrier(ctx->world);
        double start = fl_now();
        for (int c = ctx->rank; c < BENCH_CLIENTS && err == FL_OK; c += ctx->size) {
            err = fl_sum_add(s, 0, BENCH_N, bench_message(stock, c), 1.0 / BENCH_CLIENTS);
        }
        best->add = FL_MIN(best->add, bench_slowest(ctx, start));
        err = fl_agree(ctx, err);
        start = fl_now();
        if (err == FL_OK) {
            err = fl_sum_reduce(ctx, s);
        }
        best->reduce = FL_MIN(best->reduce, bench_slowest(ctx, start));
        fl_sum_destroy(&s);
        FL_TRY(err);
    }
    return FL_OK;
}

static void bench_float(fl_ctx *ctx, const fl_real *stock, bench_times *best)
{
    fl_real *sum = fl_alloc("float sum", BENCH_N, sizeof *sum);

    for (int k = 0; k < BENCH_REPEAT; k++) {
        for (size_t i = 0; i < BENCH_N; i++) {
            sum[i] = 0;
        }
        MPI_Barrier(ctx->world);
        double start = fl_now();
        for (int c = ctx->rank; c < BENCH_CLIENTS; c += ctx->size) {
            const fl_real *restrict x = bench_message(stock, c), p = (fl_real)(1.0 / BENCH_CLIENTS);
            for (size_t i = 0; i < BENCH_N; i++) {
                sum[i] += p * x[i];
            }
        }
        best->float_add = FL_MIN(best->float_add, bench_slowest(ctx, start));
        start = fl_now();
        MPI_Allreduce(MPI_IN_PLACE, sum, BENCH_N, FL_MPI_REAL, MPI_SUM, ctx->world);
        best->float_reduce = FL_MIN(best->float_reduce, bench_slowest(ctx, start));
    }
    fl_free(sum);
}

static void bench_line(fl_text *t, const char *what, double seconds, double bytes, double limit)
{
    fl_text_add(t, "%-34s %9.3f ms %8.2f GB/s %8.2f of the triad\n", what, 1e3 * seconds,
        bytes / seconds / 1e9, bytes / seconds / 1e9 / limit);
}

fl_err fl_bench_reduce(fl_ctx *ctx, fl_text *t)
{
    bench_times b = {1e300, 1e300, 1e300, 1e300};
    fl_real *stock = fl_alloc("messages", BENCH_N + BENCH_CLIENTS, sizeof *stock);
    double clients = BENCH_CLIENTS, n = BENCH_N, real = sizeof(fl_real);

    for (size_t i = 0; i < BENCH_N + BENCH_CLIENTS; i++) {
        stock[i] = (fl_real)fl_rng_normal(1, FL_RNG_BENCH, 0, 0, i);
    }
    double triad = bench_triad(ctx);
    fl_err err = bench_order_free(ctx, stock, &b);
    bench_float(ctx, stock, &b);
    fl_free(stock);
    FL_TRY(err);
    if (ctx->rank != 0) {
        return FL_OK;
    }
    fl_text_add(t, "sum of %d messages of %d elements on %d ranks (best of %d, slowest rank)\n",
        BENCH_CLIENTS, BENCH_N, ctx->size, BENCH_REPEAT);
    fl_text_add(t, "%-34s %12s %8.2f GB/s\n", "triad, the limit", "", triad);
    /* both limbs are read and written for every term; a term is read twice: the check, then the sum
     */
    bench_line(t, "order-free: add", b.add, clients * n * (32.0 + 2.0 * real), triad);
    bench_line(t, "float: add", b.float_add, clients * n * 3.0 * real, triad);
    if (ctx->size > 1) { /* one rank has nothing to send */
        bench_line(t, "order-free: reduce", b.reduce, 16.0 * n * ctx->size, triad);
        bench_line(t, "float: MPI_Allreduce", b.float_reduce, n * real * ctx->size, triad);
    }
    fl_text_add(t, "order-free / float, add and reduce: %.2f\n",
        (b.add + b.reduce) / (b.float_add + b.float_reduce));
    return FL_OK;
}
