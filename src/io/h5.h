/* h5.h - inside src/io: small helpers over HDF5 and the seal that lets a damaged file be refused
 * before HDF5 sees it. */
#ifndef FL_H5_H
#define FL_H5_H
#include "fedlora/io.h"
#include <hdf5.h>

/* ---- library ---- */
void h5_quiet(void); /* HDF5 prints no error stacks; advisory locks off (the run holds OUT/.lock).
                        Before any other call. */
/* FL_EFILE with one sentence: "PATH: cannot DOING: innermost HDF5 message"; a full disk is named
 * with the free space. */
fl_err h5_fail(const char *path, const char *doing);
/* Every call of HDF5 forgets the errors of the one before: what must be closed before h5_fail is
 * closed between these two. */
hid_t h5_hold_error(void);
void h5_give_error(hid_t held);
/* The same for system calls: strerror(code). */
fl_err h5_fail_errno(const char *path, const char *doing, int code);
/* What a system call refused: errno (0 = nothing) and the words for it. Functions that return it use
 * no memory and record no sentence, so that a thread may call them. */
typedef struct h5_trouble {
    int code;
    const char *doing; /* static text */
} h5_trouble;
fl_err h5_fail_trouble(const char *path, h5_trouble trouble); /* FL_OK for code 0 */
double h5_free_space(const char *path); /* bytes free for this user where path lies; -1 = unknown */
fl_err h5_fsync(const char *path);
/* fsync tmp, rename to path, fsync the directory. On failure tmp is removed. */
fl_err h5_publish(const char *tmp, const char *path);
h5_trouble h5_publish_quietly(const char *tmp, const char *path);

/* ---- files, serial ---- hid < 0 = failed */
hid_t h5_create(const char *path); /* no time stamps: equal contents give equal bytes */
hid_t h5_open(const char *path, bool writable);
hid_t h5_create_memory(void);                         /* a file that never touches the disk .. */
herr_t h5_image(hid_t file, void **image, size_t *n); /* .. and its bytes, owned by the caller */
int64_t h5_file_bytes(const char *path);              /* -1 = cannot stat */

/* ---- writing ---- negative = failed */
herr_t h5_put_text(hid_t obj, const char *name, const char *text);
herr_t h5_put_u64(hid_t obj, const char *name, uint64_t x);
herr_t h5_put_int(hid_t obj, const char *name, int64_t x);
/* New contiguous data set [n] with its groups and the attributes description, unit, axes; space
 * allocated, not filled. */
hid_t h5_dataset(hid_t file, const char *name, hid_t type, size_t n, const char *what,
    const char *unit, const char *axes);
/* A scalar string of fixed length, written, with description and xxh3. */
herr_t h5_string(hid_t file, const char *name, const char *text, const char *what);
/* Elements [first, first + n) of a 1-d data set; n may be 0 in collective calls. dxpl: H5P_DEFAULT
 * or collective. */
herr_t h5_write(hid_t set, hid_t mem, hid_t dxpl, size_t first, size_t n, const void *x);
herr_t h5_read(hid_t set, hid_t mem, size_t first, size_t n, void *x);

/* ---- reading what others wrote ---- false = absent or of another kind */
bool h5_get_text(hid_t obj, const char *name, char *text,
    size_t room); /* cut to room - 1; fixed or variable length */
bool h5_get_u64(hid_t obj, const char *name, uint64_t *x);
bool h5_get_int(hid_t obj, const char *name, int64_t *x);
char *h5_get_string(hid_t file, const char *name,
    size_t limit); /* scalar fixed-length string; owned by the caller; NULL = none */
/* Opens a data set whose bytes lie in one piece inside the file; says its size. hid < 0 = absent or
 * not so. */
hid_t h5_open_flat(
    hid_t file, const char *name, int64_t file_bytes, fl_array_type *type, size_t *n);
bool h5_exists(hid_t file, const char *name);            /* every link on the way exists */
typedef void (*h5_visitor)(void *to, const char *name);  /* name without the leading '/' */
herr_t h5_visit(hid_t file, h5_visitor visit, void *to); /* every data set, in the order of names */

size_t h5_type_bytes(fl_array_type type);
hid_t h5_type_native(fl_array_type type); /* in memory */
hid_t h5_type_file(fl_array_type type);   /* in the file: little-endian */
const char *h5_type_name(fl_array_type type);

/* ---- seal ----
 * Behind the HDF5 data (HDF5 ignores what follows its own end) stand the places of the large data
 * sets, each of which carries its own hash, and one hash of all other bytes: superblock, groups,
 * attributes, small data sets. So every byte of the file is under some hash, and HDF5, which may
 * crash on damaged metadata, is shown only metadata that are whole. */
typedef struct h5_range {
    uint64_t at, bytes;
} h5_range;
enum {
    H5_SEAL_LARGE = 1 << 16, /* data sets of so many bytes are left to their own hash */
    H5_SEAL_PIECE = 1 << 20  /* bytes of a buffer for sealing */
};
fl_err h5_seal(const char *path, int n, h5_range *range); /* appends; range is sorted in place */
h5_trouble h5_seal_quietly(const char *path, int n, h5_range *range, char *piece);
bool h5_sealed(const char *path);                         /* ends with the mark of a seal */
fl_err h5_seal_check(const char *path);
#endif
