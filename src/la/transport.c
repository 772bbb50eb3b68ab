/* transport.c - discrete optimal transport, exact, by successive shortest paths: every source sends
 * what it still has along the cheapest path of the residual graph (forward arcs cost c, arcs of the
 * plan may be taken back at -c), with potentials u, v that keep all reduced costs c - u - v >= 0
 * and those of the plan at 0: the plan is optimal for what was sent at every moment. Dense
 * Dijkstra; among paths of equal cost the one of the fewest arcs, as Edmonds and Karp's, so that it
 * ends for any real masses; then the lowest index. */
#include "la_internal.h"
#include <math.h>
#include <string.h>

typedef struct transport_job {
    int n, m;
    const double *cost;    /* borrowed [n][m] */
    double *plan;          /* borrowed [n][m] */
    double *supply, *want; /* owned [n], [m]: what is left */
    double *u, *v;         /* owned [n], [m]: potentials */
    double *far;           /* owned [n + m]: distance of sources, then of sinks */
    int *from, *arcs; /* owned [n + m]: the node before on the path, -1 at the start; its length */
    bool *done;       /* owned [n + m] */
} transport_job;

static bool transport_nearer(const transport_job *t, double far, int arcs, int than)
{
    return far < t->far[than] || (far == t->far[than] && arcs < t->arcs[than]);
}

/* the nearest open node; -1 if none can be reached */
static int transport_nearest(const transport_job *t)
{
    int best = -1;

    for (int i = 0; i < t->n + t->m; i++) {
        if (!t->done[i] && isfinite(t->far[i]) &&
            (best < 0 || transport_nearer(t, t->far[i], t->arcs[i], best))) {
            best = i;
        }
    }
    return best;
}

/* to a neighbour over an arc of reduced cost `step`, which rounding may leave below zero */
static void transport_relax(transport_job *t, int at, int to, double step)
{
    const double far = t->far[at] + FL_MAX(step, 0);

    if (!t->done[to] && transport_nearer(t, far, t->arcs[at] + 1, to)) {
        t->far[to] = far;
        t->arcs[to] = t->arcs[at] + 1;
        t->from[to] = at;
    }
}

/* Dijkstra from one source; returns the nearest sink that still wants something */
static int transport_path(transport_job *t, int source)
{
    for (int i = 0; i < t->n + t->m; i++) {
        t->far[i] = INFINITY;
        t->from[i] = -1;
        t->arcs[i] = 0;
        t->done[i] = false;
    }
    t->far[source] = 0;
    for (int at = source; at >= 0; at = transport_nearest(t)) {
        t->done[at] = true;
        if (at >= t->n && t->want[at - t->n] > 0) {
            return at - t->n;
        }
        for (int j = 0; at < t->n && j < t->m; j++) {
            const size_t arc = (size_t)at * (size_t)t->m + (size_t)j;

            transport_relax(t, at, t->n + j, t->cost[arc] - t->u[at] - t->v[j]);
        }
        for (int i = 0; at >= t->n && i < t->n; i++) {
            const size_t arc = (size_t)i * (size_t)t->m + (size_t)(at - t->n);

            if (t->plan[arc] > 0) { /* its reduced cost is 0 */
                transport_relax(t, at, i, 0);
            }
        }
    }
    return -1;
}

/* potentials of all nodes nearer than the sink */
static void transport_potentials(transport_job *t, double reach)
{
    for (int i = 0; i < t->n; i++) {
        t->u[i] += t->far[i] < reach ? reach - t->far[i] : 0;
    }
    for (int j = 0; j < t->m; j++) {
        t->v[j] -= t->far[t->n + j] < reach ? reach - t->far[t->n + j] : 0;
    }
}

/* as much as the ends and the arcs taken back allow */
static void transport_send(transport_job *t, int source, int sink)
{
    double flow = FL_MIN(t->supply[source], t->want[sink]);

    for (int at = t->n + sink; t->from[at] >= 0; at = t->from[at]) {
        if (at < t->n) {
            flow = FL_MIN(flow, t->plan[(size_t)at * (size_t)t->m + (size_t)(t->from[at] - t->n)]);
        }
    }
    for (int at = t->n + sink; t->from[at] >= 0; at = t->from[at]) {
        const int before = t->from[at];

        if (at < t->n) { /* flow == plan leaves an exact 0 */
            t->plan[(size_t)at * (size_t)t->m + (size_t)(before - t->n)] -= flow;
        } else {
            t->plan[(size_t)before * (size_t)t->m + (size_t)(at - t->n)] += flow;
        }
    }
    t->supply[source] -= flow;
    t->want[sink] -= flow;
}

