/* aggregate.h - the pieces of `fedlora aggregate`: hooks on a pile of files (aggregate.c), the
 * result as PEFT folders (aggregate_write.c), what it cost (aggregate_audit.c). */
#ifndef FL_AGGREGATE_H
#define FL_AGGREGATE_H
#include "fed_internal.h"

typedef struct aggregation {
    fl_runtime *rt;
    const fl_peft_set *set;
    const fl_aggregate_options *how;
    fl_source source;
    double *scale; /* owned [nsites]: s of the result */
} aggregation;

/* ---- what the server installed: part 0 its adapter, then every merge ---- */
int aggregate_parts(const aggregation *g);
int64_t aggregate_r(const aggregation *g, int part, int site); /* pairs of the part, zero ones at the end left out of part 0 */
double aggregate_scale(const aggregation *g, int part, int site); /* s, with the merge's coefficient */
/* local, on the site's owner: a (r x n), b (m x r) of the part, as stored; scratch. in: complete at the site */
void aggregate_part(aggregation *g, int part, int site, const fl_pile *in, const fl_real **a, const fl_real **b);

fl_err aggregate_write(aggregation *g); /* collective */
fl_err aggregate_audit(aggregation *g); /* collective */
#endif
