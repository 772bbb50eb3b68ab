#!/usr/bin/env bash
# test_kill.sh - kill -9 of one rank, or of all, at a random moment of a run, again and again, each time resumed on another number of ranks:
# the end is that of the run that nobody killed. FEDLORA_KILL_SEED repeats the moments (as far as a machine repeats its timing).
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

seed=${FEDLORA_KILL_SEED:-$$}
RANDOM=$seed
echo "# FEDLORA_KILL_SEED=$seed"
kills=1
[ -z "$LONG" ] || kills=${FEDLORA_KILLS:-30}
total=0
make_base "$T/base"

# one_kill OUT RANKS: starts the run, kills at a random moment within its time; hit = 1 when the run had not ended before
one_kill() {
    local out=$1 ranks=$2 pids milliseconds
    hit=0
    # mostly after the start-up
    milliseconds=$((span / 3 + RANDOM % (span * 3 / 4)))
    [ $((RANDOM % 5)) -gt 0 ] || milliseconds=$((RANDOM % span))
    started "$ranks" "$out" "$deck" "${args[@]}"
    sleep "$((milliseconds / 1000)).$(printf %03d $((milliseconds % 1000)))"
    mapfile -t pids < <(ranks_of "$job")
    if [ ${#pids[@]} -gt 0 ]; then
        if [ $((RANDOM % 3)) -gt 0 ]; then
            pids=("${pids[RANDOM % ${#pids[@]}]}")
        fi
        kill -9 "${pids[@]}" 2>/dev/null
    fi
    ended 60
    [ "$code" -eq 0 ] || hit=1
}

# killed METHOD: as many kills as asked for, then to the end
killed() {
    local method=$1 out=$T/$1 ref=$T/$1-ref ranks hits=0 codes="" began rounds=""
    deck=$T/$method.yaml
    args=(--set run.rounds=12)
    small_deck "$deck" "$method" "$T/base"
    case $method in flora | flexlora | local_only) args+=(--set 'clients.r=[1,2,4]' --set 'clients.r_share=[0.4,0.3,0.3]') ;; esac
    began=$(date +%s%N)
    expect 0 "$method: the run that nobody kills" 2 "$ref" "$deck" "${args[@]}"
    span=$((($(date +%s%N) - began) / 1000000))
    for ((i = 0; hits < kills && i < 3 * kills + 4; i++)); do
        ranks=$((1 + (i + RANDOM % 3) % 4))
        one_kill "$out" "$ranks"
        hits=$((hits + hit))
        codes+=" $code"
        rounds+=" $(sed -n 's/^resumed   round \([0-9]*\) .*/\1/p' "$out.log")"
        case $code in
        0) # it was over before the kill came: once more from the start, and sooner
            rm -rf "$out"
            span=$((span * 4 / 5 + 100))
            ;;
        124) break ;;
        esac
    done
    total=$((total + hits))
    case " $codes " in
    *" 124 "*) not_ok "$method: no rank hangs when another dies" "exit codes$codes" ;;
    *) ok "$method: no rank hangs when another dies" ;;
    esac
    check "$method: a kill hit before the end" test "$hits" -ge 1
    expect 0 "$method: resumed to the end" $((1 + RANDOM % 4)) "$out" "$deck" "${args[@]}"
    rounds+=" $(sed -n 's/^resumed   round \([0-9]*\) .*/\1/p' "$out.log")"
    echo "# $method: $hits kills hit; exit codes$codes; resumed at round$rounds"
    same "$method: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
    same "$method: the same rounds.csv" "$(rows "$out")" "$(rows "$ref")"
    same "$method: nothing unfinished is left" "$(find "$out" -name '*.tmp' | wc -l)" 0
}

for method in fedavg ffa_lora rolora flora flexlora fedex_lora local_only; do
    killed "$method"
done
echo "# $total kills hit before the end of a run"
[ -z "$LONG" ] || check "at least ${FEDLORA_KILLS:-30} kills hit for every method" test "$total" -ge $((7 * ${FEDLORA_KILLS:-30} * 3 / 4))
