/* partition_dirichlet - label skew: class c is spread over the K clients in proportions q_c ~
 * Dir(alpha). Source: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data
 * distribution". q_ck = g_ck / sum_k g_ck,  g_ck ~ Gamma(alpha, 1) by Marsaglia and Tsang 2000;
 * below shape 1 g(alpha) = g(alpha + 1) u^(1/alpha), in logarithms, as u^(1/alpha) underflows for
 * small alpha. The samples of a class in random order are cut at floor(n_c (q_c1 + .. + q_ck)):
 * each goes to exactly one client. Validation and test samples follow the same proportions, so a
 * client is judged on classes it was trained on. Choice: a client without a training sample gets
 * the highest-numbered one of the client that has most (of equals the lowest id). */
#include "data_internal.h"
#include <math.h>

typedef struct draw {
    uint64_t seed, class_bits;
    int client;
} draw;

static double draw_uniform(const draw *w, int what, uint64_t i) /* (0, 1] */
{
    return 1.0 - fl_rng_uniform(w->seed, FL_RNG_PARTITION, w->client, what, w->class_bits | i);
}

static double log_gamma_variate(const draw *w, double alpha)
{
    double d = (alpha < 1 ? alpha + 1 : alpha) - 1.0 / 3, c = 1 / sqrt(9 * d);

    for (uint64_t i = 0;; i++) {
        double x =
            fl_rng_normal(w->seed, FL_RNG_PARTITION, w->client, FL_DEAL_NORMAL, w->class_bits | i);
        double v = 1 + c * x;

        if (v <= 0) {
            continue;
        }
        v = v * v * v;
        if (log(draw_uniform(w, FL_DEAL_UNIFORM, i)) < 0.5 * x * x + d - d * v + d * log(v)) {
            double boost = alpha < 1 ? log(draw_uniform(w, FL_DEAL_BOOST, 0)) / alpha : 0;

            return log(d * v) + boost;
        }
    }
}

/* q[k] = sum of the first k + 1 proportions; q[K - 1] = 1 exactly */
static void proportions(const fl_deal *deal, int class, double *q)
{
    double highest = -HUGE_VAL, sum = 0;
    int nk = deal->nclients;

    for (int k = 0; k < nk; k++) {
        draw w = {deal->seed, (uint64_t) class << 32, k};

        q[k] = log_gamma_variate(&w, deal->how->alpha);
        highest = FL_MAX(highest, q[k]);
    }
    for (int k = 0; k < nk; k++) {
        sum += exp(q[k] - highest);
        q[k] = sum;
    }
    for (int k = 0; k < nk; k++) {
        q[k] /= sum;
    }
}

static void class_deal(
    const fl_deal *deal, fl_split split, int class, const double *q, int n, int *list)
{
    int at = 0;

    fl_rng_shuffle(deal->seed, FL_RNG_PARTITION, class, FL_DEAL_SHUFFLE + (int)split, n, list);
    for (int k = 0; k < deal->nclients; k++) {
        int end = (int)floor(q[k] * n);

        for (; at < end; at++) {
            deal->owner[list[at]] = k;
        }
    }
    FL_REQUIRE(at == n);
}

/* ---- clients left without a training sample ---- */

typedef struct heap { /* clients, the one with most samples on top; of equals the lowest id */
    int *client;      /* borrowed [n] */
    const int *count; /* borrowed [clients] */
    int n;
} heap;

static bool heap_before(const heap *h, int a, int b)
{
    return h->count[a] != h->count[b] ? h->count[a] > h->count[b] : a < b;
}

static void heap_sink(heap *h, int i)
{
    for (;;) {
        int best = i, tmp;

        for (int j = 2 * i + 1; j <= 2 * i + 2 && j < h->n; j++) {
            best = heap_before(h, h->client[j], h->client[best]) ? j : best;
        }
        if (best == i) {
            return;
        }
        tmp = h->client[i];
        h->client[i] = h->client[best];
        h->client[best] = tmp;
        i = best;
    }
}

static void feed_the_empty(const fl_deal *deal)
{
    const fl_dataset *d = deal->d;
    size_t nk = (size_t)deal->nclients;
    int *count = fl_alloc("partition", nk, sizeof *count),
        *id = fl_alloc("partition", nk, sizeof *id);
    int *last = fl_alloc("partition", nk, sizeof *last); /* highest sample of a client, -1 = none */
    int *before = fl_alloc("partition", (size_t)d->nsamples, sizeof *before);
    heap h = {id, count, deal->nclients};

    for (int k = 0; k < deal->nclients; k++) {
        id[k] = k;
        last[k] = -1;
    }
    for (int64_t i = 0; i < d->nsamples; i++) {
        if (d->split[i] == FL_TRAIN) {
            before[i] = last[deal->owner[i]];
            last[deal->owner[i]] = (int)i;
            count[deal->owner[i]]++;
        }
    }
    for (int i = h.n / 2; i >= 0; i--) {
        heap_sink(&h, i);
    }
    for (int k = 0; k < deal->nclients; k++) {
        if (count[k] == 0) {
            int donor = id[0], sample = last[donor];

            FL_REQUIRE(count[donor] > 1); /* as many samples as clients at least */
            last[donor] = before[sample];
            deal->owner[sample] = k;
            count[donor]--;
            heap_sink(&h, 0);
            /* k now has one sample, no donor: its place low in the heap does not matter until all
             * have one */
        }
    }
    fl_free(count);
    fl_free(id);
    fl_free(last);
    fl_free(before);
}

fl_err fl_deal_dirichlet(fl_deal *deal)
{
    const int32_t *class_of;
    int64_t *first[FL_NSPLITS];
    int *list[FL_NSPLITS], nclasses;
    double *q;

    FL_TRY(fl_deal_class(deal, &class_of, &nclasses));
    if (!(deal->how->alpha > 0)) {
        return fl_fail(FL_EDECK, "partition.alpha: %g: must be above 0", deal->how->alpha);
    }
    q = fl_alloc("partition", (size_t)deal->nclients, sizeof *q);
    for (int s = 0; s < FL_NSPLITS; s++) {
        fl_deal_by_class(deal, s, class_of, nclasses, &first[s], &list[s]);
    }
    for (int c = 0; c < nclasses; c++) {
        int64_t n = 0;

        for (int s = 0; s < FL_NSPLITS; s++) {
            n += first[s][c + 1] - first[s][c];
        }
        if (n > 0) {
            proportions(deal, c, q);
        }
        for (int s = 0; s < FL_NSPLITS && n > 0; s++) {
            class_deal(deal, s, c, q, (int)(first[s][c + 1] - first[s][c]), list[s] + first[s][c]);
        }
    }
    for (int s = 0; s < FL_NSPLITS; s++) {
        fl_free(first[s]);
        fl_free(list[s]);
    }
    fl_free(q);
    feed_the_empty(deal);
    return FL_OK;
}
