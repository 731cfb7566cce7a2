// The EL2 vector table, and the way into and out of a guest.
//
// GuestRegisters (arch/vcpu.rs): x0..x30 at 0, ELR at 248, SPSR at 256.

.equ EMERGENCY_SHIFT, 14            // each CPU's emergency stack with its guard page (linker/hyp.ld)
.equ SPSR_A, 1 << 8

// EL2 itself took an exception that nobody expects. Its stack may be what broke, and other CPUs may be dying too:
// use this CPU's emergency stack.
.macro fatal_now kind
    mrs     x0, tpidr_el2
    add     x0, x0, #1
    adrp    x1, __emergency_stack_start
    add     x0, x1, x0, lsl #EMERGENCY_SHIFT
    mov     sp, x0
    mov     x0, #\kind
    b       fatal_exception
.endm

.macro fatal kind
    .balign 128
    fatal_now \kind
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
    .balign 128
    b       own_synchronous
    fatal 5
    fatal 6
    .balign 128
    b       own_system_error
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

// The code below is interrupted only where it expects that, and keeps nothing in x16 and x17.

// An external abort in between guarded_from and guarded_to is a device's answer, not a fault of EL2's.
own_synchronous:
    mrs     x16, elr_el2
    adr     x17, guarded_from
    sub     x16, x16, x17
    cmp     x16, #(guarded_to - guarded_from)
    b.hs    1f
    mrs     x16, esr_el2
    ubfx    x17, x16, #26, #6
    cmp     x17, #0x25              // data abort without a change of level
    b.ne    1f
    and     x16, x16, #0x3f
    cmp     x16, #0x10              // external, not on a walk
    b.ne    1f
    adr     x16, unanswered
    msr     elr_el2, x16
    eret
1:  fatal_now 4

// struct Answer guarded_load(u64 at, u64 width_log2): x0 = what the device answered, x1 = whether it did.
.global guarded_load
guarded_load:
    mov     x2, x0
    tbnz    x1, #1, 2f
    tbnz    x1, #0, 1f
guarded_from:
    ldrb    w0, [x2]
    b       answered
1:  ldrh    w0, [x2]
    b       answered
2:  tbnz    x1, #0, 3f
    ldr     w0, [x2]
    b       answered
3:  ldr     x0, [x2]
answered:
    mov     x1, #1
    ret

// struct Answer guarded_store(u64 at, u64 width_log2, u64 value): x1 = whether nothing was wrong.
.global guarded_store
guarded_store:
    tbnz    x1, #1, 2f
    tbnz    x1, #0, 1f
    strb    w2, [x0]
    b       answered
1:  strh    w2, [x0]
    b       answered
2:  tbnz    x1, #0, 3f
    str     w2, [x0]
    b       answered
3:  str     x2, [x0]
    b       answered
guarded_to:
unanswered:
    mov     x1, #0
    ret

// fn forget_system_error(): takes a physical SError that is pending, and forgets it.
.global forget_system_error
forget_system_error:
    dsb     sy                      // errors of what was done so far are pending by now
    isb
    msr     daifclr, #4
forget_from:
    isb
    msr     daifset, #4
    isb
forget_to:
    ret

own_system_error:
    mrs     x16, elr_el2
    adr     x17, forget_from
    sub     x16, x16, x17
    cmp     x16, #(forget_to - forget_from)
    b.hi    1f
    mrs     x16, spsr_el2
    orr     x16, x16, #SPSR_A       // one is enough
    msr     spsr_el2, x16
    eret
1:  fatal_now 7

// fn reset_vectors(): zeroes the registers of floating point and Advanced SIMD.
.arch_extension fp
.arch_extension simd
.global reset_vectors
reset_vectors:
.irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movi    v\n\().2d, #0
.endr
    msr     fpcr, xzr
    msr     fpsr, xzr
    ret
.arch_extension nosimd
.arch_extension nofp

// fn reset_breakpoints(count: u64), fn reset_watchpoints(count: u64): the first `count`, at most 16.
.global reset_breakpoints
reset_breakpoints:
    adr     x1, 1f
    sub     x1, x1, x0, lsl #3
    br      x1
.irp    n, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0
    msr     dbgbvr\n\()_el1, xzr
    msr     dbgbcr\n\()_el1, xzr
.endr
1:  ret

.global reset_watchpoints
reset_watchpoints:
    adr     x1, 1f
    sub     x1, x1, x0, lsl #3
    br      x1
.irp    n, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0
    msr     dbgwvr\n\()_el1, xzr
    msr     dbgwcr\n\()_el1, xzr
.endr
1:  ret
