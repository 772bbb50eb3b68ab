# system.sh - what the tests of the whole program share, on top of lib.sh: a small base model, small decks, runs and their comparison.
# A run takes well under a second, so that a test can afford many.
# shellcheck shell=bash
# shellcheck disable=SC2034
LONG=${FEDLORA_LONG:-}

# make_base DIR [--set ...]: a small base model, by one step of training
make_base() {
    local dir=$1
    shift
    if ! "$FEDLORA" pretrain inputs/quickstart.yaml --set train.steps=1 --set train.batch=4 --set data.sequences=50 --set pretrain.width=32 \
        "$@" -o "$dir" >"$T/pretrain.log" 2>&1; then
        not_ok "pretrain makes a base model" "$(tail -n 20 "$T/pretrain.log")"
        exit 1
    fi
}

# small_deck FILE METHOD BASE: few clients, few steps, some uploads lost, dropout
small_deck() {
    cat >"$1" <<DECK
run:       {name: small, seed: 7, rounds: 4}
model:     {path: $3, max_length: 32}
adapter:   {r: 4, alpha: 8, targets: [q, v, up], dropout: 0.1}
data:      {source: synthetic, sequences: 160, length: 32}
partition: {kind: dirichlet, clients: 8, alpha: 0.5}
clients:   {lost: 0.2}
cohort:    {size: 5}
train:     {steps: 2, batch: 4, lr: 1.0e-2}
method:    {name: $2}
eval:      {every: 2, max_samples: 20}
DECK
}

# make_dataset KIND FILE: an HDF5 data set, see app/dataset.c; false when there is no compiler to build its writer
make_dataset() {
    if [ ! -x "$T/dataset" ]; then
        # shellcheck disable=SC2046
        "${CC:-mpicc}" -std=c11 -o "$T/dataset" tests/app/dataset.c $(jobs/install/flags.sh cflags) $(jobs/install/flags.sh libs) \
            >"$T/dataset.log" 2>&1 || return 1
    fi
    "$T/dataset" "$1" "$2"
}

# fedlora RANKS ARGS...: with a limit on its time, without which a hang would end the whole test
fedlora() {
    local ranks=$1
    shift
    if [ "$ranks" -eq 1 ]; then
        timeout -k 10 120 "$FEDLORA" "$@" </dev/null
    else
        timeout -k 10 120 mpirun -n "$ranks" "$FEDLORA" "$@" </dev/null
    fi
}

# launch RANKS OUT ARGS...: fedlora run ARGS --out OUT; what it printed is in OUT.log, the exit code comes back
launch() {
    local ranks=$1 out=$2
    shift 2
    fedlora "$ranks" run "$@" --out "$out" >"$out.log" 2>&1
}

# expect CODE NAME RANKS OUT ARGS...: launch, and ok when it ends with exactly that code
expect() {
    local want=$1 name=$2 code=0
    shift 2
    launch "$@" || code=$?
    if [ "$code" -eq "$want" ]; then
        ok "$name"
    else
        not_ok "$name" "exit code $code, not $want: ${*:3}"$'\n'"$(tail -n 20 "$2.log")"
    fi
}

# refuse CODE NAME FRAGMENT ARGS...: `fedlora ARGS` on one rank and on three, at the same time, ends with that code and one sentence that has
# the fragment; @ in ARGS stands for the number of ranks
refuse() {
    local want=$1 name=$2 fragment=$3 ranks code log pid=()
    shift 3
    for ranks in 1 3; do
        fedlora "$ranks" "${@//@/$ranks}" >"$T/refuse-$ranks.log" 2>&1 &
        pid[ranks]=$!
    done
    for ranks in 1 3; do
        log=$T/refuse-$ranks.log code=0
        wait "${pid[ranks]}" || code=$?
        if [ "$code" -eq "$want" ] && [ "$(grep -c '^fedlora: ' "$log")" -eq 1 ] && [ "$(grep -cF -- "$fragment" "$log")" -eq 1 ]; then
            ok "$name, $ranks rank(s)"
        else
            not_ok "$name, $ranks rank(s)" "exit code $code, not $want, and once: $fragment"$'\n'"$(tail -n 20 "$log")"
        fi
    done
}

# says NAME FILE FRAGMENT: ok when the text is in the file, on exactly one line
says() {
    local n
    n=$(grep -cF -- "$3" "$2")
    if [ "$n" -eq 1 ]; then
        ok "$1"
    else
        not_ok "$1" "on $n lines of: $3"$'\n'"$(tail -n 20 "$2")"
    fi
}

# prints NAME FRAGMENT: ok when the command of the last check printed it
prints() {
    if grep -qF -- "$2" "$T/.check"; then
        ok "$1"
    else
        not_ok "$1" "no line with: $2"$'\n'"$(tail -n 20 "$T/.check")"
    fi
}

# rows OUT: rounds.csv without the times
rows() {
    awk -F, -v OFS=, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "wall_s") at = i } { $at = ""; print }' "$1/rounds.csv"
}

# await SECONDS COMMAND...: until the command succeeds; fails when it never did
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

# started RANKS OUT ARGS...: launch in the background, without the timeout in between; sets job to the process id
started() {
    local ranks=$1 out=$2
    shift 2
    mpirun -n "$ranks" "$FEDLORA" run "$@" --out "$out" >"$out.log" 2>&1 </dev/null &
    job=$!
}

# ended SECONDS: waits for job and sets code to its exit code; one that hangs is killed and gives 124
ended() {
    code=0
    if await "$1" gone "$job"; then
        wait "$job" || code=$?
    else
        kill -9 "$job"
        wait "$job"
        code=124
    fi
}

gone() {
    case $(ps -o stat= -p "$1") in '' | Z*) return 0 ;; esac
    return 1
}

# ranks_of PID: the processes of the program that mpirun started
ranks_of() {
    pgrep -P "$1" -x fedlora
}
