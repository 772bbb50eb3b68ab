/* fed.h - all that a method sees of the program. Nothing here depends on the MPI rank: no rank, communicator or local
 * count can be read. Memory is the runtime's. Kept memory has a name and an index; it is checkpointed, digested and moved
 * with its client; what is not kept does not survive the round, so there is no save hook to forget. Scratch lives until the
 * client's turn ends (setup, plan, aggregate: until the round ends).
 * [C] collective: only from setup, plan, aggregate.  [L] local: any hook.
 * [E] shows the server single messages: needs FL_EACH. A verb called without its flag is a bug.
 * Small dense mathematics (fl_svd, fl_eigh, fl_solve, fl_kmeans, fl_dgemm ..) is in la.h, fl_at, fl_fit, fl_dot in adapter.h. */
#ifndef FL_FED_H
#define FL_FED_H
#include "fedlora/data.h"
#include "fedlora/io.h"

typedef struct fl_run fl_run;
typedef struct fl_client fl_client;

/* ---- what trains, what travels ---- */
typedef struct fl_pick {     /* a set of elements; all zero = everything. Bit sets are of the adapter's own space (fl_bits, fl_bit_set) */
    unsigned factors;        /* FL_BIT mask of fl_factor, 0 = all, FL_NONE = none */
    const uint64_t *pairs;   /* bit set over rank-1 pairs (row i of A and column i of B), site after site (fl_pair_first); NULL = all */
    const uint64_t *elems;   /* bit set over elements; NULL = all */
} fl_pick;
typedef enum fl_told { FL_SENT, FL_KNOWN, FL_SEED } fl_told; /* counted; free: the receiver works it out; 8 bytes */
typedef struct fl_part {     /* one adapter in a message */
    fl_adapter *ad;
    const fl_adapter *of;    /* down: the kept adapter ad was cut from, NULL = ad itself; slots of run->global that have not changed since
                                this client's last download cost nothing */
    const fl_adapter *ref;   /* up: the receiver holds it too (codecs act on ad - ref; elements not picked are ref's at the server); NULL = 0 */
    fl_pick pick;
    int label;               /* down: adapter of the client overwritten where picked; up: returned in fl_item */
    fl_told values, which;   /* how the receiver learns the values, and which elements they are (pairs, elems): FL_SENT counts the smaller of
                                4 bytes an index and a bit map */
    bool change;             /* up: ad is a change of the receiver's adapter, not its value; no discordance is measured on it */
} fl_part;
typedef struct fl_msg fl_msg;

/* ---- the model that runs, local work ---- */
typedef struct fl_stack {    /* y = W x + sum_j coef_j s_j B_j A_j x; entries in PLAIN spaces stay outside the forward pass */
    int n, base;             /* base: 0 = as loaded and merged, else from fl_base_bits */
    fl_adapter *ad[FL_MAX_ADAPTERS];
    double coef[FL_MAX_ADAPTERS];
} fl_stack;
typedef struct fl_data {     /* which examples */
    int client;              /* -1 = pooled over all clients: evaluation only */
    fl_split split;
} fl_data;
typedef struct fl_job {      /* one local training */
    fl_stack stack;
    fl_pick train[FL_MAX_ADAPTERS]; /* per entry of the stack; FL_NONE = frozen */
    unsigned watch;          /* bit j: frozen entry j gets a gradient for the step hook (chain rules into PLAIN entries, scores) */
    fl_data data;
    int steps, epochs;       /* epochs > 0 replaces steps */
    int stream;              /* separates the random draws of several trainings in one turn */
    double lr[FL_NFACTORS];  /* multiplies train.lr, by factor; 0 is read as 1 */
    void *arg;               /* the method's own, for its step hook */
} fl_job;
typedef enum fl_when { FL_BEFORE, FL_GRAD, FL_AFTER } fl_when; /* before the forward pass; gradients ready, not yet clipped; after the update */
typedef struct fl_step {     /* one local step, as the step hook sees it */
    fl_when when;
    int i, n;                /* step i of n, from 0 */
    fl_job *job;             /* stack.coef may be changed at FL_BEFORE, values of the stack's adapters at FL_BEFORE and FL_AFTER */
    fl_adapter *grad[FL_MAX_ADAPTERS]; /* at FL_GRAD: to read and to change; entries neither trained nor watched: NULL; PLAIN: zero on entry */
    double *loss;            /* at FL_GRAD: mean loss of the batch; a penalty may be added to it */
} fl_step;

