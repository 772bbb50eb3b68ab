/* adalora - P diag(l) Q instead of B A, and a shrinking number of triplets, spent where they
 * matter. Source: Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), official code QingruZhang/AdaLoRA;
 * the federation is ours (near to FedARA, Wu et al. 2025, arXiv 2501.14406). dW = s P diag(l) Q, P
 * (m x r), Q (r x n) ~ N(0, init_std^2), l = 0. client  loss + mu mean over all P, Q of ||P'P -
 * I||_F, ||QQ' - I||_F (the code's form; the paper has squares). Sensitivity of every weight w with
 * gradient g, at every step: I <- b1 I + (1 - b1) |w g|,  U <- b2 U + (1 - b2) ||w g| - I|,  s(w) =
 * I U; score of triplet i: s(l_i) + mean_j s(P_ji) + mean_j s(Q_ij). server  P, l, Q and scores are
 * averaged by p_k; the b(t) triplets of highest score over all matrices stay, the l of the others
 * becomes 0. b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3, b_0 up to round t_i, b_T
 * in the last t_f rounds, in which scores rest and masked triplets neither train nor travel. A
 * masked l may come back while it still trains; with drop: true it never trains or travels again.
 * Traffic: (m + n + 1) per triplet that trains, up and down; up its score; down one bit a triplet
 * if some do not train. The column orthogonality is the mean of those norms over the server's P and
 * Q (averaging spoils it); triplets is b(t). */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct adalora_config {
    int target, warmup, final, horizon;
    double orthogonal, beta1, beta2, init_std;
    bool drop, keep_scores;
} adalora_config;

static const fl_field adalora_fields[] = {
    FL_INT(adalora_config, target, "0", 0, 1e6, "pairs",
        "triplets per matrix, on average, at the end; 0: two thirds of adapter.r"),
    FL_INT(adalora_config, warmup, "1", 0, 1e9, "rounds", "t_i: first rounds with all triplets"),
    FL_INT(adalora_config, final, "2", 0, 1e9, "rounds", "t_f: last rounds with the final ones"),
    FL_INT(adalora_config, horizon, "0", 0, 1e9, "rounds",
        "T of the schedule; 0: run.rounds (a run that is prolonged then changes its schedule)"),
    FL_REAL(adalora_config, orthogonal, "0.1", 0, 1e3, "", "mu: weight of the regulariser"),
    FL_REAL(adalora_config, beta1, "0.85", 0, 0.999999, "", "decay of the mean sensitivity"),
    FL_REAL(adalora_config, beta2, "0.85", 0, 0.999999, "", "decay of its mean deviation"),
    FL_REAL(adalora_config, init_std, "0.02", 1e-12, 1e3, "", "standard deviation of P and Q"),
    FL_BOOL(
        adalora_config, drop, "false", "a masked triplet leaves training and messages for good"),
    FL_BOOL(adalora_config, keep_scores, "false",
        "clients keep the means of sensitivity from round to round"),
    FL_END,
};

enum { P, L, Q, NSIDES }; /* slots of a site */

static const fl_space *triplet_space(fl_run *run)
{
    size_t n = NSIDES * (size_t)run->nsites;
    int *rows = fl_scratch(run, n, sizeof *rows), *cols = fl_scratch(run, n, sizeof *cols), at = 0;

    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            rows[at + P] = run->space->m[j];
            cols[at + P] = rows[at + Q] = cols[at + L] = run->space->r[j];
            rows[at + L] = 1;
            cols[at + Q] = run->space->n_in[j];
            at += NSIDES;
        }
    }
    return fl_space_plain(run, at, rows, cols);
}

static int triplets(const fl_run *run)
{
    return fl_pair_first(run->space, run->nsites);
}

static fl_adapter *kept_triplets(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "triplets", 0, triplet_space(run), NULL);
}

static double *kept_mask(fl_run *run)
{
    return fl_keep(run, NULL, "mask", 0, (size_t)triplets(run), "1 = the triplet is in", NULL);
}

