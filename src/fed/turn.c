/* turn.c - one client's turn: its state is unpacked, the server's message arrives, it trains, its
 * message is sealed, its state is packed. Local: nothing here depends on the rank that hosts the
 * client. */
#include "fed_internal.h"

#include <string.h>

fl_err turn_enrol(
    fl_runtime *rt, int id, const void *blob, size_t bytes, fl_client *c, fl_turn *turn)
{
    *turn = (fl_turn){0};
    *c = (fl_client){.id = id, .r = rt->client_r[id], .turn = turn};
    rt->now = turn;
    FL_TRY(kept_unpack(rt, blob, bytes, &turn->kept));
    return rt->method->enroll != NULL ? rt->method->enroll(&rt->run, c) : FL_OK;
}

void turn_end(fl_runtime *rt, fl_turn *turn)
{
    kept_free(&turn->kept);
    rt->now = NULL;
    fl_arena_reset(rt->turn, (fl_mark){0});
}

/* the server's adapter at this client's rank; what the client knows already costs nothing */
static fl_err default_download(fl_run *run, fl_client *c, fl_msg *down)
{
    fl_adapter *ad = run->global;

    if (c->r < run->space->rmax) {
        ad = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));
        fl_fit(ad, run->global);
    }
    fl_send(down, (fl_part){.ad = ad, .of = run->global});
    return FL_OK;
}

static fl_err default_train(fl_run *run, fl_client *c)
{
    fl_job job = fl_job_of(run, c);

    return fl_train(run, c, &job);
}

static fl_err default_upload(fl_run *run, fl_client *c, fl_msg *up)
{
    fl_send(up, (fl_part){.ad = c->ad[0], .ref = c->got[0], .pick = run->job.train[0]});
    return FL_OK;
}

/* parts overwrite the adapter of their label where picked */
static void receive(fl_run *run, fl_client *c, const fl_msg *down)
{
    c->down = down;
    for (int p = 0; p < down->n; p++) {
        const fl_part *part = &down->part[p];
        const fl_space *sp = part->ad->space;

        FL_REQUIRE(part->label >= 0 && part->label < FL_MAX_ADAPTERS);
        if (c->ad[part->label] == NULL || c->ad[part->label]->space != sp) {
            c->ad[part->label] = fl_scratch_adapter(run, sp);
        }
        for (int i = 0; i < sp->nslots; i++) {
            int n = pick_runs(sp, part->pick, i, NULL);
            fl_range *r = fl_scratch(run, (size_t)n, sizeof *r);

            pick_runs(sp, part->pick, i, r);
            for (int k = 0; k < n; k++) {
                memcpy(c->ad[part->label]->v + r[k].at, part->ad->v + r[k].at,
                    r[k].n * sizeof(fl_real));
            }
        }
        c->got[part->label] = part->ad;
        c->n = FL_MAX(c->n, part->label + 1);
    }
    if (c->ad[0] ==
        NULL) { /* nothing was sent and nothing kept: an empty adapter of the client's rank */
        c->ad[0] = fl_scratch_adapter(run, fl_space_at(run, run->space, NULL, c->r));
        c->n = FL_MAX(c->n, 1);
    }
}

static uint64_t *keep_bits(fl_runtime *rt, const uint64_t *bits, size_t n)
{
    uint64_t *copy = NULL;

    if (bits != NULL) {
        copy = fl_arena_take(rt->round, n / 64 + 1, sizeof *copy);
        memcpy(copy, bits, (n / 64 + 1) * sizeof *copy);
    }
    return copy;
}

/* the sealed message outlives the turn */
static fl_msg *keep_sent(fl_runtime *rt, const fl_msg *msg)
{
    fl_msg *sent = fl_arena_take(rt->round, 1, sizeof *sent);

    *sent = *msg;
    sent->client = NULL;
    for (int p = 0; p < msg->n; p++) {
        const fl_adapter *ad = msg->part[p].ad;
        fl_adapter *copy = fl_arena_take(rt->round, 1, sizeof *copy);

        *copy = (fl_adapter){
            .space = ad->space, .v = fl_arena_take(rt->round, ad->space->n, sizeof(fl_real))};
        memcpy(copy->v, ad->v, ad->space->n * sizeof(fl_real));
        sent->part[p].ad = copy;
        sent->part[p].ref = sent->part[p].of = NULL;
        sent->part[p].pick.pairs = keep_bits(
            rt, msg->part[p].pick.pairs, (size_t)fl_pair_first(ad->space, ad->space->nsites));
        sent->part[p].pick.elems = keep_bits(rt, msg->part[p].pick.elems, ad->space->n);
    }
    for (int i = 0; i < msg->nnumbers; i++) {
        sent->number[i].x = fl_arena_take(rt->round, msg->number[i].n, sizeof(double));
        memcpy(sent->number[i].x, msg->number[i].x, msg->number[i].n * sizeof(double));
    }
    return sent;
}

static fl_err turn_work(fl_runtime *rt, fl_client *c, int position, bool lost)
{
    fl_run *run = &rt->run;
    const fl_method *me = rt->method;
    fl_msg down = {.run = run, .client = c}, up = {.run = run, .client = c, .up = true};

    FL_TRY((me->download != NULL ? me->download : default_download)(run, c, &down));
    FL_TRY(message_seal(rt, &down));
    message_charge_base(rt, c);
    receive(run, c, &down);
    if (run->round.trains) {
        FL_TRY((me->train != NULL ? me->train : default_train)(run, c));
    }
    if (run->round.returns && !lost) {
        FL_TRY((me->upload != NULL ? me->upload : default_upload)(run, c, &up));
        FL_TRY(message_seal(rt, &up));
        rt->sent[position] = keep_sent(rt, &up);
    }
    return FL_OK;
}

fl_err turn_run(fl_runtime *rt, int position, bool lost, void **blob, size_t *bytes)
{
    fl_client c;
    fl_turn turn;
    fl_text packed = {0};
    fl_err err = turn_enrol(rt, rt->run.cohort[position], *blob, *bytes, &c, &turn);

    if (err == FL_OK) {
        err = turn_work(rt, &c, position, lost);
    }
    rt->turn_loss[position] = turn.steps > 0 ? turn.loss / (double)turn.steps : 0;
    rt->turn_steps[position] = (double)turn.steps;
    if (turn.kept.n > 0) {
        kept_pack(&turn.kept, rt, &packed);
    }
    fl_free(*blob);
    *blob = NULL;
    *bytes = packed.n;
    if (packed.n > 0) {
        *blob = fl_alloc("client state", packed.n, 1);
        memcpy(*blob, packed.s, packed.n);
    }
    fl_text_free(&packed);
    turn_end(rt, &turn);
    return err;
}
