/* cmd_run.c - run, pretrain, eval, export. */
#include "app.h"

#include <string.h>
#include <unistd.h>

fl_err app_open_log(fl_ctx *ctx, const char *out)
{
    fl_text path = {0};
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        fl_text_add(&path, "%s/log.txt", out);
        ctx->log = fopen(path.s, "a");
        if (ctx->log == NULL) {
            err = fl_fail(FL_EFILE, "%s: cannot be written", path.s);
        } else {
            setvbuf(ctx->log, NULL, _IOLBF, 0);
        }
    }
    fl_text_free(&path);
    return fl_agree(ctx, err);
}

fl_err app_federation(fl_ctx *ctx, const fl_deck *deck, fl_options *o, uint64_t *state)
{
    char *versions = app_versions(ctx);
    fl_err err = o->dry_run ? FL_OK : app_open_log(ctx, o->out);

    o->versions = versions;
    if (err == FL_OK && !ctx->quiet) { /* a group of a sweep is placed as the whole job is */
        app_placement(ctx, deck);
    }
    if (err == FL_OK) {
        app_catch_signals();
        err = fl_agree(ctx, fl_federation(ctx, deck, o, state));
    }
    if (err == FL_OK && !o->dry_run) {
        fl_log(ctx, "state %016llx", (unsigned long long)*state);
    }
    o->versions = NULL;
    fl_free(versions);
    return err;
}

fl_err app_run(fl_ctx *ctx, const app_args *args)
{
    fl_deck *deck = NULL;
    uint64_t state = 0;

    FL_TRY(app_deck(ctx, args->word[0], args, &deck));
    fl_err err = app_check_ranks(ctx);
    fl_options o = {.out = args->out != NULL ? args->out : deck->run.out,
        .resume = args->resume,
        .maxh = args->maxh > 0 ? args->maxh : deck->run.maxh,
        .dry_run = args->dry_run,
        .progress = isatty(2) != 0,
        .requeue_code = args->requeue_code};

    if (err == FL_OK && !args->dry_run) {
        err = app_lock(ctx, o.out);
    }
    if (err == FL_OK) {
        err = app_federation(ctx, deck, &o, &state);
    }
    fl_deck_destroy(&deck);
    return err;
}

fl_err app_pretrain(fl_ctx *ctx, const app_args *args)
{
    fl_deck *deck = NULL;

    FL_TRY(app_deck(ctx, args->word[0], args, &deck));
    const char *out = args->out != NULL ? args->out : deck->pretrain.out;
    fl_err err =
        out[0] != '\0'
            ? app_check_ranks(ctx)
            : fl_fail(FL_EDECK, "pretrain.out: empty; say where the model goes, or give --out DIR");

    if (err == FL_OK) {
        app_placement(ctx, deck);
        app_catch_signals();
        err = fl_pretrain(ctx, deck, out);
    }
    if (err == FL_OK) {
        fl_log(ctx, "wrote     %s", out);
    }
    fl_deck_destroy(&deck);
    return err;
}

fl_err app_eval(fl_ctx *ctx, const app_args *args)
{
    static const char *const splits[] = {"train", "validation", "test"};
    app_args more = *args;
    fl_text source = {0};
    fl_deck *deck = NULL;
    int split = -1;
    double loss, accuracy;
    int64_t targets;

    if (args->model == NULL || args->data == NULL) {
        return fl_fail(FL_EUSAGE, "eval: needs --model HFDIR and --data FILE");
    }
    for (int i = 0; i < 3; i++) {
        split = strcmp(args->split, splits[i]) == 0 ? i : split;
    }
    if (split < 0 || args->nsets == MAX_SETS) {
        return fl_fail(FL_EUSAGE, "eval: --split is train, validation or test");
    }
    fl_text_add(&source, "data.source=%s", args->data);
    more.set[more.nsets++] = source.s;
    fl_err err = app_deck(ctx, NULL, &more, &deck);

    if (err == FL_OK) {
        err = fl_evaluate(
            ctx, deck, args->model, args->adapter, (fl_split)split, &loss, &accuracy, &targets);
    }
    if (err == FL_OK) {
        fl_log(ctx, "loss %.6f nats per token, accuracy %.4f, %lld predictions", loss, accuracy,
            (long long)targets);
    }
    fl_text_free(&source);
    fl_deck_destroy(&deck);
    return err;
}

fl_err app_export(fl_ctx *ctx, const app_args *args)
{
    if (args->out == NULL) {
        return fl_fail(FL_EUSAGE, "export: needs -o DIR");
    }
    fl_ctx *part = NULL;

    FL_TRY(fl_ctx_split(ctx, ctx->rank != 0, &part)); /* the work of one rank, also under mpirun */
    fl_err err = ctx->rank == 0
                     ? fl_export(part, args->word[0], args->out, args->client, args->merged)
                     : FL_OK;

    fl_ctx_destroy(&part);
    FL_TRY_ALL(ctx, err);
    fl_log(ctx, "wrote     %s", args->out);
    return FL_OK;
}
