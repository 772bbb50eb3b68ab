#!/usr/bin/env bash
# test_sweep.sh - many runs in one job: each ends with the state of the same run alone, whatever the groups; failing, stopped and finished runs;
# the summary.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/base"
deck=$T/deck.yaml
small_deck "$deck" fedavg "$T/base"

# sweep CODE NAME RANKS OUT ARGS...: ok when it ends with that code; what it printed is in OUT.log
sweep() {
    local want=$1 name=$2 ranks=$3 out=$4 code=0
    shift 4
    timeout -k 10 120 mpirun -n "$ranks" "$FEDLORA" sweep "$deck" "$@" --out "$out" >"$out.log" 2>&1 </dev/null || code=$?
    if [ "$code" -eq "$want" ]; then
        ok "$name"
    else
        not_ok "$name" "exit code $code, not $want: $*"$'\n'"$(tail -n 20 "$out.log")"
    fi
}

# as_alone NAME OUT RUN...: the run OUT/RUN of the sweep against $alone-RUN, all of them
alone=$T/alone
as_alone() {
    local name=$1 out=$2 run state log=
    shift 2
    for run in "$@"; do
        state=$(state_of "$out/$run/log.txt")
        if [ -z "$state" ] || [ "$state" != "$(state_of "$alone-$run.log")" ]; then
            log+="$run: state '$state', alone '$(state_of "$alone-$run.log")'"$'\n'
        elif ! diff <(rows "$out/$run") <(rows "$alone-$run") >"$T/rows"; then
            log+="$run: other rounds.csv"$'\n'$(cat "$T/rows")$'\n'
        fi
    done
    if [ -z "$log" ]; then
        ok "$name: $# runs as alone"
    else
        not_ok "$name: $# runs as alone" "$log"
    fi
}

# column NAME OUT: that column of summary.csv, without the title; our keys and values hold no commas
column() {
    awk -F, -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i } NR > 1 { print $at }' "$2/summary.csv"
}

# summary_is_right NAME OUT RUN...: a line for each run, in order, and its numbers those of the run's own files
summary_is_right() {
    local name=$1 out=$2 run
    shift 2
    for run in "$@"; do
        awk -F, -v OFS=, -v run="$run" -v state="$(state_of "$out/$run/log.txt")" '
            NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
            {
                if ($at["eval_loss"] != "") eval_loss = $at["eval_loss"]
                if ($at["test_loss"] != "") test_loss = $at["test_loss"]
                if ($at["test_metric"] != "") metric = $at["test_metric"]
                up += $at["up_bytes"]; down += $at["down_bytes"]; rounds = $1
            }
            END { print run, rounds, eval_loss, test_loss, metric, up, down, state, 0 }' "$out/$run/rounds.csv"
    done >"$T/want"
    paste -d, <(column run "$out") <(column rounds "$out") <(column eval_loss "$out") <(column test_loss "$out") <(column test_metric "$out") \
        <(column up_bytes "$out") <(column down_bytes "$out") <(column state "$out") <(column exit_code "$out") >"$T/got"
    check "$name: summary.csv is complete and right" diff "$T/want" "$T/got"
    same "$name: the table has a line for each" "$(grep -cE ' [0-9a-f]{16} +0$' "$out.log")" "$#"
}

# ---- four runs, alone on one and two ranks ----
over=(--over "method.name=flora,local_only" --over run.seed=1..2)
runs=()
i=0
for method in flora local_only; do
    for seed in 1 2; do
        name=method.name=$method+run.seed=$seed
        runs+=("$name")
        launch $((i++ % 2 + 1)) "$alone-$name" "$deck" --set method.name=$method --set run.seed=$seed || not_ok "$name alone" "$(tail "$alone-$name.log")"
    done
done

