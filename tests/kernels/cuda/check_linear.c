// The skinny product against sums in double over the device's own weights: types, odd sizes, parts of K, several
// matrices in one launch, gated, scaled; a row's bits alone and in company; nothing written beside. Rows of x that no
// result needs hold NaN.
#include "cuda_rig.h"
#include "quant.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 64 }; // floats after each partial matrix

static const enum krn_type types[] = {KRN_BF16, KRN_FP8, KRN_Q4};
enum { N_TYPES = 3 };

// ---- x --------------------------------------------------------------------------------------------------------------

struct input {
    int32_t rows, cols;
    float *values;    // [rows][cols], exactly bf16
    uint16_t *device; // INPUT
};

static struct input input_open(struct cuda_rig *rig, struct random *random, int32_t rows, int32_t cols)
{
    struct input in = {.rows = rows, .cols = cols, .values = floats((size_t)rows * (size_t)cols)};
    size_t stride = (size_t)KRN_PAD(cols), tall = (size_t)KRN_PAD_TO(rows, KRN_ROW_TILE);
    uint16_t *host = must(malloc(tall * stride * 2 + 2));
    memset(host, 0xff, tall * stride * 2);
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < stride; c++) {
            uint16_t half = c < (size_t)cols ? krn_bf16_round(random_float(random)) : 0;
            host[r * stride + c] = half;
            if (c < (size_t)cols)
                in.values[r * (size_t)cols + c] = krn_bf16_value(half);
        }
    in.device = rig_upload(rig, host, tall * stride * 2);
    free(host);
    return in;
}

static void input_close(struct cuda_rig *rig, struct input *in)
{
    free(in->values);
    rig_free(rig, in->device);
}

// ---- a weight and its result ----------------------------------------------------------------------------------------

struct product {
    struct krn_dev_weight w;
    float *values; // [outputs][cols]
    struct krn_dev_sums y;
    float *got; // the sums of what was read back, [rows][outputs]
};

static struct product product_open(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t outputs,
                                   int32_t cols, int32_t rows, int32_t parts)
{
    struct product p = {.y = {.stride = (int64_t)rows * outputs + GUARD, .n = parts, .width = outputs}};
    p.w = rig_weight(rig, random, type, outputs, cols, &p.values);
    p.y.data = rig_alloc(rig, (size_t)(p.y.stride * parts) * sizeof(float));
    p.got = floats((size_t)rows * (size_t)outputs);
    return p;
}

static void product_close(struct cuda_rig *rig, struct product *p)
{
    rig_weight_free(rig, &p->w);
    rig_free(rig, p->y.data);
    free(p->values);
    free(p->got);
}

static bool untouched(const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((const unsigned char *)bytes)[i] != 0xff)
            return false;
    return true;
}

// Adds the parts in their order into p->got. false: something was written beside the first `rows` rows.
static bool product_read(struct cuda_rig *rig, struct product *p, int32_t rows)
{
    size_t n = (size_t)rows * (size_t)p->w.rows, stride = (size_t)p->y.stride;
    float *parts = floats(stride * (size_t)p->y.n);
    rig_read(rig, parts, p->y.data, stride * (size_t)p->y.n * sizeof(float));
    bool ok = true;
    for (int32_t part = 0; part < p->y.n; part++) {
        const float *from = parts + (size_t)part * stride;
        for (size_t i = 0; i < n; i++)
            p->got[i] = part == 0 ? from[i] : p->got[i] + from[i];
        ok = ok && untouched(from + n, (stride - n) * sizeof(float));
    }
    free(parts);
    return ok;
}

static void run(struct cuda_rig *rig, const uint16_t *x, int32_t rows, struct product *p, int32_t n, float scale)
{
    struct krn_linear_args args = {.x = x, .rows = rows, .cols = p[0].w.cols, .n = n, .scale = scale};
    for (int32_t i = 0; i < n; i++) {
        args.w[i] = p[i].w;
        args.y[i] = p[i].y;
    }
    rig_must(rig, krn_cuda_linear(rig->how, &args), "linear");
}

