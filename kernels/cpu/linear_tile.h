// y[r][o] = sum_i x[r][i] w[o][i], in the words of a vec_*.h: the body of linear_avx2.c and linear_avx512.c.
//
// Order of one sum, whatever the tile: V_LANES partial sums, lane l adds x[i] w[i] for i = l, l + V_LANES, ... with one
// rounding each (FMA); missing elements of the last step count as 0; then v_sum4 folds the lanes. A tile of rows x
// outputs only shares loads.
//
//   * A bf16 weight becomes f32 while it is loaded; a tile of several rows converts once for all its rows.
//   * Rows are taken in blocks whose activations stay in the second-level cache while all outputs pass over them.
//   * Few rows are bound by memory, and memory is fast only when read as few long streams. Measured on Zen 4, one row,
//   bf16, GB/s from memory
//     (a plain read: 30): four short rows side by side 10; the same with the next four prefetched in address order 28
//     (width 256) to 25 (1536); one output after the other 28 (width 2048, 3072), 24 (4096), 13 (14336: one chain of
//     FMAs is too slow); eight long rows side by side 24 (4096), 26 (14336). From cache, side by side is the fastest.
//     Hence the three ways of `outputs_of_one`.
//   * Weights lie where the file put them: every load is unaligned.
//
// The includer defines TILE_ROWS, the rows of the largest tile (its registers: 4 * TILE_ROWS sums, 4 weights, 1
// activation): 6 or 2.
#pragma once

#include "ops.h"

enum {
    TILE_OUTPUTS = 4,
    SUMS_MAX = TILE_ROWS * TILE_OUTPUTS,
    ROW_BLOCK_BYTES = 512 * 1024, // activations of one block
    ROW_BLOCK_MIN = 4 * TILE_ROWS,
    PREFETCH_COLS = 1536, // one row: up to this width the next outputs are prefetched
    SEQUENCE_COLS = 3584, // one row: up to this width one output after the other
    CACHE_LINE = 64,
};

V_INLINE vf load_weight(const char *w, bool bf16, size_t i)
{
    return bf16 ? v_load_bf16((const uint16_t *)(const void *)w + i) : v_load((const float *)(const void *)w + i);
}

V_INLINE vf load_weight_first(const char *w, bool bf16, size_t i, int n)
{
    return bf16 ? v_load_bf16_first((const uint16_t *)(const void *)w + i, n)
                : v_load_first((const float *)(const void *)w + i, n);
}

// Fetches the next `lines` cache lines after the tile's weights. Beyond the end of the matrix it fetches for nothing,
// but never faults.
V_INLINE void prefetch_lines(uintptr_t *address, const int lines)
{
    V_UNROLL for (int l = 0; l < lines; l++)
        _mm_prefetch((const char *)(*address + (uintptr_t)(l * CACHE_LINE)), _MM_HINT_T0);
    *address += (uintptr_t)(lines * CACHE_LINE);
}

// Stores the sums of four outputs of one row, n (1 .. 4) of them wanted.
V_INLINE void store_four(const struct krn_linear_task *task, int32_t row, int64_t out, int n, __m128 sums)
{
    float *y = task->y + (size_t)row * (size_t)task->ldy + (size_t)out;
    if (task->add)
        sums = _mm_add_ps(v4_load_first(y, n), _mm_mul_ps(_mm_set1_ps(task->scale), sums));
    v4_store_first(y, n, sums);
}

// One tile: `rows` rows from `row` by `outputs` outputs from `out`, of which n exist (fewer only when outputs is 4).
// rows, outputs (a multiple of 4; rows * outputs <= SUMS_MAX), bf16 and ahead (prefetch the next outputs) are constants
// where it is inlined.
V_INLINE void tile(const struct krn_linear_task *task, int32_t row, const int rows, int64_t out, const int outputs,
                   int n, const bool bf16, const bool ahead)
{
    const size_t cols = (size_t)task->w->cols, size = bf16 ? 2 : 4;
    const float *x = task->x + (size_t)row * cols;
    const char *first = (const char *)task->w->data + (size_t)out * cols * size;
    uintptr_t next = (uintptr_t)first + (size_t)outputs * cols * size;
    const char *w[SUMS_MAX];
    vf sum[SUMS_MAX];
    V_UNROLL for (int j = 0; j < outputs; j++) w[j] = first + (size_t)(j < n ? j : n - 1) * cols * size;
    V_UNROLL for (int s = 0; s < rows * outputs; s++) sum[s] = v_zero();
    size_t i = 0;
    for (; i + V_LANES <= cols; i += V_LANES) {
        vf weight[SUMS_MAX];
        if (ahead)
            prefetch_lines(&next, V_LANES * outputs * (int)size / CACHE_LINE);
        V_UNROLL for (int j = 0; j < outputs; j++) weight[j] = load_weight(w[j], bf16, i);
        V_UNROLL for (int r = 0; r < rows; r++)
        {
            vf a = v_load(x + (size_t)r * cols + i);
            V_UNROLL for (int j = 0; j < outputs; j++) sum[r * outputs + j] = v_fma(a, weight[j], sum[r * outputs + j]);
        }
    }
    if (i < cols) {
        int rest = (int)(cols - i);
        vf weight[SUMS_MAX];
        V_UNROLL for (int j = 0; j < outputs; j++) weight[j] = load_weight_first(w[j], bf16, i, rest);
        V_UNROLL for (int r = 0; r < rows; r++)
        {
            vf a = v_load_first(x + (size_t)r * cols + i, rest);
            V_UNROLL for (int j = 0; j < outputs; j++) sum[r * outputs + j] = v_fma(a, weight[j], sum[r * outputs + j]);
        }
    }
    V_UNROLL for (int r = 0; r < rows; r++) V_UNROLL for (int j = 0; j < outputs; j += TILE_OUTPUTS)
    {
        const vf *s = &sum[r * outputs + j];
        store_four(task, row + r, out + j, outputs == TILE_OUTPUTS ? n : TILE_OUTPUTS, v_sum4(s[0], s[1], s[2], s[3]));
    }
}

