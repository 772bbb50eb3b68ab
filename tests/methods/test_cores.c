/* test_cores.c - fed_sb, florg, ce_lora: a small trained core between factors that stay. */
#include "part_test.h"

static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], z[BED_SIDE * BED_SIDE],
    g[BED_SIDE * BED_SIDE];

static bool adapts(const bed *b, int site)
{
    return b->rt->run.space->r[site] > 0;
}

/* number of a site among the adapted ones, which is that of its slot in a PLAIN space */
static int slot_number(const bed *b, int site)
{
    int n = 0;

    for (int j = 0; j < site; j++) {
        n += adapts(b, j);
    }
    return n;
}

static void random_core(const fl_adapter *ad, int id)
{
    for (size_t i = 0; i < ad->space->n; i++) {
        ad->v[i] = (fl_real)bed_normal(id, 3, i);
    }
}

/* ---- fed_sb ---- */
/* DENSE messages of round 1 whose weighted mean is the file's gradient -> A, B, R of the official
 * code, as products and singular values */
static void fed_sb_start(void **state)
{
    fl_real lr[1];
    char eta[40];
    bed b;

    (void)state;
    bed_ok(fl_st_open("tests/golden/fed_sb_init.safetensors", &golden_st));
    golden_read_named("lr", 1, lr);
    fl_st_close(&golden_st);
    snprintf(eta, sizeof eta, "fed_sb.eta=%.9g", (double)lr[0]);
    golden_open(&b, "fed_sb_init",
        BED_SET(
            "method.name=fed_sb", eta, "cohort.size=2", "partition.clients=2", "adapter.alpha=10"));
    bed_begin(&b, 1, NULL);
    fl_run *run = &b.rt->run;
    fl_adapter *part = fl_scratch_adapter(run, fl_space_base(run, run->space));

    for (int i = 0; i < 2; i++) {
        for (int s = 0; s < 2; s++) {
            int site = golden_at(&b, s), tensor, row0;

            fl_site_tensor(run, site, &tensor, &row0);
            fl_real *to = fl_at(part, tensor, FL_DENSE).x + row0 * run->space->n_in[site];

            golden_doubles("grad", s, "W", 240, g);
            for (int e = 0; e < 240; e++) { /* the mean is G, no client's gradient is */
                to[e] =
                    (fl_real)(g[e] + (i == 0 ? 1 - b.n : 1) * 0.5 * bed_normal(5, s, (size_t)e));
            }
        }
        hand_send(&b, i, 1, &(fl_part){.ad = part, .label = 2, .change = true}, NULL, 0, NULL);
    }
    bed_weights(&b);
    assert_true(fabs(b.p[0] - b.p[1]) < 1e-12);
    bed_ok(round_aggregate(b.rt));
    for (int s = 0; s < 2; s++) {
        int site = golden_at(&b, s);
        double r[16], m[240];
        fl_mat core = fl_at(server_adapter(&b, "core"), slot_number(&b, site), FL_PLAIN);

        golden_doubles("out", s, "B", run->space->m[site] * 4u, x);
        golden_doubles("out", s, "R", 16, r);
        naive('n', 'n', run->space->m[site], 4, 4, x, r, y);
        golden_doubles("out", s, "A", run->space->n_in[site] * 4u, x);
        naive('n', 'n', run->space->m[site], run->space->n_in[site], 4, y, x, m);
        fl_product(run->global, site, 1, 0, z);
        assert_close(240, z, m, 3e-6);
        for (int i = 0; i < 16; i++) {
            assert_below(fabs(2.5 * core.x[i] - r[i]), 1e-6 * r[0]); /* s = 10 / 4 */
        }
        assert_orthonormal(fl_at(server_adapter(&b, "fixed"), site, FL_A), true, 1e-6);
        assert_orthonormal(fl_at(server_adapter(&b, "fixed"), site, FL_B), false, 1e-6);
    }
    golden_close(&b);
}

