/* test_loru.c - FedLoRU and its variants: what a merge does to the function, what reduces to what,
 * the private pair of pfedloru, the nested corrections of mfedloru. */
#include "rebase_test.h"

static double x[BED_SIDE * BED_SIDE], y[BED_SIDE * BED_SIDE];

static void open_method(bed *b, const char *name, const char *key, const char *other)
{
    char method[64];

    snprintf(method, sizeof method, "method.name=%s", name);
    bed_open(b, test_ctx,
        BED_SET(method, "partition.kind=dirichlet", "partition.alpha=0.7",
            key != NULL ? key : "run.name=test", other != NULL ? other : "run.name=test"));
}

/* base and server's pair, bit by bit */
static void assert_same(const bed *a, const bed *b)
{
    assert_memory_equal(
        a->rt->base.share.x, b->rt->base.share.x, fl_model_bytes(&a->rt->base.model));
    assert_memory_equal(
        a->rt->run.global->v, b->rt->run.global->v, a->rt->run.space->n * sizeof(fl_real));
}

/* four rounds of one method give the bits of four rounds of another */
static void assert_reduces(
    const char *name, const char *key, const char *other_key, const char *to, const char *to_key)
{
    bed a, b;

    open_method(&a, name, key, other_key);
    bed_run(&a, 4);
    open_method(&b, to, to_key, NULL);
    uint64_t start = bed_hash(&b);

    bed_run(&b, 4);
    assert_true(bed_hash(&b) != start);
    assert_same(&a, &b);
    bed_close(&a);
    bed_close(&b);
}

/* ---- fedloru ---- */
static void fedloru_without_merge_is_fedavg(void **state)
{
    (void)state;
    assert_reduces("fedloru", "fedloru.tau=5", NULL, "fedavg", NULL);
    assert_reduces("mfedloru", "mfedloru.tau=5", NULL, "fedavg", NULL); /* nobody is small */
}

/* a merge every round is Re-Initial on the factors: the same draws, so the same bits */
static void fedloru_every_round_is_re_initial(void **state)
{
    (void)state;
    assert_reduces(
        "fedloru", "fedloru.tau=1", NULL, "re_initial", "re_initial.aggregation=factors");
}

/* merge_and_reinit: W + s B A is the means' before and after; then B = 0 and A is another draw */
static void fedloru_reinit_keeps_the_function(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "fedloru", "fedloru.tau=2", NULL);
    fl_adapter *first, *draw;

    first = fl_adapter_create(b.rt->run.space);
    fl_fit(first, b.rt->run.global);
    draw = fl_adapter_create(b.rt->run.space);
    for (int t = 1; t <= 4; t++) {
        bed_begin(&b, t, NULL);
        bed_end(&b);
        assert_installs_means(&b, 1);
        assert_int_equal(b.rt->nmerges, t % 2 == 0);
        bed_ok(fl_fill(&b.rt->run, draw, -1, t));
        bool is_draw = memcmp(draw->v, b.rt->run.global->v, draw->space->n * sizeof(fl_real)) == 0;

        assert_true(is_draw == (t % 2 == 0));
        assert_true(memcmp(draw->v, first->v, draw->space->n * sizeof(fl_real)) != 0);
    }
    fl_adapter_destroy(&first);
    fl_adapter_destroy(&draw);
    bed_close(&b);
}

/* merge_keep: the pair counts twice */
static void fedloru_keep_doubles(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "fedloru", "fedloru.tau=2", "fedloru.reset=merge_keep");
    for (int t = 1; t <= 4; t++) {
        bed_begin(&b, t, NULL);
        bed_end(&b);
        assert_installs_means(&b, t % 2 == 0 ? 2 : 1);
    }
    bed_close(&b);
}

