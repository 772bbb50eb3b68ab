/* partition_shards - pathological label skew: the samples of a split sorted by class are cut into K
 * * shards pieces of equal size, dealt at random, `shards` to a client. Source: McMahan et al.
 * 2017, section 3 (there 2 shards of MNIST digits to each of 100 clients). Validation and test are
 * sorted and cut the same way and dealt by the same permutation: piece j of any split covers the
 * same part of the classes, so a client is judged on classes it was trained on. There a piece may
 * be empty. */
#include "data_internal.h"

fl_err fl_deal_shards(fl_deal *deal)
{
    const int32_t *class_of;
    int nclasses, shards = deal->how->shards;
    int64_t pieces = (int64_t)deal->nclients * shards, ntrain = fl_deal_count(deal, FL_TRAIN);
    int *order;

    FL_TRY(fl_deal_class(deal, &class_of, &nclasses));
    if (shards < 1 || pieces > ntrain) {
        return fl_fail(FL_EDECK,
            "partition.shards: %d shards for each of %d clients, but %s has only %lld training "
            "samples; use fewer of either",
            shards, deal->nclients, deal->source, (long long)ntrain);
    }
    order = fl_alloc("partition", (size_t)pieces, sizeof *order);
    for (int j = 0; j < (int)pieces; j++) {
        order[j] = j;
    }
    fl_rng_shuffle(deal->seed, FL_RNG_PARTITION, 0, FL_DEAL_PIECES, (int)pieces, order);
    for (int split = 0; split < FL_NSPLITS; split++) {
        int64_t *first, n;
        int *list;

        fl_deal_by_class(deal, split, class_of, nclasses, &first, &list);
        n = first[nclasses];
        for (int64_t j = 0; j < pieces; j++) {
            int64_t piece = order[j];

            for (int64_t i = piece * n / pieces; i < (piece + 1) * n / pieces; i++) {
                deal->owner[list[i]] = (int32_t)(j / shards);
            }
        }
        fl_free(first);
        fl_free(list);
    }
    fl_free(order);
    return FL_OK;
}
