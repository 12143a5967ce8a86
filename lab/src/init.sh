#!/bin/busybox sh
# The first process of a lab host. It loads KVM, opens the two streams to the outside, and runs one step
# after another: a line of hexadecimal digits is a script; what it says goes out as it comes, and a mark
# with its status ends it on both streams. The parameters come on the kernel's command line.
/bin/busybox mkdir -p /dev /proc /sys /tmp /run /files /root /mnt
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin:/lab/bin HOME=/root TERM=linux LAB_HOST="$(cat /lab/host)"
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
ulimit -c 0

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
    # Guests' taps on a bridge, with the other host if there is one. The bridge's own hardware address is fixed: by itself it is
    # the lowest of its ports', and changes when a tap comes.
    hardware=$(cat /sys/class/net/eth0/address 2>/dev/null)
    {
        brctl addbr br0 && echo 0 >/sys/class/net/br0/bridge/forward_delay && ip link set br0 address "${hardware:-52:54:00:77:00:01}" &&
            ip address add "${address:-10.77.0.1}/24" dev br0 && ip link set br0 up || failed=1
        [ -z "$hardware" ] || { brctl addif br0 eth0 && ip link set eth0 up || failed=1; }
        for tap in tap0 tap1; do
            tunctl -t $tap && brctl addif br0 $tap && ip link set $tap up || failed=1
        done
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

end() {
    printf '\0lab-end:%s %s\n' "$mark" "$1" >&3
    printf '\0lab-end:%s %s\n' "$mark" "$1" >&4
}
[ -z "$failed" ] || cat /tmp/lab-setup >&4
end "${failed:-0}"
while read -r line <&3; do
    echo "$line" | xxd -r -p >/tmp/lab-step
    (cd /files && exec sh /tmp/lab-step) </dev/null >&3 2>&4
    end $?
done
poweroff -f
