#!/usr/bin/env bash
# compare.sh - all methods on one task: a small grid of learning rates with one seed and half the rounds, then the best of each method with
# several seeds, then the table of analysis/compare.py. Runs that are finished are not run again: the same command goes on after an interruption.
# usage: [RANKS=2] [ROUNDS=12] [SEEDS=1..3] [RATES=1e-3,3e-3,1e-2] [OUT=runs/compare/equal] [DATA=../shared/data] [METHODS="a b"]
#        jobs/compare.sh [DECK [fedlora]]
set -eu
cd "$(dirname "$0")/.."
deck=${1:-inputs/compare/equal.yaml}
fedlora=${2:-build/fedlora}
ranks=${RANKS:-2}
name=$(basename "$deck" .yaml)
out=${OUT:-runs/compare/$name}
data=${DATA:-../shared/data}
seeds=${SEEDS:-1..3}
rates=${RATES:-1e-3,3e-3,1e-2}
base=models/compare-base
rounds=${ROUNDS:-12}
common=(--set "data.source=$data/shakespeare/input.txt.xz")
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 OPENBLAS_NUM_THREADS=1
if [ ! -f $base/model.safetensors ]; then
    mpirun -n "$ranks" "$fedlora" pretrain inputs/compare/pretrain.yaml --out $base \
        --set "data.source=$data/tinystories/tinystories_sample.txt.xz"
fi
serves() { # METHOD: this deck, as its dry run says
    "$fedlora" run "$deck" "${common[@]}" --set "method.name=$1" --dry-run --out "$out/dry" >/dev/null 2>&1
}
if [ -n "${METHODS:-}" ]; then
    read -ra methods <<<"$METHODS"
else
    methods=()
    for method in $("$fedlora" methods | awk '{print $1}'); do
        serves "$method" && methods+=("$method")
    done
fi
list=$(IFS=,; echo "${methods[*]}")
echo "compare   ${#methods[@]} methods, learning rates $rates, seeds $seeds, on $deck"
mpirun -n "$ranks" "$fedlora" sweep "$deck" "${common[@]}" --set "run.rounds=$(((rounds + 1) / 2))" --set eval.every=0 \
    --over "method.name=$list" --over "train.lr=$rates" --out "$out/rates"
python3 analysis/compare.py --best "$out/rates" | while read -r lr best; do
    mpirun -n "$ranks" "$fedlora" sweep "$deck" "${common[@]}" --set "run.rounds=$rounds" --set "train.lr=$lr" --over "method.name=$best" \
        --over "run.seed=$seeds" --out "$out/seeds-lr$lr" </dev/null
done
# the server's seconds: four rounds of one step, one run after the other on one rank
mpirun -n 1 "$fedlora" sweep "$deck" "${common[@]}" --set run.rounds=4 --set train.steps=1 --set eval.every=0 --set eval.max_samples=1 \
    --set eval.discordance=false --over "method.name=$list" --out "$out/server"
python3 analysis/compare.py --table "$out"/seeds-lr* --server "$out/server" --out "$out/table.md"
