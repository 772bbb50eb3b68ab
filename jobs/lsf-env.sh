# lsf-env.sh - what every lsf-*.sh reads first, after cd: the end of the job, the ranks, what starts them, how it goes on.
# usage: . "$jobs/lsf-env.sh" lsf-NAME.sh HOURS
#   FEDLORA_CHAIN   requeue (default): brequeue puts the same job into the queue again, until the run is finished. submit: the script
#                   is submitted again, to start after this job. none: neither
# shellcheck shell=bash disable=SC2154
. "$jobs/site.sh"
lsf_self=$jobs/$1
# the time limit, should LSF not tell it
lsf_hours=$2
lsf_job=$LSB_JOBID
lsf_index=${LSB_JOBINDEX:-0}
[ "$lsf_index" -eq 0 ] || lsf_job="${LSB_JOBID}[$lsf_index]"

# LSF signals every process of a job at its end, mpirun too, which hands it on once more; so the run watches the clock and ends before.
# The limit comes as hours:minutes:seconds, or from an old bjobs as minutes
lsf_limit=$(bjobs -noheader -hms -o runtimelimit "$lsf_job" 2>/dev/null || bjobs -noheader -o runtimelimit "$lsf_job" 2>/dev/null)
lsf_seconds=$(awk -F'[:/]' '/^[0-9]+:[0-9]+:[0-9]+/ { print ($1 * 60 + $2) * 60 + $3; exit } /^[0-9.]+/ { printf "%d\n", $1 * 60; exit }' <<<"$lsf_limit")
export FEDLORA_END_TIME=$(($(date +%s) + ${lsf_seconds:-$((lsf_hours * 3600))}))

export FEDLORA_RANKS=$LSB_DJOB_NUMPROC
lsf_clean=
if [ -z "${FEDLORA_LAUNCH:-}" ]; then
    # found here, for these nodes; not handed on to the next job
    lsf_clean="env -u FEDLORA_LAUNCH "
    FEDLORA_LAUNCH=mpirun
    if [ "$(sort -u "${LSB_DJOB_HOSTFILE:-/dev/null}" | wc -l)" -gt 1 ] && ! ompi_info --parsable 2>/dev/null | grep -q ':plm:lsf:'; then
        # an Open MPI that does not know LSF
        FEDLORA_LAUNCH="mpirun --hostfile $LSB_DJOB_HOSTFILE -x PATH${LD_LIBRARY_PATH:+ -x LD_LIBRARY_PATH}${OPENBLAS_CORETYPE:+ -x OPENBLAS_CORETYPE} --mca plm_rsh_agent blaunch"
    fi
fi
export FEDLORA_LAUNCH

# bsub takes the environment along; a task of an array goes on as a job of its own, which learns its number from INDEX
[ "$lsf_index" -eq 0 ] || INDEX=$lsf_index
export INDEX=${INDEX:-}
printf -v lsf_submit '%q ' ${lsf_clean:-} bsub -w "ended($lsf_job)" -J "${LSB_JOBNAME%%[*}" ${LSB_QUEUE:+-q "$LSB_QUEUE"} -n "$FEDLORA_RANKS"
[ -z "$lsf_seconds" ] || lsf_submit+="-W $((lsf_seconds / 60)) "
case ${FEDLORA_CHAIN:-requeue} in
requeue) printf -v FEDLORA_AGAIN 'brequeue %q || %s< %s' "$lsf_job" "$lsf_submit" "$lsf_self" ;;
submit) FEDLORA_AGAIN="$lsf_submit< $lsf_self" ;;
*) FEDLORA_AGAIN= ;;
esac
export FEDLORA_AGAIN
