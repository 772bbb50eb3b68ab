/* test_budget.c - adalora, fedpipe: who trains how much of what. */
#include "part_test.h"

static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], z[BED_SIDE * BED_SIDE],
    g[BED_SIDE * BED_SIDE];

enum { P, L, Q, NSIDES };

static int slot_number(const bed *b, int site)
{
    int n = 0;

    for (int j = 0; j < site; j++) {
        n += b->rt->run.space->r[j] > 0;
    }
    return n;
}

/* ---- adalora ---- */
/* P, l, Q of the file into the server's state */
static void golden_triplets(const bed *b, fl_adapter *t)
{
    for (int s = 0; s < 2; s++) {
        static const char *const name[] = {"B", "E", "A"};
        int at = NSIDES * slot_number(b, golden_at(b, s));

        for (int side = P; side <= Q; side++) {
            fl_mat to = fl_at(t, at + side, FL_PLAIN);

            golden_read("global", s, name[side], (size_t)to.rows * (size_t)to.cols, to.x);
        }
    }
}

typedef struct turned { /* a client's turn as far as the step hook needs it */
    fl_client c;
    fl_msg down;
    fl_adapter *grad[2];
    fl_job job;
    fl_step step;
    double loss;
} turned;

static void turned_begin(bed *b, turned *t, fl_adapter *triplets)
{
    fl_run *run = &b->rt->run;

    *t = (turned){.down = {.run = run}};
    t->c = (fl_client){.id = 0, .r = 4, .n = 4, .down = &t->down};
    t->c.ad[0] = triplets;
    t->c.ad[1] = fl_scratch_adapter(run, run->space);
    t->c.ad[2] = fl_scratch_adapter(run, triplets->space);
    t->c.ad[3] = fl_scratch_adapter(run, triplets->space);
    t->job.stack = (fl_stack){.n = 2, .ad = {t->c.ad[1], triplets}, .coef = {1, 1}};
    t->step = (fl_step){.n = 6, .job = &t->job, .loss = &t->loss};
    t->step.grad[0] = fl_scratch_adapter(run, run->space);
    t->step.grad[1] = fl_scratch_adapter(run, triplets->space);
}

static void turned_step(bed *b, turned *t, fl_when when)
{
    t->step.when = when;
    bed_ok(b->rt->method->step(&b->rt->run, &t->c, &t->step));
}

/* the official scores after four updates with given gradients, and its W + s P diag(l) Q */
static void adalora_scores(void **state)
{
    bed b;
    turned t;

    (void)state;
    golden_open(&b, "adalora", BED_SET("method.name=adalora", "adalora.orthogonal=0"));
    fl_run *run = &b.rt->run;
    fl_adapter *triplets = server_adapter(&b, "triplets");

    golden_triplets(&b, triplets);
    run->round.t = 1;
    turned_begin(&b, &t, triplets);
    turned_step(&b, &t, FL_BEFORE);
    for (int i = 1; i <= 4; i++) {
        char now[40], last[40];

        snprintf(now, sizeof now, "step%d.grad", i);
        snprintf(last, sizeof last, "step%d.E", i - 1);
        for (int s = 0; s < 2; s++) {
            static const char *const name[] = {"B", "E", "A"};
            int at = NSIDES * slot_number(&b, golden_at(&b, s));

            for (int side = P; side <= Q; side++) {
                fl_mat to = fl_at(t.step.grad[1], at + side, FL_PLAIN);

                golden_read(now, s, name[side], (size_t)to.rows * (size_t)to.cols, to.x);
            }
            if (i > 1) { /* what the mask left */
                snprintf(last, sizeof last, "step%d.E.site%d", i - 1, s);
                golden_read_named(last, 4, fl_at(triplets, at + L, FL_PLAIN).x);
            }
        }
        turned_step(&b, &t, FL_GRAD);
    }
    assert_true(t.loss == 0);
    fl_msg up = {.run = run, .client = &t.c, .up = true};
    size_t n;

    bed_ok(b.rt->method->upload(run, &t.c, &up));
    const double *score = fl_get(&up, "score", &n);

    assert_int_equal(n, 8);
    for (int s = 0; s < 2; s++) {
        golden_doubles("out", s, "score", 4, x);
        assert_close(4, score + fl_pair_first(run->space, golden_at(&b, s)), x, 1e-5);
    }
    /* out.W: with the masked l, s = alpha / (r + 1e-5) */
    turned_step(&b, &t, FL_BEFORE);
    fl_real alpha[1];

    golden_read_named("alpha", 1, alpha);
    for (int s = 0; s < 2; s++) {
        int site = golden_at(&b, s);

        fl_mat l = fl_at(triplets, NSIDES * slot_number(&b, site) + L, FL_PLAIN);

        golden_doubles("out", s, "W", 240, x);
        golden_doubles("before", s, "W", 240, y);
        for (int i = 0; i < 240; i++) {
            x[i] -= y[i];
        }
        /* the last mask of the file: scores at most the threshold */
        double threshold;
        fl_real last[1];

        golden_read_named("threshold.last", 1, last);
        threshold = last[0];
        golden_doubles("out", s, "score", 4, z);
        for (int i = 0; i < 4; i++) {
            l.x[i] = z[i] <= threshold ? 0 : l.x[i];
        }
        turned_step(&b, &t, FL_BEFORE);
        fl_product(t.c.ad[1], site, alpha[0] / (4 + 1e-5), 0, y);
        assert_close(240, y, x, 1e-6);
    }
    golden_close(&b);
}

