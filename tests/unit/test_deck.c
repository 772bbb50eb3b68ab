/* test_deck.c - the deck: rows, parsing, mistakes with their places, dump, compare, explain,
 * reference. The bad decks are read from tests/app/bad_decks, so run it from the root of the
 * repository. */
#include "fedlora/deck.h"
#include "harness.h"
#include <dirent.h>
#include <string.h>

typedef struct toy_config {
    int count;
    double part;
    bool on;
    int kind;
    char *text;
    fl_ints ints;
    fl_reals reals;
    fl_words words, names;
    uint64_t seed;
    double free_part;
} toy_config;

/* a method's section with every type of row */
static const fl_field toy_fields[] = {
    FL_INT(toy_config, count, "3", -10, 10, "", "an int"),
    FL_REAL(toy_config, part, "0.25", -1e300, 1e300, "m", "a real"),
    FL_BOOL(toy_config, on, "yes", "a truth value"),
    FL_WORD(toy_config, kind, "b", "a|b|c", "a word"),
    FL_TEXT(toy_config, text, "'it''s'", "a text"),
    FL_INTS(toy_config, ints, "", -2147483648.0, 2147483647, "", "ints"),
    FL_REALS(toy_config, reals, "[1, .5]", -1e308, 1e308, "", "reals"),
    FL_WORDS(toy_config, words, "[x]", "x|y|no", "words"),
    FL_WORDS(toy_config, names, "", NULL, "free words"),
    FL_SEED(toy_config, seed, "0", "a seed"),
    FL_FREE_REAL(toy_config, free_part, "0", 0, 1, "", "a key that may change"),
    FL_END,
};
static const fl_section extra[] = {
    {"plain", "a method without keys", NULL, 0},
    {"toy", "a method with all types", toy_fields, sizeof(toy_config)},
};
enum { NEXTRA = 2, TOY = 1 };

static const fl_section *section(int i)
{
    int n;
    const fl_section *s = fl_deck_sections(&n);

    return i < n ? &s[i] : i < n + NEXTRA ? &extra[i - n] : NULL;
}

static fl_deck *parse(const char *text, int nsets, const char *const *sets)
{
    fl_deck *deck;

    fl_error_clear();
    if (fl_deck_parse(
            text, text ? strlen(text) : 0, "in.yaml", nsets, sets, extra, NEXTRA, &deck) != FL_OK) {
        fail_msg("%s", fl_error_text());
    }
    assert_string_equal(fl_error_text(), "");
    return deck;
}

/* the recorded sentences of a deck that must not parse */
static const char *mistakes(const char *text, int nsets, const char *const *sets)
{
    fl_deck *deck;

    fl_error_clear();
    assert_int_equal(
        fl_deck_parse(text, text ? strlen(text) : 0, "in.yaml", nsets, sets, extra, NEXTRA, &deck),
        FL_EDECK);
    assert_null(deck);
    return fl_error_text();
}

static char *dump(const fl_deck *deck, bool comments)
{
    fl_text t = {0};

    fl_deck_dump(deck, comments, &t);
    return t.s;
}

/* ---- rows ---- */

/* Any preset given as --set must parse and give the deck that has it by default: no row contradicts
 * itself. */
static void check_preset(const char *section_name, const fl_field *f, const char *want)
{
    bool list = f->type == FL_T_INTS || f->type == FL_T_REALS || f->type == FL_T_WORDS;
    fl_text set = {0};

    fl_text_add(&set, "%s.%s=%s", section_name, f->name,
        *f->preset ? f->preset
        : list     ? "[]"
                   : "\"\"");
    /* the method's name last, so that the toy's rows are dumped also when method.name itself is
     * tried */
    fl_deck *deck = parse(NULL, 2, (const char *[]){set.s, "method.name=toy"});
    char *got = dump(deck, false);

    assert_string_equal(got, want);
    fl_free(got);
    fl_deck_destroy(&deck);
    fl_text_free(&set);
}

static void test_presets_fit(void **state)
{
    (void)state;
    fl_deck *deck = parse(NULL, 1, (const char *[]){"method.name=toy"});
    char *want = dump(deck, false);

    for (int i = 0; section(i); i++) {
        for (const fl_field *f = section(i)->fields; f && f->type != FL_T_END; f++) {
            check_preset(section(i)->name, f, want);
        }
    }
    fl_free(want);
    fl_deck_destroy(&deck);
}

