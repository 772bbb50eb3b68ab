#!/usr/bin/env bash
# test_commands.sh - every command besides the federation itself: help, usage errors, the deck and its words, inspect, verify, diff, export, eval.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

# ---- help and usage ----
check "--version" "$FEDLORA" --version
for word in fedlora HDF5 OpenBLAS; do
    prints "--version names $word" "$word"
done
check "--help" "$FEDLORA" --help
commands=$("$FEDLORA" --help | sed -n 's/^  \([a-z]*\)  *[a-z].*/\1/p' | grep -v fedlora)
for command in run pretrain eval export inspect verify diff methods deck explain bench; do
    check "--help lists $command" test "$(grep -cx "$command" <<<"$commands")" -eq 1
done
for command in $commands; do
    check_exit 0 "$command --help" "$FEDLORA" "$command" --help
    prints "$command --help shows its use" "fedlora $command"
    check_exit 2 "$command: unknown option" "$FEDLORA" "$command" --nosuch
    says "$command: it names the option" "$T/.check" "$command: unknown option '--nosuch'"
done
check_exit 2 "no command" "$FEDLORA"
refuse 2 "unknown command" "there is no command 'rnu'; did you mean run?" rnu deck.yaml
refuse 2 "unknown option" "unknown option '--maxhh'; did you mean --maxh?" run deck.yaml --maxhh 3
refuse 2 "an option of another command" "unknown option '--client'" run deck.yaml --client 3
refuse 2 "an option without its value" "--out needs a value" run deck.yaml --out
refuse 2 "an option with a wrong value" "--maxh: 'soon' is not a number" run deck.yaml --maxh soon
refuse 2 "no deck" "usage: fedlora run DECK" run
refuse 2 "two decks" "usage: fedlora run DECK" run a.yaml b.yaml
refuse 2 "unknown method" "there is no method 'flexlor'" methods flexlor
refuse 2 "deck of an unknown method" "there is no method 'flexlor'" deck --method flexlor

# ---- what it says about itself is what it accepts ----
make_base "$T/base"
make_base "$T/gpt2" --set pretrain.family=gpt2
methods=$("$FEDLORA" methods | sed 's/ .*//')
for method in $methods; do
    check "methods $method" "$FEDLORA" methods "$method"
    says "it names its source" "$T/.check" "source:"
    "$FEDLORA" deck --method "$method" --set model.path="$T/base" >"$T/whole.yaml"
    check "deck --method $method is a deck: it runs dry" "$FEDLORA" run "$T/whole.yaml" --dry-run --out "$T/dry"
    says "deck --method $method names the method" "$T/whole.yaml" "name: $method"
    check "there is a deck for it" grep -q "name: $method" "inputs/methods/$method.yaml"