/* 0.1 times the mean of the four norms, and its gradient by central differences */
static void adalora_regulariser(void **state)
{
    bed b;
    turned t;
    fl_real want[1];

    (void)state;
    golden_open(&b, "adalora", BED_SET("method.name=adalora"));
    fl_run *run = &b.rt->run;
    fl_adapter *triplets = server_adapter(&b, "triplets");

    golden_triplets(&b, triplets);
    run->round.t = 1;
    turned_begin(&b, &t, triplets);
    turned_step(&b, &t, FL_GRAD);
    golden_read_named("out.regulariser", 1, want);
    assert_below(fabs(t.loss - want[0]), 1e-6 * want[0]);
    for (size_t e = 0; e < triplets->space->n; e += 7) {
        double central[2], h = 0.02, slope = t.step.grad[1]->v[e];
        fl_real was = triplets->v[e];
        turned other;

        for (int side = 0; side < 2; side++) {
            turned_begin(&b, &other, triplets);
            triplets->v[e] = was + (fl_real)(side == 0 ? h : -h);
            turned_step(&b, &other, FL_GRAD);
            central[side] = other.loss;
            triplets->v[e] = was;
        }
        assert_below(fabs((central[0] - central[1]) / (2 * h) - slope), 2e-4);
    }
    double norm = fl_adapter_norm(t.step.grad[1]);

    assert_true(norm > 0.05);
    golden_close(&b);
}

/* hands in the triplets and scores of a round; who: NULL = normal numbers */
static void adalora_round(bed *b, int t, double (*score)(int id, int t, int pair), const double *in)
{
    fl_run *run = &b->rt->run;
    int n = fl_pair_first(run->space, run->nsites);

    bed_begin(b, t, NULL);
    for (int i = 0; i < b->n; i++) {
        fl_adapter *ad = fl_scratch_adapter(run, server_adapter(b, "triplets")->space);
        double *s = fl_scratch(run, (size_t)n, sizeof *s);
        int sent = 0;

        for (size_t e = 0; e < ad->space->n; e++) {
            ad->v[e] = (fl_real)(1 + 0.1 * bed_normal(i, t, e));
        }
        for (int k = 0; k < n; k++) {
            if (in == NULL || in[k] > 0) {
                s[sent++] = score(i, t, k);
            }
        }
        hand_send(b, i, 1, &(fl_part){.ad = ad}, "score", sent, s);
    }
    bed_weights(b);
    bed_ok(round_aggregate(b->rt));
}

static double normal_score(int id, int t, int pair)
{
    return exp(bed_normal(20 + id, t, (size_t)pair));
}

