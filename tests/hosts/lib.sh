# lib.sh - several hosts on one machine, on top of tests/lib.sh and tests/system.sh (root only). A host is a network namespace with
# an address of its own; whatever a launch starts there also has its own host name, its own /dev/shm and an empty environment, as
# after ssh. mpirun itself runs on one more host, "head". All hosts see the same files otherwise. The hosts hang on a bridge
# inside the head's namespace, so that nothing outside the namespaces changes.
#     hosts_possible || skip ...      hosts_up 3      on_hosts node1:1,node2:2 OUT fedlora's arguments      (hosts_down: by itself)
# shellcheck shell=bash
# shellcheck disable=SC2034
hosts_name=fedlora-$$ # namespaces are called $hosts_name-0 (the head), -1, ...
hosts_n=0
hosts_relay=
hosts_why=
hosts_lost=0
hosts_mpi=() # further arguments of mpirun
# seconds until a silent connection between the launcher's daemons counts as lost: 5 + 2 x 3 here, more than 8 minutes by default
hosts_alive=(--mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 3)

# hosts_possible: can this machine do it? If not, hosts_why says what is missing
hosts_possible() {
    local tool probe=$hosts_name-probe
    if [ "$(id -u)" -ne 0 ]; then
        hosts_why="making hosts out of network namespaces needs root"
        return 1
    fi
    if [[ $(mpirun --version 2>/dev/null) != *"(Open MPI) 4."* ]]; then
        hosts_why="the launch agent is written for Open MPI 4"
        return 1
    fi
    if ! command -v ip >/dev/null && command -v apt-get >/dev/null; then
        apt-get install -y --no-install-recommends iproute2 >"$T/apt.log" 2>&1
    fi
    for tool in ip unshare mount hostname; do
        if ! command -v "$tool" >/dev/null; then
            hosts_why="no program '$tool' here"
            return 1
        fi
    done
    if ! { ip netns add "$probe" && ip -n "$probe" link add br0 type bridge && ip -n "$probe" link add a0 type veth peer name a1 &&
        ip netns exec "$probe" unshare -u -m sh -c "hostname probe && mount -t tmpfs tmpfs '$T'"; } >"$T/probe.log" 2>&1; then
        hosts_why="no network namespaces, bridge, veth or mounts here: $(tail -n 1 "$T/probe.log")"
        ip netns del "$probe" 2>/dev/null
        return 1
    fi
    ip netns del "$probe"
}

# write_agent: what mpirun starts instead of ssh: agent HOST COMMAND...; SHM_HOST is the size of the host's /dev/shm, ENV_HOST what is
# set there (NAME=value), MOUNT_HOST what it sees in another place (SOURCE:PLACE)
write_agent() {
    cat >"$T/agent" <<AGENT
#!/usr/bin/env bash
host=\$1
shift
shm=SHM_\$host env=ENV_\$host mount=MOUNT_\$host
export host shm=\${!shm:-64m} env=\${!env:-} mount=\${!mount:-} command="\$*"
exec ip netns exec $hosts_name-\${host#node} unshare -u -m bash -c '
    hostname "\$host" && mount -t tmpfs -o "size=\$shm" tmpfs /dev/shm && mount --bind "$T/hosts" /etc/hosts || exit 1
    [ -z "\$mount" ] || mount --bind "\${mount%%:*}" "\${mount#*:}" || exit 1
    exec env -i PATH="\$PATH" HOME="\$HOME" \$env /bin/sh -c "\$command"'
AGENT
    chmod +x "$T/agent"
}

# hosts_up N [slow]: node1 .. nodeN and the head. slow: every packet takes 5 ms, one in a hundred is lost
hosts_up() {
    local i head=$hosts_name-0 speed=${2:-fast}
    hosts_n=$1
    trap hosts_end EXIT
    hosts_sweep
    mkdir -p "$T/session"
    printf '127.0.0.1 localhost\n10.213.7.1 head\n' >"$T/hosts"
    ip netns add "$head" && ip -n "$head" link set lo up || return 1
    for ((i = 1; i <= hosts_n; i++)); do
        echo "10.213.7.$((10 + i)) node$i" >>"$T/hosts"
        ip netns add "$hosts_name-$i" && ip -n "$hosts_name-$i" link set lo up || return 1
    done
    write_agent
    if [ "$speed" = slow ] && ! has_netem; then
        relay_up || return 1
    else
        bridge_up "$speed" || return 1
    fi
    ip -n "$head" addr add 10.213.7.1/24 dev br0 && ip -n "$head" link set br0 up || return 1
    for ((i = 1; i <= hosts_n; i++)); do
        ip -n "$hosts_name-$i" addr add "10.213.7.$((10 + i))/24" dev eth0 && ip -n "$hosts_name-$i" link set eth0 up || return 1
    done
}

# bridge_up fast|slow: the head's br0 with a pair of interfaces to every host
bridge_up() {
    local i head=$hosts_name-0
    ip -n "$head" link add br0 type bridge || return 1
    for ((i = 1; i <= hosts_n; i++)); do
        ip -n "$head" link add "port$i" type veth peer name eth0 netns "$hosts_name-$i" &&
            ip -n "$head" link set "port$i" master br0 up || return 1
        # half of the loss in each direction of the pair: one in a hundred between two hosts
        if [ "$1" = slow ]; then
            tc -n "$head" qdisc add dev "port$i" root netem delay 2500us loss 0.5% &&
                tc -n "$hosts_name-$i" qdisc add dev eth0 root netem delay 2500us loss 0.5% || return 1
        fi
    done
}

has_netem() {
    command -v tc >/dev/null && tc -n "$hosts_name-0" qdisc add dev lo root netem delay 0ms 2>/dev/null && tc -n "$hosts_name-0" qdisc del dev lo root
}

# relay_up: without netem in the kernel a program passes the packets on
relay_up() {
    local i namespaces=()
    for ((i = 0; i <= hosts_n; i++)); do
        namespaces+=("$hosts_name-$i")
    done
    ip netns exec "$hosts_name-0" python3 tests/hosts/slow_switch.py 5 1 "$T/relay.txt" "${namespaces[@]}" >"$T/relay.log" 2>&1 &
    hosts_relay=$!
    await 10 grep -q ready "$T/relay.log" || return 1
}

# count_lost: sets hosts_lost, how many packets the slow network lost so far; ends the relay
count_lost() {
    if [ -n "$hosts_relay" ]; then
        { kill "$hosts_relay" && wait "$hosts_relay"; } 2>/dev/null
        hosts_relay=
        hosts_lost=$(sed -n 's/.*passed, \([0-9]*\) lost/\1/p' "$T/relay.txt")
    else
        hosts_lost=$(tc -n "$hosts_name-0" -s qdisc show | awk '/dropped/ { sub(",", "", $7); n += $7 } END { print n + 0 }')
    fi
}

# everything_on I: ends all processes of host I at once, as a power cut would
everything_on() {
    ip netns pids "$hosts_name-$1" 2>/dev/null | xargs -r kill -9 2>/dev/null
}

# rank_processes I: the processes of the program on host I
rank_processes() {
    ip netns pids "$hosts_name-$1" | while read -r pid; do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != fedlora ] || echo "$pid"
    done
}

