#!/bin/busybox sh
# The first process of a Linux guest. A parameter comes on the kernel's command line: lab.address, the guest's address
# (10.77.0.10 by itself). A disk /dev/vda is mounted at /disk. ferry-load obeys orders on port 7700; the console has a shell.
/bin/busybox mkdir -p /dev /proc /sys /tmp /run /root /disk
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux
mkdir -p /dev/pts
mount -t devpts pts /dev/pts

parameter() { sed -n "s/.*\blab\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

while read -r module; do
    insmod "/lab/modules/$module" || echo "lab: $module does not load"
done </lab/order

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    address=$(parameter address)
    ip address add "${address:-10.77.0.10}/24" dev eth0
    ip link set eth0 up
fi
if [ -b /dev/vda ]; then
    mount -t ext4 -o errors=remount-ro /dev/vda /disk || echo "lab: the disk cannot be mounted"
fi
ferry-load guest --control 0.0.0.0:7700 &
read -r seconds _ </proc/uptime
echo "lab: a shell after $seconds s of the guest's own"
while :; do
    setsid cttyhack sh -l
done
