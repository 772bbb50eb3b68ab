/* inspect_internal.h - inside src/io: what kind of file a path names, for inspect, verify and diff;
 * data sets in HDF5. */
#ifndef FL_INSPECT_INTERNAL_H
#define FL_INSPECT_INTERNAL_H
#include "checkpoint_internal.h"

typedef enum file_kind { KIND_CHECKPOINT, KIND_HDF5, KIND_SAFETENSORS } file_kind;
/* Looks at first and last bytes. A folder stands for the safetensors file in it; *real is that file
 * (owned by the caller). FL_EFILE when it cannot be read, FL_EUSAGE when it is none of these. */
fl_err file_kind_of(const char *path, file_kind *kind, char **real);

/* what to do with each kind; HDF5 files without a seal are read in a child process */
typedef struct kind_functions {
    fl_err (*checkpoint)(const char *path, fl_text *t);
    fl_isolated_job *hdf5;
    fl_err (*safetensors)(const char *path, fl_text *t);
} kind_functions;
fl_err by_file_kind(const char *path, const kind_functions *by, fl_text *t);

/* HDF5 files without a seal */
fl_err dataset_inspect(const char *path, void *arg, fl_text *t);
fl_err dataset_verify(const char *path, void *arg, fl_text *t);

bool st_is_float(const fl_st_entry *e);
size_t st_count(const fl_st_entry *e);                        /* number of elements */
void st_shape(const fl_st_entry *e, char *text, size_t room); /* "3 x 4" */

/* ---- diff ---- */
typedef struct diff_report {
    fl_text first; /* sentence on the first difference; empty = none yet */
    fl_text rows;
} diff_report;
typedef struct diff_pair {
    const void *a, *b; /* borrowed [n] */
    fl_array_type type;
    size_t n;
    size_t ncolumns;  /* of a table; 1 = plain */
    const bool *skip; /* [ncolumns] columns not compared; NULL = none */
} diff_pair;
void diff_note(diff_report *r, const char *field, const char *how);
void diff_note_number(diff_report *r, const char *field, long long a, long long b);
void diff_compare(
    diff_report *r, const char *field, const diff_pair *v); /* notes nothing when equal */
fl_err diff_checkpoints(diff_report *r, const char *a, const char *b);
#endif