static void test_rows_are_complete(void **state)
{
    (void)state;
    for (int i = 0; section(i); i++) {
        const fl_section *s = section(i);

        assert_true(strlen(s->help) > 3);
        for (const fl_field *f = s->fields; f && f->type != FL_T_END; f++) {
            bool number = f->type == FL_T_INT || f->type == FL_T_INTS || f->type == FL_T_REAL ||
                          f->type == FL_T_REALS || f->type == FL_T_SEED;
            bool whole = f->type == FL_T_INT || f->type == FL_T_INTS;

            if (strlen(f->help) < 4 || strchr(f->help, '\n') || !f->unit ||
                (number && !(f->lo < f->hi)) ||
                (whole && (f->lo < -2147483648.0 || f->hi > 2147483647.0)) ||
                (f->type == FL_T_WORD && !f->words) || f->at >= s->size) {
                fail_msg("row %s.%s", s->name, f->name);
            }
        }
    }
}

/* which keys may differ on resume is a promise of the interface */
static void test_free_keys(void **state)
{
    (void)state;
    static const char *const free_keys = " run.name run.rounds run.out run.maxh model.path "
                                         "model.share_dir data.source pretrain.out toy.free_part ";

    for (int i = 0; section(i); i++) {
        const fl_section *s = section(i);

        for (const fl_field *f = s->fields; f && f->type != FL_T_END; f++) {
            char name[80];
            snprintf(name, sizeof name, " %s.%s ", s->name, f->name);
            bool want = strstr(free_keys, name) || strcmp(s->name, "eval") == 0 ||
                        strcmp(s->name, "checkpoint") == 0;

            if (want != ((f->flags & FL_FREE_KEY) != 0)) {
                fail_msg("%s free or not", name);
            }
        }
    }
}

static void test_default_values(void **state)
{
    (void)state;
    fl_deck *d = parse(NULL, 0, NULL);

    assert_string_equal(d->run.name, "run");
    assert_string_equal(d->run.out, "runs/run");
    assert_int_equal(d->run.seed, 1);
    assert_int_equal(d->run.rounds, 20);
    assert_int_equal(d->adapter.targets.n, 2);
    assert_string_equal(d->adapter.targets.x[1], "v");
    assert_int_equal(d->partition.kind, FL_PART_DIRICHLET);
    assert_int_equal(d->train.optimizer, FL_OPT_ADAMW);
    assert_true(d->train.lr == 1e-3);
    assert_string_equal(d->data.separator, "<|endoftext|>");
    assert_int_equal(d->svd.grid.n, 0);
    assert_true(d->pretrain.tied);
    assert_int_equal(d->pretrain.family, FL_FAMILY_LLAMA);
    assert_null(fl_deck_config(d, "none"));
    const toy_config *toy = fl_deck_config(d, "toy");
    assert_string_equal(toy->text, "it's");
    assert_true(toy->on);
    assert_int_equal(toy->kind, 1);
    fl_deck_destroy(&d);
    assert_null(d);
}

/* the words of a row are in the order of the enum that the other layers use */
static void test_word_order(void **state)
{
    (void)state;
    fl_deck *d = parse("model: {task: lm}\n"
                       "adapter: {init: gaussian}\n"
                       "data: {format: synthetic, records: documents}\n"
                       "partition: {kind: natural}\n"
                       "cohort: {weights: uniform}\n"
                       "train: {what: full, optimizer: sgd, schedule: cosine}\n"
                       "svd: {solver: scalapack}\n"
                       "eval: {split: test}\n"
                       "pretrain: {family: gpt2}\n",
        0, NULL);

    assert_int_equal(d->adapter.init, FL_INIT_GAUSSIAN);
    assert_int_equal(d->data.format, FL_FORMAT_SYNTHETIC);
    assert_int_equal(d->data.records, FL_RECORDS_DOCUMENTS);
    assert_int_equal(d->partition.kind, FL_PART_NATURAL);
    assert_int_equal(d->cohort.weights, FL_WEIGHTS_UNIFORM);
    assert_int_equal(d->train.what, FL_WHAT_FULL);
    assert_int_equal(d->train.optimizer, FL_OPT_SGD);
    assert_int_equal(d->train.schedule, FL_SCHEDULE_COSINE);
    assert_int_equal(d->svd.solver, FL_SVD_SCALAPACK);
    assert_int_equal(d->eval.split, FL_SPLIT_TEST);
    assert_int_equal(d->pretrain.family, FL_FAMILY_GPT2);
    fl_deck_destroy(&d);
}

