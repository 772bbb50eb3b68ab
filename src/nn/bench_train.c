/* bench_train.c - `fedlora bench train`: steps of LoRA training, their rate beside the SGEMM peak
 * of the same core in the same run, and where the time goes. */
#include "fedlora/deck.h"
#include "nn_internal.h"
#include <string.h>

enum { BENCH_R = 8, BENCH_TOKENS = 512, BENCH_STEPS = 12 };

typedef struct bench {
    fl_model m; /* owned if `own`, else a copy of the caller's */
    bool own;
    fl_real *room;               /* owned; NULL = the caller's base */
    const fl_real **w;           /* owned [ntensors] */
    int *start, *token, *target; /* owned */
    fl_batch batch;
    fl_spaces *reg;        /* owned */
    fl_adapter *ad, *grad; /* owned */
    fl_optim opt;          /* owned */
    fl_work *work;         /* owned */
} bench;

static fl_err bench_model(bench *b, const fl_model *m)
{
    b->own = m == NULL;
    if (m) {
        b->m = *m;
        return FL_OK;
    }
    b->m = (fl_model){.family = FL_FAMILY_LLAMA,
        .nlayers = 6,
        .nd = 384,
        .nheads = 6,
        .nkv = 6,
        .nff = 1024,
        .vocab = 256,
        .nctx = 512,
        .rms = true,
        .rotary = true,
        .gated = true,
        .eps = 1e-5,
        .rope_theta = 10000,
        .init_range = 0.02};
    return fl_model_complete(&b->m);
}

/* BENCH_TOKENS in sequences of unequal length, none longer than the context; returns the longest */
static int bench_batch(bench *b)
{
    static const int cycle[] = {61, 127, 90, 150, 84};
    int longest = 0, nseq = 0, n = 0;

    b->start = fl_alloc("bench", BENCH_TOKENS + 1, sizeof *b->start);
    b->token = fl_alloc("bench", BENCH_TOKENS, sizeof *b->token);
    b->target = fl_alloc("bench", BENCH_TOKENS, sizeof *b->target);
    while (n < BENCH_TOKENS) {
        int length =
            FL_MIN(FL_MIN(cycle[nseq % (int)FL_COUNT(cycle)], b->m.nctx), BENCH_TOKENS - n);
        n += length;
        b->start[++nseq] = n;
        longest = FL_MAX(longest, length);
    }
    for (int t = 0; t < BENCH_TOKENS; t++) {
        b->token[t] = (int)(fl_rng_uniform(1, FL_RNG_BENCH, 0, 0, (uint64_t)t) * b->m.vocab);
        b->target[t] = (int)(fl_rng_uniform(1, FL_RNG_BENCH, 1, 0, (uint64_t)t) * b->m.vocab);
    }
    b->batch = (fl_batch){nseq, BENCH_TOKENS, b->start, b->token, b->target};
    return longest;
}

static void bench_adapter(bench *b)
{
    int *rank = fl_alloc("bench", (size_t)b->m.nsites, sizeof *rank);

    for (int i = 0; i < b->m.nlayers; i++) {
        rank[fl_model_site_named(&b->m, i, "q")] = BENCH_R;
        rank[fl_model_site_named(&b->m, i, "v")] = BENCH_R;
    }
    b->reg = fl_spaces_create();
    const fl_space *space = fl_space_lora(b->reg, b->m.nsites, b->m.site, rank, 2 * BENCH_R, false);
    b->ad = fl_adapter_create(space);
    b->grad = fl_adapter_create(space);
    for (size_t i = 0; i < space->n; i++) {
        b->ad->v[i] = (fl_real)(0.02 * fl_rng_normal(1, FL_RNG_BENCH, 2, 0, i));
    }
    fl_optim_create(&b->opt, FL_OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0, space->n);
    fl_free(rank);
}

