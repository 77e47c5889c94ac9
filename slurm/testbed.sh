#!/usr/bin/env bash
#
# testbed.sh - a real Slurm cluster of N "nodes" on one Linux machine.
#
#   testbed.sh up [N]             start a cluster of N nodes (default 4); does nothing if it is already up
#   testbed.sh down               stop it and remove everything that it created
#   testbed.sh status             print the hosts and sinfo; exit status 0 only if the cluster is up
#   testbed.sh exec HOST CMD...   run CMD on HOST: "head" (controller and login host) or node1 .. nodeN
#   testbed.sh cut  NODE          disconnect NODE from the network
#   testbed.sh heal NODE          connect it again
#   testbed.sh kill NODE          power NODE off: every process on it gets SIGKILL
#   testbed.sh boot NODE          start a killed NODE again
#
# Examples:
#   testbed.sh up 4
#   testbed.sh exec head srun -N4 hostname
#   testbed.sh exec head sbatch --wait job.sh
#   testbed.sh down
#
# How it works
#   Every host (head, node1 .. nodeN) is one tree of processes in its own network, UTS (host name), IPC, PID and
#   mount namespaces. The head's network namespace has a bridge; each node's eth0 is a veth connected to it. No host
#   has a default route, so no packet can leave the machine. The head runs munged and slurmctld, each node a slurmd.
#   Each host also runs an sshd if it is installed (root, by key), for `mpirun --host`. All hosts share this machine's
#   file system, as over NFS, except /proc, /run, /dev/shm and four paths that are bind-mounted per host, so that the
#   machine's own are not changed: /etc/hosts, /etc/hostname, /etc/slurm and /etc/ssh/ssh_config. `exec` keeps the
#   working directory and the environment.
#
#   The namespaces have no names: the kernel removes them, the bridge, the links and all mounts with their last
#   process. So `down` sends SIGKILL to the first process of each host, by the pid that `up` recorded, after verifying
#   that the pid is still that process; the kernel then ends the other processes of the host. Then it removes FXC_DIR.
#   It changes nothing else.
#
# Requirements
#   Root with CAP_SYS_ADMIN and CAP_NET_ADMIN, and a kernel with veth and bridge. No systemd, cgroup or database.
#   Debian 12's packages (Slurm 22.05):
#     apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2 openssh-server
#   and libpmix-dev for `srun --mpi=pmix`: Slurm's plugin opens libpmix.so, a link that only this package has.
#
# Settings (environment variables; the same for every call)
#   FXC_DIR      state folder, default /tmp/fxcluster. Keep the path short: it contains Unix sockets. Two folders
#                are two clusters, which may be up at the same time.
#   FXC_NET      first three octets of the addresses, default 10.77.0: nodeI gets .I, the head .254
#   FXC_CPUS     CPUs that each node reports, independent of the machine; default 8
#   FXC_TIMEOUT  seconds until Slurm sets a silent node down (SlurmdTimeout; Slurm's own default is 300), default 15

set -euo pipefail

DIR=${FXC_DIR:-/tmp/fxcluster}
NET=${FXC_NET:-10.77.0}
CPUS=${FXC_CPUS:-8}
TIMEOUT=${FXC_TIMEOUT:-15}
SELF=$(readlink -f "$0")
PATH=$PATH:/usr/sbin:/sbin

die() { echo "testbed.sh: $*" >&2; exit 1; }

# wait_for SECONDS CMD...: wait until CMD succeeds
wait_for() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}

# ----------------------------------------------------------------------------------------- hosts, by their pid

# A pid may have been reused. So a pid file contains "PID STARTTIME"; STARTTIME is field 22 of /proc/PID/stat.
starttime() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086
    set -- ${stat##*) }                     # the part after the command's name: from field 3
    echo "${20}"
}

# pid_of HOST: print the pid of its first process, if it is running
pid_of() {
    local pid start
    { read -r pid start <"$DIR/pid/$1"; } 2>/dev/null || return 1
    [ "$(starttime "$pid")" = "$start" ] || return 1
    echo "$pid"
}

# start_host HOST ADDRESS
start_host() {
    local host=$1 unshare pid
    rm -f "$DIR/run/$host".*
    # unshare remains the parent of the PID namespace's first process; --kill-child kills that one when it ends.
    # setsid: a session of its own, so that Ctrl-C and hang-ups of the caller do not reach it. env -i: the daemons get
    # nothing of the caller's environment.
    env -i PATH="$PATH" HOME=/root LC_ALL=C.UTF-8 FXC_DIR="$DIR" \
        setsid unshare --mount --uts --ipc --net --pid --fork --kill-child \
        bash "$SELF" --init "$host" "$2" >"$DIR/log/init.$host.log" 2>&1 </dev/null &
    unshare=$!
    wait_for 10 grep -q . "/proc/$unshare/task/$unshare/children" ||
        { cat "$DIR/log/init.$host.log" >&2; die "$host does not start"; }
    read -r pid _ <"/proc/$unshare/task/$unshare/children" || true
    echo "$pid $(starttime "$pid")" >"$DIR/pid/$host"
    wait_for 10 test -e "$DIR/run/$host.ready" || { cat "$DIR/log/init.$host.log" >&2; die "$host does not start"; }
    [ "$host" = head ] || connect "$host" "$pid"
}

