/* fedinc - cluster the rank-1 pairs of all clients; the centres are the pairs of the aggregate.
 * Source: Qin & Li 2024 (FedInc, ICANN 2024), from the survey's section 3.1, Eq. 8.
 *   z_ki = [A_k[i, :], B_k[:, i]'] (m + n numbers) for every pair i of every client k; k-means with
 *   N clusters, centres mu_c;  A[c, :] = first n of mu_c,  B[:, c] = last m.  One clustering a
 * site. Literal, a cluster of one adds its whole product: with singletons the aggregate is sum_k
 * B_k A_k, K times the mean. weighting: mass puts the clients' weights p_k on their pairs, in the
 * centres and in the products: B[:, c] = w_c (mu_c's B), w_c = sum of p_k over the members. That is
 * the mean of the products for singletons, and for clusters of one pair of each client whose A (or
 * B) is common. A centre of products is not the product of centres: inside a cluster the covariance
 * stays, as in FedAvg; the survey's claim that clustering removes the discordance does not hold.
 * Published as one shot (run.rounds: 1); any number of rounds works. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { FEDINC_MASS, FEDINC_LITERAL };
typedef struct fedinc_config {
    int clusters, weighting;
    bool normalise;
    int restarts, iterations;
} fedinc_config;

static const fl_field fedinc_fields[] = {
    FL_INT(fedinc_config, clusters, "0", 0, 65535, "",
        "N, pairs of the aggregate; 0: the clients' largest rank"),
    FL_WORD(fedinc_config, weighting, "mass", "mass|literal",
        "a centre's product times the weight of its members, or as it is"),
    FL_BOOL(fedinc_config, normalise, "false",
        "first scale every pair to |a| = |b|, the largest entry of a positive; products stay"),
    FL_INT(fedinc_config, restarts, "10", 1, 1e4, "", "seedings of k-means, the best counts"),
    FL_INT(fedinc_config, iterations, "100", 1, 1e6, "", "Lloyd steps of each at most"),
    FL_END,
};

/* the server's adapter: N pairs, at the scale of the deck's adapter */
static fl_adapter *fedinc_centres(fl_run *run)
{
    const fedinc_config *c = run->config;
    const fl_space *sp = run->space;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);

    for (int j = 0; j < run->nsites; j++) {
        r[j] = sp->r[j] > 0 && c->clusters > 0 ? c->clusters : sp->r[j];
    }
    return fl_keep_adapter(run, NULL, "centres", 0, fl_space_scales(run, r, sp->scale), NULL);
}

/* centres in use, by site; all 0 until the first aggregate */
static double *fedinc_q(fl_run *run)
{
    return fl_keep(run, NULL, "q", 0, (size_t)run->nsites, "centres in use", NULL);
}

static fl_err fedinc_setup(fl_run *run)
{
    fedinc_centres(run);
    fedinc_q(run);
    return FL_OK;
}

static fl_err fedinc_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *centres = fedinc_centres(run);
    const double *q = fedinc_q(run);
    double *told = fl_scratch(run, (size_t)run->nsites, sizeof *told), sum = 0;
    uint64_t *pairs = fl_bits(run, (size_t)fl_pair_first(centres->space, run->nsites));
    size_t n = 0;

    (void)c;
    for (int j = 0; j < run->nsites; j++) {
        for (int i = 0; i < (int)q[j]; i++) {
            fl_bit_set(pairs, (size_t)(fl_pair_first(centres->space, j) + i));
        }
        sum += q[j];
        if (run->space->r[j] > 0) {
            told[n++] = q[j];
        }
    }
    if (sum > 0) { /* else the common start, which the seed gives */
        fl_put(down, "q", told, n, 16);
        fl_send(down, (fl_part){.ad = centres, .pick = {.pairs = pairs}, .which = FL_KNOWN});
    }
    return FL_OK;
}

