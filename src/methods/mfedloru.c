/* mfedloru - FedLoRU in which small clients train low-rank corrections of the factors.
 * Source: Park and Klabjan 2024 (mFedLoRU, arXiv 2409.12371): slides, figure (b); no code.
 *   client k runs W + s (B + a_b P_B Q_B)(A + a_a P_A Q_A) with A, B frozen and trains
 *   P_B (m x r_b), Q_B (r_b x r), P_A (r x r_a), Q_A (r_a x n);  P = 0, Q drawn anew every round
 *   chain rule: with G_B the gradient at B + a_b P_B Q_B,  G_P = a_b G_B Q_B',  G_Q = a_b P_B' G_B
 *   server:  B = B + sum_k p_k a_b P_B^k Q_B^k, A alike (a large client's B_k - B in place of the
 *   product); then as FedLoRU. Products are averaged, never P and Q.
 * Upload: r_b (m + r) + r_a (r + n) numbers, of a large client r (m + n). */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { MFEDLORU_REINIT, MFEDLORU_KEEP }; /* reset */
enum { MFEDLORU_SMALL, MFEDLORU_ALL };   /* nested */
enum { P_B, Q_B, P_A, Q_A, PER_SITE };   /* slots of a site */

typedef struct mfedloru_config {
    int tau, reset, nested, r_a, r_b;
    double a_a, a_b;
} mfedloru_config;

static const fl_field mfedloru_fields[] = {
    FL_INT(mfedloru_config, tau, "50", 1, 1e9, "rounds", "the pair is merged every tau rounds"),
    FL_WORD(mfedloru_config, reset, "merge_and_reinit", "merge_and_reinit|merge_keep",
        "after a merge: draw A anew and clear B, or go on with the pair"),
    FL_WORD(mfedloru_config, nested, "small", "small|all",
        "who trains corrections: clients of less than the largest rank (clients.r), or all"),
    FL_INT(mfedloru_config, r_a, "0", 0, 1e5, "",
        "rank of the correction of A; 0 = the client's rank"),
    FL_INT(mfedloru_config, r_b, "0", 0, 1e5, "",
        "rank of the correction of B; 0 = the client's rank"),
    FL_REAL(mfedloru_config, a_a, "1", 1e-6, 1e6, "", "scale of the correction of A"),
    FL_REAL(mfedloru_config, a_b, "1", 1e-6, 1e6, "", "scale of the correction of B"),
    FL_END,
};

/* 1: the pair is as the last merge left it */
static double *mfedloru_merged(fl_run *run)
{
    return fl_keep(run, NULL, "merged", 0, 1, "the pair is as the last merge left it", NULL);
}

static fl_err mfedloru_setup(fl_run *run)
{
    mfedloru_merged(run);
    return FL_OK;
}

/* one correction a P Q of factor `of` of a site, which has been seen as number `at` */
typedef struct nest {
    fl_mat p, q;
    fl_factor of;
    double a;
} nest;

static nest nest_at(const fl_run *run, const fl_adapter *plain, int at, fl_factor of)
{
    const mfedloru_config *cf = run->config;
    int first = PER_SITE * at + (of == FL_B ? P_B : P_A);

    return (nest){.p = fl_at(plain, first, FL_PLAIN),
        .q = fl_at(plain, first + 1, FL_PLAIN),
        .of = of,
        .a = of == FL_B ? cf->a_b : cf->a_a};
}

static bool nests(const fl_run *run, const fl_client *c)
{
    const mfedloru_config *cf = run->config;

    return cf->nested == MFEDLORU_ALL || c->r < run->space->rmax;
}

static const fl_space *nest_space(fl_run *run, const fl_client *c)
{
    const mfedloru_config *cf = run->config;
    size_t most = PER_SITE * (size_t)run->nsites;
    int *rows = fl_scratch(run, most, sizeof *rows), *cols = fl_scratch(run, most, sizeof *cols);
    int n = 0;

    for (int j = 0; j < run->nsites; j++) {
        int r = run->space->r[j], ra = FL_MIN(cf->r_a > 0 ? cf->r_a : c->r, r),
            rb = FL_MIN(cf->r_b > 0 ? cf->r_b : c->r, r);
        int shape[PER_SITE][2] = {
            {run->space->m[j], rb}, {rb, r}, {r, ra}, {ra, run->space->n_in[j]}};

        for (int i = 0; i < PER_SITE && r > 0; i++, n++) {
            rows[n] = shape[i][0];
            cols[n] = shape[i][1];
        }
    }
    return fl_space_plain(run, n, rows, cols);
}

/* P = 0, Q uniform in +-1/sqrt(columns) */
static fl_adapter *nest_start(fl_run *run, const fl_client *c)
{
    fl_adapter *plain = fl_scratch_adapter(run, nest_space(run, c));

    for (int i = 1; i < plain->space->nslots; i += 2) {
        fl_mat q = fl_at(plain, i, FL_PLAIN);
        double bound = 1 / sqrt((double)q.cols);
        size_t first = plain->space->slot[i].at;

        for (size_t e = 0; e < (size_t)q.rows * (size_t)q.cols; e++) {
            q.x[e] =
                (fl_real)(bound * (2 * fl_uniform(run, 0, c->id, run->round.t, first + e) - 1));
        }
    }
    return plain;
}

static fl_err mfedloru_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const mfedloru_config *cf = run->config;
    fl_told told = cf->reset == MFEDLORU_REINIT ? FL_SEED : FL_KNOWN;

    (void)c;
    fl_send(down, (fl_part){.ad = run->global,
                      .of = run->global,
                      .values = *mfedloru_merged(run) != 0 ? told : FL_SENT});
    return FL_OK;
}

