/* grid_svd.c - SVD of a sum of products X = bs as by ScaLAPACK.
 * Y = X (m x n), or X' when n >= 2 m, so that rows >= cols / 2. Y = left right is formed by PDGEMM;
 * when rows >= 2 cols it is reduced first, Y = Q T by PDGEQRF, and PDGESVD works on the square T. U
 * of Y is then Q times that of T. The whole factorisation is made whether it is certified or not:
 * the bits of the result must not depend on that. */
#include "grid_internal.h"
#include <limits.h>
#include <string.h>

void pdgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
    const double *al, const double *a, const int *ia, const int *ja, const int *desca,
    const double *b, const int *ib, const int *jb, const int *descb, const double *be, double *c,
    const int *ic, const int *jc, const int *descc, size_t, size_t);
void pdgeqrf_(const int *m, const int *n, double *a, const int *ia, const int *ja, const int *desca,
    double *tau, double *work, const int *lwork, int *info);
void pdorgqr_(const int *m, const int *n, const int *k, double *a, const int *ia, const int *ja,
    const int *desca, const double *tau, double *work, const int *lwork, int *info);
void pdgesvd_(const char *jobu, const char *jobvt, const int *m, const int *n, double *a,
    const int *ia, const int *ja, const int *desca, double *s, double *u, const int *iu,
    const int *ju, const int *descu, double *vt, const int *ivt, const int *jvt, const int *descvt,
    double *work, const int *lwork, int *info, size_t, size_t);

/* one factorisation on the way; every matrix is freed by grid_job_free */
typedef struct grid_job {
    const fl_grid *grid; /* borrowed */
    bool swapped;        /* Y = X' */
    int rows, cols, k, nstack;
    grid_matrix left, right, y, u, vt; /* rows x R, R x cols, rows x cols, rows x k, k x cols */
    double *sv;                        /* owned [k], on every rank of the world at the end */
} grid_job;

static const int one = 1;

/* c = al op(a) op(b) + be c over the grid, all whole matrices; inner is the summed dimension */
static void grid_gemm(char ta, char tb, int inner, double al, const grid_matrix *a,
    const grid_matrix *b, double be, grid_matrix *c)
{
    pdgemm_(&ta, &tb, &c->rows, &c->cols, &inner, &al, a->x, &one, &one, a->desc, b->x, &one, &one,
        b->desc, &be, c->x, &one, &one, c->desc, 1, 1);
}

/* Does all that ScaLAPACK indexes with 32-bit integers fit? The process at (0, 0) holds the most.
 * By shape only. */
static bool grid_fits(const fl_grid *grid, int64_t rows, int64_t cols, int64_t nstack)
{
    const int64_t side[3] = {rows, cols, nstack}, k = FL_MIN(rows, cols);
    const int64_t nb = grid->nb, count = (int64_t)grid->p * grid->q;
    int64_t down[3], right[3], most = 0;
    double work;

    for (int i = 0; i < 3; i++) {
        down[i] = fl_la_grid_share((int)side[i], grid->nb, 0, grid->p);
        right[i] = fl_la_grid_share((int)side[i], grid->nb, 0, grid->q);
        if (side[i] > INT_MAX - 2 * nb * FL_MAX(grid->p, grid->q)) {
            return false;
        }
    }
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 3; j++) {
            most = i == 2 && j == 2 ? most : FL_MAX(most, down[i] * right[j]);
        }
    }
    /* PDGESVD: U and V' once more, dealt out by rows and by columns, and a few block rows and
     * columns */
    work = (double)k * (double)(rows / count + cols / count + 2 * nb + 16) + 8.0 * (double)rows +
           8.0 * (double)cols + 4.0 * (double)nb * (double)(down[0] + right[1] + 2 * nb);
    return most <= INT_MAX && work <= INT_MAX;
}

