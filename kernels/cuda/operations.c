// The ops of a pass but for products: checks their arguments and turns each into steps.
//
// Every launch is for the bucket of the rows that the op was given, so all ops on so many rows, whether of the flat
// matrix or of a chunk of wanted rows, have one shape, and a recorded pass fits every pass of its key. A chunk's bucket
// may reach into the next chunk's wanted rows; what it leaves there is overwritten when their turn comes.
#include "backend.h"
#include "quant.h"

#include <string.h>

// ---- checks ---------------------------------------------------------------------------------------------------------

// 0: the op may run.
int krn_cuda_enter(struct krn_cuda_backend *b, int32_t rows)
{
    if (b->failed)
        return b->failed;
    if (b->state != KRN_CUDA_EAGER && b->state != KRN_CUDA_RECORD)
        return krn_cuda_refuse(b, KRN_EINVAL, "an op stands outside a pass");
    if (rows < 0 || rows > b->limits.max_rows)
        return krn_cuda_refuse(b, KRN_EINVAL, "an op on %d rows is out of range", rows);
    return b->driver.use ? krn_cuda_checked(b, b->driver.use(b->driver.ctx)) : 0;
}

int krn_cuda_refuse_op(struct krn_cuda_backend *b, const char *op)
{
    return krn_cuda_refuse(b, KRN_EINVAL, "%s: argument out of range", op);
}

// A norm's weight or the embedding.
static bool good_plain(const struct krn_tensor *w)
{
    return w && w->data && w->rows > 0 && w->cols > 0 && (w->type == KRN_BF16 || w->type == KRN_F32);
}

struct krn_cuda_rows *krn_cuda_find_input(struct krn_cuda_backend *b, const void *x, int32_t rows, int32_t width)
{
    struct krn_cuda_rows *m = krn_cuda_memory_rows(&b->memory, x, KRN_ROWS_INPUT);
    return m && rows <= m->rows && (int64_t)m->rows * KRN_PAD(width) <= m->elements ? m : NULL;
}

// The matrix and, with *sums of its last product, what an op reads.
bool krn_cuda_find_sums(struct krn_cuda_backend *b, const void *x, int32_t rows, int32_t width,
                        struct krn_dev_sums *ret)
{
    const struct krn_cuda_rows *m = krn_cuda_memory_rows(&b->memory, x, KRN_ROWS_OUTPUT);
    if (!m || rows > m->rows || m->sums.n == 0 || m->sums.width != width)
        return false;
    *ret = m->sums;
    return true;
}

static bool good_kv(const struct krn_cuda_backend *b, const struct krn_kv *kv, int32_t layer,
                    const struct krn_segment *segments, int32_t n_segments)
{
    return kv && kv->k && kv->v && (kv->type == KRN_BF16 || (kv->type == KRN_FP8 && kv->k_scales && kv->v_scales)) &&
           kv->page_size == b->passes.page_size && kv->n_pages == b->passes.n_pages &&
           kv->n_kv_heads == b->limits.n_kv_heads && kv->head_dim == b->limits.head_dim && layer >= 0 &&
           layer < kv->n_layers && segments == b->pass->segments && n_segments == b->pass->n_segments;
}

static struct krn_dev_kv dev_kv(const struct krn_kv *kv)
{
    return (struct krn_dev_kv){.k = kv->k,
                               .v = kv->v,
                               .k_scales = kv->k_scales,
                               .v_scales = kv->v_scales,
                               .fp8 = kv->type == KRN_FP8,
                               .n_pages = kv->n_pages,
                               .page_size = kv->page_size,
                               .n_kv_heads = kv->n_kv_heads,
                               .head_dim = kv->head_dim};
}

// ---- rows -----------------------------------------------------------------------------------------------------------

static int cuda_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    if (!x || !good_plain(table) || table->rows != b->limits.n_vocab || tokens != b->pass->tokens ||
        rows != b->pass->n_rows)
        return krn_cuda_refuse_op(b, "embed");
    if (rows == 0)
        return 0;
    struct krn_cuda_step step = {
        .kind = KRN_STEP_EMBED,
        .as.embed = {.pass = b->passes.block,
                     .table = table->data,
                     .table_f32 = table->type == KRN_F32,
                     .hidden = table->cols,
                     .table_stride = krn_weight_stride(table->type, table->cols),
                     .rows = krn_cuda_bucket(rows),
                     .x = x,
                     .last_choices = b->passes.choices,
                     .row_tokens = b->row_tokens},
    };
    return krn_cuda_issue(b, &step);
}

