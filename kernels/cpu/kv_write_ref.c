// Copies k, v [rows][n_kv_heads][head_dim] of one segment into its pages of a layer.
#include "ops.h"

#include <string.h>

void krn_kv_write_ref(const struct krn_kv *kv, int32_t layer, const float *k, const float *v,
                      const struct krn_segment *segment)
{
    size_t dim = (size_t)kv->head_dim;
    for (int32_t r = 0; r < segment->rows; r++)
        for (int32_t h = 0; h < kv->n_kv_heads; h++) {
            size_t from = (((size_t)segment->row + (size_t)r) * (size_t)kv->n_kv_heads + (size_t)h) * dim;
            size_t to = krn_kv_offset(kv, layer, segment->pages, h, segment->first_pos + r);
            memcpy((float *)kv->k + to, k + from, dim * sizeof *k);
            memcpy((float *)kv->v + to, v + from, dim * sizeof *v);
        }
}
