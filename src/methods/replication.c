/* replication - two levels of rank; the missing pairs of low clients are filled with those of the
 * high clients' mean. Source: Byun and Lee 2024 (replication-based padding, arXiv 2406.17477);
 * survey section 4.1. No official code. H = participants of rank r_high, A (r_high x n), B (m x
 * r_high).
 *   A_H = sum_{k in H} p_k A_k / sum_{k in H} p_k
 *   A = sum_k p_k ext(A_k),  ext(A_k)[i,:] = A_k[i,:] for i <= r_k, else A_H[i,:];  B alike.
 * Everybody starts at r_low. Each client sends its validation loss with its first upload; after the
 * round `after` the best share of those heard of gets r_high: from then on they are sent the
 * server's further pairs, standard rows of A and zero columns of B. */
#include "fedlora/fed.h"
#include <math.h>

typedef struct replication_config {
    bool promote;
    int r_low;
    double share;
    int after, score;
} replication_config;

static const fl_field replication_fields[] = {
    FL_BOOL(replication_config, promote, "true",
        "clients start low and the best are promoted; false: the ranks are clients.r"),
    FL_INT(replication_config, r_low, "0", 0, 1000000, "",
        "rank of low clients; 0 = a quarter of the largest rank (the paper: 5 of 20)"),
    FL_REAL(replication_config, share, "0.1", 0, 1, "", "share of the scored clients promoted"),
    FL_INT(replication_config, after, "1", 1, 1000000, "",
        "round after which they are; later than 1 hears more clients when few take part"),
    FL_WORD(replication_config, score, "validation", "validation|train",
        "the client's own data on which the loss is measured"),
    FL_END,
};

/* server: [0] promotion is done; then two for each client: high, 1 + loss (0 = not heard of) */
static double *table_of(fl_run *run)
{
    return fl_keep(run, NULL, "clients", 0, 1 + 2 * (size_t)run->nclients,
        "promotion done; per client: has the high rank, 1 + loss of its first round", NULL);
}

static int low_rank(const fl_run *run)
{
    const replication_config *cf = run->config;
    int quarter = run->space->rmax / 4;

    return cf->r_low > 0 ? cf->r_low : quarter > 0 ? quarter : 1;
}

static fl_err replication_setup(fl_run *run)
{
    table_of(run);
    if (low_rank(run) > run->space->rmax) {
        return fl_fail(FL_EDECK,
            "replication.r_low: %d is more than the largest rank of adapter.r and clients.r, %d",
            low_rank(run), run->space->rmax);
    }
    return FL_OK;
}

static fl_err replication_download(fl_run *run, fl_client *c, fl_msg *down)
{
    const replication_config *cf = run->config;
    bool high = table_of(run)[1 + 2 * c->id] > 0;
    int r = !cf->promote ? c->r : high ? run->space->rmax : low_rank(run);
    fl_adapter *cut = fl_scratch_adapter(run, fl_space_cut(run, run->space, r));

    fl_fit(cut, run->global);
    fl_send(down, (fl_part){.ad = cut, .of = run->global});
    return FL_OK;
}

static fl_err replication_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    const replication_config *cf = run->config;
    const double *table = table_of(run);

    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0]});
    if (cf->promote && table[0] == 0 && table[2 + 2 * c->id] == 0) {
        fl_job job = fl_job_of(run, c);
        double loss, n;

        job.data.split = cf->score == 0 ? FL_VALID : FL_TRAIN;
        FL_TRY(fl_loss(run, c, &job, &loss, &n));
        if (n > 0) {
            fl_put(up, "loss", &loss, 1, 32);
        }
    }
    return FL_OK;
}

/* the best share of those scored; of equal losses the lower number */
static void promote(const fl_run *run, double share, double *table)
{
    int n = 0;

    for (int k = 0; k < run->nclients; k++) {
        n += table[2 + 2 * k] > 0;
    }
    for (int k = 0; k < run->nclients; k++) {
        double own = table[2 + 2 * k], better = 0;

        for (int j = 0; own > 0 && j < run->nclients; j++) {
            double x = table[2 + 2 * j];

            better += x > 0 && (x < own || (x == own && j < k));
        }
        table[1 + 2 * k] = own > 0 && better < fmax(1, floor(share * n + 0.5)) && share > 0;
    }
    table[0] = 1;
}

static fl_err replication_aggregate(fl_run *run, fl_pile *in)
{
    const replication_config *cf = run->config;
    double *table = table_of(run), *w = fl_scratch(run, (size_t)in->n, sizeof *w), high = 0;
    double *loss = fl_scratch(run, (size_t)in->n, sizeof *loss);

    for (int k = 0; k < in->n; k++) {
        bool is_high = in->item[k].space->rmax >= run->space->rmax;

        w[k] = is_high ? in->item[k].p : 0;
        high += is_high;
    }
    /* the mean over H, pair by pair; where H is empty the server's pairs stand for it */
    FL_TRY(fl_mix(run, in, &(fl_mixing){.w = w, .norm = FL_HOLDERS}, &run->global));
    /* sum_k p_k A_k, and what weight is missing at a pair is given to H's */
    FL_TRY(fl_mix(run, in, &(fl_mixing){.norm = FL_REST}, &run->global));
    fl_metric(run, "high_clients", high);
    if (cf->promote && table[0] == 0) {
        FL_TRY(fl_numbers(run, in, "loss", 1, loss));
        for (int k = 0; k < in->n; k++) {
            if (!isnan(loss[k])) {
                table[2 + 2 * in->item[k].client] = 1 + loss[k];
            }
        }
        if (run->round.t >= cf->after) {
            promote(run, cf->share, table);
        }
    }
    return FL_OK;
}

const fl_method fl_method_replication = {
    .name = "replication",
    .title = "two ranks: missing pairs replicated from the high clients' mean",
    .source = "Byun and Lee 2024, arXiv 2406.17477",
    .choice = "a promoted client's further pairs are the server's; without high participants they "
              "stay; clients that miss the rounds of scoring stay low; with more than two levels "
              "(promote: false) only the largest rank is replicated; one scale for all clients.",
    .needs = FL_HETERO | FL_NUMBERS | FL_LORA_ONLY,
    .config_size = sizeof(replication_config),
    .config = replication_fields,
    .setup = replication_setup,
    .download = replication_download,
    .upload = replication_upload,
    .aggregate = replication_aggregate,
};
