// What every backend shares: the error table and the sizes of the element types.
#include "kernels.h"

const char *krn_strerror(int code)
{
    switch (code) {
    case 0:
        return "success";
#define X(name, value, text) \
    case name:               \
        return text;
        KRN_ERRORS(X)
#undef X
    default:
        return "unknown kernel error";
    }
}

size_t krn_type_size(enum krn_type type)
{
    return type == KRN_BF16 ? 2 : 4;
}
