#!/bin/sh
# initrd.sh ROOT FOLDER: writes FOLDER/vmlinuz and FOLDER/initrd for the kernel of a root file
# system.
set -eu
root=$1 folder=$2
here=$(dirname "$(realpath "$0")")
kernel=$(ls "$root/lib/modules")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/dev" "$work/new"
cp "$root/usr/bin/busybox" "$work/bin/busybox"
cp "$here/init" "$work/init"
chmod 755 "$work/init"
xz -dc "$root/lib/modules/$kernel/kernel/drivers/block/virtio_blk.ko.xz" > "$work/virtio_blk.ko"
(cd "$work" && find . | cpio --quiet -o -H newc) | gzip -1 > "$folder/initrd"
cp "$root/boot/vmlinuz-$kernel" "$folder/vmlinuz"
