#!/usr/bin/env bash
# test_resume.sh - a run that was stopped and resumed on another number of ranks ends as if it had not been: STOP file, more rounds, signals, time
# limit, a damaged newest checkpoint. And what resuming refuses.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/base"
unequal=(--set 'clients.r=[1,2,4]' --set 'clients.r_share=[0.4,0.3,0.3]')

# prepare METHOD: sets deck, args and ref, the output folder of the uninterrupted run
prepare() {
    deck=$T/$1.yaml
    ref=$T/$1-ref
    args=()
    small_deck "$deck" "$1" "$T/base"
    case $1 in flora | flexlora | local_only) args=("${unequal[@]}" --set eval.per_client=true) ;; esac
    [ -e "$ref" ] || expect 0 "$1: the uninterrupted run" 2 "$ref" "$deck" "${args[@]}"
}

# as_uninterrupted NAME OUT: state and rows are those of ref
as_uninterrupted() {
    same "$1: the same state" "$(state_of "$2.log")" "$(state_of "$ref.log")"
    same "$1: the same rounds.csv" "$(rows "$2")" "$(rows "$ref")"
}

# ---- a file STOP, then another number of ranks ----
stop_and_resume() {
    local out=$T/$1-stop from=$2 to=$3
    prepare "$1"
    mkdir -p "$out"
    touch "$out/STOP"
    expect 75 "$1: STOP ends a run on $from ranks with 75" "$from" "$out" "$deck" "${args[@]}"
    says "$1: it says why" "$out.log" "there is a file STOP"
    expect 75 "$1: STOP ends it again, one round later" "$to" "$out" "$deck" "${args[@]}"
    says "$1: it resumed from round 1" "$out.log" "resumed   round 1 "
    rm "$out/STOP"
    expect 0 "$1: resumed on $to ranks" "$to" "$out" "$deck" "${args[@]}"
    as_uninterrupted "$1, STOP, $from to $to ranks" "$out"
}
stop_and_resume flora 3 1
stop_and_resume local_only 1 4
stop_and_resume flexlora 2 3
[ -z "$LONG" ] || for method in fedavg ffa_lora rolora fedex_lora; do
    stop_and_resume "$method" 4 3
done

# ---- more rounds than the first job asked for; its last row is evaluated although the whole run's is not ----
more_rounds() {
    local out=$T/$1-more
    prepare "$1"
    expect 0 "$1: a run of 2 rounds" "$2" "$out" "$deck" "${args[@]}" --set run.rounds=2
    expect 0 "$1: 2 rounds more on $3 ranks" "$3" "$out" "$deck" "${args[@]}"
    same "$1, more rounds, $2 to $3 ranks: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
    # every cell that the uninterrupted run has
    # shellcheck disable=SC2016
    check "$1, more rounds: the same rows" awk -F, '
        NR == FNR { for (i = 1; i <= NF; i++) cell[FNR, i] = $i; next }
        { for (i = 1; i <= NF; i++) if (i != 2 && $i != "" && $i != cell[FNR, i]) { print FNR, i, $i, cell[FNR, i]; bad = 1 } }
        END { exit bad || FNR != 6 }' "$out/rounds.csv" "$ref/rounds.csv"
}
more_rounds fedex_lora 1 3
more_rounds rolora 4 2
[ -z "$LONG" ] || for method in fedavg ffa_lora flora flexlora local_only; do
    more_rounds "$method" 3 4
done

# ---- what a finished run answers ----
prepare fedex_lora
out=$T/fedex_lora-more
before=$(ls -l --time-style=full-iso "$out/checkpoints")
expect 0 "a finished run prints its state again" 3 "$out" "$deck"
same "the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
same "and writes no checkpoint" "$(ls -l --time-style=full-iso "$out/checkpoints")" "$before"
expect 3 "--resume none on a used folder" 2 "$out" "$deck" --resume none
says "it says so" "$out.log" "already holds checkpoints"
expect 3 "changed keys are refused" 2 "$out" "$deck" --set train.lr=0.02 --set eval.every=1 --set run.seed=8 --set checkpoint.keep=7
says "train.lr is named" "$out.log" train.lr
says "run.seed is named" "$out.log" run.seed
same "keys that may change are not named" "$(grep -cE 'eval\.every|checkpoint\.keep' "$out.log")" 0
expect 3 "another method is refused" 1 "$out" "$deck" --set method.name=fedavg
says "method.name is named" "$out.log" method.name
expect 3 "fewer rounds than are done" 2 "$out" "$deck" --set run.rounds=3
says "run.rounds is named" "$out.log" "beyond run.rounds: 3"
expect 0 "none of these harmed the run" 1 "$out" "$deck"
same "its state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
rm -rf "$out/adapter" "$out/base" "$out/rounds.csv"
expect 0 "killed after its last checkpoint: the next start writes what is missing" 2 "$out" "$deck"
check "its adapter is there" diff -r "$out/adapter" "$ref/adapter"
check "its base is there" diff -r "$out/base" "$ref/base"
check "its rounds are there" test -s "$out/rounds.csv"
expect 0 "--resume FILE, an earlier checkpoint into a new folder" 3 "$T/again" "$deck" --resume "$ref/checkpoints/round-000003.h5"
as_uninterrupted "--resume FILE" "$T/again"
expect 4 "--resume with a file that is not there" 2 "$T/nowhere" "$deck" --resume "$T/nofile.h5"
says "it names the file" "$T/nowhere.log" "$T/nofile.h5"

