/* merge.c - revisions of the base: W <- W + coef s B A, once per node, and what a client that
 * missed one pays. */
#include "fed_internal.h"

#include <string.h>

static bool owns(const fl_runtime *rt, int site)
{
    return rt->owner[site] == rt->ctx->rank;
}

/* A then B of one site */
static void pack(const fl_adapter *ad, int site, fl_real *x)
{
    for (int f = FL_A; f <= FL_B; f++) {
        fl_mat m = fl_at(ad, site, (fl_factor)f);
        size_t n = m.x != NULL ? (size_t)m.rows * (size_t)m.cols : 0;

        if (n > 0) {
            memcpy(x, m.x, n * sizeof *x);
            x += n;
        }
    }
}

/* the site's factors go to one rank of every node, which adds them to the node's copy of the base
 */
static void merge_site(fl_runtime *rt, const fl_adapter *ad, int site, double coef)
{
    const fl_model *m = &rt->base.model;
    int r = ad->space->r[site], tensor, row0, i[2];
    size_t n = (size_t)r * ((size_t)m->site[site].m + (size_t)m->site[site].n), at[2];
    bool spread = ad->at != NULL, one = rt->ctx->nnodes == 1;
    fl_real *x = NULL;

    fl_model_site_tensor(m, site, &tensor, &row0);
    for (int f = FL_A; f <= FL_B; f++) {
        i[f] = ad->space->slot_of[2 * site + f];
    }
    if (spread && !one) {
        x = fl_alloc("factors to merge", n, sizeof *x);
        if (owns(rt, site)) {
            pack(ad, site, x);
        }
        if (!fl_to_nodes(rt->ctx, rt->owner[site], site % rt->min_node_size, x, n * sizeof *x)) {
            fl_free(x);
            return;
        }
    } else if (one ? !owns(rt, site) : rt->ctx->node_rank != site % rt->min_node_size) {
        return;
    }
    size_t *slot_at = fl_alloc("slot offsets", (size_t)ad->space->nslots, sizeof *slot_at);

    memset(slot_at, 0xff, (size_t)ad->space->nslots * sizeof *slot_at);
    at[FL_A] = 0;
    at[FL_B] = (size_t)r * (size_t)m->site[site].n;
    for (int f = FL_A; f <= FL_B; f++) {
        slot_at[i[f]] = x != NULL ? at[f] : spread ? ad->at[i[f]] : ad->space->slot[i[f]].at;
    }
    fl_adapter view = {.space = ad->space, .v = x != NULL ? x : ad->v, .at = slot_at};

    fl_linear_merge(m, site, (fl_real *)(uintptr_t)rt->base.w[tensor], &view, coef);
    fl_free(slot_at);
    fl_free(x);
}

/* what a client that missed the revision pays: the factors that are sent, a seed for the other;
 * with pairs or elems exactly those, from which it works out the rest */
static double merge_bytes(const fl_adapter *ad, fl_pick sent)
{
    double bytes = 0;

    if (sent.factors == FL_NONE) {
        return 0;
    }
    for (int i = 0; i < ad->space->nslots; i++) {
        bytes += 4.0 * (double)pick_count(ad->space, sent, i);
    }
    return bytes + (sent.factors != 0 && sent.pairs == NULL && sent.elems == NULL ? 8 : 0);
}

fl_err fl_merge(fl_run *run, const fl_adapter *ad, double coef, fl_pick sent)
{
    fl_runtime *rt = run->rt;

    FL_REQUIRE((rt->aggregating && (rt->method->needs & FL_MERGES) != 0) || rt->in_setup);
    FL_REQUIRE(rt->nmerges < MAX_MERGES && rt->now == NULL);
    if (rt->source == NULL) {
        fl_phase_begin(rt->ctx, FL_PHASE_merge);
        fl_share_fence(rt->ctx); /* nobody of the node still trains on the old base */
        for (int j = 0; j < ad->space->nsites; j++) {
            if (ad->space->r[j] > 0) {
                merge_site(rt, ad, j, coef);
            }
        }
        fl_share_fence(rt->ctx);
        fl_phase_end(rt->ctx, FL_PHASE_merge);
        rt->revision_bytes[run->round.t] += merge_bytes(ad, sent);
    }
    rt->base_revision++;
    if (ad->at ==
        NULL) { /* the method may change it afterwards; the discordance needs it as it was */
        ad = fl_scratch_copy(run, ad);
    }
    rt->merged[rt->nmerges++] = (fl_merged){ad, coef};
    return FL_OK;
}