static fl_err mfedloru_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    if (nests(run, c)) {
        c->ad[1] = nest_start(run, c);
        c->n = 2;
        job.stack.n = 2;
        job.stack.ad[1] = c->ad[1];
        job.train[0].factors = FL_NONE;
        job.watch = FL_BIT(0);
    }
    return fl_train(run, c, &job);
}

/* before the pass: X = X_0 + a P Q;  after it: the chain rule */
static fl_err mfedloru_step(fl_run *run, fl_client *c, fl_step *s)
{
    if (s->job->stack.n < 2 || s->when == FL_AFTER) {
        return FL_OK;
    }
    for (int j = 0, at = -1; j < run->nsites; j++) {
        at += run->space->r[j] > 0;
        for (int f = FL_A; f <= FL_B && run->space->r[j] > 0; f++) {
            nest k = nest_at(run, s->job->stack.ad[1], at, (fl_factor)f);
            fl_mat x = fl_at(s->job->stack.ad[0], j, k.of), was = fl_at(c->got[0], j, k.of);

            if (s->when == FL_BEFORE) {
                memcpy(x.x, was.x, (size_t)x.rows * (size_t)x.cols * sizeof *x.x);
                fl_gemm('n', 'n', x.rows, x.cols, k.p.cols, k.a, k.p.x, k.q.x, 1, x.x);
            } else {
                fl_mat g = fl_at(s->grad[0], j, k.of);
                nest gk = nest_at(run, s->grad[1], at, k.of);

                fl_gemm('n', 't', x.rows, k.p.cols, x.cols, k.a, g.x, k.q.x, 0, gk.p.x);
                fl_gemm('t', 'n', k.p.cols, x.cols, x.rows, k.a, k.p.x, g.x, 0, gk.q.x);
            }
        }
    }
    return FL_OK;
}

/* corrections have the label 1 + client: each is wanted by itself */
static fl_err mfedloru_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    if (nests(run, c)) {
        fl_send(up, (fl_part){.ad = c->ad[1], .label = 1 + c->id});
    } else {
        fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0]});
    }
    return FL_OK;
}

/* sum += p a P Q at every site, laid out as run->global; plain: P, Q of one client; x: room */
static void nest_add(fl_run *run, const fl_adapter *plain, double p, double *x, double *sum)
{
    for (size_t i = 0; i < plain->space->n; i++) {
        x[i] = plain->v[i];
    }
    for (int j = 0, at = -1; j < run->nsites; j++) {
        at += run->space->r[j] > 0;
        for (int f = FL_A; f <= FL_B && run->space->r[j] > 0; f++) {
            nest k = nest_at(run, plain, at, (fl_factor)f);
            fl_mat to = fl_at(run->global, j, k.of);

            fl_dgemm('n', 'n', to.rows, to.cols, k.p.cols, p * k.a, x + (k.p.x - plain->v),
                x + (k.q.x - plain->v), 1, sum + (to.x - run->global->v));
        }
    }
}

/* sum = sum_k p_k a P_k Q_k, one client at a time, so that a rank holds one client's factors */
static fl_err nest_mix(fl_run *run, fl_pile *in, double *sum)
{
    size_t most = 0;
    double *x;
    fl_adapter one, *plain = &one;

    for (int i = 0; i < in->n; i++) {
        most = FL_MAX(most, in->item[i].space->n);
    }
    x = fl_scratch(run, most, sizeof *x);
    one = (fl_adapter){.v = fl_scratch(run, most, sizeof *one.v)};
    for (int i = 0; i < in->n; i++) {
        fl_mixing alone = {.label = in->item[i].label, .norm = FL_HOLDERS};

        if (alone.label > 0) {
            one.space = in->item[i].space;
            FL_TRY(fl_mix(run, in, &alone, &plain));
            nest_add(run, plain, in->item[i].p, x, sum);
        }
    }
    return FL_OK;
}

static fl_err mfedloru_aggregate(fl_run *run, fl_pile *in)
{
    const mfedloru_config *cf = run->config;
    double *sum = fl_scratch(run, run->space->n, sizeof *sum);
    bool merges = run->round.t % cf->tau == 0;

    FL_TRY(nest_mix(run, in, sum));
    FL_TRY(fl_mix(run, in, &(fl_mixing){.norm = FL_REST}, &run->global)); /* large clients */
    for (size_t i = 0; i < run->space->n; i++) {
        run->global->v[i] = (fl_real)((double)run->global->v[i] + sum[i]);
    }
    *mfedloru_merged(run) = merges;
    if (merges) {
        FL_TRY(fl_merge(run, run->global, 1, (fl_pick){0}));
    }
    return merges && cf->reset == MFEDLORU_REINIT ? fl_fill(run, run->global, -1, run->round.t)
                                                  : FL_OK;
}

const fl_method fl_method_mfedloru = {
    .name = "mfedloru",
    .title = "FedLoRU; small clients train low-rank corrections of the factors",
    .source = "Park and Klabjan 2024, arXiv 2409.12371",
    .choice = "known from a figure and the abstract only: corrections start every round with P = 0 "
              "and Q drawn, and are averaged as products; the download is the whole pair. Ranks "
              "and scales of the corrections were not found.",
    .needs = FL_HETERO | FL_MERGES | FL_EACH | FL_ONLINE | FL_LORA_ONLY,
    .config_size = sizeof(mfedloru_config),
    .config = mfedloru_fields,
    .setup = mfedloru_setup,
    .download = mfedloru_download,
    .train = mfedloru_train,
    .step = mfedloru_step,
    .upload = mfedloru_upload,
    .aggregate = mfedloru_aggregate,
};
