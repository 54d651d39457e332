// Times of a backend's products and of select at a published shape, row count by row count, through kernels.h alone.
//
//   bench_products [--backend cpu|cuda] [--shape 3b|8b|tiny] [--weights bf16|fp8|q4|f32] [--rows 1,2,...]
//
// One JSON object a line: product, rows, microseconds (best pass of several), the least bytes (weights, or for select
// the logits) and operations. Each product goes round as many copies of its weights as exceed every cache, since a pass
// of a model finds them in memory; many ops make one pass, so that what a pass costs besides is spread over them.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"

enum { MAX_COPIES = 16, MAX_LIST = 16, PASSES = 5, PAGE_SIZE = 16 };

struct shape {
    const char *name;
    int32_t hidden, ff, heads, kv_heads, head_dim, vocab;
    int64_t cold_bytes; // what the copies of one product's weights must exceed
};
static const struct shape shapes[] = {
    {"3b", 3072, 9216, 32, 8, 128, 131072, 300 << 20},
    {"8b", 4096, 14336, 32, 8, 128, 131072, 300 << 20},
    {"tiny", 64, 96, 4, 2, 16, 512, 1 << 16},
};

enum product { QKV, O, GATE_UP, DOWN, HEAD, SELECT, N_PRODUCTS };
static const char *const names[] = {"qkv", "o", "gate_up", "down", "head", "select"};

struct rig {
    struct krn_backend *b;
    const struct shape *shape;
    enum krn_type type;
    int32_t max_rows;
    struct krn_kv kv;
    float *inv_freq;
    void *state, *x_hidden, *x_q, *x_ff;          // STATE [rows][widest], INPUT [rows][hidden], [q], [ff]
    void *q, *k, *v, *out, *scratch[2], *y_gated; // OUTPUT; INPUT [rows][ff]
    float *logits;
    struct krn_tensor ones; // a norm's weight, as wide as the widest input
    // The pass: one causal segment, every row wanted.
    struct krn_segment segment;
    int32_t *tokens, *pages, *wanted_rows;
    struct krn_select_row *wanted;
    struct krn_choice *choices;
};

struct weights { // of one product, one copy
    struct krn_tensor w[3];
};

static void die(struct rig *r, const char *what, int rc)
{
    fprintf(stderr, "bench_products: %s: %s\n", what, r && r->b ? r->b->error(r->b->ctx) : krn_strerror(rc));
    exit(1);
}

