#!/usr/bin/env bash
# test_async.sh - checkpoint.async: the same state and the same files as without it; killed while a file is on its way; a disk that fills in the
# background; every stop waits for the file.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/base"
shim=$T/shim.so
if ! ${CC:-mpicc} -shared -fPIC -D_GNU_SOURCE -O1 -o "$shim" tests/files_shim.c >"$T/shim.log" 2>&1; then
    not_ok "the shim builds" "$(cat "$T/shim.log")"
    exit 1
fi
async=(--set checkpoint.async=true --set checkpoint.keep=9)

# same_files NAME A B: every checkpoint of A is in B and equal, times left out
same_files() {
    local file n=0 bad=""
    for file in "$2"/checkpoints/*; do
        n=$((n + 1))
        "$FEDLORA" diff "$file" "$3/checkpoints/${file##*/}" >"$T/diff" 2>&1 || bad+="${file##*/}: $(tail -n 3 "$T/diff")"$'\n'
    done
    if [ "$n" -ge 4 ] && [ -z "$bad" ]; then
        ok "$1"
    else
        not_ok "$1" "$n files; $bad"
    fi
}

# ---- the same as without ----
for method in local_only fedex_lora; do
    small_deck "$T/$method.yaml" $method "$T/base"
    ref=$T/$method-ref
    expect 0 "$method: in the foreground" 2 "$ref" "$T/$method.yaml" --set checkpoint.keep=9
    for ranks in 1 3; do
        out=$T/$method-$ranks
        expect 0 "$method: in the background, $ranks rank(s)" "$ranks" "$out" "$T/$method.yaml" "${async[@]}"
        same "$method, $ranks rank(s): the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
        same_files "$method, $ranks rank(s): the same files" "$ref" "$out"
    done
done
deck=$T/local_only.yaml
ref=$T/local_only-ref
for key in checkpoint_seconds checkpoint_bytes checkpoint_bandwidth_bytes_per_s; do
    for out in "$ref" "$T/local_only-3"; do
        check "perf.json of ${out##*/}: $key is positive" grep -qE "\"$key\": [1-9]|\"$key\": 0\.0*[1-9]" "$out/perf.json"
    done
done
check "perf.json: as many bytes as the files have" grep -q "\"checkpoint_bytes\": $(cat "$T/local_only-3"/checkpoints/*.h5 | wc -c)\." "$T/local_only-3/perf.json"
expect 0 "--dry-run" 2 "$T/dry" "$deck" "${async[@]}" --dry-run
says "it says what the copy takes" "$T/dry.log" "checkpoint.async: rank 0 copies"

# ---- killed while round 3 is on its way: the run has gone on meanwhile ----
round_is_reported() {
    grep -qsE "^ +$2 " "$1.log"
}
out=$T/killed
FILES_HOLD=round-000003.h5.tmp LD_PRELOAD=$shim started 2 "$out" "$deck" "${async[@]}"
check "round 4 is computed while round 3 is being written" await 60 round_is_reported "$out" 4
check "the file has not yet its name" test ! -e "$out/checkpoints/round-000003.h5"
check "only the other one" test -e "$out/checkpoints/round-000003.h5.tmp"
mapfile -t pids < <(ranks_of "$job")
kill -9 "${pids[@]}"
ended 60
check "killed" test "$code" -ne 0
expect 0 "resumed on 3 ranks" 3 "$out" "$deck" "${async[@]}"
says "from round 2" "$out.log" "resumed   round 2 from"
same "killed and resumed: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
same_files "killed and resumed: the same files" "$ref" "$out"
same "nothing unfinished is left" "$(find "$out" -name '*.tmp' | wc -l)" 0

# ---- kills at any moment of writes that take their time ----
kills=2
[ -z "$LONG" ] || kills=40
out=$T/kills
codes=""
for ((i = 0; i < kills; i++)); do
    started 2 "$out" "$deck" "${async[@]}" --set run.rounds=12
    sleep "0.$((3 + RANDOM % 6))$((RANDOM % 10))"
    mapfile -t pids < <(ranks_of "$job")
    [ ${#pids[@]} -eq 0 ] || kill -9 "${pids[RANDOM % ${#pids[@]}]}" 2>/dev/null
    ended 60
    codes+=" $code"
done
expect 0 "after $kills kills (exit codes$codes): to the end" 2 "$out" "$deck" "${async[@]}" --set run.rounds=12
expect 0 "12 rounds that nobody kills" 2 "$T/kills-ref" "$deck" --set run.rounds=12
same "the same state" "$(state_of "$out.log")" "$(state_of "$T/kills-ref.log")"

# ---- the disk fills in the background ----
for round in 3 4; do
    out=$T/full-$round
    LD_PRELOAD=$shim FILES_FULL=round-00000$round.h5.tmp expect 4 "disk full while round $round is written" 2 "$out" "$deck" "${async[@]}"
    says "it names the file" "$out.log" "round-00000$round.h5: cannot write it in the background: disk full"
    check "the checkpoint before stands" "$FEDLORA" verify "$out/checkpoints/round-00000$((round - 1)).h5"
    same "nothing unfinished is left" "$(find "$out" -name '*.tmp' | wc -l)" 0
    expect 0 "with room again" 1 "$out" "$deck" "${async[@]}"
    same "disk full in round $round: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
done

# ---- a stop waits ----
out=$T/stop
mkdir -p "$out"
touch "$out/STOP"
expect 75 "STOP" 2 "$out" "$deck" "${async[@]}"
check "its checkpoint has its name" "$FEDLORA" verify "$out/checkpoints/round-000001.h5"
rm "$out/STOP"
expect 0 "resumed in the foreground" 3 "$out" "$deck"
same "STOP: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
