// kernels/cuda/attention.cu against the CPU's reference, and a row's bits against the same row computed otherwise:
// alone, in another division of the prompt, with other page sizes, its chunks folded by the item or from slots, its
// queries wide or deep.
//
// The bound. Keys and values are what the device has (bf16, or e4m3 times a scale), queries are bf16, so the reference
// sees the same numbers. With w the softmax weights and M = sum of w |v| (the reference run on |v|):
//   * a weight is rounded to bf16 for the second product, relative error at most 2^-8:         2^-8 M
//   * y is rounded to bf16:                                                                    2^-8 |y|
//   * a score is a sum of head_dim products in f32, at most head_dim 2^-24 sum |q k| wrong, and 2^x turns that into a
//     relative error of ln 2 times as much, in the weight and in the sum of weights:
//                                                                2 ln 2 head_dim^2 2^-24 max |q| max |k| M
//   * exp2, the sums over positions and the folds, a few ulp each:                             2^-16 M
// The worst elements use 0.5 to 0.9 of it.
#include "cuda_rig.h"
#include "quant.h"

#include <math.h>
#include <stdio.h>

enum {
    N_SEQUENCES = 7,
    POSITIONS_MAX = 2200, // more chunks than are folded at once
    LAYER = 1,
    N_LAYERS = 2,
    SLOTS = 2048, // of partial results
};

struct shape {
    int32_t head_dim, group, n_kv_heads, page_size;
    bool fp8;
};

// Keys and values of some sequences on both sides. What was not written is NaN. A value depends on its sequence,
// position, head and dimension alone, so that worlds of other page sizes hold the same.
struct world {
    struct shape shape;
    struct krn_kv kv, magnitudes; // of the CPU; magnitudes has |v|
    int32_t pages[N_SEQUENCES][POSITIONS_MAX];
    struct krn_dev_kv dev;
};

static const int32_t lengths[N_SEQUENCES] = {1, 5, 64, 65, 130, 300, POSITIONS_MAX};

// ---- the world ------------------------------------------------------------------------------------------------------

static void hand_out_pages(struct world *w, struct random *random)
{
    int32_t n = 0;
    int32_t all[N_SEQUENCES * POSITIONS_MAX + 1];
    for (int s = 0; s < N_SEQUENCES; s++)
        n += (lengths[s] + w->shape.page_size - 1) / w->shape.page_size;
    w->kv.n_pages = n + 1;
    for (int32_t i = 0; i < n; i++)
        all[i] = i + 1; // page 0 is nobody's
    for (int s = 0; s < N_SEQUENCES; s++)
        for (int32_t i = 0; i < (lengths[s] + w->shape.page_size - 1) / w->shape.page_size; i++) {
            int32_t chosen = random_below(random, n);
            w->pages[s][i] = all[chosen];
            all[chosen] = all[--n];
        }
}

static size_t vector_of(const struct world *w, int s, int32_t head, int32_t position)
{
    const struct krn_kv *kv = &w->kv;
    size_t page = (size_t)LAYER * (size_t)kv->n_pages + (size_t)w->pages[s][position / kv->page_size];
    return (page * (size_t)kv->n_kv_heads + (size_t)head) * (size_t)kv->page_size + (size_t)(position % kv->page_size);
}

// One random vector as the device stores it (host memory of the store: `bytes` and `scales`) and its values.
static void put_vector(const struct shape *shape, struct random *random, uint8_t *bytes, float *scales, size_t vector,
                       float *ret_values)
{
    size_t dim = (size_t)KRN_KV_DIM(shape->head_dim), at = vector * dim, n = (size_t)shape->head_dim;
    float largest = 0;
    fill_random(random, ret_values, n);
    for (size_t d = 0; d < n; d++)
        largest = fmaxf(largest, fabsf(ret_values[d]));
    float scale = scales[vector] = krn_fp8_scale(largest);
    memset(shape->fp8 ? bytes + at : bytes + 2 * at, 0, shape->fp8 ? dim : 2 * dim);
    for (size_t d = 0; d < n; d++) {
        if (shape->fp8) {
            bytes[at + d] = krn_fp8_code(ret_values[d], scale);
            ret_values[d] = krn_e4m3_value(bytes[at + d]) * scale;
        } else {
            uint16_t half = krn_bf16_round(ret_values[d]);
            memcpy(bytes + 2 * (at + d), &half, sizeof half);
            ret_values[d] = krn_bf16_value(half);
        }
    }
}