/* ---- the round, the run, a client ---- */
typedef struct fl_round {
    int t;                   /* 1..T; 0 in setup */
    bool trains, returns;    /* plan may clear: local work; upload and aggregate */
} fl_round;
struct fl_run {
    uint64_t seed;
    const void *config;      /* the method's section of the deck */
    int nclients, nsites, nclasses, rounds; /* nclasses: labels of the data, 0 = none; rounds: T */
    int ncohort;
    const int *cohort;       /* [ncohort] ascending */
    fl_round round;
    const fl_space *space;   /* the deck's adapter at its largest r (train.what: full: the dense space) */
    fl_adapter *global;      /* kept, replicated; the default methods' server state */
    const fl_adapter *installed; /* aggregate may set: what the server installed, where that is not global (any LoRA space; for discordance) */
    fl_job job;              /* default local training; plan may narrow it */
    void *turn;              /* the method's scratch for this round, set by plan or aggregate */
    struct fl_runtime *rt;   /* the runtime's own; opaque here */
};
struct fl_client {
    int id, r, n;            /* r: from deck section clients, else adapter.r; n: adapters */
    fl_adapter *ad[FL_MAX_ADAPTERS];        /* working copies of the parts received, or kept ones set by enroll */
    const fl_adapter *got[FL_MAX_ADAPTERS]; /* as received in this round, NULL = nothing */
    const fl_msg *down;      /* what was received, for fl_get */
    struct fl_turn *turn;    /* the runtime's own */
};
typedef struct fl_view {     /* what is evaluated */
    const char *name;        /* leave NULL: no view */
    fl_stack stack;
    fl_data data;
} fl_view;

/* ---- sums ---- */
typedef struct fl_item {     /* one part of one client */
    int client, label;
    double p;                /* deck's weight over those that arrived; sums to 1 over clients */
    const fl_space *space;
    const fl_adapter *ad;    /* NULL except inside callbacks, where its A and B are complete: factors that did not travel are the server's
                                copy, pairs and elements that did not are the part's ref */
    fl_pick pick;            /* factors that travelled; pairs and elems are not known here */
    bool change;
} fl_item;
typedef struct fl_pile { int n; const fl_item *item; } fl_pile; /* ascending (client, order sent); same on all ranks */
typedef enum fl_norm { FL_SUM, FL_HOLDERS, FL_REST } fl_norm; /* element by element: over 1 (absent = 0); over the weight of the items that hold it,
    nobody: out stays; what weight is missing to 1 is given to out's old value */
typedef struct fl_mixing {   /* out = sum_i w_i x_i / norm, the same bits in any order */
    const double *w;         /* [in->n], NULL = p */
    bool even;               /* w = 1 / (number of items with the label) instead */
    int label;               /* only items with this label */
    fl_norm norm;            /* fl_mix only */
    fl_pick pick;            /* factors of out that are written; default: those that travelled */
} fl_mixing;
/* runs where site lives; in->item[].ad are complete at this site (only this site may be read); writes its site of the out adapters and row.
 * Items of PLAIN spaces have no contents here. Scratch lives until the site is done. */
typedef fl_err fl_site_fn(fl_run *run, int site, const fl_pile *in, fl_adapter **out, double *row, void *arg);
typedef struct fl_server_opt { /* x <- x + step of the pseudo-gradient -g: SGD: lr g; ADAM: bias-corrected, no decay */
    enum { FL_SERVER_SGD, FL_SERVER_ADAM } rule;
    double lr, beta1, beta2, eps; /* SGD: beta1 is the momentum */
} fl_server_opt;

