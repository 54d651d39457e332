// kernels/cuda/rope.cu against the CPU's reference: what is left of q, and keys and values where the reference puts
// them, in bf16 and in fp8; nothing else of the store is touched, whatever the bucket; and a row's bits alone.
//
// Bounds. cos and sin are computed in double on both sides and may differ by one rounding of f32 (2^-23 of 1), sums of
// two products by a few more: 2^-21 (|a| + |b|) for elements a, b of a pair, times the scale. Then bf16 rounds by 2^-8
// relative; fp8 by a 16th (3 bits of mantissa) of the element or, below 2^-6, by half of 2^-9 of the vector's scale.
#include "cuda_rig.h"
#include "quant.h"

#include <math.h>
#include <stdio.h>

enum { LAYER = 1, N_LAYERS = 2, ROWS = 9, BUCKET = 16, PARTS_MAX = 4, N_PAGES = 90 };

struct shape {
    int32_t head_dim, n_heads, n_kv_heads, page_size;
    int32_t parts; // of every sum
    bool extra, fp8;
};

// Two segments; positions as large as contexts get.
static const int32_t first_pos[2] = {0, 43}, seg_rows[2] = {4, ROWS - 4};

// ---- what goes in ---------------------------------------------------------------------------------------------------

// A product's parts on the device and, for the reference, their sum in the order of the kernel.
struct matrix {
    struct krn_dev_sums dev;
    float *sum; // [ROWS][width]
};

static struct matrix matrix_open(struct cuda_rig *rig, const struct shape *shape, struct random *random, int32_t width)
{
    size_t n = (size_t)BUCKET * (size_t)width, parts = (size_t)shape->parts + (shape->extra ? 1 : 0);
    float *data = floats(parts * n);
    struct matrix m = {.sum = floats(n)};
    fill_random(random, data, parts * n);
    for (size_t i = 0; i < (size_t)ROWS * (size_t)width; i++)
        for (size_t p = 0; p < parts; p++)
            // The adapter's addition counts on odd rows alone; the rest of it is poison.
            if (p < (size_t)shape->parts || i / (size_t)width % 2 == 1)
                m.sum[i] = p == 0 ? data[i] : m.sum[i] + data[p * n + i];
            else
                data[p * n + i] = NAN;
    m.dev = (struct krn_dev_sums){.data = rig_upload(rig, data, parts * n * sizeof *data),
                                  .stride = (int64_t)n,
                                  .n = shape->parts,
                                  .width = width,
                                  .extra = shape->extra};
    free(data);
    return m;
}

static void matrix_close(struct cuda_rig *rig, struct matrix *m)
{
    rig_free(rig, m->dev.data);
    free(m->sum);
}

// The pass block with the adapter on for odd rows.
static struct krn_dev_pass *pass_open(struct cuda_rig *rig, const struct shape *shape,
                                      const struct krn_segment *segments, int32_t n)
{
    struct krn_dev_pass *pass = rig_pass(rig, segments, n, shape->page_size, shape->n_heads / shape->n_kv_heads,
                                         shape->n_kv_heads),
                        header;
    uint8_t on[ROWS];
    rig_read(rig, &header, pass, sizeof header);
    for (int r = 0; r < ROWS; r++)
        on[r] = (uint8_t)(r % 2);
    rig_write(rig, (char *)pass + header.adapter_rows, on, (size_t)header.n_rows);
    return pass;
}

// ---- what comes out -------------------------------------------------------------------------------------------------

// The device's store, copied back, and q.
struct result {
    uint16_t *q; // [BUCKET][n_heads][padded]
    uint8_t *k, *v;
    float *k_scales, *v_scales;
    size_t vectors, q_size;
};

static size_t padded(const struct shape *shape)
{
    return (size_t)KRN_KV_DIM(shape->head_dim);
}

