/* codec.c - compression of messages: what the receiver decodes, and how many bytes travelled.
 * topk (Stich et al. 2018, arXiv 1809.07599): the share codec.density of largest magnitude, ties to
 * the lower index; 4 bytes a value and the cheaper of 4 bytes an index and a bit map.
 * quantise (QSGD, Alistarh et al. 2017, arXiv 1610.02132, by blocks): x = scale * q / L with q in
 * -L..L, L = 2^(bits - 1) - 1, scale = max |x| of 256 elements, rounded up with the probability of
 * the remainder (unbiased); bits a value and 4 bytes a block. topk_quantise: first the one, then
 * the other on what is left.
 *
 * Up, a codec acts on the change from what the client received, plus what its earlier messages of
 * this label lost (error feedback: what was decoded and what is still kept sum to what was meant).
 * Where the receiver holds nothing (a stack that starts afresh in every round), messages do not add
 * up and there is nothing to feed back.
 * Down, a codec acts on the change from the copy that the client has; with feedback that copy is as
 * the last message left it (so that what was lost is sent again later), without it is the start,
 * which everybody makes from the seed. What a client learns is added to what the server meant to
 * send: the loss on the way down is the client's alone. */
#include "fed_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 256 };

typedef struct entry {
    fl_real size;
    size_t i;
} entry;

static int by_size(const void *a, const void *b)
{
    const entry *x = a, *y = b;

    return x->size != y->size ? (x->size < y->size) - (x->size > y->size)
                              : (x->i > y->i) - (x->i < y->i);
}

/* zeroes all but the k = max(1, floor(density n)) largest; returns k */
static size_t topk(double density, size_t n, fl_real *x)
{
    /* 0.29 * 100 is 28.999999999999996 in binary */
    size_t k = FL_MIN(FL_MAX((size_t)(density * (double)n * (1 + 1e-12)), 1), n);
    entry *e = fl_alloc("top-k", n, sizeof *e);

    for (size_t i = 0; i < n; i++) {
        e[i] = (entry){(fl_real)fabs((double)x[i]), i};
    }
    qsort(e, n, sizeof *e, by_size);
    for (size_t j = k; j < n; j++) {
        x[e[j].i] = 0;
    }
    fl_free(e);
    return k;
}

/* one block of elements, in the order of their indices; the draw of element i is f(seed, id, t, i)
 */
static void quantise_block(
    int bits, uint64_t seed, int id, int t, int n, const size_t *index, fl_real *x)
{
    double levels = (double)((1 << (bits - 1)) - 1), scale = 0;

    for (int j = 0; j < n; j++) {
        scale = FL_MAX(scale, fabs((double)x[index[j]]));
    }
    for (int j = 0; scale > 0 && j < n; j++) {
        double y = (double)x[index[j]] / scale * levels, low = floor(y);
        double u = fl_rng_uniform(seed, FL_RNG_METHOD, id, t, index[j]);

        x[index[j]] = (fl_real)((low + (u < y - low)) / levels * scale);
    }
}

static double quantise(int bits, uint64_t seed, int id, int t, size_t n, bool sparse, fl_real *x)
{
    size_t index[BLOCK], sent = 0;
    int have = 0, blocks = 0;

    for (size_t i = 0; i < n; i++) {
        if (!sparse || x[i] != 0) {
            index[have++] = i;
            sent++;
        }
        if (have == BLOCK || (i + 1 == n && have > 0)) {
            quantise_block(bits, seed, id, t, have, index, x);
            have = 0;
            blocks++;
        }
    }
    return ceil((double)sent * bits / 8) + 4.0 * blocks;
}

double codec_seal(
    const fl_deck_codec *d, int kind, uint64_t seed, int id, int t, size_t n, fl_real *x)
{
    bool sparse = kind == FL_CODEC_TOPK || kind == FL_CODEC_TOPK_QUANTISE;
    double bytes = 0, k = (double)n;

    if (n == 0) {
        return 0;
    }
    if (sparse) {
        k = (double)topk(d->density, n, x);
        bytes = FL_MIN(4 * k, ceil((double)n / 8));
    }
    return bytes + (kind == FL_CODEC_TOPK ? 4 * k : quantise(d->bits, seed, id, t, n, sparse, x));
}

/* ---- one part of a message ---- */
typedef struct ends {        /* of the space of the part; NULL = 0 */
    const fl_real *sender;   /* what is subtracted before .. */
    const fl_real *receiver; /* .. and added after the way */
    fl_adapter *lost;        /* up: by earlier messages, and now by this one */
    fl_adapter *copy;        /* down: the client's, before and after this message */
} ends;

/* a label that the message used before: another residual, other random numbers */
static int index_of(const fl_msg *msg, const fl_part *part)
{
    int same = 0;

    for (const fl_part *p = msg->part; p < part; p++) {
        same += p->label == part->label;
    }
    return part->label + 4096 * same;
}

static const fl_real *fitted(fl_run *run, const fl_space *sp, const fl_adapter *ad)
{
    fl_adapter *fit = fl_scratch_adapter(run, sp);

    fl_fit(fit, ad);
    return fit->v;
}