// x[r] . w[o] and sum |x w|, which its rounding errors grow with.
static double dot(const struct input *in, const struct product *p, int32_t r, int32_t o, double *ret_magnitude)
{
    const float *x = in->values + (size_t)r * (size_t)in->cols, *w = p->values + (size_t)o * (size_t)in->cols;
    double sum = 0, magnitude = 0;
    for (int32_t c = 0; c < in->cols; c++) {
        sum += (double)x[c] * (double)w[c];
        magnitude += fabs((double)x[c] * (double)w[c]);
    }
    *ret_magnitude = magnitude;
    return sum;
}

// Of a sum of `cols` products: every 8 or 16 are one addition on a GPU, which may cut off where others round.
static double relative_bound(int32_t cols)
{
    return (8 + cols / 8) * 1.2e-7;
}

static bool product_is_right(const struct input *in, const struct product *p, double scale)
{
    bool ok = true;
    for (int32_t r = 0; r < in->rows; r++)
        for (int32_t o = 0; o < p->w.rows; o++) {
            double magnitude, want = scale * dot(in, p, r, o, &magnitude);
            double got = (double)p->got[(size_t)r * (size_t)p->w.rows + (size_t)o];
            ok = ok && fabs(got - want) <= 1e-30 + relative_bound(in->cols) * fabs(scale) * magnitude;
        }
    return ok;
}

// ---- sizes ----------------------------------------------------------------------------------------------------------

static bool multiplies(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t cols, int32_t outputs,
                       int32_t rows, int32_t parts)
{
    struct input in = input_open(rig, random, rows, cols);
    struct product p = product_open(rig, random, type, outputs, cols, rows, parts);
    run(rig, in.device, rows, &p, 1, 1);
    bool ok = product_read(rig, &p, rows) && product_is_right(&in, &p, 1);
    product_close(rig, &p);
    input_close(rig, &in);
    return ok;
}

// Every width with every count of rows; outputs and parts take turns against them.
static void check_sizes(struct cuda_rig *rig, struct random *random)
{
    static const int32_t widths[] = {1, 7, 24, 31, 32, 33, 64, 100, 192, 512};
    static const int32_t outputs[] = {1, 3, 16, 17, 37, 64, 100, 131};
    static const int32_t rows[] = {0, 1, 2, 7, 8, 9, 16, 31, 33, 64, 65, 130};
    enum { N_WIDTHS = sizeof widths / 4, N_OUTPUTS = sizeof outputs / 4, N_ROWS = sizeof rows / 4 };
    for (int t = 0; t < N_TYPES; t++)
        for (int w = 0; w < N_WIDTHS; w++) {
            bool ok = true;
            // The emulation is slow: it sees every third count of rows with a width, another third with the next.
            for (int r = rig->emulated ? w % 3 : 0; r < N_ROWS; r += rig->emulated ? 3 : 1)
                ok = multiplies(rig, random, types[t], widths[w], outputs[(r + 3 * w + t) % N_OUTPUTS], rows[r],
                                1 + (r + w + t) % 4) &&
                     ok;
            char what[96];
            snprintf(what, sizeof what, "linear %s, %d columns", krn_type_name(types[t]), widths[w]);
            rig_report(rig, ok, what);
        }
    if (rig->emulated)
        return;
    bool ok = true;
    for (int t = 0; t < N_TYPES; t++)
        ok = multiplies(rig, random, types[t], 4096, 1000, 64, 8) &&
             multiplies(rig, random, types[t], 14336, 300, 33, 4) && ok;
    rig_report(rig, ok, "linear, sizes of real models");
}

// ---- several matrices, scale ----------------------------------------------------------------------------------------

