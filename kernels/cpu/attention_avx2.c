// attention with AVX2 and FMA: 2 queries x 4 keys, 2 queries x 4 vectors of values. See attention_tile.h.
#include "vec_avx2.h"

#define TILE_QUERIES 2
#include "attention_tile.h"

void krn_attention_avx2(const struct krn_attention_task *task, int64_t begin, int64_t end)
{
    attention(task, begin, end);
}
