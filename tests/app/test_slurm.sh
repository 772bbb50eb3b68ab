#!/usr/bin/env bash
# test_slurm.sh - the Slurm scripts of jobs/ under a real Slurm: slurmctld, munged and two nodes of two cores each, all on this machine. Jobs are
# signalled, requeued, cancelled, and submit themselves again; the end is the `state` of the run that nobody disturbed.
# FEDLORA_LONG=1: also slurm_long.sh.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh
. tests/slurm.sh
slurm_end() {
    local code=$?
    slurm_stop
    (exit "$code")
    tap_end
}
trap slurm_end EXIT

if ! slurm_find || ! slurm_start 2 2; then
    skip "the Slurm scripts under a real Slurm" "$slurm_why"
    exit 0
fi
echo "# $(slurmctld -V), $(command -v slurmctld | sed "s|^$T/.*|unpacked for this test|")"
make_base "$T/base"
# what a user would change in the head of a script
one=(--nodes=1 --ntasks-per-node=2 --time=10)
export FEDLORA
unset FEDLORA_CHAIN FEDLORA_LAUNCH OUT

# deck NAME ROUNDS: the deck of a test; a job reads it when it starts
deck() {
    small_deck "$T/$1.yaml" flexlora "$T/base"
    sed -i "s/rounds: 4/rounds: $2, out: ${T//\//\\/}\/$1/" "$T/$1.yaml"
}

# field JOB NAME: of scontrol show job
field() {
    scontrol -o show job "$1" 2>/dev/null | head -n 1 | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1
}

# queue NAME SBATCH-ARGUMENTS...: submits; sets id, and log to the file that the job writes to
queue() {
    log=$T/$1.job
    shift
    id=$(sbatch --parsable --output="$log" "$@" 2>"$T/sbatch.log") || not_ok "sbatch $*" "$(cat "$T/sbatch.log")"
}

# gate UP|DOWN: no job starts while it is down
gate() {
    scontrol update PartitionName=all State="$1"
}

nothing_runs() {
    [ -z "$(squeue -h -t R,CG)" ]
}

# over: no job is left, queued or running. Slurm holds back a job that was requeued for about two minutes; not here
over() {
    local job reason
    while read -r job reason; do
        [ "$reason" != BeginTime ] || scontrol update JobId="$job" StartTime=now 2>/dev/null
    done < <(squeue -h -o '%i %r')
    [ -z "$(squeue -h)" ]
}

settled() {
    await 120 over || not_ok "$1: it ends" "$(squeue; tail -n 20 "$log")"
}

# at_work NAME: until its run is in the second round or later
at_work() {
    await 120 grep -qsE '^ +2 ' "$T/$1/log.txt" || not_ok "$1: rounds come" "$(squeue; tail -n 20 "$log")"
}

