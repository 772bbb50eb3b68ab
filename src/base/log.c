/* log.c - lines of rank 0: to stdout unless quiet, and to the log file of the run. */
#include "fedlora/base.h"

static void log_line(fl_ctx *ctx, const char *prefix, const char *format, va_list ap)
{
    FILE *out[2] = {ctx->quiet ? NULL : stdout, ctx->log};

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
    log_line(ctx, "", format, ap);
    va_end(ap);
}

void fl_warn(fl_ctx *ctx, const char *format, ...)
{
    va_list ap;

    if (ctx->rank != 0) {
        return;
    }
    va_start(ap, format);
    log_line(ctx, "warning: ", format, ap);
    va_end(ap);
    fputs("warning: ", stderr);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
}
