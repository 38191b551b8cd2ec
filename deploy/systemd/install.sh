#!/bin/sh
# Puts Berth where a package would, and makes its user, directories and device nodes.
#
#   sh deploy/systemd/install.sh PROGRAMS [ROOT]
#
#   PROGRAMS  the directory with berthd, berth and berth-helper, such as target/release
#   ROOT      another root than /, which then gets the files only
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 PROGRAMS [ROOT]" >&2
    exit 2
fi
programs=$1
root=${2:-}
here=$(dirname "$0")

put() {
    install -D -m "$1" "$2" "$root$3"
}

put 0755 "$programs/berthd" /usr/sbin/berthd
put 0755 "$programs/berth" /usr/bin/berth
put 0755 "$programs/berth-helper" /usr/libexec/berth/berth-helper
for unit in "$here"/*.service "$here"/*.socket; do
    put 0644 "$unit" "/usr/lib/systemd/system/$(basename "$unit")"
done
put 0644 "$here/sysusers.conf" /usr/lib/sysusers.d/berth.conf
put 0644 "$here/tmpfiles.conf" /usr/lib/tmpfiles.d/berth.conf
put 0644 "$here/modules-load.conf" /usr/lib/modules-load.d/berth.conf
put 0644 "$here/udev.rules" /usr/lib/udev/rules.d/70-berth.rules
# What an administrator wrote stays.
if [ ! -e "$root/etc/berth/berthd.toml" ]; then
    put 0644 "$here/../berthd.toml" /etc/berth/berthd.toml
fi

if [ -n "$root" ]; then
    exit 0
fi
systemd-sysusers berth.conf
systemd-tmpfiles --create berth.conf
udevadm control --reload
# Built into the kernel, it can't be loaded and needn't be.
modprobe vfio-pci || [ -d /sys/bus/pci/drivers/vfio-pci ]
udevadm trigger --action=change --subsystem-match=vfio --subsystem-match=vfio-dev
udevadm trigger --action=change --subsystem-match=misc --sysname-match=iommu
udevadm settle
systemctl daemon-reload
echo "installed; start it: systemctl enable --now berthd"
