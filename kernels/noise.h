// The noise of a choice: Gumbel noise that depends on (seed, position, token) alone.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
//   key     = (seed low 32, seed high 32)
//   counter = (token / 4, position low 32, position high 32, 0)
// gives four words; token t takes word t % 4. From the word x:
//   v = ((float)x + 0.5f) * 2^-32, at most 1 - 2^-24      (uniform in (0, 1); fine near 0, where large noise comes
//   from) e = -log(1 - v)                                       (exponential; computed by krn_noise_log1m) g = -log(e)
//   (Gumbel)
// Only integer operations and single IEEE f32 additions, multiplications and divisions are used, in a fixed order and
// without fused multiply-add (build with -ffp-contract=off), so that every backend and the Python reference get the
// same bits.
#pragma once

#include "exact.h"

#include <stdint.h>
#include <string.h>

// The four words for tokens 4 * quad .. 4 * quad + 3 at a position.
KRN_HD void krn_philox(uint64_t seed, uint64_t position, uint32_t quad, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = quad, c1 = (uint32_t)position, c2 = (uint32_t)(position >> 32), c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// Natural logarithm of a normal positive float; the polynomial of Cephes' logf, error below 2 ulp.
KRN_HD float krn_noise_log(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23) - 126; // x = m * 2^exponent with m in [0.5, 1)
    bits = (bits & 0x007fffffu) | 0x3f000000u;
    float m;
    memcpy(&m, &bits, sizeof m);
    if (m < 0.70710678f) {
        exponent -= 1;
        m = KRN_ADD(m, m);
    }
    m = KRN_SUB(m, 1.0f);
    float e = (float)exponent;
    float z = KRN_MUL(m, m);
    float y = 7.0376836292e-2f;
    y = KRN_ADD(KRN_MUL(y, m), -1.1514610310e-1f);
    y = KRN_ADD(KRN_MUL(y, m), 1.1676998740e-1f);
    y = KRN_ADD(KRN_MUL(y, m), -1.2420140846e-1f);
    y = KRN_ADD(KRN_MUL(y, m), 1.4249322787e-1f);
    y = KRN_ADD(KRN_MUL(y, m), -1.6668057665e-1f);
    y = KRN_ADD(KRN_MUL(y, m), 2.0000714765e-1f);
    y = KRN_ADD(KRN_MUL(y, m), -2.4999993993e-1f);
    y = KRN_ADD(KRN_MUL(y, m), 3.3333331174e-1f);
    y = KRN_MUL(KRN_MUL(y, m), z);
    y = KRN_ADD(y, KRN_MUL(e, -2.12194440e-4f));
    y = KRN_SUB(y, KRN_MUL(z, 0.5f));
    return KRN_ADD(KRN_ADD(m, y), KRN_MUL(e, 0.693359375f));
}

// -log(1 - v) for v in (0, 1 - 2^-24], exact to a few ulp for small v too (Kahan's correction of the rounding of 1 -
// v).
KRN_HD float krn_noise_log1m(float v)
{
    float u = KRN_SUB(1.0f, v);
    if (u == 1.0f)
        return v;
    return KRN_DIV(KRN_MUL(-krn_noise_log(u), v), KRN_SUB(1.0f, u));
}

// Gumbel noise from one Philox word.
KRN_HD float krn_gumbel(uint32_t word)
{
    float v = KRN_MUL(KRN_ADD((float)word, 0.5f), 2.3283064365386963e-10f);
    if (v > 0.99999994f)
        v = 0.99999994f;
    return -krn_noise_log(krn_noise_log1m(v));
}
