#!/bin/sh
# Writes to both disks' scratch at once in random order and reads everything back against its SHA-256, for at least
# $seconds and once in any case.
. /portcullis/disks.sh

set -- --ioengine=libaio --direct=1 --rw=randwrite --verify=sha256 --verify_fatal=1 --iodepth=16 --size=16M --thread \
    --bssplit=4k/60:16k/30:128k/10
while read -r name serial bytes rest; do
    device=$(find_disk "$serial") || fail "disk $name is not there"
    set -- "$@" --name="$name" --filename="/dev/$device" --offset=$((bytes * 2))
done < /portcullis/disks
pass=0
while :; do
    fio --randseed=$pass "$@" > /tmp/fio 2>&1 || {
        tail -n 40 /tmp/fio
        fail "fio failed in pass $pass"
    }
    pass=$((pass + 1))
    read -r uptime rest < /proc/uptime
    [ "${uptime%.*}" -lt "$seconds" ] || break
done
echo "@check fio passes=$pass ok"
