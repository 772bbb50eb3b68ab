/* florg - one trained factor A between fixed frames, averaged as its Gram matrix.
 * Source: Meng et al. 2026 (FLoRG, arXiv 2602.17095). k = min(m, n); L (m x k), L'L = I, and R (k x
 * n), RR' = I, are drawn from the seed and fixed; A (r x k) is trained:
 *   dW = s L (A'A) R;   with H = s L' G R', G = dL/dW:   dL/dA = A (H + H').
 * Server: the Gram matrices average linearly,  Q = sum_k p_k A_k' A_k = P' diag(l) P,  At =
 * diag(l)^ (1/2) P (r' x k);  alignment with the last factor:  A_prev At' = U S V',  A = (U V') At
 * (r x k). With C = [sqrt(p_1) A_1; ..] Q = C'C, so that a thin SVD C = U diag(c) V' gives At =
 * diag(c) V' and no k x k matrix is formed. r' = r: A'A = Q. r' > r: UV' has orthonormal rows only,
 * what it cuts off is the method's one inexact step; the column gram_error is ||A'A - Q|| / ||Q||
 * over all sites, which is the relative error of dW too, as L and R keep Frobenius norms. As LoRA:
 * B = L A', A_lora = A R, which is what run->global shows. A = 0 is a stationary point, so A starts
 * as normal numbers and the base gives the start away: W <- W - s L A_0'A_0 R, which every client
 * does by itself. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct florg_config {
    double init_std;
} florg_config;

static const fl_field florg_fields[] = {
    FL_REAL(florg_config, init_std, "0", 0, 1e3, "",
        "standard deviation of A's start; 0: 1 / sqrt(min(m, n))"),
    FL_END,
};

static int inner(const fl_space *sp, int site)
{
    return FL_MIN(sp->m[site], sp->n_in[site]);
}

static const fl_space *core_space(fl_run *run)
{
    size_t n = (size_t)run->nsites;
    int *rows = fl_scratch(run, n, sizeof *rows), *cols = fl_scratch(run, n, sizeof *cols), at = 0;

    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            rows[at] = run->space->r[j];
            cols[at++] = inner(run->space, j);
        }
    }
    return fl_space_plain(run, at, rows, cols);
}

/* L' and R of every adapted site, k x m and k x n */
static const fl_space *frame_space(fl_run *run)
{
    size_t n = 2 * (size_t)run->nsites;
    int *rows = fl_scratch(run, n, sizeof *rows), *cols = fl_scratch(run, n, sizeof *cols), at = 0;

    for (int j = 0; j < run->nsites; j++) {
        for (int side = 0; run->space->r[j] > 0 && side < 2; side++) {
            rows[at] = inner(run->space, j);
            cols[at++] = side == 0 ? run->space->m[j] : run->space->n_in[j];
        }
    }
    return fl_space_plain(run, at, rows, cols);
}

static fl_adapter *kept_core(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "core", 0, core_space(run), NULL);
}

static fl_adapter *kept_frames(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "frames", 0, frame_space(run), NULL);
}

/* out = (A R, L A') */
static void compose(const fl_adapter *frames, const fl_adapter *core, fl_adapter *out)
{
    for (int j = 0, at = 0; j < out->space->nsites; j++) {
        fl_mat ra = fl_at(out, j, FL_A), lb = fl_at(out, j, FL_B);

        if (ra.x != NULL) {
            fl_mat a = fl_at(core, at, FL_PLAIN), l = fl_at(frames, 2 * at, FL_PLAIN);

            fl_gemm('n', 'n', a.rows, ra.cols, a.cols, 1, a.x,
                fl_at(frames, 2 * at + 1, FL_PLAIN).x, 0, ra.x);
            fl_gemm('t', 't', lb.rows, a.rows, a.cols, 1, l.x, a.x, 0, lb.x);
            at++;
        }
    }
}

/* orthonormal rows of normal numbers: the transposed Q of a QR of n x k */
static fl_err draw_frame(fl_run *run, int slot, fl_mat to)
{
    size_t size = (size_t)to.rows * (size_t)to.cols;
    double *x = fl_scratch(run, size, sizeof *x), *q = fl_scratch(run, size, sizeof *q);
    double *r = fl_scratch(run, (size_t)to.rows * (size_t)to.rows, sizeof *r);

    for (size_t i = 0; i < size; i++) {
        x[i] = fl_normal(run, 0, slot, 0, i);
    }
    FL_TRY(fl_qr(to.cols, to.rows, x, q, r));
    for (int i = 0; i < to.rows; i++) {
        for (int j = 0; j < to.cols; j++) {
            to.x[(size_t)i * (size_t)to.cols + (size_t)j] =
                (fl_real)q[(size_t)j * (size_t)to.rows + (size_t)i];
        }
    }
    return FL_OK;
}