# last_round NAME: of the newest checkpoint
last_round() {
    local newest
    newest=$(find "$T/$1/checkpoints" -name 'round-*.h5' | sort | tail -n 1)
    newest=${newest##*round-}
    echo $((10#${newest%.h5}))
}

# disturbed NAME COMMAND...: when the run of the job is at work, the command; when it has ended, two more rounds are asked of whoever goes on
disturbed() {
    local name=$1
    shift
    at_work "$name"
    gate DOWN
    "$@"
    await 150 nothing_runs || not_ok "$name: the job ends" "$(squeue; tail -n 20 "$log")"
    # Slurm revokes the job's credential up to this second; started too early it fails
    sleep 3
    deck "$name" $(($(last_round "$name") + 2))
}

# came_back WHAT: the job was requeued once and completed
came_back() {
    local state
    state="$(field "$id" Restarts) $(field "$id" JobState)"
    if [ "$state" = "1 COMPLETED" ]; then
        ok "$1: requeued once by Slurm, then completed"
    else
        not_ok "$1: requeued once by Slurm, then completed" "$state"$'\n'"$(tail -n 20 "$log")"$'\n'"$(grep "JobId=$id\\b" "$T/slurm/log/slurmctld" | tail)"
    fi
}

# as_undisturbed NAME: against a run of as many rounds
as_undisturbed() {
    launch 2 "$T/$1-ref" "$T/$1.yaml" || not_ok "$1: the undisturbed run" "$(tail -n 20 "$T/$1-ref.log")"
    same "$1: the same state" "$(state_of "$T/$1/log.txt")" "$(state_of "$T/$1-ref.log")"
    same "$1: the same rounds.csv" "$(rows "$T/$1")" "$(rows "$T/$1-ref")"
}

# said NAME FRAGMENT COUNT: the job's output has it on so many lines
said() {
    same "$1" "$(grep -cF -- "$2" "$log")" "$3"
}

# strays: processes of the program that were left behind
strays() {
    pgrep -f "$FEDLORA run $T/" | wc -l
}

# requeued NAME SCRIPT SBATCH-ARGUMENTS...: a signal to the batch shell ends the round; the same job comes back and finishes
requeued() {
    local name=$1 script=$2
    shift 2
    deck "$name" 100000
    queue "$name" "$@" "$script" "$T/$name.yaml"
    disturbed "$name" scancel --batch --signal=USR1 "$id"
    gate UP
    settled "$name"
    said "$name: stopped with 75" "launch: exit code 75, stopped with a checkpoint; queued again by: scontrol requeue $id" 1
    came_back "$name"
    same "$name: it went on from a checkpoint" "$(grep -c '^resumed ' "$T/$name/log.txt")" 1
    as_undisturbed "$name"
}
requeued requeue jobs/slurm-one-node.sh "${one[@]}"

# ---- a site without requeue: the script submits itself ----
export FEDLORA_CHAIN=submit
deck submit 100000
queue submit "${one[@]}" jobs/slurm-one-node.sh "$T/submit.yaml"
unset FEDLORA_CHAIN
first=$id
disturbed submit scancel --batch --signal=USR1 "$id"
gate UP
settled submit
same "submit: 75 is the job's exit code" "$(field "$first" ExitCode)" 75:0
second=$(sed -n 's/^Submitted batch job \([0-9]*\).*/\1/p' "$log")
same "submit: another job like it finished the run" "$(for x in JobState TimeLimit NumTasks NumNodes JobName; do field "$second" $x; done | tr '\n' ' ')" \
    "COMPLETED 00:10:00 2 1 fedlora "
said "submit: into the same log" "launch: finished" 1
as_undisturbed submit

# ---- TERM: the user cancels; nothing comes back by itself; submitted again it goes on ----
deck cancel 100000
queue cancel "${one[@]}" jobs/slurm-one-node.sh "$T/cancel.yaml"
disturbed cancel scancel "$id"
same "cancel: nothing was queued, no rank is left" "$(field "$id" JobState) $(grep -c 'queued again by' "$log") $(strays)" "CANCELLED 0 0"
queue cancel "${one[@]}" jobs/slurm-one-node.sh "$T/cancel.yaml"
gate UP
settled cancel
as_undisturbed cancel

# ---- a sweep and a scaling series as job arrays, two tasks at a time on two nodes; a sweep as one job ----
small=("$T/cancel.yaml" --set run.rounds=2 --set 'run.out=""')
over_these=(--over 'method.name=fedavg,flora' --over 'run.seed=1,2')
OUT=$T/sweep queue sweep "${one[@]}" --array=1-5 jobs/slurm-sweep.sh "fedavg flora" "1 2" "${small[@]}"
settled sweep
said "sweep: a task beyond the end has nothing to do" "nothing to do" 1
OUT=$T/scaling queue scaling "${one[@]}" --array=1-3 jobs/slurm-scaling.sh strong "${small[@]}"
queue sweep-one "${one[@]}" jobs/slurm-sweep-one-job.sh "${small[@]}" "${over_these[@]}" --out "$T/sweep-one"
settled "scaling, sweep in one job"
cp "$log" "$T/sweep-one.log"
# states FOLDER: of every run of a sweep
states() {
    local folder
    for folder in "$1"/method*; do
        echo "${folder##*/} $("$FEDLORA" inspect "$folder/checkpoints/round-000002.h5" | sed -n 's/^state //p')"
    done
}
same "sweep: an array of jobs and one job end in the same folders and states" "$(states "$T/sweep")" "$(states "$T/sweep-one")"
same "sweep: four of them" "$(states "$T/sweep" | awk 'NF == 2' | sort -u | wc -l)" 4
fedlora 1 sweep "${small[@]}" "${over_these[@]}" --out "$T/sweep" >"$T/summary.log" 2>&1
same "sweep: the table afterwards has four runs" "$(tail -n +2 "$T/sweep/summary.csv" | wc -l)" 4
same "scaling: rows of 1 and 2 ranks in one table" "$(cut -d, -f1,2 "$T/scaling/scaling.csv" | tr '\n' ' ')" "mode,ranks strong,1 strong,2 "
same "scaling: one state" "$(tail -n +2 "$T/scaling/scaling.csv" | sed 's/.*,//' | sort -u | wc -l)" 1

if [ -n "$LONG" ]; then
    . tests/app/slurm_long.sh
else
    skip "limits that Slurm enforces, srun, several nodes, arrays that are requeued, killed ranks and shells" "long tests only"
fi
