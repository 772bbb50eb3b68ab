/* partition_iid - samples dealt like cards: the j-th of a random permutation of each split goes to
 * client j mod K, so counts differ by one at most. */
#include "data_internal.h"

fl_err fl_deal_iid(fl_deal *deal)
{
    const fl_dataset *d = deal->d;
    int *order = fl_alloc("partition", (size_t)d->nsamples, sizeof *order);

    for (int split = 0; split < FL_NSPLITS; split++) {
        int n = 0;

        for (int64_t i = 0; i < d->nsamples; i++) {
            if (d->split[i] == split) {
                order[n++] = (int)i;
            }
        }
        fl_rng_shuffle(deal->seed, FL_RNG_PARTITION, 0, FL_DEAL_SHUFFLE + split, n, order);
        for (int j = 0; j < n; j++) {
            deal->owner[order[j]] = j % deal->nclients;
        }
    }
    fl_free(order);
    return FL_OK;
}