static double equal_score(int id, int t, int pair)
{
    (void)id;
    (void)t;
    return pair % 2;
}

/* the budget of the code's schedule; that many l are not 0: those of the best averaged scores */
static void adalora_budget(void **state)
{
    (void)state;
    for (int ties = 0; ties < 2; ties++) {
        fl_real budget[6];
        bed b;

        golden_open(&b, "adalora",
            BED_SET("method.name=adalora", "run.rounds=6", "adalora.target=2", "adalora.warmup=1",
                "adalora.final=1", "cohort.size=3", "partition.kind=dirichlet"));
        golden_read_named("step.budget", 6, budget);
        fl_adapter *triplets = server_adapter(&b, "triplets");
        double *mask = server_array(&b, "mask"), frozen[8];

        for (int t = 1; t <= 6; t++) {
            double mean[8] = {0};
            int kept = 0;

            memcpy(frozen, mask, sizeof frozen);
            adalora_round(&b, t, ties ? equal_score : normal_score, NULL);
            assert_true(bed_metric(&b, "triplets") == (double)budget[t - 1]);
            for (int k = 0; k < 8; k++) {
                fl_mat l = fl_at(triplets, NSIDES * (k / 4) + L, FL_PLAIN);

                for (int i = 0; i < b.n; i++) {
                    mean[k] += b.p[i] * (float)(ties ? equal_score : normal_score)(i, t, k);
                }
                assert_true((l.x[k % 4] != 0) == (mask[k] == 1));
                kept += mask[k] == 1;
            }
            assert_int_equal(kept, (int)budget[t - 1]);
            for (int k = 0; k < 8 && t < 6; k++) {
                int better = 0;

                for (int j = 0; j < 8; j++) {
                    better +=
                        mean[j] > mean[k] + 1e-12 || (fabs(mean[j] - mean[k]) < 1e-12 && j < k);
                }
                assert_true((mask[k] == 1) == (better < kept));
            }
            /* the last round: scores rest, and so does the mask */
            assert_true(t < 6 || memcmp(frozen, mask, sizeof frozen) == 0);
        }
        golden_close(&b);
    }
}

/* a budget that does not shrink: the weighted mean of the triplets, and nothing else */
static void adalora_constant(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=adalora", "adalora.target=3", "partition.kind=dirichlet"));
    fl_adapter *triplets = server_adapter(&b, "triplets");

    assert_true(fl_dot(b.rt->run.global, b.rt->run.global, 0, FL_PRODUCT) == 0); /* dW = 0 */
    for (int t = 1; t <= 5; t++) {
        adalora_round(&b, t, normal_score, NULL);
        for (size_t e = 0; e < triplets->space->n; e++) {
            double mean = 0;

            for (int i = 0; i < b.n; i++) {
                mean += b.p[i] * (fl_real)(1 + 0.1 * bed_normal(i, t, e));
            }
            assert_below(fabs(triplets->v[e] - mean), 1e-6);
        }
        /* and the model is s P diag(l) Q */
        for (int site = 0; site < b.rt->run.nsites; site++) {
            int at = NSIDES * slot_number(&b, site), r = b.rt->run.space->r[site];
            int m = b.rt->run.space->m[site], n = b.rt->run.space->n_in[site];

            if (r == 0) {
                continue;
            }
            doubles(fl_at(triplets, at + P, FL_PLAIN), x);
            for (int i = 0; i < m * r; i++) {
                x[i] *= bed_scale(&b, b.rt->run.global, site) *
                        (double)fl_at(triplets, at + L, FL_PLAIN).x[i % r];
            }
            naive('n', 'n', m, n, r, x, doubles(fl_at(triplets, at + Q, FL_PLAIN), y), z);
            fl_product(b.rt->run.global, site, 1, 0, x);
            assert_close((size_t)(m * n), x, z, 1e-6);
        }
    }
    bed_close(&b);
}

/* one step of SGD at l_0: P, l, Q move by -lr (s G Q' diag(l), s P' G Q' on the diagonal, s diag(l)
 * P' G) */
