/* peft_bed.h - for the tests of sets of PEFT adapters: folders that go away, adapters of random
 * numbers, adapters in memory and the sentences by which they are refused. */
#ifndef PEFT_BED_H
#define PEFT_BED_H
#include "hf_bed.h"
#include <ftw.h>
#include <math.h>

#define FIXTURE "tests/fixtures/peft/"
#define BASE "base_model.model."

static inline int remove_one(const char *path, const struct stat *s, int kind, struct FTW *ftw)
{
    (void)s;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static inline int all_drop(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, all_drop)

static inline void must(fl_err err)
{
    if (err != FL_OK) {
        fail_msg("%s", fl_error_text());
    }
}

static inline fl_peft_set *open_set(int n, const char *const *dir)
{
    fl_peft_set *s;

    must(fl_peft_set_open(n, dir, NULL, &s));
    return s;
}

static inline int site_named(const fl_peft_set *s, const char *name)
{
    for (int j = 0; j < s->nsites; j++) {
        if (strcmp(s->site[j].name, name) == 0) {
            return j;
        }
    }
    return -1;
}

/* x (m x n) = s B A of one site of one folder */

/* ---- an adapter of random numbers ---- */
typedef struct written { /* an adapter of random numbers on the sites of a set */
    const fl_peft_set *s;
    fl_real **a, **b, **x; /* owned [nsites], [nextras] */
    int *r;
} written;

static inline fl_real *random_reals(size_t n, int stream)
{
    fl_real *x = fl_alloc("x", n, sizeof *x);

    for (size_t i = 0; i < n; i++) {
        x[i] = (fl_real)fl_rng_normal(3, FL_RNG_TEST, stream, 0, i);
    }
    return x;
}

static inline written random_written(const fl_peft_set *s, const int *r)
{
    written w = {.s = s};

    w.a = fl_alloc("a", (size_t)s->nsites, sizeof(fl_real *));
    w.b = fl_alloc("b", (size_t)s->nsites, sizeof(fl_real *));
    w.x = fl_alloc("x", (size_t)s->nextras, sizeof(fl_real *));
    w.r = fl_alloc("r", (size_t)s->nsites, sizeof *w.r);
    for (int j = 0; j < s->nsites; j++) {
        w.r[j] = r[j];
        w.a[j] = random_reals((size_t)(r[j] * s->site[j].site.n), 2 * j);
        w.b[j] = random_reals((size_t)(r[j] * s->site[j].site.m), 2 * j + 1);
    }
    for (int j = 0; j < s->nextras; j++) {
        w.x[j] = random_reals(s->extra[j].n, 1000 + j);
    }
    return w;
}

static inline void written_free(written *w)
{
    for (int j = 0; j < w->s->nsites; j++) {
        fl_free(w->a[j]);
        fl_free(w->b[j]);
    }
    for (int j = 0; j < w->s->nextras; j++) {
        fl_free(w->x[j]);
    }
    fl_free(w->a);
    fl_free(w->b);
    fl_free(w->x);
    fl_free(w->r);
}

/* in ascending or descending order of sites */
static inline double put_all(const written *w, const fl_peft_how *how, const char *dir, bool backwards)
{
    fl_peft_out *out;
    double rounding;

    must(fl_peft_out_begin(w->s, dir, how, &out));
    for (int i = 0; i < w->s->nsites; i++) {
        int j = backwards ? w->s->nsites - 1 - i : i;

        if (w->r[j] > 0) {
            must(fl_peft_out_site(out, j, w->a[j], w->b[j]));
        }
    }
    for (int j = 0; j < w->s->nextras && !how->no_extras; j++) {
        must(fl_peft_out_extra(out, j, w->x[j]));
    }
    must(fl_peft_out_commit(&out, &rounding));
    assert_null(out);
    return rounding;
}

/* largest relative difference of what comes back */

static inline bool has_tensor(const char *dir, const char *key)
{
    char path[600];
    fl_st st;
    bool there;

    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    must(fl_st_open(path, &st));
    there = fl_st_find(&st, key) >= 0;
    fl_st_close(&st);
    return there;
}

/* ---- adapters in memory ---- */
static const fl_real ones[512] = {[0] = 1, [1] = 2, [5] = -3};
#define PAIR(module, m, n, r)                                                                      \
    {BASE module ".lora_A.weight", 2, {r, n}, ones},                                               \
    {                                                                                              \
        BASE module ".lora_B.weight", 2, {m, r}, ones                                              \
    }
#define LORA "{\"peft_type\":\"LORA\",\"r\":2"

typedef struct given {
    const char *json;
    int n;
    fl_st_out out[6];
} given;

/* up to three adapters called A, B, C */
static inline fl_err from_memory(
    int n, const given *g, const fl_peft_options *options, fl_peft_set **s, fl_st *st /* [n] */)
{
    static const char *const name[3] = {"A", "B", "C"};
    fl_peft_source source[3];

    fl_error_clear();
    for (int i = 0; i < n; i++) {
        char *path = fl_strdup(in_folder("x.safetensors"));

        path[strlen(path) - strlen("x.safetensors")] = (char)('a' + i);
        must(fl_st_write(path, g[i].n, g[i].out, "pt"));
        must(fl_st_open(path, &st[i]));
        source[i] = (fl_peft_source){name[i], g[i].json, strlen(g[i].json), &st[i]};
        fl_free(path);
    }
    return fl_peft_set_parse(n, source, options, s);
}

static inline void refused(int n, const given *g, const fl_peft_options *options, fl_err wanted,
    const char *first, const char *second)
{
    fl_peft_set *s;
    fl_st st[3];
    fl_err err = from_memory(n, g, options, &s, st);
    char text[2000];

    snprintf(text, sizeof text, "%s", fl_error_text());
    if (err != wanted || s != NULL || strstr(text, first) == NULL || strstr(text, second) == NULL) {
        fail_msg("%d, \"%s\" does not say \"%s\" and \"%s\"", err, text, first, second);
    }
    for (int i = 0; i < n; i++) {
        fl_st_close(&st[i]);
    }
    fl_error_clear();
}
#endif
