/* fed_internal.h - the runtime behind fed.h: what a run holds, and who of src/fed calls whom. */
#ifndef FL_FED_INTERNAL_H
#define FL_FED_INTERNAL_H
#include "fedlora/fed.h"

/* ---- kept memory: one list for the server, one for the client whose turn it is ---- */
typedef struct fl_kept {
    char name[48];
    int index;
    char what[120];
    size_t n;       /* doubles in x */
    double *x;      /* owned, or NULL when ad is set */
    fl_adapter *ad; /* owned */
} fl_kept;
typedef struct fl_kept_list {
    int n, room;
    fl_kept *k;
} fl_kept_list; /* k owned [room] */
void kept_free(fl_kept_list *list);
fl_kept *kept_find(fl_kept_list *list, const char *name, int index);

/* ---- the traffic ledger: what a real federation would send; counted where messages are sealed
 * ---- */
#define FL_TRAFFIC(X) X(adapter) X(base_update) X(seed) X(other)
#define FL_AS_TRAFFIC(name) TRAFFIC_##name,
enum { FL_TRAFFIC(FL_AS_TRAFFIC) NTRAFFIC };
extern const char *const traffic_name[NTRAFFIC];
typedef struct fl_ledger {
    double up[NTRAFFIC], down[NTRAFFIC];
} fl_ledger; /* bytes */

/* ---- a message ---- */
enum { MAX_PARTS = 16, MAX_NUMBERS = 8 };
typedef struct number_list { /* what one fl_put gave */
    char name[32];
    size_t n;
    double *x; /* arena [n], as the receiver reads them */
} number_list;
struct fl_msg {
    fl_run *run;
    fl_client *client;
    bool up;
    fl_err err;
    int n;
    fl_part part[MAX_PARTS]; /* part.ad: a sealed copy */
    int nnumbers;
    number_list number[MAX_NUMBERS];
    double number_bytes;
};

/* ---- a client's turn ---- */
typedef struct fl_turn {
    fl_kept_list kept;
    double loss; /* sum over steps of the mean loss */
    int64_t steps;
    const fl_adapter *meant[FL_MAX_ADAPTERS]; /* turn arena: what the server would have sent under this label without codec.down; NULL: the same */
} fl_turn;

/* ---- what arrived ---- */
typedef struct fl_inbox {
    int nitems;        /* of the whole cohort */
    fl_item *item;     /* round arena [nitems]; replicated metadata */
    int *position;     /* round arena [nitems]: of the item's client in the cohort */
    fl_adapter **mine; /* round arena [nitems]: contents of items hosted here, else NULL */
    int *first_item;   /* round arena [size + 1] items by rank */
    const fl_part **part; /* round arena [nitems]: those hosted here, else NULL */
    fl_item *bysite; /* round arena [nitems] or NULL: items with ad complete at the sites of .. */
    int wave, nwaves; /* .. this wave: of each owner's sites the share wave / nwaves */
} fl_inbox;

typedef struct fl_merged {
    const fl_adapter *ad;
    double coef;
} fl_merged; /* round arena */
enum { MAX_MERGES = 8 };

typedef struct fl_columns {
    int wall, train, eval, metric, mean, worst, up, down, clients, discordance;
} fl_columns;

