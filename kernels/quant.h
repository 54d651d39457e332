// Quantised weights, keys and values: their arithmetic and their layout in a row, shared by what packs them, what
// multiplies them and tests.
//
// e4m3 (fp8): sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, 0x7f and 0xff are NaN, the largest is
// 448. A weight is e4m3 value * f32 scale of its row. In memory the middle two of every four bytes change places
// (krn_fp8_place): one shift of a 32-bit word then leaves two neighbours in its halves.
//
// q4: a group is 32 consecutive columns of a row: 16 bytes and one bf16 scale; the weight is the bf16 nearest to
// q * scale, q in -8 .. 7, two's complement. A scale has only 6 significant bits, which costs no accuracy and makes
// 24 * scale a bf16: (q + 24) * scale - 24 * scale, the kernel's one instruction for two weights, is then exact but for
// its rounding (as long as weights are below 1e38). Each 32-bit word of a group has 8 columns: nibbles 0 .. 3 (from the
// lowest) are columns 0, 2, 4, 6 and nibbles 4 .. 7 columns 1, 3, 5, 7, so that again one shift leaves two neighbours.
//
// q8: a key's or value's vector of one head: round(x / scale) in -127 .. 127 and one f32 scale, largest |x| / 127.
//
// Only integer operations and single IEEE f32 operations are used, in a fixed order: host and device get the same bits.
// Weights are taken to be finite; others give some weight, never undefined behaviour.
#pragma once

#include "exact.h"
#include "kernels.h"

#include <stdint.h>
#include <string.h>

enum {
    KRN_FP8_PAD = 64,  // elements that rows of fp8 are padded to
    KRN_Q4_PAD = 128,  // likewise of q4
    KRN_BF16_PAD = 32, // likewise of bf16
};

// Elements from one row of a device weight to the next. f32 (norms, embeddings) is not padded.
KRN_HD int32_t krn_weight_stride(int32_t type, int32_t cols)
{
    int32_t pad = type == KRN_FP8 ? KRN_FP8_PAD : type == KRN_Q4 ? KRN_Q4_PAD : type == KRN_BF16 ? KRN_BF16_PAD : 1;
    return (cols + pad - 1) / pad * pad;
}

KRN_HD uint32_t krn_float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

KRN_HD float krn_bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// ---- bf16 -----------------------------------------------------------------------------------------------------------

