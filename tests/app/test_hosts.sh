#!/usr/bin/env bash
# test_hosts.sh - several hosts for real: network namespaces with their own address, host name and /dev/shm (tests/hosts/lib.sh).
# The same state as on one host with one copy of the base per host; a host that lacks something is named, on all ranks the same end;
# a host that dies ends the job in time with a message, and the others go on from the last checkpoint; a slow network changes nothing.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh
. tests/hosts/lib.sh

if ! hosts_possible; then
    skip "several hosts" "$hosts_why"
    exit 0
fi
if ! hosts_up 3 >"$T/up.log" 2>&1; then
    not_ok "three hosts are made" "$(cat "$T/up.log")"
    exit 1
fi
seed=${FEDLORA_KILL_SEED:-$$}
RANDOM=$seed
echo "# FEDLORA_KILL_SEED=$seed"
three=node1:1,node2:2,node3:1
unequal=(--set 'clients.r=[1,2,4]' --set 'clients.r_share=[0.4,0.3,0.3]')
make_base "$T/base"

# case_of METHOD: sets deck and args
case_of() {
    deck=$T/$1.yaml
    args=()
    case $1 in flora | flexlora | local_only) args=("${unequal[@]}") ;; esac
    small_deck "$deck" "$1" "$T/base"
}

# ---- the parts of the program, on hosts ----
# they do not choose the MPI-IO as the program does, and must not wait for OMPIO's lock files. (Not la/test_grid: PDGESVD sends
# so many small messages that it takes an hour over TCP with two cores; flexlora-scalapack below is small.)
parts=(mpi/test_nodes mpi/test_comm)
[ -z "$LONG" ] || parts+=(mpi/test_base_load mpi/test_data_mpi mpi/test_store mpi/test_sum mpi/test_checkpoint)
parts_on() {
    local part command
    for part in "${parts[@]}"; do
        if [ ! -x "$B/tests/$part" ]; then
            skip "$part on $1" "not built"
            continue
        fi
        hosts_command "$@" --mca io_ompio_priority 1 "$B/tests/$part"
        check "$part on $*" timeout -k 10 300 "${command[@]}"
    done
}
parts_on "$three"
# node2 has ranks 1 and 3 (the programs are written for at most four)
[ -z "$LONG" ] || parts_on "$three" --map-by node

# ---- the same state as on one host ----
reference() {
    case_of "$1"
    launch 1 "$T/$1-ref" "$deck" "${args[@]}" || not_ok "$1 on one host" "$(tail -n 20 "$T/$1-ref.log")"
}

# alike METHOD LIST RANKS HOSTS [MPIRUN ARGUMENTS]
alike() {
    local method=$1 list=$2 ranks=$3 n=$4 out=$T/$1-hosts
    shift 4
    case_of "$method"
    hosts_mpi=("$@")
    rm -rf "$out"
    if ! on_hosts "$list" "$out" "$deck" "${args[@]}"; then
        not_ok "$method on $list $*" "$(tail -n 40 "$out.log")"
    elif ! grep -q "^ranks     $ranks on $n node(s)" "$out.log" ||
        ! grep -q "\"nodes\": $n" "$out/perf.json"; then
        not_ok "$method on $list $*: $ranks ranks on $n nodes" "$(grep ^ranks "$out.log")"
    elif ! diff <(rows "$T/$method-ref") <(rows "$out") >"$T/rows"; then
        not_ok "$method on $list $*: rounds.csv as on one host" "$(cat "$T/rows")"
    else
        same "$method on $list $*: the state as on one host" "$(state_of "$out.log")" "$(state_of "$T/$method-ref.log")"
    fi
    hosts_mpi=()
}
methods=(fedavg flora fedex_lora flexlora local_only)
[ -z "$LONG" ] || methods+=(ffa_lora rolora)
for method in "${methods[@]}"; do
    reference "$method"
    alike "$method" "$three" 4 3
    if [ -n "$LONG" ]; then
        alike "$method" node1:1,node2:2 3 2
        alike "$method" node1:3,node2:1,node3:2 6 3
        alike "$method" node1:2,node2:3,node3:2 7 3 --map-by node
    fi
