#!/usr/bin/env bash
# run.sh - runs every test program and counts what their TAP says. Last line: "N passed, M failed, K skipped".
#   tests/unit tests/grad            one rank, started directly
#   tests/mpi tests/la tests/methods programs on 1, 2, 3 and 4 ranks, the same expectations on all
#   tests/{app,restart,methods,effects,style}/test_*.sh   shell tests
# A program fails by a "not ok" line, by an exit code without one, by running longer than its time, by running fewer tests than
# it planned, or none. Logs: $B/test-logs.
# usage: [B=build] [FEDLORA_LONG=1] [FEDLORA_TEST_TIMEOUT=seconds] tests/run.sh [PART-OF-A-NAME ...]
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/env.sh
export FEDLORA_LONG=${FEDLORA_LONG:-}
if [ -n "$FEDLORA_LONG" ]; then
    seconds=${FEDLORA_TEST_TIMEOUT:-1800}
else
    seconds=${FEDLORA_TEST_TIMEOUT:-300}
fi
logs=$B/test-logs
rm -rf "$logs"
mkdir -p "$logs" || exit 1
cores=$(nproc 2>/dev/null || echo 1)
started=$SECONDS
passed=0 failed=0 skipped=0
running=()
declare -A label_of began
# timeout hands the signal on to what it started
trap 'kill "${running[@]}" 2>/dev/null; exit 143' TERM INT HUP

wanted() {
    local label=$1 part
    shift
    [ $# -gt 0 ] || return 0
    for part in "$@"; do
        [[ $label == *"$part"* ]] && return 0
    done
    return 1
}

# count LOG CODE: sets n_ok n_not_ok n_skip and why (a failure that no line reports); cmocka writes "not ok N # SKIP"
count() {
    local plan
    n_skip=$(grep -cE '^(ok( .*)?|not ok [0-9]+) # SKIP' "$1")
    n_ok=$(grep -E '^ok( |$)' "$1" | grep -cv ' # SKIP')
    n_not_ok=$(grep -E '^not ok( |$)' "$1" | grep -cvE '^not ok [0-9]+ # SKIP')
    plan=$(sed -n 's/^1\.\.\([0-9][0-9]*\).*/\1/p' "$1" | head -n 1)
    why=
    if [ "$2" -eq 124 ] || [ "$2" -eq 137 ]; then
        why="stopped after $seconds seconds"
    elif [ "$2" -ne 0 ] && [ "$n_not_ok" -eq 0 ]; then
        why="exit code $2"
    elif [ "$n_not_ok" -eq 0 ] && [ -n "$plan" ] && [ $((n_ok + n_skip)) -lt "$plan" ]; then
        why="planned $plan tests, ran $((n_ok + n_skip))"
    elif [ $((n_ok + n_not_ok + n_skip)) -eq 0 ]; then
        why="ran no test"
    fi
}

# report PID CODE: one line for a program that ended, all of its output if it failed
report() {
    local label=${label_of[$1]} file n_ok n_not_ok n_skip why word=ok detail
    file=$logs/$(tr '/ ' '--' <<<"$label")
    count "$file.out" "$2"
    cat "$file.out" "$file.err" >"$file.log"
    rm -f "$file.out" "$file.err"
    if [ -n "$why" ]; then
        n_not_ok=$((n_not_ok + 1))
    fi
    passed=$((passed + n_ok)) failed=$((failed + n_not_ok)) skipped=$((skipped + n_skip))
    detail="$n_ok passed"
    [ "$n_skip" -eq 0 ] || detail+=", $n_skip skipped"
    if [ "$n_not_ok" -gt 0 ]; then
        word=FAIL
        detail+=", $n_not_ok failed${why:+ ($why)}"
    fi
    printf '%-5s %-42s %4d s  %s\n' "$word" "$label" $((SECONDS - began[$1])) "$detail"
    if [ "$word" = FAIL ]; then
        echo "----- $file.log"
        cat "$file.log"
        echo "-----"
    elif [ "$n_skip" -gt 0 ]; then
        grep -E '^(ok( .*)?|not ok [0-9]+) # SKIP' "$file.log" | sed -E 's/^(not )?ok( - | [0-9]+ ?)?/      /'
    fi
}

# settle N: reports the programs that ended, in the order they were started, until at most N are running
settle() {
    local pid left code
    while :; do
        left=()
        for pid in "${running[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                left+=("$pid")
            else
                wait "$pid" 2>/dev/null
                code=$?
                report "$pid" "$code"
            fi
        done
        running=("${left[@]}")
        [ ${#running[@]} -gt "$1" ] || return 0
        sleep 0.05
    done
}

# start AT-ONCE LABEL COMMAND...: runs the command when fewer than AT-ONCE others are running
start() {
    local at_once=$1 label=$2 file
    shift 2
    settle $((at_once - 1))
    file=$logs/$(tr '/ ' '--' <<<"$label")
    timeout -k 20 "$seconds" "$@" >"$file.out" 2>"$file.err" </dev/null &
    label_of[$!]=$label began[$!]=$SECONDS
    running+=("$!")
}

# programs DIR...: test programs that were built and whose source is still there
programs() {
    local dir source
    for dir in "$@"; do
        for source in tests/"$dir"/test_*.c; do
            source=${source#tests/}
            [ ! -e "tests/$source" ] || echo "${source%.c}"
        done
    done
}
many=$((cores < 8 ? cores : 8))
for name in $(programs unit grad); do
    ! wanted "$name" "$@" || start "$many" "$name" "$B/tests/$name"
done
settle 0
many=$((cores < 8 ? 1 : cores / 4))
for name in $(programs mpi la methods); do
    for ranks in 1 2 3 4; do
        ! wanted "$name -n $ranks" "$@" || start "$many" "$name -n $ranks" mpirun -n "$ranks" "$B/tests/$name"
    done
done
# the process grid 2 x 3 needs six
if [ -n "${FEDLORA_LONG:-}" ] && wanted "la/test_grid -n 6" "$@"; then
    start "$many" "la/test_grid -n 6" mpirun -n 6 "$B/tests/la/test_grid"
fi
for script in tests/{app,restart,methods,effects,style}/test_*.sh; do
    name=${script#tests/}
    if [ -x "$script" ] && wanted "$name" "$@"; then
        start "$many" "$name" "$script"
    fi
done
settle 0

if [ $((passed + failed + skipped)) -eq 0 ]; then
    echo "no test program matches"
    failed=1
fi
echo "$((SECONDS - started)) s, logs in $logs"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
