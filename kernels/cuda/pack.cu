// Weights on their way in: dense rows of f32 or bf16 into the device's layout and type (quant.h has the arithmetic).
//
// A block per row. Rows of the source are aligned to their element only, so they are read by elements; what is written
// is aligned. Padding columns become zeros, in scales too.
#include "ops.h"
#include "quant.h"
#include "simt.cuh"

#include "kernels.h"

enum { PACK_THREADS = 256 };

// The columns of one row of the source; zeros beyond.
struct pack_row {
    const void *from;
    int f32, cols;
};

KRN_DEVICE float pack_value(const struct pack_row &row, int col)
{
    if (col >= row.cols)
        return 0.0f;
    return row.f32 ? ((const float *)row.from)[col] : krn_bf16_value(((const uint16_t *)row.from)[col]);
}

// The row of this block, and where it goes.
KRN_DEVICE struct pack_row pack_source(const struct krn_pack_args &a, int64_t *ret_row)
{
    int64_t row = simt::block_x();
    *ret_row = a.first + row;
    return {(const char *)a.from + row * a.cols * (a.from_f32 ? 4 : 2), a.from_f32, a.cols};
}

KRN_KERNEL(PACK_THREADS, 1) pack_f32_kernel(KRN_ARGS(struct krn_pack_args) a)
{
    int64_t to;
    struct pack_row row = pack_source(a, &to);
    simt::wait_for_inputs();
    for (int col = simt::thread(); col < a.stride; col += PACK_THREADS)
        ((float *)a.data)[to * a.stride + col] = pack_value(row, col);
}

KRN_KERNEL(PACK_THREADS, 1) pack_bf16_kernel(KRN_ARGS(struct krn_pack_args) a)
{
    int64_t to;
    struct pack_row row = pack_source(a, &to);
    simt::wait_for_inputs();
    for (int col = simt::thread(); col < a.stride; col += PACK_THREADS)
        ((uint16_t *)a.data)[to * a.stride + col] = krn_bf16_round(pack_value(row, col));
}

KRN_KERNEL(PACK_THREADS, 1) pack_fp8_kernel(KRN_ARGS(struct krn_pack_args) a)
{
    int64_t to;
    struct pack_row row = pack_source(a, &to);
    simt::wait_for_inputs();
    // Magnitudes are ordered as their bits are.
    unsigned largest = 0;
    for (int col = simt::thread(); col < a.cols; col += PACK_THREADS) {
        unsigned magnitude = krn_float_bits(pack_value(row, col)) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    largest = simt::block_reduce<PACK_THREADS>(
        largest, [](unsigned p, unsigned q) { return p > q ? p : q; }, simt::shared<char>(0));
    float scale = krn_fp8_scale(krn_bits_float(largest));
    if (simt::thread() == 0)
        ((float *)a.scales)[to] = scale;
    for (int word = simt::thread(); word < a.stride / 4; word += PACK_THREADS) {
        uint32_t bits = 0;
        KRN_UNROLL
        for (int i = 0; i < 4; i++)
            bits |= (uint32_t)krn_fp8_code(pack_value(row, 4 * word + i), scale) << (8 * krn_fp8_place(i));
        ((uint32_t *)((char *)a.data + to * a.stride))[word] = bits;
    }
}

KRN_KERNEL(PACK_THREADS, 1) pack_q4_kernel(KRN_ARGS(struct krn_pack_args) a)
{
    int64_t to;
    struct pack_row row = pack_source(a, &to);
    simt::wait_for_inputs();
    int n_groups = a.stride / KRN_Q4_GROUP;
    for (int group = simt::thread(); group < n_groups; group += PACK_THREADS) {
        float values[KRN_Q4_GROUP];
        KRN_UNROLL
        for (int i = 0; i < KRN_Q4_GROUP; i++)
            values[i] = pack_value(row, group * KRN_Q4_GROUP + i);
        uint32_t words[4];
        krn_q4_pack(values, &((uint16_t *)a.scales)[to * n_groups + group], words);
        simt::store16((char *)a.data + (to * n_groups + group) * 16,
                      make_uint4(words[0], words[1], words[2], words[3]));
    }
}

int krn_cuda_pack(struct krn_cuda_launch how, const struct krn_pack_args *args)
{
    simt::grid grid = {args->rows, 1, 1};
    if (args->type == KRN_F32)
        return simt::launch(pack_f32_kernel, how, grid, PACK_THREADS, 0, *args);
    if (args->type == KRN_BF16)
        return simt::launch(pack_bf16_kernel, how, grid, PACK_THREADS, 0, *args);
    if (args->type == KRN_FP8)
        return simt::launch(pack_fp8_kernel, how, grid, PACK_THREADS, simt::block_scratch, *args);
    if (args->type == KRN_Q4)
        return simt::launch(pack_q4_kernel, how, grid, PACK_THREADS, 0, *args);
    return KRN_ENOTSUP;
}
