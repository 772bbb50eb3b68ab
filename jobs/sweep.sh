#!/usr/bin/env bash
# sweep.sh - one run of methods x seeds, as task INDEX of a job array; seeds vary fastest. The runs are the folders of `fedlora sweep`, which
# run afterwards with the same --over and --out finds them finished and writes the table of all.
# usage: FEDLORA_RANKS=n [OUT=runs/sweep] jobs/sweep.sh INDEX "METHODS" "SEEDS" DECK [ARGUMENTS OF fedlora run...]
set -u
if [ $# -lt 4 ]; then
    echo "usage: FEDLORA_RANKS=n jobs/sweep.sh INDEX \"fedavg flora\" \"1 2 3\" DECK [--set section.key=value ...]" >&2
    exit 2
fi
index=$(($1 - 1))
read -ra methods <<<"$2"
read -ra seeds <<<"$3"
deck=$4
shift 4
if [ "$index" -ge $((${#methods[@]} * ${#seeds[@]})) ]; then
    echo "sweep: ${#methods[@]} methods x ${#seeds[@]} seeds end before task $((index + 1)); nothing to do"
    exit 0
fi
method=${methods[index / ${#seeds[@]}]}
seed=${seeds[index % ${#seeds[@]}]}
exec "$(dirname "$0")/launch.sh" run "$deck" "$@" --set "method.name=$method" --set "run.seed=$seed" \
    --out "${OUT:-runs/sweep}/method.name=$method+run.seed=$seed"
