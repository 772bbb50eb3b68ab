#!/usr/bin/env bash
# test_bad_decks.sh - every deck of bad_decks through the program: exit code 3 and the sentence that the deck's first line promises, once and not
# once per rank; some on two ranks; several mistakes in one deck are told together.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

# refused NAME RANKS DECK FRAGMENT
refused() {
    local code=0 n
    fedlora "$2" run "$3" --out "$T/out" >"$T/log" 2>&1 || code=$?
    n=$(grep -oF -- "$4" "$T/log" | wc -l)
    if [ "$code" -eq 3 ] && [ "$n" -eq 1 ] && [ ! -e "$T/out" ]; then
        ok "$1"
    else
        not_ok "$1" "exit code $code, said $n times: $4"$'\n'"$(head -n 20 "$T/log")"
        rm -rf "$T/out"
    fi
}

i=0
for deck in tests/app/bad_decks/*.yaml; do
    name=${deck##*/}
    fragment=$(sed -n '1s/^# expect: //p' "$deck")
    if [ -z "$fragment" ]; then
        not_ok "$name: its first line says what to expect"
        continue
    fi
    refused "$name" 1 "$deck" "$fragment"
    if [ $((i % 12)) -eq 0 ] || [ -n "$LONG" ]; then
        refused "$name on two ranks" 2 "$deck" "$fragment"
    fi
    i=$((i + 1))
done
check "there are bad decks" test "$i" -ge 40

# all mistakes at once, each with its place
cat >"$T/many.yaml" <<'EOD'
run: {seed: -1, rounds: many}
train:
  lrr: 1.0e-3
  steps: 0
chort: {size: 5}
adapter: {dropout: 2}
EOD
for ranks in 1 3; do
    refused "six mistakes, $ranks rank(s): the first" "$ranks" "$T/many.yaml" "many.yaml:1: run.seed"
    for fragment in "many.yaml:1: run.rounds" "many.yaml:3: train.lrr: unknown key; did you mean train.lr?" "many.yaml:4: train.steps" \
        "many.yaml:5: chort" "many.yaml:6: adapter.dropout"; do
        says "six mistakes, $ranks rank(s): $fragment" "$T/log" "$fragment"
    done
done

# the command line is checked like the deck
check_exit 3 "--set with an unknown key" "$FEDLORA" run inputs/quickstart.yaml --set train.lrr=1 --set cohort.size=no --out "$T/out"
says "it names the nearest key" "$T/.check" "--set train.lrr=1: unknown key; did you mean train.lr?"
says "and the other mistake" "$T/.check" "cohort.size"
check_exit 3 "--set without a value" "$FEDLORA" run inputs/quickstart.yaml --set train.lr --out "$T/out"
check "nothing was written" test ! -e "$T/out"