static bool multiplies_together(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t rows)
{
    enum { COLS = 300, N = 4 };
    static const int32_t outputs[N] = {130, 40, 1, 257}, parts[N] = {2, 4, 1, 3};
    struct input in = input_open(rig, random, rows, COLS);
    struct product p[N];
    bool ok = true;
    for (int i = 0; i < N; i++)
        p[i] = product_open(rig, random, type, outputs[i], COLS, rows, parts[i]);
    run(rig, in.device, rows, p, N, 1);
    for (int i = 0; i < N; i++) {
        ok = product_read(rig, &p[i], rows) && product_is_right(&in, &p[i], 1) && ok;
        // Alone: the same bits.
        size_t n = (size_t)rows * (size_t)outputs[i];
        float *together = floats(n);
        memcpy(together, p[i].got, n * sizeof(float));
        run(rig, in.device, rows, &p[i], 1, 1);
        ok = product_read(rig, &p[i], rows) && same_bits(together, p[i].got, n) && ok;
        free(together);
        product_close(rig, &p[i]);
    }
    input_close(rig, &in);
    return ok;
}

static bool scales(struct cuda_rig *rig, struct random *random, enum krn_type type)
{
    enum { COLS = 48, ROWS = 5 };
    struct input in = input_open(rig, random, ROWS, COLS);
    struct product p = product_open(rig, random, type, 70, COLS, ROWS, 2);
    run(rig, in.device, ROWS, &p, 1, -0.3f);
    bool ok = product_read(rig, &p, ROWS) && product_is_right(&in, &p, (double)-0.3f);
    product_close(rig, &p);
    input_close(rig, &in);
    return ok;
}

// ---- gated ----------------------------------------------------------------------------------------------------------

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static bool gates(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t cols, int32_t outputs,
                  int32_t rows)
{
    struct input in = input_open(rig, random, rows, cols);
    struct product gate = product_open(rig, random, type, outputs, cols, rows, 1);
    struct product up = product_open(rig, random, type, outputs, cols, rows, 1);
    size_t stride = (size_t)KRN_PAD(outputs), n = (size_t)rows * stride;
    uint16_t *y = rig_alloc(rig, (n + GUARD) * 2), *got = must(malloc((n + GUARD) * 2));
    float scale = 4; // far enough out to see silu bend
    struct krn_linear_args args = {
        .x = in.device, .rows = rows, .cols = cols, .n = 2, .w = {gate.w, up.w}, .gated_y = y, .scale = scale};
    rig_must(rig, krn_cuda_linear(rig->how, &args), "linear, gated");
    rig_read(rig, got, y, (n + GUARD) * 2);
    bool ok = untouched(got + n, GUARD * 2);
    for (int32_t r = 0; r < rows; r++)
        for (size_t o = 0; o < stride; o++) {
            double v = (double)krn_bf16_value(got[(size_t)r * stride + o]);
            if (o >= (size_t)outputs) {
                ok = ok && v == 0;
                continue;
            }
            double of_gate, of_up, g = (double)scale * dot(&in, &gate, r, (int32_t)o, &of_gate);
            double u = (double)scale * dot(&in, &up, r, (int32_t)o, &of_up), want = silu(g) * u;
            // |silu'| < 1.1, |silu(g)| <= |g|.
            double bound = relative_bound(cols) * (double)scale * (1.1 * of_gate * fabs(u) + fabs(g) * of_up);
            ok = ok && fabs(v - want) <= 1e-30 + bound + fabs(want) * (1.0 / 256 + 2e-6);
        }
    free(got);
    rig_free(rig, y);
    product_close(rig, &gate);
    product_close(rig, &up);
    input_close(rig, &in);
    return ok;
}