# ---- a time limit ----
prepare flora
out=$T/maxh
expect 75 "--maxh that is over ends the run after a round with 75" 2 "$out" "$deck" "${args[@]}" --maxh 0.00001
says "--maxh: it says so" "$out.log" "would not fit"
export FEDLORA_END_TIME=$(($(date +%s) + 1))
expect 75 "FEDLORA_END_TIME does the same" 3 "$out" "$deck" "${args[@]}"
FEDLORA_END_TIME=$(($(date +%s) + 10000)) expect 75 "the earlier one of the two counts" 1 "$out" "$deck" "${args[@]}" --maxh 0.00001
unset FEDLORA_END_TIME
SLURM_JOB_END_TIME=$(($(date +%s) + 10000)) expect 0 "an end time that is far" 4 "$out" "$deck" "${args[@]}"
as_uninterrupted "time limits" "$out"
expect 99 "--requeue-code" 2 "$T/requeue" "$deck" "${args[@]}" --maxh 0.00001 --requeue-code 99

# ---- signals ----
# has_round OUT N: round N was reported
has_round() {
    grep -qsE "^ +$2 " "$1.log"
}

# interrupted NAME RANKS SENDER: a long run gets a signal after its first rounds; then a few rounds more, against a run that was never stopped
interrupted() {
    local name=$1 out=$T/signal-$1 done_rounds
    prepare fedavg
    started "$2" "$out" "$deck" --set run.rounds=100000 --set eval.every=2
    if ! await 60 has_round "$out" 2; then
        not_ok "$name: rounds come" "$(tail "$out.log")"
    fi
    "$3" "$job"
    ended 60
    same "$name: exit code" "$code" 75
    says "$name: it says why" "$out.log" "a signal came"
    done_rounds=$(sed -n 's/.*stopped after round \([0-9]*\) .*/\1/p' "$out.log")
    done_rounds=${done_rounds:-0}
    expect 0 "$name: resumed" 3 "$out" "$deck" --set run.rounds=$((done_rounds + 2))
    expect 0 "$name: uninterrupted" 2 "$T/ref-$name" "$deck" --set run.rounds=$((done_rounds + 2)) --set checkpoint.every=100000
    ref=$T/ref-$name
    as_uninterrupted "$name" "$out"
}
to_mpirun() { kill -USR1 "$1"; }
to_mpirun_usr2() { kill -USR2 "$1"; }
to_one_rank() { kill -TERM "$(ranks_of "$1" | tail -n 1)"; }
interrupted "USR1 to mpirun" 2 to_mpirun
interrupted "TERM to one rank of three" 3 to_one_rank
[ -z "$LONG" ] || interrupted "USR2 to mpirun" 4 to_mpirun_usr2

# the second signal does not wait for the round: here it would last for hours
second_signal() {
    local out=$T/second-$1
    prepare fedavg
    started "$1" "$out" "$deck" --set train.steps=100000000
    await 60 has_round "$out" 0 || not_ok "second signal: the run starts" "$(tail "$out.log")"
    sleep 0.5
    kill -USR1 "$job"
    sleep 1
    if gone "$job"; then
        not_ok "the first signal waits for the round" "$(tail "$out.log")"
    fi
    kill -USR1 "$job"
    ended 60
    same "second signal on $1 ranks: exit code" "$code" 75
    says "second signal on $1 ranks: it says so" "$out.log" "by a second signal"
}
second_signal 2

