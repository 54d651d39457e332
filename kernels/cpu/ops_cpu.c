// The CPU backend's operations: checks the arguments of every op, cuts its work into units and gives them to the pool.
//
// Every op here is synchronous: when it returns, its result is there. Numerics live in the files of the ops, order of
// summation included; this file only decides how many threads share an op, which never changes a bit of its result.
// Small ops stay on the caller's thread: waking others costs more than they save. Matrix products: products_cpu.c.
#include "backend_cpu.h"

// A unit of work is an element of a simple loop, or 8 multiply-adds.
enum {
    SPLIT_FROM = 32 * 1024, // 2.4 microseconds: below, an op stays on the caller's thread. Then the one row of a small
                            // model's step needs no second core, which serves HTTP better: see kernels/README.md
    UNITS_PER_CHUNK = 8 * 1024, // 0.6 microseconds (a hand-over to a thread that spins costs 0.2 to 0.3)
    CHUNKS_PER_THREAD = 4,      // so that a thread that comes late does not leave the others waiting
};

int krn_cpu_chunks(const struct krn_cpu *cpu, double work)
{
    int most = CHUNKS_PER_THREAD * cpu->n_threads;
    if (cpu->n_threads == 1 || work < SPLIT_FROM)
        return 1;
    double chunks = work / UNITS_PER_CHUNK;
    return chunks >= most ? most : (int)chunks;
}

// ---- checks ---------------------------------------------------------------------------------------------------------

bool krn_cpu_good_tensor(const struct krn_tensor *tensor)
{
    return tensor && tensor->data && tensor->rows > 0 && tensor->cols > 0 &&
           (tensor->type == KRN_F32 || tensor->type == KRN_BF16);
}

static bool good_segments(const struct krn_segment *segments, int32_t n_segments)
{
    if (n_segments < 0 || (n_segments > 0 && !segments))
        return false;
    for (int32_t s = 0; s < n_segments; s++) {
        const struct krn_segment *segment = &segments[s];
        if (segment->row < 0 || segment->rows <= 0 || segment->first_pos < 0 ||
            segment->first_pos > INT32_MAX - segment->rows ||
            (segment->mask != KRN_MASK_CAUSAL && segment->mask != KRN_MASK_BLOCK))
            return false;
    }
    return true;
}

static bool good_store(const struct krn_kv *kv)
{
    return kv && kv->k && kv->v &&
           (kv->type == KRN_F32 || kv->type == KRN_BF16 || (kv->type == KRN_Q8 && kv->k_scales && kv->v_scales));
}

// Segments, their pages and the layer lie inside the store.
static bool good_kv(const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments)
{
    if (!good_store(kv) || kv->page_size <= 0 || kv->n_kv_heads <= 0 || kv->head_dim <= 0 || layer < 0 ||
        layer >= kv->n_layers || !good_segments(segments, n_segments))
        return false;
    for (int32_t s = 0; s < n_segments; s++) {
        const struct krn_segment *segment = &segments[s];
        int32_t n_pages = (segment->first_pos + segment->rows - 1) / kv->page_size + 1;
        if (!segment->pages)
            return false;
        for (int32_t i = 0; i < n_pages; i++)
            if (segment->pages[i] < 0 || segment->pages[i] >= kv->n_pages)
                return false;
    }
    return true;
}

static int64_t rows_of(const struct krn_segment *segments, int32_t n_segments)
{
    int64_t rows = 0;
    for (int32_t s = 0; s < n_segments; s++)
        rows += segments[s].rows;
    return rows;
}

// ---- rows and elements ----------------------------------------------------------------------------------------------

int krn_cpu_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows)
{
    (void)ctx;
    if (rows < 0 || !krn_cpu_good_tensor(table))
        return KRN_EINVAL;
    for (int32_t r = 0; r < rows; r++)
        if (tokens[r] < 0 || tokens[r] >= table->rows)
            return KRN_EINVAL;
    krn_embed_ref(x, table, tokens, 0, rows);
    return 0;
}

struct rms_norm_job {
    const struct krn_ops *ops;
    struct krn_rms_norm_task task;
};

