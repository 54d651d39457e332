// See tiny_model.h. The order of the ops is the engine's (engine/forward.c).
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>

// ---- weights --------------------------------------------------------------------------------------------------------

static struct krn_tensor scaled(struct random *random, int32_t rows, int32_t cols, float scale, float offset)
{
    struct krn_tensor t = tensor_random(random, KRN_BF16, rows, cols);
    uint16_t *data = (uint16_t *)(uintptr_t)t.data;
    for (int64_t i = 0; i < (int64_t)rows * cols; i++) {
        float value = bf16_to_float(data[i]) * scale + offset;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        data[i] = (uint16_t)(bits >> 16);
    }
    return t;
}

static const int32_t shapes[TINY_PER_LAYER][2] = {
    [TINY_Q] = {TINY_HEADS * TINY_DIM, TINY_HIDDEN},
    [TINY_K] = {TINY_KV_HEADS * TINY_DIM, TINY_HIDDEN},
    [TINY_V] = {TINY_KV_HEADS * TINY_DIM, TINY_HIDDEN},
    [TINY_O] = {TINY_HIDDEN, TINY_HEADS *TINY_DIM},
    [TINY_GATE] = {TINY_FF, TINY_HIDDEN},
    [TINY_UP] = {TINY_FF, TINY_HIDDEN},
    [TINY_DOWN] = {TINY_HIDDEN, TINY_FF},
    [TINY_NORM1] = {1, TINY_HIDDEN},
    [TINY_NORM2] = {1, TINY_HIDDEN},
};

void tiny_weights_make(struct tiny_weights *ret)
{
    struct random random = {.state = 2024};
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < TINY_PER_LAYER; i++)
            ret->layers[l][i] = scaled(&random, shapes[i][0], shapes[i][1], i >= TINY_NORM1 ? 0.1f : 0.3f,
                                       i >= TINY_NORM1 ? 1.0f : 0.0f);
        ret->a[l] = scaled(&random, TINY_RANK, TINY_HEADS * TINY_DIM, 0.5f, 0);
        ret->b[l] = scaled(&random, TINY_HIDDEN, TINY_RANK, 0.5f, 0);
    }
    ret->embed = scaled(&random, TINY_VOCAB, TINY_HIDDEN, 1, 0);
    ret->norm = scaled(&random, 1, TINY_HIDDEN, 0.1f, 1);
    ret->head = scaled(&random, TINY_VOCAB, TINY_HIDDEN, 0.5f, 0);
}

void tiny_weights_free(struct tiny_weights *w)
{
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < TINY_PER_LAYER; i++)
            tensor_free(&w->layers[l][i]);
        tensor_free(&w->a[l]);
        tensor_free(&w->b[l]);
    }
    tensor_free(&w->embed);
    tensor_free(&w->norm);
    tensor_free(&w->head);
}

static int import_weights(struct tiny_model *m, const struct tiny_weights *host, enum krn_type type)
{
    struct krn_backend *b = m->backend;
    int rc = 0;
    type = type == KRN_F32 ? KRN_BF16 : type;
#define IMPORT(name, as)                                                                 \
    do {                                                                                 \
        if (rc == 0)                                                                     \
            rc = b->import_weights(b->ctx, &host->name, as, KRN_SPLIT_NONE, &m->w.name); \
    } while (0)
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < TINY_PER_LAYER; i++)
            IMPORT(layers[l][i], i >= TINY_NORM1 ? KRN_BF16 : type);
        IMPORT(a[l], KRN_BF16);
        IMPORT(b[l], KRN_BF16);
    }
    IMPORT(embed, KRN_BF16);
    IMPORT(norm, KRN_BF16);
    IMPORT(head, KRN_BF16);
#undef IMPORT
    return rc;
}

// ---- open -----------------------------------------------------------------------------------------------------------

static int alloc_buffers(struct tiny_model *m)
{
    struct krn_backend *b = m->backend;
    const struct {
        void **at;
        enum krn_rows_kind kind;
        int32_t rows, width;
    } buffers[] = {
        {&m->x, KRN_ROWS_STATE, TINY_ROWS, TINY_HIDDEN},
        {&m->n, KRN_ROWS_INPUT, TINY_ROWS, TINY_HIDDEN},
        {&m->q, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_HEADS * TINY_DIM},
        {&m->k, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_KV_HEADS * TINY_DIM},
        {&m->v, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_KV_HEADS * TINY_DIM},
        {&m->att, KRN_ROWS_INPUT, TINY_ROWS, TINY_HEADS * TINY_DIM},
        {&m->add, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_HIDDEN},
        {&m->gate, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_FF},
        {&m->up, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_FF},
        {&m->ff, KRN_ROWS_INPUT, TINY_ROWS, TINY_FF},
        {&m->scratch, KRN_ROWS_OUTPUT, TINY_ROWS, TINY_RANK},
        {&m->wanted_x, KRN_ROWS_STATE, m->chunk, TINY_HIDDEN},
        {&m->logits, KRN_ROWS_STATE, m->chunk, TINY_VOCAB},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        *buffers[i].at = b->alloc_rows(b->ctx, buffers[i].kind, buffers[i].rows, buffers[i].width, "activations");
        if (!*buffers[i].at)
            return KRN_ENOMEM;
    }
    return 0;
}

