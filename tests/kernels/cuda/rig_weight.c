// Weights for the checks of the CUDA kernels: random matrices, packed by the device, and what they stand for there.
#include "cuda_rig.h"
#include "quant.h"

static size_t row_bytes(enum krn_type type, int32_t cols)
{
    size_t stride = (size_t)krn_weight_stride(type, cols);
    return type == KRN_F32 ? stride * 4 : type == KRN_BF16 ? stride * 2 : type == KRN_FP8 ? stride : stride / 2;
}

// Elements of scales that one row has, and their size.
static size_t row_scales(enum krn_type type, int32_t cols, size_t *ret_size)
{
    *ret_size = type == KRN_FP8 ? sizeof(float) : sizeof(uint16_t);
    return type == KRN_FP8 ? 1 : type == KRN_Q4 ? (size_t)krn_weight_stride(type, cols) / KRN_Q4_GROUP : 0;
}

static float value_at(const struct krn_dev_weight *w, const char *row, const char *scales, int32_t col)
{
    switch (w->type) {
    case KRN_F32:
        return ((const float *)row)[col];
    case KRN_BF16:
        return krn_bf16_value(((const uint16_t *)row)[col]);
    case KRN_FP8:
        return krn_fp8_at((const uint8_t *)row, *(const float *)scales, col);
    default:
        return krn_q4_at((const uint32_t *)row, (const uint16_t *)scales, col);
    }
}

static float *read_values(struct cuda_rig *rig, const struct krn_dev_weight *w)
{
    size_t stride = row_bytes(w->type, w->cols), scale_size, n_scales = row_scales(w->type, w->cols, &scale_size);
    char *data = must(malloc((size_t)w->rows * stride + 1)), *scales = must(malloc((size_t)w->rows * n_scales * 4 + 1));
    float *values = floats((size_t)w->rows * (size_t)w->cols);
    rig_read(rig, data, w->data, (size_t)w->rows * stride);
    if (w->scales)
        rig_read(rig, scales, w->scales, (size_t)w->rows * n_scales * scale_size);
    for (int32_t r = 0; r < w->rows; r++)
        for (int32_t c = 0; c < w->cols; c++)
            values[(size_t)r * (size_t)w->cols + (size_t)c] =
                value_at(w, data + (size_t)r * stride, scales + (size_t)r * n_scales * scale_size, c);
    free(data);
    free(scales);
    return values;
}

struct krn_dev_weight rig_weight(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t rows,
                                 int32_t cols, float **ret_values)
{
    size_t n = (size_t)rows * (size_t)cols, scale_size, n_scales = row_scales(type, cols, &scale_size);
    float *host = floats(n);
    fill_random(random, host, n);
    void *from = rig_upload(rig, host, n * sizeof *host);
    void *data = rig_alloc(rig, (size_t)rows * row_bytes(type, cols));
    void *scales = n_scales ? rig_alloc(rig, (size_t)rows * n_scales * scale_size) : NULL;
    struct krn_pack_args args = {.from = from,
                                 .from_f32 = 1,
                                 .rows = rows,
                                 .cols = cols,
                                 .type = type,
                                 .data = data,
                                 .scales = scales,
                                 .stride = krn_weight_stride(type, cols)};
    rig_must(rig, krn_cuda_pack(rig->how, &args), "pack");
    struct krn_dev_weight w = {.data = data, .scales = scales, .type = type, .rows = rows, .cols = cols};
    if (ret_values)
        *ret_values = read_values(rig, &w);
    rig_free(rig, from);
    free(host);
    return w;
}

void rig_weight_free(struct cuda_rig *rig, struct krn_dev_weight *weight)
{
    rig_free(rig, (void *)weight->data);
    rig_free(rig, (void *)weight->scales);
    *weight = (struct krn_dev_weight){0};
}
