/* store.c - the state of clients between rounds: one blob each, at the home rank of the client. A
 * client that never took part costs one empty table entry. Homes and hosts are both monotone in the
 * client id, so whatever is gathered in rank order is in the order of ids. */
#include "comm_internal.h"
#include "fedlora/comm.h"
#include <string.h>

typedef struct store_entry {
    void *x; /* owned [n]; NULL = no state */
    size_t n;
} store_entry;

struct fl_store {
    fl_ctx *ctx; /* borrowed */
    int nclients;
    int first, nhere;   /* ids at home here: first .. first + nhere - 1 */
    store_entry *entry; /* owned [nhere] */
    int *mine;          /* owned [room]; ids with state, ascending */
    int nmine, room;
    size_t bytes; /* in blobs */
};

static const uint64_t store_not_kept = UINT64_MAX; /* in place of a size */

fl_store *fl_store_create(fl_ctx *ctx, int nclients)
{
    fl_store *s = fl_alloc("client store", 1, sizeof *s);

    FL_REQUIRE(nclients >= 0);
    s->ctx = ctx;
    s->nclients = nclients;
    s->first = fl_home_first(nclients, ctx->size, ctx->rank);
    s->nhere = fl_home_first(nclients, ctx->size, ctx->rank + 1) - s->first;
    s->entry = fl_alloc("client table", (size_t)s->nhere, sizeof *s->entry);
    return s;
}

void fl_store_destroy(fl_store **store)
{
    fl_store *s = *store;

    if (s == NULL) {
        return;
    }
    for (int i = 0; i < s->nmine; i++) {
        fl_free(s->entry[s->mine[i] - s->first].x);
    }
    fl_free(s->entry);
    fl_free(s->mine);
    fl_free(s);
    *store = NULL;
}

static store_entry *store_entry_of(const fl_store *s, int id)
{
    FL_REQUIRE(id >= s->first && id - s->first < s->nhere);
    return &s->entry[id - s->first];
}

