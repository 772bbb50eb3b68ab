/* h5.c - HDF5's error stack turned into one sentence, files without time stamps, and what the
 * system says about files. */
#include "h5.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- library ---- */

void h5_quiet(void)
{
    static bool done = false;

    if (!done) {
        /* HDF5 would flock every file it opens serially, and refuse to open it where that fails:
         * on Lustre mounted without flock, on NFS without a lock manager. We need no lock of it: a
         * run's folder is guarded by OUT/.lock (fcntl), a checkpoint is written under a name that
         * no reader takes, and published whole by a rename. So it is off, unless the user says
         * otherwise. dataset_hdf5.c does the same for the data. */
        setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
        H5open();
        done = true;
    }
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static void folder_of(const char *path, char *dir, size_t room)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL) {
        snprintf(dir, room, ".");
    } else if (slash == path) {
        snprintf(dir, room, "/");
    } else {
        snprintf(dir, room, "%.*s", (int)(slash - path), path);
    }
}

double h5_free_space(const char *path)
{
    char dir[4096];
    struct statvfs fs;

    folder_of(path, dir, sizeof dir);
    if (statvfs(dir, &fs) != 0 || fs.f_blocks == 0) {
        return -1;
    }
    return (double)fs.f_bavail * (double)fs.f_frsize;
}

static fl_err fail_full(const char *path, const char *doing)
{
    char free_text[32];
    double room = h5_free_space(path);

    if (room < 0) {
        return fl_fail(FL_EFILE, "%s: cannot %s: disk full", path, doing);
    }
    return fl_fail(
        FL_EFILE, "%s: cannot %s: disk full: %s free", path, doing, fl_bytes_text(room, free_text));
}

fl_err h5_fail_errno(const char *path, const char *doing, int code)
{
    if (code == ENOSPC || code == EDQUOT) {
        return fail_full(path, doing);
    }
    return fl_fail(FL_EFILE, "%s: cannot %s: %s", path, doing, strerror(code));
}

typedef struct story {
    char inner[400]; /* the message nearest to the cause */
    bool full;
} story;

static herr_t story_read(unsigned n, const H5E_error2_t *e, void *to)
{
    story *st = to;

    if (e->desc == NULL) {
        return 0;
    }
    if (n == 0) {
        snprintf(st->inner, sizeof st->inner, "%s", e->desc);
    }
    if (strstr(e->desc, "No space left") || strstr(e->desc, "NO_SPACE") ||
        strstr(e->desc, "quota")) {
        st->full = true;
    }
    return 0;
}

hid_t h5_hold_error(void)
{
    return H5Eget_current_stack();
}

void h5_give_error(hid_t held)
{
    H5Eset_current_stack(held); /* closes held */
}

fl_err h5_fail(const char *path, const char *doing)
{
    story st = {"unknown error", false};

    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, story_read, &st);
    H5Eclear2(H5E_DEFAULT);
    for (char *c = st.inner; *c != 0; c++) {
        if (*c == '\n') {
            *c = ' ';
        }
    }
    if (st.full) {
        return fail_full(path, doing);
    }
    return fl_fail(FL_EFILE, "%s: cannot %s: %s%s", path, doing, st.inner,
        strstr(st.inner, "lock file") != NULL ? "; set HDF5_USE_FILE_LOCKING=FALSE, or unset it"
                                              : "");
}

static h5_trouble file_fsync(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int code = 0;

    if (fd < 0) {
        return (h5_trouble){errno, "open it for fsync"};
    }
    if (fsync(fd) != 0) {
        code = errno;
    }
    if (close(fd) != 0 && code == 0) {
        code = errno;
    }
    return (h5_trouble){code, "write it to the disk (fsync)"};
}

fl_err h5_fail_trouble(const char *path, h5_trouble trouble)
{
    return trouble.code == 0 ? FL_OK : h5_fail_errno(path, trouble.doing, trouble.code);
}

fl_err h5_fsync(const char *path)
{
    return h5_fail_trouble(path, file_fsync(path));
}

static h5_trouble folder_fsync(const char *path)
{
    char dir[4096];
    int fd;

    folder_of(path, dir, sizeof dir);
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return (h5_trouble){errno, "open its folder"};
    }
    /* some network file systems cannot fsync a folder: EINVAL is their word for it */
    int code = fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP ? errno : 0;

    close(fd);
    return (h5_trouble){code, "write its folder to the disk (fsync)"};
}

h5_trouble h5_publish_quietly(const char *tmp, const char *path)
{
    h5_trouble trouble = file_fsync(tmp);

    if (trouble.code == 0 && rename(tmp, path) != 0) {
        trouble = (h5_trouble){errno, "rename the finished file to this name"};
    }
    if (trouble.code != 0) {
        unlink(tmp);
        return trouble;
    }
    return folder_fsync(path);
}

fl_err h5_publish(const char *tmp, const char *path)
{
    return h5_fail_trouble(path, h5_publish_quietly(tmp, path));
}

/* ---- files ---- */

int64_t h5_file_bytes(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

static hid_t create_on(hid_t fapl, const char *path)
{
    hid_t fcpl = H5Pcreate(H5P_FILE_CREATE);

    H5Pset_obj_track_times(fcpl, false);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl), error = h5_hold_error();

    H5Pclose(fapl);
    H5Pclose(fcpl);
    h5_give_error(error);
    return file;
}

hid_t h5_create(const char *path)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);

    /* 1.8 format: superblock and object headers carry checksums, and every reader since 2008 knows
     * it */
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    H5Pset_alignment(fapl, H5_SEAL_LARGE, 4096);
    return create_on(fapl, path);
}

hid_t h5_create_memory(void)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);

    /* the oldest format: from a superblock with a checksum, H5Fget_file_image clears a flag and
     * leaves the checksum wrong */
    H5Pset_fapl_core(fapl, 1 << 16, false);
    return create_on(fapl, "memory");
}

herr_t h5_image(hid_t file, void **image, size_t *n)
{
    ssize_t bytes = H5Fflush(file, H5F_SCOPE_GLOBAL) < 0 ? -1 : H5Fget_file_image(file, NULL, 0);

    if (bytes <= 0) {
        return -1;
    }
    *image = fl_alloc("HDF5 image", (size_t)bytes, 1);
    *n = (size_t)bytes;
    return H5Fget_file_image(file, *image, (size_t)bytes) == bytes ? 0 : -1;
}

hid_t h5_open(const char *path, bool writable)
{
    return H5Fopen(path, writable ? H5F_ACC_RDWR : H5F_ACC_RDONLY, H5P_DEFAULT);
}
