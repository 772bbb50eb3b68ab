/* part_test.h - for tests of methods whose messages are more than one adapter: uploads put together by hand, the gradient by the base
 * weights of a client's first batch, inputs and outputs of official code (tests/golden, README.md there). */
#ifndef PART_TEST_H
#define PART_TEST_H
#include "method_run.h"

/* ---- uploads by hand: between bed_begin and round_aggregate ---- */
static inline void hand_send(bed *b, int i, int n, const fl_part *part, const char *name, int nnumbers, const double *numbers)
{
    fl_runtime *rt = b->rt;

    if (i == 0) {
        rt->sent = fl_scratch(&rt->run, (size_t)b->n, sizeof *rt->sent);
    }
    if (i < rt->first[b->ctx->rank] || i >= rt->first[b->ctx->rank + 1]) {
        return;
    }
    fl_msg *msg = fl_scratch(&rt->run, 1, sizeof *msg);

    *msg = (fl_msg){ .run = &rt->run, .up = true };
    for (int p = 0; p < n; p++) {
        fl_send(msg, part[p]);
    }
    if (name != NULL) {
        fl_put(msg, name, numbers, (size_t)nnumbers, 32);
    }
    bed_ok(msg->err);
    rt->sent[i] = msg;
}

/* ---- one rank, one client: what happens in a turn ---- */
/* body(b) on a run of its own on rank 0; the others wait */
static inline void alone(void (*body)(bed *b), const char *const *sets)
{
    if (test_ctx->rank == 0) {
        fl_ctx *self;
        bed b;

        fl_ctx_create(MPI_COMM_SELF, &self);
        self->quiet = true;
        bed_open(&b, self, sets);
        body(&b);
        bed_close(&b);
        fl_ctx_destroy(&self);
    }
    fl_max(test_ctx, 0);
}

static fl_adapter *part_gradient; /* owned by the test */

static inline fl_err part_record(fl_run *run, fl_client *c, fl_step *s)
{
    (void)run;
    (void)c;
    if (s->when == FL_GRAD && s->i == 0) {
        fl_fit(part_gradient, s->grad[0]);
    }
    return FL_OK;
}

/* G = dL/dW of the first batch of client 0 in round t, at the base and the LoRA adapter `with` (NULL: none) */
static inline fl_adapter *dense_gradient(bed *b, int t, fl_adapter *with)
{
    fl_run *run = &b->rt->run;
    const fl_method *mine = b->rt->method;
    fl_method record = { .name = mine->name, .step = part_record };
    fl_client c;
    fl_turn turn;

    b->rt->method = &record;
    run->round.t = t;
    bed_ok(turn_enrol(b->rt, 0, NULL, 0, &c, &turn));
    fl_adapter *w = fl_scratch_adapter(run, fl_space_base(run, run->space));
    fl_job job = { .steps = 1, .watch = 1, .data = { 0, FL_TRAIN } };

    job.stack = (fl_stack){ .n = with != NULL ? 2 : 1, .ad = { w, with }, .coef = { 1, 1 } };
    job.train[0].factors = job.train[1].factors = FL_NONE;
    part_gradient = fl_adapter_create(w->space);
    bed_ok(fl_train(run, &c, &job));
    turn_end(b->rt, &turn);
    b->rt->method = mine;
    return part_gradient;
}

/* x (m x n) = the site's rows of a DENSE adapter */
static inline void site_rows(const bed *b, const fl_adapter *dense, int site, double *x)
{
    const fl_site *st = &b->rt->base.model.site[site];
    int tensor, row0;

    fl_site_tensor(&b->rt->run, site, &tensor, &row0);
    const fl_real *from = fl_at(dense, tensor, FL_DENSE).x + (size_t)row0 * (size_t)st->n;

    for (int i = 0; i < st->m * st->n; i++) {
        x[i] = (double)from[i];
    }
}

/* c (m x n) = op(a) op(b), naive; op(a) is m x k */
static inline void naive(char ta, char tb, int m, int n, int k, const double *a, const double *b, double *c)
{
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;

            for (int l = 0; l < k; l++) {
                sum += (ta == 'n' ? a[i * k + l] : a[l * m + i]) * (tb == 'n' ? b[l * n + j] : b[j * k + l]);
            }
            c[i * n + j] = sum;
        }
    }
}

static inline double *doubles(fl_mat x, double *y)
{
    for (int i = 0; i < x.rows * x.cols; i++) {
        y[i] = (double)x.x[i];
    }
    return y;
}

/* || x - y ||_F <= tolerance || y ||_F */
static inline void assert_close(size_t n, const double *x, const double *y, double tolerance)
{
    double gap = 0;

    for (size_t i = 0; i < n; i++) {
        gap += pow(x[i] - y[i], 2);
    }
    assert_true(bed_norm2(n, y) > 0);
    assert_below(sqrt(gap), tolerance * sqrt(bed_norm2(n, y)));
}

