// 5 FORWARD  The real model: one ragged batch through the layers, over a backend.
//
//   x = embed(tokens)
//   per layer:  n = norm(x);  q, k, v = n Wq, n Wk, n Wv;  rope;  KV of these rows into their pages;
//               x += attention(q, pages) Wo (+ draft adapter on the rows that ask for it)
//               n = norm(x);  x += (silu(n Wg) * (n Wu)) Wd
//   wanted rows:  select(norm(x) Whead)
//
// Owns the device buffers of one pass and the KV store, all made at the start for the largest batch: a forward
// allocates nothing. Every residual addition is folded into the norm that follows it; the final norm and the head see
// only the rows whose token is wanted, in chunks of a bounded logits buffer. Engine thread only. Leaves out any
// knowledge of modes, of which pages are whose, and of the backend's kind.
#include "forward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/json.h"
#include "model/weights.h"

enum { MAX_LOGITS_BYTES = 256 << 20 };

struct forward {
    struct krn_backend *b;
    const struct eng_weights *w;
    int32_t max_rows, chunk; // rows of the logits buffer
    struct krn_kv kv;
    struct krn_rope rope;
    // device, f32
    float *x, *n, *add;           // [max_rows][hidden]: residual stream, normed, what the next norm adds to x
    float *q, *att;               // [max_rows][n_heads * head_dim]
    float *k, *v;                 // [max_rows][n_kv_heads * head_dim]
    float *gate, *up;             // [max_rows][ff]
    float *wanted_x, *wanted_add; // [chunk][hidden]
    float *logits;                // [chunk][n_vocab]
    float *scratch;               // [max_rows][adapter rank], NULL without an adapter
    // host; read by the ops until wait
    float *inv_freq;               // [head_dim / 2]
    struct krn_segment *segments;  // [max_rows]
    uint8_t *adapter_rows;         // [max_rows]
    int32_t *wanted_rows;          // [max_rows]
    struct krn_select_row *select; // [max_rows]
};

int64_t eng_forward_page_bytes(const struct eng_weights *weights, int32_t page_size)
{
    const struct eng_config *c = &weights->config;
    return (int64_t)2 * c->n_layers * c->n_kv_heads * c->head_dim * page_size * (int64_t)sizeof(float);
}

// ---- one pass -------------------------------------------------------------------------------------------------------

// A malformed batch is our own bug, so it asserts. Fills the host arrays; says whether any row has the adapter on.
static bool prepare(struct forward *f, const struct eng_batch *batch)
{
    int32_t next = 0;
    bool any_adapter = false;
    assert(batch->n_rows <= f->max_rows && batch->n_segments <= batch->n_rows && batch->n_wanted <= f->max_rows);
    for (int32_t i = 0; i < batch->n_segments; i++) {
        const struct eng_segment *s = &batch->segments[i];
        assert(s->row == next && s->rows > 0 && s->first_pos >= 0);
        for (int32_t p = 0; p <= (s->first_pos + s->rows - 1) / f->kv.page_size; p++)
            assert(s->pages[p] >= 0 && s->pages[p] < f->kv.n_pages);
        bool on = s->adapter && f->w->has_adapter;
        f->segments[i] = (struct krn_segment){
            .row = s->row, .rows = s->rows, .first_pos = s->first_pos, .mask = s->mask, .pages = s->pages};
        memset(f->adapter_rows + s->row, on, (size_t)s->rows);
        any_adapter = any_adapter || on;
        next += s->rows;
    }
    assert(next == batch->n_rows);
    for (int32_t i = 0; i < batch->n_rows; i++)
        assert(batch->tokens[i] >= 0 && batch->tokens[i] < f->w->config.n_vocab);
    for (int32_t i = 0; i < batch->n_wanted; i++) {
        f->select[i] = batch->wanted[i];
        f->wanted_rows[i] = batch->wanted[i].row;
        assert(f->wanted_rows[i] >= 0 && f->wanted_rows[i] < batch->n_rows);
        f->select[i].row = i % f->chunk;
    }
    return any_adapter;
}

