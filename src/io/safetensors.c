/* safetensors - reading the container of Hugging Face weights: 8 bytes N (little-endian), N bytes
 * of JSON, data. A reader checks everything before it believes anything: N within the file, one
 * JSON object without duplicates, known types, offsets that cover the data exactly once, sizes
 * equal to shape times width (all in 64 bit). The writer sorts by name and pads the header to 8
 * bytes, so equal content gives equal bytes. Source: safetensors README "Format". */
#include "fedlora/io.h"
#include "file.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ST_HEADER_MOST = 100000000 };

/* width in bits; the format's own list */
static const struct {
    const char *name;
    unsigned bits;
} st_types[] = {{"BOOL", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8}, {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
    {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16}, {"I32", 32}, {"U32", 32}, {"F32", 32},
    {"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64}};

static unsigned st_bits(const char *dtype)
{
    for (size_t i = 0; i < FL_COUNT(st_types); i++) {
        if (strcmp(st_types[i].name, dtype) == 0) {
            return st_types[i].bits;
        }
    }
    return 0;
}

static uint64_t st_le64(const unsigned char *b)
{
    uint64_t x = 0;

    for (int i = 7; i >= 0; i--) {
        x = x << 8 | b[i];
    }
    return x;
}

/* a non-negative whole number below 2^63 */
static bool st_whole(const json_t *v, uint64_t *x)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
        return false;
    }
    *x = (uint64_t)json_integer_value(v);
    return true;
}

/* dtype, shape, data_offsets of one tensor; room: bytes of data in the file */
static fl_err st_entry(
    const json_t *v, const char *file, const char *name, uint64_t room, fl_st_entry *e)
{
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    const json_t *shape = json_object_get(v, "shape"), *at = json_object_get(v, "data_offsets");
    unsigned bits = dtype ? st_bits(dtype) : 0;
    uint64_t n = 1, begin, end;

    if (dtype == NULL || !json_is_array(shape) || !json_is_array(at) || json_array_size(at) != 2) {
        return fl_fail(
            FL_EFILE, "%s: tensor %.200s lacks dtype, shape or data_offsets", file, name);
    }
    if (bits == 0) {
        return fl_fail(FL_EFILE, "%s: tensor %.200s has the unknown type %.40s", file, name, dtype);
    }
    if (json_array_size(shape) > FL_COUNT(e->dims)) {
        return fl_fail(FL_EFILE, "%s: tensor %.200s has %zu dimensions; at most %zu are read", file,
            name, json_array_size(shape), FL_COUNT(e->dims));
    }
    for (size_t i = 0; i < json_array_size(shape); i++) {
        uint64_t d;

        if (!st_whole(json_array_get(shape, i), &d) || __builtin_mul_overflow(n, d, &n)) {
            return fl_fail(FL_EFILE, "%s: tensor %.200s has an impossible shape", file, name);
        }
        e->dims[e->ndims++] = (int64_t)d;
    }
    if (!st_whole(json_array_get(at, 0), &begin) || !st_whole(json_array_get(at, 1), &end) ||
        begin > end || end > room) {
        return fl_fail(FL_EFILE,
            "%s: the data_offsets of tensor %.200s lie outside the file's %llu bytes of data", file,
            name, (unsigned long long)room);
    }
    if (__builtin_mul_overflow(n, (uint64_t)bits, &n) || n % 8 != 0 || n / 8 != end - begin) {
        return fl_fail(FL_EFILE,
            "%s: tensor %.200s takes %llu bytes of data, which does not fit its shape and type %s",
            file, name, (unsigned long long)(end - begin), dtype);
    }
    e->name = fl_strdup(name);
    snprintf(e->dtype, sizeof e->dtype, "%s", dtype);
    e->begin = (size_t)begin;
    e->end = (size_t)end;
    return FL_OK;
}

static int st_by_place(const void *x, const void *y)
{
    const fl_st_entry *a = x, *b = y;

    if (a->begin != b->begin) {
        return a->begin < b->begin ? -1 : 1;
    }
    if (a->end != b->end) {
        return a->end < b->end ? -1 : 1;
    }
    return strcmp(a->name, b->name);
}

/* no hole, no overlap, nothing behind the last byte */
static fl_err st_covers(const fl_st *st, uint64_t room)
{
    uint64_t at = 0;

    for (int i = 0; i < st->n; i++) {
        if (st->entry[i].begin != at) {
            return fl_fail(FL_EFILE,
                "%s: tensor %.200s begins at byte %zu of the data, where byte %llu was expected",
                st->path, st->entry[i].name, st->entry[i].begin, (unsigned long long)at);
        }
        at = st->entry[i].end;
    }
    if (at != room) {
        return fl_fail(FL_EFILE,
            "%s: holds %llu bytes of data, but its tensors %llu; the file is damaged or cut short",
            st->path, (unsigned long long)room, (unsigned long long)at);
    }
    return FL_OK;
}

static fl_err st_metadata(const json_t *v, fl_st *st)
{
    const char *key;
    json_t *x;
    char *text;

    if (!json_is_object(v)) {
        return fl_fail(FL_EFILE, "%s: __metadata__ is not an object", st->path);
    }
    json_object_foreach((json_t *)v, key, x)
    {
        if (!json_is_string(x)) {
            return fl_fail(FL_EFILE, "%s: __metadata__ %.200s is not a string", st->path, key);
        }
    }
    text = json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS);
    FL_REQUIRE(text != NULL);
    st->metadata = fl_strdup(text);
    free(text);
    return FL_OK;
}