# connect NODE PID: a veth pair from the node's eth0 to the head's bridge, where its end has the node's name
connect() {
    local head
    head=$(pid_of head) || die "head is not running"
    in_net() { nsenter --target "$head" --net -- "$@"; }
    in_net ip link del "$1" 2>/dev/null || true                 # left from before a kill
    in_net ip link add "$1" type veth peer name eth0 netns "$2"
    in_net ip link set "$1" master br0 up
    : >"$DIR/run/$1.connected"
}

# stop_host HOST
stop_host() {
    local pid
    if pid=$(pid_of "$1"); then
        kill -KILL "$pid" 2>/dev/null || true
        gone() { ! pid_of "$1"; }
        wait_for 10 gone "$1" || die "$1 (pid $pid) does not end"
    fi
    rm -f "$DIR/pid/$1"
}

# in_host HOST CMD...
in_host() {
    local pid
    pid=$(pid_of "$1") || die "$1 is not running"
    shift
    nsenter --target "$pid" --mount --uts --ipc --net --pid --wd="$PWD" -- "$@"
}

# init HOST ADDRESS: the first process of a host, pid 1 in its PID namespace ("testbed.sh --init" under unshare).
init() {
    local host=$1 address=$2 device=eth0
    mount -t proc proc /proc
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/sshd /run/lock
    hostname "$host"
    echo "$host" >/run/hostname
    # Without sshd there is no ssh configuration to mount, though ssh may be installed.
    bind() { [ ! -e "$1" ] || [ ! -e "$2" ] || mount --bind "$1" "$2"; }
    bind /run/hostname /etc/hostname
    bind "$DIR/etc/hosts" /etc/hosts
    bind "$DIR/etc/slurm" /etc/slurm
    bind "$DIR/etc/ssh_config" /etc/ssh/ssh_config

    ip link set lo up
    if [ "$host" = head ]; then device=br0; ip link add br0 type bridge; fi
    : >"$DIR/run/$host.ready"
    [ "$host" = head ] || wait_for 10 test -e "$DIR/run/$host.connected"
    ip addr add "$address/24" dev $device
    ip link set $device up

    [ ! -e "$DIR/etc/sshd_config" ] || /usr/sbin/sshd -f "$DIR/etc/sshd_config" -E "$DIR/log/sshd.$host.log"
    if [ "$host" = head ]; then
        munged --force --key-file="$DIR/etc/munge.key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
            --seed-file="$DIR/munge/seed" --log-file="$DIR/log/munged.log"
        slurmctld
    else
        slurmd -N "$host"
    fi
    while :; do sleep 1000000 & wait; done                      # bash reaps the orphans
}

# ------------------------------------------------------------------------------------------------- configuration

configure() {
    local nodes=$1 i
    mkdir -p "$DIR"/{etc/slurm,log,munge,pid,run,state}
    chmod 755 "$DIR" "$DIR/munge"
    for i in $(seq "$nodes"); do
        mkdir -p "$DIR/spool/node$i" "$DIR/tmp/node$i"
        chmod 1777 "$DIR/tmp/node$i"
    done

    (umask 077; head -c 128 /dev/urandom >"$DIR/etc/munge.key")

    { echo "127.0.0.1 localhost"
      echo "$NET.254 head"
      for i in $(seq "$nodes"); do echo "$NET.$i node$i"; done; } >"$DIR/etc/hosts"

    cat >"$DIR/etc/slurm/slurm.conf" <<CONF
ClusterName=fxcluster
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
# The nodes share /tmp, and mpi/pmix creates a folder of the same name on each: give each node its own TmpFS.
TmpFS=$DIR/tmp/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Start batch jobs at once: by default Slurm waits up to 3 s for more of them.
SchedulerParameters=batch_sched_delay=0
SlurmdTimeout=$TIMEOUT
ReturnToService=2
# Use CPUs= below instead of what slurmd detects.
SlurmdParameters=config_overrides
NodeName=node[1-$nodes] CPUs=$CPUS RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

    [ -x /usr/sbin/sshd ] || return 0
    ssh-keygen -q -t ed25519 -N '' -C fxcluster -f "$DIR/etc/ssh_key"
    ssh-keygen -q -t ed25519 -N '' -C fxcluster -f "$DIR/etc/ssh_host_key"
    cat >"$DIR/etc/ssh_config" <<CONF
Host *
    IdentityFile $DIR/etc/ssh_key
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ConnectTimeout 5
CONF
    cat >"$DIR/etc/sshd_config" <<CONF
HostKey $DIR/etc/ssh_host_key
AuthorizedKeysFile $DIR/etc/ssh_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile /run/sshd.pid
MaxStartups 100
CONF
}

