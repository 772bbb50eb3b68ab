# slurm_long.sh - the long part of test_slurm.sh, read by it: limits that Slurm enforces, requeue by hand, srun, two nodes, one task of an array,
# chains of dependent jobs, killed ranks and shells, the file STOP.
# shellcheck shell=bash disable=SC2154

# ---- several nodes; srun in place of mpirun ----
two=(--nodes=2 --ntasks-per-node=2 --time=10)
if [ -z "$slurm_named" ]; then
    # two nodes of one name would share their shared memory
    export OMPI_MCA_btl=tcp,self
fi
requeued two-nodes jobs/slurm-several-nodes.sh "${two[@]}"
said "two-nodes: four ranks on two nodes, twice" "placement 4 rank(s) on 2 node(s)" 2
pmix=
srun --nodes=2 --ntasks=4 --mpi=pmix "$FEDLORA" --version >"$T/pmix.log" 2>&1 && grep -q '4 rank(s) on 2 node(s)' "$T/pmix.log" && pmix=1
if [ -n "$pmix" ]; then
    export FEDLORA_LAUNCH=srun
    requeued srun jobs/slurm-one-node.sh "${one[@]}"
    requeued srun-two-nodes jobs/slurm-several-nodes.sh "${two[@]}"
    said "srun-two-nodes: four ranks on two nodes, twice" "placement 4 rank(s) on 2 node(s)" 2
    unset FEDLORA_LAUNCH
else
    skip "srun --mpi=pmix" "ranks started by srun do not find each other: $(tail -n 1 "$T/pmix.log")"
fi

# ---- TERM to a running job that is requeued: by hand here, by preemption elsewhere ----
deck by-hand 100000
queue by-hand "${one[@]}" jobs/slurm-one-node.sh "$T/by-hand.yaml"
disturbed by-hand scontrol requeue "$id"
gate UP
settled by-hand
came_back "requeued while running"
as_undisturbed by-hand

# ---- the time limit: the run looks at the end that squeue tells it ----
deck limit 100000
queue limit --nodes=1 --ntasks-per-node=2 --time=1 --signal=B:CONT@1 jobs/slurm-one-node.sh "$T/limit.yaml"
disturbed limit await 120 nothing_runs
gate UP
settled limit
said "time limit: the run stopped before it" "would not fit into the time that is left" 1
came_back "time limit"
as_undisturbed limit

# ---- the time limit: Slurm signals the batch shell before it ----
deck warned 100000
queue warned --nodes=1 --ntasks-per-node=2 --time=2 --signal=B:USR1@90 jobs/slurm-one-node.sh "$T/warned.yaml"
disturbed warned await 120 nothing_runs
gate UP
settled warned
said "Slurm's warning: a signal came" "a signal came" 1
came_back "Slurm's warning"
as_undisturbed warned

# ---- the time limit in the middle of a round that is longer than the job ----
deck endless 3
sed -i 's/steps: 2/steps: 100000000/' "$T/endless.yaml"
queue endless --nodes=1 --ntasks-per-node=2 --time=1 --signal=B:CONT@1 jobs/slurm-one-node.sh "$T/endless.yaml"
await 180 over || not_ok "endless: Slurm ends it" "$(squeue)"
same "a round longer than the job: ended by Slurm, nothing queued, no rank left" \
    "$(field "$id" JobState) $(grep -c 'queued again by' "$log") $(strays)" "TIMEOUT 0 0"

# ---- one task of an array goes on, the other is not disturbed ----
for mode in requeue submit; do
    deck "array-$mode" 100000
    OUT=$T/array-$mode FEDLORA_CHAIN=$mode queue "array-$mode" "${one[@]}" --array=1-2 jobs/slurm-sweep.sh fedavg "1 2" "$T/array-$mode.yaml"
    task=("array-$mode/method.name=fedavg+run.seed=1" "array-$mode/method.name=fedavg+run.seed=2")
    at_work "${task[0]}"
    at_work "${task[1]}"
    gate DOWN
    scancel --batch --signal=USR1 "${id}_1"
    await 60 grep -q 'exit code 75' "$log" || not_ok "array, $mode: the task ends" "$(tail "$log")"
    sleep 2
    same "array, $mode: the other task runs on" "$(squeue -h -t R -o %i) $(grep -c 'exit code 75' "$log")" "${id}_2 1"
    scancel --batch --signal=USR1 "${id}_2"
    await 60 nothing_runs
    sleep 2
    same "array, $mode: then it waits too" "$(squeue -h -t PD -r -o %F_%K | wc -l) $(grep -c 'exit code 75' "$log")" "2 2"
    rounds=$(($(last_round "${task[0]}") + $(last_round "${task[1]}") + 1))
    deck "array-$mode" "$rounds"
    gate UP
    settled "array, $mode"
    for seed in 1 2; do
        launch 2 "$T/array-$mode-ref-$seed" "$T/array-$mode.yaml" --set method.name=fedavg --set run.seed=$seed
        same "array, $mode, task $seed: the same state" "$(state_of "$T/${task[seed - 1]}/log.txt")" "$(state_of "$T/array-$mode-ref-$seed.log")"
    done
