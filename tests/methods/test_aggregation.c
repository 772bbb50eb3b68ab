/* test_aggregation.c - rules that bring the product of the averages nearer to the average of the
 * products without new traffic: lora_fair, flora_na, fedinc; each against dense loops in double. */
#include "products_bed.h"

/* ---- lora_fair ---- */
/* 1 - cos of two m x n matrices, whole or the mean over columns */
static double distance(int m, int n, const double *t, const double *x, bool columns)
{
    double sum = 0;
    int parts = columns ? n : 1;

    for (int part = 0; part < parts; part++) {
        double tt = 0, xx = 0, tx = 0;

        for (int e = 0; e < m * n; e++) {
            if (!columns || e % n == part) {
                tt += t[e] * t[e];
                xx += x[e] * x[e];
                tx += t[e] * x[e];
            }
        }
        sum += tx / sqrt(tt * xx);
    }
    return 1 - sum / parts;
}

/* means over clients of a factor, in double */
static void mean_of(const bed *b, int j, fl_factor f, double *x)
{
    memset(x, 0, DENSE * sizeof *x);
    for (int k = 0; k < b->n; k++) {
        fl_mat a = fl_at(b->client[k], j, f);

        for (int e = 0; e < a.rows * a.cols; e++) {
            x[e] += b->p[k] * a.x[e];
        }
    }
}

/* x = B A, m x r times r x n */
static void times(int m, int n, int r, const double *b, const double *a, double *x)
{
    memset(x, 0, DENSE * sizeof *x);
    for (int i = 0; i < m; i++) {
        for (int l = 0; l < r; l++) {
            for (int e = 0; e < n; e++) {
                x[i * n + e] += b[i * r + l] * a[l * n + e];
            }
        }
    }
}

/* one site of a lora_fair bed: T and the server's means, without s */
typedef struct fair_site {
    int m, n, r;
    double t[DENSE], a[DENSE], b[DENSE], now[DENSE]; /* now: the server's corrected B */
    bool columns;
    double lambda;
} fair_site;

static void fair_site_of(const bed *b, int j, fair_site *f)
{
    fl_mat now = fl_at(b->rt->run.global, j, FL_B), a = fl_at(b->rt->run.global, j, FL_A);

    f->m = now.rows;
    f->n = a.cols;
    f->r = a.rows;
    bed_ideal(b, j, f->t);
    mean_of(b, j, FL_B, f->b);
    for (int e = 0; e < f->m * f->n; e++) {
        f->t[e] /= bed_scale(b, b->rt->run.global, j);
    }
    for (int e = 0; e < f->m * f->r; e++) {
        f->b[e] = (fl_real)f->b[e]; /* as it is stored */
        f->now[e] = now.x[e];
    }
    for (int e = 0; e < f->r * f->n; e++) {
        f->a[e] = a.x[e];
    }
}

static double objective(const fair_site *f, const double *b)
{
    static double x[DENSE];
    double c2 = 0;

    times(f->m, f->n, f->r, b, f->a, x);
    for (int e = 0; e < f->m * f->r; e++) {
        c2 += pow(b[e] - f->b[e], 2);
    }
    return distance(f->m, f->n, f->t, x, f->columns) + f->lambda * c2;
}

static const char *const over[] = {"lora_fair.cosine_over=flat", "lora_fair.cosine_over=columns"};

/* what the columns say is the objective by dense loops, and it is not above that of FedAvg */
static void fair_objective(void **state)
{
    static fair_site f;

    (void)state;
    for (int k = 0; k < 2; k++) {
        double before = 0, after = 0;
        bed b;

        open_rule(
            &b, "lora_fair", "3", "3", BED_SET(over[k], "lora_fair.lambda=0.02", "lora_fair.lr=1"));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            fair_site_of(&b, j, &f);
            f.columns = k == 1;
            f.lambda = 0.02;
            before += objective(&f, f.b) / ADAPTED;
            after += objective(&f, f.now) / ADAPTED;
            assert_true(objective(&f, f.now) < objective(&f, f.b));
        }
        assert_below(fabs(bed_metric(&b, "objective_before") - before), 1e-6);
        assert_below(fabs(bed_metric(&b, "objective_after") - after), 1e-6);
        assert_true(after < 0.9 * before && bed_metric(&b, "correction") > 0.05);
        bed_close(&b);
    }
}

