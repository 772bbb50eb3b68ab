/* synthetic.c - a procedural language with dialects ("domains"), for runs without any file. Local;
 * f(seed, deck) only.
 *
 * A domain has 48 words of 2 to 6 letters, drawn from its own 12 letters of the alphabet, and its
 * own first-order Markov grammar: after a word come three others with chances 0.6, 0.3, 0.1. A
 * sentence is 4 to 9 words, then a full stop; the next one begins after a space with one of the
 * first four words. A sequence is at most `length` bytes and ends in a full stop. Each byte is then
 * replaced with chance `noise` by a random letter. Entropy without noise: about 0.9 nats a word
 * besides the sentence ends, so a small model learns it; domains share the space and the full stop
 * and little else. */
#include "data_internal.h"
#include <string.h>

enum { WORDS = 48, LETTERS = 12, NEXT = 3, STARTS = 4, WORD_MAX = 6 };
enum { DRAW_LETTERS, DRAW_WORDS, DRAW_GRAMMAR, DRAW_TEXT, DRAW_NOISE }; /* the `round` of fl_rng */
static const double next_chance[NEXT] = {0.6, 0.3, 0.1};

typedef struct dialect {
    char word[WORDS][WORD_MAX + 1];
    int next[WORDS][NEXT];
} dialect;

typedef struct dice {
    uint64_t seed, index;
    int id, what;
} dice;

static int dice_below(dice *x, int n)
{
    return (int)(fl_rng_uniform(x->seed, FL_RNG_SYNTHETIC, x->id, x->what, x->index++) * n);
}

static void dialect_make(dialect *g, uint64_t seed, int domain)
{
    dice words = {.seed = seed, .id = domain, .what = DRAW_WORDS};
    dice grammar = {.seed = seed, .id = domain, .what = DRAW_GRAMMAR};
    int letter[26];

    for (int i = 0; i < 26; i++) {
        letter[i] = 'a' + i;
    }
    fl_rng_shuffle(seed, FL_RNG_SYNTHETIC, domain, DRAW_LETTERS, 26, letter);
    memset(g, 0, sizeof *g);
    for (int w = 0; w < WORDS; w++) {
        int n = 2 + dice_below(&words, WORD_MAX - 1);

        for (int i = 0; i < n; i++) {
            g->word[w][i] = (char)letter[dice_below(&words, LETTERS)];
        }
        for (int j = 0; j < NEXT; j++) {
            g->next[w][j] = dice_below(&grammar, WORDS);
        }
    }
}

/* one sequence; its text is a function of (seed, i), its noise of (seed, i, place) */
static void sequence_write(
    const dialect *g, const fl_deck_data *how, uint64_t seed, int i, fl_data_builder *b)
{
    dice text = {.seed = seed, .id = i, .what = DRAW_TEXT};
    size_t from = b->r->bytes.n, room = (size_t)how->length;
    int word = 0, left = 0;

    for (;;) {
        size_t used = b->r->bytes.n - from;
        bool starts = left == 0;

        if (starts) {
            word = dice_below(&text, STARTS);
            left = 4 + dice_below(&text, 6);
        } else {
            double u = fl_rng_uniform(seed, FL_RNG_SYNTHETIC, i, DRAW_TEXT, text.index++);

            word = g->next[word][(u >= next_chance[0]) + (u >= next_chance[0] + next_chance[1])];
        }
        /* the first word always goes in; any other must leave room for its space and the full stop
         */
        if (used > 0 && used + strlen(g->word[word]) + 2 > room) {
            if (!starts) {
                fl_data_add(b, ".", 1);
            }
            break;
        }
        fl_data_add(b, " ", used > 0);
        fl_data_add(b, g->word[word], strlen(g->word[word]));
        left--;
        if (left == 0) {
            fl_data_add(b, ".", 1);
        }
    }
    for (size_t at = from; how->noise > 0 && at < b->r->bytes.n; at++) {
        double u = fl_rng_uniform(seed, FL_RNG_SYNTHETIC, i, DRAW_NOISE, at - from);

        if (u < how->noise) {
            b->r->bytes.s[at] = (char)('a' + (int)(u / how->noise * 26));
        }
    }
    fl_data_close_record(b);
}

void fl_synthetic(const fl_deck_data *how, uint64_t seed, fl_records *r)
{
    int n = how->max_records > 0 ? FL_MIN(how->sequences, how->max_records) : how->sequences;
    int nd = FL_MIN(how->domains, n); /* a domain without a sequence is no client key */
    dialect *g;
    fl_data_builder b;

    FL_REQUIRE(how->domains > 0 && how->sequences > 0 && how->length > 0);
    g = fl_alloc("synthetic domains", (size_t)nd, sizeof *g);
    for (int i = 0; i < nd; i++) {
        dialect_make(&g[i], seed, i);
    }
    fl_data_begin(&b, r);
    for (int i = 0; i < n; i++) {
        sequence_write(&g[i % how->domains], how, seed, i, &b);
    }
    fl_free(g);
    /* keys here are numbers in order of the domains, not names in byte order ("domain-10" <
     * "domain-2") */
    r->nkeys = nd;
    r->key = fl_alloc("record keys", (size_t)n, sizeof *r->key);
    r->key_name = fl_alloc("domain names", (size_t)nd, sizeof *r->key_name);
    for (int i = 0; i < n; i++) {
        r->key[i] = i % how->domains;
    }
    for (int i = 0; i < nd; i++) {
        char name[32];

        snprintf(name, sizeof name, "domain-%d", i);
        r->key_name[i] = fl_strdup(name);
    }
}
