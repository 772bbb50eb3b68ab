/* memory.c - the allocator: zeroed, 64-byte aligned, counted. No memory is the end of the program,
 * said with label and size. A block is laid out as [slack | header of 64 bytes | n bytes]; calloc
 * leaves large blocks untouched by the zeroing, so that a sparse table costs only the pages in use.
 */
#include "fedlora/base.h"
#include <stdlib.h>
#include <string.h>

enum { MEMORY_ALIGN = 64, MEMORY_EXTRA = 2 * MEMORY_ALIGN };

typedef struct memory_header {
    void *raw;     /* what the C library gave */
    size_t n;      /* bytes the caller asked for */
    uint64_t sign; /* set while the block lives */
} memory_header;

static const uint64_t memory_sign = 0x666564116f7261a1u;
static size_t memory_now, memory_peak;

_Noreturn static void memory_stop(const char *label, size_t n, size_t each)
{
    int on = 0, off = 0, rank = 0;
    char a[32], b[32];

    MPI_Initialized(&on);
    MPI_Finalized(&off);
    if (on && !off) {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    }
    fprintf(stderr,
        "fedlora: out of memory on rank %d: %s wants %zu x %zu bytes (%s), %s are in use; use more "
        "nodes or fewer "
        "ranks per node, or make the model or the cohort smaller\n",
        rank, label, n, each, fl_bytes_text((double)n * (double)each, a),
        fl_bytes_text((double)memory_now, b));
    fflush(stderr);
    if (on && !off) {
        MPI_Abort(MPI_COMM_WORLD, fl_exit_code(FL_EBUG));
    }
    exit(fl_exit_code(FL_EBUG));
}

static size_t memory_size(const char *label, size_t n, size_t each)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, each, &bytes) || bytes > PTRDIFF_MAX - MEMORY_EXTRA) {
        memory_stop(label, n, each);
    }
    return bytes;
}

/* first multiple of 64 that leaves room for the header */
static char *memory_start(char *raw)
{
    size_t gap = MEMORY_ALIGN - (uintptr_t)raw % MEMORY_ALIGN; /* 1..64 */

    return raw + gap + MEMORY_ALIGN;
}

static memory_header *memory_head(void *x)
{
    memory_header *h = (memory_header *)(void *)((char *)x - MEMORY_ALIGN);

    FL_REQUIRE(h->sign == memory_sign); /* not from fl_alloc, freed twice, or overwritten */
    return h;
}

static void *memory_enter(char *raw, size_t bytes)
{
    char *x = memory_start(raw);

    *(memory_header *)(void *)(x - MEMORY_ALIGN) = (memory_header){raw, bytes, memory_sign};
    memory_now += bytes;
    memory_peak = FL_MAX(memory_peak, memory_now);
    return x;
}

void *fl_alloc(const char *label, size_t n, size_t each)
{
    size_t bytes = memory_size(label, n, each);
    char *raw = calloc(1, bytes + MEMORY_EXTRA);

    if (raw == NULL) {
        memory_stop(label, n, each);
    }
    return memory_enter(raw, bytes);
}

void *fl_realloc(const char *label, void *old, size_t n, size_t each)
{
    if (old == NULL) {
        return fl_alloc(label, n, each);
    }
    size_t bytes = memory_size(label, n, each);
    memory_header h = *memory_head(old);
    size_t at = (size_t)((char *)old - (char *)h.raw);
    char *raw = realloc(h.raw, bytes + MEMORY_EXTRA);

    if (raw == NULL) {
        memory_stop(label, n, each);
    }
    memory_now -= h.n;
    /* the C library keeps 16-byte alignment only: the content may have to slide */
    if (memory_start(raw) != raw + at) {
        memmove(memory_start(raw), raw + at, FL_MIN(bytes, h.n));
    }
    return memory_enter(raw, bytes);
}

void fl_free(void *x)
{
    if (x == NULL) {
        return;
    }
    memory_header *h = memory_head(x);

    h->sign = 0;
    memory_now -= h->n;
    free(h->raw);
}

char *fl_strdup(const char *s)
{
    size_t n = strlen(s) + 1;

    return memcpy(fl_alloc("text", n, 1), s, n);
}

size_t fl_memory_now(void)
{
    return memory_now;
}

size_t fl_memory_peak(void)
{
    return memory_peak;
}

/* value in bytes of a line "key:   1234 kB" of a file in /proc; 0 if it is not there */
static size_t memory_proc(const char *path, const char *key)
{
    FILE *f = fopen(path, "r");
    char line[256];
    size_t kib = 0;

    if (f == NULL) {
        return 0;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            kib = strtoull(line + strlen(key), NULL, 10);
            break;
        }
    }
    fclose(f);
    return kib * 1024;
}

size_t fl_memory_resident(void)
{
    return memory_proc("/proc/self/status", "VmHWM:");
}

size_t fl_memory_private(void)
{
    return memory_proc("/proc/self/status", "RssAnon:");
}

size_t fl_memory_pss(void)
{
    return memory_proc("/proc/self/smaps_rollup", "Pss:");
}
