/* partition.c - which samples are whose. A partition kind (partition_<name>.c) gives every sample
 * an owner; here owners become the table. Every node's leader deals by itself, all ranks compare
 * the result. Segment: for each split first [nclients + 1] uint64, then for each split its list
 * uint32, each at a 64-byte offset. */
#include "data_internal.h"
#include <string.h>

typedef struct sizes { /* sent from rank 0 as bytes: all members 8 bytes, no gaps */
    int64_t nclients, named, n[FL_NSPLITS];
} sizes;

/* ---- what the kinds share ---- */

int64_t fl_deal_count(const fl_deal *deal, fl_split split)
{
    int64_t n = 0;

    for (int64_t i = 0; i < deal->d->nsamples; i++) {
        n += deal->d->split[i] == split;
    }
    return n;
}

fl_err fl_deal_class(const fl_deal *deal, const int32_t **class_of, int *nclasses)
{
    *class_of = deal->d->label ? deal->d->label : deal->d->key;
    *nclasses = deal->d->label ? deal->d->nclasses : deal->d->nkeys;
    if (!*class_of) {
        return fl_fail(FL_EDECK,
            "partition.kind: %s needs labels or client keys, and %s has neither; use "
            "partition.kind: iid, or name them with data.label or data.key",
            deal->how->kind == FL_PART_SHARDS ? "shards" : "dirichlet", deal->source);
    }
    return FL_OK;
}

void fl_deal_by_class(const fl_deal *deal, fl_split split, const int32_t *class_of, int nclasses,
    int64_t **first, int **list)
{
    const fl_dataset *d = deal->d;
    int64_t *f = fl_alloc("classes", (size_t)nclasses + 2, sizeof *f);

    /* f[c + 2] counts class c; after the sums f[c + 1] is where class c begins, and moves to its
     * end while filling */
    for (int64_t i = 0; i < d->nsamples; i++) {
        f[class_of[i] + 2] += d->split[i] == split;
    }
    for (int c = 2; c <= nclasses + 1; c++) {
        f[c] += f[c - 1];
    }
    *list = fl_alloc("classes", (size_t)f[nclasses + 1], sizeof **list);
    for (int64_t i = 0; i < d->nsamples; i++) {
        if (d->split[i] == split) {
            (*list)[f[class_of[i] + 1]++] = (int)i;
        }
    }
    *first = f;
}

/* ---- owners to table ---- */

static size_t padded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static size_t table_bytes(const sizes *s)
{
    size_t bytes = FL_NSPLITS * padded(((size_t)s->nclients + 1) * sizeof(uint64_t));

    for (int i = 0; i < FL_NSPLITS; i++) {
        bytes += padded((size_t)s->n[i] * sizeof(uint32_t));
    }
    return bytes;
}

static void table_point(fl_partition *p, const sizes *s, char *x)
{
    for (int i = 0; i < FL_NSPLITS; i++) {
        p->first[i] = (const uint64_t *)(void *)x;
        x += padded(((size_t)s->nclients + 1) * sizeof(uint64_t));
    }
    for (int i = 0; i < FL_NSPLITS; i++) {
        p->list[i] = (const uint32_t *)(void *)x;
        x += padded((size_t)s->n[i] * sizeof(uint32_t));
    }
}

/* samples stay in ascending order within a client: counting sort by owner */
static void table_fill(const fl_partition *p, const fl_deal *deal, const sizes *s)
{
    const fl_dataset *d = deal->d;

    for (int split = 0; split < FL_NSPLITS; split++) {
        uint64_t *first = (uint64_t *)(uintptr_t)p->first[split];
        uint32_t *list = (uint32_t *)(uintptr_t)p->list[split];
        uint64_t *at = fl_alloc("partition", (size_t)s->nclients, sizeof *at);

        for (int64_t i = 0; i < d->nsamples; i++) {
            if (d->split[i] == split && deal->owner[i] >= 0) {
                first[deal->owner[i] + 1]++;
            }
        }
        for (int64_t k = 0; k < s->nclients; k++) {
            at[k] = first[k];
            first[k + 1] += first[k];
        }
        for (int64_t i = 0; i < d->nsamples; i++) {
            if (d->split[i] == split && deal->owner[i] >= 0) {
                list[at[deal->owner[i]]++] = (uint32_t)i;
            }
        }
        fl_free(at);
    }
}

