# What every host of the lab does, whether emulated (init.sh) or made of this machine (here.sh), which read this file once /proc is
# there. LAB_TAP is how the names of the host's taps begin.
/bin/busybox --install -s /bin
export PATH=/bin:/lab/bin HOME=/root TERM=linux LAB_HOST="$(cat /lab/host)"
ulimit -c 0

# The bridge of guests' taps, with a hardware address and the host's own. The former is fixed: by itself it is the lowest of its
# ports', and changes when a tap comes.
bridge() {
    brctl addbr br0 && echo 0 >/sys/class/net/br0/bridge/forward_delay && ip link set br0 address "$1" &&
        ip address add "$2/24" dev br0 && ip link set br0 up
}

taps() {
    for tap in "${LAB_TAP}0" "${LAB_TAP}1"; do
        tunctl -t "$tap" && brctl addif br0 "$tap" && ip link set "$tap" up || return 1
    done
}

end() {
    printf '\0lab-end:%s %s\n' "$mark" "$1" >&3
    printf '\0lab-end:%s %s\n' "$mark" "$1" >&4
}

# Says how the start went, and runs one step after another until the stream of descriptor 3 ends: a line of hexadecimal digits is a
# script; what it says goes out as it comes, standard output to 3 and standard error to 4, and a mark with $mark and its status ends
# it on both.
steps() {
    end "$1"
    while read -r line <&3; do
        echo "$line" | xxd -r -p >/tmp/lab-step
        (cd /files && exec sh /tmp/lab-step) </dev/null >&3 2>&4
        end $?
    done
}
