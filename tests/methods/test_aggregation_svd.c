/* test_aggregation_svd.c - rules that split a product by an SVD: fedsvd, florist, rb_lora, raflora,
 * hlora, and fedex_lora's residual cut to a rank; each against the identities of its source. */
#include "products_bed.h"

/* ---- fedsvd ---- */
/* the largest part of a row of A that lies outside the rows of A0, and || A A' - I || */
static double outside(const bed *b, const fl_adapter *now, const fl_adapter *first, double *skew)
{
    static double x[DENSE], q[DENSE], r[DENSE];
    double worst = 0;

    *skew = 0;
    for (int j = next_site(b, -1); j >= 0; j = next_site(b, j)) {
        fl_mat a = fl_at(now, j, FL_A), a0 = fl_at(first, j, FL_A);

        for (int i = 0; i < a0.rows * a0.cols; i++) {
            x[i % a0.cols * a0.rows + i / a0.cols] = a0.x[i];
        }
        bed_ok(fl_qr(a0.cols, a0.rows, x, q, r));
        for (int i = 0; i < a.rows; i++) {
            double left = 0;

            for (int e = 0; e < a.cols; e++) {
                x[e] = a.x[i * a.cols + e];
            }
            for (int l = 0; l < a0.rows; l++) {
                double dot = 0;

                for (int e = 0; e < a.cols; e++) {
                    dot += q[e * a0.rows + l] * x[e];
                }
                for (int e = 0; e < a.cols; e++) {
                    x[e] -= dot * q[e * a0.rows + l];
                }
            }
            left = sqrt(bed_norm2((size_t)a.cols, x));
            worst = fmax(worst, left);
            for (int l = 0; l <= i; l++) {
                double dot = 0;

                for (int e = 0; e < a.cols; e++) {
                    dot += (double)a.x[i * a.cols + e] * a.x[l * a.cols + e];
                }
                *skew = fmax(*skew, fabs(dot - (i == l)));
            }
        }
    }
    return worst;
}

/* B A is unchanged, A A' = I, the rows of A never leave the first span; columns of B orthogonal */
static void fedsvd_refactors(void **state)
{
    bed b;

    (void)state;
    open_rule(&b, "fedsvd", "4", "4", BED_SET("fedsvd.period=1"));
    fl_adapter *first = fl_adapter_create(b.rt->run.space);

    fl_fit(first, b.rt->run.global);
    for (int t = 1; t <= 3; t++) {
        double skew;

        bed_begin(&b, t, NULL);
        bed_end(&b);
        bed_check_exact(&b); /* T with the A that the clients had */
        assert_below(outside(&b, b.rt->run.global, first, &skew), 1e-6);
        assert_below(skew, 1e-6);
        assert_true(bed_metric(&b, "completed_rows") == 0);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            fl_mat c = fl_at(b.rt->run.global, j, FL_B);
            double gram[4][4] = {{0}};

            for (int e = 0; e < c.rows * 16; e++) {
                gram[e % 4][e / 4 % 4] +=
                    (double)c.x[e / 16 * 4 + e % 4] * c.x[e / 16 * 4 + e / 4 % 4];
            }
            for (int e = 0; e < 16; e++) {
                assert_true(e % 5 == 0 || fabs(gram[e % 4][e / 4]) < 1e-6 * gram[0][0]);
                assert_true(
                    e % 5 != 0 || e == 0 || gram[e % 4][e / 4] <= gram[e % 4 - 1][e / 4 - 1]);
            }
        }
    }
    fl_adapter_destroy(&first);
    bed_close(&b);
}

