#!/bin/bash
# PID 1 of the guest kernel that runs LIO, from the folder it shares with the host.
exec > /mnt/guest.log 2>&1
set -x
fail() { echo "$*" > /mnt/failed; echo o > /proc/sysrq-trigger; sleep 60; }

mkdir -p /run/target/{pr,alua}
modprobe -a configfs target_core_mod target_core_file iscsi_target_mod || fail modules
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config || fail configfs

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
