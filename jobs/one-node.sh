#!/usr/bin/env bash
# one-node.sh - runs a deck on the ranks of one node and stops it in good time: TERM, INT or USR1 to this script become USR1 to
# mpirun, which hands it to all ranks (TERM would make mpirun kill them); the round is finished, a checkpoint written, exit 75.
# Submitting again goes on from there. The exit code is fedlora's. The scheduler scripts beside it end in this one.
# usage: jobs/one-node.sh RANKS DECK [ARGUMENTS OF fedlora run...]
#   FEDLORA         the program (default: build/fedlora of this tree, else the one in PATH)
#   FEDLORA_AGAIN   a command to run when the code is 75, such as one that puts the job into the queue again
set -u
if [ $# -lt 2 ]; then
    echo "usage: jobs/one-node.sh RANKS DECK [--set section.key=value ...]" >&2
    exit 2
fi
ranks=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
fedlora=${FEDLORA:-$here/../build/fedlora}
if [ ! -x "$fedlora" ]; then
    fedlora=fedlora
fi
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
if [ "$(id -u)" -eq 0 ]; then
    # in a container everybody is root
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

pid=
caught=0
asked=0
# shellcheck disable=SC2317
stop() {
    caught=1
    asked=$((asked + 1))
    # the second signal means: at the next step. mpirun is in a process group of its own, so nothing reaches it twice
    [ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null
}
trap stop TERM INT USR1
set -m
mpirun -n "$ranks" "$fedlora" run "$@" --resume auto </dev/null &
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
case $code in
0) echo "one-node: finished" ;;
75)
    echo "one-node: stopped with a checkpoint; submit again to go on"
    # a command line, split at blanks
    # shellcheck disable=SC2086
    [ -z "${FEDLORA_AGAIN:-}" ] || $FEDLORA_AGAIN
    ;;
*) echo "one-node: exit code $code" ;;
esac
exit "$code"
