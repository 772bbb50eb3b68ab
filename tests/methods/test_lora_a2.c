/* test_lora_a2.c - LoRA-A2: alternating factors, and of the active one only the slices that score
 * best within a client's budget: how many, which, what the server makes of them, what they cost. */
#include "method_run.h"

/* q v up down of two blocks: 8 sites */
enum { K = 3, NSITES = 8, ROOM = 4000 };

static size_t factor(const fl_adapter *ad, fl_factor f, fl_real *x)
{
    size_t n = 0;

    for (int i = 0; i < ad->space->nslots; i++) {
        const fl_slot *s = &ad->space->slot[i];
        size_t size = (size_t)s->rows * (size_t)s->cols;

        if (s->factor == f) {
            assert_true(n + size <= ROOM);
            memcpy(x + n, ad->v + s->at, size * sizeof *x);
            n += size;
        }
    }
    return n;
}

static bool same_factor(const fl_adapter *x, const fl_adapter *y, fl_factor f)
{
    static fl_real a[ROOM], b[ROOM];
    size_t n = factor(x, f, a);

    assert_int_equal(factor(y, f, b), n);
    return n > 0 && memcmp(a, b, n * sizeof *a) == 0;
}

static bool is_picked(const uint64_t *pairs, int i)
{
    return pairs == NULL || fl_bit(pairs, (size_t)i);
}

/* slice i of all, row of A or column of B of its site, is equal in x and y */
static bool same_slice(const fl_adapter *x, const fl_adapter *y, fl_factor f, int slice)
{
    int site = 0;

    while (fl_pair_first(x->space, site + 1) <= slice) {
        site++;
    }
    fl_mat p = fl_at(x, site, f), q = fl_at(y, site, f);
    int i = slice - fl_pair_first(x->space, site);
    bool same = true;

    for (int e = 0; e < (f == FL_A ? p.cols : p.rows); e++) {
        int at = f == FL_A ? i * p.cols + e : e * p.cols + i;

        same = same && memcmp(&p.x[at], &q.x[at], sizeof *p.x) == 0;
    }
    return same;
}

/* the slices of one round: how many each client sent, who sent what, what the server has afterwards
 */
static void check_round(bed *b, int t, const int *budget)
{
    fl_runtime *rt = b->rt;
    int nslices = fl_pair_first(rt->run.space, rt->run.nsites), some = 0;
    fl_factor f = t % 2 == 1 ? FL_B : FL_A;
    fl_adapter *before = fl_adapter_create(rt->run.space);
    double *holders = fl_alloc("holders", (size_t)nslices, sizeof *holders);

    memcpy(before->v, rt->run.global->v, rt->run.space->n * sizeof(fl_real));
    bed_ok(round_run(rt, t));
    for (int i = rt->first[b->ctx->rank]; i < rt->first[b->ctx->rank + 1]; i++) {
        const fl_part *part = &rt->sent[i]->part[0];
        int n = 0;

        assert_true(rt->sent[i]->n == 1 && part->pick.factors == FL_BIT(f));
        for (int s = 0; s < nslices; s++) {
            n += is_picked(part->pick.pairs, s);
            holders[s] += is_picked(part->pick.pairs, s);
            assert_true(is_picked(part->pick.pairs, s) || same_slice(part->ad, before, f, s));
        }
        assert_int_equal(n, FL_MIN(budget[rt->cohort[i]], rt->run.space->rmax) * NSITES);
    }
    for (int s = 0; s < nslices; s++) {
        holders[s] = fl_total(test_ctx, holders[s]);
        assert_true(holders[s] > 0 || same_slice(rt->run.global, before, f, s));
        some += holders[s] == 0;
    }
    assert_true(some > 0); /* there were slices that nobody sent */
    assert_true(same_factor(rt->run.global, before, f == FL_A ? FL_B : FL_A) &&
                !same_factor(rt->run.global, before, f));
    assert_below(bed_discordance(b), 1e-6); /* the mean of the products */
    fl_free(holders);
    fl_adapter_destroy(&before);
}

static void slices_within_budget(void **state)
{
    static const int one[] = {1, 1, 1, 1};
    int budget[4];
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=lora_a2", "adapter.r=8", "lora_a2.budget=[1]", "lora_a2.lr_b=2",
            "partition.kind=dirichlet"));
    for (int t = 1; t <= 4; t++) {
        check_round(&b, t, one);
    }
    bed_close(&b);
    /* budgets are the clients' ranks; everybody has all slices of the largest */
    bed_open(&b, test_ctx,
        BED_SET("method.name=lora_a2", "clients.r=[1, 2, 8]", "clients.r_share=[0.5, 0.5, 0]",
            "cohort.size=4", "partition.kind=dirichlet", "lora_a2.probe_steps=2"));
    assert_int_equal(b.rt->run.space->rmax, 8);
    for (int i = 0; i < 4; i++) {
        budget[i] = b.rt->client_r[i];
        assert_true(budget[i] < 8);
    }
    for (int t = 1; t <= 3; t++) {
        check_round(&b, t, budget);
    }
    bed_close(&b);
}

