/* base - the frozen weights: one copy per node in shared memory, read by the node's leader, hashed
 * by all its ranks. */
#include "fedlora/io.h"
#include "file.h"
#include <string.h>

/* Sum mod 2^64 over tensors of hash(bytes, seed index): each rank of the node takes every
 * node_size-th tensor, and the sum does not depend on how many ranks there are. Collective over the
 * node. */
static uint64_t base_node_hash(fl_ctx *ctx, const fl_base *base)
{
    uint64_t sum = 0;

    for (int i = ctx->node_rank; i < base->model.ntensors; i += ctx->node_size) {
        const fl_tensor *t = &base->model.tensor[i];

        sum +=
            fl_hash(base->w[i], (size_t)t->rows * (size_t)t->cols * sizeof(fl_real), (uint64_t)i);
    }
    MPI_Allreduce(MPI_IN_PLACE, &sum, 1, MPI_UINT64_T, MPI_SUM, ctx->node);
    fl_mpi_count(ctx, sizeof sum);
    return sum;
}

uint64_t fl_base_hash(fl_ctx *ctx, const fl_base *base)
{
    uint64_t hash = base_node_hash(ctx, base);

    FL_REQUIRE(fl_same_everywhere(ctx, hash)); /* a merge gave other bits on another node */
    return hash;
}

/* rank 0 reads, all parse: one file system access however many ranks there are. Collective. */
static fl_err base_config(fl_ctx *ctx, const char *dir, fl_model *m)
{
    char *path = fl_path_join(dir, "config.json"), *json = NULL;
    size_t n = 0;
    fl_err err = fl_agree(ctx, ctx->rank == 0 ? fl_file_read(path, &json, &n) : FL_OK);

    if (err == FL_OK) {
        err = fl_agree(ctx, fl_bcast_text(ctx, &json, &n));
    }
    if (err == FL_OK) {
        err = fl_agree(ctx, fl_hf_config_parse(json, n, path, m));
    }
    fl_free(json);
    fl_free(path);
    return err;
}

/* Collective; on error the caller destroys base. */
static fl_err base_fill(fl_ctx *ctx, const char *dir, const char *share_dir, fl_base *base)
{
    fl_model *m = &base->model;

    FL_TRY(base_config(ctx, dir, m));
    FL_TRY(fl_share_create(ctx, share_dir, "base weights", fl_model_bytes(m), &base->share));
    FL_TRY_ALL(ctx, ctx->node_rank == 0 ? fl_hf_load(dir, m, base->share.x) : FL_OK);
    fl_share_fence(ctx);
    base->w = fl_alloc("base pointers", (size_t)m->ntensors, sizeof *base->w);
    for (int i = 0; i < m->ntensors; i++) {
        base->w[i] = (const fl_real *)base->share.x + m->tensor[i].at;
    }
    base->hash = base_node_hash(ctx, base);
    if (!fl_same_everywhere(ctx, base->hash)) { /* here the world's mistake: folders differ */
        return fl_fail(
            FL_EFILE, "%s: the nodes read different weights from it; is it a local folder?", dir);
    }
    return FL_OK;
}

fl_err fl_base_load(fl_ctx *ctx, const char *dir, const char *share_dir, fl_base *base)
{
    fl_err err;

    *base = (fl_base){.path = fl_strdup(dir)};
    err = base_fill(ctx, dir, share_dir, base);
    if (err != FL_OK) {
        fl_base_destroy(base);
    }
    return err;
}

void fl_base_destroy(fl_base *base)
{
    fl_free(base->w);
    if (base->share.x) {
        fl_share_destroy(&base->share);
    }
    fl_model_free(&base->model);
    fl_free(base->path);
    *base = (fl_base){0};
}
