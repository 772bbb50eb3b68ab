/* message.c - messages and the traffic ledger. What is sealed is what a real federation would send:
 * a copy of the picked factors, checked for NaN and Inf, counted in bytes. The simulator's own MPI
 * bytes are never counted here. */
#include "fed_internal.h"

#include <math.h>
#include <string.h>

#define FL_AS_NAME(name) #name,
const char *const traffic_name[NTRAFFIC] = {FL_TRAFFIC(FL_AS_NAME)};

/* NaN or Inf, or 2^34 and more, which the order-free sum could not hold */
static bool slot_is_sane(const fl_real *x, size_t n)
{
    int bad = 0;

    for (size_t i = 0; i < n; i++) {
        bad |= !(x[i] < (fl_real)17179869184.0 && x[i] > (fl_real)-17179869184.0);
    }
    return !bad;
}

static fl_err refuse(const fl_msg *msg, const fl_slot *s)
{
    return fl_fail(FL_ENUM,
        "round %d, client %d: the %s holds a number that is NaN, infinite or 2^34 and more in %s; "
        "lower train.lr, or set train.clip",
        msg->run->round.t, msg->client->id,
        msg->up ? "trained adapter" : "adapter that the server sends", s->name);
}

void fl_send(fl_msg *msg, fl_part part)
{
    const fl_space *sp = part.ad->space;
    fl_adapter *copy = fl_scratch_adapter(msg->run, sp);
    bool all = part.pick.pairs == NULL && part.pick.elems == NULL;

    FL_REQUIRE(msg->n < MAX_PARTS);
    if (msg->up && part.ref != NULL && !all && !part.change) {
        fl_fit(copy, part.ref); /* what is not picked is known to the receiver */
    }
    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        int n = pick_runs(sp, part.pick, i, NULL);
        fl_range *run = fl_scratch(msg->run, (size_t)n, sizeof *run);

        pick_runs(sp, part.pick, i, run);
        for (int k = 0; k < n; k++) {
            memcpy(copy->v + run[k].at, part.ad->v + run[k].at, run[k].n * sizeof *copy->v);
            if (msg->err == FL_OK && !slot_is_sane(copy->v + run[k].at, run[k].n)) {
                msg->err = refuse(msg, s);
            }
        }
    }
    if (part.of == NULL) {
        part.of = part.ad;
    }
    part.ad = copy;
    msg->part[msg->n++] = part;
}

void fl_put(fl_msg *msg, const char *name, const double *x, size_t n, int bits)
{
    FL_REQUIRE(msg->nnumbers < MAX_NUMBERS);
    number_list *list = &msg->number[msg->nnumbers++];

    FL_REQUIRE(strlen(name) < sizeof list->name);
    snprintf(list->name, sizeof list->name, "%s", name);
    list->n = n;
    list->x = fl_scratch(msg->run, n, sizeof *list->x);
    for (size_t i = 0; i < n; i++) {
        list->x[i] = bits <= 32 ? (double)(float)x[i] : x[i];
        if (msg->err == FL_OK && !isfinite(list->x[i])) {
            msg->err =
                fl_fail(FL_ENUM, "round %d, client %d: number %zu of '%s' is NaN or infinite",
                    msg->run->round.t, msg->client->id, i, name);
        }
    }
    msg->number_bytes += (double)((n * (size_t)bits + 7) / 8); /* whole bytes */
}

const double *fl_get(const fl_msg *msg, const char *name, size_t *n)
{
    for (int i = 0; msg != NULL && i < msg->nnumbers; i++) {
        if (strcmp(msg->number[i].name, name) == 0) {
            if (n != NULL) {
                *n = msg->number[i].n;
            }
            return msg->number[i].x;
        }
    }
    return NULL;
}

fl_err fl_no_message(fl_run *run, fl_client *c, fl_msg *msg)
{
    (void)run;
    (void)c;
    (void)msg;
    return FL_OK;
}

static void charge(fl_runtime *rt, bool up, int kind, double bytes)
{
    *(up ? &rt->ledger.up[kind] : &rt->ledger.down[kind]) += bytes;
}

void fl_charge(fl_run *run, const fl_client *c, bool up, const char *what, double bytes)
{
    (void)c;
    (void)what;
    charge(run->rt, up, TRAFFIC_other, bytes);
}

