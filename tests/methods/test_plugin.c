/* test_plugin.c - what fed.h promises to methods, each verb against plain loops: picks, sums by
 * norm, small numbers and small parts of single clients, spaces of every kind, sites in waves, the
 * step hook. Little methods are put together here and run by the real rounds. */
#include "method_run.h"

static uint64_t draw(int what, uint64_t i)
{
    return (uint64_t)(fl_rng_uniform(5, FL_RNG_TEST, what, 0, i) * 0x1p32);
}

/* a method with these hooks in place of FedAvg's */
static void use(bed *b, fl_method *mine, unsigned needs)
{
    mine->name = "fedavg";
    mine->needs = needs;
    b->rt->method = mine;
}

static void one_round(bed *b, int t)
{
    fl_metrics_row(&b->rt->metrics);
    bed_ok(round_run(b->rt, t));
}

/* ---- picks ---- */
static bool naive_picked(const fl_space *sp, fl_pick pick, int slot, size_t i)
{
    const fl_slot *s = &sp->slot[slot];
    int pair = 0;

    for (int j = 0; sp->nsites > 0 && j < s->site; j++) {
        pair += sp->r[j];
    }
    pair += (int)(s->factor == FL_A ? i / (size_t)s->cols : i % (size_t)s->cols);
    return (pick.factors == 0 || (pick.factors >> s->factor & 1) != 0) &&
           (pick.elems == NULL || fl_bit(pick.elems, s->at + i)) &&
           (pick.pairs == NULL || sp->nsites == 0 || fl_bit(pick.pairs, (size_t)pair));
}

static void check_pick(fl_run *run, const fl_space *sp, fl_pick pick)
{
    double told = 0, could = 0;

    for (int slot = 0; slot < sp->nslots; slot++) {
        const fl_slot *s = &sp->slot[slot];
        size_t n = (size_t)s->rows * (size_t)s->cols, count = 0, end = s->at, in_runs = 0;
        int nruns = pick_runs(sp, pick, slot, NULL);
        fl_range *runs = fl_scratch(run, (size_t)nruns, sizeof *runs);
        bool *covered = fl_scratch(run, n, sizeof *covered);

        assert_int_equal(pick_runs(sp, pick, slot, runs), nruns);
        for (int k = 0; k < nruns; k++) {
            assert_true(runs[k].n > 0 && runs[k].at >= end + (k > 0)); /* maximal and ascending */
            end = runs[k].at + runs[k].n;
            assert_true(end <= s->at + n);
            for (size_t i = 0; i < runs[k].n; i++) {
                covered[runs[k].at - s->at + i] = true;
            }
            in_runs += runs[k].n;
        }
        for (size_t i = 0; i < n; i++) {
            bool want = naive_picked(sp, pick, slot, i);

            count += want;
            assert_true(fl_picked(sp, pick, slot, i) == want && covered[i] == want);
        }
        assert_int_equal(count, in_runs);
        assert_int_equal(count, pick_count(sp, pick, slot));
        if (pick.elems != NULL && pick_factor(pick, s->factor)) {
            told += (double)count;
            could += (double)n;
        }
    }
    if (pick.elems == NULL && pick.pairs != NULL) {
        for (int j = 0; j < sp->nsites; j++) {
            could += sp->r[j];
        }
        for (size_t i = 0; i < (size_t)could; i++) {
            told += fl_bit(pick.pairs, i);
        }
    }
    double want = pick.factors == FL_NONE ? 0 : FL_MIN(4 * told, ceil(could / 8));

    assert_true(pick_bytes(sp, pick) == want);
}

