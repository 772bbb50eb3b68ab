#!/usr/bin/env bash
# shakespeare.sh - the comparison of the README: a small base trained on children's stories is carried over to Shakespeare by a federation of
# speaking roles, with every method of the skeleton, local training and central training; prints the table, draws the picture.
# usage: [RANKS=2] [ROUNDS=20] [OUT=runs/shakespeare] [DATA=../shared/data] jobs/shakespeare.sh [fedlora]
set -eu
cd "$(dirname "$0")/.."
fedlora=${1:-build/fedlora}
ranks=${RANKS:-2}
rounds=${ROUNDS:-20}
out=${OUT:-runs/shakespeare}
data=${DATA:-../shared/data}
base=models/byte-base
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
if [ ! -f $base/model.safetensors ]; then
    mpirun -n "$ranks" "$fedlora" pretrain inputs/pretrain-tinystories.yaml --out $base \
        --set "data.source=$data/tinystories/tinystories_sample.txt.xz"
fi
run() { # NAME --set ...
    local name=$1
    shift
    echo "== $name"
    mpirun -n "$ranks" "$fedlora" run inputs/shakespeare.yaml --out "$out/$name" --set "run.rounds=$rounds" \
        --set "data.source=$data/shakespeare/input.txt.xz" "$@" | grep -E '^ *[0-9]+ |^state'
}
for method in fedavg ffa_lora rolora flora flexlora fedex_lora local_only; do
    run "$method" --set "method.name=$method"
done
# central: one client that has everything, as many steps a round as the whole cohort made
run central --set method.name=fedavg --set partition.kind=iid --set partition.clients=1 --set cohort.size=1 --set train.steps=200 \
    --set cohort.shards=2
python3 analysis/plot_rounds.py --table --out "$out/rounds.png" \
    "$out"/{fedavg,ffa_lora,rolora,flora,flexlora,fedex_lora,local_only,central}
