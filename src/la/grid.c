/* grid.c - process grids of BLACS on a part of the world, and matrices dealt out to them.
 * Order of calls, each with its reverse at the end: MPI_Comm_split, Csys2blacs_handle,
 * Cblacs_gridinit, Cblacs_set. The matrices travel by plain messages between the owner and each
 * process: the owner need not be in the grid, and counts stay in 64 bit. */
#include "grid_internal.h"
#include <math.h>

int Csys2blacs_handle(MPI_Comm comm);
void Cfree_blacs_system_handle(int handle);
void Cblacs_gridinit(int *context, const char *order, int p, int q);
void Cblacs_gridinfo(int context, int *p, int *q, int *row, int *col);
void Cblacs_gridexit(int context);
void Cblacs_set(int context, int what, int *value);
void pb_topset_(const int *context, const char *op, const char *scope, const char *top);

enum {
    GRID_TAG = 7301,
    GRID_PIECE = 1 << 27,      /* doubles in one message */
    GRID_TOPS_REPEATABLE = 15, /* BLACS's SGET_TOPSREPEAT: combines add in one order */
};

fl_err fl_grid_create(fl_ctx *ctx, int p, int q, int nb, fl_grid **grid)
{
    fl_grid *g;

    *grid = NULL;
    if (p == 0 && q == 0) {
        p = (int)sqrt((double)ctx->size);
        q = ctx->size /
            p; /* the few ranks left over stay outside: 2 x 3 on 7 is faster than 1 x 7 */
    }
    if (p < 1 || q < 1 || nb < 1) {
        return fl_fail(
            FL_EDECK, "process grid of %d x %d, block %d: needs whole numbers from 1", p, q, nb);
    }
    if ((int64_t)p * q > ctx->size) {
        return fl_fail(FL_EDECK,
            "process grid of %d x %d needs %lld ranks, this job has %d: start more ranks or choose "
            "a smaller grid (results depend on the grid)",
            p, q, (long long)p * q, ctx->size);
    }
    g = fl_alloc("grid", 1, sizeof *g);
    *g = (fl_grid){.ctx = ctx, .p = p, .q = q, .nb = nb, .row = -1, .col = -1};
    MPI_Comm_split(ctx->world, ctx->rank < p * q ? 0 : MPI_UNDEFINED, ctx->rank, &g->comm);
    if (g->comm != MPI_COMM_NULL) {
        int p_seen, q_seen, yes = 1;

        g->handle = Csys2blacs_handle(g->comm);
        g->blacs = g->handle;
        Cblacs_gridinit(&g->blacs, "R", p, q);
        /* without it PDGESVD gives other bits in every run once a side is 3 or more */
        Cblacs_set(g->blacs, GRID_TOPS_REPEATABLE, &yes);
        Cblacs_gridinfo(g->blacs, &p_seen, &q_seen, &g->row, &g->col);
        FL_REQUIRE(p_seen == p && q_seen == q && g->row * q + g->col == ctx->rank);
    }
    *grid = g;
    return FL_OK;
}

void fl_grid_destroy(fl_grid **grid)
{
    fl_grid *g = *grid;

    if (g == NULL) {
        return;
    }
    if (g->comm != MPI_COMM_NULL) {
        Cblacs_gridexit(g->blacs);
        Cfree_blacs_system_handle(g->handle);
        MPI_Comm_free(&g->comm);
    }
    fl_free(g);
    *grid = NULL;
}

int fl_grid_rows(const fl_grid *grid)
{
    return grid->p;
}

int fl_grid_cols(const fl_grid *grid)
{
    return grid->q;
}

void fl_la_grid_reset(const fl_grid *grid)
{
    static const char *const ops[] = {"Broadcast", "Combine"};
    static const char *const scopes[] = {"Row", "Column", "All"};

    for (size_t i = 0; i < FL_COUNT(ops); i++) {
        for (size_t j = 0; j < FL_COUNT(scopes); j++) {
            pb_topset_(&grid->blacs, ops[i], scopes[j], " ");
        }
    }
}

bool fl_la_grid_inside(const fl_grid *grid)
{
    return grid->comm != MPI_COMM_NULL;
}

int fl_la_grid_share(int n, int nb, int at, int count)
{
    const int blocks = n / nb, whole = blocks / count, extra = blocks % count;

    return whole * nb + (at < extra ? nb : at == extra ? n % nb : 0);
}

int fl_la_grid_global(int here, int nb, int at, int count)
{
    return (here / nb * count + at) * nb + here % nb;
}

grid_matrix fl_la_grid_matrix(const fl_grid *grid, const char *label, int rows, int cols)
{
    grid_matrix a = {.rows = rows, .cols = cols};

    if (!fl_la_grid_inside(grid)) {
        return a;
    }
    a.here_rows = fl_la_grid_share(rows, grid->nb, grid->row, grid->p);
    a.here_cols = fl_la_grid_share(cols, grid->nb, grid->col, grid->q);
    const int desc[9] = {
        1, grid->blacs, rows, cols, grid->nb, grid->nb, 0, 0, FL_MAX(1, a.here_rows)};

    for (int i = 0; i < 9; i++) {
        a.desc[i] = desc[i];
    }
    a.x = fl_alloc(label, (size_t)a.desc[8] * (size_t)FL_MAX(1, a.here_cols), sizeof *a.x);
    return a;
}