/* ---- plug-ins: a hook left NULL is FedAvg's ---- */
enum { FL_HETERO = 1 /* serves unequal ranks */, FL_MERGES = 2 /* changes the base */, FL_PERSONAL = 4 /* clients keep adapters of their own */,
    FL_ONLINE = 16 /* needs live clients: not for fedlora aggregate */, FL_EACH = 32, FL_NUMBERS = 64 /* the server sees small numbers of single clients */,
    FL_LORA_ONLY = 512 /* refuses train.what: full */, FL_SPLITS = 1024 /* splits a product by an SVD: its result may have any rank */,
    FL_OWN_START = 2048 /* starts from factors of its own: refuses adapter.init: svd */ };
typedef struct fl_method {
    const char *name, *title, *source;
    const char *choice;      /* what the paper leaves open and was decided here; NULL = nothing */
    unsigned needs;
    size_t config_size;
    const fl_field *config;  /* NULL = no keys */
    fl_err (*setup)(fl_run *run);                                /* [C] sizes, first server state */
    fl_err (*plan)(fl_run *run);                                 /* [C] what is special about this round; may write server state */
    fl_err (*enroll)(fl_run *run, fl_client *c);                 /* client: declares what it keeps, may set c->r; run at every load, also for evaluation */
    fl_err (*download)(fl_run *run, fl_client *c, fl_msg *down); /* server: what this client gets */
    fl_err (*train)(fl_run *run, fl_client *c);                  /* client: local work, any number of fl_train */
    fl_err (*step)(fl_run *run, fl_client *c, fl_step *s);       /* client: penalties, masks, chain rules; called three times a step of every fl_train */
    fl_err (*upload)(fl_run *run, fl_client *c, fl_msg *up);     /* client: what it sends */
    fl_err (*aggregate)(fl_run *run, fl_pile *in);               /* [C] what arrived (n > 0) -> server state */
    fl_err (*view)(fl_run *run, fl_client *c, int which, fl_view *v); /* c NULL = server. A method with this hook that shows no view of the server
        (name stays NULL) is personal: only its clients are evaluated, each on its own data */
} fl_method;

/* ---- verbs: memory, shapes, random numbers [L] ---- kept: zero when fresh; asked for in another size: refitted. The
 * server's must be born in setup, in a size that stays, and is read-only in clients' hooks; a client's is committed with the round. */
