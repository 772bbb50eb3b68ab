/* hf_weights - model.safetensors to the engine's base and back: GPT-2 and Llama.
 * One list of pieces (a tensor of the file = rows row0.. of a tensor of ours, perhaps transposed)
 * serves both directions. GPT-2  linears are Conv1D, [in, out] in the file: transposed; c_attn's
 * columns are q, k, v = our rows of "i.qkv" Llama  q_proj, k_proj, v_proj are stacked into "i.qkv";
 * gate_proj, up_proj into "i.up" Names in the file may or may not carry the prefix of the class
 * with a head (transformer., model.). Tensors of the file that the model does not name are ignored:
 * causal masks, rotary tables, heads of other tasks. */
#include "fedlora/io.h"
#include "file.h"
#include <string.h>

typedef struct hf_piece {
    char name[96];   /* in the file, without prefix */
    bool head;       /* lives outside the prefix */
    bool transposed; /* [cols, rows] in the file */
    int tensor, row0, rows;
} hf_piece;

typedef struct hf_row {
    const char *mine, *theirs; /* short names */
    bool transposed;
} hf_row;

static const hf_row hf_gpt2_rows[] = {{"norm1", "ln_1.weight", false},
    {"norm1_bias", "ln_1.bias", false}, {"qkv", "attn.c_attn.weight", true},
    {"qkv_bias", "attn.c_attn.bias", false}, {"o", "attn.c_proj.weight", true},
    {"o_bias", "attn.c_proj.bias", false}, {"norm2", "ln_2.weight", false},
    {"norm2_bias", "ln_2.bias", false}, {"up", "mlp.c_fc.weight", true},
    {"up_bias", "mlp.c_fc.bias", false}, {"down", "mlp.c_proj.weight", true},
    {"down_bias", "mlp.c_proj.bias", false}, {"embed", "wte.weight", false},
    {"pos", "wpe.weight", false}, {"normf", "ln_f.weight", false},
    {"normf_bias", "ln_f.bias", false}, {"head", "lm_head.weight", false}, {NULL, NULL, false}};

/* several rows with the same name of ours are stacked, in this order */
static const hf_row hf_llama_rows[] = {{"norm1", "input_layernorm.weight", false},
    {"qkv", "self_attn.q_proj.weight", false}, {"qkv", "self_attn.k_proj.weight", false},
    {"qkv", "self_attn.v_proj.weight", false}, {"o", "self_attn.o_proj.weight", false},
    {"norm2", "post_attention_layernorm.weight", false}, {"up", "mlp.gate_proj.weight", false},
    {"up", "mlp.up_proj.weight", false}, {"down", "mlp.down_proj.weight", false},
    {"embed", "embed_tokens.weight", false}, {"normf", "norm.weight", false},
    {"head", "lm_head.weight", false}, {NULL, NULL, false}};

static const char *hf_prefix(const fl_model *m)
{
    return m->family == FL_FAMILY_LLAMA ? "model." : "transformer.";
}

/* rows of the piece, in the order of hf_llama_rows; 0 = the whole tensor */
static int hf_piece_rows(const fl_model *m, const char *theirs)
{
    const struct {
        const char *name;
        int rows;
    } part[] = {{"self_attn.q_proj.weight", m->nheads * m->hd},
        {"self_attn.k_proj.weight", m->nkv * m->hd}, {"self_attn.v_proj.weight", m->nkv * m->hd},
        {"mlp.gate_proj.weight", m->nff}, {"mlp.up_proj.weight", m->nff}};

    for (size_t i = 0; i < FL_COUNT(part); i++) {
        if (strcmp(part[i].name, theirs) == 0) {
            return part[i].rows;
        }
    }
    return 0;
}

