// Times of single passes, without requests: the forward call of step 5 on made-up batches.
//
// Every sequence of a bench has its own pages, so that no pass reads keys and values that another sequence has just
// brought into a cache; they are filled by real passes over random tokens before anything is timed. A pass runs several
// times, first alone (submit, wait), then with the next one submitted before it is waited for, as the engine does.
// Runs on the caller's thread; no engine exists beside it. Leaves out requests, scheduling and sampling parameters: a
// choice here is the most probable token.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "text/fail.h"

enum { MAX_RUNS = 1000, WARM_UPS = 3 };

struct eng_bench {
    struct eng_parts parts;
    struct eng_batch batches[2];
    int32_t max_sequences, slot_pages; // pages of one sequence
    int32_t *pages;                    // [max_sequences][slot_pages]
    int32_t *filled;                   // [max_sequences] positions with final KV
    uint64_t random;
};

// ---- batches --------------------------------------------------------------------------------------------------------

static int32_t random_token(struct eng_bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    int32_t token = (int32_t)((b->random >> 33) % (uint64_t)b->parts.info.n_vocab);
    return token == b->parts.model.mask_id ? 0 : token;
}

static bool adapter_on(const struct eng_model *m, enum eng_pass_kind kind)
{
    return m->has_adapter && (kind == ENG_PASS_DRAFT || (kind == ENG_PASS_DENOISE && m->block_adapter));
}

static bool is_block(enum eng_pass_kind kind)
{
    return kind == ENG_PASS_DRAFT || kind == ENG_PASS_DENOISE;
}

// As the modes lay out their segments (MODEL.md 4, 5): a block pass begins with its seed, the rest is masked.
static void add_segment(struct eng_bench *b, struct eng_batch *batch, int32_t slot, enum eng_pass_kind kind,
                        int32_t first, int32_t rows, bool last_only)
{
    struct eng_segment *s = eng_batch_add(batch, slot, kind, first, rows);
    s->mask = is_block(kind) ? KRN_MASK_BLOCK : KRN_MASK_CAUSAL;
    s->keep = !is_block(kind);
    s->adapter = adapter_on(&b->parts.model, kind);
    s->pages = b->pages + (size_t)slot * (size_t)b->slot_pages;
    for (int32_t i = 0; i < rows; i++) {
        bool masked = is_block(kind) && i > 0;
        batch->tokens[s->row + i] = masked ? b->parts.model.mask_id : random_token(b);
        if (is_block(kind) ? !masked : last_only && i < rows - 1)
            continue;
        eng_batch_want(batch, s, i)->position = first + i + !is_block(kind);
    }
    if (kind == ENG_PASS_VERIFY)
        eng_batch_accept(batch, s);
}

static void lay_out(struct eng_bench *b, struct eng_batch *batch, const struct eng_bench_shape *shape)
{
    bool last_only = shape->kind == ENG_PASS_PREFILL || shape->kind == ENG_PASS_SEAL;
    eng_batch_reset(batch);
    for (int32_t i = 0; i < shape->segments; i++) {
        add_segment(b, batch, i, shape->kind, shape->context, shape->rows, last_only);
        if (b->filled[i] > shape->context)
            b->filled[i] = shape->context; // what stood there is about to be overwritten
    }
}

// Random tokens up to `context` in the first n sequences, as many rows a pass as fit.
static int fill(struct eng_bench *b, int32_t n, int32_t context)
{
    struct eng_batch *batch = &b->batches[0];
    eng_batch_reset(batch);
    int rc = 0;
    for (int32_t slot = 0; rc == 0 && slot < n;) {
        int32_t room = batch->max_rows - batch->n_rows, left = context - b->filled[slot];
        int32_t rows = left < room ? left : room;
        if (rows > 0) {
            add_segment(b, batch, slot, ENG_PASS_PREFILL, b->filled[slot], rows, true);
            b->filled[slot] += rows;
        }
        bool full = batch->n_rows == batch->max_rows || batch->n_segments == batch->max_segments;
        slot += b->filled[slot] >= context;
        if ((full || slot == n) && batch->n_rows) {
            rc = eng_model_forward(&b->parts.model, batch);
            eng_batch_reset(batch);
        }
    }
    return rc;
}