static fl_err florg_setup(fl_run *run)
{
    const florg_config *cf = run->config;
    fl_adapter *core = kept_core(run), *frames = kept_frames(run);

    for (int i = 0; i < frames->space->nslots; i++) {
        FL_TRY(draw_frame(run, i, fl_at(frames, i, FL_PLAIN)));
    }
    for (int i = 0; i < core->space->nslots; i++) {
        fl_mat a = fl_at(core, i, FL_PLAIN);
        double std = cf->init_std > 0 ? cf->init_std : 1 / sqrt(a.cols);

        for (int e = 0; e < a.rows * a.cols; e++) {
            a.x[e] = (fl_real)(std * fl_normal(run, 1, i, 0, (uint64_t)e));
        }
    }
    compose(frames, core, run->global);
    return fl_merge(run, run->global, -1, (fl_pick){FL_NONE, NULL, NULL});
}

static fl_err florg_download(fl_run *run, fl_client *c, fl_msg *down)
{
    (void)c; /* the start is the seed's */
    fl_send(
        down, (fl_part){.ad = kept_core(run), .values = run->round.t == 1 ? FL_KNOWN : FL_SENT});
    return FL_OK;
}

static fl_err florg_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    job.stack.n = 2;
    job.stack.ad[0] = fl_scratch_adapter(run, run->space);
    job.stack.ad[1] = c->ad[0];
    job.stack.coef[1] = 1;
    job.train[0].factors = FL_NONE;
    job.watch = FL_BIT(0);
    return fl_train(run, c, &job);
}

/* dL/dA = (dL/dB)' L + dL/dA_lora R'  (the first is s A R G' L = A H', the second A H) */
static fl_err florg_step(fl_run *run, fl_client *c, fl_step *s)
{
    const fl_adapter *frames = kept_frames(run);

    if (s->when == FL_BEFORE) {
        compose(frames, c->ad[0], s->job->stack.ad[0]);
    }
    for (int j = 0, at = 0; s->when == FL_GRAD && j < run->nsites; j++) {
        fl_mat ga = fl_at(s->grad[0], j, FL_A), gb = fl_at(s->grad[0], j, FL_B);

        if (ga.x != NULL) {
            fl_mat g = fl_at(s->grad[1], at, FL_PLAIN);

            fl_gemm('t', 't', g.rows, g.cols, gb.rows, 1, gb.x, fl_at(frames, 2 * at, FL_PLAIN).x,
                1, g.x);
            fl_gemm('n', 't', g.rows, g.cols, ga.cols, 1, ga.x,
                fl_at(frames, 2 * at + 1, FL_PLAIN).x, 1, g.x);
            at++;
        }
    }
    return FL_OK;
}

/* A (r x k) travels where the server can take it site by site: in the factor of width k of the
 * deck's adapter, transposed if that is B. Returns those elements. */
static uint64_t *carry(fl_run *run, const fl_adapter *core, fl_adapter *ad)
{
    const fl_space *sp = ad->space;
    uint64_t *elems = fl_bits(run, sp->n);

    for (int j = 0, at = 0; j < sp->nsites; j++) {
        bool in_a = sp->n_in[j] <= sp->m[j];
        int r = sp->r[j], k = inner(sp, j);

        if (r == 0) {
            continue;
        }
        fl_mat to = fl_at(ad, j, in_a ? FL_A : FL_B), a = fl_at(core, at++, FL_PLAIN);
        size_t first = sp->slot[sp->slot_of[2 * j + (in_a ? 0 : 1)]].at;

        for (int i = 0; i < r * k; i++) {
            to.x[in_a ? i : i % k * r + i / k] = a.x[i];
            fl_bit_set(elems, first + (size_t)i);
        }
    }
    return elems;
}

static fl_err florg_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_adapter *ad = fl_scratch_adapter(run, run->space);
    fl_adapter *ref = fl_scratch_adapter(run, run->space);
    fl_pick pick = {.elems = carry(run, c->ad[0], ad)};

    carry(run, c->got[0], ref);
    fl_send(up, (fl_part){.ad = ad, .ref = ref, .label = 1, .pick = pick, .which = FL_KNOWN});
    return FL_OK;
}

/* element (i, j) of A in a carrier's factor */
static double carried(fl_mat x, bool in_a, int i, int j)
{
    return (double)
        x.x[in_a ? (size_t)i * (size_t)x.cols + (size_t)j : (size_t)j * (size_t)x.cols + (size_t)i];
}

/* ||A'A - C'C||^2 = ||AA'||^2 + ||CC'||^2 - 2 ||AC'||^2, from the smaller Gram matrices; a (r x k),
 * ct (q x k) = diag(c) V' stands for C; row: that, and ||C'C||^2 */
static void gram_error(fl_run *run, int r, int q, int k, const double *a, const double *ct,
    const double *c, double *row)
{
    double *aa = fl_scratch(run, (size_t)r * (size_t)r, sizeof *aa), sum = 0, all = 0;
    double *ac = fl_scratch(run, (size_t)r * (size_t)q, sizeof *ac);

    fl_dgemm('n', 't', r, r, k, 1, a, a, 0, aa);
    fl_dgemm('n', 't', r, q, k, 1, a, ct, 0, ac);
    for (int i = 0; i < r * r; i++) {
        sum += aa[i] * aa[i];
    }
    for (int i = 0; i < r * q; i++) {
        sum -= 2 * ac[i] * ac[i];
    }
    for (int i = 0; i < q; i++) {
        all += pow(c[i], 4);
    }
    row[0] = fmax(sum + all, 0);
    row[1] = all;
}