/* the official average of cores, and dW = B R A */
static void fed_sb_average(void **state)
{
    bed b;

    (void)state;
    golden_open(&b, "fed_sb_average",
        BED_SET("method.name=fed_sb", "fed_sb.start=random", "cohort.size=3", "partition.clients=3",
            "cohort.weights=uniform"));
    fl_adapter *fixed = server_adapter(&b, "fixed"), *core = server_adapter(&b, "core");

    for (int s = 0; s < 2; s++) {
        fl_mat a = fl_at(fixed, golden_at(&b, s), FL_A), m = fl_at(fixed, golden_at(&b, s), FL_B);

        golden_read("global", s, "A", (size_t)a.rows * (size_t)a.cols, a.x);
        golden_read("global", s, "B", (size_t)m.rows * (size_t)m.cols, m.x);
    }
    bed_begin(&b, 1, NULL);
    for (int i = 0; i < 3; i++) {
        fl_adapter *part = fl_scratch_adapter(&b.rt->run, core->space);
        char who[40];

        snprintf(who, sizeof who, "client%d", i);
        for (int s = 0; s < 2; s++) {
            golden_read(
                who, s, "R", 16, fl_at(part, slot_number(&b, golden_at(&b, s)), FL_PLAIN).x);
        }
        hand_send(&b, i, 1, &(fl_part){.ad = part}, NULL, 0, NULL);
    }
    bed_ok(round_aggregate(b.rt));
    for (int s = 0; s < 2; s++) {
        int site = golden_at(&b, s);

        golden_doubles("out", s, "R", 16, x);
        assert_close(16, doubles(fl_at(core, slot_number(&b, site), FL_PLAIN), y), x, 1e-6);
        golden_doubles("out", s, "W", 240, x);
        golden_doubles("before", s, "W", 240, y);
        for (int i = 0; i < 240; i++) {
            x[i] -= y[i];
        }
        fl_product(b.rt->run.global, site, 1, 0, y);
        assert_close(240, y, x, 1e-6);
    }
    golden_close(&b);
}

/* s B (sum p R_k) A = sum p_k s B R_k A; A and B keep every bit; a core of full rank can be any dW
 */
static void fed_sb_linear(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fed_sb", "partition.kind=dirichlet", "partition.alpha=0.7"));
    bed_run(&b, 1); /* collects gradients */
    fl_run *run = &b.rt->run;
    fl_adapter *fixed = fl_adapter_create(run->space);

    fl_fit(fixed, server_adapter(&b, "fixed"));
    assert_true(fl_adapter_norm(run->global) > 0); /* dW is not zero at the start */
    bed_run(&b, 2);
    bed_begin(&b, 3, NULL);
    for (int i = 0; i < b.n; i++) {
        fl_adapter *part = fl_scratch_adapter(run, server_adapter(&b, "core")->space);

        random_core(part, i);
        hand_send(&b, i, 1, &(fl_part){.ad = part}, NULL, 0, NULL);
    }
    bed_weights(&b);
    bed_ok(round_aggregate(b.rt));
    assert_memory_equal(
        fixed->v, server_adapter(&b, "fixed")->v, fixed->space->n * sizeof *fixed->v);
    for (int site = 0; site < run->nsites; site++) {
        int m = run->space->m[site], n = run->space->n_in[site], r = run->space->r[site];

        if (r == 0) {
            continue;
        }
        memset(z, 0, sizeof z);
        for (int i = 0; i < b.n; i++) {
            fl_adapter *core = fl_adapter_create(server_adapter(&b, "core")->space);
            double left[BED_SIDE * BED_SIDE];

            random_core(core, i);
            doubles(fl_at(core, slot_number(&b, site), FL_PLAIN), x);
            doubles(fl_at(fixed, site, FL_B), y);
            naive('n', 'n', m, r, r, y, x, left);
            doubles(fl_at(fixed, site, FL_A), x);
            naive('n', 'n', m, n, r, left, x, y);
            for (int e = 0; e < m * n; e++) {
                z[e] += b.p[i] * bed_scale(&b, fixed, site) * y[e];
            }
            fl_adapter_destroy(&core);
        }
        fl_product(run->global, site, 1, 0, y);
        assert_close((size_t)(m * n), y, z, 1e-6);
    }
    fl_adapter_destroy(&fixed);
    bed_close(&b);
}

/* r = min(m, n): the start is M itself, every element +-eta; A, B of W reproduce W */
static void fed_sb_full(void **state)
{
    static const char *const start[] = {"fed_sb.start=gradient", "fed_sb.start=weights"};

    (void)state;
    for (int w = 0; w < 2; w++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=fed_sb", "adapter.r=24", "adapter.targets=[q, up, down]", start[w],
                "fed_sb.eta=0.01"));
        bed_run(&b, w == 0);
        fl_adapter *fixed = server_adapter(&b, "fixed");

        for (int site = 0; site < b.rt->run.nsites; site++) {
            int m = fixed->space->m[site], n = fixed->space->n_in[site];

            if (!adapts(&b, site)) {
                continue;
            }
            assert_orthonormal(fl_at(fixed, site, FL_A), true, 1e-5);
            assert_orthonormal(fl_at(fixed, site, FL_B), false, 1e-5);
            fl_product(b.rt->run.global, site, 1, 0, x);
            if (w == 0) {
                for (int i = 0; i < m * n; i++) {
                    assert_below(fabs(fabs(x[i]) - 0.01), 1e-6);
                }
            } else { /* B' W A' is diagonal: left and right singular vectors */
                int tensor, row0;

                assert_true(bed_norm2((size_t)(m * n), x) == 0);
                fl_site_tensor(&b.rt->run, site, &tensor, &row0);
                for (int i = 0; i < m * n; i++) {
                    g[i] = (double)b.rt->base.w[tensor][row0 * n + i];
                }
                naive('t', 'n', 24, n, m, doubles(fl_at(fixed, site, FL_B), x), g, y);
                naive('n', 't', 24, 24, n, y, doubles(fl_at(fixed, site, FL_A), x), z);
                for (int i = 0; i < 24 * 24; i++) {
                    assert_below(i % 25 == 0 ? -z[i] : fabs(z[i]), 1e-5);
                }
            }
        }
        bed_close(&b);
    }
}

