/* peft_set_read - the numbers of one site of one folder, piece by piece. A descriptor opened stays
 * open while few are; the others are opened for the piece and closed, so that a thousand folders
 * need neither a thousand descriptors nor their memory. */
#include "peft_set.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const peft_item *read_item(const fl_peft_set *s, int folder, int site)
{
    const peft_folder *x = &s->inside->folder[folder];
    int lo = 0, hi = x->nitems;

    FL_REQUIRE(folder >= 0 && folder < s->nfolders && site >= 0 && site < s->nsites);
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;

        if (x->item[mid].site < site) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < x->nitems && x->item[lo].site == site ? &x->item[lo] : NULL;
}

int fl_peft_set_r(const fl_peft_set *s, int folder, int site, double *scale)
{
    const peft_item *item = read_item(s, folder, site);

    if (scale) {
        *scale = item ? item->scale : 1;
    }
    return item ? item->r : 0;
}

static fl_err read_open(const fl_peft_set *s, int f, int *fd)
{
    struct peft_set_inside *x = s->inside;
    peft_folder *folder = &x->folder[f];
    struct stat now;

    *fd = folder->fd;
    if (*fd >= 0) {
        return FL_OK;
    }
    *fd = open(folder->file, O_RDONLY | O_CLOEXEC);
    if (*fd < 0 || fstat(*fd, &now) != 0) {
        fl_err err = fl_fail(FL_EFILE, "%s: cannot be read: %s", folder->file, strerror(errno));

        if (*fd >= 0) {
            close(*fd);
        }
        return err;
    }
    if ((size_t)now.st_size != folder->nbytes || now.st_mtim.tv_sec != folder->changed.tv_sec ||
        now.st_mtim.tv_nsec != folder->changed.tv_nsec) {
        close(*fd);
        return fl_fail(FL_EFILE, "%s: has changed since it was opened; start again", folder->file);
    }
    if (x->kept < x->kept_most) {
        x->kept++;
        folder->fd = *fd;
    }
    return FL_OK;
}

static fl_err read_bytes(const peft_folder *folder, int fd, size_t at, size_t n, unsigned char *to)
{
    while (n > 0) {
        ssize_t got = pread(fd, to, n, (off_t)at);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return fl_fail(FL_EFILE, "%s: cannot be read: %s", folder->file,
                got < 0 ? strerror(errno) : "it has become shorter");
        }
        to += got;
        at += (size_t)got;
        n -= (size_t)got;
    }
    return FL_OK;
}

/* one tensor; fd -1: from memory; name and part for the sentence */
static fl_err read_tensor(const fl_peft_set *s, int f, int fd, const peft_place *place, size_t n,
    const char *name, const char *part, fl_real *out)
{
    const peft_folder *folder = &s->inside->folder[f];
    const char *dtype = peft_type[place->type];
    size_t width = fl_st_width(dtype), at = folder->data + place->at;

    for (size_t done = 0; done < n;) {
        size_t k = FL_MIN(n - done, (size_t)PEFT_PIECE / width), bad;
        const unsigned char *bytes = folder->bytes ? folder->bytes + at : s->inside->piece;

        if (folder->bytes == NULL) {
            FL_TRY(read_bytes(folder, fd, at, k * width, s->inside->piece));
        }
        bad = fl_st_convert(dtype, bytes, k, out + done);
        if (bad < k) {
            return fl_fail(FL_ENUM,
                "%s: tensor %.200s%s has a NaN, an infinity or a number beyond float at element "
                "%zu",
                s->folder[f], name, part, done + bad);
        }
        done += k;
        at += k * width;
    }
    return FL_OK;
}

static void read_close(const fl_peft_set *s, int f, int fd)
{
    if (fd >= 0 && s->inside->folder[f].fd != fd) {
        close(fd);
    }
}

fl_err fl_peft_set_read(const fl_peft_set *s, int folder, int site, fl_real *a, fl_real *b)
{
    const peft_item *item = read_item(s, folder, site);
    const fl_peft_site *of = &s->site[site];
    int fd = -1;
    fl_err err = FL_OK;

    FL_REQUIRE(item != NULL);
    if (s->inside->folder[folder].bytes == NULL) {
        FL_TRY(read_open(s, folder, &fd));
    }
    err = read_tensor(s, folder, fd, &item->a, (size_t)item->r * (size_t)of->site.n, of->name,
        of->embedding ? ".lora_embedding_A" : ".lora_A.weight", a);
    if (err == FL_OK) {
        err = read_tensor(s, folder, fd, &item->b, (size_t)of->site.m * (size_t)item->r, of->name,
            of->embedding ? ".lora_embedding_B" : ".lora_B.weight", b);
    }
    read_close(s, folder, fd);
    return err;
}

fl_err fl_peft_set_read_extra(const fl_peft_set *s, int folder, int extra, fl_real *x)
{
    int fd = -1;
    fl_err err;

    FL_REQUIRE(folder >= 0 && folder < s->nfolders && extra >= 0 && extra < s->nextras);
    if (s->inside->folder[folder].bytes == NULL) {
        FL_TRY(read_open(s, folder, &fd));
    }
    err = read_tensor(s, folder, fd, &s->inside->folder[folder].extra[extra], s->extra[extra].n,
        s->extra[extra].name, "", x);
    read_close(s, folder, fd);
    return err;
}
