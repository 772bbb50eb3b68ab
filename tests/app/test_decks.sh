#!/usr/bin/env bash
# test_decks.sh - every deck in inputs is one that the program accepts: those of the methods and quickstart run two rounds on a
# base that has hardly been trained, the others as far as --dry-run goes, with real text replaced by synthetic.
. "$(dirname "$0")/../lib.sh"

base=$T/tiny
check "inputs/pretrain-tiny.yaml makes a base" run_fedlora 2 pretrain inputs/pretrain-tiny.yaml --set train.steps=2 --set pretrain.out="$base"
for deck in inputs/methods/*.yaml inputs/quickstart.yaml; do
    name=$(basename "$deck" .yaml)
    check "$deck runs" run_fedlora 2 run "$deck" --set run.rounds=2 --set train.steps=1 --set model.path="$base" --out "$T/$name"
    check "$name: two rounds are in rounds.csv" grep -q '^2,' "$T/$name/rounds.csv"
done
for name in fedavg florist fedinc flasc; do # what the server's view shows, out of a checkpoint as at the end of the run
    check "$name: export" "$FEDLORA" export "$T/$name/checkpoints/round-000002.h5" -o "$T/$name-export"
    check "$name: it is the run's adapter" cmp "$T/$name/adapter/adapter_model.safetensors" "$T/$name-export/adapter_model.safetensors"
done
check_exit 2 "slora: no adapter out of its sparse stage" "$FEDLORA" export "$T/slora/checkpoints/round-000002.h5" -o "$T/slora-export"
check "slora: its model, merged" "$FEDLORA" export "$T/slora/checkpoints/round-000002.h5" -o "$T/slora-export" --merged
for deck in inputs/scaling/*.yaml; do
    check "$deck is accepted" run_fedlora 1 run "$deck" --dry-run --set model.path="$base" --set model.max_length=64 --out "$T/dry"
done
check "inputs/shakespeare.yaml is accepted" run_fedlora 1 run inputs/shakespeare.yaml --dry-run --set model.path="$base" \
    --set model.max_length=64 --set data.source=synthetic --set 'data.key=""' --set data.records=lines --set partition.min_records=1 \
    --set cohort.size=4 --out "$T/dry"
check "inputs/pretrain-tinystories.yaml is accepted" run_fedlora 2 pretrain inputs/pretrain-tinystories.yaml --set data.source=synthetic \
    --set data.sequences=400 --set train.steps=1 --set train.batch=4 --set pretrain.out="$T/stories"
