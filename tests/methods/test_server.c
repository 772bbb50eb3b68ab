/* test_server.c - the server's sums and factorisations: order of clients, identical clients, lost
 * clients, numbers that are not finite, the solvers of the SVD. */
#include "method_test.h"

enum { K = 5 };

static void open_method(bed *b, const char *name, const char *weights)
{
    char method[64], kind[64];

    snprintf(method, sizeof method, "method.name=%s", name);
    snprintf(kind, sizeof kind, "cohort.weights=%s", weights);
    bed_open(b, test_ctx,
        BED_SET(method, kind, "partition.kind=dirichlet", "partition.alpha=0.7",
            "partition.clients=5", "cohort.size=5"));
}

/* the cohort's adapters at other positions, and so on other ranks */
static void permute(bed *b, const int *to)
{
    fl_adapter *old[K];

    memcpy(old, b->client, sizeof old);
    for (int i = 0; i < K; i++) {
        b->client[to[i]] = old[i];
    }
}

static const int shuffled[][K] = {{4, 3, 2, 1, 0}, {1, 2, 3, 4, 0}, {2, 0, 4, 1, 3}};

/* numbers of very different size, which no floating-point sum adds alike in two orders */
static void spread_sizes(bed *b)
{
    for (int i = 0; i < K; i++) {
        for (size_t j = 0; j < b->client[i]->space->n; j++) {
            b->client[i]->v[j] *= (fl_real)ldexp(1, (int)(j * 7 + (size_t)i * 13) % 31 - 15);
        }
    }
}

/* sum_k w_k x_k with weights that go with the adapters: the same bits at every order */
static void mix_permuted(void **state)
{
    const double w[K] = {0.11, 0.23, 0.31, 0.05, 0.30};
    uint64_t first = 0;
    bed b;

    (void)state;
    open_method(&b, "fedavg", "uniform");
    for (int i = -1; i < (int)FL_COUNT(shuffled); i++) {
        double v[K];
        fl_runtime *rt = b.rt;

        bed_begin(&b, 1, NULL);
        spread_sizes(&b);
        memcpy(v, w, sizeof v);
        for (int k = 0; i >= 0 && k < K; k++) {
            v[shuffled[i][k]] = w[k];
        }
        if (i >= 0) {
            permute(&b, shuffled[i]);
        }
        bed_send(&b);
        bed_ok(pile_build(rt));
        assert_int_equal(rt->pile.n, K);
        rt->aggregating = true;
        bed_ok(fl_mix(&rt->run, &rt->pile, &(fl_mixing){.w = v}, &rt->run.global));
        rt->aggregating = false;
        first = i < 0 ? bed_hash(&b) : first;
        assert_true(bed_hash(&b) == first);
    }
    /* and it is the weighted sum */
    for (size_t j = 0; j < b.rt->run.space->n; j++) {
        double sum = 0, size = 0;

        for (int k = 0; k < K; k++) {
            double x = w[k] * b.client[shuffled[2][k]]->v[j];

            sum += x;
            size += fabs(x);
        }
        assert_below(fabs(b.rt->run.global->v[j] - sum), 0x1p-24 * fabs(sum) + 1e-15 * size);
    }
    bed_close(&b);
}

/* the whole rule: bits for what adds factors, rounding for what stacks or factorises */
static void rules_permuted(void **state)
{
    static const char *const name[] = {"fedavg", "ffa_lora", "rolora", "flora", "fedex_lora"};

    (void)state;
    for (size_t m = 0; m < FL_COUNT(name); m++) {
        for (int i = -1; i < (int)FL_COUNT(shuffled); i++) {
            static uint64_t first;
            bed b;

            open_method(&b, name[m], "uniform");
            bed_begin(&b, 1, NULL);
            if (i >= 0) {
                permute(&b, shuffled[i]);
            }
            bed_end(&b);
            first = i < 0 ? bed_hash(&b) : first;
            assert_true(bed_hash(&b) == first);
            if (m != 0) {
                bed_check_exact(&b); /* T itself does not depend on the order */
            }
            bed_close(&b);
        }
    }
}