// Leaves the last layer's addition in f->add.
static int run_layers(struct forward *f, const struct eng_batch *batch, bool any_adapter)
{
    struct krn_backend *b = f->b;
    void *ctx = b->ctx;
    const struct eng_config *c = &f->w->config;
    int32_t rows = batch->n_rows, n_segments = batch->n_segments;
    int rc = b->embed(ctx, f->x, &f->w->embed, batch->tokens, rows);
    for (int32_t i = 0; rc == 0 && i < c->n_layers; i++) {
        const struct eng_layer *l = &f->w->layers[i];
        const struct krn_adapter *adapter = any_adapter ? &l->adapter_o : NULL;
        if ((rc = b->rms_norm(ctx, f->n, f->x, i ? f->add : NULL, &l->input_norm, c->rms_eps, rows, c->hidden)) != 0 ||
            (rc = b->linear(ctx, f->q, f->n, &l->q, rows, NULL, NULL, NULL)) != 0 ||
            (rc = b->linear(ctx, f->k, f->n, &l->k, rows, NULL, NULL, NULL)) != 0 ||
            (rc = b->linear(ctx, f->v, f->n, &l->v, rows, NULL, NULL, NULL)) != 0 ||
            (rc = b->rope(ctx, f->q, f->k, c->n_heads, c->n_kv_heads, &f->rope, f->segments, n_segments)) != 0 ||
            (rc = b->kv_write(ctx, &f->kv, i, f->k, f->v, f->segments, n_segments)) != 0 ||
            (rc = b->attention(ctx, f->att, f->q, c->n_heads, &f->kv, i, f->segments, n_segments)) != 0 ||
            (rc = b->linear(ctx, f->add, f->att, &l->o, rows, adapter, any_adapter ? f->adapter_rows : NULL,
                            any_adapter ? f->scratch : NULL)) != 0 ||
            (rc = b->rms_norm(ctx, f->n, f->x, f->add, &l->post_norm, c->rms_eps, rows, c->hidden)) != 0 ||
            (rc = b->linear(ctx, f->gate, f->n, &l->gate, rows, NULL, NULL, NULL)) != 0 ||
            (rc = b->linear(ctx, f->up, f->n, &l->up, rows, NULL, NULL, NULL)) != 0 ||
            (rc = b->swiglu(ctx, f->gate, f->gate, f->up, rows, c->ff)) != 0 ||
            (rc = b->linear(ctx, f->add, f->gate, &l->down, rows, NULL, NULL, NULL)) != 0)
            break;
    }
    return rc;
}

// host_logits: NULL, or [n_wanted][n_vocab].
static int choose(struct forward *f, struct eng_batch *batch, float *host_logits)
{
    struct krn_backend *b = f->b;
    void *ctx = b->ctx;
    const struct eng_config *c = &f->w->config;
    int rc = 0;
    for (int32_t i = 0; rc == 0 && i < batch->n_wanted; i += f->chunk) {
        int32_t m = batch->n_wanted - i < f->chunk ? batch->n_wanted - i : f->chunk;
        size_t width = (size_t)c->n_vocab;
        if ((rc = b->gather(ctx, f->wanted_x, f->x, f->wanted_rows + i, m, c->hidden)) != 0 ||
            (rc = b->gather(ctx, f->wanted_add, f->add, f->wanted_rows + i, m, c->hidden)) != 0 ||
            (rc = b->rms_norm(ctx, f->n, f->wanted_x, f->wanted_add, &f->w->norm, c->rms_eps, m, c->hidden)) != 0 ||
            (rc = b->linear(ctx, f->logits, f->n, &f->w->head, m, NULL, NULL, NULL)) != 0 ||
            (rc = b->select(ctx, f->logits, c->n_vocab, c->mask_id, f->select + i, m, batch->choices + i)) != 0)
            break;
        if (host_logits && (rc = b->wait(ctx)) == 0)
            rc = b->download(ctx, host_logits + (size_t)i * width, f->logits, (size_t)m * width * sizeof(float));
    }
    return rc;
}

static int run(struct forward *f, struct eng_batch *batch, float *host_logits)
{
    if (batch->n_rows == 0)
        return 0;
    bool any_adapter = prepare(f, batch);
    int rc = run_layers(f, batch, any_adapter);
    if (rc == 0)
        rc = choose(f, batch, host_logits);
    int waited = f->b->wait(f->b->ctx); // even after a failure: the ops read our arrays until then
    return rc != 0 ? rc : waited;
}

static int forward(void *ctx, struct eng_batch *batch)
{
    return run(ctx, batch, NULL);
}

int eng_forward_logits(struct eng_model *model, struct eng_batch *batch, float *logits)
{
    return run(model->ctx, batch, logits);
}

void eng_forward_limit_chunk(struct eng_model *model, int32_t rows)
{
    struct forward *f = model->ctx;
    assert(rows >= 1 && rows <= f->chunk);
    f->chunk = rows;
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void close_forward(void *ctx)
{
    struct forward *f = ctx;
    struct krn_backend *b = f->b;
    void *const device[] = {f->x,  f->n,        f->add,        f->q,      f->att,     f->k,    f->v,   f->gate,
                            f->up, f->wanted_x, f->wanted_add, f->logits, f->scratch, f->kv.k, f->kv.v};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i])
            b->release(b->ctx, device[i]);
    free(f->inv_freq);
    free(f->segments);
    free(f->adapter_rows);
    free(f->wanted_rows);
    free(f->select);
    free(f);
}