static void fill_store(struct cuda_rig *rig, struct world *w, bool values)
{
    const struct krn_kv *kv = &w->kv;
    size_t vectors = (size_t)N_LAYERS * (size_t)kv->n_pages * (size_t)kv->n_kv_heads * (size_t)kv->page_size,
           dim = (size_t)kv->head_dim;
    size_t size = vectors * (size_t)KRN_KV_DIM(kv->head_dim) * (w->shape.fp8 ? 1 : 2);
    uint8_t *bytes = must(malloc(size));
    float *scales = floats(vectors), *all = values ? kv->v : kv->k;
    memset(bytes, 0xff, size);
    memset(scales, 0xff, vectors * sizeof *scales);
    for (int s = 0; s < N_SEQUENCES; s++)
        for (int32_t p = 0; p < lengths[s]; p++)
            for (int32_t h = 0; h < kv->n_kv_heads; h++) {
                struct random random = {.state = (uint64_t)((s * 1000 + p) * 16 + h) * 2 + values};
                size_t vector = vector_of(w, s, h, p);
                put_vector(&w->shape, &random, bytes, scales, vector, all + vector * dim);
                for (size_t d = 0; values && d < dim; d++)
                    ((float *)w->magnitudes.v)[vector * dim + d] = fabsf(all[vector * dim + d]);
            }
    void *device = rig_upload(rig, bytes, size);
    float *device_scales = w->shape.fp8 ? rig_upload(rig, scales, vectors * sizeof *scales) : NULL;
    *(values ? &w->dev.v : &w->dev.k) = device;
    *(values ? &w->dev.v_scales : &w->dev.k_scales) = device_scales;
    free(bytes);
    free(scales);
}

static void world_open(struct cuda_rig *rig, struct world *w, const struct shape *shape)
{
    struct random random = {.state = (uint64_t)shape->page_size};
    *w = (struct world){.shape = *shape};
    w->kv = (struct krn_kv){.type = KRN_F32,
                            .n_layers = N_LAYERS,
                            .page_size = shape->page_size,
                            .n_kv_heads = shape->n_kv_heads,
                            .head_dim = shape->head_dim};
    hand_out_pages(w, &random);
    size_t n = (size_t)N_LAYERS * (size_t)w->kv.n_pages * (size_t)w->kv.page_size * (size_t)w->kv.n_kv_heads *
               (size_t)w->kv.head_dim;
    w->kv.k = floats(n);
    w->kv.v = floats(n);
    w->magnitudes = w->kv;
    w->magnitudes.v = floats(n);
    w->dev = (struct krn_dev_kv){.fp8 = shape->fp8,
                                 .n_pages = w->kv.n_pages,
                                 .page_size = shape->page_size,
                                 .n_kv_heads = shape->n_kv_heads,
                                 .head_dim = shape->head_dim};
    fill_store(rig, w, false);
    fill_store(rig, w, true);
}

static void world_close(struct cuda_rig *rig, struct world *w)
{
    void *device[] = {w->dev.k, w->dev.v, w->dev.k_scales, w->dev.v_scales};
    for (int i = 0; i < (w->shape.fp8 ? 4 : 2); i++)
        rig_free(rig, device[i]);
    free(w->kv.k);
    free(w->kv.v);
    free(w->magnitudes.v);
}

// ---- queries and answers --------------------------------------------------------------------------------------------

// Queries [rows][n_heads] as bf16 of the padded dimension, on both sides.
struct queries {
    int32_t rows;
    uint16_t *host, *device;
};

static int32_t heads_of(const struct shape *shape)
{
    return shape->group * shape->n_kv_heads;
}

static struct queries queries_open(struct cuda_rig *rig, const struct shape *shape, int32_t rows)
{
    struct random random = {.state = 77};
    size_t dim = (size_t)KRN_KV_DIM(shape->head_dim), n = (size_t)rows * (size_t)heads_of(shape) * dim;
    struct queries q = {.rows = rows, .host = must(calloc(n, sizeof(uint16_t)))};
    // Large enough that weights differ by factors of hundreds.
    float size = 8.0f / sqrtf((float)shape->head_dim);
    for (size_t i = 0; i < n; i++)
        q.host[i] = i % dim < (size_t)shape->head_dim ? krn_bf16_round(size * random_float(&random)) : 0;
    q.device = rig_upload(rig, q.host, n * sizeof(uint16_t));
    return q;
}

static void queries_close(struct cuda_rig *rig, struct queries *q)
{
    rig_free(rig, q->device);
    free(q->host);
}