sweep 0 "4 runs on 3 ranks" 3 "$T/three" "${over[@]}"
says "as many groups as ranks" "$T/three.log" "groups    3 of 1 rank(s)"
as_alone "on 3 ranks" "$T/three" "${runs[@]}"
summary_is_right "on 3 ranks" "$T/three" "${runs[@]}"
sweep 0 "4 runs on 4 ranks in 3 groups" 4 "$T/four" "${over[@]}" --groups 3
says "groups of unequal size" "$T/four.log" "groups    3 of 1 to 2 rank(s)"
as_alone "in groups of 1, 1 and 2 ranks" "$T/four" "${runs[@]}"
sweep 0 "4 runs on 3 ranks in one group" 3 "$T/one" "${over[@]}" --groups 1
as_alone "in one group of 3" "$T/one" "${runs[@]}"
summary_is_right "in one group" "$T/one" "${runs[@]}"
if [ -n "$LONG" ]; then
    check "a sweep without mpirun" "$FEDLORA" sweep "$deck" "${over[@]}" --out "$T/single"
    as_alone "on one rank" "$T/single" "${runs[@]}"
    sweep 0 "more ranks than runs" 7 "$T/seven" "${over[@]}"
    says "every rank has work" "$T/seven.log" "groups    4 of 1 to 2 rank(s)"
    as_alone "on 7 ranks" "$T/seven" "${runs[@]}"
fi

# ---- finished runs are not repeated ----
# a job array has made them, each by fedlora run; the sweep makes the summary
mkdir "$T/again"
for name in "${runs[@]}"; do
    cp -r "$alone-$name" "$T/again/$name"
done
sweep 0 "a sweep over finished runs" 2 "$T/again" "${over[@]}"
same "none is repeated" "$(grep -c 'was done already' "$T/again.log")" 4
as_alone "finished" "$T/again" "${runs[@]}"
summary_is_right "finished" "$T/again" "${runs[@]}"

# ---- one run fails, the others do not ----
wild=(--set train.optimizer=sgd --set train.lr=1000 --set train.clip=0)
sweep 5 "a sweep of which a run fails" 2 "$T/fails" "${wild[@]}" --over adapter.alpha=8,1e6,4
same "exit codes" "$(column exit_code "$T/fails" | tr '\n' ' ')" "0 5 0 "
same "only what is done has a state" "$(column state "$T/fails" | grep -nv '^[0-9a-f]\{16\}$')" "2:"
check "the run's log says why" grep -q '^error: .*NaN' "$T/fails/adapter.alpha=1e6/log.txt"
check "so does the sweep's" grep -q 'run 2/3 adapter.alpha=1e6 failed after .*exit code 5: .*NaN' "$T/fails/log.txt"
check "its sentence is not in the others' logs" test "$(cat "$T/fails"/adapter.alpha=[48]/log.txt | grep -c 'error:')" -eq 0
launch 1 "$alone-adapter.alpha=4" "$deck" "${wild[@]}" --set adapter.alpha=4
as_alone "behind a failed run" "$T/fails" adapter.alpha=4
sweep 4 "a model that is not there" 1 "$T/nomodel" --over model.path="$T/nowhere,$T/base" --set run.rounds=1
same "the next run is done" "$(column exit_code "$T/nomodel" | tr '\n' ' ')" "4 0 "

# ---- STOP ----
out=$T/stop
mkdir -p "$out/${runs[2]}"
touch "$out/STOP"
sweep 75 "STOP in the sweep's folder" 2 "$out" "${over[@]}"
says "no run began, and it says what to do" "$out.log" "4 of 4 runs are not finished; remove $out/STOP and run the same command again"
rm "$out/STOP"
touch "$out/${runs[2]}/STOP"
sweep 99 "STOP in a run's folder, --requeue-code 99" 2 "$out" "${over[@]}" --requeue-code 99
same "stops that run" "$(column exit_code "$out" | tr '\n' ' ')" "0 0 99 0 "
same "after a round" "$(column rounds "$out" | tr '\n' ' ')" "4 4 1 4 "
rm "$out/${runs[2]}/STOP"
sweep 0 "run again on 3 ranks" 3 "$out" "${over[@]}"
check "the stopped run went on" grep -q '^resumed   round 1 ' "$out/${runs[2]}/log.txt"
same "the others are not repeated" "$(grep -c 'was done already' "$out.log")" 3
as_alone "after STOP" "$out" "${runs[@]}"
summary_is_right "after STOP" "$out" "${runs[@]}"

