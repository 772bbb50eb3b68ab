/* Keys of rank_pattern and alpha_pattern are Python's regular expressions: random ones, judged by
 * PEFT (tests/interop/make_peft_fixture.py), and what is not read. */
#include "../../src/io/peft.h"
#include "harness.h"
#include <string.h>

static void test_patterns_match_as_in_python(void **state)
{
    char *text, *save = NULL;
    size_t n;
    int rows = 0;

    (void)state;
    assert_int_equal(fl_file_read("tests/fixtures/peft/patterns.txt", &text, &n), FL_OK);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *name = strchr(line, '\t'), *hit;
        peft_pattern *p;
        bool ok;

        assert_non_null(name);
        *name++ = 0;
        hit = strchr(name, '\t');
        assert_non_null(hit);
        *hit++ = 0;
        p = peft_pattern_parse(line);
        if (p == NULL || peft_pattern_matches(p, name, &ok) != (*hit == '1') || !ok) {
            fail_msg("%s on %s: not %s", line, name, hit);
        }
        peft_pattern_free(&p);
        rows++;
    }
    assert_int_equal(rows, 600);
    fl_free(text);
}

static void test_patterns_that_are_not_read(void **state)
{
    static const char *const bad[] = {"(", ")", "a)", "(a", "[a", "[", "a**", "*a", "+", "a{2}{3}",
        "a*+", "a{", "a{x}", "a{2,1}", "a{1001}", "(?=a)b", "(?P<x>a)", "(?i)a", "\\b", "(a)\\1",
        "a\\", "[z-a]", "[\\d-z]", "\xc3\xa9", "\\n", "[a\\q]", "a{,}"};
    char deep[200] = {0}, *longer = fl_alloc("pattern", 5000, 1);
    bool ok;
    peft_pattern *p;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        p = peft_pattern_parse(bad[i]);
        if (p != NULL) {
            fail_msg("%s was read", bad[i]);
        }
    }
    memset(deep, '(', 99);
    memset(deep + 99, ')', 99);
    assert_null(peft_pattern_parse(deep));
    memset(longer, 'a', 4999);
    assert_null(peft_pattern_parse(longer));
    /* too much work is noticed, and a long name */
    p = peft_pattern_parse("((((a?){99}){99}){99}){99}b");
    assert_non_null(p);
    longer[400] = 0;
    assert_false(peft_pattern_matches(p, longer, &ok));
    assert_false(ok);
    peft_pattern_free(&p);
    p = peft_pattern_parse("a");
    memset(longer, 'a', 600);
    longer[600] = 0;
    assert_false(peft_pattern_matches(p, longer, &ok));
    assert_false(ok);
    peft_pattern_free(&p);
    fl_free(longer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns_match_as_in_python),
        cmocka_unit_test(test_patterns_that_are_not_read),
    };

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
