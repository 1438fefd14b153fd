#!/bin/bash
# sbatch docs/slurm_train.sh CONFIG [key.sub=value ...]
#SBATCH --job-name=pixel_sail
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
#SBATCH --output=%x-%j.log
set -euo pipefail

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# --signal: 300 seconds before the time is up, Slurm sends SIGUSR1 to every task. They finish the step, save, and end
# with status 143. Give more seconds where a step and a save take longer.
# One task a GPU; Slurm's numbers become the ones that torch and DeepSpeed read. All GPUs of a node stay visible to each
# of its tasks, so that LOCAL_RANK chooses among them.
status=0
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec "${PYTHON:-.venv/bin/python}" tools/train.py "$@"
' bash "$@" || status=$?

# Slurm requeues a job by itself after a preemption or the failure of a node, not when its time is up.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