// How a pass is run. page numbers, rows and first positions come from segments.
struct way {
    enum krn_attention_cut cut;
    bool other_depth; // deep items become wide, wide items become deep ones
    int32_t multiprocessors, blocks;
};
static const struct way plain = {.multiprocessors = 2, .blocks = 3};

// The same pass with every item the other way: items of several tiles become one each. Takes the old block away.
static struct krn_dev_pass *change_depth(struct cuda_rig *rig, struct krn_dev_pass *pass)
{
    struct krn_dev_pass header;
    rig_read(rig, &header, pass, sizeof header);
    size_t size = sizeof(struct krn_dev_attention_item), n = 0;
    size_t bytes = header.bytes + KRN_ATTENTION_WARPS * size * (size_t)header.n_items;
    char *block = must(calloc(1, bytes));
    rig_read(rig, block, pass, header.bytes);
    rig_free(rig, pass);
    const struct krn_dev_attention_item *items = (const struct krn_dev_attention_item *)(block + header.items);
    struct krn_dev_attention_item *changed = (struct krn_dev_attention_item *)(block + header.bytes);
    for (int32_t i = 0; i < header.n_items; i++)
        for (int32_t tile = 0; tile < items[i].n_tiles; tile++) {
            changed[n] = items[i];
            changed[n].tile += tile;
            changed[n].n_tiles = 1;
            changed[n++].deep = !items[i].deep && items[i].n_chunks > 0;
        }
    header.items = header.bytes;
    header.bytes = (uint32_t)bytes;
    header.n_items = (int32_t)n;
    memcpy(block, &header, sizeof header);
    pass = rig_upload(rig, block, bytes);
    free(block);
    return pass;
}

static size_t y_stride(const struct shape *shape)
{
    return (size_t)KRN_PAD(heads_of(shape) * shape->head_dim);
}

// y of the segments, whose first row is row `first` of q; the answer has rows from there on. Freed with free.
static uint16_t *attend(struct cuda_rig *rig, const struct world *w, const struct queries *q,
                        const struct krn_segment *segments, int32_t n_segments, int32_t first, struct way way)
{
    const struct shape *shape = &w->shape;
    struct krn_attention_setup setup = {.n_kv_heads = shape->n_kv_heads,
                                        .group = shape->group,
                                        .slots = SLOTS,
                                        .multiprocessors = way.multiprocessors,
                                        .cut = way.cut};
    struct krn_dev_pass *pass = rig_pass_with(rig, &setup, segments, n_segments, shape->page_size);
    if (way.other_depth)
        pass = change_depth(rig, pass);
    int32_t rows = 0;
    for (int32_t s = 0; s < n_segments; s++)
        rows += segments[s].rows;
    size_t bytes = (size_t)rows * y_stride(shape) * sizeof(uint16_t);
    uint16_t *y = must(malloc(bytes));
    struct krn_attention_args args = {
        .pass = pass,
        .q = q->device + (size_t)first * (size_t)heads_of(shape) * (size_t)KRN_KV_DIM(shape->head_dim),
        .y = rig_alloc(rig, bytes),
        .kv = w->dev,
        .layer = LAYER,
        .n_heads = heads_of(shape),
        .rows = rows + 3, // the bucket
        .blocks = way.blocks,
        .sums = rig_alloc(rig, (size_t)SLOTS * (size_t)krn_cuda_attention_slot(shape->head_dim) * sizeof(float)),
    };
    rig_must(rig, krn_cuda_attention(rig->how, &args), "attention");
    rig_read(rig, y, args.y, bytes);
    rig_free(rig, args.y);
    rig_free(rig, args.sums);
    rig_free(rig, pass);
    return y;
}

// ---- the checks -----------------------------------------------------------------------------------------------------

static struct krn_segment segment_of(const struct world *w, int sequence, int32_t rows, enum krn_mask mask)
{
    return (struct krn_segment){
        .rows = rows, .first_pos = lengths[sequence] - rows, .mask = mask, .pages = w->pages[sequence]};
}

static int32_t place_rows(struct krn_segment *segments, int32_t n)
{
    int32_t rows = 0;
    for (int32_t s = 0; s < n; s++) {
        segments[s].row = rows;
        rows += segments[s].rows;
    }
    return rows;
}

static void say(struct cuda_rig *rig, const struct world *w, bool ok, const char *what)
{
    char line[160];
    snprintf(line, sizeof line, "attention: head_dim %d, group %d, pages of %d, %s: %s", w->shape.head_dim,
             w->shape.group, w->shape.page_size, w->shape.fp8 ? "fp8" : "bf16", what);
    rig_report(rig, ok, line);
}

