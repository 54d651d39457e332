// What this machine can do, measured simply: reading memory, and f32 multiply-adds in registers. For checkkern --bench.
#pragma once

#include "threadpool.h"

struct machine_limit {
    double gb_per_s, gflop_per_s;
};

enum { LIMIT_FLOATS = 24 * 1024 * 1024, LIMIT_STEPS = 4000000 };

struct limit_run {
    float *data;
    volatile float sink[KRN_POOL_MAX]; // keeps the results alive
    void (*body)(struct limit_run *run, int64_t begin, int64_t end, int part);
    struct krn_pool *pool;
    int64_t n;
};

static void limit_part(void *arg, int64_t begin, int64_t end, int part)
{
    struct limit_run *run = arg;
    run->body(run, begin, end, part);
}

static void limit_once(void *arg)
{
    struct limit_run *run = arg;
    krn_pool_run(run->pool, run->n, KRN_POOL_MAX, limit_part, run);
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static void limit_read(struct limit_run *run, int64_t begin, int64_t end, int part)
{
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = begin; i + 32 <= end; i += 32)
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256((const __m256i *)(run->data + i + 8 * j)));
    __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    run->sink[part] = (float)_mm256_extract_epi32(all, 0);
}

// Sixteen chains, more than latency times ports anywhere.
#define LIMIT_FMA(name, isa, type, set1, fma, first, lanes)                                                    \
    __attribute__((target(isa))) static void name(struct limit_run *run, int64_t begin, int64_t end, int part) \
    {                                                                                                          \
        type a[12], b = set1(0.999f), c = set1(0.001f);                                                        \
        for (int j = 0; j < 12; j++)                                                                           \
            a[j] = set1((float)j);                                                                             \
        for (int64_t i = begin; i < end; i++)                                                                  \
            for (int j = 0; j < 12; j++)                                                                       \
                a[j] = fma(a[j], b, c);                                                                        \
        for (int j = 1; j < 12; j++)                                                                           \
            a[0] = fma(a[0], b, a[j]);                                                                         \
        run->sink[part] = first(a[0]);                                                                         \
    }
LIMIT_FMA(limit_fma_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32, 16)
LIMIT_FMA(limit_fma_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32, 8)
#endif

static struct machine_limit machine_limit_measure(int threads)
{
    struct limit_run run = {.data = floats(LIMIT_FLOATS), .pool = krn_pool_open(threads), .n = LIMIT_FLOATS};
    struct machine_limit limit = {.gb_per_s = NAN, .gflop_per_s = NAN};
    memset(run.data, 1, LIMIT_FLOATS * sizeof(float));
#if defined(__x86_64__)
    uint32_t features = krn_cpu_features();
    if (features & KRN_CPU_AVX2) {
        run.body = limit_read;
        limit.gb_per_s = LIMIT_FLOATS * sizeof(float) / time_it(limit_once, &run).low / 1e9;
        run.n = LIMIT_STEPS;
        run.body = features & KRN_CPU_AVX512 ? limit_fma_avx512 : limit_fma_avx2;
        double lanes = features & KRN_CPU_AVX512 ? 16 : 8;
        limit.gflop_per_s = LIMIT_STEPS * 12 * 2 * lanes / time_it(limit_once, &run).low / 1e9;
    }
#endif
    krn_pool_close(run.pool);
    free(run.data);
    return limit;
}
