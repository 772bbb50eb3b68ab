/* florist - stack the factors, compress the stack by an SVD to a share of its energy.
 * Source: Ramesh & Dass 2025 (FLoRIST, arXiv 2506.09199).
 *   B = [B_1 .. B_K], A = [p_1 s_1 A_1; ..; p_K s_K A_K],  T = B A = U S V' (m x n, never formed),
 *   q = the fewest with sum_{i <= q} S_i^2 >= threshold ||T||^2,  B <- U_q S_q, A <- V_q' (s = 1).
 * q differs by site and round. The server's adapter is the wide one, of capacity min(K r, m, n),
 * zero beyond q; all clients download q (m + n) numbers and q. threshold 1 is exact: B A = T.
 * Choice: a client of rank r starts from the first min(q, r) pairs, B over its own s; where r > q
 * its further rows of A are a fresh common draw and their columns of B are 0. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct florist_config {
    double threshold;
} florist_config;

static const fl_field florist_fields[] = {
    FL_REAL(florist_config, threshold, "0.9", 1e-9, 1, "",
        "share of the squared norm of the aggregate that the kept pairs carry; 1: all, exact"),
    FL_END,
};

static fl_adapter *florist_wide(fl_run *run)
{
    const fl_space *sp = run->space;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);

    for (int j = 0; j < run->nsites; j++) {
        int64_t all = (int64_t)run->ncohort * sp->r[j];

        r[j] = (int)FL_MIN(all, FL_MIN(sp->m[j], sp->n_in[j]));
    }
    return fl_keep_adapter(run, NULL, "wide", 0, fl_space_stack(run, r), NULL);
}

/* pairs in use, by site; all 0 until the first aggregate */
static double *florist_q(fl_run *run)
{
    return fl_keep(
        run, NULL, "q", 0, (size_t)run->nsites, "pairs of the wide adapter in use", NULL);
}

static fl_err florist_setup(fl_run *run)
{
    florist_wide(run);
    florist_q(run);
    return FL_OK;
}

static fl_err florist_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *wide = florist_wide(run);
    const double *q = florist_q(run);
    double *told = fl_scratch(run, (size_t)run->nsites, sizeof *told), sum = 0;
    uint64_t *pairs = fl_bits(run, (size_t)fl_pair_first(wide->space, run->nsites));
    size_t n = 0;

    (void)c;
    for (int j = 0; j < run->nsites; j++) {
        for (int i = 0; i < (int)q[j]; i++) {
            fl_bit_set(pairs, (size_t)(fl_pair_first(wide->space, j) + i));
        }
        sum += q[j];
        if (run->space->r[j] > 0) {
            told[n++] = q[j];
        }
    }
    if (sum > 0) { /* else the common start, which the seed gives */
        fl_put(down, "q", told, n, 16);
        fl_send(down, (fl_part){.ad = wide, .pick = {.pairs = pairs}, .which = FL_KNOWN});
    }
    return FL_OK;
}

/* the first min(q, r) pairs of own are those of wide, product and all */
static void florist_lay(fl_adapter *own, const fl_adapter *wide, int site, int q)
{
    fl_mat a = fl_at(own, site, FL_A), b = fl_at(own, site, FL_B);
    fl_mat wa = fl_at(wide, site, FL_A), wb = fl_at(wide, site, FL_B);
    int r = FL_MIN(q, a.rows);

    memcpy(a.x, wa.x, (size_t)r * (size_t)a.cols * sizeof *a.x);
    for (int i = 0; i < b.rows; i++) {
        for (int j = 0; j < r; j++) {
            b.x[(size_t)i * (size_t)b.cols + (size_t)j] =
                (fl_real)((double)wb.x[(size_t)i * (size_t)wb.cols + (size_t)j] /
                          own->space->scale[site]);
        }
    }
}

static fl_err florist_train(fl_run *run, fl_client *c)
{
    fl_adapter *own = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));
    const double *q = fl_get(c->down, "q", NULL);

    FL_TRY(fl_fill(run, own, -1, run->round.t - 1)); /* round 1: the common start */
    for (int j = 0; q != NULL && j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            florist_lay(own, c->ad[0], j, (int)*q++);
        }
    }
    c->ad[1] = fl_scratch_copy(run, own); /* the server can work it out too */
    c->ad[0] = own;
    fl_job job = fl_job_of(run, c);

    return fl_train(run, c, &job);
}

