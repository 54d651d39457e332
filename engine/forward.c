// 5 FORWARD  The real model: one ragged batch through the layers, over a backend.
//
//   x = embed(tokens)
//   per layer:  n = norm(x);  q, k, v = n Wq, n Wk, n Wv;  rope;  KV of these rows into their pages;
//               x += attention(q, pages) Wo (+ draft adapter on the rows that ask for it)
//               n = norm(x);  x += (silu(n Wg) * (n Wu)) Wd
//   wanted rows:  select(norm(x) Whead);  accept
//
// Owns the device buffers of a pass and the KV store, all made at the start for the largest batch: a pass allocates
// nothing. The host arrays that a pass reads are there once per pass under way. Every residual addition but the last is
// folded into the norm that follows it; the final norm and the head see only the rows whose token is wanted, in chunks
// of a bounded logits buffer. A backend that has recorded the shape of a pass replays it, and no op is called. Engine
// thread only. Leaves out any knowledge of modes, of which pages are whose, and of the backend's kind.
#include "forward.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/json.h"
#include "model/weights.h"

enum { MAX_LOGITS_BYTES = 256 << 20 };

// What one pass reads on the host, from submit to wait.
struct host {
    struct krn_pass pass;
    struct krn_segment *segments;  // [max_segments]
    uint8_t *adapter_rows;         // [max_rows]
    int32_t *wanted_rows;          // [max_rows]
    struct krn_select_row *select; // [max_rows]
};

struct forward {
    struct krn_backend *b;
    const struct eng_weights *w;
    int32_t max_rows, max_segments, chunk; // chunk: rows of the logits buffer
    struct krn_kv kv;
    struct krn_rope rope;
    float *inv_freq; // [head_dim / 2]
    // device; STATE
    void *x;        // [max_rows][hidden]: the residual stream
    void *wanted_x; // [chunk][hidden]
    float *logits;  // [chunk][n_vocab]
    // INPUT
    void *n;   // [max_rows][hidden]: normed
    void *att; // [max_rows][n_heads * head_dim]
    void *act; // [max_rows][ff]
    // OUTPUT
    void *add;     // [max_rows][hidden]: what the next norm adds to x
    void *q;       // [max_rows][n_heads * head_dim]
    void *k, *v;   // [max_rows][n_kv_heads * head_dim]
    void *ff[2];   // [max_rows][ff]: gate and up
    void *scratch; // [max_rows][adapter rank], NULL without an adapter
    struct host hosts[KRN_PASSES_AHEAD];
    int32_t next_host;
};

static struct krn_kv kv_shape(const struct eng_config *c, int32_t page_size, enum krn_type type)
{
    return (struct krn_kv){.type = type,
                           .n_layers = c->n_layers,
                           .page_size = page_size,
                           .n_kv_heads = c->n_kv_heads,
                           .head_dim = c->head_dim};
}

int64_t eng_forward_page_bytes(const struct krn_backend *backend, const struct eng_weights *weights, int32_t page_size,
                               enum krn_type kv_type)
{
    struct krn_kv kv = kv_shape(&weights->config, page_size, kv_type);
    return backend->kv_page_bytes(backend->ctx, &kv);
}

// ---- one pass -------------------------------------------------------------------------------------------------------

// A malformed batch is our own bug, so it asserts.
static void check(const struct forward *f, const struct eng_batch *batch)
{
    int32_t next = 0;
    assert(batch->n_rows <= f->max_rows && batch->n_segments <= f->max_segments && batch->n_wanted <= f->max_rows);
    for (int32_t i = 0; i < batch->n_segments; i++) {
        const struct eng_segment *s = &batch->segments[i];
        assert(s->row == next && s->rows > 0 && s->first_pos >= 0);
        for (int32_t p = 0; p <= (s->first_pos + s->rows - 1) / f->kv.page_size; p++)
            assert(s->pages[p] >= 0 && s->pages[p] < f->kv.n_pages);
        next += s->rows;
    }
    assert(next == batch->n_rows);
    for (int32_t i = 0; i < batch->n_rows; i++)
        assert(batch->tokens[i] >= 0 && batch->tokens[i] < f->w->config.n_vocab);
}

