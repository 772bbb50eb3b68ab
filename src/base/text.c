/* text.c - a growing string, the distance of two words, sizes in words. */
#include "fedlora/base.h"
#include <math.h>
#include <string.h>

/* room for n more bytes and the terminator */
static void text_reserve(fl_text *t, size_t n)
{
    size_t need;

    if (__builtin_add_overflow(t->n, n, &need) || need > PTRDIFF_MAX / 2) {
        fl_alloc("text", SIZE_MAX, 1); /* says so and stops */
    }
    need++;
    if (need > t->room) {
        t->room = FL_MAX(need, FL_MAX(2 * t->room, 64));
        t->s = fl_realloc("text", t->s, t->room, 1);
    }
}

void fl_text_add(fl_text *t, const char *format, ...)
{
    va_list ap, again;

    va_start(ap, format);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    FL_REQUIRE(n >= 0);
    text_reserve(t, (size_t)n);
    vsnprintf(t->s + t->n, (size_t)n + 1, format, again);
    va_end(again);
    t->n += (size_t)n;
}

void fl_text_bytes(fl_text *t, const void *x, size_t n)
{
    text_reserve(t, n);
    if (n > 0) {
        memcpy(t->s + t->n, x, n);
    }
    t->n += n;
    t->s[t->n] = '\0';
}

void fl_text_free(fl_text *t)
{
    fl_free(t->s);
    *t = (fl_text){0};
}

int fl_edit_distance(const char *a, const char *b)
{
    size_t na = strlen(a), nb = strlen(b);
    int *row =
        fl_alloc("edit distance", nb + 1, sizeof *row); /* distances of a[0..i) to every b[0..j) */

    for (size_t j = 0; j <= nb; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = FL_MIN(replace, 1 + FL_MIN(row[j], row[j - 1]));
        }
    }
    int distance = row[nb];
    fl_free(row);
    return distance;
}

const char *fl_bytes_text(double bytes, char buffer[32])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t i = 0;

    while (fabs(bytes) >= 1024.0 && i + 1 < FL_COUNT(unit)) {
        bytes /= 1024.0;
        i++;
    }
    snprintf(buffer, 32, i == 0 ? "%.0f %s" : "%.1f %s", bytes, unit[i]);
    return buffer;
}
