/* test_flasc.c - sparse messages around dense training: against the official code's rounds, FedAvg
 * when everything travels, what is masked, what is counted. */
#include "sparse_bed.h"

/* ---- three rounds of the official code ---- */
static const bed *now;

static fl_err golden_train(fl_run *run, fl_client *c)
{
    fl_adapter *change = fl_scratch_adapter(run, run->space);
    char prefix[40];

    snprintf(prefix, sizeof prefix, "client%d.change", c->id);
    golden_adapter(now, prefix, change);
    fl_adapter_axpy(c->ad[0], 1, change);
    if (run->round.t != 2) { /* the file has what was sent down in rounds 1 and 3 */
        fl_adapter *down = fl_scratch_adapter(run, run->space);

        snprintf(prefix, sizeof prefix, "round%d.down", run->round.t);
        golden_adapter(now, prefix, down);
        assert_same_adapter(c->got[0], down, 1e-6);
    }
    return FL_OK;
}

static fl_err golden_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_adapter *sent = fl_scratch_adapter(run, run->space);
    char prefix[40];

    FL_TRY(good->upload(run, c, up));
    snprintf(prefix, sizeof prefix, "client%d.sent", c->id);
    golden_adapter(now, prefix, sent);
    assert_same_adapter(up->part[0].ad, sent, 1e-6);
    return FL_OK;
}

static void check_golden(const char *file, const char *server)
{
    fl_real down, up, lr, alpha;
    char set[4][64];
    bed b;

    golden_open(file);
    golden_read("density.down", 1, &down);
    golden_read("density.up", 1, &up);
    golden_read("server.lr", 1, &lr);
    golden_read("alpha", 1, &alpha);
    snprintf(set[0], sizeof set[0], "flasc.density_down=%.9g", (double)down);
    snprintf(set[1], sizeof set[1], "flasc.density_up=%.9g", (double)up);
    snprintf(set[2], sizeof set[2], "flasc.server_lr=%.9g", (double)lr);
    snprintf(set[3], sizeof set[3], "adapter.alpha=%.9g", (double)alpha);
    bed_open(&b, test_ctx,
        BED_SET("method.name=flasc", server, set[0], set[1], set[2], set[3], "adapter.r=4",
            "adapter.targets=[up, down]", "partition.clients=3", "cohort.size=3"));
    now = &b;
    spy_on(&b);
    spy.train = golden_train;
    spy.upload = golden_upload;
    golden_adapter(&b, "global", b.rt->run.global);
    for (int t = 1; t <= 3; t++) {
        fl_adapter *out;
        char prefix[40];

        one_round(&b, t);
        snprintf(prefix, sizeof prefix, "round%d.out", t);
        out = fl_adapter_create(b.rt->run.space);
        golden_adapter(&b, prefix, out);
        assert_same_adapter(b.rt->run.global, out, 1e-6);
        fl_adapter_destroy(&out);
        assert_true(isnan(bed_discordance(&b))); /* changes are not the clients' models */
    }
    bed_close(&b);
    fl_st_close(&golden);
}

static void official_code(void **state)
{
    (void)state;
    check_golden("flasc_sgd", "flasc.server=sgd");
    check_golden("flasc_adam", "flasc.server=adam");
}

/* everything travels, and the server adds the mean: FedAvg with uniform weights */
static void whole_is_fedavg(void **state)
{
    bed b, avg;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=flasc", "flasc.density_up=1", "flasc.density_down=1",
            "flasc.server=sgd", "flasc.server_lr=1", "cohort.weights=samples",
            "partition.kind=dirichlet"));
    bed_open(&avg, test_ctx,
        BED_SET("method.name=fedavg", "cohort.weights=uniform", "partition.kind=dirichlet"));
    for (int t = 1; t <= 2; t++) {
        one_round(&b, t);
        one_round(&avg, t);
        assert_same_adapter(b.rt->run.global, avg.rt->run.global, t == 1 ? 1e-6 : 1e-4);
    }
    bed_close(&b);
    bed_close(&avg);
}

static double zeros_in_b(const fl_adapter *ad)
{
    double n = 0;

    for (int i = 0; i < ad->space->nslots; i++) {
        for (size_t e = 0; e < slot_size(&ad->space->slot[i]); e++) {
            n += ad->space->slot[i].factor == FL_B && ad->v[ad->space->slot[i].at + e] == 0;
        }
    }
    return n;
}

