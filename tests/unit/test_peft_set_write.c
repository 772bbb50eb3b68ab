/* An adapter written on the sites of a set: numbers, r and s come back, and the config makes PEFT
 * adapt what was written and nothing else. That PEFT loads it is shown by
 * tests/interop/check_peft_set.py. */
#include "peft_bed.h"
#include <jansson.h>

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

/* the inputs' own list of targets is copied only while nothing is left to guess */
static void test_targets_that_are_not_copied(void **state)
{
    static const given g[2] = {
        {LORA ",\"target_modules\":[\"x\"]}", 4, {PAIR("a.x", 3, 4, 2), PAIR("b.x", 3, 4, 2)}},
        {LORA ",\"target_modules\":[\"x\"]}", 2, {PAIR("a.x", 3, 4, 2)}}};
    static const int r[2] = {2, 2};
    const fl_peft_how how = {.r = r};

    (void)state;
    for (int n = 1; n <= 2; n++) {
        fl_peft_set *s;
        fl_st st[2];
        written w;
        json_t *o, *targets;

        must(from_memory(n, g, NULL, &s, st));
        w = random_written(s, r);
        put_all(&w, &how, in_folder("out"), false);
        o = config_of(in_folder("out"));
        targets = json_object_get(o, "target_modules");
        assert_int_equal(json_array_size(targets), n);
        assert_string_equal(json_string_value(json_array_get(targets, 0)), n == 1 ? "x" : "a.x");
        json_decref(o);
        written_free(&w);
        fl_peft_set_close(&s);
        for (int i = 0; i < n; i++) {
            fl_st_close(&st[i]);
        }
    }
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
    static const fl_real unit[4] = {1, 1, 1, 1};
    static const fl_st_out pair[2] = {
        {BASE "x.lora_A.weight", 2, {1, 2}, unit}, {BASE "x.lora_B.weight", 2, {2, 1}, unit}};
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(test_what_is_written_comes_back),
        IN_A_FOLDER(test_config_that_is_written),
        IN_A_FOLDER(test_targets_that_are_not_copied),
        IN_A_FOLDER(test_spelling_that_is_written),
        IN_A_FOLDER(test_rounding_to_sixteen_bits),
        IN_A_FOLDER(test_places_that_cannot_be_written),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
