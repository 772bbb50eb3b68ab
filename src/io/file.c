/* file - plain files: read whole, write under a temporary name, sync, rename; directories. Local,
 * no MPI. */
#include "file.h"
#include "fedlora/io.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *fl_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    char *path = fl_alloc("path", n + m + 2, 1);

    memcpy(path, dir, n);
    if (slash) {
        path[n] = '/';
    }
    memcpy(path + n + slash, name, m);
    return path;
}

bool fl_path_exists(const char *path)
{
    struct stat s;

    return stat(path, &s) == 0;
}

fl_err fl_file_read(const char *path, char **bytes, size_t *n)
{
    struct stat s;
    size_t room = 0, at = 0;
    char *x = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *bytes = NULL;
    *n = 0;
    if (fd < 0 || fstat(fd, &s) != 0) {
        int why = errno;

        if (fd >= 0) {
            close(fd);
        }
        return fl_fail(FL_EFILE, "%s: cannot be read: %s", path, strerror(why));
    }
    room = s.st_size > 0 ? (size_t)s.st_size + 1 : 4096; /* pipes have no size: grow below */
    x = fl_alloc("file", room, 1);
    for (;;) {
        ssize_t got;

        if (at + 1 >= room) {
            room += room / 2 + 4096;
            x = fl_realloc("file", x, room, 1);
        }
        got = read(fd, x + at, room - at - 1);
        if (got == 0) {
            break;
        }
        if (got > 0) {
            at += (size_t)got;
        } else if (errno != EINTR) {
            int why = errno;

            close(fd);
            fl_free(x);
            return fl_fail(FL_EFILE, "%s: cannot be read: %s", path, strerror(why));
        }
    }
    close(fd);
    x[at] = 0;
    *bytes = x;
    *n = at;
    return FL_OK;
}

fl_err fl_out_begin(const char *path, fl_out *out)
{
    size_t n = strlen(path);

    out->path = fl_strdup(path);
    out->tmp = fl_alloc("path", n + 5, 1);
    memcpy(out->tmp, path, n);
    memcpy(out->tmp + n, ".tmp", 4);
    out->fd = open(out->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (out->fd < 0) {
        return fl_fail(FL_EFILE, "%s: cannot be created: %s", out->tmp, strerror(errno));
    }
    return FL_OK;
}

fl_err fl_out_put(fl_out *out, const void *bytes, size_t n)
{
    const char *x = bytes;

    while (n > 0) {
        ssize_t done = write(out->fd, x, FL_MIN(n, (size_t)1 << 30));

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return fl_fail(FL_EFILE, "%s: cannot be written: %s", out->tmp,
                done < 0 ? strerror(errno) : "nothing was accepted");
        }
        x += done;
        n -= (size_t)done;
    }
    return FL_OK;
}

fl_err fl_out_put_at(fl_out *out, const void *bytes, size_t n, size_t at)
{
    const char *x = bytes;

    while (n > 0) {
        ssize_t done = pwrite(out->fd, x, FL_MIN(n, (size_t)1 << 30), (off_t)at);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return fl_fail(FL_EFILE, "%s: cannot be written: %s", out->tmp,
                done < 0 ? strerror(errno) : "nothing was accepted");
        }
        x += done;
        at += (size_t)done;
        n -= (size_t)done;
    }
    return FL_OK;
}

/* a rename is on disk only when its directory is; file systems that cannot sync a directory
 * (EINVAL) are left alone */
static fl_err file_sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? fl_strdup(".") : slash == path ? fl_strdup("/") : fl_strdup(path);
    fl_err err = FL_OK;
    int fd;

    if (slash && slash != path) {
        dir[slash - path] = 0;
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP)) {
        err = fl_fail(FL_EFILE, "%s: cannot be synced: %s", dir, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    fl_free(dir);
    return err;
}

static void file_out_free(fl_out *out)
{
    fl_free(out->path);
    fl_free(out->tmp);
    *out = (fl_out){.fd = -1};
}

fl_err fl_out_commit(fl_out *out)
{
    int fd = out->fd;

    if (fsync(fd) != 0) {
        return fl_fail(FL_EFILE, "%s: cannot be synced: %s", out->tmp, strerror(errno));
    }
    out->fd = -1;
    if (close(fd) != 0) {
        return fl_fail(FL_EFILE, "%s: cannot be closed: %s", out->tmp, strerror(errno));
    }
    if (rename(out->tmp, out->path) != 0) {
        return fl_fail(
            FL_EFILE, "%s: cannot be renamed to %s: %s", out->tmp, out->path, strerror(errno));
    }
    FL_TRY(file_sync_directory(out->path));
    file_out_free(out);
    return FL_OK;
}

void fl_out_drop(fl_out *out)
{
    if (out->fd >= 0) {
        close(out->fd);
    }
    if (out->tmp) {
        unlink(out->tmp);
    }
    file_out_free(out);
}

fl_err fl_file_write(const char *path, const void *bytes, size_t n)
{
    fl_out out;
    fl_err err = fl_out_begin(path, &out);

    if (err == FL_OK) {
        err = fl_out_put(&out, bytes, n);
    }
    if (err == FL_OK) {
        err = fl_out_commit(&out);
    }
    if (err != FL_OK) {
        fl_out_drop(&out);
    }
    return err;
}

fl_err fl_make_dirs(const char *path)
{
    char *part = fl_strdup(path);
    fl_err err = FL_OK;
    struct stat s;

    for (char *at = part + (part[0] == '/'); err == FL_OK; at++) {
        char kept = *at;

        if (kept != '/' && kept != 0) {
            continue;
        }
        *at = 0;
        if (part[0] != 0 && mkdir(part, 0777) != 0 && errno != EEXIST) {
            /* a parent that exists but cannot be written is fine as long as the next step is */
            int why = errno;

            if (stat(part, &s) != 0 || !S_ISDIR(s.st_mode)) {
                err =
                    fl_fail(FL_EFILE, "%s: the directory cannot be made: %s", part, strerror(why));
            }
        }
        *at = kept;
        if (kept == 0) {
            break;
        }
    }
    if (err == FL_OK && (stat(path, &s) != 0 || !S_ISDIR(s.st_mode))) {
        err = fl_fail(FL_EFILE, "%s: is not a directory", path);
    }
    fl_free(part);
    return err;
}
