// x[r] = table[tokens[r]] as f32.
#include "ops.h"
#include "scalar.h"

void krn_embed_ref(float *x, const struct krn_tensor *table, const int32_t *tokens, int64_t begin, int64_t end)
{
    size_t width = (size_t)table->cols;
    for (int64_t r = begin; r < end; r++)
        for (size_t i = 0; i < width; i++)
            x[(size_t)r * width + i] = krn_weight(table, (size_t)tokens[r] * width + i);
}
