/* partition_natural - one client per client key of the data (a speaker, an author, a device).
 * Kept are keys with at least min_records training samples, of them the partition.clients largest
 * (0 = all; of equals the lowest key); clients are numbered by ascending key. Samples of other keys
 * are nobody's. */
#include "data_internal.h"
#include <stdlib.h>

typedef struct keyed {
    int64_t n; /* training samples */
    int32_t key;
} keyed;

static int by_size(const void *a, const void *b)
{
    const keyed *x = a, *y = b;

    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : (x->key > y->key) - (x->key < y->key);
}

static int by_key(const void *a, const void *b)
{
    const keyed *x = a, *y = b;

    return (x->key > y->key) - (x->key < y->key);
}

static void clients_number(fl_deal *deal, const keyed *k, int n)
{
    const fl_dataset *d = deal->d;
    int32_t *client_of = fl_alloc("partition", (size_t)d->nkeys, sizeof *client_of);

    for (int i = 0; i < d->nkeys; i++) {
        client_of[i] = -1;
    }
    deal->nclients = n;
    deal->client_key = fl_alloc("partition", (size_t)n, sizeof *deal->client_key);
    for (int i = 0; i < n; i++) {
        deal->client_key[i] = k[i].key;
        client_of[k[i].key] = i;
    }
    for (int64_t i = 0; i < d->nsamples; i++) {
        deal->owner[i] = client_of[d->key[i]];
    }
    fl_free(client_of);
}

fl_err fl_deal_natural(fl_deal *deal)
{
    const fl_dataset *d = deal->d;
    int64_t least = FL_MAX(deal->how->min_records, 1);
    keyed *k;
    int n = 0;

    if (!d->key) {
        return fl_fail(FL_EDECK,
            "partition.kind: natural needs client keys, and %s has none; name them with data.key, "
            "or use another kind",
            deal->source);
    }
    k = fl_alloc("partition", (size_t)d->nkeys, sizeof *k);
    for (int i = 0; i < d->nkeys; i++) {
        k[i].key = i;
    }
    for (int64_t i = 0; i < d->nsamples; i++) {
        k[d->key[i]].n += d->split[i] == FL_TRAIN;
    }
    qsort(k, (size_t)d->nkeys, sizeof *k, by_size);
    while (n < d->nkeys && k[n].n >= least && (deal->how->clients == 0 || n < deal->how->clients)) {
        n++;
    }
    if (n > 0) {
        qsort(k, (size_t)n, sizeof *k, by_key);
        clients_number(deal, k, n);
    }
    fl_free(k);
    return n > 0 ? FL_OK
                 : fl_fail(FL_EDECK,
                       "partition.min_records: no client key of %s has %lld training samples; "
                       "lower it",
                       deal->source, (long long)least);
}
