// The operations on rows that are not products: embedding, residual and norm, gathering, and the elementwise steps
// between a product and what reads it.
//
// All are bound by memory, or for a few rows by latency, so they load 16 bytes at a time where a row lies at such an
// address, and a norm keeps its row in registers. Widths may be odd. Sums over partial products and the sum of squares
// have one order, given by the width alone: a row's bits do not depend on the other rows.
#include "kernels.h"
#include "ops.h"
#include "simt.cuh"

#include <math.h>
#include <string.h>

// ---- four elements of a row -----------------------------------------------------------------------------------------

// x[4 * quad ..] of a row of `width`; 0 beyond its end. aligned: the row's address is a multiple of 16.
KRN_DEVICE void rows_load(const float *x, int width, bool aligned, int quad, float v[4])
{
    if (aligned && quad * 4 + 4 <= width) {
        uint4 bits = simt::load16(x + quad * 4);
        memcpy(v, &bits, sizeof bits);
        return;
    }
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        v[j] = quad * 4 + j < width ? x[quad * 4 + j] : 0.0f;
}

KRN_DEVICE void rows_store(float *x, int width, bool aligned, int quad, const float v[4])
{
    if (aligned && quad * 4 + 4 <= width) {
        uint4 bits;
        memcpy(&bits, v, sizeof bits);
        simt::store16(x + quad * 4, bits);
        return;
    }
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        if (quad * 4 + j < width)
            x[quad * 4 + j] = v[j];
}

// Rows of INPUT always begin at a multiple of 64 bytes.
KRN_DEVICE void rows_store_bf16(uint16_t *row, int quad, const float v[4])
{
    uint2 bits;
    bits.x = simt::pack_bf16(v[0], v[1]);
    bits.y = simt::pack_bf16(v[2], v[3]);
    simt::store8(row + quad * 4, bits);
}

// Four elements of a weight row that begins at a multiple of 16 bytes.
KRN_DEVICE void rows_weight(const void *data, bool is_f32, int width, int quad, float v[4])
{
    if (is_f32) {
        rows_load((const float *)data, width, true, quad, v);
        return;
    }
    const uint16_t *halves = (const uint16_t *)data;
    uint32_t bits[4] = {0, 0, 0, 0};
    if (quad * 4 + 4 <= width) {
        uint2 packed = simt::load8(halves + quad * 4);
        bits[0] = packed.x << 16;
        bits[1] = packed.x & 0xffff0000u;
        bits[2] = packed.y << 16;
        bits[3] = packed.y & 0xffff0000u;
    } else {
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            bits[j] = quad * 4 + j < width ? (uint32_t)halves[quad * 4 + j] << 16 : 0;
    }
    memcpy(v, bits, sizeof bits);
}

enum { ROWS_PARTS = 4 }; // loaded before the first is added: one wait for memory instead of four

KRN_DEVICE void rows_sums(const struct krn_dev_sums &sums, int row, bool extra, int quad, float v[4])
{
    bool aligned = ((sums.width | sums.stride) & 3) == 0;
    const float *data = sums.data + (size_t)row * (size_t)sums.width;
    int parts = sums.n + (extra ? 1 : 0);
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        v[j] = -0.0f; // adding it changes nothing
    KRN_UNROLL_BY(1)
    for (int first = 0; first < parts; first += ROWS_PARTS) {
        float more[ROWS_PARTS][4];
        KRN_UNROLL
        for (int p = 0; p < ROWS_PARTS; p++) {
            KRN_UNROLL
            for (int j = 0; j < 4; j++)
                more[p][j] = -0.0f;
            if (first + p < parts)
                rows_load(data + (first + p) * sums.stride, sums.width, aligned, quad, more[p]);
        }
        KRN_UNROLL
        for (int p = 0; p < ROWS_PARTS; p++)
            KRN_UNROLL
        for (int j = 0; j < 4; j++)
            v[j] += more[p][j];
    }
}

KRN_DEVICE bool rows_extra(const struct krn_dev_pass *pass, const struct krn_dev_sums &sums, int row)
{
    return sums.extra && KRN_PASS_ARRAY(pass, uint8_t, adapter_rows)[row] != 0;
}

// ---- embed, gather --------------------------------------------------------------------------------------------------

enum { ROWS_THREADS = 256 };

