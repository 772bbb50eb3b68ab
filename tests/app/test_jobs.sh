#!/usr/bin/env bash
# test_jobs.sh - the job scripts against commands that only record: mpirun, and those of Slurm, PBS and LSF. What is started, which signals arrive,
# what goes into the queue again and what does not. (test_slurm.sh is a real Slurm.)
. "$(dirname "$0")/../lib.sh"

# mpirun: writes its arguments and the end time, then ends with $CODE, or (WAIT=1) waits for USR1 and ends with 75; TOUCH is written on the way
mkdir "$T/bin"
cat >"$T/bin/mpirun" <<'SCRIPT'
#!/usr/bin/env bash
echo "$*" >"$SEEN/arguments"
echo "${FEDLORA_END_TIME:-}" >"$SEEN/end"
[ -z "${TOUCH:-}" ] || { mkdir -p "$(dirname "$TOUCH")" && echo new >"$TOUCH"; }
if [ -n "${WAIT:-}" ]; then
    signals=0
    trap 'signals=$((signals + 1)); echo $signals >"$SEEN/usr1"' USR1
    trap 'echo TERM >"$SEEN/term"; exit 1' TERM INT
    echo $$ >"$SEEN/ready"
    while [ "$signals" -lt "$WAIT" ]; do
        sleep 0.05
    done
    exit 75
fi
exit "${CODE:-0}"
SCRIPT
# the schedulers' commands write down how they were called, and what came on standard input
for name in sbatch scontrol qsub bsub brequeue; do
    cat >"$T/bin/$name" <<SCRIPT
