/* peft_set - opens many PEFT adapter folders as one set of sites: the union of their modules,
 * sorted by name, so that it does not depend on the order of the folders. The sum of what all
 * folders adapt is meaningful only if a name means one matrix; whatever suggests that it does not
 * is an error that names both folders. */
#include "peft_set.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SET_MISTAKES = 8 }; /* folders with mistakes that are reported together */

static fl_err set_finish(fl_peft_set *s)
{
    struct peft_set_inside *x = s->inside;

    for (int f = 0; f < s->nfolders; f++) {
        x->spelling = x->spelling == 0 ? x->folder[f].spelling : x->spelling;
        x->bare4 = x->bare4 || x->folder[f].bare4;
        s->nrslora += x->folder[f].rslora;
    }
    for (int i = 0; i < PEFT_NTYPES; i++) {
        s->dtype = x->types == FL_BIT(i) ? peft_type[i] : s->dtype;
    }
    peft_config_notes(s);
    FL_TRY(peft_set_prefixes(s));
    peft_set_sites(s);
    FL_TRY(peft_set_extras(s));
    peft_names_free(&x->sites);
    peft_names_free(&x->extras);
    fl_free(x->site);
    fl_free(x->extra);
    x->site = x->extra = NULL;
    return FL_OK;
}

/* ---- opening ---- */
static fl_peft_set *set_create(int n, const fl_peft_options *options)
{
    fl_peft_set *s = fl_alloc("adapters", 1, sizeof *s);
    struct rlimit files = {0};

    s->nfolders = n;
    s->folder = fl_alloc("adapters", (size_t)n, sizeof *s->folder);
    s->inside = fl_alloc("adapters", 1, sizeof *s->inside);
    s->inside->options = options ? *options : (fl_peft_options){0};
    s->inside->folder = fl_alloc("adapters", (size_t)n, sizeof *s->inside->folder);
    s->inside->piece = fl_alloc("adapter piece", PEFT_PIECE, 1);
    for (int f = 0; f < n; f++) {
        s->inside->folder[f].fd = -1;
    }
    /* a part of what the process may have open; others need some */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        s->inside->kept_most = (int)FL_MIN(files.rlim_cur / 4, (rlim_t)1024);
    }
    return s;
}

static fl_err set_open_folder(fl_peft_set *s, int f, const char *dir)
{
    peft_folder *folder = &s->inside->folder[f];
    char *path = NULL, *json = NULL;
    fl_st st = {.fd = -1};
    struct stat status;
    size_t n;
    fl_err err = peft_folder_find(dir, &s->folder[f]);

    if (err == FL_OK) {
        path = fl_path_join(s->folder[f], "adapter_config.json");
        err = fl_file_read(path, &json, &n);
    }
    if (err == FL_OK) {
        err = peft_folder_weights(s->folder[f], &folder->file);
    }
    if (err == FL_OK) {
        err = fl_st_open(folder->file, &st);
    }
    if (err == FL_OK && fstat(st.fd, &status) != 0) {
        err = fl_fail(FL_EFILE, "%s: cannot be read: %s", folder->file, strerror(errno));
    }
    if (err == FL_OK) {
        folder->changed = status.st_mtim;
        err = peft_set_add(s, f, json, n, path, &st);
    }
    fl_st_close(&st);
    fl_free(json);
    fl_free(path);
    return err;
}

fl_err fl_peft_set_open(
    int n, const char *const *dir, const fl_peft_options *options, fl_peft_set **set)
{
    fl_peft_set *s;
    fl_err err = FL_OK;
    int mistakes = 0;

    *set = NULL;
    if (n < 1) {
        return fl_fail(FL_EUSAGE, "no adapter folder was given");
    }
    s = set_create(n, options);
    for (int f = 0; f < n && mistakes < SET_MISTAKES; f++) {
        fl_err one = set_open_folder(s, f, dir[f]);

        mistakes += one != FL_OK;
        err = err == FL_OK ? one : err;
        if (one != FL_OK && f == 0) {
            break; /* the others are compared with it */
        }
    }
    if (err == FL_OK) {
        err = set_finish(s);
    }
    if (err != FL_OK) {
        fl_peft_set_close(&s);
    }
    *set = s;
    return err;
}

fl_err fl_peft_set_parse(
    int n, const fl_peft_source *source, const fl_peft_options *options, fl_peft_set **set)
{
    fl_peft_set *s = set_create(n, options);
    fl_err err = FL_OK;

    FL_REQUIRE(n > 0);
    for (int f = 0; f < n && err == FL_OK; f++) {
        const fl_peft_source *from = &source[f];

        s->folder[f] = fl_strdup(from->name);
        s->inside->folder[f].bytes = from->st->bytes;
        s->inside->folder[f].file = fl_strdup(from->st->path);
        err = peft_set_add(s, f, from->json, from->n, from->name, from->st);
    }
    if (err == FL_OK) {
        err = set_finish(s);
    }
    if (err != FL_OK) {
        fl_peft_set_close(&s);
    }
    *set = s;
    return err;
}

void fl_peft_set_close(fl_peft_set **set)
{
    fl_peft_set *s = *set;

    *set = NULL;
    if (s == NULL) {
        return;
    }
    for (int f = 0; f < s->nfolders; f++) {
        peft_folder *folder = &s->inside->folder[f];

        if (folder->fd >= 0) {
            close(folder->fd);
        }
        fl_free(s->folder[f]);
        fl_free(folder->file);
        fl_free(folder->item);
        fl_free(folder->extra);
        fl_free(folder->extra_of);
        fl_free(folder->found);
    }
    for (int j = 0; s->site && j < s->nsites; j++) {
        fl_free(s->site[j].name);
    }
    for (int j = 0; s->extra && j < s->nextras; j++) {
        fl_free(s->extra[j].name);
    }
    peft_names_free(&s->inside->sites);
    peft_names_free(&s->inside->extras);
    fl_free(s->inside->site);
    fl_free(s->inside->extra);
    fl_free(s->inside->folder);
    fl_free(s->inside->piece);
    json_decref(s->inside->config);
    json_decref(s->inside->heads);
    fl_free(s->inside);
    fl_free(s->folder);
    fl_free(s->site);
    fl_free(s->extra);
    fl_text_free(&s->notes);
    fl_free(s);
}
