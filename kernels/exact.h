// Arithmetic whose bits are the same on every host and device: functions that exist on both, and single IEEE f32
// operations, rounded to nearest, that no compiler joins into a fused multiply-add (host: build with
// -ffp-contract=off).
#pragma once

#ifdef __CUDACC__
#define KRN_HD static inline __host__ __device__
#else
#define KRN_HD static inline
#endif

#if defined(__CUDA_ARCH__)
#define KRN_MUL(a, b) __fmul_rn((a), (b))
#define KRN_ADD(a, b) __fadd_rn((a), (b))
#define KRN_SUB(a, b) __fsub_rn((a), (b))
#define KRN_DIV(a, b) __fdiv_rn((a), (b))
#else
#define KRN_MUL(a, b) ((a) * (b))
#define KRN_ADD(a, b) ((a) + (b))
#define KRN_SUB(a, b) ((a) - (b))
#define KRN_DIV(a, b) ((a) / (b))
#endif
