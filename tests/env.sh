# env.sh - how every test is run; sourced by run.sh and lib.sh from the repository root
# shellcheck shell=bash
export B=${B:-build}
case $B in /*) ;; *) B=$PWD/$B ;; esac
if [ ! -d "${HOME:-}" ]; then
    HOME=${TMPDIR:-/tmp}
    export HOME
fi
export LC_ALL=C
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# root in a container, more ranks than cores, several jobs at a time, no ptrace: all are normal here (Open MPI 4, then 5)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_btl_sm_use_xpmem=0
# leaks inside MPI are not ours; programs without MPI set this themselves
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
unset FEDLORA_END_TIME SLURM_JOB_END_TIME
