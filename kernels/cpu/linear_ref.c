// y[r][o] = sum_i x[r][i] w[o][i], or y[r][o] += scale * (that).
//
// The reference: one sum in double per (row, output), i ascending. A product of two f32 is exact in double, so the
// result is the sum rounded once in all but contrived cases. Four outputs advance together because one chain of
// additions would leave the adder idle; each keeps its own order.
#include "ops.h"
#include "scalar.h"

enum { OUTPUTS = 4 };

void krn_linear_ref(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    size_t cols = (size_t)task->w->cols;
    for (int64_t o = begin; o < end; o += OUTPUTS) {
        int n = end - o < OUTPUTS ? (int)(end - o) : OUTPUTS;
        size_t w[OUTPUTS];
        for (int j = 0; j < OUTPUTS; j++)
            w[j] = (size_t)(o + (j < n ? j : n - 1)) * cols;
        for (int32_t r = 0; r < task->rows; r++) {
            const float *x = task->x + (size_t)r * cols;
            double sum[OUTPUTS] = {0};
            for (size_t i = 0; i < cols; i++)
                for (int j = 0; j < OUTPUTS; j++)
                    sum[j] += (double)x[i] * (double)krn_weight(task->w, w[j] + i);
            float *y = task->y + (size_t)r * (size_t)task->ldy + o;
            for (int j = 0; j < n; j++)
                y[j] = task->add ? y[j] + task->scale * (float)sum[j] : (float)sum[j];
        }
    }
}
