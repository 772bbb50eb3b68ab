/* Many PEFT adapters as one set: r, s and the change of every module are what PEFT makes of the
 * same folders (tests/fixtures/peft, made by tests/interop/make_peft_fixture.py), what is written
 * comes back, and what cannot be combined is refused by name. */
#include "../../src/io/peft.h"
#include "hf_bed.h"
#include <ftw.h>
#include <math.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define FIXTURE "tests/fixtures/peft/"
#define BASE "base_model.model."

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *ftw)
{
    (void)s;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static int all_drop(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, all_drop)

static void must(fl_err err)
{
    if (err != FL_OK) {
        fail_msg("%s", fl_error_text());
    }
}

static fl_peft_set *open_set(int n, const char *const *dir)
{
    fl_peft_set *s;

    must(fl_peft_set_open(n, dir, NULL, &s));
    return s;
}

static int site_named(const fl_peft_set *s, const char *name)
{
    for (int j = 0; j < s->nsites; j++) {
        if (strcmp(s->site[j].name, name) == 0) {
            return j;
        }
    }
    return -1;
}

/* x (m x n) = s B A of one site of one folder */
static void change(const fl_peft_set *s, int f, int j, double *x)
{
    int m = s->site[j].site.m, n = s->site[j].site.n;
    double scale;
    int r = fl_peft_set_r(s, f, j, &scale);
    fl_real *a = fl_alloc("a", (size_t)(r * n), sizeof *a);
    fl_real *b = fl_alloc("b", (size_t)(m * r), sizeof *b);

    must(fl_peft_set_read(s, f, j, a, b));
    for (int i = 0; i < m; i++) {
        for (int k = 0; k < n; k++) {
            double sum = 0;

            for (int l = 0; l < r; l++) {
                sum += (double)b[i * r + l] * (double)a[l * n + k];
            }
            x[i * n + k] = scale * sum;
        }
    }
    fl_free(a);
    fl_free(b);
}

/* ---- patterns ---- */
static void test_patterns_match_as_in_python(void **state)
{
    char *text, *save = NULL;
    size_t n;
    int rows = 0;

    (void)state;
    must(fl_file_read(FIXTURE "patterns.txt", &text, &n));
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *name = strchr(line, '\t'), *hit;
        peft_pattern *p;
        bool ok;

        assert_non_null(name);
        *name++ = 0;
        hit = strchr(name, '\t');
        assert_non_null(hit);
        *hit++ = 0;
        p = peft_pattern_parse(line);
        if (p == NULL || peft_pattern_matches(p, name, &ok) != (*hit == '1') || !ok) {
            fail_msg("%s on %s: not %s", line, name, hit);
        }
        peft_pattern_free(&p);
        rows++;
    }
    assert_int_equal(rows, 600);
    fl_free(text);
}

static void test_patterns_that_are_not_read(void **state)
{
    static const char *const bad[] = {"(", ")", "a)", "(a", "[a", "[", "a**", "*a", "+", "a{2}{3}",
        "a*+", "a{", "a{x}", "a{2,1}", "a{1001}", "(?=a)b", "(?P<x>a)", "(?i)a", "\\b", "(a)\\1",
        "a\\", "[z-a]", "[\\d-z]", "\xc3\xa9", "\\n", "[a\\q]", "a{,}"};
    char deep[200] = {0}, *longer = fl_alloc("pattern", 5000, 1);
    bool ok;
    peft_pattern *p;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        p = peft_pattern_parse(bad[i]);
        if (p != NULL) {
            fail_msg("%s was read", bad[i]);
        }
    }
    memset(deep, '(', 99);
    memset(deep + 99, ')', 99);
    assert_null(peft_pattern_parse(deep));
    memset(longer, 'a', 4999);
    assert_null(peft_pattern_parse(longer));
    /* too much work is noticed, and a long name */
    p = peft_pattern_parse("((((a?){99}){99}){99}){99}b");
    assert_non_null(p);
    longer[400] = 0;
    assert_false(peft_pattern_matches(p, longer, &ok));
    assert_false(ok);
    peft_pattern_free(&p);
    p = peft_pattern_parse("a");
    memset(longer, 'a', 600);
    longer[600] = 0;
    assert_false(peft_pattern_matches(p, longer, &ok));
    assert_false(ok);
    peft_pattern_free(&p);
    fl_free(longer);
}

/* ---- what PEFT saved ---- */
static void check_fixture(const char *name, const char *inside, int nsites, const char *dtype)
{
    char dir[128], key[256];
    const char *const one[1] = {dir};
    fl_peft_set *s;
    fl_st expected;

    snprintf(dir, sizeof dir, FIXTURE "%s", name);
    must(fl_st_open(FIXTURE "expected.safetensors", &expected));
    s = open_set(1, one);
    assert_int_equal(s->nsites, nsites);
    assert_string_equal(s->dtype, dtype);
    snprintf(key, sizeof key, "%s%s", dir, inside);
    assert_string_equal(s->folder[0], key);
    for (int j = 0; j < s->nsites; j++) {
        size_t n = (size_t)s->site[j].site.m * (size_t)s->site[j].site.n;
        double *x = fl_alloc("x", n, sizeof *x), scale;
        fl_real *y = fl_alloc("y", n, sizeof *y), theirs;

        snprintf(key, sizeof key, "%s/%s.s", name, s->site[j].name);
        must(fl_st_read(&expected, fl_st_find(&expected, key), 1, &theirs));
        assert_true(fl_peft_set_r(s, 0, j, &scale) > 0);
        assert_true((fl_real)scale == theirs);
        snprintf(key, sizeof key, "%s/%s.delta", name, s->site[j].name);
        must(fl_st_read(&expected, fl_st_find(&expected, key), n, y));
        change(s, 0, j, x);
        for (size_t i = 0; i < n; i++) {
            if (!(fabs(x[i] - (double)y[i]) <= 2e-6 * fmax(1, fabs(x[i])))) {
                fail_msg("%s: %g, but PEFT %g", key, x[i], (double)y[i]);
            }
        }
        fl_free(x);
        fl_free(y);
    }
    fl_peft_set_close(&s);
    fl_st_close(&expected);
}