// To nearest even. NaN stays NaN.
KRN_HD uint16_t krn_bf16_round(float x)
{
    uint32_t bits = krn_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

KRN_HD float krn_bf16_value(uint16_t half)
{
    return krn_bits_float((uint32_t)half << 16);
}

// ---- fp8 ------------------------------------------------------------------------------------------------------------

// To nearest even; beyond 448 (infinity too) 448. NaN stays NaN.
KRN_HD uint8_t krn_e4m3_round(float x)
{
    uint32_t bits = krn_float_bits(x), sign = bits >> 24 & 0x80u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (bits >= 0x43e00000u) // 448
        return (uint8_t)(sign | 0x7eu);
    if (bits < 0x3c800000u) // below 2^-6 in steps of 2^-9, which is what 2^14 + |x| is rounded to
        return (uint8_t)(sign | (krn_float_bits(KRN_ADD(krn_bits_float(bits), 16384.0f)) - 0x46800000u));
    bits += 0x7ffffu + (bits >> 20 & 1u);
    return (uint8_t)(sign | ((bits >> 20) - (120u << 3)));
}

KRN_HD float krn_e4m3_value(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, rest = code & 0x7fu;
    if (rest == 0x7fu)
        return krn_bits_float(sign | 0x7fc00000u);
    if (rest < 8) {
        float magnitude = KRN_MUL((float)rest, 0.001953125f); // 2^-9
        return krn_bits_float(krn_float_bits(magnitude) | sign);
    }
    return krn_bits_float(sign | (rest + (120u << 3)) << 20);
}

// The scale of a row whose largest magnitude is `largest`. Never zero or subnormal, so that dividing by it is exact
// enough for the smallest weights too.
KRN_HD float krn_fp8_scale(float largest)
{
    float scale = KRN_DIV(largest, 448.0f);
    return scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
}

KRN_HD uint8_t krn_fp8_code(float x, float scale)
{
    return krn_e4m3_round(KRN_DIV(x, scale));
}

// Where in its row the byte of a column stands; also the other way round.
KRN_HD int32_t krn_fp8_place(int32_t col)
{
    return (col & ~3) | (col & 1) << 1 | (col >> 1 & 1);
}

// The weight of a column. row: the row's first byte.
KRN_HD float krn_fp8_at(const uint8_t *row, float scale, int32_t col)
{
    return KRN_MUL(krn_e4m3_value(row[krn_fp8_place(col)]), scale);
}

// ---- q8 -------------------------------------------------------------------------------------------------------------

// The scale of a vector whose largest magnitude is `largest`, finite. Never zero or subnormal, as krn_fp8_scale.
KRN_HD float krn_q8_scale(float largest)
{
    float scale = KRN_DIV(largest, 127.0f);
    return scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
}

// |x| at most what the scale was made from: the quotient is then below 127.5.
KRN_HD int8_t krn_q8_code(float x, float scale)
{
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, which then stands in the low bits.
    return (int8_t)(krn_float_bits(KRN_ADD(KRN_DIV(x, scale), 12582912.0f)) & 255u);
}

// ---- q4 -------------------------------------------------------------------------------------------------------------

// The integer in -8 .. 7 that stands for x.
KRN_HD int32_t krn_q4_integer(float x, float scale)
{
    if (scale == 0)
        return 0;
    float q = KRN_DIV(x, scale);
    q = q < -8.0f ? -8.0f : q;
    q = q > 7.0f ? 7.0f : q;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits.
    return (int32_t)(krn_float_bits(KRN_ADD(q, 12582912.0f)) - 0x4b400000u);
}

// The nearest bf16 of 6 significant bits.
KRN_HD uint16_t krn_q4_round_scale(float x)
{
    uint32_t bits = krn_float_bits(x);
    return (uint16_t)((bits + 0x1ffffu + (bits >> 18 & 1u)) >> 18 << 2);
}

// The group's scale: of five that map the value of largest magnitude to -7 .. -9, the one with the least squared error
// (on Gaussian weights 8.5 % less than with -8 alone).
KRN_HD uint16_t krn_q4_scale(const float x[KRN_Q4_GROUP])
{
    float largest = 0;
    for (int i = 0; i < KRN_Q4_GROUP; i++)
        if ((krn_float_bits(x[i]) & 0x7fffffffu) > (krn_float_bits(largest) & 0x7fffffffu))
            largest = x[i];
    uint16_t best = 0;
    float least = 0;
    for (int candidate = 0; candidate < 5; candidate++) {
        // -8, -7.5, -8.5, -7, -9: on a tie the earlier
        float to = KRN_ADD(-8.0f, KRN_MUL((float)((candidate + 1) / 2), candidate & 1 ? 0.5f : -0.5f));
        uint16_t half = krn_q4_round_scale(KRN_DIV(largest, to));
        float scale = krn_bf16_value(half), sum = 0;
        for (int i = 0; i < KRN_Q4_GROUP; i++) {
            float off = KRN_SUB(x[i], KRN_MUL((float)krn_q4_integer(x[i], scale), scale));
            sum = KRN_ADD(sum, KRN_MUL(off, off));
        }
        if (candidate == 0 || sum < least) {
            best = half;
            least = sum;
        }
    }
    return best;
}

// The nibble of a column in its word (see above).
KRN_HD int32_t krn_q4_nibble(int32_t col)
{
    return (col >> 1 & 3) | (col & 1) << 2;
}

// A group's scale and its 16 bytes.
KRN_HD void krn_q4_pack(const float x[KRN_Q4_GROUP], uint16_t *ret_scale, uint32_t ret_words[4])
{
    *ret_scale = krn_q4_scale(x);
    float scale = krn_bf16_value(*ret_scale);
    for (int word = 0; word < 4; word++) {
        uint32_t bits = 0;
        for (int i = 0; i < 8; i++)
            bits |= ((uint32_t)krn_q4_integer(x[word * 8 + i], scale) & 15u) << (4 * krn_q4_nibble(i));
        ret_words[word] = bits;
    }
}

// The weight of a column. row, scales: the row's first word and first scale.
KRN_HD float krn_q4_at(const uint32_t *row, const uint16_t *scales, int32_t col)
{
    int32_t bits = (int32_t)(row[col / 8] >> (4 * krn_q4_nibble(col)) & 15u);
    float scale = krn_bf16_value(scales[col / KRN_Q4_GROUP]);
    return krn_bf16_value(krn_bf16_round(KRN_MUL((float)((bits ^ 8) - 8), scale)));
}
