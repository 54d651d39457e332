// Stores k, v [rows][n_kv_heads][head_dim] of one segment into its pages of a layer, in the store's type:
//   f32   as they are
//   bf16  rounded to nearest even
//   q8    scale = largest |x| of the vector / 127; round(x / scale)
//
// A stored vector depends on that vector alone, so it is the same whichever pass, draft or verification wrote it.
// One version for all: every step is a single IEEE operation, and the compiler's vectors are fast enough beside the
// products of the same rows (`checkkern --bench`: q8 0.9 ns an element, which is 0.35 ms of the bundled model's 14 ms
// for 256 rows on one thread).
#include "ops.h"
#include "quant.h"

#include <math.h>
#include <string.h>

static void store_bf16(uint16_t *to, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = krn_bf16_round(x[i]);
}

// A vector with an element that is not finite gets the scale NaN: whoever reads it sees that it has no values.
static void store_q8(int8_t *to, float *scale, const float *x, size_t n)
{
    uint32_t largest = 0; // magnitudes are ordered as their bits are
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = krn_float_bits(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= 0x7f800000u) {
        *scale = NAN;
        memset(to, 0, n);
        return;
    }
    *scale = krn_q8_scale(krn_bits_float(largest));
    for (size_t i = 0; i < n; i++)
        to[i] = krn_q8_code(x[i], *scale);
}

static void store(const struct krn_kv *kv, void *data, float *scales, size_t vector, const float *x)
{
    size_t dim = (size_t)kv->head_dim, at = vector * dim;
    if (kv->type == KRN_BF16)
        store_bf16((uint16_t *)data + at, x, dim);
    else if (kv->type == KRN_Q8)
        store_q8((int8_t *)data + at, scales + vector, x, dim);
    else
        memcpy((float *)data + at, x, dim * sizeof *x);
}

void krn_kv_write_ref(const struct krn_kv *kv, int32_t layer, const float *k, const float *v,
                      const struct krn_segment *segment)
{
    for (int32_t r = 0; r < segment->rows; r++)
        for (int32_t h = 0; h < kv->n_kv_heads; h++) {
            size_t from =
                (((size_t)segment->row + (size_t)r) * (size_t)kv->n_kv_heads + (size_t)h) * (size_t)kv->head_dim;
            size_t to = krn_kv_vector(kv, layer, segment->pages, h, segment->first_pos + r);
            store(kv, kv->k, kv->k_scales, to, k + from);
            store(kv, kv->v, kv->v_scales, to, v + from);
        }
}