static int cuda_rms_norm(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                         int32_t rows, int32_t width)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(rows);
    struct krn_cuda_step step = {.kind = KRN_STEP_NORM};
    if (!x || !good_plain(weight) || width <= 0 || (int64_t)weight->rows * weight->cols != width ||
        !krn_cuda_find_input(b, y, bucket, width) ||
        (add && rows > 0 && !krn_cuda_find_sums(b, add, bucket, width, &step.as.norm.add)))
        return krn_cuda_refuse_op(b, "rms_norm");
    if (rows == 0)
        return 0;
    struct krn_norm_args *args = &step.as.norm;
    args->pass = b->passes.block;
    args->x = x;
    args->y = y;
    args->weight = weight->data;
    args->weight_f32 = weight->type == KRN_F32;
    args->rows = bucket;
    args->width = width;
    args->eps = eps;
    return krn_cuda_issue(b, &step);
}

static int cuda_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(rows);
    struct krn_cuda_step step = {.kind = KRN_STEP_NORM};
    if (!x || width <= 0 || (rows > 0 && !krn_cuda_find_sums(b, y, bucket, width, &step.as.norm.add)))
        return krn_cuda_refuse_op(b, "add");
    if (rows == 0)
        return 0;
    step.as.norm.pass = b->passes.block;
    step.as.norm.x = x;
    step.as.norm.rows = bucket;
    step.as.norm.width = width;
    return krn_cuda_issue(b, &step);
}

static int cuda_flatten(void *ctx, void *y, int32_t rows, int32_t width, float **ret_plain)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(rows);
    struct krn_cuda_rows *m = krn_cuda_memory_rows(&b->memory, y, KRN_ROWS_OUTPUT);
    struct krn_cuda_step step = {
        .kind = KRN_STEP_FLATTEN,
        .as.flatten = {.pass = b->passes.block, .rows = bucket},
    };
    if (!m || !ret_plain || (rows > 0 && !krn_cuda_find_sums(b, y, bucket, width, &step.as.flatten.x)))
        return krn_cuda_refuse_op(b, "flatten");
    *ret_plain = m->data;
    b->shared = true;
    if (rows == 0)
        return 0;
    m->sums.n = 1;
    m->sums.extra = 0;
    return krn_cuda_issue(b, &step);
}

static int32_t cuda_bucket(void *ctx, int32_t rows)
{
    (void)ctx;
    return krn_cuda_bucket(rows);
}

// The index in the pass's array of what an op was given a part of; -1: not a part.
static int32_t part_of(const void *all, int32_t n_all, const void *part, int32_t n, size_t size)
{
    uintptr_t from = (uintptr_t)all, at = (uintptr_t)part;
    if (n < 0 || n > n_all || at < from || (at - from) % size != 0 || (at - from) / size > (uintptr_t)(n_all - n))
        return -1;
    return (int32_t)((at - from) / size);
}

static int cuda_gather(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, n);
    if (rc < 0 || n == 0)
        return rc;
    int32_t first = part_of(b->pass->wanted_rows, b->pass->n_wanted, rows, n, sizeof *rows);
    if (!y || !x || width <= 0 || first < 0 || n > b->limits.max_chunk)
        return krn_cuda_refuse_op(b, "gather");
    struct krn_cuda_step step = {
        .kind = KRN_STEP_GATHER,
        .as.gather =
            {.pass = b->passes.block, .x = x, .y = y, .first = first, .rows = krn_cuda_bucket(n), .width = width},
    };
    return krn_cuda_issue(b, &step);
}

// ---- attention ------------------------------------------------------------------------------------------------------

// prepare put the frequencies on the device; they are the model's and never change.
static bool same_rope(const struct krn_rope *a, const struct krn_rope *b)
{
    return a && a->inv_freq && a->head_dim == b->head_dim && a->attention_factor == b->attention_factor &&
           a->query_beta == b->query_beta && a->query_original_max == b->query_original_max &&
           memcmp(a->inv_freq, b->inv_freq, (size_t)a->head_dim / 2 * sizeof(float)) == 0;
}

// Angles depend on the row alone, not on the layer: the first layer's call makes them for all.
static int make_rope_table(struct krn_cuda_backend *b, int32_t bucket)
{
    struct krn_cuda_step step = {
        .kind = KRN_STEP_ROPE_TABLE,
        .as.rope_table = {.pass = b->passes.block,
                          .inv_freq = b->inv_freq,
                          .attention_factor = b->rope.attention_factor,
                          .query_beta = b->rope.query_beta,
                          .query_original_max = b->rope.query_original_max,
                          .head_dim = b->rope.head_dim,
                          .rows = bucket,
                          .table = b->rope_table,
                          .q_scale = b->q_scale},
    };
    b->rope_table_made = true;
    return krn_cuda_issue(b, &step);
}

