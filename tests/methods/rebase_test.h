/* rebase_test.h - for methods that merge into the base: what an outsider who writes down downloads and uploads expects in the
 * ledger, the base that an absent client makes for itself out of what it missed, and plain sums of factors. */
#ifndef REBASE_TEST_H
#define REBASE_TEST_H
#include "method_run.h"

/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values and inner width 40: the bed's sites */
static const double bed_sum_n = 2 * (24 + 24 + 24 + 40), bed_sum_m = 2 * (24 + 12 + 40 + 24);

static inline double rebase_norm(size_t n, const double *v)
{
    return sqrt(bed_norm2(n, v));
}

/* ||v - w|| <= tol ||w||, and w is not nothing */
static inline void assert_near(size_t n, const double *v, const double *w, double tol)
{
    double gap = 0;

    for (size_t i = 0; i < n; i++) {
        gap += (v[i] - w[i]) * (v[i] - w[i]);
    }
    assert_true(rebase_norm(n, w) > 0);
    assert_below(sqrt(gap), tol * rebase_norm(n, w));
}

/* ---- traffic ---- */
typedef struct book {
    double (*up)(int r);         /* bytes that a client of rank r sends */
    double (*parts)(int t);      /* bytes of what a client is sent in round t, revisions and the first seed apart */
    double (*revision)(int t);   /* bytes of the base's revision that round t made */
} book;

static inline double no_parts(int t)
{
    (void)t;
    return 0;
}

/* up and down [rounds] of the run with these keys, no upload lost */
static inline void book_run(const book *k, const char *const *sets, int rounds, double *up, double *down)
{
    int seen[64] = { 0 };
    bool again = false;
    bed b;

    bed_open(&b, test_ctx, sets);
    assert_true(b.rt->run.nclients <= 64);
    for (int t = 1; t <= rounds; t++) {
        up[t - 1] = down[t - 1] = 0;
        round_draw(b.rt, t);
        for (int i = 0; i < b.n; i++) {
            int id = b.rt->cohort[i];

            up[t - 1] += k->up(b.rt->client_r[id]);
            down[t - 1] += k->parts(t) + (seen[id] == 0 ? 8 : 0);
            for (int u = FL_MAX(seen[id], 1); u < t; u++) {
                down[t - 1] += k->revision(u);
            }
            again = again || (seen[id] > 0 && seen[id] < t - 1);
            seen[id] = t;
        }
    }
    assert_true(again); /* somebody missed a round and came back */
    bed_close(&b);
}

/* ---- the base, kept by somebody who was absent ---- */
static inline fl_real *base_copy(const bed *b)
{
    fl_real *x = fl_alloc("replica", fl_model_bytes(&b->rt->base.model), 1);

    memcpy(x, b->rt->base.share.x, fl_model_bytes(&b->rt->base.model));
    return x;
}

/* one tensor of a copy, from the row where the site begins */
static inline fl_real *base_at(const bed *b, fl_real *copy, int site)
{
    int tensor, row0;

    fl_model_site_tensor(&b->rt->base.model, site, &tensor, &row0);
    return copy + (b->rt->base.w[tensor] - (const fl_real *)b->rt->base.share.x) +
        (size_t)row0 * (size_t)b->rt->base.model.site[site].n;
}

/* copy += coef s B A at every site whose factors are here */
static inline void base_replay(const bed *b, fl_real *copy, const fl_adapter *ad, double coef)
{
    for (int j = 0; j < ad->space->nsites; j++) {
        int tensor, row0;

        if (ad->space->r[j] > 0 && fl_at(ad, j, FL_A).x != NULL) {
            fl_model_site_tensor(&b->rt->base.model, j, &tensor, &row0);
            fl_linear_merge(&b->rt->base.model, j, base_at(b, copy, j) - (size_t)row0 * (size_t)b->rt->base.model.site[j].n, ad, coef);
        }
    }
}

/* x (m x n) = W now - W of the copy */
static inline void base_change(const bed *b, fl_real *copy, int site, double *x)
{
    const fl_site *st = &b->rt->base.model.site[site];
    const fl_real *now = base_at(b, b->rt->base.share.x, site), *was = base_at(b, copy, site);

    for (int i = 0; i < st->m * st->n; i++) {
        x[i] = (double)now[i] - was[i];
    }
}

/* number of singular values of x (m x n) above tol times the largest */
static inline int numerical_rank(int m, int n, const double *x, double tol)
{
    static double u[BED_SIDE * BED_SIDE], vt[BED_SIDE * BED_SIDE], sv[BED_SIDE];
    int r = 0;

    bed_ok(fl_svd(m, n, x, u, sv, vt));
    assert_true(sv[0] > 0);
    while (r < FL_MIN(m, n) && sv[r] > tol * sv[0]) {
        r++;
    }
    return r;
}

