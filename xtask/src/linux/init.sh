#!/bin/busybox sh
# Process 1 of the Linux guest: tests the disks, runs the caller's stage, reports on the console, powers off.
#
# /portcullis/modules  kernel modules, one path per line, in load order
# /portcullis/disks    one disk per line: name, serial, bytes in a half, SHA-256 of each half, serial of the disk whose
#                      first half is to be written to this one's second half
# /stage               optional: what a test adds
export PATH=/bin:/sbin

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

fail() {
    echo "$1" > /tmp/why
    exit 1
}

# Waits for the disk with serial number $1 and prints its name. A path of a multipath NVMe disk has a serial number too,
# but no device node.
find_disk() {
    tries=0
    while [ $tries -lt 300 ]; do
        for file in /sys/block/*/serial /sys/block/*/device/serial; do
            device=${file#/sys/block/}
            device=${device%%/*}
            [ -b "/dev/$device" ] || continue
            # virtio's has no end of line, which `read` reports as a failure.
            read -r found < "$file"
            if [ "$found" = "$1" ]; then
                echo "$device"
                return 0
            fi
        done
        usleep 100000
        tries=$((tries + 1))
    done
    return 1
}

# Prints the SHA-256 of half $3 (0 or 1) of device $1, $2 bytes, as the device has it: past the page cache.
digest() {
    echo 3 > /proc/sys/vm/drop_caches
    dd if="/dev/$1" bs=1M count=$(($2 / 1048576)) skip=$(($2 / 1048576 * $3)) 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

# Leaves what went wrong in $bad.
test_disks() {
    while read -r name serial bytes first second source; do
        device=$(find_disk "$serial") || fail "disk $name with serial number $serial did not appear"
        alias=
        [ "$device" = "$name" ] || alias=" device=$device"
        sum=$(digest "$device" "$bytes" 0)
        if [ "$sum" = "$first" ]; then
            echo "@disk name=$name bytes=$bytes sha256=ok$alias"
        else
            echo "@disk name=$name bytes=$bytes sha256=BAD$alias"
            bad="$bad $name:read"
        fi
    done < /portcullis/disks
    while read -r name serial bytes first second source; do
        device=$(find_disk "$serial") && source=$(find_disk "$source") || fail "disk $name disappeared"
        blocks=$((bytes / 1048576))
        dd if="/dev/$source" of="/dev/$device" bs=1M count=$blocks seek=$blocks conv=fsync 2>/dev/null
        sync
    done < /portcullis/disks
    while read -r name serial bytes first second source; do
        device=$(find_disk "$serial") || fail "disk $name disappeared"
        sum=$(digest "$device" "$bytes" 1)
        if [ "$sum" = "$second" ]; then
            echo "@disk name=$name write=ok bytes=$bytes"
        else
            echo "@disk name=$name write=BAD bytes=$bytes"
            bad="$bad $name:write"
        fi
    done < /portcullis/disks
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
    done < /portcullis/modules
    bad=
    test_disks
    report_iommu
    report_interrupts
    [ -z "$bad" ] || fail "wrong content:$bad"
    if [ -e /stage ]; then
        /stage || fail "the stage ended with status $?"
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
    sleep 900
    finish "not done after 900 s"
) &
if (work); then
    finish ""
else
    why=$(cat /tmp/why 2>/dev/null)
    finish "${why:-the test script broke off}"
fi