/* B = 0 at the start: none of it is sent down, and it trains all the same, unless it is frozen */
static void start(void **state)
{
    (void)state;
    for (int frozen = 0; frozen < 2; frozen++) {
        bed b;

        bed_open(&b, test_ctx,
            BED_SET("method.name=flasc", frozen ? "flasc.freeze=true" : "flasc.freeze=false"));
        double all = zeros_in_b(b.rt->run.global);

        assert_true(all > 100);
        bed_run(&b, 2);
        assert_true(frozen ? zeros_in_b(b.rt->run.global) == all
                           : zeros_in_b(b.rt->run.global) < 0.8 * all);
        bed_close(&b);
    }
}

/* the server's model is theta M; a client's tier has its own M */
static void view(void **state)
{
    bed b;
    double found[3];

    (void)state;
    open_method(&b, "flasc", "flasc.density_down=0.5", NULL);
    fill_global(&b);
    fl_run *run = &b.rt->run;
    double all = (double)run->space->n;

    for (int i = 0; i < 3; i++) { /* the server, rank 4, rank 1 */
        fl_client c = {.id = 0, .r = i == 1 ? 4 : 1};
        fl_view v = {0};
        double least = INFINITY, most = 0;

        bed_ok(b.rt->method->view(run, i == 0 ? NULL : &c, 0, &v));
        assert_non_null(v.name);
        found[i] = 0;
        for (size_t e = 0; e < run->space->n; e++) {
            double x = fabs((double)v.stack.ad[0]->v[e]), y = fabs((double)run->global->v[e]);

            assert_true(x == 0 || x == y);
            found[i] += x > 0;
            least = x > 0 ? FL_MIN(least, y) : least;
            most = x > 0 ? most : FL_MAX(most, y);
        }
        assert_true(most <= least);
    }
    assert_true(found[0] == floor(all / 2) && found[1] == found[0] && found[2] == floor(all / 8));
    bed_close(&b);
}

/* the adapter that a run leaves behind is theta M */
static void adapter_folder(void **state)
{
    double p = 3 * mn, found = 0;
    char path[300];
    fl_st st;

    (void)state;
    bed_federation(
        test_ctx, "flasc", BED_SET("method.name=flasc", "run.rounds=2", "flasc.density_down=0.2"));
    fl_max(test_ctx, 0); /* rank 0 has written it */
    snprintf(path, sizeof path, "%s/flasc/adapter/adapter_model.safetensors", bed_dir);
    bed_ok(fl_st_open(path, &st));
    for (int i = 0; i < st.n; i++) {
        size_t n = (size_t)(st.entry[i].end - st.entry[i].begin) / sizeof(float);
        fl_real *x = fl_alloc("tensor", n, sizeof *x);

        bed_ok(fl_st_read(&st, i, n, x));
        for (size_t e = 0; e < n; e++) {
            found += x[e] != 0;
        }
        fl_free(x);
    }
    fl_st_close(&st);
    assert_true(found == floor(0.2 * p));
}

/* floor(d P) numbers each way and where they are; P = r (m + n) with r = 3, three clients */
static void traffic(void **state)
{
    double p = 3 * mn, k = floor(0.1 * p), sparse = 3 * (4 * k + fmin(4 * k, ceil(p / 8)));
    double many = 3 * 4 * floor(0.9 * p) + 3 * ceil(p / 8);

    (void)state;
    assert_true(
        4 * floor(0.01 * p) < ceil(p / 8)); /* both ways of telling where are cheaper once */
    bed_traffic("flasc",
        BED_SET("flasc.density_up=0.1", "flasc.density_down=0.1", "partition.clients=3"), 2,
        (double[]){sparse, sparse}, (double[]){sparse + 8 * 3, sparse});
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    k = floor(0.01 * p);
    bed_traffic("flasc",
        BED_SET("flasc.density_up=0.01", "flasc.density_down=0.9", "partition.clients=3"), 2,
        (double[]){3 * 8 * k, 3 * 8 * k}, (double[]){many + 8 * 3, many});
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    bed_traffic("flasc",
        BED_SET("flasc.density_up=1", "flasc.density_down=1", "partition.clients=3"), 2,
        (double[]){3 * 4 * p, 3 * 4 * p}, (double[]){8 * 3, 3 * 4 * p});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {
        T(official_code), T(whole_is_fedavg), T(start), T(view), T(adapter_folder), T(traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
