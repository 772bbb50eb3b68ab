/* ce_lora - every client keeps A and B; a core C between them is sent, and each client gets its own
 * mixture of everybody's.
 * Source: Li et al. 2025 (CE-LoRA, arXiv 2503.23869); client code 1503552056/CE-LoRA (its server is
 * unpublished). dW_k = s B_k C A_k,  C r x r. A ~ N(0, init_std^2), B = 0, C = I, alike on all.
 *   client  trains A_k, B_k, C from C = Cbar_k:  dL/dB = (dL/dBC) C', dL/dC = B' (dL/dBC), dL/dA as
 *           in LoRA with B C in place of B.
 *   server  Cbar_k = sum_j w_kj C_j over all clients it has heard of, each with its last C;
 *           w = rownorm(S^D + S^M), j = k included.
 *   S^D     data, once: class by class a Gaussian mixture (diagonal, EM) of the frozen base's
 *           features. Distance of two mixtures: optimal transport between their parts with cost
 *           ||mu - mu'||^2 + ||sigma - sigma'||^2, averaged over the classes that both have with
 *           weights min(n_c, n_c'); no common class: the largest distance known. S^D = exp(-D /
 *           median D).
 *   S^M     models, in every round: mean over matrices of the linear CKA of X C_k and X C_j for a
 *           fixed X (4r x r).
 * Traffic: r^2 per matrix up and down; once up, per class present, 2 + G (1 + 2 d) numbers. The
 * statistics are a privacy cost, which the paper's repository itself attacks. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

typedef struct ce_lora_config {
    int weights, parts, iterations;
    double init_std, floor;
} ce_lora_config;
enum { BY_SIMILARITY, UNIFORM, SELF };

static const fl_field ce_lora_fields[] = {
    FL_WORD(ce_lora_config, weights, "similarity", "similarity|uniform|self",
        "mixture of cores a client gets: by similarity, plain mean, only its own"),
    FL_REAL(ce_lora_config, init_std, "1.0e-3", 1e-12, 1e3, "", "standard deviation of A's start"),
    FL_INT(ce_lora_config, parts, "3", 1, 64, "Gaussians", "parts of a class's mixture"),
    FL_INT(ce_lora_config, iterations, "200", 1, 1e5, "steps", "most EM steps"),
    FL_REAL(ce_lora_config, floor, "1.0e-5", 1e-12, 1e3, "", "added to every variance"),
    FL_END,
};

/* ---- shapes and state ---- */
static const fl_space *core_space(fl_run *run)
{
    int *r = fl_scratch(run, (size_t)run->nsites, sizeof *r), n = 0;

    for (int j = 0; j < run->nsites; j++) {
        if (run->space->r[j] > 0) {
            r[n++] = run->space->r[j];
        }
    }
    return fl_space_plain(run, n, r, r);
}

static int nclasses(const fl_run *run)
{
    return FL_MAX(run->nclasses, 1); /* data without labels are one class */
}

/* numbers of one class: c, n_c, then weight, means, variances of every part */
static size_t class_size(const fl_run *run, int d)
{
    const ce_lora_config *cf = run->config;

    return 2 + (size_t)cf->parts * (1 + 2 * (size_t)d);
}

/* of a feature: the model's, which is the in-side of its first matrix */
static int width(const fl_run *run)
{
    return run->space->n_in[0];
}

/* the server's: the last core of every client, one after another */
static fl_adapter *kept_cores(fl_run *run)
{
    return fl_keep_adapter(run, NULL, "cores", 0,
        fl_space_plain(run, 1, &run->nclients, &(int){(int)core_space(run)->n}), NULL);
}

/* mixtures of every client, class after class; n_c = 0: not its class */
static double *kept_mixtures(fl_run *run, int client)
{
    size_t row = (size_t)nclasses(run) * class_size(run, width(run));
    double *all = fl_keep(run, NULL, "mixtures", 0, (size_t)run->nclients * row,
        "class mixtures of the clients: class, samples, weights, means, variances", NULL);

    return all + (size_t)client * row;
}

static double *kept_heard(fl_run *run)
{
    return fl_keep(run, NULL, "heard", 0, (size_t)run->nclients,
        "1 = the server has the client's core and mixture", NULL);
}

enum { NO_COMMON_CLASS = -1 };
static double *kept_distance(fl_run *run)
{
    size_t n = (size_t)run->nclients;

    return fl_keep(run, NULL, "distance", 0, n * n,
        "distance of two clients' data; -1 = no class in common", NULL);
}

