#!/bin/sh
# Runs within the root file system after files/ and the programs were copied: images, keys, units.
set -eu
# One id for all nodes, so that none boots for the first time: no presets, no questions.
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
mkdir -p /etc/containerd/conf.d /opt/node/images /root/.kube /var/lib/kubelet
ln -sf /etc/kubernetes/kubeconfig.yaml /root/.kube/config
chmod 700 /root/.ssh
chmod 600 /root/.ssh/authorized_keys

cd /etc/kubernetes
openssl genrsa -out service-account.key 2048 2> /dev/null
openssl rsa -in service-account.key -pubout -out service-account.pub 2> /dev/null

layer=$(mktemp -d)
mkdir -p "$layer/bin" "$layer/tmp" "$layer/etc" "$layer/dev" "$layer/proc" "$layer/sys"
chmod 755 "$layer"
chmod 1777 "$layer/tmp"
cp /opt/node/pause "$layer/bin/pause"
/opt/node/image.sh /opt/node/images/pause.tar localhost/pause:1 /bin/pause "$layer"
rm "$layer/bin/pause"
cp /usr/bin/busybox "$layer/bin/busybox"
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$layer/bin/$applet"
done
/opt/node/image.sh /opt/node/images/busybox.tar localhost/busybox:1 /bin/sh "$layer"
rm -rf "$layer"

systemctl --quiet enable systemd-networkd containerd node-images
if [ -x /usr/local/bin/kubelet ]; then
    systemctl --quiet enable etcd kube-apiserver kubelet
else
    systemctl --quiet disable etcd
fi
# Debian starts it where it is installed. The case that needs it starts it.
systemctl --quiet disable systemd-oomd.service systemd-oomd.socket
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service e2scrub_all.timer \
    getty@tty1.service serial-getty@ttyS0.service