/* r floor(T / tau) in the base, r more in the pair */
static void fedloru_rank(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "fedloru", "fedloru.tau=2", "adapter.r=2");
    fl_real *before = base_copy(&b);
    int site = fl_model_site_named(&b.rt->base.model, 0, "q");

    for (int t = 1; t <= 5; t++) {
        bed_begin(&b, t, NULL);
        bed_end(&b);
        if (t > 1) {
            base_change(&b, before, site, x);
            assert_int_equal(numerical_rank(24, 24, x, 1e-5), 2 * (t / 2));
        }
    }
    bed_add(bed_scale(&b, b.rt->run.global, site), fl_at(b.rt->run.global, site, FL_B), NULL,
        fl_at(b.rt->run.global, site, FL_A), NULL, x);
    assert_int_equal(numerical_rank(24, 24, x, 1e-5), 6);
    fl_free(before);
    bed_close(&b);
}

/* who was sent the pairs of the merges has the server's base */
static void fedloru_absentee(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "fedloru", "fedloru.tau=2", "fedloru.reset=merge_keep");
    fl_real *own = base_copy(&b);

    for (int t = 1; t <= 5; t++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
        if (t % 2 == 0) { /* keep: the merged pair is the server's pair */
            base_replay(&b, own, b.rt->run.global, 1);
        }
    }
    assert_memory_equal(own, b.rt->base.share.x, fl_model_bytes(&b.rt->base.model));
    assert_true(memcmp(own, b.w0, fl_model_bytes(&b.rt->base.model)) != 0);
    fl_free(own);
    bed_close(&b);
}

/* merges in even rounds; a pair that a merge left is a seed (reinit) or known (keep) */
static double whole_pair(int r)
{
    return 4 * r * (bed_sum_m + bed_sum_n);
}

static double parts_reinit(int t)
{
    return t == 1 ? 0 : t % 2 == 1 ? 8 : whole_pair(3);
}

static double parts_keep(int t)
{
    return t % 2 == 1 ? 0 : whole_pair(3);
}

static double revision_even(int t)
{
    return t % 2 == 0 ? whole_pair(3) : 0;
}

static void fedloru_traffic(void **state)
{
    double up[6], down[6];
    const char *const *reinit =
        BED_SET("method.name=fedloru", "partition.clients=7", "train.steps=1", "fedloru.tau=2");
    const char *const *keep = BED_SET("method.name=fedloru", "partition.clients=7", "train.steps=1",
        "fedloru.tau=2", "fedloru.reset=merge_keep");

    (void)state;
    book_run(&(book){whole_pair, parts_reinit, revision_even}, reinit, 6, up, down);
    bed_traffic("fedloru", reinit + 1, 6, up, down);
    bed_remove(NULL);
    assert_int_equal(bed_folder(NULL), 0);
    book_run(&(book){whole_pair, parts_keep, revision_even}, keep, 6, up, down);
    bed_traffic("fedloru", keep + 1, 6, up, down);
}

/* ---- pfedloru ---- */
static void pfedloru_untrained_is_fedloru(void **state)
{
    (void)state;
    assert_reduces(
        "pfedloru", "pfedloru.tau=3", "pfedloru.steps_personal=0", "fedloru", "fedloru.tau=3");
}

/* a client's private pair as it is stored; false: the client is stored on another rank */
static bool stored_pair(const bed *b, int client, fl_kept_list *kept, const fl_adapter **own)
{
    int id, here = fl_store_mine(b->rt->store, -1, NULL, NULL, NULL);

    *kept = (fl_kept_list){0};
    for (int i = 0; i < here; i++) {
        const void *blob;
        size_t bytes;

        fl_store_mine(b->rt->store, i, &id, &blob, &bytes);
        if (id == client && bytes > 0) {
            bed_ok(kept_unpack(b->rt, blob, bytes, kept));
            *own = kept_find(kept, "own", 0)->ad;
            return true;
        }
    }
    return false;
}

/* one joint step of SGD from B = 0, L = 0: A and U do not move, and with the gradient G at W (of a
 * run that trains W itself) B = -lr s G A', as without a private pair, and L = -lr s_p G U' */
