/* test_rebase.c - methods that put every round into the base and start again: rac_lora, frlora (and
 * colr, whose own tests are in test_colr.c). What is merged against plain sums, the base of
 * somebody who was absent bit by bit, the ranks that a chain of merges can reach, and what a round
 * of full gradient descent would have done.
 */
#include "rebase_test.h"

static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE], z[BED_SIDE * BED_SIDE];

static void open_method(bed *b, const char *name, const char *r, const char *size, const char *key)
{
    char method[64], rank[64], cohort[64];

    snprintf(method, sizeof method, "method.name=%s", name);
    snprintf(rank, sizeof rank, "adapter.r=%s", r);
    snprintf(cohort, sizeof cohort, "cohort.size=%s", size);
    bed_open(b, test_ctx,
        BED_SET(method, rank, cohort, "partition.kind=dirichlet", "partition.alpha=0.7",
            key != NULL ? key : "run.name=test"));
}

/* ---- rac_lora ---- */
static const char *const sides[] = {"rac_lora.side=left", "rac_lora.side=right"};

/* the sketch of round t at a site as rac_lora.c's opening comment and help say: normal numbers by
 * column, of length one; d x r */
static void sketch(const bed *b, int site, int t, int d, int r, double *q)
{
    for (int i = 0; i < d; i++) {
        for (int j = 0; j < r; j++) {
            q[i * r + j] =
                fl_rng_normal(b->rt->run.seed, FL_RNG_METHOD, site, t, (uint64_t)(j * d + i)) /
                sqrt((double)d);
        }
    }
}

/* mean of products = product with the mean */
static void rac_lora_is_exact(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        bed b;

        open_method(&b, "rac_lora", "3", "4", sides[side]);
        for (int t = 1; t <= 2; t++) {
            bed_begin(&b, t, NULL);
            bed_end(&b);
            bed_check_exact(&b);
            assert_below(bed_discordance(&b), 1e-6);
        }
        bed_close(&b);
    }
}

/* client i's adapter: what it is sent at rank r, its free factor normal numbers */
static void rac_lora_client(bed *b, int i, int r)
{
    fl_run *run = &b->rt->run;
    fl_client c = {.id = i, .r = r};
    fl_msg down = {.run = run, .client = &c};
    bool left = run->job.train[0].factors == FL_BIT(FL_A);

    bed_ok(b->rt->method->download(run, &c, &down));
    assert_true(down.n == 1 && down.part[0].values == FL_KNOWN);
    fl_adapter_destroy(&b->client[i]);
    b->client[i] = fl_adapter_create(down.part[0].ad->space);
    fl_fit(b->client[i], down.part[0].ad);
    for (int j = 0; j < run->nsites; j++) {
        fl_mat free = fl_at(b->client[i], j, left ? FL_A : FL_B);

        for (int e = 0; e < free.rows * free.cols; e++) {
            assert_true(free.x[e] == 0);
            free.x[e] = (fl_real)bed_normal(i, run->round.t, (size_t)(1000 * j + e));
        }
    }
}

/* clients of rank 1, 3, 2: the first pairs of the sketch at the server's scale, merged exactly */
static void rac_lora_unequal_ranks(void **state)
{
    static const int rank[] = {1, 3, 2};

    (void)state;
    for (int side = 0; side < 2; side++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=rac_lora", "clients.r=[1, 2, 3]",
                "clients.r_share=[0.3, 0.3, 0.4]", sides[side]));
        bed_begin(&b, 1, NULL);
        for (int i = 0; i < b.n; i++) {
            rac_lora_client(&b, i, rank[i]);
        }
        bed_end(&b);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            const fl_site *st = &b.rt->base.model.site[j];
            size_t n = (size_t)st->m * (size_t)st->n;
            double grain = 0;

            if (b.rt->run.space->r[j] == 0) {
                continue;
            }
            memset(x, 0, sizeof x);
            memset(y, 0, sizeof y);
            bed_installed(&b, j, x, &grain);
            for (int i = 0; i < b.n; i++) { /* s of the server: alpha / 3 */
                bed_add(b.p[i] * b.deck->adapter.alpha / 3, fl_at(b.client[i], j, FL_B), NULL,
                    fl_at(b.client[i], j, FL_A), NULL, y);
            }
            for (size_t e = 0; e < n; e++) {
                z[e] = x[e] - y[e];
            }
            assert_below(rebase_norm(n, z), 1e-6 * rebase_norm(n, y) + sqrt(grain));
            assert_true(rebase_norm(n, y) > 0.1);
        }
        assert_below(bed_discordance(&b), 1e-6);
        bed_close(&b);
    }
}

