/* file.h - shared inside src/io: writing a file piece by piece under a temporary name, reading JSON
 * that nobody trusts. */
#ifndef FL_IO_FILE_H
#define FL_IO_FILE_H
#include "fedlora/io.h"
#include <jansson.h>

/* A file on its way: PATH.tmp until fl_out_commit has synced and renamed it. Errors: FL_EFILE;
 * after any error, and only then, the caller calls fl_out_drop, which removes the temporary file.
 */
typedef struct fl_out {
    char *path, *tmp; /* owned */
    int fd;           /* -1 = closed */
} fl_out;
fl_err fl_out_begin(const char *path, fl_out *out);
fl_err fl_out_put(fl_out *out, const void *bytes, size_t n);
fl_err fl_out_put_at(fl_out *out, const void *bytes, size_t n, size_t at);
fl_err fl_out_commit(
    fl_out *out); /* fsync, rename, fsync of the directory; out is empty afterwards */
void fl_out_drop(fl_out *out);

/* "dir/name", owned by the caller (fl_free) */
char *fl_path_join(const char *dir, const char *name);

/* One JSON object; duplicates, other types, bad UTF-8 and anything behind it are refused (FL_EDECK,
 * `name` in the sentence). *root owned by the caller (json_decref). */
fl_err fl_json_object(const char *json, size_t n, const char *name, json_t **root);
/* Members; absent or null gives `otherwise`. Wrong type or outside lo..hi: FL_EDECK naming file and
 * key. */
fl_err fl_json_int(
    const json_t *o, const char *key, const char *name, int otherwise, int lo, int hi, int *x);
fl_err fl_json_real(const json_t *o, const char *key, const char *name, double otherwise, double lo,
    double hi, double *x);
fl_err fl_json_bool(const json_t *o, const char *key, const char *name, bool otherwise, bool *x);
/* *x borrowed from o, or `otherwise` */
fl_err fl_json_text(
    const json_t *o, const char *key, const char *name, const char *otherwise, const char **x);
bool fl_json_given(const json_t *o, const char *key); /* present and not null */
fl_err fl_json_write(
    const char *path, const json_t *root); /* indent 2, sorted keys, final newline */

/* ---- parts of safetensors ---- */
size_t fl_st_width(const char *dtype); /* bytes of a number, 0 = a type that is not read */
/* n little-endian numbers of a type that is read, at any address; returns the first that is NaN, infinite or beyond float, n = none */
size_t fl_st_convert(const char *dtype, const unsigned char *bytes, size_t n, fl_real *out);
/* Adds 8 bytes of length and the header of tensors that follow one another as in out [n], which is sorted by name; padded so that the
 * data begin at a multiple of 8. The numbers themselves (out->x) are not looked at. */
void fl_st_sort(int n, const fl_st_out **out); /* by name */
void fl_st_header(int n, const fl_st_out *const *out, const char *dtype, const char *format, fl_text *t);

/* config.json of the model into an existing folder, for transformers 4 and 5 */
fl_err fl_hf_config_write(const char *dir, const fl_model *m);
#endif
