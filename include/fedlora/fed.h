/* fed.h - all that a method sees of the program. Nothing here depends on the MPI rank: no rank, communicator or local
 * count can be read. Memory is the runtime's. Kept memory has a name and an index; it is checkpointed, digested and moved
 * with its client; what is not kept does not survive the round, so there is no save hook to forget. Scratch lives until the
 * client's turn ends (setup, plan, aggregate: until the round ends).
 * [C] collective: only from setup, plan, aggregate.  [L] local: any hook.
 * [E] shows the server single messages: needs FL_EACH. A verb called without its flag is a bug. */
#ifndef FL_FED_H
#define FL_FED_H
#include "fedlora/data.h"
#include "fedlora/io.h"

typedef struct fl_run fl_run;
typedef struct fl_client fl_client;

/* ---- what trains, what travels ---- */
typedef struct fl_pick {     /* a set of elements; all zero = everything */
    unsigned factors;        /* FL_BIT mask of fl_factor, 0 = all, FL_NONE = none */
} fl_pick;
typedef enum fl_told { FL_SENT, FL_KNOWN } fl_told; /* counted; free: the receiver works it out */
typedef struct fl_part {     /* one adapter in a message */
    fl_adapter *ad;
    const fl_adapter *of;    /* down: the kept adapter ad was cut from, NULL = ad itself; slots of it that have not changed since
                                this client's last download cost nothing */
    const fl_adapter *ref;   /* up: the receiver holds it too (codecs act on ad - ref); NULL = 0 */
    fl_pick pick;
    int label;               /* down: adapter of the client overwritten where picked; up: returned in fl_item */
} fl_part;
typedef struct fl_msg fl_msg;

/* ---- the model that runs, local work ---- */
typedef struct fl_stack {    /* y = W x + sum_j coef_j s_j B_j A_j x */
    int n;
    fl_adapter *ad[FL_MAX_ADAPTERS];
    double coef[FL_MAX_ADAPTERS];
} fl_stack;
typedef struct fl_data {     /* which examples */
    int client;              /* -1 = pooled over all clients */
    fl_split split;
} fl_data;
typedef struct fl_job {      /* one local training */
    fl_stack stack;
    fl_pick train[FL_MAX_ADAPTERS]; /* per entry of the stack; FL_NONE = frozen */
    fl_data data;
    int steps, epochs;       /* epochs > 0 replaces steps */
    int stream;              /* separates the random draws of several trainings in one turn */
    double lr[FL_NFACTORS];  /* multiplies train.lr, by factor; 0 is read as 1 */
} fl_job;

/* ---- the round, the run, a client ---- */
typedef struct fl_round {
    int t;                   /* 1..T */
    bool trains, returns;    /* plan may clear: local work; upload and aggregate */
} fl_round;
struct fl_run {
    uint64_t seed;
    const void *config;      /* the method's section of the deck */
    int nclients, nsites;
    int ncohort;
    const int *cohort;       /* [ncohort] ascending */
    fl_round round;
    const fl_space *space;   /* the deck's adapter at its largest r (train.what: full: the dense space) */
    fl_adapter *global;      /* kept, replicated; the default methods' server state */
    fl_job job;              /* default local training; plan may narrow it */
    void *turn;              /* the method's scratch for this round, set by plan or aggregate */
    struct fl_runtime *rt;   /* the runtime's own; opaque here */
};
struct fl_client {
    int id, r, n;            /* r: from deck section clients, else adapter.r; n: adapters */
    fl_adapter *ad[FL_MAX_ADAPTERS];        /* working copies of the parts received, or kept ones set by enroll */
    const fl_adapter *got[FL_MAX_ADAPTERS]; /* as received in this round, NULL = nothing */
    struct fl_turn *turn;    /* the runtime's own */
};
typedef struct fl_view {     /* what is evaluated */
    const char *name;        /* leave NULL: no more views */
    fl_stack stack;
    fl_data data;
} fl_view;

