#!/usr/bin/env bash
# test_files.sh - checkpoints on file systems as they may be: both MPI-IO implementations, few writers, stripe hints, HDF5 file locking on, off and
# impossible. The state is the same everywhere.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/base"
deck=$T/deck.yaml
small_deck "$deck" fedex_lora "$T/base"
unset HDF5_USE_FILE_LOCKING
ref=$T/ref
expect 0 "one rank" 1 "$ref" "$deck"

# alike NAME RANKS ARGS...: a run of three rounds, resumed to the end, as ref
n=0
alike() {
    local name=$1 ranks=$2 out=$T/run-$n
    n=$((n + 1))
    shift 2
    mkdir -p "$out"
    touch "$out/STOP"
    expect 75 "$name: the first round" "$ranks" "$out" "$deck" "$@"
    rm -f "$out/STOP"
    expect 0 "$name: resumed" "$ranks" "$out" "$deck" "$@"
    same "$name: the same state" "$(state_of "$out.log")" "$(state_of "$ref.log")"
    check "$name: the last checkpoint is whole" "$FEDLORA" verify "$out/checkpoints/round-000004.h5"
}

export OMPI_MCA_io
for OMPI_MCA_io in ompio romio321; do
    if ! ompi_info --param io $OMPI_MCA_io 2>/dev/null | grep -q "MCA io: $OMPI_MCA_io"; then
        skip "$OMPI_MCA_io" "this Open MPI has it not"
        continue
    fi
    HDF5_USE_FILE_LOCKING=TRUE alike "$OMPI_MCA_io, locking on" 3 --set checkpoint.writers=2
    HDF5_USE_FILE_LOCKING=FALSE alike "$OMPI_MCA_io, locking off" 2 --set checkpoint.writers=1 \
        --set checkpoint.stripe_count=2 --set checkpoint.stripe_size=1048576
done
unset OMPI_MCA_io

shim=$T/shim.so
if ! ${CC:-mpicc} -shared -fPIC -D_GNU_SOURCE -O1 -o "$shim" tests/files_shim.c >"$T/shim.log" 2>&1; then
    not_ok "the shim builds" "$(cat "$T/shim.log")"
    exit 1
fi
export LD_PRELOAD=$shim FILES_NO_FLOCK=1
alike "a file system without flock" 2
if make_dataset good "$T/good.h5"; then
    expect 0 "and a data set on it" 2 "$T/data" "$deck" --set data.source="$T/good.h5"
else
    not_ok "the writer of data sets builds" "$(cat "$T/dataset.log")"
fi
HDF5_USE_FILE_LOCKING=TRUE expect 4 "locking on where there is none: refused" 2 "$T/refused" "$deck"
unset LD_PRELOAD FILES_NO_FLOCK
check "it says so" grep -q "round-000001.h5: cannot .*set HDF5_USE_FILE_LOCKING=FALSE" "$T/refused.log"

# ---- the benchmark ----
code=0
mpirun -n 2 "$FEDLORA" bench checkpoint -o "$T" >"$T/bench.log" 2>&1 </dev/null || code=$?
same "bench checkpoint ends well" "$code" 0
same "it tries every way" "$(grep -cE '^(write\(\)|writers: [12], (collective|independent)|async: true) .* [0-9]+\.[0-9]{2}( |$)' "$T/bench.log")" 6
same "and leaves nothing" "$(find "$T" -maxdepth 1 -name 'bench-checkpoint*' | wc -l)" 0
