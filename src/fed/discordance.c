/* discordance.c - how far what the server installed is from the ideal update, sum_k p_k s_k B_k
 * A_k:
 *   || installed - ideal ||_F / || ideal ||_F  over all sites,  installed = what was merged into
 * the base + s B A of the new global adapter. Both are sums of thin products, so the difference is
 * one wider stack and is never formed unless that is cheaper. */
#include "fed_internal.h"

#include <math.h>

/* appends coef s B A of ad to the stack */
static void append(const fl_adapter *ad, int site, double coef, double *bs, double *as,
    int64_t nstack, int64_t *at)
{
    fl_item one = {.space = ad->space, .ad = ad};

    site_stack(&one, 1, 0, &coef, site, bs, as, nstack, at);
}

/* row: squared norms of the difference and of the ideal */
static fl_err discordance_site(fl_runtime *rt, int site, const fl_pile *in, void *arg)
{
    fl_run *run = &rt->run;
    double *row = (double *)arg + 2 * site;
    const fl_site *st = &rt->base.model.site[site];
    double *w = fl_scratch(run, (size_t)in->n, sizeof *w), *bs, *as;

    if (run->space->r[site] == 0) {
        return FL_OK;
    }
    const fl_adapter *installed = run->installed != NULL ? run->installed : run->global;
    int64_t ideal = site_stack_r(in, 0, site), all = ideal + installed->space->r[site], at = 0;

    for (int i = 0; i < rt->nmerges; i++) {
        all += rt->merged[i].ad->space->r[site];
    }
    bs = fl_scratch(run, (size_t)st->m * (size_t)all, sizeof *bs);
    as = fl_scratch(run, (size_t)all * (size_t)st->n, sizeof *as);
    for (int i = 0; i < in->n; i++) {
        w[i] = in->item[i].p;
    }
    site_stack(in->item, in->n, 0, w, site, bs, as, ideal, &at);
    row[1] = fl_product_norm2(st->m, st->n, ideal, bs, as);
    at = 0;
    site_stack(in->item, in->n, 0, w, site, bs, as, all, &at);
    append(installed, site, -1, bs, as, all, &at);
    for (int i = 0; i < rt->nmerges; i++) {
        append(rt->merged[i].ad, site, -rt->merged[i].coef, bs, as, all, &at);
    }
    row[0] = fl_product_norm2(st->m, st->n, all, bs, as);
    return FL_OK;
}

fl_err discordance_measure(fl_runtime *rt, double *relative)
{
    fl_run *run = &rt->run;
    size_t nrows = 2 * (size_t)run->nsites;
    double *rows, difference = 0, ideal = 0, whole = 0;
    bool factors = false;

    *relative = NAN;
    if (rt->deck->train.what == FL_WHAT_FULL || (rt->method->needs & FL_PERSONAL) != 0) {
        return FL_OK;
    }
    for (int i = 0; i < rt->pile.n; i++) { /* has a meaning for whole factors only */
        const fl_item *it = &rt->pile.item[i];

        factors = factors || (it->label == 0 && it->space->nsites > 0);
        whole += it->label == 0 ? it->p : 0;
        if (it->label == 0 && (it->change || it->space->nsites == 0)) {
            return FL_OK;
        }
    }
    if (!factors || whole < 1 - 1e-9) { /* nor when some clients sent something else */
        return FL_OK;
    }
    rows = fl_scratch(run, nrows, sizeof *rows);
    FL_TRY(site_walk(rt, discordance_site, rows));
    fl_fill_in(rt->ctx, nrows, rows);
    for (int j = 0; j < run->nsites; j++) {
        difference += rows[2 * j];
        ideal += rows[2 * j + 1];
    }
    *relative = ideal > 0 ? sqrt(difference / ideal) : 0;
    return FL_OK;
}