static void rms_norm_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct rms_norm_job *job = arg;
    (void)thread;
    job->ops->rms_norm(&job->task, begin, end);
}

int krn_cpu_rms_norm(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                     int32_t rows, int32_t width)
{
    struct krn_cpu *cpu = ctx;
    if (rows < 0 || width <= 0 || !krn_cpu_good_tensor(weight) || (int64_t)weight->rows * weight->cols != width)
        return KRN_EINVAL;
    struct rms_norm_job job = {
        .ops = &cpu->ops,
        .task = {.y = y, .x = x, .add = add, .weight = weight, .eps = eps, .width = width},
    };
    krn_pool_run(cpu->pool, rows, krn_cpu_chunks(cpu, (double)rows * width), rms_norm_part, &job);
    return 0;
}

struct add_job {
    const struct krn_ops *ops;
    float *x;
    const float *y;
};

static void add_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct add_job *job = arg;
    (void)thread;
    job->ops->add(job->x, job->y, begin, end);
}

int krn_cpu_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width)
{
    struct krn_cpu *cpu = ctx;
    if (rows < 0 || width <= 0)
        return KRN_EINVAL;
    struct add_job job = {.ops = &cpu->ops, .x = x, .y = y};
    int64_t n = (int64_t)rows * width;
    krn_pool_run(cpu->pool, n, krn_cpu_chunks(cpu, (double)n / 4), add_part, &job);
    return 0;
}

// Every matrix is plain here.
int krn_cpu_flatten(void *ctx, void *y, int32_t rows, int32_t width, float **ret_plain)
{
    (void)ctx;
    if (rows < 0 || width <= 0)
        return KRN_EINVAL;
    *ret_plain = y;
    return 0;
}

int32_t krn_cpu_bucket(void *ctx, int32_t rows)
{
    (void)ctx;
    return rows;
}

int krn_cpu_gather(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width)
{
    (void)ctx;
    if (n < 0 || width <= 0)
        return KRN_EINVAL;
    for (int32_t j = 0; j < n; j++)
        if (rows[j] < 0)
            return KRN_EINVAL;
    krn_gather_ref(y, x, rows, width, 0, n);
    return 0;
}

// ---- rope, KV, attention
// ----------------------------------------------------------------------------------------------

struct rope_job {
    struct krn_rope_task task;
    struct krn_cpu_thread *threads;
};

static void rope_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct rope_job *job = arg;
    krn_rope_ref(&job->task, job->threads[thread].rope_cache, begin, end);
}

int krn_cpu_rope_write(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                       const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments)
{
    struct krn_cpu *cpu = ctx;
    if (n_heads <= 0 || !rope || !rope->inv_freq || rope->head_dim <= 0 || rope->head_dim % 2 != 0 ||
        rope->head_dim > KRN_ROPE_DIM_MAX || !good_kv(kv, layer, segments, n_segments) ||
        rope->head_dim != kv->head_dim)
        return KRN_EINVAL;
    struct rope_job job = {
        .task = {.q = q,
                 .k = k,
                 .n_heads = n_heads,
                 .n_kv_heads = kv->n_kv_heads,
                 .rope = rope,
                 .segments = segments,
                 .n_segments = n_segments},
        .threads = cpu->threads,
    };
    int64_t rows = rows_of(segments, n_segments);
    double work = (double)rows * (n_heads + kv->n_kv_heads) * rope->head_dim;
    krn_pool_run(cpu->pool, rows, krn_cpu_chunks(cpu, work), rope_part, &job);
    for (int32_t s = 0; s < n_segments; s++)
        krn_kv_write_ref(kv, layer, k, v, &segments[s]);
    return 0;
}

struct attention_job {
    const struct krn_ops *ops;
    struct krn_attention_task task;
};

static void attention_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct attention_job *job = arg;
    (void)thread;
    job->ops->attention(&job->task, begin, end);
}