/* the server's own copy of what a client received as ref; ref itself where no codec came between */
static const fl_adapter *as_meant(const fl_msg *msg, const fl_adapter *ref)
{
    const fl_client *c = msg->client;

    for (int l = 0; l < FL_MAX_ADAPTERS; l++) {
        if (c->got[l] == ref && c->turn->meant[l] != NULL) {
            return c->turn->meant[l];
        }
    }
    return ref;
}

static ends ends_up(fl_runtime *rt, fl_msg *msg, const fl_part *part, int kind)
{
    const fl_space *sp = part->ad->space;
    ends e = {0};

    if (part->ref != NULL && !part->change &&
        (kind != FL_CODEC_NONE || as_meant(msg, part->ref) != part->ref)) {
        e.sender = fitted(&rt->run, sp, part->ref);
        e.receiver = fitted(&rt->run, sp, as_meant(msg, part->ref));
    }
    if (kind != FL_CODEC_NONE && rt->deck->codec.feedback && (part->ref != NULL || part->change)) {
        e.lost = fl_keep_adapter(&rt->run, msg->client, "codec.up", index_of(msg, part), sp, NULL);
    }
    return e;
}

static ends ends_down(fl_runtime *rt, fl_msg *msg, fl_part *part)
{
    const fl_space *sp = part->ad->space;
    bool start = part->of == rt->run.global, fresh;
    ends e = {0};

    if (rt->deck->codec.feedback) {
        e.copy =
            fl_keep_adapter(&rt->run, msg->client, "codec.down", index_of(msg, part), sp, &fresh);
        if (fresh && start) {
            fl_fit(e.copy, rt->start);
        }
        e.sender = e.receiver = e.copy->v;
    } else if (start) {
        e.sender = e.receiver = fitted(&rt->run, sp, rt->start);
    }
    FL_REQUIRE(part->label >= 0 && part->label < FL_MAX_ADAPTERS);
    msg->client->turn->meant[part->label] = fl_scratch_copy(&rt->run, part->ad);
    return e;
}

/* the picked elements of slots that the receiver does not know, as ranges of the part's vector */
static fl_range *coded(fl_runtime *rt, const fl_msg *msg, const fl_part *part, int *nranges)
{
    const fl_space *sp = part->ad->space;
    fl_range *range = NULL;

    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            range = fl_scratch(&rt->run, (size_t)*nranges, sizeof *range);
        }
        *nranges = 0;
        for (int i = 0; i < sp->nslots; i++) {
            if (!message_knows(rt, msg, part, &sp->slot[i])) {
                *nranges += pick_runs(sp, part->pick, i, pass == 1 ? range + *nranges : NULL);
            }
        }
    }
    return range;
}

/* elements that do not travel are the receiver's own */
static void complete_from(const fl_part *part, const fl_real *receiver)
{
    const fl_space *sp = part->ad->space;

    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];

        for (size_t e = 0; e < (size_t)s->rows * (size_t)s->cols; e++) {
            if (!fl_picked(sp, part->pick, i, e)) {
                part->ad->v[s->at + e] = receiver[s->at + e];
            }
        }
    }
}

double codec_part(fl_runtime *rt, fl_msg *msg, fl_part *part)
{
    const fl_deck_codec *d = &rt->deck->codec;
    int kind = msg->up ? d->up : d->down, nranges;
    fl_range *range = coded(rt, msg, part, &nranges);
    ends e = msg->up ? ends_up(rt, msg, part, kind) : ends_down(rt, msg, part);
    uint64_t key[3] = {rt->run.seed, (uint64_t)msg->up, (uint64_t)index_of(msg, part)};
    size_t n = 0, at = 0;

    for (int k = 0; k < nranges; k++) {
        n += range[k].n;
    }
    fl_real *x = fl_scratch(&rt->run, n, sizeof *x), *meant = fl_scratch(&rt->run, n, sizeof *x);
    double bytes = 4.0 * (double)n;

    for (int k = 0; k < nranges; k++) {
        for (size_t i = range[k].at; i < range[k].at + range[k].n; i++, at++) {
            x[at] = part->ad->v[i] - (e.sender != NULL ? e.sender[i] : 0) +
                    (e.lost != NULL ? e.lost->v[i] : 0);
            meant[at] = x[at];
        }
    }
    if (kind != FL_CODEC_NONE) {
        bytes = codec_seal(
            d, kind, fl_hash(key, sizeof key, 0), msg->client->id, rt->run.round.t, n, x);
    }
    if (msg->up && e.receiver != NULL && (part->pick.pairs != NULL || part->pick.elems != NULL)) {
        complete_from(part, e.receiver);
    }
    at = 0;
    for (int k = 0; k < nranges; k++) {
        for (size_t i = range[k].at; i < range[k].at + range[k].n; i++, at++) {
            part->ad->v[i] = (e.receiver != NULL ? e.receiver[i] : 0) + x[at];
            if (e.lost != NULL) {
                e.lost->v[i] = meant[at] - x[at];
            }
            if (e.copy != NULL) {
                e.copy->v[i] = part->ad->v[i];
            }
        }
    }
    return bytes;
}
