/* flora_na - FedIT's traffic, but the averaging coefficients are chosen for the product.
 * Source: Nguyen et al. 2025 (FLoRA-NA, arXiv 2509.26399).
 *   B = sum_u P_u B_u,  A = sum_u Q_u A_u  at each site, with
 *   (P, Q) = argmin || (sum_u P_u B_u)(sum_u Q_u A_u) - sum_u p_u B_u A_u ||_F.
 * The paper does not say how it is solved. Here: alternating least squares from P = Q = p (FedIT).
 * With the Gram blocks B_u' B_w and A_u A_w' (r x r), for fixed Q and A = sum_v Q_v A_v
 *   H_uw = <B_u' B_w, A A'>,  h_u = sum_w p_w <B_u' B_w, A A_w'>,  H P = h,
 * and the same for Q with the roles exchanged. Nothing of size m x n is formed.
 * Choice: a ridge rho = 1e-8 trace H / K holds P near its last value, (H + rho I) P = h + rho
 * P_old, so that no half step can raise the objective. P -> c P, Q -> Q / c changes nothing: both
 * are given the same norm, and sum Q >= 0. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct flora_na_config {
    int sweeps;
    double tol;
} flora_na_config;

static const fl_field flora_na_fields[] = {
    FL_INT(flora_na_config, sweeps, "50", 0, 1e6, "",
        "alternations of the two least squares problems at most; 0: FedIT"),
    FL_REAL(flora_na_config, tol, "1e-9", 0, 1, "",
        "they end when one gains less than this share of the squared norm of the ideal update"),
    FL_END,
};

/* one site: K clients of rank r; R = K r; block (u, w) of a Gram matrix: rows u r .., columns w r
 * .. */
typedef struct gram {
    int k, r;
    const double *p;
    double *bb, *aa; /* R x R: B_u' B_w and A_u A_w' */
    double target;   /* || sum_u p_u B_u A_u ||^2 */
    /* room, and the quadratic of the last gram_quadratic: */
    double *H, *h, *ridged, *best, *one, *all; /* K x K, K, K x K, K, K blocks of r x r, r x r */
} gram;

/* <block (u, w) of x, y (r x r)> */
static double gram_dot(const gram *g, const double *x, int u, int w, const double *y)
{
    size_t r = (size_t)g->r, all = r * (size_t)g->k;
    double s = 0;

    for (size_t i = 0; i < r; i++) {
        const double *row = x + ((size_t)u * r + i) * all + (size_t)w * r;

        for (size_t j = 0; j < r; j++) {
            s += row[j] * y[i * r + j];
        }
    }
    return s;
}

/* y (r x r) = sum_u c_u block (u, w) of x */
static void gram_row(const gram *g, const double *x, const double *c, int w, double *y)
{
    size_t r = (size_t)g->r, all = r * (size_t)g->k;

    memset(y, 0, r * r * sizeof *y);
    for (int u = 0; u < g->k; u++) {
        for (size_t e = 0; e < r * r; e++) {
            y[e] += c[u] * x[((size_t)u * r + e / r) * all + (size_t)w * r + e % r];
        }
    }
}

/* The quadratic in c, the coefficients of the factor whose Gram matrix is x, when the other factor,
 * of Gram matrix y, has coefficients d:  c' H c - 2 h' c + target.
 *   H_uw = <x_uw, sum_vz d_v d_z y_vz>,  h_u = sum_w p_w <x_uw, sum_v d_v y_vw> */
static void gram_quadratic(gram *g, const double *x, const double *y, const double *d)
{
    size_t rr = (size_t)g->r * (size_t)g->r, k = (size_t)g->k;

    memset(g->all, 0, rr * sizeof *g->all);
    memset(g->h, 0, k * sizeof *g->h);
    for (int w = 0; w < g->k; w++) {
        double *one = g->one + (size_t)w * rr;

        gram_row(g, y, d, w, one);
        for (size_t e = 0; e < rr; e++) {
            g->all[e] += d[w] * one[e];
        }
    }
    for (int u = 0; u < g->k; u++) {
        for (int w = 0; w < g->k; w++) {
            g->H[(size_t)u * k + (size_t)w] = gram_dot(g, x, u, w, g->all);
            g->h[u] += g->p[w] * gram_dot(g, x, u, w, g->one + (size_t)w * rr);
        }
    }
}