#!/usr/bin/env bash
[ "\$1" != show ] || { printf 'JobId=5\n   StdOut=/logs/5.log\n   StdErr=/logs/5.log\n' && exit 0; }
echo "$name \$*\${KEPT:+ KEPT=\$KEPT}" >>"\$SEEN/calls"
[ ! -p /dev/stdin ] && [ ! -f /dev/stdin ] || grep -c BSUB /dev/stdin >>"\$SEEN/stdin"
[ "\$FAILS" != $name ] || exit 1
case $name in
sbatch) echo 77 ;;
qsub) echo 78.server ;;
bsub) echo "Job <79> is submitted to queue <normal>." ;;
esac
SCRIPT
done
chmod +x "$T"/bin/*
export SEEN=$T FEDLORA=/bin/true FAILS=
PATH=$T/bin:$PATH
unset FEDLORA_AGAIN FEDLORA_AFTER FEDLORA_CHAIN FEDLORA_CHAIN_MAX FEDLORA_JOBS FEDLORA_LAUNCH FEDLORA_RANKS FEDLORA_SHARE OUT DECK ARGS INDEX LD_LIBRARY_PATH OPENBLAS_CORETYPE

# await FILE: up to ten seconds
await() {
    local i
    for ((i = 0; i < 200; i++)); do
        [ ! -s "$1" ] || return 0
        sleep 0.05
    done
    return 1
}

# stopped SIGNAL COUNT: sends it that often to the script, one after the other; prints the exit code
stopped() {
    local job i code
    rm -f "$T"/ready "$T"/usr1 "$T"/term "$T"/again
    WAIT=$2 FEDLORA_AGAIN="touch $T/again" jobs/one-node.sh 2 deck.yaml --out "$T/stopped" >"$T/out" 2>&1 &
    job=$!
    await "$T/ready" || return 1
    for ((i = 1; i <= $2; i++)); do
        kill -"$1" "$job"
        while [ "$(cat "$T/usr1" 2>/dev/null || echo 0)" -lt "$i" ] && kill -0 "$job" 2>/dev/null; do
            sleep 0.05
        done
    done
    code=0
    wait "$job" || code=$?
    echo "$code"
}

arguments() {
    cat "$T/arguments"
}

# ---- launch.sh: what is started, what comes back ----
check_exit 0 "one-node: success" jobs/one-node.sh 3 deck.yaml --set run.rounds=5
same "one-node: arguments of mpirun" "$(arguments)" "-n 3 /bin/true run deck.yaml --set run.rounds=5 --resume auto"
for code in 3 75 137; do
    check_exit "$code" "one-node: exit code $code comes through" env CODE="$code" jobs/one-node.sh 1 deck.yaml
done
check_exit 2 "one-node: usage" jobs/one-node.sh 4
check_exit 2 "launch: usage" jobs/launch.sh run
check_exit 0 "launch: a sweep" env FEDLORA_RANKS=4 FEDLORA_LAUNCH="mpirun --map-by slot" jobs/launch.sh sweep d.yaml --over run.seed=1..3
same "launch: options of the launcher, no --resume for other commands" "$(arguments)" "--map-by slot -n 4 /bin/true sweep d.yaml --over run.seed=1..3"
for signal in USR1 TERM; do
    same "one-node: $signal becomes one USR1, exit code 75" "$(stopped "$signal" 1)/$(cat "$T/usr1")" 75/1
    check "one-node: $signal itself does not reach mpirun" test ! -e "$T/term"
    case $signal in
    USR1) check "after USR1 the job goes on later" test -e "$T/again" ;;
    TERM) check "after TERM it does not" test ! -e "$T/again" ;;
    esac
done
same "one-node: a second signal is handed on" "$(stopped USR1 2)/$(cat "$T/usr1")" 75/2
if setpriv --pdeathsig TERM true 2>/dev/null; then
    rm -f "$T"/ready "$T"/term
    WAIT=1 jobs/one-node.sh 2 deck.yaml >"$T/out" 2>&1 &
    await "$T/ready"
    kill -9 $!
    wait $! 2>/dev/null
    check "a killed script takes mpirun with it" await "$T/term"
else
    skip "a killed script takes mpirun with it" "setpriv has no --pdeathsig"
fi
rm -rf "$T/place" && mkdir -p "$T/place/share/fedlora" "$T/place/bin"
cp -r jobs "$T/place/share/fedlora/jobs"
cp /bin/true "$T/place/bin/fedlora"
(unset FEDLORA && "$T/place/share/fedlora/jobs/one-node.sh" 1 d.yaml >/dev/null)
same "the installed scripts start the installed program" "$(sed 's/ run.*//' "$T/arguments")" "-n 1 $T/place/share/fedlora/jobs/../../../bin/fedlora"

# ---- launch.sh: again, or not ----
# again CODE ARGUMENTS...: "again" when the job was put into the queue once more
again() {
    local code=$1
    shift
    rm -f "$T/again"
    CODE=$code FEDLORA_AGAIN="touch $T/again" jobs/launch.sh run "$@" >"$T/out" 2>&1
    if [ -e "$T/again" ]; then
        echo again
    else
        echo not
    fi
}
for code in 75 1 137 205; do
    same "exit code $code: again" "$(again "$code" d.yaml --out "$T/o$code")" again
done
for code in 0 2 3 4 5 70 127; do
    same "exit code $code: not again" "$(again "$code" d.yaml --out "$T/o$code")" not
done
same "three jobs that get no further are enough" "$(for i in 1 2 3 4; do again 75 d.yaml --out "$T/idle"; done | tr '\n' ' ')" "again again not not "
check "it says so" grep -q "three jobs in a row got no further" "$T/out"
same "not when they write checkpoints" \
    "$(for i in 1 2 3 4 5; do sleep 0.02; TOUCH=$T/busy/checkpoints/round-00000$i.h5 again 1 d.yaml --out "$T/busy"; done | sort | uniq -c | tr -d ' \n')" 5again
same "nor rows of a scaling study" \
    "$(for i in 1 2 3 4 5; do sleep 0.02; TOUCH=$T/rows/scaling.csv again 75 d.yaml --out "$T/rows"; done | sort | uniq -c | tr -d ' \n')" 5again
