/* start.c - what every command does first: reads the deck once, checks that all ranks are the same
 * program, locks the output folder. */
#include "app.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef FL_GIT
#define FL_GIT "unknown"
#endif

fl_err app_deck_text(fl_ctx *ctx, const char *path, char **text, size_t *n)
{
    *text = NULL;
    *n = 0;
    FL_TRY_ALL(ctx, ctx->rank == 0 ? fl_file_read(path, text, n) : FL_OK);
    return fl_bcast_text(ctx, text, n);
}

/* a path from the working directory; as it is when it is absolute, empty or the working directory
 * is not to be had */
static void make_absolute(char **path)
{
    char here[4096];
    fl_text t = {0};

    if (**path == '\0' || **path == '/' || getcwd(here, sizeof here) == NULL) {
        return;
    }
    const char *rest = *path;

    while (strncmp(rest, "./", 2) == 0) {
        rest += 2;
    }
    fl_text_add(&t, "%s/%s", strcmp(here, "/") == 0 ? "" : here, rest);
    fl_free(*path);
    *path = fl_strdup(t.s);
    fl_text_free(&t);
}

void app_absolute(fl_deck *deck)
{
    make_absolute(&deck->run.out);
    make_absolute(&deck->model.path);
    make_absolute(&deck->model.share_dir);
    make_absolute(&deck->pretrain.out);
    if (deck->data.format != FL_FORMAT_SYNTHETIC && strcmp(deck->data.source, "synthetic") != 0) {
        make_absolute(&deck->data.source);
    }
}

fl_err app_deck(fl_ctx *ctx, const char *path, const app_args *args, fl_deck **deck)
{
    char *text = NULL;
    size_t n = 0;
    int nextra;
    const fl_section *extra = fl_method_sections(&nextra);
    fl_err err = path != NULL ? app_deck_text(ctx, path, &text, &n) : FL_OK;

    FL_TRY(err);
    err = fl_deck_parse(text, n, path, args->nsets, args->set, extra, nextra, deck);
    fl_free(text);
    FL_TRY_ALL(ctx, err);
    if (path != NULL) { /* else nothing is stored, and defaults are shown as they are */
        app_absolute(*deck);
    }
    fl_blas_threads((*deck)->blas.threads);
    return FL_OK;
}

char *app_versions(fl_ctx *ctx)
{
    fl_text t = {0};
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING], cpu[128];
    int n;

    MPI_Get_library_version(mpi, &n);
    mpi[strcspn(mpi, ",")] = '\0';
    app_cpu_name(cpu, sizeof cpu);
    fl_text_add(&t, "# fedlora %s, revision %s\n# %s; %s; %s\n# cpu %s; %d rank(s) on %d node(s)\n",
        FL_VERSION, FL_GIT, mpi, fl_hdf5_name(), fl_blas_name(), cpu, ctx->size, ctx->nnodes);
    return t.s;
}

fl_err app_check_ranks(fl_ctx *ctx)
{
    char *bytes = NULL;
    size_t n = 0;
    uint64_t binary = 0;

    if (fl_file_read("/proc/self/exe", &bytes, &n) == FL_OK) {
        binary = fl_hash(bytes, n, 0);
    }
    fl_error_clear();
    fl_free(bytes);
    if (!fl_same_everywhere(ctx, binary)) {
        return fl_fail(
            FL_EUSAGE, "the ranks run different builds of fedlora; start one binary everywhere");
    }
    if (!fl_same_everywhere(ctx, fl_hash_text(fl_blas_kernel()))) {
        return fl_fail(FL_EUSAGE,
            "the ranks' BLAS kernels differ (this one: %s), so their bits would; set "
            "OPENBLAS_CORETYPE to one kernel that all nodes have, "
            "for example OPENBLAS_CORETYPE=Haswell",
            fl_blas_kernel());
    }
    return FL_OK;
}

/* held as long as the descriptor stays open. fcntl works over NFS and is released when its
 * owner dies. */
static fl_err lock_folder(const char *out, int *lock_fd)
{
    char path[4096];
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    FL_TRY(fl_make_dirs(out));
    snprintf(path, sizeof path, "%s/.lock", out);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    if (fd < 0) {
        return fl_fail(FL_EFILE, "%s: %s; choose a folder that can be written with --out", path,
            strerror(errno));
    }
    for (int i = 0; fcntl(fd, F_SETLK, &lock) != 0; i++) {
        if (i == 300) {
            return fl_fail(FL_EFILE,
                "%s: another run has held this folder for 30 s; wait for it, or choose another "
                "--out",
                path);
        }
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    *lock_fd = fd;
    return FL_OK;
}

/* Every host must see the folder of rank 0: a folder local to each host is found out here, not by
 * the checkpoint that needs all of them. The file is new, so that no NFS client remembers that it
 * was not there; one that is slow gets 5 s. */
static fl_err folder_is_common(fl_ctx *ctx, const char *out)
{
    char name[64] = "";
    fl_text path = {0};
    fl_err err = FL_OK;

    if (ctx->rank == 0) {
        snprintf(name, sizeof name, ".seen-%lld-%ld", (long long)time(NULL), (long)getpid());
    }
    fl_bcast(ctx, 0, name, sizeof name);
    fl_text_add(&path, "%s/%s", out, name);
    if (ctx->rank == 0) {
        int fd = open(path.s, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

        if (fd < 0 || close(fd) != 0) {
            err = fl_fail(FL_EFILE, "%s: %s", path.s, strerror(errno));
        }
    }
    err = fl_agree(ctx, err);
    if (err == FL_OK) {
        bool seen = ctx->node_rank != 0 || access(path.s, F_OK) == 0;

        for (int i = 0; i < 50 && !seen; i++) {
            nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
            seen = access(path.s, F_OK) == 0;
        }
        err = fl_agree(ctx, seen ? FL_OK
                                 : fl_fail(FL_EFILE,
                                       "%s: this host does not see what rank 0 writes there; "
                                       "choose a folder on a file system of all hosts with --out",
                                       out));
    }
    if (ctx->rank == 0) {
        unlink(path.s);
    }
    fl_text_free(&path);
    return err;
}

fl_err app_lock_while(fl_ctx *ctx, const char *out, int *lock)
{
    *lock = -1;
    FL_TRY_ALL(ctx, ctx->rank == 0 ? lock_folder(out, lock) : FL_OK);
    return ctx->nnodes > 1 ? folder_is_common(ctx, out) : FL_OK;
}

fl_err app_lock(fl_ctx *ctx, const char *out)
{
    int lock; /* never closed */

    return app_lock_while(ctx, out, &lock);
}

static void on_signal(int number)
{
    (void)number;
    fl_stop_signals = fl_stop_signals + 1;
}

void app_catch_signals(void)
{
    const int numbers[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2};

    for (size_t i = 0; i < FL_COUNT(numbers); i++) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

        sigemptyset(&action.sa_mask);
        sigaction(numbers[i], &action, NULL);
    }
}