done
# alike_checkpoints NAME OUT OUT: all data sets but the times in the metrics are the same
alike_checkpoints() {
    "$FEDLORA" diff "$2/checkpoints/round-000004.h5" "$3/checkpoints/round-000004.h5" >"$T/diff.log" 2>&1
    same "$1: the checkpoint as on one host" "$(grep ' differ' "$T/diff.log" | grep -vE '^(fedlora|first difference|note): |^run/metrics: ')x" x
}
# the checkpoint of a run on hosts is that of a run on one
for method in fedex_lora local_only; do
    alike_checkpoints "$method" "$T/$method-ref" "$T/$method-hosts"
done
if [ -n "$LONG" ]; then
    # a base of several chunks, written by the ranks of one host, while all hosts write the rest
    make_base "$T/wide" --set pretrain.width=256 --set pretrain.layers=4
    small_deck "$T/wide.yaml" fedex_lora "$T/wide"
    launch 1 "$T/wide-ref" "$T/wide.yaml"
    for list in node1:1,node2:2,node3:1 node1:3,node2:1; do
        check "a base of several chunks on $list" on_hosts "$list" "$T/wide-hosts" "$T/wide.yaml"
        same "$list: the same state" "$(state_of "$T/wide-hosts.log")" "$(state_of "$T/wide-ref.log")"
        alike_checkpoints "$list" "$T/wide-ref" "$T/wide-hosts"
        rm -rf "$T/wide-hosts"
    done
fi

if [ -n "$LONG" ]; then
    case_of flexlora
    args+=(--set run.rounds=1 --set svd.solver=scalapack --set 'svd.grid=[2,2]' --set svd.block=8)
    launch 4 "$T/grid-ref" "$deck" "${args[@]}"
    check "a process grid over three hosts" on_hosts "$three" "$T/grid" "$deck" "${args[@]}"
    same "a process grid over three hosts: the same state" "$(state_of "$T/grid.log")" "$(state_of "$T/grid-ref.log")"
    check "a process grid over three hosts: ScaLAPACK ran" grep -qE '^svd .* [1-9][0-9]* scalapack' "$T/grid.log"
    for key in checkpoint.writers=1 checkpoint.writers=3 checkpoint.async=true; do
        case_of local_only
        rm -rf "$T/keys"
        check "$key on hosts" on_hosts "$three" "$T/keys" "$deck" "${args[@]}" --set "$key"
        same "$key on hosts: the same state" "$(state_of "$T/keys.log")" "$(state_of "$T/local_only-ref.log")"
        alike_checkpoints "$key on hosts" "$T/local_only-ref" "$T/keys"
    done
    # two groups of ranks, each on two hosts and both on node2
    case_of fedavg
    hosts_command "$three" "$FEDLORA" sweep "$deck" --over method.name=fedavg,fedex_lora --groups 2 --out "$T/sweep"
    check "a sweep on hosts" timeout -k 10 240 "${command[@]}"
    for method in fedavg fedex_lora; do
        same "a sweep on hosts: $method" "$(state_of "$T/sweep/method.name=$method/log.txt")" "$(state_of "$T/$method-ref.log")"
    done
fi