/* ---- sums ---- */
typedef struct fl_item {     /* one part of one client */
    int client, label;
    double p;                /* deck's weight over those that arrived; sums to 1 over clients */
    const fl_space *space;
    const fl_adapter *ad;    /* NULL except inside callbacks, where it is complete: factors that did not travel are the server's copy */
    fl_pick pick;            /* what travelled */
} fl_item;
typedef struct fl_pile { int n; const fl_item *item; } fl_pile; /* ascending (client, order sent); same on all ranks */
typedef struct fl_mixing {   /* out = sum_i w_i x_i, the same bits in any order */
    const double *w;         /* [n], NULL = p */
    bool even;               /* w = 1 / n instead */
    fl_pick pick;            /* which elements of out; default: those that travelled */
} fl_mixing;
/* runs where site lives; in->item[].ad are complete at this site (only this site may be read); writes its site of the out adapters and row */
typedef fl_err fl_site_fn(fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg);

/* ---- plug-ins: a hook left NULL is FedAvg's ---- */
enum { FL_HETERO = 1 /* serves unequal ranks */, FL_MERGES = 2 /* changes the base */, FL_PERSONAL = 4 /* clients keep adapters of their own */,
    FL_ONLINE = 16 /* needs live clients: not for fedlora aggregate */, FL_EACH = 32, FL_LORA_ONLY = 512 /* refuses train.what: full */ };
typedef struct fl_method {
    const char *name, *title, *source;
    const char *choice;      /* what the paper leaves open and was decided here; NULL = nothing */
    unsigned needs;
    size_t config_size;
    const fl_field *config;  /* NULL = no keys */
    fl_err (*setup)(fl_run *run);                                /* [C] sizes, first server state */
    fl_err (*plan)(fl_run *run);                                 /* [C] what is special about this round */
    fl_err (*enroll)(fl_run *run, fl_client *c);                 /* client: declares what it keeps; run at every load, also for evaluation */
    fl_err (*download)(fl_run *run, fl_client *c, fl_msg *down); /* server: what this client gets */
    fl_err (*train)(fl_run *run, fl_client *c);                  /* client: local work, any number of fl_train */
    fl_err (*upload)(fl_run *run, fl_client *c, fl_msg *up);     /* client: what it sends */
    fl_err (*aggregate)(fl_run *run, fl_pile *in);               /* [C] what arrived (n > 0) -> server state */
    fl_err (*view)(fl_run *run, fl_client *c, int which, fl_view *v); /* c NULL = server */
} fl_method;

/* ---- verbs: memory, shapes, random numbers [L] ---- kept: zero when fresh; asked for in another size: refitted. The
 * server's must be born in setup and is read-only in clients' hooks; a client's is committed with the round. */
double *fl_keep(fl_run *run, fl_client *c, const char *name, int index, size_t n, const char *what, bool *fresh);
fl_adapter *fl_keep_adapter(fl_run *run, fl_client *c, const char *name, int index, const fl_space *sp, bool *fresh);
void *fl_scratch(fl_run *run, size_t n, size_t each);                  /* zeroed */
fl_adapter *fl_scratch_adapter(fl_run *run, const fl_space *sp);
fl_adapter *fl_scratch_spread(fl_run *run, const fl_space *sp);        /* each site's contents only where the site lives; setup, plan, aggregate */
const fl_space *fl_space_at(fl_run *run, const fl_space *sp, const int *r, int all); /* same sites; r[nsites], or NULL: min(all, r_j); deck's scale rule */
const fl_space *fl_space_stack(fl_run *run, const int *r);             /* scale 1, r[nsites] */
fl_err fl_fill(fl_run *run, fl_adapter *ad, int id, int t);            /* the deck's init; same (id, t), same values; (-1, 0) = the common start */
double fl_uniform(const fl_run *run, int what, int id, int t, uint64_t i); /* [0, 1) */
double fl_normal(const fl_run *run, int what, int id, int t, uint64_t i);
void fl_shuffle(const fl_run *run, int what, int id, int t, int n, int *x);
/* ---- verbs: messages and ledger [L] ---- */
void fl_send(fl_msg *msg, fl_part part);                               /* seals: NaN and Inf are refused there, naming client and site */
fl_err fl_no_message(fl_run *run, fl_client *c, fl_msg *msg);          /* a hook that sends nothing */
void fl_charge(fl_run *run, const fl_client *c, bool up, const char *what, double bytes); /* not simulated, still real */
/* ---- verbs: a client's work [L] ---- */
fl_job fl_job_of(const fl_run *run, fl_client *c);                     /* run->job on c->ad[0] and c's training data */
fl_err fl_train(fl_run *run, fl_client *c, fl_job *job);
/* ---- verbs: the server [C] ---- */
fl_err fl_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out); /* *out replicated; sums only */
/* [E] fn runs once per site. out[0..nout): spread adapters stay spread; replicated ones are replicated again afterwards.
 * rows [nsites][nrow] on every rank, may be NULL with nrow 0. */
