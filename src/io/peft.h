/* peft.h - shared by the writer and the reader of PEFT adapters: which modules of a Hugging Face
 * model hold our sites. */
#ifndef FL_IO_PEFT_H
#define FL_IO_PEFT_H
#include "fedlora/io.h"
#include "file.h"

enum { PEFT_NAME = 128 };
#define PEFT_PREFIX "base_model.model."

/* A kind of module: where it sits in a block, and our sites whose rows its output stacks. */
typedef struct peft_kind {
    const char *path;    /* "attn.c_attn" */
    const char *entry;   /* shortest suffix that names this kind only, for target_modules */
    const char *site[4]; /* "q", "k", "v"; ends with NULL */
} peft_kind;
const peft_kind *peft_kinds(const fl_model *m, int *n);

/* The sites of a module in stacking order; returns their number. rows: of the module's output;
 * cols: of its input. */
int peft_sites(
    const fl_model *m, int block, const peft_kind *kind, int site[3], int *rows, int *cols);
/* "transformer.h.3.attn.c_attn", "model.layers.3.self_attn.q_proj" */
void peft_module_name(const fl_model *m, int block, const peft_kind *kind, char name[PEFT_NAME]);
/* name (with or without the leading "transformer." or "model.") to block and kind; false = no such
 * module */
bool peft_module_find(const fl_model *m, const char *name, int *block, int *kind);

/* PEFT's test of a rank_pattern or alpha_pattern key P: ^(.*\.)?(P)$ matches name. parse: owned by the caller, NULL = something is in
 * the pattern that is not read here. matches: *ok false = name too long or the pattern too much work. */
typedef struct peft_pattern peft_pattern;
peft_pattern *peft_pattern_parse(const char *text);
void peft_pattern_free(peft_pattern **p);
bool peft_pattern_matches(const peft_pattern *p, const char *name, bool *ok);

/* *found (owned): dir itself or its only sub-folder with an adapter, which PEFT makes for an adapter that has a name */
fl_err peft_folder_find(const char *dir, char **found);
/* *path (owned): the weights file in a folder; a pickle is refused */
fl_err peft_folder_weights(const char *dir, char **path);
#endif