static double *kept_score(fl_run *run)
{
    return fl_keep(run, NULL, "score", 0, (size_t)triplets(run), "score of a triplet", NULL);
}

static int horizon(const fl_run *run)
{
    const adalora_config *cf = run->config;

    return cf->horizon > 0 ? cf->horizon : run->rounds;
}

static bool is_final(const fl_run *run)
{
    const adalora_config *cf = run->config;

    return run->round.t > horizon(run) - cf->final;
}

/* which triplets train and travel in this round; NULL = all */
static const double *active(fl_run *run)
{
    const adalora_config *cf = run->config;

    return cf->drop || is_final(run) ? kept_mask(run) : NULL;
}

/* elements of the triplets that are in */
static uint64_t *elements(fl_run *run, const fl_space *sp, const double *in)
{
    uint64_t *bits = in != NULL ? fl_bits(run, sp->n) : NULL;

    for (int s = 0, first = 0; in != NULL && s < sp->nslots; s++) {
        const fl_slot *slot = &sp->slot[s];
        int r = sp->slot[s / NSIDES * NSIDES + L].cols;

        for (int i = 0; i < slot->rows * slot->cols; i++) {
            if (in[first + (s % NSIDES == Q ? i / slot->cols : i % r)] > 0) {
                fl_bit_set(bits, slot->at + (size_t)i);
            }
        }
        first += s % NSIDES == Q ? r : 0;
    }
    return bits;
}

/* out = (Q, P diag(l)) */
static void compose(const fl_adapter *t, fl_adapter *out)
{
    for (int j = 0, at = 0; j < out->space->nsites; j++) {
        fl_mat a = fl_at(out, j, FL_A), b = fl_at(out, j, FL_B);

        if (a.x != NULL) {
            fl_mat p = fl_at(t, at + P, FL_PLAIN), l = fl_at(t, at + L, FL_PLAIN);

            memcpy(
                a.x, fl_at(t, at + Q, FL_PLAIN).x, (size_t)a.rows * (size_t)a.cols * sizeof *a.x);
            for (int i = 0; i < b.rows * b.cols; i++) {
                b.x[i] = p.x[i] * l.x[i % b.cols];
            }
            at += NSIDES;
        }
    }
}

static fl_err adalora_setup(fl_run *run)
{
    const adalora_config *cf = run->config;
    fl_adapter *t = kept_triplets(run);
    double *mask = kept_mask(run);

    kept_score(run);
    for (int s = 0; s < t->space->nslots; s++) {
        fl_mat x = fl_at(t, s, FL_PLAIN);

        for (int i = 0; s % NSIDES != L && i < x.rows * x.cols; i++) {
            x.x[i] = (fl_real)(cf->init_std * fl_normal(run, 0, s, 0, (uint64_t)i));
        }
    }
    for (int i = 0; i < triplets(run); i++) {
        mask[i] = 1;
    }
    compose(t, run->global);
    return FL_OK;
}

static fl_err adalora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const double *in = active(run);
    fl_adapter *t = kept_triplets(run);

    (void)c; /* the start is the seed's */
    fl_send(down, (fl_part){.ad = t,
                      .pick.elems = elements(run, t->space, in),
                      .which = FL_KNOWN,
                      .values = run->round.t == 1 ? FL_KNOWN : FL_SENT});
    if (in != NULL) {
        fl_put(down, "mask", in, (size_t)triplets(run), 1);
    }
    return FL_OK;
}

/* ---- the client ---- */
enum { TRIPLETS, EFFECTIVE, MEAN, DEVIATION }; /* c->ad: what trains, (Q, P diag(l)), I and U */
enum { ENTRY_EFFECTIVE, ENTRY_TRIPLETS };      /* of the stack */