/* ---- values ---- */

static void test_value_forms(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double value;
    } reals[] = {
        {"1e-3", 1e-3},
        {"1.0e-3", 1e-3},
        {".5", 0.5},
        {"5.", 5},
        {"+2E+1", 20},
        {"-0", 0},
        {"0.1", 0.1},
        {"1e-400", 0},
        {"12345678901234567890", 12345678901234567890.0},
    };
    static const struct {
        const char *text;
        bool value;
    } truths[] = {
        {"true", true},
        {"True", true},
        {"TRUE", true},
        {"yes", true},
        {"on", true},
        {"y", true},
        {"false", false},
        {"No", false},
        {"OFF", false},
        {"n", false},
    };
    char set[80];

    for (size_t i = 0; i < FL_COUNT(reals); i++) {
        snprintf(set, sizeof set, "toy.part=%s", reals[i].text);
        fl_deck *d = parse(NULL, 1, (const char *[]){set});
        double x = ((const toy_config *)fl_deck_config(d, "toy"))->part;

        assert_true(x == reals[i].value);
        assert_true(x != 0 || 1 / x > 0); /* one zero only */
        fl_deck_destroy(&d);
    }
    for (size_t i = 0; i < FL_COUNT(truths); i++) {
        snprintf(set, sizeof set, "toy.on=%s", truths[i].text);
        fl_deck *d = parse(NULL, 1, (const char *[]){set});

        assert_int_equal(((const toy_config *)fl_deck_config(d, "toy"))->on, truths[i].value);
        fl_deck_destroy(&d);
    }
    static const char *const bad[] = {"toy.part=nan", "toy.part=inf", "toy.part=0x1p3",
        "toy.part=1e", "toy.part=.", "toy.part=1 2", "toy.part=1_000", "toy.part=", "toy.on=tRUE",
        "toy.on=1", "toy.on='true'", "toy.count=1.5", "toy.count=01", "toy.count=11",
        "toy.count=4294967299", "toy.seed=1e3", "toy.seed=-1", "toy.seed=''", "toy.kind=B",
        "toy.kind=", "toy.kind=ab"};
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        const char *sentence = mistakes(NULL, 1, &bad[i]);

        if (strncmp(sentence, "--set toy.", 10) != 0 || strchr(sentence, '\n')) {
            fail_msg("%s: %s", bad[i], sentence);
        }
    }
}

static void test_whole_numbers_in_any_notation(void **state)
{
    (void)state;
    fl_deck *d =
        parse("run: {rounds: 1e3, seed: 18446744073709551615}\ncohort: {size: 8.0}", 0, NULL);

    assert_int_equal(d->run.rounds, 1000);
    assert_int_equal(d->cohort.size, 8);
    assert_true(d->run.seed == UINT64_MAX);
    fl_deck_destroy(&d);
}

/* ---- --set ---- */

static void test_set(void **state)
{
    (void)state;
    fl_deck *d = parse("train: {lr: 0.5, batch: 4}\n", 4,
        (const char *[]){
            "train.lr=0.25", "clients.r=[4, 8]", "clients.r_share=[.5,.5]", "train.lr=0.125"});

    assert_true(d->train.lr == 0.125); /* over the text, the last one wins */
    assert_int_equal(d->train.batch, 4);
    assert_int_equal(d->clients.r.n, 2);
    assert_int_equal(d->clients.r.x[1], 8);
    fl_deck_destroy(&d);
    d = parse("run: {name: a}\n", 2, (const char *[]){"run.out=/x=y.z", "run.name=\"\\u00e9 b\""});
    assert_string_equal(d->run.out, "/x=y.z");
    assert_string_equal(d->run.name, "\xc3\xa9 b");
    fl_deck_destroy(&d);

    assert_string_equal(mistakes(NULL, 1, (const char *[]){"train.lrr=3"}),
        "--set train.lrr=3: unknown key; did you mean train.lr?");
    assert_string_equal(mistakes(NULL, 1, (const char *[]){"trian.lr=3"}),
        "--set trian.lr=3: unknown section; did you mean train?");
    assert_string_equal(mistakes(NULL, 1, (const char *[]){"batch=3"}),
        "--set batch=3: write it as section.key=value; did you mean train.batch?");
    assert_string_equal(mistakes(NULL, 1, (const char *[]){"train.lr"}),
        "--set train.lr: write it as section.key=value");
    assert_string_equal(
        mistakes(NULL, 1, (const char *[]){"cohort.size=0"}), "--set cohort.size=0: 0 is below 1");
    /* a rule between keys names the place where its own key was given */
    assert_string_equal(
        mistakes("cohort: {size: 50}\n", 1, (const char *[]){"partition.clients=20"}),
        "--set partition.clients=20: cohort.size: 50 clients in a round, but partition.clients is "
        "20");
    assert_non_null(strstr(
        mistakes(NULL, 1, (const char *[]){"train.lr=[1"}), "--set train.lr=[1: did not find"));
}

