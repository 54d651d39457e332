// What is done with the parts that other devices sent:
//
//     sum      y[i] = from[0][i] + from[1][i] + ... + from[n - 1][i]
//     columns  to[r][d * width + i] = from[d][r][i]
//
// All f32, any alignment. Both are moves of memory: a warp reads and writes runs of 32 floats. The order of the sum is
// that of the devices, whatever the count (batch invariance).
#include "exchange.h"
#include "simt.cuh"

namespace
{

enum { THREADS = 256, EACH = 4 }; // floats of a thread

} // namespace

KRN_KERNEL(THREADS, 2) rank_sum(KRN_ARGS(struct krn_rank_sum_args) a)
{
    simt::wait_for_inputs();
    int64_t at = (int64_t)simt::block_x() * (THREADS * EACH) + simt::thread();
    KRN_UNROLL
    for (int k = 0; k < EACH; k++, at += THREADS)
        if (at < a.count) {
            float sum = a.from[at];
            for (int32_t d = 1; d < a.n; d++)
                sum += a.from[d * a.count + at];
            a.y[at] = sum;
        }
}

// A block moves a piece of one row of one device's matrix.
KRN_KERNEL(THREADS, 2) rank_columns(KRN_ARGS(struct krn_rank_columns_args) a)
{
    simt::wait_for_inputs();
    int64_t row = simt::block_y(), device = simt::block_z();
    const float *from = a.from + (device * a.rows + row) * a.width;
    float *to = a.to + (row * a.n + device) * a.width;
    int at = simt::block_x() * (THREADS * EACH) + simt::thread();
    KRN_UNROLL
    for (int k = 0; k < EACH; k++, at += THREADS)
        if (at < a.width)
            to[at] = from[at];
}

extern "C" int krn_cuda_rank_sum(struct krn_cuda_launch how, const struct krn_rank_sum_args *args)
{
    int blocks = (int)((args->count + THREADS * EACH - 1) / (THREADS * EACH));
    return simt::launch(rank_sum, how, {blocks, 1, 1}, THREADS, 0, *args);
}

extern "C" int krn_cuda_rank_columns(struct krn_cuda_launch how, const struct krn_rank_columns_args *args)
{
    int blocks = (args->width + THREADS * EACH - 1) / (THREADS * EACH);
    return simt::launch(rank_columns, how, {blocks, args->rows, args->n}, THREADS, 0, *args);
}
