/* aggregate_audit.c - what an aggregation cost, module by module: ranks in and out, how far the
 * result is from the exact sum T = sum_k p_k s_k B_k A_k, what its SVD cut off; and how far plain
 * averaging of the factors would have been. One pass over the files. While the stack of all pairs
 * is thin, norms are those of thin products; else T is formed. */
#include "aggregate.h"

#include <math.h>
#include <string.h>

/* a sum of thin products, as a stack or as the m x n matrix itself */
typedef struct total {
    int m, n;
    int64_t room, at;    /* of the stack; room 0 = dense */
    double *bs, *as, *x; /* scratch */
} total;

static total total_new(fl_run *run, const fl_site *st, int64_t room, bool dense)
{
    total t = {.m = st->m, .n = st->n, .room = dense ? 0 : room};

    if (dense) {
        t.x = fl_scratch(run, (size_t)st->m * (size_t)st->n, sizeof *t.x);
    } else {
        t.bs = fl_scratch(run, (size_t)st->m * (size_t)room, sizeof *t.bs);
        t.as = fl_scratch(run, (size_t)room * (size_t)st->n, sizeof *t.as);
    }
    return t;
}

/* += coef B A */
static void total_add(fl_run *run, total *t, double coef, int r, const fl_real *a, const fl_real *b)
{
    fl_mark mark = fl_arena_mark(run->rt->round);
    size_t na = (size_t)r * (size_t)t->n, nb = (size_t)t->m * (size_t)r;

    if (t->room > 0) {
        for (size_t i = 0; i < na; i++) {
            t->as[(size_t)t->at * (size_t)t->n + i] = coef * (double)a[i];
        }
        for (size_t i = 0; i < nb; i++) {
            t->bs[i / (size_t)r * (size_t)t->room + (size_t)t->at + i % (size_t)r] = (double)b[i];
        }
        t->at += r;
        return;
    }
    double *x = fl_scratch(run, na, sizeof *x), *y = fl_scratch(run, nb, sizeof *y);

    for (size_t i = 0; i < na; i++) {
        x[i] = (double)a[i];
    }
    for (size_t i = 0; i < nb; i++) {
        y[i] = (double)b[i];
    }
    fl_dgemm('n', 'n', t->m, t->n, r, coef, y, x, 1, t->x);
    fl_arena_reset(run->rt->round, mark);
}

static double total_norm2(const total *t)
{
    double sum = 0;

    if (t->room > 0) {
        return fl_product_norm2(t->m, t->n, t->room, t->bs, t->as);
    }
    for (size_t i = 0; i < (size_t)t->m * (size_t)t->n; i++) {
        sum += t->x[i] * t->x[i];
    }
    return sum;
}

/* plain averages of the factors, padded with zeros to the largest rank, as fedavg stores them */
typedef struct plain {
    int r;
    double *a, *b;
    fl_real *fa, *fb;
} plain;

static plain plain_new(fl_run *run, const fl_site *st, int r)
{
    size_t na = (size_t)r * (size_t)st->n, nb = (size_t)st->m * (size_t)r;

    return (plain){r, fl_scratch(run, na, sizeof(double)), fl_scratch(run, nb, sizeof(double)),
        fl_scratch(run, na, sizeof(fl_real)), fl_scratch(run, nb, sizeof(fl_real))};
}

static void plain_add(
    plain *p, const fl_site *st, double w, int r, const fl_real *a, const fl_real *b)
{
    for (size_t i = 0; i < (size_t)r * (size_t)st->n; i++) {
        p->a[i] += w * (double)a[i];
    }
    for (size_t i = 0; i < (size_t)st->m; i++) {
        for (int j = 0; j < r; j++) {
            p->b[i * (size_t)p->r + (size_t)j] += w * (double)b[i * (size_t)r + (size_t)j];
        }
    }
}

static void plain_end(plain *p, const fl_site *st)
{
    for (size_t i = 0; i < (size_t)p->r * (size_t)st->n; i++) {
        p->fa[i] = (fl_real)p->a[i];
    }
    for (size_t i = 0; i < (size_t)st->m * (size_t)p->r; i++) {
        p->fb[i] = (fl_real)p->b[i];
    }
}

enum { ROW_IDEAL, ROW_RESULT, ROW_PLAIN, AUDIT_ROW };
typedef struct audit {
    aggregation *g;
    double *rows; /* [nsites][AUDIT_ROW] squared norms: T, T - result, T - plain */
} audit;

