# lib.sh - what shell tests share. A test begins with
#     . "$(dirname "$0")/../lib.sh"
# and then runs from the repository root with: FEDLORA the program, T an empty directory that is removed at exit, B the build.
# It prints TAP; the plan and the exit code come by themselves when it ends.
# shellcheck shell=bash
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
. tests/env.sh
# shellcheck disable=SC2034
FEDLORA=$B/fedlora
T=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-test.XXXXXX") || exit 1
tap_seen=0
tap_failed=0

tap_end() {
    local code=$?
    rm -rf "$T"
    echo "1..$tap_seen"
    if [ "$code" -eq 0 ] && [ "$tap_failed" -gt 0 ]; then
        code=1
    fi
    exit "$code"
}
trap tap_end EXIT
trap 'exit 143' TERM INT HUP

# ok NAME
ok() {
    tap_seen=$((tap_seen + 1))
    echo "ok - $1"
}

# not_ok NAME [DETAIL]: the detail may have many lines
not_ok() {
    tap_seen=$((tap_seen + 1))
    tap_failed=$((tap_failed + 1))
    echo "not ok - $1"
    [ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/#   /'
}

# skip NAME WHY
skip() {
    tap_seen=$((tap_seen + 1))
    echo "ok - $1 # SKIP $2"
}

# check NAME COMMAND...: ok when the command succeeds; its output is shown when it does not
check() {
    local name=$1 code=0
    shift
    "$@" >"$T/.check" 2>&1 </dev/null || code=$?
    if [ "$code" -eq 0 ]; then
        ok "$name"
    else
        not_ok "$name" "exit code $code: $*"$'\n'"$(tail -n 40 "$T/.check")"
    fi
}

# check_exit CODE NAME COMMAND...: ok when the command ends with exactly that code; its output stays in $T/.check
check_exit() {
    local want=$1 name=$2 code=0
    shift 2
    "$@" >"$T/.check" 2>&1 </dev/null || code=$?
    if [ "$code" -eq "$want" ]; then
        ok "$name"
    else
        not_ok "$name" "exit code $code, not $want: $*"$'\n'"$(tail -n 40 "$T/.check")"
    fi
}

# same NAME A B: ok when the two texts are equal and not empty
same() {
    if [ -n "$2" ] && [ "$2" = "$3" ]; then
        ok "$1"
    else
        not_ok "$1" "'$2' against '$3'"
    fi
}

# run_fedlora RANKS ARGS...: one rank is started directly, as a user without mpirun would
run_fedlora() {
    local ranks=$1
    shift
    if [ "$ranks" -eq 1 ]; then
        "$FEDLORA" "$@"
    else
        mpirun -n "$ranks" "$FEDLORA" "$@"
    fi
}

# state_of LOG: the digest of the last line "state <16 hex digits>", nothing if there is none
state_of() {
    sed -n 's/^state \([0-9a-f]\{16\}\)[[:space:]]*$/\1/p' "$1" | tail -n 1
}