fl_err fl_sites(fl_run *run, fl_pile *in, fl_site_fn *fn, void *arg, int nout, fl_adapter **out, int nrow, double *rows);
fl_err fl_stack_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out); /* [E] *out NULL: made, spread: B = [B_1 ..], A = [w_1 s_1 A_1; ..], s = 1 */
/* [E] SVD of sum_i w_i s_i B_i A_i by svd.solver, top pairs into *out (replicated, its own r and s): s B = U S, A = V'. discarded: share of the
 * squared norm beyond the pairs kept, over all sites; may be NULL. */
fl_err fl_svd_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out, double *discarded);
/* base += coef s B A: a new revision. Needs FL_MERGES. FL_SENT: every client pays ad's factors when it next downloads. */
fl_err fl_merge(fl_run *run, const fl_adapter *ad, double coef, fl_told told);
void fl_metric(fl_run *run, const char *name, double value);           /* a column of rounds.csv; same value on all ranks */

/* ---- the registry ---- */
int fl_method_count(void);
const fl_method *fl_method_at(int i);              /* sorted by name */
const fl_method *fl_method_find(const char *name); /* NULL = none */
const fl_section *fl_method_sections(int *n);      /* deck sections of all methods */
void fl_method_describe(const fl_method *m, fl_text *t);   /* `fedlora methods NAME` */
void fl_method_list(fl_text *t);                           /* `fedlora methods` */
void fl_method_reference(fl_text *t);                      /* Markdown page of all methods */

/* ---- running: for app ---- */
typedef struct fl_options { /* of the command line */
    const char *out;        /* OUT, exists */
    const char *resume;     /* "auto", "none" or a file */
    double maxh;            /* hours, 0 = no limit */
    bool dry_run, progress; /* progress: a terminal */
    int requeue_code;
    const char *versions;   /* comment lines for used.yaml and checkpoints */
    bool (*ask)(void *asker); /* on every rank after every round: true = stop, as by the file STOP; NULL = nobody is asked */
    void *asker;
} fl_options;
/* The moment (fl_now) when the time is up: the earlier of maxh hours from now (0 = no limit) and the job's end as FEDLORA_END_TIME or
 * SLURM_JOB_END_TIME tell it. INFINITY = no limit. */
double fl_deadline(double maxh);
/* Collective. The whole of `fedlora run`, from loading to the last line but `state`. *state: the digest. FL_ESTOP: stopped on purpose, checkpoint
 * written. deck: parsed, equal on all ranks. */
fl_err fl_federation(fl_ctx *ctx, const fl_deck *deck, const fl_options *options, uint64_t *state);
/* Collective. Full-weight training of a new base from deck sections pretrain, data, train; writes the HF folder. */
fl_err fl_pretrain(fl_ctx *ctx, const fl_deck *deck, const char *out);
/* Collective. Mean loss (nats per target), targets and accuracy of a model with an optional adapter on a data set's split (all of it). */
fl_err fl_evaluate(fl_ctx *ctx, const fl_deck *deck, const char *model, const char *adapter, fl_split split, double *loss, double *accuracy, int64_t *targets);
/* Local-ish (one rank of data): the server's adapter (client < 0) or a client's kept adapter out of a checkpoint, as PEFT folder, or merged HF folder */
fl_err fl_export(fl_ctx *ctx, const char *checkpoint, const char *out, int client, bool merged);
#endif
