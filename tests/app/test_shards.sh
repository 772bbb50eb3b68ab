#!/usr/bin/env bash
# test_shards.sh - few clients, many ranks: for a given cohort.shards the state is the same on any number of ranks, also with dropout, lost
# clients, personal state and more ranks than shards; and a restart on another count is exact.
. "$(dirname "$0")/../lib.sh"
check "a base model" "$FEDLORA" pretrain inputs/quickstart.yaml --set train.steps=5 -o "$T/base"
common=(--set "model.path=$T/base" --set 'clients.r=[8]' --set 'clients.r_share=[1]' --set cohort.size=3 --set run.rounds=2
    --set train.steps=3 --set adapter.dropout=0.1 --set clients.lost=0.2 --set eval.max_samples=20 --set eval.every=0)
counts="1 2 3 4 7"
[ -z "${FEDLORA_LONG:-}" ] || counts="1 2 3 4 5 7 12 16"
for method in fedavg local_only; do
    for shards in 3 4; do
        first=
        for n in $counts; do
            run_fedlora "$n" run inputs/quickstart.yaml "${common[@]}" --set "method.name=$method" --set "cohort.shards=$shards" \
                --out "$T/$method-$shards-$n" >"$T/log" 2>&1
            state=$(state_of "$T/log")
            if [ -z "$first" ]; then
                first=$state
                check "$method, $shards shards, $n rank(s)" test -n "$state"
            else
                same "$method, $shards shards, $n ranks: state as on one rank" "$first" "$state"
            fi
        done
    done
done
run_fedlora 4 run inputs/quickstart.yaml "${common[@]}" --set method.name=fedavg --set cohort.shards=4 --set run.rounds=1 \
    --out "$T/resumed" >"$T/log" 2>&1
run_fedlora 2 run inputs/quickstart.yaml "${common[@]}" --set method.name=fedavg --set cohort.shards=4 --out "$T/resumed" >"$T/log" 2>&1
same "a restart on 2 ranks of a run begun on 4" "$(state_of "$T/fedavg-4-1/log.txt")" "$(state_of "$T/log")"