/* first place in mine[] with an id >= the one asked for */
static int store_place(const fl_store *s, int id)
{
    int low = 0, high = s->nmine;

    while (low < high) {
        int middle = low + (high - low) / 2;
        if (s->mine[middle] < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void store_list(fl_store *s, int id)
{
    int at = store_place(s, id);

    if (s->nmine == s->room) {
        s->room = FL_MAX(64, 2 * s->room);
        s->mine = fl_realloc("client list", s->mine, (size_t)s->room, sizeof *s->mine);
    }
    memmove(s->mine + at + 1, s->mine + at, (size_t)(s->nmine - at) * sizeof *s->mine);
    s->mine[at] = id;
    s->nmine++;
}

static void store_unlist(fl_store *s, int id)
{
    int at = store_place(s, id);

    FL_REQUIRE(at < s->nmine && s->mine[at] == id);
    s->nmine--;
    memmove(s->mine + at, s->mine + at + 1, (size_t)(s->nmine - at) * sizeof *s->mine);
}

/* takes ownership of x; n = 0 empties the entry */
static void store_set(fl_store *s, int id, void *x, size_t n)
{
    store_entry *e = store_entry_of(s, id);

    if (e->x == NULL && n > 0) {
        store_list(s, id);
    } else if (e->x != NULL && n == 0) {
        store_unlist(s, id);
    }
    s->bytes = s->bytes - e->n + n;
    fl_free(e->x);
    if (n == 0) {
        fl_free(x);
        x = NULL;
    }
    *e = (store_entry){x, n};
}

/* A list is ascending and in range, its blocks cover it. */
static bool store_list_is_valid(const fl_store *s, int n, const int *id, const int *first)
{
    for (int i = 0; i < n; i++) {
        if (id[i] < (i > 0 ? id[i - 1] + 1 : 0) || id[i] >= s->nclients) {
            return false;
        }
    }
    for (int r = 0; r < s->ctx->size; r++) {
        if (first[r] > first[r + 1]) {
            return false;
        }
    }
    return n >= 0 && first[0] == 0 && first[s->ctx->size] == n;
}

/* positions [*begin, *end) of the list whose clients are at home here */
static void store_home_range(const fl_store *s, int n, const int *id, int *begin, int *end)
{
    int i = 0;

    while (i < n && id[i] < s->first) {
        i++;
    }
    *begin = i;
    while (i < n && id[i] - s->first < s->nhere) {
        i++;
    }
    *end = i;
}

/* Sends size[i], i in [begin, end), each to rank[i - begin] (ascending); returns what arrived here,
 * in list order: owned, `expected` of them. */
static uint64_t *store_sizes(
    fl_store *s, int count, const uint64_t *size, const int *rank, int expected)
{
    size_t nranks = (size_t)s->ctx->size, total = 0;
    size_t *nsend = fl_alloc("client sizes", 2 * nranks, sizeof *nsend), *ngot = nsend + nranks;
    void *got;

    for (int i = 0; i < count; i++) {
        nsend[rank[i]] += sizeof *size;
    }
    fl_exchange(s->ctx, size, nsend, &got, ngot);
    for (size_t r = 0; r < nranks; r++) {
        total += ngot[r];
    }
    FL_REQUIRE(total == (size_t)expected * sizeof *size); /* else the lists differ between ranks */
    fl_free(nsend);
    return got;
}

fl_err fl_store_fetch(
    fl_store *s, int n, const int *id, const int *first, void **blob, size_t *bytes)
{
    int me = s->ctx->rank, begin, end, from = first[me], to = first[me + 1];
    fl_requests q = {0};

    FL_REQUIRE(store_list_is_valid(s, n, id, first));
    store_home_range(s, n, id, &begin, &end);
    uint64_t *size = fl_alloc("client sizes", (size_t)(end - begin), sizeof *size);
    int *host = fl_alloc("client hosts", (size_t)(end - begin), sizeof *host);
    for (int i = begin; i < end; i++) {
        size[i - begin] = store_entry_of(s, id[i])->n;
        host[i - begin] = fl_layout_owner(s->ctx->size, first, i);
    }
    uint64_t *coming = store_sizes(s, end - begin, size, host, to - from);

    for (int i = from; i < to; i++) {
        int home = fl_home(s->nclients, s->ctx->size, id[i]);
        bytes[i] = (size_t)coming[i - from];
        blob[i] = bytes[i] > 0 ? fl_alloc("client state", bytes[i], 1) : NULL;
        if (home == me && bytes[i] > 0) {
            memcpy(blob[i], store_entry_of(s, id[i])->x, bytes[i]);
        } else {
            fl_comm_irecv(s->ctx, &q, blob[i], bytes[i], home);
        }
    }
    for (int i = begin; i < end; i++) {
        const store_entry *e = store_entry_of(s, id[i]);
        if (host[i - begin] != me) {
            fl_comm_isend(s->ctx, &q, e->x, e->n, host[i - begin]);
        }
    }
    fl_comm_wait(&q);
    fl_free(coming);
    fl_free(host);
    fl_free(size);
    return FL_OK;
}

fl_err fl_store_return(fl_store *s, int n, const int *id, const int *first, void **blob,
    size_t *bytes, const bool *keep)
{
    int me = s->ctx->rank, begin, end, from = first[me], to = first[me + 1];
    fl_requests q = {0};

    FL_REQUIRE(store_list_is_valid(s, n, id, first));
    store_home_range(s, n, id, &begin, &end);
    uint64_t *size = fl_alloc("client sizes", (size_t)(to - from), sizeof *size);
    int *home = fl_alloc("client homes", (size_t)(to - from), sizeof *home);
    for (int i = from; i < to; i++) {
        size[i - from] = keep == NULL || keep[i] ? bytes[i] : store_not_kept;
        home[i - from] = fl_home(s->nclients, s->ctx->size, id[i]);
    }
    uint64_t *coming = store_sizes(s, to - from, size, home, end - begin);
    void **new = fl_alloc("client states", (size_t)(end - begin), sizeof *new);

    for (int i = begin; i < end; i++) {
        int host = fl_layout_owner(s->ctx->size, first, i);
        uint64_t arriving = coming[i - begin];
        if (host != me && arriving != store_not_kept && arriving > 0) {
            new[i - begin] = fl_alloc("client state", (size_t)arriving, 1);
            fl_comm_irecv(s->ctx, &q, new[i - begin], (size_t)arriving, host);
        }
    }
    for (int i = from; i < to; i++) {
        if (size[i - from] == store_not_kept) {
            continue;
        }
        if (home[i - from] == me) {
            new[i - begin] = blob[i]; /* changes hands without a copy */
            blob[i] = NULL;
        } else {
            fl_comm_isend(s->ctx, &q, blob[i], bytes[i], home[i - from]);
        }
    }
    fl_comm_wait(&q);
    for (int i = begin; i < end; i++) {
        if (coming[i - begin] != store_not_kept) {
            store_set(s, id[i], new[i - begin], (size_t)coming[i - begin]);
        }
    }
    for (int i = from; i < to; i++) {
        fl_free(blob[i]);
        blob[i] = NULL;
        bytes[i] = 0;
    }
    fl_free(new);
    fl_free(coming);
    fl_free(home);
    fl_free(size);
    return FL_OK;
}

uint64_t fl_store_digest(fl_store *s)
{
    uint64_t sum = 0;

    for (int i = 0; i < s->nmine; i++) {
        const store_entry *e = store_entry_of(s, s->mine[i]);
        sum += fl_hash(e->x, e->n, (uint64_t)s->mine[i]);
    }
    return fl_total_hash(s->ctx, sum);
}

int64_t fl_store_count(fl_store *s)
{
    return fl_total_int(s->ctx, s->nmine);
}

int fl_store_mine(const fl_store *s, int i, int *id, const void **blob, size_t *bytes)
{
    if (i >= 0 && i < s->nmine) {
        const store_entry *e = store_entry_of(s, s->mine[i]);
        if (id != NULL) {
            *id = s->mine[i];
        }
        if (blob != NULL) {
            *blob = e->x;
        }
        if (bytes != NULL) {
            *bytes = e->n;
        }
    }
    return s->nmine;
}

void fl_store_put(fl_store *s, int id, const void *blob, size_t bytes)
{
    void *copy = NULL;

    if (bytes > 0) {
        copy = memcpy(fl_alloc("client state", bytes, 1), blob, bytes);
    }
    store_set(s, id, copy, bytes);
}

size_t fl_store_bytes(const fl_store *s)
{
    return sizeof *s + (size_t)s->nhere * sizeof *s->entry + (size_t)s->room * sizeof *s->mine +
           s->bytes;
}