double *fl_keep(fl_run *run, fl_client *c, const char *name, int index, size_t n, const char *what, bool *fresh);
fl_adapter *fl_keep_adapter(fl_run *run, fl_client *c, const char *name, int index, const fl_space *sp, bool *fresh);
void *fl_scratch(fl_run *run, size_t n, size_t each);                  /* zeroed */
fl_adapter *fl_scratch_adapter(fl_run *run, const fl_space *sp);
fl_adapter *fl_scratch_spread(fl_run *run, const fl_space *sp);        /* each site's contents only where the site lives; setup, plan, aggregate */
fl_adapter *fl_scratch_copy(fl_run *run, const fl_adapter *ad);
const fl_space *fl_space_at(fl_run *run, const fl_space *sp, const int *r, int all); /* same sites; r[nsites], or NULL: min(all, r_j); deck's scale rule */
const fl_space *fl_space_cut(fl_run *run, const fl_space *sp, int r);  /* the first min(r, r_j) pairs of sp's sites, with sp's own scales */
const fl_space *fl_space_stack(fl_run *run, const int *r);             /* scale 1, r[nsites] */
const fl_space *fl_space_scales(fl_run *run, const int *r, const double *scale); /* any scale per site, [nsites] each */
const fl_space *fl_space_plain(fl_run *run, int n, const int *rows, const int *cols); /* n PLAIN slots; fl_at(ad, i, FL_PLAIN) */
const fl_space *fl_space_base(fl_run *run, const fl_space *sp);        /* DENSE: the base tensors that hold the sites of sp, whole */
/* where a site lies: rows row0 .. row0 + m - 1 of base tensor `tensor` (fl_at(dense, tensor, FL_DENSE)) */
void fl_site_tensor(const fl_run *run, int site, int *tensor, int *row0);
fl_err fl_fill(fl_run *run, fl_adapter *ad, int id, int t);            /* the deck's init; same (id, t), same values; (-1, 0) = the common start */
double fl_uniform(const fl_run *run, int what, int id, int t, uint64_t i); /* [0, 1) */
double fl_normal(const fl_run *run, int what, int id, int t, uint64_t i);
void fl_shuffle(const fl_run *run, int what, int id, int t, int n, int *x); /* permutes x */
uint64_t *fl_bits(fl_run *run, size_t n);                              /* scratch bit set, empty */
static inline bool fl_bit(const uint64_t *bits, size_t i) { return (bits[i / 64] >> (i % 64) & 1) != 0; }
static inline void fl_bit_set(uint64_t *bits, size_t i) { bits[i / 64] |= (uint64_t)1 << (i % 64); }
/* sets bits first + i of the k largest x_i of x [n]; of equal ones those of lower i */
void fl_top(fl_run *run, size_t n, const double *x, size_t k, uint64_t *bits, size_t first);
/* min(k, r_j) random pairs of every site, a function of (what, id, t): drawn for each site by itself, or the same numbers at all sites */
uint64_t *fl_random_pairs(fl_run *run, int what, const fl_space *sp, int id, int t, int k, bool each);
bool fl_picked(const fl_space *sp, fl_pick pick, int slot, size_t i);  /* element i of the slot (row-major) */
/* ---- verbs: messages and ledger [L] ---- */
void fl_send(fl_msg *msg, fl_part part);                               /* seals: NaN and Inf are refused there, naming client and site */
fl_err fl_no_message(fl_run *run, fl_client *c, fl_msg *msg);          /* a hook that sends nothing */
void fl_put(fl_msg *msg, const char *name, const double *x, size_t n, int bits); /* numbers, counted at bits each; bits 32: rounded to float */
const double *fl_get(const fl_msg *msg, const char *name, size_t *n);  /* NULL = none of this name */
void fl_charge(fl_run *run, const fl_client *c, bool up, const char *what, double bytes); /* not simulated, still real */
/* ---- verbs: a client's work [L] ---- */
fl_job fl_job_of(const fl_run *run, fl_client *c);                     /* run->job on c->ad[0] and c's training data */
fl_err fl_train(fl_run *run, fl_client *c, fl_job *job);
/* mean loss (nats per target) and number of targets of job's stack on job's data, all of it */
fl_err fl_loss(fl_run *run, fl_client *c, const fl_job *job, double *mean, double *n);
/* job's stack on job's data: mean over tokens of the last hidden state of every sample, x [n][d] scratch; label [n] scratch, -1 = none */
fl_err fl_feature(fl_run *run, fl_client *c, const fl_job *job, int *n, int *d, fl_real **x, int **label);
int fl_sample_count(const fl_run *run, int client, fl_split split);     /* fedlora aggregate: 0 */
/* ---- verbs: the server [C] ---- */
fl_err fl_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out); /* *out replicated; sums only */
fl_err fl_numbers(fl_run *run, fl_pile *in, const char *name, int nrow, double *rows); /* rows [in->n][nrow]: what fl_put sent, NaN = nothing. FL_NUMBERS */
fl_err fl_values(fl_run *run, fl_pile *in, int label, int nrow, double *rows); /* [E] rows [in->n][nrow]: contents of small parts (v of the space, nrow of
    them) on every rank; other labels: NaN */
