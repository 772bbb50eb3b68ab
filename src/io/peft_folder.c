/* peft_folder - finds the two files of a PEFT adapter. PEFT saves an adapter called other than
 * "default" in a folder of that name inside the one asked for, so one level down is looked at too.
 */
#include "peft.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool folder_has_config(const char *dir)
{
    char *path = fl_path_join(dir, "adapter_config.json");
    bool here = fl_path_exists(path);

    fl_free(path);
    return here;
}

fl_err peft_folder_find(const char *dir, char **found)
{
    fl_text several = {0};
    struct dirent **entry = NULL;
    fl_err err = FL_OK;
    int nentries, n = 0;

    *found = fl_strdup(dir);
    if (folder_has_config(dir)) {
        return FL_OK;
    }
    nentries = scandir(dir, &entry, NULL, alphasort);
    if (nentries < 0) {
        return fl_fail(FL_EFILE, "%s: cannot be read: %s", dir, strerror(errno));
    }
    for (int i = 0; i < nentries; i++) {
        char *sub = fl_path_join(dir, entry[i]->d_name);

        if (entry[i]->d_name[0] != '.' && folder_has_config(sub)) {
            fl_text_add(&several, "%s%s", n++ ? ", " : "", entry[i]->d_name);
            fl_free(*found);
            *found = fl_strdup(sub);
        }
        fl_free(sub);
        free(entry[i]);
    }
    free(entry);
    if (n != 1) {
        err = n == 0 ? fl_fail(FL_EFILE, "%s: has no adapter_config.json", dir)
                     : fl_fail(FL_EFILE, "%s: holds several adapters (%s); name one of them", dir,
                           several.s);
    }
    fl_text_free(&several);
    return err;
}

fl_err peft_folder_weights(const char *dir, char **path)
{
    char *pickle = fl_path_join(dir, "adapter_model.bin");
    fl_err err = FL_OK;

    *path = fl_path_join(dir, "adapter_model.safetensors");
    if (!fl_path_exists(*path) && fl_path_exists(pickle)) {
        err = fl_fail(FL_EFILE,
            "%s: the weights are a Python pickle (adapter_model.bin), which is not read: save them "
            "as safetensors",
            dir);
    }
    fl_free(pickle);
    return err;
}

static fl_err folder_open_weights(const char *dir, fl_st *st)
{
    char *path;
    fl_err err = peft_folder_weights(dir, &path);

    if (err == FL_OK) {
        err = fl_st_open(path, st);
    }
    fl_free(path);
    return err;
}

fl_err fl_peft_load(const char *dir, const fl_model *m, fl_spaces *reg, fl_adapter **ad)
{
    char *folder = NULL, *path = NULL, *json = NULL;
    fl_st st = {.fd = -1};
    size_t n;
    fl_err err = peft_folder_find(dir, &folder);

    *ad = NULL;
    if (err == FL_OK) {
        path = fl_path_join(folder, "adapter_config.json");
        err = fl_file_read(path, &json, &n);
    }
    if (err == FL_OK) {
        err = folder_open_weights(folder, &st);
    }
    if (err == FL_OK) {
        err = fl_peft_parse(json, n, path, &st, m, reg, ad);
    }
    fl_st_close(&st);
    fl_free(json);
    fl_free(path);
    fl_free(folder);
    return err;
}