/* clients that agree: the mean is what they sent, bit for bit, with any weights */
static void identical_clients(void **state)
{
    static const char *const name[] = {"fedavg", "fedex_lora", "ffa_lora"};

    (void)state;
    for (size_t m = 0; m < FL_COUNT(name); m++) {
        for (int kind = 0; kind < 2; kind++) {
            bed b;

            open_method(&b, name[m], kind == 0 ? "samples" : "uniform");
            bed_begin(&b, 1, NULL);
            for (int i = 1; i < K; i++) {
                fl_fit(b.client[i], b.client[0]);
            }
            bed_end(&b);
            assert_memory_equal(b.rt->run.global->v, b.client[0]->v,
                b.client[0]->space->n * sizeof *b.client[0]->v);
            assert_memory_equal(b.rt->base.share.x, b.w0, fl_model_bytes(&b.rt->base.model));
            bed_close(&b);
        }
    }
}

/* p is renormalised over those that arrived; T is theirs alone */
static void lost_by_hand(void **state)
{
    static const char *const name[] = {"fedavg", "ffa_lora", "flora", "fedex_lora"};

    (void)state;
    for (size_t m = 0; m < FL_COUNT(name); m++) {
        bed b;
        double sum = 0;

        open_method(&b, name[m], "samples");
        bed_begin(&b, 1, NULL);
        b.lost[0] = b.lost[3] = true;
        bed_end(&b);
        assert_int_equal(b.rt->pile.n, K - 2);
        for (int i = 0, at = 0; i < K; i++) {
            if (!b.lost[i]) {
                assert_int_equal(b.rt->pile.item[at].client, i);
                assert_below(fabs(b.rt->pile.item[at].p - b.p[i]), 1e-15);
                sum += b.rt->pile.item[at++].p;
            }
        }
        assert_below(fabs(sum - 1), 1e-15);
        if (m == 0) {
            for (size_t j = 0; j < b.rt->run.space->n; j++) {
                double mean = 0;

                for (int i = 0; i < K; i++) {
                    mean += b.p[i] * b.client[i]->v[j];
                }
                assert_below(fabs(b.rt->run.global->v[j] - mean), 0x1p-24 * fabs(mean) + 1e-16);
            }
        } else {
            bed_check_exact(&b);
        }
        bed_close(&b);
    }
}

static void all_lost(void **state)
{
    (void)state;
    for (int m = 0; m < fl_method_count(); m++) {
        bed b;
        uint64_t before;

        if ((fl_method_at(m)->needs & FL_ONLINE) != 0) {
            continue;
        }
        open_method(&b, fl_method_at(m)->name, "samples");
        before = bed_hash(&b);
        bed_begin(&b, 1, NULL);
        memset(b.lost, 1, sizeof b.lost);
        bed_end(&b);
        assert_int_equal(b.rt->pile.n, 0);
        assert_true(bed_hash(&b) == before && b.rt->base_revision == 0);
        assert_memory_equal(b.rt->base.share.x, b.w0, fl_model_bytes(&b.rt->base.model));
        bed_close(&b);
    }
}

/* ---- NaN, infinity, numbers beyond the grid of the sum ---- */
enum { BAD_CLIENT = 3 };
static fl_real bad_value;

static fl_err bad_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    int site = fl_model_site_named(&run->rt->base.model, 1, "up");

    if (c->id == BAD_CLIENT) {
        fl_at(c->ad[0], site, FL_B).x[5] = bad_value;
    }
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0]});
    return FL_OK;
}

static void bad_numbers_refused(void **state)
{
    const fl_real value[] = {NAN, INFINITY, -INFINITY, (fl_real)0x1p34};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(value); i++) {
        bed b;
        const fl_method *good;
        fl_method bad;
        uint64_t before;

        open_method(&b, "fedavg", "samples");
        good = b.rt->method;
        bad = *good;
        bad.upload = bad_upload;
        before = bed_hash(&b);
        bad_value = value[i];
        b.rt->method = &bad;
        assert_int_equal(round_run(b.rt, 1), FL_ENUM); /* on every rank */
        bed_says("client 3");
        bed_says("1.up.B");
        bed_says("round 1");
        fl_error_clear();
        assert_true(bed_hash(&b) == before);
        /* nothing hangs: the ranks are still together */
        b.rt->method = good;
        bed_ok(round_run(b.rt, 1));
        /* the server's own message is sealed too */
        fl_at(b.rt->run.global, fl_model_site_named(&b.rt->base.model, 0, "q"), FL_A).x[0] =
            value[i];
        assert_int_equal(round_run(b.rt, 2), FL_ENUM);
        bed_says("0.q.A");
        bed_says("round 2");
        fl_error_clear();
        bed_close(&b);
    }
}