# hosts_sweep: removes what a test that was killed left behind
hosts_sweep() {
    local name pid
    while read -r name _; do
        pid=${name#fedlora-}
        pid=${pid%-*}
        if [[ $name =~ ^fedlora-[0-9]+-[0-9]+$ ]] && ! kill -0 "$pid" 2>/dev/null; then
            ip netns pids "$name" | xargs -r kill -9 2>/dev/null
            ip netns del "$name"
        fi
    done < <(ip netns list)
}

# shellcheck disable=SC2317
hosts_end() {
    local code=$?
    hosts_down
    (exit "$code")
    tap_end
}

hosts_down() {
    local i
    # the relay first: it writes down what it did
    [ -z "$hosts_relay" ] || { kill "$hosts_relay" && wait "$hosts_relay"; } 2>/dev/null
    hosts_relay=
    for ((i = hosts_n; i >= 0; i--)); do
        everything_on "$i"
    done
    for ((i = 0; i <= hosts_n; i++)); do
        ip netns del "$hosts_name-$i" 2>/dev/null
    done
    hosts_n=0
    rm -rf "$T/session"
}

# hosts_command LIST COMMAND...: sets command to what runs COMMAND on the hosts of LIST (node1:2,node2:1: a host and its ranks)
hosts_command() {
    local list=$1 btl=self,vader,tcp
    shift
    # shellcheck disable=SC2016
    command=(ip netns exec "$hosts_name-0" unshare -u -m bash -c 'hostname head && mount --bind "$0" /etc/hosts && exec "$@"' "$T/hosts"
        mpirun -H "$list" --mca plm rsh --mca plm_rsh_agent "$T/agent" --mca plm_rsh_no_tree_spawn 1
        --mca pml ob1 --mca btl "$btl" --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24
        --mca orte_tmpdir_base "$T/session" -x OPENBLAS_NUM_THREADS -x ASAN_OPTIONS "${hosts_alive[@]}" "${hosts_mpi[@]}" "$@")
}

# on_hosts LIST OUT ARGS...: fedlora run ARGS --out OUT; what it printed is in OUT.log, the exit code comes back
on_hosts() {
    local list=$1 out=$2 command
    shift 2
    hosts_command "$list" "$FEDLORA" run "$@" --out "$out"
    timeout -k 10 240 "${command[@]}" >"$out.log" 2>&1 </dev/null
}

# started_on LIST OUT ARGS...: the same in the background; sets job, as started does, for ended
started_on() {
    local list=$1 out=$2 command
    shift 2
    hosts_command "$list" "$FEDLORA" run "$@" --out "$out"
    "${command[@]}" >"$out.log" 2>&1 </dev/null &
    job=$!
}
