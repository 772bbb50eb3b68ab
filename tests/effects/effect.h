/* effect.h - what the programs of the effects share: a bed of tests/methods, and lines "data ..." that effects.py reads. */
#ifndef EFFECT_H
#define EFFECT_H
#include "../methods/method_test.h"

static inline int effect_seeds(void)
{
    const char *n = getenv("EFFECT_SEEDS");

    return n != NULL ? atoi(n) : 5;
}

static inline int effect_first(void)
{
    const char *n = getenv("EFFECT_FIRST_SEED");

    return n != NULL ? atoi(n) : 1;
}
#endif
