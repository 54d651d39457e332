// Before the first pass: everything that passes need besides what the engine allocates, and what graphs will cost.
//
// A graph's cost in device memory is not documented, so it is measured: a few graphs of as many launches as a pass has
// are made, run over a pass block without rows, and thrown away. That also shows early whether recording works here.
#include "backend.h"

#include <stdlib.h>
#include <string.h>

enum { LAUNCHES_PER_LAYER = 10, TRIAL_GRAPHS = 4 };

static const char *check_limits(const struct krn_limits *l)
{
    if (!l || l->max_rows <= 0 || l->max_rows > (1 << 20) || l->max_segments <= 0 || l->max_chunk <= 0 ||
        l->max_pages <= 0 || l->max_pages > INT32_MAX / 4 || l->n_layers <= 0 || l->n_heads <= 0 ||
        l->n_kv_heads <= 0 || l->n_heads % l->n_kv_heads != 0 || l->n_vocab <= 0 || l->hidden <= 0 || l->ff <= 0 ||
        l->adapter_rank < 0)
        return "the limits of passes are out of range";
    if (!l->rope || !l->rope->inv_freq || l->rope->head_dim != l->head_dim)
        return "the limits of passes name no rotary embedding";
    return NULL;
}

// The device's constants: frequencies, and everything that kernels leave for each other within a pass.
static int alloc_working(struct krn_cuda_backend *b)
{
    const struct krn_limits *l = &b->limits;
    struct krn_cuda_memory *m = &b->memory;
    size_t rows = (size_t)KRN_PAD_TO(l->max_rows, KRN_ROW_TILE), half = (size_t)l->head_dim / 2;
    size_t select_rows =
        l->max_chunk < KRN_CUDA_SELECT_ROWS ? (size_t)KRN_PAD_TO(l->max_chunk, KRN_ROW_TILE) : KRN_CUDA_SELECT_ROWS;
    const char *what = "activations";
    void *inv_freq, *row_tokens, *table, *q_scale, *q, *inner, *work;
    int rc;
    if ((rc = krn_cuda_memory_alloc(m, half * sizeof(float), what, true, &inv_freq)) < 0 ||
        (rc = krn_cuda_memory_upload(m, inv_freq, b->rope.inv_freq, half * sizeof(float))) < 0 ||
        (rc = krn_cuda_memory_alloc(m, rows * sizeof(int32_t), what, true, &row_tokens)) < 0 ||
        (rc = krn_cuda_memory_alloc(m, rows * half * 2 * sizeof(float), what, true, &table)) < 0 ||
        (rc = krn_cuda_memory_alloc(m, rows * sizeof(float), what, true, &q_scale)) < 0 ||
        (rc = krn_cuda_memory_alloc(m, rows * (size_t)l->n_heads * KRN_KV_DIM(l->head_dim) * 2, what, true, &q)) < 0 ||
        (rc = krn_cuda_memory_alloc(m, rows * KRN_PAD((size_t)l->adapter_rank) * 2, what, true, &inner)) < 0 ||
        (rc = krn_cuda_memory_alloc(m, select_rows * (size_t)l->n_vocab * sizeof(float), "logits", false, &work)) < 0)
        return rc;
    b->inv_freq = inv_freq;
    b->row_tokens = row_tokens;
    b->rope_table = table;
    b->q_scale = q_scale;
    b->q = q;
    b->inner = inner;
    b->select_work = work;
    return 0;
}

// Records a graph of as many launches as a pass has, over a pass block without rows, and runs it once.
static int trial_graph(struct krn_cuda_backend *b, struct krn_cuda_graph **ret)
{
    const struct krn_cuda_driver *d = &b->driver;
    struct krn_cuda_step step = {
        .kind = KRN_STEP_ROPE_TABLE,
        .as.rope_table = {.pass = b->passes.block,
                          .inv_freq = b->inv_freq,
                          .attention_factor = 1,
                          .query_original_max = 1,
                          .head_dim = b->limits.head_dim,
                          .rows = 1,
                          .table = b->rope_table,
                          .q_scale = b->q_scale},
    };
    int rc = d->capture_begin(d->ctx, d->stream);
    if (rc < 0)
        return rc;
    for (int32_t i = 0; rc == 0 && i < b->limits.n_layers * LAUNCHES_PER_LAYER; i++)
        rc = krn_cuda_step_run(d, b->overlap, &step);
    int ended = d->capture_end(d->ctx, d->stream, rc == 0 ? ret : NULL);
    rc = rc < 0 ? rc : ended;
    return rc < 0 ? rc : d->graph_launch(d->ctx, *ret, d->stream);
}

// What a graph takes of the device's memory, which is handed out in large steps: several are made.
static int measure_graphs(struct krn_cuda_backend *b)
{
    const struct krn_cuda_driver *d = &b->driver;
    struct krn_cuda_graph *graphs[TRIAL_GRAPHS] = {0};
    int64_t before, after, total;
    int rc = d->memory(d->ctx, &before, &total);
    for (int i = 0; rc == 0 && i < TRIAL_GRAPHS; i++)
        rc = trial_graph(b, &graphs[i]);
    if (rc < 0)
        krn_cuda_no_graphs(b, d->error(d->ctx));
    rc = d->sync(d->ctx, d->stream);
    if (rc == 0)
        rc = d->memory(d->ctx, &after, &total);
    if (rc == 0 && before > after)
        b->graph_bytes = (before - after + TRIAL_GRAPHS - 1) / TRIAL_GRAPHS;
    for (int i = 0; i < TRIAL_GRAPHS; i++)
        if (graphs[i])
            d->graph_free(d->ctx, graphs[i]);
    return rc;
}

int krn_cuda_prepare(void *ctx, const struct krn_limits *limits)
{
    struct krn_cuda_backend *b = ctx;
    if (b->failed)
        return b->failed;
    const char *wrong = b->prepared || b->inv_freq ? "prepare was called before" : check_limits(limits);
    if (wrong)
        return krn_cuda_refuse(b, KRN_EINVAL, "%s", wrong);
    if (limits->head_dim <= 0 || limits->head_dim > 128 || limits->head_dim % 2 != 0)
        return krn_cuda_refuse(b, KRN_ENOTSUP, "no attention kernel for %d elements a head", limits->head_dim);
    float *inv_freq = malloc((size_t)limits->head_dim / 2 * sizeof *inv_freq);
    if (!inv_freq)
        return krn_cuda_refuse(b, KRN_ENOMEM, "no memory for the passes");
    memcpy(inv_freq, limits->rope->inv_freq, (size_t)limits->head_dim / 2 * sizeof *inv_freq);
    free((float *)(uintptr_t)b->rope.inv_freq);
    b->limits = *limits;
    b->limits.rope = NULL;
    b->rope = *limits->rope;
    b->rope.inv_freq = inv_freq;
    int32_t page_size = b->passes.page_size, n_pages = b->passes.n_pages;
    int rc = krn_cuda_checked(b, alloc_working(b));
    if (rc == 0)
        rc = krn_cuda_checked(b, krn_cuda_passes_open(&b->passes, &b->driver, &b->memory, limits));
    b->passes.page_size = page_size;
    b->passes.n_pages = n_pages;
    if (rc == 0)
        rc = krn_cuda_checked(b, krn_cuda_memory_end_loading(&b->memory));
    if (rc == 0 && !b->graphs.disabled)
        rc = krn_cuda_checked(b, measure_graphs(b));
    b->prepared = rc == 0;
    return rc;
}