/* ---- mistakes ---- */

static void test_all_mistakes_at_once(void **state)
{
    (void)state;
    const char *text =
        "run: {seed: x}\n"
        "trian: {lr: 1, batch: 0}\n"
        "\n"
        "train:\n"
        "  lrr: 3\n"
        "  lr: fast\n"
        "  batch: 4\n"
        "  batch: 5\n"
        "cohort: {size: 0}\n"
        "partition: {clients: 3}\n" /* no rule speaks about the size, which is wrong already */
        "toy: {kinds: a}\n"
        "plain: {x: 1}\n"
        "train: {clip: -1}\n";

    assert_string_equal(mistakes(text, 2, (const char *[]){"svd.grid=[1]", "eval.evry=1"}),
        "in.yaml:1: run.seed: 'x' is not a whole number from 0 to 18446744073709551615 in digits\n"
        "in.yaml:2: trian: unknown section; did you mean train?\n"
        "in.yaml:5: train.lrr: unknown key; did you mean train.lr?\n"
        "in.yaml:6: train.lr: 'fast' is not a number\n"
        "in.yaml:8: train.batch: the key occurs twice; it is on line 7 already\n"
        "in.yaml:9: cohort.size: 0 is below 1\n"
        "in.yaml:11: toy.kinds: unknown key; did you mean toy.kind?\n"
        "in.yaml:12: plain.x: unknown key\n"
        "in.yaml:13: train: the section occurs twice; it began on line 4\n"
        "in.yaml:13: train.clip: -1 is below 0\n"
        "--set eval.evry=1: unknown key; did you mean eval.every?\n"
        "--set svd.grid=[1]: svd.grid: 1 numbers; write [p, q] or []");
}

/* a syntax error may have bent what came before it: it is the only sentence, with line and column
 */
static void test_syntax_stops_at_the_first(void **state)
{
    (void)state;
    assert_string_equal(mistakes("train: {lrr: 1}\nrun: {seed: 1\ncohort: {size: 3}\n", 0, NULL),
        "in.yaml:3:7: did not find expected ',' or '}' while parsing a flow mapping (from line 2)");
}

static void test_many_mistakes_are_counted(void **state)
{
    (void)state;
    fl_text t = {0};

    fl_text_add(&t, "train:\n");
    for (int i = 0; i < 3000; i++) {
        fl_text_add(&t, "  zz%d: 1\n", i);
    }
    const char *said = mistakes(t.s, 0, NULL);
    int lines = 1;

    for (const char *c = said; *c; c++) {
        lines += *c == '\n';
    }
    assert_int_equal(lines, 101);
    assert_non_null(strstr(said, "in.yaml: 2900 more mistakes are not shown"));
    fl_text_free(&t);
}

/* what the user wrote appears in a message cut and on one line */
static void test_messages_stay_short(void **state)
{
    (void)state;
    fl_text t = {0};

    fl_text_add(&t, "train: {lr: \"a\\nb");
    for (int i = 0; i < 1000; i++) {
        fl_text_add(&t, "\xc3\xa9");
    }
    fl_text_add(&t, "\"}\n");
    const char *said = mistakes(t.s, 0, NULL);

    assert_true(strlen(said) < 250);
    assert_null(strchr(said, '\n'));
    assert_non_null(strstr(said, "'a?b\xc3\xa9\xc3\xa9"));
    assert_non_null(strstr(said, "\xc3\xa9...' is not a number"));
    fl_text_free(&t);
}

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    fl_text t = {0};
    char buffer[4096];

    assert_non_null(f);
    while ((*n = fread(buffer, 1, sizeof buffer, f)) > 0) {
        fl_text_bytes(&t, buffer, *n);
    }
    fclose(f);
    *n = t.n;
    return t.s;
}

