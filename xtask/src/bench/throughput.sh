#!/bin/sh
# Reads from each disk at random for two seconds, $passes times in turn, and says how fast.
. /portcullis/disks.sh

pass=0
while [ $pass -lt "$passes" ]; do
    for device in nvme0n1 vda; do
        fio --name=read --filename=/dev/$device --rw=randread --bs=64k --size=64M --direct=1 --ioengine=libaio \
            --iodepth=16 --time_based --runtime=2 --randseed=$pass --thread --minimal > /tmp/fio 2>/tmp/error ||
            fail "fio: $(head -n 1 /tmp/error)"
        echo "@check what=$device kib=$(cut -d ';' -f 7 /tmp/fio)"
    done
    pass=$((pass + 1))
done