static void grid_qr(grid_job *job, grid_matrix *t)
{
    grid_matrix *y = &job->y;
    double *tau = fl_alloc("grid: tau", (size_t)y->here_cols + 1, sizeof *tau);
    double want[2] = {0, 0}, *work;
    const int query = -1;
    int lwork, info = 0;

    pdgeqrf_(&y->rows, &y->cols, y->x, &one, &one, y->desc, tau, &want[0], &query, &info);
    FL_REQUIRE(info == 0);
    pdorgqr_(&y->rows, &y->cols, &y->cols, y->x, &one, &one, y->desc, tau, &want[1], &query, &info);
    FL_REQUIRE(info == 0 && want[0] <= INT_MAX && want[1] <= INT_MAX);
    lwork = (int)FL_MAX(1, FL_MAX(want[0], want[1]));
    work = fl_alloc("grid: work", (size_t)lwork, sizeof *work);
    pdgeqrf_(&y->rows, &y->cols, y->x, &one, &one, y->desc, tau, work, &lwork, &info);
    FL_REQUIRE(info == 0);
    for (int j = 0; j < t->here_cols; j++) { /* the same deal of blocks: T lies on top of y */
        const int gj = fl_la_grid_global(j, job->grid->nb, job->grid->col, job->grid->q);

        for (int i = 0; i < t->here_rows; i++) {
            if (fl_la_grid_global(i, job->grid->nb, job->grid->row, job->grid->p) <= gj) {
                t->x[(size_t)j * (size_t)t->desc[8] + (size_t)i] =
                    y->x[(size_t)j * (size_t)y->desc[8] + (size_t)i];
            }
        }
    }
    pdorgqr_(&y->rows, &y->cols, &y->cols, y->x, &one, &one, y->desc, tau, work, &lwork, &info);
    FL_REQUIRE(info == 0);
    fl_free(work);
    fl_free(tau);
}

/* a = u diag(sv) vt; a is destroyed. Returns PDGESVD's info. */
static int grid_pdgesvd(grid_matrix *a, grid_matrix *u, double *sv, grid_matrix *vt)
{
    const int query = -1;
    double want = 0, *work;
    int lwork, info = 0;

    pdgesvd_("V", "V", &a->rows, &a->cols, a->x, &one, &one, a->desc, sv, u->x, &one, &one, u->desc,
        vt->x, &one, &one, vt->desc, &want, &query, &info, 1, 1);
    FL_REQUIRE(info == 0 && want >= 1 && want <= INT_MAX);
    lwork = (int)want;
    work = fl_alloc("grid: work", (size_t)lwork, sizeof *work);
    pdgesvd_("V", "V", &a->rows, &a->cols, a->x, &one, &one, a->desc, sv, u->x, &one, &one, u->desc,
        vt->x, &one, &one, vt->desc, work, &lwork, &info, 1, 1);
    FL_REQUIRE(info >= 0);
    fl_free(work);
    return info;
}

static fl_err grid_factorise(grid_job *job)
{
    const fl_grid *grid = job->grid;
    int info;

    grid_gemm('N', 'N', job->nstack, 1, &job->left, &job->right, 0, &job->y);
    if (job->rows >= 2 * (int64_t)job->cols) {
        grid_matrix t = fl_la_grid_matrix(grid, "grid: triangle", job->cols, job->cols);
        grid_matrix ut = fl_la_grid_matrix(grid, "grid: u of triangle", job->cols, job->cols);

        grid_qr(job, &t);
        info = grid_pdgesvd(&t, &ut, job->sv, &job->vt);
        grid_gemm('N', 'N', job->cols, 1, &job->y, &ut, 0, &job->u);
        fl_la_grid_free(&ut);
        fl_la_grid_free(&t);
    } else {
        info = grid_pdgesvd(&job->y, &job->u, job->sv, &job->vt);
    }
    if (info == 0) {
        return FL_OK;
    }
    return fl_fail(FL_ENUM, "SVD of %d x %d by PDGESVD on a %d x %d grid: %s (info %d)", job->rows,
        job->cols, grid->p, grid->q,
        info == job->k + 1 ? "the processes do not agree on the singular values; do all nodes "
                             "have the same processor?"
                           : "no convergence",
        info);
}