/* rank(B A) < r, down to 0: the missing rows come from the old ones, never from elsewhere */
static void fedsvd_completes(void **state)
{
    (void)state;
    for (int keep = 0; keep <= 2; keep += 2) {
        double skew;
        bed b;

        open_rule(&b, "fedsvd", "4", "3", BED_SET("fedsvd.period=1"));
        fl_adapter *first = fl_adapter_create(b.rt->run.space);

        fl_fit(first, b.rt->run.global);
        bed_begin(&b, 1, NULL);
        for (int i = 0; i < b.n; i++) {
            for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
                fl_mat c = fl_at(b.client[i], j, FL_B);

                for (int e = 0; e < c.rows * c.cols; e++) {
                    c.x[e] = e % c.cols >= 4 - keep ? c.x[e] : 0;
                }
            }
        }
        bed_end(&b);
        if (keep > 0) {
            bed_check_exact(&b);
        }
        assert_below(outside(&b, b.rt->run.global, first, &skew), 1e-6);
        assert_below(skew, 1e-6);
        assert_true(bed_metric(&b, "completed_rows") == ADAPTED * (4 - keep));
        fl_adapter_destroy(&first);
        bed_close(&b);
    }
}

/* With plain SGD a run equals FFA-LoRA on the A of the first refactorisation: SGD and clipping by
 * the norm commute with rotations of the r pairs. With Adam, which does not, it differs. */
static void fedsvd_is_ffa_under_sgd(void **state)
{
    (void)state;
    for (int adam = 0; adam < 2; adam++) {
        const char *optimizer = adam ? "train.optimizer=adamw" : "train.optimizer=sgd",
                   *lr = adam ? "train.lr=0.01" : "train.lr=0.2";
        bed b, ffa;

        open_rule(&b, "fedsvd", "3", "3", BED_SET(optimizer, lr));
        run_rounds(&b, 1, 1);
        open_rule(&ffa, "ffa_lora", "3", "3", BED_SET(optimizer, lr));
        fl_fit(ffa.rt->run.global, b.rt->run.global);
        run_rounds(&b, 2, 5);
        run_rounds(&ffa, 2, 5);
        double d = products_apart(&b, b.rt->run.global, ffa.rt->run.global);

        if (adam == 0) {
            assert_below(d, 1e-4);
        } else {
            assert_true(d > 1e-2);
        }
        bed_close(&ffa);
        bed_close(&b);
    }
}

/* period 0 never touches A and is FFA-LoRA bit for bit; period 2 refactors in even rounds */
static void fedsvd_period(void **state)
{
    bed b, ffa;
    double skew, start;

    (void)state;
    open_rule(&b, "fedsvd", "3", "3", BED_SET("fedsvd.period=0"));
    open_rule(&ffa, "ffa_lora", "3", "3", BED_SET("run.name=other"));
    run_rounds(&b, 1, 3);
    run_rounds(&ffa, 1, 3);
    assert_true(bed_hash(&b) == bed_hash(&ffa));
    bed_close(&b);
    open_rule(&b, "fedsvd", "3", "3", BED_SET("fedsvd.period=2"));
    outside(&b, b.rt->run.global, b.rt->run.global, &start);
    run_rounds(&b, 1, 1);
    outside(&b, b.rt->run.global, b.rt->run.global, &skew);
    assert_true(skew == start && skew > 1e-2);
    run_rounds(&b, 2, 2);
    outside(&b, b.rt->run.global, b.rt->run.global, &skew);
    assert_below(skew, 1e-6);
    bed_close(&ffa);
    bed_close(&b);
}

/* ---- florist ---- */
static const fl_adapter *installed(const bed *b)
{
    assert_non_null(b->rt->run.installed);
    return b->rt->run.installed;
}