/* the pieces of tensor i, appended to piece[*n] */
static fl_err hf_tensor_pieces(const fl_model *m, int i, hf_piece *piece, int *n)
{
    const fl_tensor *t = &m->tensor[i];
    const char *dot = t->block >= 0 ? strchr(t->name, '.') : NULL, *mine = dot ? dot + 1 : t->name;
    const hf_row *row = m->family == FL_FAMILY_LLAMA ? hf_llama_rows : hf_gpt2_rows;
    int row0 = 0;

    for (; row->mine; row++) {
        hf_piece *p = &piece[*n];

        if (strcmp(row->mine, mine) != 0) {
            continue;
        }
        *p = (hf_piece){.tensor = i, .row0 = row0, .transposed = row->transposed};
        p->rows = hf_piece_rows(m, row->theirs);
        p->rows = p->rows > 0 ? p->rows : t->rows;
        p->head = strcmp(mine, "head") == 0;
        if (t->block >= 0) {
            snprintf(p->name, sizeof p->name, "%s.%d.%s",
                m->family == FL_FAMILY_LLAMA ? "layers" : "h", t->block, row->theirs);
        } else {
            snprintf(p->name, sizeof p->name, "%s", row->theirs);
        }
        row0 += p->rows;
        (*n)++;
    }
    return row0 == t->rows
               ? FL_OK
               : fl_fail(FL_EDECK, "the tensor %s has no counterpart in a Hugging Face %s model",
                     t->name, m->family == FL_FAMILY_LLAMA ? "Llama" : "GPT-2");
}

/* *piece owned by the caller; at most three pieces make a tensor */
static fl_err hf_pieces(const fl_model *m, hf_piece **piece, int *n)
{
    *n = 0;
    *piece = fl_alloc("names of weights", 3 * (size_t)m->ntensors, sizeof **piece);
    for (int i = 0; i < m->ntensors; i++) {
        FL_TRY(hf_tensor_pieces(m, i, *piece, n));
    }
    return FL_OK;
}

static int hf_find(const fl_st *st, const fl_model *m, const hf_piece *p, char name[128])
{
    int e;

    snprintf(name, 128, "%s%s", p->head ? "" : hf_prefix(m), p->name);
    e = fl_st_find(st, name);
    return e >= 0 ? e : fl_st_find(st, p->name);
}

/* shape of the piece in the file: vectors have one dimension */
static int hf_dims(const fl_model *m, const hf_piece *p, int64_t dims[2])
{
    const fl_tensor *t = &m->tensor[p->tensor];
    bool vector = strstr(t->name, "norm") || strstr(t->name, "_bias");

    if (vector) {
        dims[0] = t->cols;
        return 1;
    }
    dims[0] = p->transposed ? t->cols : p->rows;
    dims[1] = p->transposed ? p->rows : t->cols;
    return 2;
}

static void hf_shape_text(int ndims, const int64_t *dims, fl_text *t)
{
    fl_text_add(t, "[");
    for (int i = 0; i < ndims; i++) {
        fl_text_add(t, "%s%lld", i ? ", " : "", (long long)dims[i]);
    }
    fl_text_add(t, "]");
}

static fl_err hf_shape_wrong(const fl_st *st, const fl_st_entry *e, int ndims, const int64_t *dims)
{
    fl_text has = {0}, wants = {0};
    fl_err err;

    hf_shape_text(e->ndims, e->dims, &has);
    hf_shape_text(ndims, dims, &wants);
    err = fl_fail(FL_ESHAPE, "%s: tensor %s has the shape %s, but config.json makes it %s",
        st->path, e->name, has.s, wants.s);
    fl_text_free(&has);
    fl_text_free(&wants);
    return err;
}

/* y [cols][rows] = transpose of x [rows][cols] */
static void hf_transpose(int rows, int cols, const fl_real *x, fl_real *y)
{
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            y[(size_t)j * (size_t)rows + (size_t)i] = x[(size_t)i * (size_t)cols + (size_t)j];
        }
    }
}

static fl_err hf_load_piece(const fl_st *st, const fl_model *m, const hf_piece *p, fl_real *base)
{
    const fl_tensor *t = &m->tensor[p->tensor];
    size_t n = (size_t)p->rows * (size_t)t->cols;
    fl_real *to = base + t->at + (size_t)p->row0 * (size_t)t->cols, *turned;
    char name[128];
    int e = hf_find(st, m, p, name), ndims;
    int64_t dims[2];
    fl_err err;

    if (e < 0) {
        return fl_fail(FL_EFILE, "%s: has no tensor %s%s%s, which config.json asks for", st->path,
            name, p->head ? "" : " or ", p->head ? "" : p->name);
    }
    ndims = hf_dims(m, p, dims);
    if (st->entry[e].ndims != ndims || memcmp(st->entry[e].dims, dims, (size_t)ndims * 8) != 0) {
        return hf_shape_wrong(st, &st->entry[e], ndims, dims);
    }
    if (!p->transposed) {
        return fl_st_read(st, e, n, to);
    }
    turned = fl_alloc("transposed weight", n, sizeof *turned);
    err = fl_st_read(st, e, n, turned);
    hf_transpose(t->cols, p->rows, turned, to);
    fl_free(turned);
    return err;
}