// ---- timing ---------------------------------------------------------------------------------------------------------

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double ms(int64_t ns)
{
    return (double)ns * 1e-6;
}

static int check_choices(const struct eng_batch *batch)
{
    for (int32_t i = 0; i < batch->n_wanted; i++)
        if (batch->choices[i].token < 0)
            return ENG_EDEVICE; // logits that are not finite: the times would be those of nonsense
    return 0;
}

static int run_alone(struct eng_bench *b, int warm_ups, int runs, struct eng_bench_time *ret)
{
    int64_t total[MAX_RUNS], host[MAX_RUNS];
    const struct eng_model *m = &b->parts.model;
    struct eng_batch *batch = &b->batches[0];
    int rc = 0;
    for (int i = -warm_ups; rc == 0 && i < runs; i++) {
        int64_t start = eng_now_ns();
        rc = m->submit(m->ctx, batch);
        int64_t submitted = eng_now_ns();
        if (rc == 0)
            rc = m->wait(m->ctx, batch);
        if (rc == 0)
            rc = check_choices(batch);
        if (i >= 0) {
            total[i] = eng_now_ns() - start;
            host[i] = submitted - start;
        }
    }
    if (rc != 0)
        return rc;
    qsort(total, (size_t)runs, sizeof *total, by_value);
    qsort(host, (size_t)runs, sizeof *host, by_value);
    ret->min_ms = ms(total[0]);
    ret->median_ms = ms(total[runs / 2]);
    ret->max_ms = ms(total[runs - 1]);
    ret->host_ms = ms(host[runs / 2]);
    return 0;
}

// The mean over a queue that never runs dry.
static int run_queued(struct eng_bench *b, int runs, struct eng_bench_time *ret)
{
    const struct eng_model *m = &b->parts.model;
    ret->queued_ms = ret->median_ms;
    if (!m->async)
        return 0;
    int64_t start = eng_now_ns();
    int rc = m->submit(m->ctx, &b->batches[0]);
    for (int i = 1; rc == 0 && i <= runs; i++) {
        if (i < runs)
            rc = m->submit(m->ctx, &b->batches[i % 2]);
        int waited = m->wait(m->ctx, &b->batches[(i - 1) % 2]);
        rc = rc ? rc : waited;
    }
    ret->queued_ms = ms(eng_now_ns() - start) / runs;
    return rc;
}

// The least that the pass reads: each weight once, of the embedding its rows; the cached keys and values once.
static void count_bytes(const struct eng_bench *b, const struct eng_bench_shape *shape, struct eng_bench_time *ret)
{
    const struct eng_info *info = &b->parts.info;
    int64_t rows = (int64_t)shape->segments * shape->rows;
    ret->adapter = adapter_on(&b->parts.model, shape->kind);
    ret->wanted = b->batches[0].n_wanted;
    ret->weight_bytes = info->step_bytes + (ret->adapter ? info->adapter_bytes : 0) + rows * info->embed_row_bytes;
    ret->kv_bytes = (int64_t)shape->segments * (shape->context + shape->rows) * info->kv_token_bytes;
}

