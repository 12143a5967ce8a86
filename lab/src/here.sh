# The first process of a host that is this machine itself, in namespaces of its own: `sh here.sh ROOT NUMBER MARK`, with NUMBER 1 for
# the first host of a pair, which makes their network, and 2 for the other. It gives the folder ROOT this machine's devices, makes it
# the root, and runs one step after another (steps.sh). Standard input is the stream that carries scripts in and what they say out,
# standard output the one for what they say on standard error.
root=$1 number=$2 mark=$3
if [ "$root" != / ]; then
    set -e
    outside() { "$root/bin/busybox" "$@"; }
    cd "$root"
    outside mkdir -p dev/net dev/shm proc sys tmp run files root mnt lab/bin
    for device in kvm net/tun null zero full random urandom; do
        : >>"dev/$device"
        outside mount --bind "/dev/$device" "dev/$device"
    done
    outside mount -t proc proc proc
    outside mount -t sysfs sys sys
    outside mount -t tmpfs tmp tmp
    outside mount -t tmpfs shm dev/shm
    exec ./bin/busybox chroot . /bin/busybox sh /lab/here / "$number" "$mark"
fi
exec 3<&0 4>&1 </dev/null >/dev/null
. /lab/steps
# Both hosts' taps are in one network: each has names of its own.
export LAB_TAP="host${number}tap"
failed=
{
    (exec 5<>/dev/kvm) || failed=1
    if [ "$number" = 1 ]; then
        ip link set lo up && bridge 52:54:00:77:00:01 10.77.0.1 || failed=1
    else
        ip address add 10.77.0.2/24 dev br0 || failed=1
    fi
    taps || failed=1
} >/tmp/lab-setup 2>&1
[ -z "$failed" ] || cat /tmp/lab-setup >&4
steps "${failed:-0}"
