/* model.c - the shape of a transformer: its tensors in the shared base, the sites an adapter can
 * take, the checks. Tensors and their order: nn.h. */
#include "fedlora/deck.h"
#include "nn_internal.h"
#include <limits.h>
#include <math.h>
#include <string.h>

enum {
    MODEL_ALIGN = 64 / sizeof(fl_real), /* elements in 64 bytes */
    MODEL_BLOCKS = 100000               /* more is a damaged file, not a model */
};

static fl_err model_sizes_positive(const fl_model *m)
{
    const struct {
        const char *name;
        int value;
    } size[] = {{"number of blocks", m->nlayers}, {"width", m->nd}, {"number of heads", m->nheads},
        {"number of key/value heads", m->nkv}, {"inner width", m->nff}, {"vocabulary", m->vocab},
        {"context length", m->nctx}};

    for (size_t i = 0; i < FL_COUNT(size); i++) {
        if (size[i].value <= 0) {
            return fl_fail(FL_EDECK, "model: the %s is %d; it must be at least 1", size[i].name,
                size[i].value);
        }
    }
    return m->hd < 0
               ? fl_fail(FL_EDECK, "model: the width of a head is %d; it must be at least 1", m->hd)
               : FL_OK;
}

static fl_err model_heads(fl_model *m)
{
    if (m->nkv > m->nheads || m->nheads % m->nkv != 0) {
        return fl_fail(FL_EDECK,
            "model: %d key/value heads do not divide %d heads; choose a divisor", m->nkv,
            m->nheads);
    }
    if (m->hd == 0 && m->nd % m->nheads != 0) {
        return fl_fail(FL_EDECK,
            "model: %d heads do not divide the width %d; choose a width that is a multiple",
            m->nheads, m->nd);
    }
    if (m->hd == 0) {
        m->hd = m->nd / m->nheads;
    }
    if (m->family == FL_FAMILY_GPT2 && (int64_t)m->nheads * m->hd != m->nd) {
        return fl_fail(FL_EDECK,
            "model: %d heads of width %d do not make the width %d, as GPT-2's must", m->nheads,
            m->hd, m->nd);
    }
    if (m->rotary && m->hd % 2 != 0) {
        return fl_fail(FL_EDECK,
            "model: rotary positions turn pairs, but the width of a head is %d; choose an even one",
            m->hd);
    }
    return FL_OK;
}

static fl_err model_numbers(const fl_model *m)
{
    if (m->family != FL_FAMILY_GPT2 && m->family != FL_FAMILY_LLAMA) {
        return fl_fail(
            FL_EDECK, "model: family %d is unknown; gpt2 and llama are known", m->family);
    }
    if (!(m->eps > 0) || !isfinite(m->eps)) {
        return fl_fail(FL_EDECK, "model: eps of the norms is %g; it must be positive", m->eps);
    }
    if (m->rotary && (!(m->rope_theta > 0) || !isfinite(m->rope_theta))) {
        return fl_fail(FL_EDECK, "model: rope_theta is %g; it must be positive", m->rope_theta);
    }
    if (!(m->init_range >= 0) || !isfinite(m->init_range)) {
        return fl_fail(FL_EDECK, "model: init_range is %g; it must not be negative", m->init_range);
    }
    return FL_OK;
}

/* every dimension of every array must fit the 32-bit interface of BLAS, the whole the address
 * space; in double, because the products of hostile sizes overflow 64 bits */
static fl_err model_fits(const fl_model *m)
{
    double wide = ((double)m->nheads + 2.0 * m->nkv) * m->hd, inner = 2.0 * m->nff;
    double per =
        (wide + (double)m->nheads * m->hd + 3.0 * m->nff + 16.0) * m->nd + 8.0 * wide + 8.0 * inner;
    double all = per * m->nlayers + 2.0 * m->vocab * m->nd + (double)m->nctx * m->nd;

    if (m->nlayers > MODEL_BLOCKS) {
        return fl_fail(
            FL_EDECK, "model: %d blocks; at most %d are supported", m->nlayers, MODEL_BLOCKS);
    }
    if (wide > INT_MAX || inner > INT_MAX) {
        return fl_fail(FL_EDECK,
            "model: heads (%d + 2 x %d) of width %d or an inner width of %d exceed the 32-bit "
            "sizes of BLAS",
            m->nheads, m->nkv, m->hd, m->nff);
    }
    if (all * (double)sizeof(fl_real) > 0x1p60) {
        return fl_fail(
            FL_EDECK, "model: about %.3g weights cannot be addressed; choose smaller sizes", all);
    }
    return FL_OK;
}

