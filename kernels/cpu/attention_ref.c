// y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V over positions 0 .. limit, read from the pages as the store has
// them: f32, bf16, or q8 as integer * scale.
//
// The reference: one row and head at a time, positions ascending, sums in double. The largest score is found first;
// scores are computed again in the second pass, because keeping them would need memory that grows with the context.
#include "ops.h"
#include "quant.h"
#include "scalar.h"

#include <math.h>

enum { DIMS = 64 }; // elements read, and summed, at a time

// Elements first .. first + n of a stored vector, exactly.
static void read_part(const struct krn_kv *kv, const void *data, const float *scales, size_t vector, int32_t first,
                      int32_t n, double ret[DIMS])
{
    size_t at = vector * (size_t)kv->head_dim + (size_t)first;
    for (int32_t i = 0; i < n; i++, at++)
        if (kv->type == KRN_BF16)
            ret[i] = (double)krn_bf16_value(((const uint16_t *)data)[at]);
        else if (kv->type == KRN_Q8)
            ret[i] = (double)((const int8_t *)data)[at] * (double)scales[vector];
        else
            ret[i] = (double)((const float *)data)[at];
}

static double score_of(const struct krn_kv *kv, size_t vector, const float *q)
{
    double key[DIMS], sum = 0;
    for (int32_t first = 0; first < kv->head_dim; first += DIMS) {
        int32_t n = kv->head_dim - first < DIMS ? kv->head_dim - first : DIMS;
        read_part(kv, kv->k, kv->k_scales, vector, first, n, key);
        for (int32_t i = 0; i < n; i++)
            sum += (double)q[first + i] * key[i];
    }
    return sum * (1.0 / sqrt((double)kv->head_dim));
}

// limit: the last position the row sees.
static void attend(const struct krn_attention_task *task, const int32_t *pages, int32_t kv_head, int32_t limit,
                   const float *q, float *y)
{
    const struct krn_kv *kv = task->kv;
    int32_t dim = kv->head_dim;
    double max = -INFINITY;
    for (int32_t p = 0; p <= limit; p++) {
        double score = score_of(kv, krn_kv_vector(kv, task->layer, pages, kv_head, p), q);
        if (!(score <= max)) // a NaN stays
            max = score;
    }
    for (int32_t first = 0; first < dim; first += DIMS) {
        int32_t n = dim - first < DIMS ? dim - first : DIMS;
        double sums[DIMS] = {0}, value[DIMS], total = 0;
        for (int32_t p = 0; p <= limit; p++) {
            size_t vector = krn_kv_vector(kv, task->layer, pages, kv_head, p);
            double weight = exp(score_of(kv, vector, q) - max);
            total += weight;
            read_part(kv, kv->v, kv->v_scales, vector, first, n, value);
            for (int32_t i = 0; i < n; i++)
                sums[i] += weight * value[i];
        }
        for (int32_t i = 0; i < n; i++)
            y[first + i] = (float)(sums[i] / total);
    }
}

void krn_attention_ref(const struct krn_attention_task *task, int64_t begin, int64_t end)
{
    struct krn_attention_shape shape = krn_attention_shape(task);
    for (int64_t index = begin; index < end; index++) {
        struct krn_attention_unit unit = krn_attention_unit(task, &shape, index);
        const struct krn_segment *segment = unit.segment;
        for (int32_t r = unit.row; r < unit.row + unit.rows; r++)
            for (int32_t h = unit.head; h < unit.head + unit.heads; h++) {
                size_t at = (((size_t)segment->row + (size_t)r) * (size_t)task->n_heads + (size_t)h) *
                            (size_t)task->kv->head_dim;
                int32_t limit = segment->first_pos + (segment->mask == KRN_MASK_CAUSAL ? r : segment->rows - 1);
                attend(task, segment->pages, unit.kv_head, limit, task->q + at, task->y + at);
            }
    }
}