enum { LR = 2 };
static void adalora_gradient_body(bed *b)
{
    fl_run *run = &b->rt->run;
    fl_adapter *t = server_adapter(b, "triplets"), *was = fl_adapter_create(t->space), *dense;
    fl_adapter *model = fl_adapter_create(run->space);

    for (int s = L; s < t->space->nslots; s += NSIDES) {
        for (int i = 0; i < t->space->slot[s].cols; i++) {
            fl_at(t, s, FL_PLAIN).x[i] = (fl_real)(0.5 * (i + 1));
        }
    }
    fl_fit(was, t);
    for (int site = 0; site < run->nsites; site++) {
        fl_mat a = fl_at(model, site, FL_A), m = fl_at(model, site, FL_B);
        int at = NSIDES * slot_number(b, site);

        for (int i = 0; i < a.rows * a.cols; i++) {
            a.x[i] = fl_at(was, at + Q, FL_PLAIN).x[i];
        }
        for (int i = 0; i < m.rows * m.cols; i++) {
            m.x[i] = fl_at(was, at + P, FL_PLAIN).x[i] * fl_at(was, at + L, FL_PLAIN).x[i % m.cols];
        }
    }
    dense = dense_gradient(b, 1, model);
    bed_run(b, 1);
    for (int site = 0; site < run->nsites; site++) {
        int m = run->space->m[site], n = run->space->n_in[site], r = run->space->r[site];
        int at = NSIDES * slot_number(b, site);
        double p[BED_SIDE * BED_SIDE], q[BED_SIDE * BED_SIDE], l[8], s;

        if (r == 0) {
            continue;
        }
        s = -LR * bed_scale(b, run->global, site);
        site_rows(b, dense, site, g);
        doubles(fl_at(was, at + P, FL_PLAIN), p);
        doubles(fl_at(was, at + Q, FL_PLAIN), q);
        doubles(fl_at(was, at + L, FL_PLAIN), l);
        for (int side = P; side <= Q; side++) {
            fl_mat now = fl_at(t, at + side, FL_PLAIN), then = fl_at(was, at + side, FL_PLAIN);
            int size = now.rows * now.cols;

            if (side == Q) {
                naive('t', 'n', r, n, m, p, g, y);
            } else {
                naive('n', 't', m, r, n, g, q, y);
            }
            for (int i = 0; i < size; i++) {
                z[i] = (double)now.x[i] - (double)then.x[i];
                x[i] = side == P ? s * y[i] * l[i % r] : s * y[i] * l[i / n];
                if (side == L) {
                    x[i] = 0;
                    for (int k = 0; k < m; k++) {
                        x[i] += s * p[k * r + i] * y[k * r + i];
                    }
                }
            }
            assert_close((size_t)size, z, x, 1e-3);
        }
    }
    fl_adapter_destroy(&dense);
    fl_adapter_destroy(&was);
    fl_adapter_destroy(&model);
}

static void adalora_gradient(void **state)
{
    (void)state;
    alone(adalora_gradient_body,
        BED_SET("method.name=adalora", "adalora.orthogonal=0", "adalora.init_std=0.3",
            "cohort.size=1", "partition.clients=1", "train.steps=1", "train.optimizer=sgd",
            "train.lr=2", "train.clip=0", "train.weight_decay=0", "train.momentum=0"));
}

/* two 24 x 24 matrices of r 3: a triplet is 49 numbers; 6, 6, 2, 2 and 2 triplets stay after
 * rounds 1 to 5 of T = 5 */
static void adalora_traffic(void **state)
{
    static const int stay[] = {6, 6, 2, 2, 2};
    double up[5], down[5];

    (void)state;
    for (int drop = 0; drop < 2; drop++) {
        for (int t = 1; t <= 5; t++) {
            bool last = t > 4, cut = drop || last; /* one final round */
            int in = cut && t > 1 ? stay[t - 2] : 6;

            up[t - 1] = 4.0 * (4 * 49 * in + (last ? 0 : 4 * in));
            down[t - 1] = 4.0 * ((t > 1 ? 4 * 49 * in : 8) + (cut ? 1 : 0));
        }
        bed_traffic("adalora",
            BED_SET("cohort.size=4", "adapter.targets=[q]", "adalora.target=1", "adalora.warmup=2",
                "adalora.final=1", drop ? "adalora.drop=true" : "adalora.drop=false"),
            5, up, down);
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
    }
}

