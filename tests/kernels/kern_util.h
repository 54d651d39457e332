// What the tests of kernels/ share: repeatable random numbers, weights of both types, backends of every version.
#pragma once

#include "kernels.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// SplitMix64: small, good enough, the same everywhere.
struct random {
    uint64_t state;
};

static inline uint64_t random_u64(struct random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// In [0, n).
static inline int32_t random_below(struct random *random, int32_t n)
{
    return (int32_t)(random_u64(random) % (uint64_t)n);
}

// In [-1, 1).
static inline float random_float(struct random *random)
{
    return (float)((double)(random_u64(random) >> 40) / 8388608.0 - 1.0);
}

static inline void fill_random(struct random *random, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(random);
}

static inline void *must(void *ptr)
{
    if (!ptr)
        abort();
    return ptr;
}

static inline float *floats(size_t n)
{
    return must(calloc(n ? n : 1, sizeof(float)));
}

static inline float bf16_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A random weight matrix at an address aligned to its element and to nothing more. Free with tensor_free.
static inline struct krn_tensor tensor_random(struct random *random, enum krn_type type, int32_t rows, int32_t cols)
{
    size_t n = (size_t)rows * (size_t)cols, size = krn_type_size(type);
    char *data = (char *)must(malloc(n * size + 64)) + size;
    for (size_t i = 0; i < n; i++) {
        float value = random_float(random);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(data + i * size, type == KRN_F32 ? (void *)&value : (void *)&half, size);
    }
    return (struct krn_tensor){.data = data, .type = type, .rows = rows, .cols = cols};
}

static inline void tensor_free(struct krn_tensor *tensor)
{
    if (tensor->data)
        free((char *)tensor->data - krn_type_size(tensor->type));
    tensor->data = NULL;
}

static inline float tensor_at(const struct krn_tensor *tensor, int32_t row, int32_t col)
{
    size_t i = (size_t)row * (size_t)tensor->cols + (size_t)col;
    if (tensor->type == KRN_F32) {
        float value;
        memcpy(&value, (const char *)tensor->data + i * 4, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)tensor->data + i * 2, sizeof half);
    return bf16_to_float(half);
}

static inline bool same_bits(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

// Passes of up to 64 rows and vocabularies of up to 2^18 tokens.
static inline struct krn_backend *open_cpu(int threads, uint32_t cpu_mask)
{
    struct krn_backend *backend = NULL;
    const struct krn_limits limits = {.max_rows = 64, .max_segments = 64, .n_vocab = 1 << 18, .head_dim = 2};
    if (krn_open_cpu(threads, cpu_mask, &backend, NULL, 0) != 0 || backend->prepare(backend->ctx, &limits) != 0)
        abort();
    return backend;
}

// The versions this machine can run, the reference first.
struct version {
    const char *name;
    uint32_t mask;
};

static inline int versions_here(struct version *ret_versions)
{
    int n = 0;
    ret_versions[n++] = (struct version){"ref", 0};
    if (krn_cpu_features() & KRN_CPU_AVX2)
        ret_versions[n++] = (struct version){"avx2", KRN_CPU_AVX2};
    if (krn_cpu_features() & KRN_CPU_AVX512)
        ret_versions[n++] = (struct version){"avx512", KRN_CPU_AVX2 | KRN_CPU_AVX512};
    return n;
}

enum { VERSIONS_MAX = 3 };

// What keys and values may be on the CPU.
static const enum krn_type kv_types[] = {KRN_F32, KRN_BF16, KRN_Q8};
enum { KV_TYPES = sizeof kv_types / sizeof *kv_types };

// A KV store with its pages in a scrambled order, so that nothing works by accident.
struct store {
    struct krn_kv kv;
    int32_t *pages;
};

static inline void *filled(size_t bytes, int byte)
{
    return memset(must(malloc(bytes)), byte, bytes);
}

static inline struct store store_open(struct random *random, enum krn_type type, int32_t n_layers, int32_t positions,
                                      int32_t page_size, int32_t n_kv_heads, int32_t head_dim)
{
    int32_t used = (positions + page_size - 1) / page_size, n_pages = used + 3;
    struct store store = {
        .kv = {.type = type,
               .n_layers = n_layers,
               .n_pages = n_pages,
               .page_size = page_size,
               .n_kv_heads = n_kv_heads,
               .head_dim = head_dim},
        .pages = must(malloc((size_t)n_pages * sizeof(int32_t))),
    };
    size_t vectors = (size_t)n_layers * (size_t)n_pages * (size_t)page_size * (size_t)n_kv_heads;
    size_t bytes = vectors * (size_t)head_dim * krn_type_size(type);
    // Whatever was not written must not show.
    store.kv.k = filled(bytes, 0xff);
    store.kv.v = filled(bytes, 0xff);
    store.kv.k_scales = type == KRN_Q8 ? filled(vectors * sizeof(float), 0xff) : NULL;
    store.kv.v_scales = type == KRN_Q8 ? filled(vectors * sizeof(float), 0xff) : NULL;
    for (int32_t i = 0; i < n_pages; i++)
        store.pages[i] = i;
    for (int32_t i = n_pages - 1; i > 0; i--) {
        int32_t j = random_below(random, i + 1), page = store.pages[i];
        store.pages[i] = store.pages[j];
        store.pages[j] = page;
    }
    return store;
}

// Element `at` of kv->k or kv->v and its scale (or NULL) as a float, rounded once.
static inline float store_value(const struct krn_kv *kv, const void *data, const float *scales, size_t at)
{
    if (kv->type == KRN_BF16)
        return bf16_to_float(((const uint16_t *)data)[at]);
    if (kv->type == KRN_Q8)
        return (float)((const int8_t *)data)[at] * scales[at / (size_t)kv->head_dim];
    return ((const float *)data)[at];
}

static inline void store_close(struct store *store)
{
    free(store->kv.k);
    free(store->kv.v);
    free(store->kv.k_scales);
    free(store->kv.v_scales);
    free(store->pages);
}