static fl_err deal_make(fl_deal *deal)
{
    static fl_err (*const kind[])(fl_deal *) = {
        fl_deal_iid, fl_deal_dirichlet, fl_deal_shards, fl_deal_natural};
    int64_t n = fl_deal_count(deal, FL_TRAIN);

    FL_REQUIRE(deal->how->kind >= 0 && (size_t)deal->how->kind < FL_COUNT(kind));
    if (deal->how->kind != FL_PART_NATURAL) {
        deal->nclients = deal->how->clients > 0 ? deal->how->clients : deal->d->nkeys;
        if (deal->nclients == 0) {
            return fl_fail(FL_EDECK,
                "partition.clients: 0 means one for each client key, and %s has none; give a "
                "number",
                deal->source);
        }
        if (n < deal->nclients) {
            return fl_fail(FL_EDECK,
                "partition.clients: %d clients, but %s has only %lld training samples; every "
                "client needs one",
                deal->nclients, deal->source, (long long)n);
        }
    }
    deal->owner = fl_alloc("partition", (size_t)deal->d->nsamples, sizeof *deal->owner);
    for (int64_t i = 0; i < deal->d->nsamples; i++) {
        deal->owner[i] = -1;
    }
    return kind[deal->how->kind](deal);
}

static void sizes_of(const fl_deal *deal, sizes *s)
{
    s->nclients = deal->nclients;
    s->named = deal->client_key != NULL;
    for (int64_t i = 0; i < deal->d->nsamples; i++) {
        s->n[deal->d->split[i]] += deal->owner[i] >= 0;
    }
}

static void names_share(
    fl_ctx *ctx, const fl_deal *deal, const fl_dataset *d, const sizes *s, fl_partition *p)
{
    int32_t *key = fl_alloc("client keys", (size_t)s->nclients, sizeof *key);

    if (ctx->rank == 0) {
        memcpy(key, deal->client_key, (size_t)s->nclients * sizeof *key);
    }
    fl_bcast(ctx, 0, key, (size_t)s->nclients * sizeof *key);
    p->names = fl_alloc("client names", (size_t)s->nclients, sizeof *p->names);
    for (int64_t k = 0; k < s->nclients; k++) {
        p->names[k] = fl_strdup(d->key_name[key[k]]);
    }
    p->name = (const char *const *)p->names;
    fl_free(key);
}

static fl_err table_share(fl_ctx *ctx, const fl_deck *deck, const fl_deal *deal, fl_partition *p)
{
    sizes mine = {0}, s;
    bool same;

    if (ctx->node_rank == 0) {
        sizes_of(deal, &mine);
    }
    s = mine;
    fl_bcast(ctx, 0, &s, sizeof s);
    same = ctx->node_rank != 0 || memcmp(&s, &mine, sizeof s) == 0;
    FL_TRY_ALL(ctx,
        same ? FL_OK : fl_fail(FL_EBUG, "partition: nodes dealt different numbers of samples"));
    p->nclients = (int)s.nclients;
    FL_TRY(fl_share_create(ctx, fl_data_given(deck->model.share_dir) ? deck->model.share_dir : "",
        "partition", table_bytes(&s), &p->share));
    table_point(p, &s, p->share.x);
    if (ctx->node_rank == 0) {
        table_fill(p, deal, &s);
    }
    if (s.named) {
        names_share(ctx, deal, deal->d, &s, p);
    }
    fl_share_fence(ctx);
    return fl_same_everywhere(ctx, fl_hash(p->share.x, table_bytes(&s), 0))
               ? FL_OK
               : fl_fail(FL_EBUG, "partition: nodes dealt samples differently");
}

fl_err fl_partition_create(fl_ctx *ctx, const fl_deck *deck, const fl_dataset *d, fl_partition *p)
{
    fl_deal deal = {.seed = deck->run.seed, .d = d, .how = &deck->partition};
    fl_err err = FL_OK;

    memset(p, 0, sizeof *p);
    deal.source = fl_data_given(deck->data.source) ? deck->data.source : "the data set";
    if (ctx->node_rank == 0) {
        err = deal_make(&deal);
    }
    err = fl_agree(ctx, err);
    if (err == FL_OK) {
        err = table_share(ctx, deck, &deal, p);
    }
    fl_free(deal.owner);
    fl_free(deal.client_key);
    if (err != FL_OK) {
        fl_partition_destroy(p);
    }
    return err;
}

void fl_partition_destroy(fl_partition *p)
{
    fl_share_destroy(&p->share);
    for (int k = 0; p->names && k < p->nclients; k++) {
        fl_free(p->names[k]);
    }
    fl_free(p->names);
    memset(p, 0, sizeof *p);
}
