#!/usr/bin/env bash
# test_runner.sh - tests/run.sh itself: what counts as passed, failed and skipped, on a tree of programs that do each.
. "$(dirname "$0")/../lib.sh"

tree=$T/tree
mkdir -p "$tree"/tests/{unit,mpi,app} "$tree"/b/tests/{unit,mpi}
cp tests/run.sh tests/lib.sh tests/env.sh "$tree/tests/"

# program NAME: a test program whose text comes from stdin, with a source file of that name
program() {
    touch "$tree/tests/$1.c"
    { echo '#!/usr/bin/env bash'; cat; } >"$tree/b/tests/$1"
    chmod +x "$tree/b/tests/$1"
}

# counted NAME: exit code and last line when only this program runs
counted() {
    (cd "$tree" && B=b FEDLORA_TEST_TIMEOUT=2 tests/run.sh "$1" >"$T/run" 2>/dev/null)
    echo "$?: $(tail -n 1 "$T/run")"
}

program unit/test_good <<<'echo 1..2; echo ok 1 - a; echo ok 2 - b'
same "passed" "$(counted test_good)" "0: 2 passed, 0 failed, 0 skipped"
program unit/test_bad <<<'echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1'
same "a not ok line" "$(counted test_bad)" "1: 1 passed, 1 failed, 0 skipped"
check "output of what failed is shown" grep -q '^not ok 2 - b' "$T/run"
program unit/test_skip <<<'echo 1..2; echo ok 1 - a; echo "not ok 2 # SKIP b"'
same "skipped as cmocka writes it" "$(counted test_skip)" "0: 1 passed, 0 failed, 1 skipped"
program unit/test_crash <<<'echo 1..2; echo ok 1 - a; kill -SEGV $$'
same "a crash" "$(counted test_crash)" "1: 1 passed, 1 failed, 0 skipped"
program unit/test_code <<<'echo 1..1; echo ok 1 - a; exit 3'
same "an exit code without a not ok line" "$(counted test_code)" "1: 1 passed, 1 failed, 0 skipped"
program unit/test_short <<<'echo 1..2; echo ok 1 - a'
same "fewer tests than planned" "$(counted test_short)" "1: 1 passed, 1 failed, 0 skipped"
program unit/test_empty <<<'exit 0'
same "no test at all" "$(counted test_empty)" "1: 0 passed, 1 failed, 0 skipped"
program unit/test_hang <<<'echo 1..1; echo ok 1 - a; sleep 1000'
same "a hang" "$(counted test_hang)" "1: 1 passed, 1 failed, 0 skipped"
touch "$tree/tests/unit/test_unbuilt.c"
same "a program that was not built" "$(counted test_unbuilt)" "1: 0 passed, 1 failed, 0 skipped"
same "a name that nothing has" "$(counted nosuch)" "1: 0 passed, 1 failed, 0 skipped"
program mpi/test_ranks <<<'[ "$OMPI_COMM_WORLD_RANK" != 0 ] || { echo 1..1; echo "ok 1 - $OMPI_COMM_WORLD_SIZE"; }'
same "four rank counts" "$(counted test_ranks)" "0: 4 passed, 0 failed, 0 skipped"
printf '#!/usr/bin/env bash\n. "$(dirname "$0")/../lib.sh"\nok a\nskip b why\ncheck c false\n' >"$tree/tests/app/test_shell.sh"
chmod +x "$tree/tests/app/test_shell.sh"
same "a shell test" "$(counted test_shell)" "1: 1 passed, 1 failed, 1 skipped"
