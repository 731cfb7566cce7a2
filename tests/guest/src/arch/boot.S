// Entry of every CPU: from EL2 to EL1 if need be, MMU and caches on, stack, then Rust.
//
// The image starts with an arm64 Image header, so that it can be loaded both as a flat binary entered at its
// start and as a kernel. Register use: x19 = device tree, x20 = CPU index, x21 = whether another CPU started
// this one, which may be the first one as well, x22 = the first one's virtual counter at entry; all survive until Rust is
// called.

    .section .text.entry, "ax"
    .globl  _start
_start:
    b       primary
    .long   0
    .quad   0                           // text_offset: at the start of a 2 MiB block
    .quad   __image_size
    .quad   0xa                         // little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

primary:
    mrs     x22, cntvct_el0
    mov     x19, x0
    mov     x20, xzr
    mov     x21, xzr
    b       setup

    .globl  secondary_entry
secondary_entry:
    mov     x20, x0
    mov     x21, #1

setup:
    msr     daifset, #0xf
    msr     spsel, #1
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    el1

    // Without a hypervisor below: leave EL2 with everything in EL1's hands.
    mov     x0, #(1 << 31)              // HCR_EL2.RW
    msr     hcr_el2, x0
    mov     x0, #3                      // EL1 reads and programs the physical timer
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mov     x0, #0x33ff                 // no CPTR_EL2 trap
    msr     cptr_el2, x0
    msr     hstr_el2, xzr
    mrs     x0, pmcr_el0
    ubfx    x0, x0, #11, #5
    msr     mdcr_el2, x0                // HPMN = all counters
    msr     vttbr_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    mov     x0, #0xf                    // ICC_SRE_EL2: system registers, for EL1 too
    msr     S3_4_C12_C9_5, x0
    isb
    msr     S3_4_C12_C11_0, xzr         // ICH_HCR_EL2
    ldr     x0, =el2_vectors
    msr     vbar_el2, x0
    ldr     x0, =0x30d00800             // SCTLR_EL1: only its RES1 bits
    msr     sctlr_el1, x0
    mov     x0, #0x3c5                  // EL1h, everything masked
    msr     spsr_el2, x0
    adr     x0, el1
    msr     elr_el2, x0
    isb
    eret

el1:
    ldr     x0, =vectors
    msr     vbar_el1, x0
    ldr     x0, =0xff04                 // 0: Device-nGnRE, 1: Normal write-back
    msr     mair_el1, x0
    mrs     x0, id_aa64mmfr0_el1
    and     x0, x0, #0xf
    cmp     x0, #5
    mov     x1, #5
    csel    x0, x0, x1, lo              // IPS = min(PARange, 48 bits)
    ldr     x1, =0x00803518             // T0SZ=24, inner shareable write-back walks, 4 KiB, EPD1
    orr     x1, x1, x0, lsl #32
    msr     tcr_el1, x1
    ldr     x0, =level0_table
    msr     ttbr0_el1, x0
    dsb     ish
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x0, =0x30d0180d             // RES1 bits, I, SA, C, M
    msr     sctlr_el1, x0
    isb

    msr     tpidr_el1, x20
    ldr     x0, =stacks
    add     x1, x20, #1
    mov     x2, #{stack_size}
    madd    x0, x1, x2, x0
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    cbnz    x21, 2f

    ldr     x0, =__bss_start
    ldr     x1, =__bss_end
1:  cmp     x0, x1
    b.hs    3f
    stp     xzr, xzr, [x0]
    add     x0, x0, #16
    b       1b

2:  mov     x0, x20
    bl      guest_secondary
    b       .
3:  mov     x0, x19
    mov     x1, x22
    bl      guest_primary
    b       .
    .ltorg

    // On the bare machine nobody is at EL2: give an HVC the answer a hypervisor would give, and step over
    // whatever else of EL1 ends up here.
    .balign 2048
el2_vectors:
    .fill   8 * 128, 1, 0
    msr     tpidr_el2, x0               // from EL1, synchronous
    mrs     x0, esr_el2
    lsr     x0, x0, #26
    sub     x0, x0, #0x16               // HVC
    cbz     x0, 1f
    mrs     x0, elr_el2
    add     x0, x0, #4
    msr     elr_el2, x0
    mrs     x0, tpidr_el2
    eret
1:  mov     x0, #-1                     // NOT_SUPPORTED
    eret
    .balign 2048

    .section .tables, "aw"
    .balign 4096
    // 40 bits of identity map in 1 GiB blocks. The first GiB of RAM, the only RAM that the runtime uses, is
    // Normal and executable; everything else is Device and never executed.
    .set    device, (1 << 54) | (1 << 53) | (1 << 10) | (0 << 2) | 1
    .set    normal, (3 << 8) | (1 << 10) | (1 << 2) | 1
level0_table:
    .quad   level1_tables + 3
    .quad   level1_tables + 4096 + 3
    .fill   510, 8, 0
    .globl  level1_tables
level1_tables:
    .quad   device
    .quad   0x40000000 | normal
    .set    gib, 2
    .rept   1022
    .quad   (gib << 30) | device
    .set    gib, gib + 1
    .endr

    .section .bss.stacks, "aw", %nobits
    .balign 16
stacks:
    .fill   {stack_size} * {max_cpus}, 1, 0
