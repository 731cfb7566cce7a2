#!/bin/busybox sh
# Process 1 of the Linux guest: tests the disks, runs the caller's stage, reports on the console, powers off.
#
# /portcullis/modules/RELEASE  the modules of this kernel, one path per line, in load order
# /portcullis/disks            see disks.sh
# /stage                       optional: what a test adds
#
# limit=SECONDS on the kernel's command line: until it gives up, 900 without it
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
. /portcullis/disks.sh

# The end, once: $1 is empty or says what failed.
finish() {
    # Process 1 must not end, even when the watchdog was first.
    mkdir /tmp/finished 2>/dev/null || while :; do sleep 60; done
    dmesg -r | sed -n 's/^<[0-3]>/@kernel /p' | tail -n 20
    if [ -n "$1" ]; then
        echo "@done role=linux FAILED why=$1"
    else
        echo "@done role=linux"
    fi
    # Setting a terminal's mode waits until its output has left.
    stty -F /dev/console onlcr 2>/dev/null
    poweroff -f
}

report_iommu() {
    none=1
    for device in /sys/kernel/iommu_groups/*/devices/*; do
        [ -e "$device" ] || continue
        none=
        read -r type < "${device%/devices/*}/type"
        echo "@iommu ${device##*/} type=$type"
    done
    [ -z "$none" ] || echo "@iommu none"
}

report_interrupts() {
    awk '/nvme|virtio/ {
        count = 0
        for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) count += $i
        line = "@interrupts irq=" ($1 + 0) " count=" count
        for (; i <= NF; i++) line = line " " $i
        print line
    }' /proc/interrupts
}

work() {
    while read -r module; do
        insmod "$module" || fail "module $module does not load"
    done < "/portcullis/modules/$(uname -r)"
    bad=
    read_disks
    write_disks
    report_iommu
    report_interrupts
    [ -z "$bad" ] || fail "wrong content:$bad"
    if [ -e /stage ]; then
        /stage
        status=$?
        [ $status = 0 ] || [ -e /tmp/why ] || fail "the stage ended with status $status"
        [ $status = 0 ] || exit 1
    fi
}

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
# The kernel's lines would tear the testimony apart; its errors follow at the end.
echo 1 > /proc/sys/kernel/printk
(
    sleep "${limit:-900}"
    finish "not done after ${limit:-900} s"
) &
if (work); then
    finish ""
else
    why=$(cat /tmp/why 2>/dev/null)
    finish "${why:-the test script broke off}"
fi
