// Scalar pieces shared by the reference versions.
#pragma once

#include "kernels.h"

#include <string.h>

// The element i of a weight matrix as f32. Weights may lie at any address that is aligned to their element.
static inline float krn_weight(const struct krn_tensor *w, size_t i)
{
    if (w->type == KRN_F32) {
        float value;
        memcpy(&value, (const char *)w->data + i * 4, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)w->data + i * 2, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// e^x; the polynomial of Cephes' expf, error below 2 ulp. Below -87.33 exactly 0, above 88.37 the value there. NaN
// stays NaN. Single IEEE operations in a fixed order: the same bits everywhere, and compilers vectorise it.
static inline float krn_expf(float x)
{
    float c = x < -87.33654f ? -87.33654f : x;
    c = c > 88.37626f ? 88.37626f : c;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits.
    float shifted = c * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    p = p * power;
    return x < -87.33654f ? 0.0f : p;
}
