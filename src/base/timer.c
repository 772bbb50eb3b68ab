/* timer.c - time by phase, exclusive, and the bytes the simulator itself sends through MPI. */
#include "timer.h"
#include <time.h>

#define AS_NAME(name) #name,
const char *const fl_phase_name[FL_NPHASES] = {FL_PHASES(AS_NAME)};

double fl_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* the innermost phase is credited up to now */
static void timer_credit(fl_timer *t)
{
    double now = fl_now();

    if (t->depth > 0) {
        t->seconds[t->stack[t->depth - 1]] += now - t->since;
    }
    t->since = now;
}

void fl_phase_begin(fl_ctx *ctx, fl_phase phase)
{
    fl_timer *t = ctx->timer;

    FL_REQUIRE(phase < FL_NPHASES && t->depth < FL_TIMER_DEPTH);
    timer_credit(t);
    t->stack[t->depth++] = phase;
}

void fl_phase_end(fl_ctx *ctx, fl_phase phase)
{
    fl_timer *t = ctx->timer;

    FL_REQUIRE(t->depth > 0 && t->stack[t->depth - 1] == phase); /* phases nest */
    timer_credit(t);
    t->depth--;
}

double fl_phase_seconds(const fl_ctx *ctx, fl_phase phase)
{
    const fl_timer *t = ctx->timer;
    bool running = t->depth > 0 && t->stack[t->depth - 1] == phase;

    FL_REQUIRE(phase < FL_NPHASES);
    return t->seconds[phase] + (running ? fl_now() - t->since : 0.0);
}

void fl_mpi_count(fl_ctx *ctx, double bytes)
{
    ctx->timer->mpi_bytes += bytes;
}

double fl_mpi_bytes(const fl_ctx *ctx)
{
    return ctx->timer->mpi_bytes;
}
