// The collectives of a warp that compute: votes, matrices out of shared memory, matrix instructions; each done by the
// last lane to arrive, by its definition. Sums of a matrix instruction go along k from 0 to 15, in f32, one rounding
// for the product and one for the sum: an element depends on its row of A and its column of B and on nothing else.
#include "simt_machine.h"

namespace simt_host
{

uint32_t ballot(bool p, const char *file, int line)
{
    struct vote {
        bool p;
        uint32_t all;
    } mine = {p, 0};
    meet_warp(
        BALLOT, &mine,
        [](void *const *votes, int n) {
            uint32_t all = 0;
            for (int i = 0; i < n; i++)
                all |= (uint32_t)((struct vote *)votes[i])->p << i;
            for (int i = 0; i < n; i++)
                ((struct vote *)votes[i])->all = all;
        },
        file, line);
    return mine.all;
}

struct row_wanted {
    uint32_t *r;
    int64_t offset;
    const struct thread *thread;
};

template <bool TRANSPOSED> static SIMT_HOT void load_matrices(void *const *things, int)
{
    uint16_t m[4][8][8];
    for (int i = 0; i < LANES; i++) {
        const struct row_wanted *row = (const struct row_wanted *)things[i];
        memcpy(m[i / 8][i % 8], reading_as(row->thread, row->offset, 16, 16), 16);
    }
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) {
            int a = l / 4, b = l % 4 * 2;
            uint32_t low = TRANSPOSED ? m[i][b][a] : m[i][a][b], high = TRANSPOSED ? m[i][b + 1][a] : m[i][a][b + 1];
            ((const struct row_wanted *)things[l])->r[i] = low | high << 16;
        }
}

void ldmatrix(enum kind kind, uint32_t r[4], int64_t offset, const char *file, int line)
{
    struct row_wanted mine = {r, offset, running()};
    meet_warp(kind, &mine, kind == LDMATRIX ? load_matrices<false> : load_matrices<true>, file, line);
}

struct operands {
    float *d;
    const uint32_t *a, *b;
};

static inline SIMT_HOT float low_half(uint32_t pair)
{
    uint32_t bits = pair << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline SIMT_HOT float high_half(uint32_t pair)
{
    return low_half(pair >> 16);
}

static SIMT_HOT void multiply(void *const *things, int)
{
    typedef float vec4 __attribute__((vector_size(16)));
    alignas(16) float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < LANES; l++) {
        const struct operands *in = (const struct operands *)things[l];
        int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[g + i % 2 * 8][t + i / 2 * 8] = low_half(in->a[i]);
            a[g + i % 2 * 8][t + i / 2 * 8 + 1] = high_half(in->a[i]);
            d[g + i / 2 * 8][t + i % 2] = in->d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + i * 8][g] = low_half(in->b[i]);
            b[t + i * 8 + 1][g] = high_half(in->b[i]);
        }
    }
    for (int i = 0; i < 16; i++) {
        vec4 left = *(vec4 *)d[i], right = *(vec4 *)(d[i] + 4);
        for (int k = 0; k < 16; k++) {
            left += a[i][k] * *(vec4 *)b[k];
            right += a[i][k] * *(vec4 *)(b[k] + 4);
        }
        *(vec4 *)d[i] = left;
        *(vec4 *)(d[i] + 4) = right;
    }
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++)
            ((const struct operands *)things[l])->d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

void mma(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file, int line)
{
    struct operands mine = {d, a, b};
    meet_warp(MMA, &mine, multiply, file, line);
}

} // namespace simt_host
