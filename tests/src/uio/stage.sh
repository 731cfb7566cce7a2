#!/bin/sh
# Gives the edu to userspace, lets it attack, and reads the disks meanwhile and once more afterwards.

. /portcullis/disks.sh
bad=

driver=/sys/bus/pci/drivers/uio_pci_generic
echo 1234 11e8 > $driver/new_id || fail "uio_pci_generic does not take the edu"
set -- $driver/0000:*
[ -e "$1" ] || fail "uio_pci_generic found no edu"
device=${1##*/}
set -- "$1"/uio/uio*

(
    uio device="$device" uio="/dev/${1##*/}" AIMS
    echo $? > /tmp/attacked
) &
over=
while [ -z "$over" ]; do
    [ -s /tmp/attacked ] && over=1
    read_disks
    [ -z "$bad" ] || fail "wrong content:$bad"
done
read -r status < /tmp/attacked
# What the guest's own SMMU told its driver: of each event its first line and the four words.
dmesg | sed -n 's/^.*arm-smmu-v3 [^:]*: *//p' | tr -d '\t' | grep -A 4 '^event 0x' | head -n 10 | sed 's/^/smmu: /'
exit "$status"
