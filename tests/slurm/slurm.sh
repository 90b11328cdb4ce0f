#!/usr/bin/env bash
# A whole SLURM on this machine, for tests: tests/slurm/slurm.sh start|stop FOLDER
# Needs Debian's slurmctld, slurmd, slurm-client and munge, and root; installs nothing, touches nothing outside FOLDER.
# After `start`, clients find it by SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
command=${1:?start or stop} folder=$(readlink -f "${2:?a scratch folder}")
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

start() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || { echo "no $program: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 3; }
    done
    mkdir -p "$folder"/{state,spool}
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 0600 "$folder/munge.key"
    port=$((20000 + RANDOM % 20000))
    cat > "$SLURM_CONF" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1,sched_min_interval=200000
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munge.seed"
    slurmctld -c
    slurmd -N "$host"
    for _ in $(seq 150); do
        [ "$(sinfo -h -o %t 2> /dev/null || true)" = idle ] && return 0
        sleep 0.2
    done
    echo "SLURM did not come up: see $folder/*.log" >&2
    stop
    exit 1
}

stop() { # only what was started here, by its process number
    scancel --state=PENDING --user=root 2> /dev/null || true
    scancel --user=root 2> /dev/null || true
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
    done
}

"$command"
