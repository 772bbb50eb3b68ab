/* peft_set_write - one PEFT adapter, written in any order of its sites: the header first, as all
 * sizes are known, then every tensor at its place. Tensors lie sorted by name, so that equal
 * content gives equal bytes. A folder is an adapter once it has adapter_config.json: an old one is
 * taken away before the new weights get their name, and the new one comes last. */
#include "peft_set.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OUT_PIECE = 1 << 14 }; /* numbers converted at a time */

typedef struct out_tensor {
    char *key;  /* owned */
    size_t at;  /* in the file */
    bool there; /* it was put */
} out_tensor;

struct fl_peft_out {
    const fl_peft_set *s; /* borrowed */
    char *dir;            /* owned */
    int *r;               /* owned [nsites] */
    json_t *config;       /* owned */
    fl_peft_dtype dtype;
    int nextras;
    out_tensor *tensor; /* owned [2 nsites + nextras]: A and B of every site, then the extras */
    fl_out file;
    unsigned char *piece; /* owned [4 OUT_PIECE] */
    fl_real *back;        /* owned [OUT_PIECE]: the piece as it will be read */
    double sum, error;    /* squares of all numbers, of what rounding took from them */
};

static const char *const out_dtype[] = {
    [FL_PEFT_F32] = "F32", [FL_PEFT_F16] = "F16", [FL_PEFT_BF16] = "BF16"};

/* ---- numbers ---- */
/* to nearest, ties to even; 0x7c00 = beyond the largest */
static uint16_t half_of(float x)
{
    double a = fabs((double)x);
    uint16_t sign = (uint16_t)(signbit(x) ? 0x8000 : 0);
    int e;

    if (a == 0) {
        return sign;
    }
    (void)frexp(a, &e);
    e = FL_MAX(e - 1, -14); /* 2^e <= a < 2^(e+1), or subnormal */
    a = nearbyint(
        ldexp(a, 10 - e)); /* 1024..2048, below 1024 if subnormal: units in the last place */
    if (e > 15 || (e == 15 && a >= 2048)) {
        return sign | 0x7c00;
    }
    return (uint16_t)(sign | (((e + 14) << 10) + (int)a));
}

