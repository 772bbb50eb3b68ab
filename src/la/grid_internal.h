/* grid_internal.h - a BLACS grid and matrices spread over it, shared by grid.c and grid_svd.c. */
#ifndef FL_GRID_INTERNAL_H
#define FL_GRID_INTERNAL_H
#include "la_internal.h"

struct fl_grid {
    fl_ctx *ctx;       /* borrowed */
    MPI_Comm comm;     /* owned: the p*q ranks inside; MPI_COMM_NULL on others */
    int handle, blacs; /* BLACS's names for comm and for the grid on it; inside only */
    int p, q, nb;
    int row, col; /* this rank's place, row-major over world ranks 0 .. p*q - 1; -1 outside */
};

/* a global rows x cols matrix in nb x nb blocks dealt cyclically to the grid, first block at (0,
 * 0); local parts are column-major */
typedef struct grid_matrix {
    int rows, cols;
    int here_rows, here_cols; /* of this rank's part; 0 outside the grid */
    int desc[9];              /* ScaLAPACK's descriptor */
    double *x;                /* owned [here_cols][desc[8]]; NULL outside */
} grid_matrix;

bool fl_la_grid_inside(const fl_grid *grid);
/* Local, before every piece of work: the paths of broadcasts and combines back to the default.
 * ScaLAPACK keeps them once per process, for all grids, and in version 2.2.1 PDORGQR leaves them
 * changed. A rank that worked in another grid before would send along another path than its
 * partners: a hang, or sums in another order. */
void fl_la_grid_reset(const fl_grid *grid);
/* rows (or cols) of n that process number `at` of `count` along a side of the grid holds */
int fl_la_grid_share(int n, int nb, int at, int count);
int fl_la_grid_global(int here, int nb, int at, int count); /* global index of local index here */

grid_matrix fl_la_grid_matrix(
    const fl_grid *grid, const char *label, int rows, int cols); /* zeros */
void fl_la_grid_free(grid_matrix *a);

/* Collective over world. Element (i, j) is x[i * down + j * right], x [..] on rank `owner`, ignored
 * elsewhere. */
void fl_la_grid_scatter(
    const fl_grid *grid, int owner, const double *x, size_t down, size_t right, grid_matrix *a);
/* the leading rows x cols part of a, the other way */
void fl_la_grid_gather(const fl_grid *grid, int owner, const grid_matrix *a, int rows, int cols,
    double *x, size_t down, size_t right);
/* Collective over the grid's ranks: Frobenius norm, on all of them; added up in rank order */
double fl_la_grid_norm(const fl_grid *grid, const grid_matrix *a);
#endif
