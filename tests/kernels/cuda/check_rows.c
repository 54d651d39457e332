// rows.cu against plain C: bounds grow with the magnitudes that were added; the bits of a row do not depend on the
// bucket or on where the row stands.
#include "cuda_rig.h"

#include <math.h>
#include <stdio.h>

enum { ROWS = 5, BUCKET = 8 }; // rows of a pass, and of the launches

static const int32_t widths[] = {1, 3, 4, 31, 32, 33, 97, 256, 1000, 4096, 4103, 16384};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };

// ---- what every check needs -----------------------------------------------------------------------------------------

// A pass of ROWS rows: row r's token is 3 r, rows 1 and 3 have the adapter on, and row 4's token is linked to choice 1.
static const int32_t links[ROWS] = {-1, -1, -1, -1, 1};
static const uint8_t adapter_rows[ROWS] = {0, 1, 0, 1, 0};
static const int32_t wanted_rows[4] = {4, 0, 2, 2};

struct block {
    struct krn_dev_pass header;
    int32_t tokens[ROWS], links[ROWS], wanted_rows[4];
    uint8_t adapter_rows[ROWS];
};

static struct krn_dev_pass *rows_pass(struct cuda_rig *rig)
{
    struct block block = {.header = {
                              .n_rows = ROWS,
                              .n_wanted = 4,
                              .tokens = offsetof(struct block, tokens),
                              .links = offsetof(struct block, links),
                              .wanted_rows = offsetof(struct block, wanted_rows),
                              .adapter_rows = offsetof(struct block, adapter_rows),
                          }};
    for (int r = 0; r < ROWS; r++)
        block.tokens[r] = r == 4 ? 1 << 30 : 3 * r; // a linked row's token is not looked at
    memcpy(block.links, links, sizeof links);
    memcpy(block.wanted_rows, wanted_rows, sizeof wanted_rows);
    memcpy(block.adapter_rows, adapter_rows, sizeof adapter_rows);
    return rig_upload(rig, &block, offsetof(struct block, adapter_rows) + ROWS);
}

static float *random_floats(struct random *random, size_t n)
{
    float *x = floats(n);
    fill_random(random, x, n);
    return x;
}

// Partial sums on both sides.
struct sums {
    struct krn_dev_sums device;
    float *host;
    size_t n;
};

static struct sums sums_random(struct cuda_rig *rig, struct random *random, int32_t n, int32_t width, int32_t extra,
                               int64_t stride_more)
{
    struct sums s = {
        .device = {.stride = (int64_t)BUCKET * width + stride_more, .n = n, .width = width, .extra = extra}};
    s.n = (size_t)s.device.stride * (size_t)(n + 1);
    s.host = random_floats(random, s.n);
    s.device.data = rig_upload(rig, s.host, s.n * sizeof(float));
    return s;
}

static void sums_free(struct cuda_rig *rig, struct sums *s)
{
    rig_free(rig, s->device.data);
    free(s->host);
}

// In the order that ops.h gives; with flags: an adapter's addition where the row's flag is set.
static float sums_at(const struct sums *s, int32_t row, int32_t i, bool flags)
{
    float v = 0;
    int32_t n = s->device.n + (flags && s->device.extra && row < ROWS && adapter_rows[row]);
    for (int32_t p = 0; p < n; p++) {
        float part = s->host[p * s->device.stride + (int64_t)row * s->device.width + i];
        v = p == 0 ? part : v + part;
    }
    return v;
}

// A float against what bf16 may make of `exact` when the value before had an error of `bound`.
static bool near_bf16(uint16_t half, double exact, double bound)
{
    return fabs((double)bf16_to_float(half) - exact) <= fabs(exact) / 256 + bound;
}

// INPUT rows end in zeros.
static bool padded_with_zeros(const uint16_t *y, int32_t rows, int32_t width)
{
    bool ok = true;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = width; i < KRN_PAD(width); i++)
            ok = ok && y[r * KRN_PAD(width) + i] == 0;
    return ok;
}

// ---- embed, gather --------------------------------------------------------------------------------------------------

