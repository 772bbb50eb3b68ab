/* adapter.h - the trainable numbers: slots laid out in a space, adapters on it, and their algebra.
 * LoRA layer: y = W x + s B (A x), W m x n frozen, A r x n, B m x r, s = alpha / r (rsLoRA: alpha / sqrt(r)). Row-major. */
#ifndef FL_ADAPTER_H
#define FL_ADAPTER_H
#include "fedlora/la.h"

/* DENSE adds to the base tensor itself (full training, masks). PLAIN never enters the forward pass: cores between factors, nested factors,
 * scales; it trains, travels, sums and is kept like any other slot. GATE and HEAD come with the methods that need them. */
typedef enum fl_factor { FL_A, FL_B, FL_DENSE, FL_PLAIN, FL_NFACTORS } fl_factor;
#define FL_LORA (FL_BIT(FL_A) | FL_BIT(FL_B))
#define FL_NONE FL_BIT(31)

typedef struct fl_site {        /* an adapted matrix of the model */
    char name[24];              /* "3.q": block and short name */
    int block;                  /* 0.. */
    int m, n;                   /* out, in */
} fl_site;

typedef struct fl_slot {
    char name[40];              /* "3.q.A"; DENSE: the tensor's name; PLAIN: "plain.7" */
    fl_factor factor;
    int site;                   /* index of the site; DENSE: index of the base tensor; PLAIN: number of the slot */
    int rows, cols;
    size_t at;                  /* offset in v; slots are contiguous and cover exactly n elements (space_is_valid) */
} fl_slot;
typedef struct fl_space {       /* interned: equal shapes are one object of a registry */
    int nslots, nsites, rmax;   /* rmax: largest r of any site; DENSE, PLAIN: rmax and nsites are 0 */
    fl_slot *slot;              /* owned [nslots]; LoRA: A then B of site 0, of site 1, ..; r = 0: both slots absent */
    int *m, *n_in, *r;          /* owned [nsites]; r 0 = site absent */
    double *scale;              /* owned [nsites]: s */
    int *slot_of;               /* owned [nsites * 2]: slot of A and B, -1 = absent */
    size_t n;
    uint64_t hash;              /* of all the above */
} fl_space;
typedef struct fl_adapter {
    const fl_space *space;      /* borrowed from the registry */
    fl_real *v;                 /* [space->n], owner says who made it; spread: only the sites owned here */
    const size_t *at;           /* NULL: contents as space->slot[].at; else [nslots] offsets in v, SIZE_MAX = not on this rank */
} fl_adapter;
typedef struct fl_mat { fl_real *x; int rows, cols; } fl_mat; /* x NULL = slot absent (or not on this rank) */

/* ---- registry of spaces ---- */
typedef struct fl_spaces fl_spaces;
fl_spaces *fl_spaces_create(void);
void fl_spaces_destroy(fl_spaces **reg); /* frees all its spaces */
/* LoRA space over sites[nsites] with r[j] (0 = absent) and s_j: alpha / r (rslora: / sqrt(r)); alpha <= 0: s = 1 everywhere (stacks) */
const fl_space *fl_space_lora(fl_spaces *reg, int nsites, const fl_site *site, const int *r, double alpha, bool rslora);
/* the same with a scale per site */
const fl_space *fl_space_scaled(fl_spaces *reg, int nsites, const fl_site *site, const int *r, const double *scale);
const fl_space *fl_space_of_plain(fl_spaces *reg, int n, const int *rows, const int *cols); /* n slots of rows[i] x cols[i] */
int fl_pair_first(const fl_space *s, int site);                 /* number of the site's first rank-1 pair; site = nsites: pairs in all */
const fl_space *fl_space_dense(fl_spaces *reg, int ntensors, const char *const *name, const int *rows, const int *cols);
bool fl_space_is_valid(const fl_space *s);

/* ---- memory ---- */
fl_adapter *fl_adapter_create(const fl_space *space);           /* zero */
fl_adapter *fl_adapter_create_spread(const fl_space *space, const int *owner, int rank); /* holds sites with owner[j] == rank only */
void fl_adapter_destroy(fl_adapter **ad);

/* ---- algebra ---- */
fl_mat fl_at(const fl_adapter *ad, int site, fl_factor f);
void fl_fit(fl_adapter *dst, const fl_adapter *src);            /* common pairs (the first min(r, r')) and slots; the rest of dst = 0 */
/* as fl_fit for one slot pair, but the product s B A of the common pairs is kept: B is multiplied by s_src / s_dst */
void fl_fit_product(fl_adapter *dst, const fl_adapter *src);
void fl_adapter_axpy(fl_adapter *y, double a, const fl_adapter *x); /* same space */
bool fl_adapter_finite(const fl_adapter *ad, int *slot);        /* slot: first with NaN or Inf */
uint64_t fl_adapter_hash(const fl_adapter *ad, uint64_t seed);  /* space and values */
double fl_adapter_norm(const fl_adapter *ad);                   /* flat 2-norm, double */
typedef enum fl_inner { FL_FLAT, FL_PRODUCT } fl_inner;
double fl_dot(const fl_adapter *x, const fl_adapter *y, int site, fl_inner kind); /* <x, y>; s s' <BA, B'A'> by r x r' Grams */
void fl_product(const fl_adapter *ad, int site, double coef, double be, double *x); /* x (m x n) = be x + coef s B A, double */
/* initial values of one site: kaiming: A uniform +-1/sqrt(n), gaussian: A normal with std (0: 1/r); B = 0 always.
 * Values depend on (seed, stream, site, row, column) only, not on r: nested. */
void fl_init_site(uint64_t seed, int stream, int kind, double std, int site, fl_adapter *ad);
#endif