static void transport_run(transport_job *t)
{
    for (int i = 0; i < t->n; i++) {
        while (t->supply[i] > 0) {
            const int sink = transport_path(t, i);

            if (sink < 0) {
                break; /* all that is left is the rounding of the sums */
            }
            transport_potentials(t, t->far[t->n + sink]);
            transport_send(t, i, sink);
        }
    }
}

static double transport_total(int n, const double *x)
{
    double sum = 0;

    for (int i = 0; i < n; i++) {
        sum += x[i];
    }
    return sum;
}

static fl_err transport_check(int n, int m, const double *a, const double *b, const double *cost)
{
    const double from = transport_total(n, a), to = transport_total(m, b);
    bool negative = false;

    if (!fl_finite((size_t)n, a) || !fl_finite((size_t)m, b) ||
        !fl_finite((size_t)n * (size_t)m, cost)) {
        return fl_fail(FL_ENUM, "transport of %d to %d: masses or costs hold NaN or Inf", n, m);
    }
    for (int i = 0; i < n; i++) {
        negative = negative || a[i] < 0;
    }
    for (int j = 0; j < m; j++) {
        negative = negative || b[j] < 0;
    }
    if (negative || fabs(from - to) > 1e-9 * FL_MAX(from, to)) {
        return fl_fail(FL_ENUM,
            "transport of %d to %d: masses must be >= 0 with equal sums; the sums are %.17g and "
            "%.17g",
            n, m, from, to);
    }
    return FL_OK;
}

/* potentials that make every reduced cost >= 0 before anything is sent */
static void transport_begin(transport_job *t, const double *a, const double *b)
{
    const double from = transport_total(t->n, a), to = transport_total(t->m, b);

    memset(t->plan, 0, (size_t)t->n * (size_t)t->m * sizeof *t->plan);
    memcpy(t->supply, a, (size_t)t->n * sizeof *a);
    for (int j = 0; j < t->m; j++) {
        t->want[j] = to > 0 ? b[j] * (from / to) : 0;
    }
    for (int i = 0; i < t->n; i++) {
        const double *c = t->cost + (size_t)i * (size_t)t->m;

        t->u[i] = c[0];
        for (int j = 1; j < t->m; j++) {
            t->u[i] = FL_MIN(t->u[i], c[j]);
        }
    }
}

fl_err fl_transport(
    int n, int m, const double *a, const double *b, const double *cost, double *plan, double *value)
{
    transport_job t = {.n = n, .m = m, .cost = cost, .plan = plan};

    FL_REQUIRE(n >= 1 && m >= 1);
    FL_TRY(transport_check(n, m, a, b, cost));
    const size_t nodes = (size_t)n + (size_t)m;

    t.supply = fl_alloc("transport: supply", (size_t)n, sizeof *t.supply);
    t.want = fl_alloc("transport: want", (size_t)m, sizeof *t.want);
    t.u = fl_alloc("transport: u", (size_t)n, sizeof *t.u);
    t.v = fl_alloc("transport: v", (size_t)m, sizeof *t.v);
    t.far = fl_alloc("transport: distances", nodes, sizeof *t.far);
    t.from = fl_alloc("transport: path", nodes, sizeof *t.from);
    t.arcs = fl_alloc("transport: path lengths", nodes, sizeof *t.arcs);
    t.done = fl_alloc("transport: settled", nodes, sizeof *t.done);
    transport_begin(&t, a, b);
    transport_run(&t);
    if (value != NULL) {
        *value = 0;
        for (size_t i = 0; i < (size_t)n * (size_t)m; i++) {
            *value += plan[i] * cost[i];
        }
    }
    fl_free(t.done);
    fl_free(t.arcs);
    fl_free(t.from);
    fl_free(t.far);
    fl_free(t.v);
    fl_free(t.u);
    fl_free(t.want);
    fl_free(t.supply);
    return FL_OK;
}