/* ||w' w - I||_F, or ||w w' - I||_F for rows; w is k vectors of length `len` */
static double grid_departure(const fl_grid *grid, bool rows, int k, int len, const grid_matrix *w)
{
    grid_matrix g = fl_la_grid_matrix(grid, "grid: orthogonality", k, k);
    double norm;

    grid_gemm(rows ? 'N' : 'T', rows ? 'T' : 'N', len, 1, w, w, 0, &g);
    for (int j = 0; j < g.here_cols; j++) {
        for (int i = 0; i < g.here_rows; i++) {
            if (fl_la_grid_global(i, grid->nb, grid->row, grid->p) ==
                fl_la_grid_global(j, grid->nb, grid->col, grid->q)) {
                g.x[(size_t)j * (size_t)g.desc[8] + (size_t)i] -= 1;
            }
        }
    }
    norm = fl_la_grid_norm(grid, &g);
    fl_la_grid_free(&g);
    return norm;
}

/* the grid's ranks only: forms Y anew in y and subtracts U S V' */
static void grid_certify(grid_job *job, fl_svd_report *report)
{
    const fl_grid *grid = job->grid;
    const double norm = fl_la_norm((size_t)job->k, job->sv);
    grid_matrix us = fl_la_grid_matrix(grid, "grid: u s", job->rows, job->k);

    for (int j = 0; j < us.here_cols; j++) {
        const double s = job->sv[fl_la_grid_global(j, grid->nb, grid->col, grid->q)];

        for (int i = 0; i < us.here_rows; i++) {
            const size_t at = (size_t)j * (size_t)us.desc[8] + (size_t)i;

            us.x[at] = job->u.x[at] * s;
        }
    }
    grid_gemm('N', 'N', job->nstack, 1, &job->left, &job->right, 0, &job->y);
    grid_gemm('N', 'N', job->k, -1, &us, &job->vt, 1, &job->y);
    report->residual = norm > 0 ? fl_la_grid_norm(grid, &job->y) / norm : 0;
    fl_la_grid_free(&us);
    report->orthogonality = FL_MAX(grid_departure(grid, false, job->k, job->rows, &job->u),
        grid_departure(grid, true, job->k, job->cols, &job->vt));
}

static void grid_job_free(grid_job *job)
{
    fl_la_grid_free(&job->left);
    fl_la_grid_free(&job->right);
    fl_la_grid_free(&job->y);
    fl_la_grid_free(&job->u);
    fl_la_grid_free(&job->vt);
    fl_free(job->sv);
}

/* Collective over world; report's numbers are set on all ranks */
static fl_err grid_run(grid_job *job, int owner, const double *bs, const double *as, bool certify,
    fl_svd_report *report)
{
    const fl_grid *grid = job->grid;
    const size_t nr = (size_t)job->nstack;
    const size_t n = (size_t)(job->swapped ? job->rows : job->cols);
    double number[2] = {0, 0};
    fl_err err = FL_OK;

    job->left = fl_la_grid_matrix(grid, "grid: left", job->rows, job->nstack);
    job->right = fl_la_grid_matrix(grid, "grid: right", job->nstack, job->cols);
    job->y = fl_la_grid_matrix(grid, "grid: sum", job->rows, job->cols);
    job->u = fl_la_grid_matrix(grid, "grid: u", job->rows, job->k);
    job->vt = fl_la_grid_matrix(grid, "grid: vt", job->k, job->cols);
    job->sv = fl_alloc("grid: sv", (size_t)job->k, sizeof *job->sv);
    if (job->swapped) {
        fl_la_grid_scatter(grid, owner, as, 1, n, &job->left);
        fl_la_grid_scatter(grid, owner, bs, 1, nr, &job->right);
    } else {
        fl_la_grid_scatter(grid, owner, bs, nr, 1, &job->left);
        fl_la_grid_scatter(grid, owner, as, n, 1, &job->right);
    }
    if (fl_la_grid_inside(grid)) {
        fl_la_grid_reset(grid);
        err = grid_factorise(job);
    }
    FL_TRY_ALL(grid->ctx, err);
    if (certify && fl_la_grid_inside(grid)) {
        grid_certify(job, report);
        number[0] = report->residual;
        number[1] = report->orthogonality;
    }
    /* rank 0 is in every grid */
    MPI_Bcast(job->sv, job->k, MPI_DOUBLE, 0, grid->ctx->world);
    MPI_Bcast(number, 2, MPI_DOUBLE, 0, grid->ctx->world);
    report->residual = number[0];
    report->orthogonality = number[1];
    return FL_OK;
}

/* the top r to the owner, with X's orientation and signs; beyond `rank` zeros, as the local solvers
 * do */