static double gram_value(const gram *g, const double *c)
{
    size_t k = (size_t)g->k;
    double s = g->target;

    for (size_t u = 0; u < k; u++) {
        s -= 2 * g->h[u] * c[u];
        for (size_t w = 0; w < k; w++) {
            s += c[u] * g->H[u * k + w] * c[w];
        }
    }
    return s;
}

/* one half step: c becomes the best coefficients for the given d; *value: the objective there */
static fl_err gram_half(
    gram *g, const double *x, const double *y, const double *d, double *c, double *value)
{
    size_t k = (size_t)g->k;
    double trace = 0;

    gram_quadratic(g, x, y, d);
    for (size_t u = 0; u < k; u++) {
        trace += g->H[u * k + u];
    }
    if (trace > 0) { /* else the other factor is 0 */
        double rho = 1e-8 * trace / g->k;

        memcpy(g->ridged, g->H, k * k * sizeof *g->H);
        for (size_t u = 0; u < k; u++) {
            g->ridged[u * k + u] += rho;
            g->best[u] = g->h[u] + rho * c[u];
        }
        FL_TRY(fl_solve(g->k, 1, g->ridged, g->best));
        memcpy(c, g->best, k * sizeof *c);
    }
    *value = gram_value(g, c);
    return FL_OK;
}

/* the same norm for P and Q, sum Q >= 0 */
static void gram_gauge(int k, double *p, double *q)
{
    double pp = 0, qq = 0, sum = 0;

    for (int u = 0; u < k; u++) {
        pp += p[u] * p[u];
        qq += q[u] * q[u];
        sum += q[u];
    }
    double f = pp > 0 && qq > 0 ? copysign(sqrt(sqrt(pp / qq)), sum) : 1;

    for (int u = 0; u < k; u++) {
        p[u] /= f;
        q[u] *= f;
    }
}

static void gram_room(fl_run *run, gram *g)
{
    size_t k = (size_t)g->k, rr = (size_t)g->r * (size_t)g->r;

    g->H = fl_scratch(run, k * k, sizeof *g->H);
    g->ridged = fl_scratch(run, k * k, sizeof *g->ridged);
    g->h = fl_scratch(run, k, sizeof *g->h);
    g->best = fl_scratch(run, k, sizeof *g->best);
    g->one = fl_scratch(run, k * rr, sizeof *g->one);
    g->all = fl_scratch(run, rr, sizeof *g->all);
}

/* the factors of all clients side by side, without weights: R columns of B, R rows of A; their Gram
 * matrices */
static gram gram_open(fl_run *run, int site, const fl_pile *in, double **bs, double **as)
{
    fl_mat a = fl_at(run->global, site, FL_A), b = fl_at(run->global, site, FL_B);
    gram g = {.k = in->n, .r = a.rows};
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w),
           *p = fl_scratch(run, (size_t)in->n, sizeof *p);
    int64_t nstack;

    for (int u = 0; u < in->n; u++) {
        w[u] = 1 / in->item[u].space->scale[site];
        p[u] = in->item[u].p;
    }
    fl_site_stack(run, site, in, 0, w, &nstack, bs, as);
    size_t all = (size_t)nstack;

    g.p = p;
    g.bb = fl_scratch(run, all * all, sizeof *g.bb);
    g.aa = fl_scratch(run, all * all, sizeof *g.aa);
    fl_dgemm('t', 'n', (int)all, (int)all, b.rows, 1, *bs, *bs, 0, g.bb);
    fl_dgemm('n', 't', (int)all, (int)all, a.cols, 1, *as, *as, 0, g.aa);
    for (size_t e = 0; e < all * all; e++) { /* |T|^2 = sum_uw p_u p_w <B_u' B_w, A_u A_w'> */
        g.target += p[e / all / (size_t)g.r] * p[e % all / (size_t)g.r] * g.bb[e] * g.aa[e];
    }
    gram_room(run, &g);
    return g;
}