static fl_err audit_site(fl_runtime *rt, int site, const fl_pile *in, void *arg)
{
    audit *au = arg;
    aggregation *g = au->g;
    fl_run *run = &rt->run;
    const fl_site *st = &rt->base.model.site[site];
    int rmax = 0, nparts = aggregate_parts(g);
    int64_t ideal = site_stack_r(in, 0, site), out = 0;
    double *row = au->rows + (size_t)AUDIT_ROW * (size_t)site;

    for (int k = 0; k < in->n; k++) {
        rmax = FL_MAX(rmax, in->item[k].space->r[site]);
    }
    for (int p = 0; p < nparts; p++) {
        out += aggregate_r(g, p, site);
    }
    bool dense = ideal + FL_MAX(out, rmax) > FL_MIN(st->m, st->n);
    total t = total_new(run, st, ideal, dense), d = total_new(run, st, ideal + out, dense),
          e = total_new(run, st, ideal + rmax, dense);
    plain mean = plain_new(run, st, rmax);

    for (int k = 0; k < in->n; k++) {
        const fl_item *it = &in->item[k];
        fl_mat a = fl_at(it->ad, site, FL_A), b = fl_at(it->ad, site, FL_B);
        double coef = it->p * g->scale[site];

        if (a.x == NULL) {
            continue;
        }
        total_add(run, &t, coef, a.rows, a.x, b.x);
        if (!dense) {
            total_add(run, &d, coef, a.rows, a.x, b.x);
            total_add(run, &e, coef, a.rows, a.x, b.x);
        }
        plain_add(&mean, st, it->p, a.rows, a.x, b.x);
    }
    if (dense) {
        memcpy(d.x, t.x, (size_t)st->m * (size_t)st->n * sizeof *d.x);
        memcpy(e.x, t.x, (size_t)st->m * (size_t)st->n * sizeof *e.x);
    }
    for (int p = 0; p < nparts; p++) {
        const fl_real *a, *b;
        int r = (int)aggregate_r(g, p, site);

        if (r > 0) {
            aggregate_part(g, p, site, in, &a, &b);
            total_add(run, &d, -aggregate_scale(g, p, site), r, a, b);
        }
    }
    plain_end(&mean, st);
    total_add(run, &e, -g->scale[site], rmax, mean.fa, mean.fb);
    row[ROW_IDEAL] = total_norm2(&t);
    row[ROW_RESULT] = total_norm2(&d);
    row[ROW_PLAIN] = total_norm2(&e);
    return FL_OK;
}

static double relative(double difference, double ideal)
{
    return ideal > 0 ? sqrt(FL_MAX(difference, 0) / ideal) : difference > 0 ? INFINITY : 0;
}

static void say_site(const aggregation *g, int j, const double *row)
{
    int least = 1 << 30, most = 0, have = 0;
    int64_t out = 0;
    char ranks[40], lost[24];

    for (int k = 0; k < g->set->nfolders; k++) {
        int r = fl_peft_set_r(g->set, k, j, NULL);

        have += r > 0;
        least = r > 0 ? FL_MIN(least, r) : least;
        most = FL_MAX(most, r);
    }
    for (int p = 0; p < aggregate_parts(g); p++) {
        out += aggregate_r(g, p, j);
    }
    if (least == most) {
        snprintf(ranks, sizeof ranks, "%d", most);
    } else {
        snprintf(ranks, sizeof ranks, "%d..%d", least, most);
    }
    snprintf(lost, sizeof lost, "%.2e", g->rt->site_discarded[j]);
    fl_log(g->rt->ctx, "%-44s %6d %9s %6lld   %9.2e   %9s   %9.2e", g->set->site[j].name, have,
        ranks, (long long)out, relative(row[ROW_RESULT], row[ROW_IDEAL]),
        (g->rt->method->needs & FL_SPLITS) != 0 ? lost : "-",
        relative(row[ROW_PLAIN], row[ROW_IDEAL]));
}

fl_err aggregate_audit(aggregation *g)
{
    fl_runtime *rt = g->rt;
    size_t n = (size_t)AUDIT_ROW * (size_t)g->set->nsites;
    audit au = {g, fl_arena_take(rt->round, n, sizeof(double))};
    double sum[AUDIT_ROW] = {0};

    FL_TRY(site_walk(rt, audit_site, &au));
    fl_fill_in(rt->ctx, n, au.rows);
    fl_log(rt->ctx, "%-44s %6s %9s %6s   %9s   %9s   %9s", "module", "in", "r in", "r out", "error",
        "discarded", "plain mean");
    for (int j = 0; j < g->set->nsites; j++) {
        const double *row = au.rows + (size_t)AUDIT_ROW * (size_t)j;

        say_site(g, j, row);
        for (int i = 0; i < AUDIT_ROW; i++) {
            sum[i] += row[i];
        }
    }
    fl_log(rt->ctx,
        "error of the whole against the exact sum of products: %s %.2e; averaging A and B "
        "separately would have cost %.2e",
        rt->method->name, relative(sum[ROW_RESULT], sum[ROW_IDEAL]),
        relative(sum[ROW_PLAIN], sum[ROW_IDEAL]));
    return FL_OK;
}