static bool embed_case(struct cuda_rig *rig, struct random *random, int32_t width, bool f32)
{
    enum { VOCAB = 13 };
    int32_t stride = KRN_PAD(width), row_tokens[BUCKET], expected_tokens[ROWS] = {0, 3, 6, 9, 7};
    size_t n = (size_t)VOCAB * (size_t)stride;
    float *table = random_floats(random, n), *x = floats((size_t)BUCKET * (size_t)width);
    uint16_t *halves = must(calloc(n, sizeof *halves));
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &table[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
        if (!f32)
            table[i] = bf16_to_float(halves[i]);
    }
    struct krn_dev_choice choices[2] = {{.token = 1}, {.token = 7}};
    struct krn_embed_args args = {
        .pass = rows_pass(rig),
        .table = f32 ? rig_upload(rig, table, n * 4) : rig_upload(rig, halves, n * 2),
        .table_f32 = f32,
        .hidden = width,
        .table_stride = stride,
        .rows = BUCKET,
        .x = rig_alloc(rig, (size_t)BUCKET * (size_t)width * 4),
        .last_choices = rig_upload(rig, choices, sizeof choices),
        .row_tokens = rig_alloc(rig, sizeof row_tokens),
    };
    rig_must(rig, krn_cuda_embed(rig->how, &args), "embed");
    rig_read(rig, x, args.x, (size_t)BUCKET * (size_t)width * 4);
    rig_read(rig, row_tokens, args.row_tokens, sizeof row_tokens);
    bool ok = true;
    for (int r = 0; r < ROWS; r++)
        ok = ok && row_tokens[r] == expected_tokens[r] &&
             same_bits(x + r * width, table + expected_tokens[r] * stride, (size_t)width);
    rig_free(rig, (void *)args.pass);
    rig_free(rig, (void *)args.table);
    rig_free(rig, args.x);
    rig_free(rig, (void *)args.last_choices);
    rig_free(rig, args.row_tokens);
    free(table);
    free(halves);
    free(x);
    return ok;
}

// A pass behind one whose choice failed: its rows are never used, but they must not be read from outside the table.
static bool embed_failed_link(struct cuda_rig *rig)
{
    float table[32] = {1}, x[ROWS];
    int32_t row_tokens[ROWS];
    struct block block = {
        .header = {.n_rows = 1, .tokens = offsetof(struct block, tokens), .links = offsetof(struct block, links)}};
    struct krn_dev_choice failed = {.token = -1};
    struct krn_embed_args args = {
        .pass = rig_upload(rig, &block, sizeof block),
        .table = rig_upload(rig, table, sizeof table),
        .table_f32 = 1,
        .hidden = 1,
        .table_stride = 32,
        .rows = 1,
        .x = rig_alloc(rig, sizeof x),
        .last_choices = rig_upload(rig, &failed, sizeof failed),
        .row_tokens = rig_alloc(rig, sizeof row_tokens),
    };
    rig_must(rig, krn_cuda_embed(rig->how, &args), "embed");
    rig_read(rig, row_tokens, args.row_tokens, sizeof row_tokens);
    rig_free(rig, (void *)args.pass);
    rig_free(rig, (void *)args.table);
    rig_free(rig, args.x);
    rig_free(rig, (void *)args.last_choices);
    rig_free(rig, args.row_tokens);
    return row_tokens[0] == -1;
}

static void check_embed(struct cuda_rig *rig)
{
    struct random random = {.state = 31};
    bool ok = embed_failed_link(rig);
    for (int w = 0; w < N_WIDTHS; w++)
        ok = embed_case(rig, &random, widths[w], w % 2) && embed_case(rig, &random, widths[w], w % 2 == 0) && ok;
    rig_report(rig, ok, "embed: rows of the table, links resolved");
}