/* ---- fedpipe ---- */
static int *plan_of_client(bed *b, int id, int r_k, int t, size_t *cost)
{
    fl_run *run = &b->rt->run;
    fl_client c = {.id = id, .r = r_k};
    fl_msg down = {.run = run, .client = &c};
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    size_t n, at = 0;

    run->round.t = t;
    bed_ok(b->rt->method->download(run, &c, &down));
    assert_int_equal(down.n, 1);
    const double *told = fl_get(&down, "ranks", &n);

    *cost = down.part[0].ad->space->n;
    for (int j = 0; j < run->nsites; j++) {
        r[j] = down.part[0].ad->space->r[j];
        if (run->space->r[j] > 0) {
            assert_true(told[at++] == r[j]);
        }
    }
    assert_int_equal(at, n);
    return r;
}

/* a plan fits its budget, takes the most important matrices, and depends on nothing else */
static void fedpipe_plan(void **state)
{
    static const double budget[] = {0.05, 0.3, 0.55, 1};

    (void)state;
    for (size_t w = 0; w < FL_COUNT(budget); w++) {
        char key[40];
        bed b;
        size_t cost, all, again;
        int differ = 0;

        snprintf(key, sizeof key, "fedpipe.budget=[%g]", budget[w]);
        bed_open(&b, test_ctx,
            BED_SET("method.name=fedpipe", "fedpipe.bits=[0]", "fedpipe.bits_share=[1.0]", key,
                "fedpipe.budget_share=[1.0]"));
        fl_run *run = &b.rt->run;
        double *importance = server_array(&b, "importance");
        int *first = NULL;

        all = run->space->n;
        for (int t = 1; t <= 6; t++) { /* nothing is measured: every round tries others */
            int *r = plan_of_client(&b, 0, 3, t, &cost);

            first = first == NULL ? r : first;
            differ += memcmp(r, first, (size_t)run->nsites * sizeof *r) != 0;
        }
        assert_true(budget[w] == 1 ? differ == 0 : differ > 0);
        for (int j = 0; j < run->nsites; j++) {
            importance[j] = run->space->r[j] > 0 ? 1 + (j * 5) % 14 : -1;
        }
        int *r = plan_of_client(&b, 0, 3, 1, &cost), *other = plan_of_client(&b, 3, 3, 7, &again);

        assert_memory_equal(r, other, (size_t)run->nsites * sizeof *r);
        assert_int_equal(cost, again);
        bool tiny = budget[w] < 0.1; /* one matrix at least */

        assert_true(cost > 0 && (tiny || (double)cost <= budget[w] * (double)all + 1e-9));
        assert_true(
            tiny || (double)cost > budget[w] * (double)all - (24 + 40)); /* nor is room left */
        for (int i = 0; i < run->nsites; i++) {
            for (int j = 0; j < run->nsites; j++) {
                assert_true(importance[i] <= importance[j] || r[i] >= r[j]);
            }
        }
        /* what nobody has measured goes before all others */
        int last = -1;

        for (int j = 0; j < run->nsites; j++) {
            last =
                run->space->r[j] > 0 && (last < 0 || importance[j] < importance[last]) ? j : last;
        }
        importance[last] = -1;
        r = plan_of_client(&b, 0, 3, 1, &cost);
        assert_true(r[last] > 0);
        bed_close(&b);
    }
}

static void fedpipe_send(bed *b, const int (*r)[BED_SITES])
{
    fl_run *run = &b->rt->run;
    double score[BED_SITES];

    for (int i = 0; i < b->n; i++) {
        if (r != NULL) {
            fl_adapter_destroy(&b->client[i]);
            b->client[i] = fl_adapter_create(fl_space_at(run, run->space, r[i], 0));
            bed_fill(b, i, 1, b->client[i]);
        }
        for (int j = 0; j < BED_SITES; j++) {
            score[j] = i + j;
        }
        hand_send(b, i, 1, &(fl_part){.ad = b->client[i], .label = 1}, "score", BED_SITES, score);
    }
    bed_weights(b);
    bed_ok(round_aggregate(b->rt));
}

