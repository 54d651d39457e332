// The switch itself: only what a called function must preserve is saved, so it costs a few nanoseconds. Floating-point
// control words are left alone: nobody here changes them.
#include "simt_switch.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".globl simt_switch\n"
        ".hidden simt_switch\n"
        ".type simt_switch, @function\n"
        "simt_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size simt_switch, . - simt_switch\n");

void *simt_switch_new(void *bottom, size_t size, void (*entry)(void))
{
    uintptr_t top = ((uintptr_t)bottom + size) & ~(uintptr_t)15;
    // Six registers, where to go, and a return address that ends a backtrace; a function begins 8 beside 16.
    uint64_t frame[8] = {0, 0, 0, 0, 0, 0, (uint64_t)(uintptr_t)entry, 0};
    return memcpy((void *)(top - sizeof frame), frame, sizeof frame);
}

#elif defined(__aarch64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".globl simt_switch\n"
        ".hidden simt_switch\n"
        ".type simt_switch, %function\n"
        "simt_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size simt_switch, . - simt_switch\n");

void *simt_switch_new(void *bottom, size_t size, void (*entry)(void))
{
    uintptr_t top = ((uintptr_t)bottom + size) & ~(uintptr_t)15;
    uint64_t frame[20] = {};
    frame[11] = (uint64_t)(uintptr_t)entry; // x30
    return memcpy((void *)(top - sizeof frame), frame, sizeof frame);
}

#else

#include <ucontext.h>

void simt_switch(void **ret_from, void *to)
{
    ucontext_t from;
    *ret_from = &from;
    swapcontext(&from, (ucontext_t *)to);
}

void *simt_switch_new(void *bottom, size_t size, void (*entry)(void))
{
    ucontext_t *context = (ucontext_t *)(((uintptr_t)bottom + 63) & ~(uintptr_t)63);
    char *stack = (char *)(context + 1);
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = (size_t)((char *)bottom + size - stack);
    context->uc_link = NULL;
    makecontext(context, entry, 0);
    return context;
}

#endif
