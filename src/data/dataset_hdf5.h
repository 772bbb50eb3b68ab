/* dataset_hdf5.h - shared by dataset_hdf5*.c, the only files of this layer that see HDF5. */
#ifndef FL_DATASET_HDF5_H
#define FL_DATASET_HDF5_H
#include "data_internal.h"
#include <hdf5.h>

enum { FL_H5_DEFLATE_MOST = 1100 }; /* zlib packs at most 1032 to 1 */

typedef struct fl_h5_reader {
    hid_t file;
    const char *name; /* borrowed, for messages */
    hsize_t bytes;    /* of the file */
} fl_h5_reader;

fl_err fl_h5_wrong(const fl_h5_reader *h, const char *what, const char *why);
/* Opens a data set of one axis; *n elements that the file can really hold. */
fl_err fl_h5_open(const fl_h5_reader *h, const char *what, hid_t *set, hsize_t *n);
/* /client_name to c->key_name, c->nkeys */
fl_err fl_h5_names(const fl_h5_reader *h, fl_corpus *c);
/* Without /client_name: keys are the distinct numbers of c->key in ascending order, named by
 * themselves. */
void fl_h5_names_from_numbers(fl_corpus *c);
#endif