/* threshold 1: T itself, with no more pairs than its rank; unequal ranks too */
static void florist_exact(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        fl_view v = {0};
        bed b;

        open_rule(&b, "florist", "5", "4", BED_SET("florist.threshold=1"));
        for (int t = 1; t <= 2; t++) {
            bed_begin(&b, t, k == 0 ? NULL : (const int[]){1, 5, 2, 4});
            keep_first(&b, k == 0 ? 2 : 5);
            bed_end(&b);
            assert_below(ideal_apart(&b, installed(&b)), 1e-6);
            assert_below(bed_discordance(&b), 1e-6);
            /* rank 4 x 2, or 1 + 5 + 2 + 4; v is 12 x 24 */
            assert_true(bed_metric(&b, "mean_pairs") == (k == 0 ? 8 : 12));
            bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
            assert_true(v.stack.n == 1 && v.stack.coef[0] == 1);
            assert_below(products_apart(&b, v.stack.ad[0], installed(&b)), 1e-12);
        }
        bed_close(&b);
    }
}

/* OUT/adapter is what is evaluated, of more pairs than adapter.r */
static void florist_written(void **state)
{
    fl_adapter *ad = NULL;
    char path[300];
    bed b;

    (void)state;
    open_rule(&b, "florist", "3", "4", BED_SET("florist.threshold=1"));
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    bed_ok(report_adapter(b.rt));
    if (test_ctx->rank == 0) {
        snprintf(path, sizeof path, "%s/adapter", bed_dir);
        bed_ok(fl_peft_load(path, &b.rt->base.model, b.rt->spaces, &ad));
        assert_true(ad->space->rmax >= 12);
        assert_below(products_apart(&b, ad, installed(&b)), 1e-6);
        fl_adapter_destroy(&ad);
    }
    bed_close(&b);
}

/* q is the fewest that carry the share, by site; the pairs are the top of the dense SVD */
static void florist_threshold(void **state)
{
    static double t[DENSE], x[DENSE], sv[BED_SIDE];
    const double tau = 0.7;
    double used = 0, lost = 0, total = 0;
    bed b;

    (void)state;
    open_rule(&b, "florist", "4", "4", BED_SET("florist.threshold=0.7"));
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        fl_mat c = fl_at(installed(&b), j, FL_B);
        double have = 0, all;
        int q = 0, n;

        bed_ideal(&b, j, t);
        n = values_of(&b, j, t, sv);
        all = bed_norm2((size_t)n, sv);
        while (have < tau * all) {
            have += sv[q] * sv[q];
            q++;
        }
        assert_true(q > 1 && q < 16);
        for (int i = 0; i < c.cols; i++) {
            double column = 0;

            for (int e = 0; e < c.rows; e++) {
                column += pow(c.x[e * c.cols + i], 2);
            }
            if (i < q) {
                assert_below(fabs(sqrt(column) - sv[i]), 1e-6 * sv[0]);
            } else {
                assert_true(column == 0);
            }
        }
        dense_of(installed(&b), j, x);
        assert_below(pow(apart(site_size(&b, j), x, t), 2), 1 - tau);
        assert_below(fabs(pow(apart(site_size(&b, j), x, t), 2) - (1 - have / all)), 1e-6);
        used += q;
        lost += all - have;
        total += all;
    }
    assert_true(bed_metric(&b, "mean_pairs") == used / ADAPTED);
    assert_below(fabs(bed_metric(&b, "discarded_energy") - lost / total), 1e-12);
    bed_close(&b);
}

/* Clients that do not train: what they start from comes back. A client of rank r holds the best
 * rank r of the server's product, all of it where q <= r; the fresh rows of A add nothing. */
