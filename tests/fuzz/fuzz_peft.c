/* fuzz_peft.c - libFuzzer: two bytes of length, that many bytes as adapter_config.json, the rest as
 * the weights file; without a rest, a small valid one. The model is a tiny Llama, or GPT-2 when the
 * length is odd. */
#include "fedlora/deck.h"
#include "fedlora/io.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define KEY(module) "base_model.model." module ".lora_"
static const char header_llama[] = "{\"" KEY(
    "model.layers.1.self_attn.o_proj") "A.weight\":{\"dtype\":\"F32\",\"shape\":[2,8],"
                                       "\"data_offsets\":[0,64]},\"" KEY(
                                           "model.layers.1.self_attn.o_proj") "B.weight\":{"
                                                                              "\"dtype\":"
                                                                              "\"F32\",\"shape\":["
                                                                              "8,2],\"data_"
                                                                              "offsets\":[64,128]}"
                                                                              "}";
static const char header_gpt2[] = "{\"" KEY(
    "transformer.h.1.attn.c_attn") "A.weight\":{\"dtype\":\"F32\",\"shape\":[2,8],"
                                   "\"data_offsets\":[0,64]},\"" KEY(
                                       "transformer.h.1.attn.c_attn") "B.weight\":{\"dtype\":"
                                                                      "\"F32\",\"shape\":[24,2],"
                                                                      "\"data_offsets\":[64,256]}}";

static fl_model fuzz_model(bool gpt2)
{
    fl_model m = {.family = gpt2 ? FL_FAMILY_GPT2 : FL_FAMILY_LLAMA,
        .nlayers = 2,
        .nd = 8,
        .nheads = 2,
        .nkv = gpt2 ? 2 : 1,
        .nff = 12,
        .vocab = 5,
        .nctx = 4,
        .rms = !gpt2,
        .rotary = !gpt2,
        .gated = !gpt2,
        .bias = gpt2,
        .tied = true,
        .eps = 1e-5,
        .rope_theta = 10000,
        .init_range = 0.02};

    if (fl_model_complete(&m) != FL_OK) {
        abort();
    }
    return m;
}

/* a valid weights file, all values 0.5 */
static size_t fuzz_weights(bool gpt2, unsigned char file[1024])
{
    const char *header = gpt2 ? header_gpt2 : header_llama;
    size_t length = strlen(header), bytes = gpt2 ? 256 : 128;
    const float half = 0.5F;

    memset(file, 0, 1024);
    file[0] = (unsigned char)(length & 255);
    file[1] = (unsigned char)(length >> 8);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < bytes; i += 4) {
        memcpy(file + 8 + length + i, &half, 4);
    }
    return 8 + length + bytes;
}

static void fuzz_adapter(const char *json, size_t n, const fl_st *st, bool gpt2)
{
    fl_spaces *reg = fl_spaces_create();
    fl_model m = fuzz_model(gpt2);
    fl_adapter *ad;
    fl_err err = fl_peft_parse(json, n, "fuzz", st, &m, reg, &ad);

    if ((err == FL_OK) != (*fl_error_text() == '\0') || (err == FL_OK) != (ad != NULL)) {
        abort();
    }
    if (err == FL_OK && (!fl_space_is_valid(ad->space) || !isfinite(fl_adapter_norm(ad)) ||
                            ad->space->nsites != m.nsites)) {
        abort();
    }
    fl_adapter_destroy(&ad);
    fl_model_free(&m);
    fl_spaces_destroy(&reg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    size_t before = fl_memory_now(), length = n < 2 ? 0 : (size_t)(data[0] | data[1] << 8);
    bool gpt2 = length & 1;
    unsigned char valid[1024];
    fl_st st;
    fl_err err;

    if (n < 2) {
        return 0;
    }
    length = FL_MIN(length, n - 2);
    err = length == n - 2 ? fl_st_parse(valid, fuzz_weights(gpt2, valid), "valid", &st)
                          : fl_st_parse(data + 2 + length, n - 2 - length, "fuzz", &st);
    if (length == n - 2 && err != FL_OK) {
        abort();
    }
    if (err == FL_OK) {
        fuzz_adapter((const char *)data + 2, length, &st, gpt2);
    }
    fl_st_close(&st);
    fl_error_clear();
    if (fl_memory_now() != before) {
        abort();
    }
    return 0;
}