static void *fetch(struct cuda_rig *rig, void *device, size_t bytes)
{
    void *host = must(malloc(bytes));
    rig_read(rig, host, device, bytes);
    rig_free(rig, device);
    return host;
}

static struct result run(struct cuda_rig *rig, const struct shape *shape, const struct krn_rope *rope,
                         const struct matrix x[3], const struct krn_segment *segments, int32_t n, int32_t first_row)
{
    struct krn_dev_pass *pass = pass_open(rig, shape, segments, n);
    struct result result = {0};
    size_t half = (size_t)shape->head_dim / 2;
    result.vectors = (size_t)(N_LAYERS * N_PAGES) * (size_t)shape->n_kv_heads * (size_t)shape->page_size;
    result.q_size = (size_t)BUCKET * (size_t)shape->n_heads * padded(shape);
    size_t store = result.vectors * padded(shape) * (shape->fp8 ? 1 : 2);
    float *inv_freq = rig_upload(rig, rope->inv_freq, half * sizeof(float));
    struct krn_rope_table_args table = {
        .pass = pass,
        .inv_freq = inv_freq,
        .attention_factor = rope->attention_factor,
        .query_beta = rope->query_beta,
        .query_original_max = rope->query_original_max,
        .head_dim = shape->head_dim,
        .rows = BUCKET,
        .table = rig_alloc(rig, (size_t)BUCKET * 2 * half * sizeof(float)),
        .q_scale = rig_alloc(rig, (size_t)BUCKET * sizeof(float)),
    };
    struct krn_rope_write_args write = {
        .pass = pass,
        .q = x[0].dev,
        .k = x[1].dev,
        .v = x[2].dev,
        .q_out = rig_alloc(rig, result.q_size * sizeof(uint16_t)),
        .table = table.table,
        .q_scale = table.q_scale,
        .kv = {.k = rig_alloc(rig, store),
               .v = rig_alloc(rig, store),
               .k_scales = rig_alloc(rig, result.vectors * sizeof(float)),
               .v_scales = rig_alloc(rig, result.vectors * sizeof(float)),
               .fp8 = shape->fp8,
               .n_pages = N_PAGES,
               .page_size = shape->page_size,
               .n_kv_heads = shape->n_kv_heads,
               .head_dim = shape->head_dim},
        .layer = LAYER,
        .n_heads = shape->n_heads,
        .rows = BUCKET,
    };
    write.q.data += (size_t)first_row * (size_t)write.q.width;
    write.k.data += (size_t)first_row * (size_t)write.k.width;
    write.v.data += (size_t)first_row * (size_t)write.v.width;
    write.rows = table.rows = first_row ? 1 : BUCKET; // a bucket of the row alone must not read past the matrices
    rig_must(rig, krn_cuda_rope_table(rig->how, &table), "rope_table");
    rig_must(rig, krn_cuda_rope_write(rig->how, &write), "rope_write");
    result.q = fetch(rig, write.q_out, result.q_size * sizeof(uint16_t));
    result.k = fetch(rig, write.kv.k, store);
    result.v = fetch(rig, write.kv.v, store);
    result.k_scales = fetch(rig, write.kv.k_scales, result.vectors * sizeof(float));
    result.v_scales = fetch(rig, write.kv.v_scales, result.vectors * sizeof(float));
    rig_free(rig, table.table);
    rig_free(rig, table.q_scale);
    rig_free(rig, inv_freq);
    rig_free(rig, pass);
    return result;
}

static void result_free(struct result *r)
{
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->k_scales);
    free(r->v_scales);
}

// ---- the checks -----------------------------------------------------------------------------------------------------

static size_t vector_of(const struct shape *shape, const struct krn_segment *segment, int32_t row, int32_t head)
{
    int32_t position = segment->first_pos + row;
    size_t page = (size_t)LAYER * N_PAGES + (size_t)segment->pages[position / shape->page_size];
    return (page * (size_t)shape->n_kv_heads + (size_t)head) * (size_t)shape->page_size +
           (size_t)(position % shape->page_size);
}