done

# ---- a chain of dependent jobs, submitted at once ----
deck chain 100000
sed 's/--ntasks-per-node=32/--ntasks-per-node=2/' jobs/slurm-one-node.sh >"$T/slurm-two.sh"
export SBATCH_OUTPUT=$T/chain.job SBATCH_TIMELIMIT=10
jobs/chain.sh 3 "$T/slurm-two.sh" "$T/chain.yaml" >"$T/chain.ids"
unset SBATCH_OUTPUT SBATCH_TIMELIMIT
log=$T/chain.job
read -r -d '' -a ids <"$T/chain.ids"
disturbed chain scancel --batch --signal=USR1 "${ids[0]}"
gate UP
settled chain
same "chain: stopped, finished, found finished" "$(for x in "${ids[@]}"; do field "$x" JobState; done | tr '\n' ' ')" "FAILED COMPLETED COMPLETED "
said "chain: the third had nothing to do" "rounds are done already" 1
as_undisturbed chain

# ---- a killed rank ----
rank_of() {
    pgrep -f "$FEDLORA run $T/$1.yaml" | while read -r pid; do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != fedlora ] || echo "$pid"
    done | tail -n 1
}
kill_rank() {
    kill -9 "$(rank_of "$1")"
}
killed_rank() {
    deck "$1" 100000
    queue "$1" "${one[@]}" jobs/slurm-one-node.sh "$T/$1.yaml"
    disturbed "$1" kill_rank "$1"
    gate UP
    settled "$1"
    said "$1: it says that a rank died, and goes on" "a rank died; queued again by" 1
    came_back "$1"
    as_undisturbed "$1"
}
killed_rank killed
[ -z "$pmix" ] || FEDLORA_LAUNCH=srun killed_rank killed-srun

# ---- a killed batch shell leaves no ranks behind; submitted again the run goes on ----
kill_shell() {
    kill -9 "$(ps -o ppid= -p "$(ps -o ppid= -p "$(rank_of shell)")" | tr -d ' ')"
}
deck shell 100000
queue shell "${one[@]}" jobs/slurm-one-node.sh "$T/shell.yaml"
disturbed shell kill_shell
same "killed shell: the job failed, no rank is left" "$(field "$id" JobState) $(strays)" "FAILED 0"
queue shell "${one[@]}" jobs/slurm-one-node.sh "$T/shell.yaml"
gate UP
settled shell
as_undisturbed shell

# ---- the file STOP: ends the chain too ----
deck stop 100000
queue stop "${one[@]}" jobs/slurm-one-node.sh "$T/stop.yaml"
disturbed stop touch "$T/stop/STOP"
said "STOP: stopped, nothing queued" "there is a file $T/stop/STOP; remove it and submit again" 1
same "STOP: no job waits" "$(field "$id" ExitCode) $(squeue -h | wc -l)" "75:0 0"
rm "$T/stop/STOP"
queue stop "${one[@]}" jobs/slurm-one-node.sh "$T/stop.yaml"
gate UP
settled stop
as_undisturbed stop

# ---- a signal in a scaling series: the point that was cut off is measured again ----
deck series 30
OUT=$T/series queue series "${one[@]}" --array=2 jobs/slurm-scaling.sh weak "$T/series.yaml" --repeat 2
await 60 test -s "$T/series/ranks-2/scaling.csv" || not_ok "series: the first repeat comes" "$(tail "$log")"
scancel --batch --signal=USR1 "${id}_2"
await 60 nothing_runs
sleep 2
settled series
said "series: stopped and went on" "exit code 75" 1
same "series: both repeats are in the table" "$(cut -d, -f1-3 "$T/series/scaling.csv" | tr '\n' ' ')" "mode,ranks,repeat weak,2,1 weak,2,2 "
