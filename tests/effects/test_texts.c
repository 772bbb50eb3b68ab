/* test_texts.c - writes the data sets that the runs of 4-fair-lambda and 6-flasc-bytes read:
 * EFFECT_OUT, with %d for the seed; EFFECT_TEXTS: "domains" (six clients, each with letters of its
 * own) or "subjects" (24 clients that differ by what the deck deals). Prints: data SEED. */
#include "texts.h"

static void write_all(void **state)
{
    const char *kind = getenv("EFFECT_TEXTS");
    bool domains = kind != NULL && strcmp(kind, "domains") == 0;
    char path[300];

    (void)state;
    for (int i = 0; i < effect_seeds(); i++) {
        snprintf(path, sizeof path, getenv("EFFECT_OUT"), effect_first() + i);
        texts_write(path, effect_first() + i,
            domains ? (texts){.clients = 6, .each = 480, .balanced = 6, .domains = true}
                    : (texts){.clients = 24, .each = 120, .balanced = 24});
        printf("data %d\n", effect_first() + i);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(write_all)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