static void test_changes_are_those_of_peft(void **state)
{
    (void)state;
    check_fixture("llama-plain", "", 4, "F32");
    check_fixture("llama-patterns", "", 8, "BF16");
    check_fixture("llama-named", "/client_c", 4, "F16");
    check_fixture("llama-embedding", "", 3, "F32");
    check_fixture("gpt2", "", 1, "F32");
    check_fixture("bert-a", "", 4, "F32");
    check_fixture("bert-b", "", 4, "F32");
    check_fixture("vit5", "", 8, "F32");
}

static void test_union_of_sites(void **state)
{
    static const char *const dir[2][3] = {
        {FIXTURE "llama-plain", FIXTURE "llama-patterns", FIXTURE "llama-named"},
        {FIXTURE "llama-named", FIXTURE "llama-plain", FIXTURE "llama-patterns"}};
    static const char *const name[] = {"model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.k_proj",
        "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"};
    static const int r[10][3] = {{0, 1, 0}, {0, 4, 0}, {0, 0, 1}, {4, 2, 1}, {4, 2, 0}, {0, 2, 0},
        {0, 4, 0}, {0, 0, 1}, {4, 3, 1}, {4, 2, 0}};

    (void)state;
    for (int order = 0; order < 2; order++) {
        fl_peft_set *s = open_set(3, dir[order]);

        assert_int_equal(s->nsites, 10);
        assert_int_equal(s->nextras, 0);
        assert_int_equal(s->nrslora, 1);
        assert_null(s->dtype);
        assert_null(s->notes.s);
        for (int j = 0; j < 10; j++) {
            int here = 0;

            assert_string_equal(s->site[j].name, name[j]);
            for (int f = 0; f < 3; f++) {
                int at = order == 0 ? f : (f + 1) % 3;

                assert_int_equal(fl_peft_set_r(s, at, j, NULL), r[j][f]);
                here += r[j][f] > 0;
            }
            assert_int_equal(s->site[j].nfolders, here);
        }
        assert_string_equal(s->site[8].site.name, "1.q_proj");
        assert_int_equal(s->site[8].site.block, 1);
        assert_int_equal(s->site[8].site.m, 8);
        assert_int_equal(s->site[8].site.n, 8);
        assert_int_equal(s->site[7].site.m, 4);
        fl_peft_set_close(&s);
    }
}

static void test_both_spellings_are_one_site(void **state)
{
    static const char *const dir[2] = {FIXTURE "vit4", FIXTURE "vit5"};
    fl_peft_set *s = open_set(2, dir), *five = open_set(1, dir + 1);
    fl_st expected;
    double scale, x[96];
    fl_real y[96];

    (void)state;
    assert_int_equal(s->nsites, 8);
    for (int j = 0; j < 8; j++) {
        assert_string_equal(s->site[j].name, five->site[j].name);
        assert_int_equal(s->site[j].nfolders, 2);
    }
    /* alpha_pattern is written in the names of transformers 4 */
    (void)fl_peft_set_r(s, 0, site_named(s, "vit.layers.1.mlp.fc2"), &scale);
    assert_true(scale == 1.5);
    (void)fl_peft_set_r(s, 0, site_named(s, "vit.layers.0.mlp.fc2"), &scale);
    assert_true(scale == 4);
    must(fl_st_open(FIXTURE "expected.safetensors", &expected));
    must(fl_st_read(&expected,
        fl_st_find(&expected, "vit4/vit.encoder.layer.1.intermediate.dense.delta"), 96, y));
    change(s, 0, site_named(s, "vit.layers.1.mlp.fc1"), x);
    for (int i = 0; i < 96; i++) {
        assert_true(fabs(x[i] - (double)y[i]) <= 2e-6 * fmax(1, fabs(x[i])));
    }
    assert_int_equal(s->nextras, 2);
    assert_string_equal(s->extra[0].name, "classifier.bias");
    assert_string_equal(s->extra[1].name, "classifier.weight");
    assert_int_equal(s->extra[1].n, 24);
    assert_int_equal(s->extra[1].dims[0], 3);
    fl_st_close(&expected);
    fl_peft_set_close(&s);
    fl_peft_set_close(&five);
}

static void test_extras_are_read(void **state)
{
    static const char *const dir[2] = {FIXTURE "bert-a", FIXTURE "bert-b"};
    fl_peft_set *s = open_set(2, dir);
    fl_real ours[24], theirs[24];
    fl_st st;

    (void)state;
    assert_int_equal(s->nextras, 6); /* bias: lora_only of four modules, the head's two */
    for (int f = 0; f < 2; f++) {
        char path[256];

        snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir[f]);
        must(fl_st_open(path, &st));
        for (int j = 0; j < s->nextras; j++) {
            char key[256];

            snprintf(key, sizeof key, BASE "%s", s->extra[j].name);
            must(fl_st_read(&st, fl_st_find(&st, key), s->extra[j].n, theirs));
            must(fl_peft_set_read_extra(s, f, j, ours));
            assert_memory_equal(ours, theirs, s->extra[j].n * sizeof *ours);
        }
        fl_st_close(&st);
    }
    fl_peft_set_close(&s);
}

/* ---- writing ---- */
typedef struct written { /* an adapter of random numbers on the sites of a set */
    const fl_peft_set *s;
    fl_real **a, **b, **x; /* owned [nsites], [nextras] */
    int *r;
} written;

static fl_real *random_reals(size_t n, int stream)
{
    fl_real *x = fl_alloc("x", n, sizeof *x);

    for (size_t i = 0; i < n; i++) {
        x[i] = (fl_real)fl_rng_normal(3, FL_RNG_TEST, stream, 0, i);
    }
    return x;
}

