/* test_data_mpi.c - data set and partition are the same on any number of ranks and nodes: what all
 * ranks load together is compared with what each loads alone (a context on MPI_COMM_SELF), and
 * several nodes are played on one machine. */
#include "fedlora/data.h"
#include "harness.h"
#include <string.h>

static fl_deck deck_synthetic(void)
{
    return (fl_deck){
        .run = {.seed = 5},
        .model = {.max_length = 24, .share_dir = ""},
        .data = {.source = "synthetic",
            .separator = "",
            .key = "",
            .field = "text",
            .label = "",
            .valid = 0.1,
            .test = 0.2,
            .domains = 12,
            .sequences = 300,
            .length = 60,
            .noise = 0.05},
        .partition =
            {.kind = FL_PART_IID, .clients = 20, .alpha = 0.3, .shards = 2, .min_records = 1},
    };
}

static void assert_says(fl_err err, fl_err want, const char *part)
{
    if (err != want || !strstr(fl_error_text(), part)) {
        fail_msg("error %d, wanted %d; \"%s\" lacks \"%s\"", err, want, fl_error_text(), part);
    }
    fl_error_clear();
}

static void assert_same_data(const fl_dataset *a, const fl_dataset *b)
{
    assert_int_equal(a->nsamples, b->nsamples);
    assert_int_equal(a->ntokens, b->ntokens);
    assert_int_equal(a->vocab, b->vocab);
    assert_int_equal(a->nkeys, b->nkeys);
    assert_true(a->hash == b->hash);
    assert_memory_equal(a->token, b->token, (size_t)a->ntokens * sizeof *a->token);
    assert_memory_equal(a->offset, b->offset, ((size_t)a->nsamples + 1) * sizeof *a->offset);
    assert_memory_equal(a->split, b->split, (size_t)a->nsamples);
    assert_memory_equal(a->key, b->key, (size_t)a->nsamples * sizeof *a->key);
    for (int i = 0; i < a->nkeys; i++) {
        assert_string_equal(a->key_name[i], b->key_name[i]);
    }
}

static void assert_same_partition(const fl_partition *a, const fl_partition *b)
{
    assert_int_equal(a->nclients, b->nclients);
    for (int s = 0; s < FL_NSPLITS; s++) {
        assert_memory_equal(
            a->first[s], b->first[s], ((size_t)a->nclients + 1) * sizeof *a->first[s]);
        assert_memory_equal(a->list[s], b->list[s], a->first[s][a->nclients] * sizeof *a->list[s]);
    }
    assert_int_equal(a->name != NULL, b->name != NULL);
    for (int k = 0; a->name && k < a->nclients; k++) {
        assert_string_equal(a->name[k], b->name[k]);
    }
}

/* together on ctx, against alone */
static void compare_with_alone(fl_ctx *ctx)
{
    fl_deck deck = deck_synthetic();
    fl_ctx *alone;
    fl_dataset d, mine;

    fl_ctx_create(MPI_COMM_SELF, &alone);
    alone->quiet = true;
    assert_int_equal(fl_dataset_load(ctx, &deck, 256, &d), FL_OK);
    assert_int_equal(fl_dataset_load(alone, &deck, 256, &mine), FL_OK);
    assert_same_data(&d, &mine);
    assert_true(fl_same_everywhere(ctx, d.hash));
    for (int kind = FL_PART_IID; kind <= FL_PART_NATURAL; kind++) {
        fl_partition p, q;

        deck.partition.kind = kind;
        assert_int_equal(fl_partition_create(ctx, &deck, &d, &p), FL_OK);
        assert_int_equal(fl_partition_create(alone, &deck, &mine, &q), FL_OK);
        assert_same_partition(&p, &q);
        fl_partition_destroy(&p);
        fl_partition_destroy(&q);
    }
    deck.run.seed = 6;
    fl_dataset other;

    assert_int_equal(fl_dataset_load(alone, &deck, 256, &other), FL_OK);
    assert_true(other.hash != d.hash);
    fl_dataset_destroy(&d);
    fl_dataset_destroy(&mine);
    fl_dataset_destroy(&other);
    fl_ctx_destroy(&alone);
}