static void pfedloru_joint_step(void **state)
{
    static const char *const sgd[] = {"train.optimizer=sgd", "train.momentum=0", "train.steps=1",
        "train.clip=0", "train.weight_decay=0", "adapter.targets=[q]", "partition.clients=1",
        "cohort.size=1", "train.lr=0.5"};
    static double g[24 * 24];
    fl_kept_list kept;
    const fl_adapter *own;
    bed b, full;

    (void)state;
    bed_open(&full, test_ctx,
        BED_SET("method.name=fedavg", sgd[0], sgd[1], sgd[2], sgd[3], sgd[4], sgd[6], sgd[7],
            sgd[8], "train.what=full"));
    bed_open(&b, test_ctx,
        BED_SET("method.name=pfedloru", "pfedloru.phases=joint", "pfedloru.r_personal=5",
            "pfedloru.scale=1.5", sgd[0], sgd[1], sgd[2], sgd[3], sgd[4], sgd[5], sgd[6], sgd[7],
            sgd[8]));
    fl_adapter *draw = fl_adapter_create(b.rt->run.space);

    bed_run(&full, 1);
    bed_run(&b, 1);
    int site = fl_model_site_named(&b.rt->base.model, 1, "q"), tensor, row0;

    fl_model_site_tensor(&b.rt->base.model, site, &tensor, &row0);
    for (int e = 0; e < 24 * 24; e++) { /* -lr G */
        g[e] = fl_at(full.rt->run.global, tensor, FL_DENSE).x[row0 * 24 + e];
    }
    if (stored_pair(&b, 0, &kept, &own)) {
        fl_mat l = fl_at(own, site, FL_B), u = fl_at(own, site, FL_A);
        fl_adapter *start = fl_adapter_create(own->space);

        assert_true(l.rows == 24 && l.cols == 5);
        bed_ok(fl_fill(&b.rt->run, start, 0, 0));
        assert_memory_equal(u.x, fl_at(start, site, FL_A).x, 5 * 24 * sizeof(fl_real));
        for (int e = 0; e < 24 * 5; e++) {
            double want = 0;

            for (int k = 0; k < 24; k++) {
                want += 1.5 * g[e / 5 * 24 + k] * u.x[e % 5 * 24 + k];
            }
            assert_below(fabs(want - l.x[e]), 1e-6);
            assert_true(l.x[e] != 0);
        }
        fl_adapter_destroy(&start);
        kept_free(&kept);
    }
    bed_ok(fl_fill(&b.rt->run, draw, -1, 0));
    fl_mat f = fl_at(b.rt->run.global, site, FL_B), a = fl_at(b.rt->run.global, site, FL_A);

    assert_memory_equal(a.x, fl_at(draw, site, FL_A).x, 3 * 24 * sizeof(fl_real));
    for (int e = 0; e < 24 * 3; e++) {
        double want = 0;

        for (int k = 0; k < 24; k++) {
            want += 2 * g[e / 3 * 24 + k] * a.x[e % 3 * 24 + k];
        }
        assert_below(fabs(want - f.x[e]), 1e-6);
    }
    fl_adapter_destroy(&draw);
    bed_close(&b);
    bed_close(&full);
}

/* client 1's turn with so many steps in the shared phase; hashes of both pairs before and after */
static void turn_of(bed *b, int steps, uint64_t before[2], uint64_t after[2])
{
    fl_client c = {.id = 1, .r = 3};
    fl_turn turn;

    bed_begin(b, 1, NULL);
    b->rt->run.job.steps = steps;
    bed_ok(turn_enrol(b->rt, 1, NULL, 0, &c, &turn));
    c.ad[0] = fl_scratch_copy(&b->rt->run, b->rt->run.global);
    for (int i = 0; i < 2; i++) {
        before[i] = fl_adapter_hash(c.ad[i], 0);
    }
    bed_ok(b->rt->method->train(&b->rt->run, &c));
    for (int i = 0; i < 2; i++) {
        after[i] = fl_adapter_hash(c.ad[i], 0);
    }
    turn_end(b->rt, &turn);
}

/* alternate: the first phase moves the private pair only, the second the shared pair only */
static void pfedloru_alternates(void **state)
{
    uint64_t before[2], first[2], both[2];
    bed b;

    (void)state;
    open_method(&b, "pfedloru", "pfedloru.steps_personal=3", NULL);
    turn_of(&b, 0, before, first);
    turn_of(&b, 2, before, both);
    assert_true(first[0] == before[0] && first[1] != before[1]);
    assert_true(both[0] != before[0] && both[1] == first[1]);
    bed_close(&b);
    open_method(&b, "pfedloru", "pfedloru.phases=joint", NULL);
    turn_of(&b, 1, before, both);
    assert_true(both[0] != before[0] && both[1] != before[1]);
    bed_close(&b);
}