# ------------------------------------------------------------------------------------------------------ commands

nodes() { cat "$DIR/nodes" 2>/dev/null; }       # the number of nodes; the file also marks DIR as a cluster's

idle() { [ "$(in_host head sinfo --noheader --states=idle --format=%D --nodes="$1")" = "$2" ]; }

is_up() {
    local i
    [ "$(nodes)" = "$1" ] && pid_of head >/dev/null || return 1
    for i in $(seq "$1"); do pid_of "node$i" >/dev/null || return 1; done
}

up() {
    local nodes=${1:-4} i tool
    [[ $nodes =~ ^[1-9][0-9]{0,2}$ && $nodes -le 200 ]] || die "up: invalid number of nodes '$nodes': use 1 to 200"
    if is_up "$nodes"; then echo "already up: $nodes nodes"; return; fi
    [ "$(id -u)" = 0 ] || die "needs root"
    for tool in munged slurmctld slurmd sinfo ip unshare nsenter; do
        command -v $tool >/dev/null || die "$tool is not installed: see 'Requirements' in this script"
    done
    unshare --mount --uts --ipc --net --pid --fork true || die "cannot create namespaces: see 'Requirements' in this script"
    down
    trap down EXIT                                              # remove an incomplete cluster
    mkdir -p "$DIR"
    echo "$nodes" >"$DIR/nodes"
    configure "$nodes"
    start_host head "$NET.254"
    for i in $(seq "$nodes"); do start_host "node$i" "$NET.$i"; done
    wait_for 60 idle "node[1-$nodes]" "$nodes" ||
        { in_host head sinfo >&2 || true; tail -n 5 "$DIR"/log/*.log >&2; die "up: not all nodes became idle"; }
    trap - EXIT
    echo "up: $nodes nodes; state and logs in $DIR"
}

down() {
    local file
    [ -d "$DIR" ] || return 0
    [ -e "$DIR/nodes" ] || rmdir "$DIR" 2>/dev/null || die "down: $DIR is not a cluster's state folder"
    for file in "$DIR"/pid/node* "$DIR"/pid/head; do [ ! -e "$file" ] || stop_host "${file##*/}"; done
    rm -rf "$DIR"
}

status() {
    local host pid
    pid_of head >/dev/null || { echo "down"; return 1; }
    for host in head $(seq --format=node%g "$(nodes)"); do
        if pid=$(pid_of "$host"); then echo "$host: pid $pid"; else echo "$host: off"; fi
    done
    in_host head sinfo
}

# Slurm checks a node that is down only rarely (45 s have been seen). SIGHUP makes slurmd register again, and the node
# is idle at once.
heal() {
    in_host head ip link set "$1" up
    idle "$1" 1 || in_host "$1" sh -c 'kill -HUP "$(cat /run/slurmd.pid)"'
}

boot() {
    ! pid_of "$1" >/dev/null || die "boot: $1 is running"
    start_host "$1" "$NET.${1#node}"
    wait_for 60 idle "$1" 1 || die "boot: $1 does not become idle"
}

# exec HOST CMD...: replace this process with nsenter. nsenter does not forward signals: when it is killed, CMD gets
# SIGTERM through the parent-death signal.
run_in_host() {
    local pid
    [ $# -ge 2 ] || die "exec HOST CMD..."
    pid=$(pid_of "$1") || die "exec: $1 is not running"
    shift
    exec nsenter --target "$pid" --mount --uts --ipc --net --pid --wd="$PWD" -- setpriv --pdeathsig TERM -- "$@"
}

a_node() { [ -n "${1:-}" ] && [ -d "$DIR/spool/$1" ] || die "no such node: '${1:-}'"; }

cmd=${1:-}
shift || true
case $cmd in
    up)     up "$@" ;;
    down)   down; echo "down" ;;
    status) status ;;
    exec)   run_in_host "$@" ;;
    cut)    a_node "${1:-}"; in_host head ip link set "$1" down ;;
    heal)   a_node "${1:-}"; heal "$1" ;;
    kill)   a_node "${1:-}"; stop_host "$1" ;;
    boot)   a_node "${1:-}"; boot "$1" ;;
    --init) init "$@" ;;
    *)      sed -n '3,18s/^# \{0,1\}//p' "$SELF"; exit 2 ;;
esac