/* one step of SGD: R = R_0 - lr s B' G A' */
enum { LR = 2 };
static void fed_sb_gradient_body(bed *b)
{
    fl_run *run = &b->rt->run;
    fl_adapter *dense = dense_gradient(b, 1, run->global), *fixed = server_adapter(b, "fixed");

    bed_run(b, 1);
    for (int site = 0; site < run->nsites; site++) {
        int m = run->space->m[site], n = run->space->n_in[site], r = run->space->r[site];

        if (r > 0) {
            site_rows(b, dense, site, g);
            naive('t', 'n', r, n, m, doubles(fl_at(fixed, site, FL_B), x), g, y);
            naive('n', 't', r, r, n, y, doubles(fl_at(fixed, site, FL_A), x), z);
            for (int i = 0; i < r * r; i++) {
                z[i] *= -LR * bed_scale(b, fixed, site);
            }
            doubles(fl_at(server_adapter(b, "core"), slot_number(b, site), FL_PLAIN), x);
            assert_close((size_t)(r * r), x, z, 2e-4);
        }
    }
    fl_adapter_destroy(&dense);
}

#define ONE_SGD_STEP                                                                               \
    "cohort.size=1", "partition.clients=1", "train.steps=1", "train.optimizer=sgd", "train.lr=2",  \
        "train.clip=0", "train.weight_decay=0", "train.momentum=0"

static void fed_sb_gradient(void **state)
{
    (void)state;
    alone(fed_sb_gradient_body, BED_SET("method.name=fed_sb", "fed_sb.start=random", ONE_SGD_STEP));
}

static void fed_sb_traffic(void **state)
{
    bed b;
    double mn = 0, core = 0, fixed = 0, up[3], down[3];

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=fed_sb"));
    for (int j = 0; j < b.rt->run.nsites; j++) {
        double m = b.rt->run.space->m[j], n = b.rt->run.space->n_in[j], r = b.rt->run.space->r[j];

        mn += r > 0 ? m * n : 0;
        core += r * r;
        fixed += r * (m + n);
    }
    bed_close(&b);
    for (int t = 0; t < 3; t++) { /* four clients, all in every round */
        up[t] = 4 * 4 * (t == 0 ? mn : core);
        down[t] = 4 * (t == 0 ? 8 : 4 * core + (t == 1 ? 4 * fixed : 0));
    }
    bed_traffic("fed_sb", BED_SET("cohort.size=4"), 3, up, down);
    for (int t = 0; t < 3; t++) { /* the seed is all that is needed for A and B */
        up[t] = 4 * 4 * core;
        down[t] = 4 * 4 * core + (t == 0 ? 4 * 8 : 0);
    }
    for (int w = 0; w < 2; w++) {
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
        bed_traffic("fed_sb",
            BED_SET("cohort.size=4", w == 0 ? "fed_sb.start=random" : "fed_sb.start=weights"), 3,
            up, down);
    }
}

/* ---- florg ---- */
/* W + dW is what was loaded, though dW is not 0; the frames are orthonormal */
static void florg_start(void **state)
{
    bed plain, b;

    (void)state;
    bed_open(&plain, test_ctx, BED_SET("method.name=fedavg"));
    bed_open(&b, test_ctx, BED_SET("method.name=florg"));
    const fl_adapter *frames = server_adapter(&b, "frames");

    for (int i = 0; i < frames->space->nslots; i++) {
        assert_orthonormal(fl_at(frames, i, FL_PLAIN), true, 1e-6);
    }
    for (int site = 0; site < b.rt->run.nsites; site++) {
        int n = b.rt->run.space->m[site] * b.rt->run.space->n_in[site], tensor, row0;
        size_t at;

        if (!adapts(&b, site)) {
            continue;
        }
        fl_site_tensor(&b.rt->run, site, &tensor, &row0);
        at = (size_t)row0 * (size_t)b.rt->run.space->n_in[site];
        fl_product(b.rt->run.global, site, 1, 0, x);
        assert_true(bed_norm2((size_t)n, x) > 1e-2);
        for (int i = 0; i < n; i++) {
            double was = plain.rt->base.w[tensor][at + (size_t)i];

            assert_below(fabs(x[i] + b.rt->base.w[tensor][at + (size_t)i] - was), 1e-6);
        }
    }
    bed_close(&b);
    bed_close(&plain);
}