static written random_written(const fl_peft_set *s, const int *r)
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

static void written_free(written *w)
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
static double put_all(const written *w, const fl_peft_how *how, const char *dir, bool backwards)
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
static double read_back(const written *w, const double *scale, const char *dir)
{
    fl_peft_set *s = open_set(1, &dir);
    double worst = 0;

    assert_null(s->notes.s);
    for (int j = 0; j < w->s->nsites; j++) {
        int at = site_named(s, w->s->site[j].name), m = w->s->site[j].site.m;
        int n = w->s->site[j].site.n, r = w->r[j];
        fl_real *a = fl_alloc("a", (size_t)(r * n), sizeof *a);
        fl_real *b = fl_alloc("b", (size_t)(r * m), sizeof *b);
        double back;

        if (r == 0) {
            assert_int_equal(at, -1);
        } else {
            assert_int_equal(fl_peft_set_r(s, 0, at, &back), r);
            if (fabs(back - scale[j]) > 2e-16 * fabs(scale[j])) {
                fail_msg("%s: s = %.17g came back as %.17g", s->site[at].name, scale[j], back);
            }
            must(fl_peft_set_read(s, 0, at, a, b));
            for (int i = 0; i < r * n; i++) {
                worst = fmax(worst, fabs((double)(a[i] - w->a[j][i]) / (double)w->a[j][i]));
            }
            for (int i = 0; i < r * m; i++) {
                worst = fmax(worst, fabs((double)(b[i] - w->b[j][i]) / (double)w->b[j][i]));
            }
        }
        fl_free(a);
        fl_free(b);
    }
    fl_peft_set_close(&s);
    return worst;
}

static void test_what_is_written_comes_back(void **state)
{
    static const char *const dir[3] = {
        FIXTURE "llama-plain", FIXTURE "llama-patterns", FIXTURE "llama-named"};
    static const int r[10] = {3, 7, 0, 7, 7, 1, 7, 100, 7, 7};
    static const double scale[10] = {
        1, 1, 1, 1, 1, 8.0 / 3, 0.1, 16.0 / 7, -2.5, 0.30000000000000004};
    fl_peft_set *s = open_set(3, dir);
    written w = random_written(s, r);
    fl_peft_how how = {.r = r, .scale = scale};
    char *first, *second;
    size_t n, m;

    (void)state;
    assert_true(put_all(&w, &how, in_folder("out"), false) == 0);
    assert_true(read_back(&w, scale, in_folder("out")) == 0);
    must(fl_file_read(in_folder("out/adapter_model.safetensors"), &first, &n));
    /* equal content, equal bytes; an adapter that is there is replaced */
    assert_true(put_all(&w, &how, in_folder("out"), true) == 0);
    must(fl_file_read(in_folder("out/adapter_model.safetensors"), &second, &m));
    assert_int_equal(n, m);
    assert_memory_equal(first, second, n);
    how.rslora = true;
    assert_true(put_all(&w, &how, in_folder("rslora"), false) == 0);
    assert_true(read_back(&w, scale, in_folder("rslora")) == 0);
    how.dtype = FL_PEFT_F16;
    assert_in_range((int)(1e6 * put_all(&w, &how, in_folder("half"), false)), 100, 400);
    assert_true(read_back(&w, scale, in_folder("half")) <= 1 / 2048.0);
    how.dtype = FL_PEFT_BF16;
    assert_in_range((int)(1e6 * put_all(&w, &how, in_folder("bfloat"), false)), 800, 3200);
    assert_true(read_back(&w, scale, in_folder("bfloat")) <= 1 / 256.0);
    fl_free(first);
    fl_free(second);
    written_free(&w);
    fl_peft_set_close(&s);
}

static json_t *config_of(const char *dir)
{
    char path[600], *text;
    size_t n;
    json_t *o;

    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    must(fl_file_read(path, &text, &n));
    o = json_loadb(text, n, 0, NULL);
    assert_non_null(o);
    fl_free(text);
    return o;
}

static void test_config_that_is_written(void **state)
{
    static const char *const dir[2] = {FIXTURE "bert-a", FIXTURE "bert-b"};
    static const int same[4] = {5, 5, 5, 5}, fewer[4] = {5, 0, 5, 6};
    fl_peft_set *s = open_set(2, dir);
    written w = random_written(s, same);
    json_t *o;

    (void)state;
    /* all sites, and both adapters have the same targets: these */
    put_all(&w, &(fl_peft_how){.r = same}, in_folder("same"), false);
    o = config_of(in_folder("same"));
    assert_int_equal(json_array_size(json_object_get(o, "target_modules")), 2);
    assert_int_equal(json_array_size(json_object_get(o, "exclude_modules")), 1);
    assert_int_equal(json_object_size(json_object_get(o, "rank_pattern")), 0);
    assert_int_equal(json_integer_value(json_object_get(o, "lora_alpha")), 5);
    assert_int_equal(json_integer_value(json_object_get(o, "r")), 5);
    assert_string_equal(json_string_value(json_object_get(o, "bias")), "lora_only");
    assert_string_equal(json_string_value(json_object_get(o, "task_type")), "SEQ_CLS");
    assert_string_equal(json_string_value(json_object_get(o, "base_model_name_or_path")), "tiny");
    assert_true(json_array_size(json_object_get(o, "modules_to_save")) > 0);
    json_decref(o);
    written_free(&w);
    /* full names, anchored patterns, nothing but factors */
    w = random_written(s, fewer);
    put_all(&w, &(fl_peft_how){.r = fewer, .no_extras = true, .base_name = "other"},
        in_folder("fewer"), false);
    o = config_of(in_folder("fewer"));
    assert_int_equal(json_array_size(json_object_get(o, "target_modules")), 3);
    assert_string_equal(json_string_value(json_array_get(json_object_get(o, "target_modules"), 0)),
        "bert.encoder.layer.0.attention.output.dense");
    assert_true(json_is_null(json_object_get(o, "exclude_modules")));
    assert_true(json_is_null(json_object_get(o, "modules_to_save")));
    assert_string_equal(json_string_value(json_object_get(o, "bias")), "none");
    assert_string_equal(json_string_value(json_object_get(o, "base_model_name_or_path")), "other");
    assert_int_equal(json_object_size(json_object_get(o, "rank_pattern")), 1);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "rank_pattern"),
                         "^bert\\.encoder\\.layer\\.0\\.output\\.dense")),
        6);
    json_decref(o);
    written_free(&w);
    fl_peft_set_close(&s);
}

