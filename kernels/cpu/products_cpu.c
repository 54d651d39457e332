// The CPU backend's matrix products: one with its adapter, several of one input, and the gated pair.
//
// Products that can run together are one job of the pool, because on a small model a hand-over to the other threads
// costs as much as a tenth of a product: q, k and v are cut as if they were one matrix, and a thread that has a range
// of gate computes the same range of up and the activation of both, whose inputs are then still in its cache.
#include "backend_cpu.h"

enum {
    PRODUCTS_MAX = 3,
    OUTPUTS_PER_UNIT = 8, // products are cut at multiples of this, to keep the tiles of linear whole
};

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

static double work_of(const struct krn_tensor *w, int32_t rows)
{
    return (double)rows * w->rows * w->cols / 8;
}

// ---- one product, with an adapter -----------------------------------------------------------------------------------

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

int krn_cpu_linear(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                   const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch)
{
    struct krn_cpu *cpu = ctx;
    if (rows < 0 || !krn_cpu_good_tensor(w))
        return KRN_EINVAL;
    if (adapter &&
        (!krn_cpu_good_tensor(&adapter->a) || !krn_cpu_good_tensor(&adapter->b) || adapter->a.cols != w->cols ||
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
    if (job.adapter)
        krn_pool_run(cpu->pool, units_of_outputs(adapter->a.rows), krn_cpu_chunks(cpu, work_of(&adapter->a, rows)),
                     adapter_down_part, &job);
    krn_pool_run(cpu->pool, units_of_outputs(w->rows), krn_cpu_chunks(cpu, work_of(w, rows)), linear_part, &job);
    return 0;
}

int krn_cpu_head(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows)
{
    return krn_cpu_linear(ctx, logits, x, w, rows, NULL, NULL, NULL);
}

// ---- several products of one input ----------------------------------------------------------------------------------

struct project_job {
    const struct krn_ops *ops;
    struct krn_linear_task tasks[PRODUCTS_MAX];
    int32_t n;
};

// Units are those of the products, one product after the other.
static void project_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct project_job *job = arg;
    (void)thread;
    for (int32_t i = 0; i < job->n && end > 0; i++) {
        const struct krn_linear_task *task = &job->tasks[i];
        int64_t units = units_of_outputs(task->w->rows), first = begin > 0 ? begin : 0, last = end;
        if (first < units) {
            range_of_outputs(&first, &last, task->w->rows);
            job->ops->linear(task, first, last);
        }
        begin -= units;
        end -= units;
    }
}

int krn_cpu_project(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows)
{
    struct krn_cpu *cpu = ctx;
    if (n < 0 || n > PRODUCTS_MAX || rows < 0)
        return KRN_EINVAL;
    struct project_job job = {.ops = &cpu->ops, .n = n};
    int64_t units = 0;
    double work = 0;
    for (int32_t i = 0; i < n; i++) {
        const struct krn_tensor *w = products[i].w;
        if (!krn_cpu_good_tensor(w))
            return KRN_EINVAL;
        job.tasks[i] = (struct krn_linear_task){.y = products[i].y, .x = x, .w = w, .rows = rows, .ldy = w->rows};
        units += units_of_outputs(w->rows);
        work += work_of(w, rows);
    }
    if (rows > 0)
        krn_pool_run(cpu->pool, units, krn_cpu_chunks(cpu, work), project_part, &job);
    return 0;
}

// ---- the gated pair -------------------------------------------------------------------------------------------------

struct gated_job {
    const struct krn_ops *ops;
    struct krn_linear_task gate, up;
    struct krn_swiglu_task swiglu;
};

static void gated_part(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct gated_job *job = arg;
    (void)thread;
    range_of_outputs(&begin, &end, job->swiglu.width);
    job->ops->linear(&job->gate, begin, end);
    job->ops->linear(&job->up, begin, end);
    job->ops->swiglu(&job->swiglu, begin, end);
}

int krn_cpu_gated(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                  int32_t rows, void *const scratch[2])
{
    struct krn_cpu *cpu = ctx;
    if (rows < 0 || !krn_cpu_good_tensor(gate) || !krn_cpu_good_tensor(up) || gate->rows != up->rows ||
        gate->cols != up->cols)
        return KRN_EINVAL;
    if (rows == 0)
        return 0;
    int32_t width = gate->rows;
    struct gated_job job = {
        .ops = &cpu->ops,
        .gate = {.y = scratch[0], .x = x, .w = gate, .rows = rows, .ldy = width},
        .up = {.y = scratch[1], .x = x, .w = up, .rows = rows, .ldy = width},
        .swiglu = {.y = y, .gate = scratch[0], .up = scratch[1], .rows = rows, .width = width},
    };
    krn_pool_run(cpu->pool, units_of_outputs(width), krn_cpu_chunks(cpu, work_of(gate, rows) + work_of(up, rows)),
                 gated_part, &job);
    return 0;
}