// |got - expected| for an element that was rounded from f32 error `slack`. step: of fp8, else 0.
static bool near(float got, float expected, double slack, double step)
{
    double size = fabs((double)expected) + slack;
    double rounding = step > 0 ? fmax(size / 16, step / 2) : ldexp(size, -8);
    return fabs((double)got - (double)expected) <= slack + rounding;
}

// A vector of q, bf16.
static bool near_q(const struct shape *shape, const uint16_t *got, const float *expected, const float *before,
                   double scale)
{
    bool ok = true;
    int32_t half = shape->head_dim / 2;
    for (int32_t d = 0; d < shape->head_dim; d++) {
        double pair = fabs((double)before[d % half]) + fabs((double)before[d % half + half]);
        ok = ok && near(krn_bf16_value(got[d]), (float)((double)expected[d] * scale), ldexp(pair * 4 * scale, -21), 0);
    }
    for (size_t d = (size_t)shape->head_dim; d < padded(shape); d++)
        ok = ok && got[d] == 0;
    return ok;
}

// A vector of the store. before: as the product left it.
static bool near_kv(const struct shape *shape, const uint8_t *store, const float *scales, size_t vector,
                    const float *expected, const float *before)
{
    bool ok = true;
    int32_t half = shape->head_dim / 2;
    for (size_t d = 0; d < padded(shape); d++) {
        size_t at = vector * padded(shape) + d;
        uint16_t bits;
        memcpy(&bits, store + 2 * at * !shape->fp8, sizeof bits);
        float got = shape->fp8 ? krn_e4m3_value(store[at]) * scales[vector] : krn_bf16_value(bits);
        if (d >= (size_t)shape->head_dim) {
            ok = ok && got == 0;
            continue;
        }
        double pair = fabs((double)before[d % (size_t)half]) + fabs((double)before[d % (size_t)half + (size_t)half]);
        double step = shape->fp8 ? ldexp((double)scales[vector], -9) : 0;
        ok = ok && near(got, expected[d], ldexp(pair * 2, -21), step);
    }
    return ok;
}

static bool untouched(const struct shape *shape, const struct result *r, const bool *written)
{
    size_t bytes = padded(shape) * (shape->fp8 ? 1 : 2);
    bool ok = true;
    for (size_t i = 0; i < r->vectors; i++) {
        for (size_t b = 0; b < bytes && !written[i]; b++)
            ok = ok && r->k[i * bytes + b] == 0xff && r->v[i * bytes + b] == 0xff;
        for (size_t b = 0; b < sizeof(float) && !(written[i] && shape->fp8); b++)
            ok = ok && ((uint8_t *)&r->k_scales[i])[b] == 0xff && ((uint8_t *)&r->v_scales[i])[b] == 0xff;
    }
    return ok;
}

static void say(struct cuda_rig *rig, const struct shape *shape, bool ok, const char *what)
{
    char line[160];
    snprintf(line, sizeof line, "rope: head_dim %d, %d + %d heads, pages of %d, %d parts, %s: %s", shape->head_dim,
             shape->n_heads, shape->n_kv_heads, shape->page_size, shape->parts, shape->fp8 ? "fp8" : "bf16", what);
    rig_report(rig, ok, line);
}