static void check_gated(struct cuda_rig *rig, struct random *random)
{
    static const int32_t outputs[] = {1, 31, 64, 65, 100}, rows[] = {1, 8, 12, 40, 70, 0}, widths[] = {33, 128, 200};
    for (int t = 0; t < N_TYPES; t++) {
        bool ok = true;
        for (int r = 0; r < 6; r++)
            ok = gates(rig, random, types[t], widths[(r + t) % 3], outputs[(r + 2 * t) % 5], rows[r]) && ok;
        char what[96];
        snprintf(what, sizeof what, "linear %s, gated", krn_type_name(types[t]));
        rig_report(rig, ok, what);
    }
}

// ---- invariance -----------------------------------------------------------------------------------------------------

// Rows first .. first + n - 1 alone give the bits that they have among all.
static bool same_in_company(struct cuda_rig *rig, const struct input *in, struct product *p, const float *all,
                            int32_t first, int32_t n)
{
    size_t outputs = (size_t)p->w.rows;
    run(rig, in->device + (size_t)first * (size_t)KRN_PAD(in->cols), n, p, 1, 1);
    product_read(rig, p, n);
    return same_bits(p->got, all + (size_t)first * outputs, (size_t)n * outputs);
}

static bool is_invariant(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t parts)
{
    enum { ROWS = 130, COLS = 420, OUTPUTS = 75 };
    static const int32_t counts[] = {1, 2, 8, 11, 16, 24, 32, 40, 64, 66};
    struct input in = input_open(rig, random, ROWS, COLS);
    struct product p = product_open(rig, random, type, OUTPUTS, COLS, ROWS, parts);
    float *all = floats(ROWS * OUTPUTS);
    run(rig, in.device, ROWS, &p, 1, 1);
    bool ok = product_read(rig, &p, ROWS);
    memcpy(all, p.got, ROWS * OUTPUTS * sizeof(float));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int k = 0; k < 2; k++)
            ok = same_in_company(rig, &in, &p, all, random_below(random, ROWS - counts[i] + 1), counts[i]) && ok;
    for (int32_t r = 0; r < ROWS; r += rig->emulated ? 13 : 1)
        ok = same_in_company(rig, &in, &p, all, r, 1) && ok;
    free(all);
    product_close(rig, &p);
    input_close(rig, &in);
    return ok;
}

// ---- parts ----------------------------------------------------------------------------------------------------------

static bool parts_are_sensible(void)
{
    bool ok = krn_cuda_linear_sums(1, 1) == 1 && krn_cuda_linear_sums(131072, 4096) == 1;
    for (int32_t outputs = 1; outputs < 40000; outputs += 111)
        for (int32_t cols = 1; cols < 20000; cols += 333) {
            int32_t n = krn_cuda_linear_sums(outputs, cols);
            ok = ok && n >= 1 && n <= KRN_LINEAR_SUMS_MAX && (n == 1 || cols / n >= 512);
            // Deeper: never fewer.
            ok = ok && krn_cuda_linear_sums(outputs, cols + 333) >= n;
        }
    return ok && krn_cuda_linear_sums(4096, 4096) > 1 && krn_cuda_linear_sums(16, 4096) == KRN_LINEAR_SUMS_MAX;
}

void check_linear(struct cuda_rig *rig)
{
    struct random random = {.state = 11};
    char what[96];
    rig_report(rig, parts_are_sensible(), "linear, number of parts");
    check_sizes(rig, &random);
    check_gated(rig, &random);
    for (int t = 0; t < N_TYPES; t++) {
        const char *name = krn_type_name(types[t]);
        bool ok = multiplies_together(rig, &random, types[t], 3) && multiplies_together(rig, &random, types[t], 70);
        snprintf(what, sizeof what, "linear %s, four matrices at once", name);
        rig_report(rig, ok, what);
        snprintf(what, sizeof what, "linear %s, scaled", name);
        rig_report(rig, scales(rig, &random, types[t]), what);
        for (int32_t parts = 1; parts <= 3; parts += 2) {
            snprintf(what, sizeof what, "linear %s in %d parts: a row's bits do not depend on its company", name,
                     parts);
            rig_report(rig, is_invariant(rig, &random, types[t], parts), what);
        }
    }
}