static void bench_setup(bench *b, const fl_real *base)
{
    if (!base) {
        b->room = fl_alloc("bench base", fl_model_bytes(&b->m), 1);
        fl_model_init(&b->m, 1, b->room);
        base = b->room;
    }
    b->w = fl_alloc("bench", (size_t)b->m.ntensors, sizeof *b->w);
    for (int i = 0; i < b->m.ntensors; i++) {
        b->w[i] = base + b->m.tensor[i].at;
    }
    int longest = bench_batch(b);
    bench_adapter(b);
    b->work = fl_work_create(&b->m, BENCH_TOKENS, b->batch.nseq, longest, BENCH_R, true);
}

static void bench_free(bench *b)
{
    fl_work_destroy(&b->work);
    fl_optim_destroy(&b->opt);
    fl_adapter_destroy(&b->ad);
    fl_adapter_destroy(&b->grad);
    fl_spaces_destroy(&b->reg);
    fl_free(b->start);
    fl_free(b->token);
    fl_free(b->target);
    fl_free(b->w);
    fl_free(b->room);
    if (b->own) {
        fl_model_free(&b->m);
    }
}

/* seconds of one step */
static double bench_step(bench *b)
{
    fl_pass pass = {.w = b->w, .n = 1, .ad = {b->ad}, .coef = {1}, .grad = {b->grad}};
    fl_range all = {0, b->ad->space->n};
    double start = fl_now();
    int n;

    fl_nn_grad(b->work, &pass, &b->batch, &n);
    fl_clip(1, 1, &all, b->grad->v);
    fl_optim_step(&b->opt, 1e-4, 1, &all, b->grad->v, b->ad->v);
    nn_lap(b->work, NN_T_OPTIM);
    return fl_now() - start;
}

static void bench_report(const bench *b, double best, double peak, const double *share, fl_text *t)
{
    static const char *const name[NN_TIMES] = {"frozen products", "adapters", "attention",
        "norms, activations, rotary, sums", "loss", "clip and optimiser"};
    double mean = (double)BENCH_TOKENS / b->batch.nseq, sum = 0;
    double rate = fl_model_flops(&b->m, b->ad->space, BENCH_TOKENS, mean, true) / best * 1e-9;

    fl_text_add(t,
        "LoRA training, r %d on q and v: %d blocks, width %d, inner width %d, vocabulary %d; %d "
        "tokens in %d "
        "sequences a step\n",
        BENCH_R, b->m.nlayers, b->m.nd, b->m.nff, b->m.vocab, BENCH_TOKENS, b->batch.nseq);
    fl_text_add(t, "best of %d steps    %10.4f s\n", BENCH_STEPS, best);
    fl_text_add(t, "tokens             %10.0f /s\n", BENCH_TOKENS / best);
    fl_text_add(t, "useful work        %10.1f GFLOP/s\n", rate);
    fl_text_add(t, "SGEMM peak         %10.1f GFLOP/s (the limit, one thread)\n", peak);
    fl_text_add(t, "fraction           %10.1f %%\n", 100 * rate / peak);
    for (int i = 0; i < NN_TIMES; i++) {
        sum += share[i];
    }
    for (int i = 0; i < NN_TIMES; i++) {
        fl_text_add(
            t, "  %-34s %8.2f ms %6.1f %%\n", name[i], 1e3 * share[i], 100 * share[i] / sum);
    }
}

fl_err fl_bench_train(const fl_model *m, const fl_real *base, fl_text *t)
{
    bench b = {0};
    double best = 1e300, peak = 0, share[NN_TIMES] = {0};

    FL_REQUIRE(m || !base);
    FL_TRY(bench_model(&b, m));
    bench_setup(&b, base);
    b.work->clocked = true;
    for (int i = 0; i < BENCH_STEPS; i++) {
        memset(b.work->seconds, 0, sizeof b.work->seconds);
        double seconds = bench_step(&b);
        if (seconds < best) {
            best = seconds;
            memcpy(share, b.work->seconds, sizeof share);
        }
        if (i % 4 == 3) { /* between the steps, so that both see the same machine */
            peak = FL_MAX(peak, fl_gemm_peak(BENCH_TOKENS, b.m.nd, b.m.nd));
            peak = FL_MAX(peak, fl_gemm_peak(BENCH_TOKENS, b.m.nff, b.m.nd));
        }
    }
    bench_report(&b, best, peak, share, t);
    bench_free(&b);
    return FL_OK;
}
