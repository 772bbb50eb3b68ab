/* inspect_internal.h - inside src/io: what kind of file a path names, for inspect, verify and diff; data sets in HDF5. */
#ifndef FL_INSPECT_INTERNAL_H
#define FL_INSPECT_INTERNAL_H
#include "checkpoint_internal.h"

typedef enum file_kind { KIND_CHECKPOINT, KIND_HDF5, KIND_SAFETENSORS } file_kind;
/* Looks at first and last bytes. A folder stands for the safetensors file in it; *real is that file (owned by the caller). FL_EFILE when it cannot
 * be read, FL_EUSAGE when it is none of these. */
fl_err file_kind_of(const char *path, file_kind *kind, char **real);

/* HDF5 files without a seal; to be run by h5_isolated */
fl_err dataset_inspect(const char *path, fl_text *t);
fl_err dataset_verify(const char *path, fl_text *t);

bool st_is_float(const fl_st_entry *e);
size_t st_count(const fl_st_entry *e);                       /* number of elements */
void st_shape(const fl_st_entry *e, char *text, size_t room); /* "3 x 4" */
#endif