static void picks(void **state)
{
    static const unsigned factors[] = {
        0, FL_BIT(FL_A), FL_BIT(FL_B), FL_LORA, FL_NONE, FL_BIT(FL_PLAIN), FL_BIT(FL_DENSE)};
    static const int rows[] = {3, 1, 7}, cols[] = {5, 1, 70};
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=flexlora"));
    fl_run *run = &b.rt->run;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);

    for (int j = 0; j < run->nsites; j++) {
        r[j] = j % 4;
    }
    const fl_space *spaces[] = {run->space, fl_space_at(run, run->space, r, 0),
        fl_space_stack(run, r), fl_space_plain(run, 3, rows, cols),
        fl_space_base(run, fl_space_at(run, run->space, r, 0))};

    for (size_t s = 0; s < FL_COUNT(spaces); s++) {
        const fl_space *sp = spaces[s];
        size_t npairs = sp->nsites > 0 ? (size_t)fl_pair_first(sp, sp->nsites) : 0;

        for (int dense = 0; dense < 3; dense++) { /* few, half, all but a few */
            static const uint64_t share[] = {50, 500, 950};
            uint64_t *pairs = fl_bits(run, npairs), *elems = fl_bits(run, sp->n);

            for (size_t i = 0; i < npairs; i++) {
                if (draw(1, i) % 1000 < share[dense]) {
                    fl_bit_set(pairs, i);
                }
            }
            for (size_t i = 0; i < sp->n; i++) {
                if (draw(2, i) % 1000 < share[dense]) {
                    fl_bit_set(elems, i);
                }
            }
            for (size_t f = 0; f < FL_COUNT(factors); f++) {
                check_pick(run, sp, (fl_pick){factors[f], NULL, NULL});
                check_pick(run, sp, (fl_pick){factors[f], NULL, elems});
                if (sp->nsites > 0) {
                    check_pick(run, sp, (fl_pick){factors[f], pairs, NULL});
                    check_pick(run, sp, (fl_pick){factors[f], pairs, elems});
                }
            }
        }
    }
    bed_close(&b);
}

/* ---- sums by norm ---- unequal ranks, pairs that some clients hold and some do not */
static struct {
    fl_norm norm;
    bool elems;
} mix_how;

static bool client_holds(int id, int site, int pair, bool elems, size_t e)
{
    if (elems) {
        return draw(200 + id, 1000 * (uint64_t)site + e) % 4 == 0;
    }
    return pair != 1 && draw(100 + id, 64 * (uint64_t)site + (uint64_t)pair) % 3 > 0;
}

static double client_value(int id, int site, int f, int pair, int i)
{
    return bed_normal(id, 1 + f, (size_t)(site * 100000 + pair * 1000 + i));
}

static fl_err mix_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const fl_space *sp = fl_space_at(run, run->space, NULL, c->r);
    fl_adapter *ad = fl_scratch_adapter(run, sp);
    uint64_t *pairs = fl_bits(run, (size_t)fl_pair_first(sp, sp->nsites));
    uint64_t *elems = fl_bits(run, sp->n);

    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];

        for (int e = 0; e < s->rows * s->cols; e++) {
            int row = e / s->cols, col = e % s->cols, pair = s->factor == FL_A ? row : col;
            int other = s->factor == FL_A ? col : row;

            ad->v[s->at + (size_t)e] =
                (fl_real)client_value(c->id, s->site, (int)s->factor, pair, other);
            if (client_holds(c->id, s->site, pair, false, 0)) {
                fl_bit_set(pairs, (size_t)(fl_pair_first(sp, s->site) + pair));
            }
            if (client_holds(c->id, s->site, pair, true, (size_t)(other + 100 * pair))) {
                fl_bit_set(elems, s->at + (size_t)e);
            }
        }
    }
    fl_pick pick = {.pairs = mix_how.elems ? NULL : pairs, .elems = mix_how.elems ? elems : NULL};

    fl_send(up, (fl_part){.ad = ad, .ref = c->got[0], .pick = pick});
    return FL_OK;
}

static fl_err mix_aggregate(fl_run *run, fl_pile *in)
{
    return fl_mix(run, in, &(fl_mixing){.norm = mix_how.norm}, &run->global);
}

static double naive_mix(const bed *b, const fl_adapter *old, const fl_slot *s, int e)
{
    int row = e / s->cols, col = e % s->cols, pair = s->factor == FL_A ? row : col;
    int other = s->factor == FL_A ? col : row;
    double sum = 0, have = 0, was = old->v[s->at + (size_t)e];

    for (int k = 0; k < b->n; k++) {
        bool has = pair < b->rt->client_r[k];
        bool sent =
            has && client_holds(k, s->site, pair, mix_how.elems, (size_t)(other + 100 * pair));
        double x =
            sent ? (double)(fl_real)client_value(k, s->site, (int)s->factor, pair, other) : was;

        if (mix_how.norm == FL_SUM) {
            sum +=
                has ? b->p[k] * x : 0; /* what was not sent is the ref, which the server has too */
        } else if (sent) {
            sum += b->p[k] * x;
            have += b->p[k];
        }
    }
    if (mix_how.norm == FL_HOLDERS) {
        return have > 0 ? sum / have : was;
    }
    return mix_how.norm == FL_SUM ? sum : sum + (1 - have) * was;
}