static uint32_t float_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static uint16_t bfloat_of(float x)
{
    uint32_t bits = float_bits(x);

    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* one number to little-endian bytes */
static void out_number(fl_peft_dtype dtype, float x, unsigned char *to)
{
    uint32_t bits = dtype == FL_PEFT_F32   ? float_bits(x)
                    : dtype == FL_PEFT_F16 ? half_of(x)
                                           : bfloat_of(x);

    to[0] = (unsigned char)(bits & 255);
    to[1] = (unsigned char)(bits >> 8 & 255);
    if (dtype == FL_PEFT_F32) {
        to[2] = (unsigned char)(bits >> 16 & 255);
        to[3] = (unsigned char)(bits >> 24);
    }
}

/* sums what rounding took from a piece; refuses what the type does not hold */
static fl_err out_check(fl_peft_out *out, const char *key, const fl_real *x, size_t n)
{
    const char *dtype = out_dtype[out->dtype];

    if (fl_st_convert(dtype, out->piece, n, out->back) < n) {
        return fl_fail(FL_ENUM, "%s: tensor %.200s would have a NaN or a number beyond %s",
            out->file.path, key, dtype);
    }
    for (size_t i = 0; i < n && out->dtype != FL_PEFT_F32; i++) {
        double gap = (double)out->back[i] - (double)x[i];

        out->sum += (double)x[i] * (double)x[i];
        out->error += gap * gap;
    }
    return FL_OK;
}

static fl_err out_put(fl_peft_out *out, out_tensor *t, const fl_real *x, size_t n)
{
    size_t width = fl_st_width(out_dtype[out->dtype]);

    FL_REQUIRE(t->key != NULL && !t->there);
    for (size_t done = 0; done < n; done += OUT_PIECE) {
        size_t k = FL_MIN(n - done, (size_t)OUT_PIECE);

        for (size_t i = 0; i < k; i++) {
            out_number(out->dtype, (float)x[done + i], out->piece + i * width);
        }
        FL_TRY(out_check(out, t->key, x + done, k));
        FL_TRY(fl_out_put_at(&out->file, out->piece, k * width, t->at + done * width));
    }
    t->there = true;
    return FL_OK;
}

fl_err fl_peft_out_site(fl_peft_out *out, int site, const fl_real *a, const fl_real *b)
{
    FL_REQUIRE(site >= 0 && site < out->s->nsites && out->r[site] > 0);
    const fl_site *of = &out->s->site[site].site;
    size_t r = (size_t)out->r[site];

    FL_TRY(out_put(out, &out->tensor[2 * site], a, r * (size_t)of->n));
    return out_put(out, &out->tensor[2 * site + 1], b, (size_t)of->m * r);
}

fl_err fl_peft_out_extra(fl_peft_out *out, int extra, const fl_real *x)
{
    FL_REQUIRE(extra >= 0 && extra < out->nextras);
    return out_put(out, &out->tensor[2 * out->s->nsites + extra], x, out->s->extra[extra].n);
}

/* ---- the file ---- */
static char *out_key(const fl_peft_out *out, const char *name, int names, const char *tail)
{
    char written[PEFT_LONG];
    fl_text key = {0};

    peft_set_written(out->s, name, names, written);
    fl_text_add(&key, PEFT_PREFIX "%s%s", written, tail);
    return key.s;
}

/* The header, and from it the place of every tensor. *bytes: size of the file. */
static void out_layout(fl_peft_out *out, int names, fl_text *header, size_t *bytes)
{
    const fl_peft_set *s = out->s;
    size_t most = 2 * (size_t)s->nsites + (size_t)out->nextras, at;
    fl_st_out *plan = fl_alloc("adapter header", most, sizeof *plan);
    const fl_st_out **sorted = fl_alloc("adapter header", most, sizeof *sorted);
    int n = 0;

    for (int j = 0; j < s->nsites; j++) {
        const fl_peft_site *of = &s->site[j];

        if (out->r[j] > 0) {
            plan[2 * j] = (fl_st_out){.ndims = 2, .dims = {out->r[j], of->site.n}};
            plan[2 * j + 1] = (fl_st_out){.ndims = 2, .dims = {of->site.m, out->r[j]}};
            out->tensor[2 * j].key = out_key(
                out, of->name, names, of->embedding ? ".lora_embedding_A" : ".lora_A.weight");
            out->tensor[2 * j + 1].key = out_key(
                out, of->name, names, of->embedding ? ".lora_embedding_B" : ".lora_B.weight");
        }
    }
    for (int j = 0; j < out->nextras; j++) {
        int i = 2 * s->nsites + j;

        plan[i].ndims = s->extra[j].ndims;
        memcpy(plan[i].dims, s->extra[j].dims, sizeof plan[i].dims);
        out->tensor[i].key = out_key(out, s->extra[j].name, names, "");
    }
    for (size_t i = 0; i < most; i++) {
        plan[i].name = out->tensor[i].key;
        if (plan[i].name) {
            sorted[n++] = &plan[i];
        }
    }
    fl_st_sort(n, sorted);
    fl_st_header(n, sorted, out_dtype[out->dtype], "pt", header);
    at = header->n;
    for (int i = 0; i < n; i++) {
        size_t count = fl_st_width(out_dtype[out->dtype]);

        for (int k = 0; k < sorted[i]->ndims; k++) {
            count *= (size_t)sorted[i]->dims[k]; /* fl_st_header has seen that it fits */
        }
        out->tensor[sorted[i] - plan].at = at;
        at += count;
    }
    *bytes = at;
    fl_free(sorted);
    fl_free(plan);
}

/* dir must not be one that is read */
static fl_err out_elsewhere(const fl_peft_set *s, const char *dir)
{
    struct stat here, there;

    if (stat(dir, &here) != 0) {
        return fl_fail(FL_EFILE, "%s: cannot be read: %s", dir, strerror(errno));
    }
    for (int f = 0; f < s->nfolders; f++) {
        if (s->inside->folder[f].bytes == NULL && stat(s->folder[f], &there) == 0 &&
            here.st_dev == there.st_dev && here.st_ino == there.st_ino) {
            return fl_fail(FL_EUSAGE,
                "%s: is one of the adapters that are read; name another folder for what is written",
                dir);
        }
    }
    return FL_OK;
}

static fl_err out_open(fl_peft_out *out, const fl_text *header, size_t bytes)
{
    char *path = fl_path_join(out->dir, "adapter_model.safetensors");
    fl_err err = fl_out_begin(path, &out->file);

    fl_free(path);
    if (err == FL_OK && ftruncate(out->file.fd, (off_t)bytes) != 0) {
        err = fl_fail(FL_EFILE, "%s: cannot be made %zu bytes long: %s", out->file.tmp, bytes,
            strerror(errno));
    }
    return err == FL_OK ? fl_out_put_at(&out->file, header->s, header->n, 0) : err;
}

fl_err fl_peft_out_begin(
    const fl_peft_set *s, const char *dir, const fl_peft_how *how, fl_peft_out **out)
{
    fl_peft_out *o = NULL;
    fl_text header = {0};
    size_t bytes;
    fl_err err;
    bool any = false;

    *out = NULL;
    for (int j = 0; j < s->nsites; j++) {
        FL_REQUIRE(how->r[j] >= 0 && (how->scale == NULL || isfinite(how->scale[j])));
        any = any || how->r[j] > 0;
    }
    if (!any) {
        return fl_fail(FL_ESHAPE, "%s: the adapter has no matrix in it: nothing to write", dir);
    }
    FL_TRY(fl_make_dirs(dir));
    FL_TRY(out_elsewhere(s, dir));
    o = fl_alloc("adapter out", 1, sizeof *o);
    o->s = s;
    o->dir = fl_strdup(dir);
    o->dtype = how->dtype;
    o->nextras = how->no_extras ? 0 : s->nextras;
    o->file.fd = -1;
    o->r = fl_alloc("adapter out", (size_t)s->nsites, sizeof *o->r);
    memcpy(o->r, how->r, (size_t)s->nsites * sizeof *o->r);
    o->tensor =
        fl_alloc("adapter out", 2 * (size_t)s->nsites + (size_t)o->nextras, sizeof *o->tensor);
    o->piece = fl_alloc("adapter piece", OUT_PIECE, 4);
    o->back = fl_alloc("adapter piece", OUT_PIECE, sizeof *o->back);
    o->config = peft_config_write(s, how);
    out_layout(o, how->names, &header, &bytes);
    err = out_open(o, &header, bytes);
    fl_text_free(&header);
    if (err != FL_OK) {
        fl_peft_out_drop(&o);
    }
    *out = o;
    return err;
}

static fl_err out_finish(fl_peft_out *out)
{
    char *path = fl_path_join(out->dir, "adapter_config.json");
    fl_err err = FL_OK;

    if (fsync(out->file.fd) != 0) { /* before the old adapter goes: here a full disk shows */
        err = fl_fail(FL_EFILE, "%s: cannot be synced: %s", out->file.tmp, strerror(errno));
    } else if (unlink(path) != 0 && errno != ENOENT) {
        err = fl_fail(FL_EFILE, "%s: cannot be replaced: %s", path, strerror(errno));
    }
    if (err == FL_OK) {
        err = fl_out_commit(&out->file);
    }
    if (err == FL_OK) {
        err = fl_json_write(path, out->config);
    }
    fl_free(path);
    return err;
}

fl_err fl_peft_out_commit(fl_peft_out **out, double *rounding)
{
    fl_peft_out *o = *out;
    fl_err err;

    for (int i = 0; i < 2 * o->s->nsites + o->nextras; i++) {
        FL_REQUIRE(o->tensor[i].there || o->tensor[i].key == NULL);
    }
    if (rounding) {
        *rounding = o->sum > 0 ? sqrt(o->error / o->sum) : 0;
    }
    err = out_finish(o);
    fl_peft_out_drop(out);
    return err;
}

void fl_peft_out_drop(fl_peft_out **out)
{
    fl_peft_out *o = *out;

    *out = NULL;
    if (o == NULL) {
        return;
    }
    fl_out_drop(&o->file); /* after a commit there is nothing to drop */
    for (int i = 0; i < 2 * o->s->nsites + o->nextras; i++) {
        fl_free(o->tensor[i].key);
    }
    json_decref(o->config);
    fl_free(o->tensor);
    fl_free(o->r);
    fl_free(o->piece);
    fl_free(o->back);
    fl_free(o->dir);
    fl_free(o);
}