static void against_reference(struct cuda_rig *rig, const struct shape *shape, const struct krn_rope *rope,
                              const struct matrix x[3], const struct krn_segment *segments, const struct result *r)
{
    size_t dim = (size_t)shape->head_dim, nq = (size_t)ROWS * (size_t)shape->n_heads * dim,
           nk = (size_t)ROWS * (size_t)shape->n_kv_heads * dim;
    float *q = floats(nq), *k = floats(nk);
    memcpy(q, x[0].sum, nq * sizeof *q);
    memcpy(k, x[1].sum, nk * sizeof *k);
    struct store store = {.kv = {.type = KRN_F32,
                                 .n_layers = N_LAYERS,
                                 .n_pages = N_PAGES,
                                 .page_size = shape->page_size,
                                 .n_kv_heads = shape->n_kv_heads,
                                 .head_dim = shape->head_dim}};
    store.kv.k = floats(r->vectors * dim);
    store.kv.v = floats(r->vectors * dim);
    struct krn_backend *cpu = open_cpu(1, 0);
    if (cpu->rope_write(cpu->ctx, q, k, x[2].sum, shape->n_heads, rope, &store.kv, LAYER, segments, 2) != 0)
        abort();
    bool *written = must(calloc(r->vectors, sizeof *written)), q_ok = true, kv_ok = true;
    double scale = 1.4426950408889634 / sqrt((double)shape->head_dim);
    for (int s = 0; s < 2; s++)
        for (int32_t i = 0; i < segments[s].rows; i++) {
            size_t row = (size_t)(segments[s].row + i);
            for (size_t h = 0; h < (size_t)shape->n_heads; h++) {
                size_t at = row * (size_t)shape->n_heads + h;
                q_ok = q_ok && near_q(shape, r->q + at * padded(shape), q + at * dim, x[0].sum + at * dim, scale);
            }
            for (int32_t h = 0; h < shape->n_kv_heads; h++) {
                size_t at = (row * (size_t)shape->n_kv_heads + (size_t)h) * dim;
                size_t vector = vector_of(shape, &segments[s], i, h);
                const float *kept_k = (float *)store.kv.k + vector * dim, *kept_v = (float *)store.kv.v + vector * dim;
                written[vector] = true;
                kv_ok = kv_ok && near_kv(shape, r->k, r->k_scales, vector, kept_k, x[1].sum + at) &&
                        near_kv(shape, r->v, r->v_scales, vector, kept_v, x[2].sum + at);
            }
        }
    say(rig, shape, q_ok, "queries near the reference");
    say(rig, shape, kv_ok, "keys and values near the reference");
    say(rig, shape, untouched(shape, r, written), "the rest of the store is untouched");
    cpu->close(cpu->ctx);
    free(store.kv.k);
    free(store.kv.v);
    free(written);
    free(q);
    free(k);
}

// Every row in a pass of its own: q's bits, and the store's where the row went.
static bool same_alone(struct cuda_rig *rig, const struct shape *shape, const struct krn_rope *rope,
                       const struct matrix x[3], const struct krn_segment *segments, const struct result *r)
{
    size_t q_bytes = (size_t)shape->n_heads * padded(shape) * sizeof(uint16_t);
    size_t bytes = padded(shape) * (shape->fp8 ? 1 : 2);
    bool same = true;
    // Rows without the adapter's addition: a row alone is row 0 of its pass.
    for (int32_t i = 0; i < segments[1].rows; i += 2) {
        int32_t row = segments[1].row + i;
        struct krn_segment one = segments[1];
        one.first_pos += i;
        one.rows = 1;
        one.row = 0;
        struct result alone = run(rig, shape, rope, x, &one, 1, row);
        same = same && memcmp(alone.q, (const char *)r->q + (size_t)row * q_bytes, q_bytes) == 0;
        for (int32_t h = 0; h < shape->n_kv_heads; h++) {
            size_t vector = vector_of(shape, &segments[1], i, h);
            same = same && memcmp(alone.k + vector * bytes, r->k + vector * bytes, bytes) == 0 &&
                   memcmp(alone.v + vector * bytes, r->v + vector * bytes, bytes) == 0;
            same = same && (!shape->fp8 || (alone.k_scales[vector] == r->k_scales[vector] &&
                                            alone.v_scales[vector] == r->v_scales[vector]));
        }
        result_free(&alone);
    }
    return same;
}

