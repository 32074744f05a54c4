#!/bin/sh
# causes.sh CASE ID: runs in a node as root. One container's end, by a cause that the case makes: a
# scope of systemd with the name that runc gives it, and an init in a pid namespace of its own.
# Prints the pid and the name of the process that sent the signal, where a process did.
#
# A process that sends a signal lives on for a moment, as a shell, a kubelet and a runtime do: the
# cgroup of one that ends at once is not known.
#
# The first argument of `sh -c` is its $0: a folder of the case.
set -eu
scope=cri-containerd-$2.scope
slice=kubepods-podcauses.slice
work=/run/causes/$2
mkdir -p "$work"

# start PROPERTIES... -- INIT: the init is a line of sh, which begins when `go` is called.
start() {
    properties=
    while [ "$1" != -- ]; do
        properties="$properties --property=$1"
        shift
    done
    mkfifo "$work/go"
    # shellcheck disable=SC2086
    systemd-run --quiet --scope --collect --slice="$slice" --unit="$scope" \
        --property=Delegate=yes $properties \
        unshare --pid --fork sh -c "read _ < \$0/go; $2" "$work" > "$work/out" 2>&1 &
    cgroup=/sys/fs/cgroup/kubepods.slice/$slice/$scope
    until init=$(init) && [ -n "$init" ]; do sleep 0.02; done
    # An agent finds a cgroup within milliseconds; a runtime needs longer to start its process.
    sleep 0.3
}

# The process of the scope that is pid 1 of a namespace.
init() {
    for pid in $(cat "$cgroup/cgroup.procs" 2> /dev/null); do
        grep -q '^NSpid:.*[0-9][[:space:]]1$' "/proc/$pid/status" 2> /dev/null && echo "$pid"
    done
    true
}

go() {
    echo > "$work/go"
}

# Ends when the scope has no process.
ended() {
    tries=0
    while grep -q 'populated 1' "$cgroup/cgroup.events" 2> /dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "$1: it did not end: $(cat "$work/out")" >&2; exit 1; }
        sleep 0.05
    done
    rm -rf "$work"
}

# within LINE: a process of the container's cgroup that runs a line, in the node's pid namespace, as
# an exec in a pod that shares it.
within() {
    sh -c 'echo $$ > "$0/cgroup.procs" && eval "$1"' "$cgroup" "$1"
}

case $1 in
oom-own-limit)
    start MemoryMax=8M -- 'exec tail /dev/zero'
    go
    ;;
oom-group)
    start MemoryMax=8M -- 'sleep 1000 & exec tail /dev/zero'
    echo 1 > "$cgroup/memory.oom.group"
    go
    ;;
oom-limit-above)
    start MemoryMax=64M -- 'exec tail /dev/zero'
    # Other cases are below the same cgroup, which may stay.
    above=${cgroup%/*}
    echo 12M > "$above/memory.max"
    go
    ended "$1"
    [ ! -e "$above/memory.max" ] || echo max > "$above/memory.max"
    ;;
oom-resized)
    start MemoryMax=64M -- 'exec tail /dev/zero'
    echo 8M > "$cgroup/memory.max"
    go
    ;;
oom-neighbour)
    # The one that takes the memory has the same id with 9 as its first digit.
    taker=cri-containerd-9${2#?}.scope
    mkfifo "$work/held"
    systemd-run --quiet --scope --collect --slice=kubepods-podshared.slice --unit="$taker" \
        --property=Delegate=yes /tmp/oomtest hold 40 > "$work/held" 2>&1 &
    read -r _ < "$work/held"
    slice=kubepods-podshared.slice
    start -- 'exec tail /dev/zero'
    echo 1000 > "/proc/$init/oom_score_adj"
    echo 48M > "${cgroup%/*}/memory.max"
    go
    ended "$1"
    systemctl stop "$taker"
    ;;
oom-limit-below)
    start MemoryMax=64M -- 'exec tail /dev/zero'
    mkdir "$cgroup/inner"
    for pid in $(cat "$cgroup/cgroup.procs"); do echo "$pid" > "$cgroup/inner/cgroup.procs"; done
    echo +memory > "$cgroup/cgroup.subtree_control"
    echo 8M > "$cgroup/inner/memory.max"
    go
    ;;
oom-within)
    echo "echo \$\$ > $work/cgroup/job/cgroup.procs; exec tail /dev/zero" > "$work/job"
    start MemoryMax=64M -- 'for run in 1 2 3; do sh $0/job; done; exit 0'
    ln -s "$cgroup" "$work/cgroup"
    mkdir "$cgroup/init" "$cgroup/job"
    for pid in $(cat "$cgroup/cgroup.procs"); do echo "$pid" > "$cgroup/init/cgroup.procs"; done
    echo +memory > "$cgroup/cgroup.subtree_control"
    echo 8M > "$cgroup/job/memory.max"
    go
    ;;
oom-machine)
    start -- 'exec sleep 1000'
    go
    echo 1000 > "/proc/$init/oom_score_adj"
    sleep 0.2
    # The kernel's OOM killer is called as if the machine had no memory left.
    echo f > /proc/sysrq-trigger
    ;;
process-within)
    start -- 'exec sleep 1000'
    go
    within "echo \$\$ sh; kill -9 $init; sleep 0.2"
    ;;
process-of-node)
    start -- 'exec sleep 1000'
    go
    sh -c 'echo $$ sh; kill -9 $0; sleep 0.2' "$init"
    ;;
cgroup-kill)
    start -- 'exec sleep 1000'
    go
    sh -c 'echo $$ sh; echo 1 > "$0"; sleep 0.2' "$cgroup/cgroup.kill"
    ;;
oom-policy)
    start MemoryMax=16M OOMPolicy=stop TimeoutStopSec=1 -- \
        'trap : TERM; (exec tail /dev/zero); while :; do sleep 1; done'
    go
    echo 1 systemd
    ;;
oomd)
    mkdir -p /etc/systemd/oomd.conf.d
    printf '[OOM]\nDefaultMemoryPressureDurationSec=1s\n' > /etc/systemd/oomd.conf.d/causes.conf
    systemctl start systemd-oomd
    start MemoryHigh=8M ManagedOOMMemoryPressure=kill ManagedOOMMemoryPressureLimit=5% -- \
        'exec tail /dev/zero'
    go
    ;;
seccomp)
    start -- 'exec /tmp/oomtest seccomp'
    go
    ;;
resource-limit)
    start -- 'ulimit -t 1; while :; do :; done'
    go
    ;;
crash)
    start -- 'exec /tmp/oomtest crash'
    go
    ;;
*)
    echo "no case $1" >&2
    exit 2
    ;;
esac
ended "$1"
