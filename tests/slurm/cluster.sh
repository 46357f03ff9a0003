#!/usr/bin/env bash
# A Slurm cluster of two nodes, n1 and n2, on this one machine, for the tests. As root on Debian or Ubuntu:
#   export SLURM_ROOT=FOLDER                           state, logs and programs; made if missing
#   eval "$(tests/slurm/cluster.sh start)"             installs what is missing; sets SLURM_CONF and PATH
#   tests/slurm/cluster.sh stop                        ends what `start` started, and nothing else
# Progress and errors go to stderr, so that stdout holds nothing but what the shell is to evaluate.
set -euo pipefail

root=${SLURM_ROOT:?set SLURM_ROOT to a folder for the cluster}
export SLURM_CONF="$root/slurm.conf"
nodes=(n1 n2)
packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)

say() { echo "slurm: $*" >&2; }

# A daemon is ours if the process of its pid file has our folder on its command line: numbers are reused.
running() {
  local pid_file=$root/pid/$1
  [[ -s $pid_file ]] && grep -q --text "$root" "/proc/$(<"$pid_file")/cmdline" 2>/dev/null
}

install_packages() {
  dpkg --status "${packages[@]}" >/dev/null 2>&1 && return
  say "installing ${packages[*]}"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
}

# submitit asks sacct for the state of its jobs. There is no accounting here, so this stands in for it: the
# queue knows jobs that run, the completion log those that have ended.
write_sacct() {
  cat >"$root/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
log=$(dirname "$SLURM_CONF")/log/completed
echo "JobID|State|NodeList"
while (($#)); do
  if [[ $1 == -j ]]; then
    queued=$(squeue --noheader --states=all --jobs="$2" --format='%i|%T|%N' 2>/dev/null || true)
    if [[ -n $queued ]]; then
      echo "$queued"
    elif [[ -r $log ]]; then
      awk -v id="$2" '
        { for (i = 1; i <= NF; i++) { split($i, pair, "="); field[pair[1]] = pair[2] } }
        field["JobId"] == id { last = id "|" field["JobState"] "|" field["NodeList"] }
        END { if (last) print last }' "$log"
    fi
    shift
  fi
  shift
done
SACCT
  chmod +x "$root/bin/sacct"
}

# FirstJobId: submitit would take the results of an earlier cluster's job of the same number for its own.
# cred_expire: a requeued job waits for it, two minutes by default.
write_configuration() {
  local host here=127.0.0.1
  host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host($here)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
FirstJobId=$(($(date +%s) % 50000000 + 1))

AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$root/munge/socket,cred_expire=10

StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/pid/slurmctld
SlurmdPidFile=$root/pid/%n
SlurmctldLogFile=$root/log/slurmctld
SlurmdLogFile=$root/log/%n
JobCompType=jobcomp/filetxt
JobCompLoc=$root/log/completed
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SrunPortRange=61000-63000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
InactiveLimit=0

JobRequeue=1
KillWait=10
KillOnBadExit=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

GresTypes=gpu
$(for i in "${!nodes[@]}"; do
    echo "NodeName=${nodes[i]} NodeHostname=$host NodeAddr=$here Port=$((17001 + i)) CPUs=16 RealMemory=32000" \
      "Gres=gpu:2 State=UNKNOWN"
  done)
PartitionName=low Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL DefaultTime=10 MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
CONF
  for gpu in gpu0 gpu1; do  # pretend GPUs, so that jobs may ask for some: /dev/null by another name
    [[ -c $root/$gpu ]] || mknod "$root/$gpu" c 1 3
  done
  echo "NodeName=n[1-2] Name=gpu File=$root/gpu[0-1]" >"$root/gres.conf"
}

start_munge() {
  install -d -o munge -g munge -m 755 "$root/munge"
  if [[ ! -s $root/munge/key ]]; then
    (umask 077 && head -c 256 /dev/urandom >"$root/munge/key")
    chown munge: "$root/munge/key"
  fi
  running munged || runuser -u munge -- munged --force --socket="$root/munge/socket" \
    --key-file="$root/munge/key" --seed-file="$root/munge/seed" --log-file="$root/munge/log" \
    --pid-file="$root/munge/pid" >&2
  ln -sf ../munge/pid "$root/pid/munged"
}

ready_nodes() { sinfo --noheader --responding --Node --partition=low --states=idle,alloc,mix --format=%N | wc -l; }

start() {
  ((EUID == 0)) || { say "only root can start a cluster"; return 1; }
  install_packages
  for node in "${nodes[@]}"; do
    grep -qw "$node" /etc/hosts || echo "127.0.0.1 $node" >>/etc/hosts
  done
  mkdir -p "$root"/{bin,log,pid,state} "${nodes[@]/#/$root/spool/}"
  chmod 755 "$root"
  write_configuration
  write_sacct
  start_munge
  running slurmctld || slurmctld -f "$SLURM_CONF" >&2
  for node in "${nodes[@]}"; do
    running "$node" || slurmd -N "$node" -f "$SLURM_CONF" >&2
  done
  for _ in {1..150}; do
    if (($(ready_nodes 2>/dev/null || echo 0) == ${#nodes[@]})); then
      say "$(sinfo --version) with ${#nodes[@]} nodes"
      echo "export SLURM_CONF='$SLURM_CONF' PATH='$root/bin':\"\$PATH\""
      return
    fi
    sleep 0.2
  done
  say "the nodes did not come up; see $root/log"
  return 1
}

stop() {
  scancel --user=root 2>/dev/null || true
  for daemon in "${nodes[@]}" slurmctld munged; do
    running "$daemon" || continue
    local pid
    pid=$(<"$root/pid/$daemon")
    kill "$pid" || continue
    for _ in {1..150}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
  done
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) say "usage: $0 start|stop"; exit 2 ;;
esac