static bool has_tensor(const char *dir, const char *key)
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

static void test_spelling_that_is_written(void **state)
{
    static const char *const dir[3] = {FIXTURE "vit4", FIXTURE "vit5", FIXTURE "vit4"};
    static const int r[8] = {2, 2, 2, 2, 2, 2, 2, 2};
    static const char four[] = BASE "vit.encoder.layer.1.attention.attention.query.lora_A.weight";
    static const char five[] = BASE "vit.layers.1.attention.q_proj.lora_A.weight";

    (void)state;
    for (int first = 0; first < 2; first++) {
        fl_peft_set *s = open_set(2, dir + first);
        written w = random_written(s, r);
        static const double one[8] = {1, 1, 1, 1, 1, 1, 1, 1};

        put_all(&w, &(fl_peft_how){.r = r}, in_folder("first"), false);
        assert_true(has_tensor(in_folder("first"), first == 0 ? four : five));
        put_all(&w, &(fl_peft_how){.r = r, .names = 4}, in_folder("four"), false);
        assert_true(has_tensor(in_folder("four"), four));
        assert_true(has_tensor(in_folder("four"), BASE "classifier.weight"));
        put_all(&w, &(fl_peft_how){.r = r, .names = 5}, in_folder("five"), false);
        assert_true(has_tensor(in_folder("five"), five));
        assert_true(read_back(&w, one, in_folder("four")) == 0);
        written_free(&w);
        fl_peft_set_close(&s);
    }
}

/* every finite half and bfloat16, and the numbers halfway between neighbours, which go to the even
 */
static void test_rounding_to_sixteen_bits(void **state)
{
    enum { N = 256 };
    static const char json[] = "{\"peft_type\":\"LORA\",\"r\":1}";
    fl_real *zero = fl_alloc("zero", 1 << 16, sizeof *zero);
    const fl_st_out pair[2] = {
        {BASE "x.lora_A.weight", 2, {1, N}, zero}, {BASE "x.lora_B.weight", 2, {1, 1}, zero}};
    const char *dir;
    fl_peft_set *s, *back;

    (void)state;
    must(fl_make_dirs(in_folder("in")));
    must(fl_file_write(in_folder("in/adapter_config.json"), json, sizeof json - 1));
    must(fl_st_write(in_folder("in/adapter_model.safetensors"), 2, pair, "pt"));
    dir = in_folder("in");
    s = open_set(1, &dir);
    for (int kind = 0; kind < 2; kind++) {
        /* exponent 0 .. largest; the last value of each list stands alone */
        int n = kind == 0 ? 0x7c00 : 0x7f80, r = (n + N - 1) / N;
        fl_real *a = fl_alloc("a", (size_t)(r * N), sizeof *a);
        fl_real *got = fl_alloc("a", (size_t)(r * N), sizeof *got);
        fl_peft_how how = {.r = &r, .dtype = kind == 0 ? FL_PEFT_F16 : FL_PEFT_BF16};
        fl_peft_out *out;

        for (int half = 0; half < 3;
             half++) { /* value, middle to the next, just above the middle */
            for (int i = 0; i < n; i++) {
                uint32_t bits = (uint32_t)i << 16;
                float x, next;

                if (kind == 0) {
                    x = (float)ldexp(
                        i < 1024 ? i : 1024 + i % 1024, i < 1024 ? -24 : i / 1024 - 25);
                    next = (float)ldexp(i + 1 < 1024 ? i + 1 : 1024 + (i + 1) % 1024,
                        i + 1 < 1024 ? -24 : (i + 1) / 1024 - 25);
                } else {
                    memcpy(&x, &bits, 4);
                    bits += 1U << 16;
                    memcpy(&next, &bits, 4);
                }
                got[i] = x;
                if (half > 0 && i + 1 < n) {
                    x = (float)(((double)x + (double)next) / 2);
                    x = half == 2 ? nextafterf(x, INFINITY) : x;
                    got[i] = half == 2 || i % 2 == 1 ? next : got[i];
                }
                a[i] = i % 3 == 0 ? -x : x;
                got[i] = i % 3 == 0 ? -got[i] : got[i];
            }
            must(fl_peft_out_begin(s, in_folder("out"), &how, &out));
            must(fl_peft_out_site(out, 0, a, zero));
            must(fl_peft_out_commit(&out, NULL));
            dir = in_folder("out");
            back = open_set(1, &dir);
            must(fl_peft_set_read(back, 0, 0, a, zero));
            for (int i = 0; i < n; i++) {
                if (a[i] != got[i]) {
                    fail_msg("%s %d %d: %.9g, not %.9g", back->dtype, half, i, (double)a[i],
                        (double)got[i]);
                }
            }
            fl_peft_set_close(&back);
        }
        /* halfway from the largest to the next power is beyond it */
        a[0] = kind == 0 ? 65520.0F : 3.4e38F;
        must(fl_peft_out_begin(s, in_folder("out2"), &how, &out));
        fl_error_clear();
        assert_int_equal(fl_peft_out_site(out, 0, a, zero), FL_ENUM);
        says(kind == 0 ? "a number beyond F16" : "a number beyond BF16");
        fl_peft_out_drop(&out);
        assert_false(fl_path_exists(in_folder("out2/adapter_model.safetensors.tmp")));
        assert_false(fl_path_exists(in_folder("out2/adapter_config.json")));
        fl_free(a);
        fl_free(got);
    }
    fl_peft_set_close(&s);
    fl_free(zero);
}

