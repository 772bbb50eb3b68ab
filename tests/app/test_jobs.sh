#!/usr/bin/env bash
# test_jobs.sh - jobs/one-node.sh against an mpirun that only records: the arguments, which signals arrive, the exit codes.
. "$(dirname "$0")/../lib.sh"

# mpirun: writes its arguments, then ends with $CODE, or (WAIT=1) waits for USR1 and ends with 75
mkdir "$T/bin"
cat >"$T/bin/mpirun" <<'EOF'
#!/usr/bin/env bash
echo "$*" >"$SEEN/arguments"
if [ -n "${WAIT:-}" ]; then
    signals=0
    trap 'signals=$((signals + 1)); echo $signals >"$SEEN/usr1"' USR1
    trap 'echo TERM >"$SEEN/term"' TERM INT
    touch "$SEEN/ready"
    while [ "$signals" -lt "$WAIT" ]; do
        sleep 0.05
    done
    exit 75
fi
exit "${CODE:-0}"
EOF
chmod +x "$T/bin/mpirun"
export SEEN=$T FEDLORA=/bin/true
PATH=$T/bin:$PATH

# await FILE: up to ten seconds
await() {
    local i
    for ((i = 0; i < 200; i++)); do
        [ ! -e "$1" ] || return 0
        sleep 0.05
    done
    return 1
}

# stopped SIGNAL COUNT: sends it that often to the script, one after the other; prints the exit code
stopped() {
    local job i code
    rm -f "$T"/ready "$T"/usr1 "$T"/term
    WAIT=$2 jobs/one-node.sh 2 deck.yaml >"$T/out" 2>&1 &
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

check_exit 0 "one-node: success" jobs/one-node.sh 3 deck.yaml --set run.rounds=5
same "one-node: arguments of mpirun" "$(cat "$T/arguments")" "-n 3 /bin/true run deck.yaml --set run.rounds=5 --resume auto"
for code in 3 75 137; do
    check_exit "$code" "one-node: exit code $code comes through" env CODE="$code" jobs/one-node.sh 1 deck.yaml
done
check_exit 2 "one-node: usage" jobs/one-node.sh 4
for signal in USR1 TERM; do
    same "one-node: $signal becomes one USR1, exit code 75" "$(stopped "$signal" 1)/$(cat "$T/usr1")" 75/1
    check "one-node: $signal itself does not reach mpirun" test ! -e "$T/term"
done
same "one-node: a second signal is handed on" "$(stopped USR1 2)/$(cat "$T/usr1")" 75/2
FEDLORA_AGAIN="touch $T/again" CODE=75 jobs/one-node.sh 1 deck.yaml >/dev/null
check "one-node: 75 runs the command given" test -e "$T/again"

export PBS_O_WORKDIR=$PWD LS_SUBCWD=$PWD SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=1 SLURM_NTASKS_PER_NODE=6 LSB_DJOB_NUMPROC=7
printf '#!/usr/bin/env bash\necho 2030-01-02T03:04:05\n' >"$T/bin/squeue"
chmod +x "$T/bin/squeue"
DECK=d.yaml ARGS="--set a.b=1" jobs/pbs-one-node.sh >/dev/null
same "pbs: arguments" "$(cat "$T/arguments")" "-n 32 /bin/true run d.yaml --maxh 4 --set a.b=1 --resume auto"
DECK=d.yaml jobs/lsf-one-node.sh >/dev/null
same "lsf: arguments" "$(cat "$T/arguments")" "-n 7 /bin/true run d.yaml --maxh 4 --resume auto"
jobs/slurm-one-node.sh d.yaml --set a.b=1 >/dev/null
same "slurm: arguments" "$(cat "$T/arguments")" "-n 6 /bin/true run d.yaml --set a.b=1 --resume auto"
