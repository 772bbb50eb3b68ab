/* test_first_round.c - what the first aggregation does to the client with good data and a high
 * rank. Ten clients with 480 texts each (texts.h): client 0 has all subjects alike and rank 20;
 * nine have rank 5 and nine in ten of their texts about one subject. All train from the common
 * start and are averaged once, by zero padding or by replication. Measured: the accuracy on client
 * 0's held-out texts of the start, of what client 0 trained, and of the server's adapter. Prints:
 * data METHOD SEED start before after. EFFECT_BASE: a base model; EFFECT_LR: the learning rate. */
#include "texts.h"

enum { HIGH = 20, LOW = 5, CLIENTS = 10, TEXTS = 480 };

/* of ad (NULL = the base alone) on the client's validation and test samples */
static double accuracy(bed *b, fl_adapter *ad, int client)
{
    fl_runtime *rt = b->rt;
    fl_stack stack = {.n = ad != NULL, .ad = {ad}, .coef = {1}};
    const fl_real *const *w = eval_weights(rt, &stack);
    double right = 0, n = 0;

    for (int split = FL_VALID; split <= FL_TEST; split++) {
        const uint32_t *list = rt->part.list[split] + rt->part.first[split][client];
        int count = (int)fl_partition_count(&rt->part, client, (fl_split)split),
            nb = rt->deck->eval.batch;

        for (int i = 0; i < count; i += nb) {
            eval_sum s = eval_samples(rt->work, &rt->batcher, &rt->data, w, &stack,
                rt->deck->model.max_length, rt->base.model.vocab, FL_MIN(nb, count - i), list + i);

            right += s.right;
            n += s.n;
        }
    }
    return right / n;
}

static void federation(const char *method, const char *data, int seed)
{
    char name[64], number[64], path[300], source[320], rate[64];
    bed b;

    snprintf(name, sizeof name, "method.name=%s", method);
    snprintf(number, sizeof number, "run.seed=%d", seed);
    snprintf(path, sizeof path, "model.path=%s", getenv("EFFECT_BASE"));
    snprintf(source, sizeof source, "data.source=%s", data);
    snprintf(rate, sizeof rate, "train.lr=%s", getenv("EFFECT_LR"));
    bed_open(&b, test_ctx,
        BED_SET(name, number, path, source, rate, "model.max_length=32", "partition.kind=natural",
            "partition.clients=0", "cohort.size=10", "cohort.weights=samples", "adapter.r=20",
            "adapter.alpha=20", "train.epochs=4", "train.batch=8", "eval.batch=16",
            "hetlora.weights=samples", "hetlora.lambda=0", "hetlora.gamma=1",
            "replication.promote=false"));
    assert_int_equal(b.rt->run.nclients, CLIENTS);
    for (int k = 0; k < CLIENTS; k++) {
        b.rt->client_r[k] = k == 0 ? HIGH : LOW;
    }
    fl_metrics_row(&b.rt->metrics);
    double start = accuracy(&b, NULL, 0);
    bed_ok(round_run(b.rt, 1));
    fl_adapter *own = b.rt->sent[0]->part[0].ad;
    assert_int_equal(own->space->rmax, HIGH);
    assert_int_equal(b.rt->sent[1]->part[0].ad->space->rmax, LOW);
    printf("data %s %d %.6f %.6f %.6f\n", method, seed, start, accuracy(&b, own, 0),
        accuracy(&b, b.rt->run.global, 0));
    bed_close(&b);
}

static void first_round(void **state)
{
    char data[300];

    (void)state;
    for (int seed = effect_first(); seed < effect_first() + effect_seeds(); seed++) {
        snprintf(data, sizeof data, "%s/texts.h5", bed_dir);
        texts_write(data, seed, (texts){.clients = CLIENTS, .each = TEXTS, .balanced = 1});
        federation("hetlora", data, seed);
        federation("replication", data, seed);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(first_round, bed_folder, bed_remove)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
