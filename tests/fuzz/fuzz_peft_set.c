/* fuzz_peft_set.c - libFuzzer: a byte of options, two bytes of length each for two configs, the
 * configs, the rest as a weights file. Option 1: join prefixes, 2: any initialisation, 4: the
 * second adapter has the given weights, too, and not a small valid file of its own; 8: there is no
 * second; without a rest both have the valid file. */
#include "fedlora/io.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define KEY(part) "\"base_model.model.model.layers.1.self_attn.o_proj.lora_" part ".weight\":"
static const char header[] =
    "{" KEY("A") "{\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]}," KEY(
        "B") "{\"dtype\":\"F32\",\"shape\":[8,2],\"data_offsets\":[64,128]},"
             "\"base_model.model.score.weight\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":"
             "[128,134]}}";

/* a valid weights file, all values 0.5 or thereabouts */
static size_t fuzz_weights(unsigned char file[1024])
{
    size_t length = strlen(header);
    const float half = 0.5F;

    memset(file, 0, 1024);
    file[0] = (unsigned char)(length & 255);
    file[1] = (unsigned char)(length >> 8);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < 128; i += 4) {
        memcpy(file + 8 + length + i, &half, 4);
    }
    return 8 + length + 134;
}

static void fuzz_read(const fl_peft_set *s, int f, int j)
{
    const fl_site *site = &s->site[j].site;
    double scale;
    int r = fl_peft_set_r(s, f, j, &scale);
    size_t na = (size_t)r * (size_t)site->n, nb = (size_t)r * (size_t)site->m;
    fl_real *a, *b;
    fl_err err;

    if (!isfinite(scale) || r < 0 || site->m < 1 || site->n < 1) {
        abort();
    }
    if (r == 0) {
        return;
    }
    a = fl_alloc("a", na, sizeof *a);
    b = fl_alloc("b", nb, sizeof *b);
    err = fl_peft_set_read(s, f, j, a, b);
    for (size_t i = 0; err == FL_OK && i < na; i++) {
        if (!isfinite(a[i])) {
            abort();
        }
    }
    for (size_t i = 0; err == FL_OK && i < nb; i++) {
        if (!isfinite(b[i])) {
            abort();
        }
    }
    if (err != FL_OK && err != FL_ENUM) {
        abort();
    }
    fl_free(a);
    fl_free(b);
}

static void fuzz_set(const fl_peft_set *s)
{
    for (int j = 0; j < s->nsites; j++) {
        int here = 0;

        for (int f = 0; f < s->nfolders; f++) {
            here += fl_peft_set_r(s, f, j, NULL) > 0;
            fuzz_read(s, f, j);
        }
        if (here != s->site[j].nfolders || here == 0 ||
            (j > 0 && strcmp(s->site[j - 1].name, s->site[j].name) == 0)) {
            abort();
        }
    }
    for (int j = 0; j < s->nextras; j++) {
        fl_real *x = fl_alloc("x", s->extra[j].n, sizeof *x);

        for (int f = 0; f < s->nfolders; f++) {
            (void)fl_peft_set_read_extra(s, f, j, x);
        }
        fl_free(x);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now(), one, two, at = 5;
    unsigned char valid[1024];
    fl_peft_set *s = NULL;
    fl_st own, given;
    fl_err err;

    if (n < at) {
        return 0;
    }
    one = FL_MIN((size_t)(data[1] | data[2] << 8), n - at);
    two = FL_MIN((size_t)(data[3] | data[4] << 8), n - at - one);
    at += one + two;
    if (fl_st_parse(valid, fuzz_weights(valid), "valid", &own) != FL_OK) {
        abort();
    }
    err = at == n ? fl_st_parse(valid, own.nbytes, "valid", &given)
                  : fl_st_parse(data + at, n - at, "fuzz", &given);
    if (err == FL_OK) {
        fl_peft_options options = {.join_prefixes = data[0] & 1, .any_init = data[0] & 2};
        fl_peft_source source[2] = {{"one", (const char *)data + 5, one, &given},
            {"two", (const char *)data + 5 + one, two, data[0] & 4 ? &given : &own}};

        err = fl_peft_set_parse(data[0] & 8 ? 1 : 2, source, &options, &s);
        if ((err == FL_OK) != (*fl_error_text() == '\0') || (err == FL_OK) != (s != NULL)) {
            abort();
        }
    }
    if (s) {
        fuzz_set(s);
    }
    fl_peft_set_close(&s);
    fl_st_close(&given);
    fl_st_close(&own);
    fl_error_clear();
    if (fl_memory_now() != before) {
        abort();
    }
    return 0;
}