enum { MEDIAN, LARGEST, NSCALES };
static double *kept_scales(fl_run *run)
{
    return fl_keep(
        run, NULL, "scales", 0, NSCALES, "median and largest distance of two clients", NULL);
}

static fl_err ce_lora_setup(fl_run *run)
{
    kept_cores(run);
    kept_mixtures(run, 0);
    kept_heard(run);
    kept_distance(run);
    kept_scales(run);
    return FL_OK;
}

/* ---- the client ---- */
enum { CORE, MODEL, OWN_B }; /* of c->ad */

/* slots of the shapes of one factor */
static const fl_space *side_space(fl_run *run, fl_factor f)
{
    size_t n = (size_t)run->nsites;
    int *rows = fl_scratch(run, n, sizeof *rows), *cols = fl_scratch(run, n, sizeof *cols), at = 0;

    for (int i = 0; i < run->space->nslots; i++) {
        if (run->space->slot[i].factor == f) {
            rows[at] = run->space->slot[i].rows;
            cols[at++] = run->space->slot[i].cols;
        }
    }
    return fl_space_plain(run, at, rows, cols);
}

/* keeps its model as LoRA factors (A, B C), which is what is evaluated and exported, and B */
static fl_err ce_lora_enroll(fl_run *run, fl_client *c)
{
    const ce_lora_config *cf = run->config;
    bool fresh;

    c->n = 3;
    c->ad[MODEL] = fl_keep_adapter(run, c, "model", 0, run->space, &fresh);
    c->ad[OWN_B] = fl_keep_adapter(run, c, "B", 0, side_space(run, FL_B), NULL);
    for (int j = 0; fresh && j < run->nsites; j++) {
        fl_mat a = fl_at(c->ad[MODEL], j, FL_A);

        for (int i = 0; i < a.rows * a.cols; i++) { /* the same on all clients */
            a.x[i] = (fl_real)(cf->init_std * fl_normal(run, 0, j, 0, (uint64_t)i));
        }
    }
    return FL_OK;
}

/* model = (A, B C) */
static void compose(
    const fl_adapter *a, const fl_adapter *b, const fl_adapter *c, fl_adapter *model)
{
    for (int j = 0, at = 0; j < model->space->nsites; j++) {
        fl_mat to = fl_at(model, j, FL_B), ma = fl_at(model, j, FL_A);

        if (to.x != NULL) {
            memcpy(
                ma.x, fl_at(a, at, FL_PLAIN).x, (size_t)ma.rows * (size_t)ma.cols * sizeof *ma.x);
            fl_gemm('n', 'n', to.rows, to.cols, to.cols, 1, fl_at(b, at, FL_PLAIN).x,
                fl_at(c, at, FL_PLAIN).x, 0, to.x);
            at++;
        }
    }
}

enum { ENTRY_MODEL, ENTRY_A, ENTRY_B, ENTRY_C, NENTRIES };

static fl_err ce_lora_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);
    fl_adapter *a = fl_scratch_adapter(run, side_space(run, FL_A));

    for (int j = 0, at = 0; j < run->nsites; j++) {
        fl_mat from = fl_at(c->ad[MODEL], j, FL_A);

        if (from.x != NULL) {
            memcpy(fl_at(a, at++, FL_PLAIN).x, from.x,
                (size_t)from.rows * (size_t)from.cols * sizeof *from.x);
        }
    }
    job.stack = (fl_stack){
        .n = NENTRIES, .ad = {c->ad[MODEL], a, c->ad[OWN_B], c->ad[CORE]}, .coef = {1, 1, 1, 1}};
    job.train[ENTRY_MODEL].factors = FL_NONE;
    job.watch = FL_BIT(ENTRY_MODEL);
    FL_TRY(fl_train(run, c, &job));
    compose(a, c->ad[OWN_B], c->ad[CORE], c->ad[MODEL]);
    return FL_OK;
}

