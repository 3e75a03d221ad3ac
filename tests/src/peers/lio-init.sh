#!/bin/bash
# PID 1 of the guest kernel that runs LIO. The root is the host's, read-only; $LAB is a folder of the host, writable.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t hostfs -o "$LAB" none /mnt
exec > /mnt/guest.log 2>&1
set -x
fail() { echo "$*" > /mnt/failed; echo o > /proc/sysrq-trigger; sleep 60; }

# modprobe wants lib/modules/VERSION; the host has the guest's modules elsewhere.
mkdir -p /run/modules/lib/modules /run/target/{pr,alua}
ln -s "/usr/lib/uml/modules/$(uname -r)" "/run/modules/lib/modules/$(uname -r)"
modprobe -d /run/modules -a configfs target_core_mod target_core_file iscsi_target_mod || fail modules
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config || fail configfs
ip link set lo up
{ ip addr add "$ADDRESS" dev vec0 && ip link set vec0 up && ip route add default via "$GATEWAY"; } || fail network

C=/sys/kernel/config/target
echo /run/target > $C/dbroot
(set -e; . /mnt/target.sh) || fail target.sh
touch /mnt/ready
# Commands of the host, one at a time. The end comes from the host too, which kills the whole guest: PID 1 never returns.
set +x
while :; do
    if [ -e /mnt/command ]; then
        mv /mnt/command /mnt/command.now
        # shellcheck source=/dev/null
        (. /mnt/command.now)
    fi
    sleep 0.1
done