/* || x x' - I || (rows) or || x' x - I || (columns) <= bound */
static inline void assert_orthonormal(fl_mat x, bool rows, double bound)
{
    int r = rows ? x.rows : x.cols, n = rows ? x.cols : x.rows;

    for (int i = 0; i < r; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = i == j ? -1 : 0;

            for (int k = 0; k < n; k++) {
                sum += rows ? (double)x.x[i * n + k] * (double)x.x[j * n + k] : (double)x.x[k * r + i] * (double)x.x[k * r + j];
            }
            assert_below(fabs(sum), bound);
        }
    }
}

/* the kept adapter or array of the server */
static inline fl_adapter *server_adapter(const bed *b, const char *name)
{
    fl_kept *k = kept_find(&b->rt->server, name, 0);

    assert_non_null(k);
    return k->ad;
}

static inline double *server_array(const bed *b, const char *name)
{
    fl_kept *k = kept_find(&b->rt->server, name, 0);

    assert_non_null(k);
    return k->x;
}

/* ---- golden files: site j of the files is golden_site[j] of a one-block Llama of width 12: m x n = 12 x 20, 20 x 12 ---- */
static const char *const golden_site[] = { "down", "up" };
static fl_st golden_st;

static inline void golden_name(char *name, size_t room, const char *what, int site, const char *tail)
{
    snprintf(name, room, "%s.site%d.%s", what, site, tail);
}

/* tensor WHAT.siteJ.TAIL of n elements into x */
static inline void golden_read(const char *what, int site, const char *tail, size_t n, fl_real *x)
{
    char name[80];

    golden_name(name, sizeof name, what, site, tail);
    int at = fl_st_find(&golden_st, name);

    if (at < 0) {
        fail_msg("the file has no %s", name);
    }
    bed_ok(fl_st_read(&golden_st, at, n, x));
}

static inline void golden_read_named(const char *name, size_t n, fl_real *x)
{
    int at = fl_st_find(&golden_st, name);

    assert_true(at >= 0);
    bed_ok(fl_st_read(&golden_st, at, n, x));
}

static inline double *golden_doubles(const char *what, int site, const char *tail, size_t n, double *x)
{
    fl_real y[BED_SIDE * BED_SIDE];

    assert_true(n <= FL_COUNT(y));
    golden_read(what, site, tail, n, y);
    for (size_t i = 0; i < n; i++) {
        x[i] = (double)y[i];
    }
    return x;
}

/* the site of the model of width 12 */
static inline int golden_at(const bed *b, int site)
{
    return fl_model_site_named(&b->rt->base.model, 0, golden_site[site]);
}

static inline fl_err golden_model(const char *dir)
{
    fl_model m = { .family = FL_FAMILY_LLAMA, .nlayers = 1, .nd = 12, .nheads = 2, .nkv = 1, .nff = 20, .vocab = 256, .nctx = 32,
        .rms = true, .rotary = true, .gated = true, .tied = true, .eps = 1e-5, .rope_theta = 10000, .init_range = 0.05 };

    FL_TRY(fl_model_complete(&m));
    fl_real *base = fl_alloc("base", fl_model_bytes(&m), 1);
    const fl_real **w = fl_alloc("tensors", (size_t)m.ntensors, sizeof *w);

    fl_model_init(&m, 7, base);
    for (int i = 0; i < m.ntensors; i++) {
        w[i] = base + m.tensor[i].at;
    }
    fl_err err = fl_hf_save(dir, &m, w);

    fl_free(w);
    fl_free(base);
    fl_model_free(&m);
    return err;
}

/* the file, and a run of the method on the model of its shapes: r 4, s = 1; sets: further keys */
static inline void golden_open(bed *b, const char *file, const char *const *sets)
{
    char path[300], model[320];
    const char *all[BED_SETS] = { "adapter.targets=[up, down]", "adapter.r=4", "adapter.alpha=4", model };
    int n = 4;

    snprintf(path, sizeof path, "tests/golden/%s.safetensors", file);
    bed_ok(fl_st_open(path, &golden_st));
    snprintf(path, sizeof path, "%s/golden", bed_dir);
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? fl_make_dirs(path) : FL_OK));
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? golden_model(path) : FL_OK));
    snprintf(model, sizeof model, "model.path=%s/golden", bed_dir);
    for (int i = 0; sets[i] != NULL; i++) {
        all[n++] = sets[i];
    }
    bed_open(b, test_ctx, all);
}

static inline void golden_close(bed *b)
{
    bed_close(b);
    fl_st_close(&golden_st);
}
#endif
