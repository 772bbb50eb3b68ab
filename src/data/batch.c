/* batch.c - samples to batches. Local; bits depend on the arguments only.
 *
 * The order of an epoch is a keyed bijection of 0..n-1, computed place by place, so that a step
 * costs its batch, not the client's n samples: an unbalanced Feistel network on w = ceil(log2 n)
 * bits (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), walked along its cycle
 * until the value is below n (fewer than two steps on average). */
#include "fedlora/data.h"
#include <string.h>

enum { FEISTEL_ROUNDS = 8 };

typedef struct epoch_order {
    uint64_t n, key[2];
    int high, low; /* bits of the two halves */
} epoch_order;

static epoch_order order_create(
    uint64_t seed, int client, int round, int stream, int epoch, uint64_t n)
{
    epoch_order o = {.n = n};
    uint32_t k[4];
    int bits = 0;

    fl_rng_block(
        seed, FL_RNG_BATCH, client, round, (uint64_t)(uint32_t)stream << 32 | (uint32_t)epoch, k);
    o.key[0] = (uint64_t)k[0] << 32 | k[1];
    o.key[1] = (uint64_t)k[2] << 32 | k[3];
    while ((n - 1) >> bits != 0) {
        bits++;
    }
    o.high = bits / 2;
    o.low = bits - o.high;
    return o;
}

/* finaliser of splitmix64: every output bit depends on every input bit */
static uint64_t mixed(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t order_at(const epoch_order *o, uint64_t i)
{
    uint64_t mask_high = ((uint64_t)1 << o->high) - 1, mask_low = ((uint64_t)1 << o->low) - 1;

    do {
        uint64_t high = i >> o->low, low = i & mask_low;

        for (uint64_t j = 0; j < FEISTEL_ROUNDS; j += 2) {
            low ^= mixed(mixed(high + o->key[0]) + o->key[1] + j) & mask_low;
            high ^= mixed(mixed(low + o->key[1]) + o->key[0] + j + 1) & mask_high;
        }
        i = high << o->low | low;
    } while (i >= o->n);
    return i;
}

int fl_steps_per_epoch(int64_t n, int batch)
{
    FL_REQUIRE(n >= 0 && batch > 0);
    return (int)((n + batch - 1) / batch);
}

int fl_batch_pick(uint64_t seed, int client, int round, int stream, int step, int batch, int64_t n,
    const uint32_t *list, uint32_t *sample)
{
    int steps = fl_steps_per_epoch(n, batch), count;
    int64_t at;
    epoch_order o;

    FL_REQUIRE(n > 0 && step >= 0);
    at = (int64_t)(step % steps) * batch;
    count = (int)FL_MIN((int64_t)batch, n - at);
    o = order_create(seed, client, round, stream, step / steps, (uint64_t)n);
    for (int i = 0; i < count; i++) {
        sample[i] = list[order_at(&o, (uint64_t)(at + i))];
    }
    return count;
}

void fl_batcher_create(fl_batcher *b, int nseq, int ntokens)
{
    FL_REQUIRE(nseq > 0 && ntokens > 0);
    memset(b, 0, sizeof *b);
    b->room_seq = nseq;
    b->room_tokens = ntokens;
    b->start = fl_alloc("batch", (size_t)nseq + 1, sizeof *b->start);
    b->token = fl_alloc("batch", (size_t)ntokens, sizeof *b->token);
    b->target = fl_alloc("batch", (size_t)ntokens, sizeof *b->target);
    b->batch = (fl_batch){.start = b->start, .token = b->token, .target = b->target};
}

void fl_batcher_destroy(fl_batcher *b)
{
    fl_free(b->start);
    fl_free(b->token);
    fl_free(b->target);
    memset(b, 0, sizeof *b);
}

void fl_batch_fill(
    fl_batcher *b, const fl_dataset *d, int n, const uint32_t *sample, int max_length)
{
    int at = 0;

    FL_REQUIRE(n >= 0 && n <= b->room_seq && max_length > 0);
    for (int i = 0; i < n; i++) {
        FL_REQUIRE(sample[i] < d->nsamples);
        uint64_t from = d->offset[sample[i]], inputs = d->offset[sample[i] + 1] - from - 1;
        int length = (int)FL_MIN(inputs, (uint64_t)max_length);

        FL_REQUIRE(length <= b->room_tokens - at);
        b->start[i] = at;
        for (int j = 0; j < length; j++, at++, from++) {
            b->token[at] = (int)d->token[from];
            b->target[at] = !d->mask || d->mask[from + 1] ? (int)d->token[from + 1] : -1;
        }
    }
    b->start[n] = at;
    b->batch = (fl_batch){n, at, b->start, b->token, b->target};
}
