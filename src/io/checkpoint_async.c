/* checkpoint_async.c - a checkpoint that is written while the run goes on.
 * In the foreground (collective, from memory to memory): the tables are agreed, rank 0 makes
 * PATH.tmp with header and small arrays, and copies what is left to write: large arrays, the base
 * if it was changed, and the clients' state, which the other ranks send it. In the background one
 * thread of rank 0 writes those copies to their places, seals, fsyncs and renames. The thread calls
 * the operating system and nothing else. MPI is not asked for more than MPI_THREAD_FUNNELED; HDF5
 * is not thread-safe and the run uses it meanwhile (metrics.h5); fl_alloc and fl_fail count and
 * record without locks. That is possible because the data sets are contiguous and have their places
 * once the header is written. What went wrong is kept as errno, and becomes a sentence when the run
 * comes back for it. */
#include "checkpoint_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { ASYNC_PIECE = 8 << 20 }; /* bytes a system call */

struct fl_checkpoint_job {
    bool here;        /* rank 0; the others hold an empty one */
    char *path, *tmp; /* owned */
    ck_place *place;  /* owned [nplaces], .x owned */
    int nplaces;
    h5_range *range; /* owned [nranges] */
    int nranges;
    char *piece; /* owned [H5_SEAL_PIECE] */
    bool threaded;
    pthread_t thread;
    /* written by the thread, read when `done` is set */
    h5_trouble trouble;
    double begin, end, bytes;
    atomic_bool done;
};

/* ---- the thread ---- */

static h5_trouble write_places(const fl_checkpoint_job *job)
{
    int fd = open(job->tmp, O_WRONLY | O_CLOEXEC), code = fd < 0 ? errno : 0;

    if (code != 0) {
        return (h5_trouble){code, "open it in the background"};
    }
    for (int i = 0; i < job->nplaces && code == 0; i++) {
        const ck_place *p = &job->place[i];

        for (size_t at = 0; at < p->bytes && code == 0;) {
            ssize_t put = pwrite(fd, (const char *)p->x + at,
                FL_MIN((size_t)ASYNC_PIECE, p->bytes - at), (off_t)(p->at + at));

            code = put < 0 && errno != EINTR ? errno : put == 0 ? EIO : 0;
            at += put > 0 ? (size_t)put : 0;
        }
    }
    if (close(fd) != 0 && code == 0) {
        code = errno;
    }
    return (h5_trouble){code, "write it in the background"};
}

static void *write_file(void *arg)
{
    fl_checkpoint_job *job = arg;
    h5_trouble trouble = write_places(job);

    if (trouble.code == 0) {
        trouble = h5_seal_quietly(job->tmp, job->nranges, job->range, job->piece);
    }
    if (trouble.code == 0) {
        job->bytes = (double)h5_file_bytes(job->tmp);
        trouble = h5_publish_quietly(job->tmp, job->path);
    } else {
        unlink(job->tmp); /* a half-written file would only take the space that was missing */
    }
    job->trouble = trouble;
    job->end = fl_now();
    atomic_store(&job->done, true);
    return NULL;
}

/* Signals stay with the thread that looks for them. No thread: the file is written here and now. */
static void start_thread(fl_checkpoint_job *job)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    job->threaded = pthread_create(&job->thread, NULL, write_file, job) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!job->threaded) {
        write_file(job);
    }
}

/* ---- the run ---- */

/* Takes over what rank 0's writer knows, and copies it. Returns the room for the clients' state,
 * which is still empty; NULL when there is none. */
static char *take_over(ck_writer *w, fl_checkpoint_job *job)
{
    char *clients = NULL;

    job->path = fl_strdup(w->path);
    job->tmp = fl_strdup(w->tmp);
    job->place = w->place;
    job->nplaces = w->nplaces;
    job->range = w->range;
    job->nranges = w->nranges;
    w->place = NULL;
    w->range = NULL;
    job->piece = fl_alloc("seal", H5_SEAL_PIECE, 1);
    for (int i = 0; i < job->nplaces; i++) {
        ck_place *p = &job->place[i];
        void *copy = fl_alloc("copy for the checkpoint", p->bytes, 1);

        if (p->x != NULL) {
            memcpy(copy, p->x, p->bytes);
        } else {
            clients = copy;
        }
        p->x = copy;
    }
    return clients;
}

/* Collective: every client's blob into rank 0's copy. */
static void bring_clients(ck_writer *w, char *to)
{
    size_t most = w->s->how.slab > 0 ? FL_MIN(w->s->how.slab, (size_t)CK_STAGE) : CK_STAGE;
    ck_blobs_out blobs;

    ck_choose_writers(w, 1);
    FL_REQUIRE(w->writer == 0);
    ck_blobs_begin(w, most, &blobs);
    for (size_t at = 0; at < blobs.bytes; at += most) {
        ck_blobs_next(&blobs, at, FL_MIN(most, blobs.bytes - at), to != NULL ? to + at : NULL);
    }
    ck_blobs_end(&blobs);
}

fl_err fl_checkpoint_begin(
    fl_ctx *ctx, const char *path, const fl_snapshot *s, fl_checkpoint_job **out)
{
    ck_writer w = {.ctx = ctx, .s = s, .path = path};
    double begin = fl_now();
    fl_err err = ck_prepare(&w);

    *out = NULL;
    if (err == FL_OK) {
        fl_checkpoint_job *job = fl_alloc("checkpoint in the background", 1, sizeof *job);
        char *clients = NULL;

        job->here = ctx->rank == 0;
        job->begin = begin;
        if (job->here) {
            clients = take_over(&w, job);
        }
        bring_clients(&w, clients);
        if (job->here) {
            start_thread(job);
        }
        *out = job;
    } else if (ctx->rank == 0) {
        unlink(w.tmp);
    }
    ck_writer_free(&w);
    return err;
}

bool fl_checkpoint_done(fl_ctx *ctx, const fl_checkpoint_job *job)
{
    char done = job->here ? atomic_load(&job->done) : 0;

    fl_bcast(ctx, 0, &done, 1);
    return done != 0;
}

/* Waits for the thread and frees the copies. */
static fl_err collect(fl_checkpoint_job *job, double result[2])
{
    fl_err err = FL_OK;

    if (job->here) {
        if (job->threaded) {
            pthread_join(job->thread, NULL);
        }
        result[0] = job->bytes;
        result[1] = job->end - job->begin;
        err = h5_fail_trouble(job->path, job->trouble);
        for (int i = 0; i < job->nplaces; i++) {
            fl_free((void *)(uintptr_t)job->place[i].x);
        }
        fl_free(job->place);
        fl_free(job->range);
        fl_free(job->piece);
        fl_free(job->path);
        fl_free(job->tmp);
    }
    fl_free(job);
    return err;
}

fl_err fl_checkpoint_end(fl_ctx *ctx, fl_checkpoint_job **job, double *bytes, double *seconds)
{
    double result[2] = {0, 0};

    fl_err err = fl_agree(ctx, collect(*job, result));

    *job = NULL;
    fl_bcast(ctx, 0, result, sizeof result);
    *bytes = result[0];
    *seconds = result[1];
    return err;
}

fl_err fl_checkpoint_join(fl_checkpoint_job **job)
{
    double result[2];
    fl_err err = *job != NULL ? collect(*job, result) : FL_OK;

    *job = NULL;
    return err;
}
