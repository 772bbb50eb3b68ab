/* bench_internal.h - the two halves of bench_svd.c and bench_svd_sites.c. */
#ifndef FL_LA_BENCH_INTERNAL_H
#define FL_LA_BENCH_INTERNAL_H
#include "la_internal.h"

/* bs (m x R), as (R x n) of `clients` clients of rank r, R = clients r: Gaussian, pair j of each
 * client scaled by 1 / (1 + j), so that the sum has a head and a tail as trained adapters have */
void fl_la_bench_factors(
    int site, int m, int n, int clients, int r, fl_real *b, fl_real *a); /* [k][m][r], [k][r][n] */
/* Collective. nsites sites of n x n, `clients` clients of rank r. */
fl_err fl_la_bench_sites(
    fl_ctx *ctx, int nsites, int n, int clients, int r, bool targets, fl_text *t);
#endif