/* one group, everything adapted, no quantisation: FlexLoRA, factor by factor */
static void fedpipe_is_flexlora(void **state)
{
    (void)state;
    for (int w = 0; w < 2; w++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET(w == 0 ? "method.name=flexlora" : "method.name=fedpipe", "fedpipe.bits=[0]",
                "fedpipe.bits_share=[1.0]", "fedpipe.budget=[1.0]", "fedpipe.budget_share=[1.0]",
                "partition.kind=dirichlet"));
        size_t n = b.rt->run.space->n;

        assert_true(n <= FL_COUNT(x));
        bed_begin(&b, 1, NULL);
        if (w == 0) {
            bed_end(&b);
        } else {
            fedpipe_send(&b, NULL);
            assert_true(bed_metric(&b, "matrices") == 8);
        }
        for (size_t e = 0; e < n; e++) {
            double now = b.rt->run.global->v[e];

            assert_below(w == 0 ? 0 : fabs(now - x[e]), 1e-5);
            x[e] = now;
        }
        assert_true(bed_norm2(n, x) > 1);
        bed_close(&b);
    }
}

/* a client gets the first pairs with the product that they have at the server */
static void fedpipe_cut(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fedpipe", "fedpipe.budget=[1.0]", "fedpipe.budget_share=[1.0]"));
    fl_run *run = &b.rt->run;
    fl_client c = {.id = 1, .r = 2};
    fl_msg down = {.run = run, .client = &c};

    for (size_t e = 0; e < run->space->n; e++) {
        run->global->v[e] = (fl_real)bed_normal(31, 1, e);
    }
    run->round.t = 2;
    bed_ok(b.rt->method->download(run, &c, &down));
    for (int j = 0; j < run->nsites; j++) {
        fl_mat a = fl_at(run->global, j, FL_A), m = fl_at(run->global, j, FL_B);

        if (a.x == NULL) {
            continue;
        }
        for (int i = 0; i < m.rows * a.cols; i++) {
            x[i] = 0;
            for (int k = 0; k < 2; k++) { /* s = 6 / 3 */
                x[i] +=
                    2.0 * (double)m.x[i / a.cols * 3 + k] * (double)a.x[k * a.cols + i % a.cols];
            }
        }
        assert_int_equal(down.part[0].ad->space->r[j], 2);
        fl_product(down.part[0].ad, j, 1, 0, y);
        assert_close((size_t)(m.rows * a.cols), y, x, 1e-6);
    }
    bed_close(&b);
}

/* every matrix: the mean over those who adapted it (or over all), exact while their ranks fit; what
 * nobody adapted stays to the bit; importance is the weighted mean of the scores */
