/* log.c - lines of rank 0: to stdout unless quiet (warnings: to stderr), and to the log file of the
 * run. */
#include "fedlora/base.h"

static void log_line(FILE *screen, FILE *log, const char *prefix, const char *format, va_list ap)
{
    FILE *out[2] = {screen, log};

    for (size_t i = 0; i < FL_COUNT(out); i++) {
        if (out[i] != NULL) {
            va_list again;
            va_copy(again, ap);
            fputs(prefix, out[i]);
            vfprintf(out[i], format, again);
            fputc('\n', out[i]);
            fflush(out[i]); /* a job may be killed at any moment */
            va_end(again);
        }
    }
}

void fl_log(fl_ctx *ctx, const char *format, ...)
{
    va_list ap;

    if (ctx->rank != 0) {
        return;
    }
    va_start(ap, format);
    log_line(ctx->quiet ? NULL : stdout, ctx->log, "", format, ap);
    va_end(ap);
}

void fl_warn(fl_ctx *ctx, const char *format, ...)
{
    va_list ap;

    if (ctx->rank != 0) {
        return;
    }
    /* not to stdout as well: on a terminal and in a job's log every warning would come twice */
    va_start(ap, format);
    log_line(stderr, ctx->log, "warning: ", format, ap);
    va_end(ap);
}