typedef struct fl_runtime {
    fl_ctx *ctx;             /* borrowed */
    const fl_deck *deck;     /* borrowed */
    const fl_options *opt;   /* borrowed */
    const fl_method *method; /* borrowed */
    fl_run run;
    fl_base base;
    fl_dataset data;
    fl_partition part;
    fl_spaces *spaces;      /* owned */
    fl_store *store;        /* owned */
    fl_arena *round, *turn; /* owned; the arena of fl_scratch is turn while a client's turn runs */
    fl_turn *now;           /* the client's turn that runs, NULL = none */
    fl_kept_list server;
    int *client_r; /* owned [nclients] */
    double *cost;  /* owned [nclients] predicted cost of a turn */
    int *cohort;   /* owned [ncohort] */
    int *first;    /* owned [size + 1] cohort positions by rank */
    /* teams: with cohort.shards = T up to T ranks share the clients of one block; the first of a
     * team is its leader, whose block is in first[]; the others' are empty, they work along */
    fl_ctx *team; /* owned; the ranks of this team */
    int nteams, iteam;
    int *team_first;   /* owned [nteams + 1] cohort positions by team */
    int *leader;       /* owned [nteams] rank of a team's leader */
    int *owner;        /* owned [nsites] rank of each site */
    int min_node_size; /* ranks on the smallest node */
    /* training */
    fl_work *work; /* owned */
    int work_r;    /* sum of ranks that it holds */
    fl_batcher batcher;
    uint32_t *picked; /* owned [largest batch] */
    /* ledger and revisions */
    int *last_seen;      /* owned [nclients] round of the last download, 0 = never; replicated */
    int *slot_changed;   /* owned [global slots] round in which the slot last changed, -1 = as the
                            seed made it */
    uint64_t *slot_hash; /* owned [global slots] */
    double *revision_bytes; /* owned [rounds + 1] cumulative cost of the base's revisions by the end
                               of round t */
    int base_revision;
    uint64_t base_hash;
    fl_ledger ledger, total; /* this round on this rank; all rounds and ranks */
    /* the round */
    fl_msg **sent; /* round arena [ncohort]: sealed uploads of clients hosted here, NULL = none */
    double *turn_loss, *turn_steps; /* round arena [ncohort]: mean loss and steps of each turn,
                                       after the round on all ranks */
    fl_inbox inbox;
    fl_pile pile;
    fl_adapter *before; /* global when aggregate began (round arena) */
    int nmerges;
    fl_merged merged[MAX_MERGES];
    bool aggregating, in_setup, in_sites;
    /* fedlora aggregate: items are read from files when they are needed; NULL = a live run */
    struct fl_source *source;
    double svd_energy;      /* > 0: SVDs keep the fewest pairs that hold this share */
    double *site_discarded; /* borrowed [nsites] or NULL: share of the squared norm that the last SVD cut off */
    /* source: a stack is not made but remembered, to be read again site by site */
    const fl_adapter *lazy;
    const double *lazy_w; /* round arena */
    int lazy_label;
    /* quantised copies of the base */
    int nbases;
    fl_share base_share[4];
    const fl_real **base_w[4]; /* owned */
    /* results */
    fl_metrics metrics;
    fl_columns col;
    int ncurve, curve_room;
    double *curve;    /* owned [curve_room][CURVE_COLUMNS] per-client curves, replicated */
    double deadline;  /* fl_now at which the time is up */
    double svd_worst; /* largest residual logged so far */
    double flops, train_tokens; /* this rank's local training */
    double longest_round, longest_checkpoint, checkpoint_bytes, started;
    fl_checkpoint_job *saving; /* owned: a checkpoint on its way to the disk, NULL = none .. */
    int saving_round;          /* .. of this round */
    double saving_waited;      /* .. begun after so many seconds of waiting for the one before */
    double checkpoint_seconds, checkpoint_total; /* writing, until on disk; bytes of all files */
    int noted, noted_first; /* rounds in by_round, the first of them */
    double *by_round;       /* owned [rounds + 1][2] private memory (most), MPI bytes (mean) */
    double mpi_bytes_before;
    fl_adapter *start;      /* owned: global after setup, for codec.down; else NULL */
    double most_at_once;    /* bytes a rank, above which sites come in waves (pile_waves) */
} fl_runtime;
/* one blob of bytes <-> list; adapters store kind and ranks by value. Unpack trusts nothing
 * (FL_EFILE). */
