#!/bin/sh
# Takes away and gives back $rounds times what a machine can lose while it runs: its second CPU, if it has one, and both
# disks' drivers, reading in each round. Then removes both functions and finds them again. The disks are tested in full
# while one CPU is off and at the end.
. /portcullis/disks.sh
bad=

# Reads the start of every disk.
touch_disks() {
    while read -r name serial rest; do
        device=$(find_disk "$serial") || fail "disk $name did not come back"
        dd if="/dev/$device" of=/dev/null bs=256k count=1 iflag=direct 2>/dev/null || fail "disk $name cannot be read"
    done < /portcullis/disks
}

online=/sys/devices/system/cpu/cpu1/online
if [ -e $online ]; then
    round=0
    while [ $round -lt "$rounds" ]; do
        echo 0 > $online || fail "CPU 1 stays on in round $round"
        [ $round -gt 0 ] || read_disks
        echo 1 > $online || fail "CPU 1 stays off in round $round"
        round=$((round + 1))
    done
    echo "@check cpu rounds=$round ok"
fi

functions=$(ls -d /sys/bus/pci/drivers/nvme/0000:* /sys/bus/pci/drivers/virtio-pci/0000:*)
[ "$(echo "$functions" | wc -l)" = 2 ] || fail "there are not two functions with drivers: $functions"
round=0
while [ $round -lt "$rounds" ]; do
    for function in $functions; do
        echo "${function##*/}" > "${function%/*}/unbind" || fail "$function cannot be unbound in round $round"
        echo "${function##*/}" > "${function%/*}/bind" || fail "$function cannot be bound in round $round"
    done
    touch_disks
    round=$((round + 1))
done
echo "@check drivers rounds=$round ok"

for function in $functions; do
    echo 1 > "/sys/bus/pci/devices/${function##*/}/remove" || fail "$function cannot be removed"
    [ ! -e "/sys/bus/pci/devices/${function##*/}" ] || fail "$function is still there"
done
echo 1 > /sys/bus/pci/rescan
touch_disks
echo "@check rescan ok"
read_disks
write_disks
[ -z "$bad" ] || fail "wrong content:$bad"