/* dL/dA = A (H + H'), H = s L' G R' */
static void florg_gradient_body(bed *b)
{
    fl_run *run = &b->rt->run;
    const fl_adapter *frames = server_adapter(b, "frames");
    fl_adapter *dense = dense_gradient(b, 1, run->global), *start;

    start = fl_adapter_create(server_adapter(b, "core")->space);
    fl_fit(start, server_adapter(b, "core"));
    bed_run(b, 1);
    const fl_adapter *sent = b->rt->sent[0]->part[0].ad;

    for (int site = 0; site < run->nsites; site++) {
        int m = run->space->m[site], n = run->space->n_in[site], k = FL_MIN(m, n);
        int r = run->space->r[site], slot = slot_number(b, site);
        fl_mat got = fl_at(sent, site, n <= m ? FL_A : FL_B);

        if (r == 0) {
            continue;
        }
        site_rows(b, dense, site, g);
        naive('n', 'n', k, n, m, doubles(fl_at(frames, 2 * slot, FL_PLAIN), x), g, y);
        naive('n', 't', k, k, n, y, doubles(fl_at(frames, 2 * slot + 1, FL_PLAIN), x), z);
        for (int i = 0; i < k * k; i++) {
            g[i] = bed_scale(b, run->global, site) * (z[i] + z[i % k * k + i / k]);
        }
        doubles(fl_at(start, slot, FL_PLAIN), x);
        naive('n', 'n', r, k, k, x, g, y);
        for (int i = 0; i < r * k; i++) {
            y[i] *= -LR;
            z[i] = (double)got.x[n <= m ? i : i % k * r + i / k] - x[i];
        }
        assert_close((size_t)(r * k), z, y, 2e-4);
    }
    fl_adapter_destroy(&start);
    fl_adapter_destroy(&dense);
}

static void florg_gradient(void **state)
{
    (void)state;
    alone(florg_gradient_body, BED_SET("method.name=florg", ONE_SGD_STEP));
}

/* element (i, j) of client c's A */
static double florg_a(int c, int site, int i, int j)
{
    return 0.4 * bed_normal(c, 6, (size_t)(site * 10000 + i * 100 + j));
}

static void florg_send(bed *b, int c, int like)
{
    fl_run *run = &b->rt->run;
    fl_adapter *ad = fl_scratch_adapter(run, run->space);

    for (int site = 0; site < run->nsites; site++) {
        bool in_a = run->space->n_in[site] <= run->space->m[site];
        fl_mat to = fl_at(ad, site, in_a ? FL_A : FL_B);
        int r = run->space->r[site];

        for (int i = 0; to.x != NULL && i < to.rows * to.cols; i++) {
            to.x[i] = (fl_real)(in_a ? florg_a(like, site, i / to.cols, i % to.cols)
                                     : florg_a(like, site, i % r, i / r));
        }
    }
    hand_send(b, c, 1, &(fl_part){.ad = ad, .label = 1}, NULL, 0, NULL);
}

/* the card's algorithm literally: Q, its eigenvectors, At, the SVD of A_prev At' */
static void florg_literal(
    const bed *b, int site, const int *like, const double *last, double *a, double *q)
{
    int k = FL_MIN(b->rt->run.space->m[site], b->rt->run.space->n_in[site]);
    int r = b->rt->run.space->r[site], t = FL_MIN(r, k), np = 0;
    double value[BED_SIDE], vec[BED_SIDE * BED_SIDE], at[BED_SIDE * BED_SIDE];
    double u[BED_SIDE * BED_SIDE], sv[BED_SIDE], vt[BED_SIDE * BED_SIDE], m[BED_SIDE * BED_SIDE];

    memset(q, 0, (size_t)(k * k) * sizeof *q);
    for (int c = 0; c < b->n; c++) {
        for (int i = 0; i < k; i++) {
            for (int j = 0; j < k; j++) {
                for (int l = 0; l < r; l++) {
                    q[i * k + j] += b->p[c] * (double)(fl_real)florg_a(like[c], site, l, i) *
                                    (double)(fl_real)florg_a(like[c], site, l, j);
                }
            }
        }
    }
    bed_ok(fl_eigh(k, q, value, vec));
    while (np < k && value[np] > 1e-12 * value[0]) {
        np++;
    }
    assert_true(value[k - 1] > -1e-10 * value[0]); /* Q is positive semi-definite */
    for (int i = 0; i < np; i++) {
        for (int j = 0; j < k; j++) {
            at[i * k + j] = sqrt(value[i]) * vec[j * k + i];
        }
    }
    naive('n', 't', r, np, k, last, at, m);
    bed_ok(fl_svd(r, np, m, u, sv, vt));
    naive('n', 'n', r, np, FL_MIN(t, np), u, vt, m);
    naive('n', 'n', r, k, np, m, at, a);
}