/* x (m x n) = -gamma H G, H the projector on the columns of q (m x r), by Gram-Schmidt in place */
static void projected(int m, int n, int r, double *q, double gamma, const double *g, double *to)
{
    for (int l = 0; l < r; l++) {
        double length = 0;

        for (int k = 0; k < 2 * l; k++) { /* twice is enough */
            double dot = 0;

            for (int i = 0; i < m; i++) {
                dot += q[i * r + l] * q[i * r + k % l];
            }
            for (int i = 0; i < m; i++) {
                q[i * r + l] -= dot * q[i * r + k % l];
            }
        }
        for (int i = 0; i < m; i++) {
            length += q[i * r + l] * q[i * r + l];
        }
        for (int i = 0; i < m; i++) {
            q[i * r + l] /= sqrt(length);
        }
    }
    memset(to, 0, (size_t)m * (size_t)n * sizeof *to);
    for (int l = 0; l < r; l++) {
        for (int j = 0; j < n; j++) {
            double dot = 0;

            for (int i = 0; i < m; i++) {
                dot += q[i * r + l] * g[i * n + j];
            }
            for (int i = 0; i < m; i++) {
                to[i * n + j] -= gamma * dot * q[i * r + l];
            }
        }
    }
}

/* a client's exact minimiser of <G, s B_S A> + || s B_S A ||^2 / (2 gamma): A = -gamma / s (B_S'
 * B_S)^-1 B_S' G */
static void exact_link(const fl_adapter *ad, int j, double s, double gamma, const double *g)
{
    fl_mat a = fl_at(ad, j, FL_A), b = fl_at(ad, j, FL_B);
    double gram[9], rhs[3 * BED_SIDE];

    assert_int_equal(a.rows, 3);
    for (int l = 0; l < 3; l++) {
        for (int k = 0; k < 3; k++) {
            gram[3 * l + k] = 0;
            for (int i = 0; i < b.rows; i++) {
                gram[3 * l + k] += (double)b.x[3 * i + l] * b.x[3 * i + k];
            }
        }
        for (int c = 0; c < a.cols; c++) {
            rhs[l * a.cols + c] = 0;
            for (int i = 0; i < b.rows; i++) {
                rhs[l * a.cols + c] -= gamma / s * b.x[3 * i + l] * g[i * a.cols + c];
            }
        }
    }
    bed_ok(fl_solve(3, a.cols, gram, rhs));
    for (int e = 0; e < 3 * a.cols; e++) {
        a.x[e] = (fl_real)rhs[e];
    }
}

/* with exact links a round is W <- W - gamma H sum_k p_k G_k */
static void rac_lora_projects_the_gradient(void **state)
{
    const double gamma = 0.7;
    bed b;

    (void)state;
    open_method(&b, "rac_lora", "3", "3", sides[0]);
    fl_real *before = base_copy(&b);

    bed_begin(&b, 1, NULL);
    bed_weights(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];

        for (int i = 0; b.rt->run.space->r[j] > 0 && i < b.n; i++) {
            for (int e = 0; e < st->m * st->n; e++) {
                x[e] = bed_normal(i, j, (size_t)e);
            }
            exact_link(b.client[i], j, bed_scale(&b, b.client[i], j), gamma, x);
        }
    }
    bed_end(&b);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];

        if (b.rt->run.space->r[j] == 0) {
            continue;
        }
        memset(y, 0, sizeof y);
        for (int i = 0; i < b.n; i++) {
            for (int e = 0; e < st->m * st->n; e++) {
                y[e] += b.p[i] * bed_normal(i, j, (size_t)e);
            }
        }
        static double q[3 * BED_SIDE];

        sketch(&b, j, 1, st->m, 3, q);
        projected(st->m, st->n, 3, q, gamma, y, z);
        base_change(&b, before, j, x);
        assert_near((size_t)st->m * (size_t)st->n, x, z, 3e-6);
    }
    fl_free(before);
    bed_close(&b);
}

