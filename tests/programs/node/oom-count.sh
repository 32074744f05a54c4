#!/bin/sh
# oom-count.sh [N] [RUNTIME]: runs in a node. Starts N containers one after another, each a single
# process that exceeds its limit of 16 MiB, and compares the reason that CRI reports with the
# kernel log:
#
#   cargo xtask node ssh -- sh -s 10 < tests/programs/node/oom-count.sh
#
# The kernel log is followed from the start: its buffer holds about twenty reports.
set -eu
count=${1:-10} runtime=${2:-runc}
work=$(mktemp -d)
cd "$work"

# kubelet removes pods that the API server does not have.
systemctl stop kubelet
dmesg -W > kernel.log &
follower=$!
pod=
cleanup() {
    kill "$follower" 2> /dev/null || true
    [ -z "$pod" ] || crictl rmp -f "$pod" > /dev/null 2>&1 || true
    systemctl start kubelet
    rm -rf "$work"
}
trap cleanup EXIT

cat > pod.json <<END
{"metadata": {"name": "oom-count", "namespace": "default", "uid": "oom-count-$$", "attempt": 1},
 "log_directory": "$work/log",
 "linux": {"cgroup_parent": "kubepods-burstable-pod$$.slice",
           "security_context": {"namespace_options": {"network": 2}}}}
END
pod=$(crictl runp --runtime "$runtime" pod.json)

n=0
while [ "$n" -lt "$count" ]; do
    n=$((n + 1))
    cat > container.json <<END
{"metadata": {"name": "c$n", "attempt": 0}, "image": {"image": "localhost/busybox:1"},
 "command": ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=20M", "count=1"],
 "log_path": "c$n.log", "linux": {"resources": {"memory_limit_in_bytes": 16777216}}}
END
    id=$(crictl create "$pod" container.json pod.json)
    crictl start "$id" > /dev/null
    state= tries=0
    while [ "$state" != CONTAINER_EXITED ] && [ "$tries" -lt 60 ]; do
        tries=$((tries + 1))
        crictl inspect "$id" > inspect.json
        state=$(jq -r '(if type == "array" then .[0] else . end) | .status.state' inspect.json)
    done
    status='(if type == "array" then .[0] else . end) | .status'
    echo "$id $(jq -r "$status | [.reason, .exitCode] | @tsv" inspect.json)" >> reasons
done
# The log's reader may be behind.
sleep 2

killed=0 oom=0 lost=0
while read -r id reason code; do
    kernel=no
    if grep 'oom-kill:constraint' kernel.log | grep -q "task_memcg=[^,]*$id"; then
        kernel=yes killed=$((killed + 1))
        if [ "$reason" = OOMKilled ]; then oom=$((oom + 1)); else lost=$((lost + 1)); fi
    fi
    echo "$(echo "$id" | cut -c 1-12)  OOM kill in the kernel log: $kernel  CRI: $reason $code"
done < reasons
echo "containerd $(containerd --version | cut -d " " -f 3), $runtime: $count containers, $killed OOM kills in" \
    "the kernel log, CRI reports $oom OOMKilled and loses $lost"
