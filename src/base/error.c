/* error.c - the sentences recorded on this rank, exit codes, the stop for bugs, and agreement
 * between ranks. */
#include "fedlora/base.h"
#include <stdlib.h>
#include <string.h>

/* a hostile deck must not make collecting quadratic in its length */
enum { ERROR_MAX_SENTENCES = 1000 };

static fl_text error_record; /* owned; sentences separated by \n */
static int error_count;      /* sentences in it */

static bool error_is_recorded(const char *sentence)
{
    size_t n = strlen(sentence);

    for (const char *at = error_record.s; at != NULL && *at != '\0';) {
        const char *hit = strstr(at, sentence);
        if (hit == NULL) {
            return false;
        }
        bool starts = hit == error_record.s || hit[-1] == '\n';
        if (starts && (hit[n] == '\0' || hit[n] == '\n')) {
            return true;
        }
        at = hit + 1;
    }
    return false;
}

static void error_record_sentence(const char *sentence)
{
    if (*sentence == '\0' || error_count > ERROR_MAX_SENTENCES || error_is_recorded(sentence)) {
        return;
    }
    if (error_count == ERROR_MAX_SENTENCES) {
        sentence = "further mistakes are not listed";
    }
    fl_text_add(&error_record, "%s%s", error_record.n > 0 ? "\n" : "", sentence);
    error_count++;
}

fl_err fl_fail(fl_err err, const char *format, ...)
{
    va_list ap;
    char small[512], *s = small;

    FL_REQUIRE(err > FL_OK && err < FL_NERRORS);
    /* into memory of its own first: an argument may be the recorded text itself */
    va_start(ap, format);
    int n = vsnprintf(small, sizeof small, format, ap);
    va_end(ap);
    FL_REQUIRE(n >= 0);
    if ((size_t)n >= sizeof small) {
        s = fl_alloc("error sentence", (size_t)n + 1, 1);
        va_start(ap, format);
        vsnprintf(s, (size_t)n + 1, format, ap);
        va_end(ap);
    }
    error_record_sentence(s);
    if (s != small) {
        fl_free(s);
    }
    return err;
}

const char *fl_error_text(void)
{
    return error_record.s != NULL ? error_record.s : "";
}

void fl_error_clear(void)
{
    fl_text_free(&error_record);
    error_count = 0;
}

void fl_error_set(const char *text)
{
    char *copy = fl_strdup(text); /* text may be the record itself */

    fl_error_clear();
    if (*copy != '\0') {
        fl_text_bytes(&error_record, copy, strlen(copy));
        error_count = 1;
        for (const char *c = copy; *c != '\0'; c++) {
            error_count += *c == '\n';
        }
    }
    fl_free(copy);
}

int fl_exit_code(fl_err err)
{
#define AS_CODE(name, exit_code, text) [name] = exit_code,
    static const int code[FL_NERRORS] = {FL_ERRORS(AS_CODE)};

    return err >= FL_OK && err < FL_NERRORS ? code[err] : code[FL_EBUG];
}

void fl_bug(const char *file, int line, const char *what)
{
    int on = 0, off = 0, rank = 0;

    MPI_Initialized(&on);
    MPI_Finalized(&off);
    if (on && !off) {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    }
    fflush(stdout);
    fprintf(stderr, "fedlora: bug on rank %d at %s:%d: %s; please report this line\n", rank, file,
        line, what);
    fflush(stderr);
    if (on && !off) {
        MPI_Abort(MPI_COMM_WORLD, fl_exit_code(FL_EBUG));
    }
    exit(fl_exit_code(FL_EBUG));
}

/* every line of text with "rank R: " before it; host: "" or the name to say after the rank */
static char *error_prefixed(const char *text, int rank, const char *host)
{
    fl_text t = {0};

    for (const char *line = text; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        fl_text_add(
            &t, "%srank %d%s%s: ", t.n > 0 ? "\n" : "", rank, *host != '\0' ? " on " : "", host);
        fl_text_bytes(&t, line, n);
        line += n + (line[n] == '\n');
    }
    return t.s;
}

/* The failing case of fl_agree: code and sentences of rank `from` become everybody's. */
static fl_err error_spread(fl_ctx *ctx, fl_err err, int from)
{
    const char *mine = fl_error_text();
    uint64_t head[2] = {(uint64_t)err, strlen(mine)};

    FL_REQUIRE(head[1] < INT32_MAX); /* the number of sentences is bounded */
    MPI_Bcast(head, 2, MPI_UINT64_T, from, ctx->world);
    char *text = fl_alloc("agreed error", (size_t)head[1] + 1, 1);
    if (ctx->rank == from) {
        memcpy(text, mine, (size_t)head[1]);
    }
    MPI_Bcast(text, (int)head[1], MPI_CHAR, from, ctx->world);
    char host[MPI_MAX_PROCESSOR_NAME] = "";
    if (ctx->nnodes > 1) { /* "no room in /dev/shm" helps only with the name of the host */
        int n;
        MPI_Get_processor_name(host, &n);
        MPI_Bcast(host, sizeof host, MPI_CHAR, from, ctx->world);
    }
    int same = err != FL_OK && strcmp(text, mine) == 0;
    MPI_Allreduce(MPI_IN_PLACE, &same, 1, MPI_INT, MPI_LAND, ctx->world);
    if (!same && *text != '\0') {
        char *prefixed = error_prefixed(text, from, host);
        fl_free(text);
        text = prefixed;
    }
    fl_error_set(text);
    fl_free(text);
    fl_mpi_count(ctx, (double)head[1] + 20);
    return (fl_err)head[0];
}

fl_err fl_agree(fl_ctx *ctx, fl_err err)
{
    int lowest;

    FL_REQUIRE(err >= FL_OK && err < FL_NERRORS);
    if (ctx->size == 1) {
        return err;
    }
    int mine = err == FL_OK ? ctx->size : ctx->rank;
    MPI_Allreduce(&mine, &lowest, 1, MPI_INT, MPI_MIN, ctx->world);
    fl_mpi_count(ctx, sizeof mine);
    return lowest == ctx->size ? FL_OK : error_spread(ctx, err, lowest);
}