/* why there is no model.safetensors */
static fl_err hf_no_weights(const char *dir)
{
    char *index = fl_path_join(dir, "model.safetensors.index.json");
    char *pickle = fl_path_join(dir, "pytorch_model.bin");
    fl_err err;

    if (fl_path_exists(index)) {
        err = fl_fail(FL_EFILE,
            "%s: the weights are in several files (model.safetensors.index.json); sharded folders "
            "are "
            "not supported yet: save it with a larger max_shard_size",
            dir);
    } else if (fl_path_exists(pickle)) {
        err = fl_fail(FL_EFILE,
            "%s: the weights are a Python pickle (pytorch_model.bin), which is not read: save them "
            "as safetensors",
            dir);
    } else {
        err = fl_fail(FL_EFILE, "%s: has no model.safetensors", dir);
    }
    fl_free(index);
    fl_free(pickle);
    return err;
}

fl_err fl_hf_load(const char *dir, const fl_model *m, fl_real *base)
{
    char *path = fl_path_join(dir, "model.safetensors");
    hf_piece *piece = NULL;
    fl_st st = {.fd = -1};
    int n = 0;
    fl_err err = fl_path_exists(path) ? fl_st_open(path, &st) : hf_no_weights(dir);

    if (err == FL_OK) {
        memset(base, 0, fl_model_bytes(m)); /* the gaps between tensors too */
        err = hf_pieces(m, &piece, &n);
    }
    for (int i = 0; i < n && err == FL_OK; i++) {
        err = hf_load_piece(&st, m, &piece[i], base);
    }
    fl_st_close(&st);
    fl_free(piece);
    fl_free(path);
    return err;
}

/* what the two families fix; a model made elsewhere may have other switches */
static fl_err hf_has_class(const fl_model *m)
{
    bool llama = m->family == FL_FAMILY_LLAMA;

    if (m->rms != llama || m->rotary != llama || m->gated != llama || m->bias == llama ||
        (!llama && (m->nkv != m->nheads || m->nheads * m->hd != m->nd))) {
        return fl_fail(FL_EDECK, "this model is not a plain %s: no Hugging Face class holds it",
            llama ? "Llama" : "GPT-2");
    }
    return FL_OK;
}

static fl_err hf_save_weights(
    const char *path, const fl_model *m, int n, const hf_piece *piece, const fl_real *const *w)
{
    fl_st_out *out = fl_alloc("weights to write", (size_t)n, sizeof *out);
    fl_real **turned = fl_alloc("transposed weights", (size_t)n, sizeof *turned);
    char(*name)[128] = fl_alloc("names of weights", (size_t)n, sizeof *name);
    fl_err err;

    for (int i = 0; i < n; i++) {
        const hf_piece *p = &piece[i];
        int cols = m->tensor[p->tensor].cols;

        snprintf(name[i], sizeof name[i], "%s%s", p->head ? "" : hf_prefix(m), p->name);
        out[i].name = name[i];
        out[i].ndims = hf_dims(m, p, out[i].dims);
        out[i].x = w[p->tensor] + (size_t)p->row0 * (size_t)cols;
        if (p->transposed) {
            turned[i] =
                fl_alloc("transposed weight", (size_t)p->rows * (size_t)cols, sizeof **turned);
            hf_transpose(p->rows, cols, out[i].x, turned[i]);
            out[i].x = turned[i];
        }
    }
    err = fl_st_write(path, n, out, "pt");
    for (int i = 0; i < n; i++) {
        fl_free(turned[i]);
    }
    fl_free(name);
    fl_free(turned);
    fl_free(out);
    return err;
}

fl_err fl_hf_save(const char *dir, const fl_model *m, const fl_real *const *w)
{
    char *path = fl_path_join(dir, "model.safetensors");
    hf_piece *piece = NULL;
    int n = 0;
    fl_err err = hf_has_class(m);

    if (err == FL_OK) {
        err = hf_pieces(m, &piece, &n);
    }
    if (err == FL_OK) {
        err = fl_make_dirs(dir);
    }
    if (err == FL_OK) {
        err = hf_save_weights(path, m, n, piece, w);
    }
    if (err == FL_OK) { /* last: a folder with a config.json is whole */
        err = fl_hf_config_write(dir, m);
    }
    fl_free(piece);
    fl_free(path);
    return err;
}
