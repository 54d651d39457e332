// x[i] += y[i].
#include "ops.h"

void KRN_VERSION(krn_add)(float *x, const float *y, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        x[i] += y[i];
}