KRN_KERNEL(ROWS_THREADS, 1) embed_rows(KRN_ARGS(struct krn_embed_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int row = simt::block_x();
    if (row >= a.pass->n_rows)
        return;
    int32_t link = KRN_PASS_ARRAY(a.pass, int32_t, links)[row];
    int32_t token = link < 0 ? KRN_PASS_ARRAY(a.pass, int32_t, tokens)[row] : a.last_choices[link].token;
    if (simt::thread() == 0)
        a.row_tokens[row] = token;
    // A choice that failed has no token; what its row computes is never used.
    size_t at = (size_t)(token < 0 ? 0 : token) * (size_t)a.table_stride;
    const void *table =
        a.table_f32 ? (const void *)((const float *)a.table + at) : (const void *)((const uint16_t *)a.table + at);
    for (int quad = simt::thread(); quad * 4 < a.hidden; quad += ROWS_THREADS) {
        float v[4];
        rows_weight(table, a.table_f32 != 0, a.hidden, quad, v);
        rows_store(a.x + (size_t)row * (size_t)a.hidden, a.hidden, (a.hidden & 3) == 0, quad, v);
    }
}

int krn_cuda_embed(struct krn_cuda_launch how, const struct krn_embed_args *args)
{
    return simt::launch(embed_rows, how, {args->rows, 1, 1}, ROWS_THREADS, 0, *args);
}

KRN_KERNEL(ROWS_THREADS, 1) gather_rows(KRN_ARGS(struct krn_gather_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int row = simt::block_x();
    if (a.first + row >= a.pass->n_wanted)
        return;
    int32_t from = KRN_PASS_ARRAY(a.pass, int32_t, wanted_rows)[a.first + row];
    bool aligned = (a.width & 3) == 0;
    for (int quad = simt::thread(); quad * 4 < a.width; quad += ROWS_THREADS) {
        float v[4];
        rows_load(a.x + (size_t)from * (size_t)a.width, a.width, aligned, quad, v);
        rows_store(a.y + (size_t)row * (size_t)a.width, a.width, aligned, quad, v);
    }
}

int krn_cuda_gather(struct krn_cuda_launch how, const struct krn_gather_args *args)
{
    return simt::launch(gather_rows, how, {args->rows, 1, 1}, ROWS_THREADS, 0, *args);
}

// ---- residual and norm ----------------------------------------------------------------------------------------------

enum { NORM_THREADS = 512, NORM_WARPS = NORM_THREADS / 32 };

// Sum over the block in a fixed order, in every thread.
KRN_DEVICE float norm_sum(float v)
{
    simt::smem<float> parts = simt::shared<float>(0);
    for (int delta = 16; delta > 0; delta >>= 1)
        v += simt::shuffle_xor(v, delta);
    if (simt::lane() == 0)
        parts.set(simt::warp(), v);
    simt::sync_block();
    v = parts.get(simt::lane() % NORM_WARPS);
    for (int delta = NORM_WARPS / 2; delta > 0; delta >>= 1)
        v += simt::shuffle_xor(v, delta);
    return v;
}

// x[quads of this thread] += the sums, kept in x.
template <int QUADS> KRN_DEVICE void norm_add(const struct krn_norm_args &a, int row, bool extra, float x[QUADS][4])
{
    bool aligned = (a.width & 3) == 0;
    KRN_UNROLL
    for (int i = 0; i < QUADS; i++) {
        int quad = simt::thread() + i * NORM_THREADS;
        if (quad * 4 >= a.width)
            break;
        float sum[4];
        rows_sums(a.add, row, extra, quad, sum);
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            x[i][j] += sum[j];
        rows_store(a.x + (size_t)row * (size_t)a.width, a.width, aligned, quad, x[i]);
    }
}

template <int QUADS> KRN_KERNEL(NORM_THREADS, QUADS == 2 ? 2 : 1) norm_rows(KRN_ARGS(struct krn_norm_args) a)
{
    float weight[QUADS][4], x[QUADS][4], squares = 0;
    // No kernel writes weights or the pass's description: they need not wait.
    KRN_UNROLL
    for (int i = 0; i < QUADS && a.y; i++)
        rows_weight(a.weight, a.weight_f32 != 0, a.width, simt::thread() + i * NORM_THREADS, weight[i]);
    int row = simt::block_x(), padded = KRN_PAD(a.width);
    bool works = row < a.pass->n_rows, extra = works && rows_extra(a.pass, a.add, row);
    simt::wait_for_inputs();
    simt::let_next_start();
    if (!works)
        return;
    KRN_UNROLL
    for (int i = 0; i < QUADS; i++)
        rows_load(a.x + (size_t)row * (size_t)a.width, a.width, (a.width & 3) == 0, simt::thread() + i * NORM_THREADS,
                  x[i]);
    if (a.add.data)
        norm_add<QUADS>(a, row, extra, x);
    if (!a.y)
        return;
    KRN_UNROLL
    for (int i = 0; i < QUADS; i++)
        KRN_UNROLL
    for (int j = 0; j < 4; j++)
        squares += x[i][j] * x[i][j];
    float inverse = 1.0f / sqrtf(norm_sum(squares) / (float)a.width + a.eps);
    KRN_UNROLL
    for (int i = 0; i < QUADS; i++) {
        int quad = simt::thread() + i * NORM_THREADS;
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            x[i][j] = x[i][j] * inverse * weight[i][j];
        if (quad * 4 < padded)
            rows_store_bf16(a.y + (size_t)row * (size_t)padded, quad, x[i]);
    }
}

int krn_cuda_norm(struct krn_cuda_launch how, const struct krn_norm_args *args)
{
    enum { WIDTH = NORM_THREADS * 4 }; // that one quad a thread covers
    simt::grid grid = {args->rows, 1, 1};
    size_t shared = NORM_WARPS * sizeof(float);
    int32_t width = KRN_PAD(args->width);
    if (width <= 2 * WIDTH)
        return simt::launch(norm_rows<2>, how, grid, NORM_THREADS, shared, *args);
    if (width <= 4 * WIDTH)
        return simt::launch(norm_rows<4>, how, grid, NORM_THREADS, shared, *args);
    if (width <= 8 * WIDTH)
        return simt::launch(norm_rows<8>, how, grid, NORM_THREADS, shared, *args);
    return KRN_EINVAL;
}

// ---- elementwise ----------------------------------------------------------------------------------------------------

// One thread a quad; blocks of ROWS_THREADS quads along y.
KRN_DEVICE int rows_quad()
{
    return simt::block_y() * ROWS_THREADS + simt::thread();
}

static simt::grid rows_grid(int32_t rows, int32_t width)
{
    return {rows, (width / 4 + ROWS_THREADS - 1) / ROWS_THREADS, 1};
}

KRN_KERNEL(ROWS_THREADS, 1) swiglu_rows(KRN_ARGS(struct krn_swiglu_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int row = simt::block_x(), quad = rows_quad(), padded = KRN_PAD(a.width);
    if (quad * 4 >= padded)
        return;
    float gate[4], up[4];
    rows_sums(a.gate, row, false, quad, gate);
    rows_sums(a.up, row, false, quad, up);
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        up[j] *= gate[j] / (1.0f + simt::exp2(-1.44269504f * gate[j]));
    rows_store_bf16(a.y + (size_t)row * (size_t)padded, quad, up);
}

int krn_cuda_swiglu(struct krn_cuda_launch how, const struct krn_swiglu_args *args)
{
    return simt::launch(swiglu_rows, how, rows_grid(args->rows, KRN_PAD(args->width)), ROWS_THREADS, 0, *args);
}

KRN_KERNEL(ROWS_THREADS, 1) round_rows(KRN_ARGS(struct krn_round_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int row = simt::block_x(), quad = rows_quad(), padded = KRN_PAD(a.width);
    if (quad * 4 >= padded)
        return;
    float v[4];
    rows_sums(a.x, row, false, quad, v);
    rows_store_bf16(a.y + (size_t)row * (size_t)padded, quad, v);
}

int krn_cuda_round(struct krn_cuda_launch how, const struct krn_round_args *args)
{
    return simt::launch(round_rows, how, rows_grid(args->rows, KRN_PAD(args->width)), ROWS_THREADS, 0, *args);
}

KRN_KERNEL(ROWS_THREADS, 1) flatten_rows(KRN_ARGS(struct krn_flatten_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int row = simt::block_x(), quad = rows_quad();
    if (row >= a.pass->n_rows || quad * 4 >= a.x.width)
        return;
    float v[4];
    rows_sums(a.x, row, rows_extra(a.pass, a.x, row), quad, v);
    rows_store(a.x.data + (size_t)row * (size_t)a.x.width, a.x.width, (a.x.width & 3) == 0, quad, v);
}

int krn_cuda_flatten(struct krn_cuda_launch how, const struct krn_flatten_args *args)
{
    return simt::launch(flatten_rows, how, rows_grid(args->rows, KRN_PAD(args->x.width)), ROWS_THREADS, 0, *args);
}
