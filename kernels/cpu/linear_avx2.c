// linear with AVX2 and FMA: tiles of 2 rows x 4 outputs, because 16 registers also hold the weights. See linear_tile.h.
#include "vec_avx2.h"

#define TILE_ROWS 2
#include "linear_tile.h"

static void linear_f32(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    linear(task, begin, end, false);
}

static void linear_bf16(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    linear(task, begin, end, true);
}

void krn_linear_avx2(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    if (task->w->type == KRN_BF16)
        linear_bf16(task, begin, end);
    else
        linear_f32(task, begin, end);
}