/* ---- plain sums ---- x = sum_k p_k X_k of one factor, in double */
static inline void mean_factor(const bed *b, int site, fl_factor f, double *x)
{
    fl_mat first = fl_at(b->client[0], site, f);

    memset(x, 0, (size_t)first.rows * (size_t)first.cols * sizeof *x);
    for (int i = 0; i < b->n; i++) {
        fl_mat y = fl_at(b->client[i], site, f);

        for (int e = 0; e < y.rows * y.cols; e++) {
            x[e] += b->p[i] * y.x[e];
        }
    }
}

/* x (m x n) = c (sum_k p_k B_k)(sum_k p_k A_k) */
static inline void mean_product(const bed *b, int site, double c, double *x)
{
    static double ma[BED_SIDE * BED_SIDE], mb[BED_SIDE * BED_SIDE];
    int m = b->rt->base.model.site[site].m, n = b->rt->base.model.site[site].n, r = b->client[0]->space->r[site];

    mean_factor(b, site, FL_A, ma);
    mean_factor(b, site, FL_B, mb);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;

            for (int l = 0; l < r; l++) {
                sum += mb[i * r + l] * ma[l * n + j];
            }
            x[i * n + j] = c * sum;
        }
    }
}

/* what the server installed, W now - W before + s B A, is c (sum_k p_k B_k)(sum_k p_k A_k) s at every site */
static inline void assert_installs_means(const bed *b, double c)
{
    static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];
    double gap = 0, size = 0, grain = 0;

    for (int j = 0; j < b->rt->run.nsites; j++) {
        size_t n = (size_t)b->rt->base.model.site[j].m * (size_t)b->rt->base.model.site[j].n;

        if (b->rt->run.space->r[j] == 0) {
            continue;
        }
        memset(x, 0, sizeof x);
        bed_installed(b, j, x, &grain);
        mean_product(b, j, c * bed_scale(b, b->client[0], j), y);
        size += bed_norm2(n, y);
        for (size_t i = 0; i < n; i++) {
            x[i] -= y[i];
        }
        gap += bed_norm2(n, x);
    }
    assert_true(size > 1);
    assert_below(sqrt(gap), 1e-6 * sqrt(size) + sqrt(grain));
}

/* the uploads as the method's own hook makes them of client[]; ranks as in the run */
static inline void send_by_hook(bed *b)
{
    fl_runtime *rt = b->rt;

    bed_weights(b);
    rt->sent = fl_scratch(&rt->run, (size_t)b->n, sizeof *rt->sent);
    for (int i = rt->first[b->ctx->rank]; i < rt->first[b->ctx->rank + 1]; i++) {
        fl_client *c = fl_scratch(&rt->run, 1, sizeof *c);
        fl_msg *msg = fl_scratch(&rt->run, 1, sizeof *msg);

        *c = (fl_client){ .id = i, .r = rt->client_r[i], .n = 1, .ad = { b->client[i] } };
        *msg = (fl_msg){ .run = &rt->run, .client = c, .up = true };
        bed_ok(rt->method->upload(&rt->run, c, msg));
        bed_ok(msg->err);
        rt->sent[i] = msg;
    }
}

/* ---- one step of gradient descent on everything: the change of a tensor's rows at a site, and the same by a method ---- */
static inline void one_sgd_step(const char *const *extra, const char *method, double *x, const char *site_name)
{
    const char *sets[BED_SETS] = { method, "partition.clients=1", "cohort.size=1", "train.optimizer=sgd", "train.momentum=0",
        "train.steps=1", "train.lr=0.5", "train.clip=0", "train.weight_decay=0" };
    int n = 9;
    bed b;

    for (int i = 0; extra[i] != NULL; i++) {
        sets[n++] = extra[i];
    }
    bed_open(&b, test_ctx, sets);
    int site = fl_model_site_named(&b.rt->base.model, 0, site_name), tensor, row0;
    const fl_site *st = &b.rt->base.model.site[site];
    fl_real *before = base_copy(&b);

    bed_run(&b, 1);
    base_change(&b, before, site, x);
    if (b.deck->train.what == FL_WHAT_FULL) {
        fl_model_site_tensor(&b.rt->base.model, site, &tensor, &row0);
        for (int i = 0; i < st->m * st->n; i++) {
            x[i] += fl_at(b.rt->run.global, tensor, FL_DENSE).x[(size_t)row0 * (size_t)st->n + (size_t)i];
        }
    }
    fl_free(before);
    bed_close(&b);
}
#endif