static void check_gather(struct cuda_rig *rig)
{
    struct random random = {.state = 32};
    bool ok = true;
    for (int w = 0; w < N_WIDTHS; w++) {
        int32_t width = widths[w];
        size_t n = (size_t)ROWS * (size_t)width;
        float *x = random_floats(&random, n), *y = floats(n);
        struct krn_gather_args args = {.pass = rows_pass(rig),
                                       .x = rig_upload(rig, x, n * 4),
                                       .y = rig_alloc(rig, n * 4),
                                       .first = 1,
                                       .rows = ROWS,
                                       .width = width};
        rig_must(rig, krn_cuda_gather(rig->how, &args), "gather");
        rig_read(rig, y, args.y, n * 4);
        for (int j = 0; j < 3; j++)
            ok = ok && same_bits(y + j * width, x + wanted_rows[1 + j] * width, (size_t)width);
        uint32_t untouched;
        memcpy(&untouched, y + 3 * width, sizeof untouched);
        ok = ok && untouched == 0xffffffffu;
        rig_free(rig, (void *)args.pass);
        rig_free(rig, (void *)args.x);
        rig_free(rig, args.y);
        free(x);
        free(y);
    }
    rig_report(rig, ok, "gather: the wanted rows of a chunk, no others");
}

// ---- norm -----------------------------------------------------------------------------------------------------------

struct norm_case {
    int32_t width, parts, extra;
    int64_t stride_more;
    bool weight_f32, with_add, with_norm;
};

struct norm_data {
    struct sums add;
    float *x, *weight;
    uint16_t *halves;
};

static struct norm_data norm_data_new(struct cuda_rig *rig, struct random *random, const struct norm_case *c)
{
    struct norm_data d = {.add = sums_random(rig, random, c->parts, c->width, c->extra, c->stride_more),
                          .x = random_floats(random, (size_t)BUCKET * (size_t)c->width),
                          .weight = random_floats(random, (size_t)c->width),
                          .halves = must(calloc((size_t)c->width, sizeof(uint16_t)))};
    for (int32_t i = 0; i < c->width; i++) {
        uint32_t bits;
        memcpy(&bits, &d.weight[i], sizeof bits);
        d.halves[i] = (uint16_t)(bits >> 16);
        if (!c->weight_f32)
            d.weight[i] = bf16_to_float(d.halves[i]);
    }
    return d;
}

static void norm_data_free(struct cuda_rig *rig, struct norm_data *d)
{
    sums_free(rig, &d->add);
    free(d->x);
    free(d->weight);
    free(d->halves);
}

// Runs the norm on the rows of d; x and y receive `rows` rows.
static void run_norm(struct cuda_rig *rig, const struct norm_case *c, const struct norm_data *d, int32_t rows, float *x,
                     uint16_t *y)
{
    size_t width = (size_t)c->width, x_bytes = (size_t)rows * width * 4;
    size_t y_bytes = (size_t)rows * (size_t)KRN_PAD(c->width) * 2;
    struct krn_norm_args args = {
        .pass = rows_pass(rig),
        .x = rig_upload(rig, d->x, x_bytes),
        .y = rig_alloc(rig, y_bytes),
        .weight = c->weight_f32 ? rig_upload(rig, d->weight, width * 4) : rig_upload(rig, d->halves, width * 2),
        .weight_f32 = c->weight_f32,
        .rows = rows,
        .width = c->width,
        .eps = 1e-5f,
    };
    uint16_t *device_y = args.y;
    if (c->with_add)
        args.add = d->add.device;
    if (!c->with_norm)
        args.y = NULL;
    rig_must(rig, krn_cuda_norm(rig->how, &args), "norm");
    rig_read(rig, x, args.x, x_bytes);
    rig_read(rig, y, device_y, y_bytes);
    rig_free(rig, (void *)args.pass);
    rig_free(rig, args.x);
    rig_free(rig, device_y);
    rig_free(rig, (void *)args.weight);
}

static bool norm_row_right(const struct norm_case *c, const struct norm_data *d, int32_t row, const float *x,
                           const uint16_t *y)
{
    bool ok = true;
    double squares = 0;
    for (int32_t i = 0; i < c->width; i++) {
        float expected = d->x[row * c->width + i];
        if (c->with_add)
            expected += sums_at(&d->add, row, i, true);
        ok = ok && same_bits(&x[i], &expected, 1);
        squares += (double)expected * (double)expected;
    }
    double inverse = 1 / sqrt(squares / c->width + 1e-5);
    for (int32_t i = 0; i < c->width && c->with_norm; i++) {
        double expected = (double)x[i] * inverse * (double)d->weight[i];
        ok = ok && near_bf16(y[i], expected, 1e-5 * fabs(expected) + 1e-38);
    }
    return ok;
}