static void mix_norms(void **state)
{
    fl_method mine = {.upload = mix_upload, .aggregate = mix_aggregate};

    (void)state;
    for (int w = 0; w < 6; w++) {
        bed b;
        int kept = 0;

        mix_how.norm = (fl_norm)(w % 3);
        mix_how.elems = w >= 3;
        bed_open(&b, test_ctx,
            BED_SET("method.name=flexlora", "clients.r=[2, 4]", "clients.r_share=[0.5, 0.5]",
                "partition.kind=dirichlet", "partition.alpha=0.6", "cohort.size=4"));
        use(&b, &mine, FL_HETERO);
        bed_weights(&b);
        fl_adapter *old = fl_adapter_create(b.rt->run.space);

        for (size_t i = 0; i < old->space->n; i++) {
            old->v[i] = b.rt->run.global->v[i] = (fl_real)(5 + bed_normal(9, 9, i));
        }
        one_round(&b, 1);
        for (int i = 0; i < old->space->nslots; i++) {
            const fl_slot *s = &old->space->slot[i];

            for (int e = 0; e < s->rows * s->cols; e++) {
                double want = naive_mix(&b, old, s, e), was = old->v[s->at + (size_t)e],
                       is = b.rt->run.global->v[s->at + (size_t)e];

                assert_below(fabs(is - want), 1e-6);
                if (want == was) { /* nobody held it: the same bits */
                    assert_true(is == was);
                    kept++;
                }
            }
        }
        assert_true(mix_how.norm == FL_SUM || kept > 0);
        fl_adapter_destroy(&old);
        bed_close(&b);
    }
}

/* ---- numbers, small parts ---- */
enum { NROW = 4 };
static double got_numbers[BED_CLIENTS * 3][NROW], got_values[BED_CLIENTS * 3][NROW];
static int got_client[BED_CLIENTS * 3], got_label[BED_CLIENTS * 3], got_n;
static double plain_sum[8];

static const fl_space *small_space(fl_run *run)
{
    static const int rows[] = {2, 1}, cols[] = {1, 6};

    return fl_space_plain(run, 2, rows, cols);
}

static fl_err say_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const double x[] = {c->id + 0.1, 7};

    fl_put(down, "hello", x, 2, 32);
    fl_send(down, (fl_part){.ad = run->global, .of = run->global});
    return FL_OK;
}

static fl_err say_train(fl_run *run, fl_client *c)
{
    size_t n;
    const double *x = fl_get(c->down, "hello", &n);

    (void)run;
    assert_non_null(x);
    assert_int_equal(n, 2);
    assert_true(x[0] == (double)(float)(c->id + 0.1) && x[1] == 7); /* as a float holds it */
    assert_null(fl_get(c->down, "hell", NULL));
    return FL_OK;
}

static fl_err say_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const double x[] = {-0.0, 100 + c->id + 0x1p-40, -3, 8, 9};
    fl_adapter *small = fl_scratch_adapter(run, small_space(run));

    for (size_t i = 0; i < small->space->n; i++) {
        small->v[i] = (fl_real)(10 * c->id + (int)i);
    }
    fl_send(up, (fl_part){.ad = c->ad[0]});
    fl_send(up, (fl_part){.ad = small, .label = 3});
    if (c->id != 2) {
        fl_put(up, "mine", x, c->id == 1 ? 5 : 2, 64);
    }
    fl_put(up, "bits", x + 2, 3, 1); /* 3 bits: one byte */
    return FL_OK;
}

static fl_err say_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *small = fl_scratch_adapter(run, small_space(run));

    got_n = in->n;
    for (int i = 0; i < in->n; i++) {
        got_client[i] = in->item[i].client;
        got_label[i] = in->item[i].label;
    }
    FL_TRY(fl_numbers(run, in, "mine", NROW, got_numbers[0]));
    FL_TRY(fl_values(run, in, 3, NROW, got_values[0]));
    FL_TRY(fl_mix(run, in, &(fl_mixing){.label = 3, .even = true}, &small));
    for (size_t i = 0; i < 8; i++) {
        plain_sum[i] = small->v[i];
    }
    return FL_OK;
}

