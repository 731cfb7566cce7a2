#!/bin/sh
# Says where the symbols $symbols, separated by commas, are in the running kernel.
. /portcullis/disks.sh

pattern=" ($(echo "$symbols" | tr , '|'))\$"
grep -E "$pattern" /proc/kallsyms | while read -r address kind name; do
    echo "@check symbol name=$name address=0x$address"
done
