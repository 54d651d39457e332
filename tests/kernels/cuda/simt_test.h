// What the tests of the host's SIMT machine share: one kind of arguments, one way to launch, cmocka in C++.
#pragma once

#include "simt.cuh"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdlib.h>
extern "C" {
#include <cmocka.h>
}

struct args {
    const void *in;
    void *out;
    int n, mode;
};

template <class Kernel>
static inline int start(Kernel kernel, struct args a, int blocks = 1, int threads = 64, size_t shared = 8192)
{
    return simt::launch(kernel, {NULL, false}, {blocks, 1, 1}, threads, shared, a);
}

static inline void assert_fault(int rc, const char *part)
{
    assert_int_equal(rc, KRN_EDEVICE);
    if (!strstr(simt_host_fault(), part))
        fail_msg("the fault is \"%s\", not \"%s\"", simt_host_fault(), part);
}

// Tests are run in both orders of blocks and threads.
static inline int in_reverse(void **)
{
    simt_host_set_reversed(true);
    return 0;
}

static inline int in_order(void **)
{
    simt_host_set_reversed(false);
    return 0;
}
