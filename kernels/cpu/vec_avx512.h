// Sixteen f32 lanes with AVX-512: the vocabulary that linear_tile.h and attention_tile.h are written in.
//
// "first n" loads and stores touch only n elements (0 <= n <= V_LANES) and read the others as 0. Loads accept any
// address.
#pragma once

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vf;

enum { V_LANES = 16 };

#define V_INLINE static inline __attribute__((always_inline))

// Before a loop over the parts of a tile, whose count is a constant: only fully unrolled do the parts live in
// registers.
#ifdef __clang__
#define V_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V_UNROLL _Pragma("GCC unroll 32")
#endif

V_INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}

V_INLINE vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}

V_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

V_INLINE __mmask16 v_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}

V_INLINE vf v_load_first(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}

// Sixteen bf16 as f32: each goes to the upper half of its lane, the lower half is 0. One permutation where widening and
// shifting are two operations.
V_INLINE vf v_widen_bf16(__m256i halves)
{
    const __m512i places = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5,
                                            5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, _mm512_castsi256_si512(halves)));
}

V_INLINE vf v_load_bf16(const uint16_t *p)
{
    return v_widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}

V_INLINE vf v_load_bf16_first(const uint16_t *p, int n)
{
    return v_widen_bf16(_mm256_maskz_loadu_epi16(v_mask(n), p));
}

V_INLINE vf v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

V_INLINE vf v_load_i8_first(const int8_t *p, int n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(v_mask(n), p)));
}

V_INLINE void v_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}

V_INLINE void v_store_first(float *p, int n, vf a)
{
    _mm512_mask_storeu_ps(p, v_mask(n), a);
}

V_INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

V_INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

V_INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

// a * b + c, rounded once.
V_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

// The larger; b where either is NaN.
V_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

// The first n lanes of a, the others from b.
V_INLINE vf v_first_or(int n, vf a, vf b)
{
    return _mm512_mask_mov_ps(b, v_mask(n), a);
}

// a where x >= low (or x is NaN), else 0.
V_INLINE vf v_zero_below(vf x, float low, vf a)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(low), _CMP_NLT_UQ), a);
}

// 2^n for integers n in [-126, 127], given as n + 1.5 * 2^23.
V_INLINE vf v_power_of_two(vf shifted)
{
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000 - 127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}

// The sums of the lanes of a, b, c, d. Each is folded alike: lanes l, l + 4, l + 8, l + 12 last, pairs (0, 2) and (1,
// 3) first.
V_INLINE __m128 v_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf low = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
       high = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2));
    vf quads = _mm512_add_ps(low, high);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Stores the first n (1 .. 4) of four floats; loads them, the others 0.
V_INLINE void v4_store_first(float *p, int n, __m128 a)
{
    _mm_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), a);
}

V_INLINE __m128 v4_load_first(const float *p, int n)
{
    return _mm_maskz_loadu_ps((__mmask8)((1u << n) - 1), p);
}