// Counts what could not be had in *missing.
static float *device(struct forward *f, int64_t n, const char *purpose, int *missing)
{
    float *p = f->b->alloc(f->b->ctx, (size_t)n * sizeof(float), purpose);
    *missing += p == NULL;
    return p;
}

static int alloc_device(struct forward *f)
{
    const struct eng_config *c = &f->w->config;
    const char *what = "activations";
    int missing = 0;
    int64_t rows = f->max_rows, q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t store;
    if (__builtin_mul_overflow(eng_forward_page_bytes(f->w, f->kv.page_size), f->kv.n_pages, &store))
        return ENG_ENOMEM;
    store /= 2 * (int64_t)sizeof(float);
    f->x = device(f, rows * c->hidden, what, &missing);
    f->n = device(f, rows * c->hidden, what, &missing);
    f->add = device(f, rows * c->hidden, what, &missing);
    f->q = device(f, rows * q, what, &missing);
    f->att = device(f, rows * q, what, &missing);
    f->k = device(f, rows * kv, what, &missing);
    f->v = device(f, rows * kv, what, &missing);
    f->gate = device(f, rows * c->ff, what, &missing);
    f->up = device(f, rows * c->ff, what, &missing);
    f->wanted_x = device(f, (int64_t)f->chunk * c->hidden, what, &missing);
    f->wanted_add = device(f, (int64_t)f->chunk * c->hidden, what, &missing);
    if (f->w->has_adapter)
        f->scratch = device(f, rows * f->w->adapter_rank, what, &missing);
    f->logits = device(f, (int64_t)f->chunk * c->n_vocab, "logits", &missing);
    f->kv.k = device(f, store, "kv", &missing);
    f->kv.v = device(f, store, "kv", &missing);
    return missing ? ENG_ENOMEM : 0;
}

static int alloc_host(struct forward *f)
{
    size_t rows = (size_t)f->max_rows;
    f->inv_freq = calloc((size_t)f->w->config.head_dim / 2, sizeof *f->inv_freq);
    f->segments = calloc(rows, sizeof *f->segments);
    f->adapter_rows = calloc(rows, sizeof *f->adapter_rows);
    f->wanted_rows = calloc(rows, sizeof *f->wanted_rows);
    f->select = calloc(rows, sizeof *f->select);
    return f->inv_freq && f->segments && f->adapter_rows && f->wanted_rows && f->select ? 0 : ENG_ENOMEM;
}

int eng_forward_open(struct krn_backend *backend, const struct eng_weights *weights, int32_t max_rows, int32_t n_pages,
                     int32_t page_size, struct eng_model *ret, char *err, size_t err_size)
{
    const struct eng_config *c = &weights->config;
    int64_t most = MAX_LOGITS_BYTES / ((int64_t)c->n_vocab * (int64_t)sizeof(float));
    if (max_rows < 1 || n_pages < 1 || page_size < 1 || page_size > 256)
        return eng_json_fail(err, err_size, ENG_EINVAL, "max_rows, n_pages or page_size is out of range");
    struct forward *f = calloc(1, sizeof *f);
    if (!f)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "no memory for the forward pass");
    f->b = backend;
    f->w = weights;
    f->max_rows = max_rows;
    f->chunk = most < 1 ? 1 : most < max_rows ? (int32_t)most : max_rows;
    f->kv = (struct krn_kv){.n_layers = c->n_layers,
                            .n_pages = n_pages,
                            .page_size = page_size,
                            .n_kv_heads = c->n_kv_heads,
                            .head_dim = c->head_dim};
    if (alloc_host(f) != 0 || alloc_device(f) != 0) {
        close_forward(f);
        return eng_json_fail(err, err_size, ENG_ENOMEM,
                             "no memory for the forward pass (%d rows a step, %d KV pages of %lld bytes)", max_rows,
                             n_pages, (long long)eng_forward_page_bytes(weights, page_size));
    }
    f->rope = (struct krn_rope){.inv_freq = f->inv_freq,
                                .head_dim = c->head_dim,
                                .query_beta = (float)c->query_beta,
                                .query_original_max = c->original_max_positions};
    eng_config_rope(c, f->inv_freq, &f->rope.attention_factor);
    *ret = (struct eng_model){
        .forward = forward,
        .close = close_forward,
        .ctx = f,
        .n_vocab = c->n_vocab,
        .mask_id = c->mask_id,
        .block_adapter = weights->block_adapter,
        .has_adapter = weights->has_adapter,
    };
    return 0;
}