static void *must(void *p)
{
    if (!p) {
        fprintf(stderr, "bench_products: out of memory\n");
        exit(1);
    }
    return p;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// ---- data -----------------------------------------------------------------------------------------------------------

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Random bf16 of either sign between 2^-7 and 2^-6.
static uint16_t *random_matrix(size_t n)
{
    uint16_t *data = must(malloc((n + 3) / 4 * 8));
    uint64_t seed = 88172645463325252u;
    for (size_t i = 0; i < n; i += 4) {
        uint64_t bits = (next_random(&seed) & 0x807f807f807f807fu) | 0x3c003c003c003c00u;
        memcpy(data + i, &bits, sizeof bits);
    }
    return data;
}

static void import(struct rig *r, const uint16_t *host, int32_t rows, int32_t cols, struct krn_tensor *ret)
{
    struct krn_tensor t = {.data = host, .type = KRN_BF16, .rows = rows, .cols = cols};
    int rc = r->b->import_weights(r->b->ctx, &t, r->type, KRN_SPLIT_NONE, ret);
    if (rc)
        die(r, "import_weights", rc);
}

static int matrices_of(const struct shape *s, enum product p, int32_t rows[3], int32_t cols[3])
{
    int32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, h = s->hidden;
    const int32_t all[][6] = {{q, h, kv, h, kv, h}, {h, q}, {s->ff, h, s->ff, h}, {h, s->ff}, {s->vocab, h}, {0}};
    static const int counts[] = {3, 1, 2, 1, 1, 0};
    for (int i = 0; i < counts[p]; i++) {
        rows[i] = all[p][2 * i];
        cols[i] = all[p][2 * i + 1];
    }
    return counts[p];
}

// ---- the rig --------------------------------------------------------------------------------------------------------

static void *rows_of(struct rig *r, enum krn_rows_kind kind, int32_t width)
{
    return must(r->b->alloc_rows(r->b->ctx, kind, r->max_rows, width, "activations"));
}

static void open_rig(struct rig *r, const char *backend)
{
    const struct shape *s = r->shape;
    char err[400] = "";
    const struct krn_cuda_options o = {.no_graphs = true};
    int rc = !strcmp(backend, "cuda") ? krn_open_cuda(&o, &r->b, err, sizeof err)
                                      : krn_open_cpu(0, ~0u, &r->b, err, sizeof err);
    if (rc) {
        fprintf(stderr, "bench_products: %s\n", err);
        exit(1);
    }
    void *ctx = r->b->ctx;
    int32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    int32_t n_pages = (r->max_rows + PAGE_SIZE - 1) / PAGE_SIZE;
    r->inv_freq = must(calloc((size_t)s->head_dim / 2, sizeof *r->inv_freq));
    for (int32_t i = 0; i < s->head_dim / 2; i++)
        r->inv_freq[i] = powf(1e6f, -2.0f * (float)i / (float)s->head_dim);
    struct krn_rope rope = {
        .inv_freq = r->inv_freq, .head_dim = s->head_dim, .attention_factor = 1, .query_original_max = 16384};
    struct krn_limits limits = {.max_rows = r->max_rows,
                                .max_segments = 1,
                                .max_chunk = r->max_rows,
                                .max_pages = n_pages,
                                .n_layers = 1,
                                .n_heads = s->heads,
                                .n_kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .n_vocab = s->vocab,
                                .hidden = s->hidden,
                                .ff = s->ff,
                                .rope = &rope};
    r->kv = (struct krn_kv){.type = KRN_N_TYPES,
                            .n_layers = 1,
                            .n_pages = n_pages,
                            .page_size = PAGE_SIZE,
                            .n_kv_heads = s->kv_heads,
                            .head_dim = s->head_dim};
    if ((rc = r->b->prepare(ctx, &limits)) || (rc = r->b->kv_open(ctx, &r->kv)))
        die(r, "prepare", rc);
    int32_t widest = s->ff > q ? s->ff : q;
    r->state = rows_of(r, KRN_ROWS_STATE, widest);
    r->x_hidden = rows_of(r, KRN_ROWS_INPUT, s->hidden);
    r->x_q = rows_of(r, KRN_ROWS_INPUT, q);
    r->x_ff = rows_of(r, KRN_ROWS_INPUT, s->ff);
    r->y_gated = rows_of(r, KRN_ROWS_INPUT, s->ff);
    r->q = rows_of(r, KRN_ROWS_OUTPUT, q);
    r->k = rows_of(r, KRN_ROWS_OUTPUT, kv);
    r->v = rows_of(r, KRN_ROWS_OUTPUT, kv);
    r->out = rows_of(r, KRN_ROWS_OUTPUT, s->hidden);
    for (int i = 0; i < 2; i++)
        r->scratch[i] = rows_of(r, KRN_ROWS_OUTPUT, s->ff);
    r->logits = rows_of(r, KRN_ROWS_STATE, s->vocab);
    float *x = must(malloc((size_t)r->max_rows * (size_t)widest * sizeof *x));
    uint64_t seed = 1;
    for (size_t i = 0; i < (size_t)r->max_rows * (size_t)widest; i++)
        x[i] = (float)(next_random(&seed) >> 40) * 0x1p-23f - 1;
    if ((rc = r->b->upload(ctx, r->state, x, (size_t)r->max_rows * (size_t)widest * sizeof *x)))
        die(r, "upload", rc);
    free(x);
}

static void make_pass(struct rig *r)
{
    size_t n = (size_t)r->max_rows;
    r->tokens = must(calloc(n, sizeof *r->tokens));
    r->wanted_rows = must(calloc(n, sizeof *r->wanted_rows));
    r->wanted = must(calloc(n, sizeof *r->wanted));
    r->choices = must(calloc(n, sizeof *r->choices));
    r->pages = must(calloc((size_t)r->kv.n_pages, sizeof *r->pages));
    for (int32_t i = 0; i < r->kv.n_pages; i++)
        r->pages[i] = i;
    for (int32_t i = 0; i < r->max_rows; i++) {
        r->wanted_rows[i] = i;
        r->wanted[i] = (struct krn_select_row){.row = i, .top_p = 1, .repetition_penalty = 1, .position = i + 1};
    }
}

// Leaves random inputs of every width, normed from the state.
static void make_inputs(struct rig *r, int32_t rows)
{
    const struct shape *s = r->shape;
    struct {
        void *y;
        int32_t width;
    } all[] = {{r->x_hidden, s->hidden}, {r->x_q, s->heads * s->head_dim}, {r->x_ff, s->ff}};
    for (size_t i = 0; i < 3; i++) {
        struct krn_tensor weight = r->ones;
        weight.rows = 1;
        weight.cols = all[i].width;
        int rc = r->b->rms_norm(r->b->ctx, all[i].y, r->state, NULL, &weight, 1e-5f, rows, all[i].width);
        if (rc)
            die(r, "rms_norm", rc);
    }
}

// ---- timing ---------------------------------------------------------------------------------------------------------

static int run_op(struct rig *r, enum product p, const struct weights *w, int32_t rows)
{
    struct krn_backend *b = r->b;
    const struct krn_product products[] = {{r->q, &w->w[0]}, {r->k, &w->w[1]}, {r->v, &w->w[2]}};
    switch (p) {
    case QKV:
        return b->project(b->ctx, products, 3, r->x_hidden, rows);
    case O:
        return b->linear(b->ctx, r->out, r->x_q, &w->w[0], rows, NULL, NULL, NULL);
    case GATE_UP:
        return b->gated(b->ctx, r->y_gated, r->x_hidden, &w->w[0], &w->w[1], rows, r->scratch);
    case DOWN:
        return b->linear(b->ctx, r->out, r->x_ff, &w->w[0], rows, NULL, NULL, NULL);
    case HEAD:
        return b->head(b->ctx, r->logits, r->x_hidden, &w->w[0], rows);
    default:
        return b->select(b->ctx, r->logits, r->shape->vocab, -1, r->wanted, rows, r->choices);
    }
}

// Seconds of a pass of n ops.
static double time_pass(struct rig *r, enum product p, const struct weights *copies, int n_copies, int32_t rows, int n)
{
    struct krn_backend *b = r->b;
    r->segment = (struct krn_segment){.rows = rows, .mask = KRN_MASK_CAUSAL, .pages = r->pages};
    struct krn_pass pass = {.n_rows = rows,
                            .tokens = r->tokens,
                            .segments = &r->segment,
                            .n_segments = 1,
                            .wanted_rows = r->wanted_rows,
                            .wanted = r->wanted,
                            .n_wanted = rows,
                            .choices = r->choices};
    double start = now();
    int rc = b->begin(b->ctx, &pass);
    if (rc < 0)
        die(r, "begin", rc);
    make_inputs(r, rows);
    for (int i = 0; rc == 0 && i < n; i++)
        rc = run_op(r, p, &copies[i % n_copies], rows);
    if (rc || (rc = b->submit(b->ctx)) || (rc = b->wait(b->ctx)))
        die(r, names[p], rc);
    return now() - start;
}

// Of one op: the difference of a long and a short pass, so that begin, norms and the wait drop out.
static double time_op(struct rig *r, enum product p, const struct weights *copies, int n_copies, int32_t rows)
{
    double once = time_pass(r, p, copies, n_copies, rows, 2), best = 1e9;
    int n = 2 + (int)(0.02 / (once + 1e-6));
    n = n > 200 ? 200 : n < 10 ? 10 : n;
    for (int i = 0; i < PASSES; i++) {
        double few = time_pass(r, p, copies, n_copies, rows, 2);
        double many = time_pass(r, p, copies, n_copies, rows, n + 2);
        double op = (many - few) / n;
        best = op > 0 && op < best ? op : best;
    }
    return best;
}

static void bench(struct rig *r, enum product p, const int32_t *rows, int n_rows)
{
    struct weights copies[MAX_COPIES] = {0};
    int32_t height[3] = {0}, width[3] = {0};
    int n = matrices_of(r->shape, p, height, width), n_copies = 1;
    int64_t bytes = 0, flops = 0;
    for (int i = 0; i < n; i++) {
        bytes += krn_matrix_bytes(r->type, height[i], width[i]);
        flops += (int64_t)2 * height[i] * width[i];
    }
    if (n)
        n_copies = 2 + (int)(r->shape->cold_bytes / bytes);
    n_copies = n_copies > MAX_COPIES ? MAX_COPIES : n_copies;
    uint16_t *host[3] = {NULL};
    for (int i = 0; i < n; i++)
        host[i] = random_matrix((size_t)height[i] * (size_t)width[i]);
    for (int c = 0; c < n_copies; c++)
        for (int i = 0; i < n; i++)
            import(r, host[i], height[i], width[i], &copies[c].w[i]);
    for (int k = 0; k < n_rows; k++) {
        int64_t read = p == SELECT ? (int64_t)rows[k] * r->shape->vocab * 4 : bytes;
        printf("{\"product\":\"%s\",\"rows\":%d,\"us\":%.3f,\"bytes\":%lld,\"flops\":%lld}\n", names[p], (int)rows[k],
               time_op(r, p, copies, n_copies, rows[k]) * 1e6, (long long)read, (long long)(flops * rows[k]));
        fflush(stdout);
    }
    for (int c = 0; c < n_copies; c++)
        for (int i = 0; i < n; i++)
            r->b->drop_weights(r->b->ctx, &copies[c].w[i]);
    for (int i = 0; i < n; i++)
        free(host[i]);
}

static void close_rig(struct rig *r)
{
    void *ctx = r->b->ctx;
    void *const all[] = {r->state, r->x_hidden, r->x_q, r->x_ff,       r->y_gated,    r->q,
                         r->k,     r->v,        r->out, r->scratch[0], r->scratch[1], r->logits};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        r->b->release(ctx, all[i]);
    r->b->drop_weights(ctx, &r->ones);
    r->b->kv_close(ctx, &r->kv);
    r->b->close(ctx);
    free(r->inv_freq);
    free(r->tokens);
    free(r->pages);
    free(r->wanted_rows);
    free(r->wanted);
    free(r->choices);
}

// ---- the command ----------------------------------------------------------------------------------------------------

static int usage(void)
{
    fprintf(stderr, "usage: bench_products [--backend cpu|cuda] [--shape 3b|8b|tiny] [--weights bf16|fp8|q4|f32] "
                    "[--rows 1,2,...]\n");
    return 2;
}

static int parse_rows(const char *text, int32_t *rows)
{
    int n = 0;
    for (char *end; n < MAX_LIST; text = end + 1) {
        long v = strtol(text, &end, 10);
        if (end == text || v < 1 || v > 4096)
            return 0;
        rows[n++] = (int32_t)v;
        if (!*end)
            return n;
        if (*end != ',')
            return 0;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct rig r = {.shape = &shapes[2], .type = KRN_BF16};
    const char *backend = "cpu";
    int32_t rows[MAX_LIST];
    int n_rows = parse_rows("1,2,4,8,16,32,64,128,256", rows);
    for (int i = 1; i < argc; i += 2) {
        bool known = false;
        if (i + 1 == argc)
            return usage();
        if (!strcmp(argv[i], "--backend"))
            known = !strcmp(backend = argv[i + 1], "cpu") || !strcmp(backend, "cuda");
        else if (!strcmp(argv[i], "--rows"))
            known = (n_rows = parse_rows(argv[i + 1], rows)) > 0;
        for (size_t k = 0; !strcmp(argv[i], "--shape") && k < sizeof shapes / sizeof *shapes; k++)
            if (!strcmp(argv[i + 1], shapes[k].name)) {
                r.shape = &shapes[k];
                known = true;
            }
        for (int t = 0; !strcmp(argv[i], "--weights") && t < KRN_N_TYPES; t++)
            if (!strcmp(argv[i + 1], krn_type_name((enum krn_type)t))) {
                r.type = (enum krn_type)t;
                known = true;
            }
        if (!known)
            return usage();
    }
    for (int i = 0; i < n_rows; i++)
        r.max_rows = rows[i] > r.max_rows ? rows[i] : r.max_rows;
    open_rig(&r, backend);
    make_pass(&r);
    int32_t q = r.shape->heads * r.shape->head_dim, widest = r.shape->ff > q ? r.shape->ff : q;
    uint16_t *ones = random_matrix((size_t)widest);
    struct krn_tensor t = {.data = ones, .type = KRN_BF16, .rows = 1, .cols = widest};
    int rc = r.b->import_weights(r.b->ctx, &t, KRN_BF16, KRN_SPLIT_NONE, &r.ones);
    if (rc)
        die(&r, "import_weights", rc);
    for (int p = 0; p < N_PRODUCTS; p++)
        bench(&r, (enum product)p, rows, n_rows);
    close_rig(&r);
    free(ones);
    return 0;
}
