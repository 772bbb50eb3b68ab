#!/usr/bin/env bash
# test_signals.sh - a signal to any one rank is enough: the first ends the round with a checkpoint and exit code 75, the second ends at the next
# step and keeps the last checkpoint; the end time of the job does the same; the run then goes on to the same state.
. "$(dirname "$0")/../lib.sh"
check "a base model" "$FEDLORA" pretrain inputs/quickstart.yaml --set train.steps=5 -o "$T/base"
common=(--set "model.path=$T/base" --set eval.every=0 --set eval.max_samples=20 --set train.steps=20)
run_fedlora 1 run inputs/quickstart.yaml "${common[@]}" --set run.rounds=12 --out "$T/whole" >"$T/whole.log" 2>&1
whole=$(state_of "$T/whole.log")
check "an uninterrupted run" test -n "$whole"

# starts a run of 12 rounds on 3 ranks, waits for a checkpoint, sends SIGNAL to one rank TIMES times; sets code
interrupt() {
    local out=$1 signal=$2 times=$3 pid
    mpirun -n 3 "$FEDLORA" run inputs/quickstart.yaml "${common[@]}" --set run.rounds=12 --out "$out" >"$T/log" 2>&1 &
    local job=$!
    for _ in $(seq 600); do
        ls "$out"/checkpoints/round-*.h5 >/dev/null 2>&1 && break
        sleep 0.05
    done
    pid=$(pgrep -f -- "--out $out" | while read -r p; do grep -qz '^OMPI_COMM_WORLD_RANK=2' "/proc/$p/environ" 2>/dev/null && echo "$p"; done | head -n 1)
    for _ in $(seq "$times"); do
        kill "-$signal" "$pid" 2>/dev/null
        sleep 0.05
    done
    code=0
    wait "$job" || code=$?
}
finish() {
    run_fedlora 2 run inputs/quickstart.yaml "${common[@]}" --set run.rounds=12 --out "$1" >"$T/log" 2>&1
    same "$2: resumed on 2 ranks to the same state" "$whole" "$(state_of "$T/log")"
}
for signal in USR1 TERM; do
    interrupt "$T/one-$signal" "$signal" 1
    same "one $signal to rank 2 of 3: exit code" 75 "$code"
    check "one $signal: the log says why" grep -q "a signal came" "$T/one-$signal/log.txt"
    finish "$T/one-$signal" "one $signal"
done
interrupt "$T/two" USR1 2
same "two signals to rank 2 of 3: exit code" 75 "$code"
finish "$T/two" "two signals"
code=0
FEDLORA_END_TIME=$(($(date +%s) + 4)) run_fedlora 2 run inputs/quickstart.yaml "${common[@]}" --set run.rounds=400 --set train.steps=60 --out "$T/end" >"$T/log" 2>&1 || code=$?
same "FEDLORA_END_TIME: exit code" 75 "$code"
check "FEDLORA_END_TIME: the log says why" grep -q "time that is left" "$T/end/log.txt"
code=0
run_fedlora 2 run inputs/quickstart.yaml "${common[@]}" --set run.rounds=400 --set train.steps=60 --maxh 0.001 --requeue-code 99 --out "$T/maxh" >"$T/log" 2>&1 || code=$?
same "--maxh with --requeue-code 99: exit code" 99 "$code"