static fl_err ce_lora_step(fl_run *run, fl_client *c, fl_step *s)
{
    fl_adapter *const *ad = s->job->stack.ad;

    (void)c;
    if (s->when == FL_BEFORE) {
        compose(ad[ENTRY_A], ad[ENTRY_B], ad[ENTRY_C], ad[ENTRY_MODEL]);
    }
    for (int j = 0, at = 0; s->when == FL_GRAD && j < run->nsites; j++) {
        fl_mat ga = fl_at(s->grad[ENTRY_MODEL], j, FL_A);
        fl_mat gbc = fl_at(s->grad[ENTRY_MODEL], j, FL_B);
        int m = gbc.rows, r = gbc.cols;

        if (gbc.x != NULL) {
            const fl_real *b = fl_at(ad[ENTRY_B], at, FL_PLAIN).x;
            const fl_real *core = fl_at(ad[ENTRY_C], at, FL_PLAIN).x;

            memcpy(fl_at(s->grad[ENTRY_A], at, FL_PLAIN).x, ga.x,
                (size_t)ga.rows * (size_t)ga.cols * sizeof *ga.x);
            fl_gemm('n', 't', m, r, r, 1, gbc.x, core, 0, fl_at(s->grad[ENTRY_B], at, FL_PLAIN).x);
            fl_gemm('t', 'n', r, r, m, 1, b, gbc.x, 0, fl_at(s->grad[ENTRY_C], at, FL_PLAIN).x);
            at++;
        }
    }
    return FL_OK;
}

/* what the client says of its data, class by class */
static fl_err describe(fl_run *run, fl_client *c, fl_msg *up)
{
    const ce_lora_config *cf = run->config;
    fl_job job = fl_job_of(run, c);
    int n, d, *label;
    fl_real *x;

    job.stack.n = 0; /* the base alone */
    FL_TRY(fl_feature(run, c, &job, &n, &d, &x, &label));
    FL_REQUIRE(d == width(run));
    size_t size = class_size(run, d), used = 0, parts = (size_t)cf->parts;
    double *all = fl_scratch(run, size * (size_t)nclasses(run), sizeof *all);
    double *own = fl_scratch(run, (size_t)n * (size_t)d, sizeof *own);

    for (int k = 0; k < nclasses(run); k++) {
        double *row = all + used, *mu = row + 2 + parts;
        uint64_t who[3] = {run->seed, (uint64_t)c->id, (uint64_t)k};
        int count = 0;

        for (int i = 0; i < n; i++) {
            for (int j = 0; (run->nclasses == 0 || label[i] == k) && j < d; j++) {
                own[(size_t)count * (size_t)d + (size_t)j] =
                    (double)x[(size_t)i * (size_t)d + (size_t)j];
            }
            count += run->nclasses == 0 || label[i] == k;
        }
        if (count > 0) {
            row[0] = k;
            row[1] = count;
            fl_mixture_fit(fl_hash(who, sizeof who, 0), count, d, own, cf->parts, cf->iterations,
                cf->floor, row + 2, mu, mu + parts * (size_t)d);
            used += size;
        }
    }
    fl_put(up, "mixture", all, used, 32);
    return FL_OK;
}

static fl_err ce_lora_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up, (fl_part){.ad = c->ad[CORE], .ref = c->got[CORE], .label = CORE});
    return fl_get(c->down, "tell", NULL) != NULL ? describe(run, c, up) : FL_OK;
}

/* ---- the server: similarity of data ---- */
static fl_err data_distance(fl_run *run, int i, int j, double *distance)
{
    const ce_lora_config *cf = run->config;
    const double *x = kept_mixtures(run, i), *y = kept_mixtures(run, j);
    size_t d = (size_t)width(run), parts = (size_t)cf->parts, size = class_size(run, (int)d);
    double sum = 0, weight = 0;

    for (int k = 0; k < nclasses(run); k++, x += size, y += size) {
        double w = fmin(x[1], y[1]), value;
        const double *mx = x + 2 + parts, *my = y + 2 + parts;

        if (w > 0) {
            FL_TRY(fl_mixture_distance(
                cf->parts, (int)d, x + 2, mx, mx + parts * d, y + 2, my, my + parts * d, &value));
            sum += w * value;
            weight += w;
        }
    }
    *distance = weight > 0 ? sum / weight : NO_COMMON_CLASS;
    return FL_OK;
}

/* distance as it counts: no common class is as far as it gets */
static double counted(const double *scales, double distance)
{
    return distance == NO_COMMON_CLASS ? scales[LARGEST] : distance;
}

static double data_similarity(const double *scales, double distance)
{
    double x = counted(scales, distance);

    return x > 0 ? exp(-x / scales[MEDIAN]) : 1;
}

