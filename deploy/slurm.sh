#!/usr/bin/env bash
# One run on a SLURM allocation: Ray on all of its nodes, the driver on the first.
#   sbatch --nodes=4 deploy/slurm.sh experiment=digits run.dir=/shared/runs/digits
# Submit it from a checkout, or anywhere with the package installed, with the Python environment on the PATH; folder,
# environment and run directory must be seen by all nodes, or the run directory be in an object store. Before the time
# limit the actors finish what they have, and the job is queued again: it goes on with what is missing, until the run is
# done. A lost node costs what its actors were computing: a minute of each one's work, at most. What Ray says is in
# coar-dist-JOB.ray.log; after an error, Ray's own logs of all nodes are in coar-dist-JOB.ray/.
#SBATCH --job-name=coar-dist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=coar-dist-%j.log
set -euo pipefail

# knob: what makes `python` and `ray` the right ones, e.g. `module load python/3.11` or `. /shared/venv/bin/activate`

# srun hands the environment to the nodes: who does not know this job's token cannot use its Ray.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun no longer takes it from sbatch

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# knob: HEAD_IP, where the node's name does not stand for its address in the cluster's private network
head_ip=${HEAD_IP:-$(getent ahostsv4 "$head" | awk '$1 !~ /^127/ { print $1; exit }')}
head_ip=${head_ip:-$(hostname -I | awk '{ print $1 }')} # Debian's /etc/hosts knows its own name as 127.0.1.1
port=$((20000 + SLURM_JOB_ID % 6000)) # not the usual ones, which another job may have left taken
temporary="/tmp/ray-$SLURM_JOB_ID" # not /tmp/ray, which may be another user's
ray_log="$PWD/coar-dist-$SLURM_JOB_ID.ray.log"
options=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temporary" --disable-usage-stats)

notice=140 # seconds in which actors may finish: two shards of ablation.shard_seconds each, and writing them
steps=()
driver=
timer=
stopped_by=
failed=yes
# shellcheck disable=SC2329 # for the traps
clean_up() {
    kill "$driver" "$timer" 2> /dev/null || true
    for ((i = ${#steps[@]} - 1; i >= 0; i--)); do # the head last: a node that leaves tells it
        kill "${steps[i]}" 2> /dev/null || true
        wait "${steps[i]}" || true
    done
    wait
    if [[ $failed == yes ]]; then
        echo "Job $SLURM_JOB_ID: what Ray says is in $ray_log, its logs in ${ray_log%.log}/." >&2
        # shellcheck disable=SC2016 # every node has a name of its own
        srun --overlap --nodes="${#nodes[@]}" --ntasks-per-node=1 bash -c \
            'mkdir -p "$1/$(hostname)" && cp -r "$0"/session_latest/logs "$1/$(hostname)"' \
            "$temporary" "${ray_log%.log}" || true
    fi
    srun --overlap --nodes="${#nodes[@]}" --ntasks-per-node=1 rm -rf "$temporary" || true
}
# shellcheck disable=SC2329
stop_driver() {
    stopped_by=$1
    kill -TERM "$driver" 2> /dev/null || true
}
# shellcheck disable=SC2329
give_notice() {
    stopped_by=limit
    kill -USR1 "$driver" 2> /dev/null || true
    (sleep "$notice" && kill -TERM "$driver") > /dev/null 2>&1 &
    timer=$!
}
trap clean_up EXIT
trap give_notice USR1
trap 'stop_driver other' TERM # preempted: SLURM itself queues the job again

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$head_ip" --port="$port" \
    --include-dashboard=false --dashboard-port=$((port + 6000)) "${options[@]}" >> "$ray_log" 2>&1 &
steps+=($!)
is_up() { # an open port may be another program's, or another job's Ray, which does not know this job's token
    (exec 3<> "/dev/tcp/$head_ip/$port") 2> /dev/null &&
        timeout 20 ray status --address="$head_ip:$port" > /dev/null 2>&1
}
until is_up; do
    if [[ -n $stopped_by ]] || ! kill -0 "${steps[0]}" 2> /dev/null || ((SECONDS > 120)); then
        echo "Ray did not start on $head ($head_ip:$port)." >&2
        exit 1
    fi
    sleep 1
done
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks-per-node=1 --exclude="$head" --kill-on-bad-exit=0 --no-kill \
        ray start --address="$head_ip:$port" "${options[@]}" >> "$ray_log" 2>&1 &
    steps+=($!)
fi

echo "Job $SLURM_JOB_ID: Ray on ${nodes[*]}; start ${SLURM_RESTART_COUNT:-0}."
python -m coar_dist cluster=existing cluster.address="$head_ip:$port" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do # a signal ended the wait, not the driver
    code=0
    wait "$driver" || code=$?
done
if [[ -n $stopped_by || $code -eq 0 ]]; then failed=no; fi
if [[ $stopped_by == limit && $code -ne 0 ]]; then
    echo "Job $SLURM_JOB_ID: stopped before its time limit, and queued again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
