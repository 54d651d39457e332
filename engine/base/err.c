// Error phrases of the engine layer.
#include "base/err.h"

#include "kernels.h"

const char *eng_strerror(int code)
{
    switch (code) {
#define X(name, value, text) \
    case name:               \
        return text;
        ENG_ERRORS(X)
#undef X
    default:
        return krn_strerror(code);
    }
}
