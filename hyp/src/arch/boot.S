// Entry from the boot loader and from PSCI CPU_ON, up to the first Rust instruction.
//
// Rust runs only with the MMU and caches on: before that, locks (exclusives) need not work. The first
// CPU therefore builds a small boot map here, one 1 GiB block for each place the image and the device
// tree touch; Rust replaces it with the final W^X map (mem/paging.rs).

.equ HCR_RW,        1 << 31
.equ SCTLR_RES1,    0x30c50830
.equ SCTLR_ON,      0x30c50830 | (1 << 0) | (1 << 2) | (1 << 3) | (1 << 12)   // M, C, SA, I
.equ MAIR,          0xff04          // 0: Device-nGnRE, 1: Normal write-back, 2: Device-nGnRnE
.equ TCR,           0x80803510      // RES1, 4 KiB, inner shareable, write-back, 48-bit VA
.equ BOOT_BLOCK,    0x745           // valid block, AF, inner shareable, MAIR index 1, read-write
.equ R_AARCH64_RELATIVE, 0x403

.section .head, "ax"

// The arm64 Linux image header (Documentation/arch/arm64/booting.rst).
.global _start
_start:
    b       primary
    nop
    .quad   0                       // text_offset
    .quad   __image_size
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

primary:
    mov     x19, x0                 // device tree
    bl      known_state
    adrp    x20, __image_start

    // Lines of this range that a boot loader left dirty would overwrite what is stored below.
    bl      invalidate_image

    // Apply the image's own relocations.
    adrp    x0, __rela_start
    add     x0, x0, :lo12:__rela_start
    adrp    x1, __rela_end
    add     x1, x1, :lo12:__rela_end
1:  cmp     x0, x1
    b.hs    2f
    ldp     x2, x3, [x0], #16
    ldr     x4, [x0], #8
    cmp     x3, #R_AARCH64_RELATIVE
    b.ne    park
    add     x4, x4, x20
    str     x4, [x20, x2]
    b       1b

    // Both ends are ends of pages. What is in a stack does not matter.
2:  adrp    x0, __bss_start
    adrp    x1, __stacks_start
3:  cmp     x0, x1
    b.hs    4f
    stp     xzr, xzr, [x0]
    stp     xzr, xzr, [x0, #16]
    stp     xzr, xzr, [x0, #32]
    stp     xzr, xzr, [x0, #48]
    add     x0, x0, #64
    b       3b

4:  adrp    x21, boot_tables        // level 0
    add     x22, x21, #4096         // next free level 1
    mov     x0, x20
    bl      map_gib
    adrp    x0, __image_end
    bl      map_gib
    mov     x0, x19
    bl      map_gib
    mov     x1, #0x200000           // the longest device tree
    add     x0, x19, x1
    bl      map_gib
    // Speculative fills may have cached what was stored meanwhile.
    bl      invalidate_image

    mov     x0, x21
    ldr     x1, =SCTLR_ON
    bl      enable_mmu
    adrp    x0, __first_stack_end
    mov     sp, x0
    mov     x0, x19
    adr     x30, park
    b       primary_main

// PSCI starts a secondary CPU here with x0 = physical address of its SecondaryBoot.
.global secondary_entry
secondary_entry:
    mov     x19, x0
    bl      known_state
    ldp     x0, x1, [x19]           // root table, SCTLR_EL2
    bl      enable_mmu
    ldp     x1, x0, [x19, #16]      // stack top, CPU number
    mov     sp, x1
    adr     x30, park
    b       secondary_main

park:
    wfe
    b       park

// Only EL2 without VHE is ours; anything else parks. Corrupts x0.
known_state:
    msr     daifset, #0xf
    msr     spsel, #1
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    park
    mov     x0, #HCR_RW
    msr     hcr_el2, x0
    isb
    ldr     x0, =SCTLR_RES1
    msr     sctlr_el2, x0
    isb
    ret

// Maps the 1 GiB around x0 in the table at x21, taking level-1 tables from x22. Corrupts x1-x4.
map_gib:
    ubfx    x1, x0, #39, #9
    ldr     x2, [x21, x1, lsl #3]
    cbnz    x2, 1f
    orr     x2, x22, #3
    str     x2, [x21, x1, lsl #3]
    add     x22, x22, #4096
1:  and     x2, x2, #~0xfff
    ubfx    x1, x0, #30, #9
    lsr     x3, x0, #30
    lsl     x3, x3, #30
    mov     x4, #BOOT_BLOCK
    orr     x3, x3, x4
    str     x3, [x2, x1, lsl #3]
    ret

// Invalidates the image's cache lines to the point of coherency, but for the stacks, where nothing is stored before the
// MMU is on. Corrupts x0-x3.
invalidate_image:
    dsb     sy
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x2, #4
    lsl     x2, x2, x3
    adrp    x0, __image_start
    adrp    x1, __stacks_start
1:  dc      ivac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    1b
    dsb     sy
    ret

// Turns the MMU on with the root table x0 and SCTLR_EL2 x1. Corrupts x2, x3.
enable_mmu:
    ldr     x2, =MAIR
    msr     mair_el2, x2
    ldr     x2, =TCR
    mrs     x3, id_aa64mmfr0_el1
    and     x3, x3, #0xf
    cmp     x3, #5                  // 48 bits: more would need another descriptor format
    b.ls    1f
    mov     x3, #5
1:  orr     x2, x2, x3, lsl #16
    msr     tcr_el2, x2
    msr     ttbr0_el2, x0
    ic      iallu
    tlbi    alle2
    dsb     sy
    isb
    msr     sctlr_el2, x1
    isb
    ret

// fn replace_map(root: u64, sctlr: u64): swaps the map under our feet. The MMU is off in between, so that no
// TLB ever holds a block of the old map beside a page of the new one.
.global replace_map
replace_map:
    ldr     x2, =SCTLR_RES1 | (1 << 12)
    dsb     sy
    msr     sctlr_el2, x2
    isb
    tlbi    alle2
    dsb     sy
    isb
    msr     ttbr0_el2, x0
    isb
    msr     sctlr_el2, x1
    isb
    ret

.ltorg

.section .bss.boot_tables, "aw", @nobits
.balign 4096
boot_tables:
    .skip   4096 * 5
