#!/bin/bash
# usage: debian-root.sh FOLDER
# Makes FOLDER/root.img, a Debian 12 with systemd whose one job is lab.service, and FOLDER/vmlinuz, a kernel that boots it
# without an initial RAM disk. Needs root and the machine's Debian mirror.
set -eu
folder=$1
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,psmisc,e2fsprogs,xfsprogs,fio,tgt,ca-certificates
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk '$2 == "bookworm" { print $1; exit }')
[ -n "$mirror" ] || { echo "no bookworm mirror among the machine's apt sources" >&2; exit 1; }
root=$folder/root
trap 'rm -rf "$root" "$folder/kernel"' EXIT

# The kernel is a newer one of backports: NVMe, ext4 and virtio ports are built in, so that no initial RAM disk is needed.
# Not installed but unpacked: its installation would make such a disk.
cat > "$folder/kernel.sh" <<'HOOK'
set -eu
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
kernel=$(apt-cache depends linux-image-cloud-amd64/bookworm-backports | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | tail -n 1)
mkdir -p "$2/kernel"; chmod 755 "$2/kernel"; cd "$2/kernel"
apt-get -q -o APT::Sandbox::User=root download "$kernel/bookworm-backports"
dpkg-deb -x ./*.deb .
mv boot/vmlinuz-* ../vmlinuz
mkdir -p "$1/usr/lib/modules"
cp -a lib/modules/* "$1/usr/lib/modules/"
depmod -b "$1" "$(ls lib/modules)"
HOOK
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --customize-hook="sh $folder/kernel.sh \"\$1\" $folder" \
    bookworm "$root" "deb $mirror bookworm main" "deb $mirror bookworm-backports main"

# What a machine of the test has instead of a person: a name, one job, and nothing that starts beside it.
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
echo node > "$root/etc/hostname"
echo '127.0.0.1 localhost node' > "$root/etc/hosts"
mkdir -p "$root/lab"
units=$root/etc/systemd/system
cat > "$units/lab.target" <<'UNIT'
[Unit]
Description=The machine of a scenario
Requires=basic.target
After=basic.target
Wants=remote-fs.target lab.service
UNIT
cat > "$units/lab.service" <<'UNIT'
[Unit]
Description=The scenario
After=basic.target
[Service]
# The payload is a drive of another kind than the root, because drives of one kind are found in any order.
ExecStartPre=/sbin/modprobe virtio_blk
ExecStartPre=/bin/mount -o ro /dev/vda /lab
ExecStart=/lab/main
UNIT
for unit in systemd-{firstboot,random-seed,hwdb-update,sysusers,networkd,logind,repart,pstore,binfmt,update-utmp}.service \
    apt-daily{,-upgrade}.timer dpkg-db-backup.timer e2scrub_{all.timer,reap.service} fstrim.timer getty@tty1.service \
    modprobe@{efi_pstore,fuse,drm,loop}.service tgt.service; do
    ln -sf /dev/null "$units/$unit"
done
# Without this the whole machine is gone through at each start, which takes an emulated processor many seconds.
mkdir -p "$units/systemd-udev-trigger.service.d"
cat > "$units/systemd-udev-trigger.service.d/few.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --prioritized-subsystem=block --subsystem-match=block --subsystem-match=net --subsystem-match=tty
UNIT
truncate -s 4G "$folder/root.img.new"
# Without lazy initialisation, which would go on in the guest.
mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 -d "$root" "$folder/root.img.new"
mv "$folder/root.img.new" "$folder/root.img"
