/* fedsvd - train and average B; the server then turns A into an orthonormal basis.
 * Source: Lee et al. 2025 (FedSVD, arXiv 2505.12805), official code seanie12/fed-svd.
 *   B = sum_k p_k B_k (exact: A is common);  every `period` rounds
 *   B A = U S V',  B <- U S (m x r),  A <- V' (r x n).
 * s is no part of it. The product is not formed: A' = Q R (Q n x r orthonormal; R is a diagonal of
 * signs once A is orthonormal), B R' = U S Z' (m x r), A <- Z' Q'. B A is unchanged and the rows of
 * the new A span those of the old: with plain SGD the run equals FFA-LoRA on an orthonormal basis
 * of the rows of its first A.
 * Choice: while rank(B A) < r the SVD leaves the last rows of A open, and a library would fill them
 * with arbitrary vectors. Here they are the old rows of A with the new ones projected out, the
 * longest first, so the rows never leave the old span. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct fedsvd_config {
    int period;
} fedsvd_config;

static const fl_field fedsvd_fields[] = {
    FL_INT(fedsvd_config, period, "1", 0, 1e9, "rounds",
        "refactor B A after every so many rounds; 0: never, which is FFA-LoRA"),
    FL_END,
};

static fl_err fedsvd_plan(fl_run *run)
{
    run->job.train[0].factors = FL_BIT(FL_B);
    return FL_OK;
}

/* x -= (x, v) v for the rows v_0 .. v_{count - 1}, orthonormal (count x n); returns || x || */
static double fedsvd_project(int count, int n, const double *v, double *x)
{
    double norm2 = 0;

    for (int i = 0; i < count; i++) {
        const double *row = v + (size_t)i * (size_t)n;
        double dot = 0;

        for (int e = 0; e < n; e++) {
            dot += row[e] * x[e];
        }
        for (int e = 0; e < n; e++) {
            x[e] -= dot * row[e];
        }
    }
    for (int e = 0; e < n; e++) {
        norm2 += x[e] * x[e];
    }
    return sqrt(norm2);
}

/* rows have .. r - 1 of v (r x n): what is left of the old rows, old (r x n), is overwritten. A row
 * for which nothing is left (r > n, dependent old rows) stays 0. */
static void fedsvd_complete(int have, int r, int n, double *v, double *old)
{
    double first = 0;

    for (int i = have; i < r; i++) {
        double most = 0;
        int best = 0;

        for (int j = 0; j < r; j++) {
            double left = fedsvd_project(i, n, v, old + (size_t)j * (size_t)n);

            best = left > most ? j : best;
            most = fmax(most, left);
        }
        double *x = old + (size_t)best * (size_t)n;
        double norm = fedsvd_project(i, n, v, x); /* again: what rounding left */

        first = i == have ? norm : first;
        for (int e = 0; e < n && norm > 1e-6 * first; e++) {
            v[(size_t)i * (size_t)n + (size_t)e] = x[e] / norm;
        }
    }
}

/* row: directions that had to be completed */
static fl_err fedsvd_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    int m = b.rows, n = a.cols, r = a.rows, l = FL_MIN(r, n), k = FL_MIN(m, l), rank = 0;
    size_t M = (size_t)m, N = (size_t)n, R = (size_t)r, L = (size_t)l, K = (size_t)k;
    double *old = fl_scratch(run, R * N, sizeof *old), *at = fl_scratch(run, N * R, sizeof *at);
    double *q = fl_scratch(run, N * L, sizeof *q), *ra = fl_scratch(run, L * R, sizeof *ra);
    double *bd = fl_scratch(run, M * R, sizeof *bd), *core = fl_scratch(run, M * L, sizeof *core);
    double *u = fl_scratch(run, M * K, sizeof *u), *sv = fl_scratch(run, K, sizeof *sv);
    double *zt = fl_scratch(run, K * L, sizeof *zt), *v = fl_scratch(run, R * N, sizeof *v);

    (void)in;
    (void)arg;
    for (size_t i = 0; i < R * N; i++) {
        old[i] = (double)a.x[i];
        at[i % N * R + i / N] = (double)a.x[i];
    }
    for (size_t i = 0; i < M * R; i++) {
        bd[i] = (double)b.x[i];
    }
    FL_TRY(fl_qr(n, r, at, q, ra));
    fl_dgemm('n', 't', m, l, r, 1, bd, ra, 0, core);
    FL_TRY(fl_svd(m, l, core, u, sv, zt));
    while (rank < k && sv[rank] > 0x1p-22 * sv[0]) { /* below: the rounding of the stored B */
        rank++;
    }
    fl_dgemm('n', 't', rank, n, l, 1, zt, q, 0, v);
    fedsvd_complete(rank, r, n, v, old);
    for (size_t i = 0; i < R * N; i++) {
        a.x[i] = (fl_real)v[i];
    }
    for (size_t i = 0; i < M * R; i++) {
        size_t j = i % R;

        b.x[i] = j < (size_t)rank ? (fl_real)(u[i / R * K + j] * sv[j]) : 0;
    }
    row[0] = r - rank;
    return FL_OK;
}

static fl_err fedsvd_aggregate(fl_run *run, fl_pile *in)
{
    const fedsvd_config *c = run->config;
    double *rows = fl_scratch(run, (size_t)run->nsites, sizeof *rows), completed = 0;

    FL_TRY(fl_mix(run, in, &(fl_mixing){0}, &run->global));
    if (c->period > 0 && run->round.t % c->period == 0) {
        FL_TRY(fl_sites(run, NULL, fedsvd_site, NULL, 1, &run->global, 1, rows));
        for (int j = 0; j < run->nsites; j++) {
            completed += rows[j];
        }
        fl_metric(run, "completed_rows", completed);
    }
    return FL_OK;
}

const fl_method fl_method_fedsvd = {
    .name = "fedsvd",
    .title = "B trained and averaged, A re-orthonormalised by an SVD of B A",
    .source = "Lee et al. 2025, arXiv 2505.12805",
    .choice =
        "where B A has a rank below r, the missing rows of A are the old ones projected out, never "
        "arbitrary vectors; the column completed_rows counts them. The server sends both new "
        "factors (clients could repeat the SVD and save A).",
    .needs = FL_LORA_ONLY,
    .config_size = sizeof(fedsvd_config),
    .config = fedsvd_fields,
    .plan = fedsvd_plan,
    .aggregate = fedsvd_aggregate,
};
