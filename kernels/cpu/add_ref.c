// x[i] += y[i].
#include "ops.h"

void krn_add_ref(float *x, const float *y, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        x[i] += y[i];
}
