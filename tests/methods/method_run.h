/* method_run.h - whole runs into the bed's folder, and what they write into rounds.csv. */
#ifndef METHOD_RUN_H
#define METHOD_RUN_H
#include "method_test.h"

/* `fedlora run` into bed_dir/name; its state digest */
static inline uint64_t bed_federation(fl_ctx *ctx, const char *name, const char *const *sets)
{
    char out[300];
    fl_deck *deck = bed_deck(sets);
    uint64_t state = 0;

    snprintf(out, sizeof out, "%s/%s", bed_dir, name);
    bed_ok(fl_agree(ctx, ctx->rank == 0 ? fl_make_dirs(out) : FL_OK));
    bed_ok(fl_federation(ctx, deck, &(fl_options){ .out = out, .resume = "none", .versions = "" }, &state));
    fl_deck_destroy(&deck);
    return state;
}

/* column of bed_dir/name/rounds.csv, the same on all ranks of test_ctx; returns the rows, round 0 first; empty cell: NaN */
static inline int bed_column(const char *name, const char *column, int room, double *x)
{
    char path[300], *s = NULL, *line, *save = NULL;
    size_t n = 0;
    int at = -1, rows = 0;

    snprintf(path, sizeof path, "%s/%s/rounds.csv", bed_dir, name);
    bed_ok(fl_agree(test_ctx, test_ctx->rank == 0 ? fl_file_read(path, &s, &n) : FL_OK));
    fl_bcast_text(test_ctx, &s, &n);
    for (line = strtok_r(s, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char *cell = line, *comma;

        for (int i = 0; cell != NULL; i++, cell = comma) {
            comma = strchr(cell, ',');
            if (comma != NULL) {
                *comma++ = '\0';
            }
            if (at < 0 && strcmp(cell, column) == 0) {
                at = i;
                break;
            }
            if (at >= 0 && i == at) {
                assert_true(rows < room);
                x[rows++] = *cell != '\0' ? strtod(cell, NULL) : NAN;
                break;
            }
        }
    }
    fl_free(s);
    return rows;
}

/* a whole run of the method sends exactly these bytes in rounds 1 .. rounds (up[rounds], down[rounds]): the formula that the caller worked
 * out. down NULL: only up. sets: further keys, NULL at the end */
static inline void bed_traffic(const char *method, const char *const *sets, int rounds, const double *up, const double *down)
{
    const char *all[BED_SETS] = { 0 };
    char name[80], number[40];
    double got_up[64], got_down[64];
    int n = 0;

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(number, sizeof number, "run.rounds=%d", rounds);
    all[n++] = name;
    all[n++] = number;
    for (int i = 0; sets[i] != NULL; i++) {
        FL_REQUIRE(n + 1 < BED_SETS);
        all[n++] = sets[i];
    }
    bed_federation(test_ctx, method, all);
    assert_int_equal(bed_column(method, "up_bytes", 64, got_up), rounds + 1);
    assert_int_equal(bed_column(method, "down_bytes", 64, got_down), rounds + 1);
    for (int t = 1; t <= rounds; t++) {
        if (got_up[t] != up[t - 1] || (down != NULL && got_down[t] != down[t - 1])) {
            fail_msg("%s, round %d: up %.0f (%.0f), down %.0f (%.0f)", method, t, got_up[t], up[t - 1], got_down[t],
                down != NULL ? down[t - 1] : got_down[t]);
        }
    }
}
#endif