static void test_bad_decks(void **state)
{
    (void)state;
    const char *folder = "tests/app/bad_decks", *mark = "# expect: ";
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int ndecks = 0;

    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        if (!strstr(entry->d_name, ".yaml")) {
            continue;
        }
        fl_text path = {0};
        size_t n;

        fl_text_add(&path, "%s/%s", folder, entry->d_name);
        char *text = read_file(path.s, &n), *expect = fl_strdup(text);
        fl_deck *deck;

        expect[strcspn(expect, "\n")] = '\0';
        fl_error_clear();
        fl_err err = fl_deck_parse(text, n, path.s, 0, NULL, extra, NEXTRA, &deck);
        if (err != FL_EDECK || strncmp(expect, mark, strlen(mark)) != 0 ||
            !strstr(fl_error_text(), expect + strlen(mark))) {
            fail_msg("%s: wants '%s', says '%s'", path.s, expect, fl_error_text());
        }
        fl_free(text);
        fl_free(expect);
        fl_text_free(&path);
        ndecks++;
    }
    closedir(dir);
    assert_true(ndecks >= 25);
}

/* ---- dump, digest, compare ---- */

static const char *const changed =
    "run: {name: 'null', seed: 18446744073709551615, out: \"a: "
    "#b\\t\\\"\\\\\\n\\x01\\u2028\\U0001F600\\ufeff\"}\n"
    "clients: {r: [4, 8, 16], r_share: [0.5, 0.3, 0.2]}\n"
    "adapter: {targets: [gate, q], rslora: on, init_std: 1.0e-7}\n"
    "train: {lr: 0.1234567890123456789, eps: 1e-30, optimizer: sgd}\n"
    "method: {name: toy}\n"
    "toy: {count: -10, part: -1.7976931348623157e299, on: no, kind: c, text: '1e3', ints: "
    "[-2147483648, 2147483647],\n"
    "      reals: [5e-324, 0.1, 1e22], words: [no, y], names: [no, '', 'a, b]', \"\xc3\xa9\", ~x], "
    "seed: 7}\n";

static void check_round_trip(const fl_deck *deck, bool comments)
{
    char *one = dump(deck, comments);
    fl_deck *again = parse(one, 0, NULL);
    char *two = dump(again, comments);

    assert_string_equal(one, two);
    assert_true(fl_deck_digest(deck) == fl_deck_digest(again));
    fl_free(one);
    fl_free(two);
    fl_deck_destroy(&again);
}

static void test_dump_round_trip(void **state)
{
    (void)state;
    fl_deck *d = parse(NULL, 0, NULL), *e = parse(changed, 0, NULL);

    check_round_trip(d, false);
    check_round_trip(d, true);
    check_round_trip(e, false);
    check_round_trip(e, true);
    /* equal texts of two dumps say nothing if the dump loses something: look at the values too */
    char *text = dump(e, true);
    fl_deck *f = parse(text, 0, NULL);
    const toy_config *a = fl_deck_config(e, "toy"), *b = fl_deck_config(f, "toy");

    assert_string_equal(f->run.name, "null");
    assert_string_equal(f->run.out, "a: #b\t\"\\\n\x01\xe2\x80\xa8\xf0\x9f\x98\x80\xef\xbb\xbf");
    assert_true(
        f->run.seed == UINT64_MAX && f->train.lr == 0.1234567890123456789 && f->adapter.rslora);
    assert_true(b->part == -1.7976931348623157e299 && b->part == a->part && !b->on &&
                b->kind == 2 && b->count == -10);
    assert_string_equal(b->text, "1e3");
    assert_true(b->reals.n == 3 && b->reals.x[0] == 5e-324 && b->reals.x[1] == 0.1 &&
                b->reals.x[2] == 1e22);
    assert_true(b->ints.n == 2 && b->ints.x[0] == INT32_MIN && b->ints.x[1] == INT32_MAX);
    assert_int_equal(b->words.n, 2);
    assert_string_equal(b->words.x[0], "no");
    assert_int_equal(b->names.n, 5);
    assert_string_equal(b->names.x[2], "a, b]");
    assert_string_equal(b->names.x[4], "~x");
    assert_non_null(strstr(text, "\n  eps: 1.0e-30 ")); /* a number for YAML 1.1 readers too */
    assert_null(strstr(text, "\nplain:"));              /* only the method in use */
    fl_free(text);
    fl_deck_destroy(&d);
    fl_deck_destroy(&e);
    fl_deck_destroy(&f);
}

