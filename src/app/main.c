/* main.c - fedlora COMMAND ...: finds the command, runs it on all ranks, prints what went wrong
 * once, leaves with the exit code of interface.md. Nothing is done after MPI_Finalize. */
#include "app.h"

#include <stdlib.h>
#include <string.h>

static const app_command *find(const char *name)
{
    int n;
    const app_command *all = app_commands(&n);

    for (int i = 0; i < n; i++) {
        if (strcmp(all[i].name, name) == 0) {
            return &all[i];
        }
    }
    return NULL;
}

static fl_err unknown(const char *name)
{
    int n, best = 1 << 20, at = 0;
    const app_command *all = app_commands(&n);

    for (int i = 0; i < n; i++) {
        int d = fl_edit_distance(name, all[i].name);

        if (d < best) {
            best = d;
            at = i;
        }
    }
    return fl_fail(FL_EUSAGE,
        "there is no command '%s'; did you mean %s? (fedlora --help lists them)", name,
        all[at].name);
}

static void say(fl_ctx *ctx, fl_text *t)
{
    if (ctx->rank == 0) {
        fputs(t->s, stdout);
    }
    fl_text_free(t);
}

static fl_err dispatch(fl_ctx *ctx, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    fl_text t = {0};
    app_args args;

    if (strcmp(name, "--version") == 0) {
        char *versions = app_versions(ctx);

        fl_text_add(&t, "%s", versions);
        fl_free(versions);
        say(ctx, &t);
        return FL_OK;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        app_help(NULL, &t);
        say(ctx, &t);
        return argc > 1 ? FL_OK : FL_EUSAGE;
    }
    const app_command *command = find(name);

    if (command == NULL) {
        return unknown(name);
    }
    FL_TRY(app_parse(argc - 2, argv + 2, command, &args));
    if (args.help) {
        app_help(command, &t);
        say(ctx, &t);
        return FL_OK;
    }
    return command->run(ctx, &args);
}

static int requeue_code(int argc, char **argv)
{
    for (int i = 1; i < argc - 1; i++) {
        if (strcmp(argv[i], "--requeue-code") == 0) {
            return atoi(argv[i + 1]);
        }
    }
    return fl_exit_code(FL_ESTOP);
}

static void print_errors(fl_ctx *ctx, fl_err err)
{
    char *text = fl_strdup(fl_error_text()), *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        fprintf(stderr, "fedlora: %s\n", line);
        if (ctx->log != NULL) {
            fprintf(ctx->log, "%s%s\n", err == FL_ESTOP ? "" : "error: ", line);
        }
    }
    fl_free(text);
}

static int complete(int argc, char **argv)
{
    fl_text t = {0};

    app_complete(argc - 2, argv + 2, &t);
    fputs(t.s != NULL ? t.s : "", stdout);
    fl_text_free(&t);
    return 0;
}

/* On several hosts Open MPI's own MPI-IO (OMPIO) makes and locks a file per rank beside every file
 * it opens, and waits for ever when one rank cannot (4.1: sharedfp/lockedfile). ROMIO, where Open
 * MPI has it, opens the one file; so it is preferred there. What the user chose stands. */
static void choose_mpi_io(void)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE"), *here = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"),
               *nodes = getenv("SLURM_STEP_NUM_NODES");
    bool several = size != NULL && here != NULL ? strcmp(size, here) != 0
                                                : nodes != NULL && strcmp(nodes, "1") != 0;

    if (several) {
        setenv("OMPI_MCA_io_ompio_priority", "1", 0);
    }
}

int main(int argc, char **argv)
{
    fl_ctx *ctx = NULL;
    int threads;

    if (argc > 1 && strcmp(argv[1], "--complete") == 0) {
        return complete(argc, argv);
    }

    choose_mpi_io();
    /* BLAS and checkpoint.async have threads, which make no MPI call */
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads);
    fl_err err = fl_ctx_create(MPI_COMM_WORLD, &ctx);

    if (err == FL_OK) {
        fl_stop_open(ctx);
        err = fl_agree(ctx, dispatch(ctx, argc, argv));
        fl_stop_close();
    }
    int code = err == FL_ESTOP ? requeue_code(argc, argv) : fl_exit_code(err);

    if (err != FL_OK && ctx->rank == 0) {
        print_errors(ctx, err);
    }
    fflush(stdout);
    fflush(stderr);
    fl_ctx_destroy(&ctx);
    MPI_Finalize();
    return code;
}