// Fills the pass's host arrays.
static struct host *prepare(struct forward *f, struct eng_batch *batch)
{
    struct host *h = &f->hosts[f->next_host];
    check(f, batch);
    bool any_adapter = false;
    for (int32_t i = 0; i < batch->n_segments; i++) {
        const struct eng_segment *s = &batch->segments[i];
        bool on = s->adapter && f->w->has_adapter;
        h->segments[i] = (struct krn_segment){
            .row = s->row, .rows = s->rows, .first_pos = s->first_pos, .mask = s->mask, .pages = s->pages};
        memset(h->adapter_rows + s->row, on, (size_t)s->rows);
        any_adapter = any_adapter || on;
    }
    for (int32_t i = 0; i < batch->n_wanted; i++) {
        h->select[i] = batch->wanted[i];
        h->wanted_rows[i] = batch->wanted[i].row;
        assert(h->wanted_rows[i] >= 0 && h->wanted_rows[i] < batch->n_rows);
        h->select[i].row = i % f->chunk;
    }
    h->pass = (struct krn_pass){
        .n_rows = batch->n_rows,
        .tokens = batch->tokens,
        .links = batch->n_links ? batch->links : NULL,
        .segments = h->segments,
        .n_segments = batch->n_segments,
        .adapter_rows = any_adapter ? h->adapter_rows : NULL,
        .wanted_rows = h->wanted_rows,
        .wanted = h->select,
        .n_wanted = batch->n_wanted,
        .choices = batch->choices,
        .accepts = batch->accepts,
        .n_accepts = batch->n_accepts,
        .accepted = batch->accepted,
    };
    return h;
}

// Leaves the last layer's addition in f->add.
static int run_layers(struct forward *f, const struct krn_pass *pass)
{
    struct krn_backend *b = f->b;
    void *ctx = b->ctx;
    const struct eng_config *c = &f->w->config;
    int32_t rows = pass->n_rows, n_segments = pass->n_segments;
    const struct krn_segment *segments = pass->segments;
    bool adapted = pass->adapter_rows != NULL;
    int rc = b->embed(ctx, f->x, &f->w->embed, pass->tokens, rows);
    for (int32_t i = 0; rc == 0 && i < c->n_layers; i++) {
        const struct eng_layer *l = &f->w->layers[i];
        const struct krn_product qkv[] = {{f->q, &l->q}, {f->k, &l->k}, {f->v, &l->v}};
        if ((rc = b->rms_norm(ctx, f->n, f->x, i ? f->add : NULL, &l->input_norm, c->rms_eps, rows, c->hidden)) != 0 ||
            (rc = b->project(ctx, qkv, 3, f->n, rows)) != 0 ||
            (rc = b->rope_write(ctx, f->q, f->k, f->v, c->n_heads, &f->rope, &f->kv, i, segments, n_segments)) != 0 ||
            (rc = b->attention(ctx, f->att, f->q, c->n_heads, &f->kv, i, segments, n_segments)) != 0 ||
            (rc = b->linear(ctx, f->add, f->att, &l->o, rows, adapted ? &l->adapter_o : NULL, pass->adapter_rows,
                            adapted ? f->scratch : NULL)) != 0 ||
            (rc = b->rms_norm(ctx, f->n, f->x, f->add, &l->post_norm, c->rms_eps, rows, c->hidden)) != 0 ||
            (rc = b->gated(ctx, f->act, f->n, &l->gate, &l->up, rows, f->ff)) != 0 ||
            (rc = b->linear(ctx, f->add, f->act, &l->down, rows, NULL, NULL, NULL)) != 0)
            break;
    }
    return rc;
}

static int choose(struct forward *f, const struct krn_pass *pass)
{
    struct krn_backend *b = f->b;
    void *ctx = b->ctx;
    const struct eng_config *c = &f->w->config;
    if (pass->n_wanted == 0)
        return 0;
    int rc = b->add(ctx, f->x, f->add, pass->n_rows, c->hidden);
    for (int32_t i = 0; rc == 0 && i < pass->n_wanted; i += f->chunk) {
        int32_t m = pass->n_wanted - i < f->chunk ? pass->n_wanted - i : f->chunk;
        if ((rc = b->gather(ctx, f->wanted_x, f->x, pass->wanted_rows + i, m, c->hidden)) != 0 ||
            (rc = b->rms_norm(ctx, f->n, f->wanted_x, NULL, &f->w->norm, c->rms_eps, m, c->hidden)) != 0 ||
            (rc = b->head(ctx, f->logits, f->n, &f->w->head, m)) != 0 ||
            (rc = b->select(ctx, f->logits, c->n_vocab, c->mask_id, pass->wanted + i, m, pass->choices + i)) != 0)
            break;
    }
    if (rc == 0 && pass->n_accepts > 0)
        rc = b->accept(ctx, pass->accepts, pass->n_accepts, pass->accepted);
    return rc;
}

static int submit(void *ctx, struct eng_batch *batch)
{
    struct forward *f = ctx;
    struct krn_backend *b = f->b;
    if (batch->n_rows == 0)
        return 0;
    const struct krn_pass *pass = &prepare(f, batch)->pass;
    int rc = b->begin(b->ctx, pass);
    if (rc < 0)
        return rc;
    if (rc != KRN_REPLAY) {
        rc = run_layers(f, pass);
        if (rc == 0)
            rc = choose(f, pass);
        if (rc != 0) {
            b->abandon(b->ctx);
            return rc;
        }
    }
    rc = b->submit(b->ctx);
    if (rc == 0) // the arrays belong to the pass until its wait
        f->next_host = (f->next_host + 1) % KRN_PASSES_AHEAD;
    return rc;
}

