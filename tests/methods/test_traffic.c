/* test_traffic.c - what whole runs send, byte for byte, against the formulas that the methods
 * declare: columns up_bytes and down_bytes of rounds.csv. */
#include "method_run.h"

enum { ROUNDS = 4, NCLIENTS = 7, COHORT = 3 };
/* q v up down of two blocks of width 24 with 2 of 4 heads for keys and values and inner width 40 */
static const double sum_n = 2 * (24 + 24 + 24 + 40), sum_m = 2 * (24 + 12 + 40 + 24);

typedef struct plan { /* what a method sends */
    const char *name;
    unsigned odd, even; /* factors that travel up in odd and even rounds */
    bool sends_global;  /* the server's adapter goes down */
    bool merges_all;    /* a revision is the stack of all that arrived; else of all but one */
    bool merges;
    bool unequal; /* clients of rank 2 and 4 */
} plan;

static const plan plans[] = {
    {"fedavg", FL_LORA, FL_LORA, true, false, false, false},
    {"fedex_lora", FL_LORA, FL_LORA, true, false, true, false},
    {"ffa_lora", FL_BIT(FL_B), FL_BIT(FL_B), true, false, false, false},
    {"flexlora", FL_LORA, FL_LORA, true, false, false, false},
    {"flexlora", FL_LORA, FL_LORA, true, false, false, true},
    {"flora", FL_LORA, FL_LORA, false, true, true, false},
    {"flora", FL_LORA, FL_LORA, false, true, true, true},
    {"local_only", 0, 0, false, false, false, false},
    {"rolora", FL_BIT(FL_B), FL_BIT(FL_A), true, false, false, false},
};

typedef struct history { /* of the federation, as an outsider would write it down */
    int seen[NCLIENTS];  /* round of the last download, 0 = never */
    int changed[2]; /* round in which the server's A and B last changed, 0 = as the seed made them
                     */
    double revision[ROUNDS + 1]; /* cost of the base's revision made in round t */
} history;

static double reals(unsigned factors, double r)
{
    return r * ((factors & FL_BIT(FL_A) ? sum_n : 0) + (factors & FL_BIT(FL_B) ? sum_m : 0));
}

/* what client id, of rank r, downloads in round t */
static double down_bytes(const plan *p, const history *h, int id, int r, int t)
{
    int seen = h->seen[id];
    unsigned stale = 0;
    double bytes = seen == 0 ? 8 : 0;

    for (int f = FL_A; f <= FL_B; f++) {
        stale |= h->changed[f] > 0 && h->changed[f] >= seen ? FL_BIT(f) : 0;
    }
    bytes += p->sends_global ? 4 * reals(stale, r) : 0;
    for (int u = FL_MAX(seen, 1); u < t; u++) {
        bytes += h->revision[u];
    }
    return bytes;
}

/* one round of the outsider's book */
static void book_round(
    const plan *p, history *h, bed *b, int t, double *up, double *down, double *arrived)
{
    fl_runtime *rt = b->rt;
    unsigned factors = t % 2 == 1 ? p->odd : p->even;
    double stack = 0, first = 0;

    *up = *down = *arrived = 0;
    round_draw(rt, t);
    for (int i = 0; i < COHORT; i++) {
        int id = rt->cohort[i], r = rt->client_r[id];

        *down += down_bytes(p, h, id, r, t);
        if (factors != 0 &&
            !(fl_rng_uniform(rt->run.seed, FL_RNG_LOSS, id, t, 0) < b->deck->clients.lost)) {
            *up += 4 * reals(factors, r);
            stack += 4 * reals(FL_LORA, r);
            first = *arrived == 0 ? 4 * reals(FL_LORA, r) : first;
            (*arrived)++;
        }
    }
    for (int i = 0; i < COHORT; i++) {
        h->seen[rt->cohort[i]] = t;
    }
    for (int f = FL_A; f <= FL_B; f++) {
        h->changed[f] = *arrived > 0 && (factors & FL_BIT(f)) != 0 ? t : h->changed[f];
    }
    h->revision[t] = !p->merges ? 0 : p->merges_all ? stack : stack - first;
}

static void check_plan(const plan *p, const char *lost)
{
    char method[64];
    const char *const sets[] = {method, lost, "run.rounds=4", "partition.clients=7",
        "cohort.size=3", "train.steps=2", "adapter.r=4", "checkpoint.every=2",
        p->unequal ? "clients.r=[2, 4]" : "clients.r=[]",
        p->unequal ? "clients.r_share=[0.5, 0.5]" : "clients.r_share=[]", NULL};
    double got_up[ROUNDS + 2], got_down[ROUNDS + 2], got_clients[ROUNDS + 2];
    history h = {{0}, {0}, {0}};
    bed b;

    snprintf(method, sizeof method, "method.name=%s", p->name);
    bed_federation(test_ctx, p->name, sets);
    assert_int_equal(bed_column(p->name, "up_bytes", ROUNDS + 2, got_up), ROUNDS + 1);
    assert_int_equal(bed_column(p->name, "down_bytes", ROUNDS + 2, got_down), ROUNDS + 1);
    assert_int_equal(bed_column(p->name, "clients", ROUNDS + 2, got_clients), ROUNDS + 1);
    assert_true(got_up[0] == 0 && got_down[0] == 0 && got_clients[0] == 0);
    bed_open(&b, test_ctx, sets);
    for (int t = 1; t <= ROUNDS; t++) {
        double up, down, arrived;

        book_round(p, &h, &b, t, &up, &down, &arrived);
        if (got_up[t] != up || got_down[t] != down || got_clients[t] != arrived) {
            fail_msg("%s, round %d: up %.0f (%.0f), down %.0f (%.0f), clients %.0f (%.0f)", p->name,
                t, got_up[t], up, got_down[t], down, got_clients[t], arrived);
        }
    }
    for (int id = 0, again = 0; id <= NCLIENTS; id++) { /* the case has newcomers and returners */
        assert_true(id < NCLIENTS || again > 0);
        again += id < NCLIENTS && h.seen[id] > 1;
    }
    bed_close(&b);
}

static void declared_formulas(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(plans); i++) {
        check_plan(&plans[i], "clients.lost=0");
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
    }
}

/* a lost client's download counts, its upload does not; a round without arrivals changes nothing */
static void declared_formulas_with_losses(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(plans); i++) {
        if (!plans[i].unequal) {
            check_plan(&plans[i], "clients.lost=0.6");
            bed_remove(NULL);
            assert_int_equal(bed_folder(NULL), 0);
        }
    }
}

/* square sites: two rounds of one factor = one round of both */
static void one_factor_is_half(void **state)
{
    static const char *const name[] = {"fedavg", "ffa_lora", "rolora"};
    double up[3][4];

    (void)state;
    for (int i = 0; i < 3; i++) {
        char method[64];

        snprintf(method, sizeof method, "method.name=%s", name[i]);
        bed_federation(test_ctx, name[i],
            BED_SET(method, "run.rounds=2", "adapter.targets=[q, o]", "train.steps=1"));
        assert_int_equal(bed_column(name[i], "up_bytes", 4, up[i]), 3);
    }
    assert_true(up[0][1] == 3 /* clients */ * 4 /* sites */ * 3 /* r */ * (24 + 24) * 4.0);
    assert_true(up[1][1] + up[1][2] == up[0][1]);
    assert_true(up[2][1] + up[2][2] == up[0][1]);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {
        T(declared_formulas), T(declared_formulas_with_losses), T(one_factor_is_half)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
