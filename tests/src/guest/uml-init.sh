#!/bin/bash
# PID 1 of a guest kernel (user-mode Linux). Makes a root that the guest may write to without touching the host's: the
# host's root below, memory above. Then runs main of the folder that guest and host share, as PID 1 and in that root,
# where the folder is /mnt.
#
# FOLDER         that folder, on the host
# ADDRESS GATEWAY  of vec0; without them the guest has only its loopback
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{folder,lower,upper,work,root}
mount -t hostfs -o "$FOLDER" none /mnt/folder
fail() { echo "$*" > /mnt/folder/failed; echo o > /proc/sysrq-trigger; sleep 60; }

version=$(< /proc/sys/kernel/osrelease)
modules=/usr/lib/uml/modules/$version
insmod "$modules/kernel/fs/overlayfs/overlay.ko" || fail "module overlay"
# hostfs takes all options for the path: first mounted, then made read-only.
{ mount -t hostfs -o / none /mnt/lower && mount -o remount,ro /mnt/lower; } || fail "root of the host"
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || fail overlay
cd /mnt/root || fail "new root"
{ mount -t devtmpfs devtmpfs dev && mount -t proc proc proc && mount -t sysfs sysfs sys; } || fail "kernel file systems"
{ mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs tmp; } || fail tmpfs
mkdir -p dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm || fail tmpfs
# modprobe wants lib/modules/VERSION; the host has the guest's modules elsewhere.
{ mkdir -p lib/modules && ln -sfn "$modules" "lib/modules/$version"; } || fail "folder of modules"
mount -t hostfs -o "$FOLDER" none mnt || fail "shared folder"
ip link set lo up || fail loopback
if [ -n "${ADDRESS:-}" ]; then
    { ip addr add "$ADDRESS" dev vec0 && ip link set vec0 up && ip route add default via "$GATEWAY"; } || fail network
fi
mount -n --move . / || fail "move of the root"
exec chroot . /mnt/main