static void florist_start(void **state)
{
    static double old[BED_SITES][DENSE], x[DENSE], y[DENSE], u[DENSE], vt[DENSE], sv[BED_SIDE];

    (void)state;
    for (int keep = 1; keep <= 3; keep += 2) { /* q = 3 or 9, ranks of the clients 2 and 6 */
        bed b;

        open_rule(&b, "florist", "6", "3",
            BED_SET("florist.threshold=1", "clients.r=[2, 6]", "clients.r_share=[0.5, 0.5]",
                "train.optimizer=sgd", "train.lr=1e-30"));
        bed_begin(&b, 1, NULL);
        keep_first(&b, keep);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            dense_of(installed(&b), j, old[j]);
        }
        run_rounds(&b, 2, 2);
        for (int i = b.rt->first[b.ctx->rank]; i < b.rt->first[b.ctx->rank + 1]; i++) {
            const fl_adapter *ad = b.rt->sent[i]->part[0].ad;

            assert_int_equal(ad->space->rmax, b.rt->client_r[i]);
            for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) { /* none is dead */
                fl_mat a = fl_at(ad, j, FL_A);

                for (int e = 0; e < a.rows * a.cols; e++) {
                    assert_true(a.x[e] != 0);
                }
            }
        }
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            const fl_site *st = &b.rt->base.model.site[j];
            int most = FL_MIN(st->m, st->n), small = 0;

            bed_ok(fl_svd(st->m, st->n, old[j], u, sv, vt));
            memset(y, 0, sizeof y);
            for (int i = 0; i < 3; i++) {
                int r = b.rt->client_r[i];

                small += r == 2;
                for (int e = 0; e < st->m * st->n; e++) {
                    for (int l = 0; l < FL_MIN(r, 3 * keep); l++) {
                        y[e] +=
                            b.p[i] * u[e / st->n * most + l] * sv[l] * vt[l * st->n + e % st->n];
                    }
                }
            }
            assert_true(small > 0 && small < 3);
            dense_of(installed(&b), j, x);
            assert_below(apart(site_size(&b, j), x, y), 1e-5);
        }
        bed_close(&b);
    }
}

/* ---- rb_lora, raflora ---- */
/* T by plain loops: every pair over the weight of those that have it */
static void balanced(const bed *b, int j, double *x)
{
    memset(x, 0, DENSE * sizeof *x);
    for (int l = 0; l < b->rt->run.space->rmax; l++) {
        double have = 0;

        for (int k = 0; k < b->n; k++) {
            have += b->client[k]->space->rmax > l ? b->p[k] : 0;
        }
        for (int k = 0; k < b->n; k++) {
            fl_mat a = fl_at(b->client[k], j, FL_A), c = fl_at(b->client[k], j, FL_B);
            double w = b->p[k] / have * bed_scale(b, b->client[k], j);

            for (int e = 0; l < a.rows && e < c.rows * a.cols; e++) {
                x[e] += w * c.x[e / a.cols * c.cols + l] * a.x[l * a.cols + e % a.cols];
            }
        }
    }
}

static void balanced_target(void **state)
{
    static double x[DENSE], y[DENSE];
    static const char *const name[] = {"rb_lora", "raflora"};

    (void)state;
    for (int k = 0; k < 2; k++) {
        bed b;

        open_rule(&b, name[k], "8", "4", BED_SET("run.name=balanced"));
        for (int t = 1; t <= 2; t++) {
            bed_begin(&b, t, (const int[]){1, 4, 2, 1});
            bed_end(&b);
            for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
                dense_of(b.rt->run.global, j, x);
                balanced(&b, j, y);
                assert_below(apart(site_size(&b, j), x, y), 1e-6);
            }
            assert_below(bed_metric(&b, "discarded_energy"), 1e-12);
            assert_true(bed_discordance(&b) > 1e-2); /* the plain mean is something else */
        }
        bed_close(&b);
    }
}

/* equal ranks, below the rank of T: FlexLoRA */
static void balanced_equal_ranks(void **state)
{
    static const char *const name[] = {"flexlora", "rb_lora", "raflora"};
    bed b[3];

    (void)state;
    for (int k = 0; k < 3; k++) {
        open_rule(&b[k], name[k], "3", "4", BED_SET("run.name=equal"));
        bed_begin(&b[k], 1, NULL);
        bed_end(&b[k]);
        assert_below(products_apart(&b[k], b[k].rt->run.global, b[0].rt->run.global), 1e-6);
        assert_below(
            fabs(bed_metric(&b[k], "discarded_energy") - bed_metric(&b[0], "discarded_energy")),
            1e-12);
    }
    for (int k = 0; k < 3; k++) {
        bed_close(&b[k]);
    }
}

