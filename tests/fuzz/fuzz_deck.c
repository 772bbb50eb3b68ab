/* fuzz_deck.c - libFuzzer: a deck that parses must survive dump and parse unchanged; nothing may
 * crash or leak. The bytes are tried as a deck, as a --set, and as the deck stored in a checkpoint.
 */
#include "fedlora/deck.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

typedef struct fuzz_config {
    int count;
    double part;
    bool on;
    int kind;
    char *text;
    fl_ints ints;
    fl_reals reals;
    fl_words words, free_words;
    uint64_t seed;
} fuzz_config;

/* every type of row, under a method of its own */
static const fl_field fuzz_fields[] = {
    FL_INT(fuzz_config, count, "3", -10, 10, "", "an int"),
    FL_REAL(fuzz_config, part, "0.25", -1e300, 1e300, "m", "a real"),
    FL_BOOL(fuzz_config, on, "true", "a truth value"),
    FL_WORD(fuzz_config, kind, "b", "a|b|c", "a word"),
    FL_TEXT(fuzz_config, text, "", "a text"),
    FL_INTS(fuzz_config, ints, "[]", -2147483648.0, 2147483647, "", "ints"),
    FL_REALS(fuzz_config, reals, "[1, 2.5]", -1e308, 1e308, "", "reals"),
    FL_WORDS(fuzz_config, words, "[x]", "x|y|n", "words"),
    FL_WORDS(fuzz_config, free_words, "", NULL, "free words"),
    FL_SEED(fuzz_config, seed, "0", "a seed"),
    FL_END,
};
static const fl_section fuzz_sections[] = {
    {"fedavg", "no keys", NULL, 0},
    {"fuzz", "all types", fuzz_fields, sizeof(fuzz_config)},
};
enum { NEXTRA = 2 };

static void fuzz_round_trip(const fl_deck *deck, bool comments)
{
    fl_text one = {0}, two = {0}, differences = {0};
    fl_deck *again;

    fl_deck_dump(deck, comments, &one);
    if (fl_deck_parse(one.s, one.n, "dump", 0, NULL, fuzz_sections, NEXTRA, &again) != FL_OK) {
        fprintf(stderr, "%s\n%s\n", one.s, fl_error_text());
        abort();
    }
    fl_deck_dump(again, comments, &two);
    if (strcmp(one.s, two.s) != 0 || fl_deck_digest(deck) != fl_deck_digest(again) ||
        fl_deck_compare(deck, one.s, one.n, fuzz_sections, NEXTRA, &differences) != 0) {
        fprintf(stderr, "%s\n%s\n%s\n", one.s, two.s, differences.s ? differences.s : "");
        abort();
    }
    fl_text_free(&one);
    fl_text_free(&two);
    fl_text_free(&differences);
    fl_deck_destroy(&again);
}

static void fuzz_deck(fl_deck **deck, fl_err err)
{
    if ((err == FL_OK) != (*fl_error_text() == '\0')) {
        abort(); /* an error without a sentence, or a sentence without an error */
    }
    if (err == FL_OK) {
        fuzz_round_trip(*deck, false);
        fuzz_round_trip(*deck, true);
    }
    fl_deck_destroy(deck);
    fl_error_clear();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now();
    const char *text = (const char *)data;
    char *set = malloc(n + 1);
    const char *sets[] = {"method.name=fuzz", set};
    fl_text differences = {0};
    fl_deck *deck;

    memcpy(set, data, n);
    set[n] = '\0';
    fuzz_deck(
        &deck, fl_deck_parse(n ? text : "", n, "fuzz", 1, sets, fuzz_sections, NEXTRA, &deck));
    fuzz_deck(&deck, fl_deck_parse(NULL, 0, NULL, 2, sets, fuzz_sections, NEXTRA, &deck));
    if (fl_deck_parse(NULL, 0, NULL, 1, sets, fuzz_sections, NEXTRA, &deck) != FL_OK) {
        abort();
    }
    fl_deck_compare(deck, n ? text : "", n, fuzz_sections, NEXTRA, &differences);
    fl_text_free(&differences);
    fl_deck_destroy(&deck);
    free(set);
    if (fl_memory_now() != before) {
        abort(); /* a leak that the allocator's count shows at once */
    }
    return 0;
}