int tiny_open(struct tiny_model *m, struct krn_backend *backend, const struct tiny_weights *host,
              const struct tiny_options *options)
{
    *m = (struct tiny_model){.backend = backend, .chunk = options && options->chunk ? options->chunk : TINY_ROWS};
    for (int i = 0; i < TINY_DIM / 2; i++)
        m->inv_freq[i] = powf(10000, -2.0f * (float)i / TINY_DIM);
    m->rope = (struct krn_rope){.inv_freq = m->inv_freq,
                                .head_dim = TINY_DIM,
                                .attention_factor = 1.1f,
                                .query_beta = 0.1f,
                                .query_original_max = 8};
    m->kv = (struct krn_kv){.type = options && options->kv ? options->kv : KRN_N_TYPES,
                            .n_layers = TINY_LAYERS,
                            .n_pages = TINY_PAGES,
                            .page_size = TINY_PAGE,
                            .n_kv_heads = TINY_KV_HEADS,
                            .head_dim = TINY_DIM};
    const struct krn_limits limits = {.max_rows = TINY_ROWS,
                                      .max_segments = TINY_ROWS,
                                      .max_chunk = m->chunk,
                                      .max_pages = 400,
                                      .n_layers = TINY_LAYERS,
                                      .n_heads = TINY_HEADS,
                                      .n_kv_heads = TINY_KV_HEADS,
                                      .head_dim = TINY_DIM,
                                      .n_vocab = TINY_VOCAB,
                                      .hidden = TINY_HIDDEN,
                                      .ff = TINY_FF,
                                      .adapter_rank = TINY_RANK,
                                      .rope = &m->rope};
    int rc = import_weights(m, host, options ? options->weights : KRN_F32);
    if (rc == 0)
        rc = alloc_buffers(m);
    if (rc == 0)
        rc = backend->prepare(backend->ctx, &limits);
    return rc == 0 ? backend->kv_open(backend->ctx, &m->kv) : rc;
}

// ---- a pass ---------------------------------------------------------------------------------------------------------

static int run_layer(struct tiny_model *m, const struct krn_pass *pass, int32_t layer)
{
    struct krn_backend *b = m->backend;
    void *ctx = b->ctx;
    const struct krn_tensor *w = m->w.layers[layer];
    const struct krn_segment *segments = pass->segments;
    int32_t rows = pass->n_rows, n = pass->n_segments;
    const struct krn_product qkv[] = {{m->q, &w[TINY_Q]}, {m->k, &w[TINY_K]}, {m->v, &w[TINY_V]}};
    const struct krn_adapter adapter = {m->w.a[layer], m->w.b[layer], 0.75f};
    const struct krn_adapter *on = pass->adapter_rows ? &adapter : NULL;
    void *const scratch[] = {m->gate, m->up};
    int rc;
    if ((rc = b->rms_norm(ctx, m->n, m->x, layer ? m->add : NULL, &w[TINY_NORM1], 1e-5f, rows, TINY_HIDDEN)) != 0 ||
        (rc = b->project(ctx, qkv, 3, m->n, rows)) != 0 ||
        (rc = b->rope_write(ctx, m->q, m->k, m->v, TINY_HEADS, &m->rope, &m->kv, layer, segments, n)) != 0 ||
        (rc = b->attention(ctx, m->att, m->q, TINY_HEADS, &m->kv, layer, segments, n)) != 0 ||
        (rc = b->linear(ctx, m->add, m->att, &w[TINY_O], rows, on, pass->adapter_rows, on ? m->scratch : NULL)) != 0 ||
        (rc = b->rms_norm(ctx, m->n, m->x, m->add, &w[TINY_NORM2], 1e-5f, rows, TINY_HIDDEN)) != 0 ||
        (rc = b->gated(ctx, m->ff, m->n, &w[TINY_GATE], &w[TINY_UP], rows, scratch)) != 0)
        return rc;
    return b->linear(ctx, m->add, m->ff, &w[TINY_DOWN], rows, NULL, NULL, NULL);
}