/* one step is - lr times the gradient, which central differences give */
static void fair_gradient(void **state)
{
    static fair_site f;
    const double lr = 0.5, h = 1e-5;

    (void)state;
    for (int k = 0; k < 2; k++) {
        bed b;

        open_rule(
            &b, "lora_fair", "3", "3", BED_SET(over[k], "lora_fair.steps=1", "lora_fair.lr=0.5"));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            double largest = 0;

            fair_site_of(&b, j, &f);
            f.columns = k == 1;
            f.lambda = 0.01;
            for (int e = 0; e < f.m * f.r; e += 5) {
                double was = f.b[e], up, down;
                static fair_site at;

                at = f;
                at.b[e] = was + h; /* the penalty's gradient is 0 here */
                at.lambda = 0;
                up = objective(&at, at.b);
                at.b[e] = was - h;
                down = objective(&at, at.b);
                double step = -lr * (up - down) / (2 * h);

                largest = fmax(largest, fabs(step));
                assert_below(fabs(f.now[e] - was - step), 1e-7 + 0x1p-23 * fabs(was));
            }
            assert_true(largest > 1e-3);
        }
        bed_close(&b);
    }
}

/* ridge: (T - B A) A' = lambda C, entry by entry; both ends of lambda */
static void fair_ridge(void **state)
{
    static fair_site f;
    static double x[DENSE];

    (void)state;
    for (int k = 0; k < 2; k++) {
        double lambda = k == 0 ? 0.3 : 0;
        bed b;

        open_rule(&b, "lora_fair", "3", "3",
            BED_SET("lora_fair.objective=ridge",
                k == 0 ? "lora_fair.lambda=0.3" : "lora_fair.lambda=0"));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            fair_site_of(&b, j, &f);
            times(f.m, f.n, f.r, f.now, f.a, x);
            double size =
                sqrt(bed_norm2((size_t)(f.m * f.n), f.t) * bed_norm2((size_t)(f.r * f.n), f.a));

            for (int e = 0; e < f.m * f.r; e++) {
                double left = -lambda * (f.now[e] - f.b[e]);

                for (int i = 0; i < f.n; i++) {
                    left +=
                        (f.t[e / f.r * f.n + i] - x[e / f.r * f.n + i]) * f.a[e % f.r * f.n + i];
                }
                assert_below(fabs(left), 1e-6 * size);
            }
        }
        assert_true(bed_metric(&b, "correction") > 0.05);
        assert_true(bed_metric(&b, "objective_after") < 0.99 * bed_metric(&b, "objective_before"));
        bed_close(&b);
    }
}

/* nothing to correct, or no room: FedAvg */
static void fair_is_fedavg(void **state)
{
    static const char *const form[][2] = {{"lora_fair.objective=ridge", "run.name=x"},
        {"lora_fair.objective=cosine", "lora_fair.cosine_over=flat"},
        {"lora_fair.objective=cosine", "lora_fair.cosine_over=columns"}};

    (void)state;
    for (int k = 0; k < 9; k++) { /* one client; common A; lambda beyond everything */
        bed b, avg;
        const char *size = k / 3 == 0 ? "1" : "3";

        open_rule(&b, "lora_fair", "3", size,
            BED_SET(form[k % 3][0], form[k % 3][1],
                k / 3 == 2 ? "lora_fair.lambda=1e11" : "lora_fair.lambda=0.01",
                "lora_fair.lr=0.1"));
        open_rule(&avg, "fedavg", "3", size, BED_SET("run.name=x"));
        bed_begin(&b, 1, NULL);
        bed_begin(&avg, 1, NULL);
        if (k / 3 == 1) {
            share_factor(&b, FL_A);
            share_factor(&avg, FL_A);
        }
        bed_end(&b);
        bed_end(&avg);
        assert_below(bed_metric(&b, "correction"), 1e-6);
        assert_below(products_apart(&b, b.rt->run.global, avg.rt->run.global), 1e-6);
        bed_close(&avg);
        bed_close(&b);
    }
}

/* s is left out: alpha changes nothing */
static void fair_without_scale(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        const char *const form[] = {"lora_fair.objective=ridge", over[0], over[1]};
        bed b[2];

        for (int i = 0; i < 2; i++) {
            open_rule(&b[i], "lora_fair", "3", "3",
                BED_SET(
                    form[k], i == 0 ? "adapter.alpha=6" : "adapter.alpha=40", "lora_fair.lr=1"));
            bed_begin(&b[i], 1, NULL);
            bed_end(&b[i]);
        }
        for (size_t e = 0; e < b[0].rt->run.space->n; e++) {
            assert_below(fabs((double)b[0].rt->run.global->v[e] - b[1].rt->run.global->v[e]), 1e-6);
        }
        bed_close(&b[0]);
        bed_close(&b[1]);
    }
}