// The largest share of the bound that was used, in any element; infinite where y is not a number.
static double worst_of(const struct world *w, const struct queries *q, const struct krn_segment *segments, int32_t n,
                       const uint16_t *y)
{
    const struct shape *shape = &w->shape;
    int32_t heads = heads_of(shape), dim = shape->head_dim;
    size_t vectors = (size_t)q->rows * (size_t)heads, size = vectors * (size_t)dim;
    float *queries = floats(size), *expected = floats(size), *magnitude = floats(size);
    double q_max = 0, worst = 0;
    for (size_t i = 0; i < size; i++) {
        float value = krn_bf16_value(q->host[i / (size_t)dim * (size_t)KRN_KV_DIM(dim) + i % (size_t)dim]);
        queries[i] = (float)((double)value * 0.69314718055994531 * sqrt(dim));
        q_max = fmax(q_max, fabs((double)value));
    }
    struct krn_backend *cpu = open_cpu(1, 0);
    if (cpu->attention(cpu->ctx, expected, queries, heads, &w->kv, LAYER, segments, n) != 0 ||
        cpu->attention(cpu->ctx, magnitude, queries, heads, &w->magnitudes, LAYER, segments, n) != 0)
        abort();
    double weight = ldexp(1, -8) + ldexp(1, -16) + 2 * 0.7 * dim * dim * ldexp(1, -24) * q_max;
    for (size_t i = 0; i < size; i++) {
        size_t row = i / ((size_t)heads * (size_t)dim), column = i % ((size_t)heads * (size_t)dim);
        double got = (double)krn_bf16_value(y[row * y_stride(shape) + column]);
        double used = fabs(got - (double)expected[i]) /
                      (weight * (double)magnitude[i] + ldexp(fabs((double)expected[i]), -8) + 1e-30);
        worst = used <= worst ? worst : used >= 0 ? used : (double)INFINITY;
    }
    cpu->close(cpu->ctx);
    free(queries);
    free(expected);
    free(magnitude);
    return worst;
}

// Row `row` of y by itself: one query row that sees what it saw there.
static bool same_alone(struct cuda_rig *rig, const struct world *w, const struct queries *q,
                       const struct krn_segment *segments, int32_t n, const uint16_t *y)
{
    bool same = true;
    for (int32_t s = 0; s < n; s++)
        for (int32_t r = 0; r<segments[s].rows; r += segments[s].rows> 4 ? 3 : 1) {
            const struct krn_segment *all = &segments[s];
            int32_t last = all->first_pos + (all->mask == KRN_MASK_CAUSAL ? r : all->rows - 1);
            struct krn_segment one = {.rows = 1, .first_pos = last, .pages = all->pages};
            uint16_t *alone = attend(rig, w, q, &one, 1, all->row + r, plain);
            size_t bytes = (size_t)(heads_of(&w->shape) * w->shape.head_dim) * sizeof *y;
            same = same && memcmp(alone, y + (size_t)(all->row + r) * y_stride(&w->shape), bytes) == 0;
            free(alone);
        }
    return same;
}

static bool same_y(const struct world *w, const uint16_t *a, const uint16_t *b, int32_t rows)
{
    for (int32_t r = 0; r < rows; r++)
        if (memcmp(a + (size_t)r * y_stride(&w->shape), b + (size_t)r * y_stride(&w->shape),
                   (size_t)(heads_of(&w->shape) * w->shape.head_dim) * sizeof *a) != 0)
            return false;
    return true;
}

static void check_ways(struct cuda_rig *rig, const struct world *w, const struct queries *q,
                       const struct krn_segment *segments, int32_t n, const uint16_t *y)
{
    static const struct {
        struct way way;
        const char *what;
    } ways[] = {
        {{.cut = KRN_ATTENTION_CUT_NEVER, .multiprocessors = 2, .blocks = 2}, "same bits when items fold"},
        {{.cut = KRN_ATTENTION_CUT_ALWAYS, .multiprocessors = 2, .blocks = 4}, "same bits when slots are folded"},
        {{.cut = KRN_ATTENTION_CUT_ALWAYS, .multiprocessors = 99, .blocks = 5}, "same bits in items of one chunk"},
        {{.other_depth = true, .multiprocessors = 2, .blocks = 3}, "same bits wide or deep"},
        {{.cut = KRN_ATTENTION_CUT_ALWAYS, .other_depth = true, .multiprocessors = 2, .blocks = 3},
         "same bits wide or deep, from slots"},
    };
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        uint16_t *other = attend(rig, w, q, segments, n, 0, ways[i].way);
        say(rig, w, same_y(w, y, other, q->rows), ways[i].what);
        free(other);
    }
}

