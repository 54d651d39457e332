// The CPU backend: checks the arguments of every op, cuts its work into units and gives them to the pool.
//
// Every op here is synchronous: when it returns, its result is there, and `wait` has nothing to do. Buffers are plain
// host memory; weights are read where the engine mapped them. Numerics live in the files of the ops, order of summation
// included; this file only decides how many threads share an op, which never changes a bit of its result. Small ops
// stay on the caller's thread: waking others costs more than they save.
//
// One allocation after open is allowed: `select` grows its working memory the first time it meets a larger vocabulary.
#include "cpu_features.h"
#include "kernels.h"
#include "ops.h"
#include "threadpool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    UNITS_PER_CHUNK =
        32 * 1024,         // about 10 microseconds of work; a unit is an element of a simple loop, or 8 multiply-adds
    CHUNKS_PER_THREAD = 4, // so that a thread that comes late does not leave the others waiting
    OUTPUTS_PER_UNIT = 8,  // linear is cut at multiples of this, to keep its tiles whole
};

// Stands before every buffer; keeps the list of what close must free.
struct allocation {
    struct allocation *next, **prev_next;
    void *raw; // what calloc returned
};

enum { ALIGNMENT = 64 };
_Static_assert(sizeof(struct allocation) <= ALIGNMENT, "the header fits before an aligned buffer");

// What each thread of the pool owns; reached by its number.
struct thread_state {
    struct krn_rope_cache *rope_cache;
    struct krn_select_scratch select;
};

struct cpu {
    struct krn_backend backend;
    struct krn_ops ops;
    struct krn_pool *pool;
    struct thread_state *threads; // one per thread of the pool
    int n_threads;
    struct allocation *allocations;
    char description[128];
};

