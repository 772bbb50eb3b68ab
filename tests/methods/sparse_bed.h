/* sparse_bed.h - rounds in which the test decides what a client's training does, and looks at what
 * the client then sends. */
#ifndef SPARSE_BED_H
#define SPARSE_BED_H
#include "unequal_bed.h"

#include <stdarg.h>

static const fl_method *good; /* the method under test */
static fl_method spy;         /* it, with some hooks replaced */

/* the run goes on with the hooks of spy */
static inline void spy_on(bed *b)
{
    good = b->rt->method;
    spy = *good;
    b->rt->method = &spy;
}

/* one whole round of the run */
static inline void one_round(bed *b, int t)
{
    fl_metrics_row(&b->rt->metrics);
    bed_ok(round_run(b->rt, t));
}

/* pair of element e of slot i, counted over all sites */
static inline size_t pair_number(const fl_space *sp, int i, size_t e)
{
    return (size_t)(fl_pair_first(sp, sp->slot[i].site) + pair_of(sp, i, e));
}

/* what "training" adds to an element of the server's adapter at client k */
static inline double delta_of(int k, size_t e)
{
    return 0.2 * bed_normal(50 + k, 1, e);
}

/* share of the deck's rank, as the methods round it */
static inline int budget(double share, int r)
{
    return FL_MAX(1, (int)floor(share * r + 0.5));
}

/* the adapters of two runs agree to `tol` of their size */
static inline void assert_same_adapter(const fl_adapter *x, const fl_adapter *y, double tol)
{
    double most = 0, gap = 0;

    assert_int_equal(x->space->n, y->space->n);
    for (size_t i = 0; i < x->space->n; i++) {
        most = FL_MAX(most, fabs((double)y->v[i]));
        gap = FL_MAX(gap, fabs((double)x->v[i] - y->v[i]));
    }
    assert_below(gap, tol * most);
}

/* everything is sent and trained: FedAvg, with uniform weights where the method has no others */
static inline void check_fedavg(
    const char *method, const char *set, const char *set2, const char *weights)
{
    static const char *const common[] = {"partition.kind=dirichlet", "partition.alpha=0.7",
        "partition.clients=5", "cohort.size=4", "adapter.r=4"};
    bed b, avg;

    bed_open(&b, test_ctx,
        BED_SET(method, set, set2, common[0], common[1], common[2], common[3], common[4],
            "cohort.weights=samples"));
    bed_open(&avg, test_ctx,
        BED_SET(
            "method.name=fedavg", weights, common[0], common[1], common[2], common[3], common[4]));
    for (int t = 1; t <= 2; t++) {
        one_round(&b, t);
        one_round(&avg, t);
        assert_same_adapter(b.rt->run.global, avg.rt->run.global, t == 1 ? 1e-6 : 1e-4);
    }
    bed_close(&b);
    bed_close(&avg);
}

#define UNEQUAL                                                                                    \
    "partition.kind=dirichlet", "partition.alpha=0.7", "partition.clients=5", "cohort.size=5",     \
        "clients.r=[1, 2, 4]", "clients.r_share=[0.4, 0.3, 0.3]"

/* budgets of all clients, together */
static inline double sum_budgets(const char *method, double share)
{
    double sum = 0;
    bed b;

    open_method(&b, method, NULL, NULL);
    for (int k = 0; k < K; k++) {
        sum += budget(share, b.rt->client_r[k]);
    }
    bed_close(&b);
    return sum;
}

/* ---- outputs of official code: tests/golden. site0 is a `down` of width 12, site1 an `up` ---- */
static fl_st golden;
static const char *const golden_site[] = {"down", "up"};

static inline const char *golden_name(const char *format, ...)
{
    static char name[80];
    va_list list;

    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    return name;
}

/* the tensor, which has n elements, into x */
static inline void golden_read(const char *name, size_t n, fl_real *x)
{
    int at = fl_st_find(&golden, name);

    if (at < 0) {
        fail_msg("the golden file has no %s", name);
    }
    bed_ok(fl_st_read(&golden, at, n, x));
}

/* PREFIX.site*.A and .B into ad */
static inline void golden_adapter(const bed *b, const char *prefix, fl_adapter *ad)
{
    for (int j = 0; j < 2; j++) {
        int site = fl_model_site_named(&b->rt->base.model, 0, golden_site[j]);

        for (int f = FL_A; f <= FL_B; f++) {
            fl_mat x = fl_at(ad, site, (fl_factor)f);

            golden_read(golden_name("%s.site%d.%c", prefix, j, "AB"[f]),
                (size_t)x.rows * (size_t)x.cols, x.x);
        }
    }
}

/* the file open on every rank, and a one-block Llama of width 12 in the bed's folder */
static inline void golden_open(const char *file)
{
    fl_model m = {.family = FL_FAMILY_LLAMA,
        .nlayers = 1,
        .nd = 12,
        .nheads = 2,
        .nkv = 1,
        .nff = 20,
        .vocab = 256,
        .nctx = 32,
        .rms = true,
        .rotary = true,
        .gated = true,
        .tied = true,
        .eps = 1e-5,
        .rope_theta = 10000,
        .init_range = 0.05};
    char model[256];
    fl_err err = FL_OK;

    bed_ok(fl_st_open(golden_name("tests/golden/%s.safetensors", file), &golden));
    snprintf(model, sizeof model, "%s/model", bed_dir);
    if (test_ctx->rank == 0) {
        bed_ok(fl_model_complete(&m));
        fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
        const fl_real **w = fl_alloc("tensors", (size_t)m.ntensors, sizeof *w);

        fl_model_init(&m, 7, base);
        for (int i = 0; i < m.ntensors; i++) {
            w[i] = base + m.tensor[i].at;
        }
        err = fl_hf_save(model, &m, w);
        fl_free(w);
        fl_free(base);
        fl_model_free(&m);
    }
    bed_ok(fl_agree(test_ctx, err));
}
#endif
