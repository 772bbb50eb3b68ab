#!/usr/bin/env bash
# test_clock.sh - a clock that jumps: a run begun in the future and resumed in the past (libfaketime) ends with the same state, picks its newest
# checkpoint by round and not by date, and a deadline that was looked up at the start does not move with the clock.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh
if [ -z "$LONG" ]; then
    skip "a clock that jumps" "long form only (FEDLORA_LONG=1)"
    exit 0
fi
if ! command -v faketime >/dev/null 2>&1 && [ "$(id -u)" -eq 0 ]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq faketime >/dev/null 2>&1
fi
if ! command -v faketime >/dev/null 2>&1; then
    skip "a clock that jumps" "faketime is not installed"
    exit 0
fi
make_base "$T/base"
deck=$T/deck.yaml
small_deck "$deck" flora "$T/base"
expect 0 "uninterrupted" 2 "$T/ref" "$deck" --set run.rounds=6
mpirun -n 2 faketime '+10 years' "$FEDLORA" run "$deck" --set run.rounds=3 --out "$T/out" >"$T/future.log" 2>&1
check "begun ten years ahead" test -n "$(state_of "$T/future.log")"
mpirun -n 3 faketime '-10 years' "$FEDLORA" run "$deck" --set run.rounds=5 --out "$T/out" >"$T/past.log" 2>&1
check "resumed ten years back, at round 3" grep -q "resumed   round 3" "$T/past.log"
expect 0 "resumed today" 1 "$T/out" "$deck" --set run.rounds=6
check "at round 5" grep -q "resumed   round 5" "$T/out.log"
same "the same state" "$(state_of "$T/ref.log")" "$(state_of "$T/out.log")"