/* ---- flora_na ---- */
/* error is what was installed, between the best of rank r and FedIT's; error_fedit is FedAvg's */
static void na_error(void **state)
{
    static double t[DENSE], sv[BED_SIDE];
    double tail = 0, all = 0, error, fedit;
    enum { R = 3 };
    bed b, avg;

    (void)state;
    open_rule(&b, "flora_na", "3", "4", BED_SET("flora_na.sweeps=200"));
    open_rule(&avg, "fedavg", "3", "4", BED_SET("run.name=x"));
    bed_begin(&b, 1, NULL);
    bed_begin(&avg, 1, NULL);
    bed_end(&b);
    bed_end(&avg);
    error = bed_metric(&b, "error");
    fedit = bed_metric(&b, "error_fedit");
    assert_below(fabs(error - bed_discordance(&b)), 1e-6);
    assert_below(fabs(fedit - bed_discordance(&avg)), 1e-6);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        bed_ideal(&b, j, t);
        int n = values_of(&b, j, t, sv);

        tail += bed_norm2((size_t)(n - R), sv + R);
        all += bed_norm2((size_t)n, sv);
    }
    assert_true(error < 0.95 * fedit && error > sqrt(tail / all));
    bed_close(&avg);
    bed_close(&b);
}

/* at every number of sweeps no worse than at fewer; 0: FedAvg */
static void na_descends(void **state)
{
    static const char *const sweeps[] = {"flora_na.sweeps=0", "flora_na.sweeps=1",
        "flora_na.sweeps=2", "flora_na.sweeps=5", "flora_na.sweeps=30", "flora_na.sweeps=1000"};
    double last = 10;
    bed avg;

    (void)state;
    open_rule(&avg, "fedavg", "3", "4", BED_SET("run.name=x"));
    bed_begin(&avg, 1, NULL);
    bed_end(&avg);
    for (size_t i = 0; i < FL_COUNT(sweeps); i++) {
        bed b;

        open_rule(&b, "flora_na", "3", "4", BED_SET(sweeps[i], "flora_na.tol=0"));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        assert_true(bed_metric(&b, "error") <= last + 1e-12);
        if (i == 0) {
            assert_true(bed_metric(&b, "error") == bed_metric(&b, "error_fedit"));
            assert_below(products_apart(&b, b.rt->run.global, avg.rt->run.global), 1e-6);
        }
        last = bed_metric(&b, "error");
        bed_close(&b);
    }
    bed_close(&avg);
}

/* The end is a stationary point: no coefficient of one client's B (or A) added to the server's
 * lowers the error. <T - s B A, B_u A> = 0 = <T - s B A, B A_u>. */
static void na_stationary(void **state)
{
    static double t[DENSE], x[DENSE], y[DENSE];
    double worst = 0, start = 0;

    (void)state;
    for (int k = 0; k < 2; k++) {
        bed b;

        open_rule(&b, "flora_na", "2", "4",
            BED_SET(k == 0 ? "flora_na.sweeps=0" : "flora_na.sweeps=5000", "flora_na.tol=0"));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            const fl_adapter *g = b.rt->run.global;
            size_t n = site_size(&b, j);

            bed_ideal(&b, j, t);
            dense_of(g, j, x);
            for (int u = 0; u < 2 * b.n; u++) {
                double dot = 0;

                memset(y, 0, sizeof y);
                bed_add(1, fl_at(u < b.n ? b.client[u] : g, j, FL_B), NULL,
                    fl_at(u < b.n ? g : b.client[u - b.n], j, FL_A), NULL, y);
                for (size_t e = 0; e < n; e++) {
                    dot += (t[e] - x[e]) * y[e];
                }
                dot = fabs(dot) / sqrt(bed_norm2(n, t) * bed_norm2(n, y));
                *(k == 0 ? &start : &worst) = fmax(k == 0 ? start : worst, dot);
            }
        }
        bed_close(&b);
    }
    assert_true(start > 0.1);
    assert_below(worst, 1e-3 * start);
}

/* clients that hold multiples of one adapter: the fit is perfect, FedIT's is not. One client: it is
 * what it sent, bit for bit. */