/* E[H] = r / m: mean of the projectors of many rounds; H_ii has standard deviation 0.092 */
static void rac_lora_projectors_cover_all(void **state)
{
    enum { T = 60, M = 24, R = 3 };
    static double mean[M * M], q[M * R], unit[M * M];
    double smallest = 1, n = 0, values[M];
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=rac_lora", "run.rounds=64"));
    memset(mean, 0, sizeof mean);
    for (int e = 0; e < M * M; e++) {
        unit[e] = e / M == e % M;
    }
    for (int t = 1; t <= T; t++) {
        bed_begin(&b, t, NULL);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat f = fl_at(b.rt->run.global, j, FL_B);

            if (f.x == NULL || f.rows != M) {
                continue;
            }
            for (int e = 0; e < M * R; e++) {
                q[e] = f.x[e];
            }
            projected(M, M, R, q, -1, unit, x);
            for (int e = 0; e < M * M; e++) {
                mean[e] += x[e];
            }
            n++;
        }
    }
    for (int e = 0; e < M * M; e++) {
        mean[e] /= n;
    }
    bed_ok(fl_eigh(M, mean, values, NULL));
    smallest = values[M - 1];
    assert_true(n == 4 * T);
    for (int i = 0; i < M; i++) {
        assert_below(fabs(mean[i * M + i] - (double)R / M), 5 * 0.092 / sqrt(n));
    }
    assert_true(
        smallest > 0.5 * R / M); /* the largest deviation of a 24 x 24 mean of 240 is 0.4 r/m */
    bed_close(&b);
}

/* r = m (left), r = n (right, and colr): a step is full gradient descent on W */
static void full_rank_is_gradient_descent(void **state)
{
    (void)state;
    one_sgd_step(
        BED_SET("train.what=full"), "method.name=fedavg", y, "v"); /* all tensors in one step */
    one_sgd_step(BED_SET("adapter.r=12", "adapter.alpha=12", "adapter.targets=[v]", sides[0],
                     "rac_lora.sketch=orthonormal"),
        "method.name=rac_lora", x, "v");
    assert_near(12 * 24, x, y, 1e-5);
    one_sgd_step(BED_SET("train.what=full"), "method.name=fedavg", y, "q");
    one_sgd_step(BED_SET("adapter.r=24", "adapter.alpha=24", "adapter.targets=[q]", sides[1],
                     "rac_lora.sketch=orthonormal"),
        "method.name=rac_lora", x, "q");
    assert_near(24 * 24, x, y, 1e-5);
    one_sgd_step(BED_SET("adapter.r=24", "adapter.alpha=24", "adapter.targets=[q]"),
        "method.name=colr", x, "q");
    assert_near(24 * 24, x, y, 1e-5);
}

/* somebody who has the run's seed and was sent the averaged factors only has the server's base */
static void rac_lora_absentee(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        bed b;

        open_method(&b, "rac_lora", "3", "3", sides[side]);
        fl_real *own = base_copy(&b);

        for (int t = 1; t <= 3; t++) {
            fl_metrics_row(&b.rt->metrics);
            bed_ok(round_run(b.rt, t));
            assert_int_equal(b.rt->nmerges, 1);
            fl_adapter *pair = fl_adapter_create(b.rt->run.space);

            for (int j = 0; j < b.rt->run.nsites; j++) {
                fl_mat sent = fl_at(b.rt->merged[0].ad, j, side == 0 ? FL_A : FL_B);
                fl_mat free = fl_at(pair, j, side == 0 ? FL_A : FL_B);
                fl_mat drawn = fl_at(pair, j, side == 0 ? FL_B : FL_A);
                int d = side == 0 ? drawn.rows : drawn.cols;

                if (sent.x == NULL) {
                    continue;
                }
                memcpy(free.x, sent.x, (size_t)sent.rows * (size_t)sent.cols * sizeof *sent.x);
                sketch(&b, j, t, d, 3, x);
                for (int i = 0; i < 3 * d; i++) {
                    drawn.x[side == 0 ? i : i % 3 * d + i / 3] = (fl_real)x[i];
                }
            }
            base_replay(&b, own, pair, 1);
            fl_adapter_destroy(&pair);
        }
        assert_memory_equal(own, b.rt->base.share.x, fl_model_bytes(&b.rt->base.model));
        assert_true(memcmp(own, b.w0, fl_model_bytes(&b.rt->base.model)) != 0);
        fl_free(own);
        bed_close(&b);
    }
}

/* coin: both sides occur, and a round trains the one that is not drawn */
static void rac_lora_coin(void **state)
{
    int left = 0;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=rac_lora", "rac_lora.side=coin", "run.rounds=64", "adapter.r=2"));
    for (int t = 1; t <= 40; t++) {
        bed_begin(&b, t, NULL);
        bool is_left = b.rt->run.job.train[0].factors == FL_BIT(FL_A);

        left += is_left;
        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat free = fl_at(b.rt->run.global, j, is_left ? FL_A : FL_B);

            for (int e = 0; e < free.rows * free.cols; e++) {
                assert_true(free.x[e] == 0);
            }
        }
    }
    assert_true(left >= 8 && left <= 32); /* 1e-4 */
    bed_close(&b);
}

