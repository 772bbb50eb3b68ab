/* rules.c - what several keys must fulfil together and no other layer needs to know. */
#include "deck_internal.h"
#include <math.h>
#include <stdio.h>

static void rules_data(deck_work *w, const fl_deck *d)
{
    if (d->run.name[0] == '\0') {
        deck_rule_fail(w, "run.name", NULL, "a run needs a name");
    }
    if (d->data.valid + d->data.test >= 1) {
        deck_rule_fail(w, "data.valid", "data.test",
            "%g of the records for validation and %g for the test leave none for training",
            d->data.valid, d->data.test);
    }
    if (d->data.records == FL_RECORDS_DOCUMENTS && d->data.separator[0] == '\0') {
        deck_rule_fail(w, "data.separator", "data.records",
            "records: documents needs the line between two documents");
    }
}

static void rules_clients(deck_work *w, const fl_deck *d)
{
    const fl_reals *share = &d->clients.r_share;
    double sum = 0;

    if (d->partition.kind != FL_PART_NATURAL && d->partition.clients == 0) {
        deck_rule_fail(w, "partition.clients", "partition.kind",
            "0 (as many as natural keys) goes with partition.kind: natural only");
    }
    if (d->partition.clients > 0 && d->cohort.size > d->partition.clients) {
        deck_rule_fail(w, "cohort.size", "partition.clients",
            "%d clients in a round, but partition.clients is %d", d->cohort.size,
            d->partition.clients);
    }
    if (share->n != d->clients.r.n) {
        deck_rule_fail(w, "clients.r_share", "clients.r",
            "%d shares for the %d ranks of clients.r; write one for each", share->n,
            d->clients.r.n);
        return;
    }
    for (int i = 0; i < share->n; i++) {
        sum += share->x[i];
    }
    if (share->n > 0 && fabs(sum - 1) > 1e-6) {
        deck_rule_fail(w, "clients.r_share", NULL, "the shares sum to %.9g, not to 1", sum);
    }
}

static void rules_pretrain(deck_work *w, const fl_deck *d)
{
    const fl_deck_pretrain *p = &d->pretrain;
    int kv = p->kv_heads ? p->kv_heads : p->heads;

    if (p->width % p->heads != 0) {
        deck_rule_fail(w, "pretrain.heads", "pretrain.width", "%d heads do not divide the width %d",
            p->heads, p->width);
    } else if (p->family == FL_FAMILY_LLAMA && p->width / p->heads % 2 != 0) {
        deck_rule_fail(w, "pretrain.heads", "pretrain.width",
            "a head of width %d is odd; rotary positions need pairs", p->width / p->heads);
    }
    if (p->heads % kv != 0) {
        deck_rule_fail(w, "pretrain.kv_heads", "pretrain.heads",
            "%d key-value heads do not divide the %d heads", kv, p->heads);
    } else if (p->family == FL_FAMILY_GPT2 && kv != p->heads) {
        deck_rule_fail(w, "pretrain.kv_heads", "pretrain.family",
            "gpt2 has as many key-value heads as heads; write 0");
    }
}

void deck_rules(deck_work *w)
{
    const fl_deck *d = w->deck;

    rules_data(w, d);
    rules_clients(w, d);
    rules_pretrain(w, d);
    if (d->svd.grid.n != 0 && d->svd.grid.n != 2) {
        deck_rule_fail(w, "svd.grid", NULL, "%d numbers; write [p, q] or []", d->svd.grid.n);
    }
}
