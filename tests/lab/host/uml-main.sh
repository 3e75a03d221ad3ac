#!/bin/bash
# PID 1 of a guest, on the root that its init has made: runs the scenario's program and switches the guest off.
exec > /mnt/output 2>&1
mapfile -t arguments < /mnt/arguments
RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0 "$BERTH_PROGRAMS/lab-guest" "${arguments[@]}"
status=$?
dmesg > /mnt/logs/dmesg
echo $status > /mnt/status.new
mv /mnt/status.new /mnt/status
echo o > /proc/sysrq-trigger
sleep 60
