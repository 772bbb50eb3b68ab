/* aggregate.c - `fedlora aggregate`: the server's part of one round on PEFT adapters of any model.
 * The adapters are the clients' messages: a method's setup and aggregate hooks see a pile as in a
 * run, and cannot tell the difference. Numbers are read from the files when a sum or a site needs
 * them, so memory holds the result, one site of all adapters and no more; ranks share the sites and
 * the folders.
 * Scales: item k's s_k may differ from the result's s at a site; sqrt(s_k / s) goes into both of
 * its factors, so products are exact and sums of factors add what has one unit. */
#include "aggregate.h"

#include <math.h>
#include <string.h>

/* ---- the source of items ---- */
static fl_err source_site(void *of, int item, int site, fl_real *a, fl_real *b)
{
    const aggregation *g = of;
    const fl_site *st = &g->set->site[site].site;
    double own;
    int r = fl_peft_set_r(g->set, item, site, &own);

    FL_TRY(fl_peft_set_read(g->set, item, site, a, b));
    if (own != g->scale[site]) {
        double ratio = own / g->scale[site], f = sqrt(fabs(ratio));

        for (size_t i = 0; i < (size_t)r * (size_t)st->n; i++) {
            a[i] = (fl_real)(copysign(f, ratio) * (double)a[i]);
        }
        for (size_t i = 0; i < (size_t)st->m * (size_t)r; i++) {
            b[i] = (fl_real)(f * (double)b[i]);
        }
    }
    return FL_OK;
}

/* ---- a runtime without base, data and clients ---- */
static void describe_model(aggregation *g)
{
    fl_model *m = &g->rt->base.model;
    size_t n = (size_t)g->set->nsites;

    m->nsites = g->set->nsites;
    m->site = fl_alloc("sites", n, sizeof *m->site);
    for (int j = 0; j < m->nsites; j++) {
        m->site[j] = g->set->site[j].site;
    }
}

/* the result's r and s at every site: the largest r, or what is asked for; s of the first adapter
 * of the largest r */
static fl_err make_space(aggregation *g)
{
    fl_runtime *rt = g->rt;
    size_t n = (size_t)g->set->nsites;
    int *r = fl_arena_take(rt->round, n, sizeof *r);
    bool unequal = false;

    g->scale = fl_alloc("scales", n, sizeof *g->scale);
    for (int j = 0; j < g->set->nsites; j++) {
        const fl_site *st = &g->set->site[j].site;
        int64_t all = 0;

        g->scale[j] = 1;
        for (int k = 0; k < g->set->nfolders; k++) {
            double s;
            int own = fl_peft_set_r(g->set, k, j, &s);

            unequal = unequal || own != fl_peft_set_r(g->set, 0, j, NULL);
            all += own;
            if (own > r[j]) {
                r[j] = own;
                g->scale[j] = s;
            }
        }
        if (g->how->r > 0 || g->how->energy > 0) { /* energy: as many pairs as it takes */
            r[j] = (int)FL_MIN(g->how->r > 0 ? g->how->r : all, FL_MIN(st->m, st->n));
        }
        if (g->scale[j] == 0 || !isfinite(g->scale[j])) {
            return fl_fail(
                FL_EDECK, "%s: a scale of zero; lora_alpha must not be 0", g->set->site[j].name);
        }
    }
    if (unequal && (rt->method->needs & FL_HETERO) == 0) {
        return fl_fail(FL_EDECK,
            "--method %s: the adapters have unequal ranks or target different modules, which it "
            "cannot serve; use flora, flexlora, florist, rbla or hetlora",
            rt->method->name);
    }
    rt->run.space = fl_space_scaled(rt->spaces, g->set->nsites, rt->base.model.site, r, g->scale);
    return FL_OK;
}

static fl_err check_method(const aggregation *g)
{
    const fl_method *m = g->rt->method;
    const fl_aggregate_options *how = g->how;

    if ((m->needs & (FL_ONLINE | FL_PERSONAL)) != 0) {
        return fl_fail(FL_EUSAGE,
            "--method %s needs live clients, not finished adapters; use fedavg, flora, flexlora, "
            "florist, fedex_lora, lora_fair, rbla or another that `fedlora methods` does not mark "
            "so",
            m->name);
    }
    if ((how->r > 0 || how->energy > 0) && (m->needs & FL_SPLITS) == 0) {
        return fl_fail(FL_EUSAGE,
            "--r and --energy: %s does not split the sum by an SVD, so its ranks are those of the "
            "adapters; use flexlora or hlora (florist has florist.threshold)",
            m->name);
    }
    return FL_OK;
}

