/* Many PEFT adapters as one set: r, s and the change of every module are what PEFT makes of the
 * same folders (tests/fixtures/peft, made by tests/interop/make_peft_fixture.py); sites are one
 * list whatever the order of the folders, and a thousand folders need neither descriptors nor
 * memory. */
#include "peft_bed.h"
#include <sys/resource.h>
#include <sys/stat.h>

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
        cmocka_unit_test(test_changes_are_those_of_peft),
        cmocka_unit_test(test_union_of_sites),
        cmocka_unit_test(test_both_spellings_are_one_site),
        cmocka_unit_test(test_extras_are_read),
        IN_A_FOLDER(test_prefixes_are_joined_on_demand),
        IN_A_FOLDER(test_labels_are_unique),
        IN_A_FOLDER(test_numbers_that_are_none),
        IN_A_FOLDER(test_folders_that_are_none),
        IN_A_FOLDER(test_many_folders),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
