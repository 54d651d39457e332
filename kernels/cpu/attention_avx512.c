// attention with AVX-512: 4 queries x 4 keys, 4 queries x 4 vectors of values. See attention_tile.h.
#include "vec_avx512.h"

#define TILE_QUERIES 4
#include "attention_tile.h"

void krn_attention_avx512(const struct krn_attention_task *task, int64_t begin, int64_t end)
{
    attention(task, begin, end);
}
