/* blas.c - which BLAS this is and how many threads it may use. */
#include "la_internal.h"
#include <cblas.h>
#include <string.h>

void fl_blas_threads(int threads)
{
    FL_REQUIRE(threads >= 1);
    openblas_set_num_threads(threads);
}

const char *fl_blas_kernel(void)
{
    return openblas_get_corename();
}

const char *fl_blas_name(void)
{
    static char name[128];
    /* "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ... MAX_THREADS=64": the first two words are name
     * and version */
    const char *config = openblas_get_config(), *space = strchr(config, ' ');
    const int first = space != NULL ? (int)(space - config) + 1 + (int)strcspn(space + 1, " ")
                                    : (int)strlen(config);
    const int threads = openblas_get_num_threads();

    snprintf(name, sizeof name, "%.*s, kernel %s, %d thread%s", first, config, fl_blas_kernel(),
        threads, threads == 1 ? "" : "s");
    return name;
}