static void grid_deliver(const grid_job *job, int owner, int m, int n, int r, int rank, double *u,
    double *sv, double *vt)
{
    const fl_grid *grid = job->grid;
    const int k = FL_MIN(r, rank);

    if (grid->ctx->rank == owner) {
        for (size_t i = 0; i < (size_t)m * (size_t)r; i++) {
            u[i] = 0;
        }
        for (size_t i = 0; i < (size_t)r * (size_t)n; i++) {
            vt[i] = 0;
        }
        for (int i = 0; i < r; i++) {
            sv[i] = i < k ? job->sv[i] : 0;
        }
    }
    if (job->swapped) { /* X = (V of Y) S (U of Y)' */
        fl_la_grid_gather(grid, owner, &job->vt, k, m, u, 1, (size_t)r);
        fl_la_grid_gather(grid, owner, &job->u, n, k, vt, 1, (size_t)n);
    } else {
        fl_la_grid_gather(grid, owner, &job->u, m, k, u, (size_t)r, 1);
        fl_la_grid_gather(grid, owner, &job->vt, k, n, vt, (size_t)n, 1);
    }
    if (grid->ctx->rank == owner) {
        fl_la_signs(m, n, r, u, vt);
    }
}

/* below one block per process: LAPACK on the owner */
static fl_err grid_small(const fl_grid *grid, int owner, int m, int n, int64_t nstack,
    const double *bs, const double *as, int r, double *u, double *sv, double *vt, bool certify,
    fl_svd_report *report)
{
    double number[3] = {0, 0, 0};
    fl_err err = FL_OK;

    if (grid->ctx->rank == owner) {
        err = fl_svd_factors(FL_SOLVE_DENSE, m, n, nstack, bs, as, r, u, sv, vt, certify, report);
        number[0] = report->residual;
        number[1] = report->orthogonality;
        number[2] = report->discarded;
    }
    FL_TRY_ALL(grid->ctx, err);
    MPI_Bcast(number, 3, MPI_DOUBLE, owner, grid->ctx->world);
    *report = (fl_svd_report){"dense", number[0], number[1], number[2]};
    return FL_OK;
}

fl_err fl_grid_svd(fl_grid *grid, int owner, int m, int n, int64_t nstack, const double *bs,
    const double *as, int r, double *u, double *sv, double *vt, bool certify, fl_svd_report *report)
{
    const bool swapped = n >= 2 * (int64_t)m;
    grid_job job = {.grid = grid,
        .swapped = swapped,
        .rows = swapped ? n : m,
        .cols = swapped ? m : n,
        .k = FL_MIN(m, n)};
    fl_svd_report made = {.solver = "scalapack"};
    fl_err err = FL_OK;

    FL_REQUIRE(owner >= 0 && owner < grid->ctx->size);
    FL_TRY(fl_la_check_shapes(m, n, nstack, r)); /* the same on all ranks */
    if (nstack == 0 || job.k < (int64_t)grid->nb * FL_MAX(grid->p, grid->q)) {
        err = grid_small(grid, owner, m, n, nstack, bs, as, r, u, sv, vt, certify, &made);
        if (err == FL_OK && report != NULL) {
            *report = made;
        }
        return err;
    }
    if (!grid_fits(grid, job.rows, job.cols, nstack)) {
        return fl_fail(FL_ESHAPE,
            "SVD of m = %d x n = %d, a sum of R = %lld products, on a %d x %d grid: a local part "
            "or "
            "the workspace does not fit ScaLAPACK's 32-bit interface; use a larger grid or "
            "svd.solver factored",
            m, n, (long long)nstack, grid->p, grid->q);
    }
    if (grid->ctx->rank == owner) {
        err = fl_la_check_finite(m, n, nstack, bs, as);
    }
    FL_TRY_ALL(grid->ctx, err);
    job.nstack = (int)nstack;
    err = grid_run(&job, owner, bs, as, certify, &made); /* agreed */
    if (err == FL_OK) {
        grid_deliver(&job, owner, m, n, r, (int)FL_MIN(nstack, job.k), u, sv, vt);
        made.discarded = fl_la_discarded(job.k, job.sv, r);
        if (report != NULL) {
            *report = made;
        }
    }
    grid_job_free(&job);
    return err;
}
