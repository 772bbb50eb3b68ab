#!/usr/bin/env bash
# one-node.sh - runs a deck on the ranks of this machine, with or without a scheduler; launch.sh says what signals and codes do.
# usage: jobs/one-node.sh RANKS DECK [ARGUMENTS OF fedlora run...]
set -u
if [ $# -lt 2 ]; then
    echo "usage: jobs/one-node.sh RANKS DECK [--set section.key=value ...]" >&2
    exit 2
fi
export FEDLORA_RANKS=$1
shift
exec "$(dirname "$0")/launch.sh" run "$@"
