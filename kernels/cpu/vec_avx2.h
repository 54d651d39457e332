// Eight f32 lanes with AVX2 and FMA: the vocabulary that linear_tile.h and attention_tile.h are written in.
//
// "first n" loads and stores touch only n elements (0 <= n <= V_LANES) and read the others as 0. Loads accept any
// address.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m256 vf;

enum { V_LANES = 8 };

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
    return _mm256_setzero_ps();
}

V_INLINE vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}

V_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

V_INLINE __m256i v_mask(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

V_INLINE vf v_load_first(const float *p, int n)
{
    return _mm256_maskload_ps(p, v_mask(n));
}

V_INLINE vf v_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

V_INLINE vf v_load_bf16_first(const uint16_t *p, int n)
{
    uint16_t elements[V_LANES] = {0};
    memcpy(elements, p, (size_t)n * sizeof *p);
    return v_load_bf16(elements);
}

V_INLINE vf v_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

V_INLINE vf v_load_i8_first(const int8_t *p, int n)
{
    int8_t elements[V_LANES] = {0};
    memcpy(elements, p, (size_t)n * sizeof *p);
    return v_load_i8(elements);
}

V_INLINE void v_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}

V_INLINE void v_store_first(float *p, int n, vf a)
{
    _mm256_maskstore_ps(p, v_mask(n), a);
}

V_INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

V_INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

V_INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

// a * b + c, rounded once.
V_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

// The larger; b where either is NaN.
V_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

// The first n lanes of a, the others from b.
V_INLINE vf v_first_or(int n, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(v_mask(n)));
}

// a where x >= low (or x is NaN), else 0.
V_INLINE vf v_zero_below(vf x, float low, vf a)
{
    return _mm256_and_ps(a, _mm256_cmp_ps(x, _mm256_set1_ps(low), _CMP_NLT_UQ));
}

// 2^n for integers n in [-126, 127], given as n + 1.5 * 2^23.
V_INLINE vf v_power_of_two(vf shifted)
{
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4b400000 - 127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}

// The sums of the lanes of a, b, c, d. Each is folded alike: lanes l, l + 4 last, pairs (0, 2) and (1, 3) first.
V_INLINE __m128 v_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf low = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
       high = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2));
    vf quads = _mm256_add_ps(low, high);
    return _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
}

// Stores the first n (1 .. 4) of four floats; loads them, the others 0.
V_INLINE void v4_store_first(float *p, int n, __m128 a)
{
    _mm_maskstore_ps(p, _mm256_castsi256_si128(v_mask(n)), a);
}

V_INLINE __m128 v4_load_first(const float *p, int n)
{
    return _mm_maskload_ps(p, _mm256_castsi256_si128(v_mask(n)));
}
