/* checkpoint_list.c - the checkpoints of a folder: round-NNNNNN.h5, newest first, and what an
 * interrupted write left behind. */
#include "fedlora/io.h"
#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct entry {
    long round;
    char *path; /* owned */
    bool stale; /* an unfinished .tmp */
} entry;

/* The round of "round-000020.h5", six digits or more without needless zeros; -1 = another name. */
static long round_of(const char *name, bool *stale)
{
    size_t digits;
    const char *rest;

    if (strncmp(name, "round-", 6) != 0) {
        return -1;
    }
    digits = strspn(name + 6, "0123456789");
    rest = name + 6 + digits;
    if (digits < 6 || digits > 10 || (digits > 6 && name[6] == '0')) {
        return -1;
    }
    /* ".h5.tmp-NUMBERS.lock" is what MPI-IO keeps beside a file that several hosts have open */
    *stale = strncmp(rest, ".h5.tmp", 7) == 0 && (rest[7] == '\0' || rest[7] == '-');
    return *stale || strcmp(rest, ".h5") == 0 ? strtol(name + 6, NULL, 10) : -1;
}

static int newest_first(const void *a, const void *b)
{
    const entry *x = a, *y = b;

    return x->round > y->round ? -1 : x->round < y->round;
}

static int scan(const char *dir, entry **list)
{
    DIR *d = opendir(dir);
    int n = 0, room = 0;

    *list = NULL;
    if (d == NULL) {
        return 0;
    }
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        bool stale = false;
        long round = round_of(e->d_name, &stale);
        size_t length = strlen(dir) + strlen(e->d_name) + 2;

        if (round < 0) {
            continue;
        }
        if (n == room) {
            room = room > 0 ? 2 * room : 16;
            *list = fl_realloc("checkpoint list", *list, (size_t)room, sizeof **list);
        }
        (*list)[n] = (entry){round, fl_alloc("path", length, 1), stale};
        snprintf((*list)[n++].path, length, "%s/%s", dir, e->d_name);
    }
    closedir(d);
    if (n > 0) {
        qsort(*list, (size_t)n, sizeof **list, newest_first);
    }
    return n;
}

int fl_checkpoint_list(const char *dir, char ***paths)
{
    entry *list;
    int n = scan(dir, &list), kept = 0;

    *paths = fl_alloc("checkpoint list", (size_t)n, sizeof **paths);
    for (int i = 0; i < n; i++) {
        if (list[i].stale) {
            fl_free(list[i].path);
        } else {
            (*paths)[kept++] = list[i].path;
        }
    }
    fl_free(list);
    return kept;
}

void fl_checkpoint_prune_upto(const char *dir, int keep, int round)
{
    entry *list;
    int n = scan(dir, &list), kept = 0;

    for (int i = 0; i < n; i++) {
        /* what is newer was skipped as damaged, or passed over by --resume FILE; it must not push
         * out what was written since */
        bool counts = list[i].round <= round;

        if (list[i].stale || (counts && kept == keep)) {
            unlink(list[i].path);
        } else {
            kept += counts;
        }
        fl_free(list[i].path);
    }
    fl_free(list);
}

void fl_checkpoint_prune(const char *dir, int keep)
{
    fl_checkpoint_prune_upto(dir, keep, INT_MAX);
}