/* B + sum_k p_k dB_k with dB_k = 0 where client k sent nothing, from what was sent */
static void mean_of_differences(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=lora_a2", "adapter.r=6", "lora_a2.budget=[1, 2, 3]",
            "partition.kind=dirichlet", "partition.alpha=0.7", "partition.clients=5",
            "cohort.size=5"));
    for (int t = 1; t <= 3; t++) {
        fl_runtime *rt = b.rt;
        size_t n = rt->run.space->n;
        double *want = fl_alloc("mean", n, sizeof *want), moved = 0;
        fl_real *old = fl_alloc("old", n, sizeof *old);

        memcpy(old, rt->run.global->v, n * sizeof *old);
        bed_ok(round_run(rt, t));
        for (int i = 0; i < rt->pile.n; i++) {
            for (size_t e = 0; rt->inbox.part[i] != NULL && e < n; e++) {
                const fl_slot *s = rt->run.space->slot;
                int slot = 0;

                while (slot + 1 < rt->run.space->nslots && s[slot + 1].at <= e) {
                    slot++;
                }
                if (fl_picked(rt->run.space, rt->inbox.part[i]->pick, slot, e - s[slot].at)) {
                    want[e] += rt->pile.item[i].p * ((double)rt->inbox.mine[i]->v[e] - old[e]);
                }
            }
        }
        for (size_t e = 0; e < n; e++) {
            want[e] = fl_total(test_ctx, want[e]);
            moved += fabs(want[e]);
            assert_below(fabs(rt->run.global->v[e] - old[e] - want[e]),
                0x1p-23 * (fabs(old[e]) + fabs(want[e])) + 1e-15);
        }
        assert_true(moved > 0);
        fl_free(want);
        fl_free(old);
    }
    bed_close(&b);
}

/* with the whole rank as budget it is RoLoRA: the same run, the same bytes */
static void full_budget_is_rolora(void **state)
{
    static const char *const common[] = {"adapter.r=4", "partition.kind=dirichlet"};
    double up[2][6], down[2][6];
    bed b, c;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=rolora", common[0], common[1]));
    bed_open(&c, test_ctx, BED_SET("method.name=lora_a2", "lora_a2.lr_b=1", common[0], common[1]));
    for (int t = 1; t <= 4; t++) {
        bed_ok(round_run(b.rt, t));
        bed_ok(round_run(c.rt, t));
        for (size_t e = 0; e < b.rt->run.space->n; e++) {
            assert_below(fabs(b.rt->run.global->v[e] - c.rt->run.global->v[e]),
                1e-6 * fabs(b.rt->run.global->v[e]) + 1e-7);
        }
    }
    bed_close(&b);
    bed_close(&c);
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? "rolora" : "lora_a2";

        bed_federation(test_ctx, name,
            BED_SET(i == 0 ? "method.name=rolora" : "method.name=lora_a2", "lora_a2.lr_b=1",
                common[0], common[1], "run.rounds=4"));
        assert_int_equal(bed_column(name, "up_bytes", 6, up[i]), 5);
        assert_int_equal(bed_column(name, "down_bytes", 6, down[i]), 5);
    }
    assert_memory_equal(up[0], up[1], 5 * sizeof **up);
    assert_memory_equal(down[0], down[1], 5 * sizeof **down);
}

/* the kept slices are those of the largest ||dB[:,i] A[i,:]||_F, formed as whole matrices after a
 * probe made here */
