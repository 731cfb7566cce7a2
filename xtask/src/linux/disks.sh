# What /init and stages share: sourced, not run.
#
# /portcullis/disks    one disk per line: name, serial, bytes in a half, SHA-256 of each half, serial of the disk whose
#                      first half is to be written to this one's second half. Behind the halves lie 64 MiB of scratch.

# Ends the script; /init says why.
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

# Says of each disk whether its first half is what it should be, and leaves what went wrong in $bad.
read_disks() {
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
}

# Writes each disk's second half, whatever was there before, and says whether it reads back; leaves what went wrong in
# $bad.
write_disks() {
    while read -r name serial bytes first second source; do
        device=$(find_disk "$serial") && source=$(find_disk "$source") || fail "disk $name disappeared"
        blocks=$((bytes / 1048576))
        # An earlier boot may have written the same.
        dd if=/dev/zero of="/dev/$device" bs=1M count=$blocks seek=$blocks conv=fsync 2>/dev/null
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
