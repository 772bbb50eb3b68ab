#!/usr/bin/env bash
# test_invariance.sh - the same bits on any number of ranks: state digest and rounds.csv on 1, 2, 3, 4 and 7 ranks, for every method and both
# model families, with dropout, lost uploads, unequal ranks and more ranks than clients in a round; again with OpenBLAS's Haswell kernels,
# where a row of a product depends on how many rows the call has.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/llama"
make_base "$T/gpt2" --set pretrain.family=gpt2
unequal=(--set 'clients.r=[1,2,4]' --set 'clients.r_share=[0.4,0.3,0.3]')

# case_of NAME: sets deck and args
case_of() {
    local method=${1%%-*} base=llama
    args=()
    case $1 in *-gpt2) base=gpt2 ;; esac
    case $1 in
    fedavg-full) args=(--set train.what=full --set adapter.dropout=0) ;;
    fedavg-gpt2) args=(--set 'adapter.targets=[q,k,v,o,up,down]' --set eval.per_client=true) ;;
    fedavg-epochs) args=(--set train.epochs=1 --set train.optimizer=sgd --set train.momentum=0.9 --set cohort.weights=uniform --set partition.kind=iid) ;;
    flora | flora-gpt2 | flexlora | flexlora-gpt2) args=("${unequal[@]}") ;;
    flexlora-dense) args=("${unequal[@]}" --set svd.solver=dense) ;;
    local_only) args=("${unequal[@]}" --set eval.per_client=true) ;;
    esac
    deck=$T/$1.yaml
    small_deck "$deck" "$method" "$T/$base"
}

# compare NAME KERNEL RANKS...: all rank counts against the first
compare() {
    local name=$1 kernel=$2 first=$3 ranks out state log=
    shift 2
    case_of "$name"
    [ "$kernel" = default ] || export OPENBLAS_CORETYPE=$kernel
    : >"$T/rows"
    for ranks in "$@"; do
        out=$T/$name-$kernel-$ranks
        if ! launch "$ranks" "$out" "$deck" "${args[@]}"; then
            log+="$ranks ranks: exit code not 0"$'\n'$(tail -n 20 "$out.log")$'\n'
            continue
        fi
        state=$(state_of "$out.log")
        log+="$ranks ranks: state $state"$'\n'
        if [ -z "$state" ] || [ "$state" != "$(state_of "$T/$name-$kernel-$first.log")" ] ||
            ! diff <(rows "$T/$name-$kernel-$first") <(rows "$out") >"$T/rows"; then
            log+="differs from $first ranks"$'\n'$(cat "$T/rows")$'\n'
        fi
    done
    unset OPENBLAS_CORETYPE
    case $log in
    *differs* | *exit*) not_ok "$name, kernel $kernel: the same on $* ranks" "$log" ;;
    *) ok "$name, kernel $kernel: the same on $* ranks" ;;
    esac
}

cases=(fedavg fedavg-full ffa_lora-gpt2 rolora flora flexlora-gpt2 fedex_lora local_only)
haswell=(1 3 7)
if [ -n "$LONG" ]; then
    cases+=(fedavg-gpt2 fedavg-epochs ffa_lora rolora-gpt2 flora-gpt2 flexlora flexlora-dense fedex_lora-gpt2 local_only-gpt2)
    haswell=(1 2 3 4 7)
fi
for name in "${cases[@]}"; do
    compare "$name" default 1 2 3 4 7
done

# the test sees differences: another seed is another state, and lost uploads and dropout are really there
case_of fedavg
launch 2 "$T/seed" "$deck" --set run.seed=8
check "another seed gives another state" test "$(state_of "$T/seed.log")" != "$(state_of "$T/fedavg-default-2.log")"
launch 2 "$T/kept" "$deck" --set clients.lost=0
check "uploads were lost" test "$(rows "$T/kept")" != "$(rows "$T/fedavg-default-2")"
launch 2 "$T/whole" "$deck" --set adapter.dropout=0
check "dropout changes the result" test "$(state_of "$T/whole.log")" != "$(state_of "$T/fedavg-default-2.log")"

OPENBLAS_CORETYPE=Haswell launch 1 "$T/kernel" "$deck" --dry-run
if grep -q 'kernel Haswell' "$T/kernel.log"; then
    for name in "${cases[@]}"; do
        compare "$name" Haswell "${haswell[@]}"
    done
else
    skip "the same under the Haswell kernels" "this OpenBLAS has one kernel only, or the processor lacks AVX2"
fi