static bool check_norm_case(struct cuda_rig *rig, struct random *random, const struct norm_case *c)
{
    struct norm_data d = norm_data_new(rig, random, c);
    int32_t padded = KRN_PAD(c->width);
    float *x = floats((size_t)BUCKET * (size_t)c->width);
    uint16_t *y = must(calloc((size_t)BUCKET * (size_t)padded, sizeof *y));
    run_norm(rig, c, &d, BUCKET, x, y);
    bool ok = !c->with_norm || padded_with_zeros(y, ROWS, c->width);
    for (int32_t r = 0; r < ROWS; r++)
        ok = norm_row_right(c, &d, r, x + r * c->width, y + r * padded) && ok;
    for (int32_t i = 0; i < ROWS * padded && !c->with_norm; i++)
        ok = ok && y[i] == 0xffff;
    if (!ok)
        printf("# norm: width %d, %d parts, extra %d, f32 %d, add %d, norm %d\n", c->width, c->parts, c->extra,
               c->weight_f32, c->with_add, c->with_norm);
    free(x);
    free(y);
    norm_data_free(rig, &d);
    return ok;
}

static void check_norm(struct cuda_rig *rig)
{
    struct random random = {.state = 33};
    bool ok = true;
    for (int w = 0; w < N_WIDTHS; w++)
        for (int kind = 0; kind < 6; kind++) {
            struct norm_case c = {.width = widths[w],
                                  .parts = 1 + (kind * 5 + w) % 8,
                                  .extra = kind % 2,
                                  .stride_more = kind % 3,
                                  .weight_f32 = (kind + w) % 2,
                                  .with_add = kind != 2,
                                  .with_norm = kind != 5};
            ok = check_norm_case(rig, &random, &c) && ok;
        }
    rig_report(rig, ok, "norm: residual, adapter rows, RMS norm, padding");

    struct krn_norm_args wide = {.rows = 1, .width = 16385};
    rig_report(rig, krn_cuda_norm(rig->how, &wide) == KRN_EINVAL, "norm: too wide a row is refused");
}

// Row 0 alone against row 0 of a bucket, and against the same values in the last row.
static void check_norm_alone(struct cuda_rig *rig)
{
    struct random random = {.state = 34};
    bool ok = true;
    for (int w = 0; w < N_WIDTHS; w++) {
        struct norm_case c = {.width = widths[w], .parts = 3, .with_add = true, .with_norm = true};
        struct norm_data d = norm_data_new(rig, &random, &c);
        size_t width = (size_t)c.width, padded = (size_t)KRN_PAD(c.width);
        memcpy(d.x + (ROWS - 1) * width, d.x, width * 4);
        for (int p = 0; p < 3; p++) {
            float *part = d.add.host + p * d.add.device.stride;
            memcpy(part + (ROWS - 1) * width, part, width * 4);
        }
        rig_write(rig, d.add.device.data, d.add.host, d.add.n * 4);
        float *x = floats(BUCKET * width), *alone_x = floats(width);
        uint16_t *y = must(calloc(BUCKET * padded, 2)), *alone_y = must(calloc(padded, 2));
        run_norm(rig, &c, &d, BUCKET, x, y);
        run_norm(rig, &c, &d, 1, alone_x, alone_y);
        ok = ok && same_bits(x, alone_x, width) && memcmp(y, alone_y, padded * 2) == 0 &&
             same_bits(x + (ROWS - 1) * width, alone_x, width) &&
             memcmp(y + (ROWS - 1) * padded, alone_y, padded * 2) == 0;
        free(x);
        free(y);
        free(alone_x);
        free(alone_y);
        norm_data_free(rig, &d);
    }
    rig_report(rig, ok, "norm: a row alone and among others: the same bits");
}

// ---- elementwise ----------------------------------------------------------------------------------------------------