// One row by n (1 .. 4) outputs, one output after the other.
V_INLINE void sequence(const struct krn_linear_task *task, int32_t row, int64_t out, int n, const bool bf16)
{
    const size_t cols = (size_t)task->w->cols, size = bf16 ? 2 : 4;
    const float *x = task->x + (size_t)row * cols;
    vf sum[TILE_OUTPUTS];
    V_UNROLL for (int j = 0; j < TILE_OUTPUTS; j++)
    {
        const char *w = (const char *)task->w->data + ((size_t)out + (size_t)(j < n ? j : n - 1)) * cols * size;
        vf total = v_zero();
        size_t i = 0;
        for (; i + V_LANES <= cols; i += V_LANES)
            total = v_fma(v_load(x + i), load_weight(w, bf16, i), total);
        if (i < cols)
            total = v_fma(v_load_first(x + i, (int)(cols - i)), load_weight_first(w, bf16, i, (int)(cols - i)), total);
        sum[j] = total;
    }
    store_four(task, row, out, n, v_sum4(sum[0], sum[1], sum[2], sum[3]));
}

// All outputs of a range for one row.
V_INLINE void outputs_of_one(const struct krn_linear_task *task, int32_t row, int64_t begin, int64_t end,
                             const bool bf16)
{
    const int32_t cols = task->w->cols;
    int64_t out = begin;
    if (cols > SEQUENCE_COLS)
        for (; out + 2 * TILE_OUTPUTS <= end; out += 2 * TILE_OUTPUTS)
            tile(task, row, 1, out, 2 * TILE_OUTPUTS, 2 * TILE_OUTPUTS, bf16, false);
    for (; out < end; out += TILE_OUTPUTS) {
        int n = end - out < TILE_OUTPUTS ? (int)(end - out) : TILE_OUTPUTS;
        if (cols > PREFETCH_COLS)
            sequence(task, row, out, n, bf16);
        else
            tile(task, row, 1, out, TILE_OUTPUTS, n, bf16, true);
    }
}

// Four outputs (or the n that are left) for the rows of a block, in tiles of as nearly equal height as can be: 8 rows
// are 4 + 4, because a tile of 2 rows converts as many weights as one of 6. Every tile prefetches, as its loads leave
// room.
V_INLINE void outputs_of_block(const struct krn_linear_task *task, int32_t row, int32_t end, int64_t out, int n,
                               const bool bf16)
{
    for (int32_t tiles = (end - row + TILE_ROWS - 1) / TILE_ROWS; tiles > 0; tiles--) {
        int32_t rows = (end - row + tiles - 1) / tiles;
        switch (rows) {
#if TILE_ROWS > 2
        case 6:
            tile(task, row, 6, out, TILE_OUTPUTS, n, bf16, true);
            break;
        case 5:
            tile(task, row, 5, out, TILE_OUTPUTS, n, bf16, true);
            break;
        case 4:
            tile(task, row, 4, out, TILE_OUTPUTS, n, bf16, true);
            break;
        case 3:
            tile(task, row, 3, out, TILE_OUTPUTS, n, bf16, true);
            break;
#endif
        case 2:
            tile(task, row, 2, out, TILE_OUTPUTS, n, bf16, true);
            break;
        default:
            tile(task, row, 1, out, TILE_OUTPUTS, n, bf16, true);
            break;
        }
        row += rows;
    }
}

V_INLINE void linear(const struct krn_linear_task *task, int64_t begin, int64_t end, const bool bf16)
{
    if (task->rows == 1) {
        outputs_of_one(task, 0, begin, end, bf16);
        return;
    }
    int64_t block = (int64_t)(ROW_BLOCK_BYTES / (sizeof(float) * (size_t)task->w->cols)) / TILE_ROWS * TILE_ROWS;
    if (block < ROW_BLOCK_MIN)
        block = ROW_BLOCK_MIN;
    for (int64_t row = 0; row < task->rows; row += block) {
        int64_t row_end = row + block < task->rows ? row + block : task->rows;
        for (int64_t out = begin; out < end; out += TILE_OUTPUTS)
            outputs_of_block(task, (int32_t)row, (int32_t)row_end, out,
                             end - out < TILE_OUTPUTS ? (int)(end - out) : TILE_OUTPUTS, bf16);
    }
}