same "a job that gets further counts from the start" \
    "$(for i in '' '' x '' '' ''; do sleep 0.02; TOUCH=${x:-}${i:+$T/mixed/checkpoints/round-000001.h5} again 75 d.yaml --out "$T/mixed"; done | tr '\n' ' ')" \
    "again again again again again not "
export FEDLORA_CHAIN_MAX=2
same "FEDLORA_CHAIN_MAX" "$(for i in 1 2 3; do sleep 0.02; TOUCH=$T/most/checkpoints/round-00000$i.h5 again 75 d.yaml --out "$T/most"; done | tr '\n' ' ')" "again not not "
unset FEDLORA_CHAIN_MAX
check "a finished run forgets how many jobs it took" test ! -e "$T/o0/.chain"
# where the results go, by which the file STOP is found
mkdir -p "$T/stop" "$T/work/runs/named" "$T/work/runs/other"
touch "$T/stop/STOP" "$T/work/runs/named/STOP" "$T/work/runs/other/STOP"
cd "$T/work" || exit 1
cp -r "$OLDPWD/jobs" .
printf 'run:  {name: x, rounds: 5, out: "%s"}   # out: elsewhere\nmodel: {path: y}\n' "$T/stop" >flow.yaml
printf 'model:\n  path: out\nrun:\n  seed: 1\n  # out: elsewhere\n  out: %s   # here\n  rounds: 5\ntrain: {steps: 1}\n' "$T/stop" >block.yaml
printf 'run: {name: named}\n' >named.yaml
same "STOP: the folder of --out" "$(again 75 flow.yaml --set run.out=zzz --out "$T/stop")" not
check "STOP: it says so" grep -q "there is a file $T/stop/STOP" "$T/out"
same "STOP: the folder of --set run.out" "$(again 75 named.yaml -s "run.out=$T/stop")" not
same "STOP: of the deck, in one line" "$(again 75 flow.yaml)" not
same "STOP: of the deck, in a block" "$(again 75 block.yaml)" not
same "STOP: runs/ and the name" "$(again 75 named.yaml)" not
mkdir -p runs/run && touch runs/run/STOP
same "STOP: runs/run, when nothing says more" "$(again 75 none.yaml)" not
rm -r runs/run
same "STOP: runs/ and the name of --set" "$(again 75 named.yaml --set run.name=other)" not
same "no STOP there" "$(again 75 named.yaml --set run.name=third)" again
cd - >/dev/null || exit 1

# ---- scaling.sh, sweep.sh, merge-csv.sh ----
points() {
    local i
    for ((i = 1; i <= 8; i++)); do
        rm -f "$T/arguments"
        FEDLORA_RANKS=$1 OUT=$T/points jobs/scaling.sh "$i" strong d.yaml >/dev/null
        [ ! -e "$T/arguments" ] || sed 's/-n \([0-9]*\).*/\1/' "$T/arguments"
    done | tr '\n' ' '
}
mkdir -p "$T/points"
same "scaling: the series on 48 ranks" "$(points 48)" "1 2 4 8 16 32 48 "
same "scaling: on 8 ranks" "$(points 8)" "1 2 4 8 "
same "scaling: on one" "$(points 1)" "1 "
FEDLORA_RANKS=4 OUT=$T/points jobs/scaling.sh 2 weak d.yaml --set a.b=1 >/dev/null
same "scaling: arguments" "$(arguments)" "-n 2 /bin/true scale d.yaml --set a.b=1 --mode weak --ranks 2 --out $T/points/ranks-2"
for i in 16 2 1; do
    mkdir -p "$T/points/ranks-$i"
    printf 'mode,ranks\nstrong,%d\n' "$i" >"$T/points/ranks-$i/scaling.csv"