void kept_pack(const fl_kept_list *list, fl_runtime *rt, fl_text *blob);
fl_err kept_unpack(fl_runtime *rt, const void *blob, size_t bytes, fl_kept_list *list);
/* ---- spaces.c: spaces by value, as words that travel and are saved ---- */
typedef enum space_kind { SPACE_DECK, SPACE_STACK, SPACE_DENSE, SPACE_PLAIN, SPACE_SCALED } space_kind;
space_kind space_kind_of(fl_runtime *rt, const fl_space *sp);
int space_words(fl_runtime *rt, const fl_space *sp, int32_t *words); /* their number; words NULL = only that */
const fl_space *space_from(fl_runtime *rt, int n, const int32_t *words); /* NULL = not a space of this model */
const fl_space *space_full(fl_runtime *rt);                              /* DENSE, all tensors */
const fl_space *space_of_deck(fl_runtime *rt, const int *r);

/* ---- pick.c ---- */
bool pick_factor(fl_pick pick, fl_factor f);
int pick_runs(const fl_space *sp, fl_pick pick, int slot, fl_range *out);
size_t pick_count(const fl_space *sp, fl_pick pick, int slot);
double pick_bytes(const fl_space *sp, fl_pick pick);

/* ---- codec.c ---- x [n] becomes what the receiver decodes; returns the bytes that travel */
double codec_seal(const fl_deck_codec *d, int kind, uint64_t seed, int id, int t, size_t n, fl_real *x);
/* a part that is being sealed, and what it costs; also without a codec on its own way, where the one on the other way made the client's
 * copy another than the server's */
double codec_part(fl_runtime *rt, fl_msg *msg, fl_part *part);

/* ---- source: items of fedlora aggregate ---- */
typedef struct fl_source {
    void *of; /* borrowed */
    /* local: A and B of item's site into the adapter's memory, complete */
    fl_err (*site)(void *of, int item, int site, fl_real *a, fl_real *b);
} fl_source;

enum { CURVE_COLUMNS = 5 }; /* round, client, loss, accuracy, targets */

fl_err setup_runtime(
    fl_ctx *ctx, const fl_deck *deck, const fl_options *opt, fl_runtime *rt); /* collective */
void setup_destroy(fl_runtime *rt);
fl_err setup_method(fl_runtime *rt); /* finds it, and its section */
void setup_ledger(fl_runtime *rt);
void setup_sites(fl_runtime *rt); /* which rank owns which site */
fl_err setup_fresh(fl_runtime *rt); /* collective: round 0's server state and metric columns */
fl_err team_create(fl_runtime *rt); /* collective: teams of ranks for cohort.shards */
void team_place(fl_runtime *rt, const double *cost); /* the cohort's blocks: first, team_first */
void team_share_blob(fl_runtime *rt, void **blob, size_t *bytes); /* from the leader to its team */
bool team_leads(const fl_runtime *rt);
void setup_workspace(
    fl_runtime *rt, int batch); /* sized for the larger of train.batch and eval.batch */
int setup_client_r(const fl_deck *deck, uint64_t seed, int id);

fl_err round_run(fl_runtime *rt, int t); /* collective */
void round_draw(fl_runtime *rt, int t);  /* the cohort of round t */
fl_err round_sum(fl_runtime *rt); /* collective: the method's aggregate hook on rt->pile */
fl_err round_aggregate(fl_runtime *rt);  /* collective: what is in rt->sent -> server state; the end
                                            of a round without the turns */
double round_train_loss(const fl_runtime *rt);
fl_err turn_run(fl_runtime *rt, int position, bool lost, void **blob, size_t *bytes);
fl_err turn_enrol(
    fl_runtime *rt, int id, const void *blob, size_t bytes, fl_client *c, fl_turn *turn);
void turn_end(fl_runtime *rt, fl_turn *turn);

