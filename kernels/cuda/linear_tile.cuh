// A lane's share of a skinny product: its stream of weights, their way into bf16, and the matrix instructions.
//
// A warp has 32 outputs, two tiles of 16, and walks along K in groups of 64 bytes of a weight row (32 columns of bf16,
// 64 of fp8, 128 of q4). Which column stands at which place of the K of a matrix instruction is ours to choose as long
// as both operands agree. So lane (g = lane / 4, t = lane % 4) takes 16 bytes as they lie in memory, the t-th of the
// group, of its four rows g and g + 8 of both tiles, and from each row of x the same columns: every load is 16 bytes,
// and nothing is shuffled.
//
// Weights come through a ring of asynchronous copies. A lane copies and reads its own bytes only, so no barrier is
// needed and every warp runs on its own.
#pragma once

#include "ops.h"
#include "quant.h"
#include "simt.cuh"

enum {
    LINEAR_STAGES = 4, // groups of the ring
    LINEAR_SLOTS = 4,  // 16-byte pieces of a lane in a group: slot 2 * tile + half is row g + 8 * half of the tile
    LINEAR_GROUP_BYTES = 64,
    LINEAR_WARP_RING = LINEAR_STAGES * LINEAR_SLOTS * 32 * 16, // bytes
};

// Columns of a row in one lane's 16 bytes.
template <int TYPE> struct linear_columns {
    enum { LANE = TYPE == KRN_Q4 ? 32 : TYPE == KRN_FP8 ? 16 : 8, GROUP = 4 * LANE };
};

// ---- the stream of weights ------------------------------------------------------------------------------------------

// This warp takes every second group, n of them. Moves on as it is used.
struct linear_stream {
    const char *next[2];    // where the next request of row g of each tile reads
    uint32_t half;          // bytes of eight rows
    uint32_t live;          // bit `slot`: there is such a row; else its weights are zeros
    int n;                  // groups not taken yet
    int stage;              // of the next to take; also of the next request, once LINEAR_STAGES are under way
    simt::smem<uint4> ring; // this lane's slots are 32 apart
};

// Asks for a group to be put into a stage; !wanted: an empty request, so that the count of requests stays right.
KRN_DEVICE void linear_fetch(struct linear_stream &s, int stage, bool wanted)
{
    if (wanted) {
        KRN_UNROLL
        for (int slot = 0; slot < LINEAR_SLOTS; slot++)
            simt::copy16_async(s.ring.at((stage * LINEAR_SLOTS + slot) * 32),
                               s.next[slot / 2] + (slot % 2 ? s.half : 0u), (s.live >> slot & 1) != 0);
    }
    s.next[0] += 2 * LINEAR_GROUP_BYTES;
    s.next[1] += 2 * LINEAR_GROUP_BYTES;
    simt::copy_commit();
}

// Waits for the next group, reads it and asks for the one that takes its place.
KRN_DEVICE void linear_take(struct linear_stream &s, uint4 ret_bytes[LINEAR_SLOTS])
{
    simt::copy_wait<LINEAR_STAGES - 1>();
    KRN_UNROLL
    for (int slot = 0; slot < LINEAR_SLOTS; slot++)
        ret_bytes[slot] = s.ring.get((s.stage * LINEAR_SLOTS + slot) * 32);
    linear_fetch(s, s.stage, s.n > LINEAR_STAGES);
    s.stage = (s.stage + 1) % LINEAR_STAGES;
    s.n--;
}

// The scales of q4. A lane's 16 bytes of a row have one scale, four lanes' are 8 bytes in memory. Lane t of the four
// loads those of slot t; linear_deal then gives each lane its own of all slots.
struct linear_scales {
    const uint2 *next; // the four scales of the next group of slot t's row; NULL: no such row
};

KRN_DEVICE uint2 linear_load_scales(struct linear_scales &scales, bool wanted)
{
    if (!wanted || !scales.next)
        return make_uint2(0, 0);
    uint2 four = simt::load8(scales.next);
    scales.next += 2;
    return four;
}

// A 4 x 4 transpose of 16-bit elements in two exchanges. ret[slot]: the slot's scale, in both halves.
KRN_DEVICE void linear_deal(uint2 mine, uint32_t ret_scales[LINEAR_SLOTS])
{
    bool high = simt::lane() & 2, odd = simt::lane() & 1;
    uint32_t got = simt::shuffle_xor(high ? mine.x : mine.y, 2);
    uint32_t lower = high ? got : mine.x, upper = high ? mine.y : got; // pairs of slots t & 1 and (t & 1) + 2
    uint32_t lows = (lower & 0xffffu) | upper << 16, highs = lower >> 16 | (upper & 0xffff0000u);
    got = simt::shuffle_xor(odd ? lows : highs, 1);
    uint32_t even_slots = odd ? got : lows, odd_slots = odd ? highs : got;
    ret_scales[0] = (even_slots & 0xffffu) * 0x10001u;
    ret_scales[1] = (odd_slots & 0xffffu) * 0x10001u;
    ret_scales[2] = (even_slots >> 16) * 0x10001u;
    ret_scales[3] = (odd_slots >> 16) * 0x10001u;
}

// ---- from bytes to bf16 ---------------------------------------------------------------------------------------------

KRN_DEVICE uint32_t linear_word(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Four e4m3 (krn_fp8_place) as two pairs of bf16. Exponent and mantissa move as they are, which leaves 2^-120 of the
// value, subnormals included; the product with 2^120 is exact.
KRN_DEVICE void linear_from_fp8(uint32_t word, uint32_t ret_pairs[2])
{
    const uint32_t power = 0x7b807b80u; // 2^120 twice
    ret_pairs[0] = simt::mul_bf16x2((word << 8 & 0x80008000u) | (word << 4 & 0x07f007f0u), power);
    ret_pairs[1] = simt::mul_bf16x2((word & 0x80008000u) | (word >> 4 & 0x07f007f0u), power);
}

// Eight q4 as four pairs of bf16. A nibble with its sign bit turned, in the highest bits of the mantissa of 16, is
// 24 + q; see quant.h. scale: in both halves.
KRN_DEVICE void linear_from_q4(uint32_t word, uint32_t scale, uint32_t ret_pairs[4])
{
    uint32_t less = simt::mul_bf16x2(scale, 0xc1c0c1c0u); // -24 scale, exact
    KRN_UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t shifted = i == 0 ? word << 3 : word >> (4 * i - 3);
        ret_pairs[i] = simt::fma_bf16x2(simt::and_xor(shifted, 0x00780078u, 0x41c041c0u), scale, less);
    }
}

// The next eight weights of a row: taken from the front of `bytes`.
template <int TYPE> KRN_DEVICE void linear_weights(uint4 &bytes, uint32_t scale, uint32_t ret_pairs[4])
{
    if (TYPE == KRN_FP8) {
        linear_from_fp8(bytes.x, ret_pairs);
        linear_from_fp8(bytes.y, ret_pairs + 2);
        bytes = make_uint4(bytes.z, bytes.w, 0, 0);
    } else if (TYPE == KRN_Q4) {
        linear_from_q4(bytes.x, scale, ret_pairs);
        bytes = make_uint4(bytes.y, bytes.z, bytes.w, 0);
    } else {
        KRN_UNROLL
        for (int i = 0; i < 4; i++)
            ret_pairs[i] = linear_word(bytes, i);
    }
}

// ---- the product ----------------------------------------------------------------------------------------------------

// Rows of x: 8 for each of NT; the lane reads row g of every eight.
struct linear_input {
    const uint16_t *next; // row g, this lane's next 8 columns
    int eight;            // elements from a row to the eighth after it
    int rows;             // row 8 * n + g exists while 8 * n < rows
    int cols;             // columns that exist from `next` on
};

KRN_DEVICE uint4 linear_load_x(const struct linear_input &in, int n, bool wanted)
{
    if (wanted && 8 * n < in.rows)
        return simt::load16(in.next + (int64_t)n * in.eight);
    return make_uint4(0, 0, 0, 0);
}

KRN_DEVICE void linear_move(struct linear_input &in, int cols)
{
    in.next += cols;
    in.cols -= cols;
}

// sums[tile][8 rows] += two tiles of 16 outputs times 8 rows of x, 32 columns.
KRN_DEVICE void linear_multiply(float *sums0, float *sums1, const uint32_t w[LINEAR_SLOTS][4], const uint4 &x)
{
    KRN_UNROLL
    for (int step = 0; step < 2; step++) {
        const uint32_t b[2] = {linear_word(x, 2 * step), linear_word(x, 2 * step + 1)};
        KRN_UNROLL
        for (int tile = 0; tile < 2; tile++) {
            const uint32_t *low = w[2 * tile] + 2 * step, *high = w[2 * tile + 1] + 2 * step;
            const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
            simt::mma_16x8x16(tile ? sums1 : sums0, a, b);
        }
    }
}