static void model_tensor(fl_model *m, int block, const char *name, int rows, int cols)
{
    fl_tensor *t = &m->tensor[m->ntensors];
    size_t at = 0;

    if (m->ntensors > 0) {
        const fl_tensor *before = t - 1;
        at = before->at + (size_t)before->rows * (size_t)before->cols;
        at = (at + MODEL_ALIGN - 1) / MODEL_ALIGN * MODEL_ALIGN;
    }
    *t = (fl_tensor){.block = block, .rows = rows, .cols = cols, .at = at};
    if (block >= 0) {
        snprintf(t->name, sizeof t->name, "%d.%s", block, name);
    } else {
        snprintf(t->name, sizeof t->name, "%s", name);
    }
    m->ntensors++;
    m->nweights += (size_t)rows * (size_t)cols;
}

static void model_block_tensors(fl_model *m, int i)
{
    int inner = m->nheads * m->hd, wide = (m->nheads + 2 * m->nkv) * m->hd,
        up = m->gated ? 2 * m->nff : m->nff;
    const struct {
        const char *name;
        bool here;
        int rows, cols;
    } row[] = {{"norm1", true, 1, m->nd}, {"norm1_bias", !m->rms, 1, m->nd},
        {"qkv", true, wide, m->nd}, {"qkv_bias", m->bias, 1, wide}, {"o", true, m->nd, inner},
        {"o_bias", m->bias, 1, m->nd}, {"norm2", true, 1, m->nd}, {"norm2_bias", !m->rms, 1, m->nd},
        {"up", true, up, m->nd}, {"up_bias", m->bias, 1, up}, {"down", true, m->nd, m->nff},
        {"down_bias", m->bias, 1, m->nd}};

    for (size_t j = 0; j < FL_COUNT(row); j++) {
        if (row[j].here) {
            model_tensor(m, i, row[j].name, row[j].rows, row[j].cols);
        }
    }
}

static void model_block_sites(fl_model *m, int i)
{
    int inner = m->nheads * m->hd, kv = m->nkv * m->hd;
    const struct {
        const char *name;
        bool here;
        int m, n;
    } row[] = {{"q", true, inner, m->nd}, {"k", true, kv, m->nd}, {"v", true, kv, m->nd},
        {"o", true, m->nd, inner}, {"gate", m->gated, m->nff, m->nd}, {"up", true, m->nff, m->nd},
        {"down", true, m->nd, m->nff}};

    for (size_t j = 0; j < FL_COUNT(row); j++) {
        if (row[j].here) {
            fl_site *s = &m->site[m->nsites++];
            *s = (fl_site){.block = i, .m = row[j].m, .n = row[j].n};
            snprintf(s->name, sizeof s->name, "%d.%s", i, row[j].name);
        }
    }
}

fl_err fl_model_complete(fl_model *m)
{
    FL_TRY(model_sizes_positive(m));
    FL_TRY(model_heads(m));
    FL_TRY(model_numbers(m));
    FL_TRY(model_fits(m));
    m->ntensors = m->nsites = 0;
    m->nweights = 0;
    m->tensor = fl_alloc("model tensors", 12 * (size_t)m->nlayers + 5, sizeof *m->tensor);
    m->site = fl_alloc("model sites", 7 * (size_t)m->nlayers, sizeof *m->site);
    model_tensor(m, -1, "embed", m->vocab, m->nd);
    if (!m->rotary) {
        model_tensor(m, -1, "pos", m->nctx, m->nd);
    }
    for (int i = 0; i < m->nlayers; i++) {
        model_block_tensors(m, i);
        model_block_sites(m, i);
    }
    model_tensor(m, -1, "normf", 1, m->nd);
    if (!m->rms) {
        model_tensor(m, -1, "normf_bias", 1, m->nd);
    }
    if (!m->tied) {
        model_tensor(m, -1, "head", m->vocab, m->nd);
    }
    return FL_OK;
}

void fl_model_free(fl_model *m)
{
    fl_free(m->tensor);
    fl_free(m->site);
    m->tensor = NULL;
    m->site = NULL;
    m->ntensors = m->nsites = 0;
    m->nweights = 0;
}

size_t fl_model_bytes(const fl_model *m)
{
    const fl_tensor *t = &m->tensor[m->ntensors - 1];
    size_t n = t->at + (size_t)t->rows * (size_t)t->cols;

    return (n + MODEL_ALIGN - 1) / MODEL_ALIGN * MODEL_ALIGN * sizeof(fl_real);
}

