/* colr - a fresh common basis A every round; clients train B, rows are averaged, the product
 * merged. Source: Nguyen et al. 2024 (CoLR, arXiv 2401.03748), official code NNHieu/CoLR-FedRec;
 * survey 3.1. A (r x n) drawn: Gaussian G = P Q, Q orthonormal rows (polar factor), A = sqrt(n / r)
 * Q B_k (m x r) from 0;  B row i = sum_k B_k[i] / |{k: client k touched row i}|;  W <- W + s B A
 * The item table of the paper is W, item = row, and its P, Q are our B, A (the survey names them
 * the other way round, and says that A comes from a decomposition; the code draws it). A row is
 * touched if it is not zero; one bit a row tells. The gradient of B is multiplied by sqrt(r / n).
 * SCoLR: a client of rank r_k < r trains r_k random columns of B, and every column is averaged over
 * those that sent it, row by row. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { COLR_ORTHNORM, COLR_RANDOM, COLR_L2NORM }; /* basis */
enum { COLR_BASIS_DRAW, COLR_COLUMN_DRAW };       /* what is drawn */

typedef struct colr_config {
    int basis;
    bool damp, subsample;
} colr_config;

static const fl_field colr_fields[] = {
    FL_WORD(colr_config, basis, "orthnorm", "orthnorm|random|l2norm",
        "the draw of A: orthogonal rows of length sqrt(n/r); normal numbers of variance 1/r; "
        "normal rows of length one"),
    FL_BOOL(colr_config, damp, "true", "multiply the gradient of B by sqrt(r/n), as the code does"),
    FL_BOOL(colr_config, subsample, "false",
        "SCoLR: a client of smaller rank trains a random subset of the columns, not the first"),
    FL_END,
};

/* polar factor u v' of x (r x n), times c */
static fl_err colr_polar(fl_run *run, int r, int n, double c, double *x)
{
    double *u = fl_scratch(run, (size_t)r * (size_t)r, sizeof *u);
    double *sv = fl_scratch(run, (size_t)r, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)r * (size_t)n, sizeof *vt);

    FL_TRY(fl_svd(r, n, x, u, sv, vt));
    fl_dgemm('n', 'n', r, n, r, c, u, vt, 0, x);
    return FL_OK;
}

static void colr_unit_rows(int r, int n, double *x)
{
    for (int i = 0; i < r; i++) {
        double norm2 = 0;

        for (int j = 0; j < n; j++) {
            norm2 += x[i * n + j] * x[i * n + j];
        }
        for (int j = 0; j < n; j++) {
            x[i * n + j] /= sqrt(norm2);
        }
    }
}

static fl_err colr_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const colr_config *cf = run->config;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    size_t n = (size_t)a.rows * (size_t)a.cols;
    double *x = fl_scratch(run, n, sizeof *x), r = a.rows;

    (void)in;
    (void)row;
    (void)arg;
    for (size_t i = 0; i < n; i++) {
        x[i] = fl_normal(run, COLR_BASIS_DRAW, site, run->round.t, i);
        x[i] *= cf->basis == COLR_RANDOM ? 1 / sqrt(r) : 1;
    }
    if (cf->basis == COLR_ORTHNORM) {
        FL_TRY(colr_polar(run, a.rows, a.cols, sqrt(a.cols / r), x));
    } else if (cf->basis == COLR_L2NORM) {
        colr_unit_rows(a.rows, a.cols, x);
    }
    for (size_t i = 0; i < n; i++) {
        a.x[i] = (fl_real)x[i];
    }
    memset(b.x, 0, (size_t)b.rows * (size_t)b.cols * sizeof *b.x);
    return FL_OK;
}

static fl_err colr_plan(fl_run *run)
{
    run->job.train[0].factors = FL_BIT(FL_B);
    return fl_sites(run, NULL, colr_site, NULL, 1, &run->global, 0, NULL);
}

/* the basis comes from the seed, B is zero */
static fl_err colr_download(fl_run *run, fl_client *c, fl_msg *down)
{
    (void)c;
    fl_send(down, (fl_part){.ad = run->global, .values = FL_KNOWN});
    return FL_OK;
}

/* the columns of B that this client trains in this round, the same ones at every site; NULL = all
 */
