# slurm-env.sh - what every slurm-*.sh reads first, after cd: the end of the job, the ranks, what starts them, how it goes on.
# usage: . "$jobs/slurm-env.sh" "$@"
#   FEDLORA_CHAIN   requeue (default): the same job goes into the queue again, until the run is finished; where requeue is not
#                   allowed, as submit: this script is submitted again, to start after this job. none: neither
#   FEDLORA_LAUNCH  mpirun (default), srun, or either with options
# shellcheck shell=bash disable=SC2154
. "$jobs/site.sh"
# "task 3 of the array", by which commands mean this task and not the whole array
slurm_job=$SLURM_JOB_ID
slurm_array=()
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    slurm_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    slurm_array=(--array="$SLURM_ARRAY_TASK_ID")
fi

# the end as the scheduler sees it now: the limit may have been changed since; not the one of the job that submitted this one
unset FEDLORA_END_TIME
if slurm_end=$(date -d "$(squeue -h -j "$slurm_job" -o %e 2>/dev/null)" +%s 2>/dev/null) && [ "$slurm_end" -gt "$(date +%s)" ]; then
    export FEDLORA_END_TIME=$slurm_end
fi

export FEDLORA_RANKS=${SLURM_NTASKS:-1}
case ${FEDLORA_LAUNCH:-mpirun} in
mpirun)
    FEDLORA_LAUNCH=mpirun
    if [ "${SLURM_CPUS_PER_TASK:-1}" -gt 1 ]; then
        FEDLORA_LAUNCH="mpirun --map-by slot:PE=$SLURM_CPUS_PER_TASK --bind-to core"
    fi
    ;;
srun)
    FEDLORA_LAUNCH="srun --mpi=pmix --cpus-per-task=${SLURM_CPUS_PER_TASK:-1}"
    ;;
esac
export FEDLORA_LAUNCH

# this script once more, with what the command line of sbatch may have changed
slurm_again=(sbatch --dependency="afterany:$slurm_job" --job-name="$SLURM_JOB_NAME" --nodes="$SLURM_JOB_NUM_NODES"
    --ntasks="$FEDLORA_RANKS" --time="$(squeue -h -j "$slurm_job" -o %l 2>/dev/null)" ${slurm_array[@]+"${slurm_array[@]}"})
# slurm_option NAME VALUE: if there is a value
slurm_option() {
    [ -z "$2" ] || slurm_again+=("--$1=$2")
}
slurm_option ntasks-per-node "${SLURM_NTASKS_PER_NODE:-}"
slurm_option cpus-per-task "${SLURM_CPUS_PER_TASK:-}"
slurm_option mem "${SLURM_MEM_PER_NODE:-}"
slurm_option mem-per-cpu "${SLURM_MEM_PER_CPU:-}"
slurm_option partition "${SLURM_JOB_PARTITION:-}"
slurm_option account "${SLURM_JOB_ACCOUNT:-}"
slurm_option qos "${SLURM_JOB_QOS:-}"
slurm_option reservation "${SLURM_JOB_RESERVATION:-}"
# the whole chain in one log
slurm_option output "$(scontrol show job "$slurm_job" 2>/dev/null | sed -n 's/^ *StdOut=//p' | head -n 1)"
printf -v slurm_submit '%q ' "${slurm_again[@]}" "$0" "$@"
case ${FEDLORA_CHAIN:-requeue} in
requeue) export FEDLORA_AGAIN="scontrol requeue $slurm_job || $slurm_submit" ;;
submit) export FEDLORA_AGAIN=$slurm_submit ;;
*) unset FEDLORA_AGAIN ;;
esac
