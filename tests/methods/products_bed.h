/* products_bed.h - for tests of aggregation rules: products of adapters as dense matrices in double, and how far two are apart. */
#ifndef PRODUCTS_BED_H
#define PRODUCTS_BED_H
#include "method_run.h"

enum { DENSE = BED_SIDE * BED_SIDE };

/* a bed with unequal weights; more: further keys, NULL at the end */
static inline void open_rule(bed *b, const char *name, const char *r, const char *size, const char *const *more)
{
    char method[64], rank[64], cohort[64], clients[64];
    const char *all[BED_SETS] = { method, rank, cohort, clients, "partition.kind=dirichlet", "partition.alpha=0.7" };

    snprintf(method, sizeof method, "method.name=%s", name);
    snprintf(rank, sizeof rank, "adapter.r=%s", r);
    snprintf(cohort, sizeof cohort, "cohort.size=%s", size);
    snprintf(clients, sizeof clients, "partition.clients=%s", size);
    for (int i = 0, n = 6; more[i] != NULL; i++) {
        all[n++] = more[i];
    }
    bed_open(b, test_ctx, all);
}

/* adapted sites only: for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) */
static inline int next_site(const bed *b, int j)
{
    for (j++; j < b->rt->run.nsites; j++) {
        if (b->rt->run.space->r[j] > 0) {
            return j;
        }
    }
    return -1;
}

static inline size_t site_size(const bed *b, int j)
{
    return (size_t)b->rt->base.model.site[j].m * (size_t)b->rt->base.model.site[j].n;
}

/* x = s B A */
static inline void dense_of(const fl_adapter *ad, int j, double *x)
{
    memset(x, 0, DENSE * sizeof *x);
    bed_add(ad->space->scale[j], fl_at(ad, j, FL_B), NULL, fl_at(ad, j, FL_A), NULL, x);
}

/* || x - y || / || y || */
static inline double apart(size_t n, const double *x, const double *y)
{
    double d = 0;

    for (size_t i = 0; i < n; i++) {
        d += (x[i] - y[i]) * (x[i] - y[i]);
    }
    return sqrt(d / bed_norm2(n, y));
}

/* largest over sites of || s B A - s' B' A' || / || s' B' A' || */
static inline double products_apart(const bed *b, const fl_adapter *x, const fl_adapter *y)
{
    static double p[DENSE], q[DENSE];
    double worst = 0;

    for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) {
        dense_of(x, j, p);
        dense_of(y, j, q);
        worst = fmax(worst, apart(site_size(b, j), p, q));
    }
    return worst;
}

/* largest over sites of || s B A - T || / || T || */
static inline double ideal_apart(const bed *b, const fl_adapter *x)
{
    static double p[DENSE], t[DENSE];
    double worst = 0;

    for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) {
        dense_of(x, j, p);
        bed_ideal(b, j, t);
        assert_true(bed_norm2(site_size(b, j), t) > 0);
        worst = fmax(worst, apart(site_size(b, j), p, t));
    }
    return worst;
}

/* singular values of a dense m x n x of site j, descending; returns their number */
static inline int values_of(const bed *b, int j, const double *x, double *sv)
{
    static double u[DENSE], vt[DENSE];
    const fl_site *st = &b->rt->base.model.site[j];

    bed_ok(fl_svd(st->m, st->n, x, u, sv, vt));
    return FL_MIN(st->m, st->n);
}

/* the first `keep` pairs of every client stay */
static inline void keep_first(bed *b, int keep)
{
    for (int i = 0; i < b->n; i++) {
        for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) {
            fl_mat a = fl_at(b->client[i], j, FL_A), c = fl_at(b->client[i], j, FL_B);

            for (int e = 0; e < a.rows * a.cols; e++) {
                a.x[e] = e / a.cols < keep ? a.x[e] : 0;
            }
            for (int e = 0; e < c.rows * c.cols; e++) {
                c.x[e] = e % c.cols < keep ? c.x[e] : 0;
            }
        }
    }
}

/* factor f of all clients becomes that of client 0 */
static inline void share_factor(bed *b, fl_factor f)
{
    for (int i = 1; i < b->n; i++) {
        for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) {
            fl_mat from = fl_at(b->client[0], j, f), to = fl_at(b->client[i], j, f);

            memcpy(to.x, from.x, (size_t)to.rows * (size_t)to.cols * sizeof *to.x);
        }
    }
}

/* rounds from .. to with clients that train */
static inline void run_rounds(bed *b, int from, int to)
{
    for (int t = from; t <= to; t++) {
        fl_metrics_row(&b->rt->metrics);
        bed_ok(round_run(b->rt, t));
    }
}

/* q, v, up, down of the bed's two blocks (width 24, 2 of 4 heads for keys and values, inner width 40): sum over sites of m + n */
static const double sum_mn = 2 * (24 + 24 + 24 + 12 + 24 + 40 + 40 + 24), sum_m = 2 * (24 + 12 + 40 + 24);
enum { ADAPTED = 8 };
#endif
