#!/bin/sh
# Reads and writes the disks for as long as the VM lives.
. /portcullis/disks.sh
bad=

while [ -z "$bad" ]; do
    read_disks
    write_disks
    # Others have tests to run on this host.
    sleep 1
done
fail "wrong content:$bad"