/* Nobody trains: every client sends back its cut of the server's adapter. Balanced rules keep every
 * singular value; FlexLoRA multiplies value i by the weight of the clients with r_k >= i. */
static void rank_collapse(void **state)
{
    static const char *const rule[][2] = {{"flexlora", "run.name=x"}, {"rb_lora", "run.name=x"},
        {"raflora", "raflora.order=trained"}, {"raflora", "raflora.order=svd"}};
    static double x[DENSE], before[BED_SITES][BED_SIDE], after[BED_SIDE];
    const int r[] = {2, 6, 4, 2};

    (void)state;
    for (size_t k = 0; k < FL_COUNT(rule); k++) {
        bed b;

        open_rule(&b, rule[k][0], "6", "4", BED_SET(rule[k][1]));
        bed_begin(&b, 1, NULL);
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            dense_of(b.rt->run.global, j, x);
            values_of(&b, j, x, before[j]);
        }
        bed_begin(&b, 2, r);
        for (int i = 0; i < b.n; i++) {
            fl_fit_product(b.client[i], b.rt->run.global);
        }
        bed_end(&b);
        for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
            dense_of(b.rt->run.global, j, x);
            values_of(&b, j, x, after);
            for (int l = 0; l < 6; l++) {
                double q = 0;

                for (int i = 0; i < b.n; i++) {
                    q += r[i] > l ? b.p[i] : 0;
                }
                assert_true(l < 2 || q < 0.95);
                assert_below(fabs(after[l] - (k == 0 ? q : 1) * before[j][l]), 1e-5 * before[j][0]);
            }
        }
        bed_close(&b);
    }
}

/* sorting a client's pairs first changes what a band is, unless they are sorted or all one band */
static void raflora_order(void **state)
{
    static const char *const order[] = {"raflora.order=trained", "raflora.order=svd"};

    (void)state;
    for (int unequal = 0; unequal < 2; unequal++) {
        bed b[2];

        for (int k = 0; k < 2; k++) {
            open_rule(&b[k], "raflora", "5", "3", BED_SET(order[k]));
            bed_begin(&b[k], 1, unequal ? (const int[]){1, 5, 3} : NULL);
            bed_end(&b[k]);
        }
        double d = products_apart(&b[0], b[0].rt->run.global, b[1].rt->run.global);

        assert_true(unequal ? d > 1e-2 : d < 1e-5);
        bed_close(&b[0]);
        bed_close(&b[1]);
    }
}

/* ---- hlora ---- */
static void hlora_is_flexlora(void **state)
{
    bed b, flex;

    (void)state;
    open_rule(&b, "hlora", "4", "4", BED_SET("hlora.scale=own"));
    open_rule(&flex, "flexlora", "4", "4", BED_SET("run.name=x"));
    for (int t = 1; t <= 2; t++) {
        bed_begin(&b, t, (const int[]){1, 4, 2, 3});
        bed_begin(&flex, t, (const int[]){1, 4, 2, 3});
        bed_end(&b);
        bed_end(&flex);
        assert_true(bed_hash(&b) == bed_hash(&flex));
    }
    bed_close(&flex);
    bed_close(&b);
}

