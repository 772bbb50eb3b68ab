/* serve.c - optimisers of the server (FedOpt, Reddi et al. 2021, arXiv 2003.00295): a round's
 * aggregated change g is taken as a negative gradient. Moments are kept in double. */
#include "fed_internal.h"

#include <math.h>

void fl_serve(
    fl_run *run, const char *name, const fl_server_opt *opt, const fl_adapter *g, fl_adapter *x)
{
    size_t n = x->space->n;
    double *m = fl_keep(run, NULL, name, 0, n, "first moment of the server's optimiser", NULL);
    double *v = fl_keep(run, NULL, name, 1, opt->rule == FL_SERVER_ADAM ? n : 1,
        "second moment of the server's optimiser", NULL);
    double *t = fl_keep(run, NULL, name, 2, 1, "steps of the server's optimiser", NULL);

    if (g == NULL) {
        return;
    }
    FL_REQUIRE(g->space == x->space);
    t[0]++;
    for (size_t i = 0; i < n; i++) {
        double d = (double)g->v[i], step;

        if (opt->rule == FL_SERVER_SGD) {
            m[i] = opt->beta1 * m[i] + d;
            step = m[i];
        } else {
            m[i] = opt->beta1 * m[i] + (1 - opt->beta1) * d;
            v[i] = opt->beta2 * v[i] + (1 - opt->beta2) * d * d;
            step = m[i] / (1 - pow(opt->beta1, t[0])) /
                   (sqrt(v[i] / (1 - pow(opt->beta2, t[0]))) + opt->eps);
        }
        x->v[i] = (fl_real)((double)x->v[i] + opt->lr * step);
    }
}