static void na_perfect(void **state)
{
    static const double f[] = {1, 0.5, 3, 2}, g[] = {1, 2, 0.25, 1};
    bed b;

    (void)state;
    open_rule(&b, "flora_na", "3", "4", BED_SET("flora_na.sweeps=50"));
    bed_begin(&b, 1, NULL);
    share_factor(&b, FL_A);
    share_factor(&b, FL_B);
    for (int k = 0; k < b.n; k++) {
        for (int i = 0; i < b.client[k]->space->nslots; i++) {
            const fl_slot *s = &b.client[k]->space->slot[i];

            for (int e = 0; e < s->rows * s->cols; e++) {
                b.client[k]->v[s->at + (size_t)e] *= (fl_real)(s->factor == FL_A ? f[k] : g[k]);
            }
        }
    }
    bed_end(&b);
    bed_check_exact(&b);
    assert_true(bed_metric(&b, "error_fedit") > 0.1);
    bed_close(&b);
    open_rule(&b, "flora_na", "3", "1", BED_SET("flora_na.sweeps=50"));
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    bed_check_exact(&b);
    for (size_t e = 0; e < b.rt->run.space->n; e++) {
        assert_below(fabs((double)b.rt->run.global->v[e] - b.client[0]->v[e]), 1e-6);
    }
    bed_close(&b);
}

/* ---- fedinc ---- */
static const fl_adapter *centres(const bed *b)
{
    assert_non_null(b->rt->run.installed);
    return b->rt->run.installed;
}

/* as many clusters as pairs: all come back. Weighted it is T, also at unequal ranks; as written it
 * is the sum of the products, K times the mean at uniform weights */
static void inc_singletons(void **state)
{
    static double x[DENSE], t[DENSE];

    (void)state;
    for (int k = 0; k < 3; k++) {
        bed b;

        open_rule(&b, "fedinc", "3", "3",
            BED_SET("fedinc.clusters=9",
                k < 2 ? "fedinc.weighting=mass" : "fedinc.weighting=literal",
                k < 2 ? "cohort.weights=samples" : "cohort.weights=uniform"));
        bed_begin(&b, 1, k == 1 ? (const int[]){1, 3, 2} : NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            dense_of(centres(&b), j, x);
            bed_ideal(&b, j, t);
            for (size_t e = 0; e < site_size(&b, j); e++) {
                t[e] *= k == 2 ? 3 : 1;
            }
            assert_below(apart(site_size(&b, j), x, t), 1e-6);
            fl_mat c = fl_at(centres(&b), j, FL_B);

            for (int e = 0; k == 1 && e < c.rows * c.cols; e++) { /* 6 pairs for 9 clusters */
                assert_true((c.x[e] != 0) == (e % c.cols < 6));
            }
        }
        assert_below(bed_metric(&b, "scatter"), 1e-12);
        assert_true(k == 2 || bed_discordance(&b) < 1e-6);
        bed_close(&b);
    }
}

/* clients that agree give their adapter back, with any weights */
static void inc_identical(void **state)
{
    bed b;

    (void)state;
    open_rule(&b, "fedinc", "3", "4", BED_SET("run.name=x"));
    bed_begin(&b, 1, NULL);
    share_factor(&b, FL_A);
    share_factor(&b, FL_B);
    bed_end(&b);
    assert_below(ideal_apart(&b, centres(&b)), 1e-6);
    assert_below(products_apart(&b, b.rt->run.global, b.client[0]), 1e-6); /* N = r: all of it */
    bed_close(&b);
}

/* pair i of all clients has a common, far away row of A: a cluster holds one pair of each client,
 * and the aggregate is exact; so it is in any order of the clients, and as written too (mass 1) at
 * equal weights */
static void inc_common_rows(void **state)
{
    bed b[4];

    (void)state;
    for (int k = 0; k < 4; k++) {
        open_rule(&b[k], "fedinc", "3", "4",
            BED_SET(k < 3 ? "cohort.weights=uniform" : "cohort.weights=samples",
                k != 2 ? "fedinc.weighting=mass" : "fedinc.weighting=literal"));
        bed_begin(&b[k], 1, NULL);
        share_factor(&b[k], FL_A);
        for (int i = 0; i < b[k].n; i++) {
            for (int s = 0; s < b[k].client[i]->space->nslots; s++) {
                const fl_slot *slot = &b[k].client[i]->space->slot[s];

                for (int e = 0; slot->factor == FL_A && e < slot->rows * slot->cols; e++) {
                    b[k].client[i]->v[slot->at + (size_t)e] *= 100;
                }
            }
        }
        if (k == 1) {
            fl_adapter *c = b[k].client[0];

            b[k].client[0] = b[k].client[2];
            b[k].client[2] = b[k].client[3];
            b[k].client[3] = c;
        }
        bed_end(&b[k]);
        assert_below(ideal_apart(&b[k], centres(&b[k])), 1e-6);
        double d = products_apart(&b[k], b[k].rt->run.global, b[0].rt->run.global);

        assert_true(k < 3 ? d < 1e-6 : d > 0.1);
    }
    for (int k = 0; k < 4; k++) {
        bed_close(&b[k]);
    }
}

