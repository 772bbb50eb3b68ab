/* scale.h - what the two files of fedlora scale share: the study, and its table DIR/scaling.csv. */
#ifndef FL_APP_SCALE_H
#define FL_APP_SCALE_H
#include "app.h"

enum { SCALE_POINTS = 64, SCALE_PATH = 4096 };

typedef struct scale_point {
    int ranks, repeat;
    bool weak;
} scale_point;

typedef struct scale_series {
    fl_ctx *ctx;          /* borrowed: all ranks of the job */
    const app_args *args; /* borrowed */
    fl_deck *deck;        /* owned: as given, before a weak point multiplies it */
    uint64_t digest;      /* of deck */
    bool weak, comparable;
    int n, ranks[SCALE_POINTS];
    int repeats;
    fl_text rows; /* rank 0: the lines of scaling.csv without the header, each ending in \n */
    double begin;
} scale_series;

typedef struct scale_place { /* where a run ran and what came out */
    const char *out;         /* borrowed: its folder */
    int nodes;
    double cores; /* of all its nodes */
    uint64_t state;
} scale_place;

/* ---- scale_table.c ---- all local, by rank 0 of the job */
const char *scale_mode(bool weak);
fl_err scale_load(scale_series *s); /* rows of an earlier start of the same study */
fl_err scale_write(const scale_series *s);
bool scale_has(const scale_series *s, scale_point p);
fl_err scale_add(scale_series *s, scale_point p, const fl_deck *deck, const scale_place *at);
/* equal numerical decks must end in equal states: all strong rows, the repeats of a weak one */
fl_err scale_check_states(const scale_series *s);
void scale_report(
    const scale_series *s); /* best of the repeats, against the first number of ranks */
#endif
