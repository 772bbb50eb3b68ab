/* files_shim.c - LD_PRELOAD for tests: file systems as they may be.
 *   FILES_HOLD=PART   writes of helper threads to files with PART in their name wait, for ever
 *   FILES_FULL=PART   they find the disk full
 *   FILES_NO_FLOCK=1  flock is not there, as on Lustre mounted without it */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int meant(const char *variable, int fd)
{
    const char *part = getenv(variable);
    char link[64], path[4096];

    if (part == NULL || syscall(SYS_gettid) == getpid()) {
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);

    path[n > 0 ? n : 0] = 0;
    return strstr(path, part) != NULL;
}

ssize_t pwrite(int fd, const void *x, size_t n, off_t at)
{
    while (meant("FILES_HOLD", fd)) {
        usleep(10000);
    }
    if (meant("FILES_FULL", fd)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, x, n, at);
}

ssize_t pwrite64(int fd, const void *x, size_t n, off_t at)
{
    return pwrite(fd, x, n, at);
}

int flock(int fd, int operation)
{
    if (getenv("FILES_NO_FLOCK") != NULL) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_flock, fd, operation);
}