static fl_err st_header(const json_t *root, uint64_t room, fl_st *st)
{
    const char *key;
    json_t *v;

    st->entry = fl_alloc("safetensors header", json_object_size(root), sizeof *st->entry);
    json_object_foreach((json_t *)root, key, v)
    {
        if (strcmp(key, "__metadata__") == 0) {
            FL_TRY(st_metadata(v, st));
        } else {
            st->n++; /* first: close frees the name of a half-read entry */
            FL_TRY(st_entry(v, st->path, key, room, &st->entry[st->n - 1]));
        }
    }
    if (st->n > 0) {
        qsort(st->entry, (size_t)st->n, sizeof *st->entry, st_by_place);
    }
    return st_covers(st, room);
}

/* everything but the ownership of bytes; on error the caller closes st */
static fl_err st_parse(fl_st *st)
{
    uint64_t n = st->nbytes >= 8 ? st_le64(st->bytes) : 0;
    json_error_t why;
    json_t *root;
    fl_err err;

    if (st->nbytes < 8 || n > st->nbytes - 8) {
        return fl_fail(FL_EFILE,
            "%s: not a safetensors file, or cut short: %zu bytes cannot hold its header", st->path,
            st->nbytes);
    }
    if (n > ST_HEADER_MOST) {
        return fl_fail(FL_EFILE, "%s: a header of %llu bytes is more than the format allows",
            st->path, (unsigned long long)n);
    }
    if (n == 0 || st->bytes[8] != '{') {
        return fl_fail(
            FL_EFILE, "%s: not a safetensors file: its header does not start with {", st->path);
    }
    root = json_loadb((const char *)st->bytes + 8, (size_t)n, JSON_REJECT_DUPLICATES, &why);
    if (root == NULL) {
        return fl_fail(FL_EFILE, "%s: the header is not valid JSON: %s", st->path, why.text);
    }
    st->data = 8 + (size_t)n;
    err = json_is_object(root) ? st_header(root, st->nbytes - st->data, st)
                               : fl_fail(FL_EFILE, "%s: the header is not an object", st->path);
    json_decref(root);
    return err;
}

fl_err fl_st_parse(const unsigned char *bytes, size_t n, const char *name, fl_st *st)
{
    fl_err err;

    *st = (fl_st){.path = fl_strdup(name), .fd = -1, .bytes = bytes, .nbytes = n};
    err = st_parse(st);
    if (err != FL_OK) {
        fl_st_close(st);
    }
    return err;
}

