// The exponential function of probabilities: one definition, so that every backend and every thread gets the same bits.
//
// Not named math.h: this folder is searched before the system's.
#pragma once

#include "exact.h"

#include <stdint.h>
#include <string.h>

// e^x; the polynomial of Cephes' expf, error below 2 ulp, never decreasing for x <= 0 (all floats were tried). Below
// -87.33 exactly 0, above 88.37 the value there. NaN stays NaN. Single IEEE operations in a fixed order, which
// compilers vectorise.
KRN_HD float krn_expf(float x)
{
    float c = x < -87.33654f ? -87.33654f : x;
    c = c > 88.37626f ? 88.37626f : c;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits.
    float shifted = KRN_ADD(KRN_MUL(c, 1.44269504f), 12582912.0f);
    float n = KRN_SUB(shifted, 12582912.0f);
    float r = KRN_SUB(c, KRN_MUL(n, 0.693359375f));
    r = KRN_SUB(r, KRN_MUL(n, -2.12194440e-4f));
    float p = 1.9875691500e-4f;
    p = KRN_ADD(KRN_MUL(p, r), 1.3981999507e-3f);
    p = KRN_ADD(KRN_MUL(p, r), 8.3334519073e-3f);
    p = KRN_ADD(KRN_MUL(p, r), 4.1665795894e-2f);
    p = KRN_ADD(KRN_MUL(p, r), 1.6666665459e-1f);
    p = KRN_ADD(KRN_MUL(p, r), 5.0000001201e-1f);
    p = KRN_ADD(KRN_ADD(KRN_MUL(p, KRN_MUL(r, r)), r), 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    p = KRN_MUL(p, power);
    return x < -87.33654f ? 0.0f : p;
}