void fl_la_grid_free(grid_matrix *a)
{
    fl_free(a->x);
    a->x = NULL;
}

static void grid_send(const fl_grid *grid, int to, const double *x, size_t n)
{
    for (size_t at = 0; at < n; at += GRID_PIECE) {
        const int count = (int)FL_MIN(n - at, (size_t)GRID_PIECE);

        MPI_Send(x + at, count, MPI_DOUBLE, to, GRID_TAG, grid->ctx->world);
    }
    fl_mpi_count(grid->ctx, (double)n * sizeof *x);
}

static void grid_receive(const fl_grid *grid, int from, double *x, size_t n)
{
    for (size_t at = 0; at < n; at += GRID_PIECE) {
        const int count = (int)FL_MIN(n - at, (size_t)GRID_PIECE);

        MPI_Recv(x + at, count, MPI_DOUBLE, from, GRID_TAG, grid->ctx->world, MPI_STATUS_IGNORE);
    }
}

/* between the owner's x and the packed part (column-major, mr x mc) of the process at (row, col) */
static void grid_pack(const fl_grid *grid, int row, int col, int mr, int mc, bool out, double *x,
    size_t down, size_t right, double *part)
{
    for (int j = 0; j < mc; j++) {
        const size_t gj = (size_t)fl_la_grid_global(j, grid->nb, col, grid->q);

        for (int i = 0; i < mr; i++) {
            const size_t gi = (size_t)fl_la_grid_global(i, grid->nb, row, grid->p);
            double *mine = &x[gi * down + gj * right], *theirs = part++;

            if (out) {
                *theirs = *mine;
            } else {
                *mine = *theirs;
            }
        }
    }
}

/* between the packed part and the leading mr x mc corner of this rank's a */
static void grid_corner(const grid_matrix *a, int mr, int mc, bool out, double *part)
{
    for (int j = 0; j < mc; j++) {
        for (int i = 0; i < mr; i++, part++) {
            double *here = &a->x[(size_t)j * (size_t)a->desc[8] + (size_t)i];

            if (out) {
                *part = *here;
            } else {
                *here = *part;
            }
        }
    }
}

/* One process after the other: the owner holds one packed part at a time. to_grid: x -> a, else a
 * -> x. */
static void grid_move(const fl_grid *grid, bool to_grid, int owner, double *x, size_t down,
    size_t right, const grid_matrix *a, int rows, int cols)
{
    const int rank = grid->ctx->rank;

    for (int other = 0; other < grid->p * grid->q; other++) {
        const int row = other / grid->q, col = other % grid->q;
        const int mr = fl_la_grid_share(rows, grid->nb, row, grid->p);
        const int mc = fl_la_grid_share(cols, grid->nb, col, grid->q);
        const size_t n = (size_t)mr * (size_t)mc;
        double *part;

        if (n == 0 || (rank != owner && rank != other)) {
            continue;
        }
        part = fl_alloc("grid: part", n, sizeof *part);
        if (to_grid && rank == owner) {
            grid_pack(grid, row, col, mr, mc, true, x, down, right, part);
        } else if (!to_grid && rank == other) {
            grid_corner(a, mr, mc, true, part);
        }
        if (owner != other && rank == (to_grid ? owner : other)) {
            grid_send(grid, to_grid ? other : owner, part, n);
        } else if (owner != other) {
            grid_receive(grid, to_grid ? owner : other, part, n);
        }
        if (to_grid && rank == other) {
            grid_corner(a, mr, mc, false, part);
        } else if (!to_grid && rank == owner) {
            grid_pack(grid, row, col, mr, mc, false, x, down, right, part);
        }
        fl_free(part);
    }
}

void fl_la_grid_scatter(
    const fl_grid *grid, int owner, const double *x, size_t down, size_t right, grid_matrix *a)
{
    /* moving to the grid only reads x */
    grid_move(grid, true, owner, (double *)(uintptr_t)x, down, right, a, a->rows, a->cols);
}

void fl_la_grid_gather(const fl_grid *grid, int owner, const grid_matrix *a, int rows, int cols,
    double *x, size_t down, size_t right)
{
    grid_move(grid, false, owner, x, down, right, a, rows, cols);
}

double fl_la_grid_norm(const fl_grid *grid, const grid_matrix *a)
{
    const int count = grid->p * grid->q;
    double *part = fl_alloc("grid: norms", (size_t)count, sizeof *part), mine, norm;
    double *column = fl_alloc("grid: column norms", (size_t)a->here_cols, sizeof *column);

    for (int j = 0; j < a->here_cols; j++) {
        column[j] = fl_la_norm((size_t)a->here_rows, a->x + (size_t)j * (size_t)a->desc[8]);
    }
    mine = fl_la_norm((size_t)a->here_cols, column);
    MPI_Allgather(&mine, 1, MPI_DOUBLE, part, 1, MPI_DOUBLE, grid->comm);
    norm = fl_la_norm((size_t)count, part);
    fl_free(column);
    fl_free(part);
    return norm;
}