static void florg_rule(void **state)
{
    static const int all[] = {0, 1, 2, 3}, same[] = {5, 5, 5, 5};

    (void)state;
    for (int w = 0; w < 3; w++) { /* four clients, four that agree, one */
        const int *like = w == 1 ? same : all;
        double error = 0, size = 0;
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=florg", "partition.kind=dirichlet", "partition.alpha=0.8",
                w == 2 ? "cohort.size=1" : "cohort.size=4"));
        fl_run *run = &b.rt->run;
        fl_adapter *last = fl_adapter_create(server_adapter(&b, "core")->space);

        fl_fit(last, server_adapter(&b, "core"));
        bed_begin(&b, 1, NULL);
        for (int c = 0; c < b.n; c++) {
            florg_send(&b, c, like[c]);
        }
        bed_weights(&b);
        bed_ok(round_aggregate(b.rt));
        for (int site = 0; site < run->nsites; site++) {
            int k = FL_MIN(run->space->m[site], run->space->n_in[site]), r = run->space->r[site];
            size_t kk = (size_t)(k * k);

            if (r == 0) {
                continue;
            }
            doubles(fl_at(last, slot_number(&b, site), FL_PLAIN), x);
            florg_literal(&b, site, like, x, y, g);
            doubles(fl_at(server_adapter(&b, "core"), slot_number(&b, site), FL_PLAIN), x);
            assert_close((size_t)(r * k), x, y, 1e-5);
            naive('t', 'n', k, k, r, x, x, z); /* A'A against Q */
            if (w > 0) {
                assert_close(kk, z, g, 1e-6); /* r' = r: nothing is lost */
            }
            for (size_t i = 0; i < kk; i++) {
                error += pow(z[i] - g[i], 2);
            }
            size += bed_norm2(kk, g);
            /* and what is installed is s L (A'A) R */
            fl_product(run->global, site, 1, 0, x);
            assert_below(
                fabs(sqrt(bed_norm2((size_t)(run->space->m[site] * run->space->n_in[site]), x)) -
                     bed_scale(&b, run->global, site) * sqrt(bed_norm2(kk, z))),
                1e-5 * sqrt(bed_norm2(kk, z)));
        }
        error = sqrt(error / size);
        assert_true(w == 0 ? error > 0.1 : error < 1e-6);
        /* by Gram matrices squares cancel: a square root of rounding is left */
        assert_below(fabs(bed_metric(&b, "gram_error") - error), w == 0 ? 1e-6 : 2e-7);
        fl_adapter_destroy(&last);
        bed_close(&b);
    }
}

static void florg_traffic(void **state)
{
    bed b;
    double rk = 0, up[3], down[3];

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=florg"));
    for (int j = 0; j < b.rt->run.nsites; j++) {
        rk +=
            (double)b.rt->run.space->r[j] * FL_MIN(b.rt->run.space->m[j], b.rt->run.space->n_in[j]);
    }
    bed_close(&b);
    for (int t = 0; t < 3; t++) {
        up[t] = 4 * 4 * rk;
        down[t] = t == 0 ? 4 * 8 : 4 * 4 * rk;
    }
    bed_traffic("florg", BED_SET("cohort.size=4"), 3, up, down);
}

/* ---- ce_lora ---- */
enum { MODEL, ENTRY_A, ENTRY_B, ENTRY_C, NENTRIES };