// Sequence 4's rows in pieces, with the rows of the others between.
static bool same_in_pieces(struct cuda_rig *rig, const struct world *w)
{
    enum { ROWS = 40 };
    struct queries q = queries_open(rig, &w->shape, ROWS);
    struct krn_segment whole = segment_of(w, 4, ROWS, KRN_MASK_CAUSAL);
    struct krn_segment pieces[4] = {whole, whole, whole, whole};
    static const int32_t ends[] = {0, 1, 18, 23, ROWS};
    for (int i = 0; i < 4; i++) {
        pieces[i].rows = ends[i + 1] - ends[i];
        pieces[i].first_pos = whole.first_pos + ends[i];
    }
    place_rows(pieces, 4);
    uint16_t *a = attend(rig, w, &q, &whole, 1, 0, plain), *b = attend(rig, w, &q, pieces, 4, 0, plain);
    bool same = same_y(w, a, b, ROWS);
    free(a);
    free(b);
    queries_close(rig, &q);
    return same;
}

static bool same_with_pages_of(struct cuda_rig *rig, const struct world *w, int32_t page_size, const struct queries *q,
                               const struct krn_segment *segments, int32_t n, const uint16_t *y)
{
    static struct world other;
    struct krn_segment moved[N_SEQUENCES];
    struct shape shape = w->shape;
    shape.page_size = page_size;
    world_open(rig, &other, &shape);
    for (int32_t s = 0; s < n; s++) {
        moved[s] = segments[s];
        moved[s].pages = other.pages[(segments[s].pages - w->pages[0]) / POSITIONS_MAX];
    }
    uint16_t *b = attend(rig, &other, q, moved, n, 0, plain);
    bool same = same_y(w, y, b, q->rows);
    free(b);
    world_close(rig, &other);
    return same;
}

static void check_world(struct cuda_rig *rig, const struct shape *shape, bool all)
{
    static struct world w;
    world_open(rig, &w, shape);
    struct krn_segment segments[N_SEQUENCES] = {
        segment_of(&w, 0, 1, KRN_MASK_BLOCK),  segment_of(&w, 1, 5, KRN_MASK_CAUSAL),
        segment_of(&w, 2, 2, KRN_MASK_CAUSAL), segment_of(&w, 3, 3, KRN_MASK_BLOCK),
        segment_of(&w, 4, 9, KRN_MASK_CAUSAL), segment_of(&w, 5, 20, KRN_MASK_BLOCK),
        segment_of(&w, 6, 1, KRN_MASK_CAUSAL),
    };
    struct queries q = queries_open(rig, shape, place_rows(segments, N_SEQUENCES));
    uint16_t *y = attend(rig, &w, &q, segments, N_SEQUENCES, 0, plain);
    double worst = worst_of(&w, &q, segments, N_SEQUENCES, y);
    char line[80];
    snprintf(line, sizeof line, "near the reference (%.2f of the bound)", worst);
    say(rig, &w, worst <= 1, line);
    if (all) {
        say(rig, &w, same_alone(rig, &w, &q, segments, N_SEQUENCES, y), "same bits alone");
        check_ways(rig, &w, &q, segments, N_SEQUENCES, y);
        say(rig, &w, same_in_pieces(rig, &w), "same bits in pieces");
        int32_t page_size = shape->page_size == 16 ? 7 : 16;
        say(rig, &w, same_with_pages_of(rig, &w, page_size, &q, segments, N_SEQUENCES, y), "same bits in other pages");
    }
    free(y);
    queries_close(rig, &q);
    world_close(rig, &w);
}

void check_attention(struct cuda_rig *rig)
{
    static const struct {
        struct shape shape;
        bool all;
    } cases[] = {
        {{24, 1, 2, 1, false}, false},  {{32, 3, 1, 16, false}, true},    {{64, 4, 2, 3, false}, true},
        {{128, 4, 1, 16, false}, true}, {{128, 2, 1, 64, false}, false},  {{66, 1, 3, 3, false}, false},
        {{24, 2, 1, 3, true}, true},    {{64, 3, 2, 16, true}, false},    {{128, 4, 1, 64, true}, true},
        {{50, 1, 2, 1, true}, false},   {{32, 17, 1, 256, false}, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_world(rig, &cases[i].shape, cases[i].all);
}
