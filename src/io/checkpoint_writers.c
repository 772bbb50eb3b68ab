/* checkpoint_writers.c - which ranks write, and how the clients' state comes to them.
 * The ranks are cut into contiguous groups of nearly equal size, one writer each. Homes of clients
 * are ascending ranges of ids, so a group's state is one piece of /clients/state. Inside its group
 * the writer is chosen on the node that has the fewest writers so far: with one group per node or
 * several, however ranks were dealt to nodes, no node's link carries more than its share. */
#include "checkpoint_internal.h"
#include <string.h>

enum { WRITERS_TAG = 7 };

static int group_begin(const ck_writer *w, int group)
{
    return (int)((int64_t)w->ctx->size * group / w->nwriters);
}

/* node [size]: of every rank; taken [nnodes]: writers there so far */
static int choose_in_group(int lo, int hi, const double *node, int *taken)
{
    int best = lo;

    for (int r = lo + 1; r < hi; r++) {
        best = taken[(int)node[r]] < taken[(int)node[best]] ? r : best;
    }
    taken[(int)node[best]]++;
    return best;
}

void ck_choose_writers(ck_writer *w, int n)
{
    fl_ctx *ctx = w->ctx;

    w->nwriters = n <= 0 || n >= ctx->size ? ctx->size : n;
    if (w->nwriters == ctx->size) {
        w->iwriter = w->writer = w->lo = ctx->rank;
        w->hi = ctx->rank + 1;
        w->team = ctx->world;
        return;
    }
    double mine = ctx->inode, *node = fl_alloc("nodes of ranks", (size_t)ctx->size, sizeof *node);
    int *taken = fl_alloc("writers on nodes", (size_t)ctx->nnodes, sizeof *taken);

    fl_gather_doubles(ctx, 1, &mine, node);
    for (int g = 0; g < w->nwriters; g++) {
        int lo = group_begin(w, g), hi = group_begin(w, g + 1);
        int writer = choose_in_group(lo, hi, node, taken);

        if (ctx->rank >= lo && ctx->rank < hi) {
            w->iwriter = g;
            w->writer = writer;
            w->lo = lo;
            w->hi = hi;
        }
    }
    fl_free(taken);
    fl_free(node);
    MPI_Comm_split(ctx->world, w->writer == ctx->rank ? 0 : MPI_UNDEFINED, ctx->rank, &w->team);
}

MPI_Info ck_hints(const fl_checkpoint_how *how)
{
    MPI_Info info = MPI_INFO_NULL;
    char text[32];

    if (how->stripe_count > 0 || how->stripe_size > 0) {
        MPI_Info_create(&info);
    }
    if (how->stripe_count > 0) {
        snprintf(text, sizeof text, "%d", how->stripe_count);
        MPI_Info_set(info, "striping_factor", text);
    }
    if (how->stripe_size > 0) {
        snprintf(text, sizeof text, "%d", how->stripe_size);
        MPI_Info_set(info, "striping_unit", text);
    }
    return info;
}

/* ---- client state ---- */

void ck_blobs_begin(const ck_writer *w, size_t piece, ck_blobs_out *b)
{
    size_t mine = w->client_bytes[w->ctx->rank];

    *b = (ck_blobs_out){.w = w};
    for (int r = 0; r < w->hi; r++) {
        b->first += r < w->lo ? w->client_bytes[r] : 0;
        b->bytes += r >= w->lo ? w->client_bytes[r] : 0;
        b->before += r >= w->lo && r < w->ctx->rank ? w->client_bytes[r] : 0;
    }
    b->stage =
        fl_alloc("checkpoint stage", FL_MIN(w->writer == w->ctx->rank ? b->bytes : mine, piece), 1);
}

/* The next n bytes of this rank's blobs. */
static void copy_mine(ck_blobs_out *b, size_t n, char *to)
{
    int id;
    const void *blob;
    size_t bytes, have = 0;

    while (have < n) {
        fl_store_mine(b->w->s->store, b->next, &id, &blob, &bytes);
        size_t m = FL_MIN(bytes - b->done, n - have);

        memcpy(to + have, (const char *)blob + b->done, m);
        have += m;
        b->done += m;
        if (b->done == bytes) {
            b->next++;
            b->done = 0;
        }
    }
}

/* What of [at, at + n) lies in [first, first + bytes): *skip bytes of the piece come before it. */
static size_t overlap(size_t at, size_t n, size_t first, size_t bytes, size_t *skip)
{
    size_t lo = FL_MAX(at, first), hi = FL_MIN(at + n, first + bytes);

    *skip = lo - at;
    return hi > lo ? hi - lo : 0;
}

void ck_blobs_next(ck_blobs_out *b, size_t at, size_t n, char *to)
{
    const ck_writer *w = b->w;
    fl_ctx *ctx = w->ctx;
    size_t skip, first = 0, m = overlap(at, n, b->before, w->client_bytes[ctx->rank], &skip);
    int nwait = 0;

    if (w->writer != ctx->rank) {
        if (m > 0) { /* a piece has at most CK_STAGE bytes: an int */
            copy_mine(b, m, b->stage);
            MPI_Send(b->stage, (int)m, MPI_BYTE, w->writer, WRITERS_TAG, ctx->world);
            fl_mpi_count(ctx, (double)m);
        }
        return;
    }
    MPI_Request *wait = fl_alloc("checkpoint stage", (size_t)(w->hi - w->lo), sizeof(MPI_Request));

    for (int r = w->lo; r < w->hi; r++) {
        size_t before, count = overlap(at, n, first, w->client_bytes[r], &before);

        first += w->client_bytes[r];
        if (count > 0 && r != ctx->rank) {
            MPI_Irecv(
                to + before, (int)count, MPI_BYTE, r, WRITERS_TAG, ctx->world, &wait[nwait++]);
        }
    }
    if (m > 0) {
        copy_mine(b, m, to + skip);
    }
    MPI_Waitall(nwait, wait, MPI_STATUSES_IGNORE);
    fl_free(wait);
}

void ck_blobs_end(ck_blobs_out *b)
{
    fl_free(b->stage);
    b->stage = NULL;
}
