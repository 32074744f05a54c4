#!/bin/sh
# install.sh: runs in a node, in a folder with this folder's files, the programs and the units.
# Handlers: `wrapped` and `proxied`; stock handlers are in mode `beside`.
set -eu
install -d -m 755 /etc/coroner /etc/coroner/policies.d /var/log/coroner
install -m 755 coroner coroner-agent /usr/sbin/
install -m 755 containerd-shim-coroner-v2 /usr/local/bin/
for name in wrapped proxied; do
    ln -sf containerd-shim-coroner-v2 "/usr/local/bin/containerd-shim-coroner-$name-v2"
done
install -m 644 coroner.toml shim.toml /etc/coroner/
install -m 644 containerd.toml /etc/containerd/conf.d/coroner.toml
install -m 644 ./*.service ./*.socket /etc/systemd/system/
systemctl daemon-reload
systemctl start coroner-agent coroner.socket coroner
systemctl restart containerd
coroner status