/* the official layer: W + s B C A, and the gradients of sum(gy * y) by A, B and C */
static void ce_lora_layer(void **state)
{
    static const int rows[] = {12, 20}, cols[] = {20, 12};
    bed b;

    (void)state;
    golden_open(&b, "ce_lora_layer", BED_SET("method.name=ce_lora"));
    fl_run *run = &b.rt->run;
    fl_real alpha[1];
    int na[] = {4, 4}, ca[2], rb[2], cb[] = {4, 4};

    golden_read_named("alpha", 1, alpha);
    for (int s = 0; s < 2; s++) {
        int i = slot_number(&b, golden_at(&b, s));

        ca[i] = cols[s];
        rb[i] = rows[s];
    }
    fl_adapter *ad[NENTRIES] = {fl_scratch_adapter(run, run->space),
        fl_scratch_adapter(run, fl_space_plain(run, 2, na, ca)),
        fl_scratch_adapter(run, fl_space_plain(run, 2, rb, cb)),
        fl_scratch_adapter(run, fl_space_plain(run, 2, cb, cb))};
    fl_job job = {.stack = {.n = NENTRIES, .ad = {ad[0], ad[1], ad[2], ad[3]}}};
    fl_step step = {.when = FL_BEFORE, .n = 1, .job = &job};
    fl_client c = {.id = 0};

    for (int s = 0; s < 2; s++) {
        int i = slot_number(&b, golden_at(&b, s));

        golden_read("global", s, "A", 4u * (size_t)cols[s], fl_at(ad[ENTRY_A], i, FL_PLAIN).x);
        golden_read("global", s, "B", 4u * (size_t)rows[s], fl_at(ad[ENTRY_B], i, FL_PLAIN).x);
        golden_read("global", s, "C", 16, fl_at(ad[ENTRY_C], i, FL_PLAIN).x);
    }
    bed_ok(b.rt->method->step(run, &c, &step));
    double scale = alpha[0] / 4; /* the bed's is 1 */

    for (int s = 0; s < 2; s++) {
        golden_doubles("out", s, "W", 240, x);
        golden_doubles("before", s, "W", 240, y);
        for (int i = 0; i < 240; i++) {
            x[i] -= y[i];
        }
        fl_product(ad[MODEL], golden_at(&b, s), scale, 0, y);
        assert_close(240, y, x, 1e-6);
    }
    step.when = FL_GRAD;
    for (int e = 0; e < NENTRIES; e++) {
        step.grad[e] = fl_scratch_adapter(run, ad[e]->space);
    }
    for (int s = 0; s < 2; s++) { /* as the engine gives them: G = gy' x by B C and by A */
        int m = rows[s], n = cols[s], site = golden_at(&b, s);
        fl_real gy[60], in[60];
        fl_mat to[] = {fl_at(step.grad[MODEL], site, FL_A), fl_at(step.grad[MODEL], site, FL_B)};

        golden_read_named(s == 0 ? "gy.site0" : "gy.site1", 3u * (size_t)m, gy);
        golden_read_named(s == 0 ? "x.site0" : "x.site1", 3u * (size_t)n, in);
        naive('t', 'n', m, n, 3, doubles((fl_mat){gy, 3, m}, x), doubles((fl_mat){in, 3, n}, y), g);
        naive('t', 'n', 4, n, m, doubles(fl_at(ad[MODEL], site, FL_B), x), g, y);
        naive('n', 't', m, 4, n, g, doubles(fl_at(ad[MODEL], site, FL_A), x), z);
        for (int f = 0; f < 2; f++) {
            for (int i = 0; i < to[f].rows * to[f].cols; i++) {
                to[f].x[i] = (fl_real)(scale * (f == 0 ? y[i] : z[i]));
            }
        }
    }
    bed_ok(b.rt->method->step(run, &c, &step));
    for (int s = 0; s < 2; s++) {
        static const char *const tail[] = {"", "A", "B", "C"};
        size_t size[] = {0, 4u * (size_t)cols[s], 4u * (size_t)rows[s], 16};
        int i = slot_number(&b, golden_at(&b, s));

        for (int e = ENTRY_A; e < NENTRIES; e++) {
            golden_doubles("grad", s, tail[e], size[e], x);
            assert_close(size[e], doubles(fl_at(step.grad[e], i, FL_PLAIN), y), x, 1e-6);
        }
    }
    golden_close(&b);
}

/* what client k is sent: the core; *asked: for its statistics */
static fl_adapter *ce_lora_sent(bed *b, int k, bool *asked)
{
    fl_run *run = &b->rt->run;
    fl_client c = {.id = k, .r = run->space->rmax};
    fl_msg down = {.run = run, .client = &c};

    bed_ok(b->rt->method->download(run, &c, &down));
    assert_int_equal(down.n, 1);
    *asked = fl_get(&down, "tell", NULL) != NULL;
    return down.part[0].ad;
}

static double core_of(const bed *b, int k, size_t e)
{
    fl_mat all = fl_at(server_adapter(b, "cores"), 0, FL_PLAIN);

    return (double)all.x[(size_t)k * (size_t)all.cols + e];
}

/* sum_j w_j C_j */
static void assert_mixture(bed *b, const fl_adapter *got, const double *w)
{
    double sum = 0;

    for (int j = 0; j < b->n; j++) {
        sum += w[j];
    }
    for (size_t e = 0; e < got->space->n; e++) {
        double want = 0;

        for (int j = 0; j < b->n; j++) {
            want += w[j] / sum * core_of(b, j, e);
        }
        assert_below(fabs(got->v[e] - want), 1e-6 * (1 + fabs(want)));
    }
}