/* every client's own differs, and merging (here every round) leaves it alone */
static void pfedloru_keeps_pairs(void **state)
{
    fl_kept_list kept;
    const fl_adapter *own;
    double size[2][4] = {{0}};
    bed b;

    (void)state;
    open_method(&b, "pfedloru", "pfedloru.tau=1", "cohort.size=4");
    bed_run(&b, 1);
    for (int pass = 0; pass < 2; pass++) {
        for (int id = 0; id < 4; id++) {
            if (stored_pair(&b, id, &kept, &own)) {
                size[pass][id] = fl_adapter_norm(own);
                kept_free(&kept);
            }
            size[pass][id] = fl_max(b.ctx, size[pass][id]);
            assert_true(size[pass][id] > 0);
            assert_true(pass == 0 || size[1][id] == size[0][id]);
            assert_true(id == 0 || size[pass][id] != size[pass][id - 1]);
        }
        bed_begin(&b, 2, NULL); /* a server's round by hand: merges, nobody trains */
        bed_end(&b);
        assert_int_equal(b.rt->nmerges, 1);
    }
    bed_close(&b);
}

/* what is evaluated: every client's two pairs, nothing of the server's */
static void pfedloru_view(void **state)
{
    fl_view v = {0};
    bed b;

    (void)state;
    open_method(&b, "pfedloru", NULL, NULL);
    bed_ok(b.rt->method->view(&b.rt->run, NULL, 0, &v));
    assert_null(v.name);
    fl_client c = {.id = 2, .r = 3};
    fl_turn turn;

    bed_ok(turn_enrol(b.rt, 2, NULL, 0, &c, &turn));
    bed_ok(b.rt->method->view(&b.rt->run, &c, 0, &v));
    assert_non_null(v.name);
    assert_true(v.data.client == 2 && v.stack.n == 2 && v.stack.ad[0] == b.rt->run.global &&
                v.stack.ad[1] == c.ad[1] && v.stack.coef[0] == 1 && v.stack.coef[1] == 1);
    turn_end(b.rt, &turn);
    bed_close(&b);
}

/* the private pair, of another rank, is in no message */
static void pfedloru_traffic(void **state)
{
    double up[6], down[6];
    const char *const *sets = BED_SET("method.name=pfedloru", "partition.clients=7",
        "train.steps=1", "pfedloru.tau=2", "pfedloru.r_personal=2");

    (void)state;
    book_run(&(book){whole_pair, parts_reinit, revision_even}, sets, 6, up, down);
    bed_traffic("pfedloru", sets + 1, 6, up, down);
}

/* ---- mfedloru ---- */
enum { PER_SITE = 4 }; /* P_B, Q_B, P_A, Q_A */

/* the shapes that the method's opening comment gives, for all sites of the bed */
static const fl_space *nested_space(bed *b, int ra, int rb)
{
    fl_run *run = &b->rt->run;
    int rows[PER_SITE * BED_SITES], cols[PER_SITE * BED_SITES], n = 0;

    for (int j = 0; j < run->nsites; j++) {
        int r = run->space->r[j];

        if (r > 0) {
            int shape[PER_SITE][2] = {
                {run->space->m[j], rb}, {rb, r}, {r, ra}, {ra, run->space->n_in[j]}};

            for (int i = 0; i < PER_SITE; i++, n++) {
                rows[n] = shape[i][0];
                cols[n] = shape[i][1];
            }
        }
    }
    return fl_space_plain(run, n, rows, cols);
}

/* to (rows x cols) += c P Q of slots at, at + 1 */
static void add_nested(const fl_adapter *plain, int at, double c, double *to)
{
    fl_mat p = fl_at(plain, at, FL_PLAIN), q = fl_at(plain, at + 1, FL_PLAIN);

    for (int i = 0; i < p.rows; i++) {
        for (int l = 0; l < p.cols; l++) {
            for (int e = 0; e < q.cols; e++) {
                to[i * q.cols + e] += c * p.x[i * p.cols + l] * q.x[l * q.cols + e];
            }
        }
    }
}