static void fedpipe_holders(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++) {
        int r[3][BED_SITES] = {{0}};
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=fedpipe", "adapter.r=4", "partition.kind=dirichlet",
                "partition.alpha=0.7",
                all ? "fedpipe.normalise=all" : "fedpipe.normalise=holders"));
        fl_run *run = &b.rt->run;
        fl_adapter *old = fl_adapter_create(run->space);
        double *importance = server_array(&b, "importance");

        for (size_t e = 0; e < run->space->n; e++) {
            run->global->v[e] = (fl_real)bed_normal(30, 1, e);
        }
        fl_fit(old, run->global);
        bed_begin(&b, 1, NULL);
        for (int i = 0; i < 3; i++) {
            for (int j = 0; j < run->nsites;
                 j++) { /* ranks 1, 2, 1: 4 in all; one site of nobody */
                int number = run->space->r[j] > 0 ? slot_number(&b, j) : -1;

                r[i][j] = number > 0 && (number == 1 || (number + i) % 3 > 0) ? 1 + i % 2 : 0;
            }
        }
        fedpipe_send(&b, (const int(*)[BED_SITES])r);
        for (int j = 0; j < run->nsites; j++) {
            int m = run->space->m[j], n = run->space->n_in[j], at[3] = {0};
            double weight = 0, score = 0;
            fl_mat was[] = {fl_at(old, j, FL_A), fl_at(old, j, FL_B)};

            if (run->space->r[j] == 0) {
                continue;
            }
            memset(x, 0, sizeof x);
            for (int i = 0; i < 3; i++) {
                for (int k = 0; k < j; k++) {
                    at[i] += r[i][k] > 0;
                }
                if (r[i][j] > 0) {
                    bed_add(b.p[i] * 6 / r[i][j], fl_at(b.client[i], j, FL_B), NULL,
                        fl_at(b.client[i], j, FL_A), NULL, x);
                    weight += b.p[i];
                    score += b.p[i] * (i + at[i]);
                }
            }
            if (weight == 0) {
                assert_int_equal(slot_number(&b, j), 0);
                assert_true(importance[j] == -1);
                for (int f = 0; f < 2; f++) {
                    assert_memory_equal(was[f].x, fl_at(run->global, j, (fl_factor)f).x,
                        (size_t)was[f].rows * (size_t)was[f].cols * sizeof(fl_real));
                }
                continue;
            }
            for (int e = 0; e < m * n && !all; e++) {
                x[e] /= weight;
            }
            fl_product(run->global, j, 1, 0, y);
            assert_close((size_t)(m * n), y, x, 1e-5);
            assert_below(fabs(importance[j] - score / weight), 1e-9);
        }
        fl_adapter_destroy(&old);
        bed_close(&b);
    }
}

/* a sum of lower rank than the deck's leaves pairs that can learn again: B = 0, A not */
static void fedpipe_no_dead_pairs(void **state)
{
    int r[3][BED_SITES] = {{0}};
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fedpipe", "adapter.r=6"));
    bed_begin(&b, 1, NULL);
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < b.rt->run.nsites; j++) {
            r[i][j] = b.rt->run.space->r[j] > 0;
        }
    }
    fedpipe_send(&b, (const int(*)[BED_SITES])r); /* rank 3 */
    for (int j = 0; j < b.rt->run.nsites; j++) {
        fl_mat a = fl_at(b.rt->run.global, j, FL_A), m = fl_at(b.rt->run.global, j, FL_B);

        for (int i = 0; i < a.rows; i++) {
            double na = 0, nb = 0;

            for (int k = 0; k < a.cols; k++) {
                na += fabs((double)a.x[i * a.cols + k]);
            }
            for (int k = 0; k < m.rows; k++) {
                nb += fabs((double)m.x[k * m.cols + i]);
            }
            assert_true(na > 0.1 && (nb > 0) == (i < 3));
        }
    }
    bed_close(&b);
}

/* 4 bits: the nearest of 16 levels, at most half the widest gap (0.3038 / 2) of the block's largest
 * magnitude away; 8 bits: 1/254 of it. What is not adapted keeps its bits. */
static void fedpipe_bases(void **state)
{
    static const double gap[] = {(1 - 0.6961928009986877) / 2, 0.5 / 127};
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fedpipe"));
    const fl_model *m = &b.rt->base.model;

    for (int w = 0; w < 2; w++) {
        const fl_real *const *base = b.rt->base_w[(int)server_array(&b, "bases")[w] - 1];

        for (int i = 0; i < m->ntensors; i++) {
            size_t n = (size_t)m->tensor[i].rows * (size_t)m->tensor[i].cols;
            const fl_real *was = b.rt->base.w[i], *now = base[i];
            bool site = false;
            double moved = 0;

            for (int j = 0; j < m->nsites; j++) {
                int tensor, row0;

                fl_model_site_tensor(m, j, &tensor, &row0);
                site = site || tensor == i;
            }
            for (size_t at = 0; at < n; at += 64) {
                double scale = 0;

                for (size_t e = at; e < FL_MIN(at + 64, n); e++) {
                    scale = fmax(scale, fabs((double)was[e]));
                }
                for (size_t e = at; e < FL_MIN(at + 64, n); e++) {
                    double off = fabs((double)now[e] - was[e]);

                    assert_below(off, site ? gap[w] * scale * (1 + 1e-6) : 0);
                    moved = fmax(moved, scale > 0 ? off / scale : 0);
                }
            }
            assert_true(!site || moved > 0.5 * gap[w]); /* and it is no finer than that */
        }
    }
    bed_close(&b);
}