/* T without the clients' s; at equal ranks no difference */
static void hlora_literal(void **state)
{
    static double x[DENSE], y[DENSE];
    bed b, own;

    (void)state;
    open_rule(&b, "hlora", "8", "4", BED_SET("hlora.scale=literal"));
    bed_begin(&b, 1, (const int[]){1, 4, 2, 1});
    bed_end(&b);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        memset(y, 0, sizeof y);
        for (int k = 0; k < b.n; k++) {
            bed_add(b.p[k] * bed_scale(&b, b.rt->run.global, j), fl_at(b.client[k], j, FL_B), NULL,
                fl_at(b.client[k], j, FL_A), NULL, y);
        }
        dense_of(b.rt->run.global, j, x);
        assert_below(apart(site_size(&b, j), x, y), 1e-6);
    }
    open_rule(&own, "hlora", "8", "4", BED_SET("hlora.scale=own"));
    for (int t = 1; t <= 2; t++) {
        const int *r = t == 1 ? (const int[]){1, 4, 2, 1} : NULL;

        bed_begin(&b, t, r);
        bed_begin(&own, t, r);
        bed_end(&b);
        bed_end(&own);
        double d = products_apart(&b, b.rt->run.global, own.rt->run.global);

        assert_true(t == 1 ? d > 0.1 : d < 1e-6);
    }
    bed_close(&own);
    bed_close(&b);
}

/* ---- fedex_lora with residual_rank ---- */
/* x = W now - W before; returns the rounding of the base, squared norm */
static double base_change(const bed *b, int j, double *x)
{
    static double global[DENSE];
    double grain = 0;

    memset(x, 0, DENSE * sizeof *x);
    bed_installed(b, j, x, &grain);
    dense_of(b->rt->run.global, j, global);
    for (size_t i = 0; i < site_size(b, j); i++) {
        x[i] -= global[i];
    }
    return grain;
}

/* the best approximation of T - s B A of the given rank goes into the base */
static void fedex_truncated(void **state)
{
    static double t[DENSE], x[DENSE], d[DENSE], sv[BED_SIDE], tv[BED_SIDE];
    enum { R = 2 };
    double kept = 0, all = 0;
    bed b;

    (void)state;
    open_rule(&b, "fedex_lora", "3", "4", BED_SET("fedex_lora.residual_rank=2"));
    bed_begin(&b, 1, NULL);
    bed_end(&b);
    for (int j = next_site(&b, -1); j >= 0; j = next_site(&b, j)) {
        double grain = sqrt(base_change(&b, j, x));
        int n;

        bed_ideal(&b, j, t);
        dense_of(b.rt->run.global, j, d);
        for (size_t i = 0; i < site_size(&b, j); i++) {
            d[i] = t[i] - d[i];
            t[i] = d[i] - x[i];
        }
        n = values_of(&b, j, d, sv);
        values_of(&b, j, x, tv);
        assert_true(sv[R] > 0.1 * sv[0] && tv[R - 1] > 0.1 * sv[0]);
        assert_below(tv[R], 1e-6 * sv[0] + grain);
        assert_below(
            fabs(sqrt(bed_norm2(site_size(&b, j), t)) - sqrt(bed_norm2((size_t)(n - R), sv + R))),
            1e-6 * sv[0] + grain);
        kept += bed_norm2(R, sv);
        all += bed_norm2((size_t)n, sv);
    }
    assert_below(fabs(bed_metric(&b, "residual_kept") - kept / all), 1e-6);
    bed_close(&b);
}

/* 0 is FedAvg; a rank that holds all of the residual is exact; -1 is the default */
static void fedex_ends(void **state)
{
    bed b, avg;

    (void)state;
    open_rule(&b, "fedex_lora", "3", "3", BED_SET("fedex_lora.residual_rank=0"));
    open_rule(&avg, "fedavg", "3", "3", BED_SET("run.name=x"));
    bed_begin(&b, 1, NULL);
    bed_begin(&avg, 1, NULL);
    bed_end(&b);
    bed_end(&avg);
    assert_true(bed_hash(&b) == bed_hash(&avg));
    assert_memory_equal(b.rt->base.share.x, b.w0, fl_model_bytes(&b.rt->base.model));
    bed_close(&b);
    bed_close(&avg);
    for (int k = 0; k < 3; k++) {
        /* (K - 1) r = 10; the third: 15, more than v, which is 12 x 24, can have */
        static const char *const rank[] = {"fedex_lora.residual_rank=-1",
            "fedex_lora.residual_rank=10", "fedex_lora.residual_rank=13"};

        open_rule(&b, "fedex_lora", "5", k < 2 ? "3" : "4", BED_SET(rank[k]));
        bed_begin(&b, 1, NULL);
        keep_first(&b, k < 2 ? 5 : 4); /* rank of the residual 12 */
        bed_end(&b);
        bed_check_exact(&b);
        bed_close(&b);
    }
}

