/* seal.c - the seal behind an HDF5 file.
 * Layout behind the HDF5 bytes: n pairs (at, bytes) in ascending order, then n, the number of HDF5
 * bytes, the hash of all HDF5 bytes outside the n ranges, the hash of everything in the seal before
 * it, and eight characters; all uint64, little-endian. */
#include "h5.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char seal_mark[8] = "FLSEAL01";

typedef struct seal_tail {
    uint64_t n, bytes, rest, self;
    char mark[8];
} seal_tail;

/* Returns 0, or errno, or -1 at an early end of file. */
static int read_at(int fd, uint64_t at, size_t n, void *x)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)x + done, n - done, (off_t)(at + done));

        if (got < 0 && errno != EINTR) {
            return errno;
        }
        if (got == 0) {
            return -1;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

static int write_at(int fd, uint64_t at, size_t n, const void *x)
{
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(fd, (const char *)x + done, n - done, (off_t)(at + done));

        if (put < 0 && errno != EINTR) {
            return errno;
        }
        done += put > 0 ? (size_t)put : 0;
    }
    return 0;
}

/* Chained hash of the bytes in [0, bytes) outside the ranges (ascending, apart). piece:
 * H5_SEAL_PIECE bytes. */
static int hash_rest(
    int fd, uint64_t bytes, uint64_t n, const h5_range *range, char *piece, uint64_t *hash)
{
    uint64_t at = 0, h = bytes;
    int code = 0;

    for (uint64_t i = 0; i <= n && code == 0; i++) {
        uint64_t end = i < n ? range[i].at : bytes;

        while (at < end && code == 0) {
            size_t m = (size_t)FL_MIN(end - at, (uint64_t)H5_SEAL_PIECE);

            code = read_at(fd, at, m, piece);
            h = fl_hash(piece, m, h);
            at += m;
        }
        at = i < n ? range[i].at + range[i].bytes : at;
    }
    *hash = h;
    return code;
}

static uint64_t hash_self(const seal_tail *tail, const h5_range *range)
{
    uint64_t h = fl_hash(range, (size_t)tail->n * sizeof *range, 0);

    return fl_hash(tail, offsetof(seal_tail, self), h);
}

static int range_order(const void *a, const void *b)
{
    const h5_range *x = a, *y = b;

    return x->at < y->at ? -1 : x->at > y->at;
}

h5_trouble h5_seal_quietly(const char *path, int n, h5_range *range, char *piece)
{
    int fd = open(path, O_RDWR | O_CLOEXEC), code = fd < 0 ? errno : 0;
    int64_t bytes = code == 0 ? h5_file_bytes(path) : 0;

    if (code != 0) {
        return (h5_trouble){code, "open it to seal it"};
    }
    if (bytes < 0) {
        close(fd);
        return (h5_trouble){EIO, "tell its size to seal it"};
    }
    if (n > 0) {
        qsort(range, (size_t)n, sizeof *range, range_order);
    }
    seal_tail tail = {.n = (uint64_t)n, .bytes = (uint64_t)bytes};

    code = hash_rest(fd, tail.bytes, tail.n, range, piece, &tail.rest);
    tail.self = hash_self(&tail, range);
    memcpy(tail.mark, seal_mark, sizeof seal_mark);
    size_t nrange = (size_t)n * sizeof *range;

    code = code != 0 ? code : write_at(fd, tail.bytes, nrange, range);
    code = code != 0 ? code : write_at(fd, tail.bytes + nrange, sizeof tail, &tail);
    if (close(fd) != 0 && code == 0) {
        code = errno;
    }
    return (h5_trouble){code < 0 ? EIO : code, "seal it"};
}

fl_err h5_seal(const char *path, int n, h5_range *range)
{
    char *piece = fl_alloc("seal", H5_SEAL_PIECE, 1);
    fl_err err = h5_fail_trouble(path, h5_seal_quietly(path, n, range, piece));

    fl_free(piece);
    return err;
}

bool h5_sealed(const char *path)
{
    int64_t bytes = h5_file_bytes(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    seal_tail tail = {0};
    bool yes = fd >= 0 && bytes >= (int64_t)sizeof tail &&
               read_at(fd, (uint64_t)bytes - sizeof tail, sizeof tail, &tail) == 0 &&
               memcmp(tail.mark, seal_mark, sizeof seal_mark) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return yes;
}

static bool ranges_fit(const seal_tail *tail, const h5_range *range)
{
    uint64_t at = 0;

    for (uint64_t i = 0; i < tail->n; i++) {
        if (range[i].at < at || range[i].at > tail->bytes ||
            range[i].bytes > tail->bytes - range[i].at) {
            return false;
        }
        at = range[i].at + range[i].bytes;
    }
    return true;
}

static fl_err check_open(const char *path, int fd, uint64_t size)
{
    seal_tail tail;

    if (size < sizeof tail || read_at(fd, size - sizeof tail, sizeof tail, &tail) != 0 ||
        memcmp(tail.mark, seal_mark, sizeof seal_mark) != 0) {
        return fl_fail(FL_EFILE, "%s: no seal at its end: truncated, or not a checkpoint", path);
    }
    uint64_t before = size - sizeof tail;

    if (tail.n > before / sizeof(h5_range) || tail.bytes != before - tail.n * sizeof(h5_range)) {
        return fl_fail(
            FL_EFILE, "%s: the seal does not fit the file's length: truncated or damaged", path);
    }
    h5_range *range = fl_alloc("seal", (size_t)tail.n, sizeof *range);
    uint64_t rest = 0;
    int code = read_at(fd, tail.bytes, (size_t)tail.n * sizeof *range, range);
    bool whole = code == 0 && hash_self(&tail, range) == tail.self && ranges_fit(&tail, range);

    if (whole) {
        char *piece = fl_alloc("seal", H5_SEAL_PIECE, 1);

        code = hash_rest(fd, tail.bytes, tail.n, range, piece, &rest);
        fl_free(piece);
        whole = code == 0 && rest == tail.rest;
    }
    fl_free(range);
    if (code > 0) {
        return h5_fail_errno(path, "read it", code);
    }
    return whole ? FL_OK
                 : fl_fail(FL_EFILE,
                       "%s: the hash of its header and tables differs (bit rot or truncated write)",
                       path);
}

fl_err h5_seal_check(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return h5_fail_errno(path, "open it", errno);
    }
    int64_t bytes = h5_file_bytes(path);
    fl_err err = bytes < 0 ? fl_fail(FL_EFILE, "%s: not a regular file", path)
                           : check_open(path, fd, (uint64_t)bytes);

    close(fd);
    return err;
}
