// Scalar pieces shared by the reference versions.
#pragma once

#include "exp.h"
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
