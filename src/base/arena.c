/* arena.c - memory of a round: pieces are cut from chunks and given back all at once. Chunks are
 * kept for the next round; when the arena becomes empty several chunks are merged into one of their
 * total size. */
#include "fedlora/base.h"
#include <string.h>

enum { ARENA_ALIGN = 64, ARENA_FIRST = 1 << 16, ARENA_DOUBLING = 1 << 26 };

typedef struct arena_chunk {
    char *x;      /* owned [room] */
    size_t room;  /* multiple of 64 */
    size_t used;  /* taken; chunks after the current one are unused */
    size_t dirty; /* bytes that were ever given out; the rest is still zero */
} arena_chunk;

struct fl_arena {
    char *label;        /* owned */
    arena_chunk *chunk; /* owned [n] */
    int n, now;         /* now: the chunk pieces are cut from (0 while n = 0) */
    size_t taken, peak; /* bytes */
    size_t wish;        /* room of the first chunk after a merge */
};

fl_arena *fl_arena_create(const char *label)
{
    fl_arena *a = fl_alloc("arena", 1, sizeof *a);

    a->label = fl_strdup(label);
    return a;
}

/* makes chunk i, beyond all pieces in use, one with at least `need` bytes */
static void arena_renew(fl_arena *a, int i, size_t need)
{
    size_t room = FL_MAX(need, FL_MAX(a->wish, ARENA_FIRST));

    if (i > 0) {
        /* the number of chunks stays small, and little is wasted */
        room = FL_MAX(room, FL_MIN(2 * a->chunk[i - 1].room, ARENA_DOUBLING));
    }
    if (i == a->n) {
        a->chunk = fl_realloc("arena chunks", a->chunk, (size_t)i + 1, sizeof *a->chunk);
        a->n++;
    } else {
        fl_free(a->chunk[i].x);
    }
    a->chunk[i] = (arena_chunk){fl_alloc(a->label, room, 1), room, 0, 0};
}

void *fl_arena_take(fl_arena *a, size_t n, size_t each)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, each, &bytes) || bytes > PTRDIFF_MAX - ARENA_ALIGN) {
        fl_alloc(a->label, n, each); /* says so and stops */
    }
    bytes = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (a->n == 0) {
        arena_renew(a, 0, bytes);
    } else if (a->chunk[a->now].room - a->chunk[a->now].used < bytes) {
        /* an unused current chunk is replaced, a used one is left behind */
        int next = a->now + (a->chunk[a->now].used > 0);
        if (next == a->n || a->chunk[next].room < bytes) {
            arena_renew(a, next, bytes);
        }
        a->now = next;
    }
    arena_chunk *c = &a->chunk[a->now];
    char *x = c->x + c->used;

    if (c->used < c->dirty) {
        memset(x, 0, FL_MIN(bytes, c->dirty - c->used));
    }
    c->used += bytes;
    c->dirty = FL_MAX(c->dirty, c->used);
    a->taken += bytes;
    a->peak = FL_MAX(a->peak, a->taken);
    return x;
}

fl_mark fl_arena_mark(const fl_arena *a)
{
    return (fl_mark){a->now, a->n > 0 ? a->chunk[a->now].used : 0};
}

void fl_arena_reset(fl_arena *a, fl_mark mark)
{
    if (a->n == 0) {
        FL_REQUIRE(mark.chunk == 0 && mark.used == 0);
        return;
    }
    FL_REQUIRE(mark.chunk >= 0 && mark.chunk <= a->now && mark.used <= a->chunk[mark.chunk].used);
    for (int i = mark.chunk; i <= a->now; i++) {
        size_t keep = i == mark.chunk ? mark.used : 0;
        a->taken -= a->chunk[i].used - keep;
        a->chunk[i].used = keep;
    }
    a->now = mark.chunk;
    if (a->taken == 0 && a->n > 1) {
        size_t total = 0;
        for (int i = 0; i < a->n; i++) {
            total += a->chunk[i].room;
            fl_free(a->chunk[i].x);
        }
        a->n = 0;
        a->now = 0;
        a->wish = total;
    }
}

size_t fl_arena_peak(const fl_arena *a)
{
    return a->peak;
}

void fl_arena_destroy(fl_arena **arena)
{
    fl_arena *a = *arena;

    if (a == NULL) {
        return;
    }
    for (int i = 0; i < a->n; i++) {
        fl_free(a->chunk[i].x);
    }
    fl_free(a->chunk);
    fl_free(a->label);
    fl_free(a);
    *arena = NULL;
}
