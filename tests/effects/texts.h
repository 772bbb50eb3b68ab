/* texts.h - a task of classification for the effects, written as an HDF5 data set. Which of four subjects is a text of 24 letters
 * about? The answer is one more letter, and only that is learned and judged. A letter of the text is one of the subject's six with
 * chance 0.6, else any. */
#ifndef EFFECT_TEXTS_H
#define EFFECT_TEXTS_H
#include "effect.h"
#include <hdf5.h>

enum { TEXT_LETTERS = 24, TEXT_SUBJECTS = 4 };

typedef struct texts {
    int clients, each; /* clients, texts of each; every fourth text is for validation, every fourth for the test */
    int balanced;      /* clients 0 .. balanced - 1 have all subjects alike, the others nine in ten texts about one */
    bool domains;      /* the subject's letters are other ones at every client: the same question asked in another way */
} texts;

static inline void texts_put(hid_t file, const char *name, size_t n, const int *x)
{
    hsize_t dim = n;
    hid_t space = H5Screate_simple(1, &dim, NULL);
    hid_t set = H5Dcreate2(file, name, H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    assert_true(set >= 0 && H5Dwrite(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static inline int texts_below(int seed, int text, int i, int n)
{
    return (int)(n * fl_rng_uniform((uint64_t)seed, FL_RNG_TEST, text, 0, (uint64_t)i));
}

static inline void texts_letters(int seed, int domain, int *order)
{
    for (int i = 0; i < TEXT_LETTERS; i++) {
        order[i] = 'a' + i;
    }
    fl_rng_shuffle((uint64_t)seed, FL_RNG_TEST, domain, 2, TEXT_LETTERS, order);
}

/* tokens [25]: the letters, the answer */
static inline void texts_one(int seed, int i, const int *order, int subject, int *tokens)
{
    enum { OWN = TEXT_LETTERS / TEXT_SUBJECTS };

    for (int l = 0; l < TEXT_LETTERS; l++) {
        bool own = texts_below(seed, i, 3 * l, 10) < 6;

        tokens[l] = own ? order[OWN * subject + texts_below(seed, i, 3 * l + 1, OWN)]
                        : order[texts_below(seed, i, 3 * l + 2, TEXT_LETTERS)];
    }
    tokens[TEXT_LETTERS] = 'a' + subject;
}

static inline void texts_write(const char *path, int seed, texts how)
{
    enum { T = TEXT_LETTERS + 1 };
    int n = how.clients * how.each, order[TEXT_LETTERS];
    int *tokens = fl_alloc("tokens", (size_t)n * T, sizeof *tokens), *mask = fl_alloc("mask", (size_t)n * T, sizeof *mask);
    int *offsets = fl_alloc("offsets", (size_t)n + 1, sizeof *offsets), *rows = fl_alloc("rows", 3 * (size_t)n, sizeof *rows);
    int *label = rows, *client = rows + n, *split = rows + 2 * n;
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);

    assert_true(file >= 0);
    for (int i = 0; i < n; i++) {
        int k = i / how.each;
        bool any = k < how.balanced || texts_below(seed, i, 100, 10) == 0;

        label[i] = any ? texts_below(seed, i, 101, TEXT_SUBJECTS) : (k - 1) % TEXT_SUBJECTS;
        client[i] = k;
        split[i] = i % 4 < 2 ? FL_TRAIN : i % 4 == 2 ? FL_VALID : FL_TEST;
        texts_letters(seed, how.domains ? k : 0, order);
        texts_one(seed, i, order, label[i], tokens + (size_t)i * T);
        mask[(size_t)i * T + TEXT_LETTERS] = 1;
        offsets[i + 1] = (i + 1) * T;
    }
    texts_put(file, "tokens", (size_t)n * T, tokens);
    texts_put(file, "loss_mask", (size_t)n * T, mask);
    texts_put(file, "offsets", (size_t)n + 1, offsets);
    texts_put(file, "label", (size_t)n, label);
    texts_put(file, "client", (size_t)n, client);
    texts_put(file, "split", (size_t)n, split);
    H5Fclose(file);
    fl_free(tokens);
    fl_free(mask);
    fl_free(offsets);
    fl_free(rows);
}
#endif