static void ce_lora_weights(void **state)
{
    static const char *const kind[] = {
        "ce_lora.weights=self", "ce_lora.weights=uniform", "ce_lora.weights=similarity"};

    (void)state;
    for (int w = 0; w < 3; w++) {
        bool asked;
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=ce_lora", kind[w], "cohort.size=4", "partition.kind=dirichlet"));
        fl_adapter *core = ce_lora_sent(&b, 2, &asked);

        assert_true(asked);
        for (int i = 0; i < core->space->nslots; i++) { /* nobody has sent: I */
            fl_mat m = fl_at(core, i, FL_PLAIN);

            for (int e = 0; e < m.rows * m.cols; e++) {
                assert_true(m.x[e] == (e % (m.cols + 1) == 0));
            }
        }
        bed_run(&b, 2);
        for (int k = 0; k < 4; k++) {
            const double *distance = server_array(&b, "distance") + 4 * k;
            double median = server_array(&b, "scales")[0], weight[4];

            core = ce_lora_sent(&b, k, &asked);
            assert_true(!asked);
            for (int j = 0; j < 4; j++) {
                weight[j] = w == 0 ? j == k : 1;
                assert_true(distance[j] == server_array(&b, "distance")[4 * j + k]);
                assert_true(j == k ? distance[j] == 0 : distance[j] > 0);
            }
            if (w < 2) {
                assert_mixture(&b, core, weight);
                continue;
            }
            /* all cores c C Q with Q orthogonal: S^M = 1, what is left is S^D */
            fl_mat all = fl_at(server_adapter(&b, "cores"), 0, FL_PLAIN);

            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < core->space->nslots; i++) {
                    int r = core->space->slot[i].rows;

                    for (int e = 0; e < r * r; e++) { /* a signed permutation of the columns */
                        int from = e / r * r + (e + j) % r;

                        all.x[(size_t)j * (size_t)all.cols + core->space->slot[i].at + (size_t)e] =
                            (fl_real)((1 - 2 * j) * bed_normal(8, i, (size_t)from));
                    }
                }
                weight[j] = 1 + (j == k ? 1 : exp(-distance[j] / median));
            }
            assert_mixture(&b, ce_lora_sent(&b, k, &asked), weight);
            random_core(&(fl_adapter){.space = core->space,
                            .v = all.x + (size_t)((k + 1) % 4) * (size_t)all.cols},
                9);
            fl_adapter *other = ce_lora_sent(&b, k, &asked);
            double gap = 0;

            for (size_t e = 0; e < other->space->n; e++) {
                double want = 0, sum = 0;

                for (int j = 0; j < 4; j++) {
                    want += weight[j] * core_of(&b, j, e);
                    sum += weight[j];
                }
                gap = fmax(gap, fabs(other->v[e] - want / sum));
            }
            assert_true(gap > 1e-3); /* an unrelated core weighs less */
        }
        bed_close(&b);
    }
}

/* texts of three classes, into the bed's folder; a class has its own letters */
static const char *class_data(void)
{
    static char set[300];

    snprintf(set, sizeof set, "data.source=%s/classes.csv", bed_dir);
    if (test_ctx->rank == 0) {
        FILE *f = fopen(strchr(set, '=') + 1, "w");

        assert_non_null(f);
        fprintf(f, "text,label\n");
        for (int i = 0; i < 150; i++) {
            for (int j = 0; j < 20; j++) {
                fputc('a' + 8 * (i % 3) + (i * 7 + j * j) % 8, f);
            }
            fprintf(f, ",%d\n", i % 3);
        }
        fclose(f);
    }
    fl_max(test_ctx, 0);
    return set;
}

/* class by class the mixture's mean is that of the features, its weights sum to 1; the counts are
 * the client's; the distance of two clients is that of the classes that both have */
static void ce_lora_classes(void **state)
{
    bool some_missing = false;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=ce_lora", class_data(), "data.field=text", "data.label=label",
            "partition.kind=dirichlet", "partition.alpha=0.3", "cohort.size=4", "train.steps=1",
            "ce_lora.parts=2"));
    fl_run *run = &b.rt->run;

    assert_int_equal(run->nclasses, 3);
    bed_run(&b, 1);
    size_t d = 24, size = 2 + 2 * (1 + 2 * d);
    const double *all = server_array(&b, "mixtures");

    for (int k = 0; k < 4; k++) {
        fl_client c;
        fl_turn turn;
        fl_job job = {.data = {k, FL_TRAIN}};
        int n, width, *label;
        fl_real *feature;

        bed_ok(turn_enrol(b.rt, k, NULL, 0, &c, &turn));
        bed_ok(fl_feature(run, &c, &job, &n, &width, &feature, &label));
        assert_int_equal(width, d);
        for (int class = 0; class < 3; class ++) {
            const double *row = all + ((size_t)k * 3 + (size_t) class) * size;
            int count = 0;

            memset(x, 0, sizeof x);
            for (int i = 0; i < n; i++) {
                count += label[i] == class;
                for (size_t j = 0; label[i] == class && j < d; j++) {
                    x[j] += (double)feature[(size_t)i * d + j];
                }
            }
            some_missing = some_missing || count == 0;
            assert_true(row[1] == count && (count == 0 || row[0] == class));
            assert_below(fabs(row[2] + row[3] - (count > 0)), 1e-6);
            for (size_t j = 0; count > 0 && j < d; j++) {
                assert_below(
                    fabs(row[2] * row[4 + j] + row[3] * row[4 + d + j] - x[j] / count), 1e-5);
                assert_true(row[4 + 2 * d + j] > 0 && row[4 + 3 * d + j] > 0);
            }
        }
        turn_end(b.rt, &turn);
    }
    assert_true(some_missing);
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < i; j++) {
            double sum = 0, weight = 0, got = server_array(&b, "distance")[4 * i + j];

            for (size_t class = 0; class < 3; class ++) {
                const double *p = all + ((size_t)i * 3 + class) * size,
                             *q = all + ((size_t)j * 3 + class) * size;
                double value, w = fmin(p[1], q[1]);

                if (w > 0) {
                    bed_ok(fl_mixture_distance(2, (int)d, p + 2, p + 4, p + 4 + 2 * d, q + 2, q + 4,
                        q + 4 + 2 * d, &value));
                    sum += w * value;
                    weight += w;
                }
            }
            assert_true(weight > 0 ? fabs(got - sum / weight) < 1e-9 * got : got == -1);
        }
    }
    bed_close(&b);
}