fl_err fl_st_open(const char *path, fl_st *st)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat s;
    void *x = NULL;
    fl_err err;

    *st = (fl_st){.fd = -1};
    if (fd < 0 || fstat(fd, &s) != 0) {
        int why = errno;

        if (fd >= 0) {
            close(fd);
        }
        return fl_fail(FL_EFILE, "%s: cannot be read: %s", path, strerror(why));
    }
    *st = (fl_st){.path = fl_strdup(path), .fd = fd};
    if (!S_ISREG(s.st_mode)) {
        fl_st_close(st);
        return fl_fail(FL_EFILE, "%s: not a regular file", path);
    }
    if (s.st_size > 0) { /* an empty file cannot be mapped */
        x = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (x == MAP_FAILED) {
            err = fl_fail(FL_EFILE, "%s: cannot be mapped: %s", path, strerror(errno));
            fl_st_close(st);
            return err;
        }
    }
    st->bytes = x;
    st->nbytes = (size_t)s.st_size;
    err = st_parse(st);
    if (err != FL_OK) {
        fl_st_close(st);
    }
    return err;
}

void fl_st_close(fl_st *st)
{
    if (st->path != NULL && st->fd >= 0) { /* path NULL: never opened, or closed before */
        if (st->bytes) {
            munmap((void *)st->bytes, st->nbytes);
        }
        close(st->fd);
    }
    for (int i = 0; i < st->n; i++) {
        fl_free(st->entry[i].name);
    }
    fl_free(st->entry);
    fl_free(st->metadata);
    fl_free(st->path);
    *st = (fl_st){.fd = -1};
}

int fl_st_find(const fl_st *st, const char *name)
{
    for (int i = 0; i < st->n; i++) {
        if (strcmp(st->entry[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* IEEE binary16: sign, 5 bits of exponent (bias 15), 10 of fraction */
static double st_half(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double x = exponent == 0    ? ldexp(fraction, -24)
               : exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                                : ldexp(1024 + fraction, exponent - 25);

    return h & 0x8000 ? -x : x;
}

/* element i of little-endian data at b, which need not be aligned */
static double st_value(char kind, const unsigned char *b, size_t i)
{
    uint32_t bits = 0;
    uint64_t wide;
    float x;
    double y;

    switch (kind) {
    case 'd':
        wide = st_le64(b + 8 * i);
        memcpy(&y, &wide, sizeof y);
        return y;
    case 'h':
        return st_half((uint16_t)(b[2 * i] | b[2 * i + 1] << 8));
    case 'b': /* bfloat16: the upper half of a float */
        bits = (uint32_t)b[2 * i] << 16 | (uint32_t)b[2 * i + 1] << 24;
        break;
    default:
        for (int j = 3; j >= 0; j--) {
            bits = bits << 8 | b[4 * i + (size_t)j];
        }
    }
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* 'f' 'h' 'b' 'd', 0 = not read */
static char st_kind(const char *dtype)
{
    static const char *const name[] = {"F32", "F16", "BF16", "F64"};

    for (size_t i = 0; i < FL_COUNT(name); i++) {
        if (strcmp(dtype, name[i]) == 0) {
            return "fhbd"[i];
        }
    }
    return 0;
}

size_t fl_st_width(const char *dtype)
{
    return st_kind(dtype) == 0 ? 0 : st_bits(dtype) / 8;
}

size_t fl_st_convert(const char *dtype, const unsigned char *bytes, size_t n, fl_real *out)
{
    char kind = st_kind(dtype);

    FL_REQUIRE(kind != 0);
    for (size_t i = 0; i < n; i++) {
        out[i] = (fl_real)st_value(kind, bytes, i);
    }
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(out[i])) {
            return i;
        }
    }
    return n;
}

fl_err fl_st_read(const fl_st *st, int entry, size_t n, fl_real *out)
{
    FL_REQUIRE(entry >= 0 && entry < st->n);
    const fl_st_entry *e = &st->entry[entry];
    size_t width = fl_st_width(e->dtype), bad;

    if (width == 0) {
        return fl_fail(FL_EFILE,
            "%s: tensor %.200s is of type %s; F32, F16, BF16 and F64 are read: save it as one of "
            "them",
            st->path, e->name, e->dtype);
    }
    if ((e->end - e->begin) / width != n) {
        return fl_fail(FL_ESHAPE, "%s: tensor %.200s has %zu elements where %zu were expected",
            st->path, e->name, (e->end - e->begin) / width, n);
    }
    bad = fl_st_convert(e->dtype, st->bytes + st->data + e->begin, n, out);
    if (bad < n) {
        return fl_fail(FL_ENUM,
            "%s: tensor %.200s has a NaN, an infinity or a number beyond float at element %zu",
            st->path, e->name, bad);
    }
    return FL_OK;
}