/* ---- traffic: all four clients in every round ---- */
enum { K = 4, ROUNDS = 3, R = 3 };

static void traffic(void **state)
{
    const char *const sets[] = {"cohort.size=4", "adapter.r=3", NULL};
    double both = 4 * R * sum_mn, b_only = 4 * R * sum_m;
    double up[] = {K * both, K * both, K * both}, down[] = {K * 8, K * both, K * both};

    (void)state;
    bed_traffic("rb_lora", sets, ROUNDS, up, down); /* A and B, up and down */
    bed_traffic("raflora", sets, ROUNDS, up, down);
    bed_traffic("hlora", sets, ROUNDS, up, down);
    /* B up, both down from the first refactorisation on; between two of them only B */
    bed_traffic("fedsvd", BED_SET("cohort.size=4", "adapter.r=3", "fedsvd.period=2"), 4,
        (double[]){K * b_only, K * b_only, K * b_only, K * b_only},
        (double[]){K * 8, K * b_only, K * both, K * b_only});
    /* q (m + n) and q down: at threshold 1 the stack of 12 pairs is not compressed */
    double stack = 4 * 12 * sum_mn + 2 * ADAPTED;

    bed_traffic("florist", BED_SET("cohort.size=4", "adapter.r=3", "florist.threshold=1"), ROUNDS,
        (double[]){K * both, K * both, K * both}, (double[]){K * 8, K * stack, K * stack});
    double cut = 4 * 2 * sum_mn; /* and residual_rank (m + n) of the residual */

    bed_traffic("fedex_lora", BED_SET("cohort.size=4", "adapter.r=3", "fedex_lora.residual_rank=2"),
        ROUNDS, (double[]){K * both, K * both, K * both},
        (double[]){K * 8, K * (both + cut), K * (both + cut)});
}

/* ranks from the clients' samples: everybody's cut costs its own rank */
static void hlora_ranks(void **state)
{
    const char *const sets[] = {"cohort.size=4", "adapter.r=6", "hlora.ranks=samples",
        "hlora.least=2", "partition.kind=dirichlet", "partition.alpha=0.5", NULL};
    double sum = 0, most = 0;
    int lowest = 6;
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=hlora", sets[0], sets[1], sets[4], sets[5]));
    for (int i = 0; i < K; i++) {
        most = fmax(most, (double)fl_partition_count(&b.rt->part, i, FL_TRAIN));
    }
    for (int i = 0; i < K; i++) {
        int r = (int)rint(6 * (double)fl_partition_count(&b.rt->part, i, FL_TRAIN) / most);

        r = FL_MAX(r, 2);
        lowest = FL_MIN(lowest, r);
        sum += 4 * r * sum_mn;
    }
    assert_true(lowest < 6);
    bed_close(&b);
    bed_traffic("hlora", sets, ROUNDS, (double[]){sum, sum, sum}, (double[]){K * 8, sum, sum});
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(fedsvd_refactors), T(fedsvd_completes),
        T(fedsvd_is_ffa_under_sgd), T(fedsvd_period), T(florist_exact), T(florist_written),
        T(florist_threshold), T(florist_start), T(balanced_target), T(balanced_equal_ranks),
        T(rank_collapse), T(raflora_order), T(hlora_is_flexlora), T(hlora_literal),
        T(fedex_truncated), T(fedex_ends), T(traffic), T(hlora_ranks)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