static void test_places_that_cannot_be_written(void **state)
{
    static const char json[] = "{\"peft_type\":\"LORA\",\"r\":1}";
    static const fl_real ones[4] = {1, 1, 1, 1};
    static const fl_st_out pair[2] = {
        {BASE "x.lora_A.weight", 2, {1, 2}, ones}, {BASE "x.lora_B.weight", 2, {2, 1}, ones}};
    static const int one[1] = {1}, none[1] = {0};
    const char *dir = in_folder("in");
    fl_peft_set *s;
    fl_peft_out *out;
    char in[512];

    (void)state;
    snprintf(in, sizeof in, "%s", dir);
    must(fl_make_dirs(in));
    must(fl_file_write(in_folder("in/adapter_config.json"), json, sizeof json - 1));
    must(fl_st_write(in_folder("in/adapter_model.safetensors"), 2, pair, "pt"));
    dir = in;
    s = open_set(1, &dir);
    fl_error_clear();
    assert_int_equal(
        fl_peft_out_begin(s, in_folder("in/../in"), &(fl_peft_how){.r = one}, &out), FL_EUSAGE);
    says("is one of the adapters that are read");
    assert_int_equal(
        fl_peft_out_begin(s, in_folder("new"), &(fl_peft_how){.r = none}, &out), FL_ESHAPE);
    says("nothing to write");
    must(fl_file_write(in_folder("file"), json, 1));
    assert_int_equal(
        fl_peft_out_begin(s, in_folder("file"), &(fl_peft_how){.r = one}, &out), FL_EFILE);
    says("file");
    /* a file that changes under the reader's eyes */
    {
        fl_real a[2], b[2];
        static const fl_real twos[4] = {2, 2, 2, 2};
        const fl_st_out other[2] = {
            {BASE "x.lora_A.weight", 2, {1, 2}, twos}, {BASE "x.lora_B.weight", 2, {2, 1}, twos}};

        must(fl_st_write(in_folder("in/adapter_model.safetensors"), 2, other, "pt"));
        assert_int_equal(fl_peft_set_read(s, 0, 0, a, b), FL_EFILE);
        says("has changed since it was opened");
        assert_int_equal(remove(in_folder("in/adapter_model.safetensors")), 0);
        assert_int_equal(fl_peft_set_read(s, 0, 0, a, b), FL_EFILE);
        says("cannot be read");
    }
    fl_peft_set_close(&s);
}

