/* raflora - FlexLoRA normalised band by band: each band of pairs by the clients that reach it.
 * Source: Wu et al. 2026 (raFLoRA, arXiv 2602.13486), reconstructed from the abstract.
 *   distinct ranks r(1) < .. < r(L) of the round, r(0) = 0; band l = pairs r(l-1) + 1 .. r(l);
 *   Q_l = sum of p_k over clients with r_k >= r(l),
 *   T = sum_l (1 / Q_l) sum_{k: r_k >= r(l)} p_k s_k B_k[:, band l] A_k[band l, :] = U S V',
 *   for a client of rank r:  s_r B = U[:, 1:r] S[1:r],  A = V[:, 1:r]'.
 * All holders of a pair hold its band, so this is rb_lora's sum, grouped. It keeps the directions
 * that only large ranks hold from decaying ("rank collapse").
 * Choice: bands mean something while a client's pairs are ordered by size, as the server sends
 * them; after training they need not be. order: svd sorts each client's product again, by an SVD of
 * its own, before it is cut into bands. The paper's way is not known; order: trained is plain. */
#include "fedlora/fed.h"
#include <math.h>
#include <string.h>

enum { RAFLORA_TRAINED, RAFLORA_SVD };
typedef struct raflora_config {
    int order;
} raflora_config;

static const fl_field raflora_fields[] = {
    FL_WORD(raflora_config, order, "trained", "trained|svd",
        "which pairs of a client are its first: as it trained them, or by its singular values"),
    FL_END,
};

static fl_err raflora_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));

    fl_fit_product(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

/* the end of the band that begins at pair `from`: the smallest rank beyond; its weight in *q */
static int raflora_band(const fl_pile *in, int site, int from, double *q)
{
    int to = 0;

    *q = 0;
    for (int k = 0; k < in->n; k++) {
        int r = in->item[k].space->r[site];

        to = r > from && (to == 0 || r < to) ? r : to;
        *q += r > from ? in->item[k].p : 0;
    }
    return to;
}

/* client's own blocks b (m x R, R = nstack, columns at .. at + r - 1), a (r x n) become U S, V' */
static fl_err raflora_sort(
    fl_run *run, int site, int m, int n, int r, int64_t nstack, double *b, double *a)
{
    double *own = fl_scratch(run, (size_t)m * (size_t)r, sizeof *own);
    double *u = fl_scratch(run, (size_t)m * (size_t)r, sizeof *u);
    double *sv = fl_scratch(run, (size_t)r, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)r * (size_t)n, sizeof *vt);

    for (int i = 0; i < m * r; i++) {
        own[i] = b[i / r * nstack + i % r];
    }
    FL_TRY(fl_site_svd(run, site, r, own, a, r, u, sv, vt));
    for (int i = 0; i < m * r; i++) {
        b[i / r * nstack + i % r] = u[i] * sv[i % r];
    }
    memcpy(a, vt, (size_t)r * (size_t)n * sizeof *a);
    return FL_OK;
}

/* row: squared norms of T and of what the largest rank keeps */
static fl_err raflora_site(
    fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg)
{
    const raflora_config *c = run->config;
    fl_mat a = fl_at(out[0], site, FL_A), b = fl_at(out[0], site, FL_B);
    int m = b.rows, n = a.cols, r = a.rows;
    double *bs, *as, *u = fl_scratch(run, (size_t)m * (size_t)r, sizeof *u), q;
    double *sv = fl_scratch(run, (size_t)r, sizeof *sv);
    double *vt = fl_scratch(run, (size_t)r * (size_t)n, sizeof *vt);
    int64_t nstack, at = 0;

    (void)arg;
    fl_site_stack(run, site, in, 0, NULL, &nstack, &bs, &as); /* rows of as: p_k s_k A_k */
    for (int k = 0; k < in->n; k++) {
        int own = in->item[k].space->r[site];

        if (c->order == RAFLORA_SVD && own > 0) {
            FL_TRY(raflora_sort(run, site, m, n, own, nstack, bs + at, as + at * n));
        }
        for (int from = 0, to; from < own; from = to) {
            to = raflora_band(in, site, from, &q);
            for (int64_t i = (at + from) * n; i < (at + to) * n; i++) {
                as[i] /= q;
            }
        }
        at += own;
    }
    row[0] = fl_product_norm2(m, n, nstack, bs, as);
    FL_TRY(fl_site_svd(run, site, nstack, bs, as, r, u, sv, vt));
    for (int i = 0; i < m * r; i++) { /* s B = U S */
        b.x[i] = (fl_real)(u[i] * sv[i % r] / out[0]->space->scale[site]);
    }
    for (int i = 0; i < r * n; i++) {
        a.x[i] = (fl_real)vt[i];
    }
    for (int j = 0; j < r; j++) {
        row[1] += sv[j] * sv[j];
    }
    return FL_OK;
}

static fl_err raflora_aggregate(fl_run *run, fl_pile *in)
{
    double *rows = fl_scratch(run, 2 * (size_t)run->nsites, sizeof *rows), all = 0, kept = 0;

    FL_TRY(fl_sites(run, in, raflora_site, NULL, 1, &run->global, 2, rows));
    for (int j = 0; j < run->nsites; j++) {
        all += rows[2 * j];
        kept += rows[2 * j + 1];
    }
    fl_metric(run, "discarded_energy", all > 0 ? fmax(0, 1 - kept / all) : 0);
    return FL_OK;
}

const fl_method fl_method_raflora = {
    .name = "raflora",
    .title = "FlexLoRA with every band of ranks normalised by the clients that reach it",
    .source = "Wu et al. 2026, arXiv 2602.13486",
    .choice =
        "reconstructed from the abstract; the same sum as rb_lora, by bands. order: svd, which "
        "sorts a client's pairs by an SVD of its product before they are cut into bands, is ours; "
        "discordance is measured against the unbalanced mean.",
    .needs = FL_HETERO | FL_EACH | FL_LORA_ONLY,
    .config_size = sizeof(raflora_config),
    .config = raflora_fields,
    .download = raflora_download,
    .aggregate = raflora_aggregate,
};
