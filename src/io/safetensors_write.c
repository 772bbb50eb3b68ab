/* safetensors_write - writing the container (safetensors.c reads it): metadata first, tensors
 * sorted by name, the header padded with spaces to 8 bytes, F32 little-endian. Equal content gives
 * equal bytes. */
#include "fedlora/io.h"
#include "file.h"
#include <stdlib.h>
#include <string.h>

enum { ST_PIECE = 1 << 16 }; /* elements converted at a time */

static int st_by_name(const void *x, const void *y)
{
    const fl_st_out *const *a = x, *const *b = y;

    return strcmp((*a)->name, (*b)->name);
}

void fl_st_sort(int n, const fl_st_out **out)
{
    if (n > 0) {
        qsort(out, (size_t)n, sizeof *out, st_by_name);
    }
}

static size_t st_count(const fl_st_out *out)
{
    uint64_t n = 1;

    FL_REQUIRE(out->ndims >= 0 && (size_t)out->ndims <= FL_COUNT(out->dims));
    for (int i = 0; i < out->ndims; i++) {
        FL_REQUIRE(out->dims[i] >= 0 && !__builtin_mul_overflow(n, (uint64_t)out->dims[i], &n));
    }
    return (size_t)n;
}

static void st_quote(fl_text *t, const char *s)
{
    fl_text_add(t, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') {
            fl_text_add(t, "\\%c", *s);
        } else if ((unsigned char)*s < 0x20) {
            fl_text_add(t, "\\u%04x", (unsigned)*s);
        } else {
            fl_text_bytes(t, s, 1);
        }
    }
    fl_text_add(t, "\"");
}

void fl_st_header(
    int n, const fl_st_out *const *out, const char *dtype, const char *format, fl_text *t)
{
    const unsigned char zero[8] = {0};
    uint64_t at = 0, length;

    fl_text_bytes(t, zero, 8);
    fl_text_add(t, "{\"__metadata__\":{\"format\":");
    st_quote(t, format);
    fl_text_add(t, "}");
    for (int i = 0; i < n; i++) {
        uint64_t bytes = (uint64_t)fl_st_width(dtype) * (uint64_t)st_count(out[i]);

        FL_REQUIRE(i == 0 || strcmp(out[i - 1]->name, out[i]->name) != 0);
        fl_text_add(t, ",");
        st_quote(t, out[i]->name);
        fl_text_add(t, ":{\"dtype\":\"%s\",\"shape\":[", dtype);
        for (int j = 0; j < out[i]->ndims; j++) {
            fl_text_add(t, "%s%lld", j ? "," : "", (long long)out[i]->dims[j]);
        }
        fl_text_add(t, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
            (unsigned long long)(at + bytes));
        at += bytes;
    }
    fl_text_add(t, "}");
    while (t->n % 8 != 0) {
        fl_text_add(t, " ");
    }
    length = t->n - 8;
    for (int i = 0; i < 8; i++) {
        t->s[i] = (char)(length >> 8 * i & 255);
    }
}

static fl_err st_put(fl_out *file, const fl_st_out *out, unsigned char *piece)
{
    size_t n = st_count(out);

    for (size_t at = 0; at < n; at += ST_PIECE) {
        size_t k = FL_MIN(n - at, (size_t)ST_PIECE);

        for (size_t i = 0; i < k; i++) {
            float x = (float)out->x[at + i];
            uint32_t bits;

            memcpy(&bits, &x, sizeof bits);
            for (int j = 0; j < 4; j++) {
                piece[4 * i + (size_t)j] = (unsigned char)(bits >> 8 * j & 255);
            }
        }
        FL_TRY(fl_out_put(file, piece, 4 * k));
    }
    return FL_OK;
}

fl_err fl_st_write(const char *path, int n, const fl_st_out *out, const char *metadata_format)
{
    const fl_st_out **sorted = fl_alloc("safetensors order", (size_t)n, sizeof *sorted);
    unsigned char *piece = fl_alloc("safetensors piece", ST_PIECE, 4);
    fl_text header = {0};
    fl_out file;
    fl_err err = fl_out_begin(path, &file);

    for (int i = 0; i < n; i++) {
        sorted[i] = &out[i];
    }
    fl_st_sort(n, sorted);
    fl_st_header(n, sorted, "F32", metadata_format, &header);
    if (err == FL_OK) {
        err = fl_out_put(&file, header.s, header.n);
    }
    for (int i = 0; i < n && err == FL_OK; i++) {
        err = st_put(&file, sorted[i], piece);
    }
    if (err == FL_OK) {
        err = fl_out_commit(&file);
    }
    if (err != FL_OK) {
        fl_out_drop(&file);
    }
    fl_text_free(&header);
    fl_free(piece);
    fl_free(sorted);
    return err;
}
