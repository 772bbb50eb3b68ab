/* hf_bed.h - a folder of its own and tiny models, for the tests of Hugging Face folders and PEFT
 * adapters. */
#ifndef HF_BED_H
#define HF_BED_H
#include "fedlora/io.h"
#include "harness.h"
#include <string.h>

static char folder[256];

static inline int folder_make(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(folder, sizeof folder, "%s/fedlora-hf-XXXXXX", tmp ? tmp : P_tmpdir);
    return mkdtemp(folder) == NULL;
}

static inline const char *in_folder(const char *name)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static inline int folder_drop(void **state)
{
    static const char *const names[] = {"config.json", "model.safetensors",
        "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
        "sub/adapter_config.json", "sub/adapter_model.safetensors", "sub"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        remove(in_folder(names[i]));
    }
    return rmdir(folder);
}

static inline void says(const char *what)
{
    if (strstr(fl_error_text(), what) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", fl_error_text(), what);
    }
    fl_error_clear();
}

/* GPT-2: inner width not 4 d; Llama: grouped heads wider than d / heads; tied or not */
static inline fl_model tiny(int family, bool tied)
{
    bool llama = family == FL_FAMILY_LLAMA;
    fl_model m = {.family = family,
        .nlayers = 2,
        .nd = 12,
        .nheads = 3,
        .nkv = llama ? 1 : 3,
        .hd = llama ? 6 : 4,
        .nff = 20,
        .vocab = 17,
        .nctx = 9,
        .rms = llama,
        .rotary = llama,
        .gated = llama,
        .bias = !llama,
        .tied = tied,
        .eps = 1e-5,
        .rope_theta = llama ? 1234.5 : 0,
        .init_range = 0.02};

    assert_int_equal(fl_model_complete(&m), FL_OK);
    return m;
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, folder_drop)
#endif