/* the slot of global that slot s was cut from: unchanged since this client's last download? Under a
 * codec a client's copy is not the server's, except where it is still what the seed made. */
bool message_knows(const fl_runtime *rt, const fl_msg *msg, const fl_part *part, const fl_slot *s)
{
    const fl_space *g = rt->run.space;

    if (msg->up || part->of != rt->run.global || s->factor == FL_PLAIN) {
        return false;
    }
    int i = s->factor == FL_DENSE ? s->site : g->slot_of[2 * s->site + (s->factor == FL_B)];

    return rt->slot_changed[i] <
           (rt->deck->codec.down != FL_CODEC_NONE ? 0 : rt->last_seen[msg->client->id]);
}

static double seal_part(fl_runtime *rt, fl_msg *msg, fl_part *part)
{
    const fl_space *sp = part->ad->space;
    const fl_deck_codec *d = &rt->deck->codec;
    double bytes = part->which == FL_SENT   ? pick_bytes(sp, part->pick)
                   : part->which == FL_SEED ? 8
                                            : 0;

    if (part->values != FL_SENT) {
        return part->values == FL_SEED ? 8 + bytes : 0;
    }
    if (d->down != FL_CODEC_NONE || (msg->up && d->up != FL_CODEC_NONE)) {
        return bytes + codec_part(rt, msg, part);
    }
    for (int i = 0; i < sp->nslots; i++) {
        if (!message_knows(rt, msg, part, &sp->slot[i])) {
            bytes += 4.0 * (double)pick_count(sp, part->pick, i);
        }
    }
    return bytes;
}

fl_err message_seal(fl_runtime *rt, fl_msg *msg)
{
    FL_TRY(msg->err);
    for (int p = 0; p < msg->n; p++) {
        charge(rt, msg->up, TRAFFIC_adapter, seal_part(rt, msg, &msg->part[p]));
    }
    charge(rt, msg->up, TRAFFIC_other, msg->number_bytes);
    return FL_OK;
}

/* what a client pays at every download beside the parts: the seed at its first, the base's
 * revisions that it missed */
void message_charge_base(fl_runtime *rt, const fl_client *c)
{
    int seen = rt->last_seen[c->id], t = rt->run.round.t;

    if (seen == 0) {
        charge(rt, false, TRAFFIC_seed, 8);
    }
    charge(rt, false, TRAFFIC_base_update,
        rt->revision_bytes[t - 1] - (seen > 0 ? rt->revision_bytes[seen - 1] : 0));
}

void ledger_round(fl_runtime *rt, double *up, double *down)
{
    double mine[2 * NTRAFFIC];
    int size = rt->ctx->size;
    double *all = fl_arena_take(rt->round, (size_t)size * 2 * NTRAFFIC, sizeof *all);

    memcpy(mine, rt->ledger.up, sizeof rt->ledger.up);
    memcpy(mine + NTRAFFIC, rt->ledger.down, sizeof rt->ledger.down);
    fl_gather_doubles(rt->ctx, 2 * NTRAFFIC, mine, all);
    *up = *down = 0;
    for (int kind = 0; kind < NTRAFFIC; kind++) {
        double u = 0, d = 0;

        for (int r = 0; r < size; r++) { /* whole numbers below 2^53: exact in any order */
            u += all[2 * NTRAFFIC * r + kind];
            d += all[2 * NTRAFFIC * r + NTRAFFIC + kind];
        }
        rt->total.up[kind] += u;
        rt->total.down[kind] += d;
        *up += u;
        *down += d;
    }
    rt->ledger = (fl_ledger){0};
}

void ledger_changed(fl_runtime *rt, int t)
{
    const fl_space *sp = rt->run.space;

    for (int i = 0; i < sp->nslots; i++) {
        const fl_slot *s = &sp->slot[i];
        uint64_t h = fl_hash(
            rt->run.global->v + s->at, (size_t)s->rows * (size_t)s->cols * sizeof(fl_real), 0);

        if (h != rt->slot_hash[i]) {
            rt->slot_hash[i] = h;
            rt->slot_changed[i] = t;
        }
    }
}
