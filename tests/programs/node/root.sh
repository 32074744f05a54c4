#!/bin/sh
# root.sh KERNEL: runs within a new root file system. Unpacks the kernel package that KERNEL depends
# on, and lists all packages with their versions.
set -eu
cd /tmp
package=$(apt-cache depends "$1" | sed -n 's/.*Depends: //p' | head -1)
[ -n "$package" ] || { echo "no kernel package $1" >&2; exit 1; }
apt-get -q download "$package"
dpkg-deb -x linux-image-*.deb /
rm linux-image-*.deb
depmod "$(ls /lib/modules)"

dpkg-query -W -f '${Package} ${Version}\n' > /etc/node-packages
echo "$package $(ls /lib/modules)" >> /etc/node-packages
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
