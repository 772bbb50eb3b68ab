/* collect.c - small collectives and the exchange of pieces by owner; safe for any number of bytes.
 */
#include "comm_internal.h"
#include "fedlora/comm.h"
#include <string.h>

enum { COMM_TAG = 1 };

size_t fl_comm_chunk = (size_t)1 << 28;

static MPI_Request *comm_request(fl_requests *q)
{
    if (q->n == q->room) {
        FL_REQUIRE(q->room < INT32_MAX / 2);
        q->room = FL_MAX(64, 2 * q->room);
        q->request = fl_realloc("requests", q->request, (size_t)q->room, sizeof *q->request);
    }
    return &q->request[q->n++];
}

void fl_comm_isend(fl_ctx *ctx, fl_requests *q, const void *x, size_t bytes, int to)
{
    for (size_t at = 0; at < bytes; at += fl_comm_chunk) {
        int n = (int)FL_MIN(fl_comm_chunk, bytes - at);
        MPI_Isend((const char *)x + at, n, MPI_BYTE, to, COMM_TAG, ctx->world, comm_request(q));
    }
    fl_mpi_count(ctx, (double)bytes);
}

void fl_comm_irecv(fl_ctx *ctx, fl_requests *q, void *x, size_t bytes, int from)
{
    for (size_t at = 0; at < bytes; at += fl_comm_chunk) {
        int n = (int)FL_MIN(fl_comm_chunk, bytes - at);
        MPI_Irecv((char *)x + at, n, MPI_BYTE, from, COMM_TAG, ctx->world, comm_request(q));
    }
}

void fl_comm_wait(fl_requests *q)
{
    if (q->n > 0) {
        MPI_Waitall(q->n, q->request, MPI_STATUSES_IGNORE);
    }
    fl_free(q->request);
    *q = (fl_requests){0};
}

void fl_bcast(fl_ctx *ctx, int from, void *x, size_t bytes)
{
    if (ctx->size == 1) {
        return;
    }
    for (size_t at = 0; at < bytes; at += fl_comm_chunk) {
        MPI_Bcast(
            (char *)x + at, (int)FL_MIN(fl_comm_chunk, bytes - at), MPI_BYTE, from, ctx->world);
    }
    fl_mpi_count(ctx, (double)bytes);
}

fl_err fl_bcast_text(fl_ctx *ctx, char **s, size_t *n)
{
    uint64_t length = ctx->rank == 0 ? *n : 0;

    fl_bcast(ctx, 0, &length, sizeof length);
    if (ctx->rank != 0) {
        *n = (size_t)length;
        *s = fl_alloc("broadcast text", *n + 1, 1); /* zeroed: terminated */
    }
    fl_bcast(ctx, 0, *s, *n);
    return FL_OK;
}

void fl_fill_in(fl_ctx *ctx, size_t n, double *x)
{
    size_t step = FL_MAX(fl_comm_chunk / sizeof *x, 1);

    if (ctx->size == 1) {
        return;
    }
    for (size_t at = 0; at < n; at += step) {
        int now = (int)FL_MIN(step, n - at);
        MPI_Allreduce(MPI_IN_PLACE, x + at, now, MPI_DOUBLE, MPI_SUM, ctx->world);
    }
    fl_mpi_count(ctx, (double)n * sizeof *x);
}

static void collect_reduce(fl_ctx *ctx, void *x, MPI_Datatype type, MPI_Op op)
{
    MPI_Allreduce(MPI_IN_PLACE, x, 1, type, op, ctx->world);
    fl_mpi_count(ctx, 8.0);
}

double fl_min(fl_ctx *ctx, double x)
{
    collect_reduce(ctx, &x, MPI_DOUBLE, MPI_MIN);
    return x;
}

double fl_max(fl_ctx *ctx, double x)
{
    collect_reduce(ctx, &x, MPI_DOUBLE, MPI_MAX);
    return x;
}

double fl_total(fl_ctx *ctx, double x)
{
    collect_reduce(ctx, &x, MPI_DOUBLE, MPI_SUM);
    return x;
}

int64_t fl_total_int(fl_ctx *ctx, int64_t x)
{
    collect_reduce(ctx, &x, MPI_INT64_T, MPI_SUM);
    return x;
}

uint64_t fl_total_hash(fl_ctx *ctx, uint64_t x)
{
    collect_reduce(ctx, &x, MPI_UINT64_T, MPI_SUM);
    return x;
}

void fl_gather_doubles(fl_ctx *ctx, int n, const double *mine, double *all)
{
    MPI_Allgather(mine, n, MPI_DOUBLE, all, n, MPI_DOUBLE, ctx->world);
    fl_mpi_count(ctx, (double)n * sizeof *mine);
}

void fl_exchange(fl_ctx *ctx, const void *send, const size_t *nsend, void **got, size_t *ngot)
{
    size_t size = (size_t)ctx->size;
    uint64_t *out = fl_alloc("exchange", 2 * size, sizeof *out), *in = out + size;
    size_t *from = fl_alloc("exchange", 2 * (size + 1), sizeof *from), *to = from + size + 1;
    fl_requests q = {0};

    for (size_t r = 0; r < size; r++) {
        out[r] = nsend[r];
        to[r + 1] = to[r] + nsend[r];
    }
    MPI_Alltoall(out, 1, MPI_UINT64_T, in, 1, MPI_UINT64_T, ctx->world);
    fl_mpi_count(ctx, 8.0 * (double)size);
    for (size_t r = 0; r < size; r++) {
        ngot[r] = (size_t)in[r];
        from[r + 1] = from[r] + ngot[r];
    }
    char *all = fl_alloc("exchange", from[size], 1);

    /* receives first, then sends; every rank starts with another partner */
    for (size_t k = 1; k < size; k++) {
        size_t r = ((size_t)ctx->rank + size - k) % size;
        fl_comm_irecv(ctx, &q, all + from[r], ngot[r], (int)r);
    }
    for (size_t k = 1; k < size; k++) {
        size_t r = ((size_t)ctx->rank + k) % size;
        if (nsend[r] > 0) {
            fl_comm_isend(ctx, &q, (const char *)send + to[r], nsend[r], (int)r);
        }
    }
    if (nsend[ctx->rank] > 0) {
        memcpy(all + from[ctx->rank], (const char *)send + to[ctx->rank], nsend[ctx->rank]);
    }
    fl_comm_wait(&q);
    *got = all;
    fl_free(from);
    fl_free(out);
}