/* the first min(q, r) pairs of own are those of the centres, product and all */
static void fedinc_lay(fl_adapter *own, const fl_adapter *centres, int site, int q)
{
    fl_mat a = fl_at(own, site, FL_A), b = fl_at(own, site, FL_B);
    fl_mat ca = fl_at(centres, site, FL_A), cb = fl_at(centres, site, FL_B);
    double f = centres->space->scale[site] / own->space->scale[site];
    int r = FL_MIN(q, a.rows);

    memcpy(a.x, ca.x, (size_t)r * (size_t)a.cols * sizeof *a.x);
    for (int i = 0; i < b.rows; i++) {
        for (int j = 0; j < r; j++) {
            b.x[(size_t)i * (size_t)b.cols + (size_t)j] =
                (fl_real)(f * cb.x[(size_t)i * (size_t)cb.cols + (size_t)j]);
        }
    }
}

static fl_err fedinc_train(fl_run *run, fl_client *c)
{
    fl_adapter *own = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));
    const double *q = fl_get(c->down, "q", NULL);

    FL_TRY(fl_fill(run, own, -1, run->round.t - 1)); /* round 1: the common start */
    for (int j = 0; q != NULL && j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            fedinc_lay(own, c->ad[0], j, (int)*q++);
        }
    }
    c->ad[1] = fl_scratch_copy(run, own); /* the server can work it out too */
    c->ad[0] = own;
    fl_job job = fl_job_of(run, c);

    return fl_train(run, c, &job);
}

static fl_err fedinc_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->ad[1], .pick = run->job.train[0]});
    return FL_OK;
}

/* z = [a, b] (n + m) of equal norms, the largest entry of a (the first of equals) positive */
static void fedinc_normalise(int n, int m, double *z)
{
    double aa = 0, bb = 0;
    int top = 0;

    for (int i = 0; i < n; i++) {
        aa += z[i] * z[i];
        top = fabs(z[i]) > fabs(z[top]) ? i : top;
    }
    for (int i = n; i < n + m; i++) {
        bb += z[i] * z[i];
    }
    double f = aa > 0 && bb > 0 ? sqrt(sqrt(bb / aa)) : 1;

    f = z[top] < 0 ? -f : f;
    for (int i = 0; i < n + m; i++) {
        z[i] = i < n ? z[i] * f : z[i] / f;
    }
}

/* every pair of every client: z (R x (n + m)), B in units of the server's s; p [R]: its client's
 * weight */
static double *fedinc_pairs(
    fl_run *run, int site, const fl_pile *in, const fl_space *sp, int64_t *count, double *p)
{
    const fedinc_config *c = run->config;
    int n = sp->n_in[site], m = sp->m[site];
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w), *bs, *as;
    int64_t at = 0;

    for (int k = 0; k < in->n; k++) {
        w[k] = 1 / in->item[k].space->scale[site];
    }
    fl_site_stack(run, site, in, 0, w, count, &bs, &as); /* the factors as they are */
    double *z = fl_scratch(run, (size_t)*count * (size_t)(n + m), sizeof *z);

    for (int k = 0; k < in->n; k++) {
        double s = in->item[k].space->scale[site] / sp->scale[site];

        for (int i = 0; i < in->item[k].space->r[site]; i++, at++) {
            double *row = z + at * (n + m);

            memcpy(row, as + at * n, (size_t)n * sizeof *row);
            for (int e = 0; e < m; e++) {
                row[n + e] = s * bs[e * *count + at];
            }
            if (c->normalise) {
                fedinc_normalise(n, m, row);
            }
            p[at] = in->item[k].p;
        }
    }
    return z;
}

/* order [q]: the clusters that have members, those of large products |a| |b| mass first */
static int fedinc_order(int nclusters, int n, int m, const double *centre, const double *mass,
    const double *members, int *order, double *size)
{
    int q = 0;

    for (int c = 0; c < nclusters; c++) {
        const double *z = centre + (size_t)c * (size_t)(n + m);
        double aa = 0, bb = 0;
        int at = q;

        if (members[c] == 0) {
            continue;
        }
        for (int i = 0; i < n + m; i++) {
            *(i < n ? &aa : &bb) += z[i] * z[i];
        }
        size[c] = sqrt(aa * bb) * mass[c];
        for (; at > 0 && size[order[at - 1]] < size[c]; at--) {
            order[at] = order[at - 1];
        }
        order[at] = c;
        q++;
    }
    return q;
}