fl_err message_seal(fl_runtime *rt, fl_msg *msg); /* after the hook: cost of parts */
bool message_knows(const fl_runtime *rt, const fl_msg *msg, const fl_part *part, const fl_slot *s); /* the receiver has the slot already */
void message_charge_base(fl_runtime *rt, const fl_client *c);
void ledger_round(
    fl_runtime *rt, double *up, double *down); /* collective: totals of the round, ledger cleared */
void ledger_changed(fl_runtime *rt, int t);    /* after aggregate: which slots of global changed */

fl_err pile_build(fl_runtime *rt); /* collective: metadata of all that arrived, from rt->sent */
int pile_waves(fl_runtime *rt);    /* into how many waves the sites are cut: by the size of what arrived */
bool pile_in_wave(const fl_runtime *rt, int site, int wave, int nwaves);
/* collective: the factors of a wave's sites to their owners, into rt->inbox.bysite. All in one wave: kept for the round; else valid until
 * the arena goes back to before the call (pile_forget) */
fl_err pile_by_site(fl_runtime *rt, int wave, int nwaves);
void pile_forget(fl_runtime *rt);
/* the contents of an item hosted here: as they lie, or read into the round's arena */
fl_err pile_item(fl_runtime *rt, int i, const fl_adapter **ad);
void site_stack(const fl_item *item, int n, int label, const double *w, int site, double *bs, double *as,
    int64_t nstack, int64_t *at);
int64_t site_stack_r(const fl_pile *in, int label, int site);
/* for every site owned here, wave by wave: visit(arg, site, complete pile). Collective */
fl_err site_walk(fl_runtime *rt, fl_err (*visit)(fl_runtime *rt, int site, const fl_pile *in, void *arg), void *arg);
void site_replicate(fl_runtime *rt, fl_adapter *ad);
void setup_work(fl_runtime *rt, const fl_stack *stack); /* rt->work is large enough for this stack */
const fl_real *const *base_weights(fl_runtime *rt, const fl_stack *stack);
void base_bits_free(fl_runtime *rt);
const double *mixing_weights(fl_run *run, const fl_pile *in, const fl_mixing *how);

fl_err discordance_measure(fl_runtime *rt,
    double *relative); /* collective, after aggregate; NaN where it has no meaning */
fl_err eval_round(fl_runtime *rt, fl_split split, bool clients,
    double out[4]); /* collective: loss, accuracy, clients' mean and worst tenth */
typedef struct eval_sum {
    double loss, n, right;
} eval_sum;
/* weights of a stack whose one entry may be DENSE (then the stack becomes empty): base + adapter */
const fl_real *const *eval_weights(fl_runtime *rt, fl_stack *stack);
eval_sum eval_samples(fl_work *work, fl_batcher *b, const fl_dataset *d, const fl_real *const *w,
    const fl_stack *stack, int max_length, int vocab, int n, const uint32_t *sample);

fl_err state_save(fl_runtime *rt, int t); /* collective: checkpoint of round t; checkpoint.async:
                                             begun, after the one before has ended */
/* collective: ends the checkpoint in the background, if there is one and it is done, or waits */
fl_err state_settle(fl_runtime *rt, bool wait);
fl_err state_resume(
    fl_runtime *rt, int *t); /* collective: newest valid checkpoint of OUT; *t 0 = fresh */
uint64_t state_digest(fl_runtime *rt, int t); /* collective */

void report_start(fl_runtime *rt);
void report_round(fl_runtime *rt, int t);
void report_progress(fl_runtime *rt, int done,
    int mine);                         /* clients of this round that rank 0 has done, of its own */
fl_err report_files(fl_runtime *rt);   /* rounds.csv, metrics.h5 */
fl_err report_adapter(fl_runtime *rt); /* adapter/, base/ */
fl_err report_finish(fl_runtime *rt);  /* phase table, perf.json, adapter/ */
fl_err report_used(fl_runtime *rt);
fl_err report_dry_run(fl_runtime *rt);
#endif