static void numbers_and_values(void **state)
{
    fl_method mine = {.download = say_download,
        .train = say_train,
        .upload = say_upload,
        .aggregate = say_aggregate};
    bed b;
    double up, down;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=fedavg", "partition.clients=5", "cohort.size=5", "clients.lost=0.25"));
    use(&b, &mine, FL_EACH | FL_NUMBERS);
    one_round(&b, 1);
    int narrived = got_n / 2;
    double mean = 0;

    assert_true(got_n % 2 == 0 && narrived > 2 && narrived < 5); /* somebody was lost */
    for (int i = 0; i < got_n; i++) {
        const double *x = got_numbers[i], *v = got_values[i];
        int id = got_client[i];

        assert_int_equal(got_label[i], i % 2 == 0 ? 0 : 3);
        assert_true(i % 2 == 0 || id == got_client[i - 1]);
        assert_true(i < 2 || i % 2 != 0 || id > got_client[i - 1]);
        if (id == 2) {
            assert_true(isnan(x[0]) && isnan(x[3]));
        } else {
            assert_true(x[0] == 0 && !signbit(x[0]) && x[1] == 100 + id + 0x1p-40);
            assert_true(x[2] == (id == 1 ? -3 : 0) && x[3] == (id == 1 ? 8 : 0));
        }
        for (int j = 0; j < NROW; j++) {
            assert_true(i % 2 == 0 ? isnan(v[j]) : v[j] == 10 * id + j);
        }
        mean += i % 2 == 0 ? (double)id / narrived : 0;
    }
    for (int i = 0; i < 8; i++) {
        assert_below(fabs(plain_sum[i] - (10 * mean + i)), 1e-5);
    }
    ledger_round(b.rt, &up, &down);
    double want = 0;

    for (int i = 0; i < got_n; i += 2) {
        want += 4.0 * (double)b.rt->run.space->n + 4 * 8 + 1 +
                (got_client[i] == 2      ? 0
                    : got_client[i] == 1 ? 40
                                         : 16);
    }
    assert_true(up == want);
    assert_true(down == 5 * (8 + 8)); /* seed, two numbers; the adapter is the seed's */
    bed_close(&b);
}

/* ---- spaces by value, kept memory as bytes ---- */
static void check_words(fl_runtime *rt, const fl_space *sp, space_kind kind)
{
    int n = space_words(rt, sp, NULL);
    int32_t *w = fl_scratch(&rt->run, (size_t)n, sizeof *w);

    assert_int_equal(space_kind_of(rt, sp), kind);
    assert_int_equal(space_words(rt, sp, w), n);
    assert_ptr_equal(space_from(rt, n, w), sp);
    for (int cut = 0; cut < n; cut++) { /* a shorter list is another space or none, never a crash */
        assert_ptr_not_equal(space_from(rt, cut, w), sp);
    }
    for (int i = 0; i < n; i++) {
        int32_t was = w[i];

        if (kind == SPACE_SCALED && i > sp->nsites && sp->r[(i - 1 - sp->nsites) / 2] == 0) {
            continue; /* the scale of a site that is not there */
        }
        w[i] = -5;
        assert_ptr_not_equal(space_from(rt, n, w), sp);
        w[i] = was;
    }
}

static void spaces_by_value(void **state)
{
    static const int rows[] = {3, 2, 9}, cols[] = {5, 1, 4};
    bed b;

    (void)state;
    bed_open(&b, test_ctx, BED_SET("method.name=flexlora"));
    fl_run *run = &b.rt->run;
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r);
    double *scale = fl_scratch(run, (size_t)run->nsites, sizeof *scale);

    for (int j = 0; j < run->nsites; j++) {
        r[j] = j % 4;
        scale[j] = 0.1 + j / 3.0;
    }
    const fl_space *sp[] = {run->space, fl_space_at(run, run->space, r, 0), fl_space_stack(run, r),
        fl_space_scales(run, r, scale), fl_space_plain(run, 3, rows, cols),
        fl_space_base(run, run->space)};
    static const space_kind kind[] = {
        SPACE_DECK, SPACE_DECK, SPACE_STACK, SPACE_SCALED, SPACE_PLAIN, SPACE_DENSE};

    for (size_t i = 0; i < FL_COUNT(sp); i++) {
        check_words(b.rt, sp[i], kind[i]);
    }
    for (int j = 0; j < run->nsites; j++) { /* a scale keeps its bits */
        assert_true(r[j] == 0 || sp[3]->scale[j] == scale[j]);
    }
    /* a client's list of all of them, as bytes and back */
    fl_client c;
    fl_turn turn;
    fl_kept_list back = {0};
    fl_text blob = {0};

    bed_ok(turn_enrol(b.rt, 0, NULL, 0, &c, &turn));
    fl_keep(run, &c, "numbers", 4, 7, "seven numbers", NULL)[6] = M_PI;
    for (size_t i = 0; i < FL_COUNT(sp); i++) {
        fl_adapter *ad = fl_keep_adapter(run, &c, "all", (int)i, sp[i], NULL);

        for (size_t e = 0; e < ad->space->n; e++) {
            ad->v[e] = (fl_real)bed_normal((int)i, 3, e);
        }
    }
    kept_pack(&turn.kept, b.rt, &blob);
    bed_ok(kept_unpack(b.rt, blob.s, blob.n, &back));
    assert_int_equal(back.n, turn.kept.n);
    for (int i = 0; i < back.n; i++) {
        const fl_kept *x = &turn.kept.k[i], *y = &back.k[i];

        assert_string_equal(x->name, y->name);
        assert_int_equal(x->index, y->index);
        if (x->x != NULL) {
            assert_int_equal(y->n, 7);
            assert_memory_equal(x->x, y->x, 7 * sizeof *x->x);
        } else {
            assert_ptr_equal(x->ad->space, y->ad->space);
            assert_memory_equal(x->ad->v, y->ad->v, x->ad->space->n * sizeof(fl_real));
        }
    }
    kept_free(&back);
    for (size_t cut = 1; cut < blob.n; cut += 1 + blob.n / 97) { /* part of it is refused */
        assert_int_equal(kept_unpack(b.rt, blob.s, cut, &back), FL_EFILE);
        kept_free(&back);
        fl_error_clear();
    }
    fl_text_free(&blob);
    turn_end(b.rt, &turn);
    bed_close(&b);
}

