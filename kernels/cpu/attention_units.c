// How an attention task is cut into units of work.
#include "ops.h"

struct krn_attention_shape krn_attention_shape(const struct krn_attention_task *task)
{
    struct krn_attention_shape shape = {0};
    int32_t group = task->n_heads / task->kv->n_kv_heads;
    shape.heads = group < KRN_ATTENTION_QUERIES ? group : KRN_ATTENTION_QUERIES;
    shape.head_groups = (group + shape.heads - 1) / shape.heads;
    shape.rows = KRN_ATTENTION_QUERIES / shape.heads;
    for (int32_t s = 0; s < task->n_segments; s++)
        shape.per_kv_head += (int64_t)((task->segments[s].rows + shape.rows - 1) / shape.rows) * shape.head_groups;
    shape.units = shape.per_kv_head * task->kv->n_kv_heads;
    return shape;
}

struct krn_attention_unit krn_attention_unit(const struct krn_attention_task *task,
                                             const struct krn_attention_shape *shape, int64_t index)
{
    int32_t group = task->n_heads / task->kv->n_kv_heads;
    struct krn_attention_unit unit = {.kv_head = (int32_t)(index / shape->per_kv_head)};
    int64_t rest = index % shape->per_kv_head;
    const struct krn_segment *segment = task->segments;
    for (;; segment++) {
        int64_t units = (int64_t)((segment->rows + shape->rows - 1) / shape->rows) * shape->head_groups;
        if (rest < units)
            break;
        rest -= units;
    }
    int32_t head_group = (int32_t)(rest % shape->head_groups);
    unit.segment = segment;
    unit.head = unit.kv_head * group + head_group * shape->heads;
    unit.heads = group - head_group * shape->heads;
    if (unit.heads > shape->heads)
        unit.heads = shape->heads;
    unit.row = (int32_t)(rest / shape->head_groups) * shape->rows;
    unit.rows = segment->rows - unit.row < shape->rows ? segment->rows - unit.row : shape->rows;
    return unit;
}