/* r^2 per matrix; once the statistics of the classes present. A and B never travel. */
static void ce_lora_traffic(void **state)
{
    bed b;
    double core = 0, classes = 0, up[3], down[3];

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=ce_lora", class_data(), "data.field=text", "data.label=label",
            "partition.kind=dirichlet", "partition.alpha=0.3", "cohort.size=4"));
    for (int j = 0; j < b.rt->run.nsites; j++) {
        core += (double)b.rt->run.space->r[j] * b.rt->run.space->r[j];
    }
    for (int k = 0; k < 4; k++) {
        bool has[3] = {false};
        const uint32_t *list = b.rt->part.list[FL_TRAIN] + b.rt->part.first[FL_TRAIN][k];

        for (int64_t i = 0; i < fl_partition_count(&b.rt->part, k, FL_TRAIN); i++) {
            has[b.rt->data.label[list[i]]] = true;
        }
        classes += has[0] + has[1] + has[2];
    }
    bed_close(&b);
    for (int t = 0; t < 3; t++) {
        up[t] = 4 * 4 * core + (t == 0 ? 4 * classes * (2 + 3 * (1 + 2 * 24)) : 0);
        down[t] = t == 0 ? 4 * (8 + 1) : 4 * 4 * core; /* the seed, and one bit that asks */
    }
    bed_traffic("ce_lora",
        BED_SET(class_data(), "data.field=text", "data.label=label", "partition.kind=dirichlet",
            "partition.alpha=0.3", "cohort.size=4"),
        3, up, down);
}

/* a client's kept model is what it evaluates: its A, and B times the core that it last trained */
static void ce_lora_personal(void **state)
{
    bed b;
    fl_view view = {.name = NULL};

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=ce_lora", "cohort.size=4", "train.lr=0.05"));
    bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &view));
    assert_null(view.name);
    bed_run(&b, 2);
    int here = fl_store_mine(b.rt->store, -1, NULL, NULL, NULL);

    for (int i = 0; i < here; i++) {
        int id;
        const void *blob;
        size_t bytes;
        fl_client c;
        fl_turn turn;

        fl_store_mine(b.rt->store, i, &id, &blob, &bytes);
        bed_ok(turn_enrol(b.rt, id, blob, bytes, &c, &turn));
        bed_ok(b.rt->method->view(&b.rt->run, &c, 0, &view));
        assert_true(view.stack.n == 1 && view.data.client == id);
        assert_ptr_equal(turn.kept.k[0].ad, view.stack.ad[0]); /* the first, which export takes */
        const fl_adapter *model = view.stack.ad[0], *own = kept_find(&turn.kept, "B", 0)->ad;
        size_t at = 0;

        for (int site = 0; site < b.rt->run.nsites; site++) {
            int m = model->space->m[site], r = model->space->r[site];

            if (r == 0) {
                continue;
            }
            for (int e = 0; e < r * r; e++) {
                x[e] = core_of(&b, id, at++);
            }
            doubles(fl_at(own, slot_number(&b, site), FL_PLAIN), y);
            naive('n', 'n', m, r, r, y, x, z);
            assert_close((size_t)(m * r), doubles(fl_at(model, site, FL_B), y), z, 1e-5);
        }
        turn_end(b.rt, &turn);
    }
    bed_close(&b);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(fed_sb_start), T(fed_sb_average), T(fed_sb_linear),
        T(fed_sb_full), T(fed_sb_gradient), T(fed_sb_traffic), T(florg_start), T(florg_gradient),
        T(florg_rule), T(florg_traffic), T(ce_lora_layer), T(ce_lora_weights), T(ce_lora_classes),
        T(ce_lora_traffic), T(ce_lora_personal)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