static fl_adapter *nested_random(bed *b, int id, const fl_space *sp)
{
    fl_adapter *plain = fl_scratch_adapter(&b->rt->run, sp);

    for (size_t i = 0; i < sp->n; i++) {
        plain->v[i] = (fl_real)(0.4 * bed_normal(id, 9, i));
    }
    return plain;
}

/* hands in PLAIN corrections of the clients below `small`, adapters client[] of the others */
static void send_nested(bed *b, int small, fl_adapter *const *plain)
{
    fl_runtime *rt = b->rt;

    bed_send(b);
    for (int i = rt->first[b->ctx->rank]; i < rt->first[b->ctx->rank + 1]; i++) {
        if (i < small) {
            rt->sent[i]->part[0] = (fl_part){.ad = plain[i], .label = 1 + i};
        }
    }
}

/* B = B_0 + sum of p_k a_b P_k Q_k over small clients and p_k (B_k - B_0) over large ones; A alike
 */
static void mfedloru_averages_products(void **state)
{
    static const double scale[2] = {0.5, 2};
    fl_adapter *plain[3];
    bed b;

    (void)state;
    open_method(&b, "mfedloru", "mfedloru.a_a=0.5", "mfedloru.a_b=2");
    bed_begin(&b, 1, NULL); /* something other than B = 0 to correct */
    bed_end(&b);
    fl_adapter *was = fl_adapter_create(b.rt->run.space);

    fl_fit(was, b.rt->run.global);
    bed_begin(&b, 2, NULL);
    plain[0] = nested_random(&b, 0, nested_space(&b, 1, 2));
    plain[1] = nested_random(&b, 1, nested_space(&b, 3, 1));
    send_nested(&b, 2, plain);
    bed_ok(round_aggregate(b.rt));
    assert_true(isnan(bed_discordance(&b))); /* the server saw one pair only */
    for (int j = 0, at = -1; j < b.rt->run.nsites; j++) {
        at += b.rt->run.space->r[j] > 0;
        for (int f = FL_A; f <= FL_B && b.rt->run.space->r[j] > 0; f++) {
            fl_mat now = fl_at(b.rt->run.global, j, (fl_factor)f);
            fl_mat old = fl_at(was, j, (fl_factor)f), large = fl_at(b.client[2], j, (fl_factor)f);

            for (int e = 0; e < now.rows * now.cols; e++) {
                x[e] = old.x[e] + b.p[2] * ((double)large.x[e] - old.x[e]);
            }
            for (int k = 0; k < 2; k++) {
                add_nested(plain[k], PER_SITE * at + (f == FL_B ? 0 : 2), b.p[k] * scale[f], x);
            }
            for (int e = 0; e < now.rows * now.cols; e++) {
                assert_below(fabs(x[e] - now.x[e]), 1e-6);
            }
        }
    }
    fl_adapter_destroy(&was);
    bed_close(&b);
}