int tiny_ops(struct tiny_model *m, const struct krn_pass *pass)
{
    struct krn_backend *b = m->backend;
    void *ctx = b->ctx;
    int rc = b->embed(ctx, m->x, &m->w.embed, pass->tokens, pass->n_rows);
    for (int32_t layer = 0; rc == 0 && layer < TINY_LAYERS; layer++)
        rc = run_layer(m, pass, layer);
    if (rc == 0)
        rc = b->add(ctx, m->x, m->add, pass->n_rows, TINY_HIDDEN);
    for (int32_t i = 0; rc == 0 && i < pass->n_wanted; i += m->chunk) {
        int32_t n = pass->n_wanted - i < m->chunk ? pass->n_wanted - i : m->chunk;
        if ((rc = b->gather(ctx, m->wanted_x, m->x, pass->wanted_rows + i, n, TINY_HIDDEN)) != 0 ||
            (rc = b->rms_norm(ctx, m->n, m->wanted_x, NULL, &m->w.norm, 1e-5f, n, TINY_HIDDEN)) != 0 ||
            (rc = b->head(ctx, m->logits, m->n, &m->w.head, n)) != 0)
            return rc;
        rc = b->select(ctx, m->logits, TINY_VOCAB, TINY_VOCAB - 1, pass->wanted + i, n, pass->choices + i);
    }
    return rc == 0 ? b->accept(ctx, pass->accepts, pass->n_accepts, pass->accepted) : rc;
}

int tiny_start(struct tiny_model *m, const struct krn_pass *pass)
{
    struct krn_backend *b = m->backend;
    int begun = b->begin(b->ctx, pass);
    if (begun < 0)
        return begun;
    int rc = begun == KRN_REPLAY ? 0 : tiny_ops(m, pass);
    if (rc < 0) {
        b->abandon(b->ctx);
        return rc;
    }
    rc = b->submit(b->ctx);
    return rc < 0 ? rc : begun;
}

int tiny_pass(struct tiny_model *m, const struct krn_pass *pass)
{
    int begun = tiny_start(m, pass);
    int waited = m->backend->wait(m->backend->ctx);
    return waited < 0 ? waited : begun;
}

// ---- plans ----------------------------------------------------------------------------------------------------------

void tiny_plan_start(struct tiny_plan *p, int32_t n_sequences, int32_t chunk)
{
    memset(p, 0, sizeof *p);
    memset(p->links, 0xff, sizeof p->links);
    p->n_sequences = n_sequences;
    p->chunk = chunk ? chunk : TINY_ROWS;
    p->pass = (struct krn_pass){.tokens = p->tokens,
                                .links = p->links,
                                .segments = p->segments,
                                .wanted_rows = p->wanted_rows,
                                .wanted = p->wanted,
                                .choices = p->choices,
                                .accepts = p->accepts,
                                .accepted = p->accepted};
}

int32_t tiny_plan_add(struct tiny_plan *p, int32_t sequence, int32_t first_pos, int32_t rows, enum krn_mask mask,
                      enum tiny_wants wants)
{
    struct krn_pass *pass = &p->pass;
    int32_t s = pass->n_segments++, row = pass->n_rows, each = TINY_PAGES / p->n_sequences;
    if (s >= TINY_SEGMENTS || row + rows > TINY_ROWS || first_pos + rows > each * TINY_PAGE)
        abort();
    for (int32_t i = 0; i < each; i++)
        p->pages[s][i] = sequence * each + (i * 5 + 3) % each;
    p->segments[s] =
        (struct krn_segment){.row = row, .rows = rows, .first_pos = first_pos, .mask = mask, .pages = p->pages[s]};
    for (int32_t r = 0; r < rows; r++) {
        p->tokens[row + r] = (sequence * 31 + (first_pos + r) * 17 + 5) % (TINY_VOCAB - 1);
        if (wants == TINY_WANTS_NONE || (wants == TINY_WANTS_LAST && r + 1 < rows))
            continue;
        int32_t j = pass->n_wanted++;
        p->wanted_rows[j] = row + r;
        p->wanted[j] = (struct krn_select_row){.row = j % p->chunk,
                                               .top_p = 1,
                                               .repetition_penalty = 1,
                                               .seed = 7,
                                               .position = first_pos + r + 1,
                                               .n_top = 3};
    }
    pass->n_rows += rows;
    return row;
}

void tiny_plan_adapt(struct tiny_plan *p, int32_t row, int32_t rows)
{
    p->pass.adapter_rows = p->adapter;
    memset(p->adapter + row, 1, (size_t)rows);
}