static fl_err adalora_train(fl_run *run, fl_client *c)
{
    const adalora_config *cf = run->config;
    fl_job job = fl_job_of(run, c);
    const fl_space *sp = c->ad[TRIPLETS]->space;

    for (int i = MEAN; i <= DEVIATION; i++) {
        c->ad[i] = cf->keep_scores ? fl_keep_adapter(run, c, "sensitivity", i - MEAN, sp, NULL)
                                   : fl_scratch_adapter(run, sp);
    }
    c->ad[EFFECTIVE] = fl_scratch_adapter(run, run->space);
    job.stack = (fl_stack){.n = 2, .ad = {c->ad[EFFECTIVE], c->ad[TRIPLETS]}, .coef = {1, 1}};
    job.train[ENTRY_EFFECTIVE].factors = FL_NONE;
    job.watch = FL_BIT(ENTRY_EFFECTIVE);
    job.train[ENTRY_TRIPLETS].elems = elements(run, sp, fl_get(c->down, "mask", NULL));
    return fl_train(run, c, &job);
}

/* x (r x r) = x'x - I of the columns (rows: x x' - I of the rows) that are in, 0 elsewhere; its
 * norm
 */
static double deviation_from_orthonormal(fl_mat of, bool rows, const double *in, fl_real *x)
{
    int r = rows ? of.rows : of.cols, n = rows ? of.cols : of.rows;
    double sum = 0;

    fl_gemm(rows ? 'n' : 't', rows ? 't' : 'n', r, r, n, 1, of.x, of.x, 0, x);
    for (int i = 0; i < r * r; i++) {
        bool out = in != NULL && (in[i / r] == 0 || in[i % r] == 0);

        x[i] = out ? 0 : x[i] - (i / r == i % r);
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

/* the regulariser's share of one P or Q: its value, its gradient added: mu / nsides 2 P X / ||X||
 */
static double regularise(fl_run *run, fl_mat of, bool rows, const double *in, double mu, fl_mat g)
{
    int r = rows ? of.rows : of.cols;
    fl_real *x = fl_scratch(run, (size_t)r * (size_t)r, sizeof *x);
    double norm = deviation_from_orthonormal(of, rows, in, x), coef = norm > 0 ? 2 * mu / norm : 0;

    if (rows) {
        fl_gemm('n', 'n', r, of.cols, r, coef, x, of.x, 1, g.x);
    } else {
        fl_gemm('n', 'n', of.rows, r, r, coef, of.x, x, 1, g.x);
    }
    return mu * norm;
}

/* dP = (dL/dB) diag(l), dl_i = sum_j (dL/dB)_ji P_ji, dQ = dL/dA, added */
static void chain(fl_mat ga, fl_mat gb, const fl_adapter *t, const fl_adapter *g, int at)
{
    fl_mat p = fl_at(t, at + P, FL_PLAIN), l = fl_at(t, at + L, FL_PLAIN);
    fl_real *gp = fl_at(g, at + P, FL_PLAIN).x, *gl = fl_at(g, at + L, FL_PLAIN).x;
    fl_real *gq = fl_at(g, at + Q, FL_PLAIN).x;

    for (int k = 0; k < l.cols; k++) {
        double sum = 0;

        for (int i = k; i < gb.rows * gb.cols; i += l.cols) {
            sum += (double)gb.x[i] * (double)p.x[i];
            gp[i] += gb.x[i] * l.x[k];
        }
        gl[k] += (fl_real)sum;
    }
    for (int i = 0; i < ga.rows * ga.cols; i++) {
        gq[i] += ga.x[i];
    }
}

static void sense(const adalora_config *cf, fl_client *c, const fl_adapter *g)
{
    const fl_real *w = c->ad[TRIPLETS]->v;
    fl_real *mean = c->ad[MEAN]->v, *deviation = c->ad[DEVIATION]->v;

    for (size_t i = 0; i < g->space->n; i++) {
        double now = fabs((double)w[i] * (double)g->v[i]);
        double m = cf->beta1 * (double)mean[i] + (1 - cf->beta1) * now;

        mean[i] = (fl_real)m;
        deviation[i] =
            (fl_real)(cf->beta2 * (double)deviation[i] + (1 - cf->beta2) * fabs(now - m));
    }
}

static fl_err adalora_step(fl_run *run, fl_client *c, fl_step *s)
{
    const adalora_config *cf = run->config;
    const fl_adapter *t = c->ad[TRIPLETS];
    const double *in = fl_get(c->down, "mask", NULL);
    double mu = cf->orthogonal * NSIDES / (2.0 * t->space->nslots); /* mean over all P and Q */

    if (s->when == FL_BEFORE) {
        compose(t, c->ad[EFFECTIVE]);
    }
    if (s->when != FL_GRAD) {
        return FL_OK;
    }
    for (int j = 0, at = 0; j < run->nsites; j++) {
        fl_mat ga = fl_at(s->grad[ENTRY_EFFECTIVE], j, FL_A);
        const fl_adapter *g = s->grad[ENTRY_TRIPLETS];
        const double *of = in != NULL ? in + fl_pair_first(run->space, j) : NULL;

        if (ga.x == NULL) {
            continue;
        }
        chain(ga, fl_at(s->grad[ENTRY_EFFECTIVE], j, FL_B), t, g, at);
        for (int side = P; side <= Q && mu > 0; side += Q - P) {
            *s->loss += regularise(run, fl_at(t, at + side, FL_PLAIN), side == Q, of, mu,
                fl_at(g, at + side, FL_PLAIN));
        }
        at += NSIDES;
    }
    if (!is_final(run)) {
        sense(cf, c, s->grad[ENTRY_TRIPLETS]);
    }
    return FL_OK;
}

/* scores of the triplets that are in, one after another; their number */
static size_t scores(fl_client *c, const double *in, double *score)
{
    const fl_space *sp = c->ad[TRIPLETS]->space;
    size_t n = 0;

    for (int s = 0, first = 0; s < sp->nslots; s++) {
        const fl_slot *slot = &sp->slot[s];
        int r = sp->slot[s / NSIDES * NSIDES + L].cols, size = slot->rows * slot->cols;

        for (int i = 0; i < size; i++) {
            size_t e = slot->at + (size_t)i;

            score[first + (s % NSIDES == Q ? i / slot->cols : i % r)] +=
                (double)c->ad[MEAN]->v[e] * (double)c->ad[DEVIATION]->v[e] * r / size;
        }
        first += s % NSIDES == Q ? r : 0;
        for (int i = first - r; s % NSIDES == Q && i < first; i++) {
            if (in == NULL || in[i] > 0) {
                score[n++] = score[i];
            }
        }
    }
    return n;
}

static fl_err adalora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const double *in = fl_get(c->down, "mask", NULL);

    fl_send(up, (fl_part){.ad = c->ad[TRIPLETS],
                    .ref = c->got[TRIPLETS],
                    .pick.elems = elements(run, c->ad[TRIPLETS]->space, in),
                    .which = FL_KNOWN});
    if (!is_final(run)) {
        double *score = fl_scratch(run, (size_t)triplets(run), sizeof *score);

        fl_put(up, "score", score, scores(c, in, score), 32);
    }
    return FL_OK;
}

/* ---- the server ---- */
static fl_err average_scores(fl_run *run, fl_pile *in)
{
    int n = triplets(run);
    double *rows = fl_scratch(run, (size_t)in->n * (size_t)n, sizeof *rows);
    double *score = kept_score(run);
    const double *of = active(run);

    FL_TRY(fl_numbers(run, in, "score", n, rows));
    for (int i = 0, at = 0; i < n; i++) {
        if (of == NULL || of[i] > 0) {
            score[i] = 0;
            for (int k = 0; k < in->n; k++) {
                score[i] += in->item[k].p * rows[(size_t)k * (size_t)n + (size_t)at];
            }
            at++;
        }
    }
    return FL_OK;
}

/* b(t) */
static int budget(const fl_run *run)
{
    const adalora_config *cf = run->config;
    int t = run->round.t, all = triplets(run), last = 0;

    for (int j = 0; j < run->nsites; j++) {
        int r = run->space->r[j], want = cf->target > 0 ? cf->target : (2 * r + 2) / 3;

        last += FL_MIN(want, r);
    }
    if (t <= cf->warmup) {
        return all;
    }
    if (is_final(run)) {
        return last;
    }
    double left = 1 - (double)(t - cf->warmup) / (horizon(run) - cf->final - cf->warmup);

    return (int)(last + (all - last) * left * left * left);
}

/* the mask: the `keep` best of the candidates; of equal ones the first */
static void choose(fl_run *run, int keep)
{
    const adalora_config *cf = run->config;
    size_t n = (size_t)triplets(run);
    double *mask = kept_mask(run), *x = fl_scratch(run, n, sizeof *x);
    uint64_t *best = fl_bits(run, n);

    for (size_t i = 0; i < n; i++) {
        x[i] = cf->drop && mask[i] == 0 ? -1 : kept_score(run)[i]; /* scores are not negative */
    }
    fl_top(run, n, x, (size_t)keep, best, 0);
    for (size_t i = 0; i < n; i++) {
        mask[i] = fl_bit(best, i) && x[i] >= 0;
    }
}

static void report(fl_run *run, const fl_adapter *t, int keep)
{
    const double *mask = kept_mask(run);
    double sum = 0;

    for (int s = 0, first = 0; s < t->space->nslots; s++) {
        fl_mat x = fl_at(t, s, FL_PLAIN);
        int r = t->space->slot[s / NSIDES * NSIDES + L].cols;

        if (s % NSIDES != L) {
            sum += deviation_from_orthonormal(x, s % NSIDES == Q, mask + first,
                fl_scratch(run, (size_t)r * (size_t)r, sizeof(fl_real)));
        }
        first += s % NSIDES == Q ? r : 0;
    }
    fl_metric(run, "triplets", keep);
    fl_metric(run, "orthogonality", sum * NSIDES / (2.0 * FL_MAX(t->space->nslots, 1)));
}

static fl_err adalora_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *t = kept_triplets(run);
    const double *mask = kept_mask(run);
    int keep = budget(run);

    FL_TRY(fl_mix(run, in, &(fl_mixing){.norm = active(run) != NULL ? FL_HOLDERS : FL_SUM}, &t));
    if (!is_final(run)) {
        FL_TRY(average_scores(run, in));
    }
    choose(run, keep);
    for (int s = L, first = 0; s < t->space->nslots; s += NSIDES) {
        fl_mat l = fl_at(t, s, FL_PLAIN);

        for (int i = 0; i < l.cols; i++) {
            l.x[i] = mask[first + i] > 0 ? l.x[i] : 0;
        }
        first += l.cols;
    }
    report(run, t, keep);
    compose(t, run->global);
    return FL_OK;
}

const fl_method fl_method_adalora = {
    .name = "adalora",
    .title = "triplets P diag(l) Q, their number cut by sensitivity",
    .source = "Zhang et al. 2023, arXiv 2303.10512",
    .choice =
        "the federation is ours: P, l, Q and scores are averaged every round, the budget shrinks "
        "by "
        "rounds, exactly b(t) triplets stay (of equal scores the first; the code drops all that "
        "equal the threshold). Triplet i of two clients is not one direction: averages are only "
        "sane "
        "for few local steps. Sensitivity takes w and g of the same moment (the code takes w after "
        "the step). s = alpha / r, the start's r for ever (the code adds 1e-5 to r). A dropped "
        "triplet costs no bytes but is still multiplied with.",
    .needs = FL_NUMBERS | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(adalora_config),
    .config = adalora_fields,
    .setup = adalora_setup,
    .download = adalora_download,
    .train = adalora_train,
    .step = adalora_step,
    .upload = adalora_upload,
    .aggregate = adalora_aggregate,
};
