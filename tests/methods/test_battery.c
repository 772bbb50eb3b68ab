/* test_battery.c - what every registered method must do, without a line of its own: run to the end
 * with finite numbers, learn, give the state of the same run on one rank, leave no memory behind,
 * go on from a checkpoint as if nothing had happened. */
#include "method_run.h"
#include <stdlib.h>

enum { ROUNDS = 6 };
static const char *const learner[] = {"adapter.targets=[q, k, v, o, gate, up, down]", "adapter.r=4",
    "train.lr=0.01", "train.steps=5", "train.batch=6", "data.domains=1", "partition.clients=5",
    "cohort.size=4", "clients.lost=0.1", "eval.max_samples=4", "eval.every=3",
    "eval.per_client=true"};

static const char *const special[][2] = {
#define X(method, set) {#method, set},
#include "battery.def"
#undef X
    {"", ""}};
enum { NSETS = FL_COUNT(learner) + 5 + 8 };

static void sets_of(const fl_method *m, char *method, const char *rounds, const char **sets)
{
    size_t n = FL_COUNT(learner);
    bool unequal = (m->needs & FL_HETERO) != 0;

    snprintf(method, 80, "method.name=%s", m->name);
    memcpy(sets, learner, sizeof learner);
    sets[n++] = method;
    sets[n++] = rounds;
    sets[n++] = unequal ? "clients.r=[2, 4]" : "clients.r=[]";
    sets[n++] = unequal ? "clients.r_share=[0.5, 0.5]" : "clients.r_share=[]";
    for (size_t i = 0; i < FL_COUNT(special); i++) {
        if (strcmp(special[i][0], m->name) == 0) {
            FL_REQUIRE(n + 1 < NSETS);
            sets[n++] = special[i][1];
        }
    }
    sets[n] = NULL;
}

/* the run on rank 0 alone; its state on every rank */
static uint64_t state_alone(const char *const *sets)
{
    uint64_t state = 0;
    MPI_Request request;
    int done = 0;

    if (test_ctx->rank == 0) {
        fl_ctx *self;

        fl_ctx_create(MPI_COMM_SELF, &self);
        self->quiet = true;
        state = bed_federation(self, "alone", sets);
        fl_ctx_destroy(&self);
    }
    MPI_Ibcast(&state, 1, MPI_UINT64_T, 0, test_ctx->world, &request);
    for (MPI_Test(&request, &done, MPI_STATUS_IGNORE); !done;
         MPI_Test(&request, &done, MPI_STATUS_IGNORE)) {
        usleep(1000); /* the others leave it the cores */
    }
    return state;
}

/* three rounds, then six with the same OUT */
static uint64_t state_in_two_parts(const fl_method *m)
{
    const char *sets[NSETS];
    char method[80], out[300];
    uint64_t state = 0;
    fl_deck *deck;

    sets_of(m, method, "run.rounds=3", sets);
    bed_federation(test_ctx, "parts", sets);
    sets_of(m, method, "run.rounds=6", sets);
    snprintf(out, sizeof out, "%s/parts", bed_dir);
    deck = bed_deck(sets);
    bed_ok(fl_federation(
        test_ctx, deck, &(fl_options){.out = out, .resume = "auto", .versions = ""}, &state));
    fl_deck_destroy(&deck);
    return state;
}

/* the rows of a run do not show that it was interrupted or on how many ranks it ran */
static void check_rows(const fl_method *m, const char *other)
{
    static const char *const column[] = {
        "train_loss", "eval_loss", "up_bytes", "down_bytes", "clients", "discordance"};

    for (size_t i = 0; i < FL_COUNT(column); i++) {
        double x[ROUNDS + 2], y[ROUNDS + 2];

        assert_int_equal(bed_column("world", column[i], ROUNDS + 2, x), ROUNDS + 1);
        assert_int_equal(bed_column(other, column[i], ROUNDS + 2, y), ROUNDS + 1);
        for (int t = 0; t <= ROUNDS; t++) {
            if (x[t] != y[t] && !(isnan(x[t]) && isnan(y[t]))) {
                fail_msg("%s, round %d, %s: %.9g, and %.9g when run %s", m->name, t, column[i],
                    x[t], y[t], other);
            }
        }
    }
}

static void check_method(const fl_method *m)
{
    const char *sets[NSETS];
    char method[80];
    double loss[ROUNDS + 2], eval[ROUNDS + 2], discordance[ROUNDS + 2];
    size_t before = fl_memory_now();

    sets_of(m, method, "run.rounds=6", sets);
    uint64_t state = bed_federation(test_ctx, "world", sets);

    if (fl_memory_now() != before) {
        fail_msg("%s: %zu bytes before, %zu after", m->name, before, fl_memory_now());
    }
    assert_true(fl_same_everywhere(test_ctx, state));
    if (state_alone(sets) != state) {
        fail_msg("%s: another state on %d ranks than on one", m->name, test_ctx->size);
    }
    if (state_in_two_parts(m) != state) {
        fail_msg("%s: another state after a restart", m->name);
    }
    check_rows(m, "alone");
    check_rows(m, "parts");
    assert_int_equal(bed_column("world", "train_loss", ROUNDS + 2, loss), ROUNDS + 1);
    assert_int_equal(bed_column("world", "eval_loss", ROUNDS + 2, eval), ROUNDS + 1);
    assert_int_equal(bed_column("world", "discordance", ROUNDS + 2, discordance), ROUNDS + 1);
    for (int t = 0; t <= ROUNDS; t++) {
        assert_true(t == 0 ? isnan(loss[t]) : isfinite(loss[t]));
        assert_true(t % 3 == 0 ? isfinite(eval[t]) : isnan(eval[t]));
        assert_false(isinf(discordance[t]));
    }
    if (!(loss[ROUNDS] < 0.97 * loss[1]) || !(eval[ROUNDS] < 0.97 * eval[0])) {
        fail_msg("%s does not learn: training %.4f -> %.4f, evaluation %.4f -> %.4f", m->name,
            loss[1], loss[ROUNDS], eval[0], eval[ROUNDS]);
    }
}

static void every_method(void **state)
{
    const char *only = getenv("FEDLORA_METHOD"); /* while one is being written */

    (void)state;
    assert_true(fl_method_count() > 0);
    for (int i = 0; i < fl_method_count(); i++) {
        if (only != NULL && strcmp(only, fl_method_at(i)->name) != 0) {
            continue;
        }
        check_method(fl_method_at(i));
        bed_remove(NULL);
        assert_int_equal(bed_folder(NULL), 0);
    }
}

int main(int argc, char **argv)
{
#define T(test) cmocka_unit_test_setup_teardown(test, bed_folder, bed_remove)
    const struct CMUnitTest tests[] = {T(every_method)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
