// What every backend shares: the error table, and the names and sizes of the element types.
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

const char *krn_type_name(enum krn_type type)
{
    static const char *const names[KRN_N_TYPES] = {"f32", "bf16", "fp8", "q4", "q8"};
    return (unsigned)type < KRN_N_TYPES ? names[type] : "?";
}

size_t krn_type_size(enum krn_type type)
{
    static const size_t sizes[KRN_N_TYPES] = {4, 2, 1, 0, 1};
    return (unsigned)type < KRN_N_TYPES ? sizes[type] : 0;
}

int64_t krn_matrix_bytes(enum krn_type type, int64_t rows, int64_t cols)
{
    switch (type) {
    case KRN_FP8:
    case KRN_Q8:
        return rows * (cols + (int64_t)sizeof(float));
    case KRN_Q4:
        return rows * ((cols + 1) / 2 + (cols + KRN_Q4_GROUP - 1) / KRN_Q4_GROUP * (int64_t)sizeof(uint16_t));
    default:
        return rows * cols * (int64_t)krn_type_size(type);
    }
}