static void test_dump_of_a_method_without_keys(void **state)
{
    (void)state;
    fl_deck *d = parse("method: {name: plain}\nplain: {}\ntoy: {count: 4}\n", 0, NULL);
    char *text = dump(d, false);

    assert_non_null(strstr(text, "\nplain: {}\n"));
    assert_null(strstr(text, "toy"));
    check_round_trip(d, true);
    fl_free(text);
    fl_deck_destroy(&d);
}

/* Flips every row of every section in turn: compare and digest must see it exactly when the key is
 * not free. */
static void test_compare_sees_every_key(void **state)
{
    (void)state;
    static const char *const flips[] = {"run.seed=2", "run.rounds=21", "run.out=x", "run.name=x",
        "run.maxh=1", "model.path=x", "model.max_length=64", "model.share_dir=x", "adapter.r=4",
        "adapter.alpha=8", "adapter.rslora=true", "adapter.targets=[v, q]", "adapter.init=gaussian",
        "adapter.dropout=0.1", "data.source=x", "data.separator=x", "data.valid=0.2",
        "partition.kind=iid", "partition.alpha=0.3", "clients.lost=0.1", "cohort.size=9",
        "cohort.weights=uniform", "train.lr=0.002", "train.steps=11", "train.optimizer=sgd",
        "svd.grid=[1, 2]", "svd.tol=1e-7", "eval.every=1", "eval.split=test",
        "eval.per_client=true", "eval.discordance=false", "checkpoint.every=2", "checkpoint.keep=3",
        "checkpoint.writers=2", "checkpoint.stripe_count=4", "checkpoint.stripe_size=65536",
        "checkpoint.async=true", "pretrain.tied=false", "blas.threads=2", "toy.count=4",
        "toy.names=[a]", "toy.reals=[1]", "toy.text=x", "toy.seed=5", "toy.free_part=1"};
    const char *toy = "method: {name: toy}\n";
    fl_deck *here = parse(toy, 0, NULL);

    for (size_t i = 0; i < FL_COUNT(flips); i++) {
        fl_deck *there = parse(toy, 1, &flips[i]);
        char *stored = dump(there, true), key[40];
        fl_text t = {0};

        snprintf(key, sizeof key, "%.*s", (int)strcspn(flips[i], "="), flips[i]);
        bool free_key = strncmp(key, "eval.", 5) == 0 || strncmp(key, "checkpoint.", 11) == 0 ||
                        strstr(" run.rounds run.out run.name run.maxh model.path model.share_dir "
                               "data.source toy.free_part ",
                            key) != NULL;
        int n = fl_deck_compare(here, stored, strlen(stored), extra, NEXTRA, &t);

        if (n != !free_key || (fl_deck_digest(here) == fl_deck_digest(there)) != free_key ||
            (n && strncmp(t.s, key, strlen(key)) != 0)) {
            fail_msg("%s: %d differences: %s", flips[i], n, t.s ? t.s : "");
        }
        fl_text_free(&t);
        fl_free(stored);
        fl_deck_destroy(&there);
    }
    fl_deck_destroy(&here);
}

static void test_compare_in_words(void **state)
{
    (void)state;
    fl_deck *here = parse("train: {lr: 0.1}\nmethod: {name: toy}\n", 0, NULL);
    const char *stored =
        "train: {lr: fast, batch: 9, old_key: [1, 'a b']}\ngone: {x: 1}\nmethod: {name: toy}\n"
        "toy: {count: 5}\neval: {every: never}\n";
    fl_text t = {0};

    fl_error_clear();
    assert_int_equal(fl_deck_compare(here, stored, strlen(stored), extra, NEXTRA, &t), 5);
    assert_string_equal(t.s, "train.lr: 0.1 here, fast in the checkpoint\n"
                             "train.old_key: unknown here, [1, \"a b\"] in the checkpoint\n"
                             "gone.x: unknown here, 1 in the checkpoint\n"
                             "train.batch: 8 here, 9 in the checkpoint\n"
                             "toy.count: 3 here, 5 in the checkpoint\n");
    fl_text_free(&t);
    /* another method: its name is the difference, its keys are not compared */
    stored = "train: {lr: 0.1}\nmethod: {name: plain}\nplain: {}\n";
    assert_int_equal(fl_deck_compare(here, stored, strlen(stored), extra, NEXTRA, &t), 1);
    assert_string_equal(t.s, "method.name: toy here, plain in the checkpoint\n");
    fl_text_free(&t);
    stored = "train: {lr: [";
    assert_int_equal(fl_deck_compare(here, stored, strlen(stored), extra, NEXTRA, &t), 1);
    assert_non_null(strstr(t.s, "the checkpoint's deck cannot be read: "));
    assert_string_equal(fl_error_text(), ""); /* differences are no errors */
    fl_text_free(&t);
    fl_deck_destroy(&here);
}

