// y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V, in the words of a vec_*.h: the body of attention_avx2.c and
// attention_avx512.c.
//
// Online softmax over chunks of CHUNK positions that begin at absolute multiples of CHUNK. A query's state (largest
// score, sum of weights, weighted sum of values in y) after a chunk depends on its own position, q and the keys and
// values alone: positions beyond its limit are left out one query at a time, and page boundaries only decide where a
// key is read. So a row gives the same bits alone, in a verify segment, in any piece of a prompt, at any page size.
// Orders: a score as in linear_tile.h; the weights of a chunk by lanes, folded by v_sum4; y by position, ascending.
//
// A unit's queries (the heads of one kv head, several rows) walk the chunks together, so that keys and values are read
// from memory once. They become f32 as they are loaded: bf16 by a shift, q8 as integers, whose scales are multiplied in
// where there is one number a position: into a score (score * 1 / sqrt(head_dim) * scale of the key), and into a weight
// after the weights were summed.
//
// The includer defines TILE_QUERIES: queries that share the loads of keys (4 at a time) and values (VALUE_VECTORS at a
// time).
#pragma once

#include "ops.h"

#include <math.h>

enum {
    CHUNK = 32,
    TILE_KEYS = 4,
    VALUE_VECTORS = 4,
};

// Where the keys or the values of a chunk's positions are, in the store's type.
struct vectors {
    const void *data[CHUNK];
    float scales[CHUNK]; // q8
};

// The queries of one unit, ordered by row.
struct queries {
    int n;
    int32_t dim;
    const float *q[KRN_ATTENTION_QUERIES];
    float *y[KRN_ATTENTION_QUERIES];
    int32_t limit[KRN_ATTENTION_QUERIES]; // last position it sees; never descending
    float max[KRN_ATTENTION_QUERIES];
    float sum[KRN_ATTENTION_QUERIES];
    float weights[KRN_ATTENTION_QUERIES][CHUNK]; // scores of the chunk, then their weights
};

// e^x for x <= 0; the polynomial of scalar.h's krn_expf, with FMA.
V_INLINE vf v_exp(vf x)
{
    const float low = -87.33654f;
    vf c = v_max(v_set1(low), x);
    const vf round = v_set1(12582912.0f);
    vf shifted = v_fma(c, v_set1(1.44269504f), round);
    vf n = v_sub(shifted, round);
    vf r = v_fma(n, v_set1(-0.693359375f), c);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set1(1.0f));
    return v_zero_below(x, low, v_mul(p, v_power_of_two(shifted)));
}

// V_LANES elements of a stored vector from element d, unscaled. type is a constant where it is inlined.
V_INLINE vf load_kv(const void *vector, int32_t d, const enum krn_type type)
{
    return type == KRN_BF16 ? v_load_bf16((const uint16_t *)vector + d)
           : type == KRN_Q8 ? v_load_i8((const int8_t *)vector + d)
                            : v_load((const float *)vector + d);
}

V_INLINE vf load_kv_first(const void *vector, int32_t d, int n, const enum krn_type type)
{
    return type == KRN_BF16 ? v_load_bf16_first((const uint16_t *)vector + d, n)
           : type == KRN_Q8 ? v_load_i8_first((const int8_t *)vector + d, n)
                            : v_load_first((const float *)vector + d, n);
}