int krn_cpu_attention(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                      const struct krn_segment *segments, int32_t n_segments)
{
    struct krn_cpu *cpu = ctx;
    if (!good_kv(kv, layer, segments, n_segments) || n_heads <= 0 || n_heads % kv->n_kv_heads != 0)
        return KRN_EINVAL;
    struct attention_job job = {
        .ops = &cpu->ops,
        .task = {.y = y,
                 .q = q,
                 .n_heads = n_heads,
                 .kv = kv,
                 .layer = layer,
                 .segments = segments,
                 .n_segments = n_segments},
    };
    double scores = 0;
    for (int32_t s = 0; s < n_segments; s++)
        scores += (double)segments[s].rows * (segments[s].first_pos + segments[s].rows);
    double work = scores * n_heads * kv->head_dim / 4;
    krn_pool_run(cpu->pool, krn_attention_shape(&job.task).units, krn_cpu_chunks(cpu, work), attention_part, &job);
    return 0;
}

// ---- select ---------------------------------------------------------------------------------------------------------

struct select_job {
    const struct krn_ops *ops;
    struct krn_select_task task;
    struct krn_cpu_thread *threads;
};

static void select_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct select_job *job = arg;
    job->ops->select(&job->task, &job->threads[thread].select, begin, end);
}

static bool good_select_row(const struct krn_select_row *row, int32_t n_vocab)
{
    // Written so that a NaN fails.
    if (row->row < 0 || !(row->temperature >= 0) || row->n_top < 0 || row->n_top > KRN_TOP_MAX || row->n_counts < 0 ||
        row->n_biases < 0 || !(row->repetition_penalty > 0) || !(row->top_p >= 0) ||
        !(row->min_p >= 0 && row->min_p <= 1))
        return false;
    for (int32_t i = 0; i < row->n_counts; i++)
        if (row->counts[i].token < 0 || row->counts[i].token >= n_vocab)
            return false;
    for (int32_t i = 0; i < row->n_biases; i++)
        if (row->biases[i].token < 0 || row->biases[i].token >= n_vocab)
            return false;
    return true;
}

int krn_cpu_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id,
                   const struct krn_select_row *rows, int32_t n, struct krn_choice *ret)
{
    struct krn_cpu *cpu = ctx;
    if (n < 0 || n_vocab <= 0 || (n > 0 && n_vocab > cpu->threads[0].select.n_vocab))
        return KRN_EINVAL;
    for (int32_t i = 0; i < n; i++)
        if (!good_select_row(&rows[i], n_vocab))
            return KRN_EINVAL;
    struct select_job job = {
        .ops = &cpu->ops,
        .task = {.logits = logits, .n_vocab = n_vocab, .banned_id = banned_id, .rows = rows, .choices = ret},
        .threads = cpu->threads,
    };
    krn_pool_run(cpu->pool, n, krn_cpu_chunks(cpu, 8.0 * n * n_vocab), select_part, &job);
    return 0;
}

// ---- accept ---------------------------------------------------------------------------------------------------------

// Row by row, as long as the next row's token is what this one chose.
static struct krn_accepted accepted_of(const struct krn_pass *pass, const struct krn_accept *accept)
{
    struct krn_accepted accepted = {.seed = -1};
    for (int32_t i = 0; i < accept->rows; i++) {
        int32_t token = pass->choices[accept->choice + i].token;
        if (token < 0)
            return (struct krn_accepted){.seed = -1};
        accepted = (struct krn_accepted){.n = i + 1, .seed = token};
        if (i + 1 < accept->rows && pass->tokens[accept->row + i + 1] != token)
            break;
    }
    return accepted;
}

int krn_cpu_accept(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret)
{
    const struct krn_pass *pass = ((struct krn_cpu *)ctx)->pass;
    if (n < 0 || (n > 0 && !pass))
        return KRN_EINVAL;
    for (int32_t i = 0; i < n; i++) {
        const struct krn_accept *a = &accepts[i];
        if (a->rows <= 0 || a->row < 0 || a->rows > pass->n_rows - a->row || a->choice < 0 ||
            a->rows > pass->n_wanted - a->choice)
            return KRN_EINVAL;
        ret[i] = accepted_of(pass, a);
    }
    return 0;
}