static void same_on_any_ranks(void **state)
{
    (void)state;
    compare_with_alone(test_ctx);
}

/* every rank a node of its own */
static fl_ctx nodes_played(void)
{
    fl_ctx c = *test_ctx;

    c.node = MPI_COMM_SELF;
    c.node_rank = 0;
    c.node_size = 1;
    c.leaders = c.world;
    c.inode = c.rank;
    c.nnodes = c.size;
    return c;
}

static void same_on_any_nodes(void **state)
{
    fl_ctx nodes = nodes_played();

    (void)state;
    compare_with_alone(&nodes);
}

/* the last node reads other data: sizes differ (longer sequences), or contents only (another seed)
 */
static void nodes_that_differ_say_so(void **state)
{
    fl_ctx nodes = nodes_played();

    (void)state;
    for (int what = 0; what < 3 && nodes.size > 1; what++) {
        fl_deck deck = deck_synthetic();
        fl_dataset d;

        if (nodes.rank == nodes.size - 1) {
            deck.data.length += what == 0;
            deck.data.test = what == 1 ? 0.3 : deck.data.test; /* same sizes, other splits */
            deck.data.domains += what == 2;                    /* other names */
        }
        assert_says(fl_dataset_load(&nodes, &deck, 256, &d), FL_EDECK, "nodes read different data");
        assert_null(d.share.x);
        assert_null(d.token);
    }
}

static void file_of_all_ranks(void **state)
{
    char path[64] = "";
    fl_deck deck = deck_synthetic();
    fl_dataset d;

    (void)state;
    if (test_ctx->rank == 0) {
        strcpy(path, "test-data-XXXXXX.csv");
        int fd = mkstemps(path, 4);
        const char *text = "who,text,y\nb,hello,1\na,\"x,y\",0\nb,bye,1\n";

        assert_int_equal(write(fd, text, strlen(text)), strlen(text));
        close(fd);
    }
    fl_bcast(test_ctx, 0, path, sizeof path);
    deck.data.source = path;
    deck.data.key = "who";
    deck.data.label = "y";
    deck.data.test = 0.5;
    assert_int_equal(fl_dataset_load(test_ctx, &deck, 256, &d), FL_OK);
    assert_int_equal(d.nsamples, 3);
    assert_int_equal(d.nclasses, 2);
    assert_int_equal(d.label[1], 0);
    assert_string_equal(d.key_name[d.key[0]], "b");
    assert_int_equal(d.split[2], FL_TEST);
    assert_int_equal(d.token[d.offset[1] + 1], ',');
    fl_dataset_destroy(&d);
    deck.data.field = "body";
    assert_says(fl_dataset_load(test_ctx, &deck, 256, &d), FL_EDECK, "it has: who, text, y");
    deck.data.field = "text";
    assert_says(fl_dataset_load(test_ctx, &deck, 100, &d), FL_EDECK, "holds token");
    MPI_Barrier(test_ctx->world);
    if (test_ctx->rank == 0) {
        unlink(path);
    }
    MPI_Barrier(test_ctx->world);
    assert_says(fl_dataset_load(test_ctx, &deck, 256, &d), FL_EFILE, "test-data-");
}

static void partition_errors_reach_all(void **state)
{
    fl_deck deck = deck_synthetic();
    fl_dataset d;
    fl_partition p;

    (void)state;
    assert_int_equal(fl_dataset_load(test_ctx, &deck, 256, &d), FL_OK);
    deck.partition.clients = 100000;
    assert_says(
        fl_partition_create(test_ctx, &deck, &d, &p), FL_EDECK, "partition.clients: 100000");
    assert_null(p.share.x);
    fl_dataset_destroy(&d);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_on_any_ranks),
        cmocka_unit_test(same_on_any_nodes),
        cmocka_unit_test(nodes_that_differ_say_so),
        cmocka_unit_test(file_of_all_ranks),
        cmocka_unit_test(partition_errors_reach_all),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
