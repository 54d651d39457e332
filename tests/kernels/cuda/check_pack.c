// The packing kernel against the host's arithmetic (kernels/quant.h), bit for bit: every type from both sources, odd
// widths, rows in several pieces, rows of nothing, of one large value and of the smallest, and nothing written beside.
#include "cuda_rig.h"
#include "quant.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 256 }; // bytes after what may be written

struct sizes {
    size_t row, scales; // bytes of a row
};

static struct sizes sizes_of(enum krn_type type, int32_t cols)
{
    size_t stride = (size_t)krn_weight_stride(type, cols);
    switch (type) {
    case KRN_F32:
        return (struct sizes){stride * 4, 0};
    case KRN_BF16:
        return (struct sizes){stride * 2, 0};
    case KRN_FP8:
        return (struct sizes){stride, sizeof(float)};
    default:
        return (struct sizes){stride / 2, stride / KRN_Q4_GROUP * 2};
    }
}

// ---- what is to come out --------------------------------------------------------------------------------------------

static void expect_fp8(const float *x, int32_t cols, uint8_t *row, float *scale)
{
    float largest = 0;
    for (int32_t i = 0; i < cols; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    *scale = krn_fp8_scale(largest);
    for (int32_t i = 0; i < krn_weight_stride(KRN_FP8, cols); i++)
        row[krn_fp8_place(i)] = krn_fp8_code(i < cols ? x[i] : 0, *scale);
}

static void expect_q4(const float *x, int32_t cols, char *row, uint16_t *scales)
{
    for (int32_t first = 0; first < krn_weight_stride(KRN_Q4, cols); first += KRN_Q4_GROUP) {
        float group[KRN_Q4_GROUP];
        for (int32_t i = 0; i < KRN_Q4_GROUP; i++)
            group[i] = first + i < cols ? x[first + i] : 0;
        uint32_t words[4];
        krn_q4_pack(group, &scales[first / KRN_Q4_GROUP], words);
        memcpy(row + first / 2, words, sizeof words);
    }
}

// row, scales: zeroed.
static void expect_row(enum krn_type type, const float *x, int32_t cols, char *row, char *scales)
{
    if (type == KRN_FP8)
        expect_fp8(x, cols, (uint8_t *)row, (float *)scales);
    else if (type == KRN_Q4)
        expect_q4(x, cols, row, (uint16_t *)scales);
    for (int32_t i = 0; i < cols; i++) {
        if (type == KRN_F32)
            ((float *)row)[i] = x[i];
        else if (type == KRN_BF16)
            ((uint16_t *)row)[i] = krn_bf16_round(x[i]);
    }
}

// ---- a matrix -------------------------------------------------------------------------------------------------------

// Of every eight rows one has nothing, one negative zeros, one a single large value, one the smallest, one the largest.
static void fill_rows(struct random *random, float *x, int32_t rows, int32_t cols)
{
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < cols; c++) {
            float v = random_float(random) * (0.1f + 0.9f * (float)(c % 3 == 0));
            switch (r % 8) {
            case 1:
                v = 0;
                break;
            case 2:
                v = -0.0f;
                break;
            case 3:
                v = c == cols / 2 ? -1000 : v;
                break;
            case 4:
                v *= 1e-39f;
                break;
            case 5:
                v *= 3e38f;
                break;
            default:
                break;
            }
            x[r * cols + c] = v;
        }
}

// Rounds the values to bf16, in place, and returns them as such.
static uint16_t *halves_of(float *x, size_t n)
{
    uint16_t *halves = must(malloc(n * sizeof *halves + 1));
    for (size_t i = 0; i < n; i++) {
        halves[i] = krn_bf16_round(x[i]);
        x[i] = krn_bf16_value(halves[i]);
    }
    return halves;
}

static bool untouched(const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != (char)0xff)
            return false;
    return true;
}

struct packed {
    char *data, *scales; // read back, each with GUARD bytes more
};