// Into how many chunks an op with this much work is cut.
static int chunks_for(const struct cpu *cpu, double work)
{
    int most = cpu->n_threads > 1 ? CHUNKS_PER_THREAD * cpu->n_threads : 1;
    double chunks = work / UNITS_PER_CHUNK;
    return chunks >= most ? most : 1 + (int)chunks;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static void *cpu_alloc(void *ctx, size_t bytes, const char *purpose)
{
    struct cpu *cpu = ctx;
    (void)purpose;
    if (bytes > PTRDIFF_MAX - 2 * ALIGNMENT)
        return NULL;
    // calloc, because the system hands out large blocks already zeroed, untouched until used.
    char *raw = calloc(1, bytes + 2 * ALIGNMENT);
    if (!raw)
        return NULL;
    char *data = raw + ALIGNMENT + (ALIGNMENT - (uintptr_t)raw % ALIGNMENT);
    struct allocation *allocation = (struct allocation *)(data - ALIGNMENT);
    *allocation = (struct allocation){.next = cpu->allocations, .prev_next = &cpu->allocations, .raw = raw};
    if (allocation->next)
        allocation->next->prev_next = &allocation->next;
    cpu->allocations = allocation;
    return data;
}

static void cpu_release(void *ctx, void *ptr)
{
    (void)ctx;
    if (!ptr)
        return;
    struct allocation *allocation = (struct allocation *)((char *)ptr - ALIGNMENT);
    *allocation->prev_next = allocation->next;
    if (allocation->next)
        allocation->next->prev_next = allocation->prev_next;
    free(allocation->raw);
}

static const void *cpu_import_weights(void *ctx, const void *host, size_t bytes)
{
    (void)ctx, (void)bytes;
    return host;
}

static int cpu_upload(void *ctx, void *dst, const void *host, size_t bytes)
{
    (void)ctx;
    if (bytes > 0)
        memcpy(dst, host, bytes);
    return 0;
}

static int cpu_download(void *ctx, void *host, const void *src, size_t bytes)
{
    (void)ctx;
    if (bytes > 0)
        memcpy(host, src, bytes);
    return 0;
}

static int cpu_wait(void *ctx)
{
    (void)ctx;
    return 0;
}

// ---- checks ---------------------------------------------------------------------------------------------------------

static bool good_tensor(const struct krn_tensor *tensor)
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

// Segments, their pages and the layer lie inside the store.
static bool good_kv(const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments)
{
    if (!kv || !kv->k || !kv->v || kv->page_size <= 0 || kv->n_kv_heads <= 0 || kv->head_dim <= 0 || layer < 0 ||
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

static int cpu_embed(void *ctx, float *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows)
{
    (void)ctx;
    if (rows < 0 || !good_tensor(table))
        return KRN_EINVAL;
    for (int32_t r = 0; r < rows; r++)
        if (tokens[r] < 0 || tokens[r] >= table->rows)
            return KRN_EINVAL;
    krn_embed_ref(x, table, tokens, 0, rows);
    return 0;
}

static void rms_norm_part(void *arg, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    krn_rms_norm_ref(arg, begin, end);
}

static int cpu_rms_norm(void *ctx, float *y, float *x, const float *add, const struct krn_tensor *weight, float eps,
                        int32_t rows, int32_t width)
{
    struct cpu *cpu = ctx;
    if (rows < 0 || width <= 0 || !good_tensor(weight) || (int64_t)weight->rows * weight->cols != width)
        return KRN_EINVAL;
    struct krn_rms_norm_task task = {.y = y, .x = x, .add = add, .weight = weight, .eps = eps, .width = width};
    krn_pool_run(cpu->pool, rows, chunks_for(cpu, (double)rows * width), rms_norm_part, &task);
    return 0;
}

struct elementwise {
    float *y;
    const float *a, *b;
};

static void swiglu_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct elementwise *task = arg;
    (void)thread;
    krn_swiglu_ref(task->y, task->a, task->b, begin, end);
}

static int cpu_swiglu(void *ctx, float *y, const float *gate, const float *up, int32_t rows, int32_t width)
{
    struct cpu *cpu = ctx;
    if (rows < 0 || width <= 0)
        return KRN_EINVAL;
    struct elementwise task = {.y = y, .a = gate, .b = up};
    int64_t n = (int64_t)rows * width;
    krn_pool_run(cpu->pool, n, chunks_for(cpu, 4.0 * (double)n), swiglu_part, &task);
    return 0;
}

static void add_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct elementwise *task = arg;
    (void)thread;
    krn_add_ref(task->y, task->a, begin, end);
}

static int cpu_add(void *ctx, float *x, const float *y, int32_t rows, int32_t width)
{
    struct cpu *cpu = ctx;
    if (rows < 0 || width <= 0)
        return KRN_EINVAL;
    struct elementwise task = {.y = x, .a = y};
    int64_t n = (int64_t)rows * width;
    krn_pool_run(cpu->pool, n, chunks_for(cpu, (double)n / 4), add_part, &task);
    return 0;
}

static int cpu_gather(void *ctx, float *y, const float *x, const int32_t *rows, int32_t n, int32_t width)
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

// ---- linear ---------------------------------------------------------------------------------------------------------

struct linear_job {
    const struct krn_ops *ops;
    struct krn_linear_task task; // of the whole matrix
    // The low-rank addition; adapter is NULL when no row wants it.
    const struct krn_adapter *adapter;
    const uint8_t *adapter_rows;
    float *scratch; // x A^T, [rows][rank]
};

// Runs `task`, which describes all rows, on every run of consecutive flagged rows.
static void for_adapter_rows(const struct linear_job *job, struct krn_linear_task task, int64_t begin, int64_t end)
{
    float *y = task.y;
    const float *x = task.x;
    for (int32_t r = 0, stop; r < job->task.rows; r = stop) {
        stop = r + 1;
        if (!job->adapter_rows[r])
            continue;
        while (stop < job->task.rows && job->adapter_rows[stop])
            stop++;
        task.rows = stop - r;
        task.y = y + (size_t)r * (size_t)task.ldy;
        task.x = x + (size_t)r * (size_t)task.w->cols;
        job->ops->linear(&task, begin, end);
    }
}

// From units of OUTPUTS_PER_UNIT outputs to outputs.
static void range_of_outputs(int64_t *begin, int64_t *end, int64_t outputs)
{
    *begin *= OUTPUTS_PER_UNIT;
    *end = *end * OUTPUTS_PER_UNIT < outputs ? *end * OUTPUTS_PER_UNIT : outputs;
}

static int64_t units_of_outputs(int64_t outputs)
{
    return (outputs + OUTPUTS_PER_UNIT - 1) / OUTPUTS_PER_UNIT;
}

static void adapter_down_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct linear_job *job = arg;
    (void)thread;
    range_of_outputs(&begin, &end, job->adapter->a.rows);
    struct krn_linear_task down = {
        .y = job->scratch, .x = job->task.x, .w = &job->adapter->a, .ldy = job->adapter->a.rows};
    for_adapter_rows(job, down, begin, end);
}