// weights[first .. first + n)[key .. key + 4) = scaled scores. n and type are constants where it is inlined.
V_INLINE void score_tile(struct queries *qs, int first, const int n, const struct vectors *keys, int key, float scale,
                         const enum krn_type type)
{
    vf sum[TILE_QUERIES][TILE_KEYS];
    V_UNROLL for (int i = 0; i < n; i++) V_UNROLL for (int j = 0; j < TILE_KEYS; j++) sum[i][j] = v_zero();
    int32_t d = 0;
    for (; d + V_LANES <= qs->dim; d += V_LANES) {
        vf k[TILE_KEYS];
        V_UNROLL for (int j = 0; j < TILE_KEYS; j++) k[j] = load_kv(keys->data[key + j], d, type);
        V_UNROLL for (int i = 0; i < n; i++)
        {
            vf q = v_load(qs->q[first + i] + d);
            V_UNROLL for (int j = 0; j < TILE_KEYS; j++) sum[i][j] = v_fma(q, k[j], sum[i][j]);
        }
    }
    if (d < qs->dim) {
        int rest = qs->dim - d;
        vf k[TILE_KEYS];
        V_UNROLL for (int j = 0; j < TILE_KEYS; j++) k[j] = load_kv_first(keys->data[key + j], d, rest, type);
        V_UNROLL for (int i = 0; i < n; i++)
        {
            vf q = v_load_first(qs->q[first + i] + d, rest);
            V_UNROLL for (int j = 0; j < TILE_KEYS; j++) sum[i][j] = v_fma(q, k[j], sum[i][j]);
        }
    }
    V_UNROLL for (int i = 0; i < n; i++)
    {
        __m128 scores = _mm_mul_ps(v_sum4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]), _mm_set1_ps(scale));
        if (type == KRN_Q8)
            scores = _mm_mul_ps(scores, _mm_loadu_ps(keys->scales + key));
        _mm_storeu_ps(&qs->weights[first + i][key], scores);
    }
}

V_INLINE void score_tiles(struct queries *qs, int first, const struct vectors *keys, int n_keys, float scale,
                          const enum krn_type type)
{
    for (int key = 0; key < n_keys; key += TILE_KEYS) {
        int i = first;
        for (; i + TILE_QUERIES <= qs->n; i += TILE_QUERIES)
            score_tile(qs, i, TILE_QUERIES, keys, key, scale, type);
        for (; i < qs->n; i++)
            score_tile(qs, i, 1, keys, key, scale, type);
    }
}

static void score_chunk(struct queries *qs, int first, const struct vectors *keys, int n_keys, float scale,
                        enum krn_type type)
{
    if (type == KRN_BF16)
        score_tiles(qs, first, keys, n_keys, scale, KRN_BF16);
    else if (type == KRN_Q8)
        score_tiles(qs, first, keys, n_keys, scale, KRN_Q8);
    else
        score_tiles(qs, first, keys, n_keys, scale, KRN_F32);
}

static float sum_of_lanes(vf a)
{
    return _mm_cvtss_f32(v_sum4(a, v_zero(), v_zero(), v_zero()));
}

static float max_of_lanes(vf a)
{
    float lanes[V_LANES], max;
    v_store(lanes, a);
    max = lanes[0];
    for (int l = 1; l < V_LANES; l++)
        max = lanes[l] > max ? lanes[l] : max;
    return max;
}

static void scale_row(float *y, int32_t dim, float factor)
{
    int32_t d = 0;
    for (; d + V_LANES <= dim; d += V_LANES)
        v_store(y + d, v_mul(v_load(y + d), v_set1(factor)));
    if (d < dim)
        v_store_first(y + d, dim - d, v_mul(v_load_first(y + d, dim - d), v_set1(factor)));
}

// Turns the first n (1 .. CHUNK) scores of a query into weights relative to the largest score so far, and rescales what
// was summed before when the chunk raised it. scales: of the values, multiplied into the weights; NULL: none.
static void soften(struct queries *qs, int i, int n, const float *scales)
{
    float *weights = qs->weights[i];
    vf scores[CHUNK / V_LANES], largest = v_set1(-INFINITY), sum = v_zero();
    for (int c = 0; c < CHUNK / V_LANES; c++) {
        int have = n - c * V_LANES;
        have = have < 0 ? 0 : have > V_LANES ? V_LANES : have;
        scores[c] = v_first_or(have, v_load(weights + c * V_LANES), v_set1(-INFINITY));
        largest = v_max(scores[c], largest);
    }
    float max = max_of_lanes(largest);
    if (max > qs->max[i]) {
        if (qs->max[i] != -INFINITY) {
            float lanes[V_LANES];
            v_store(lanes, v_exp(v_set1(qs->max[i] - max)));
            qs->sum[i] *= lanes[0];
            scale_row(qs->y[i], qs->dim, lanes[0]);
        }
        qs->max[i] = max;
    }
    for (int c = 0; c < CHUNK / V_LANES; c++) {
        vf weight = v_exp(v_sub(scores[c], v_set1(qs->max[i])));
        sum = v_add(sum, weight);
        v_store(weights + c * V_LANES, scales ? v_mul(weight, v_load(scales + c * V_LANES)) : weight);
    }
    qs->sum[i] += sum_of_lanes(sum);
}