static void rescale(fl_run *run)
{
    double *scales = kept_scales(run), *distance = kept_distance(run), sum = 0;
    const double *heard = kept_heard(run);
    size_t nk = (size_t)run->nclients, n = 0;
    double *list = fl_scratch(run, nk * nk / 2 + 1, sizeof *list);

    for (int pass = 0; pass < 2; pass++) {
        n = 0;
        for (size_t i = 0; i < nk; i++) {
            for (size_t j = 0; j < i; j++) {
                if (heard[i] > 0 && heard[j] > 0) {
                    scales[LARGEST] = fmax(scales[LARGEST], distance[i * nk + j]);
                    list[n++] = counted(scales, distance[i * nk + j]);
                }
            }
        }
        scales[LARGEST] =
            scales[LARGEST] > 0 ? scales[LARGEST] : 1; /* no pair has a common class */
    }
    if (n > 0) {
        scales[MEDIAN] = fl_select(n, list, n / 2);
        scales[MEDIAN] = scales[MEDIAN] > 0 ? scales[MEDIAN] : scales[LARGEST];
        for (size_t i = 0; i < n; i++) {
            sum += data_similarity(scales, list[i]);
        }
        fl_metric(run, "data_similarity", sum / (double)n);
    }
}

/* ---- the server: cores ---- */
static fl_err take_mixtures(fl_run *run, fl_pile *in)
{
    size_t size = class_size(run, width(run)), row = (size_t)nclasses(run) * size;
    size_t nk = (size_t)run->nclients;
    double *heard = kept_heard(run), *distance = kept_distance(run);
    double *rows = fl_scratch(run, (size_t)in->n * row, sizeof *rows);

    FL_TRY(fl_numbers(run, in, "mixture", (int)row, rows));
    for (int i = 0; i < in->n; i++) {
        const double *x = rows + (size_t)i * row, *end = x + row;
        size_t k = (size_t)in->item[i].client;

        if (heard[k] > 0) {
            continue;
        }
        for (; x < end && x[1] > 0; x += size) {
            memcpy(kept_mixtures(run, (int)k) + (size_t)x[0] * size, x, size * sizeof *x);
        }
        heard[k] = 1;
        for (size_t j = 0; j < nk; j++) {
            if (heard[j] > 0 && j != k) {
                FL_TRY(data_distance(run, (int)k, (int)j, &distance[k * nk + j]));
                distance[j * nk + k] = distance[k * nk + j];
            }
        }
    }
    return FL_OK;
}

static fl_err ce_lora_aggregate(fl_run *run, fl_pile *in)
{
    fl_mat cores = fl_at(kept_cores(run), 0, FL_PLAIN);
    double *rows = fl_scratch(run, (size_t)in->n * (size_t)cores.cols, sizeof *rows);

    FL_TRY(fl_values(run, in, CORE, cores.cols, rows));
    for (int i = 0; i < in->n; i++) {
        for (int e = 0; e < cores.cols; e++) {
            cores.x[(size_t)in->item[i].client * (size_t)cores.cols + (size_t)e] =
                (fl_real)rows[(size_t)i * (size_t)cores.cols + (size_t)e];
        }
    }
    FL_TRY(take_mixtures(run, in));
    rescale(run);
    return FL_OK;
}

/* mean over matrices of the CKA of X C_i and X C_j */
static double model_similarity(fl_run *run, const fl_real *ci, const fl_real *cj)
{
    const fl_space *sp = core_space(run);
    double sum = 0;

    for (int s = 0; s < sp->nslots; s++) {
        int r = sp->slot[s].rows, q = 4 * r;
        size_t rr = (size_t)r * (size_t)r, qr = (size_t)q * (size_t)r;
        double *x = fl_scratch(run, qr, sizeof *x), *c = fl_scratch(run, 2 * rr, sizeof *c);
        double *y = fl_scratch(run, 2 * qr, sizeof *y);

        for (size_t i = 0; i < qr; i++) {
            x[i] = fl_normal(run, 1, r, 0, i); /* the same in every round */
        }
        for (size_t i = 0; i < rr; i++) {
            c[i] = (double)ci[sp->slot[s].at + i];
            c[rr + i] = (double)cj[sp->slot[s].at + i];
        }
        fl_dgemm('n', 'n', q, r, r, 1, x, c, 0, y);
        fl_dgemm('n', 'n', q, r, r, 1, x, c + rr, 0, y + qr);
        sum += fl_cka(q, r, y, y + qr);
    }
    return sp->nslots > 0 ? sum / sp->nslots : 0;
}

