/* unequal_bed.h - five clients of rank 1, 2 and 4 around a server's adapter of random numbers, and
 * what each of them holds of it. */
#ifndef UNEQUAL_BED_H
#define UNEQUAL_BED_H
#include "method_run.h"

enum { K = 5, N = 6 };
/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values, inner width 40 */
static const double mn = 2 * (24 + 24 + 24 + 40) + 2 * (24 + 12 + 40 + 24);

/* K clients of rank 1, 2 and 4 in the cohort, with weights that could be mixed up */
static inline void open_method(bed *b, const char *name, const char *set, const char *set2)
{
    char method[64];

    snprintf(method, sizeof method, "method.name=%s", name);
    bed_open(b, test_ctx,
        BED_SET(method, "partition.kind=dirichlet", "partition.alpha=0.7", "partition.clients=5",
            "cohort.size=5", "clients.r=[1, 2, 4]", "clients.r_share=[0.4, 0.3, 0.3]",
            "adapter.r=4", set != NULL ? set : "run.name=unequal",
            set2 != NULL ? set2 : "run.name=unequal"));
}

static inline void fill_global(bed *b)
{
    fl_adapter *g = b->rt->run.global;

    for (size_t i = 0; i < g->space->n; i++) {
        g->v[i] = (fl_real)(0.4 * bed_normal(99, 0, i));
    }
}

/* element e of slot i belongs to this pair of its site */
static inline int pair_of(const fl_space *sp, int i, size_t e)
{
    const fl_slot *s = &sp->slot[i];

    return (int)(s->factor == FL_A ? e / (size_t)s->cols : e % (size_t)s->cols);
}

static inline size_t slot_size(const fl_slot *s)
{
    return (size_t)s->rows * (size_t)s->cols;
}

/* value of slot i, element e (both of the server's space) at client k; 0 where it has no such pair
 */
static inline double held(const bed *b, int k, int i, size_t e, bool *has)
{
    const fl_space *sp = b->rt->run.space;
    const fl_slot *s = &sp->slot[i];
    fl_mat x = fl_at(b->client[k], s->site, s->factor);
    size_t row = e / (size_t)s->cols, col = e % (size_t)s->cols;

    *has = row < (size_t)x.rows && col < (size_t)x.cols;
    return *has ? x.x[row * (size_t)x.cols + col] : 0;
}

/* ranks for rounds by hand */
static const int mixed[K] = {2, 1, 4, 1, 2}, two_levels[K] = {2, 4, 2, 4, 2},
                 top[K] = {4, 4, 4, 4, 4}, low[K] = {2, 1, 2, 2, 1};

/* rank of the adapter that the server would send this client now */
static inline int rank_sent(bed *b, int id)
{
    fl_client c = {.id = id, .r = b->rt->client_r[id]};
    fl_msg down = {.run = &b->rt->run, .client = &c};

    bed_ok(b->rt->method->download(&b->rt->run, &c, &down));
    assert_int_equal(down.n, 1);
    return down.part[0].ad->space->rmax;
}

#endif
