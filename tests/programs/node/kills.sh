#!/bin/sh
# kills.sh: runs in a node as root. Makes cgroups as container runtimes do, and lets the kernel kill
# in them. Cgroups of containers are removed, those above them stay.
#   kills.sh one PATH...         one process in each, one cgroup after another
#   kills.sh group PATH COUNT    COUNT processes that the kernel kills as a group
#   kills.sh storm PREFIX COUNT  one process in each of COUNT cgroups at once: PREFIX followed by
#                                64 digits of a container id, and .scope
# A limit within a container is set as PATH=SUBPATH: the container is PATH, the limit is below it.
set -eu
cd /sys/fs/cgroup

# make PATH: a cgroup with the memory controller.
make() {
    folder=.
    for name in $(echo "$1" | tr / ' '); do
        echo +memory > "$folder/cgroup.subtree_control"
        folder=$folder/$name
        mkdir -p "$folder"
    done
}

# limit PATH BYTES
limit() {
    echo "$2" > "$1/memory.max"
    # The node has no swap; another may.
    [ ! -e "$1/memory.swap.max" ] || echo 0 > "$1/memory.swap.max"
}

# exceed PATH: a process in the cgroup that is killed at the limit.
exceed() {
    sh -c 'echo $$ > "$0/cgroup.procs" && exec tail /dev/zero' "$1" || true
}

# gone PATH: removes a cgroup, once its processes are.
gone() {
    tries=0
    until rmdir "$1" 2> /dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || { echo "$1 cannot be removed" >&2; exit 1; }
        sleep 0.05
    done
}

case $1 in
one)
    shift
    for path; do
        inner=${path%%=*}
        [ "$inner" = "$path" ] || inner=$inner/${path#*=}
        make "$inner"
        limit "${path%%=*}" 4M
        # An agent finds a cgroup within milliseconds; a runtime needs longer to start its process.
        sleep 0.3
        exceed "$inner"
        sleep 0.3
        while [ "$inner" != "${path%%=*}" ]; do gone "$inner"; inner=${inner%/*}; done
        gone "$inner"
    done
    ;;
group)
    make "$2"
    limit "$2" "$((8 + $3 / 2))M"
    echo 1 > "$2/memory.oom.group"
    sleep 0.3
    sh -ec 'echo $$ > "$0/cgroup.procs"
        at=1
        while [ $at -lt $1 ]; do sleep 1000 & at=$((at + 1)); done
        exec tail /dev/zero' "$2" "$3" || true
    sleep 0.3
    gone "$2"
    ;;
storm)
    at=0
    while [ $at -lt "$3" ]; do
        path=$2$(printf %064d $at).scope
        make "$path"
        limit "$path" 4M
        at=$((at + 1))
    done
    sleep 1
    at=0
    while [ $at -lt "$3" ]; do
        exceed "$2$(printf %064d $at).scope" > /dev/null 2>&1 &
        at=$((at + 1))
    done
    wait
    at=0
    while [ $at -lt "$3" ]; do
        gone "$2$(printf %064d $at).scope"
        at=$((at + 1))
    done
    ;;
esac