/* w [nclients] of client k, sum 1; all 0: the server has nothing for it */
static void mixture_of_cores(fl_run *run, int k, double *w)
{
    const ce_lora_config *cf = run->config;
    fl_mat cores = fl_at(kept_cores(run), 0, FL_PLAIN);
    const double *heard = kept_heard(run), *scales = kept_scales(run);
    const double *distance = kept_distance(run) + (size_t)k * (size_t)run->nclients;
    bool known = heard[k] > 0;
    double sum = 0;

    for (int j = 0; j < run->nclients; j++) {
        if (heard[j] == 0 || (cf->weights == SELF && j != k)) {
            w[j] = 0;
        } else if (!known || cf->weights != BY_SIMILARITY) {
            w[j] = 1;
        } else {
            w[j] = j == k ? 2
                          : data_similarity(scales, distance[j]) +
                                model_similarity(run, cores.x + (size_t)k * (size_t)cores.cols,
                                    cores.x + (size_t)j * (size_t)cores.cols);
        }
        sum += w[j];
    }
    for (int j = 0; sum > 0 && j < run->nclients; j++) {
        w[j] /= sum;
    }
}

static fl_err ce_lora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_mat cores = fl_at(kept_cores(run), 0, FL_PLAIN);
    fl_adapter *core = fl_scratch_adapter(run, core_space(run));
    double *w = fl_scratch(run, (size_t)run->nclients, sizeof *w), sum = 0;

    mixture_of_cores(run, c->id, w);
    for (int j = 0; j < run->nclients; j++) {
        sum += w[j];
    }
    for (size_t e = 0; sum > 0 && e < core->space->n; e++) {
        double x = 0;

        for (int j = 0; j < run->nclients; j++) {
            x += w[j] > 0 ? w[j] * (double)cores.x[(size_t)j * (size_t)cores.cols + e] : 0;
        }
        core->v[e] = (fl_real)x;
    }
    for (int s = 0; sum == 0 && s < core->space->nslots; s++) {
        fl_mat one = fl_at(core, s, FL_PLAIN);

        for (int i = 0; i < one.rows; i++) {
            one.x[i * one.cols + i] = 1;
        }
    }
    fl_send(down, (fl_part){.ad = core, .label = CORE, .values = sum > 0 ? FL_SENT : FL_KNOWN});
    if (kept_heard(run)[c->id] == 0) {
        fl_put(down, "tell", &(double){1}, 1, 1);
    }
    return FL_OK;
}

static fl_err ce_lora_view(fl_run *run, fl_client *c, int which, fl_view *v)
{
    (void)run;
    if (c != NULL && which == 0) {
        v->name = "own";
        v->stack = (fl_stack){.n = 1, .ad = {c->ad[MODEL]}, .coef = {1}};
        v->data.client = c->id;
    }
    return FL_OK;
}

const fl_method fl_method_ce_lora = {
    .name = "ce_lora",
    .title = "private A and B, a core between them mixed for every client by similarity",
    .source = "Li et al. 2025, arXiv 2503.23869",
    .choice =
        "the authors' server is unpublished: the distance of mixtures, the CKA with a random probe "
        "(own and other core, 4r rows) and w = rownorm(S^D + S^M) are ours. Features are means "
        "over "
        "tokens of the base's last hidden state (the paper's are of [CLS]); data without labels "
        "are "
        "one class. EM starts from k-means and ends when the mean log-likelihood gains less than "
        "1e-3; no PCA. A client that the server has not heard of gets the plain mean of the cores, "
        "the first ones get I; it is asked for its mixture by one bit. Head and norms are not "
        "trained. The server keeps all mixtures: clients x classes x G (1 + 2 d) numbers.",
    .needs = FL_PERSONAL | FL_EACH | FL_NUMBERS | FL_ONLINE | FL_LORA_ONLY | FL_OWN_START,
    .config_size = sizeof(ce_lora_config),
    .config = ce_lora_fields,
    .setup = ce_lora_setup,
    .enroll = ce_lora_enroll,
    .download = ce_lora_download,
    .train = ce_lora_train,
    .step = ce_lora_step,
    .upload = ce_lora_upload,
    .aggregate = ce_lora_aggregate,
    .view = ce_lora_view,
};
