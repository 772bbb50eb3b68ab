/* placement.c - how the ranks sit on the machine: one line at the start of a run, and a warning
 * with the exact remedy when they sit badly. */
#include "app.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#ifndef FL_BUILD_CPU
#define FL_BUILD_CPU ""
#endif

void app_cpu_name(char *name, size_t n)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    snprintf(name, n, "unknown");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char *colon = strchr(line, ':');

        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(name, n, "%s", colon + 2);
            break;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
}

/* cores this rank may run on */
static int cores_allowed(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static void warn_badly_placed(fl_ctx *ctx, int threads, int cores, int least, int most)
{
    if (ctx->node_size * threads > cores) {
        fl_warn(ctx,
            "%d ranks x %d thread(s) on a node of %d core(s) take turns; bits stay the same; start "
            "%d rank(s) per node, or set blas.threads: %d",
            ctx->node_size, threads, cores, FL_MAX(cores / threads, 1),
            FL_MAX(cores / ctx->node_size, 1));
    } else if (threads > 1 && least < threads) {
        fl_warn(ctx,
            "blas.threads is %d, but a rank is bound to %d core(s); start with mpirun --map-by "
            "slot:PE=%d --bind-to core (srun: --cpus-per-task=%d)",
            threads, least, threads, threads);
    } else if (ctx->size > 1 && most == cores && cores > 1 && ctx->node_size > 1) {
        fl_warn(ctx,
            "the ranks are not bound to cores; start with mpirun --bind-to core --map-by "
            "slot:PE=%d (srun: --cpu-bind=cores)",
            threads);
    }
}

/* -march=native builds know the CPU they were made on */
static void warn_other_cpu(fl_ctx *ctx)
{
    char cpu[128];

    app_cpu_name(cpu, sizeof cpu);
    if (FL_BUILD_CPU[0] != '\0' && strcmp(FL_BUILD_CPU, cpu) != 0) {
        fl_warn(ctx,
            "built with ARCH=native on '%s', running on '%s': rebuild here, or build with "
            "ARCH=x86-64-v3 and set OPENBLAS_CORETYPE=Haswell for the "
            "same bits on both",
            FL_BUILD_CPU, cpu);
    }
}

void app_placement(fl_ctx *ctx, const fl_deck *deck)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN), allowed = cores_allowed();
    int least = (int)fl_min(ctx, allowed), most = (int)fl_max(ctx, allowed);
    char bound[64];

    if (most == cores) {
        snprintf(bound, sizeof bound, "not bound");
    } else if (least == most) {
        snprintf(bound, sizeof bound, "bound to %d core(s) each", least);
    } else {
        snprintf(bound, sizeof bound, "bound to %d to %d cores", least, most);
    }
    fl_log(ctx,
        "placement %d rank(s) on %d node(s), %d on the first with %d core(s); %d BLAS thread(s) "
        "per rank; %s",
        ctx->size, ctx->nnodes, ctx->node_size, cores, deck->blas.threads, bound);
    warn_badly_placed(ctx, deck->blas.threads, cores, least, most);
    warn_other_cpu(ctx);
}
