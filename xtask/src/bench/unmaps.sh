#!/bin/sh
# Says how often this kernel has taken memory away from a device since it booted with trace_event=iommu:unmap, whether
# the records were overwritten since or not. Before that it reads $reads times from a disk, if it is told to.
. /portcullis/disks.sh

[ -z "$reads" ] || dd if=/dev/nvme0n1 of=/dev/null bs=4k count="$reads" iflag=direct 2>/dev/null

mount -t tracefs tracefs /sys/kernel/tracing || fail "no tracefs"
unmaps=0
for stats in /sys/kernel/tracing/per_cpu/cpu*/stats; do
    while read -r what count rest; do
        case $what in
            entries: | overrun:) unmaps=$((unmaps + count)) ;;
        esac
    done < "$stats"
done
echo "@check unmaps=$unmaps ok"