# ---- one host lacks something ----
# refused CODE NAME FRAGMENT ARGS...: all ranks end with the code, the sentence is there once, and nothing runs on
refused() {
    local want=$1 name=$2 fragment=$3 code=0
    shift 3
    rm -rf "$T/refused"
    on_hosts "$three" "$T/refused" "$@" || code=$?
    same "$name: exit code" "$code" "$want"
    says "$name: says what and where" "$T/refused.log" "$fragment"
    check "$name: all hosts are quiet" await 10 quiet
}
quiet() {
    local i
    for ((i = 0; i <= hosts_n; i++)); do
        ! ip netns pids "$hosts_name-$i" | grep -qvx "${hosts_relay:-none}" || return 1
    done
}
case_of fedavg
mkdir "$T/empty"
SHM_node2=128k refused 4 "no room for the base on node2" "on node2: cannot reserve" "$deck"
MOUNT_node3=$T/empty:$T/base refused 4 "no base on node3" "on node3: $T/base: has no model.safetensors" "$deck"
mkdir -p "$T/local"
on_hosts_local() {
    MOUNT_node2=$T/empty:$T/local on_hosts "$three" "$T/local/out" "$deck"
}
check_exit 4 "an output folder that node2 does not see" on_hosts_local
says "an output folder that node2 does not see: says so" "$T/local/out.log" "on node2: $T/local/out: this host does not see"
same "an output folder that node2 does not see: nothing is left" "$(find "$T/local/out" -name '.seen*' | wc -l)" 0
cp "$FEDLORA" "$T/other" && echo >>"$T/other"
MOUNT_node2=$T/other:$FEDLORA refused 2 "another program on node2" "different builds" "$deck"
if [ -n "$LONG" ]; then
    for i in 1 3; do
        declare -x "SHM_node$i=128k"
        refused 4 "no room for the base on node$i" "on node$i: cannot reserve" "$deck"
        # the base fits, the data set does not
        declare -x "SHM_node$i=150k"
        refused 4 "no room for the data set on node$i" "on node$i: cannot reserve" "$deck"
        unset "SHM_node$i"
    done
    make_base "$T/base2" --set run.seed=99
    MOUNT_node2=$T/base2:$T/base refused 4 "another base on node2" "the nodes read different weights" "$deck"
    kernel=$(sed -n 's/.*kernel \([A-Za-z]*\).*/\1/p' "$T/fedavg-ref.log")
    other=Haswell
    [ "$kernel" != Haswell ] || other=Sandybridge
    OPENBLAS_CORETYPE=$other launch 1 "$T/kernel" "$deck" --dry-run
    if grep -q "kernel $other" "$T/kernel.log"; then
        ENV_node2=OPENBLAS_CORETYPE=$other refused 2 "another BLAS kernel on node2" "BLAS kernels differ" "$deck"
    else
        skip "another BLAS kernel on node2" "this OpenBLAS has one kernel only"
    fi
fi

# ---- one copy per host, and a host that dies ----
# segments I: device:inode of every shared mapping at least as large as the base, once per rank of host I
segments() {
    local pid bytes
    bytes=$(stat -c %s "$T/base/model.safetensors")
    for pid in $(rank_processes "$1"); do
        while read -r range _ _ device inode path; do
            if [[ $path == */fedlora-share-* ]] && [ $((0x${range#*-} - 0x${range%-*})) -ge $((bytes * 9 / 10)) ]; then
                echo "$device:$inode"
            fi
        done <"/proc/$pid/maps"
    done
}

# looks at a run that is halted, and ends it by the file STOP
one_copy() {
    local i out=$T/copies ranks=(0 1 2 1) all=""
    case_of fedex_lora
    started_on "$three" "$out" "$deck" --set run.rounds=1000
    if ! await 60 test -e "$out/checkpoints/round-000003.h5"; then
        not_ok "the run gets to round 3" "$(tail -n 20 "$out.log")"
        ended 1
        return
    fi
    for i in 1 2 3; do
        rank_processes $i | xargs -r kill -STOP
    done
    for i in 1 2 3; do
        segments $i >"$T/segments"
        same "node$i: every rank maps the base" "$(wc -l <"$T/segments")" "${ranks[i]}"
        same "node$i: all the same copy" "$(sort -u "$T/segments" | wc -l)" 1
        all+=$(sort -u "$T/segments")$'\n'
    done
    same "every host has its own" "$(sort -u <<<"$all" | grep -c .)" 3
    touch "$out/STOP"
    for i in 1 2 3; do
        rank_processes $i | xargs -r kill -CONT
    done
    ended 60
    same "all hosts stop at the file STOP" "$code" 75
}
one_copy

# end_of I HOW: what happens to host I
end_of() {
    case $2 in
    power) everything_on "$1" ;;
    link) ip -n "$hosts_name-0" link set "port$1" down ;;
    rank) kill -9 "$(rank_processes "$1" | tail -n 1)" ;;
    daemon) for pid in $(ip netns pids "$hosts_name-$1"); do
        [ "$(cat "/proc/$pid/comm")" != orted ] || kill -9 "$pid"
    done ;;
    esac
}