/* [E] fn runs once per site. out[0..nout): spread adapters stay spread; replicated ones are replicated again afterwards (LoRA spaces).
 * rows [nsites][nrow] on every rank, may be NULL with nrow 0. in NULL: no messages (also in setup and plan; then without FL_EACH). */
fl_err fl_sites(fl_run *run, fl_pile *in, fl_site_fn *fn, void *arg, int nout, fl_adapter **out, int nrow, double *rows);
fl_err fl_stack_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out); /* [E] *out NULL: made, spread: B = [B_1 ..], A = [w_1 s_1 A_1; ..], s = 1 */
/* [E] SVD of sum_i w_i s_i B_i A_i by svd.solver, top pairs into *out (replicated, its own r and s): s B = U S, A = V'. discarded: share of the
 * squared norm beyond the pairs kept, over all sites; may be NULL. */
fl_err fl_svd_mix(fl_run *run, fl_pile *in, const fl_mixing *how, fl_adapter **out, double *discarded);
/* The same of an m x R times R x n product at one site: inside fl_site_fn. bs [m][nstack], as [nstack][n]; u [m][r], sv [r], vt [r][n]. */
fl_err fl_site_svd(fl_run *run, int site, int64_t nstack, const double *bs, const double *as, int r, double *u, double *sv, double *vt);
/* the stack of one site: bs [m][R], as [R][n] scratch, weights and scales in as; R = *nstack; items of another label are left out; w NULL = p */
void fl_site_stack(fl_run *run, int site, const fl_pile *in, int label, const double *w, int64_t *nstack, double **bs, double **as);
/* top r of every site of ad: of the base W (dense NULL) or of a DENSE adapter's rows: s B A = U_r S_r V_r', B = U S^(1 - split) s^(split - 1),
 * A = (S / s)^split V'; split 0: all in B, 0.5: balanced. ad replicated; also in setup. */
fl_err fl_svd_of(fl_run *run, const fl_adapter *dense, double split, fl_adapter *ad);
/* base += coef s B A: a new revision. Needs FL_MERGES. sent: factors that every client pays when it next downloads ({0} = A and B, {FL_NONE} =
 * nothing: it works the update out itself, {FL_BIT(FL_B)} = B and an 8-byte seed for A; with pairs or elems exactly those elements and no
 * seed). Also in setup. */
fl_err fl_merge(fl_run *run, const fl_adapter *ad, double coef, fl_pick sent);
int fl_base_bits(fl_run *run, int bits); /* setup: another base, sites' tensors quantised (4: NormalFloat, 8: absmax, blocks of 64), once per node */
void fl_serve(fl_run *run, const char *name, const fl_server_opt *opt, const fl_adapter *g, fl_adapter *x); /* g NULL: declares what it keeps (in setup) */
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
typedef struct fl_aggregate_options {
    const char *out;        /* folder of the result */
    const double *w;        /* [nfolders] weights, sum 1 */
    int r;                  /* of the result, methods with FL_SPLITS; 0 = the largest of the adapters */
    double energy;          /* keep the fewest pairs that hold this share of the squared norm; 0 = all */
    int dtype;              /* fl_peft_dtype */
    bool stacked;           /* what the method merges into the base joins the adapter (more rank); else it becomes OUT/residual */
    bool audit, progress;   /* measure the discordance; a terminal */
} fl_aggregate_options;
/* Collective. The method's server step on adapters of any model -> PEFT folder(s). The same bytes on any number of ranks. deck: method and its
 * section, svd, cohort.size = nfolders. */
fl_err fl_aggregate(fl_ctx *ctx, const fl_deck *deck, const fl_peft_set *set, const fl_aggregate_options *options);
/* Local-ish (one rank of data): the server's adapter (client < 0) or a client's kept adapter out of a checkpoint, as PEFT folder, or merged HF folder */
fl_err fl_export(fl_ctx *ctx, const char *checkpoint, const char *out, int client, bool merged);
#endif
