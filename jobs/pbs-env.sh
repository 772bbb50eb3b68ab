# pbs-env.sh - what every pbs-*.sh reads first, after cd: the end of the job, the ranks, what starts them, how it goes on. For
# OpenPBS, PBS Pro and, without job arrays, Torque.
# usage: . "$jobs/pbs-env.sh" pbs-NAME.sh HOURS NAMES-OF-VARIABLES...      those that are given with qsub -v
#   FEDLORA_CHAIN   submit (default): the script is submitted again, to start after this job, until the run is finished. none: not
# shellcheck shell=bash disable=SC2154
. "$jobs/site.sh"
pbs_self=$jobs/$1
# the time limit, should PBS not tell it
pbs_hours=$2
shift 2
# long values are folded
pbs_info=$(qstat -f "$PBS_JOBID" 2>/dev/null | sed -e ':a' -e 'N' -e '$!ba' -e 's/\n\t//g')
# pbs_says NAME: an attribute of the job
pbs_says() {
    sed -n "s/^ *$1 = //p" <<<"$pbs_info" | head -n 1
}
pbs_seconds() {
    awk -F: 'NF > 0 { s = 0; for (i = 1; i <= NF; i++) s = 60 * s + $i; printf "%d\n", s }' <<<"$1"
}

# PBS signals every process of a job at its end, mpirun too, which then kills the ranks; so the run watches the clock and ends before
pbs_limit=$(pbs_seconds "$(pbs_says Resource_List.walltime)")
pbs_used=$(pbs_seconds "$(pbs_says resources_used.walltime)")
export FEDLORA_END_TIME=$(($(date +%s) + ${pbs_limit:-$((pbs_hours * 3600))} - ${pbs_used:-0}))

FEDLORA_RANKS=$(wc -l <"$PBS_NODEFILE")
export FEDLORA_RANKS
if [ -z "${FEDLORA_LAUNCH:-}" ]; then
    FEDLORA_LAUNCH=mpirun
    if [ "$(sort -u "$PBS_NODEFILE" | wc -l)" -gt 1 ] && ! ompi_info --parsable 2>/dev/null | grep -q ':plm:tm:'; then
        # an Open MPI that does not know PBS
        FEDLORA_LAUNCH="mpirun --hostfile $PBS_NODEFILE -x PATH${LD_LIBRARY_PATH:+ -x LD_LIBRARY_PATH}${OPENBLAS_CORETYPE:+ -x OPENBLAS_CORETYPE}"
        ! command -v pbs_tmrsh >/dev/null || FEDLORA_LAUNCH+=" --mca plm_rsh_agent pbs_tmrsh"
    fi
fi
export FEDLORA_LAUNCH

# names only: their values come from here, and may have commas
FEDLORA_CHAIN=${FEDLORA_CHAIN:-submit} INDEX=${PBS_ARRAY_INDEX:-${INDEX:-}}
pbs_names=
for pbs_name in FEDLORA_CHAIN FEDLORA_CHAIN_MAX FEDLORA_JOBS FEDLORA_SHARE FEDLORA INDEX "$@"; do
    if [ -n "${!pbs_name:-}" ]; then
        export "${pbs_name?}"
        pbs_names+=${pbs_names:+,}$pbs_name
    fi
done
pbs_again=(qsub -W "depend=afterany:$PBS_JOBID" -v "$pbs_names")
[ -z "${PBS_QUEUE:-}" ] || pbs_again+=(-q "$PBS_QUEUE")
for pbs_name in select walltime; do
    pbs_value=$(pbs_says "Resource_List.$pbs_name")
    [ -z "$pbs_value" ] || pbs_again+=(-l "$pbs_name=$pbs_value")
done
# a task of an array goes on as a job of its own: without the directives of the script, which ask for an array; INDEX is its number
[ -z "$INDEX" ] || pbs_again+=(-C '' -N "${PBS_JOBNAME:-fedlora}" -j oe)
printf -v FEDLORA_AGAIN '%q ' "${pbs_again[@]}" "$pbs_self"
export FEDLORA_AGAIN
[ "$FEDLORA_CHAIN" != none ] || FEDLORA_AGAIN=
