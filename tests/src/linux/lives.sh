#!/bin/sh
# Ends this life of the VM in the way that is next in $steps and so begins another one, until no step is left:
#
#   kexec    starts the other kernel in order
#   unaware  starts the other kernel with a device tree that has no SMMU
#   crash    starts the other kernel by a crash, while both disks are being read
#   adopt    starts the other kernel by a crash, without an SMMU in its device tree; it only reads the SMMU's registers
#   reboot   resets the VM
#   u-boot   starts /boot/u-boot with a device tree that has no SMMU, and that is the end of this
#
# How many steps are done stands on the first disk, behind what is judged. /init has tested the disks in every life
# before this runs. Each life says of itself:
#
#   @check life=1 after=kexec release=6.12.1 ok
. /portcullis/disks.sh

read -r name serial bytes rest < /portcullis/disks
disk=/dev/$(find_disk "$serial") || fail "disk $name is not there"
sector=$((bytes / 512 * 2))

# Prints step number $1 of $steps, the first being 0.
step() {
    echo "$steps," | cut -d , -f $(($1 + 1))
}

# Makes the initramfs of the next life, which is this one; of a crash kernel without what it does not need.
archive() {
    (cd / && find . -xdev | grep -v -e '^./tmp/' $1 | cpio -o -H newc) > /tmp/initrd 2>/dev/null || fail "no initramfs"
}

# Makes a device tree that has no SMMU.
unaware_tree() {
    cp /sys/firmware/fdt /tmp/tree || fail "no device tree"
    for node in $(fdtget -l /tmp/tree /); do
        case "$(fdtget /tmp/tree "/$node" compatible 2>/dev/null)" in
            *arm,smmu-v3*) fdtput -r /tmp/tree "/$node" || fail "/$node cannot be removed" ;;
        esac
        fdtget /tmp/tree "/$node" iommu-map > /dev/null 2>&1 || continue
        fdtput -d /tmp/tree "/$node" iommu-map || fail "iommu-map of /$node cannot be removed"
    done
}

# What is printed leaves before everything ends.
drain() {
    stty -F /dev/console onlcr
}

count=$(dd if="$disk" bs=512 skip=$sector count=1 iflag=direct 2>/dev/null | tr -d '\0')
count=${count:-0}
after=boot
[ "$count" = 0 ] || after=$(step $((count - 1)))
crashed=
[ -e /proc/vmcore ] && crashed=1
case $after in
    crash) [ -n "$crashed" ] || fail "life $count is no crash kernel's" ;;
    *) [ -z "$crashed" ] || fail "life $count is a crash kernel's, after $after" ;;
esac
echo "@check life=$count after=$after release=$(uname -r) ok"

next=$(step "$count")
[ -n "$next" ] || exit 0
printf %d $((count + 1)) | dd of="$disk" bs=512 seek=$sector conv=sync,fsync 2>/dev/null
case $(uname -r) in
    6.12.*) set -- /boot/*-6.1 ;;
    *) set -- /boot/*-6.12 ;;
esac
case $next in
    kexec)
        archive
        kexec -l "$1" --initrd=/tmp/initrd --reuse-cmdline || fail "kexec does not load $1"
        drain
        kexec -e
        ;;
    unaware)
        archive
        unaware_tree
        kexec -l "$1" --dtb=/tmp/tree --initrd=/tmp/initrd --reuse-cmdline || fail "kexec does not load $1"
        drain
        kexec -e
        ;;
    u-boot)
        # U-Boot cannot say this.
        echo "@done role=linux"
        unaware_tree
        kexec -l /boot/u-boot --dtb=/tmp/tree --reuse-cmdline || fail "kexec does not load U-Boot"
        drain
        kexec -e
        ;;
    crash | adopt)
        archive '-e ^./boot/'
        append="$(sed 's/crashkernel=[^ ]*//' /proc/cmdline) nr_cpus=1 reset_devices"
        tree=
        if [ "$next" = adopt ]; then
            unaware_tree
            tree=--dtb=/tmp/tree
            append="$append rdinit=/portcullis/adopt.sh"
            sh /portcullis/registers.sh before
        fi
        kexec -p "$1" $tree --initrd=/tmp/initrd --command-line="$append" || fail "kexec does not load $1 for a crash"
        for name in /dev/nvme*n1 /dev/vd?; do
            (while :; do dd if="$name" of=/dev/null bs=256k count=64 iflag=direct; done) 2>/dev/null &
        done
        sleep 1
        drain
        echo c > /proc/sysrq-trigger
        ;;
    reboot)
        drain
        reboot -f
        ;;
    *) fail "step $count is $next, which nobody knows" ;;
esac
sleep 60
fail "nothing came of step $count, $next"
