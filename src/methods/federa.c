/* federa - start from the top of W: the factors are its leading singular triples, the base keeps
 * the rest.
 * Source: Yan et al. 2024 (FeDeRA, arXiv 2404.18848); survey section 3.2, Eq. 10 (whose shapes do
 * not fit). The same start as PiSSA, Meng et al. 2024 (arXiv 2404.02948).
 * Once, at every site:  W = U S V',  s B A = U_r S_r V_r',  W <- W - s B A  (m x n).
 *   balanced: B = U_r (S_r / s)^(1/2),  A = (S_r / s)^(1/2) V_r'      (m x r, r x n)
 *   left:     B = U_r S_r / s,          A = V_r'
 * Then FedAvg of A and B. With the start (A0, B0) kept aside, the model is also the base as loaded
 * with an adapter of rank 2 r: s (B A - B0 A0). Every client has W and can do all this itself, so
 * nothing is sent for it. */
#include "fedlora/fed.h"

enum { SPLIT_BALANCED, SPLIT_LEFT };
typedef struct federa_config {
    int split;
} federa_config;

static const fl_field federa_fields[] = {
    FL_WORD(federa_config, split, "balanced", "balanced|left",
        "where the singular values go: their root into both factors, or all into B"),
    FL_END,
};

static fl_err federa_setup(fl_run *run)
{
    const federa_config *d = run->config;

    FL_TRY(fl_svd_of(run, NULL, d->split == SPLIT_LEFT ? 0 : 0.5, run->global));
    return fl_merge(run, run->global, -1, (fl_pick){.factors = FL_NONE});
}

const fl_method fl_method_federa = {
    .name = "federa",
    .title = "start from the SVD of W, keep the rest as base, average the factors",
    .source = "Yan et al. 2024, arXiv 2404.18848",
    .choice = "the residual is taken with the scale, W - s B A; every party does the SVD itself, "
              "so the start costs no traffic. "
              "adapter.init: svd gives the balanced start to any method.",
    .needs = FL_MERGES | FL_OWN_START | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(federa_config),
    .config = federa_fields,
    .setup = federa_setup,
};