static fl_err florist_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->ad[1], .pick = run->job.train[0]});
    return FL_OK;
}

/* the fewest pairs whose tail is at most 1 - threshold of the whole; what is only rounding goes */
static int florist_keep(double threshold, int k, const double *sv, double *tail, double *all)
{
    int q = k;

    *all = *tail = 0;
    for (int i = k - 1; i >= 0; i--) {
        *all += sv[i] * sv[i];
    }
    while (q > 0 && *tail + sv[q - 1] * sv[q - 1] <= fmax(1 - threshold, 1e-26) * *all) {
        *tail += sv[q - 1] * sv[q - 1];
        q--;
    }
    return q;
}

/* row: q, squared norm beyond q, squared norm */
static fl_err florist_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const florist_config *c = run->config;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    int k = a.rows;
    double *bs, *as, *u = fl_scratch(run, (size_t)b.rows * (size_t)k, sizeof *u);
    double *sv = fl_scratch(run, (size_t)k, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)k * (size_t)a.cols, sizeof *vt);
    int64_t nstack;

    (void)arg;
    fl_site_stack(run, site, in, 0, NULL, &nstack, &bs, &as);
    FL_TRY(fl_site_svd(run, site, nstack, bs, as, k, u, sv, vt));
    int q = florist_keep(c->threshold, k, sv, &row[1], &row[2]);

    for (int i = 0; i < k * a.cols; i++) {
        a.x[i] = i / a.cols < q ? (fl_real)vt[i] : 0;
    }
    for (int i = 0; i < b.rows * k; i++) {
        b.x[i] = i % k < q ? (fl_real)(u[i] * sv[i % k]) : 0;
    }
    row[0] = q;
    return FL_OK;
}

static fl_err florist_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *wide = florist_wide(run);
    double *q = florist_q(run), lost = 0, all = 0, used = 0;
    double *rows = fl_scratch(run, 3 * (size_t)run->nsites, sizeof *rows);
    int n = 0;

    FL_TRY(fl_sites(run, in, florist_site, NULL, 1, &wide, 3, rows));
    for (int j = 0; j < run->nsites; j++) {
        q[j] = rows[3 * j];
        used += q[j];
        lost += rows[3 * j + 1];
        all += rows[3 * j + 2];
        n += run->space->r[j] > 0;
    }
    fl_fit_product(run->global, wide); /* for those that want the deck's rank: its best part */
    run->installed = wide;
    fl_metric(run, "mean_pairs", used / n);
    fl_metric(run, "discarded_energy", all > 0 ? lost / all : 0);
    return FL_OK;
}

/* the wide adapter up to a power of two that holds every q */
static fl_err florist_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    fl_adapter *wide = florist_wide(run), *cut;
    const double *q = florist_q(run);
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r), most = 1;

    if (c != NULL || which > 0) {
        return FL_OK;
    }
    for (int j = 0; j < run->nsites; j++) {
        while (most < (int)q[j]) {
            most *= 2;
        }
    }
    for (int j = 0; j < run->nsites; j++) {
        r[j] = FL_MIN(most, wide->space->r[j]);
    }
    cut = fl_scratch_adapter(run, fl_space_stack(run, r));
    fl_fit(cut, wide);
    v->name = "wide";
    v->stack = (fl_stack){.n = 1, .ad = {cut}, .coef = {1}};
    return FL_OK;
}

const fl_method fl_method_florist = {
    .name = "florist",
    .title = "stack, and keep the singular pairs that carry a share of the energy",
    .source = "Ramesh & Dass 2025, arXiv 2506.09199",
    .choice =
        "s_k goes into the stack; singular values that are rounding (1e-13 of the norm) are "
        "dropped at threshold 1 too. A client of rank r gets q pairs, starts from the first "
        "min(q, r) and fills up with fresh rows of A and B = 0. `fedlora export` gives the part of "
        "rank adapter.r. The code's other ways to choose q (Gavish-Donoho, ScreeNOT) are left out.",
    .needs = FL_HETERO | FL_EACH | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(florist_config),
    .config = florist_fields,
    .setup = florist_setup,
    .download = florist_download,
    .train = florist_train,
    .upload = florist_upload,
    .aggregate = florist_aggregate,
    .view = florist_view,
};