# survived METHOD I HOW: host I ends in the middle of a run; the other hosts take it to the end
survived() {
    local method=$1 host=$2 name="$1, node$2, $3" out=$T/$1-$2-$3 rest file bad=
    case_of "$method"
    args+=(--set run.rounds=24)
    [ -e "$T/$method-long.log" ] || launch 1 "$T/$method-long" "$deck" "${args[@]}"
    started_on "$three" "$out" "$deck" "${args[@]}"
    if ! await 60 test -e "$out/checkpoints/round-000003.h5"; then
        not_ok "$name: the run gets to round 3" "$(tail -n 20 "$out.log")"
        ended 1
        return
    fi
    sleep "0.$((RANDOM % 5))"
    end_of "$host" "$3"
    local began=$SECONDS
    ended 60
    echo "# $name: exit code $code after $((SECONDS - began)) s, $(basename "$(find "$out/checkpoints" -name '*.h5' | sort | tail -n 1)")"
    case $code in
    0) not_ok "$name: it came before the end" ;;
    124) not_ok "$name: no rank hangs" "$(tail -n 30 "$out.log")" ;;
    *) ok "$name: the job ends" ;;
    esac
    check "$name: the message names the host" grep -qE "(node|host): *node$host|node node$host" "$out.log"
    check "$name: all hosts are quiet" await 30 quiet
    [ "$3" != link ] || ip -n "$hosts_name-0" link set "port$host" up
    for file in "$out"/checkpoints/*.h5; do
        "$FEDLORA" verify "$file" >"$T/verify.log" 2>&1 || bad+=$(cat "$T/verify.log")$'\n'
    done
    same "$name: every checkpoint is whole" "bad: $bad" "bad: "
    rest=$(tr , '\n' <<<"$three" | grep -v "node$host:" | paste -sd ,)
    mv "$out.log" "$out.first"
    check "$name: resumed on $rest" on_hosts "$rest" "$out" "$deck" "${args[@]}"
    check "$name: it was resumed" grep -q '^resumed ' "$out.log"
    same "$name: the same state" "$(state_of "$out.log")" "$(state_of "$T/$method-long.log")"
    same "$name: the same rounds.csv" "$(rows "$out")" "$(rows "$T/$method-long")"
    same "$name: nothing unfinished is left" "$(find "$out" -name '*.tmp*' | wc -l)" 0
    rm -rf "$out"
}
survived fedex_lora 2 power
if [ -n "$LONG" ]; then
    survived flora 1 power
    survived local_only 3 power
    survived flexlora 2 rank
    survived fedavg 1 rank
    survived fedex_lora 3 daemon
    survived local_only 2 link
    survived flora 1 link
    for ((i = 0; i < 10; i++)); do
        survived "${methods[RANDOM % ${#methods[@]}]}" $((1 + RANDOM % 3)) power
    done
fi

# ---- a slow network: 5 ms for every packet, one in a hundred is lost ----
if ! has_netem && ! { command -v python3 >/dev/null && [ -c /dev/net/tun ]; }; then
    skip "a slow network" "no netem in this kernel, and no python3 or no /dev/net/tun to do without"
    exit 0
fi
hosts_down
if ! hosts_up 3 slow >"$T/up.log" 2>&1; then
    not_ok "three hosts on a slow network are made" "$(cat "$T/up.log" "$T/relay.log")"
    exit 1
fi
slow=(fedex_lora)
[ -z "$LONG" ] || slow=("${methods[@]}")
for method in "${slow[@]}"; do
    alike "$method" "$three" 4 3
done
if [ -n "$LONG" ]; then
    parts_on "$three"
    survived fedex_lora 2 power
fi
count_lost
[ ! -e "$T/relay.txt" ] || echo "# packets: $(cat "$T/relay.txt")"
check "packets were lost" test "$hosts_lost" -gt 0