static double rac_up(int r)
{
    return 4 * r * bed_sum_n;
}

static double rac_revision(int t)
{
    (void)t;
    return 4 * 3 * bed_sum_n + 8; /* the averaged A and the seed of the next sketch */
}

static void rac_lora_traffic(void **state)
{
    double up[6], down[6];

    (void)state;
    const char *const *sets = BED_SET("method.name=rac_lora", "partition.clients=7",
        "clients.r=[1, 3]", "clients.r_share=[0.5, 0.5]", "train.steps=1");

    book_run(&(book){rac_up, no_parts, rac_revision}, sets, 6, up, down);
    bed_traffic("rac_lora", sets + 1, 6, up, down);
}

/* T rounds of rank r reach rank T r and no more; frlora's changes share the columns of B_0: r more
 */
static void merges_add_ranks(void **state)
{
    static const struct {
        const char *name;
        int more;
    } chain[] = {{"rac_lora", 0}, {"colr", 0}, {"frlora", 2}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(chain); i++) {
        bed b;

        open_method(&b, chain[i].name, "2", "3", NULL);
        fl_real *before = base_copy(&b);
        int m = 24, n = 24, site = fl_model_site_named(&b.rt->base.model, 0, "q");

        for (int t = 1; t <= 3; t++) {
            bed_begin(&b, t, NULL);
            bed_end(&b);
            base_change(&b, before, site, x);
            assert_int_equal(numerical_rank(m, n, x, 1e-5), 2 * t + chain[i].more);
        }
        fl_free(before);
        bed_close(&b);
    }
}

/* ---- frlora ---- */
/* s B_0 A_0 is the best rank 3 of W, balanced; nothing of the function changed */
static void frlora_start(void **state)
{
    static double u[BED_SIDE * BED_SIDE], vt[BED_SIDE * BED_SIDE], sv[BED_SIDE];
    bed b, plain;

    (void)state;
    open_method(&plain, "fedavg", "3", "3", NULL);
    open_method(&b, "frlora", "3", "3", NULL);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];
        size_t n = (size_t)st->m * (size_t)st->n;
        fl_mat a = fl_at(b.rt->run.global, j, FL_A), f = fl_at(b.rt->run.global, j, FL_B);

        if (a.x == NULL) {
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            x[i] = base_at(&plain, plain.rt->base.share.x, j)[i];
            y[i] = base_at(&b, b.rt->base.share.x, j)[i];
        }
        bed_ok(fl_svd(st->m, st->n, x, u, sv, vt));
        double rest = 0, na = 0, nb = 0;

        for (int i = 3; i < FL_MIN(st->m, st->n); i++) {
            rest += sv[i] * sv[i];
        }
        assert_below(fabs(rebase_norm(n, y) - sqrt(rest)), 1e-6 * sv[0]);
        for (int e = 0; e < 3 * st->n; e++) {
            na += (double)a.x[e] * a.x[e];
        }
        for (int e = 0; e < 3 * st->m; e++) {
            nb += (double)f.x[e] * f.x[e];
        }
        assert_below(fabs(na - nb), 1e-5 * na);
        bed_add(bed_scale(&b, b.rt->run.global, j), f, NULL, a, NULL, y);
        assert_near(n, y, x, 1e-6);
    }
    bed_close(&plain);
    bed_close(&b);
}

/* rank 12 of 12 x 24 holds all of W */
static void frlora_full_rank(void **state)
{
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=frlora", "adapter.r=12", "adapter.alpha=12", "adapter.targets=[v]"));
    int j = fl_model_site_named(&b.rt->base.model, 0, "v");

    for (int i = 0; i < 12 * 24; i++) {
        assert_below(fabs((double)base_at(&b, b.rt->base.share.x, j)[i]), 1e-6);
    }
    bed_close(&b);
}

/* the model after merge and reset is W + s B A of the means; the start comes back to the bit */
static void frlora_keeps_the_function(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "frlora", "3", "4", NULL);
    uint64_t start = bed_hash(&b);

    for (int t = 1; t <= 3; t++) {
        bed_begin(&b, t, NULL);
        bed_end(&b);
        assert_installs_means(&b, 1);
        assert_true(bed_hash(&b) == start);
        assert_true(memcmp(b.w0, b.rt->base.share.x, fl_model_bytes(&b.rt->base.model)) != 0);
    }
    bed_close(&b);
}