static void check_shape(struct cuda_rig *rig, const struct shape *shape)
{
    struct random random = {.state = (uint64_t)shape->head_dim};
    float inv_freq[KRN_KV_DIM(128) / 2];
    for (int32_t i = 0; i < shape->head_dim / 2; i++)
        inv_freq[i] = powf(10000, -2 * (float)i / (float)shape->head_dim);
    struct krn_rope rope = {.inv_freq = inv_freq,
                            .head_dim = shape->head_dim,
                            .attention_factor = 1.1f,
                            .query_beta = 0.3f,
                            .query_original_max = 20};
    int32_t pages[2][N_PAGES];
    for (int32_t i = 0; i < N_PAGES; i++) {
        pages[0][i] = N_PAGES - 1 - i; // the two sequences share no page that is used
        pages[1][i] = i * 7 % 53;
    }
    struct krn_segment segments[2];
    for (int s = 0, row = 0; s < 2; row += seg_rows[s], s++)
        segments[s] =
            (struct krn_segment){.row = row, .rows = seg_rows[s], .first_pos = first_pos[s], .pages = pages[s]};
    struct matrix x[3] = {
        matrix_open(rig, shape, &random, shape->n_heads * shape->head_dim),
        matrix_open(rig, shape, &random, shape->n_kv_heads * shape->head_dim),
        matrix_open(rig, shape, &random, shape->n_kv_heads * shape->head_dim),
    };
    struct result r = run(rig, shape, &rope, x, segments, 2, 0);
    against_reference(rig, shape, &rope, x, segments, &r);
    say(rig, shape, same_alone(rig, shape, &rope, x, segments, &r), "same bits alone");
    result_free(&r);
    for (int i = 0; i < 3; i++)
        matrix_close(rig, &x[i]);
}

// A vector of zeros has a scale that is fit to divide by, one that is not finite shows as NaN.
static void check_scales(struct cuda_rig *rig)
{
    struct shape shape = {.head_dim = 32, .n_heads = 1, .n_kv_heads = 1, .page_size = 4, .parts = 1, .fp8 = true};
    struct random random = {.state = 1};
    float inv_freq[16] = {0};
    int32_t pages[N_PAGES] = {0};
    struct krn_rope rope = {.inv_freq = inv_freq, .head_dim = 32, .attention_factor = 1};
    struct krn_segment segment = {.rows = 3, .pages = pages};
    struct matrix x[3];
    for (int i = 0; i < 3; i++)
        x[i] = matrix_open(rig, &shape, &random, 32);
    float v[3][32] = {{0}, {0}, {1, 2, 448}};
    v[1][5] = INFINITY;
    rig_write(rig, x[2].dev.data, v, sizeof v);
    struct result r = run(rig, &shape, &rope, x, &segment, 1, 0);
    size_t first = (size_t)LAYER * N_PAGES * 4;
    say(rig, &shape, r.v_scales[first] > 0 && r.v[first * 32] == 0, "a vector of zeros");
    say(rig, &shape, isnan(r.v_scales[first + 1]), "a vector that is not finite");
    say(rig, &shape, r.v_scales[first + 2] == 1 && krn_e4m3_value(r.v[(first + 2) * 32 + 1]) == 2, "exact values");
    result_free(&r);
    for (int i = 0; i < 3; i++)
        matrix_close(rig, &x[i]);
}

void check_rope(struct cuda_rig *rig)
{
    static const struct shape shapes[] = {
        {24, 4, 2, 1, 1, false, false},  {32, 3, 1, 16, 2, true, false}, {64, 4, 2, 3, 4, false, false},
        {128, 4, 1, 16, 3, true, false}, {66, 2, 2, 5, 1, false, false}, {24, 2, 1, 3, 2, true, true},
        {64, 3, 1, 16, 1, false, true},  {128, 2, 2, 64, 4, true, true}, {22, 1, 1, 1, 1, true, true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_shape(rig, &shapes[i]);
    check_scales(rig);
}
