// Inner helper: fill the one-sentence error and return the code, so that a failing check is one statement.
#pragma once

#include "base/err.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

// err may be NULL when err_size is 0. Returns code.
__attribute__((format(printf, 4, 5))) static inline int fail(int code, char *err, size_t err_size, const char *format,
                                                             ...)
{
    if (err_size) {
        va_list args;
        va_start(args, format);
        vsnprintf(err, err_size, format, args);
        va_end(args);
    }
    return code;
}