static void make_cohort(aggregation *g)
{
    fl_runtime *rt = g->rt;
    int n = g->set->nfolders;
    double *cost = fl_arena_take(rt->round, (size_t)n, sizeof *cost);

    rt->run.nclients = rt->run.ncohort = n;
    rt->run.rounds = 1;
    rt->cohort = fl_alloc("cohort", (size_t)n, sizeof *rt->cohort);
    rt->first = fl_alloc("blocks of adapters", (size_t)rt->ctx->size + 1, sizeof *rt->first);
    rt->last_seen = fl_alloc("last rounds", (size_t)n, sizeof *rt->last_seen);
    rt->client_r = fl_alloc("client ranks", (size_t)n, sizeof *rt->client_r);
    for (int k = 0; k < n; k++) {
        rt->cohort[k] = k;
        cost[k] = 1;
        for (int j = 0; j < g->set->nsites; j++) {
            rt->client_r[k] = FL_MAX(rt->client_r[k], fl_peft_set_r(g->set, k, j, NULL));
        }
    }
    rt->run.cohort = rt->cohort;
    fl_layout(n, cost, rt->ctx->size, rt->first);
}

static fl_err open_runtime(aggregation *g, fl_ctx *ctx, const fl_deck *deck)
{
    fl_runtime *rt = g->rt;

    *rt = (fl_runtime){.ctx = ctx, .deck = deck, .started = fl_now(), .source = &g->source};
    g->source = (fl_source){.of = g, .site = source_site};
    rt->run.rt = rt;
    rt->run.seed = deck->run.seed;
    rt->svd_energy = g->how->energy;
    rt->round = fl_arena_create("round");
    rt->turn = fl_arena_create("client's turn");
    rt->spaces = fl_spaces_create();
    FL_TRY(setup_method(rt));
    FL_TRY(check_method(g));
    describe_model(g);
    FL_TRY(make_space(g));
    make_cohort(g);
    setup_ledger(rt);
    setup_sites(rt);
    rt->site_discarded =
        fl_alloc("discarded energy", (size_t)g->set->nsites, sizeof *rt->site_discarded);
    return setup_fresh(rt);
}

/* ---- the pile ---- */
static void make_pile(aggregation *g)
{
    fl_runtime *rt = g->rt;
    fl_inbox *in = &rt->inbox;
    int n = g->set->nfolders;
    size_t nsites = (size_t)g->set->nsites;

    *in = (fl_inbox){.nitems = n,
        .item = fl_arena_take(rt->round, (size_t)n, sizeof *in->item),
        .position = rt->cohort,
        .first_item = rt->first};
    for (int k = 0; k < n; k++) {
        int *r = fl_arena_take(rt->round, nsites, sizeof *r);
        double *s = fl_arena_take(rt->round, nsites, sizeof *s);

        for (int j = 0; j < g->set->nsites; j++) {
            r[j] = fl_peft_set_r(g->set, k, j, NULL);
            s[j] = r[j] > 0 ? g->scale[j] : 1;
        }
        in->item[k] = (fl_item){.client = k,
            .p = g->how->w[k],
            .space = fl_space_scaled(rt->spaces, g->set->nsites, rt->base.model.site, r, s)};
    }
    rt->pile = (fl_pile){n, in->item};
}

static fl_err run_hooks(aggregation *g)
{
    fl_runtime *rt = g->rt;
    fl_run *run = &rt->run;

    run->round = (fl_round){.t = 1, .returns = true};
    fl_metrics_row(&rt->metrics);
    make_pile(g);
    rt->before = fl_scratch_copy(run, run->global);
    if (rt->method->plan != NULL) {
        FL_TRY_ALL(rt->ctx, rt->method->plan(run));
    }
    run->round.returns = true;
    return round_sum(rt);
}

static void log_metrics(const fl_runtime *rt)
{
    const fl_metrics *m = &rt->metrics;

    for (int c = rt->col.discordance + 1; c < m->ncolumns; c++) {
        double x = m->x[(size_t)(m->nrows - 1) * (size_t)m->ncolumns + (size_t)c];

        if (!isnan(x)) {
            fl_log(rt->ctx, "%-20s %.6g", m->column[c], x);
        }
    }
}

static void close_runtime(aggregation *g)
{
    fl_runtime *rt = g->rt;

    fl_free(g->scale);
    fl_free(rt->site_discarded);
    fl_free(rt->base.model.site);
    rt->base.model.site = NULL;
    setup_destroy(rt);
}

fl_err fl_aggregate(
    fl_ctx *ctx, const fl_deck *deck, const fl_peft_set *set, const fl_aggregate_options *options)
{
    static fl_runtime runtime; /* large arrays inside */
    aggregation g = {.rt = &runtime, .set = set, .how = options};
    fl_err err = fl_agree(ctx, open_runtime(&g, ctx, deck));

    if (err == FL_OK) {
        fl_log(ctx, "method    %s: %s; %d adapters, %d modules", g.rt->method->name,
            g.rt->method->title, set->nfolders, set->nsites);
        err = run_hooks(&g);
    }
    if (err == FL_OK) {
        log_metrics(g.rt);
        err = aggregate_write(&g);
    }
    if (err == FL_OK && options->audit) {
        err = aggregate_audit(&g);
    }
    close_runtime(&g);
    return err;
}