static int cuda_rope_write(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                           const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments,
                           int32_t n_segments)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, 0);
    if (rc < 0 || b->pass->n_rows == 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(b->pass->n_rows);
    struct krn_cuda_step step = {.kind = KRN_STEP_ROPE_WRITE};
    struct krn_rope_write_args *args = &step.as.rope_write;
    if (!good_kv(b, kv, layer, segments, n_segments) || n_heads != b->limits.n_heads || !same_rope(rope, &b->rope) ||
        !krn_cuda_find_sums(b, q, bucket, n_heads * kv->head_dim, &args->q) ||
        !krn_cuda_find_sums(b, k, bucket, kv->n_kv_heads * kv->head_dim, &args->k) ||
        !krn_cuda_find_sums(b, v, bucket, kv->n_kv_heads * kv->head_dim, &args->v))
        return krn_cuda_refuse_op(b, "rope_write");
    args->pass = b->passes.block;
    args->q_out = b->q;
    args->table = b->rope_table;
    args->q_scale = b->q_scale;
    args->kv = dev_kv(kv);
    args->layer = layer;
    args->n_heads = n_heads;
    args->rows = bucket;
    if (!b->rope_table_made && (rc = make_rope_table(b, bucket)) < 0)
        return rc;
    b->rotated = q;
    return krn_cuda_issue(b, &step);
}

static int cuda_attention(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                          const struct krn_segment *segments, int32_t n_segments)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, 0);
    if (rc < 0 || b->pass->n_rows == 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(b->pass->n_rows);
    if (!good_kv(b, kv, layer, segments, n_segments) || n_heads != b->limits.n_heads || !q || q != b->rotated ||
        !krn_cuda_find_input(b, y, bucket, n_heads * kv->head_dim))
        return krn_cuda_refuse_op(b, "attention");
    struct krn_cuda_step step = {
        .kind = KRN_STEP_ATTENTION,
        .as.attention = {.pass = b->passes.block,
                         .q = b->q,
                         .y = y,
                         .kv = dev_kv(kv),
                         .layer = layer,
                         .n_heads = n_heads,
                         .rows = bucket,
                         .blocks = b->driver.device.multiprocessors * KRN_ATTENTION_BLOCKS,
                         .sums = b->passes.sums},
    };
    return krn_cuda_issue(b, &step);
}

// ---- choices --------------------------------------------------------------------------------------------------------

static int cuda_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id,
                       const struct krn_select_row *rows, int32_t n, struct krn_choice *ret)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, n);
    if (rc < 0 || n == 0)
        return rc;
    int32_t first = part_of(b->pass->wanted, b->pass->n_wanted, rows, n, sizeof *rows);
    if (!logits || n_vocab != b->limits.n_vocab || first < 0 || ret != b->pass->choices + first ||
        n > b->limits.max_chunk)
        return krn_cuda_refuse_op(b, "select");
    int32_t bucket = krn_cuda_bucket(n);
    for (int32_t at = 0; rc == 0 && at < bucket; at += KRN_CUDA_SELECT_ROWS) {
        struct krn_cuda_step step = {
            .kind = KRN_STEP_SELECT,
            .as.select = {.pass = b->passes.block,
                          .logits = logits,
                          .work = b->select_work,
                          .n_vocab = n_vocab,
                          .banned_id = banned_id,
                          .first = first + at,
                          .rows = bucket - at < KRN_CUDA_SELECT_ROWS ? bucket - at : KRN_CUDA_SELECT_ROWS,
                          .choices = b->passes.choices,
                          .tops = b->passes.tops},
        };
        rc = krn_cuda_issue(b, &step);
    }
    return rc;
}

static int cuda_accept(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, n);
    if (rc < 0 || n == 0)
        return rc;
    if (accepts != b->pass->accepts || n != b->pass->n_accepts || ret != b->pass->accepted)
        return krn_cuda_refuse_op(b, "accept");
    struct krn_cuda_step step = {
        .kind = KRN_STEP_ACCEPT,
        .as.accept = {.pass = b->passes.block,
                      .row_tokens = b->row_tokens,
                      .choices = b->passes.choices,
                      .accepted = b->passes.accepted,
                      .accepts = b->key.rows}, // as many as the bucket can have: their number is not in the key
    };
    return krn_cuda_issue(b, &step);
}

void krn_cuda_operations(struct krn_backend *backend)
{
    backend->embed = cuda_embed;
    backend->rms_norm = cuda_rms_norm;
    backend->rope_write = cuda_rope_write;
    backend->attention = cuda_attention;
    backend->add = cuda_add;
    backend->flatten = cuda_flatten;
    backend->bucket = cuda_bucket;
    backend->gather = cuda_gather;
    backend->select = cuda_select;
    backend->accept = cuda_accept;
}
