/* export.c - `fedlora export`: the server's adapter, or one client's, out of a checkpoint, as a
 * PEFT folder or merged into a Hugging Face folder. */
#include "fed_internal.h"

#include <string.h>

/* what the server keeps: its adapter and what its method declared */
static fl_err take_server(fl_runtime *rt, const fl_snapshot *s)
{
    bool have = false;

    for (int i = 0; i < s->narrays; i++) {
        const fl_array *a = &s->array[i];

        if (strcmp(a->name, "server/global") == 0 && a->n == rt->run.space->n) {
            memcpy(rt->run.global->v, a->x, a->n * sizeof(fl_real));
            have = true;
        }
        for (int j = 0; j < rt->server.n; j++) {
            fl_kept *k = &rt->server.k[j];
            char name[120];

            snprintf(name, sizeof name, "server/keep/%s/%d", k->name, k->index);
            if (strcmp(a->name, name) == 0 && k->x != NULL && a->n == k->n) {
                memcpy(k->x, a->x, a->n * sizeof *k->x);
            } else if (strcmp(a->name, name) == 0 && k->ad != NULL && a->n == k->ad->space->n) {
                memcpy(k->ad->v, a->x, a->n * sizeof(fl_real));
            }
        }
    }
    return have ? FL_OK
                : fl_fail(FL_EFILE, "the checkpoint holds no server adapter that fits its deck");
}

/* the one adapter of the server's view; a personal method's server shows nothing: its global */
static fl_err server_adapter(fl_runtime *rt, const fl_snapshot *s, const fl_adapter **ad)
{
    fl_view v = {0};

    rt->run.round.t = s->round;
    *ad = rt->run.global;
    if (rt->method->view == NULL) {
        return FL_OK;
    }
    FL_TRY(rt->method->view(&rt->run, NULL, 0, &v));
    if (v.name == NULL) {
        return FL_OK;
    }
    *ad = v.stack.ad[0];
    return v.stack.n == 1 && v.stack.base == 0 && v.stack.coef[0] == 1 &&
                   space_kind_of(rt, v.stack.ad[0]->space) != SPACE_PLAIN
               ? FL_OK
               : fl_fail(FL_EUSAGE,
                     "%s: the server's model is not the base with one adapter, so there is nothing "
                     "to export; see OUT/adapter, or --client",
                     rt->method->name);
}

/* adapter of the server (client < 0) or the first adapter that the client keeps, and its number of
 * reals */
static fl_err adapter_of(
    fl_runtime *rt, const fl_snapshot *s, int client, const fl_adapter **ad, fl_kept_list *kept)
{
    if (client >= 0) {
        int id, here = fl_store_mine(rt->store, -1, NULL, NULL, NULL);

        for (int i = 0; i < here; i++) {
            const void *blob;
            size_t bytes;

            fl_store_mine(rt->store, i, &id, &blob, &bytes);
            if (id == client) {
                FL_TRY(kept_unpack(rt, blob, bytes, kept));
            }
        }
        for (int i = 0; i < kept->n && *ad == NULL; i++) {
            const fl_kept *k = &kept->k[i];
            /* neither what codecs left behind nor parts of an adapter */
            bool whole = k->ad != NULL && strncmp(k->name, "codec.", 6) != 0 &&
                         space_kind_of(rt, k->ad->space) != SPACE_PLAIN;

            *ad = whole ? k->ad : NULL;
        }
        return *ad != NULL ? FL_OK
                           : fl_fail(FL_EUSAGE,
                                 "client %d keeps no adapter of its own in this checkpoint (%s)",
                                 client, rt->method->name);
    }
    FL_TRY(take_server(rt, s));
    return server_adapter(rt, s, ad);
}

/* base + s B A, or base + dense delta, as a folder */
static fl_err save_merged(fl_runtime *rt, const fl_adapter *ad, const char *out)
{
    const fl_model *m = &rt->base.model;

    if (space_kind_of(rt, ad->space) == SPACE_DENSE) {
        for (int i = 0; i < ad->space->nslots; i++) {
            const fl_slot *s = &ad->space->slot[i];
            fl_real *w = (fl_real *)(uintptr_t)rt->base.w[s->site];

            for (size_t j = 0; j < (size_t)s->rows * (size_t)s->cols; j++) {
                w[j] += ad->v[s->at + j];
            }
        }
    } else {
        for (int j = 0; j < m->nsites; j++) {
            int tensor, row0;

            if (ad->space->r[j] > 0) {
                fl_model_site_tensor(m, j, &tensor, &row0);
                fl_linear_merge(m, j, (fl_real *)(uintptr_t)rt->base.w[tensor], ad, 1);
            }
        }
    }
    return fl_hf_save(out, m, rt->base.w);
}

static fl_err export_from(
    fl_runtime *rt, const char *checkpoint, const char *out, int client, bool merged)
{
    fl_snapshot s;
    fl_kept_list kept = {0};
    const fl_adapter *ad = NULL;
    const fl_deck *deck = rt->deck;

    FL_TRY(fl_checkpoint_read(rt->ctx, checkpoint, rt->store,
        fl_model_bytes(&rt->base.model) / sizeof(fl_real), rt->base.share.x, &s));
    fl_err err = adapter_of(rt, &s, client, &ad, &kept);

    if (err == FL_OK && !merged && s.base_revision > 0) {
        err = fl_fail(FL_EUSAGE,
            "%s changes the base (revision %d), so an adapter alone would be wrong; add --merged",
            rt->method->name, s.base_revision);
    }
    if (err == FL_OK && !merged && ad->space->nsites == 0 && deck->train.what != FL_WHAT_FULL) {
        err = fl_fail(FL_EUSAGE,
            "%s: the server's model in round %d is the base with dense changes, no adapter; add "
            "--merged",
            rt->method->name, s.round);
    }
    if (err == FL_OK && !merged && deck->train.what == FL_WHAT_FULL) {
        err = fl_fail(FL_EUSAGE, "train.what: full has no adapter; add --merged");
    }
    if (err == FL_OK) {
        err = merged ? save_merged(rt, ad, out)
                     : fl_peft_save(out, &rt->base.model, ad, deck->adapter.alpha,
                           deck->adapter.rslora, deck->model.path);
    }
    kept_free(&kept);
    fl_snapshot_free(&s);
    return err;
}

fl_err fl_export(fl_ctx *ctx, const char *checkpoint, const char *out, int client, bool merged)
{
    static fl_runtime runtime;
    fl_runtime *rt = &runtime;
    fl_snapshot head;
    fl_deck *deck = NULL;
    fl_options opt = {.out = out, .resume = "none", .versions = ""};
    int n;
    const fl_section *extra = fl_method_sections(&n);

    if (ctx->size > 1) {
        return fl_fail(FL_EUSAGE, "export runs on one rank");
    }
    FL_TRY(fl_checkpoint_peek(checkpoint, &head));
    fl_err err = fl_deck_parse(head.deck, strlen(head.deck), checkpoint, 0, NULL, extra, n, &deck);

    fl_snapshot_free(&head);
    FL_TRY(err);
    err = setup_runtime(ctx, deck, &opt, rt);
    if (err == FL_OK) {
        err = setup_fresh(rt);
    }
    if (err == FL_OK) {
        err = export_from(rt, checkpoint, out, client, merged);
    }
    setup_destroy(rt);
    fl_deck_destroy(&deck);
    return err;
}
