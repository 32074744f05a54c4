#!/bin/sh
# install.sh: runs in a node, in a folder with this folder's files and coroner.deb.
# Handlers: `wrapped` and `proxied`; stock handlers are in mode `beside`.
set -eu
dpkg -i coroner.deb
for name in wrapped proxied; do
    ln -sf containerd-shim-coroner-v2 "/usr/bin/containerd-shim-coroner-$name-v2"
done
install -m 644 shim.toml /etc/coroner/
install -m 644 containerd.toml /etc/containerd/conf.d/coroner.toml
systemctl enable --now coroner-agent coroner
systemctl restart containerd
coroner status
