/* peft_set.h - inside src/io: many PEFT adapters as one set of sites. peft_set.c opens and puts together, peft_set_folder.c reads one
 * folder's config and header, peft_set_config.c judges and peft_set_config_write.c writes adapter_config.json, peft_set_names.c knows how
 * modules are called, peft_set_prefix.c and peft_set_lists.c make one list of them, peft_set_read.c and peft_set_write.c move numbers. */
#ifndef FL_IO_PEFT_SET_H
#define FL_IO_PEFT_SET_H
#include "peft.h"
#include <time.h>

enum {
    PEFT_LONG = 512,         /* room for a module's name */
    PEFT_LONGEST_KEY = 440,  /* bytes of a tensor's name that are read; renaming makes it no longer than PEFT_LONG */
    PEFT_RANK_MOST = 1 << 20,
    PEFT_PIECE = 1 << 18     /* bytes read or written at a time */
};

/* ---- names ---- a list without duplicates; the index is the order of arrival */
typedef struct peft_names {
    int n, room, nslots;
    char **name; /* owned [n] */
    int *slot;   /* owned [nslots], -1 = empty: hash table; its order is never seen */
} peft_names;
int peft_names_add(peft_names *t, const char *name);
int peft_names_find(const peft_names *t, const char *name); /* -1 = none */
void peft_names_free(peft_names *t);
int peft_names_compare(const char *a, const char *b); /* numbers in them by value: layers.2 before layers.10 */

/* what a tensor of an adapter file is */
typedef enum peft_part { PEFT_A, PEFT_B, PEFT_FULL, PEFT_LORA_BIAS, PEFT_MAGNITUDE, PEFT_STRANGE } peft_part;
typedef struct peft_key {
    peft_part part;
    bool embedding; /* lora_embedding_A, _B */
    bool stray;     /* an adapter's name was in the key, as in a state_dict() */
    char name[PEFT_LONG]; /* module of a factor, path of a full tensor; behind base_model.model. */
} peft_key;
void peft_key_split(const char *key, peft_key *k);

/* The vision transformers that transformers 5 renamed. bare: names without the class's prefix are theirs too. */
bool peft_name_to5(const char *name, bool bare, char out[PEFT_LONG]); /* false (and a copy) = nothing to rename */
bool peft_name_to4(const char *name, bool bare, char out[PEFT_LONG]);
bool peft_name_shows_bare4(const char *name); /* encoder.layer.0.attention.attention.query */

/* Leading segments that a head class puts before the names of the bare class. */
enum { PEFT_NPREFIXES = 9 };
extern const char *const peft_prefix[PEFT_NPREFIXES]; /* "model." */

/* ---- the set ---- */
typedef struct peft_place { /* a tensor in a file */
    size_t at;              /* in the data */
    int type;               /* into peft_type */
} peft_place;
enum { PEFT_NTYPES = 4 };
extern const char *const peft_type[PEFT_NTYPES];

typedef struct peft_item { /* one folder's factors of one site */
    int site, r;
    double alpha, scale;
    peft_place a, b;
} peft_item;

typedef struct peft_folder {
    char *file;                 /* owned: of the weights */
    const unsigned char *bytes; /* borrowed: in memory, no file */
    size_t nbytes, data;        /* of the file; where data begin */
    struct timespec changed;    /* when it was opened */
    int fd;                     /* -1 = not open now */
    int nitems;
    peft_item *item;            /* owned [nitems], by site */
    peft_place *extra;          /* owned [the set's nextras] */
    int *extra_of;              /* owned [nfound]: while the set is put together: which extras, in the order of found */
    int nfound;
    peft_place *found;          /* owned [nfound] */
    int spelling;               /* of transformers 4 or 5 where they differ, 0 = nowhere */
    bool bare4;
    bool rslora, stray;
} peft_folder;

typedef struct peft_shape {     /* of a site or a full tensor, and who said so first */
    int folder, last;           /* that has it: first, last so far */
    int nfolders;
    int m, n;
    bool embedding;
    int ndims;
    int64_t dims[4];
} peft_shape;

enum { PEFT_NNOTED = 5 };
struct peft_set_inside {
    fl_peft_options options;
    peft_folder *folder;        /* owned [nfolders] */
    peft_names sites, extras;   /* while put together; then the public lists have the names */
    peft_shape *site, *extra;   /* owned [room] */
    int site_room, extra_room;
    json_t *config;             /* owned: of the first folder */
    json_t *heads;              /* owned: union of modules_to_save */
    int differ[PEFT_NNOTED], differ_folder[PEFT_NNOTED]; /* folders whose noted key is not the first's, the first of them */
    bool same_targets, same_dropout; /* in all folders; targets: target_modules, exclude_modules, layers_.. */
    unsigned types;             /* FL_BIT of peft_type */
    int spelling;               /* of the first folder that has one, 0 = none */
    bool bare4;
    bool strip[PEFT_NPREFIXES]; /* join_prefixes: the first folder has names without it */
    int kept, kept_most;        /* descriptors that stay open */
    unsigned char *piece;       /* owned [PEFT_PIECE] */
};

/* reads one folder's config and header; name: of the config, for sentences */
fl_err peft_set_add(fl_peft_set *s, int f, const char *json, size_t n, const char *name, const fl_st *st);

/* once all are added: names with and without a class's prefix, then the sorted lists */
fl_err peft_set_prefixes(fl_peft_set *s);
void peft_set_sites(fl_peft_set *s);
fl_err peft_set_extras(fl_peft_set *s);

/* ---- config ---- */
json_t *peft_config_given(const json_t *o, const char *key); /* absent = null = NULL; borrowed */
bool peft_config_is_set(const json_t *o, const char *key); /* present and not null, false, empty */
fl_err peft_config_accept(const json_t *o, const char *name, bool any_init);
/* against the first folder's: refused where the sum would have no meaning, counted where the user should know */
fl_err peft_config_agree(fl_peft_set *s, int f, json_t *o, const char *name);
void peft_config_notes(fl_peft_set *s);
/* a site's name as it is written; names: 4, 5, or 0 = as the first folder has it */
void peft_set_written(const fl_peft_set *s, const char *name, int names, char out[PEFT_LONG]);
/* owned by the caller */
json_t *peft_config_write(const fl_peft_set *s, const fl_peft_how *how);
double peft_alpha_for(double scale, int r, bool rslora, bool *exact);
#endif