static void best_slices(void **state)
{
    static double score[8 * NSITES];
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET(
            "method.name=lora_a2", "adapter.r=8", "lora_a2.budget=[2]", "lora_a2.probe_epochs=2"));
    bed_run(&b, 2); /* B is no longer 0 */
    for (int t = 3; t <= 4; t++) {
        fl_run *run = &b.rt->run;
        fl_client c;
        fl_turn turn;
        int at = 0, kept = 0;
        double least = HUGE_VAL, most = 0;

        bed_begin(&b, t, NULL);
        bed_ok(turn_enrol(b.rt, 1, NULL, 0, &c, &turn));
        c.ad[0] = fl_scratch_copy(run, run->global);
        fl_job probe = fl_job_of(run, &c);

        probe.stack.ad[0] = fl_scratch_copy(run, run->global);
        probe.epochs = 2;
        probe.stream = 1;
        bed_ok(fl_train(run, &c, &probe));
        for (int j = 0; j < run->nsites; j++) {
            fl_mat a0 = fl_at(run->global, j, FL_A), b0 = fl_at(run->global, j, FL_B);
            fl_mat a1 = fl_at(probe.stack.ad[0], j, FL_A), b1 = fl_at(probe.stack.ad[0], j, FL_B);

            for (int i = 0; i < a0.rows; i++) {
                double sum = 0;

                for (int y = 0; y < b0.rows; y++) {
                    for (int x = 0; x < a0.cols; x++) {
                        double bi = b0.x[y * b0.cols + i], ai = a0.x[i * a0.cols + x];

                        sum +=
                            pow((double)b1.x[y * b0.cols + i] * a1.x[i * a0.cols + x] - bi * ai, 2);
                    }
                }
                score[at++] = sqrt(sum);
            }
        }
        bed_ok(b.rt->method->train(run, &c));
        assert_int_equal(c.n, 2);
        for (int i = 0; i < at; i++) { /* of the active factor only the kept slices have moved */
            fl_factor f = t % 2 == 1 ? FL_B : FL_A, other = f == FL_B ? FL_A : FL_B;

            assert_int_equal(same_slice(c.ad[0], run->global, f, i), c.ad[1]->v[i] == 0);
            assert_true(same_slice(c.ad[0], run->global, other, i));
        }
        for (int i = 0; i < at; i++) {
            kept += c.ad[1]->v[i] > 0;
            least = c.ad[1]->v[i] > 0 ? fmin(least, score[i]) : least;
            most = c.ad[1]->v[i] > 0 ? most : fmax(most, score[i]);
        }
        assert_int_equal(at, 8 * NSITES);
        assert_int_equal(kept, 2 * NSITES);
        assert_true(most > 0 && least > most * (1 - 1e-6));
        /* spread unevenly: the sites' slices compete with each other */
        int uneven = 0;

        for (int j = 0; j < NSITES; j++) {
            int here = 0;

            for (int i = 0; i < 8; i++) {
                here += c.ad[1]->v[8 * j + i] > 0;
            }
            uneven += here != 2;
        }
        assert_true(uneven > 0);
        turn_end(b.rt, &turn);
    }
    bed_close(&b);
}

/* lr_b multiplies the rate of B, and only that: one step of SGD from the same point */
static void rate_of_b(void **state)
{
    static fl_real x[2][2][ROOM];
    size_t n = 0, na = 0;

    (void)state;
    for (int i = 0; i < 2; i++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=lora_a2", i == 0 ? "lora_a2.lr_b=1" : "lora_a2.lr_b=4",
                "train.steps=1", "train.optimizer=sgd", "train.momentum=0", "train.weight_decay=0",
                "train.clip=0", "train.lr=0.25"));
        bed_ok(round_run(b.rt, 1));
        n = factor(b.rt->run.global, FL_B, x[i][0]);
        for (size_t e = 0; i == 1 && e < n; e++) { /* round 2 from the same B */
            x[0][0][e] *= 4;
            assert_below(fabs(x[0][0][e] - x[1][0][e]), 1e-6 * fabs(x[1][0][e]) + 1e-12);
        }
        fl_fill(&b.rt->run, b.rt->run.global, -1, 0);
        for (size_t e = 0; e < b.rt->run.space->n; e++) {
            b.rt->run.global->v[e] += (fl_real)0.01;
        }
        bed_ok(round_run(b.rt, 2));
        na = factor(b.rt->run.global, FL_A, x[i][1]);
        bed_close(&b);
    }
    assert_true(n > 0 && na > 0 && x[1][0][0] != 0);
    assert_memory_equal(x[0][1], x[1][1], na * sizeof(fl_real));
}

/* square sites: every slice is as long as any other. r_k N slices and a bit of the map for each;
 * the other factor costs nothing. Of a budget of 7 every site has some, so that all of the factor
 * is downloaded again */
static void lora_a2_traffic(void **state)
{
    enum { N = 4, WIDTH = 24, RANK = 8 };
    const double all = K * 4 * RANK * N * WIDTH, map = RANK * N / 8, down[] = {K * 8, all, all};

    (void)state;
    for (int budget = 1; budget < RANK; budget += 6) {
        const double one = K * (4 * budget * N * WIDTH + map), up[] = {one, one, one};

        bed_traffic("lora_a2",
            BED_SET("partition.clients=3", "adapter.targets=[q, o]", "adapter.r=8",
                budget == 1 ? "lora_a2.budget=[1]" : "lora_a2.budget=[7]"),
            3, up, budget == 7 ? down : NULL);
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
    }
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(slices_within_budget), T(mean_of_differences),
        T(full_budget_is_rolora), T(best_slices), T(rate_of_b), T(lora_a2_traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
