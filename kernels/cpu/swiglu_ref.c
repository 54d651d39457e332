// y[r][i] = silu(gate[r][i]) * up[r][i], silu(g) = g / (1 + e^-g).
#include "ops.h"
#include "scalar.h"

void KRN_VERSION(krn_swiglu)(const struct krn_swiglu_task *task, int64_t begin, int64_t end)
{
    for (int32_t r = 0; r < task->rows; r++) {
        size_t at = (size_t)r * (size_t)task->width;
        float *y = task->y + at;
        const float *gate = task->gate + at, *up = task->up + at;
        for (int64_t i = begin; i < end; i++)
            y[i] = gate[i] / (1.0f + krn_expf(-gate[i])) * up[i];
    }
}
