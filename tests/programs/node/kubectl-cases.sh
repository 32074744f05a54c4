#!/bin/sh
# kubectl-cases.sh HANDLER...: runs in a node with Kubernetes. Makes pods of each handler die, and
# prints what `kubectl get pod` has as reason and exit code, beside what is right.
#
# The second half runs with the kubelet's singleProcessOOMKill. Exit code: 1 if a pod is shown wrong.
set -eu
kubelet=/etc/kubernetes/kubelet.yaml
wrong=0
folder=$(mktemp -d)
cleanup() {
    kubectl delete pod --selector=kubectl-cases --now --wait=false > /dev/null 2>&1 || true
    rm -rf "$folder"
    sed -i '/^singleProcessOOMKill:/d' $kubelet
    systemctl restart kubelet
}
trap cleanup EXIT

# pod CASE HANDLER SHELL-LINE: one container with a limit of 32 MiB. The deadline ends what does not
# end itself: kubelet stops it with a grace period of one second, and keeps the pod.
pod() {
    cat <<EOF
---
apiVersion: v1
kind: Pod
metadata: {name: "$1-$2", labels: {kubectl-cases: "$1"}}
spec:
  nodeName: node
  runtimeClassName: "$2"
  hostNetwork: true
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  activeDeadlineSeconds: ${4:-300}
  containers:
  - name: main
    image: localhost/busybox:1
    imagePullPolicy: Never
    resources: {limits: {memory: 32Mi}}
    command: [sh, -c, "$3"]
EOF
}

runtime_class() {
    printf -- '---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: "%s"}\nhandler: "%s"\n' "$1" "$1"
}

# expect CASE RIGHT...: waits until all pods of the case have ended, and prints them.
expect() {
    case=$1 right=$2
    shift 2
    tries=0
    for handler in "$@"; do
        path='{.status.containerStatuses[0].state.terminated.reason}/{.status.containerStatuses[0].state.terminated.exitCode}'
        while shown=$(kubectl get pod "$case-$handler" -o "jsonpath=$path" || true)
            [ "${shown:-/}" = / ]; do
            tries=$((tries + 1))
            [ $tries -lt 300 ] || { echo "$case-$handler has not ended" >&2; exit 1; }
            sleep 1
        done
        verdict=ok
        [ "$shown" = "$right" ] || { verdict="WRONG, right is $right"; wrong=1; }
        printf '%-18s %-10s %-16s %s\n' "$case" "$handler" "$shown" "$verdict"
    done
}

kill_child="dd if=/dev/zero of=/dev/null bs=40M count=1"
for handler in "$@"; do
    runtime_class "$handler"
    pod group "$handler" "$kill_child; exit 1"
    pod exit-7 "$handler" "exit 7"
    pod ignores-term "$handler" "trap '' TERM; while :; do sleep 1; done" 40
done > "$folder/first.yaml"
kubectl apply -f "$folder/first.yaml" > /dev/null
printf '%-18s %-10s %-16s %s\n' CASE HANDLER SHOWN ""
# kubelet's default: the kernel kills the whole container.
expect group OOMKilled/137 "$@"
expect exit-7 Error/7 "$@"
expect ignores-term Error/137 "$@"

echo 'singleProcessOOMKill: true' >> $kubelet
systemctl restart kubelet
for handler in "$@"; do
    pod child "$handler" "$kill_child; exit 1"
    pod stopped-later "$handler" "trap '' TERM; $kill_child; while :; do sleep 1; done" 60
done > "$folder/second.yaml"
kubectl apply -f "$folder/second.yaml" > /dev/null
expect child OOMKilled/1 "$@"
# The kill is 10 s and more before the end. With the policy causal-oom it is not the cause.
right=OOMKilled/137
[ ! -e /etc/coroner/policies.d/50-causal-oom.wasm ] || right=Error/137
expect stopped-later "$right" "$@"
exit $wrong