/* corrections of full rank can say what FedLoRU's clients say: P = X_k - X_0, Q = I */
static void mfedloru_represents_fedloru(void **state)
{
    fl_adapter *plain[3];
    bed b, ref;

    (void)state;
    open_method(&b, "mfedloru", "mfedloru.tau=1", "mfedloru.nested=all");
    open_method(&ref, "fedloru", "fedloru.tau=1", NULL);
    bed_begin(&b, 1, NULL);
    bed_begin(&ref, 1, NULL);
    for (int k = 0; k < 3; k++) {
        plain[k] = fl_scratch_adapter(&b.rt->run, nested_space(&b, 3, 3));
        for (int j = 0, at = -1; j < b.rt->run.nsites; j++) {
            at += b.rt->run.space->r[j] > 0;
            if (b.rt->run.space->r[j] == 0) {
                continue;
            }
            fl_mat pb = fl_at(plain[k], PER_SITE * at, FL_PLAIN),
                   qa = fl_at(plain[k], PER_SITE * at + 3, FL_PLAIN),
                   qb = fl_at(plain[k], PER_SITE * at + 1, FL_PLAIN),
                   pa = fl_at(plain[k], PER_SITE * at + 2, FL_PLAIN);

            for (int e = 0; e < pb.rows * pb.cols; e++) {
                pb.x[e] = fl_at(b.client[k], j, FL_B).x[e] - fl_at(b.rt->run.global, j, FL_B).x[e];
            }
            for (int e = 0; e < qa.rows * qa.cols; e++) {
                qa.x[e] = fl_at(b.client[k], j, FL_A).x[e] - fl_at(b.rt->run.global, j, FL_A).x[e];
            }
            for (int l = 0; l < 3; l++) {
                qb.x[4 * l] = pa.x[4 * l] = 1;
            }
        }
    }
    send_nested(&b, 3, plain);
    bed_ok(round_aggregate(b.rt));
    bed_end(&ref);
    assert_int_equal(b.rt->nmerges, 1);
    for (int j = 0; j < b.rt->run.nsites; j++) {
        const fl_site *st = &b.rt->base.model.site[j];

        base_change(&b, b.w0, j, x);
        base_change(&ref, ref.w0, j, y);
        for (int e = 0; e < st->m * st->n; e++) {
            assert_below(fabs(x[e] - y[e]), 2e-6);
        }
    }
    bed_close(&ref);
    bed_close(&b);
}

/* P = 0: the pair keeps its bits */
static void mfedloru_zero_corrections(void **state)
{
    fl_adapter *plain[3];
    bed b;

    (void)state;
    open_method(&b, "mfedloru", "mfedloru.nested=all", NULL);
    bed_begin(&b, 1, NULL);
    uint64_t start = bed_hash(&b);

    for (int k = 0; k < 3; k++) {
        plain[k] = nested_random(&b, k, nested_space(&b, 2, 2));
        for (int i = 0; i < plain[k]->space->nslots; i += 2) {
            fl_mat p = fl_at(plain[k], i, FL_PLAIN);

            memset(p.x, 0, (size_t)p.rows * (size_t)p.cols * sizeof *p.x);
        }
    }
    send_nested(&b, 3, plain);
    bed_ok(round_aggregate(b.rt));
    assert_true(bed_hash(&b) == start);
    bed_close(&b);
}

/* f(P, Q) = <G, X_0 + a P Q>: its difference quotient along random directions is what the hook
 * makes of G */
static void mfedloru_chain_rule(void **state)
{
    bed b;

    (void)state;
    open_method(&b, "mfedloru", "mfedloru.a_a=0.5", "mfedloru.a_b=2");
    fl_run *run = &b.rt->run;
    const fl_space *sp = nested_space(&b, 2, 1);
    fl_adapter *got = fl_scratch_adapter(run, run->space),
               *eff = fl_scratch_adapter(run, run->space);
    fl_adapter *g = fl_scratch_adapter(run, run->space), *gplain = fl_scratch_adapter(run, sp);
    fl_adapter *plain = nested_random(&b, 1, sp);
    fl_client c = {.id = 0, .r = 1, .n = 2, .ad = {eff, plain}, .got = {got}};
    fl_job job = {.stack = {.n = 2, .ad = {eff, plain}, .coef = {1, 1}}};
    fl_step s = {.when = FL_BEFORE, .n = 1, .job = &job};

    for (size_t i = 0; i < run->space->n; i++) {
        got->v[i] = (fl_real)bed_normal(5, 1, i);
        g->v[i] = (fl_real)bed_normal(6, 1, i);
    }
    bed_ok(b.rt->method->step(run, &c, &s));
    for (int j = 0, at = -1; j < run->nsites; j++) {
        at += run->space->r[j] > 0;
        for (int f = FL_A; f <= FL_B && run->space->r[j] > 0; f++) {
            fl_mat m = fl_at(got, j, (fl_factor)f);

            for (int e = 0; e < m.rows * m.cols; e++) {
                x[e] = m.x[e];
            }
            add_nested(plain, PER_SITE * at + (f == FL_B ? 0 : 2), f == FL_B ? 2 : 0.5, x);
            for (int e = 0; e < m.rows * m.cols; e++) {
                assert_below(fabs(x[e] - fl_at(eff, j, (fl_factor)f).x[e]), 1e-5);
            }
        }
    }
    s = (fl_step){.when = FL_GRAD, .n = 1, .job = &job, .grad = {g, gplain}};
    bed_ok(b.rt->method->step(run, &c, &s));
    for (size_t i = 0; i < sp->n; i += 7) { /* f is linear in one number: the quotient is exact */
        double quotient = 0, step = 0.25;
        fl_real keep = plain->v[i];

        for (int sign = 1; sign >= -1; sign -= 2) {
            plain->v[i] = keep + (fl_real)(sign * step);
            for (int j = 0, at = -1; j < run->nsites; j++) {
                at += run->space->r[j] > 0;
                for (int f = FL_A; f <= FL_B && run->space->r[j] > 0; f++) {
                    fl_mat m = fl_at(g, j, (fl_factor)f);

                    memset(x, 0, sizeof x);
                    add_nested(plain, PER_SITE * at + (f == FL_B ? 0 : 2), f == FL_B ? 2 : 0.5, x);
                    for (int e = 0; e < m.rows * m.cols; e++) {
                        quotient += sign * x[e] * m.x[e] / (2 * step);
                    }
                }
            }
        }
        plain->v[i] = keep;
        assert_below(fabs(quotient - gplain->v[i]), 2e-4);
    }
    bed_close(&b);
}

