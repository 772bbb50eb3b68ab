/* hf_case.c - the C side of check_hf.py: writes a random model and an adapter, or computes logits
 * of what others wrote. hf_case make gpt2|llama plain|mixed|rslora|stack DIR   DIR/model,
 * DIR/adapter, DIR/tokens.bin, DIR/logits.bin hf_case logits MODELDIR ADAPTERDIR|- TOKENS LOGITS
 * int32 tokens of one sequence in, float32 [tokens][vocab] out
 * Built by: make B=build && mpicc -std=c11 -D_GNU_SOURCE -Iinclude tests/interop/hf_case.c
 * build/libfedlora.a \
 *           $(jobs/install/flags.sh libs) -lm -o build/hf_case */
#include "fedlora/io.h"
#include <stdlib.h>
#include <string.h>

enum { NTOKENS = 24 };

static int say(fl_err err)
{
    fprintf(stderr, "%s\n", fl_error_text());
    return fl_exit_code(err);
}

/* logits of one sequence, to a file */
static fl_err logits(const fl_model *m, const fl_real *const *w, const fl_adapter *ad, int n,
    const int *token, const char *path)
{
    int start[2] = {0, n}, counted, rmax = ad ? ad->space->rmax : 0;
    int *target = fl_alloc("targets", (size_t)n, sizeof *target);
    fl_batch batch = {1, n, start, token, target};
    fl_pass pass = {.w = w, .n = ad != NULL, .ad = {ad}, .coef = {1}};
    fl_work *work = fl_work_create(m, n, 1, n, rmax, false);
    fl_err err;

    (void)fl_nn_loss(work, &pass, &batch, &counted);
    err = fl_file_write(path, fl_nn_logits(work), (size_t)n * (size_t)m->vocab * sizeof(fl_real));
    fl_work_destroy(&work);
    fl_free(target);
    return err;
}

static const fl_real **pointers(const fl_model *m, const fl_real *base)
{
    const fl_real **w = fl_alloc("weights", (size_t)m->ntensors, sizeof *w);

    for (int i = 0; i < m->ntensors; i++) {
        w[i] = base + m->tensor[i].at;
    }
    return w;
}

static int compute(const char *model, const char *adapter, const char *tokens, const char *out)
{
    fl_spaces *reg = fl_spaces_create();
    fl_adapter *ad = NULL;
    fl_real *base = NULL;
    char *token = NULL;
    fl_model m;
    size_t n;
    fl_err err = fl_hf_config(model, &m);

    if (err == FL_OK) {
        base = fl_alloc("base", fl_model_bytes(&m), 1);
        err = fl_hf_load(model, &m, base);
    }
    if (err == FL_OK && strcmp(adapter, "-") != 0) {
        err = fl_peft_load(adapter, &m, reg, &ad);
    }
    if (err == FL_OK) {
        err = fl_file_read(tokens, &token, &n);
    }
    if (err == FL_OK) {
        const fl_real **w = pointers(&m, base);

        err = logits(&m, w, ad, (int)(n / sizeof(int)), (const int *)token, out);
        fl_free(w);
    }
    return err == FL_OK ? 0 : say(err);
}

static fl_model shape(bool llama)
{
    fl_model m = {.family = llama ? FL_FAMILY_LLAMA : FL_FAMILY_GPT2,
        .nlayers = 12,
        .nd = 24,
        .nheads = 4,
        .nkv = llama ? 2 : 4,
        .hd = llama ? 8 : 6,
        .nff = 40,
        .vocab = 61,
        .nctx = 32,
        .rms = llama,
        .rotary = llama,
        .gated = llama,
        .bias = !llama,
        .tied = !llama,
        .eps = 1e-5,
        .rope_theta = llama ? 5000 : 0,
        .init_range = 0.02};

    if (fl_model_complete(&m) != FL_OK) {
        exit(say(FL_EBUG));
    }
    return m;
}

/* plain: q and v, unequal r; others: ranks 0..4 all over the model, so that blocks 1 and 11 differ
 */
static fl_adapter *adapter_make(fl_spaces *reg, const fl_model *m, const char *kind, double alpha)
{
    int *r = fl_alloc("ranks", (size_t)m->nsites, sizeof *r);
    fl_adapter *ad;

    for (int j = 0; j < m->nsites; j++) {
        const char *site = strchr(m->site[j].name, '.') + 1;
        uint32_t x[4];

        fl_rng_block(1, FL_RNG_TEST, j, 0, 0, x);
        if (strcmp(kind, "plain") != 0) {
            r[j] = (int)(x[0] % 5);
        } else if (strcmp(site, "q") == 0 || strcmp(site, "v") == 0) {
            r[j] = *site == 'q' ? 4 : 2;
        }
    }
    ad = fl_adapter_create(
        fl_space_lora(reg, m->nsites, m->site, r, alpha, strcmp(kind, "rslora") == 0));
    for (size_t i = 0; i < ad->space->n; i++) {
        ad->v[i] = (fl_real)(0.1 * fl_rng_normal(2, FL_RNG_TEST, 0, 0, i));
    }
    fl_free(r);
    return ad;
}

static int make(bool llama, const char *kind, const char *dir)
{
    fl_spaces *reg = fl_spaces_create();
    fl_model m = shape(llama);
    double alpha = strcmp(kind, "stack") == 0 ? 0 : 6;
    fl_adapter *ad = adapter_make(reg, &m, kind, alpha);
    fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
    const fl_real **w = pointers(&m, base);
    char path[4][512];
    static const char *const name[4] = {"model", "adapter", "tokens.bin", "logits.bin"};
    int token[NTOKENS];
    fl_err err;

    for (int i = 0; i < m.ntensors; i++) {
        for (size_t k = 0; k < (size_t)m.tensor[i].rows * (size_t)m.tensor[i].cols; k++) {
            base[m.tensor[i].at + k] = (fl_real)((strstr(m.tensor[i].name, "norm") != NULL) +
                                                 0.2 * fl_rng_normal(3, FL_RNG_TEST, i, 0, k));
        }
    }
    for (int i = 0; i < NTOKENS; i++) {
        token[i] = (i * i + 7 * i + 3) % m.vocab;
    }
    for (int i = 0; i < 4; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s", dir, name[i]);
    }
    err = fl_hf_save(path[0], &m, w);
    if (err == FL_OK) {
        err = fl_peft_save(path[1], &m, ad, alpha, strcmp(kind, "rslora") == 0, path[0]);
    }
    if (err == FL_OK) {
        err = fl_file_write(path[2], token, sizeof token);
    }
    if (err == FL_OK) {
        err = logits(&m, w, ad, NTOKENS, token, path[3]);
    }
    return err == FL_OK ? 0 : say(err);
}

int main(int argc, char **argv)
{
    int code = 2;

    MPI_Init(&argc, &argv);
    if (argc == 5 && strcmp(argv[1], "make") == 0) {
        code = make(strcmp(argv[2], "llama") == 0, argv[3], argv[4]);
    } else if (argc == 6 && strcmp(argv[1], "logits") == 0) {
        code = compute(argv[2], argv[3], argv[4], argv[5]);
    } else {
        fprintf(stderr, "usage: see the head of tests/interop/hf_case.c\n");
    }
    MPI_Finalize();
    return code;
}