done
check "a dry run writes nothing" test ! -e "$T/dry"
"$FEDLORA" deck >"$T/whole.yaml"
section=
while IFS= read -r line; do
    case $line in
    [a-z]*:*) section=${line%%:*} ;;
    "  "[a-z]*:*)
        key=${line#  }
        key=$section.${key%%:*}
        "$FEDLORA" explain "$key" >"$T/explain" 2>&1 || { not_ok "explain $key" "$(cat "$T/explain")"; }
        grep -q "^$key: " "$T/explain" || not_ok "explain $key names the key" "$(cat "$T/explain")"
        count=$((${count:-0} + 1))
        ;;
    esac
done <"$T/whole.yaml"
check "every key of the deck is explained (${count:-0})" test "${count:-0}" -ge 60
check "explain a section" "$FEDLORA" explain cohort
check "explain an unknown key" test "$("$FEDLORA" explain cohort.sise 2>&1 | grep -c cohort.size)" -eq 1
for page in REFERENCE METHODS; do
    [ "$page" = REFERENCE ] && command=deck || command=methods
    check "inputs/$page.md is what the program prints (make reference)" diff "inputs/$page.md" <("$FEDLORA" "$command" --reference)
done

# ---- --dry-run ----
deck=$T/flora.yaml
small_deck "$deck" flora "$T/base"
for ranks in 1 3; do
    fedlora "$ranks" run "$deck" --dry-run --out "$T/dry" >"$T/dry.log" 2>&1
    same "--dry-run on $ranks rank(s): exit code" "$?" 0
    for fragment in "rank x client map" "memory " "traffic " "checkpoint "; do
        says "--dry-run on $ranks rank(s): $fragment" "$T/dry.log" "$fragment"
    done
    same "--dry-run on $ranks rank(s): a line for each" "$(grep -cE '^ *rank +[0-9]+:' "$T/dry.log")" "$ranks"
    same "--dry-run prints no state" "none$(state_of "$T/dry.log")" none
    check "--dry-run on $ranks rank(s) writes nothing" test ! -e "$T/dry"
done

# ---- used.yaml ----
out=$T/flora-run
expect 0 "a run of flora" 2 "$out" "$deck" --set run.seed=11 --set cohort.size=4
expect 0 "its used.yaml as the deck" 3 "$T/used" "$out/used.yaml"
same "gives the same state" "$(state_of "$T/used.log")" "$(state_of "$out.log")"
check "and the same used.yaml" diff <(grep -v '^#' "$out/used.yaml") <(grep -v '^#' "$T/used/used.yaml")
(cd "$T" && "$FEDLORA" run flora.yaml --set model.path=base --out "$T/relative" --set run.rounds=1 >"$T/relative.log" 2>&1)
same "a relative path is written absolute" "$(sed -n 's/^  path: *\([^ ]*\).*/\1/p' "$T/relative/used.yaml" | head -n 1)" "$(cd "$T" && pwd -P)/base"

# ---- inspect, verify, diff ----
checkpoint=$out/checkpoints/round-000004.h5
for ranks in 1 2; do
    fedlora "$ranks" inspect "$checkpoint" >"$T/inspect" 2>&1
    same "inspect a checkpoint on $ranks rank(s)" "$?" 0
    same "it prints the state of the run" "$(state_of "$T/inspect")" "$(state_of "$out.log")"
    same "once" "$(grep -c '^state ' "$T/inspect")" 1
done
check "verify a checkpoint" "$FEDLORA" verify "$checkpoint"
says "it says that it is whole" "$T/.check" "whole"
check "diff with itself" "$FEDLORA" diff "$checkpoint" "$checkpoint"
check_exit 1 "diff with an earlier round" "$FEDLORA" diff "$checkpoint" "$out/checkpoints/round-000003.h5"
prints "it names what differs" "first difference"
echo text >"$T/text.h5"
cp "$checkpoint" "$T/damaged.h5"
truncate -s -10 "$T/damaged.h5"
refuse 4 "verify a damaged checkpoint" "$T/damaged.h5" verify "$T/damaged.h5"
refuse 4 "inspect a file that is not HDF5" "$T/text.h5" inspect "$T/text.h5"
refuse 4 "diff with a file that is not there" "$T/none.h5" diff "$checkpoint" "$T/none.h5"
for kind in good changed offsets; do
    make_dataset "$kind" "$T/$kind.h5" || not_ok "data set $kind" "$(cat "$T/dataset.log")"
done
check "inspect a data set" "$FEDLORA" inspect "$T/good.h5"
prints "it counts tokens" 1200
check "verify a data set" "$FEDLORA" verify "$T/good.h5"
refuse 4 "verify a wrong data set" "/offsets: element 30 is 100" verify "$T/offsets.h5"
refuse 2 "diff of data sets: it says what it compares" "diff compares two checkpoints" diff "$T/good.h5" "$T/changed.h5"

# ---- export and eval ----
text=$T/text.txt
for ((i = 0; i < 300; i++)); do
    echo "sentence $i says $((i * i % 89)), then $((i * 7919 % 1009)) again"
done >"$text"

# evaluated ARGS...: the two numbers
evaluated() {
    fedlora "${ranks:-1}" eval --data "$text" --set model.max_length=32 "$@" 2>"$T/eval.err" |
        sed -n 's/^loss \([0-9.]*\) nats per token, accuracy \([0-9.]*\), \([0-9]*\) predictions.*/\1 \2 \3/p'
}

# close_to NAME A B: equal to 1e-6 (accuracy and count: equal, the rounding of a merge may turn one prediction in a thousand)
close_to() {
    check "$1: $2 against $3" awk -v a="$2" -v b="$3" 'BEGIN {
        n = split(a, x, " "); m = split(b, y, " "); d = x[1] - y[1]; e = x[2] - y[2]
        exit !(n == 3 && m == 3 && d * d <= 1.0001e-12 && e * e <= 1e-6 && x[3] == y[3]) }'
}
small_deck "$T/fedavg.yaml" fedavg "$T/gpt2"
large_steps=(--set train.lr=0.05 --set train.steps=8)
out=$T/fedavg-run
expect 0 "a run of fedavg" 2 "$out" "$T/fedavg.yaml" "${large_steps[@]}"
checkpoint=$out/checkpoints/round-000004.h5
check "export the server's adapter" "$FEDLORA" export "$checkpoint" -o "$T/adapter"
check "it is the adapter of the run" "$FEDLORA" diff "$T/adapter" "$out/adapter"
check "inspect an adapter folder" "$FEDLORA" inspect "$T/adapter"
prints "it lists the factors" lora_A
check "verify an adapter folder" "$FEDLORA" verify "$T/adapter"
check "export the merged model" "$FEDLORA" export "$checkpoint" -o "$T/merged" --merged
base_loss=$(evaluated --model "$T/gpt2")
adapted=$(evaluated --model "$T/gpt2" --adapter "$T/adapter")
check "the adapter changes the model" test "$base_loss" != "$adapted"
close_to "base and adapter, merged" "$adapted" "$(evaluated --model "$T/merged")"
for ranks in 2 3; do
    same "eval on $ranks ranks is the same" "$(evaluated --model "$T/gpt2" --adapter "$T/adapter")" "$adapted"