/* the same products written with other factors, (c b, a / c): normalised they are one cluster */
static void inc_normalised(void **state)
{
    static const fl_real c[] = {1, -3, 0.25f, -0.5f};

    (void)state;
    for (int k = 0; k < 2; k++) {
        bed b;

        open_rule(&b, "fedinc", "3", "4",
            BED_SET(k == 0 ? "fedinc.normalise=true" : "fedinc.normalise=false"));
        bed_begin(&b, 1, NULL);
        share_factor(&b, FL_A);
        share_factor(&b, FL_B);
        for (int i = 0; i < b.n; i++) {
            for (int s = 0; s < b.client[i]->space->nslots; s++) {
                const fl_slot *slot = &b.client[i]->space->slot[s];

                for (int e = 0; e < slot->rows * slot->cols; e++) {
                    fl_real *x = &b.client[i]->v[slot->at + (size_t)e];

                    *x = slot->factor == FL_A ? *x / c[i] : *x * c[i];
                }
            }
        }
        bed_end(&b);
        if (k == 0) {
            assert_below(ideal_apart(&b, centres(&b)), 1e-6);
        } else {
            assert_true(ideal_apart(&b, centres(&b)) > 0.1);
        }
        bed_close(&b);
    }
}

/* Clients that do not train send back what they started from: the centres, biggest products first,
 * as many as their rank. Equal pairs are one cluster, so pair l comes back times the weight of the
 * clients with r_k > l. */
static void inc_start(void **state)
{
    static double old[BED_SITES][DENSE], x[DENSE];
    fl_view v = {0};
    int small = 0;
    bed b;

    (void)state;
    open_rule(&b, "fedinc", "4", "3",
        BED_SET("clients.r=[2, 4]", "clients.r_share=[0.5, 0.5]", "train.optimizer=sgd",
            "train.lr=1e-30"));
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        fl_mat a = fl_at(centres(&b), j, FL_A), c = fl_at(centres(&b), j, FL_B);
        double last = INFINITY;

        memset(old[j], 0, sizeof old[j]);
        for (int l = 0; l < 4; l++) {
            double aa = 0, cc = 0, q = 0;

            for (int k = 0; k < b.n; k++) {
                q += b.rt->client_r[k] > l ? b.p[k] : 0;
            }
            for (int e = 0; e < a.cols * c.rows; e++) {
                old[j][e] += q * centres(&b)->space->scale[j] * c.x[e / a.cols * 4 + l] *
                             a.x[l * a.cols + e % a.cols];
            }
            for (int e = 0; e < a.cols; e++) {
                aa += pow(a.x[l * a.cols + e], 2);
            }
            for (int e = 0; e < c.rows; e++) {
                cc += pow(c.x[e * 4 + l], 2);
            }
            assert_true(aa * cc > 0 && aa * cc <= last);
            last = aa * cc;
        }
    }
    for (int k = 0; k < b.n; k++) {
        small += b.rt->client_r[k] == 2;
    }
    assert_true(small > 0 && small < 3);
    run_rounds(&b, 2, 2);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        dense_of(centres(&b), j, x);
        assert_below(apart(site_size(&b, j), x, old[j]), 1e-5);
    }
    bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
    assert_true(v.stack.n == 1 && products_apart(&b, v.stack.ad[0], centres(&b)) == 0);
    bed_close(&b);
}

/* ---- traffic: all four clients in every round ---- */
enum { K = 4, ROUNDS = 3 };

static void traffic(void **state)
{
    const char *const sets[] = {"cohort.size=4", "adapter.r=3", NULL};
    double both = 4 * 3 * sum_mn, five = 4 * 5 * sum_mn + 2 * ADAPTED;
    double up[] = {K * both, K * both, K * both}, down[] = {K * 8, K * both, K * both};

    (void)state;
    bed_traffic("lora_fair", sets, ROUNDS, up, down);
    bed_traffic("flora_na", sets, ROUNDS, up, down);
    /* 12 pairs that trained are distinct: 5 centres, and their number, go down */
    bed_traffic("fedinc", BED_SET("cohort.size=4", "adapter.r=3", "fedinc.clusters=5"), ROUNDS, up,
        (double[]){K * 8, K * five, K * five});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(fair_objective), T(fair_gradient), T(fair_ridge),
        T(fair_is_fedavg), T(fair_without_scale), T(na_error), T(na_descends), T(na_stationary),
        T(na_perfect), T(inc_singletons), T(inc_identical), T(inc_common_rows), T(inc_normalised),
        T(inc_start), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
