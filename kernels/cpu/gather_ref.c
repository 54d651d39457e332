// y[j] = x[rows[j]].
#include "ops.h"

#include <string.h>

void krn_gather_ref(float *y, const float *x, const int32_t *rows, int32_t width, int64_t begin, int64_t end)
{
    for (int64_t j = begin; j < end; j++)
        memcpy(y + (size_t)j * (size_t)width, x + (size_t)rows[j] * (size_t)width, (size_t)width * sizeof *y);
}
