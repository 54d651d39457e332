// y[r][i] = x[r][i] / sqrt(mean(x[r]^2) + eps) * weight[i], after x[r] += add[r] where add is given.
//
// The squares are summed in double, in eight interleaved sums that are then added in order: exact enough that the order
// hardly shows, and eight chains keep the adders busy.
#include "ops.h"
#include "scalar.h"

#include <math.h>

enum { LANES = 8 };

static double sum_of_squares(const float *x, int32_t width)
{
    double sums[LANES] = {0};
    int32_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int j = 0; j < LANES; j++)
            sums[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i < width; i++, j++)
        sums[j] += (double)x[i] * (double)x[i];
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += sums[j];
    return sum;
}

void KRN_VERSION(krn_rms_norm)(const struct krn_rms_norm_task *task, int64_t begin, int64_t end)
{
    int32_t width = task->width;
    for (int64_t r = begin; r < end; r++) {
        float *x = task->x + r * width;
        float *y = task->y + r * width;
        if (task->add)
            KRN_VERSION(krn_add)(x, task->add + r * width, 0, width);
        float inverse = (float)(1.0 / sqrt(sum_of_squares(x, width) / width + (double)task->eps));
        for (int32_t i = 0; i < width; i++)
            y[i] = x[i] * inverse * krn_weight(task->weight, (size_t)i);
    }
}
