#!/bin/sh
# Reads from both disks while /spinner takes all other time, and says what it missed meanwhile, $passes times.
. /portcullis/disks.sh

dd if=/dev/zero of=/tmp/missed bs=4096 count=1 2>/dev/null
/spinner /tmp/missed &
spinner=$!
renice -n 19 -p $spinner > /dev/null
usleep 10000

# Leaves in $missed what the spinner has missed so far, and in $counter the counter.
look() {
    usleep 5000
    set -- $(od -A n -t d8 -N 16 /tmp/missed)
    missed=$1
    counter=$2
    [ "$counter" -gt 0 ] || fail "the spinner does not run"
}

# Does what $2 and so on say, and says what the spinner missed meanwhile, as $1.
measure() {
    what=$1
    shift
    look
    before="$missed $counter"
    "$@" 2>/dev/null
    look
    set -- $before
    echo "@check missed=$((missed - $1)) elapsed=$((counter - $2)) $what"
}

hz=$(dmesg | sed -n 's/.*arch_timer.* running at \([0-9.]*\)MHz.*/\1/p')
echo "@check counter mhz=$hz"
pass=0
while [ $pass -lt "$passes" ]; do
    measure "what=pause count=1" usleep 40000
    measure "what=pause count=2" usleep 140000
    for device in nvme0n1 vda; do
        for kib in 4 128; do
            for count in 100 500; do
                measure "what=$device-$kib count=$count" \
                    dd if=/dev/$device of=/dev/null bs=${kib}k count=$count iflag=direct
            done
        done
    done
    pass=$((pass + 1))
done
kill $spinner