static void linear_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct linear_job *job = arg;
    (void)thread;
    range_of_outputs(&begin, &end, job->task.w->rows);
    job->ops->linear(&job->task, begin, end);
    if (!job->adapter)
        return;
    struct krn_linear_task up = {
        .y = job->task.y,
        .x = job->scratch,
        .w = &job->adapter->b,
        .ldy = job->task.ldy,
        .add = true,
        .scale = job->adapter->scale,
    };
    for_adapter_rows(job, up, begin, end);
}

static int cpu_linear(void *ctx, float *y, const float *x, const struct krn_tensor *w, int32_t rows,
                      const struct krn_adapter *adapter, const uint8_t *adapter_rows, float *scratch)
{
    struct cpu *cpu = ctx;
    if (rows < 0 || !good_tensor(w))
        return KRN_EINVAL;
    if (adapter && (!good_tensor(&adapter->a) || !good_tensor(&adapter->b) || adapter->a.cols != w->cols ||
                    adapter->b.rows != w->rows || adapter->b.cols != adapter->a.rows || !adapter_rows || !scratch))
        return KRN_EINVAL;
    if (rows == 0)
        return 0;
    struct linear_job job = {
        .ops = &cpu->ops,
        .task = {.y = y, .x = x, .w = w, .rows = rows, .ldy = w->rows},
        .adapter_rows = adapter_rows,
        .scratch = scratch,
    };
    for (int32_t r = 0; adapter && !job.adapter && r < rows; r++)
        if (adapter_rows[r])
            job.adapter = adapter;
    if (job.adapter) {
        double work = (double)rows * adapter->a.rows * adapter->a.cols / 8;
        krn_pool_run(cpu->pool, units_of_outputs(adapter->a.rows), chunks_for(cpu, work), adapter_down_part, &job);
    }
    krn_pool_run(cpu->pool, units_of_outputs(w->rows), chunks_for(cpu, (double)rows * w->rows * w->cols / 8),
                 linear_part, &job);
    return 0;
}

// ---- rope, kv_write, attention --------------------------------------------------------------------------------------

struct rope_job {
    struct krn_rope_task task;
    struct thread_state *threads;
};

static void rope_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct rope_job *job = arg;
    krn_rope_ref(&job->task, job->threads[thread].rope_cache, begin, end);
}

static int cpu_rope(void *ctx, float *q, float *k, int32_t n_heads, int32_t n_kv_heads, const struct krn_rope *rope,
                    const struct krn_segment *segments, int32_t n_segments)
{
    struct cpu *cpu = ctx;
    if (n_heads <= 0 || n_kv_heads <= 0 || !rope || !rope->inv_freq || rope->head_dim <= 0 || rope->head_dim % 2 != 0 ||
        rope->head_dim > KRN_ROPE_DIM_MAX || !good_segments(segments, n_segments))
        return KRN_EINVAL;
    struct rope_job job = {
        .task = {.q = q,
                 .k = k,
                 .n_heads = n_heads,
                 .n_kv_heads = n_kv_heads,
                 .rope = rope,
                 .segments = segments,
                 .n_segments = n_segments},
        .threads = cpu->threads,
    };
    int64_t rows = rows_of(segments, n_segments);
    double work = (double)rows * (n_heads + n_kv_heads) * rope->head_dim;
    krn_pool_run(cpu->pool, rows, chunks_for(cpu, work), rope_part, &job);
    return 0;
}

