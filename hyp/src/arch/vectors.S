// The EL2 vector table, and the way into and out of a guest.
//
// GuestRegisters (arch/vcpu.rs): x0..x30 at 0, ELR at 248, SPSR at 256.

.macro fatal kind
    .balign 128
    // EL2 itself took an exception. Its stack may be what broke: use the emergency stack.
    adrp    x0, __emergency_stack_end
    mov     sp, x0
    mov     x0, #\kind
    b       fatal_exception
.endm

.macro from_guest kind
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       leave_guest
.endm

.section .text.vectors, "ax"
.balign 2048
.global vectors
vectors:
    fatal 0
    fatal 1
    fatal 2
    fatal 3
    fatal 4
    fatal 5
    fatal 6
    fatal 7
    // AArch64 guest code: synchronous, IRQ, FIQ, SError.
    from_guest 0
    from_guest 1
    from_guest 1
    from_guest 2
    // AArch32 code at the guest's EL0.
    from_guest 0
    from_guest 1
    from_guest 1
    from_guest 2

// fn enter_guest(registers: *mut GuestRegisters) -> u64: runs guest code until the next exception to EL2 and
// returns its kind. Everything that the procedure call standard lets a callee keep is kept.
.global enter_guest
enter_guest:
    stp     x19, x20, [sp, #-112]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #248]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                     // nothing past eret is to be speculated
    isb

leave_guest:
    ldr     x0, [sp, #(16 + 96)]
    stp     x2, x3, [x0, #16]
    ldp     x2, x3, [sp], #16       // the guest's x0, x1
    stp     x2, x3, [x0]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #248]
    mov     x0, x1
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #112
    ret
