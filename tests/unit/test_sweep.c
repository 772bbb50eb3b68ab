/* test_sweep.c - what --over means, how runs are named, what is taken from rounds.csv, the summary
 * and the verdict. */
#include "../../src/app/sweep.h"
#include "harness.h"
#include <math.h>
#include <string.h>

/* the values of one --over, joined by '|'; NULL and a recorded sentence if it is refused */
static char *values(const char *over)
{
    sweep_plan plan;
    fl_text t = {0};
    fl_err err = sweep_plan_make(1, &over, &plan);

    if (err != FL_OK) {
        assert_int_equal(err, FL_EUSAGE);
        assert_true(strlen(fl_error_text()) > 0);
    }
    fl_text_add(&t, "%s", "");
    for (int i = 0; err == FL_OK && i < plan.nruns; i++) {
        fl_text_add(&t, "%s%s", i > 0 ? "|" : "", sweep_value(&plan, i, 0));
    }
    sweep_plan_free(&plan);
    fl_error_clear();
    if (err != FL_OK) {
        fl_text_free(&t);
    }
    return t.s;
}

static void expect_values(const char *over, const char *want)
{
    char *got = values(over);

    assert_non_null(got);
    assert_string_equal(got, want);
    fl_free(got);
}

static void lists(void **state)
{
    (void)state;
    expect_values("run.seed=1", "1");
    expect_values("method.name=a,b,c", "a|b|c");
    expect_values("method.name= a , b ,c ", "a|b|c");
    expect_values("data.key=a b,c", "a b|c");
    expect_values("data.source=../x.txt,y..z", "../x.txt|y..z");
    expect_values("train.lr=0.5,1e-3,-.5", "0.5|1e-3|-.5");
    expect_values("run.name=x=1,y=2", "x=1|y=2"); /* the first = ends the key */
    expect_values("data.key=it's,'b,c'", "it's|'b,c'");
}

static void brackets_and_quotes(void **state)
{
    (void)state;
    expect_values("clients.r=[4,8],[4,8,16],4", "[4,8]|[4,8,16]|4");
    expect_values("clients.r=[ 4, 8 ] , [2]", "[ 4, 8 ]|[2]");
    expect_values("a.b={x: [1,2], y: 3},z", "{x: [1,2], y: 3}|z");
    expect_values("a.b=\"x,y\",'p,q'", "\"x,y\"|'p,q'");
    expect_values("a.b='it''s, so',x", "'it''s, so'|x");
    expect_values("a.b=\"\\\",\",x", "\"\\\",\"|x");
    expect_values("a.b=[',]',\"],\"],x", "[',]',\"],\"]|x");
    expect_values("a.b={k: ',}'},x", "{k: ',}'}|x");
}

static void ranges(void **state)
{
    (void)state;
    expect_values("run.seed=1..5", "1|2|3|4|5");
    expect_values("run.seed=7..7", "7");
    expect_values("run.seed=1..9..2", "1|3|5|7|9");
    expect_values("run.seed=1..8..3", "1|4|7");
    expect_values("run.seed=-2..1", "-2|-1|0|1");
    expect_values("run.seed=1..3,10,20..21", "1|2|3|10|20|21");
    /* at the ends of what a long can hold */
    expect_values("run.seed=9223372036854775806..9223372036854775807",
        "9223372036854775806|9223372036854775807");
    expect_values("run.seed=-9223372036854775808..9223372036854775807..9223372036854775807",
        "-9223372036854775808|-1|9223372036854775806");
    /* no ranges, so the deck's rules decide */
    expect_values("a.b=1...5,1..x,1..2..3..4,0.5", "1...5|1..x|1..2..3..4|0.5");
    expect_values("a.b=99999999999999999999..5", "99999999999999999999..5");
}

