/* stop.c - stopping on purpose: a signal to any one rank is known to all soon after. The ranks of
 * the program are a binary tree; who learns of a higher level sends an empty message along its
 * edges, and everybody probes at each step (an MPI_Iprobe costs well below a microsecond). Levels:
 * 1 = finish the round, write a checkpoint, leave; 2 = leave at the next step, the last checkpoint
 * stands. */
#include "fedlora/comm.h"

enum { EDGES = 3, LEVELS = 2 };
volatile sig_atomic_t fl_stop_signals = 0;

static struct {
    MPI_Comm comm; /* owned duplicate of the program's world */
    bool open;
    int level, nedges, edge[EDGES]; /* neighbours in the tree */
    int sent[EDGES], got[EDGES];    /* messages along every edge */
} stop;

void fl_stop_open(fl_ctx *ctx)
{
    int up = (ctx->rank - 1) / 2, down = 2 * ctx->rank + 1;

    MPI_Comm_dup(ctx->world, &stop.comm);
    stop.open = true;
    stop.level = stop.nedges = 0;
    if (ctx->rank > 0) {
        stop.edge[stop.nedges++] = up;
    }
    for (int i = down; i <= down + 1 && i < ctx->size; i++) {
        stop.edge[stop.nedges++] = i;
    }
    for (int e = 0; e < EDGES; e++) {
        stop.sent[e] = stop.got[e] = 0;
    }
}

/* a level that is news goes to all neighbours but the one it came from */
static void learn(int level, int from)
{
    if (level <= stop.level) {
        return;
    }
    stop.level = level;
    for (int e = 0; e < stop.nedges; e++) {
        if (e != from) {
            MPI_Send(NULL, 0, MPI_BYTE, stop.edge[e], level, stop.comm);
            stop.sent[e]++;
        }
    }
}

static void take(int e)
{
    MPI_Status status;

    MPI_Recv(NULL, 0, MPI_BYTE, stop.edge[e], MPI_ANY_TAG, stop.comm, &status);
    stop.got[e]++;
    learn(status.MPI_TAG, e);
}

int fl_stop_poll(void)
{
    int there = 0;
    MPI_Status status;

    if (!stop.open) {
        return FL_MIN(fl_stop_signals, LEVELS);
    }
    learn(FL_MIN(fl_stop_signals, LEVELS), -1);
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, stop.comm, &there, &status);
    for (int e = 0; there && e < stop.nedges; e++) {
        if (stop.edge[e] == status.MPI_SOURCE) {
            take(e);
        }
    }
    return stop.level;
}

void fl_stop_close(void)
{
    if (!stop.open) {
        return;
    }
    /* nobody sends any more than it has by now: levels are no longer learnt */
    stop.level = LEVELS;
    for (int e = 0; e < stop.nedges; e++) {
        int theirs = 0;

        MPI_Sendrecv(&stop.sent[e], 1, MPI_INT, stop.edge[e], LEVELS + 1, &theirs, 1, MPI_INT,
            stop.edge[e], LEVELS + 1, stop.comm, MPI_STATUS_IGNORE);
        while (stop.got[e] < theirs) {
            MPI_Recv(NULL, 0, MPI_BYTE, stop.edge[e], MPI_ANY_TAG, stop.comm, MPI_STATUS_IGNORE);
            stop.got[e]++;
        }
    }
    MPI_Comm_free(&stop.comm);
    stop.open = false;
}