done
jobs/merge-csv.sh "$T/points/scaling.csv"
same "merge: one header, by number" "$(tr '\n' ' ' <"$T/points/scaling.csv")" "mode,ranks strong,1 strong,2 strong,16 "
sweeps() {
    local i
    for i in 1 2 3 4 5 6 7; do
        OUT=$T/sweeps jobs/sweep.sh "$i" "a b" "1 2 3" d.yaml >/dev/null
        sed 's/.*+run.seed/seed/; s/ --resume.*//' "$T/arguments"
    done | tr '\n' ' '
}
same "sweep: seeds vary fastest, the seventh of six does nothing" "$(sweeps)" "seed=1 seed=2 seed=3 seed=1 seed=2 seed=3 seed=3 "
OUT=$T/sweeps jobs/sweep.sh 5 "a b" "1 2 3" d.yaml --set c.d=1 >/dev/null
same "sweep: arguments" "$(arguments)" \
    "-n 1 /bin/true run d.yaml --set c.d=1 --set method.name=b --set run.seed=2 --out $T/sweeps/method.name=b+run.seed=2 --resume auto"

# ---- the schedulers ---- in a copy: runs leave folders behind
cd "$T/work" || exit 1
# calls: what was called, once
calls() {
    cat "$T/calls" 2>/dev/null
    rm -f "$T/calls"
}
# ends_in SECONDS: the end time is so far away, give or take a minute
ends_in() {
    local left=$(($(cat "$T/end") - $(date +%s)))
    [ "$left" -le "$1" ] && [ "$left" -gt $(($1 - 60)) ]
}
in_one_hour=$(date -d '+1 hour' +%Y-%m-%dT%H:%M:%S)
cat >"$T/bin/squeue" <<SCRIPT
#!/usr/bin/env bash
case "\$*" in *%e*) echo $in_one_hour ;; *%l*) echo 4:00:00 ;; esac
SCRIPT
cat >"$T/bin/qstat" <<'SCRIPT'
#!/usr/bin/env bash
[ -z "$NO_ANSWER" ] || exit 1
printf 'Job Id: 12.server\n    Job_Name = fedlora\n    resources_used.walltime = 00:10:00\n    Resource_List.select = 2:ncpus=4:mpi\n\tprocs=4\n    Resource_List.walltime = 02:00:00\n'
SCRIPT
cat >"$T/bin/bjobs" <<'SCRIPT'
#!/usr/bin/env bash
[ -z "$NO_ANSWER" ] || exit 1
case "$*" in
*-hms*) [ -n "$OLD_LSF" ] && exit 1 || echo 03:00:00 ;;
*) echo 90.0/hosta ;;
esac
SCRIPT
printf '#!/usr/bin/env bash\necho "mca:plm:${PLM:-rsh}:version"\n' >"$T/bin/ompi_info"
printf '#!/usr/bin/env bash\n' >"$T/bin/pbs_tmrsh"
chmod +x "$T"/bin/*
export NO_ANSWER='' OLD_LSF='' PLM=rsh
args=(d.yaml --set 'a.b=[1,2]')

# Slurm
export SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=5 SLURM_NTASKS=6 SLURM_NTASKS_PER_NODE=3 SLURM_JOB_NUM_NODES=2 SLURM_JOB_NAME=fedlora SLURM_JOB_PARTITION=long SLURM_JOB_ACCOUNT=us
jobs/slurm-one-node.sh "${args[@]}" >/dev/null
same "slurm: arguments" "$(arguments)" "-n 6 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
check "slurm: the end as squeue says it" ends_in 3600
export CODE=75 ARGUMENTS=''
out=(--out "$T/again-slurm")
jobs/slurm-several-nodes.sh "${args[@]}" "${out[@]}" >/dev/null
same "slurm: 75 requeues" "$(calls)" "scontrol requeue 5"
jobs/slurm-one-node.sh "${args[@]}" "${out[@]}" >/dev/null
FAILS=scontrol
calls >/dev/null
rm -rf "$T/again-slurm"
resubmitted="sbatch --dependency=afterany:5 --job-name=fedlora --nodes=2 --ntasks=6 --time=4:00:00 --ntasks-per-node=3 --partition=long --account=us --output=/logs/5.log"
jobs/slurm-one-node.sh "${args[@]}" "${out[@]}" >/dev/null
same "slurm: where requeue is not allowed it submits" "$(calls | tr '\n' ';')" "scontrol requeue 5;$resubmitted jobs/slurm-one-node.sh ${args[*]} ${out[*]};"
FAILS=
FEDLORA_CHAIN=submit jobs/slurm-sweep-one-job.sh d.yaml --over 'run.seed=1, 2' "${out[@]}" >/dev/null
same "slurm: submits when told to" "$(calls)" "$resubmitted jobs/slurm-sweep-one-job.sh d.yaml --over run.seed=1, 2 ${out[*]}"
same "slurm: a sweep in one job" "$(arguments)" "-n 6 /bin/true sweep d.yaml --over run.seed=1, 2 ${out[*]}"
rm -rf "$T/again-slurm"
FEDLORA_CHAIN=none jobs/slurm-one-node.sh "${args[@]}" "${out[@]}" >/dev/null
same "slurm: FEDLORA_CHAIN=none" "[$(calls)]" "[]"
export SLURM_ARRAY_JOB_ID=4 SLURM_ARRAY_TASK_ID=3 OUT=$T/array-slurm
jobs/slurm-sweep.sh "a b" "1 2" d.yaml >/dev/null
same "slurm: a task of an array requeues itself only" "$(calls)" "scontrol requeue 4_3"
same "slurm: its run" "$(sed 's/.*--set method/method/; s/--out.*//' "$T/arguments")" "method.name=b --set run.seed=1 "
FEDLORA_CHAIN=submit jobs/slurm-scaling.sh weak d.yaml >/dev/null
same "slurm: a task of an array submits itself only" "$(calls | grep -o -- '--array=.*')" \
    "--array=3 --ntasks-per-node=3 --partition=long --account=us --output=/logs/5.log jobs/slurm-scaling.sh weak d.yaml"
unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID OUT
CODE=0 SLURM_CPUS_PER_TASK=4 jobs/slurm-one-node.sh d.yaml >/dev/null
same "slurm: cores per rank" "$(arguments)" "--map-by slot:PE=4 --bind-to core -n 6 /bin/true run d.yaml --resume auto"
cp "$T/bin/mpirun" "$T/bin/srun"
CODE=0 FEDLORA_LAUNCH=srun jobs/slurm-one-node.sh d.yaml >/dev/null
same "slurm: srun" "$(arguments)" "--mpi=pmix --cpus-per-task=1 -n 6 /bin/true run d.yaml --resume auto"
calls >/dev/null
jobs/chain.sh 3 jobs/slurm-one-node.sh "${args[@]}" >/dev/null
same "chain: slurm" "$(calls | tr '\n' ';')" "sbatch --parsable jobs/slurm-one-node.sh ${args[*]};sbatch --parsable --dependency=afterany:77 jobs/slurm-one-node.sh ${args[*]};sbatch --parsable --dependency=afterany:77 jobs/slurm-one-node.sh ${args[*]};"

# PBS
export PBS_O_WORKDIR=$PWD PBS_JOBID=12.server PBS_NODEFILE=$T/nodes PBS_QUEUE=workq PBS_JOBNAME=fedlora
printf 'a\na\na\na\n' >"$PBS_NODEFILE"
export DECK=d.yaml ARGS='--set a.b=[1,2]'
CODE=0 jobs/pbs-one-node.sh >/dev/null
same "pbs: arguments" "$(arguments)" "-n 4 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
check "pbs: two hours without the ten minutes used" ends_in 6600
CODE=0 NO_ANSWER=1 jobs/pbs-one-node.sh >/dev/null
check "pbs: the limit in the script when qstat does not say" ends_in 14400
ARGS="--out $T/again-pbs" jobs/pbs-one-node.sh >/dev/null
resubmitted='qsub -W depend=afterany:12.server'
limits='-q workq -l select=2:ncpus=4:mpiprocs=4 -l walltime=02:00:00'
same "pbs: 75 submits again" "$(calls)" "$resubmitted -v FEDLORA_CHAIN,FEDLORA,DECK,ARGS $limits jobs/pbs-one-node.sh"
FEDLORA_CHAIN=none ARGS="--out $T/again-pbs" jobs/pbs-one-node.sh >/dev/null
same "pbs: FEDLORA_CHAIN=none" "[$(calls)]" "[]"
printf 'a\na\nb\nb\n' >"$PBS_NODEFILE"
CODE=0 OPENBLAS_CORETYPE=Haswell jobs/pbs-several-nodes.sh >/dev/null
same "pbs: several nodes, an Open MPI without PBS" "$(arguments)" \
    "--hostfile $PBS_NODEFILE -x PATH -x OPENBLAS_CORETYPE --mca plm_rsh_agent pbs_tmrsh -n 4 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