static void refused(void **state)
{
    static const char *const wrong[] = {"", "=", "=1", "seed=1", "run.seed",
        "run.seed=", "run.seed=1,", "run.seed=,1", "run.seed=1,,2", "run.seed= ", "run.seed=1,1",
        "run.seed=1..3,2", "run.seed=5..1", "run.seed=1..5..0", "run.seed=1..5..-1",
        "run.seed=0..10000", "run.seed=-9223372036854775808..9223372036854775807", "a.b=[1,2",
        "a.b=1,2]", "a.b=[1,2}", "a.b='x,y", "a.b=\"x\\\",y",
        "a.b=[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "run.out=a,b"};

    (void)state;
    for (size_t i = 0; i < FL_COUNT(wrong); i++) {
        char *got = values(wrong[i]);

        if (got != NULL) {
            fail_msg("'%s' was taken as %s", wrong[i], got);
        }
    }
}

static char *name_of(const sweep_plan *plan, int run)
{
    fl_text t = {0};

    sweep_name(plan, run, &t);
    return t.s;
}

static void combinations(void **state)
{
    static const char *const over[] = {"method.name=a,b", "run.seed=1..3", "train.lr=0.1,1e+2"};
    static const int n[] = {2, 3, 2};
    sweep_plan plan;
    fl_text label = {0};

    (void)state;
    assert_int_equal(sweep_plan_make(3, over, &plan), FL_OK);
    assert_int_equal(plan.nruns, 12);
    /* the number of a run, written in the mixed base of the values, is what it has */
    for (int i = 0; i < plan.nruns; i++) {
        for (int a = 0, rest = i, place = 12; a < 3; a++) {
            place /= n[a];
            assert_string_equal(sweep_value(&plan, i, a), plan.axis[a].value[rest / place]);
            rest %= place;
        }
    }
    char *name = name_of(&plan, 11);

    assert_string_equal(name, "method.name=b+run.seed=3+train.lr=1e+2");
    sweep_label(&plan, 0, &label);
    assert_string_equal(label.s, "method.name=a run.seed=1 train.lr=0.1");
    fl_free(name);
    fl_text_free(&label);
    sweep_plan_free(&plan);
}

static void too_many(void **state)
{
    static const char *const over[] = {"a.b=1..101", "a.c=1..100", "a.b=1"};
    const char *many[MAX_OVERS + 1];
    sweep_plan plan;

    (void)state;
    for (int i = 0; i <= MAX_OVERS; i++) {
        many[i] = over[1];
    }
    assert_int_equal(sweep_plan_make(0, NULL, &plan), FL_EUSAGE);
    assert_int_equal(sweep_plan_make(MAX_OVERS + 1, many, &plan), FL_EUSAGE);
    assert_int_equal(sweep_plan_make(2, over, &plan), FL_EUSAGE); /* 10,100 runs */
    sweep_plan_free(&plan);
    assert_int_equal(sweep_plan_make(2, over + 1, &plan), FL_OK);
    sweep_plan_free(&plan);
    fl_error_clear();
    assert_int_equal(sweep_plan_make(3, over, &plan), FL_EUSAGE);
    sweep_plan_free(&plan);
    const char *const twice[] = {"a.b=1", "a.b=2"};

    assert_int_equal(sweep_plan_make(2, twice, &plan), FL_EUSAGE);
    sweep_plan_free(&plan);
    fl_error_clear();
}

/* every name is a file name without surprises, and no two are alike */
static void check_names(int n, const char *const *over)
{
    sweep_plan plan;

    assert_int_equal(sweep_plan_make(n, over, &plan), FL_OK);
    char **name = fl_alloc("names", (size_t)plan.nruns, sizeof *name);

    for (int i = 0; i < plan.nruns; i++) {
        name[i] = name_of(&plan, i);
        assert_true(strlen(name[i]) > 0 && strlen(name[i]) <= 220);
        assert_int_equal(strspn(name[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                         "0123456789._-+="),
            strlen(name[i]));
        assert_true(name[i][0] != '.' && name[i][0] != '-');
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(name[i], name[j]);
        }
    }
    for (int i = 0; i < plan.nruns; i++) {
        fl_free(name[i]);
    }
    fl_free(name);
    sweep_plan_free(&plan);
}

static void names(void **state)
{
    fl_text wide[8] = {{0}};
    const char *over[8];

    (void)state;
    check_names(1, (const char *const[]){"model.path=models/a b,models-a-b,'models/a/b',/,.,..,~"});
    check_names(1, (const char *const[]){"clients.r=[1,2],[1 2],1-2,\"\",[],\"\xc3\xa9\",-1,1"});
    for (int i = 0; i < 8; i++) {
        fl_text_add(&wide[i], "section%d.some_long_key_of_it=", i);
        for (int j = 0; j < 2; j++) {
            for (int k = 0; k < 60; k++) {
                fl_text_add(&wide[i], "x");
            }
            fl_text_add(&wide[i], j == 0 ? "1," : "2");
        }
        over[i] = wide[i].s;
    }
    check_names(1, over);
    check_names(8, over);
    for (int i = 0; i < 8; i++) {
        fl_text_free(&wide[i]);
    }
}

/* a name depends on the value, not on its place among the others or on what else is in the sweep */
static void names_stay(void **state)
{
    static const char *const first[] = {"clients.r=[4,8],2", "run.seed=1..2"},
                             *const later[] = {"clients.r=2,3,[4,8]", "run.seed=2..4"};
    sweep_plan a, b;

    (void)state;
    assert_int_equal(sweep_plan_make(2, first, &a), FL_OK);
    assert_int_equal(sweep_plan_make(2, later, &b), FL_OK);
    char *x = name_of(&a, 1), *y = name_of(&b, 6);

    assert_string_equal(x, "clients.r=4-8+run.seed=2");
    assert_string_equal(x, y);
    fl_free(x);
    fl_free(y);
    sweep_plan_free(&a);
    sweep_plan_free(&b);
}

/* any text is either refused or gives values that, joined by commas, are the list again */
static void random_lists(void **state)
{
    static const char letters[] = "1.,-[]{}'\"\\ x:=a";
    int taken = 0;

    (void)state;
    for (int i = 0; i < 20000; i++) {
        char over[24] = "a.b=";
        int n = 1 + (int)(fl_rng_uniform(5, FL_RNG_TEST, 0, 0, (uint64_t)i) * 14);
        sweep_plan plan;
        const char *list = over;

        for (int j = 0; j < n; j++) {
            double u = fl_rng_uniform(5, FL_RNG_TEST, 1, j, (uint64_t)i);

            over[4 + j] = letters[(size_t)(u * (sizeof letters - 1))];
        }
        if (sweep_plan_make(1, &list, &plan) == FL_OK && strstr(over, "..") == NULL) {
            fl_text again = {0}, bare = {0};

            taken++;
            for (int j = 0; j < plan.nruns; j++) {
                fl_text_add(&again, "%s%s", j > 0 ? "," : "", sweep_value(&plan, j, 0));
                assert_true(strlen(plan.axis[0].safe[j]) <= 60);
            }
            /* but for blanks around commas */
            for (const char *s = over + 4; *s != '\0'; s++) {
                fl_text_add(&bare, "%s", "");
                if (*s != ' ') {
                    fl_text_bytes(&bare, s, 1);
                }
            }
            char *to = again.s;

            for (const char *s = again.s; *s != '\0'; s++) {
                if (*s != ' ') {
                    *to++ = *s;
                }
            }
            *to = '\0';
            assert_string_equal(again.s, bare.s);
            fl_text_free(&again);
            fl_text_free(&bare);
        }
        sweep_plan_free(&plan);
        fl_error_clear();
    }
    assert_true(taken > 1000);
}

static void rows_of_a_run(void **state)
{
    sweep_result r;

    (void)state;
    sweep_result_clear(&r, 3);
    assert_int_equal(r.run, 3);
    assert_int_equal(r.rounds, -1);
    assert_true(isnan(r.x[SWEEP_eval_loss]) && isnan(r.x[SWEEP_wall_s]));
    sweep_result_parse(&r,
        "round,wall_s,train_loss,eval_loss,up_bytes,down_bytes,discordance,own,test_loss\n"
        "0,4,,5.5,0,0,,1,\n"
        "1,0.5,5.25,,100,30,0.5,2,\n"
        "2,1.25,5,4.75,150,30,0.25,3,4.5\n"
        "3,0.25,4.5,,50,30,,4,\n");
    assert_int_equal(r.rounds, 3);
    assert_true(r.x[SWEEP_eval_loss] == 4.75); /* the last that is known */
    assert_true(r.x[SWEEP_test_loss] == 4.5);
    assert_true(isnan(r.x[SWEEP_test_metric]));
    assert_true(r.x[SWEEP_up_bytes] == 300 && r.x[SWEEP_down_bytes] == 90);
    assert_true(r.x[SWEEP_discordance] == 0.25);
    assert_true(r.x[SWEEP_wall_s] == 6);
    assert_true(r.longest == 1.25); /* of those that train */
    sweep_result_parse(&r, "round,eval_loss\n0,1\n");
    assert_true(r.rounds == 0 && r.x[SWEEP_eval_loss] == 1 && isnan(r.x[SWEEP_up_bytes]));
}

static void damaged_rows(void **state)
{
    static const char *const text[] = {"", "\n", "\n\n\n", ",", ",,,\n,,,", "round", "round\n",
        "round,eval_loss\n1", "round,eval_loss\n1,2,3,4\n", "round,eval_loss\nx,y\n",
        "round,eval_loss\n1e300,nan\n-1,inf\n", "eval_loss,eval_loss\n1,\n", "1,2\n3,4\n"};
    sweep_result r;

    (void)state;
    for (size_t i = 0; i < FL_COUNT(text); i++) {
        sweep_result_clear(&r, 0);
        sweep_result_parse(&r, text[i]);
        assert_true(r.rounds == -1 || r.rounds == 1);
        for (int c = 0; c < SWEEP_NCOLUMNS; c++) {
            assert_true(isnan(r.x[c]) || isfinite(r.x[c]));
        }
    }
}

static void three_runs(sweep_plan *plan, sweep_result r[3])
{
    const char *over = "data.key=a,\"b,\"\"c\",[1, 2]";

    assert_int_equal(sweep_plan_make(1, &over, plan), FL_OK);
    assert_int_equal(plan->nruns, 3);
    for (int i = 0; i < 3; i++) {
        sweep_result_clear(&r[i], i);
    }
    sweep_result_parse(&r[0], "round,eval_loss,up_bytes\n0,1.5,0\n1,1.25,2000\n");
    r[0].status = SWEEP_DONE;
    r[0].state = 0xabc;
    r[1].status = SWEEP_FAILED;
    r[1].err = FL_ENUM;
}

static void summary(void **state)
{
    sweep_plan plan;
    sweep_result r[3];
    fl_text csv = {0}, table = {0};

    (void)state;
    three_runs(&plan, r);
    sweep_csv(&plan, r, 75, &csv);
    char *second = name_of(&plan, 1), *third = name_of(&plan, 2);
    fl_text want = {0};

    fl_text_add(&want,
        "run,data.key,rounds,eval_loss,eval_metric,test_loss,test_metric,up_bytes,down_bytes,"
        "discordance,wall_s,state,exit_code\n"
        "data.key=a,a,1,1.25,,,,2000,,,,0000000000000abc,0\n"
        "%s,\"\"\"b,\"\"\"\"c\"\"\",,,,,,,,,,,5\n"
        "%s,\"[1, 2]\",,,,,,,,,,,\n",
        second, third);
    assert_string_equal(csv.s, want.s);
    /* all lines of the table are as long as the first */
    sweep_table(&plan, r, 75, &table);
    size_t width = strcspn(table.s, "\n"), lines = 0;

    for (const char *s = table.s; *s != '\0'; s += width + 1) {
        assert_int_equal(strcspn(s, "\n"), width);
        lines++;
    }
    assert_int_equal(lines, 4);
    fl_free(second);
    fl_free(third);
    fl_text_free(&want);
    fl_text_free(&csv);
    fl_text_free(&table);
    sweep_plan_free(&plan);
}

static void verdicts(void **state)
{
    sweep_plan plan;
    sweep_result r[3];
    int at;

    (void)state;
    three_runs(&plan, r);
    assert_int_equal(sweep_exit_code(&r[2], 99), -1);
    r[2].status = SWEEP_DONE;
    assert_int_equal(sweep_verdict(3, r, &at), FL_ENUM);
    assert_int_equal(at, 1);
    r[0].status = SWEEP_FAILED;
    r[0].err = FL_EFILE;
    assert_int_equal(sweep_verdict(3, r, &at), FL_EFILE); /* the first counts */
    assert_int_equal(sweep_exit_code(&r[0], 99), 4);
    r[2].status = SWEEP_STOPPED;
    assert_int_equal(sweep_verdict(3, r, &at), FL_ESTOP); /* there is more to be done */
    assert_int_equal(sweep_exit_code(&r[2], 99), 99);
    r[0].status = r[1].status = r[2].status = SWEEP_DONE;
    r[0].err = r[1].err = FL_OK;
    assert_int_equal(sweep_verdict(3, r, &at), FL_OK);
    assert_int_equal(sweep_exit_code(&r[2], 99), 0);
    sweep_plan_free(&plan);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lists),
        cmocka_unit_test(brackets_and_quotes), cmocka_unit_test(ranges), cmocka_unit_test(refused),
        cmocka_unit_test(combinations), cmocka_unit_test(too_many), cmocka_unit_test(names),
        cmocka_unit_test(names_stay), cmocka_unit_test(random_lists),
        cmocka_unit_test(rows_of_a_run), cmocka_unit_test(damaged_rows), cmocka_unit_test(summary),
        cmocka_unit_test(verdicts)};

    return fl_test_main(argc, argv, tests, FL_COUNT(tests));
}