static bool swiglu_case(struct cuda_rig *rig, struct random *random, int32_t width, int32_t parts)
{
    struct sums gate = sums_random(rig, random, parts, width, 0, parts % 3),
                up = sums_random(rig, random, 1, width, 0, 0);
    int32_t padded = KRN_PAD(width);
    size_t n = (size_t)BUCKET * (size_t)padded;
    uint16_t *y = must(calloc(n, 2));
    for (size_t i = 0; i < gate.n; i++)
        gate.host[i] *= i % 7 == 0 ? 200 : 4; // where e^-gate overflows too
    rig_write(rig, gate.device.data, gate.host, gate.n * 4);
    struct krn_swiglu_args args = {gate.device, up.device, rig_alloc(rig, n * 2), BUCKET, width};
    rig_must(rig, krn_cuda_swiglu(rig->how, &args), "swiglu");
    rig_read(rig, y, args.y, n * 2);
    bool ok = padded_with_zeros(y, BUCKET, width);
    for (int32_t r = 0; r < BUCKET; r++)
        for (int32_t i = 0; i < width; i++) {
            double g = (double)sums_at(&gate, r, i, false),
                   expected = g / (1 + exp(-g)) * (double)sums_at(&up, r, i, false);
            ok = ok && near_bf16(y[r * padded + i], expected, 1e-5 * fabs(expected) + 1e-36);
        }
    rig_free(rig, args.y);
    sums_free(rig, &gate);
    sums_free(rig, &up);
    free(y);
    return ok;
}

static bool round_case(struct cuda_rig *rig, struct random *random, int32_t width, int32_t parts)
{
    struct sums x = sums_random(rig, random, parts, width, 0, parts % 3);
    int32_t padded = KRN_PAD(width);
    size_t n = (size_t)BUCKET * (size_t)padded;
    uint16_t *y = must(calloc(n, 2));
    struct krn_round_args args = {x.device, rig_alloc(rig, n * 2), BUCKET, width};
    rig_must(rig, krn_cuda_round(rig->how, &args), "round");
    rig_read(rig, y, args.y, n * 2);
    bool ok = padded_with_zeros(y, BUCKET, width);
    for (int32_t r = 0; r < BUCKET; r++)
        for (int32_t i = 0; i < width; i++)
            ok = ok && near_bf16(y[r * padded + i], (double)sums_at(&x, r, i, false), 0);
    rig_free(rig, args.y);
    sums_free(rig, &x);
    free(y);
    return ok;
}

static bool flatten_case(struct cuda_rig *rig, struct random *random, int32_t width, int32_t parts)
{
    struct sums x = sums_random(rig, random, parts, width, parts % 2, parts % 3);
    size_t n = (size_t)BUCKET * (size_t)width;
    float *y = floats(n);
    struct krn_flatten_args args = {rows_pass(rig), x.device, BUCKET};
    rig_must(rig, krn_cuda_flatten(rig->how, &args), "flatten");
    rig_read(rig, y, x.device.data, n * 4);
    bool ok = true;
    for (int32_t r = 0; r < ROWS; r++)
        for (int32_t i = 0; i < width; i++) {
            float expected = sums_at(&x, r, i, true);
            ok = ok && same_bits(&y[r * width + i], &expected, 1);
        }
    rig_free(rig, (void *)args.pass);
    sums_free(rig, &x);
    free(y);
    return ok;
}

static void check_elementwise(struct cuda_rig *rig)
{
    struct random random = {.state = 35};
    bool swiglu = true, rounded = true, flat = true;
    for (int w = 0; w < N_WIDTHS; w++)
        for (int32_t parts = 1; parts <= 8; parts += 1 + w % 3) {
            swiglu = swiglu_case(rig, &random, widths[w], parts) && swiglu;
            rounded = round_case(rig, &random, widths[w], parts) && rounded;
            flat = flatten_case(rig, &random, widths[w], parts) && flat;
        }
    rig_report(rig, swiglu, "swiglu: silu of one sum times the other, padding");
    rig_report(rig, rounded, "round: sums as bf16, padding");
    rig_report(rig, flat, "flatten: sums in place, adapter rows");
}

void check_rows(struct cuda_rig *rig)
{
    check_embed(rig);
    check_gather(rig);
    check_norm(rig);
    check_norm_alone(rig);
    check_elementwise(rig);
}