static int wait(void *ctx, struct eng_batch *batch)
{
    struct forward *f = ctx;
    return batch->n_rows ? f->b->wait(f->b->ctx) : 0;
}

// What the backend says of a failure or a refusal of its own, else what the code means.
static const char *error(void *ctx, int code)
{
    struct forward *f = ctx;
    return code == KRN_EDEVICE || code == KRN_ENOTSUP ? f->b->error(f->b->ctx) : eng_strerror(code);
}

int eng_model_forward(const struct eng_model *model, struct eng_batch *batch)
{
    int rc = model->submit(model->ctx, batch);
    return rc != 0 ? rc : model->wait(model->ctx, batch);
}

int eng_forward_logits(struct eng_model *model, struct eng_batch *batch, float *logits)
{
    struct forward *f = model->ctx;
    assert(batch->n_wanted <= f->chunk);
    int rc = eng_model_forward(model, batch);
    size_t n = (size_t)batch->n_wanted * (size_t)f->w->config.n_vocab;
    return rc != 0 ? rc : f->b->download(f->b->ctx, logits, f->logits, n * sizeof *logits);
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
    void *const device[] = {f->x, f->wanted_x, f->logits, f->n,     f->att,   f->act,    f->add,
                            f->q, f->k,        f->v,      f->ff[0], f->ff[1], f->scratch};
    if (f->kv.k)
        b->kv_close(b->ctx, &f->kv);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i])
            b->release(b->ctx, device[i]);
    for (int i = 0; i < KRN_PASSES_AHEAD; i++) {
        free(f->hosts[i].segments);
        free(f->hosts[i].adapter_rows);
        free(f->hosts[i].wanted_rows);
        free(f->hosts[i].select);
    }
    free(f->inv_freq);
    free(f);
}

// Counts what could not be had in *missing.
static void *rows_of(struct forward *f, enum krn_rows_kind kind, int32_t rows, int32_t width, int *missing)
{
    void *p = f->b->alloc_rows(f->b->ctx, kind, rows, width, "activations");
    *missing += p == NULL;
    return p;
}

static int alloc_device(struct forward *f)
{
    const struct eng_config *c = &f->w->config;
    int missing = 0;
    int32_t rows = f->max_rows, q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    f->x = rows_of(f, KRN_ROWS_STATE, rows, c->hidden, &missing);
    f->wanted_x = rows_of(f, KRN_ROWS_STATE, f->chunk, c->hidden, &missing);
    f->n = rows_of(f, KRN_ROWS_INPUT, rows, c->hidden, &missing);
    f->att = rows_of(f, KRN_ROWS_INPUT, rows, q, &missing);
    f->act = rows_of(f, KRN_ROWS_INPUT, rows, c->ff, &missing);
    f->add = rows_of(f, KRN_ROWS_OUTPUT, rows, c->hidden, &missing);
    f->q = rows_of(f, KRN_ROWS_OUTPUT, rows, q, &missing);
    f->k = rows_of(f, KRN_ROWS_OUTPUT, rows, kv, &missing);
    f->v = rows_of(f, KRN_ROWS_OUTPUT, rows, kv, &missing);
    f->ff[0] = rows_of(f, KRN_ROWS_OUTPUT, rows, c->ff, &missing);
    f->ff[1] = rows_of(f, KRN_ROWS_OUTPUT, rows, c->ff, &missing);
    if (f->w->has_adapter)
        f->scratch = rows_of(f, KRN_ROWS_OUTPUT, rows, f->w->adapter_rank, &missing);
    f->logits = f->b->alloc_rows(f->b->ctx, KRN_ROWS_STATE, f->chunk, c->n_vocab, "logits");
    return missing || !f->logits ? ENG_ENOMEM : 0;
}

static int alloc_host(struct forward *f)
{
    size_t rows = (size_t)f->max_rows;
    bool good = (f->inv_freq = calloc((size_t)f->w->config.head_dim / 2, sizeof *f->inv_freq)) != NULL;
    for (int i = 0; i < KRN_PASSES_AHEAD; i++) {
        struct host *h = &f->hosts[i];
        h->segments = calloc((size_t)f->max_segments, sizeof *h->segments);
        h->adapter_rows = calloc(rows, sizeof *h->adapter_rows);
        h->wanted_rows = calloc(rows, sizeof *h->wanted_rows);
        h->select = calloc(rows, sizeof *h->select);
        good = good && h->segments && h->adapter_rows && h->wanted_rows && h->select;
    }
    return good ? 0 : ENG_ENOMEM;
}