static fl_err florg_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const fl_space *sp = run->space;
    bool in_a = sp->n_in[site] <= sp->m[site];
    fl_factor f = in_a ? FL_A : FL_B;
    int r = sp->r[site], k = inner(sp, site), rows = in->n * r, q = FL_MIN(rows, k),
        t = FL_MIN(r, q);
    size_t nk = (size_t)k;
    double *c = fl_scratch(run, (size_t)rows * nk, sizeof *c);
    double *u = fl_scratch(run, (size_t)rows * (size_t)q, sizeof *u);
    double *sv = fl_scratch(run, (size_t)q, sizeof *sv);
    double *at = fl_scratch(run, (size_t)q * nk, sizeof *at); /* V', then At = diag(c) V' */
    double *x = fl_scratch(run, (size_t)r * nk, sizeof *x);   /* A_prev, then A */
    double *m = fl_scratch(run, (size_t)r * (size_t)q, sizeof *m);
    double *mu = fl_scratch(run, (size_t)r * (size_t)t, sizeof *mu);
    double *mv = fl_scratch(run, (size_t)t * (size_t)q, sizeof *mv);
    double *ms = fl_scratch(run, (size_t)t, sizeof *ms);
    fl_mat last = fl_at(arg, site, f), next = fl_at(out[0], site, f);

    for (int i = 0; i < rows; i++) {
        const fl_item *it = &in->item[i / r];
        fl_mat a = fl_at(it->ad, site, f);

        for (int j = 0; j < k; j++) {
            c[(size_t)i * nk + (size_t)j] = sqrt(it->p) * carried(a, in_a, i % r, j);
        }
    }
    FL_TRY(fl_svd(rows, k, c, u, sv, at));
    for (int i = 0; i < r * k; i++) {
        x[i] = carried(last, in_a, i / k, i % k);
    }
    for (size_t i = 0; i < (size_t)q * nk; i++) {
        at[i] *= sv[i / nk];
    }
    fl_dgemm('n', 't', r, q, k, 1, x, at, 0, m);
    FL_TRY(fl_svd(r, q, m, mu, ms, mv));
    fl_dgemm('n', 'n', r, q, t, 1, mu, mv, 0, m);
    fl_dgemm('n', 'n', r, k, q, 1, m, at, 0, x);
    for (int i = 0; i < r * k; i++) {
        next.x[in_a ? i : i % k * r + i / k] = (fl_real)x[i];
    }
    gram_error(run, r, q, k, x, at, sv, row);
    return FL_OK;
}

static fl_err florg_aggregate(fl_run *run, fl_pile *in)
{
    fl_adapter *core = kept_core(run), *last = fl_scratch_adapter(run, run->space);
    fl_adapter *next = fl_scratch_adapter(run, run->space);
    double *rows = fl_scratch(run, 2 * (size_t)run->nsites, sizeof *rows), error = 0, all = 0;

    carry(run, core, last);
    FL_TRY(fl_sites(run, in, florg_site, last, 1, &next, 2, rows));
    for (int j = 0, at = 0; j < run->nsites; j++) {
        bool in_a = run->space->n_in[j] <= run->space->m[j];
        fl_mat x = fl_at(next, j, in_a ? FL_A : FL_B);

        if (x.x != NULL) {
            fl_mat a = fl_at(core, at++, FL_PLAIN);

            for (int i = 0; i < a.rows * a.cols; i++) {
                a.x[i] = (fl_real)carried(x, in_a, i / a.cols, i % a.cols);
            }
        }
        error += rows[2 * j];
        all += rows[2 * j + 1];
    }
    fl_metric(run, "gram_error", all > 0 ? sqrt(error / all) : 0);
    compose(kept_frames(run), core, run->global);
    return FL_OK;
}

const fl_method fl_method_florg = {
    .name = "florg",
    .title = "one trained factor between fixed frames, averaged as its Gram matrix",
    .source = "Meng et al. 2026, arXiv 2602.17095",
    .choice = "no official code was found. The start of A is ours: normal numbers, and its dW is "
              "taken out of the base. A_k travels (r k numbers), not its Gram matrix. Weights p_k "
              "as the deck says (the paper's are 1/K). L and R are drawn by QR of normal numbers "
              "and kept by the server: as much memory as the adapted matrices twice over.",
    .needs = FL_MERGES | FL_EACH | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(florg_config),
    .config = florg_fields,
    .setup = florg_setup,
    .download = florg_download,
    .train = florg_train,
    .step = florg_step,
    .upload = florg_upload,
    .aggregate = florg_aggregate,
};