# ---- what an interrupted write left behind ----
prepare fedavg
out=$T/stale
expect 0 "a run of 2 rounds" 2 "$out" "$deck" --set run.rounds=2
head -c 1000 "$out/checkpoints/round-000002.h5" >"$out/checkpoints/round-000003.h5.tmp"
expect 0 "an unfinished checkpoint does not matter" 2 "$out" "$deck"
same "unfinished checkpoint: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
check "it was removed" test ! -e "$out/checkpoints/round-000003.h5.tmp"
same "and no .tmp is left" "$(find "$out" -name '*.tmp' | wc -l)" 0

# ---- damage ----
flip() { # FILE OFFSET: all bits of one byte
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\x$(printf %x $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# damaged NAME RANKS: newest is the damaged copy of a run of three rounds; the run goes on from the one before
damaged() {
    local out=$2
    expect 0 "$1: resumed from an older checkpoint" "$3" "$out" "$deck" "${args[@]}"
    says "$1: it says what was skipped" "$out.log" "warning: checkpoint skipped: "
    says "$1: and what was used" "$out.log" "resumed   round 2 from"
    as_uninterrupted "$1" "$out"
}
for method in flora local_only; do
    prepare "$method"
    out=$T/$method-three
    launch 2 "$out" "$deck" "${args[@]}" --set run.rounds=3 --set eval.every=2 || not_ok "$method: three rounds"
    # the row of round 3 was evaluated because it was the last; go back so that round 3 runs again
    newest=checkpoints/round-000003.h5
    size=$(stat -c %s "$out/$newest")
    kinds="truncated flipped"
    [ -z "$LONG" ] || kinds="truncated flipped-early flipped flipped-late short-by-one emptied garbage"
    for kind in $kinds; do
        copy=$T/$method-$kind
        cp -r "$out" "$copy"
        case $kind in
        truncated) truncate -s $((size / 2)) "$copy/$newest" ;;
        flipped-early) flip "$copy/$newest" 100 ;;
        flipped) flip "$copy/$newest" $((size / 2)) ;;
        flipped-late) flip "$copy/$newest" $((size - 1)) ;;
        short-by-one) truncate -s $((size - 1)) "$copy/$newest" ;;
        emptied) : >"$copy/$newest" ;;
        garbage) head -c "$size" /dev/urandom >"$copy/$newest" ;;
        esac
        damaged "$method, newest checkpoint $kind" "$copy" 3
    done
    copy=$T/$method-deleted
    cp -r "$out" "$copy"
    rm "$copy/$newest"
    expect 0 "$method, newest checkpoint deleted" 1 "$copy" "$deck" "${args[@]}"
    as_uninterrupted "$method, newest checkpoint deleted" "$copy"
    : >"$out/$newest"
    flip "$out/checkpoints/round-000002.h5" 3000
    expect 4 "$method: all checkpoints damaged" 3 "$out" "$deck" "${args[@]}"
    says "$method: it says so" "$out.log" "none of the 2 checkpoints is whole"
done

# a damaged file of a later round must not push out the good ones that are written before that round comes again
prepare fedavg
out=$T/later
launch 2 "$out" "$deck" --set run.rounds=3 --set checkpoint.every=2
: >"$out/checkpoints/round-000003.h5"
mv "$out/checkpoints/round-000003.h5" "$out/checkpoints/round-000009.h5"
expect 75 "behind a damaged checkpoint of round 9, one round" 2 "$out" "$deck" --set checkpoint.keep=1 --maxh 0.00001
check "its checkpoint is kept" test -s "$out/checkpoints/round-000003.h5"
expect 0 "and the next start goes on from it" 3 "$out" "$deck" --set checkpoint.keep=1
same "behind a damaged checkpoint of round 9: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"

# ---- two runs on one folder ----
prepare fedavg
out=$T/shared
started 1 "$out" "$deck"
first=$job
await 30 test -e "$out/.lock"
launch 2 "$out" "$deck"
second=$?
job=$first
ended 60
same "the second run waits for the first, then finds it finished" "$code $second $(state_of "$out.log")" "0 0 $(state_of "$ref.log")"
if [ -n "$LONG" ]; then
    started 1 "$out-long" "$deck" --set train.steps=100000000
    first=$job
    await 30 test -s "$out-long/log.txt"
    cp "$out-long.log" "$T/first.log"
    expect 4 "a second run gives up after 30 s" 2 "$out-long" "$deck" --set train.steps=100000000
    says "it says so" "$out-long.log" "another run has held this folder"
    kill -USR1 "$first"
    sleep 0.5
    kill -USR1 "$first"
    job=$first
    ended 60
    same "the first run was not disturbed" "$code" 75
else
    skip "a second run gives up after 30 s" "long tests only"
fi
