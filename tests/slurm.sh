# slurm.sh - a Slurm of one machine for tests, on top of lib.sh: munged, slurmctld and one slurmd for each of its nodes, all files in $T/slurm.
# Slurm is the installed one, or comes out of Debian's packages, unpacked into $T and not installed: nothing outside of $T changes, and root
# is not needed. Calls: slurm_find, slurm_start NODES CORES; slurm_stop when the test ends, whatever happened.
# shellcheck shell=bash disable=SC2034
slurm_pids=()
slurm_why=

# slurm_find: puts Slurm's commands into PATH; false, with slurm_why, when there is none to be had
slurm_find() {
    local root=$T/slurm/root packages name
    mkdir -p "$T/slurm/packages" "$T/slurm/bin" || return 1
    slurm_plugins=
    if command -v munged sbatch srun >/dev/null && command -v slurmctld slurmd >/dev/null; then
        return 0
    fi
    slurm_why="no slurmctld, slurmd and munged here, and no apt-get to fetch them"
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    slurm_why="apt-get does not find slurmctld, slurmd, slurm-client and munge, or cannot reach its archive"
    if [ "$(id -u)" -eq 0 ] && ! apt-cache show slurmctld >/dev/null 2>&1; then
        timeout 120 apt-get -qq -o DPkg::Lock::Timeout=60 update </dev/null >"$T/slurm/apt.log" 2>&1
    fi
    # with what they need that is not installed
    packages=$(apt-get install -s --no-install-recommends slurmctld slurmd slurm-client munge 2>/dev/null | awk '$1 == "Inst" { print $2 }')
    [ -n "$packages" ] || return 1
    # shellcheck disable=SC2086
    (cd "$T/slurm/packages" && timeout 120 apt-get download -q $packages >"$T/slurm/apt.log" 2>&1) || return 1
    for name in "$T"/slurm/packages/*.deb; do
        dpkg -x "$name" "$root" || return 1
    done
    slurm_why="the unpacked Slurm does not run here"
    slurm_plugins=$(dirname "$(find "$root" -name libslurmfull.so | head -n 1)")
    LD_LIBRARY_PATH=$slurm_plugins:$(dirname "$slurm_plugins")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    for name in slurmctld slurmd slurmstepd; do
        ln -s "$(find "$root/usr/sbin" -name "$name*" | head -n 1)" "$T/slurm/bin/$name"
    done
    PATH=$T/slurm/bin:$root/usr/bin:$root/usr/sbin:$PATH
    export PATH LD_LIBRARY_PATH
    slurmd -V >/dev/null 2>&1 && munged --version >/dev/null 2>&1
}

# slurm_start NODES CORES: that many nodes with that many cores each, all of them this machine
slurm_start() {
    local dir=$T/slurm nodes=$1 port node me names host alone i
    me=$(id -un)
    # a range of ports of its own for each process
    port=$((20000 + $$ % 3000 * 12))
    names="n[1-$nodes]"
    # a name of its own for each node, by which Open MPI tells them apart
    alone=()
    slurm_named=
    if unshare --uts true 2>/dev/null; then
        # shellcheck disable=SC2016
        alone=(unshare --uts bash -c 'hostname "$0"; exec "$@"')
        slurm_named=1
    fi
    mkdir -p "$dir/state" "$dir/log" && chmod 755 "$T" "$dir"
    head -c 1024 /dev/urandom >"$dir/munge.key" && chmod 600 "$dir/munge.key"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd-%n
${slurm_plugins:+PluginDir=$slurm_plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,sched_min_interval=100000
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=5
OverTimeLimit=0
MinJobAge=300
TmpFS=$dir/tmp-%n
TreeWidth=16
LaunchParameters=disable_send_gids
CONF
    for ((node = 1; node <= nodes; node++)); do
        host=$(hostname -s)
        [ -z "$slurm_named" ] || host=n$node
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$2 Boards=1 SocketsPerBoard=1 CoresPerSocket=$2 ThreadsPerCore=1 RealMemory=100 State=UNKNOWN"
    done >>"$dir/slurm.conf"
    echo "PartitionName=all Nodes=$names Default=YES MaxTime=60 State=UP" >>"$dir/slurm.conf"
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
    export SLURM_CONF=$dir/slurm.conf
    munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged" --seed-file="$dir/munged.seed" >"$dir/log/munged.out" 2>&1 &
    slurm_pids+=($!)
    for ((i = 0; i < 100; i++)); do
        [ ! -S "$dir/munge.socket" ] || break
        sleep 0.05
    done
    slurmctld -D -c >"$dir/log/slurmctld.out" 2>&1 &
    slurm_pids+=($!)
    for ((node = 1; node <= nodes; node++)); do
        mkdir -p "$dir/spool-n$node" "$dir/tmp-n$node"
        # slurmstepd is where slurmd is told
        ${alone[@]+"${alone[@]}" "n$node"} slurmd -D -N "n$node" -d "$(command -v slurmstepd)" >"$dir/log/slurmd-n$node.out" 2>&1 &
        slurm_pids+=($!)
    done
    for ((i = 0; i < 150; i++)); do
        [ "$(sinfo -h -o %T -N 2>/dev/null | grep -c '^idle')" -ne "$nodes" ] || return 0
        sleep 0.1
    done
    slurm_why="its daemons do not come up: $(tail -n 3 "$dir"/log/* 2>/dev/null | tr '\n' ' ')"
    return 1
}

# slurm_stop: the jobs, then the daemons
slurm_stop() {
    local i
    [ ${#slurm_pids[@]} -gt 0 ] || return 0
    timeout 10 scancel -u "$(id -un)" >/dev/null 2>&1
    for ((i = 0; i < 80; i++)); do
        [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
        sleep 0.1
    done
    for ((i = ${#slurm_pids[@]} - 1; i >= 0; i--)); do
        kill "${slurm_pids[i]}" 2>/dev/null
    done
    for ((i = 0; i < 50; i++)); do
        kill -0 "${slurm_pids[@]}" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "${slurm_pids[@]}" 2>/dev/null
    slurm_pids=()
}