CODE=0 PLM=tm jobs/pbs-several-nodes.sh >/dev/null
same "pbs: several nodes, one with it" "$(arguments)" "-n 4 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
PBS_ARRAY_INDEX=2 METHODS="a b" SEEDS="1 2" OUT=$T/array-pbs ARGS='' PLM=tm jobs/pbs-sweep.sh >/dev/null
same "pbs: a task of a sweep" "$(arguments)" "-n 4 /bin/true run d.yaml --set method.name=a --set run.seed=2 --out $T/array-pbs/method.name=a+run.seed=2 --resume auto"
same "pbs: it goes on as a job of its own" "$(calls)" \
    "$resubmitted -v FEDLORA_CHAIN,FEDLORA,INDEX,METHODS,SEEDS,DECK,OUT $limits -C  -N fedlora -j oe jobs/pbs-sweep.sh"
INDEX=2 METHODS="a b" SEEDS="1 2" OUT=$T/array-pbs ARGS='' PLM=tm jobs/pbs-sweep.sh >/dev/null
same "pbs: which knows its number" "$(arguments | grep -o 'a+run.seed=2')" "a+run.seed=2"
calls >/dev/null
PBS_ARRAY_INDEX=2 MODE=weak OUT=$T/scaling-pbs ARGS="--repeat 2" PLM=tm jobs/pbs-scaling.sh >/dev/null
same "pbs: a task of a scaling series" "$(arguments)" "-n 2 /bin/true scale d.yaml --repeat 2 --mode weak --ranks 2 --out $T/scaling-pbs/ranks-2"
CODE=0 ARGS="--over run.seed=1..4 --out $T/x" PLM=tm jobs/pbs-sweep-one-job.sh >/dev/null
same "pbs: a sweep in one job" "$(arguments)" "-n 4 /bin/true sweep d.yaml --over run.seed=1..4 --out $T/x"
calls >/dev/null
jobs/chain.sh 2 jobs/pbs-one-node.sh >/dev/null
same "chain: pbs" "$(calls | tr '\n' ';')" "qsub -V jobs/pbs-one-node.sh;qsub -W depend=afterany:78.server -V jobs/pbs-one-node.sh;"

