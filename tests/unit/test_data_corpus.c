/* test_data_corpus.c - splits of records, the cut into samples, the synthetic language: against
 * definitions and entropy. */
#include "data_bed.h"
#include <math.h>

/* ---- splits and the cut ---- */

static void split_by_key(void **state)
{
    /* 10 records of key 0 and 5 of key 1, interleaved; 20 % test, 30 % validation */
    enum { N = 15 };
    int32_t key[N];
    uint64_t offset[N + 1] = {0};
    fl_corpus c = {.n = N, .offset = offset, .key = key, .nkeys = 2};
    static const uint8_t want[2][10] = {{0, 0, 0, 0, 0, 1, 1, 1, 2, 2}, {0, 0, 0, 1, 2}};
    int seen[2] = {0, 0};

    (void)state;
    for (int i = 0; i < N; i++) {
        key[i] = i % 3 == 2;
        offset[i + 1] = offset[i] + 2;
    }
    assert_int_equal(fl_corpus_split(&c, 0.3, 0.2), FL_OK);
    for (int i = 0; i < N; i++) {
        assert_int_equal(c.split[i], want[key[i]][seen[key[i]]++]);
    }
    fl_free(c.split);
    c.split = NULL;
    c.key = NULL; /* keyless: the whole file's last ones: 3 test, 4 validation */
    assert_int_equal(fl_corpus_split(&c, 0.3, 0.2), FL_OK);
    for (int i = 0; i < N; i++) {
        assert_int_equal(c.split[i], i < 8 ? FL_TRAIN : i < 12 ? FL_VALID : FL_TEST);
    }
    fl_free(c.split);
    c.split = NULL;
    assert_says(fl_corpus_split(&c, 0.5, 0.5), FL_EDECK, "data.valid + data.test");
}

static void cut_predicts_once(void **state)
{
    enum { N = 60 };
    uint64_t offset[N + 1] = {0};
    fl_corpus c = {.n = N, .offset = offset};

    (void)state;
    for (int i = 0; i < N; i++) {
        offset[i + 1] = offset[i] + (uint64_t)i; /* records of 0 .. N - 1 tokens */
    }
    for (int length = 1; length <= 64; length += 7) {
        int *predicted = calloc(offset[N], sizeof *predicted);
        fl_cut cut;

        assert_int_equal(fl_corpus_cut(&c, length, &cut), FL_OK);
        for (int64_t s = 0; s < cut.n; s++) {
            int32_t record = cut.record[s];

            assert_in_range(cut.len[s], 2, length + 1);
            assert_true(
                cut.from[s] >= offset[record] && cut.from[s] + cut.len[s] <= offset[record + 1]);
            for (uint32_t j = 1; j < cut.len[s]; j++) {
                predicted[cut.from[s] + j]++;
            }
        }
        for (int i = 0; i < N; i++) {
            for (uint64_t t = offset[i]; t < offset[i + 1]; t++) {
                assert_int_equal(predicted[t], t > offset[i]);
            }
        }
        fl_cut_free(&cut);
        free(predicted);
    }
    c.n = 2;
    fl_cut cut;

    assert_says(fl_corpus_cut(&c, 8, &cut), FL_EDECK, "two tokens");
}

/* ---- synthetic ---- */

static fl_deck_data language(int domains, int sequences, int length, double noise)
{
    fl_deck_data h = how();

    h.source = "synthetic";
    h.domains = domains;
    h.sequences = sequences;
    h.length = length;
    h.noise = noise;
    return h;
}

/* mean nats a byte of the records of domain `of` under the smoothed byte-trigram model of domain
 * `by` (its even records) */
static double trigram_nats(const fl_records *r, int by, int of)
{
    enum { A = 128 };
    double *count = calloc((size_t)A * A * A, sizeof *count),
           *context = calloc((size_t)A * A, sizeof *context), sum = 0;
    int64_t n = 0;

    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < r->n; i++) {
            if (r->key[i] != (pass == 0 ? by : of) || (i / r->nkeys) % 2 != pass) {
                continue;
            }
            for (uint64_t t = r->offset[i] + 2; t < r->offset[i + 1]; t++) {
                int a = r->bytes.s[t - 2], b = r->bytes.s[t - 1], c = r->bytes.s[t];

                if (pass == 0) {
                    count[(a * A + b) * A + c]++;
                    context[a * A + b]++;
                } else {
                    sum -=
                        log((count[(a * A + b) * A + c] + 0.1) / (context[a * A + b] + 0.1 * 28));
                    n++;
                }
            }
        }
    }
    free(count);
    free(context);
    return sum / (double)n;
}

static void synthetic_is_a_language(void **state)
{
    fl_deck_data h = language(3, 600, 80, 0);
    fl_records r, again;

    (void)state;
    fl_synthetic(&h, 7, &r);
    fl_synthetic(&h, 7, &again);
    assert_int_equal(r.bytes.n, again.bytes.n);
    assert_memory_equal(r.bytes.s, again.bytes.s, r.bytes.n);
    fl_records_free(&again);
    assert_int_equal(r.n, 600);
    assert_int_equal(r.nkeys, 3);
    assert_string_equal(r.key_name[2], "domain-2");
    for (int64_t i = 0; i < r.n; i++) {
        uint64_t n = r.offset[i + 1] - r.offset[i];

        assert_int_equal(r.key[i], i % 3);
        assert_in_range(n, 70, 80);
        assert_int_equal(r.bytes.s[r.offset[i + 1] - 1], '.');
    }
    for (int d = 0; d < 3; d++) {
        double own = trigram_nats(&r, d, d), other = trigram_nats(&r, d, (d + 1) % 3);

        /* random letters cost ln 27 = 3.3; far below that is learnable, far apart is another
         * language */
        assert_true(own < 1.3);
        assert_true(other > own + 1);
    }
    fl_records_free(&r);
    fl_synthetic(&h, 8, &again);
    fl_synthetic(&h, 7, &r);
    assert_true(r.bytes.n != again.bytes.n || memcmp(r.bytes.s, again.bytes.s, r.bytes.n) != 0);
    fl_records_free(&again);
    fl_records_free(&r);
}

static void synthetic_noise(void **state)
{
    fl_deck_data clean = language(2, 400, 100, 0), noisy = language(2, 400, 100, 0.1);
    fl_records a, b;
    double changed = 0;

    (void)state;
    fl_synthetic(&clean, 5, &a);
    fl_synthetic(&noisy, 5, &b);
    assert_int_equal(a.bytes.n, b.bytes.n);
    for (size_t i = 0; i < a.bytes.n; i++) {
        changed += a.bytes.s[i] != b.bytes.s[i];
    }
    /* a replaced letter is the same one with chance 1/26; spaces and stops always change */
    double share = changed / (double)a.bytes.n, sigma = sqrt(0.1 * 0.9 / (double)a.bytes.n);

    assert_true(share < 0.1 + 5 * sigma && share > 0.1 * 25 / 26 - 5 * sigma);
    fl_records_free(&a);
    fl_records_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_by_key),
        cmocka_unit_test(cut_predicts_once),
        cmocka_unit_test(synthetic_is_a_language),
        cmocka_unit_test(synthetic_noise),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
