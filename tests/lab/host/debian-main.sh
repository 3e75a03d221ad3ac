#!/bin/bash
# The one job of a machine with systemd: runs the scenario's program and switches the machine off. Exit status 100 is not the
# end: the program has asked for a reboot, after which it is run again.
for port in /dev/ttyS1 /dev/ttyS2; do
    # What is written arrives as it is.
    stty -F $port -opost
done
exec > /dev/ttyS1 2>&1
mapfile -t arguments < /lab/arguments
export BERTH_PROGRAMS=/lab RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0
/lab/lab-guest "${arguments[@]}"
status=$?
if [ $status = 100 ]; then
    # As `systemctl reboot`, without asking logind, which these machines have not.
    systemctl --no-block --job-mode=replace-irreversibly start reboot.target
    exit
fi
[ $status = 0 ] || { journalctl -b --no-pager | tail -n 200; dmesg | tail -n 50; }
echo $status > /dev/ttyS2
# At once: nothing on the disk is needed any more.
systemctl poweroff --force --force