static void frlora_nothing_moved(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "frlora", "3", "4", NULL);
    bed_begin(&b, 1, NULL);
    for (int i = 0; i < b.n; i++) {
        fl_fit(b.client[i], b.rt->run.global);
    }
    bed_end(&b);
    assert_memory_equal(b.w0, b.rt->base.share.x, fl_model_bytes(&b.rt->base.model));
    bed_close(&b);
}

/* freeze_a: A is common, so that a round is the mean of the products */
static void frlora_freezes_a(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "frlora", "3", "4", "frlora.freeze_a=true");
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    bed_check_exact(&b);
    assert_below(bed_discordance(&b), 1e-6);
    bed_close(&b);
}

/* the first r pairs of the merged stack are what travelled; with the constant start they give the
 * server's bits */
static void frlora_absentee(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "frlora", "3", "3", NULL);
    fl_real *own = base_copy(&b);
    fl_adapter *start = fl_adapter_create(b.rt->run.space);

    fl_fit(start, b.rt->run.global);
    for (int t = 1; t <= 3; t++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        assert_int_equal(b.rt->nmerges, 1);
        const fl_adapter *merged = b.rt->merged[0].ad;
        fl_adapter *stack = fl_adapter_create(merged->space);

        for (int j = 0; j < b.rt->run.nsites; j++) {
            fl_mat a = fl_at(merged, j, FL_A), f = fl_at(merged, j, FL_B);
            fl_mat a0 = fl_at(start, j, FL_A), b0 = fl_at(start, j, FL_B);
            fl_mat to_a = fl_at(stack, j, FL_A), to_b = fl_at(stack, j, FL_B);

            if (a.x == NULL) {
                continue; /* on another rank */
            }
            assert_int_equal(a.rows, 6);
            for (int e = 0; e < 3 * a.cols; e++) {
                to_a.x[e] = a.x[e];
                to_a.x[3 * a.cols + e] = a.x[e] - a0.x[e];
            }
            for (int i = 0; i < f.rows; i++) {
                for (int l = 0; l < 3; l++) {
                    to_b.x[6 * i + l] = f.x[6 * i + l];
                    to_b.x[6 * i + 3 + l] = b0.x[3 * i + l];
                }
            }
        }
        base_replay(&b, own, stack, 1);
        for (int j = 0; j < b.rt->run.nsites; j++) {
            const fl_site *st = &b.rt->base.model.site[j];

            if (fl_at(merged, j, FL_A).x != NULL) {
                assert_memory_equal(base_at(&b, own, j), base_at(&b, b.rt->base.share.x, j),
                    (size_t)st->m * (size_t)st->n * sizeof(fl_real));
            }
        }
        memcpy(own, b.rt->base.share.x, fl_model_bytes(&b.rt->base.model)); /* the others' sites */
        fl_adapter_destroy(&stack);
    }
    fl_adapter_destroy(&start);
    fl_free(own);
    bed_close(&b);
}

static double frlora_up(int r)
{
    return 4 * r * (bed_sum_m + bed_sum_n);
}

static double frlora_up_b(int r)
{
    return 4 * r * bed_sum_m;
}

static double frlora_revision(int t)
{
    (void)t;
    return 4 * 3 * (bed_sum_m + bed_sum_n);
}

static double frlora_revision_b(int t)
{
    (void)t;
    return 4 * 3 * bed_sum_m;
}

static void frlora_traffic(void **state)
{
    double up[6], down[6];

    (void)state;
    const char *const *sets = BED_SET("method.name=frlora", "partition.clients=7", "train.steps=1");
    const char *const *frozen = BED_SET(
        "method.name=frlora", "partition.clients=7", "train.steps=1", "frlora.freeze_a=true");

    book_run(&(book){frlora_up, no_parts, frlora_revision}, sets, 6, up, down);
    bed_traffic("frlora", sets + 1, 6, up, down);
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    book_run(&(book){frlora_up_b, no_parts, frlora_revision_b}, frozen, 6, up, down);
    bed_traffic("frlora", frozen + 1, 6, up, down);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(rac_lora_is_exact), T(rac_lora_unequal_ranks),
        T(rac_lora_projects_the_gradient), T(rac_lora_projectors_cover_all),
        T(full_rank_is_gradient_descent), T(rac_lora_absentee), T(rac_lora_coin),
        T(rac_lora_traffic), T(merges_add_ranks), T(frlora_start), T(frlora_full_rank),
        T(frlora_keeps_the_function), T(frlora_nothing_moved), T(frlora_freezes_a),
        T(frlora_absentee), T(frlora_traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