/* row: centres in use, the sum of weighted squared distances to them, the same to 0 */
static fl_err fedinc_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const fedinc_config *c = run->config;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    int n = a.cols, m = b.rows, nc = a.rows;
    int64_t all = 0, count;
    bool mass = c->weighting == FEDINC_MASS;

    (void)arg;
    for (int k = 0; k < in->n; k++) {
        all += in->item[k].space->r[site];
    }
    double *p = fl_scratch(run, (size_t)all, sizeof *p),
           *w = fl_scratch(run, (size_t)nc, sizeof *w);
    double *members = fl_scratch(run, (size_t)nc, sizeof *members);
    double *size = fl_scratch(run, (size_t)nc, sizeof *size);
    double *centre = fl_scratch(run, (size_t)nc * (size_t)(n + m), sizeof *centre);
    int *group = fl_scratch(run, (size_t)all, sizeof *group),
        *order = fl_scratch(run, (size_t)nc, sizeof *order);
    double *z = fedinc_pairs(run, site, in, out[0]->space, &count, p);
    uint64_t seed = (uint64_t)ldexp(fl_uniform(run, 0, site, run->round.t, 0), 53);

    row[1] = fl_kmeans(
        seed, (int)all, n + m, z, mass ? p : NULL, nc, c->restarts, c->iterations, group, centre);
    for (int64_t i = 0; i < all; i++) {
        members[group[i]]++;
        w[group[i]] += p[i];
        for (int e = 0; e < n + m; e++) {
            row[2] += (mass ? p[i] : 1) * z[i * (n + m) + e] * z[i * (n + m) + e];
        }
    }
    for (int i = 0; i < nc && !mass; i++) {
        w[i] = 1;
    }
    row[0] = fedinc_order(nc, n, m, centre, w, members, order, size);
    for (int e = 0; e < nc * n; e++) {
        a.x[e] = e / n < (int)row[0] ? (fl_real)centre[order[e / n] * (n + m) + e % n] : 0;
    }
    for (int e = 0; e < m * nc; e++) {
        int top = order[e % nc];

        b.x[e] = e % nc < (int)row[0] ? (fl_real)(w[top] * centre[top * (n + m) + n + e / nc]) : 0;
    }
    return FL_OK;
}

static fl_err fedinc_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *centres = fedinc_centres(run);
    double *q = fedinc_q(run), left = 0, all = 0;
    double *rows = fl_scratch(run, 3 * (size_t)run->nsites, sizeof *rows);

    FL_TRY(fl_sites(run, in, fedinc_site, NULL, 1, &centres, 3, rows));
    for (int j = 0; j < run->nsites; j++) {
        q[j] = rows[3 * j];
        left += rows[3 * j + 1];
        all += rows[3 * j + 2];
    }
    fl_fit_product(run->global, centres); /* for those that want the deck's rank */
    run->installed = centres;
    fl_metric(run, "scatter", all > 0 ? left / all : 0);
    return FL_OK;
}

static fl_err fedinc_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    if (c == NULL && which == 0) {
        v->name = "centres";
        v->stack = (fl_stack){.n = 1, .ad = {fedinc_centres(run)}, .coef = {1}};
    }
    return FL_OK;
}

const fl_method fl_method_fedinc = {
    .name = "fedinc",
    .title = "k-means of the clients' rank-1 pairs; the centres are the aggregate",
    .source = "Qin & Li 2024, ICANN 2024 (through the survey's Eq. 8)",
    .choice =
        "the paper was not to be had: N, seeding, weights and what follows the one shot are ours. "
        "A centre's product is weighted by its members' p_k (literal: not); B in units of the "
        "server's s. Centres are sorted by their products' size; a client of rank r starts from "
        "the first r, filled up with fresh rows of A and B = 0.",
    .needs = FL_HETERO | FL_EACH | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(fedinc_config),
    .config = fedinc_fields,
    .setup = fedinc_setup,
    .download = fedinc_download,
    .train = fedinc_train,
    .upload = fedinc_upload,
    .aggregate = fedinc_aggregate,
    .view = fedinc_view,
};
