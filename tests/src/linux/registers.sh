# Says what the SMMU's registers have in them, $1 the crash. The kernel needs `iomem=relaxed` where a driver has them.
smmu=0x9050000
for register in CR0:0x20:32 CR0ACK:0x24:32 STRTAB_BASE:0x80:64 STRTAB_BASE_CFG:0x88:32; do
    name=${register%%:*}
    register=${register#*:}
    value=$(devmem $((smmu + ${register%:*})) "${register#*:}") || value=unreadable
    echo "@check register name=$name when=$1 value=$value"
done