# LSF
export LS_SUBCWD=$PWD LSB_JOBID=9 LSB_JOBINDEX=0 LSB_JOBNAME=fedlora LSB_QUEUE=normal LSB_DJOB_NUMPROC=7 LSB_DJOB_HOSTFILE=$T/hosts
printf 'a\na\n' >"$LSB_DJOB_HOSTFILE"
CODE=0 jobs/lsf-one-node.sh >/dev/null
same "lsf: arguments" "$(arguments)" "-n 7 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
check "lsf: the limit as hours" ends_in 10800
CODE=0 OLD_LSF=1 jobs/lsf-one-node.sh >/dev/null
check "lsf: the limit as minutes" ends_in 5400
CODE=0 NO_ANSWER=1 jobs/lsf-one-node.sh >/dev/null
check "lsf: the limit in the script" ends_in 14400
ARGS="--out $T/again-lsf" jobs/lsf-one-node.sh >/dev/null
same "lsf: 75 requeues" "$(calls)" "brequeue 9"
rm -f "$T/stdin"
FAILS=brequeue ARGS="--out $T/again-lsf" jobs/lsf-one-node.sh >/dev/null
same "lsf: or submits" "$(calls | tr '\n' ';')$(cat "$T/stdin")" "brequeue 9;bsub -w ended(9) -J fedlora -q normal -n 7 -W 180;$(grep -c BSUB jobs/lsf-one-node.sh)"
printf 'a\nb\n' >"$LSB_DJOB_HOSTFILE"
CODE=0 jobs/lsf-several-nodes.sh >/dev/null
same "lsf: several nodes, an Open MPI without LSF" "$(arguments)" \
    "--hostfile $LSB_DJOB_HOSTFILE -x PATH --mca plm_rsh_agent blaunch -n 7 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
CODE=0 PLM=lsf jobs/lsf-several-nodes.sh >/dev/null
same "lsf: several nodes, one with it" "$(arguments)" "-n 7 /bin/true run d.yaml --set a.b=[1,2] --resume auto"
calls >/dev/null
export PLM=lsf
LSB_JOBINDEX=3 LSB_JOBNAME='fedlora-sweep[1-4]' METHODS="a b" SEEDS="1 2" OUT=$T/array-lsf ARGS='' jobs/lsf-sweep.sh >/dev/null
same "lsf: a task of a sweep" "$(arguments)" "-n 7 /bin/true run d.yaml --set method.name=b --set run.seed=1 --out $T/array-lsf/method.name=b+run.seed=1 --resume auto"
same "lsf: it requeues itself only" "$(calls)" "brequeue 9[3]"
FEDLORA_CHAIN=submit LSB_JOBINDEX=3 LSB_JOBNAME='fedlora-scaling[1-4]' KEPT=yes OUT=$T/scaling-lsf ARGS='' jobs/lsf-scaling.sh >/dev/null
same "lsf: a task of a scaling series" "$(arguments)" "-n 4 /bin/true scale d.yaml --mode strong --ranks 4 --out $T/scaling-lsf/ranks-4"
same "lsf: submits itself as a job of its own" "$(calls)" "bsub -w ended(9[3]) -J fedlora-scaling -q normal -n 7 -W 180 KEPT=yes"
CODE=0 ARGS="--over run.seed=1..4 --out $T/x" jobs/lsf-sweep-one-job.sh >/dev/null
same "lsf: a sweep in one job" "$(arguments)" "-n 7 /bin/true sweep d.yaml --over run.seed=1..4 --out $T/x"
calls >/dev/null
jobs/chain.sh 2 jobs/lsf-one-node.sh >/dev/null
same "chain: lsf" "$(calls | tr '\n' ';')" "bsub ;bsub -w ended(79);"
check_exit 2 "chain: usage" jobs/chain.sh many jobs/slurm-one-node.sh
check_exit 2 "chain: a script of no scheduler" jobs/chain.sh 2 jobs/one-node.sh

# every scheduler has every script, each with the directives of a first line that is a shell's
for name in one-node several-nodes scaling sweep sweep-one-job; do
    for scheduler in slurm:SBATCH pbs:PBS lsf:BSUB; do
        file=jobs/${scheduler%:*}-$name.sh
        check "$file: directives stand before the first command" awk -v mark="#${scheduler#*:} " '
            NR == 1 && $0 != "#!/usr/bin/env bash" { exit 1 }
            NR > 1 && !/^#/ { code = 1 }
            index($0, mark) == 1 { n++; if (code) exit 1 }
            END { if (n < 4) exit 1 }' "$file"
    done
done