# has_rounds OUT N: every run of ${long[@]} has N rounds
has_rounds() {
    local run
    for run in "${long[@]}"; do
        grep -qs "^$2," "$1/$run/rounds.csv" || return 1
    done
}

# interrupted NAME RANKS COMMAND: three long runs in groups of their own; the command stops all of them
interrupted() {
    local name=$1 out=$T/interrupted-$1 last
    long=(run.seed=1 run.seed=2 run.seed=3)
    mpirun -n "$2" "$FEDLORA" sweep "$deck" --over run.seed=1..3 --set run.rounds=100000 --set eval.every=0 --out "$out" >"$out.log" 2>&1 </dev/null &
    job=$!
    await 60 has_rounds "$out" 1 || not_ok "$name: rounds come" "$(tail "$out.log")"
    "$3" "$out"
    ended 60
    same "$name: exit code" "$code" 75
    same "$name: all runs have stopped" "$(grep -c '^run ./3 .* stopped after round ' "$out.log")" 3
    rm -f "$out/STOP"
    last=$(column rounds "$out" | sort -n | tail -n 1)
    sweep 0 "$name: resumed" 2 "$out" --over run.seed=1..3 --set run.rounds=$((last + 1)) --set eval.every=0
    alone=$out-alone
    launch 1 "$alone-run.seed=2" "$deck" --set run.seed=2 --set run.rounds=$((last + 1)) --set eval.every=0 --set checkpoint.every=100000
    as_alone "$name" "$out" run.seed=2
}
stop_file() { touch "$1/STOP"; }
term_one_rank() { kill -TERM "$(ranks_of "$job" | tail -n 1)"; }
interrupted "STOP while they run" 3 stop_file
interrupted "TERM to one rank" 4 term_one_rank

# ---- a time limit: every job gets ahead ----
out=$T/maxh
for ((jobs = 1; jobs <= 12; jobs++)); do
    timeout -k 10 60 mpirun -n 2 "$FEDLORA" sweep "$deck" --over run.seed=1..3 --set run.rounds=2 --maxh 0.00001 --out "$out" >"$out.log" 2>&1 </dev/null
    code=$?
    [ "$code" -eq 75 ] || break
done
same "--maxh: job after job until all is done" "$code" 0
check "--maxh: not in one job" test "$jobs" -gt 1
alone=$out-alone
for seed in 1 2 3; do
    launch 2 "$alone-run.seed=$seed" "$deck" --set run.seed=$seed --set run.rounds=2
done
# the last round of a job is no evaluation, so that the rows are equal
as_alone "--maxh" "$out" run.seed=1 run.seed=2 run.seed=3

# ---- a wrong use begins nothing ----
sweep 2 "no --over" 2 "$T/wrong"
sweep 2 "a value twice" 2 "$T/wrong" --over run.seed=1,2,1
sweep 2 "the folder of a run" 1 "$T/wrong" --over run.out=a,b
sweep 2 "--resume with a file" 1 "$T/wrong" --over run.seed=1,2 --resume "$deck"
sweep 3 "wrong values" 2 "$T/wrong" --over method.name=flora,flroa --over train.lr=0.1,high
for mistake in "there is no method 'flroa'" "--set train.lr=high: 'high' is not a number" "3 of 4 decks are wrong, the first is that of method.name=flora train.lr=high"; do
    says "it says: $mistake" "$T/wrong.log" "$mistake"
done
sweep 0 "--dry-run" 3 "$T/wrong" --over run.seed=1..3 --over 'clients.r=[1,2],[2,4]' --set 'clients.r_share=[0.5,0.5]' --dry-run
says "it names the folders" "$T/wrong.log" "$T/wrong/run.seed=3+clients.r=2-4"
check "nothing was written" test ! -e "$T/wrong"

# ---- the deck of the tree ----
check "inputs/sweep/quick.yaml" run_fedlora 2 sweep inputs/sweep/quick.yaml --over method.name=fedavg,flora --set model.path="$T/base" \
    --set model.max_length=32 --set run.rounds=1 --out "$T/quick"
