// Rotary embedding, half-split (NeoX), in place on q [rows][n_heads][head_dim] and k [rows][n_kv_heads][head_dim]:
//   x'[i]        = x[i] cos(pos f_i) - x[i + half] sin(pos f_i)        i < half = head_dim / 2
//   x'[i + half] = x[i + half] cos(pos f_i) + x[i] sin(pos f_i)
// with cos and sin multiplied by attention_factor, and q' then by 1 + query_beta * ln(1 + floor(pos /
// query_original_max)).
//
// Angle, cosine and sine are computed in double and rounded once. A position's values are kept in a direct-mapped
// cache, because the layers of one pass ask for the same positions again; a hit gives what a miss would compute.
#include "ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 512,
    HALF_MAX = KRN_ROPE_DIM_MAX / 2,
    CACHED_HALF_MAX = 128, // larger heads use one slot only
};

struct krn_rope_cache {
    // What the slots were computed for; another rope empties them.
    struct krn_rope rope;
    float inv_freq[HALF_MAX];
    int32_t pos[SLOTS]; // -1: empty
    float query_scale[SLOTS];
    float data[SLOTS][2 * CACHED_HALF_MAX]; // cos [half], sin [half]
};

struct krn_rope_cache *krn_rope_cache_open(void)
{
    struct krn_rope_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    memset(cache->pos, 0xff, sizeof cache->pos);
    return cache;
}

void krn_rope_cache_close(struct krn_rope_cache *cache)
{
    free(cache);
}

static void prepare(struct krn_rope_cache *cache, const struct krn_rope *rope)
{
    size_t bytes = (size_t)(rope->head_dim / 2) * sizeof cache->inv_freq[0];
    const struct krn_rope *old = &cache->rope;
    if (old->head_dim == rope->head_dim && old->attention_factor == rope->attention_factor &&
        old->query_beta == rope->query_beta && old->query_original_max == rope->query_original_max &&
        memcmp(cache->inv_freq, rope->inv_freq, bytes) == 0)
        return;
    cache->rope = *rope;
    memcpy(cache->inv_freq, rope->inv_freq, bytes);
    memset(cache->pos, 0xff, sizeof cache->pos);
}

static float query_scale(const struct krn_rope *rope, int32_t pos)
{
    if (rope->query_beta == 0 || rope->query_original_max <= 0)
        return 1;
    return (float)(1.0 + (double)rope->query_beta * log(1.0 + pos / rope->query_original_max));
}

// The slot that holds cos and sin of pos, filled.
static int slot_of(struct krn_rope_cache *cache, int32_t pos)
{
    int32_t half = cache->rope.head_dim / 2;
    int slot = half <= CACHED_HALF_MAX ? pos % SLOTS : 0;
    if (cache->pos[slot] == pos)
        return slot;
    cache->pos[slot] = pos;
    cache->query_scale[slot] = query_scale(&cache->rope, pos);
    float *table = &cache->data[0][0] + (size_t)slot * (2 * CACHED_HALF_MAX);
    for (int32_t i = 0; i < half; i++) {
        double angle = (double)pos * (double)cache->inv_freq[i];
        table[i] = (float)(cos(angle) * (double)cache->rope.attention_factor);
        table[half + i] = (float)(sin(angle) * (double)cache->rope.attention_factor);
    }
    return slot;
}

static void rotate(float *x, int32_t n_heads, int32_t half, const float *table, float scale)
{
    for (int32_t h = 0; h < n_heads; h++) {
        float *low = x + (size_t)h * 2 * (size_t)half, *high = low + half;
        for (int32_t i = 0; i < half; i++) {
            float a = low[i], b = high[i];
            low[i] = (a * table[i] - b * table[half + i]) * scale;
            high[i] = (b * table[i] + a * table[half + i]) * scale;
        }
    }
}

void krn_rope_ref(const struct krn_rope_task *task, struct krn_rope_cache *cache, int64_t begin, int64_t end)
{
    int32_t head_dim = task->rope->head_dim;
    prepare(cache, task->rope);
    int64_t index = 0; // of the segment's first row among all rows
    for (int32_t s = 0; s < task->n_segments && index < end; s++) {
        const struct krn_segment *segment = &task->segments[s];
        for (int32_t r = begin > index ? (int32_t)(begin - index) : 0; r < segment->rows && index + r < end; r++) {
            int slot = slot_of(cache, segment->first_pos + r);
            const float *table = &cache->data[0][0] + (size_t)slot * (2 * CACHED_HALF_MAX);
            size_t row = (size_t)segment->row + (size_t)r;
            rotate(task->q + row * (size_t)task->n_heads * (size_t)head_dim, task->n_heads, head_dim / 2, table,
                   cache->query_scale[slot]);
            rotate(task->k + row * (size_t)task->n_kv_heads * (size_t)head_dim, task->n_kv_heads, head_dim / 2, table,
                   1);
        }
        index += segment->rows;
    }
}