int eng_bench_measure(struct eng_bench *b, const struct eng_bench_shape *shape, int warm_ups, int runs,
                      struct eng_bench_time *ret)
{
    *ret = (struct eng_bench_time){0};
    int64_t rows = (int64_t)shape->segments * shape->rows;
    if (shape->segments < 1 || shape->segments > b->max_sequences || shape->rows < 1 || shape->context < 0 ||
        rows > b->batches[0].max_rows || shape->context + (int64_t)shape->rows > b->parts.info.max_context ||
        (int)shape->kind < 0 || shape->kind >= ENG_N_PASS_KINDS || runs < 1 || runs > MAX_RUNS)
        return ENG_EINVAL;
    if (is_block(shape->kind) && b->parts.model.mask_id < 0)
        return ENG_ENOTSUP;
    int rc = fill(b, shape->segments, shape->context);
    if (rc != 0)
        return rc;
    lay_out(b, &b->batches[0], shape);
    lay_out(b, &b->batches[1], shape);
    count_bytes(b, shape, ret);
    rc = run_alone(b, warm_ups, runs, ret);
    return rc != 0 ? rc : run_queued(b, runs, ret);
}

int eng_bench_pass(struct eng_bench *b, const struct eng_bench_shape *shape, int runs, struct eng_bench_time *ret)
{
    return eng_bench_measure(b, shape, WARM_UPS, runs, ret);
}

struct eng_cost_pass eng_bench_cost(const struct eng_bench *b)
{
    return eng_batch_cost(&b->batches[0]);
}

// ---- open and close -------------------------------------------------------------------------------------------------

void eng_bench_leave(struct eng_bench *b)
{
    eng_batch_done(&b->batches[0]);
    eng_batch_done(&b->batches[1]);
    free(b->pages);
    free(b->filled);
    free(b);
}

int eng_bench_make(const struct eng_options *options, const struct eng_parts *parts, struct eng_bench **ret, char *err,
                   size_t err_size)
{
    int32_t page_size = parts->info.page_size, n = options->max_sequences;
    int32_t slot_pages = (parts->info.max_context + page_size - 1) / page_size;
    if ((int64_t)n * slot_pages > parts->info.n_pages)
        return fail(ENG_ELIMIT, err, err_size,
                    "%d sequences of %d tokens need %lld KV pages and there is memory for %d; ask for fewer rows or a "
                    "shorter context",
                    n, parts->info.max_context, (long long)n * slot_pages, parts->info.n_pages);
    struct eng_bench *b = calloc(1, sizeof *b);
    if (!b)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    b->max_sequences = n;
    b->slot_pages = slot_pages;
    b->random = 1;
    b->pages = calloc((size_t)n * (size_t)slot_pages, sizeof *b->pages);
    b->filled = calloc((size_t)n, sizeof *b->filled);
    if (!b->pages || !b->filled || eng_batch_init(&b->batches[0], options->max_step_rows, n) ||
        eng_batch_init(&b->batches[1], options->max_step_rows, n)) {
        eng_bench_leave(b);
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    }
    for (int32_t i = 0; i < n * slot_pages; i++)
        b->pages[i] = i;
    b->parts = *parts;
    b->parts.info.n_vocab = parts->model.n_vocab;
    b->parts.info.has_adapter = parts->model.has_adapter;
    *ret = b;
    return 0;
}

int eng_bench_open(const struct eng_options *options, struct eng_bench **ret, char *err, size_t err_size)
{
    struct eng_parts parts;
    int rc = eng_load(options, &parts, err, err_size);
    if (rc != 0)
        return rc;
    rc = eng_bench_make(options, &parts, ret, err, err ? err_size : 0);
    if (rc != 0) {
        parts.model.close(parts.model.ctx);
        parts.release(parts.owner);
    }
    return rc;
}

const struct eng_info *eng_bench_info(const struct eng_bench *b)
{
    return &b->parts.info;
}

const char *eng_bench_error(const struct eng_bench *b, int code)
{
    const struct eng_model *m = &b->parts.model;
    return code > -100 && m->error ? m->error(m->ctx, code) : eng_strerror(code);
}

void eng_bench_close(struct eng_bench *b)
{
    if (!b)
        return;
    if (b->parts.model.close)
        b->parts.model.close(b->parts.model.ctx);
    if (b->parts.release)
        b->parts.release(b->parts.owner);
    eng_bench_leave(b);
}
