/* cmd_show.c - commands that print: inspect, verify, diff, methods, deck, explain, bench. Rank 0
 * works, the others agree. */
#include "app.h"

#include <string.h>

static void print(fl_ctx *ctx, fl_text *t)
{
    if (ctx->rank == 0 && t->s != NULL) {
        fputs(t->s, stdout);
    }
    fl_text_free(t);
}

fl_err app_inspect(fl_ctx *ctx, const app_args *args)
{
    fl_text t = {0};
    fl_err err = ctx->rank == 0 ? fl_inspect(args->word[0], &t) : FL_OK;

    print(ctx, &t);
    return err;
}

fl_err app_verify(fl_ctx *ctx, const app_args *args)
{
    fl_text t = {0};
    fl_err err = ctx->rank == 0 ? fl_verify(args->word[0], &t) : FL_OK;

    print(ctx, &t);
    return err;
}

fl_err app_diff(fl_ctx *ctx, const app_args *args)
{
    fl_text t = {0};
    fl_err err = ctx->rank == 0 ? fl_diff(args->word[0], args->word[1], &t) : FL_OK;

    print(ctx, &t);
    return err;
}

fl_err app_methods(fl_ctx *ctx, const app_args *args)
{
    fl_text t = {0};

    if (args->reference) {
        fl_method_reference(&t);
    } else if (args->nwords == 0) {
        fl_method_list(&t);
    } else {
        const fl_method *m = fl_method_find(args->word[0]);

        if (m == NULL) {
            return fl_fail(
                FL_EUSAGE, "there is no method '%s'; fedlora methods lists them", args->word[0]);
        }
        fl_method_describe(m, &t);
    }
    print(ctx, &t);
    return FL_OK;
}

fl_err app_show_deck(fl_ctx *ctx, const app_args *args)
{
    app_args more = *args;
    fl_text t = {0}, set = {0};
    fl_deck *deck = NULL;
    int n;
    const fl_section *extra = fl_method_sections(&n);

    if (args->reference) {
        fl_deck_reference(extra, n, &t);
        print(ctx, &t);
        return FL_OK;
    }
    if (args->method != NULL) {
        if (fl_method_find(args->method) == NULL) {
            return fl_fail(
                FL_EUSAGE, "there is no method '%s'; fedlora methods lists them", args->method);
        }
        fl_text_add(&set, "method.name=%s", args->method);
        more.set[more.nsets++] = set.s;
    }
    fl_err err = app_deck(ctx, NULL, &more, &deck);

    if (err == FL_OK) {
        fl_deck_dump(deck, true, &t);
    }
    print(ctx, &t);
    fl_text_free(&set);
    fl_deck_destroy(&deck);
    return err;
}

fl_err app_explain(fl_ctx *ctx, const app_args *args)
{
    fl_text t = {0};
    int n;
    const fl_section *extra = fl_method_sections(&n);
    fl_err err = fl_deck_explain(args->word[0], extra, n, &t);

    print(ctx, &t);
    return err;
}

static fl_err bench_train(fl_ctx *ctx, const app_args *args, fl_text *t)
{
    fl_base base = {0};
    fl_err err = FL_OK;

    if (args->model != NULL) {
        FL_TRY(fl_base_load(ctx, args->model, "", &base));
    }
    if (ctx->rank == 0) {
        err = fl_bench_train(args->model != NULL ? &base.model : NULL, base.share.x, t);
    }
    if (args->model != NULL) {
        fl_base_destroy(&base);
    }
    return fl_agree(ctx, err);
}

fl_err app_bench(fl_ctx *ctx, const app_args *args)
{
    fl_blas_threads(1);
    for (int i = 0; i < args->nwords; i++) {
        const char *what = args->word[i];
        fl_text t = {0};
        fl_err err;

        if (strcmp(what, "train") == 0) {
            err = bench_train(ctx, args, &t);
        } else if (strcmp(what, "reduce") == 0) {
            err = fl_bench_reduce(ctx, &t);
        } else if (strcmp(what, "svd") == 0) {
            err = fl_bench_svd(ctx, &t);
        } else if (strcmp(what, "svd-large") == 0) { /* not among those run without a name */
            err = fl_bench_svd_large(ctx, &t);
        } else if (strcmp(what, "checkpoint") == 0) {
            err = fl_bench_checkpoint(ctx, args->out != NULL ? args->out : ".", &t);
        } else {
            err = fl_fail(FL_EUSAGE,
                "bench: there is no '%s'; there are train, reduce, svd, svd-large, checkpoint",
                what);
        }
        print(ctx, &t);
        FL_TRY(err);
    }
    return FL_OK;
}