static int cpu_kv_write(void *ctx, const struct krn_kv *kv, int32_t layer, const float *k, const float *v,
                        const struct krn_segment *segments, int32_t n_segments)
{
    (void)ctx;
    if (!good_kv(kv, layer, segments, n_segments))
        return KRN_EINVAL;
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

static int cpu_attention(void *ctx, float *y, const float *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                         const struct krn_segment *segments, int32_t n_segments)
{
    struct cpu *cpu = ctx;
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
    krn_pool_run(cpu->pool, krn_attention_shape(&job.task).units, chunks_for(cpu, work), attention_part, &job);
    return 0;
}

// ---- select ---------------------------------------------------------------------------------------------------------

struct select_job {
    struct krn_select_task task;
    struct thread_state *threads;
};

static void select_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct select_job *job = arg;
    krn_select_ref(&job->task, &job->threads[thread].select, begin, end);
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

static int cpu_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id,
                      const struct krn_select_row *rows, int32_t n, struct krn_choice *ret)
{
    struct cpu *cpu = ctx;
    if (n < 0 || n_vocab <= 0)
        return KRN_EINVAL;
    for (int32_t i = 0; i < n; i++)
        if (!good_select_row(&rows[i], n_vocab))
            return KRN_EINVAL;
    for (int i = 0; n > 0 && i < cpu->n_threads; i++) {
        int rc = krn_select_scratch_reserve(&cpu->threads[i].select, n_vocab);
        if (rc < 0)
            return rc;
    }
    struct select_job job = {
        .task = {.logits = logits, .n_vocab = n_vocab, .banned_id = banned_id, .rows = rows, .choices = ret},
        .threads = cpu->threads,
    };
    krn_pool_run(cpu->pool, n, chunks_for(cpu, 8.0 * n * n_vocab), select_part, &job);
    return 0;
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void cpu_close(void *ctx)
{
    struct cpu *cpu = ctx;
    if (!cpu)
        return;
    krn_pool_close(cpu->pool);
    for (int i = 0; cpu->threads && i < cpu->n_threads; i++) {
        krn_rope_cache_close(cpu->threads[i].rope_cache);
        krn_select_scratch_done(&cpu->threads[i].select);
    }
    free(cpu->threads);
    while (cpu->allocations) {
        struct allocation *next = cpu->allocations->next;
        free(cpu->allocations->raw);
        cpu->allocations = next;
    }
    free(cpu);
}

static const struct krn_backend template = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .release = cpu_release,
    .import_weights = cpu_import_weights,
    .upload = cpu_upload,
    .download = cpu_download,
    .wait = cpu_wait,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .linear = cpu_linear,
    .rope = cpu_rope,
    .kv_write = cpu_kv_write,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .gather = cpu_gather,
    .select = cpu_select,
    .close = cpu_close,
};

int krn_open_cpu(int threads, uint32_t cpu_mask, struct krn_backend **ret_backend, char *err, size_t err_size)
{
    if (threads < 0 || threads > KRN_POOL_MAX) {
        if (err && err_size > 0)
            snprintf(err, err_size, "the number of threads must be 0 to %d, not %d", KRN_POOL_MAX, threads);
        return KRN_EINVAL;
    }
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        goto fail;
    cpu->backend = template;
    cpu->backend.ctx = cpu;
    cpu->backend.description = cpu->description;
    krn_ops_init(&cpu->ops, krn_cpu_features() & cpu_mask);
    int cores = threads > 0 ? threads : krn_cpu_cores();
    cpu->pool = krn_pool_open(cores < KRN_POOL_MAX ? cores : KRN_POOL_MAX);
    if (!cpu->pool)
        goto fail;
    cpu->n_threads = krn_pool_threads(cpu->pool);
    cpu->threads = calloc((size_t)cpu->n_threads, sizeof *cpu->threads);
    if (!cpu->threads)
        goto fail;
    for (int i = 0; i < cpu->n_threads; i++) {
        cpu->threads[i].rope_cache = krn_rope_cache_open();
        if (!cpu->threads[i].rope_cache)
            goto fail;
    }
    snprintf(cpu->description, sizeof cpu->description, "linear %s, attention %s, %d thread%s", cpu->ops.linear_version,
             cpu->ops.attention_version, cpu->n_threads, cpu->n_threads == 1 ? "" : "s");
    *ret_backend = &cpu->backend;
    return 0;

fail:
    cpu_close(cpu);
    if (err && err_size > 0)
        snprintf(err, err_size, "no memory for the cpu backend");
    return KRN_ENOMEM;
}