/* clients train over the base of their bits: the first loss is that base's */
static double fedpipe_loss;

static void fedpipe_bits_body(bed *b)
{
    fl_run *run = &b->rt->run;
    fl_client c;
    fl_turn turn;
    fl_job job = {.data = {0, FL_TRAIN}};
    double n, lost;

    bed_ok(turn_enrol(b->rt, 0, NULL, 0, &c, &turn));
    job.stack.base = b->rt->nbases; /* the one that there is, or 0 */
    bed_ok(fl_loss(run, &c, &job, &lost, &n));
    turn_end(b->rt, &turn);
    bed_run(b, 1);
    assert_below(fabs(round_train_loss(b->rt) - lost), 1e-5); /* one batch of all samples */
    assert_true(fabs(lost - fedpipe_loss) > 1e-6);
    fedpipe_loss = lost;
}

static void fedpipe_bits(void **state)
{
    static const char *const bits[] = {"fedpipe.bits=[0]", "fedpipe.bits=[8]", "fedpipe.bits=[4]"};

    (void)state;
    fedpipe_loss = 0;
    for (size_t w = 0; w < FL_COUNT(bits); w++) {
        alone(fedpipe_bits_body, BED_SET("method.name=fedpipe", bits[w], "fedpipe.bits_share=[1.0]",
                                     "fedpipe.budget=[1.0]", "fedpipe.budget_share=[1.0]",
                                     "cohort.size=1", "partition.clients=1", "train.steps=1",
                                     "train.batch=64", "eval.batch=64", "data.sequences=60"));
    }
}

/* two 24 x 24 matrices of r 3, half of the parameters: one of them, for everybody */
static void fedpipe_traffic(void **state)
{
    double up[3], down[3];

    (void)state;
    for (int t = 0; t < 3; t++) {
        up[t] = 4 * (4 * 3 * 48 + 4);
        down[t] = 4 * ((t == 0 ? 8 : 4 * 3 * 48) + 2);
    }
    bed_traffic("fedpipe",
        BED_SET("cohort.size=4", "adapter.targets=[q]", "fedpipe.budget=[0.5]",
            "fedpipe.budget_share=[1.0]"),
        3, up, down);
}

static void fedpipe_deck(void **state)
{
    static const char *const wrong[][2] = {{"fedpipe.bits=[3]", "fedpipe.bits_share=[1.0]"},
        {"fedpipe.bits=[4, 8]", "fedpipe.bits_share=[1.0]"},
        {"fedpipe.budget=[0.5, 1.0]", "fedpipe.budget_share=[0.5, 0.2]"}};

    (void)state;
    for (size_t w = 0; w < FL_COUNT(wrong); w++) {
        fl_deck *deck = bed_deck(BED_SET("method.name=fedpipe", wrong[w][0], wrong[w][1]));
        fl_options opt = {.out = bed_dir, .resume = "none", .versions = ""};
        fl_runtime *rt = fl_alloc("runtime", 1, sizeof *rt);

        bed_ok(fl_agree(test_ctx, setup_runtime(test_ctx, deck, &opt, rt)));
        assert_int_equal(fl_agree(test_ctx, setup_fresh(rt)), FL_EDECK);
        bed_says("fedpipe.");
        fl_error_clear();
        setup_destroy(rt);
        fl_free(rt);
        fl_deck_destroy(&deck);
    }
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(adalora_scores), T(adalora_regulariser), T(adalora_budget),
        T(adalora_constant), T(adalora_gradient), T(adalora_traffic), T(fedpipe_plan),
        T(fedpipe_is_flexlora), T(fedpipe_cut), T(fedpipe_holders), T(fedpipe_no_dead_pairs),
        T(fedpipe_bases), T(fedpipe_bits), T(fedpipe_traffic), T(fedpipe_deck)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