/* B = sum_u P_u B_u, A = sum_u Q_u A_u from the stacks */
static void flora_na_combine(const gram *g, const double *bs, const double *as, const double *p,
    const double *q, fl_mat b, fl_mat a)
{
    for (int i = 0; i < b.rows; i++) {
        for (int j = 0; j < g->r; j++) {
            double s = 0;

            for (int u = 0; u < g->k; u++) {
                s += p[u] * bs[((size_t)i * (size_t)g->k + (size_t)u) * (size_t)g->r + (size_t)j];
            }
            b.x[(size_t)i * (size_t)g->r + (size_t)j] = (fl_real)s;
        }
    }
    for (size_t e = 0, n = (size_t)a.rows * (size_t)a.cols; e < n; e++) {
        double s = 0;

        for (int u = 0; u < g->k; u++) {
            s += q[u] * as[(size_t)u * n + e];
        }
        a.x[e] = (fl_real)s;
    }
}

/* row: the squared error of P = Q = p and of the result, the squared norm of the ideal update,
 * times s^2; sweeps */
static fl_err flora_na_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const flora_na_config *c = run->config;
    double *bs, *as, s2 = pow(run->space->scale[site], 2), value;
    gram g = gram_open(run, site, in, &bs, &as);
    size_t k = (size_t)g.k;
    double *p = fl_scratch(run, k, sizeof *p), *q = fl_scratch(run, k, sizeof *q);

    (void)arg;
    memcpy(p, g.p, k * sizeof *p);
    memcpy(q, g.p, k * sizeof *q);
    gram_quadratic(&g, g.bb, g.aa, q);
    value = gram_value(&g, p);
    row[0] = s2 * value;
    for (int i = 0; i < c->sweeps && g.target > 0; i++) {
        double last = value;

        FL_TRY(gram_half(&g, g.bb, g.aa, q, p, &value));
        FL_TRY(gram_half(&g, g.aa, g.bb, p, q, &value));
        gram_gauge(g.k, p, q);
        row[3]++;
        if (last - value <= c->tol * g.target) {
            break;
        }
    }
    row[1] = s2 * value;
    row[2] = s2 * g.target;
    flora_na_combine(&g, bs, as, p, q, fl_at(out[0], site, FL_B), fl_at(out[0], site, FL_A));
    return FL_OK;
}

static fl_err flora_na_aggregate(fl_run *run, fl_pile *in)
{
    enum { ROW = 4 };
    double *rows = fl_scratch(run, ROW * (size_t)run->nsites, sizeof *rows), sum[ROW] = {0};

    FL_TRY(fl_sites(run, in, flora_na_site, NULL, 1, &run->global, ROW, rows));
    for (int i = 0; i < ROW * run->nsites; i++) {
        sum[i % ROW] += rows[i];
    }
    for (int i = 0; i < 2; i++) {
        fl_metric(
            run, i == 0 ? "error_fedit" : "error", sum[2] > 0 ? sqrt(fmax(0, sum[i]) / sum[2]) : 0);
    }
    return FL_OK;
}

const fl_method fl_method_flora_na = {
    .name = "flora_na",
    .title = "average A and B with coefficients that fit the mean of the products",
    .source = "Nguyen et al. 2025, arXiv 2509.26399",
    .choice =
        "the paper names no solver: alternating least squares from the deck's weights (the paper's "
        "are 1/K), coefficients by site, P and Q of equal norm. error_fedit and error: relative "
        "distance to the ideal update with p and with P, Q. Only the global model is evaluated.",
    .needs = FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(flora_na_config),
    .config = flora_na_fields,
    .aggregate = flora_na_aggregate,
};
