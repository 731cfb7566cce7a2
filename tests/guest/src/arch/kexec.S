// Puts an image into place and enters it. Position-independent; it runs from a copy outside of the image.
// x0 = device tree, x1 = where the image was kept, x2 = where it belongs, x3 = its end there.

    .section .text.kexec, "ax"
    .balign 16
    .globl  kexec_stub
kexec_stub:
    // What the caches hold has to be in memory before they are off: the copy, and the place it goes to.
    mov     x4, #64
    mov     x5, x1
    sub     x6, x3, x2
    add     x6, x1, x6
1:  dc      civac, x5
    add     x5, x5, x4
    cmp     x5, x6
    b.lo    1b
    mov     x5, x2
2:  dc      civac, x5
    add     x5, x5, x4
    cmp     x5, x3
    b.lo    2b
    dsb     sy
    mrs     x5, sctlr_el1
    bic     x5, x5, #(1 << 0)           // M
    bic     x5, x5, #(1 << 2)           // C
    bic     x5, x5, #(1 << 12)          // I
    msr     sctlr_el1, x5
    isb
    mov     x4, x2
3:  ldp     x5, x6, [x1], #16
    stp     x5, x6, [x4], #16
    cmp     x4, x3
    b.lo    3b
    dsb     sy
    ic      iallu
    tlbi    vmalle1
    dsb     sy
    isb
    mov     x4, x2
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    br      x4
    .balign 16
    .globl  kexec_stub_end
kexec_stub_end:
