// The arithmetic of attention, one warp's part: a tile of 16 queries against a chunk of 64 positions in shared memory.
//
//     S = Q K^T,  max = max S,  P = 2^(S - max),  sum = sum P,  O = P V
//
// by mma 16x8x16, with P rounded to bf16 for the last product. A chunk's result (max, sum, O) is made from nothing and
// then folded into what came before it by fold_in, chunk after chunk; every step is one IEEE operation or one that
// cannot be fused with another. So its bits are the same whoever computes it: one warp the whole chunk, or four warps a
// quarter of the positions and then a quarter of the values each; and whoever folds.
//
// Lane l has g = l / 4, t = l % 4; of every 16x8 product it holds queries g and g + 8, columns 2t and 2t + 1.
//
// fp8 keys and values stay e4m3 in shared memory and become bf16 (exactly) on their way into the product; a key's scale
// multiplies its score, a value's scale multiplies its weight before that is rounded. What a lane gets of a row of
// bytes is four neighbours, not two: keys use them as elements (0, 2) and (1, 3) of a permuted dimension, and so do the
// queries; values give the even and the odd dimensions as two products.
//
// Values must be finite up to the last position of the segment: a weight of 0 does not undo an infinity.
#pragma once

#include "device_pass.h"
#include "noise.h"
#include "simt.cuh"

#include <math.h>

namespace attention
{

enum {
    CHUNK = KRN_ATTENTION_CHUNK,
    QUERIES = KRN_ATTENTION_QUERIES,
    WARPS = KRN_ATTENTION_WARPS,
    STEP = 16, // positions of one step of the second product
    STEPS = CHUNK / STEP,
    SLOT_EXTRA = 4, // floats of a slot behind the values: largest score, sum of the weights, two to stay aligned to 16
};
static_assert(STEPS == WARPS, "a warp's share of a divided chunk is one step");

// A chunk of keys or values in shared memory: CHUNK rows of 16-byte units. A row's units change places by its number,
// so that 8 consecutive rows of one unit lie in different banks.
template <int DIM_, bool FP8_> struct layout {
    enum {
        DIM = DIM_,
        FP8 = FP8_,
        ROW_BYTES = DIM * (FP8 ? 1 : 2),
        UNITS = ROW_BYTES / 16,
        PAIRS = UNITS / 2,   // what one ldmatrix takes of a row
        PARTS = FP8 ? 4 : 2, // 16x8 products over the values of a pair of units
        TILE_BYTES = CHUNK * ROW_BYTES,
        Q_STEPS = DIM / 16,
        SLOT = DIM + SLOT_EXTRA,
        LINE_ROWS = UNITS >= 8 ? 1 : 8 / UNITS, // rows in 128 bytes
        MASK = (UNITS >= 8 ? 8 : UNITS) - 1,
    };
};

// Byte of a unit in a tile. Tiles begin at multiples of their size in shared memory, so the unit's bits of an address
// are its own: unit ^ 2n is 32n away by exclusive or. Rows 16 apart place their units alike.
template <class L> KRN_DEVICE int byte_of(int row, int unit)
{
    return row * L::ROW_BYTES + ((unit ^ (row / L::LINE_ROWS & L::MASK)) * 16);
}

// e4m3 in the high (low) bytes of both halves as bf16: exponent and mantissa move into place, 2^120 mends the bias.
KRN_DEVICE uint32_t widen_high(uint32_t word)
{
    return simt::mul_bf16x2((word & 0x80008000u) | ((word & 0x7f007f00u) >> 4), 0x7b807b80u);
}
KRN_DEVICE uint32_t widen_low(uint32_t word)
{
    return widen_high(word << 8);
}

// Queries g and g + 8 of a tile: DIM bf16 each, in global memory.
template <class L> KRN_DEVICE void load_queries(uint32_t (&q)[L::Q_STEPS][4], const uint16_t *const (&from)[2])
{
    int t = simt::lane() & 3;
    KRN_UNROLL for (int s = 0; s < L::Q_STEPS; s++) KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        const uint32_t *words = (const uint32_t *)(from[r] + s * 16);
        if (L::FP8) {
            uint32_t low = words[2 * t], high = words[2 * t + 1];
            q[s][r] = (low & 0xffffu) | high << 16;
            q[s][r + 2] = low >> 16 | (high & 0xffff0000u);
        } else {
            q[s][r] = words[t];
            q[s][r + 2] = words[t + 4];
        }
    }
}

// keys, values: byte of the tile in shared memory. Scores of N steps of positions from step `first` on: s[i][h][e] is
// the score of query g (e < 2) or g + 8 and position 16 * (first + i) + 8 * h + 2t + (e & 1) of the chunk.
template <class L, int N>
KRN_DEVICE void score(float (&s)[N][2][4], const uint32_t (&q)[L::Q_STEPS][4], int keys, int first)
{
    int lane = simt::lane(), row = 8 * (lane >> 4) + (lane & 7);
    int place = keys + byte_of<L>(STEP * first + row, lane >> 3 & 1);
    KRN_UNROLL for (int i = 0; i < N; i++) KRN_UNROLL for (int e = 0; e < 8; e++) s[i][e >> 2][e & 3] = 0;
    KRN_UNROLL for (int pair = 0; pair < L::PAIRS; pair++) KRN_UNROLL for (int i = 0; i < N; i++)
    {
        uint32_t k[4];
        simt::ldmatrix_x4(k, simt::shared<uint16_t>((place ^ 32 * pair) + STEP * i * L::ROW_BYTES));
        KRN_UNROLL for (int h = 0; h < 2; h++)
        {
            if (L::FP8) {
                KRN_UNROLL for (int u = 0; u < 2; u++)
                {
                    uint32_t b[2] = {widen_low(k[2 * h + u]), widen_high(k[2 * h + u])};
                    simt::mma_16x8x16(s[i][h], q[L::FP8 ? 2 * pair + u : 0], b);
                }
            } else {
                uint32_t b[2] = {k[2 * h], k[2 * h + 1]};
                simt::mma_16x8x16(s[i][h], q[L::FP8 ? 0 : pair], b);
            }
        }
    }
}

// The position of s[i][h][e] within its step.
KRN_DEVICE int column(int h, int e)
{
    return 8 * h + 2 * (simt::lane() & 3) + (e & 1);
}

// Scales the scores of fp8 keys and takes away what a query does not see: positions of the chunk beyond seen[].
template <class L, int N>
KRN_DEVICE void mask(float (&s)[N][2][4], simt::smem<float> key_scales, int first, const int (&seen)[2])
{
    if (L::FP8)
        KRN_UNROLL for (int i = 0; i < N; i++) KRN_UNROLL for (int e = 0; e < 8; e++)
        {
            float *score = &s[i][e >> 2][e & 3];
            *score = KRN_MUL(*score, key_scales.get(STEP * (first + i) + column(e >> 2, e)));
        }
    if (seen[0] >= CHUNK - 1 && seen[1] >= CHUNK - 1)
        return;
    KRN_UNROLL for (int i = 0; i < N; i++) KRN_UNROLL for (int e = 0; e < 8; e++)
    {
        int at = STEP * (first + i) + column(e >> 2, e);
        s[i][e >> 2][e & 3] = at > seen[e >> 1 & 1] ? -INFINITY : s[i][e >> 2][e & 3];
    }
}

// The largest score of queries g and g + 8 in these steps, in all their lanes.
template <int N> KRN_DEVICE void largest(float (&max)[2], const float (&s)[N][2][4])
{
    KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        max[r] = -INFINITY;
        KRN_UNROLL for (int i = 0; i < N; i++) KRN_UNROLL for (int h = 0; h < 2; h++) max[r] =
            fmaxf(max[r], fmaxf(s[i][h][2 * r], s[i][h][2 * r + 1]));
        max[r] = fmaxf(max[r], simt::shuffle_xor(max[r], 1));
        max[r] = fmaxf(max[r], simt::shuffle_xor(max[r], 2));
    }
}

// The sum over the four lanes of a query.
KRN_DEVICE float over_lanes(float sum)
{
    sum = KRN_ADD(sum, simt::shuffle_xor(sum, 1));
    return KRN_ADD(sum, simt::shuffle_xor(sum, 2));
}

// Scores become weights: sums[i][r] is step i's sum, p[i] the step as the second product takes it.
template <class L, int N>
KRN_DEVICE void weigh(uint32_t (&p)[N][4], float (&sums)[N][2], float (&s)[N][2][4], const float (&max)[2],
                      simt::smem<float> value_scales, int first)
{
    // What sees nothing has no largest score; its weights are 0.
    float base[2] = {max[0] == -INFINITY ? 0.0f : max[0], max[1] == -INFINITY ? 0.0f : max[1]};
    KRN_UNROLL for (int i = 0; i < N; i++)
    {
        KRN_UNROLL for (int e = 0; e < 8; e++)
        {
            float *score = &s[i][e >> 2][e & 3];
            *score = simt::exp2(KRN_SUB(*score, base[e >> 1 & 1]));
        }
        KRN_UNROLL for (int r = 0; r < 2; r++) sums[i][r] = over_lanes(
            KRN_ADD(KRN_ADD(s[i][0][2 * r], s[i][0][2 * r + 1]), KRN_ADD(s[i][1][2 * r], s[i][1][2 * r + 1])));
        if (L::FP8)
            KRN_UNROLL for (int e = 0; e < 8; e++)
            {
                float *weight = &s[i][e >> 2][e & 3];
                *weight = KRN_MUL(*weight, value_scales.get(STEP * (first + i) + column(e >> 2, e)));
            }
        KRN_UNROLL for (int j = 0; j < 4; j++) p[i][j] =
            simt::pack_bf16(s[i][j >> 1][2 * (j & 1)], s[i][j >> 1][2 * (j & 1) + 1]);
    }
}

// The sum of a chunk's weights.
KRN_DEVICE void total(float (&sum)[2], const float (&sums)[STEPS][2])
{
    KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        sum[r] = sums[0][r];
        KRN_UNROLL for (int i = 1; i < STEPS; i++) sum[r] = KRN_ADD(sum[r], sums[i][r]);
    }
}

// The second product for one pair of units of the values, over the whole chunk.
template <class L>
KRN_DEVICE void weigh_values(float (&o)[L::PARTS][4], const uint32_t (&p)[STEPS][4], int values, int pair)
{
    int place = (values + byte_of<L>(simt::lane() & 15, simt::lane() >> 4)) ^ 32 * pair;
    KRN_UNROLL for (int f = 0; f < L::PARTS; f++) KRN_UNROLL for (int e = 0; e < 4; e++) o[f][e] = 0;
    KRN_UNROLL for (int i = 0; i < STEPS; i++)
    {
        uint32_t v[4];
        simt::ldmatrix_x4_trans(v, simt::shared<uint16_t>(place + STEP * i * L::ROW_BYTES));
        KRN_UNROLL for (int f = 0; f < L::PARTS; f++)
        {
            const uint32_t *two = &v[L::FP8 ? f & 2 : 2 * f];
            uint32_t b[2] = {two[0], two[1]};
            if (L::FP8)
                KRN_UNROLL for (int j = 0; j < 2; j++) b[j] = f & 1 ? widen_high(two[j]) : widen_low(two[j]);
            simt::mma_16x8x16(o[f], p[i], b);
        }
    }
}

// Of the PARTS pairs of neighbouring dimensions that a lane has of a pair of units: the first dimension of one, and its
// two values for query g + 8r.
template <class L> KRN_DEVICE int dimension(int pair, int part)
{
    int t = simt::lane() & 3;
    return L::FP8 ? 32 * pair + 16 * (part >> 1) + 4 * t + 2 * (part & 1) : 16 * pair + 8 * part + 2 * t;
}
template <class L> KRN_DEVICE float2 neighbours(const float (&o)[L::PARTS][4], int part, int r)
{
    if (L::FP8)
        return make_float2(o[part & 2][2 * r + (part & 1)], o[(part & 2) | 1][2 * r + (part & 1)]);
    return make_float2(o[part][2 * r], o[part][2 * r + 1]);
}

// How a chunk's result is folded into what came before: values become before * values + chunk * the chunk's values.
struct shares {
    float before, chunk;
};

// Folds the chunk's maximum and sum in. Nothing before: max -INFINITY, sum 0. A chunk of which the query sees nothing
// changes no bit: its share is -0, and x + -0 is x.
KRN_DEVICE struct shares fold_in(float *max, float *sum, float chunk_max, float chunk_sum)
{
    struct shares shares;
    float most = fmaxf(*max, chunk_max);
    shares.before = simt::exp2(KRN_SUB(*max, most));
    shares.chunk = chunk_max == -INFINITY ? -0.0f : simt::exp2(KRN_SUB(chunk_max, most));
    *max = most;
    *sum = fmaf(*sum, shares.before, KRN_MUL(chunk_sum, shares.chunk));
    return shares;
}
KRN_DEVICE float fold_value(float before, float chunk, struct shares shares)
{
    return fmaf(before, shares.before, KRN_MUL(chunk, shares.chunk));
}

} // namespace attention