/* ---- refusals, from memory ---- */
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
static fl_err from_memory(
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

static void refused(int n, const given *g, const fl_peft_options *options, fl_err wanted,
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

static void test_refused_configs(void **state)
{
    static const char *const bad[][3] = {
        {"{", "not valid JSON", ""},
        {"{\"r\":2}", "peft_type (none)", "LORA is"},
        {"{\"peft_type\":\"ADALORA\"}", "ADALORA", "s B A"},
        {"{\"peft_type\":\"LOHA\"}", "LOHA", ""},
        {LORA ",\"use_dora\":true}", "use_dora", "merge"},
        {LORA ",\"use_qalora\":true}", "use_qalora", "train without"},
        {LORA ",\"lora_bias\":true}", "lora_bias", "train without"},
        {LORA ",\"velora_config\":{\"a\":1}}", "velora_config", ""},
        {LORA ",\"monteclora_config\":{\"a\":1}}", "monteclora_config", ""},
        {LORA ",\"use_bdlora\":{\"a\":1}}", "use_bdlora", ""},
        {LORA ",\"arrow_config\":{\"a\":1}}", "arrow_config", ""},
        {LORA ",\"kasa_config\":{\"a\":1}}", "kasa_config", ""},
        {LORA ",\"target_parameters\":[\"x\"]}", "target_parameters", "target_modules"},
        {LORA ",\"bias\":\"some\"}", "bias some", ""},
        {LORA ",\"init_lora_weights\":\"pissa_niter_4\"}", "pissa_niter_4", "converted"},
        {LORA ",\"init_lora_weights\":\"olora\"}", "olora", "converted"},
        {LORA ",\"modules_to_save\":\"x\"}", "modules_to_save", "list"},
        {LORA ",\"rank_pattern\":{\"(?=x)x\":2}}", "rank_pattern", "beyond what is read"},
        {LORA ",\"alpha_pattern\":[]}", "alpha_pattern", "must be an object"},
        {LORA ",\"rank_pattern\":{\"x\":\"2\"}}", "module x", "whole number"},
        {LORA ",\"rank_pattern\":{\"((((x?){99}){99}){99}){99}\":2}}", "takes too long", "x"},
        {LORA ",\"lora_alpha\":\"8\"}", "module x", "lora_alpha a number"},
        {LORA ",\"lora_alpha\":1e300}", "module x", "lora_alpha a number"},
        {LORA ",\"use_rslora\":1}", "use_rslora", "true or false"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "module x", "whole number"},
        {"{\"peft_type\":\"LORA\",\"r\":3}", "r is 2 in lora_A", "3 by A"},
        {LORA ",\"rank_pattern\":{\"x\":1}}", "r is 2 in lora_A", "1 by A"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        given g = {bad[i][0], 2, {PAIR("x", 3, 4, 2)}};

        refused(
            1, &g, NULL, strstr(bad[i][1], "r is") ? FL_ESHAPE : FL_EDECK, bad[i][1], bad[i][2]);
    }
}

static void test_refused_tensors(void **state)
{
    static const struct {
        int n;
        fl_st_out out[4];
        fl_err err;
        const char *first, *second;
    } bad[] = {
        {0, {{0}}, FL_EDECK, "holds no LoRA factor", ""},
        {1, {{BASE "x.lora_A.weight", 2, {2, 4}, ones}}, FL_EDECK, "module x has lora_A",
            "no lora_B"},
        {1, {{BASE "x.lora_B.weight", 2, {2, 4}, ones}}, FL_EDECK, "module x has lora_B",
            "no lora_A"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_magnitude_vector", 1, {3}, ones}}, FL_EDECK,
            "x.lora_magnitude_vector", "DoRA"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_B.bias", 1, {3}, ones}}, FL_EDECK, "x.lora_B.bias",
            "lora_bias"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_E", 1, {3}, ones}}, FL_EDECK, "x.lora_E",
            "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {"x.weight", 1, {3}, ones}}, FL_EDECK, "tensor x.weight",
            "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {BASE "head.original_module.weight", 1, {3}, ones}}, FL_EDECK,
            "original_module", "save_pretrained"},
        {3, {PAIR("x", 3, 4, 2), {BASE "x.lora_A.default.weight", 2, {2, 4}, ones}}, FL_EDECK,
            "module x", "two names"},
        {4,
            {PAIR("vit.layers.0.mlp.fc1", 3, 4, 2),
                PAIR("vit.encoder.layer.0.intermediate.dense", 3, 4, 2)},
            FL_EDECK, "vit.", "two names"},
        {4,
            {PAIR("x", 3, 4, 2), {BASE "y.modules_to_save.a.weight", 1, {3}, ones},
                {BASE "y.weight", 1, {3}, ones}},
            FL_EDECK, "y.", "two names"},
        {2,
            {{BASE "x.lora_A.weight", 4, {2, 4, 3, 3}, ones},
                {BASE "x.lora_B.weight", 4, {3, 2, 1, 1}, ones}},
            FL_ESHAPE, "module x", "convolutions"},
        {2, {{BASE "x.lora_A.weight", 2, {2, 0}, ones}, {BASE "x.lora_B.weight", 2, {3, 2}, ones}},
            FL_ESHAPE, "module x", "3 x 0"},
        {2, {{BASE "x.lora_A.weight", 2, {2, 4}, ones}, {BASE "x.lora_B.weight", 2, {3, 1}, ones}},
            FL_ESHAPE, "2 in lora_A and 1 in lora_B", "2 by A"},
        {4,
            {PAIR("x", 3, 4, 2), {BASE "x.lora_embedding_A", 2, {2, 4}, ones},
                {BASE "x.lora_embedding_B", 2, {3, 2}, ones}},
            FL_EDECK, "module x", "embedding"},
        {3, {PAIR("x", 3, 4, 2), {BASE "head.weight", 1, {0}, ones}}, FL_ESHAPE, "head.weight",
            "empty"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        given g = {LORA "}", bad[i].n, {{0}}};

        memcpy(g.out, bad[i].out, sizeof bad[i].out);
        refused(1, &g, NULL, bad[i].err, bad[i].first, bad[i].second);
    }
}

static void test_adapters_that_do_not_go_together(void **state)
{
    static const struct {
        given g[2];
        fl_err err;
        const char *first, *second;
    } bad[] = {
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}}, {LORA "}", 2, {PAIR("x", 3, 5, 2)}}}, FL_ESHAPE,
            "B: module x is 3 x 5", "3 x 4 in A"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}}, {LORA "}", 2, {PAIR("x", 4, 4, 2)}}}, FL_ESHAPE,
            "B: module x is 4 x 4", "3 x 4 in A"},
        {{{LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {2, 3}, ones}}},
             {LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {5, 3}, ones}}}},
            FL_ESHAPE, "B: " BASE "score.weight has another shape there than in A", "5 and 2"},
        {{{LORA "}", 3, {PAIR("x", 3, 4, 2), {BASE "score.weight", 2, {2, 3}, ones}}},
             {LORA "}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: has no tensor score.weight, which A has", "averaged"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"bias\":\"all\"}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: bias is not the same as in A", ""},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"layer_replication\":[[0,1]]}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: layer_replication is not the same as in A", ""},
        {{{LORA ",\"alora_invocation_tokens\":[1,2]}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA ",\"alora_invocation_tokens\":[2,1]}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: alora_invocation_tokens", ""},
        {{{LORA ",\"trainable_token_indices\":[1,2]}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA "}", 2, {PAIR("x", 3, 4, 2)}}},
            FL_EDECK, "B: trainable_token_indices", ""},
        {{{LORA "}", 2, {PAIR("model.layers.0.x", 3, 4, 2)}},
             {LORA "}", 2, {PAIR("layers.1.x", 3, 4, 2)}}},
            FL_EDECK, "of A are called model.", "those of B not"},
        {{{LORA "}", 2, {PAIR("x", 3, 4, 2)}},
             {LORA "}", 2,
                 {{BASE "x.lora_embedding_A", 2, {2, 4}, ones},
                     {BASE "x.lora_embedding_B", 2, {3, 2}, ones}}}},
            FL_EDECK, "embedding", "A"},
    };

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        refused(2, bad[i].g, NULL, bad[i].err, bad[i].first, bad[i].second);
    }
}

static void test_what_agrees_is_accepted_and_said(void **state)
{
    static const given g[3] = {
        {LORA
            ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"task_type\":\"A\","
            "\"init_lora_weights\":\"pissa\",\"base_model_name_or_path\":\"one\"}",
            3,
            {PAIR("x", 3, 4, 2), {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}},
        {LORA ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"new_key\":7,"
              "\"base_model_name_or_path\":\"two\"}",
            3,
            {PAIR("x", 3, 4, 2), {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}},
        {LORA ",\"layer_replication\":[[0,1]],\"trainable_token_indices\":[4,2],\"bias\":\"none\","
              "\"base_model_name_or_path\":\"one\",\"task_type\":\"A\"}",
            3,
            {{BASE "x.lora_A.me.weight", 2, {2, 4}, ones},
                {BASE "x.lora_B.me.weight", 2, {3, 2}, ones},
                {BASE "e.token_adapter.trainable_tokens_delta", 2, {2, 3}, ones}}}};
    fl_peft_options any = {.any_init = true};
    fl_peft_set *s;
    fl_st st[3];

    (void)state;
    must(from_memory(3, g, &any, &s, st));
    assert_int_equal(s->nsites, 1);
    assert_int_equal(s->nextras, 1);
    assert_int_equal(fl_peft_set_r(s, 2, 0, NULL), 2);
    assert_non_null(strstr(s->notes.s, "base_model_name_or_path of 1 of the 3 adapters"));
    assert_non_null(strstr(s->notes.s, "first: B"));
    assert_non_null(strstr(s->notes.s, "task_type of 1 of the 3"));
    assert_non_null(strstr(s->notes.s, "1 of the 3 adapters have an adapter's name"));
    fl_peft_set_close(&s);
    for (int i = 0; i < 3; i++) {
        fl_st_close(&st[i]);
    }
}

static void test_prefixes_are_joined_on_demand(void **state)
{
    static const given g[3] = {
        {LORA "}", 4, {PAIR("layers.1.x", 3, 4, 2), PAIR("layers.0.x", 3, 4, 2)}},
        {LORA "}", 4, {PAIR("model.layers.0.x", 3, 4, 2), PAIR("lm_head", 5, 4, 2)}},
        {LORA "}", 4, {PAIR("model.layers.0.x", 3, 4, 2), PAIR("layers.0.x", 3, 4, 2)}}};
    static const given odd[2] = {{LORA "}", 2, {PAIR("layers.0.x", 3, 4, 2)}},
        {LORA "}", 2, {PAIR("model.layers.0.x", 3, 5, 2)}}};
    static const int r[3] = {1, 1, 1};
    fl_peft_options join = {.join_prefixes = true};
    fl_peft_set *s;
    fl_st st[3];
    written w;

    (void)state;
    must(from_memory(2, g, &join, &s, st));
    assert_int_equal(s->nsites, 3);
    assert_string_equal(s->site[0].name, "lm_head");
    assert_string_equal(s->site[1].name, "model.layers.0.x");
    assert_string_equal(s->site[2].name, "model.layers.1.x");
    assert_int_equal(s->site[1].nfolders, 2);
    assert_int_equal(fl_peft_set_r(s, 0, 1, NULL), 2);
    assert_int_equal(fl_peft_set_r(s, 1, 1, NULL), 2);
    assert_int_equal(fl_peft_set_r(s, 1, 2, NULL), 0);
    assert_non_null(strstr(s->notes.s, "taken as the same"));
    w = random_written(s, r);
    put_all(&w, &(fl_peft_how){.r = r}, in_folder("out"), false);
    assert_true(has_tensor(in_folder("out"), BASE "layers.0.x.lora_A.weight")); /* as the first */
    assert_true(has_tensor(in_folder("out"), BASE "lm_head.lora_A.weight"));
    written_free(&w);
    fl_peft_set_close(&s);
    fl_st_close(&st[0]);
    fl_st_close(&st[1]);
    refused(3, g, &join, FL_EDECK, "other adapters have both", "A");
    refused(2, odd, &join, FL_ESHAPE, "A: layers.0.x has another shape", "model.layers.0.x in B");
    /* one adapter may have both */
    must(from_memory(1, g + 2, NULL, &s, st));
    assert_int_equal(s->nsites, 2);
    fl_peft_set_close(&s);
    fl_st_close(&st[0]);
}

static void test_labels_are_unique(void **state)
{
    static const given g = {LORA "}", 6,
        {PAIR("a.3.attention.output.dense", 3, 4, 2), PAIR("a.3.output.dense", 3, 4, 2),
            PAIR("a.12.averyveryverylongname", 3, 4, 2)}};
    fl_peft_set *s;
    fl_st st[1];

    (void)state;
    must(from_memory(1, &g, NULL, &s, st));
    assert_string_equal(s->site[0].site.name, "#0.dense");
    assert_string_equal(s->site[1].site.name, "#1.dense");
    assert_string_equal(s->site[2].site.name, "12.averyveryver");
    assert_int_equal(s->site[0].site.block, 3);
    assert_int_equal(s->site[2].site.block, 12);
    fl_peft_set_close(&s);
    fl_st_close(&st[0]);
}

static void test_numbers_that_are_none(void **state)
{
    static const fl_real sick[24] = {[7] = (fl_real)NAN}, wild[24] = {[2] = (fl_real)INFINITY};
    static const given g[2] = {
        {LORA "}", 3,
            {{BASE "m.x.lora_A.weight", 2, {2, 4}, sick},
                {BASE "m.x.lora_B.weight", 2, {3, 2}, ones}, {BASE "score.weight", 1, {4}, ones}}},
        {LORA "}", 3,
            {{BASE "m.x.lora_A.weight", 2, {2, 4}, ones},
                {BASE "m.x.lora_B.weight", 2, {3, 2}, wild}, {BASE "score.weight", 1, {4}, wild}}}};
    fl_real a[8], b[6], x[4];
    fl_peft_set *s;
    fl_st st[2];

    (void)state;
    must(from_memory(2, g, NULL, &s, st));
    assert_int_equal(fl_peft_set_read(s, 0, 0, a, b), FL_ENUM);
    says("A: tensor m.x.lora_A.weight has a NaN");
    assert_int_equal(fl_peft_set_read(s, 1, 0, a, b), FL_ENUM);
    says("B: tensor m.x.lora_B.weight");
    must(fl_peft_set_read_extra(s, 0, 0, x));
    assert_int_equal(fl_peft_set_read_extra(s, 1, 0, x), FL_ENUM);
    says("B: tensor score.weight");
    fl_peft_set_close(&s);
    fl_st_close(&st[0]);
    fl_st_close(&st[1]);
}

static void test_folders_that_are_none(void **state)
{
    static const char json[] = LORA "}", zip[] = "PK";
    const char *dir[3] = {folder, folder, folder};
    char sub[3][512];
    fl_peft_set *s;

    (void)state;
    fl_error_clear();
    assert_int_equal(fl_peft_set_open(0, dir, NULL, &s), FL_EUSAGE);
    says("no adapter folder");
    assert_int_equal(fl_peft_set_open(1, dir, NULL, &s), FL_EFILE);
    says("has no adapter_config.json");
    must(fl_make_dirs(in_folder("a")));
    must(fl_file_write(in_folder("a/adapter_config.json"), json, sizeof json - 1));
    assert_int_equal(fl_peft_set_open(1, dir, NULL, &s), FL_EFILE);
    says("a/adapter_model.safetensors");
    must(fl_file_write(in_folder("a/adapter_model.bin"), zip, 2));
    assert_int_equal(fl_peft_set_open(1, dir, NULL, &s), FL_EFILE);
    says("Python pickle (adapter_model.bin)");
    must(fl_make_dirs(in_folder("b")));
    must(fl_file_write(in_folder("b/adapter_config.json"), json, sizeof json - 1));
    assert_int_equal(fl_peft_set_open(1, dir, NULL, &s), FL_EFILE);
    says("several adapters (a, b)");
    /* mistakes of several folders are reported together, once the first is read */
    dir[0] = FIXTURE "gpt2";
    for (int i = 1; i < 3; i++) {
        snprintf(sub[i], sizeof sub[i], "%s/%c", folder, "-ab"[i]);
        dir[i] = sub[i];
    }
    assert_int_equal(fl_peft_set_open(3, dir, NULL, &s), FL_EFILE);
    assert_non_null(strstr(fl_error_text(), "a: the weights are a Python pickle"));
    says("b/adapter_model.safetensors: cannot be read");
    assert_null(s);
}

/* a thousand adapters, few descriptors, little memory */
static void test_many_folders(void **state)
{
    enum { N = 1500, M = 40, R = 2, LAYERS = 5 };
    static const char json[] = LORA ",\"lora_alpha\":6}";
    struct rlimit before, low;
    const char **dir = fl_alloc("folders", N, sizeof *dir);
    fl_real *x = random_reals(M * M, 1), a[R * M], b[M * R], sum = 0, wanted = 0;
    char key[LAYERS][2][64], *template;
    fl_st_out out[2 * LAYERS];
    size_t bytes, now;
    fl_peft_set *s;

    (void)state;
    for (int l = 0; l < LAYERS; l++) {
        for (int p = 0; p < 2; p++) {
            snprintf(key[l][p], 64, BASE "h.%d.x.lora_%c.weight", l, "AB"[p]);
            out[2 * l + p] = (fl_st_out){key[l][p], 2, {p ? M : R, p ? R : M}, x};
        }
    }
    must(fl_st_write(in_folder("template"), 2 * LAYERS, out, "pt"));
    must(fl_file_read(in_folder("template"), &template, &bytes));
    for (int f = 0; f < N; f++) { /* without fsync */
        char path[600];
        FILE *file;
        float first = (float)f;

        snprintf(path, sizeof path, "%s/%d", folder, f);
        dir[f] = fl_strdup(path);
        assert_int_equal(mkdir(path, 0777), 0);
        snprintf(path, sizeof path, "%s/%d/adapter_config.json", folder, f);
        file = fopen(path, "w");
        assert_non_null(file);
        fputs(json, file);
        fclose(file);
        snprintf(path, sizeof path, "%s/%d/adapter_model.safetensors", folder, f);
        file = fopen(path, "w");
        assert_non_null(file);
        /* sorted by name, the last is B of the last layer: its last number */
        memcpy(template + bytes - 4, &first, 4);
        assert_int_equal(fwrite(template, 1, bytes, file), bytes);
        fclose(file);
    }
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 256;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    now = fl_memory_now();
    s = open_set(N, dir);
    assert_int_equal(s->nsites, LAYERS);
    /* what is held are tables, far below the numbers themselves */
    assert_true(fl_memory_now() - now < (size_t)N * 1500 + (1 << 20));
    for (int j = 0; j < LAYERS; j++) { /* site by site, as an aggregation goes */
        for (int f = 0; f < N; f++) {
            must(fl_peft_set_read(s, f, j, a, b));
            sum += j == LAYERS - 1 ? b[M * R - 1] : 0;
        }
    }
    for (int f = 0; f < N; f++) {
        wanted += (fl_real)f;
    }
    assert_true(sum == wanted);
    fl_peft_set_close(&s);
    assert_int_equal(fl_memory_now(), now);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (int f = 0; f < N; f++) {
        fl_free((void *)dir[f]);
    }
    fl_free(dir);
    fl_free(x);
    fl_free(template);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns_match_as_in_python),
        cmocka_unit_test(test_patterns_that_are_not_read),
        cmocka_unit_test(test_changes_are_those_of_peft),
        cmocka_unit_test(test_union_of_sites),
        cmocka_unit_test(test_both_spellings_are_one_site),
        cmocka_unit_test(test_extras_are_read),
        IN_A_FOLDER(test_what_is_written_comes_back),
        IN_A_FOLDER(test_config_that_is_written),
        IN_A_FOLDER(test_spelling_that_is_written),
        IN_A_FOLDER(test_rounding_to_sixteen_bits),
        IN_A_FOLDER(test_places_that_cannot_be_written),
        IN_A_FOLDER(test_refused_configs),
        IN_A_FOLDER(test_refused_tensors),
        IN_A_FOLDER(test_adapters_that_do_not_go_together),
        IN_A_FOLDER(test_what_agrees_is_accepted_and_said),
        IN_A_FOLDER(test_prefixes_are_joined_on_demand),
        IN_A_FOLDER(test_labels_are_unique),
        IN_A_FOLDER(test_numbers_that_are_none),
        IN_A_FOLDER(test_folders_that_are_none),
        IN_A_FOLDER(test_many_folders),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