static const uint64_t *colr_columns(fl_run *run, const fl_client *c)
{
    const colr_config *cf = run->config;
    int r = run->space->rmax, *column = fl_scratch(run, (size_t)r, sizeof *column);
    uint64_t *pairs = fl_bits(run, (size_t)fl_pair_first(run->space, run->nsites));

    if (c->r >= r) {
        return NULL;
    }
    for (int i = 0; i < r; i++) {
        column[i] = i;
    }
    if (cf->subsample) {
        fl_shuffle(run, COLR_COLUMN_DRAW, c->id, run->round.t, r, column);
    }
    for (int j = 0; j < run->nsites; j++) {
        for (int i = 0; i < c->r && run->space->r[j] > 0; i++) {
            fl_bit_set(pairs, (size_t)(fl_pair_first(run->space, j) + column[i]));
        }
    }
    return pairs;
}

static fl_err colr_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    job.train[0].pairs = colr_columns(run, c);
    return fl_train(run, c, &job);
}

static fl_err colr_step(fl_run *run, fl_client *c, fl_step *s)
{
    const colr_config *cf = run->config;

    (void)c;
    for (int j = 0; s->when == FL_GRAD && cf->damp && j < run->nsites; j++) {
        fl_mat b = fl_at(s->grad[0], j, FL_B);

        for (int i = 0; i < b.rows * b.cols; i++) {
            b.x[i] *= (fl_real)sqrt((double)b.cols / run->space->n_in[j]);
        }
    }
    return FL_OK;
}

static fl_err colr_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_pick pick = {.factors = FL_BIT(FL_B), .pairs = colr_columns(run, c)};
    uint64_t *touched = fl_bits(run, run->space->n);
    size_t nrows = 0;
    double *mask;

    for (int j = 0; j < run->nsites; j++) {
        nrows += (size_t)fl_at(c->ad[0], j, FL_B).rows;
    }
    mask = fl_scratch(run, nrows, sizeof *mask);
    nrows = 0;
    for (int j = 0; j < run->nsites; j++) {
        fl_mat b = fl_at(c->ad[0], j, FL_B);

        for (int i = 0; i < b.rows; i++, nrows++) {
            size_t at = (size_t)(b.x - c->ad[0]->v) + (size_t)i * (size_t)b.cols;

            for (int k = 0; k < b.cols; k++) {
                mask[nrows] = b.x[i * b.cols + k] != 0 ? 1 : mask[nrows];
            }
            for (int k = 0; k < b.cols && mask[nrows] != 0; k++) {
                fl_bit_set(touched, at + (size_t)k);
            }
        }
    }
    pick.elems = touched;
    fl_send(up, (fl_part){.ad = c->ad[0], .pick = pick, .which = FL_KNOWN});
    fl_put(up, "touched", mask, nrows, 1);
    return FL_OK;
}

static fl_err colr_aggregate(fl_run *run, fl_pile *in)
{
    fl_mixing per_row = {.even = true, .norm = FL_HOLDERS};

    FL_TRY(fl_mix(run, in, &per_row, &run->global));
    FL_TRY(fl_merge(run, run->global, 1, (fl_pick){.factors = FL_BIT(FL_B)}));
    for (int j = 0; j < run->nsites; j++) {
        fl_mat b = fl_at(run->global, j, FL_B);

        if (b.x != NULL) {
            memset(b.x, 0, (size_t)b.rows * (size_t)b.cols * sizeof *b.x);
        }
    }
    return FL_OK;
}

const fl_method fl_method_colr = {
    .name = "colr",
    .title =
        "one fresh orthogonal basis for all every round, coefficients averaged by rows, merged",
    .source = "Nguyen et al. 2024, arXiv 2401.03748",
    .choice = "unweighted, as the code is: every row is the mean over the clients that touched it. "
              "The deck's s multiplies the product (alpha = r is the paper's s = 1). Private user "
              "vectors have no counterpart here. The pending product is merged at the end of its "
              "round, the same function as the code's merge at the start of the next. adamw does "
              "not feel damp, except through train.clip. Serving unequal ranks is ours: SCoLR's "
              "details were not found; which columns a client trains follows from the seed.",
    .needs = FL_HETERO | FL_MERGES | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(colr_config),
    .config = colr_fields,
    .plan = colr_plan,
    .download = colr_download,
    .train = colr_train,
    .step = colr_step,
    .upload = colr_upload,
    .aggregate = colr_aggregate,
};