done
ranks=1
# the run's own evaluation of its data set
launch 2 "$T/h5" "$T/fedavg.yaml" "${large_steps[@]}" --set data.source="$T/good.h5" --set eval.max_samples=1000 --set partition.clients=5 --set clients.lost=0
row=$(awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "test_loss") at = i } END { printf "%.6f", $at }' "$T/h5/rounds.csv")
own=$(fedlora 1 eval --model "$T/gpt2" --adapter "$T/h5/adapter" --data "$T/good.h5" --set model.max_length=32 | sed -n 's/^loss \([0-9.]*\) .*/\1/p')
check "eval repeats the test loss of the run: $row, $own" awk -v a="$row" -v b="$own" 'BEGIN { d = a - b; exit !(a > 0 && d * d <= 4.1e-12) }'

# flora has changed the base: an adapter alone would be wrong
checkpoint=$T/flora-run/checkpoints/round-000004.h5
refuse 2 "export without --merged from a run that changed the base" "add --merged" export "$checkpoint" -o "$T/wrong-@"
check "export --merged" "$FEDLORA" export "$checkpoint" -o "$T/flora-merged" --merged
merged=$(evaluated --model "$T/flora-merged")
close_to "the merged model is the run's base and adapter" "$(evaluated --model "$T/flora-run/base" --adapter "$T/flora-run/adapter")" "$merged"
check "it is not the first base" test "$merged" != "$(evaluated --model "$T/base")"

# a client's own adapter
small_deck "$T/local.yaml" local_only "$T/base"
expect 0 "a run of local_only" 3 "$T/local" "$T/local.yaml" --set run.rounds=6
checkpoint=$T/local/checkpoints/round-000006.h5
check "export a client" "$FEDLORA" export "$checkpoint" -o "$T/client-0" --client 0
check "and another" "$FEDLORA" export "$checkpoint" -o "$T/client-1" --client 1
check_exit 1 "they differ" "$FEDLORA" diff "$T/client-0" "$T/client-1"
check "its merged model" "$FEDLORA" export "$checkpoint" -o "$T/client-merged" --client 1 --merged
close_to "a client's adapter, merged" "$(evaluated --model "$T/base" --adapter "$T/client-1")" "$(evaluated --model "$T/client-merged")"
refuse 2 "export a client that does not exist" "client 99" export "$checkpoint" -o "$T/none-@" --client 99
refuse 2 "export without -o" "export: needs -o DIR" export "$checkpoint"
refuse 2 "eval without a model" "eval: needs --model" eval --data "$text"
refuse 4 "eval of a missing adapter" "$T/none" eval --model "$T/base" --data "$text" --adapter "$T/none"