// In pieces of at most `piece` rows.
static struct packed pack(struct cuda_rig *rig, enum krn_type type, const void *host, bool f32, int32_t rows,
                          int32_t cols, int32_t piece)
{
    struct sizes sizes = sizes_of(type, cols);
    size_t data_bytes = (size_t)rows * sizes.row + GUARD, scale_bytes = (size_t)rows * sizes.scales + GUARD;
    size_t from_row = (size_t)cols * (f32 ? 4 : 2);
    struct krn_pack_args args = {.from_f32 = f32, .cols = cols, .type = type, .stride = krn_weight_stride(type, cols)};
    args.data = rig_alloc(rig, data_bytes);
    args.scales = rig_alloc(rig, scale_bytes);
    for (args.first = 0; args.first < rows; args.first += args.rows) {
        args.rows = rows - args.first < piece ? rows - args.first : piece;
        void *from = rig_upload(rig, (const char *)host + (size_t)args.first * from_row, (size_t)args.rows * from_row);
        args.from = from;
        rig_must(rig, krn_cuda_pack(rig->how, &args), "pack");
        rig_free(rig, from);
    }
    args.rows = 0;
    rig_must(rig, krn_cuda_pack(rig->how, &args), "pack of no rows");
    struct packed ret = {must(malloc(data_bytes)), must(malloc(scale_bytes))};
    rig_read(rig, ret.data, args.data, data_bytes);
    rig_read(rig, ret.scales, args.scales, scale_bytes);
    rig_free(rig, args.data);
    rig_free(rig, args.scales);
    return ret;
}

static bool packs(struct cuda_rig *rig, struct random *random, enum krn_type type, bool f32, int32_t rows, int32_t cols)
{
    struct sizes sizes = sizes_of(type, cols);
    size_t n = (size_t)rows * (size_t)cols, data_bytes = (size_t)rows * sizes.row;
    float *x = floats(n);
    fill_rows(random, x, rows, cols);
    uint16_t *halves = f32 ? NULL : halves_of(x, n);
    struct packed got = pack(rig, type, f32 ? (void *)x : (void *)halves, f32, rows, cols, rows > 3 ? rows - 3 : rows);
    bool ok = untouched(got.data + data_bytes, GUARD) && untouched(got.scales + (size_t)rows * sizes.scales, GUARD);
    char *row = must(malloc(sizes.row)), *scales = must(malloc(sizes.scales + 4));
    for (int32_t r = 0; r < rows; r++) {
        memset(row, 0, sizes.row);
        expect_row(type, x + (size_t)r * (size_t)cols, cols, row, scales);
        ok = ok && memcmp(row, got.data + (size_t)r * sizes.row, sizes.row) == 0;
        ok = ok && memcmp(scales, got.scales + (size_t)r * sizes.scales, sizes.scales) == 0;
    }
    free(row);
    free(scales);
    free(got.data);
    free(got.scales);
    free(halves);
    free(x);
    return ok;
}

// What the packed matrix stands for is close to what was packed; the bounds are those of the formats.
static bool is_close(struct cuda_rig *rig, struct random *random, enum krn_type type, double bound)
{
    enum { ROWS = 5, COLS = 200 };
    float *x = floats(ROWS * COLS);
    fill_random(random, x, ROWS * COLS);
    struct packed got = pack(rig, type, x, true, ROWS, COLS, ROWS);
    struct sizes sizes = sizes_of(type, COLS);
    double squares = 0, errors = 0;
    for (int32_t i = 0; i < ROWS * COLS; i++) {
        const char *row = got.data + (size_t)(i / COLS) * sizes.row;
        const char *scales = got.scales + (size_t)(i / COLS) * sizes.scales;
        double v = type == KRN_BF16  ? (double)krn_bf16_value(((const uint16_t *)row)[i % COLS])
                   : type == KRN_FP8 ? (double)krn_fp8_at((const uint8_t *)row, *(const float *)scales, i % COLS)
                                     : (double)krn_q4_at((const uint32_t *)row, (const uint16_t *)scales, i % COLS);
        squares += (double)x[i] * (double)x[i];
        errors += (v - (double)x[i]) * (v - (double)x[i]);
    }
    free(x);
    free(got.data);
    free(got.scales);
    return errors <= bound * bound * squares;
}

void check_pack(struct cuda_rig *rig)
{
    static const enum krn_type types[] = {KRN_F32, KRN_BF16, KRN_FP8, KRN_Q4};
    static const int32_t widths[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 1100};
    static const double bounds[] = {0, 1.0 / 256, 1.0 / 24, 0.09}; // rms, of uniform values
    struct random random = {.state = 7};
    for (int t = 0; t < 4; t++) {
        char what[96];
        for (int f32 = 0; f32 < 2; f32++) {
            bool ok = true;
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                ok = packs(rig, &random, types[t], f32, w % 2 ? 9 : 6, widths[w]) && ok;
            ok = packs(rig, &random, types[t], f32, 1, 40) && ok;
            snprintf(what, sizeof what, "pack %s from %s: the host's bits", krn_type_name(types[t]),
                     f32 ? "f32" : "bf16");
            rig_report(rig, ok, what);
        }
        if (types[t] == KRN_F32)
            continue;
        snprintf(what, sizeof what, "pack %s: close to the source", krn_type_name(types[t]));
        rig_report(rig, is_close(rig, &random, types[t], bounds[t]), what);
    }
}
