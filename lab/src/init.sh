#!/bin/busybox sh
# The first process of an emulated lab host. It loads KVM, opens the two streams to the outside, and runs one step
# after another (steps.sh). The parameters come on the kernel's command line.
/bin/busybox mkdir -p /dev /proc /sys /tmp /run /files /root /mnt
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
. /lab/steps
export LAB_TAP=tap
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm

parameter() { sed -n "s/.*\blab\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
mark=$(parameter mark)

failed=
while read -r module parameters; do
    insmod "/lab/modules/$module" $parameters 2>>/tmp/lab-setup || failed=1
done </lab/order
[ -c /dev/kvm ] || { failed=1; echo "there is no /dev/kvm" >>/tmp/lab-setup; dmesg | grep -i kvm | tail -n 5 >>/tmp/lab-setup; }

ip link set lo up
address=$(parameter address)
if [ -d /lab/linux ]; then
    # Guests' taps on a bridge, with the other host if there is one.
    hardware=$(cat /sys/class/net/eth0/address 2>/dev/null)
    {
        bridge "${hardware:-52:54:00:77:00:01}" "${address:-10.77.0.1}" || failed=1
        [ -z "$hardware" ] || { brctl addif br0 eth0 && ip link set eth0 up || failed=1; }
        taps || failed=1
    } >>/tmp/lab-setup 2>&1
elif [ -n "$address" ]; then
    ip address add "$address/24" dev eth0 && ip link set eth0 up || failed=1
fi >>/tmp/lab-setup 2>&1

if [ "$(parameter mode)" = shell ]; then
    [ -z "$failed" ] || cat /tmp/lab-setup >/dev/console
    cd /files
    terminal=/dev/$(sed -n "s/.*\bconsole=\([^ ,]*\).*/\1/p" /proc/cmdline)
    setsid cttyhack sh -l <"$terminal" >"$terminal" 2>&1
    poweroff -f
fi

port() {
    for found in /sys/class/virtio-ports/*; do
        [ "$(cat "$found/name" 2>/dev/null)" = "$1" ] && { echo "/dev/${found##*/}"; return; }
    done
    case $1 in out) echo /dev/ttyS1 ;; *) echo /dev/ttyS2 ;; esac
}
out=$(port out)
err=$(port err)
case $out in *ttyS*) for line in "$out" "$err"; do stty -F "$line" raw -echo 115200; done ;; esac
exec 3<>"$out" 4<>"$err"
[ -z "$failed" ] || cat /tmp/lab-setup >&4
steps "${failed:-0}"
poweroff -f
