#!/usr/bin/env bash
# quickstart.sh - from nothing to a finished federation: makes a small base model (once), runs inputs/quickstart.yaml on two
# ranks (one on a machine with one core), shows the rounds. Run it again and it finds the finished run.
# usage: [B=build] jobs/quickstart.sh          normally by: make quickstart; it works at the top of the tree
#        PREFIX/share/fedlora/jobs/quickstart.sh   of an installed fedlora: it works in the current folder, models/ and runs/ are made there
#   PRETRAIN_ARGUMENTS, RUN_ARGUMENTS   more arguments of fedlora pretrain and fedlora run, such as "--set run.rounds=2"
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
export LC_ALL=C
if [ -f "$top/Makefile" ]; then
    cd "$top"
    B=${B:-build}
    case $B in /*) ;; *) B=$PWD/$B ;; esac
    fedlora=$B/fedlora
    inputs=inputs
else
    fedlora=$(cd "$top/../../bin" && pwd)/fedlora
    inputs=$top/inputs
fi
base=models/tiny
out=runs/quickstart
# a container's root may run mpirun; cores may be taken or few
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
ranks=2
if [ "$(nproc 2>/dev/null || echo 1)" -lt 2 ]; then
    ranks=1
fi

if [ -f "$base/config.json" ] && [ -f "$base/model.safetensors" ]; then
    echo "== base model: $base is there"
else
    echo "== base model: fedlora pretrain $inputs/pretrain-tiny.yaml"
    # a list of arguments, split at blanks
    # shellcheck disable=SC2086
    mpirun -n "$ranks" "$fedlora" pretrain "$inputs/pretrain-tiny.yaml" ${PRETRAIN_ARGUMENTS:-}
fi

echo
echo "== federation: mpirun -n $ranks fedlora run $inputs/quickstart.yaml"
finished=
[ ! -f "$out/adapter/adapter_config.json" ] || finished=1
# shellcheck disable=SC2086
mpirun -n "$ranks" "$fedlora" run "$inputs/quickstart.yaml" --out "$out" ${RUN_ARGUMENTS:-}

# a run just made has shown its rounds; one that was finished before has not
if [ -n "$finished" ]; then
    echo
    echo "== rounds (losses in nats per token; MB are what the clients' network would carry)"
    awk -F, '
        NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i
                  printf "%5s %11s %11s %9s %9s %12s\n", "round", "train loss", "eval loss", "up MB", "down MB", "discordance"; next }
        function show(name, form) { return $at[name] == "" ? "-" : sprintf(form, $at[name]) }
        { printf "%5s %11s %11s %9.3f %9.3f %12s\n", $at["round"], show("train_loss", "%.4f"), show("eval_loss", "%.4f"),
            $at["up_bytes"] / 1e6, $at["down_bytes"] / 1e6, show("discordance", "%.2e") }
    ' "$out/rounds.csv"
fi

cat <<EOF

== results in $out
   rounds.csv, metrics.h5    the table above and more
   adapter/                  the server's adapter, a PEFT folder
   checkpoints/              resume with more rounds: fedlora run $inputs/quickstart.yaml --set run.rounds=20
   used.yaml, log.txt        the deck in force; what was printed
   the base model is in $base
== next: $inputs/README.md (decks), fedlora methods, fedlora explain cohort.size
EOF
