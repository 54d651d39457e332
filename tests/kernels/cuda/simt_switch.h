// From one stack to another: the fibres under the host's SIMT machine, for x86-64, aarch64 and (slower) any CPU with
// ucontext; and what AddressSanitizer and ThreadSanitizer must be told of it.
#pragma once

#include <stddef.h>

// A fresh stack [bottom, bottom + size): the first switch to what is returned calls entry, which must not return.
void *simt_switch_new(void *bottom, size_t size, void (*entry)(void));

extern "C" {
// Saves where we are in *ret_from (on our own stack) and goes on where `to` was saved.
void simt_switch(void **ret_from, void *to);
}

// Clang says it in another way.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SIMT_UNTRACED __attribute__((no_sanitize_thread))
#else
#define SIMT_UNTRACED
#endif

// Before a switch to the stack at bottom. ret_fake: where AddressSanitizer keeps ours; NULL: we never come back.
// racing: ThreadSanitizer's fibre of that stack.
static inline SIMT_UNTRACED void simt_switch_note(void **ret_fake, const void *bottom, size_t size, void *racing)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ret_fake, bottom, size);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(racing, 0);
#endif
    (void)ret_fake, (void)bottom, (void)size, (void)racing;
}

// After a switch, on the new stack. fake: what was kept for it. *ret_bottom, *ret_size (may be NULL): the stack that we
// come from.
static inline SIMT_UNTRACED void simt_switch_done(void *fake, const void **ret_bottom, size_t *ret_size)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, ret_bottom, ret_size);
#endif
    (void)fake, (void)ret_bottom, (void)ret_size;
}