// y[first .. first + n)[d .. d + vectors * V_LANES) += weights * values of the chunk's positions [begin, end). n,
// vectors, partial and type are constants where it is inlined; partial: the one vector has only `rest` elements.
V_INLINE void value_tile(struct queries *qs, int first, const int n, const struct vectors *values, int begin, int end,
                         int32_t d, const int vectors, const bool partial, int rest, const enum krn_type type)
{
    vf sum[TILE_QUERIES][VALUE_VECTORS];
    V_UNROLL for (int i = 0; i < n; i++) V_UNROLL for (int c = 0; c < vectors; c++)
    {
        const float *y = qs->y[first + i] + d + c * V_LANES;
        sum[i][c] = partial ? v_load_first(y, rest) : v_load(y);
    }
    for (int p = begin; p < end; p++) {
        vf value[VALUE_VECTORS];
        V_UNROLL for (int c = 0; c < vectors; c++)
        {
            int32_t at = d + c * V_LANES;
            value[c] = partial ? load_kv_first(values->data[p], at, rest, type) : load_kv(values->data[p], at, type);
        }
        V_UNROLL for (int i = 0; i < n; i++)
        {
            vf weight = v_set1(qs->weights[first + i][p]);
            V_UNROLL for (int c = 0; c < vectors; c++) sum[i][c] = v_fma(weight, value[c], sum[i][c]);
        }
    }
    V_UNROLL for (int i = 0; i < n; i++) V_UNROLL for (int c = 0; c < vectors; c++)
    {
        float *y = qs->y[first + i] + d + c * V_LANES;
        if (partial)
            v_store_first(y, rest, sum[i][c]);
        else
            v_store(y, sum[i][c]);
    }
}

V_INLINE void value_tiles(struct queries *qs, int first, const int n, const struct vectors *values, int begin, int end,
                          const enum krn_type type)
{
    int32_t d = 0;
    for (; d + VALUE_VECTORS * V_LANES <= qs->dim; d += VALUE_VECTORS * V_LANES)
        value_tile(qs, first, n, values, begin, end, d, VALUE_VECTORS, false, 0, type);
    if (d + 2 * V_LANES <= qs->dim) {
        value_tile(qs, first, n, values, begin, end, d, 2, false, 0, type);
        d += 2 * V_LANES;
    }
    if (d + V_LANES <= qs->dim) {
        value_tile(qs, first, n, values, begin, end, d, 1, false, 0, type);
        d += V_LANES;
    }
    if (d < qs->dim)
        value_tile(qs, first, n, values, begin, end, d, 1, true, qs->dim - d, type);
}

V_INLINE void value_rows(struct queries *qs, int first, const int n, const struct vectors *values, int begin, int end,
                         enum krn_type type)
{
    if (begin >= end)
        return;
    if (type == KRN_BF16)
        value_tiles(qs, first, n, values, begin, end, KRN_BF16);
    else if (type == KRN_Q8)
        value_tiles(qs, first, n, values, begin, end, KRN_Q8);
    else
        value_tiles(qs, first, n, values, begin, end, KRN_F32);
}

// A function of its own, because it is called from two places and would be there twice.
static void value_row(struct queries *qs, int i, const struct vectors *values, int begin, int end, enum krn_type type)
{
    value_rows(qs, i, 1, values, begin, end, type);
}

// How many positions of a chunk a query sees.
static int visible(const struct queries *qs, int i, int32_t start, int n)
{
    return qs->limit[i] - start + 1 < n ? (int)(qs->limit[i] - start + 1) : n;
}

static void value_chunk(struct queries *qs, int first, const struct vectors *values, int32_t start, int n,
                        enum krn_type type)
{
    int i = first;
    for (; i + TILE_QUERIES <= qs->n; i += TILE_QUERIES) {
        int common = visible(qs, i, start, n); // the first of them sees least
        value_rows(qs, i, TILE_QUERIES, values, 0, common, type);
        for (int j = i; j < i + TILE_QUERIES; j++)
            if (visible(qs, j, start, n) > common) // seldom
                value_row(qs, j, values, common, visible(qs, j, start, n), type);
    }
    for (; i < qs->n; i++)
        value_row(qs, i, values, 0, visible(qs, i, start, n), type);
}

