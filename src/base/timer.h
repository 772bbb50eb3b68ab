/* timer.h - the state behind fl_phase_begin and fl_mpi_count; owned by the context. */
#ifndef FL_BASE_TIMER_H
#define FL_BASE_TIMER_H
#include "fedlora/base.h"

enum { FL_TIMER_DEPTH = 64 };

typedef struct fl_timer {
    double seconds[FL_NPHASES];     /* exclusive: only while the phase was the innermost */
    double since;                   /* when the innermost phase began or went on */
    fl_phase stack[FL_TIMER_DEPTH]; /* phases begun and not ended, innermost last */
    int depth;
    double mpi_bytes;
} fl_timer;
#endif
