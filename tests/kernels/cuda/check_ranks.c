// kernels/cuda/ranks.cu: sums in the order of the devices and columns side by side, to the bit; nothing beyond them.
#include "cuda_rig.h"
#include "exchange.h"

#include <stdio.h>

enum { MOST = 5000, GUARD = 64 };

static void check_sum(struct cuda_rig *rig, struct random *random, int32_t n, int64_t count)
{
    float *host = floats((size_t)n * (size_t)count), *got = floats((size_t)count + GUARD);
    char what[96];
    fill_random(random, host, (size_t)n * (size_t)count);
    float *from = rig_upload(rig, host, (size_t)n * (size_t)count * sizeof *host);
    float *y = rig_alloc(rig, ((size_t)count + GUARD) * sizeof *y);
    const struct krn_rank_sum_args args = {.from = from, .y = y, .count = count, .n = n};
    bool good = krn_cuda_rank_sum(rig->how, &args) == 0;
    rig_read(rig, got, y, ((size_t)count + GUARD) * sizeof *y);
    for (int64_t i = 0; i < count; i++) {
        float sum = host[i];
        for (int32_t d = 1; d < n; d++)
            sum += host[d * count + i];
        good = good && same_bits(&sum, &got[i], 1);
    }
    for (int64_t i = count; i < count + GUARD; i++)
        good = good && got[i] != got[i]; // rig_alloc's NaN
    snprintf(what, sizeof what, "ranks: sum of %d parts of %lld", n, (long long)count);
    rig_report(rig, good, what);
    rig_free(rig, from);
    rig_free(rig, y);
    free(host);
    free(got);
}

static void check_columns(struct cuda_rig *rig, struct random *random, int32_t n, int32_t rows, int32_t width)
{
    size_t count = (size_t)n * (size_t)rows * (size_t)width;
    float *host = floats(count), *got = floats(count + GUARD);
    char what[96];
    fill_random(random, host, count);
    float *from = rig_upload(rig, host, count * sizeof *host), *to = rig_alloc(rig, (count + GUARD) * sizeof *to);
    const struct krn_rank_columns_args args = {.from = from, .to = to, .n = n, .rows = rows, .width = width};
    bool good = krn_cuda_rank_columns(rig->how, &args) == 0;
    rig_read(rig, got, to, (count + GUARD) * sizeof *to);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t d = 0; d < n; d++)
            good = good && same_bits(got + ((size_t)r * (size_t)n + (size_t)d) * (size_t)width,
                                     host + ((size_t)d * (size_t)rows + (size_t)r) * (size_t)width, (size_t)width);
    for (size_t i = count; i < count + GUARD; i++)
        good = good && got[i] != got[i];
    snprintf(what, sizeof what, "ranks: %d columns of [%d][%d]", n, rows, width);
    rig_report(rig, good, what);
    rig_free(rig, from);
    rig_free(rig, to);
    free(host);
    free(got);
}

void check_ranks(struct cuda_rig *rig)
{
    static const int64_t counts[] = {1, 255, 1024, 1025, MOST};
    static const int32_t shapes[][2] = {{1, 1}, {3, 17}, {2, 1024}, {5, 1031}};
    struct random random = {11};
    for (int32_t n = 2; n <= 8; n *= 2) {
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            check_sum(rig, &random, n, counts[i]);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_columns(rig, &random, n, shapes[i][0], shapes[i][1]);
    }
    const struct krn_rank_sum_args none = {.n = 2};
    const struct krn_rank_columns_args no_rows = {.n = 2, .width = 4};
    rig_report(rig, krn_cuda_rank_sum(rig->how, &none) == 0 && krn_cuda_rank_columns(rig->how, &no_rows) == 0,
               "ranks: nothing to do is no launch");
}