static void gather_queries(const struct krn_attention_task *task, const struct krn_attention_unit *unit,
                           struct queries *qs)
{
    const struct krn_segment *segment = unit->segment;
    size_t dim = (size_t)task->kv->head_dim;
    int n = 0;
    qs->dim = task->kv->head_dim;
    for (int32_t r = unit->row; r < unit->row + unit->rows; r++)
        for (int32_t h = unit->head; h < unit->head + unit->heads; h++) {
            size_t at = (((size_t)segment->row + (size_t)r) * (size_t)task->n_heads + (size_t)h) * dim;
            int i = n++;
            qs->q[i] = task->q + at;
            qs->y[i] = task->y + at;
            qs->limit[i] = segment->first_pos + (segment->mask == KRN_MASK_CAUSAL ? r : segment->rows - 1);
            qs->max[i] = -INFINITY;
            qs->sum[i] = 0;
            for (size_t d = 0; d < dim; d++)
                qs->y[i][d] = 0;
        }
    qs->n = n;
}

// Finds the n vectors of a chunk, and fills up to whole tiles: with the last key, which is read in vain, and with zero
// scales.
static void find_vectors(const struct krn_attention_task *task, const struct krn_attention_unit *unit, int32_t start,
                         int n, struct vectors *keys, struct vectors *values)
{
    const struct krn_kv *kv = task->kv;
    const bool scaled = kv->type == KRN_Q8;
    const size_t element = scaled ? 1 : kv->type == KRN_BF16 ? 2 : 4, bytes = (size_t)kv->head_dim * element;
    for (int p = 0; p < n; p++) {
        size_t vector = krn_kv_vector(kv, task->layer, unit->segment->pages, unit->kv_head, start + p);
        keys->data[p] = (const char *)kv->k + vector * bytes;
        values->data[p] = (const char *)kv->v + vector * bytes;
        if (scaled) {
            keys->scales[p] = kv->k_scales[vector];
            values->scales[p] = kv->v_scales[vector];
        }
    }
    for (int p = n; p % TILE_KEYS != 0; p++)
        keys->data[p] = keys->data[n - 1];
    for (int p = n; scaled && p < CHUNK; p++)
        keys->scales[p] = values->scales[p] = 0;
}

static void attend(const struct krn_attention_task *task, const struct krn_attention_unit *unit)
{
    const enum krn_type type = task->kv->type;
    const float scale = (float)(1.0 / sqrt((double)task->kv->head_dim));
    struct vectors keys, values; // written before they are read, chunk by chunk, as are the weights
    struct queries qs;
    gather_queries(task, unit, &qs);
    int32_t last_row = unit->segment->mask == KRN_MASK_CAUSAL ? unit->row + unit->rows - 1 : unit->segment->rows - 1;
    int32_t last = unit->segment->first_pos + last_row;
    int first = 0; // queries before it see nothing of the chunk
    for (int32_t start = 0; start <= last; start += CHUNK) {
        int n = last - start + 1 < CHUNK ? (int)(last - start + 1) : CHUNK;
        while (qs.limit[first] < start)
            first++;
        find_vectors(task, unit, start, n, &keys, &values);
        score_chunk(&qs, first, &keys, n, scale, type);
        for (int i = first; i < qs.n; i++)
            soften(&qs, i, visible(&qs, i, start, n), type == KRN_Q8 ? values.scales : NULL);
        value_chunk(&qs, first, &values, start, n, type);
        if (start > INT32_MAX - CHUNK)
            break;
    }
    for (int i = 0; i < qs.n; i++)
        scale_row(qs.y[i], qs.dim, 1.0f / qs.sum[i]);
}

static void attention(const struct krn_attention_task *task, int64_t begin, int64_t end)
{
    struct krn_attention_shape shape = krn_attention_shape(task);
    for (int64_t index = begin; index < end; index++) {
        struct krn_attention_unit unit = krn_attention_unit(task, &shape, index);
        attend(task, &unit);
    }
}