/* small clients only, for some rounds: the loss falls, and A and B both move */
static void mfedloru_nested_learns(void **state)
{
    double first, last;
    bed b;

    (void)state;
    bed_open(&b, test_ctx,
        BED_SET("method.name=mfedloru", "mfedloru.nested=all", "mfedloru.r_a=1", "mfedloru.r_b=2",
            "data.domains=1", "train.lr=0.03", "train.steps=6"));
    fl_adapter *was = fl_adapter_create(b.rt->run.space);

    fl_fit(was, b.rt->run.global);
    bed_run(&b, 1);
    first = round_train_loss(b.rt);
    for (int i = 0; i < b.rt->run.space->nslots; i++) {
        const fl_slot *s = &b.rt->run.space->slot[i];
        size_t n = (size_t)s->rows * (size_t)s->cols * sizeof(fl_real);

        assert_true(memcmp(was->v + s->at, b.rt->run.global->v + s->at, n) != 0);
    }
    for (int t = 2; t <= 6; t++) {
        fl_metrics_row(&b.rt->metrics);
        bed_ok(round_run(b.rt, t));
    }
    last = round_train_loss(b.rt);
    assert_true(last < 0.97 * first);
    fl_adapter_destroy(&was);
    bed_close(&b);
}

/* clients of rank 3 send the pair, others r_b (m + r) + r_a (r + n) */
static double nested_up(int r)
{
    double sites = 8;

    return r == 3 ? whole_pair(3) : 4 * (2 * (bed_sum_m + 3 * sites) + r * (bed_sum_n + 3 * sites));
}

static void mfedloru_traffic(void **state)
{
    double up[6], down[6];
    const char *const *sets =
        BED_SET("method.name=mfedloru", "partition.clients=7", "train.steps=1", "mfedloru.tau=2",
            "clients.r=[1, 3]", "clients.r_share=[0.5, 0.5]", "mfedloru.r_b=2");

    (void)state;
    book_run(&(book){nested_up, parts_reinit, revision_even}, sets, 6, up, down);
    bed_traffic("mfedloru", sets + 1, 6, up, down);
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(fedloru_without_merge_is_fedavg),
        T(fedloru_every_round_is_re_initial), T(fedloru_reinit_keeps_the_function),
        T(fedloru_keep_doubles), T(fedloru_rank), T(fedloru_absentee), T(fedloru_traffic),
        T(pfedloru_untrained_is_fedloru), T(pfedloru_joint_step), T(pfedloru_alternates),
        T(pfedloru_keeps_pairs), T(pfedloru_view), T(pfedloru_traffic),
        T(mfedloru_averages_products), T(mfedloru_represents_fedloru), T(mfedloru_zero_corrections),
        T(mfedloru_chain_rule), T(mfedloru_nested_learns), T(mfedloru_traffic)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
