// linear with AVX-512: tiles of 6 rows x 4 outputs fill 24 of the 32 registers with sums. See linear_tile.h.
#include "vec_avx512.h"

#define TILE_ROWS 6
#include "linear_tile.h"

static void linear_f32(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    linear(task, begin, end, false);
}

static void linear_bf16(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    linear(task, begin, end, true);
}

void krn_linear_avx512(const struct krn_linear_task *task, int64_t begin, int64_t end)
{
    if (task->w->type == KRN_BF16)
        linear_bf16(task, begin, end);
    else
        linear_f32(task, begin, end);
}