/* ---- help ---- */

static void test_explain_every_row(void **state)
{
    (void)state;
    fl_text page = {0};

    fl_deck_reference(extra, NEXTRA, &page);
    for (int i = 0; section(i); i++) {
        const fl_section *s = section(i);
        fl_text about = {0};

        assert_int_equal(fl_deck_explain(s->name, extra, NEXTRA, &about), FL_OK);
        for (const fl_field *f = s->fields; f && f->type != FL_T_END; f++) {
            char what[80];
            fl_text t = {0};

            snprintf(what, sizeof what, "%s.%s", s->name, f->name);
            assert_int_equal(fl_deck_explain(what, extra, NEXTRA, &t), FL_OK);
            assert_non_null(strstr(t.s, f->help));
            assert_non_null(strstr(t.s, f->unit));
            assert_non_null(strstr(about.s, f->help));
            snprintf(what, sizeof what, "\n| `%s` |", f->name);
            assert_non_null(strstr(page.s, what));
            fl_text_free(&t);
        }
        fl_text_free(&about);
    }
    /* every row of a table has six cells: unescaped bars would make more */
    for (char *line = strtok(page.s, "\n"); line; line = strtok(NULL, "\n")) {
        int bars = 0;

        for (char *c = line; *c; c++) {
            bars += *c == '|' && (c == line || c[-1] != '\\');
        }
        assert_true(bars == 0 || bars == 7);
    }
    fl_text_free(&page);
}

static void test_explain_says_nearest(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"train.lrr", "train.lrr: unknown key; did you mean train.lr?"},
        {"trian", "trian: unknown section; did you mean train?"},
        {"lr", "lr: unknown section; did you mean train.lr?"},
        {"toy.cuont", "toy.cuont: unknown key; did you mean toy.count?"},
        {"train.batch_size", "train.batch_size: unknown key; did you mean train.batch?"},
        {"", ": unknown section"}, {"zzzzzz.q", "zzzzzz.q: unknown section"}};

    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_text t = {0};

        fl_error_clear();
        assert_int_equal(fl_deck_explain(cases[i][0], extra, NEXTRA, &t), FL_EUSAGE);
        assert_string_equal(fl_error_text(), cases[i][1]);
        fl_text_free(&t);
    }
}

/* runs last */
static void test_nothing_leaks(void **state)
{
    (void)state;
    fl_error_clear();
    size_t before = fl_memory_now();
    fl_deck *d = parse(changed, 0, NULL);

    fl_deck_destroy(&d);
    mistakes("train: {lr: [1, [2]], eps: x, batch: 1}\ntrian: {a: b}\nclients: {r: [1, "
             "x]}\nadapter: {targets: [q, q]}\n",
        1, (const char *[]){"run.name=[1"});
    fl_error_clear();
    assert_int_equal(fl_memory_now(), before);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets_fit),
        cmocka_unit_test(test_rows_are_complete),
        cmocka_unit_test(test_free_keys),
        cmocka_unit_test(test_default_values),
        cmocka_unit_test(test_word_order),
        cmocka_unit_test(test_value_forms),
        cmocka_unit_test(test_whole_numbers_in_any_notation),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_all_mistakes_at_once),
        cmocka_unit_test(test_syntax_stops_at_the_first),
        cmocka_unit_test(test_many_mistakes_are_counted),
        cmocka_unit_test(test_messages_stay_short),
        cmocka_unit_test(test_bad_decks),
        cmocka_unit_test(test_dump_round_trip),
        cmocka_unit_test(test_dump_of_a_method_without_keys),
        cmocka_unit_test(test_compare_sees_every_key),
        cmocka_unit_test(test_compare_in_words),
        cmocka_unit_test(test_explain_every_row),
        cmocka_unit_test(test_explain_says_nearest),
        cmocka_unit_test(test_nothing_leaks),
    };
    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
