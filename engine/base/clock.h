// Monotonic time.
#pragma once

#include <stdint.h>
#include <time.h>

// Nanoseconds since an arbitrary start, never going back.
static inline int64_t eng_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