static int prepare_backend(struct forward *f, int64_t max_pages)
{
    const struct eng_config *c = &f->w->config;
    struct krn_limits limits = {
        .max_rows = f->max_rows,
        .max_segments = f->max_segments,
        .max_chunk = f->chunk,
        .max_pages = max_pages,
        .n_layers = c->n_layers,
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .n_vocab = c->n_vocab,
        .hidden = c->hidden,
        .ff = c->ff,
        .adapter_rank = f->w->has_adapter ? f->w->adapter_rank : 0,
        .rope = &f->rope,
    };
    return f->b->prepare(f->b->ctx, &limits);
}

// What the functions below say when the backend refuses. A device's memory is named with its numbers.
static int backend_failed(struct forward *f, int code, const char *what, char *err, size_t err_size)
{
    struct krn_memory m;
    if (code != ENG_ENOMEM && code != KRN_ENOMEM)
        return eng_json_fail(err, err_size, code, "the %s backend cannot have %s: %s", f->b->name, what,
                             error(f, code));
    f->b->memory(f->b->ctx, &m);
    if (!m.total)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "no memory for %s", what);
    return eng_json_fail(err, err_size, ENG_ENOMEM,
                         "no memory for %s: when it ended, %.2f of the %s backend's %.2f GiB were free", what,
                         (double)m.free / (1 << 30), f->b->name, (double)m.total / (1 << 30));
}

int eng_forward_open_kv(struct eng_model *model, int32_t n_pages, char *err, size_t err_size)
{
    struct forward *f = model->ctx;
    char what[96];
    f->kv.n_pages = n_pages;
    int rc = f->b->kv_open(f->b->ctx, &f->kv);
    if (rc == 0)
        return 0;
    f->kv.k = NULL;
    snprintf(what, sizeof what, "the KV store (%d pages of %d tokens, %s)", n_pages, f->kv.page_size,
             f->kv.type == KRN_N_TYPES ? "auto" : krn_type_name(f->kv.type));
    return backend_failed(f, rc, what, err, err_size);
}

enum krn_type eng_forward_kv_type(const struct eng_model *model)
{
    const struct forward *f = model->ctx;
    return f->kv.type;
}

int eng_forward_open(struct krn_backend *backend, const struct eng_weights *weights,
                     const struct eng_forward_sizes *sizes, struct eng_model *ret, char *err, size_t err_size)
{
    const struct eng_config *c = &weights->config;
    int64_t most = MAX_LOGITS_BYTES / ((int64_t)c->n_vocab * (int64_t)sizeof(float));
    char what[64];
    if (sizes->max_rows < 1 || sizes->max_segments < 1 || sizes->n_pages < 0 || sizes->page_size < 1 ||
        sizes->page_size > 256 || (sizes->n_pages == 0 && sizes->max_pages < 1))
        return eng_json_fail(err, err_size, ENG_EINVAL, "the sizes of the forward pass are out of range");
    struct forward *f = calloc(1, sizeof *f);
    if (!f)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "no memory for the forward pass");
    f->b = backend;
    f->w = weights;
    f->max_rows = sizes->max_rows;
    f->max_segments = sizes->max_segments;
    f->chunk = most < 1 ? 1 : most < f->max_rows ? (int32_t)most : f->max_rows;
    f->kv = kv_shape(c, sizes->page_size, sizes->kv_type);
    snprintf(what, sizeof what, "the forward pass (%d rows a step)", f->max_rows);
    int rc = alloc_host(f);
    if (rc == 0)
        rc = alloc_device(f);
    if (rc == 0) {
        f->rope = (struct krn_rope){.inv_freq = f->inv_freq,
                                    .head_dim = c->head_dim,
                                    .query_beta = (float)c->query_beta,
                                    .query_original_max = c->original_max_positions};
        eng_config_rope(c, f->inv_freq, &f->rope.attention_factor);
        rc = prepare_backend(f, sizes->max_pages ? sizes->max_pages : sizes->n_pages);
    }
    if (rc != 0) {
        rc = backend_failed(f, rc, what, err, err_size);
        close_forward(f);
        return rc;
    }
    struct eng_model model = {
        .submit = submit,
        .wait = wait,
        .error = error,
        .close = close_forward,
        .ctx = f,
        .async = backend->async,
        .n_vocab = c->n_vocab,
        .mask_id = c->mask_id,
        .block_adapter = weights->block_adapter,
        .has_adapter = weights->has_adapter,
    };
    if (sizes->n_pages && (rc = eng_forward_open_kv(&model, sizes->n_pages, err, err_size)) != 0) {
        close_forward(f);
        return rc;
    }
    *ret = model;
    return 0;
}
