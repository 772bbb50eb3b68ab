/* choose.c - which solver of the sum of products runs: a model of its operations.
 *
 * Every term counts operations of one kind, weighted by how much slower they run than a large
 * DGEMM, whose operations count 1. The weights are the ratios that `fedlora bench svd` prints,
 * rounded (one core with AVX-512, OpenBLAS 0.3.21; R of 64 to 3200, sides of 768 to 4096). They are
 * constants: a choice by measured time would give other bits on another machine. */
#include "la_internal.h"
#include <limits.h>

const char *const fl_solver_name[5] = {"auto", "factored", "dense", "scalapack", "randomized"};

/* DGEQRT of `count` vectors of length `len` > count */
static double cost_qr(double len, double count)
{
    return FL_LA_WEIGHT_QR * (2 * len * count * count - 2.0 / 3 * count * count * count);
}

/* DGESDD with both thin sets of vectors: half of the reduction runs at the speed of memory */
static double cost_svd(double m, double n)
{
    const double k = FL_MIN(m, n), big = FL_MAX(m, n);

    return FL_LA_WEIGHT_SVD * k * k * k + 8 * k * k * (big - k);
}

static double cost_factored(double m, double n, double nstack, double r)
{
    const double kb = FL_MIN(m, nstack), ka = FL_MIN(n, nstack);

    return (kb < m ? cost_qr(m, nstack) : 0) + (ka < n ? cost_qr(n, nstack) : 0) +
           2 * kb * ka * nstack + cost_svd(kb, ka) + 8 * (kb * m + ka * n) * r;
}

static double cost_dense(double m, double n, double nstack)
{
    return 2 * m * n * nstack + cost_svd(m, n);
}

/* The operator (Gram matrices, Cholesky), a sketch of some 12 blocks, two Cholesky tests, three
 * passes over X with the block. */
static double cost_randomized(double m, double n, double nstack, double r)
{
    const double k = FL_MIN(m, n), big = FL_MAX(m, n), block = r + 8;
    const bool stacked = nstack < k;
    const double side = stacked ? nstack : k;
    const double make = stacked ? (m + n) * nstack * nstack + 4.5 * nstack * nstack * nstack
                                : 2 * m * n * nstack + big * k * k;
    const double pass = stacked ? 2 * nstack * (m + n) : 2 * m * n;

    return make + 2 * side * side * side / 3 +
           2 * (2 * side * side * 12 * block + 8 * side * 144 * block * block) +
           2 * 3 * pass * block;
}

/* A certificate costs half of the exact solver even when it succeeds, and all of it for nothing
 * when it does not: the sketch must be small beside X for any spectrum. */
static bool choose_sketch(double m, double n, double nstack, double r, double tol)
{
    return tol * tol >= 2 * FL_LA_SKETCH_LEAST * r && FL_MIN(nstack, FL_MIN(m, n)) >= 32 * (r + 8);
}

fl_solver fl_svd_choose(int m, int n, int64_t nstack, int r, double tol)
{
    const double R = (double)nstack;
    const double factored = cost_factored(m, n, R, r), dense = cost_dense(m, n, R);
    const double exact = FL_MIN(factored, dense);
    const bool stacks = nstack < FL_MAX(m, n) && factored <= dense;

    if (choose_sketch(m, n, R, r, tol) && 2 * cost_randomized(m, n, R, r) < exact) {
        return FL_SOLVE_RANDOMIZED;
    }
    return stacks ? FL_SOLVE_FACTORED : FL_SOLVE_DENSE;
}

/* does the exact solver of that form fit LAPACK's 32-bit interface? */
static fl_err choose_fits(const fl_la_want *w, bool summed)
{
    const int64_t m = summed ? w->m : FL_MIN(w->m, w->nstack);
    const int64_t n = summed ? w->n : FL_MIN(w->n, w->nstack);

    if (fl_la_svd_fits(m, n)) {
        return FL_OK;
    }
    return fl_fail(FL_ESHAPE,
        "%s SVD of m = %d x n = %d, a sum of R = %lld products: the workspace does not fit "
        "LAPACK's 32-bit interface; use %s",
        summed ? "dense" : "factored", w->m, w->n, (long long)w->nstack,
        2 * w->nstack < FL_MIN(w->m, w->n) ? "svd.solver factored"
                                           : "smaller adapters or scalapack");
}

fl_err fl_la_want_make(fl_solver solver, double tol, int m, int n, int64_t nstack, int r,
    bool certify, fl_la_want *want, bool *summed)
{
    FL_REQUIRE(solver != FL_SOLVE_SCALAPACK); /* that is fl_grid_svd */
    FL_TRY(fl_la_check_shapes(m, n, nstack, r));
    *want = (fl_la_want){
        .solver = solver == FL_SOLVE_AUTO ? fl_svd_choose(m, n, nstack, r, tol) : solver,
        .tol = tol,
        .m = m,
        .n = n,
        .r = r,
        .nstack = nstack,
        .certify = certify};
    *summed = want->solver == FL_SOLVE_DENSE ||
              nstack >= (want->solver == FL_SOLVE_FACTORED ? FL_MAX(m, n) : FL_MIN(m, n));
    return choose_fits(want, *summed);
}
