// y[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + e^-g).
#include "ops.h"
#include "scalar.h"

void krn_swiglu_ref(float *y, const float *gate, const float *up, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        y[i] = gate[i] / (1.0f + krn_expf(-gate[i])) * up[i];
}
