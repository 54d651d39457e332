// y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V over positions 0 .. limit, read from the pages.
//
// The reference: one row and head at a time, positions ascending, sums in double. The largest score is found first;
// scores are computed again in the second pass, because keeping them would need memory that grows with the context.
#include "ops.h"
#include "scalar.h"

#include <math.h>

static double dot(const float *a, const float *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

// limit: the last position the row sees.
static void attend(const struct krn_attention_task *task, const int32_t *pages, int32_t kv_head, int32_t limit,
                   const float *q, float *y)
{
    enum { DIMS = 64 }; // output elements summed in one pass over the positions
    const struct krn_kv *kv = task->kv;
    const float *keys = kv->k, *values = kv->v;
    int32_t dim = kv->head_dim;
    double scale = 1.0 / sqrt((double)dim);
    double max = -INFINITY;
    for (int32_t p = 0; p <= limit; p++) {
        double score = dot(q, keys + krn_kv_offset(kv, task->layer, pages, kv_head, p), dim) * scale;
        if (!(score <= max)) // a NaN stays
            max = score;
    }
    for (int32_t first = 0; first < dim; first += DIMS) {
        int32_t n = dim - first < DIMS ? dim - first : DIMS;
        double sums[DIMS] = {0}, total = 0;
        for (int32_t p = 0; p <= limit; p++) {
            size_t at = krn_kv_offset(kv, task->layer, pages, kv_head, p);
            double weight = exp(dot(q, keys + at, dim) * scale - max);
            total += weight;
            for (int32_t i = 0; i < n; i++)
                sums[i] += weight * (double)values[at + (size_t)(first + i)];
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