/* index of a tensor by block (-1 = outside) and short name; -1 = none */
static int model_find(const fl_model *m, int block, const char *name)
{
    for (int i = 0; i < m->ntensors; i++) {
        if (m->tensor[i].block == block) {
            const char *dot = strchr(m->tensor[i].name, '.');
            if (strcmp(dot ? dot + 1 : m->tensor[i].name, name) == 0) {
                return i;
            }
        }
    }
    return -1;
}

int fl_model_site_named(const fl_model *m, int block, const char *short_name)
{
    for (int i = 0; i < m->nsites; i++) {
        if (m->site[i].block == block &&
            strcmp(strchr(m->site[i].name, '.') + 1, short_name) == 0) {
            return i;
        }
    }
    return -1;
}

/* the tensor that holds a site, by short names, and the site's first row there */
void fl_model_site_tensor(const fl_model *m, int site, int *tensor, int *row0)
{
    FL_REQUIRE(site >= 0 && site < m->nsites);
    const char *name = strchr(m->site[site].name, '.') + 1;
    const struct {
        const char *site, *tensor;
        int row0;
    } row[] = {{"q", "qkv", 0}, {"k", "qkv", m->nheads * m->hd},
        {"v", "qkv", (m->nheads + m->nkv) * m->hd}, {"o", "o", 0}, {"gate", "up", 0},
        {"up", "up", m->gated ? m->nff : 0}, {"down", "down", 0}};

    for (size_t j = 0; j < FL_COUNT(row); j++) {
        if (strcmp(name, row[j].site) == 0) {
            *tensor = model_find(m, m->site[site].block, row[j].tensor);
            *row0 = row[j].row0;
            return;
        }
    }
    FL_REQUIRE(!"a site has one of the seven names");
}

static void shape_group(
    const fl_model *m, int block, const char *name, const char *bias, nn_group *g)
{
    g->tensor = model_find(m, block, name);
    g->bias = model_find(m, block, bias);
    g->m = m->tensor[g->tensor].rows;
    g->n = m->tensor[g->tensor].cols;
    g->nsites = 0;
}

void nn_shape_create(const fl_model *m, nn_shape *shape)
{
    static const char *const name[NN_GROUPS][2] = {
        {"qkv", "qkv_bias"}, {"o", "o_bias"}, {"up", "up_bias"}, {"down", "down_bias"}};

    shape->block = fl_alloc("model map", (size_t)m->nlayers, sizeof *shape->block);
    for (int i = 0; i < m->nlayers; i++) {
        nn_block *b = &shape->block[i];
        b->norm1 = model_find(m, i, "norm1");
        b->norm1_bias = model_find(m, i, "norm1_bias");
        b->norm2 = model_find(m, i, "norm2");
        b->norm2_bias = model_find(m, i, "norm2_bias");
        for (int j = 0; j < NN_GROUPS; j++) {
            shape_group(m, i, name[j][0], name[j][1], &b->g[j]);
        }
    }
    for (int s = 0; s < m->nsites; s++) {
        int tensor = -1, row0 = 0;
        fl_model_site_tensor(m, s, &tensor, &row0);
        for (int j = 0; j < NN_GROUPS; j++) {
            nn_group *g = &shape->block[m->site[s].block].g[j];
            if (g->tensor == tensor) {
                g->site[g->nsites] = s;
                g->row0[g->nsites++] = row0;
            }
        }
    }
    shape->embed = model_find(m, -1, "embed");
    shape->pos = model_find(m, -1, "pos");
    shape->normf = model_find(m, -1, "normf");
    shape->normf_bias = model_find(m, -1, "normf_bias");
    shape->head = m->tied ? shape->embed : model_find(m, -1, "head");
}

void nn_shape_destroy(nn_shape *shape)
{
    fl_free(shape->block);
    shape->block = NULL;
}

void fl_model_init(const fl_model *m, uint64_t seed, fl_real *base)
{
    memset(base, 0, fl_model_bytes(m)); /* the gaps too: the base is hashed */
    for (int i = 0; i < m->ntensors; i++) {
        const fl_tensor *t = &m->tensor[i];
        const char *dot = strchr(t->name, '.'), *name = dot ? dot + 1 : t->name;
        size_t n = (size_t)t->rows * (size_t)t->cols;
        double std = m->init_range;

        if (strstr(name, "_bias")) {
            continue;
        }
        if (strcmp(name, "o") == 0 || strcmp(name, "down") == 0) {
            std /= sqrt(2.0 * m->nlayers);
        }
        bool norm = strncmp(name, "norm", 4) == 0;
        for (size_t j = 0; j < n; j++) {
            base[t->at + j] =
                norm ? 1 : (fl_real)(std * fl_rng_normal(seed, FL_RNG_WEIGHTS, i, 0, j));
        }
    }
}
