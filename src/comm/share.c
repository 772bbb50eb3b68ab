/* share.c - one segment of memory per node, mapped by all its ranks. The room is reserved by
 * posix_fallocate before anyone maps: a mapping of a file with holes would end in SIGBUS at the
 * first write that finds no room. The name disappears as soon as all have the file open, so that
 * nothing is left behind however the job ends. */
#include "fedlora/comm.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { SHARE_TRIES = 10000, SHARE_NAME = 4096 };

/* what is to be made; equal on all ranks of a node once the name has been sent */
typedef struct share_plan {
    const char *dir;       /* borrowed; "" = through shm_open */
    const char *what;      /* borrowed; for sentences */
    size_t bytes;          /* at least 1 */
    char name[SHARE_NAME]; /* as given to shm_open or open; "" = not made */
    int fd;                /* -1 = not open */
} share_plan;

static const char *share_place(const share_plan *s)
{
    return *s->dir != '\0' ? s->dir : "/dev/shm";
}

static fl_err share_fail(const share_plan *s, const char *doing, int code)
{
    struct statvfs fs;
    char want[32], left[32], room[32];
    fl_text state = {0};

    if (statvfs(share_place(s), &fs) == 0) {
        double block = (double)fs.f_frsize;
        fl_text_add(&state, "%s of %s are free there",
            fl_bytes_text(block * (double)fs.f_bavail, left),
            fl_bytes_text(block * (double)fs.f_blocks, room));
    } else {
        fl_text_add(&state, "its free space cannot be read");
    }
    fl_fail(FL_EFILE,
        "cannot %s %s (%zu bytes) of memory shared on a node for %s in %s: %s; %s; make room, or "
        "let model.share_dir "
        "name a directory with more room on a disk or memory of the node",
        doing, fl_bytes_text((double)s->bytes, want), s->bytes, s->what, share_place(s),
        strerror(code), state.s);
    fl_text_free(&state);
    return FL_EFILE;
}

static int share_open(const share_plan *s, int flags)
{
    flags |= O_RDWR | O_CLOEXEC;
    return *s->dir != '\0' ? open(s->name, flags, 0600) : shm_open(s->name, flags, 0600);
}

static void share_unlink(const share_plan *s)
{
    if (*s->dir != '\0') {
        unlink(s->name);
    } else {
        shm_unlink(s->name);
    }
}

/* a new file under a name nobody has; pids may repeat in containers that share a directory, hence
 * the tries */
static fl_err share_make(share_plan *s)
{
    static unsigned counter;

    for (int i = 0; i < SHARE_TRIES; i++) {
        int n = snprintf(
            s->name, sizeof s->name, "%s/fedlora-share-%ld-%u", s->dir, (long)getpid(), counter++);
        if (n < 0 || (size_t)n >= sizeof s->name) {
            s->name[0] = '\0';
            return share_fail(s, "make a file for", ENAMETOOLONG);
        }
        s->fd = share_open(s, O_CREAT | O_EXCL);
        if (s->fd >= 0) {
            return FL_OK;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    int code = errno;
    s->name[0] = '\0';
    return share_fail(s, "make a file for", code);
}

/* makes the file and reserves its room; on failure nothing is left */
static fl_err share_reserve(share_plan *s)
{
    struct statvfs fs;
    int code;

    if (s->bytes > INT64_MAX) {
        return share_fail(s, "reserve", EFBIG);
    }
    /* asked first, so that a wish that cannot be met does not fill the memory of others for a
     * moment */
    if (statvfs(share_place(s), &fs) == 0 && fs.f_blocks > 0 &&
        s->bytes / fs.f_frsize > (uint64_t)fs.f_bfree) {
        return share_fail(s, "reserve", ENOSPC);
    }
    FL_TRY(share_make(s));
    do {
        code = posix_fallocate(s->fd, 0, (off_t)s->bytes);
    } while (code == EINTR); /* a signal that asks for a checkpoint must not end the start-up */
    if (code == 0) {
        return FL_OK;
    }
    share_unlink(s);
    s->name[0] = '\0';
    return share_fail(s, "reserve", code);
}

static fl_err share_map(share_plan *s, fl_share *share)
{
    if (s->fd < 0) {
        s->fd = share_open(s, 0);
    }
    if (s->fd < 0) {
        return share_fail(s, "open", errno);
    }
    void *x = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (x == MAP_FAILED) {
        return share_fail(s, "map", errno);
    }
    *share = (fl_share){x, s->bytes};
    return FL_OK;
}

fl_err fl_share_create(
    fl_ctx *ctx, const char *share_dir, const char *what, size_t bytes, fl_share *share)
{
    share_plan s = {.dir = share_dir != NULL ? share_dir : "",
        .what = what,
        .bytes = FL_MAX(bytes, 1),
        .fd = -1};

    *share = (fl_share){0};
    fl_err err = fl_agree(ctx, ctx->node_rank == 0 ? share_reserve(&s) : FL_OK);
    if (err == FL_OK) {
        MPI_Bcast(s.name, SHARE_NAME, MPI_CHAR, 0, ctx->node);
        fl_mpi_count(ctx, SHARE_NAME);
        err = fl_agree(ctx, share_map(&s, share));
    }
    if (ctx->node_rank == 0 && s.name[0] != '\0') {
        share_unlink(&s);
    }
    if (s.fd >= 0) {
        close(s.fd);
    }
    if (err != FL_OK) {
        fl_share_destroy(share);
        return err;
    }
    share->bytes = bytes;
    return FL_OK;
}

void fl_share_destroy(fl_share *share)
{
    if (share->x != NULL) {
        munmap(share->x, FL_MAX(share->bytes, 1));
    }
    *share = (fl_share){0};
}

void fl_share_fence(fl_ctx *ctx)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    MPI_Barrier(ctx->node);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