/* ---- sites in waves: the same bits as all at once ---- */
static void waves(void **state)
{
    static const char *const method[] = {
        "method.name=flexlora", "method.name=flora", "method.name=fedex_lora"};
    static const char *const solver[] = {"svd.solver=auto", "svd.solver=scalapack"};

    (void)state;
    for (size_t m = 0; m < 2 * FL_COUNT(method); m++) {
        uint64_t global[2], base[2];
        double discordance[2];

        for (int small = 0; small < 2; small++) {
            bed b;

            bed_open(&b, test_ctx,
                BED_SET(method[m / 2], solver[m % 2], "cohort.size=4", "svd.block=4"));
            for (int t = 1; t <= 2; t++) {
                bed_begin(&b, t, NULL);
                b.rt->most_at_once = small ? 1 : b.rt->most_at_once;
                bed_end(&b);
            }
            assert_true(pile_waves(b.rt) == 1 || small);
            assert_true(pile_waves(b.rt) > 1 || !small);
            global[small] = bed_hash(&b);
            base[small] = fl_base_hash(test_ctx, &b.rt->base);
            discordance[small] = bed_discordance(&b);
            bed_close(&b);
        }
        assert_true(global[0] == global[1] && base[0] == base[1]);
        assert_true(discordance[0] == discordance[1]);
    }
}

/* ---- the step hook: B = c B_0 with a trained c per site, B_0 fixed ---- */
enum { EFFECTIVE, CORE };
static struct {
    double add;              /* to every c at the start */
    bool watch_only;         /* nothing is mapped: c stays */
    double loss, slope;      /* of the first step: the batch's loss, sum over sites of dL/dc */
    double watched, trained; /* flat norms of the gradient by the effective factors */
    int calls[3];
    fl_adapter *fixed; /* round arena of the runtime */
} hook;

static const fl_space *core_space(fl_run *run)
{
    int rows[BED_SITES], cols[BED_SITES];

    for (int j = 0; j < run->nsites; j++) {
        rows[j] = cols[j] = 1;
    }
    return fl_space_plain(run, run->nsites, rows, cols);
}

static void effective(fl_run *run, const fl_adapter *core, fl_adapter *ad)
{
    fl_fit(ad, hook.fixed);
    for (int j = 0; j < run->nsites; j++) {
        fl_mat b = fl_at(ad, j, FL_B);

        for (int i = 0; i < b.rows * b.cols; i++) {
            b.x[i] *= fl_at(core, j, FL_PLAIN).x[0];
        }
    }
}

static fl_err hook_train(fl_run *run, fl_client *c)
{
    fl_adapter *core = fl_scratch_adapter(run, core_space(run));
    fl_adapter *ad = fl_scratch_adapter(run, run->space);
    fl_job job = fl_job_of(run, c);

    for (size_t j = 0; j < core->space->n; j++) {
        core->v[j] = (fl_real)(1 + hook.add);
    }
    job.stack = (fl_stack){.n = 2, .ad = {ad, core}, .coef = {1, 1}};
    job.train[EFFECTIVE].factors = FL_NONE;
    job.watch = FL_BIT(EFFECTIVE);
    FL_TRY(fl_train(run, c, &job));
    for (size_t j = 0; j < core->space->n; j++) {
        bool used = run->space->r[j] > 0;

        assert_true((core->v[j] != (fl_real)(1 + hook.add)) == (used && !hook.watch_only));
    }
    return FL_OK;
}

