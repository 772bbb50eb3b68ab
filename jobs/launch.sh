#!/usr/bin/env bash
# launch.sh - starts `fedlora COMMAND ...` on many ranks, ends it in good time, and has it started again when there is more to do.
# Every job script ends in this one (by exec, because schedulers signal the script's process).
#   signals   TERM, INT or USR1 to this script become USR1 to mpirun or srun, which hand it to all ranks (TERM would make mpirun kill
#             them): the round is finished, a checkpoint written, exit code 75. A second signal does not wait for the round.
#   code      fedlora's own
#   again     after 75 (no time left) and after the death of a rank FEDLORA_AGAIN is run, such as a command that puts the job into
#             the queue again; the newest checkpoint goes on. Not after TERM or INT (somebody wanted an end), not with a file STOP
#             in the output folder, and not after three jobs in a row that got no further.
# usage: [VARIABLES] jobs/launch.sh run|sweep|scale DECK [ARGUMENTS...]
#   FEDLORA_RANKS      how many ranks (1)
#   FEDLORA_LAUNCH     what starts them (mpirun), with its options
#   FEDLORA_AGAIN      a command line for the shell, run when the job should go on later
#   FEDLORA_AFTER      a command line for the shell, run after exit code 0
#   FEDLORA_CHAIN_MAX  so many jobs for one output folder at most (100)
#   FEDLORA            the program (default: build/fedlora of this tree, bin/fedlora of the installed one, else the one in PATH)
set -u
if [ $# -lt 2 ]; then
    echo "usage: [FEDLORA_RANKS=n] jobs/launch.sh run|sweep|scale DECK [ARGUMENTS...]" >&2
    exit 2
fi
command=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
fedlora=${FEDLORA:-}
for place in "$here/../build/fedlora" "$here/../../../bin/fedlora" fedlora; do
    [ -n "$fedlora" ] || ! command -v "$place" >/dev/null || fedlora=$place
done
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
if [ "$(id -u)" -eq 0 ]; then
    # in a container everybody is root
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# from_deck KEY: run.KEY as the deck has it, in a line or in a block
from_deck() {
    awk -v key="$1" '
        { sub(/(^|[ \t])#.*/, "") }
        /^[A-Za-z]/ { on = /^run:/; sub(/^run:/, " ") }
        on { text = text " " $0 }
        END {
            if (match(text, "[{, \t]" key ":[ \t]*[^,} \t]+")) {
                value = substr(text, RSTART + 1, RLENGTH - 1)
                sub(/^[a-z]+:[ \t]*/, "", value)
                gsub(/["\047]/, "", value)
                print value
            }
        }' "$deck" 2>/dev/null
}

# out_folder ARGUMENTS: where the results go, as the program finds it: --out, else run.out, else runs/ and run.name
out_folder() {
    local deck=$1 before='' word out='' set='' name=''
    for word; do
        case $before in
        --out | -o) out=$word ;;
        --set | -s)
            case $word in
            run.out=*) set=${word#run.out=} ;;
            run.name=*) name=${word#run.name=} ;;
            esac
            ;;
        esac
        before=$word
    done
    [ -n "$out" ] || out=$set
    [ -n "$out" ] || out=$(from_deck out)
    [ -n "$name" ] || name=$(from_deck name)
    [ -n "$out" ] || out=runs/${name:-run}
    echo "$out"
}

# the folder's file .chain: how many jobs it saw, how many in a row got no further; its own time is the start of this job
out=$(out_folder "$@")
jobs=0 idle=0
if [ -n "${FEDLORA_AGAIN:-}" ] && mkdir -p "$out" 2>/dev/null; then
    [ ! -r "$out/.chain" ] || read -r jobs idle <"$out/.chain"
    jobs=$((${jobs:-0} + 1)) idle=${idle:-0}
    echo "$jobs $idle" >"$out/.chain"
fi

# got_further: has this job written a checkpoint, or a row of a scaling study?
got_further() {
    [ -e "$out/.chain" ] && [ -n "$(find "$out" \( -name 'round-*.h5' -o -name scaling.csv \) -newer "$out/.chain" -print 2>/dev/null | head -n 1)" ]
}

pid=
caught=0
asked=0
ended_by=
# shellcheck disable=SC2317
stop() {
    caught=1
    asked=$((asked + 1))
    [ "$1" = USR1 ] || ended_by=$1
    # the second signal means: at the next step. mpirun is in a process group of its own, so nothing reaches it twice
    [ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null
}
trap 'stop TERM' TERM
trap 'stop INT' INT
trap 'stop USR1' USR1
# a killed script must not leave ranks behind
leash=()
if setpriv --pdeathsig TERM true 2>/dev/null; then
    leash=(setpriv --pdeathsig TERM)
fi
resume=()
[ "$command" != run ] || resume=(--resume auto)
set -m
# the launcher is a command with options
# shellcheck disable=SC2086
${leash[@]+"${leash[@]}"} ${FEDLORA_LAUNCH:-mpirun} -n "${FEDLORA_RANKS:-1}" "$fedlora" "$command" "$@" \
    ${resume[@]+"${resume[@]}"} </dev/null &
pid=$!
set +m
# a signal that came before mpirun was there must not be lost
[ "$asked" -eq 0 ] || kill -USR1 "$pid" 2>/dev/null
# wait ends early when a signal is caught; mpirun's own code is the last one before there is nothing left to wait for
code=127
while :; do
    caught=0
    wait "$pid"
    now=$?
    if [ "$now" -eq 127 ] && [ "$code" -ne 127 ]; then
        break
    fi
    code=$now
    [ "$caught" -eq 1 ] || break
done

# why_not: why the job should not go on by itself; nothing if it should
why_not() {
    if [ -n "$ended_by" ]; then
        echo "the job was ended by a signal $ended_by"
    elif [ -e "$out/STOP" ]; then
        echo "there is a file $out/STOP; remove it and submit again"
    elif [ "$idle" -ge 3 ]; then
        echo "three jobs in a row got no further; more time for a job, or smaller rounds"
    elif [ "$jobs" -ge "${FEDLORA_CHAIN_MAX:-100}" ]; then
        echo "this was job $jobs for $out (FEDLORA_CHAIN_MAX)"
    elif [ -z "${FEDLORA_AGAIN:-}" ]; then
        echo "submit again to go on"
    fi
}

case $code in
0)
    rm -f "$out/.chain"
    echo "launch: finished"
    if [ -n "${FEDLORA_AFTER:-}" ]; then
        eval "$FEDLORA_AFTER"
    fi
    exit 0
    ;;
75) what="stopped with a checkpoint" ;;
# mpirun's codes of a rank that died, and of a host that was lost (205); 143 and 137 also srun's
1 | 134 | 135 | 136 | 137 | 139 | 143 | 205) what="a rank died" ;;
*)
    echo "launch: exit code $code: read the message; nothing was queued"
    exit "$code"
    ;;
esac
idle=$((idle + 1))
if got_further; then
    idle=0
fi
[ ! -e "$out/.chain" ] || echo "$jobs $idle" >"$out/.chain"
why=$(why_not)
if [ -n "$why" ]; then
    echo "launch: exit code $code, $what; $why"
else
    echo "launch: exit code $code, $what; queued again by: $FEDLORA_AGAIN"
    eval "$FEDLORA_AGAIN" || echo "launch: that did not work; submit again by hand"
fi
exit "$code"
