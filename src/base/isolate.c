/* isolate.c - a job in a child process: reading a damaged file may crash a library, and then only
 * the child dies. */
#include "fedlora/base.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_SECONDS = 600 }; /* of CPU time: a loop in the library ends too */

/* The child's message: the error code, then its sentences, a 0 byte, and the text. */
static void child_run(fl_isolated_job *job, const char *path, void *arg, int to)
{
    struct rlimit no_core = {0, 0}, cpu = {CHILD_SECONDS, CHILD_SECONDS};
    fl_text t = {0};

    setrlimit(RLIMIT_CORE, &no_core);
    setrlimit(RLIMIT_CPU, &cpu);
    fl_error_clear();
    fl_err err = job(path, arg, &t);
    unsigned char code = (unsigned char)err;
    const char *sentences = fl_error_text();
    fl_text all = {0};

    fl_text_bytes(&all, &code, 1);
    fl_text_bytes(&all, sentences, strlen(sentences) + 1);
    fl_text_bytes(&all, t.s, t.n);
    for (size_t done = 0; done < all.n;) {
        ssize_t put = write(to, all.s + done, all.n - done);

        if (put < 0 && errno != EINTR) {
            break;
        }
        done += put > 0 ? (size_t)put : 0;
    }
    _exit(0); /* no atexit handlers: MPI and HDF5 belong to the parent */
}

static fl_err child_result(const char *path, const fl_text *all, int status, fl_text *t)
{
    const char *end = all->n > 1 ? memchr(all->s + 1, 0, all->n - 1) : NULL;

    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || end == NULL ||
        (unsigned char)all->s[0] >= FL_NERRORS) {
        return fl_fail(
            FL_EFILE, "%s: the library that reads this file failed on it: it is damaged", path);
    }
    fl_err err = (fl_err)(unsigned char)all->s[0];

    if (t != NULL) {
        fl_text_bytes(t, end + 1, all->n - (size_t)(end + 1 - all->s));
    }
    return err == FL_OK ? FL_OK : fl_fail(err, "%s", all->s + 1);
}

fl_err fl_isolated(fl_isolated_job *job, const char *path, void *arg, fl_text *t)
{
    int ends[2], status = 0;
    fl_text all = {0};
    char piece[4096];

    if (pipe(ends) != 0) {
        return fl_fail(FL_EFILE, "%s: cannot make a pipe to read it: %s", path, strerror(errno));
    }
    fflush(NULL);
    pid_t child = fork();

    if (child < 0) {
        int code = errno;

        close(ends[0]);
        close(ends[1]);
        return fl_fail(FL_EFILE, "%s: cannot start a process to read it: %s", path, strerror(code));
    }
    if (child == 0) {
        close(ends[0]);
        child_run(job, path, arg, ends[1]);
    }
    close(ends[1]);
    for (ssize_t got = 1; got != 0;) {
        got = read(ends[0], piece, sizeof piece);
        if (got < 0 && errno != EINTR) {
            break;
        }
        fl_text_bytes(&all, piece, got > 0 ? (size_t)got : 0);
    }
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    fl_err err = child_result(path, &all, status, t);

    fl_text_free(&all);
    return err;
}