static fl_err hook_step(fl_run *run, fl_client *c, fl_step *s)
{
    (void)c;
    hook.calls[s->when]++;
    if (s->job->stack.n == 1) { /* the same factors, trained themselves */
        if (s->when == FL_BEFORE && s->i == 0) {
            fl_fit(s->job->stack.ad[0], hook.fixed);
        }
        if (s->when == FL_GRAD && s->i == 0) {
            hook.trained = fl_adapter_norm(s->grad[0]);
        }
        return FL_OK;
    }
    fl_adapter *ad = s->job->stack.ad[EFFECTIVE], *core = s->job->stack.ad[CORE];

    if (s->when == FL_BEFORE) {
        assert_null(s->grad[EFFECTIVE]);
        effective(run, core, ad);
    }
    if (s->when == FL_GRAD) {
        double slope = 0;

        for (int j = 0; j < run->nsites; j++) {
            fl_mat g = fl_at(s->grad[EFFECTIVE], j, FL_B), b = fl_at(hook.fixed, j, FL_B);
            double d = 0;

            assert_true(fl_at(s->grad[CORE], j, FL_PLAIN).x[0] == 0); /* zero on entry */
            for (int i = 0; i < b.rows * b.cols; i++) {
                d += (double)g.x[i] * b.x[i];
            }
            fl_at(s->grad[CORE], j, FL_PLAIN).x[0] = (fl_real)(hook.watch_only ? 0 : d);
            slope += d;
        }
        if (s->i == 0) {
            hook.loss = *s->loss;
            hook.slope = slope;
            hook.watched = fl_adapter_norm(s->grad[EFFECTIVE]);
        }
    }
    return FL_OK;
}

static void hook_run(bed *b, fl_method *mine, double add, bool watch_only)
{
    hook.add = add;
    hook.watch_only = watch_only;
    memset(hook.calls, 0, sizeof hook.calls);
    use(b, mine, 0);
    one_round(b, 1);
}

static void step_hook(void **state)
{
    fl_method core = {.train = hook_train, .step = hook_step}, plain = {.step = hook_step};
    fl_ctx *self;
    bed b;
    double central[2], slope;

    (void)state;
    fl_max(test_ctx, 0);
    if (test_ctx->rank > 0) { /* one client, one rank: what happens in a turn knows no other */
        return;
    }
    fl_ctx_create(MPI_COMM_SELF, &self);
    self->quiet = true;
    bed_open(&b, self,
        BED_SET("method.name=fedavg", "cohort.size=1", "train.steps=3", "train.clip=0",
            "train.weight_decay=0"));
    hook.fixed = fl_adapter_create(b.rt->run.space);
    for (size_t i = 0; i < hook.fixed->space->n; i++) {
        hook.fixed->v[i] = (fl_real)(0.3 * bed_normal(4, 4, i));
    }
    for (int i = 0; i < 2; i++) { /* error h^2, and without it by Richardson */
        double h = i == 0 ? 0.01 : 0.005, up;

        hook_run(&b, &core, h, false);
        up = hook.loss;
        hook_run(&b, &core, -h, false);
        central[i] = (up - hook.loss) / (2 * h);
    }
    hook_run(&b, &core, 0, false);
    slope = hook.slope;
    assert_int_equal(hook.calls[FL_BEFORE], 3);
    assert_int_equal(hook.calls[FL_GRAD], 3);
    assert_int_equal(hook.calls[FL_AFTER], 3);
    assert_true(fabs(slope) > 1e-3);
    assert_below(fabs((4 * central[1] - central[0]) / 3 - slope), 1e-3 * fabs(slope));
    hook_run(&b, &core, 0, true); /* a gradient of zero moves nothing */
    hook_run(&b, &plain, 0, false);
    assert_true(hook.trained > 0 && hook.watched == hook.trained); /* watching costs no bit */
    fl_adapter_destroy(&hook.fixed);
    bed_close(&b);
    fl_ctx_destroy(&self);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {
        T(picks), T(mix_norms), T(numbers_and_values), T(spaces_by_value), T(waves), T(step_hook)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
