// cmocka with the headers it wants before it.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

// Close as floats of this size go: |a - b| <= bound, false for NaN.
#define assert_near(a, b, bound) \
    assert_true((double)(a) - (double)(b) <= (bound) && (double)(b) - (double)(a) <= (bound))