/* ---- solvers ---- */
static void open_solver(bed *b, fl_ctx *ctx, const char *solver, int p, int q)
{
    char how[64], grid[64];

    snprintf(how, sizeof how, "svd.solver=%s", solver);
    snprintf(grid, sizeof grid, p > 0 ? "svd.grid=[%d, %d]" : "svd.grid=[]", p, q);
    bed_open(b, ctx,
        BED_SET("method.name=flexlora", "adapter.r=4", "cohort.size=4", how, grid, "svd.block=4"));
}

/* || s B A - U_r S_r V_r' || / || T || over all sites, with LAPACK's dense SVD of T */
static double distance_to_best(const bed *b)
{
    static double t[BED_SIDE * BED_SIDE], x[BED_SIDE * BED_SIDE];
    static double u[BED_SIDE * BED_SIDE], vt[BED_SIDE * BED_SIDE], sv[BED_SIDE];
    double error = 0, all = 0, grain = 0;

    for (int j = 0; j < b->rt->run.nsites; j++) {
        const fl_site *st = &b->rt->base.model.site[j];
        int r = b->rt->run.space->r[j], k = FL_MIN(st->m, st->n);

        if (r == 0) {
            continue;
        }
        bed_ideal(b, j, t);
        bed_installed(b, j, x, &grain);
        bed_ok(fl_svd(st->m, st->n, t, u, sv, vt));
        all += bed_norm2((size_t)k, sv);
        for (int i = 0; i < st->m; i++) {
            for (int l = 0; l < r; l++) {
                for (int c = 0; c < st->n; c++) {
                    x[i * st->n + c] -= u[i * k + l] * sv[l] * vt[l * st->n + c];
                }
            }
        }
        error += bed_norm2((size_t)st->m * (size_t)st->n, x);
    }
    return sqrt(error / all);
}

static void solvers_agree(void **state)
{
    static const struct {
        const char *solver;
        int p, q;
    } how[] = {{"auto", 0, 0}, {"factored", 0, 0}, {"dense", 0, 0}, {"scalapack", 0, 0},
        {"scalapack", 1, 1}, {"scalapack", 2, 1}, {"scalapack", 1, 3}, {"scalapack", 2, 2}};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(how); i++) {
        bed b;

        if (how[i].p * how[i].q > test_ctx->size) {
            continue;
        }
        open_solver(&b, test_ctx, how[i].solver, how[i].p, how[i].q);
        for (int t = 1; t <= 2; t++) {
            bed_begin(&b, t, t == 1 ? NULL : (const int[]){2, 4, 1, 3});
            bed_end(&b);
            assert_below(distance_to_best(&b), 1e-6);
            assert_true(fl_same_everywhere(test_ctx, bed_hash(&b)));
            assert_below(
                fabs(bed_discordance(&b) - sqrt(bed_metric(&b, "discarded_energy"))), 1e-6);
        }
        bed_close(&b);
    }
}

/* a pinned grid gives the bits that it gives in a job of its own size */
static void grid_bits(void **state)
{
    uint64_t alone;
    fl_ctx *self;
    bed b;

    (void)state;
    fl_ctx_create(MPI_COMM_SELF, &self);
    self->quiet = true;
    open_solver(&b, self, "scalapack", 1, 1);
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    alone = bed_hash(&b);
    bed_close(&b);
    fl_ctx_destroy(&self);
    open_solver(&b, test_ctx, "scalapack", 1, 1);
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    assert_true(bed_hash(&b) == alone);
    bed_close(&b);
}

/* refused before anything is trained, on every rank */
static void grid_too_large(void **state)
{
    fl_options opt = {.out = bed_dir, .resume = "none", .versions = ""};
    fl_deck *deck =
        bed_deck(BED_SET("method.name=flexlora", "svd.solver=scalapack", "svd.grid=[3, 2]"));
    uint64_t digest;

    (void)state;
    assert_int_equal(fl_federation(test_ctx, deck, &opt, &digest), FL_EDECK);
    assert_non_null(strstr(fl_error_text(), "svd.grid"));
    fl_error_clear();
    fl_deck_destroy(&deck);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(mix_permuted), T(rules_permuted), T(identical_clients),
        T(lost_by_hand), T(all_lost), T(bad_numbers_refused), T(solvers_agree), T(grid_bits),
        T(grid_too_large)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
